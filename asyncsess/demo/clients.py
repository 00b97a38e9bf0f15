"""The demo's clients: one browser that sends many requests at once, and counts what comes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from asyncsess.demo.ways import Way

CLIENTS: Final = 20
READERS: Final = 10
_POLL: Final = 0.01  # seconds between two questions of a reader


@dataclass
class Row:
    """What came of the requests: a row of the table.

    Attributes:
        way: How the handlers opened the session.
        sent: Requests sent.
        answered: Those that were answered with success.
        expected: Updates among them.
        found: Updates that the session holds in the end.
        seconds: From the first request to the last answer.
        longest_read: Seconds until the slowest answer to a request that only reads; None if there was none.
    """

    way: type[Way]
    sent: int = 0
    answered: int = 0
    expected: int = 0
    found: int = 0
    seconds: float = 0.0
    longest_read: float | None = None

    @property
    def lost(self) -> int:
        """Updates that were answered with success, and are not in the session."""
        return self.expected - self.found

    @property
    def is_good(self) -> bool:
        """Whether every request was answered, and the session holds exactly what they did."""
        return self.lost == 0 and self.answered == self.sent


class Browser:
    """A browser with one session, and several servers to ask in turn.

    Args:
        http: The HTTP client, which keeps the cookie.
        servers: URLs of the servers.
        way: How the handlers shall open the session.
        on_answer: Called after each answer.
    """

    def __init__(
        self, http: aiohttp.ClientSession, servers: Sequence[str], way: type[Way], on_answer: Callable[[], None]
    ) -> None:
        self.row = Row(way)
        self._http = http
        self._urls = [f"{server}/{way.name}" for server in servers]
        self._on_answer = on_answer

    async def measure(self, requests: int) -> Row:
        """Start a session, send the requests, and see what it holds."""
        async with self._http.post(self._urls[0], raise_for_status=True):
            pass  # the cookie is in the jar now
        began = time.perf_counter()
        await (self._read_beside_slow_writer() if self.row.way.has_slow_writer else self._write(requests))
        self.row.seconds = time.perf_counter() - began
        async with self._http.get(f"{self._urls[0]}/visits", raise_for_status=True) as response:
            self.row.found = int(await response.text())
        return self.row

    async def _write(self, requests: int) -> None:
        """Send updates, as many at once as there are clients."""
        numbers = iter(range(requests))

        async def client() -> None:
            for number in numbers:
                if await self._ask("POST", f"{self._server(number)}/visits"):
                    self.row.expected += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client())

    async def _read_beside_slow_writer(self) -> None:
        """Read for as long as one slow writer has the session open."""
        is_open, is_over = asyncio.Event(), asyncio.Event()

        async def reader(number: int) -> None:
            await is_open.wait()
            while not is_over.is_set():
                began = time.perf_counter()
                if await self._ask("GET", f"{self._server(number)}/visits"):
                    self.row.longest_read = max(self.row.longest_read or 0.0, time.perf_counter() - began)
                await asyncio.sleep(_POLL)

        async with asyncio.TaskGroup() as group:
            for number in range(READERS):
                group.create_task(reader(number))
            try:
                if await self._ask("POST", f"{self._urls[0]}/slow-visits", is_open):
                    self.row.expected += 1
            finally:
                is_open.set()
                is_over.set()

    async def _ask(self, method: str, url: str, has_begun: asyncio.Event | None = None) -> bool:
        """Send one request; return whether it was answered with success."""
        self.row.sent += 1
        try:
            async with self._http.request(method, url) as response:
                await response.content.readany()
                if has_begun:
                    has_begun.set()
                await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return False
        finally:
            self._on_answer()
        self.row.answered += response.ok
        return response.ok

    def _server(self, number: int) -> str:
        return self._urls[number % len(self._urls)]
