"""`Connections`: those of one event loop to a Redis server, and what is heard there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis
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
        ended: Called when they have ended.
    """

    def __init__(self, client: Redis, channel: str, *, is_ours: bool, ended: Callable[[], object]) -> None:
        self.client = client
        self._channel = channel
        self._is_ours = is_ours
        self._ended = ended
        self._waiting: dict[str, asyncio.Event] = {}
        self._scripts: dict[str, Callable[..., Awaitable[Any]]] = {}
        self._is_listening = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, from now on; return once the server knows it."""
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="asyncsess listener")
        await self._is_listening.wait()

    async def run(self, script: str, *args: Any, keys: tuple[str, ...]) -> Any:
        """Run a script in one step."""
        if script not in self._scripts:
            self._scripts[script] = self.client.register_script(script)
        return await self._scripts[script](keys=keys, args=args)

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
            listener.cancel()
            await asyncio.wait([listener])
        elif self._is_ours:
            await self.client.aclose()

    async def _listen(self) -> None:
        try:
            while True:
                try:
                    await self._hear()
                except FAILURES as error:
                    logger.warning("the channel of locks was interrupted: %s", error)
                for event in self._waiting.values():  # they may have been told meanwhile
                    event.set()
                await asyncio.sleep(_PAUSE)
        finally:
            self._ended()
            if self._is_ours:
                await self.client.aclose()

    async def _hear(self) -> None:
        async with self.client.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            async for message in pubsub.listen():
                if message["type"] == "subscribe":
                    self._is_listening.set()
                elif message["type"] == "message" and (event := self._waiting.get(message["data"].decode())):
                    event.set()
