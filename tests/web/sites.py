"""Small web sites, the same in each framework, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import uvicorn
from aiohttp import web
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asyncsess import SessionStore
from asyncsess.web import CookiePolicy, aiohttp, asgi

Reply = str | tuple[int, str]
Handle = Callable[[Any], Awaitable[Reply]]
Chunks = Callable[[Any], AsyncIterator[str]]
Talk = Callable[[Any, str], Awaitable[str]]
PLAIN = CookiePolicy(secure=False)


class Site(ABC):
    """A web site that is being written, then served.

    Attributes:
        web: The module of asyncsess for its framework.
        scope_key: Under which key the session of the first cookie is in the scope, where there is one.
    """

    web: ModuleType
    scope_key: str | None = "session"

    @abstractmethod
    def add(self, path: str, handle: Handle) -> None:
        """Answer GET and POST at a path."""

    @abstractmethod
    def add_stream(self, path: str, chunks: Chunks) -> None:
        """Stream at a path; the first chunk is made before the headers leave."""

    @abstractmethod
    def add_talk(self, path: str, talk: Talk) -> None:
        """Answer each message of a WebSocket at a path."""

    @abstractmethod
    def query(self, request: Any, name: str) -> str:
        """Return a parameter of a request's URL."""

    @abstractmethod
    def abort(self, status: int) -> BaseException:
        """Return an exception that is an answer."""

    @abstractmethod
    def serve(
        self, store: SessionStore, *cookies: CookiePolicy, **options: Any
    ) -> contextlib.AbstractAsyncContextManager[str]:
        """Serve it with sessions, and tell its URL."""


class AiohttpSite(Site):
    web = aiohttp

    def __init__(self) -> None:
        self.app = web.Application()

    def add(self, path: str, handle: Handle) -> None:
        async def handler(request: web.Request) -> web.Response:
            status, text = _reply(await handle(request))
            return web.Response(status=status, text=text)

        self.app.router.add_route("*", path, handler)

    def add_stream(self, path: str, chunks: Chunks) -> None:
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async for chunk in chunks(request):
                if not response.prepared:
                    await response.prepare(request)
                await response.write(chunk.encode())
            return response

        self.app.router.add_get(path, handler)

    def add_talk(self, path: str, talk: Talk) -> None:
        async def handler(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse()
            await self.before_talk(request)
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(await talk(request, message.data))
            return socket

        self.app.router.add_get(path, handler)

    async def before_talk(self, request: Any) -> None:
        """Do this before a WebSocket is accepted."""

    def query(self, request: web.Request, name: str) -> str:
        return request.query[name]

    def abort(self, status: int) -> BaseException:
        kinds = {302: web.HTTPFound, 404: web.HTTPNotFound, 409: web.HTTPConflict, 500: web.HTTPInternalServerError}
        return web.HTTPFound("/elsewhere") if status == 302 else kinds[status]()

    @asynccontextmanager
    async def serve(self, store: SessionStore, *cookies: CookiePolicy, **options: Any) -> AsyncIterator[str]:
        for cookie in cookies or (PLAIN,):
            aiohttp.setup(self.app, store, cookie, **options)
        runner = web.AppRunner(self.app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


class StarletteSite(Site):
    web = asgi

    def __init__(self) -> None:
        self.routes: list[Route | WebSocketRoute] = []

    def add(self, path: str, handle: Handle) -> None:
        async def endpoint(request: Request) -> PlainTextResponse:
            status, text = _reply(await handle(request))
            return PlainTextResponse(text, status)

        self.routes.append(Route(path, endpoint, methods=["GET", "POST"]))

    def add_stream(self, path: str, chunks: Chunks) -> None:
        async def endpoint(request: Request) -> StreamingResponse:
            stream = chunks(request)
            first = await anext(stream)

            async def all_chunks() -> AsyncIterator[str]:
                yield first
                async for chunk in stream:
                    yield chunk

            return StreamingResponse(all_chunks())

        self.routes.append(Route(path, endpoint))

    def add_talk(self, path: str, talk: Talk) -> None:
        async def endpoint(socket: WebSocket) -> None:
            await self.before_talk(socket)
            await socket.accept()
            async for message in socket.iter_text():
                await socket.send_text(await talk(socket, message))

        self.routes.append(WebSocketRoute(path, endpoint))

    async def before_talk(self, request: Any) -> None:
        """Do this before a WebSocket is accepted."""

    def query(self, request: Request, name: str) -> str:
        return request.query_params[name]

    def abort(self, status: int) -> BaseException:
        return HTTPException(status, headers={"Location": "/elsewhere"} if status == 302 else None)

    @asynccontextmanager
    async def serve(self, store: SessionStore, *cookies: CookiePolicy, **options: Any) -> AsyncIterator[str]:
        app: Any = Starlette(routes=self.routes)
        for number, cookie in enumerate(reversed(cookies or (PLAIN,)), 1):
            key = self.scope_key if number == max(1, len(cookies)) else None
            app = asgi.SessionMiddleware(app, store, cookie, scope_key=key, **options)
        async with by_uvicorn(app) as url:
            yield url


class HypercornSite(StarletteSite):
    """Another server, and the sessions inside of the framework."""

    @asynccontextmanager
    async def serve(self, store: SessionStore, *cookies: CookiePolicy, **options: Any) -> AsyncIterator[str]:
        middleware = [
            Middleware(asgi.SessionMiddleware, store, cookie, scope_key=None if number else self.scope_key, **options)
            for number, cookie in enumerate(cookies or (PLAIN,))
        ]
        async with by_hypercorn(Starlette(routes=self.routes, middleware=middleware)) as url:
            yield url


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the tests' own


@asynccontextmanager
async def by_uvicorn(app: Any, **options: Any) -> AsyncIterator[str]:
    """Serve an ASGI application by uvicorn, in this event loop."""
    server = _Uvicorn(uvicorn.Config(app, port=0, log_level="critical", ws="websockets-sansio", **options))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.001)
        if serving.done():
            await serving
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def by_hypercorn(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application by hypercorn, in this event loop."""
    config = hypercorn.config.Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    sockets = config.create_sockets()
    address = sockets.insecure_sockets[0].getsockname()
    config.bind = [f"fd://{sockets.insecure_sockets[0].detach()}"]
    ends = asyncio.Event()
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=ends.wait))
    try:
        await _until_it_listens(*address)
        yield f"http://127.0.0.1:{address[1]}"
    finally:
        ends.set()
        await serving


async def _until_it_listens(host: str, port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.001)
            else:
                writer.close()
                await writer.wait_closed()
                return


def _reply(reply: Reply) -> tuple[int, str]:
    return (200, reply) if isinstance(reply, str) else reply
