"""Masses of sessions: sweeping them, opening one among them, opening each of them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from statistics import median

from asyncsess import FileStore
from asyncsess.backends.file.directory import name_of
from asyncsess.ids import key_of
from benchmarks.figures import Figure, micro, milli, number
from benchmarks.population import populate, session_id_of
from benchmarks.rounds import Turn, of_coroutine, of_function, race
from benchmarks.scale import Scale
from benchmarks.workers import together, worker

_SWEEPS = 5
_BEAT = 0.001
_TWO_DAYS = 2 * 86400.0
_FEW = 1_000
_WARM_UP = 1_000
_MEBIBYTE = 1024 * 1024


class _Heartbeat:
    """A task that wakes up each millisecond, and notes the longest time it did not."""

    def __init__(self) -> None:
        self.longest = 0.0

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._beat())
        await asyncio.sleep(_BEAT)
        try:
            yield
        finally:
            task.cancel()

    async def _beat(self) -> None:
        before = time.perf_counter()
        while True:
            await asyncio.sleep(_BEAT)
            now = time.perf_counter()
            self.longest = max(self.longest, now - before)
            before = now


async def sweep(scale: Scale, directory: Path) -> list[Figure]:
    """Sweep when nothing has expired, then when everything has."""
    sessions, others = directory / "sessions", directory / "others"
    await populate(sessions, scale.swept)
    await populate(others, scale.swept // 10)
    quiet, looking, deleting = _Heartbeat(), _Heartbeat(), _Heartbeat()
    bare, bare_deleting = _walk(sessions), _walk(others, is_deleting=True)
    async with quiet.beating():
        await asyncio.sleep(0.5)
    async with FileStore(sessions, sweep_interval=None) as store, looking.beating():
        took = median([(await _sweep(store))[1] for _ in range(_SWEEPS)])
    later = FileStore(sessions, sweep_interval=None, clock=lambda: time.time() + _TWO_DAYS)
    async with later as store, deleting.beating():
        deleted, took_deleting = await _sweep(store)
    what, idle = f"sweep of {scale.swept:,} sessions", f"{milli(quiet.longest)} without a sweep"
    return [
        Figure(f"{what}, none expired", scale.swept / took, "files/s", at_least=50_000,
               detail=f"{number(took)} s; bare scandir and stat {number(bare)} files/s"),
        Figure(f"{what}, all expired", deleted / took_deleting, "files/s", at_least=50_000,
               detail=f"{number(took_deleting)} s, {deleted:,} deleted; "
               f"bare scandir, stat, open, flock, read and unlink {number(bare_deleting)} files/s"),
        Figure(f"{what}, none expired: longest gap of the loop", looking.longest * 1e3, "ms", at_most=10, detail=idle),
        Figure(f"{what}, all expired: longest gap of the loop", deleting.longest * 1e3, "ms", at_most=10, detail=idle),
    ]  # fmt: skip


async def _sweep(store: FileStore) -> tuple[int, float]:
    started = time.perf_counter()
    deleted = await store.delete_expired()
    return deleted, time.perf_counter() - started


def _walk(directory: Path, *, is_deleting: bool = False) -> float:
    """Return how many files a second can be looked at, or also deleted, at most."""
    count, started = 0, time.perf_counter()
    for shard in directory.iterdir():
        with os.scandir(shard) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                if is_deleting:
                    _delete(entry.path)
                count += 1
    return count / (time.perf_counter() - started)


def _delete(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.read(fd, 4096)
    os.unlink(path)
    os.close(fd)


async def opening(scale: Scale, few: Path, many: Path) -> list[Figure]:
    """Open sessions among few, and among many."""
    await populate(few, _FEW)
    async with FileStore(few, sweep_interval=None) as small, FileStore(many, sweep_interval=None) as large:
        drawn = random.Random(0).sample(range(scale.sessions), _FEW)
        turns = {
            "few": _opening_each(small, cycle(range(_FEW))),
            "many": _opening_each(large, cycle(drawn)),
            "all": _opening_each(large, _any_of(scale.sessions)),
            "few, bare": _reading_each(few, cycle(range(_FEW))),
            "many, bare": _reading_each(many, cycle(drawn)),
            "all, bare": _reading_each(many, _any_of(scale.sessions)),
        }
        took = {name: timing.median for name, timing in (await race(turns, scale.rounds, scale.turn)).items()}
    bare = took["few, bare"]
    return [
        Figure(f"opening among {scale.sessions:,} sessions, {which}: against among {_FEW:,}",
               took[name] / took["few"], "times as long", at_most=1.5,
               detail=f"{micro(took[name])} against {micro(took['few'])}; "
               f"bare open, read, close {number(took[f'{name}, bare'] / bare)} times as long as {micro(bare)}")
        for name, which in (("many", f"{_FEW:,} of them in use"), ("all", "each in use"))
    ]  # fmt: skip


def _opening_each(store: FileStore, numbers: Iterator[int]) -> Turn:
    async def open_next() -> None:
        async with store.open(session_id_of(next(numbers))) as session:
            session["hits"]

    return of_coroutine(open_next)


def _reading_each(directory: Path, numbers: Iterator[int]) -> Turn:
    def read_next() -> None:
        fd = os.open(f"{directory}/{name_of(key_of(session_id_of(next(numbers))))}", os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)

    return of_function(read_next)


def _any_of(count: int) -> Iterator[int]:
    draw = random.Random(1)
    while True:
        yield draw.randrange(count)


async def growth(scale: Scale, directory: Path) -> list[Figure]:
    """Open each session once in a fresh process, some of them behind another holder."""
    what = f"growth after opening {scale.sessions:,} distinct sessions"
    if not sys.platform.startswith("linux"):
        return [Figure(what, None, "", at_most=0, detail="needs /proc")]
    arguments = {"directory": str(directory), "count": scale.sessions, "warm_up": _WARM_UP}
    async with worker("grow", **arguments) as grower:
        (grown,) = await together(grower)
    memory = grown.pop("bytes")
    return [
        Figure(f"{what}: memory", memory / _MEBIBYTE, "MiB", at_most=1, detail=f"{memory:,} bytes of resident set"),
        Figure(f"{what}: the rest", sum(grown.values()), "", at_most=0,
               detail=", ".join(f"{count} {name}" for name, count in grown.items())),
    ]  # fmt: skip
