"""One of the demo's servers: an aiohttp application over a session directory that other processes use as well.

Run as ``python -m asyncsess.demo.server DIRECTORY``. It prints its address once it listens on a free port of
127.0.0.1, and ends on SIGINT, on SIGTERM, or at the end of its standard input, so it never outlives the demo.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import ArgumentParser
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

from aiohttp import web

from asyncsess import FileStore
from asyncsess.demo.ways import WAYS, Way

COOKIE: Final = "session"
MOMENT: Final = 0.005  # seconds, as a handler would wait for its database
SLOW: Final = 1.0

_directory: Final = web.AppKey("directory", Path)
_ways: Final = web.AppKey("ways", dict[str, Way])
_routes: Final = web.RouteTableDef()


@_routes.get("/")
async def greet(request: web.Request) -> web.Response:
    """Tell that the server is ready."""
    return web.Response(text="ready\n")


@_routes.post("/{way}")
async def start(request: web.Request) -> web.Response:
    """Start a session, and give the browser its id."""
    session_id = await _way(request).start()
    response = web.Response(text="started\n")
    response.set_cookie(COOKIE, session_id, httponly=True, samesite="Lax")
    return response


@_routes.get("/{way}/visits")
async def read(request: web.Request) -> web.Response:
    """Answer with the count of visits."""
    return web.Response(text=str(await _way(request).read(request.cookies[COOKIE])))


@_routes.post("/{way}/visits")
async def add(request: web.Request) -> web.Response:
    """Count a visit, while something takes a moment."""
    visits = await _way(request).add(request.cookies[COOKIE], partial(asyncio.sleep, MOMENT))
    return web.Response(text=str(visits))


@_routes.post("/{way}/slow-visits")
async def add_slowly(request: web.Request) -> web.StreamResponse:
    """Count a visit, while something takes long; the answer begins as soon as the session is open."""
    response = web.StreamResponse()

    async def work() -> None:
        await response.prepare(request)
        await response.write(b"open\n")
        await asyncio.sleep(SLOW)

    await _way(request).add(request.cookies[COOKIE], work)
    return response  # which ends here, once the visit is stored


def application(directory: Path) -> web.Application:
    """Return the application, with its sessions in two directories below the given one."""
    app = web.Application()
    app[_directory] = directory
    app.cleanup_ctx.append(_open_ways)
    app.add_routes(_routes)
    return app


async def _open_ways(app: web.Application) -> AsyncIterator[None]:
    unlocked = app[_directory] / "unlocked"
    unlocked.mkdir(mode=0o700, exist_ok=True)
    async with FileStore(app[_directory] / "sessions", slow_hold=60) as store:
        app[_ways] = {way.name: way(unlocked, store) for way in WAYS}
        yield


def _way(request: web.Request) -> Way:
    return request.app[_ways][request.match_info["way"]]


async def serve(directory: Path) -> None:
    """Serve until told to stop."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin, stop.set)
    # A client that is gone cancels its handler, which gives back its lock and stores nothing.
    runner = web.AppRunner(application(directory), access_log=None, handler_cancellation=True, shutdown_timeout=SLOW)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        print(f"http://{host}:{port}", flush=True)
        await stop.wait()
        loop.remove_reader(sys.stdin)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m asyncsess.demo.server", description="One server of the demo.")
    parser.add_argument("directory", type=Path, help="where the sessions are")
    asyncio.run(serve(parser.parse_args().directory))
