"""The contest: one session read and changed by asyncsess and by others, in turns."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contestants
from benchmarks.contestants import ASYNCSESS, LITESTAR, PHP, REDIS, SYSTEM_CALLS, Contestant
from benchmarks.figures import Figure, micro
from benchmarks.rounds import Timing, Turn, race
from benchmarks.scale import Scale


@dataclass(frozen=True, slots=True)
class Standing:
    """Who took how long, by which calls."""

    name: str
    calls: str
    timing: Timing


@dataclass(frozen=True, slots=True)
class Contest:
    """How all contestants did.

    Attributes:
        reading: Standings of those that read.
        changing: Standings of those that read, changed and wrote back.
        missing: Who could not take part, and the command that installs it.
    """

    reading: tuple[Standing, ...]
    changing: tuple[Standing, ...]
    missing: dict[str, str]

    def figures(self) -> list[Figure]:
        reading = {standing.name: standing for standing in self.reading}
        changing = {standing.name: standing for standing in self.changing}
        return [
            self._against(LITESTAR, reading, at_least=10),
            self._against(SYSTEM_CALLS, reading, at_most=4),
            self._against(REDIS, changing, at_least=10),
            self._against(PHP, changing, at_least=1),
        ]

    def _against(
        self, name: str, standings: dict[str, Standing], *, at_least: float | None = None, at_most: float | None = None
    ) -> Figure:
        """Compare asyncsess with another: times as fast if that is to be at least so much, else times as long."""
        ours = standings[ASYNCSESS]
        unit = "times as fast" if at_most is None else "times as long"
        if name not in standings:
            return Figure(f"{ours.calls}: against {name}", None, unit, at_least, at_most, self.missing[name])
        theirs = standings[name]
        ratio = theirs.timing.times(ours.timing)
        return Figure(
            f"{ours.calls}: against {name}: {theirs.calls}",
            ratio if at_most is None else 1 / ratio,
            unit,
            at_least,
            at_most,
            f"{micro(ours.timing.median)} against {micro(theirs.timing.median)}, "
            f"best {micro(ours.timing.best)} against {micro(theirs.timing.best)}",
        )


async def hold_contest(scale: Scale, directory: Path) -> Contest:
    missing: dict[str, str] = {}
    entered: list[Contestant] = []
    async with AsyncExitStack() as stack:
        for name, (enter, install) in contestants.ENTRIES.items():
            try:
                entered += await stack.enter_async_context(enter(_made(directory / enter.__name__)))
            except (ImportError, FileNotFoundError):
                missing[name] = f"not installed: {install}"
        gc.freeze()  # what the others have imported is no burden on anybody's turn
        reading = {entry.name: entry.reading for entry in entered if entry.reading}
        changing = {entry.name: entry.changing for entry in entered if entry.changing}
        return Contest(await _standings(reading, scale), await _standings(changing, scale), missing)


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    return directory


async def _standings(entries: dict[str, tuple[str, Turn]], scale: Scale) -> tuple[Standing, ...]:
    turns = {name: turn for name, (_, turn) in entries.items()}
    timings = await race(turns, scale.rounds, scale.turn)
    return tuple(Standing(name, calls, timings[name]) for name, (calls, _) in entries.items())
