"""`Connection`: one to memcached, which aiomcache speaks the protocol of.

Of aiomcache, two things are left out: its pool, which hands on what a cancelled command has left unread
(aio-libs/aiomcache#489), and its way to read an answer, which never ends once the server has hung up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from aiomcache import FlagClient
from aiomcache.exceptions import ClientException
from aiomcache.pool import Connection as Streams
from aiomcache.pool import MemcachePool

from asyncsess.errors import StoreError

_PORT: Final = 11211
_ERRORS: Final = (b"ERROR", b"SERVER_ERROR", b"CLIENT_ERROR")
_REMEDIES: Final = {
    b"object too large": "keep less in it, or start memcached with a larger -I",
    b"out of memory": "start memcached with a larger -m",
}
_PAUSE: Final = 0.05


class RefusedError(StoreError):
    """memcached has answered with an error, and has done nothing."""


class CutError(StoreError):
    """The connection broke, or memcached did not answer in time; it may have done what it had been sent."""


class Address:
    """Where memcached listens.

    Args:
        url: As ``memcached://host:port`` or ``memcached:///path/of/socket``.

    Raises:
        ValueError: It is none of these.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "memcached" or not (parts.hostname or parts.path) or parts.username:
            raise ValueError("the server must be given as memcached://host:port or memcached:///path/of/socket")
        self._host, self._port = parts.hostname, parts.port or _PORT
        self._path = parts.path

    async def connect(self) -> Connection:
        """Return a new connection."""
        try:
            if self._host is None:
                streams = await asyncio.open_unix_connection(self._path)
            else:
                streams = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            raise StoreError(f"memcached can't be reached: {error}") from error
        return Connection(Streams(*streams))


class Connection(FlagClient[bytes]):
    """One connection to memcached, for one task at a time.

    Args:
        streams: What to read from and write to.
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__("", get_flag_handler=_flagged)
        self._pool = _NoPool(streams)
        self._streams = streams

    @property
    def is_open(self) -> bool:
        """Whether memcached has not hung up."""
        reader, writer = self._streams
        return not (reader.at_eof() or reader.exception() or writer.is_closing())

    def hang_up(self) -> None:
        """Close the connection, whatever is still to be read from it."""
        self._streams.writer.close()

    async def names(self, start: bytes) -> AsyncIterator[bytes]:
        """Yield the keys on the server that begin with something, without it.

        Each that is there all the while is among them: memcached goes through its hash table.
        """
        reader, writer = self._streams
        while True:
            writer.write(b"lru_crawler metadump hash\r\n")
            line = await _answer(reader)
            if not line.startswith(b"BUSY"):  # another wants to know the same
                break
            await asyncio.sleep(_PAUSE)
        while line != b"END":
            if not line.startswith(b"key="):
                raise RefusedError(f"memcached does not list its keys: {line.decode(errors='replace')}")
            name = unquote_to_bytes(line.partition(b" ")[0].removeprefix(b"key="))
            if name.startswith(start):
                yield name[len(start) :]
            line = await _answer(reader)

    async def _execute_simple_command(self, conn: Streams, raw_command: bytes) -> bytes:
        conn.writer.write(raw_command)
        await conn.writer.drain()
        return _accepted(await _answer(conn.reader))


class _NoPool(MemcachePool):
    """Hands out one connection, and no other after that."""

    def __init__(self, streams: Streams) -> None:
        super().__init__("", 0, minsize=1, maxsize=1)
        self._streams = streams

    async def acquire(self) -> Streams:
        return self._streams

    def release(self, conn: Streams) -> None:
        """Do nothing: who uses it closes it."""


@contextmanager
def failures() -> Generator[None]:
    """Translate what goes wrong with a connection."""
    try:
        yield
    except TimeoutError as error:
        raise CutError("memcached did not answer in time") from error
    except (OSError, EOFError) as error:
        raise CutError(f"the connection to memcached was cut: {error}") from error
    except (ClientException, ValueError) as error:  # whose text may be part of a session
        raise CutError("memcached gave an answer that was not understood, or none") from error


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """Return a line that is whole; the crawler ends its own in another way."""
    return (await reader.readuntil(b"\n")).rstrip(b"\r\n")


def _accepted(line: bytes) -> bytes:
    if line.startswith(_ERRORS):
        remedies = [f"; {remedy}" for reason, remedy in _REMEDIES.items() if reason in line]
        raise RefusedError(f"memcached has refused: {line.decode(errors='replace')}{''.join(remedies)}")
    return line


async def _flagged(value: bytes, _: int) -> bytes:
    """Return what another program has stored, so that it is found to be that."""
    return value
