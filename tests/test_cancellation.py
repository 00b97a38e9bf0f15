"""A task may be cancelled at any moment: the lock is free, nothing is left over, and the data is old or new."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from asyncsess import FileStore, LockTimeoutError, SessionNotFoundError, increment, rules

Scene = Callable[[FileStore, str], Awaitable[None]]


class CancelAt:
    """Awaits a coroutine, and cancels the task at its n-th suspension, or so many turns of the loop ``later``."""

    def __init__(self, coroutine: Awaitable[object], step: int, *, later: int = 0) -> None:
        self._iterator = coroutine.__await__()
        self._step = step
        self._later = later
        self.steps = 0

    def __await__(self) -> Generator[Any, Any, None]:
        value, error = None, None
        while True:
            try:
                awaited = self._iterator.throw(error) if error else self._iterator.send(value)  # type: ignore[attr-defined]
            except StopIteration:
                return
            self.steps += 1
            if self.steps == self._step:
                task = asyncio.current_task()
                assert task is not None
                self._cancel(task, self._later)
            try:
                value, error = (yield awaited), None
            except BaseException as raised:
                error = raised

    def _cancel(self, task: asyncio.Task[Any], later: int) -> None:
        if later:
            asyncio.get_running_loop().call_soon(self._cancel, task, later - 1)
        else:
            task.cancel()


async def change(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1


async def grow(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["fill"] = "x" * 20_000
        session["n"] += 1


async def save_then_change(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1
        await session.save()
        session["list"].append(1)


async def release_early(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1
        await session.release()
        await asyncio.sleep(0)


async def roll_back(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1
        await session.rollback()


async def edit(store: FileStore, session_id: str) -> None:
    async with store.edit(session_id, resolve={"n": rules.add}) as session:
        session["n"] += 1


async def edit_and_merge(store: FileStore, session_id: str) -> None:
    async with store.edit(session_id, resolve={"n": rules.add}) as session:
        session["n"] += 1
        await change_another(store, session_id)
        await session.save()


async def change_another(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["other"] = 1


async def synchronize(store: FileStore, session_id: str) -> None:
    async with store.synchronize(session_id, "n", "list") as session:
        session["n"] += 1
        await session.release("n")
        session["list"].append(1)


async def apply(store: FileStore, session_id: str) -> None:
    await store.apply(session_id, increment("n"))


async def attempts(store: FileStore, session_id: str) -> None:
    async for attempt in store.attempts(session_id):
        async with attempt as session:
            session["n"] += 1


async def refresh(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        await session.refresh()
    async with store.open(session_id, readonly=True) as session:
        await session.refresh()


async def create(store: FileStore, session_id: str) -> None:
    await store.create({"n": 1})


async def adopt(store: FileStore, session_id: str) -> None:
    async with store.open("job-1", create=True) as session:
        session["n"] = 1


async def look_at_the_unborn(store: FileStore, session_id: str) -> None:
    async with store.open("job-2", create=True):
        pass


async def destroy(store: FileStore, session_id: str) -> None:
    await store.destroy(session_id)


async def regenerate(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        await session.regenerate_id()


async def follow(store: FileStore, session_id: str) -> None:
    """Go on with an id that has been replaced."""
    await regenerate(store, session_id)
    async with store.synchronize(session_id, "n") as session:
        session["n"] += 1
    await regenerate(store, session_id)
    async with store.open(session_id):
        pass


async def sweep(store: FileStore, session_id: str) -> None:
    await store.delete_expired()


async def list_keys(store: FileStore, session_id: str) -> None:
    async for _ in store.keys():
        pass


SCENES: list[Scene] = [
    change, grow, save_then_change, release_early, roll_back, edit, edit_and_merge, synchronize, apply, attempts,
    refresh, create, adopt, look_at_the_unborn, destroy, regenerate, follow, sweep, list_keys,
]  # fmt: skip
OPTIONS: list[dict[str, Any]] = [{"io": "loop"}, {"io": "thread"}, {"durability": "power"}]


@pytest.mark.parametrize("options", OPTIONS, ids=["loop", "thread", "power"])
@pytest.mark.parametrize("scene", SCENES)
async def test_a_cancellation_at_any_step_leaves_nothing_behind(
    tmp_path: Path, scene: Scene, options: dict[str, Any]
) -> None:
    async with FileStore(tmp_path, sweep_interval=None, **options) as store:
        await warm_up(store)
        step, is_cancelled = 1, True
        while is_cancelled:
            session_id = await store.create({"n": 0, "list": []})
            before = descriptors()
            is_cancelled = await cancelled_at(step, scene(store, session_id))
            await look_for_leftovers(store, tmp_path, before)
            assert is_cancelled or step > 1 or options.get("io") != "thread"  # there was something to cancel
            await look_at_the_data(store, session_id, scene, is_cancelled)
            step += 1 + step // 8


@pytest.mark.parametrize("options", OPTIONS, ids=["loop", "thread", "power"])
@pytest.mark.parametrize("is_other_store", [False, True], ids=["behind a task", "behind another store"])
async def test_a_cancellation_at_any_step_of_the_wait_leaves_the_queue_in_order(
    tmp_path: Path, options: dict[str, Any], is_other_store: bool
) -> None:
    async with FileStore(tmp_path, **options) as store, FileStore(tmp_path, **options) as other:
        await warm_up(store)
        session_id = await store.create({"n": 0, "list": []})
        step, is_cancelled = 1, True
        while is_cancelled:
            before = descriptors()
            async with (other if is_other_store else store).open(session_id) as session:
                waiter = asyncio.create_task(cancelled_at(step, change(store, session_id)))
                behind = asyncio.create_task(change(store, session_id))
                for _ in range(step):
                    await asyncio.sleep(0.001)
                session["n"] += 1
            is_cancelled = await waiter
            await behind
            await look_for_leftovers(store, tmp_path, before)
            async with store.open(session_id) as session:
                assert session["n"] in ({2, 3} if is_cancelled else {3})  # a commit under way is completed
                session["n"] = 0
            step += 1


async def test_random_cancellations_under_load_lose_and_leak_nothing(tmp_path: Path) -> None:
    dice = random.Random(12)
    async with FileStore(tmp_path, sweep_interval=None) as store, FileStore(tmp_path, sweep_interval=None) as other:
        await warm_up(store)
        before = descriptors()
        session_id = await store.create({"n": 0})
        committed = uncertain = 0

        async def increment(handle: FileStore) -> None:
            nonlocal committed, uncertain
            async with handle.open(session_id) as session:
                session["n"] += 1
                await asyncio.sleep(dice.choice((0, 0, 0.001)))
                uncertain += 1  # cancelled in a thread, while the disk is slow, it is stored before that comes out
                await session.save()
                uncertain, committed = uncertain - 1, committed + 1

        tasks = set[asyncio.Task[None]]()
        for _ in range(3000):
            tasks.add(asyncio.create_task(increment(dice.choice((store, other)))))
            if len(tasks) > 20:
                victim = dice.choice(list(tasks))
                if dice.random() < 0.6:
                    victim.cancel()
                await asyncio.wait([victim])
                tasks.discard(victim)
        await asyncio.gather(*tasks, return_exceptions=True)
        async with store.open(session_id) as session:
            assert committed <= session["n"] <= committed + uncertain
        await look_for_leftovers(store, tmp_path, before)


async def cancelled_at(step: int, coroutine: Awaitable[None]) -> bool:
    """Cancel a coroutine at a step; return whether it took that many and the cancellation came out."""
    stepper = CancelAt(coroutine, step)

    async def run() -> None:
        await stepper

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
        assert stepper.steps < step, "the cancellation was swallowed"
    return task.cancelled()


async def warm_up(store: FileStore) -> None:
    """Make what is kept for good: the pool of threads, the inotify instance."""
    await store.delete_expired()
    session_id = await store.create({"n": 0})
    async with FileStore(store.backend._directory.path) as other, other.open(session_id):  # type: ignore[attr-defined]
        with pytest.raises(LockTimeoutError):
            async with store.open(session_id, timeout=0.01):
                pass
    await store.destroy(session_id)


def descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def watches() -> int:
    """Count the files that inotify watches; see proc_pid_fdinfo(5)."""
    instances = [fd for fd, target in descriptors().items() if target == "anon_inode:inotify"]
    return sum(Path(f"/proc/self/fdinfo/{fd}").read_text().count("inotify wd:") for fd in instances)


async def look_for_leftovers(store: FileStore, root: Path, before: dict[str, str]) -> None:
    statistics = store.statistics()
    assert (statistics.open, statistics.holding, statistics.waiting) == (0, 0, 0)
    assert descriptors() == before
    await asyncio.sleep(0)
    assert watches() == 0
    assert os.listdir(root / "tmp") == os.listdir(root / "locks") == []
    locks = Path("/proc/locks").read_text()
    assert f" {os.getpid()} " not in locks


async def look_at_the_data(store: FileStore, session_id: str, scene: Scene, is_cancelled: bool) -> None:
    """Find old or new data, whole, and the lock free."""
    try:
        async with store.open(session_id, timeout=1) as session:
            assert (session["n"], session["list"]) in ((0, []), (1, []), (1, [1]))
            changed = scene in (
                change, grow, save_then_change, release_early, edit, edit_and_merge, synchronize, apply, attempts,
                follow,
            )  # fmt: skip
            assert is_cancelled or session["n"] == (1 if changed else 0)
    except SessionNotFoundError:
        assert scene is destroy
    async with store.open("job-1", create=True, timeout=1), store.open("job-2", create=True, timeout=1):
        pass
