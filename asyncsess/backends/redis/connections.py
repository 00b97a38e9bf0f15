"""`Connections`: those of one event loop to a Redis server, and what is heard there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as ConnectionBrokenError
from redis.exceptions import RedisError

logger = logging.getLogger("asyncsess")

_PAUSE: Final = 0.1
FAILURES: Final = (RedisError, OSError, TimeoutError)


class Connections:
    """The client of one event loop, and a listener that tells those who wait for a lock.

    They end with the loop, or by `close`.

    Args:
        client: The client.
        is_ours: Whether it is closed with this.
        channel: Where this process is told of locks.
    """

    def __init__(self, client: Redis, channel: str, *, is_ours: bool) -> None:
        self.client = client
        self._channel = channel
        self._is_ours = is_ours
        self._waiting: dict[str, asyncio.Event] = {}
        self._scripts: dict[str, Callable[..., Awaitable[Any]]] = {}
        self._is_listening = asyncio.Event()
        self._has_tried = asyncio.Event()
        self._failure: Exception | None = None
        self._listener: asyncio.Task[None] | None = None
        self._retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3)

    async def start(self) -> None:
        """Listen, from now on; return once the server knows it, or raise what was in the way."""
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="asyncsess listener")
        while not self._is_listening.is_set():
            self._has_tried.clear()
            await self._has_tried.wait()
            if self._failure is not None and not self._is_listening.is_set():
                raise ConnectionBrokenError(str(self._failure)) from self._failure

    async def repeat(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do what may be done twice; again if its connection breaks, a few times."""
        return await self._retry.call_with_retry(work, _nothing)

    async def run(self, script: str, *args: Any, keys: tuple[str, ...], may_repeat: bool = True) -> Any:
        """Run a script in one step."""
        if script not in self._scripts:
            self._scripts[script] = self.client.register_script(script)
        work = partial(self._scripts[script], keys=keys, args=args)
        return await (self.repeat(work) if may_repeat else work())

    async def told(self, token: str, seconds: float) -> None:
        """Wait until a claim is told that its lock may be free, or for so many seconds."""
        event = self._waiting.setdefault(token, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
        event.clear()

    def is_told(self, token: str) -> bool:
        """Tell whether a claim was told something since it was granted: that others wait for its lock."""
        return token in self._waiting and self._waiting[token].is_set()

    def begin(self, token: str) -> None:
        """Note that a claim has been granted."""
        self._waiting.setdefault(token, asyncio.Event()).clear()

    def expect(self, token: str) -> None:
        """Remember from now on that a claim is told."""
        self._waiting.setdefault(token, asyncio.Event())

    def forget(self, token: str) -> None:
        """Forget a claim that no longer waits."""
        self._waiting.pop(token, None)

    async def close(self) -> None:
        """Give the connections back."""
        listener, self._listener = self._listener, None
        if listener is not None:
            while not listener.done():  # one that comes while redis-py connects may come to nothing
                listener.cancel()
                await asyncio.wait([listener], timeout=1.0)
        elif self._is_ours:
            await self.client.aclose()

    async def _listen(self) -> None:
        try:
            while True:
                try:
                    await self._hear()
                except FAILURES as error:
                    logger.warning("the channel of locks was interrupted: %s", error)
                    self._failure = error
                    self._has_tried.set()
                for event in self._waiting.values():  # they may have been told meanwhile
                    event.set()
                await asyncio.sleep(_PAUSE)
        finally:
            if self._is_ours:
                await self.client.aclose()

    async def _hear(self) -> None:
        async with self.client.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            _check_cancelled()
            async for message in pubsub.listen():
                if message["type"] == "subscribe":
                    self._is_listening.set()
                    self._has_tried.set()
                elif message["type"] == "message" and (event := self._waiting.get(message["data"].decode())):
                    event.set()


def _check_cancelled() -> None:
    """Let a cancellation come out that `asyncio.wait_for`, which redis-py uses, has swallowed before Python 3.12."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _nothing(error: Exception) -> None:
    """Do nothing about a failure: redis-py has closed the connection."""
