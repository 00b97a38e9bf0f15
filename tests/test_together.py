"""One block, several tasks; abandoned tasks; the garbage collector: what happens at the same time as something else."""

import asyncio
import gc
import threading
from pathlib import Path

import pytest

from asyncsess import FileStore, LockTimeoutError, SessionClosedError, SessionNotFoundError
from asyncsess.backends import turns
from asyncsess.backends.turns import Turns
from asyncsess.transfer import Imported, export_sessions, import_sessions
from tests.test_fork import in_child


@pytest.fixture
def options() -> dict[str, str]:
    return {"io": "thread", "durability": "power"}


async def test_what_is_changed_while_a_save_is_under_way_is_for_the_next_commit(tmp_path: Path, options) -> None:
    async with FileStore(tmp_path, **options) as store:
        session_id = await store.create({"a": 0})
        async with store.open(session_id) as session:
            session["a"] = 1
            saving = asyncio.create_task(session.save())
            await asyncio.sleep(0)
            session["b"] = 2
            await saving
        async with store.open(session_id, readonly=True) as session:
            assert dict(session) == {"a": 1, "b": 2}


async def test_what_is_changed_while_a_release_is_under_way_raises(tmp_path: Path, options) -> None:
    async with FileStore(tmp_path, **options) as store:
        session_id = await store.create({"a": 0})
        async with store.open(session_id) as session:
            session["a"] = 1
            releasing = asyncio.create_task(session.release())
            await asyncio.sleep(0)
            with pytest.raises(SessionClosedError):
                session["b"] = 2
            await releasing


async def test_saves_of_several_tasks_come_one_after_another(tmp_path: Path, options) -> None:
    async with FileStore(tmp_path, **options) as store:
        session_id = await store.create({"n": 0})
        async with store.open(session_id) as session:

            async def save(number: int) -> None:
                session["n"] = number
                await session.save()

            await asyncio.gather(*(save(number) for number in range(1, 9)))
            assert session.version == 3  # one for the first, one for all who came meanwhile
        async with store.open(session_id, readonly=True) as session:
            assert session["n"] == 8


async def test_a_block_cancelled_while_another_task_saves_waits_for_it_and_leaves_nothing(
    tmp_path: Path, options
) -> None:
    async with FileStore(tmp_path, **options) as store:
        session_id = await store.create({"n": 0})
        opening = store.open(session_id)
        session = await opening.__aenter__()
        session["n"] = 1
        saving = asyncio.create_task(session.save())
        await asyncio.sleep(0)
        leaving = asyncio.create_task(opening.__aexit__(None, None, None))
        await asyncio.sleep(0)
        leaving.cancel()
        results = await asyncio.gather(saving, leaving, return_exceptions=True)
        assert results[0] is None
        assert isinstance(results[1], asyncio.CancelledError)
        assert (store.statistics().holding, store.statistics().open) == (0, 0)
        async with store.open(session_id, timeout=1) as session:
            assert session["n"] == 1


async def test_a_save_that_comes_after_destroy_brings_nothing_back(tmp_path: Path, options) -> None:
    async with FileStore(tmp_path, **options) as store:
        session_id = await store.create({"n": 0})
        async with store.open(session_id) as session:
            session["fill"] = "x" * 20_000
            results = await asyncio.gather(session.destroy(), session.save(), return_exceptions=True)
            assert results[0] is None
            assert isinstance(results[1], SessionClosedError)
        with pytest.raises(SessionNotFoundError):
            async with store.open(session_id):
                pass


async def test_a_child_does_not_delete_what_its_parent_is_creating(tmp_path: Path) -> None:
    async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
        opening = store.open("job-1", create=True)
        session = await opening.__aenter__()

        def leave() -> int:
            asyncio.run(_leave())
            return 3

        async def _leave() -> None:
            await opening.__aexit__(None, None, None)
            await store.aclose()

        assert in_child(leave) == 3
        with pytest.raises(LockTimeoutError):
            async with other.open("job-1", create=True, timeout=0):
                pass
        session["a"] = 1
        await opening.__aexit__(None, None, None)
        async with other.open("job-1", readonly=True) as session:
            assert session["a"] == 1


def test_the_collector_may_find_an_abandoned_block_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the guard of the queues is held by the very thread that it runs in."""
    queues, lines = Turns(), turns._Line
    abandoned = []

    class LineThatCollects(lines):  # type: ignore[misc, valid-type]
        def __init__(self, current: turns.Turn) -> None:
            super().__init__(current)
            while abandoned:
                queues.give_back(abandoned.pop())

    async def scenario() -> None:
        abandoned.append(await queues.take("a", timeout=1, holder=None))  # type: ignore[arg-type]
        monkeypatch.setattr(turns, "_Line", LineThatCollects)
        other = await queues.take("b", timeout=1, holder=None)  # type: ignore[arg-type]
        queues.give_back(other)
        assert queues.holding == 0

    thread = threading.Thread(target=lambda: asyncio.run(scenario()), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_task_that_was_abandoned_with_its_loop_gives_the_session_back(tmp_path: Path) -> None:
    store, entered = FileStore(tmp_path), []

    async def hold() -> None:
        async with store.open("job-1", create=True) as session:
            session["a"] = 1
            entered.append(True)
            await asyncio.get_running_loop().create_future()

    loop = asyncio.new_event_loop()
    task = loop.create_task(hold())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    while not entered:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del task, loop
    gc.collect()

    async def open_again() -> None:
        async with store, store.open("job-1", create=True, timeout=1) as session:
            assert dict(session) == {}

    asyncio.run(open_again())


async def test_a_session_that_was_long_unused_when_exported_is_not_swept_while_imported(tmp_path: Path) -> None:
    now = 1_700_000_000.0
    async with FileStore(tmp_path / "s", clock=lambda: now, idle_timeout=100, lifetime=None) as store:
        session_id = await store.create({"a": 1})
        now += 5000.0
        async with FileStore(tmp_path / "s", clock=lambda: now, idle_timeout=None, lifetime=None) as lasting:
            async with lasting.open(session_id) as session:
                session["a"] = 2
            await export_sessions(lasting, tmp_path / "dump")
            await lasting.destroy(session_id)
            now += 60.0
        release = store.backend.touch

        async def touch_after_a_sweep(key: str, *, now: float) -> None:
            await store.delete_expired()
            await release(key, now=now)

        store.backend.touch = touch_after_a_sweep  # type: ignore[method-assign]
        assert await import_sessions(store, tmp_path / "dump") == Imported(1, 0)
        await store.delete_expired()
        async with store.open(session_id, readonly=True) as session:
            assert session["a"] == 2
