"""What the tests of the web put on their sites, and where requests meet."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from asyncsess.web import login, logout
from tests.web.conftest import visit
from tests.web.sites import Site


class Gate:
    """Where requests meet, so that they are under way at the same time."""

    def __init__(self, number: int = 1) -> None:
        self._number = number
        self.waiting = 0
        self._opens = asyncio.Event()

    async def pass_(self) -> None:
        self.waiting += 1
        if self.waiting >= self._number:
            self._opens.set()
        await asyncio.wait_for(self._opens.wait(), 10)


class Stop:
    """Where a slow request waits for the test."""

    def __init__(self) -> None:
        self.reached, self.may_go = asyncio.Event(), asyncio.Event()

    async def here(self) -> None:
        self.reached.set()
        await asyncio.wait_for(self.may_go.wait(), 10)


def add_basics(site: Site) -> None:
    """Add pages that show, begin, and end a session."""

    async def show(request: Any) -> str:
        async with site.web.open_session(request, readonly=True) as session:
            return json.dumps(dict(session))

    async def put(request: Any) -> str:
        async with site.web.open_session(request) as session:
            session[site.query(request, "key")] = site.query(request, "value")
        return session.id

    async def log_in(request: Any) -> str:
        async with site.web.open_session(request) as session:
            await login(session, site.query(request, "owner"))
        return session.id

    async def log_out(request: Any) -> str:
        async with site.web.open_session(request) as session:
            await logout(session)
        return "bye"

    for path, handle in (("/show", show), ("/put", put), ("/login", log_in), ("/logout", log_out)):
        site.add(path, handle)


async def shown(browser: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    return json.loads(await visit(browser, url + "/show"))


class Fine:
    """An answer that is no error, in any framework."""

    status = status_code = 200
