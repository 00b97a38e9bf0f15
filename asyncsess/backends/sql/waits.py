"""`Waits`: the claims of one event loop that wait for a lock, each until it is told or a pause is over."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final

_FIRST_PAUSE: Final = 0.002
_GROWTH: Final = 1.6
LONGEST_PAUSE: Final = 0.2  # well within the time for which a lock is kept for the next


class _Wait:
    """One claim's."""

    __slots__ = ("is_told", "pause")

    def __init__(self) -> None:
        self.is_told = asyncio.Event()
        self.pause = _FIRST_PAUSE


class Waits:
    """Who waits.

    Attributes:
        is_hearing: Whether the server tells; else those who wait ask, after pauses that grow and differ.
    """

    def __init__(self) -> None:
        self.is_hearing = False
        self._waits: dict[str, _Wait] = {}

    def begin(self, token: str) -> bool:
        """Remember from now on what a claim is told; return whether it is new."""
        is_new = token not in self._waits
        self._waits.setdefault(token, _Wait())
        return is_new

    def end(self, token: str) -> None:
        """Forget a claim."""
        self._waits.pop(token, None)

    async def told(self, token: str, seconds: float) -> None:
        """Wait until a claim is told that its lock may be free, or it is time to ask; for so many seconds at most."""
        wait = self._waits[token]
        if not self.is_hearing:
            seconds = min(seconds, random.uniform(0.5, 1.0) * wait.pause)
            wait.pause = min(LONGEST_PAUSE, wait.pause * _GROWTH)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wait.is_told.wait()
        wait.is_told.clear()

    def tell(self, token: str) -> None:
        """Wake a claim, if it is one of these."""
        if (wait := self._waits.get(token)) is not None:
            wait.is_told.set()

    def tell_all(self) -> None:
        """Wake all: they may have been told while nobody listened."""
        for wait in self._waits.values():
            wait.is_told.set()
