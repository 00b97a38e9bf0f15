"""`Connections`: those of one event loop to a Redis server, and what is heard there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from asyncsess.backends.redis import scripts
from asyncsess.backends.redis.clients import MOST_AT_ONCE, Client, check_server, is_cluster
from asyncsess.backends.redis.failures import FAILURES, cancellations, no_cancellation_lost
from asyncsess.backends.redis.pipe import Pipe
from asyncsess.backends.redis.scripts import Script
from asyncsess.backends.redis.wire import Word, go_on, pack
from asyncsess.backends.remote.lines import CLOSED, process
from asyncsess.errors import StoreError

logger = logging.getLogger("asyncsess")

_encode: Final = msgspec.msgpack.Encoder().encode
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
# The claims of this process, in all of its event loops.
_claims = set[str]()
_SILENCE: Final = 5.0  # after which the server is asked whether it is there


class Connections:
    """The client of one event loop, and a listener that tells those who wait for a lock.

    They end with the loop, or by `close`.

    Args:
        client: The client.
        timeout: Seconds that the server has for an answer.
        channels: What the names of the channels begin with where processes are told of locks.
        ours: The clients that are closed with this.
        ended: Called when they have ended.

    Attributes:
        is_open: Whether it was seen that the server is fit for sessions.
        is_listening: Whether this process can be told of locks, and is seen to be alive.
    """

    def __init__(
        self, client: Client, timeout: float, channels: str, ours: Sequence[Client], ended: Callable[[], object]
    ) -> None:
        self.client = client
        self.is_open = self._is_closed = False
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self._pipe = Pipe(client, timeout) if ours and isinstance(client, Redis) else None
        self._timeout = timeout
        self._channels = channels
        self._is_cluster = is_cluster(client)
        self._ours = ours
        self._ended = ended
        self._told: dict[str, asyncio.Event] = {}
        self._listener: asyncio.Task[None] | None = None
        self.is_listening = False
        self._waiters: list[asyncio.Future[None]] = []

    async def open(self) -> None:
        """See whether the server is fit for sessions, and begin to listen."""
        async with self._opening:
            if self._is_closed:
                raise StoreError(CLOSED)
            if not self.is_open:
                await check_server(self.client)
                self._listener = asyncio.create_task(self._listen(), name="asyncsess listener")
                self.is_open = True

    async def listen(self) -> None:
        """Return once this process can be told of locks, and is seen to be alive; raise if it just failed to be."""
        if not self.is_listening:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def ask(self, *words: Word) -> Coroutine[Any, Any, Any]:
        """Have the server do a command; return its answer."""
        return self._ask(*words) if self._pipe is None else self._pipe.ask(pack(*words))

    async def _ask(self, *words: Word) -> Any:
        async with self.at_work() as client:
            return await client.execute_command(*words)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Client]:
        """Give the client for a moment; in its turn, and not for longer than the server has for an answer."""
        with no_cancellation_lost():
            async with asyncio.timeout(self._timeout), self._slots:
                yield self.client

    def run(
        self, script: Script, record: str, lock: str, token: str, *args: Any, payload: bytes = b""
    ) -> Coroutine[Any, Any, Any]:
        """Run a script on a record and its lock for a claim, in one step."""
        claimed = token, self._channels, self._is_cluster
        return self.evaluate(script, (record, lock, f"{lock}:q"), *claimed, *args, payload=payload)

    async def evaluate(self, script: Script, keys: Sequence[str], *args: Any, payload: bytes = b"") -> Any:
        """Run a script; the server keeps it for the next time."""
        words: tuple[Word, ...] = (*keys, _encode(args), payload)
        try:
            if self._pipe is not None:
                return await self._pipe.ask(script.start + go_on(*words))
            return await self._ask("EVALSHA", script.digest, len(keys), *words)
        except NoScriptError:
            return await self.ask("EVAL", script.text, len(keys), *words)

    # What claims are told.

    def expect(self, token: str) -> None:
        """Note from now on what a claim is told."""
        if token not in self._told:
            _claims.add(token)
            self._told[token] = asyncio.Event()

    def begin(self, token: str) -> None:
        """Note from now on whether others wait for a claim's lock."""
        self.expect(token)
        self._told[token].clear()

    def forget(self, token: str) -> None:
        """Forget a claim."""
        _claims.discard(token)
        self._told.pop(token, None)

    def is_told(self, token: str) -> bool:
        """Tell whether a claim was told something."""
        return token in self._told and self._told[token].is_set()

    async def told(self, token: str, seconds: float) -> None:
        """Wait until a claim that is expected is told that its lock may be free, or for so many seconds."""
        event = self._told[token]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
        event.clear()

    def tell_all(self) -> None:
        """Have everyone ask again, since some may not have been told."""
        for event in self._told.values():
            event.set()

    async def _listen(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while not cancellations():
                try:
                    await self._hear()
                except FAILURES as error:
                    if self.is_listening:
                        pause = _FIRST_PAUSE
                        logger.warning("the channel of locks was interrupted: %s", error)
                    self.is_listening = False
                    self._settle(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self.is_listening = False
            self._settle(ConnectionError("the channel of locks was closed"))
            await self._end()

    def _settle(self, error: Exception | None) -> None:
        """Tell those who want this to listen how it went."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None) if error is None else waiter.set_exception(error)

    async def _hear(self) -> None:
        # A client that connects anew waits for the first answer of its server without end.
        async with asyncio.timeout(2 * _SILENCE) as patience, self.client.pubsub() as pubsub:
            await pubsub.subscribe(self._channels + process.name)
            is_silent = False
            while not cancellations():
                patience.reschedule(asyncio.get_running_loop().time() + 2 * _SILENCE)
                message = await pubsub.get_message(timeout=_SILENCE)
                if message is None and is_silent:
                    raise TimeoutError("the server has been silent for too long")
                is_silent = message is None
                if message is None:
                    await pubsub.ping()
                elif message["type"] == "subscribe":
                    self.is_listening = True
                    self._settle(None)
                    self.tell_all()
                elif message["type"] == "message":
                    token, _, lock = message["data"].decode().partition(" ")
                    if token in self._told:
                        self._told[token].set()
                    elif token not in _claims:
                        await self._leave(token, lock)

    async def _leave(self, token: str, lock: str) -> None:
        """Give back the lock of a claim that nobody in this process makes any more."""
        await self.run(scripts.LEAVE, lock, lock, token)

    async def close(self) -> None:
        """Give the connections back, also those of who is just about to open them."""
        self._is_closed = True
        async with self._opening:
            pass
        if self._listener is None:
            await self._end()
            return
        while not self._listener.done():  # a cancellation may get lost in a client's `asyncio.wait_for`
            self._listener.cancel()
            await asyncio.wait([self._listener], timeout=_LONGEST_PAUSE)

    async def _end(self) -> None:
        self._ended()
        if self._pipe is not None:
            await self._pipe.aclose()
        for client in self._ours:
            await client.aclose()
