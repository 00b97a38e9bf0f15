"""Rounds: competitors take turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from statistics import median

Turn = Callable[[int], Awaitable[float]]
"""Does something so many times, and returns the seconds that took."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one operation takes: seconds, one sample for each round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)

    def times(self, other: Timing) -> float:
        """Return how many times as long this takes as another: the median of the ratios within each round.

        What else the machine does comes and goes between rounds, and hits both turns of one round.
        """
        return median(mine / its for mine, its in zip(self.samples, other.samples, strict=True))


def of_coroutine(operation: Callable[[], Awaitable[object]]) -> Turn:
    async def turn(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            await operation()
        return time.perf_counter() - started

    return turn


def of_function(operation: Callable[[], object]) -> Turn:
    async def turn(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            operation()
        return time.perf_counter() - started

    return turn


async def race(turns: Mapping[str, Turn], rounds: int, seconds: float) -> dict[str, Timing]:
    """Let the competitors take turns of so many seconds; every other round in reverse order."""
    counts = {name: await _warm_up(turn, seconds) for name, turn in turns.items()}
    samples: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in reversed(counts) if number % 2 else counts:
            samples[name].append(await turns[name](counts[name]) / counts[name])
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


async def _warm_up(turn: Turn, seconds: float) -> int:
    """Return how many operations fill a turn."""
    count = 1
    while (took := await turn(count)) < seconds / 2:
        count *= 2
    return max(1, round(count * seconds / took))
