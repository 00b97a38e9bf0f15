"""An application for the tests that run several worker processes: it counts in the session, in three ways."""

from __future__ import annotations

import os
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asyncsess import FileStore, increment, rules
from asyncsess.web import CookiePolicy
from asyncsess.web.asgi import SessionMiddleware, apply_session, edit_session, open_session


async def count(request: Request) -> PlainTextResponse:
    async with open_session(request) as session:
        session["open"] = session.get("open", 0) + 1
    async with edit_session(request, resolve={"edit": rules.add}) as session:
        session["edit"] = session.get("edit", 0) + 1
    await apply_session(request, increment("apply"))
    return PlainTextResponse(str(os.getpid()))


async def show(request: Request) -> PlainTextResponse:
    async with open_session(request, readonly=True) as session:
        return PlainTextResponse(" ".join(str(session[way]) for way in ("open", "edit", "apply")))


app: Any = SessionMiddleware(
    Starlette(routes=[Route("/count", count), Route("/show", show)]),
    FileStore(os.environ["SESSIONS"]),
    CookiePolicy(secure=False),
    scope_key=None,
)
