"""`Server`: items on memcached, each changed in one atomic step; it outlasts event loops."""

from __future__ import annotations

import asyncio
import logging
import re
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from hashlib import sha256
from secrets import token_hex
from typing import Final, TypeVar

from asyncsess.backends.memcached.clock import WholeSeconds
from asyncsess.backends.memcached.connection import Address, Connection, CutError
from asyncsess.backends.memcached.connections import TIMEOUT, Connections
from asyncsess.backends.memcached.layout import DAY, EMPTY, GONE, Item, decode, encode, exptime
from asyncsess.backends.turns import boot_time
from asyncsess.errors import CommitUnknownError, CorruptSessionError, SessionError, StoreError

T = TypeVar("T")

logger = logging.getLogger("asyncsess")

_PREFIX: Final = re.compile(r"[!-~]{0,100}")
_KEY: Final = re.compile(rb"[0-9a-f]{64}")
_TRIES: Final = 100
_AT_ONCE: Final = 50
_LONG: Final = 60.0
_CLOCK_AGE: Final = 600.0


class Server:
    """A memcached server.

    Args:
        url: Where it is.
        prefix: Of all keys.

    Raises:
        ValueError: Either is not as it has to be.
    """

    def __init__(self, url: str, prefix: str) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError("a prefix has at most 100 characters, of ASCII and without blanks")
        self._address = Address(url)
        self._prefix = prefix
        self._connections = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Connections]()
        self._clock = WholeSeconds()
        self._asked_at = 0.0

    def session(self, key: str) -> bytes:
        """Return where a session is."""
        return f"{self._prefix}s:{key}".encode()

    def name(self, key: str, name: str) -> bytes:
        """Return where the lock of a name is."""
        return f"{self._prefix}n:{key}:{sha256(name.encode(errors='surrogatepass')).hexdigest()[:32]}".encode()

    def group(self, group: str) -> bytes:
        """Return where the members of a group are."""
        return f"{self._prefix}g:{group}".encode()

    # Connections.

    def use(self, seconds: float = TIMEOUT) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection of the running event loop."""
        loop = asyncio.get_running_loop()
        connections = self._connections.get(loop)
        if connections is None:
            connections = self._connections[loop] = Connections(self._address)
        return connections.use(seconds)

    async def ask(self, question: Callable[[Connection], Awaitable[T]]) -> T:
        """Ask what may be asked twice, if memcached has hung up since a connection was last used."""
        try:
            async with self.use() as connection:
                return await question(connection)
        except CutError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            async with self.use() as connection:
                return await question(connection)

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        connections = self._connections.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.aclose()

    # The time.

    async def ask_time(self) -> float:
        """Return the server's time, after asking it."""

        async def ask(connection: Connection) -> None:
            asked_at = boot_time()
            stats = await connection.stats()
            self._clock.learn(int(stats.get(b"time") or b""), asked_at=asked_at, answered_at=boot_time())
            self._asked_at = asked_at

        await self.ask(ask)
        return self._clock.at(boot_time())

    async def now(self) -> float:
        """Return the server's time, going by former answers."""
        if not self._clock.is_known or boot_time() - self._asked_at > _CLOCK_AGE:
            return await self.ask_time()
        return self._clock.at(boot_time())

    # Items.

    async def read(self, name: bytes) -> Item | None:
        """Return an item.

        Raises:
            CorruptSessionError: It was none, and has been moved aside.
        """
        item, _ = await self.ask(lambda connection: self._look(connection, name))
        return item

    async def change(self, name: bytes, change: Callable[[Item | None], Item | None]) -> Item | None:
        """Change an item in one atomic step: two round trips, and two more for each time that another was faster.

        Args:
            name: Where it is.
            change: Returns what to store in place of what it is given, or None to leave that. It may be given what it
                has returned before, if the answer was lost.

        Returns:
            What is there now.

        Raises:
            CommitUnknownError: The connection was cut, and what became of the change can't be found out.
        """
        now = await self.now()
        doubt: CutError | None = None
        for number in range(_TRIES):
            is_sent = False
            try:
                async with self.use() as connection:  # the same for both, as another server would count from 1 again
                    item, cas = await self._look(connection, name)
                    new = change(item)
                    if new is None:
                        return item
                    is_sent = True
                    if await store(connection, name, encode(new), cas, new.time_to_live(now)):
                        return new
            except SessionError as error:
                if doubt is not None:
                    raise CommitUnknownError(f"whether this was stored is not known: {doubt}") from doubt
                if not isinstance(error, CutError):
                    raise
                if is_sent:
                    doubt = error  # look whether it was done
                elif number > 0 or isinstance(error.__cause__, TimeoutError):
                    raise
        raise StoreError(f"others have changed the session {_TRIES} times in a row meanwhile")

    async def _look(self, connection: Connection, name: bytes) -> tuple[Item | None, int | None]:
        data, cas = await connection.gets(name)
        if data is None:
            return None, None
        try:
            return decode(data), cas
        except ValueError as error:
            raise await self.move_aside(connection, name, data, cas) from error

    async def move_aside(
        self, connection: Connection, name: bytes, data: bytes, cas: int | None
    ) -> CorruptSessionError:
        """Keep for a day what can't be read, elsewhere; return what says so."""
        aside = f"{self._prefix}x:{token_hex(8)}"
        await connection.set(aside.encode(), data, exptime(DAY, await self.now()))
        await store(connection, name, encode(EMPTY), cas, GONE)  # unless another was faster
        return CorruptSessionError("another program has stored something there", aside)

    async def sessions(self) -> AsyncIterator[tuple[str, Item]]:
        """Yield the items of all sessions and their keys."""
        keys = await self.stored(b"s:")
        for start in range(0, len(keys), _AT_ONCE):
            names = [self.session(key) for key in keys[start : start + _AT_ONCE]]
            for key, name, data in zip(keys[start:], names, await self._values(names), strict=False):
                try:
                    if data is not None:
                        yield key, decode(data)
                except ValueError:
                    await self._report(name)

    async def _values(self, names: list[bytes]) -> tuple[bytes | None, ...]:
        return await self.ask(lambda connection: connection.multi_get(*names))

    async def _report(self, name: bytes) -> None:
        try:
            await self.read(name)
        except CorruptSessionError as error:
            logger.warning("%s", error)

    async def stored(self, kind: bytes) -> list[str]:
        """Return the keys of all items of a kind."""
        start = self._prefix.encode() + kind
        async with self.use(_LONG) as connection:
            return [name.decode() async for name in connection.names(start) if _KEY.fullmatch(name)]


async def store(connection: Connection, name: bytes, data: bytes, cas: int | None, ends: int) -> bool:
    """Store an item unless it was changed since it was read; if there was none, unless there is one now."""
    if cas is None:
        return await connection.add(name, data, ends)
    return await connection.cas(name, data, cas, ends)
