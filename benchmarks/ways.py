"""The ways to change a session: what each costs alone, and many at once with some work in each."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from asyncsess import FileStore, increment
from benchmarks.contestants import SESSION
from benchmarks.figures import Figure, micro, milli
from benchmarks.rounds import of_coroutine, race
from benchmarks.scale import Scale

_AT_ONCE = 50
_WORK = 0.01
_ROUNDS = 5
_MEBIBYTE = 1024 * 1024

Handler = Callable[[FileStore, str, int], Awaitable[None]]


async def _exclusively(store: FileStore, session_id: str, number: int) -> None:
    async with store.open(session_id) as session:
        await asyncio.sleep(_WORK)
        session[f"window {number}"] = number


async def _in_an_edit(store: FileStore, session_id: str, number: int) -> None:
    async with store.edit(session_id) as session:
        await asyncio.sleep(_WORK)
        session[f"window {number}"] = number


async def _with_its_variable_locked(store: FileStore, session_id: str, number: int) -> None:
    async with store.synchronize(session_id, f"window {number}") as session:
        await asyncio.sleep(_WORK)
        session[f"window {number}"] = number


async def costs(scale: Scale, directory: Path) -> list[Figure]:
    """Change a session that nobody else uses in each way."""
    async with FileStore(directory, sweep_interval=None) as store:
        session_id = await store.create(SESSION)

        async def open_it() -> None:
            async with store.open(session_id) as session:
                session["hits"] += 1

        async def edit_it() -> None:
            async with store.edit(session_id) as session:
                session["hits"] += 1

        async def apply_to_it() -> None:
            await store.apply(session_id, increment("hits"))

        turns = {"open": of_coroutine(open_it), "edit": of_coroutine(edit_it), "apply": of_coroutine(apply_to_it)}
        took = await race(turns, scale.rounds, scale.turn)
    return [
        Figure(f"{what}: against open, change, commit", took[name].times(took["open"]), "times as long", at_most=1.5,
               detail=f"{micro(took[name].median)} against {micro(took['open'].median)}")
        for name, what in (("apply", "apply(increment)"), ("edit", "edit of a session that nobody else changes"))
    ]  # fmt: skip


async def at_once(directory: Path) -> list[Figure]:
    """Change many variables of one session at once, with some work in each block."""
    ways: dict[str, Handler] = {
        "open": _exclusively, "edit": _in_an_edit, "synchronize": _with_its_variable_locked
    }  # fmt: skip
    took: dict[str, list[float]] = {name: [] for name in ways}
    descriptors: list[int] = []
    async with FileStore(directory, sweep_interval=None) as store:
        before = _descriptors()
        for _ in range(_ROUNDS):
            for name, handler in ways.items():
                took[name].append(await _run(store, handler, descriptors))
        gc.collect()
        memory, left = _resident(), _descriptors() - before
        for handler in (_in_an_edit, _with_its_variable_locked) * (2 * _ROUNDS):
            await _run(store, handler, descriptors)
        grown = max(0, _resident() - memory)
    what = f"different keys of one session by {_AT_ONCE} tasks with {milli(_WORK)} of work each"
    ratios = {name: median(a / b for a, b in zip(took["open"], took[name], strict=True)) for name in took}
    return [
        *(
            Figure(f"{name} of {what}: against open", ratios[name], "times as fast", at_least=10,
                   detail=f"{milli(median(took[name]))} against {milli(median(took['open']))}")
            for name in ("edit", "synchronize")
        ),
        Figure("the same: descriptors for each task, at most", (max(descriptors) - before) / _AT_ONCE, "", at_most=2,
               detail=f"{max(descriptors) - before} for {_AT_ONCE} tasks, {left} of them left afterwards"),
        Figure(f"the same {4 * _ROUNDS} times more: growth of memory", grown / _MEBIBYTE, "MiB", at_most=1,
               detail=f"{grown:,} bytes of resident set"),
    ]  # fmt: skip


async def _run(store: FileStore, handler: Handler, descriptors: list[int]) -> float:
    session_id = await store.create(SESSION)
    started = time.perf_counter()
    tasks = [asyncio.create_task(handler(store, session_id, number)) for number in range(_AT_ONCE)]
    await asyncio.sleep(_WORK / 2)
    descriptors.append(_descriptors())
    await asyncio.gather(*tasks)
    took = time.perf_counter() - started
    async with store.open(session_id, readonly=True) as session:
        assert all(session[f"window {number}"] == number for number in range(_AT_ONCE)), "an update was lost"
    return took


def _descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def _resident() -> int:
    """Return the bytes of this process that lie in memory, 0 where the system does not tell; see proc(5)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
