"""`Returns`: locks that could not be given back, and are as soon as the server can be reached."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from typing import Final

from asyncsess.backends.remote.engine import Claim, Engine
from asyncsess.errors import StoreError

logger = logging.getLogger("asyncsess")

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


class _Returns:
    """Those of one event loop: a task gives them back one after another, as long as there are some."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._claims = deque[Claim]()
        self.task: asyncio.Task[None] | None = None

    def add(self, claim: Claim) -> None:
        self._claims.append(claim)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._work(), name="asyncsess returns")

    async def _work(self) -> None:
        pause = _FIRST_PAUSE
        while self._claims:
            try:
                await self._engine.leave(self._claims[0])
            except StoreError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._claims.popleft()


class Returns:
    """Locks that are given back in the background, since the server did not answer when they should have been.

    Args:
        engine: The server.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._here = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Returns]()

    def add(self, claim: Claim, error: StoreError) -> None:
        """Give a claim's lock back, or its place in the line, as soon as possible."""
        logger.warning("a lock is given back later, since the server fails: %s", error)
        loop = asyncio.get_running_loop()
        if loop not in self._here:
            self._here[loop] = _Returns(self._engine)
        self._here[loop].add(claim)

    async def aclose(self) -> None:
        """End what is under way in the running loop."""
        here = self._here.pop(asyncio.get_running_loop(), None)
        if here is not None and here.task is not None:
            here.task.cancel()
            await asyncio.wait([here.task])
