from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from asyncsess import (
    ConflictError,
    DeadlockError,
    FileStore,
    LockTimeoutError,
    ReadOnlySessionError,
    Session,
    SessionClosedError,
    SessionNotFoundError,
    SessionStore,
    append,
    increment,
    put,
    rules,
)
from asyncsess.testing import FakeClock, until
from tests.conftest import keys_of, stored

VALUES = {"a": 1, "b": 1, "list": ["x"], "user": {"id": 7}}


async def test_others_change_other_variables_meanwhile(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.synchronize(session_id, "a", "new") as session:
        session["a"] = 2
        session["new"] = None
        async with store.synchronize(session_id, "b", timeout=0) as other:
            other["b"] = 3
        async with store.open(session_id, timeout=0) as whole:
            whole["list"].append("y")
    assert await stored(store, session_id) == {**VALUES, "a": 2, "b": 3, "list": ["x", "y"], "new": None}


async def test_the_same_variable_has_one_holder_at_a_time_and_is_fresh_for_the_next(store: SessionStore) -> None:
    session_id = await store.create({"n": 0, "other": 0})

    async def add_one() -> None:
        async with store.synchronize(session_id, "n") as session:
            number = session["n"]
            await asyncio.sleep(0)
            session["n"] = number + 1

    await asyncio.gather(*(add_one() for _ in range(50)))
    assert (await stored(store, session_id))["n"] == 50


async def test_fifty_that_move_windows_do_not_wait_for_a_slow_search(store: SessionStore) -> None:
    session_id = await store.create({"popup-position": {}})
    has_found = asyncio.Event()

    async def search() -> None:
        async with store.synchronize(session_id, "searchresult") as session:
            await has_found.wait()
            session["searchresult"] = ["found"]

    async def move(window: int) -> None:
        async with store.synchronize(session_id, "popup-position") as session:
            await asyncio.sleep(0)
            session["popup-position"][str(window)] = window

    searching = asyncio.create_task(search())
    await until(lambda: store.statistics().holding == 1)
    await asyncio.gather(*map(move, range(50)))
    has_found.set()
    await searching
    assert await stored(store, session_id) == {
        "searchresult": ["found"],
        "popup-position": {str(window): window for window in range(50)},
    }


async def test_variables_are_locked_in_one_order_whatever_the_order_of_their_names(store: SessionStore) -> None:
    session_id = await store.create({"a": 0, "b": 0})

    async def swap(*variables: str) -> None:
        for _ in range(20):
            async with store.synchronize(session_id, *variables) as session:
                session["a"], session["b"] = session["b"] + 1, session["a"] + 1
                await asyncio.sleep(0)

    await asyncio.gather(swap("a", "b"), swap("b", "a"), swap("b", "a", "b"))
    values = await stored(store, session_id)
    assert values["a"] + values["b"] == 120


async def test_a_variable_that_is_not_locked_can_not_be_changed(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.synchronize(session_id, "a") as session:
        session["a"] = 2
        for change in (
            lambda: session.__setitem__("b", 2), lambda: session.__delitem__("b"),
            lambda: session.update(b=2), lambda: session.setdefault("new", 1), lambda: session.pop("b"),
        ):  # fmt: skip
            with pytest.raises(ReadOnlySessionError, match="not locked"):
                change()
    assert await stored(store, session_id) == {**VALUES, "a": 2}


@pytest.mark.parametrize("commit", [Session.save, Session.release, None])
async def test_a_change_inside_a_variable_that_is_not_locked_stores_nothing(store: SessionStore, commit: Any) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(ReadOnlySessionError, match="'user' is not locked"):
        async with store.synchronize(session_id, "a") as session:
            session["a"] = 2
            assert session["list"] == ["x"]
            session["user"]["id"] = 8
            if commit:
                await commit(session)
    assert await stored(store, session_id) == VALUES
    async with store.synchronize(session_id, "a", timeout=0):
        pass


async def test_a_released_variable_is_stored_and_free_while_the_others_stay_locked(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.synchronize(session_id, "a", "b") as session:
        session["a"] = session["b"] = 2
        await session.release("a")
        assert await stored(store, session_id) == {**VALUES, "a": 2, "b": 2}
        async with store.synchronize(session_id, "a", timeout=0) as other:
            other["a"] = 3
        with pytest.raises(LockTimeoutError):
            await asyncio.create_task(enter(store, session_id, "b"))
        with pytest.raises(ReadOnlySessionError):
            session["a"] = 4
        with pytest.raises(ValueError, match="only variables"):
            await session.release("a")
        session["b"] = 4
        await session.release()
        with pytest.raises(SessionClosedError):
            session["b"] = 5
        await enter(store, session_id, "b")
    assert await stored(store, session_id) == {**VALUES, "a": 3, "b": 4}


async def enter(store: SessionStore, session_id: str, *variables: str) -> None:
    async with store.synchronize(session_id, *variables, timeout=0):
        pass


async def test_only_a_synchronized_session_releases_by_name(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    for opening in (store.open(session_id), store.edit(session_id), store.open(session_id, readonly=True)):
        async with opening as session:
            with pytest.raises(ValueError, match="only variables"):
                await session.release("a")


async def test_who_changes_a_locked_variable_without_its_lock_is_not_overwritten(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(ConflictError) as caught:
        async with store.synchronize(session_id, "a", "b") as session:
            session["a"] = 2
            session["b"] = 2
            await store.apply(session_id, put("a", 3))
    assert [*caught.value.conflicts] == [(("a",), 1, 2, 3)]
    assert await stored(store, session_id) == {**VALUES, "a": 3}
    async with store.synchronize(session_id, "a", "list", resolve={"a": rules.add, "*": rules.append}) as session:
        session["a"] += 1
        session["list"].append("ours")
        await store.apply(session_id, increment("a", 10), append("list", "theirs"))
    assert await stored(store, session_id) == {**VALUES, "a": 14, "list": ["x", "theirs", "ours"]}


async def test_an_exclusive_holder_sees_no_commit_of_a_variable(store: SessionStore) -> None:
    session_id = await store.create(VALUES)

    async def change() -> None:
        async with store.synchronize(session_id, "a") as session:
            session["a"] = 2

    async with store.open(session_id) as session:
        changing = asyncio.create_task(change())
        await until(lambda: store.statistics().waiting == 1)
        await session.refresh()
        assert session["a"] == 1
        session["b"] = 2
    await changing
    assert await stored(store, session_id) == {**VALUES, "a": 2, "b": 2}


async def test_an_error_gives_back_every_variable_and_stores_nothing(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(ZeroDivisionError):
        async with store.synchronize(session_id, "a", "b") as session:
            session["a"] = 2
            raise ZeroDivisionError
    async with store.synchronize(session_id, "a", "b", timeout=0) as session:
        session["a"] = 3
        await session.rollback()
        await enter(store, session_id, "a", "b")
    assert await stored(store, session_id) == VALUES


async def test_who_waits_in_vain_for_one_variable_keeps_none(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.synchronize(session_id, "b"):
        with pytest.raises(LockTimeoutError) as caught:
            await asyncio.create_task(enter(store, session_id, "a", "b"))
        assert caught.value.holder is not None
        assert Path(__file__).name in caught.value.holder.where
        await enter(store, session_id, "a")
        with pytest.raises(DeadlockError):
            await enter(store, session_id, "a", "b")
        await enter(store, session_id, "a")


async def test_what_does_not_exist_or_ends_meanwhile_is_not_revived(store: SessionStore, clock: FakeClock) -> None:
    with pytest.raises(SessionNotFoundError):
        await enter(store, "unknown", "a")
    session_id = await store.create(VALUES)
    with pytest.raises(SessionNotFoundError):
        async with store.synchronize(session_id, "a") as session:
            session["a"] = 2
            await store.destroy(session_id)
    assert await keys_of(store) == []
    assert store.statistics().holding == 0


@pytest.mark.parametrize("variables", [(), (1,), ("a", None), (b"a",)])
async def test_variables_are_named_by_strings(store: SessionStore, variables: Any) -> None:
    with pytest.raises(ValueError, match="name the variables"):
        store.synchronize(await store.create(VALUES), *variables)


# Their files.


async def test_no_lock_file_is_left_once_nobody_needs_it(tmp_path: Path) -> None:
    async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
        session_id = await store.create({"n": 0})

        async def add_one(handle: FileStore) -> None:
            async with handle.synchronize(session_id, "n") as session:
                session["n"] += 1
                await asyncio.sleep(0)

        async def give_up(handle: FileStore) -> None:
            with pytest.raises(LockTimeoutError):
                async with handle.synchronize(session_id, "n", timeout=0.005):
                    raise AssertionError

        async with store.synchronize(session_id, "n"):
            assert len(os.listdir(tmp_path / "locks")) == 1
            await asyncio.create_task(give_up(other))
            await asyncio.create_task(give_up(other))
        assert os.listdir(tmp_path / "locks") == []
        await asyncio.gather(*(add_one(handle) for _ in range(30) for handle in (store, other)))
        assert os.listdir(tmp_path / "locks") == []
        assert (await stored(store, session_id))["n"] == 60


async def test_lock_files_that_are_deleted_at_random_let_no_two_in(tmp_path: Path) -> None:
    async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
        session_id = await store.create({"n": 0})
        commits = 0

        async def add_one(handle: FileStore) -> None:
            nonlocal commits
            for _ in range(25):
                async with handle.synchronize(session_id, "n", resolve=rules.fail) as session:
                    session["n"] += 1
                    await asyncio.sleep(0)
                commits += 1

        async def delete() -> None:
            while True:
                for path in (tmp_path / "locks").iterdir():
                    if not is_held(path):  # by a third party that looks first, as tmpwatch does
                        path.unlink(missing_ok=True)
                await asyncio.sleep(0)

        deleting = asyncio.create_task(delete())
        await asyncio.gather(*(add_one(handle) for _ in range(4) for handle in (store, other)))
        deleting.cancel()
        await asyncio.wait([deleting])
        assert (await stored(store, session_id))["n"] == commits == 200


def is_held(path: Path) -> bool:
    try:
        inode = path.stat().st_ino
    except FileNotFoundError:
        return True
    return any(f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


async def test_the_lock_file_of_a_killed_holder_is_swept_and_does_not_hinder(tmp_path: Path, clock: FakeClock) -> None:
    async with FileStore(tmp_path, clock=clock, sweep_interval=None) as store:
        session_id = await store.create(VALUES)
        async with store.synchronize(session_id, "a"):
            (name,) = os.listdir(tmp_path / "locks")
        path = tmp_path / "locks" / name
        path.touch(0o600)
        await enter(store, session_id, "a")
        assert not path.exists()
        path.touch(0o600)
        clock.advance(61)
        await store.delete_expired()
        assert not path.exists()


async def test_a_deleted_directory_of_locks_is_made_again(tmp_path: Path) -> None:
    async with FileStore(tmp_path) as store:
        session_id = await store.create(VALUES)
        (tmp_path / "locks").rmdir()
        async with store.synchronize(session_id, "a") as session:
            session["a"] = 2
        assert (await stored(store, session_id))["a"] == 2
