"""`Proxy`: a network between a client and a server that fails when it is told to.

It knows no protocol but this: a client sends some bytes, and the server answers with some. That is an *exchange*; a
server that speaks unasked, to greet or to tell of something, makes none.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Final, Self

_MOST: Final = 1 << 16


class Cut(Enum):
    """Where a connection breaks."""

    BEFORE = "before the command"
    IN_COMMAND = "in the middle of the command"
    BEFORE_ANSWER = "before the answer"
    IN_ANSWER = "in the middle of the answer"
    AFTER = "after the answer"
    LATE = "with a command that arrives when the network is healed"


class Proxy:
    """A network between a client and a server; it begins and ends with ``async with``.

    Args:
        host, port: The server's.

    Attributes:
        exchanges: How many have begun.
        cuts: How many connections were cut.
        delay: Seconds for which each burst of bytes is kept back, either way.
        kept_back: How many bursts are kept back right now.
        is_refusing: Whether new connections are ended at once.
        is_swallowing: Whether new connections are accepted, and nothing on them is ever passed on.
        port: Where it listens.
    """

    def __init__(self, host: str, port: int) -> None:
        self.exchanges = self.cuts = self.kept_back = self.port = 0
        self.delay = 0.0
        self.is_refusing = self.is_swallowing = False
        self._address = host, port
        self._links: set[_Link] = set()
        self._planned: dict[int, tuple[Cut, bool]] = {}
        self._flows = asyncio.Event()
        self._flows.set()
        self._healed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Proxy of {self._address[1]} exchanges={self.exchanges} cuts={self.cuts} links={len(self._links)}>"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        self.is_refusing = True
        self.heal(refuse=True)
        self.cut_all()
        await self.until_unused()

    @property
    def links(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def cut(self, where: Cut, number: int = 1, *, for_good: bool = False) -> None:
        """Cut the connection of the N-th exchange from now on; ``for_good``, all others too, and any new one."""
        self._planned[self.exchanges + number] = where, for_good

    def cut_all(self) -> None:
        """Cut all connections, now."""
        for link in tuple(self._links):
            link.cut()

    def stall(self) -> None:
        """Accept connections and bytes, and pass nothing on."""
        self._flows.clear()

    def heal(self, *, refuse: bool = False) -> None:
        """Do nothing worse from now on than what was asked for again; what was kept back is passed on."""
        self._planned.clear()
        self.is_refusing, self.is_swallowing, self.delay = refuse, False, 0.0
        self._flows.set()
        self._healed.set()
        self._healed = asyncio.Event()

    async def until_unused(self) -> None:
        """Wait until the last connection has ended."""
        while self._links:
            await asyncio.wait([link.task for link in self._links])
            await asyncio.sleep(0)

    async def until_healed(self) -> None:
        """Wait for the next `heal`."""
        self.kept_back += 1
        await self._healed.wait()
        self.kept_back -= 1

    async def pause(self) -> None:
        """Keep back what was received as long as the network is to."""
        self.kept_back += 1
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flows.wait()
        finally:
            self.kept_back -= 1

    def next_exchange(self) -> Cut | None:
        """Count an exchange; return where it is to be cut."""
        self.exchanges += 1
        where, for_good = self._planned.pop(self.exchanges, (None, False))
        self.is_refusing |= for_good
        return where

    def was_cut(self) -> None:
        """Note that a connection was cut, and cut the others too if it is for good."""
        self.cuts += 1
        if self.is_refusing:
            self.cut_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = _Link(self, task, reader, writer)
        if self.is_refusing:
            writer.transport.abort()
            return
        self._links.add(link)
        try:
            await link.run(*self._address)
        finally:
            self._links.discard(link)


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(
        self, proxy: Proxy, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.task = task
        self._proxy = proxy
        self._client = reader, writer
        self._writers = [writer]
        self._is_asking = self._is_cut = False
        self._where: Cut | None = None

    async def run(self, host: str, port: int) -> None:
        """Pass bytes on until one side ends, or the connection is cut."""
        reader, writer = self._client
        flows: list[asyncio.Task[None]] = []
        try:
            with suppress(OSError):  # without a server there is no connection
                if self._proxy.is_swallowing:
                    while await reader.read(_MOST):
                        pass
                    return
                answers, commands = await asyncio.open_connection(host, port)
                self._writers.append(commands)
                both = self._ask(reader, commands), self._answer(answers, writer)
                flows = [asyncio.create_task(flow) for flow in both]
                await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for flow in flows:
                flow.cancel()
            for end in self._writers:
                end.transport.abort()
            await asyncio.gather(*flows, return_exceptions=True)

    def cut(self) -> None:
        """End both connections, without what is still under way."""
        if not self._is_cut:
            self._is_cut = True
            for end in self._writers:
                end.transport.abort()
            self._proxy.was_cut()

    async def _ask(self, commands: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await self._received(commands):
            if not self._is_asking:
                self._is_asking, self._where = True, self._proxy.next_exchange()
            if self._where is Cut.BEFORE:
                return self.cut()
            if self._where is Cut.IN_COMMAND:
                await _send(server, data[: len(data) // 2])
                return self.cut()
            if self._where is Cut.LATE:
                await self._proxy.until_healed()
                await _send(server, data)
                await asyncio.Event().wait()  # until the server has answered, though the client has left
            await _send(server, data)
        return None

    async def _answer(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await self._received(answers):
            where, self._where = self._where, None
            self._is_asking = False
            if where is not None:
                if where not in (Cut.BEFORE_ANSWER, Cut.LATE):
                    await _send(client, data[: len(data) // 2] if where is Cut.IN_ANSWER else data)
                return self.cut()
            await _send(client, data)
        return None

    async def _received(self, reader: asyncio.StreamReader) -> bytes:
        try:
            data = await reader.read(_MOST)
        except OSError:  # one of the two has gone, which ends the link as the end of the stream does
            return b""
        await self._proxy.pause()
        return data


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    with suppress(OSError):
        await writer.drain()
