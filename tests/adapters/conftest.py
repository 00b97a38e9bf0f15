"""What the tests of the adapters share: real servers, and gates at which their requests wait for each other."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from asyncsess import FileStore

Serve = Callable[[Any], str]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop}  # the stores run on both, in their own tests


class Gate:
    """Where requests wait, in whatever loop they run, until the test lets them go on."""

    def __init__(self, requests: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self._missing = requests
        self._arrived = asyncio.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def wait(self) -> None:
        """Wait, in a request."""
        go = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), go))
        self._loop.call_soon_threadsafe(self._arrive)
        await go.wait()

    async def open(self) -> None:
        """Wait until all requests wait, and let them go on."""
        await self.until_all_wait()
        for loop, go in self._waiting:
            loop.call_soon_threadsafe(go.set)

    async def until_all_wait(self) -> None:
        async with asyncio.timeout(30):
            await self._arrived.wait()

    def _arrive(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._arrived.set()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI application in a thread, with an event loop of its own."""
    config = uvicorn.Config(app, lifespan="on", loop="asyncio", ws="none", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(serving(app))


@pytest.fixture
async def files(directory: Path) -> AsyncIterator[FileStore]:
    """A store that goes by the wall clock."""
    async with FileStore(directory, sweep_interval=None) as store:
        yield store
