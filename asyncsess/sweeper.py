"""`Sweeper`: the task of a store that deletes expired sessions from time to time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from asyncsess.errors import SessionError

logger = logging.getLogger("asyncsess")


class Sweeper:
    """Sweep in the background.

    Args:
        sweep: Deletes what has expired.
        interval: Seconds between two sweeps, at most; None for no sweep at all.
    """

    def __init__(self, sweep: Callable[[], Awaitable[object]], interval: float | None) -> None:
        self._sweep = sweep
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        if self._interval is not None and self._task is None:
            self._task = asyncio.create_task(self._run(self._interval), name="asyncsess sweeper")

    async def stop(self) -> None:
        """End, and wait until a sweep under way has ended."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():  # else the loop ended with it
            task.cancel()
            await asyncio.wait([task])

    async def _run(self, interval: float) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.0) * interval)  # several processes need not do it all at once
            try:
                await self._sweep()
            except SessionError:
                logger.exception("expired sessions could not be deleted; the next sweep will try again")
