"""`Pipe`: one connection to a Redis server, on which the commands of many tasks are under way at once."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import ReadOnlyError, RedisError

from asyncsess.backends.redis.wire import IncompleteError, Push, parse
from asyncsess.backends.remote.lines import CLOSED
from asyncsess.errors import StoreError

_PAUSES: Final = (0.05, 0.1)  # between further attempts
_IDLE: Final = 30.0  # after which somebody between may have forgotten a connection


class Pipe:
    """A connection that redis-py makes, with its ways to log in and to find the server, and that is used directly.

    A command costs a third of what it costs by a client of redis-py. The server answers in the order in which it was
    asked, so whoever is cancelled leaves the connection to others as it is. Commands are sent again if the connection
    breaks.

    Args:
        client: Where redis-py would connect to.
        timeout: Seconds that the server has for an answer.
    """

    def __init__(self, client: Redis, timeout: float) -> None:
        self._connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        self._timeout = timeout
        self._connecting = asyncio.Lock()
        self._link: _Link | None = None
        self._is_closed = False

    async def ask(self, command: bytes) -> Any:
        """Send a packed command; return the answer.

        Raises:
            RedisError: The answer is an error, or the connection was lost again and again.
            TimeoutError: There was no answer in time.
            StoreError: The connection was given back meanwhile.
        """
        try:
            return await self._ask(command)
        except LostConnectionError:
            async with asyncio.timeout(self._timeout):
                return await self._ask_again(command)

    async def _ask_again(self, command: bytes) -> Any:
        for pause in _PAUSES:
            with suppress(LostConnectionError):
                return await self._ask(command)
            await asyncio.sleep(pause)
        return await self._ask(command)

    async def _ask(self, command: bytes) -> Any:
        link = self._link
        if link is None or link.is_stale:
            link = await self._connect()
        answer = await link.ask(command)
        if isinstance(answer, RedisError):
            raise self._judged(answer)
        return answer

    def _judged(self, error: RedisError) -> RedisError:
        """Return what an error that the server has answered means."""
        if isinstance(error, ReadOnlyError) and isinstance(self._connection, SentinelManagedConnection):
            error = LostConnectionError("the server is not the first any more")
        if isinstance(error, LostConnectionError) and self._link is not None:
            self._link.abort()
        return error

    async def _connect(self) -> _Link:
        async with asyncio.timeout(self._timeout), self._connecting:
            if self._link is None or self._link.is_stale:
                await self._hang_up()
                try:
                    self._check_open()
                    await self._connection.connect()
                    self._check_open()
                except BaseException:
                    await self._hang_up()
                    raise
                self._link = _Link(self._connection._writer.transport, self._timeout)
            return self._link

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(CLOSED)

    async def aclose(self) -> None:
        """Give the connection back; who still asks gets no other."""
        self._is_closed = True
        await self._hang_up()

    async def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.abort()
        await self._connection.disconnect(nowait=True)


class _Link(asyncio.Protocol):
    """A connection, from the moment it was made until it is lost.

    Args:
        transport: Its transport, of which this becomes the protocol.
        timeout: Seconds that the server has for an answer; one clock for all commands looks after it.
    """

    def __init__(self, transport: asyncio.Transport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._asked = deque[tuple[asyncio.Future[Any], float]]()
        self._unsent: list[bytes] = []
        self._rest = b""
        self._is_lost = transport.is_closing()
        self._heard_at = self._loop.time()
        self._clock: asyncio.TimerHandle | None = None
        transport.set_protocol(self)

    @property
    def is_stale(self) -> bool:
        """Whether this is lost, or was not used for so long that it may be."""
        return self._is_lost or (not self._asked and self._loop.time() - self._heard_at > _IDLE)

    def ask(self, command: bytes) -> asyncio.Future[Any]:
        """Send a command, together with those that others send in the same turn of the loop."""
        if self._is_lost:
            raise LostConnectionError("the connection was lost")
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not self._asked:
            self._transport.write(command)
        else:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent.append(command)
        self._asked.append((answer, self._loop.time()))
        if self._clock is None:
            self._clock = self._loop.call_later(self._timeout, self._look)
        return answer

    def _look(self) -> None:
        """Give up if there is no answer in time; else look again when the oldest command should have its own."""
        self._clock = None
        if self._asked:
            answer, asked_at = self._asked[0]
            left = asked_at + self._timeout - self._loop.time()
            if left > 0:
                self._clock = self._loop.call_later(left, self._look)
                return
            if not answer.done():
                answer.set_exception(TimeoutError("the server did not answer in time"))
            self.abort()

    def _flush(self) -> None:
        if not self._is_lost:
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        data, start = self._rest + data, 0
        try:
            while start < len(data):
                answer, start = parse(data, start)
                if isinstance(answer, Push):
                    continue
                future, _ = self._asked.popleft()
                if not future.done():
                    future.set_result(answer)
        except IncompleteError:
            pass
        except (ValueError, IndexError):
            self.abort()
        self._rest = data[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._unsent.clear()
        if self._clock is not None:
            self._clock.cancel()
        for future, _ in self._asked:
            if not future.done():
                future.set_exception(LostConnectionError(f"the connection was lost: {exc or 'the server ended it'}"))
        self._asked.clear()

    def abort(self) -> None:
        """End at once; whoever has no answer yet gets none."""
        self._is_lost = True
        self._transport.abort()
