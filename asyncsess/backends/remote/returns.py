"""`Returns`: locks that could not be given back, and are as soon as the server can be reached."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from asyncsess.backends.remote.engine import Claim, Engine
from asyncsess.errors import StoreError

logger = logging.getLogger("asyncsess")

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_LONGEST: Final = 60.0


class Returns:
    """Locks that are given back in the background, since the server did not answer when they should have been.

    Args:
        engine: The server.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks = set[asyncio.Task[None]]()

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, claim: Claim, error: StoreError) -> None:
        """Give a claim's lock back, or its place in the line, from now on until it succeeds or the lease ends."""
        logger.warning("a lock could not be given back yet: %s", error)
        task = asyncio.create_task(self._leave(claim), name="asyncsess return")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _leave(self, claim: Claim) -> None:
        until, pause = time.monotonic() + min(claim.lease, _LONGEST), _FIRST_PAUSE
        while time.monotonic() < until:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                await self._engine.leave(claim)
            except StoreError as error:
                logger.debug("a lock could not be given back yet: %s", error)
            else:
                return
        logger.warning("a lock was not given back; its lease ends by now")

    async def aclose(self) -> None:
        """End those of the running loop."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
