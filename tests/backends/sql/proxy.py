"""A server's socket with somebody in between, who counts, and cuts connections when told to."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import make_url


class Proxy:
    """Hands on what is said between clients and a server.

    Attributes:
        url: Where to connect to.
        turns: How often a client has said something since it was answered last: the round trips.
        loses_next_answer: Whether to hand on what is said next, but not the answer: the connection ends instead.
        is_gone: Whether to refuse new connections.
        is_silent: Whether to hand on nothing any more.
    """

    def __init__(self, url: str, directory: Path) -> None:
        parsed = make_url(url)
        is_postgresql = parsed.get_backend_name() == "postgresql"
        self._target = f"{parsed.query['host']}/.s.PGSQL.5432" if is_postgresql else str(parsed.query["unix_socket"])
        self._socket = directory / (".s.PGSQL.5432" if is_postgresql else "socket")
        query = {"host": str(directory)} if is_postgresql else {"unix_socket": str(self._socket)}
        self.url = parsed.set(query=query).render_as_string(hide_password=False)
        self.turns = 0
        self.loses_next_answer = self.is_gone = self.is_silent = False
        self._talks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_unix_server(self._accept, self._socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for talk in list(self._talks):
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self._talks.add(talk)
        with suppress(asyncio.CancelledError):  # which the server would report
            if not self.is_gone:
                theirs, ours = await asyncio.open_unix_connection(self._target)
                try:
                    await self._hand_on(reader, writer, theirs, ours)
                finally:
                    ours.close()
        writer.close()
        self._talks.discard(talk)

    async def _hand_on(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        is_answered, is_lost = True, False

        async def ask() -> None:
            nonlocal is_answered, is_lost
            while said := await client.read(1 << 16):
                if self.is_silent:
                    await asyncio.Event().wait()
                if self.loses_next_answer:
                    self.loses_next_answer, is_lost = False, True
                self.turns += is_answered
                is_answered = False
                to_server.write(said)

        async def answer() -> None:
            nonlocal is_answered
            while said := await server.read(1 << 16):
                if is_lost:
                    return
                is_answered = True
                to_client.write(said)

        tasks = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            with suppress(ConnectionError):
                await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """Stand before the server of a URL."""
    with tempfile.TemporaryDirectory(prefix="asyncsess-") as directory:  # the path of a socket must be short
        async with Proxy(url, Path(directory)) as proxy:
            yield proxy
