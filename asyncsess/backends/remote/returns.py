"""`Returns`: locks that could not be given back, and are as soon as the server can be reached."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from typing import Final

from asyncsess.backends.remote.engine import Claim, Engine
from asyncsess.backends.remote.loops import drop_ended
from asyncsess.errors import StoreError

logger = logging.getLogger("asyncsess")

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_TIMES: Final = 3
_UNTIL_NEXT: Final = 1.0


class _Returns:
    """Those of one event loop: a task gives them back one after another, as long as there are some."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._claims = deque[tuple[Claim, int]]()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def add(self, claim: Claim, times: int = _TIMES) -> None:
        if self._is_closed:
            return
        self._claims.append((claim, times))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="asyncsess returns")

    async def _work(self) -> None:
        pause = _FIRST_PAUSE
        while self._claims:
            claim, times = self._claims[0]
            try:
                await self._engine.leave(claim)
            except StoreError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._claims.popleft()
                if times > 1:  # the server may come to the question whose answer was lost only now
                    asyncio.get_running_loop().call_later(_UNTIL_NEXT, self.add, claim, times - 1)

    async def close(self) -> None:
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


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
            drop_ended(self._here)
            self._here[loop] = _Returns(self._engine)
        self._here[loop].add(claim)

    async def aclose(self) -> None:
        """End what is under way in the running loop."""
        here = self._here.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()
