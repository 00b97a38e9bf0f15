"""The stream of clicks: what a tab is told, what it is told when it comes back, and when the stream ends."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from asyncsess import FileStore

from .servers import PATIENCE, NewVisitor, Server, Start, Visitor, expire_all


class Event(NamedTuple):
    """What a tab is told."""

    data: str = ""
    id: str = ""
    event: str = "message"


class Stream:
    """The events that a tab gets."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> Event | None:
        """Return the next event; None if the stream has ended."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            async for line in self._response.content:
                name, _, value = line.decode().rstrip("\n").partition(":")
                if name:
                    fields[name] = value.strip()
                elif fields.pop("retry", None) is None:
                    return Event(**fields)
        return None


@asynccontextmanager
async def following(visitor: Visitor, url: str = "", seen: str | None = None) -> AsyncIterator[Stream]:
    headers = {} if seen is None else {"Last-Event-ID": seen}
    async with visitor.client.get((url or visitor.url) + "/events", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        yield Stream(response)


@pytest.fixture
def server(start: Start) -> Server:
    return start("sse.py")


@pytest.fixture
async def visitor(server: Server, new_visitor: NewVisitor) -> Visitor:
    visitor = new_visitor(server)
    async with visitor.client.get(visitor.url) as response:
        visitor.token = re.search('"X-CSRF-Token": "(.*?)"', await response.text())[1]
    return visitor


async def test_each_tab_is_told_of_a_click_in_any_of_them_and_at_any_server(start: Start, visitor: Visitor) -> None:
    async with following(visitor) as one, following(visitor, start("sse.py").url) as other:
        assert (await one.next()).data == (await other.next()).data == "0"
        for clicks in (1, 2):
            assert await visitor.post("/click") == (200, clicks)
            assert (await one.next()).data == (await other.next()).data == str(clicks)


async def test_no_click_is_lost_beside_streams(visitor: Visitor) -> None:
    async with following(visitor) as stream:
        answers = await asyncio.gather(*(visitor.post("/click") for _ in range(20)))
        assert sorted(clicks for _, clicks in answers) == [*range(1, 21)]
        while (await stream.next()).data != "20":
            pass


async def test_a_stream_waits_for_nobody_who_holds_the_session(visitor: Visitor, tmp_path: Path) -> None:
    async with (
        FileStore(tmp_path / "var" / "sessions") as store,
        store.open(visitor.session_id(), lease=2 * PATIENCE) as session,
        following(visitor) as stream,
    ):
        assert (await stream.next()).data == "0"
        session["clicks"] = 7
        await session.save()
        assert (await stream.next()).data == "7"


async def test_a_tab_that_comes_back_is_told_what_it_missed_and_nothing_twice(visitor: Visitor) -> None:
    async with following(visitor) as stream:
        first = await stream.next()
    await visitor.post("/click")
    async with following(visitor, seen=first.id) as stream:
        second = await stream.next()
        assert second.data == "1"
    async with following(visitor, seen=second.id) as stream:
        await visitor.post("/click")
        assert (await stream.next()).data == "2"


@pytest.mark.parametrize("has_expired", [False, True], ids=["by a button", "unused for long"])
async def test_the_end_of_the_session_ends_the_streams_of_all_tabs(
    visitor: Visitor, tmp_path: Path, has_expired: bool
) -> None:
    async with following(visitor) as one, following(visitor) as other:
        for stream in (one, other):
            assert (await stream.next()).data == "0"
        if has_expired:
            await expire_all(tmp_path)
        else:
            assert (await visitor.post("/end"))[0] == 204
        for stream in (one, other):
            assert await stream.next() == Event(event="end")
            assert await stream.next() is None


async def test_a_visitor_without_a_session_is_told_to_stay_away(server: Server, new_visitor: NewVisitor) -> None:
    async with following(new_visitor(server)) as stream:
        assert await stream.next() == Event(event="end")


async def test_it_ends_although_a_tab_follows(server: Server, visitor: Visitor) -> None:
    async with following(visitor) as stream:
        assert (await stream.next()).data == "0"
        assert server.end(signal.SIGINT) == 0
    assert server.output == f"Running on {server.url}/ until Ctrl-C\n"
