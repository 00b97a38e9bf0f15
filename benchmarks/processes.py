"""Several processes and one session: handing it over, competing for it, reading beside a writer."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from asyncsess import FileStore
from benchmarks.contestants import SESSION, encode
from benchmarks.figures import Figure, micro, milli, number
from benchmarks.scale import Scale
from benchmarks.worker import Turns
from benchmarks.workers import Worker, together, worker

_SURELY_WAITING = 500_000  # nanoseconds
_SETTLE = 0.02
_PROCESSES, _TASKS = 4, 25
_HUNDREDTH = 0.01


async def hand_over(scale: Scale, directory: Path) -> Figure:
    """Let two processes take turns; compare with a blocking flock in a thread, in rounds."""
    ours: list[float] = []
    theirs: list[float] = []
    path = directory / "flock"
    async with FileStore(directory / "sessions", sweep_interval=None) as store:
        session_id = await store.create(SESSION)
    path.write_bytes(encode(SESSION))
    ask = {"url": f"file://{directory / 'sessions'}", "session_id": session_id, "count": scale.swaps}
    for _ in range(scale.swap_rounds):
        async with worker("swap", **ask) as one, worker("swap", **ask) as other:
            ours += hand_overs(*await together(one, other))
        flock = {"path": str(path), "count": scale.swaps}
        async with worker("swap_flock", **flock) as one, worker("swap_flock", **flock) as other:
            theirs += hand_overs(*await together(one, other))
    return Figure(
        "hand-over between processes, p50: against a blocking flock in a thread",
        median(ours) / median(theirs),
        "times as long",
        at_most=1.5,
        detail=f"{micro(median(ours))} against {micro(median(theirs))}; {len(ours)} and {len(theirs)} hand-overs",
    )


def hand_overs(one: Turns, other: Turns) -> Iterator[float]:
    """Yield the seconds from a release in one process to the grant in the other, which waited already."""
    turns = sorted([*((*turn, 0) for turn in one), *((*turn, 1) for turn in other)], key=lambda turn: turn[1])
    for (_, _, released, giver), (asked, granted, _, taker) in pairwise(turns):
        if giver != taker and asked + _SURELY_WAITING < released:
            yield (granted - released) / 1e9


async def killed_holders(scale: Scale, directory: Path) -> Figure:
    """Kill holders one after another; take the time from the signal to the grant, beside that of a blocking flock."""
    ours, theirs = [], []
    async with FileStore(directory / "sessions", sweep_interval=None) as store, AsyncExitStack() as stack:
        holders: list[tuple[str, str, Worker]] = []
        for index in range(scale.kills):
            session_id, path = await store.create(SESSION), str(directory / str(index))
            role = worker("hold", directory=str(directory / "sessions"), session_id=session_id, path=path)
            holders.append((session_id, path, await stack.enter_async_context(role)))
        for *_, holder in holders:
            await holder.ready()
        for session_id, path, holder in holders:
            waiter = asyncio.create_task(_granted(store, session_id))
            thread = asyncio.create_task(asyncio.to_thread(_flocked, path))
            await asyncio.sleep(_SETTLE)
            killed_at = time.perf_counter()
            holder.kill()
            ours.append(await waiter - killed_at)
            theirs.append(await thread - killed_at)
            await holder.ended()
    return Figure(
        "holder killed: longest time to the grant",
        max(ours) * 1e3,
        "ms",
        at_most=5,
        detail=f"{len(ours)} killed; p50 {milli(median(ours))}, longest {milli(max(ours))}; "
        f"a blocking flock in a thread {milli(median(theirs))}, {milli(max(theirs))}",
    )


async def _granted(store: FileStore, session_id: str) -> float:
    async with store.open(session_id):
        return time.perf_counter()


def _flocked(path: str) -> float:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return time.perf_counter()
    finally:
        os.close(fd)


async def crowd(scale: Scale, directory: Path) -> list[Figure]:
    """Let processes with many tasks each compete for one session."""
    async with FileStore(directory, sweep_interval=None) as store, AsyncExitStack() as stack:
        session_id = await store.create(SESSION)
        ask = {"url": f"file://{directory}", "session_id": session_id, "tasks": _TASKS, "seconds": scale.crowd}
        workers = [await stack.enter_async_context(worker("crowd", **ask)) for _ in range(_PROCESSES)]
        results = await together(*workers)
        async with store.open(session_id, readonly=True) as session:
            counted = session["hits"] - SESSION["hits"]
    commits = sum(result["commits"] for result in results)
    shares = [100 * result["commits"] / commits for result in results]
    longest = max(result["longest"] for result in results)
    mean = sum(result["waited"] for result in results) / commits
    what = f"{_PROCESSES} processes with {_TASKS} tasks each, one session, {number(scale.crowd)} s"
    each = " ".join(f"{share:.1f}" for share in shares)
    return [
        Figure(f"{what}: updates lost", commits - counted, "", at_most=0,
               detail=f"{commits:,} commits, {commits / scale.crowd:,.0f} a second"),
        Figure(f"{what}: smallest share", min(shares), "%", at_least=15, detail=f"shares in %: {each}"),
        Figure(f"{what}: largest share", max(shares), "%", at_most=35, detail=f"shares in %: {each}"),
        Figure(f"{what}: longest wait", longest / mean, "times the mean", at_most=20,
               detail=f"longest {milli(longest)}, mean {milli(mean)}"),
    ]  # fmt: skip


class _Read(NamedTuple):
    started: int
    took: float
    version: int


async def readers(scale: Scale, directory: Path) -> Figure:
    """Read snapshots beside a writer that holds the lock all the time, and saves now and then."""
    async with FileStore(directory, sweep_interval=None) as store:
        session_id = await store.create(SESSION)
        quiet = await _read(store, session_id, scale)
        role = worker("write", directory=str(directory), session_id=session_id, seconds=scale.hold)
        async with role as writer:
            await writer.ready()
            writer.go()
            beside = await _read(store, session_id, scale)
            released = await writer.result()
    beside = [read for read in beside if read.started < released]
    patience = _HUNDREDTH * scale.hold
    return Figure(
        f"snapshots beside a writer that holds the lock for {number(scale.hold)} s: reads that waited",
        sum(read.took > patience or read.version < before.version for before, read in pairwise(beside)),
        "",
        at_most=0,
        detail=f"{len(beside)} reads, longest {_summary(beside)}; without the writer longest {_summary(quiet)}",
    )


async def _read(store: FileStore, session_id: str, scale: Scale) -> list[_Read]:
    reads = []
    for _ in range(scale.reads):
        started = time.monotonic_ns()
        async with store.open(session_id, readonly=True) as session:
            reads.append(_Read(started, (time.monotonic_ns() - started) / 1e9, session.version))
        await asyncio.sleep(scale.hold / scale.reads)
    return reads


def _summary(reads: list[_Read]) -> str:
    took = [read.took for read in reads]
    return f"{micro(max(took))}, mean {micro(fmean(took))}"
