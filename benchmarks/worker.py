"""What a subprocess does: ``python -m benchmarks.worker ROLE ARGUMENTS``, started by `benchmarks.workers`.

A role gets ready, calls ``go()``, which tells so and waits for the word to start, works, and returns what it measured.
Times are nanoseconds of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from asyncsess import FileStore, SessionStore, open_store
from asyncsess.backends.file.directory import name_of
from asyncsess.backends.file.wakeup import running_bells
from asyncsess.ids import key_of
from benchmarks.contestants import decode, encode
from benchmarks.places import place_of
from benchmarks.population import session_id_of

Go = Callable[[], Awaitable[None]]
Turns = list[tuple[int, int, int]]

_SWAP_HOLD, _SWAP_PAUSE = 0.002, 0.001
_SAVE_EVERY = 0.01
_WAIT_EVERY, _WAIT = 1_000, 0.002
_THREADS = 16


async def swap(go: Go, url: str, session_id: str, count: int) -> Turns:
    """Take turns at a session with another process; return when each was asked for, granted and saved."""
    turns = []
    async with open_store(url, sweep_interval=None) as store:
        await go()
        for _ in range(count):
            asked = time.monotonic_ns()
            async with store.open(session_id) as session:
                granted = time.monotonic_ns()
                await asyncio.sleep(_SWAP_HOLD)
                session["hits"] += 1
                await session.save()
                turns.append((asked, granted, time.monotonic_ns()))
            await asyncio.sleep(_SWAP_PAUSE)
    return turns


async def swap_flock(go: Go, path: str, count: int) -> Turns:
    """Do what `swap` does with a blocking flock in a thread."""
    turns, loop = [], asyncio.get_running_loop()
    await go()
    for _ in range(count):
        asked = time.monotonic_ns()
        fd = os.open(path, os.O_RDWR)
        await loop.run_in_executor(None, fcntl.flock, fd, fcntl.LOCK_EX)
        values = decode(os.pread(fd, 4096, 0))
        granted = time.monotonic_ns()
        await asyncio.sleep(_SWAP_HOLD)
        values["hits"] += 1
        os.pwrite(fd, encode(values), 0)
        turns.append((asked, granted, time.monotonic_ns()))
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)
        await asyncio.sleep(_SWAP_PAUSE)
    return turns


async def hold(go: Go, directory: str, session_id: str, path: str) -> None:
    """Hold a session, and a flock of a file, until killed."""
    fcntl.flock(os.open(path, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
    async with FileStore(directory, sweep_interval=None) as store, store.open(session_id):
        await go()


async def write(go: Go, directory: str, session_id: str, seconds: float) -> int:
    """Hold a session for so long and save it now and then; return when it was given back."""
    async with FileStore(directory, sweep_interval=None) as store, store.open(session_id) as session:
        await go()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            session["hits"] += 1
            await session.save()
            await asyncio.sleep(_SAVE_EVERY)
        return time.monotonic_ns()


async def crowd(go: Go, url: str, session_id: str, tasks: int, seconds: float) -> dict[str, float]:
    """Change one session in many tasks; return how many commits, and how long they waited."""
    waits: list[int] = []

    async def compete(store: SessionStore, until: float) -> None:
        while time.monotonic() < until:
            asked = time.monotonic_ns()
            async with store.open(session_id) as session:
                waited = time.monotonic_ns() - asked
                session["hits"] += 1
            waits.append(waited)

    async with open_store(url, sweep_interval=None) as store:
        await go()
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(compete(store, until))
    return {
        "commits": len(waits),
        "waited": sum(waits) / 1e9,
        "median": median(waits or [0]) / 1e9,
        "longest": max(waits, default=0) / 1e9,
    }


async def visit(go: Go, url: str, sessions: int, tasks: int, seconds: float, way: str) -> int:
    """Change sessions, each time any of them, in many tasks; return how many times.

    Args:
        go: Where all workers wait for each other.
        url: Of the store.
        sessions: How many there are.
        tasks: How many change them at a time.
        seconds: For how long.
        way: "open" by the store, "changing" or "locking" by bare calls.
    """
    changes = 0

    async def change(session_id: str) -> None:
        async with store.open(session_id) as session:
            session["hits"] += 1

    async def go_around(until: float) -> None:
        nonlocal changes
        while time.monotonic() < until:
            await call(session_id_of(random.randrange(sessions)))
            changes += 1

    async with open_store(url, sweep_interval=None) as store, place_of(url).bare(url) as bare:
        call = {"open": change, "changing": bare.changing[1], "locking": bare.locking[1]}[way]
        await asyncio.gather(*(call(session_id_of(number)) for number in range(tasks)))
        await go()
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(go_around(until))
    return changes


async def grow(go: Go, directory: str, count: int, warm_up: int) -> dict[str, int]:
    """Open so many sessions, each once; return by how much the process has grown."""
    async with FileStore(directory, sweep_interval=None) as store:
        await go()
        # The threads that slow storage would start: few, but they are to be there before the first measurement.
        await asyncio.gather(*(anext(store.keys()) for _ in range(_THREADS)))
        for number in range(warm_up):
            await _open_each_way(store, directory, number)
        before = _size(store)
        for number in range(warm_up, count):
            await _open_each_way(store, directory, number)
        after = _size(store)
    return {name: after[name] - before[name] for name in before}


async def _open_each_way(store: FileStore, directory: str, number: int) -> None:
    """Read and change a session; now and then behind another holder."""
    session_id = session_id_of(number)
    async with store.open(session_id, readonly=True) as session:
        session["hits"]
    if number % _WAIT_EVERY:
        await _change(store, session_id)
    else:
        with _held_elsewhere(directory, session_id):
            task = asyncio.create_task(_change(store, session_id))
            await asyncio.sleep(_WAIT)
        await task


async def _change(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["hits"] += 1


@contextmanager
def _held_elsewhere(directory: str, session_id: str) -> Iterator[None]:
    """Lock a session's file as another process would."""
    fd = os.open(Path(directory, name_of(key_of(session_id))), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _size(store: FileStore) -> dict[str, int]:
    gc.collect()
    now = store.statistics()
    return {
        "bytes": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "watches": running_bells().watching,
        "keys in queues": now.holding + now.waiting + now.open,
    }


ROLES: dict[str, Callable[..., Awaitable[object]]] = {
    role.__name__: role for role in (swap, swap_flock, hold, write, crowd, visit, grow)
}


async def main(role: str, arguments: dict[str, Any]) -> None:
    async def go() -> None:
        print("ready", flush=True)
        if not await asyncio.to_thread(sys.stdin.readline):
            raise SystemExit  # whoever started this is gone

    print(json.dumps(await ROLES[role](go, **arguments)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
