"""A web server that is measured: ``python -m benchmarks.web_worker FRAMEWORK DIRECTORY REDIS_PORT``.

It prints its port, and answers at ``/<contestant>/read`` and ``/<contestant>/change`` by one worker until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from asyncsess import FileStore
from asyncsess.web import CookiePolicy
from benchmarks.contestants import SESSION, change_file, encode, read_file

PLAIN = CookiePolicy(secure=False)
SECRET = b"0" * 32
Serve = Callable[[str, int], Awaitable[int]]


def change(session: Any) -> str:
    """Count in a session, which begins with what all contestants hold."""
    if "hits" not in session:
        session.update(SESSION)
    session["hits"] += 1
    return "changed"


def read(session: Any) -> str:
    return f"hits: {session.get('hits', 0)}"


class Calls:
    """What a handler does without a library: a file for each visitor, and the system calls."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._directory.mkdir()

    async def read(self, request: Any) -> str:
        return f"hits: {read_file(self._directory / request.cookies['session'])}"

    async def change(self, request: Any) -> str:
        path = self._directory / request.cookies["session"]
        try:
            change_file(path)
        except FileNotFoundError:
            path.write_bytes(encode(SESSION))
        return "changed"


async def serve_aiohttp(directory: str, redis_port: int) -> int:
    import aiohttp_session
    from aiohttp import web
    from aiohttp_session.cookie_storage import EncryptedCookieStorage
    from aiohttp_session.redis_storage import RedisStorage
    from redis.asyncio import Redis

    from asyncsess.web import aiohttp

    main = web.Application()

    def add(name: str, reading: Any, changing: Any, app: web.Application | None = None) -> None:
        async def on_read(request: web.Request) -> web.Response:
            return web.Response(text=await reading(request))

        async def on_change(request: web.Request) -> web.Response:
            return web.Response(text=await changing(request))

        app = app or web.Application()
        app.router.add_get("/read", on_read)
        app.router.add_get("/change", on_change)
        main.add_subapp(f"/{name}", app)

    async def bare(request: web.Request) -> str:
        return f"cookie: {len(request.cookies.get('session', ''))}"

    async def exclusive(request: web.Request) -> str:
        async with aiohttp.open_session(request) as session:
            return change(session)

    async def readonly(request: web.Request) -> str:
        async with aiohttp.open_session(request, readonly=True) as session:
            return read(session)

    async def get_and_read(request: web.Request) -> str:
        return read(await aiohttp.get_session(request))

    async def get_and_change(request: web.Request) -> str:
        return change(await aiohttp.get_session(request))

    async def theirs_read(request: web.Request) -> str:
        return read(await aiohttp_session.get_session(request))

    async def theirs_change(request: web.Request) -> str:
        session = await aiohttp_session.get_session(request)
        session.changed()
        return change(session)

    store, calls = FileStore(directory, sweep_interval=None), Calls(f"{directory}-calls")
    ours, whole, redis, cookie = [web.Application() for _ in range(4)]
    aiohttp.setup(ours, store, PLAIN)
    aiohttp.setup(whole, store, PLAIN)
    aiohttp_session.setup(redis, RedisStorage(Redis(port=redis_port)))  # type: ignore[no-untyped-call]
    aiohttp_session.setup(cookie, EncryptedCookieStorage(SECRET))

    async def hold(request: web.Request) -> web.Response:
        async with aiohttp.open_session(request):
            await asyncio.sleep(1)
        return web.Response()

    ours.router.add_get("/hold", hold)
    add("bare", bare, bare)
    add("calls", calls.read, calls.change)
    add("asyncsess", readonly, exclusive, ours)
    add("get_session", get_and_read, get_and_change, whole)
    add("redis", theirs_read, theirs_change, redis)
    add("cookie", theirs_read, theirs_change, cookie)
    runner = web.AppRunner(main, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return int(runner.addresses[0][1])


async def serve_starlette(directory: str, redis_port: int) -> int:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware.sessions import SessionMiddleware as CookieSessions
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route
    from starsessions import SessionAutoloadMiddleware
    from starsessions import SessionMiddleware as Starsessions
    from starsessions.stores.redis import RedisStore

    from asyncsess.web import asgi

    def app(reading: Any, changing: Any) -> Any:
        async def on_read(request: Request) -> PlainTextResponse:
            return PlainTextResponse(await reading(request))

        async def on_change(request: Request) -> PlainTextResponse:
            return PlainTextResponse(await changing(request))

        return Starlette(routes=[Route("/read", on_read), Route("/change", on_change)])

    async def bare(request: Request) -> str:
        return f"cookie: {len(request.cookies.get('session', ''))}"

    async def exclusive(request: Request) -> str:
        async with asgi.open_session(request) as session:
            return change(session)

    async def readonly(request: Request) -> str:
        async with asgi.open_session(request, readonly=True) as session:
            return read(session)

    async def scope_read(request: Request) -> str:
        return read(request.session)

    async def scope_change(request: Request) -> str:
        return change(request.session)

    store, calls = FileStore(directory, sweep_interval=None), Calls(f"{directory}-calls")
    url = f"redis://127.0.0.1:{redis_port}"
    theirs = Starsessions(
        SessionAutoloadMiddleware(app(scope_read, scope_change)), store=RedisStore(url), cookie_https_only=False
    )
    contestants = {
        "bare": app(bare, bare),
        "calls": app(calls.read, calls.change),
        "asyncsess": asgi.SessionMiddleware(app(readonly, exclusive), store, PLAIN, scope_key=None),
        "get_session": asgi.SessionMiddleware(app(scope_read, scope_change), store, PLAIN),
        "redis": theirs,
        "cookie": CookieSessions(app(scope_read, scope_change), secret_key=SECRET.hex()),
    }
    routes = [Mount(f"/{name}", contestant) for name, contestant in contestants.items()]
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", access_log=False, lifespan="off")
    )
    task = asyncio.create_task(server.serve())
    while not server.started and not task.done():  # noqa: ASYNC110 - it tells by no event
        await asyncio.sleep(0.01)
    _running.append(task)
    return int(server.servers[0].sockets[0].getsockname()[1])


_running: list[asyncio.Task[None]] = []
FRAMEWORKS: dict[str, Serve] = {"aiohttp": serve_aiohttp, "starlette": serve_starlette}


async def main(framework: str, directory: str, redis_port: str) -> None:
    print(await FRAMEWORKS[framework](directory, int(redis_port)), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
