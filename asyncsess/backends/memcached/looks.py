"""`Looks`: answers at once what it takes a round trip to know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from asyncsess.errors import SessionError

logger = logging.getLogger("asyncsess")

_PAUSE: Final = 0.02


class Looks:
    """Whether others wait for a lock, as of the last look; whoever asks makes this look again."""

    def __init__(self) -> None:
        self._answers: dict[str, bool] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def ask(self, token: str, look: Callable[[], Awaitable[bool]]) -> bool:
        """Return the last answer for a claim, and look anew."""
        task = self._tasks.get(token)
        if task is None or task.done():
            self._tasks[token] = asyncio.create_task(self._look(token, look), name="asyncsess look")
        return self._answers.get(token, False)

    async def forget(self, token: str) -> None:
        """Forget a claim."""
        task = self._tasks.pop(token, None)
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])
        self._answers.pop(token, None)

    async def aclose(self) -> None:
        """Forget all claims that were looked at in the running loop."""
        for token in list(self._tasks):
            await self.forget(token)

    async def _look(self, token: str, look: Callable[[], Awaitable[bool]]) -> None:
        try:
            self._answers[token] = await look()
        except SessionError as error:
            logger.warning("whether others wait could not be found out: %s", error)
        await asyncio.sleep(_PAUSE)  # those who ask all the time need no newer answer
