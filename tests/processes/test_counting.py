"""Several processes change one session at the same time, and not one update is lost."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncsess import FileStore
from tests.processes.conftest import Worker

ALL_WAYS = ("open", "release", "edit", "apply", "synchronize")


@pytest.mark.parametrize("ways", [("open",), ("edit",), ("apply",), ("synchronize",), ALL_WAYS], ids=" ".join)
async def test_four_processes_of_25_tasks_lose_no_increment(
    shared: FileStore, start: Callable[..., Worker], ways: tuple[str, ...]
) -> None:
    session_id = await shared.create({"n": 0})
    workers = [start("count", session_id, 25, 50, *ways) for _ in range(4)]
    assert [await asyncio.to_thread(worker.wait) for worker in workers] == [0, 0, 0, 0]
    async with shared.open(session_id, readonly=True) as session:
        assert session["n"] == 4 * 25 * 50
        assert session.version == 4 * 25 * 50 + 1


async def test_no_process_starves_beside_others_with_queues_of_their_own(
    shared: FileStore, start: Callable[..., Worker]
) -> None:
    names = ["busy", "busier", "lone", "other"]
    session_id = await shared.create({})
    workers = [start("compete", session_id, name, tasks) for name, tasks in zip(names, (25, 25, 1, 25), strict=True)]
    counts: dict[str, int] = {}
    while len(counts) < len(names):  # they start one after another
        counts = await snapshot(shared, session_id)
    begin = counts
    while sum(counts.values()) < sum(begin.values()) + 6000:
        counts = await snapshot(shared, session_id)
        await asyncio.sleep(0)
    for worker in workers:
        worker.tell("stop")
    assert [await asyncio.to_thread(worker.wait) for worker in workers] == [0, 0, 0, 0]
    gained = {name: counts[name] - begin[name] for name in names}
    assert min(gained.values()) > sum(gained.values()) * 0.1, gained


async def test_every_acknowledged_increment_survives_processes_killed_at_random(
    shared: FileStore, start: Callable[..., Worker], directory: Path
) -> None:
    tasks, kills = 8, 12
    session_id = await shared.create({})
    acknowledged: dict[str, int] = {}
    dice = random.Random(4)

    async def live_and_die(names: list[str]) -> None:
        for name in names:
            worker = start("acknowledge", session_id, name, tasks, *ALL_WAYS)
            for _ in range(dice.randint(1, 150)):
                note(await asyncio.to_thread(worker.says))
            worker.kill()
            assert worker.stdout is not None
            for line in await asyncio.to_thread(worker.stdout.readlines):  # what it had said before it died
                note(line)

    def note(line: str) -> None:
        name, number = line.split()
        acknowledged[name] = int(number)

    names = [f"w{number}" for number in range(kills)]
    await asyncio.gather(*(live_and_die(names[first::3]) for first in range(3)))
    stored = await snapshot(shared, session_id)
    stored.pop("fill", None)
    assert acknowledged.keys() <= stored.keys()
    for name, number in stored.items():
        assert number - acknowledged.get(name, 0) in (0, 1), name
    assert shared.statistics().corrupt == 0
    for name in ("tmp", "locks"):
        for unfinished in (directory / name).iterdir():  # of those who were killed; a sweep deletes them after a minute
            unfinished.unlink()


async def snapshot(store: FileStore, session_id: str) -> dict[str, int]:
    async with store.open(session_id, readonly=True) as session:
        return dict(session)
