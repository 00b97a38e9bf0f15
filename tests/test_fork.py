"""Forks: a lock belongs to the process that took it, and a child can use the store."""

import asyncio
import multiprocessing
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from asyncsess import FileStore, LockLostError, LockTimeoutError


def in_child(function: Callable[[], int]) -> int:
    """Run a function in a forked child; return its exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tested
        pid = os.fork()
    if not pid:
        try:
            code = function()
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 99
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def increment(store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1


@pytest.mark.parametrize("io", ["loop", "thread"])
async def test_a_child_that_ends_does_not_release_the_lock_of_its_parent(tmp_path: Path, io) -> None:
    async with FileStore(tmp_path, io=io) as store, FileStore(tmp_path) as other:
        session_id = await store.create({"n": 0})
        async with store.open(session_id) as session:
            session["n"] = 1
            assert in_child(lambda: 0) == 0
            with pytest.raises(LockTimeoutError):
                async with other.open(session_id, timeout=0.02):
                    pass
        async with other.open(session_id) as session:
            assert session["n"] == 1


async def test_what_a_child_does_to_an_inherited_session_is_refused(tmp_path: Path) -> None:
    async with FileStore(tmp_path) as store:
        session_id = await store.create({"n": 0})
        opening = store.open(session_id)
        session = await opening.__aenter__()
        session["n"] = 7

        def commit() -> int:
            with pytest.raises(LockLostError):
                asyncio.run(session.save())
            asyncio.run(roll_back())
            return 3

        async def roll_back() -> None:
            await opening.__aexit__(ValueError, ValueError(), None)

        assert in_child(commit) == 3
        await opening.__aexit__(None, None, None)
        async with store.open(session_id, readonly=True) as session:
            assert (session["n"], session.version) == (7, 2)


@pytest.mark.parametrize("io", ["loop", "thread"])
async def test_a_child_can_use_the_store_of_its_parent(tmp_path: Path, io) -> None:
    async with FileStore(tmp_path, io=io) as store:
        session_id, held_id = await store.create({"n": 0}), await store.create({"n": 0})
        await increment(store, session_id)
        async with store.open(held_id):

            def use() -> int:
                asyncio.run(increment(store, session_id))
                with pytest.raises(LockTimeoutError):
                    asyncio.run(use_held())
                return 4

            async def use_held() -> None:
                async with store.open(held_id, timeout=0.02):
                    pass

            assert in_child(use) == 4
        async with store.open(session_id) as session:
            assert session["n"] == 2


async def test_a_child_can_open_what_its_parent_held_at_the_fork_once_it_is_free(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    async with FileStore(tmp_path) as store:
        session_id = await store.create({"n": 0})
        async with store.open(session_id):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                os.read(reading, 1)
                asyncio.run(increment(store, session_id))
                os._exit(5)
        os.write(writing, b"!")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        async with store.open(session_id, readonly=True) as session:
            assert session["n"] == 1
    os.close(reading)
    os.close(writing)


async def test_waiters_of_the_parent_are_served_after_a_fork(tmp_path: Path) -> None:
    async with FileStore(tmp_path) as store:
        session_id = await store.create({"n": 0})
        async with store.open(session_id):
            waiters = [asyncio.create_task(increment(store, session_id)) for _ in range(5)]
            while store.statistics().waiting < 5:
                await asyncio.sleep(0)
            assert in_child(lambda: 0) == 0
        await asyncio.gather(*waiters)
        async with store.open(session_id) as session:
            assert session["n"] == 5


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_pool_of_forked_processes_shares_a_store_made_before(tmp_path: Path) -> None:
    global _store, _session_id
    _store = FileStore(tmp_path)
    _session_id = asyncio.run(_store.create({"n": 0}))
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(_increment_from_pool, range(60)))

    async def look() -> None:
        async with _store, _store.open(_session_id) as session:
            assert session["n"] == 60

    asyncio.run(look())


def _increment_from_pool(_: int) -> None:
    asyncio.run(increment(_store, _session_id))
