"""A clock that stands still, a store that goes by it, and a way to wait without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from asyncsess.stores import MemoryStore


class FakeClock:
    """A clock that stands still until it is told otherwise; pass it to a store as ``clock``.

    Attributes:
        now: Seconds since the epoch; may be set. At first, the present in whole seconds, if not told otherwise.
    """

    def __init__(self, now: float | None = None) -> None:
        self.now = float(int(time.time())) if now is None else now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, by: float | timedelta) -> None:
        """Move the clock forward, or back by a negative duration."""
        self.now += by.total_seconds() if isinstance(by, timedelta) else by


@pytest.fixture
def session_clock() -> FakeClock:
    """Return the clock of `session_store`."""
    return FakeClock()


@pytest.fixture
def session_store(session_clock: FakeClock) -> MemoryStore:
    """Return an empty store in memory. Its sessions expire by `session_clock`, and only then."""
    return MemoryStore(clock=session_clock, sweep_interval=None)


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until something is true, such as ``lambda: store.statistics().waiting == 1``."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what a backend is doing shows in its statistics, not in an event
            await asyncio.sleep(0)
