"""What is answered by an ASGI application whose session can't be had, or not be stored; and what goes on then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import fastapi
import litestar
import litestar.background_tasks
import litestar.response
import pytest
import quart
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from asyncsess import FileStore, SessionStore, increment, put
from asyncsess.ids import key_of
from asyncsess.web import asgi
from tests.conftest import NewStore, stored
from tests.web.conftest import new_browser, status_of, visit
from tests.web.sites import PLAIN, by_hypercorn, by_uvicorn

SERVERS = {"uvicorn": by_uvicorn, "hypercorn": by_hypercorn}


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


class Disturbed:
    """What applications do with a session that others change meanwhile."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.ended = asyncio.Event()
        self.background: list[str] = []

    async def change(self, request: Any) -> None:
        session = await asgi.get_session(request)
        await self._store.apply(session.id, increment("n"))
        session["n"] = "ours"

    async def endless(self) -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await asyncio.sleep(0.001)

    async def send_mail(self) -> None:
        self.background.append("mail")

    def watch(self, app: Any) -> Any:
        """Note when an application has dealt with a request."""

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            finally:
                self.ended.set()

        return watched


def a_starlette(disturbed: Disturbed) -> Any:
    async def stream(request: Request) -> StreamingResponse:
        await disturbed.change(request)
        return StreamingResponse(disturbed.endless(), background=BackgroundTask(disturbed.send_mail))

    async def mail(request: Request) -> PlainTextResponse:
        await disturbed.change(request)
        return PlainTextResponse("done", background=BackgroundTask(disturbed.send_mail))

    return Starlette(routes=[Route("/stream", stream), Route("/mail", mail)])


def a_fastapi(disturbed: Disturbed) -> Any:
    app = fastapi.FastAPI()

    @app.get("/stream")
    async def stream(request: Request) -> StreamingResponse:
        await disturbed.change(request)
        return StreamingResponse(disturbed.endless())

    @app.get("/mail")
    async def mail(request: Request, tasks: fastapi.BackgroundTasks) -> str:
        tasks.add_task(disturbed.send_mail)
        await disturbed.change(request)
        return "done"

    return app


def a_litestar(disturbed: Disturbed) -> Any:
    @litestar.get("/stream")
    async def stream(request: litestar.Request[Any, Any, Any]) -> litestar.response.Stream:
        await disturbed.change(request)
        return litestar.response.Stream(disturbed.endless())

    @litestar.get("/mail")
    async def mail(request: litestar.Request[Any, Any, Any]) -> litestar.Response[str]:
        await disturbed.change(request)
        task = litestar.background_tasks.BackgroundTask(disturbed.send_mail)
        return litestar.Response("done", background=task)

    return litestar.Litestar([stream, mail], logging_config=None)


def a_quart(disturbed: Disturbed) -> Any:
    app = quart.Quart(__name__)

    @app.get("/stream")
    async def stream() -> Any:
        await disturbed.change(quart.request)
        return disturbed.endless()

    @app.get("/mail")
    async def mail() -> str:
        await disturbed.change(quart.request)
        return "done"

    return app


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("make", [a_starlette, a_fastapi, a_litestar, a_quart])
async def test_what_would_go_on_for_nobody_ends(
    store: SessionStore, server: str, make: Callable[[Disturbed], Any], caplog: pytest.LogCaptureFixture
) -> None:
    disturbed = Disturbed(store)
    session_id = await store.create({"n": 0})
    app = asgi.SessionMiddleware(disturbed.watch(make(disturbed)), store, PLAIN, scope_key=None)
    async with SERVERS[server](app) as url, new_browser(cookies={"session": session_id}) as visitor:
        assert await status_of(visitor, url + "/stream") == 409
        async with asyncio.timeout(10):
            await disturbed.ended.wait()
        assert await status_of(visitor, url + "/mail") == 409
        assert await stored(store, session_id) == {"n": 2}
    assert disturbed.background == []


async def test_what_would_go_on_for_nobody_ends_behind_other_middlewares(store: SessionStore) -> None:
    disturbed = Disturbed(store)
    inner = a_fastapi(disturbed)

    @inner.middleware("http")
    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    app = asgi.SessionMiddleware(disturbed.watch(inner), store, PLAIN)
    session_id = await store.create({"n": 0})
    async with by_uvicorn(app) as url, new_browser(cookies={"session": session_id}) as visitor:
        assert await status_of(visitor, url + "/stream") == 409
        async with asyncio.timeout(10):
            await disturbed.ended.wait()


async def test_a_mistake_after_the_answer_was_replaced_comes_out(
    store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    disturbed = Disturbed(store)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await disturbed.change(scope)
        with pytest.raises(BaseException, match=r"^$") as unheard:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not isinstance(unheard.value, Exception)  # which handlers of exceptions would deal with
        raise ZeroDivisionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async with store:
        session_id = await store.create({"n": 0})
        scope = {"type": "http", "headers": [(b"cookie", f"session={session_id}".encode())]}
        with pytest.raises(ZeroDivisionError):
            await asgi.SessionMiddleware(app, store, PLAIN)(scope, None, send)  # type: ignore[arg-type]
    assert [message.get("status") for message in sent] == [409, None]


async def test_a_conflict_is_no_exception_that_an_application_would_report(store: SessionStore) -> None:
    disturbed, reported = Disturbed(store), list[str]()
    app = a_fastapi(disturbed)

    @app.exception_handler(Exception)
    async def report(request: Any, error: Exception) -> PlainTextResponse:
        reported.append(repr(error))
        return PlainTextResponse("reported", 500)

    session_id = await store.create({"n": 0})
    served = by_uvicorn(asgi.SessionMiddleware(app, store, PLAIN))
    async with served as url, new_browser(cookies={"session": session_id}) as visitor:
        assert await status_of(visitor, url + "/mail") == 409
    assert reported == []


async def test_mistakes_beside_what_is_heard_by_nobody_come_out(store: SessionStore) -> None:
    disturbed = Disturbed(store)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await disturbed.change(scope)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        except BaseException as unheard:
            raise BaseExceptionGroup("of a task group", [unheard, ZeroDivisionError()]) from None

    async def send(message: Any) -> None:
        """Send it to nobody."""

    async with store:
        session_id = await store.create({"n": 0})
        scope = {"type": "http", "headers": [(b"cookie", f"session={session_id}".encode())]}
        with pytest.raises(ExceptionGroup) as caught:
            await asgi.SessionMiddleware(app, store, PLAIN)(scope, None, send)  # type: ignore[arg-type]
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]


# A session that can't be loaded.


async def test_a_page_without_a_session_does_not_need_one_that_can_be_loaded(
    store: FileStore, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def plain(request: Request) -> PlainTextResponse:
        return PlainTextResponse("plain")

    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(dict(request.session)))

    async def replace(request: Request) -> PlainTextResponse:
        request.scope["session"] = {"n": 2}
        return PlainTextResponse("replaced")

    async def apply(request: Request) -> PlainTextResponse:
        await asgi.apply_session(request, put("n", 2))
        return PlainTextResponse("applied")

    app = Starlette(routes=[Route(f"/{page.__name__}", page) for page in (plain, read, replace, apply)])
    async with by_uvicorn(asgi.SessionMiddleware(app, store, PLAIN)) as url:
        for page, status in (("plain", 200), ("read", 500), ("replace", 500), ("apply", 500)):
            session_id = await store.create({"n": 1})
            key = key_of(session_id)
            (directory / key[:2] / key[2:]).write_bytes(bytes(600))
            async with new_browser(cookies={"session": session_id}) as visitor:
                assert (page, await status_of(visitor, f"{url}/{page}")) == (page, status)
                assert await visit(visitor, url + "/read") == "{}"
    caplog.clear()


# What a newcomer writes.


async def test_an_await_where_a_block_belongs_says_so(store: SessionStore, browser: aiohttp.ClientSession) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        with pytest.raises(TypeError, match=r"async with open_session\(request\) as session"):
            await asgi.open_session(request)  # type: ignore[misc]
        return PlainTextResponse("told")

    app = Starlette(routes=[Route("/", endpoint)])
    async with by_uvicorn(asgi.SessionMiddleware(app, store, PLAIN)) as url:
        assert await visit(browser, url) == "told"
