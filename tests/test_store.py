from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from asyncsess import (
    DeadlockError,
    InvalidSessionIdError,
    JSONCodec,
    LockLostError,
    LockTimeoutError,
    MemoryStore,
    SessionNotFoundError,
    SessionStore,
    SessionTooLargeError,
    StoreError,
)
from asyncsess.ids import key_of
from asyncsess.testing import FakeClock, until
from tests.conftest import NewStore, keys_of, stored

UNKNOWN = "a-session-that-never-was"


async def hold(store: SessionStore, session_id: str, until_set: asyncio.Event, **changes: Any) -> None:
    async with store.open(session_id) as session:
        await until_set.wait()
        session.update(changes)


async def add(store: SessionStore, session_id: str, item: Any, **how: Any) -> None:
    async with store.open(session_id, **how) as session:
        session.setdefault("list", []).append(item)


# What opening finds.


async def test_none_starts_a_session_that_is_stored_once_something_is_put_in(store: SessionStore) -> None:
    async with store.open() as session:
        assert (len(session), session.is_new) == (0, True)
        session["a"] = 1
        assert await keys_of(store) == []
    assert await stored(store, session.id) == {"a": 1}
    assert await keys_of(store) == [key_of(session.id)]


async def test_nothing_is_stored_of_a_new_session_that_nothing_was_put_in(store: SessionStore) -> None:
    async with store.open() as fresh:
        fresh.get("a")
    async with store.open("job-of-today", create=True) as adopted:
        adopted.get("a")
        assert await keys_of(store) == []
    assert await keys_of(store) == []
    assert (store.statistics().open, store.statistics().holding) == (0, 0)


async def test_save_stores_a_new_session_although_it_is_empty(store: SessionStore) -> None:
    async with store.open() as session:
        await session.save()
        await session.save()
    assert await stored(store, session.id) == {}
    assert (await keys_of(store), session.version) == ([key_of(session.id)], 1)


@pytest.mark.parametrize("how", [{}, {"readonly": True}], ids=["exclusive", "readonly"])
async def test_an_unknown_id_is_not_adopted(store: SessionStore, how: dict[str, bool]) -> None:
    with pytest.raises(SessionNotFoundError) as caught:
        await store.open(UNKNOWN, **how).__aenter__()
    assert isinstance(caught.value, LookupError)
    assert UNKNOWN not in str(caught.value)
    assert await keys_of(store) == []


@pytest.mark.parametrize("how", [{}, {"readonly": True}], ids=["exclusive", "readonly"])
async def test_an_expired_id_is_not_adopted(store: SessionStore, clock: FakeClock, how: dict[str, bool]) -> None:
    session_id = await store.create({"a": 1})
    clock.advance(1800)
    with pytest.raises(SessionNotFoundError):
        await store.open(session_id, **how).__aenter__()


async def test_a_destroyed_id_is_not_adopted(store: SessionStore) -> None:
    session_id = await store.create({"a": 1})
    assert await store.destroy(session_id)
    for how in ({}, {"readonly": True}):
        with pytest.raises(SessionNotFoundError):
            await store.open(session_id, **how).__aenter__()


async def test_create_adopts_an_unknown_id_and_opens_a_known_one(store: SessionStore) -> None:
    for expected in ([1], [1, 2], [1, 2, 3]):
        await add(store, "job-of-today", expected[-1], create=True)
        assert (await stored(store, "job-of-today"))["list"] == expected


async def test_create_begins_an_expired_session_anew(store: SessionStore, clock: FakeClock) -> None:
    await add(store, "job-of-today", 1, create=True)
    clock.advance(1800)
    async with store.open("job-of-today", create=True) as session:
        assert (dict(session), session.is_new, session.created_at) == ({}, True, None)
        session["b"] = 2
    async with store.open("job-of-today", readonly=True) as session:
        assert (dict(session), session.version) == ({"b": 2}, 1)
        assert session.created_at is not None
        assert session.created_at.timestamp() == clock()


async def test_create_of_an_expired_session_leaves_nothing_if_nothing_is_put_in(
    store: SessionStore, clock: FakeClock
) -> None:
    await add(store, "job-of-today", 1, create=True)
    clock.advance(1800)
    async with store.open("job-of-today", create=True):
        pass
    assert await keys_of(store) == []


@pytest.mark.parametrize("how", [{}, {"readonly": True}, {"create": True}], ids=["exclusive", "readonly", "create"])
@pytest.mark.parametrize("session_id", ["", "../x", "a\0b", "x" * 129, 7])
async def test_an_impossible_id_is_refused_before_anything_is_opened(
    store: SessionStore, session_id: Any, how: dict[str, bool]
) -> None:
    with pytest.raises(InvalidSessionIdError):
        store.open(session_id, **how)
    with pytest.raises(InvalidSessionIdError):
        await store.destroy(session_id)


@pytest.mark.parametrize("how", [{"session_id": None}, {"session_id": "job", "create": True}])
async def test_a_snapshot_of_what_does_not_exist_yet_is_refused(store: SessionStore, how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="readonly=True reads a session that exists"):
        store.open(readonly=True, **how)


# How a block ends.


@pytest.mark.parametrize("how", [{}, {"readonly": True}, {"create": True}], ids=["exclusive", "readonly", "create"])
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, OSError])
async def test_an_exception_comes_out_as_it_was_and_nothing_is_committed(
    store: SessionStore, how: dict[str, bool], kind: type[BaseException]
) -> None:
    session_id = await store.create({"a": [1]})
    original = kind("original")
    opening = store.open(session_id, **how)
    session = await opening.__aenter__()
    session["a"].append(2)
    assert not await opening.__aexit__(kind, original, None)
    assert await stored(store, session_id) == {"a": [1]}
    await add(store, session_id, 3, timeout=1)
    assert (store.statistics().open, store.statistics().holding) == (0, 0)


async def test_an_exception_leaves_nothing_of_a_new_session(store: SessionStore) -> None:
    for session_id in (None, "job-of-today"):
        with suppress(ZeroDivisionError):
            async with store.open(session_id, create=True) as session:
                session["a"] = 1
                raise ZeroDivisionError
    assert await keys_of(store) == []


async def test_a_cancelled_block_commits_nothing_and_gives_the_lock_back(store: SessionStore) -> None:
    session_id = await store.create({"a": 1})
    task = asyncio.create_task(hold(store, session_id, asyncio.Event(), a=2))
    await until(lambda: store.statistics().holding == 1)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await add(store, session_id, 1, timeout=1)
    assert await stored(store, session_id) == {"a": 1, "list": [1]}


async def test_a_task_group_that_fails_rolls_its_sessions_back(store: SessionStore) -> None:
    session_id = await store.create({"a": 1})
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hold(store, session_id, asyncio.Event(), a=2))
            await until(lambda: store.statistics().holding == 1)
            raise ZeroDivisionError
    assert await stored(store, session_id) == {"a": 1}
    assert store.statistics().holding == 0


# Who waits for whom.


async def test_no_update_of_concurrent_blocks_is_lost(store: SessionStore) -> None:
    session_id = await store.create()

    async def client(name: int) -> None:
        for number in range(5):
            async with store.open(session_id) as session:
                before = session.get("list", [])
                await asyncio.sleep(0)
                session["list"] = [*before, [name, number]]

    await asyncio.gather(*map(client, range(10)))
    found = (await stored(store, session_id))["list"]
    assert sorted(found) == [[name, number] for name in range(10) for number in range(5)]


async def test_blocks_come_in_the_order_in_which_they_were_entered(store: SessionStore) -> None:
    session_id = await store.create()
    async with asyncio.TaskGroup() as tasks, store.open(session_id):
        waiters = []
        for number in range(5):
            waiters.append(tasks.create_task(add(store, session_id, number)))
            await until(lambda: store.statistics().waiting == len(waiters))
    assert await stored(store, session_id) == {"list": [0, 1, 2, 3, 4]}


async def test_a_snapshot_waits_for_nobody_and_sees_the_last_commit(store: SessionStore) -> None:
    session_id = await store.create({"n": 0})
    async with store.open(session_id) as session:
        session["n"] = 1
        assert await stored(store, session_id) == {"n": 0}
        await session.save()
        session["n"] = 2
        assert await stored(store, session_id) == {"n": 1}
    assert await stored(store, session_id) == {"n": 2}


async def test_a_timeout_says_who_holds_the_session_and_where(store: SessionStore) -> None:
    session_id = await store.create()
    done = asyncio.Event()
    holder = asyncio.create_task(hold(store, session_id, done), name="a slow request")
    await until(lambda: store.statistics().holding == 1)
    for timeout in (0.001, timedelta(milliseconds=1)):
        with pytest.raises(LockTimeoutError) as caught:
            await store.open(session_id, timeout=timeout).__aenter__()
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.waited >= 0.001
        assert caught.value.holder is not None
        assert (caught.value.holder.pid, caught.value.holder.task) == (os.getpid(), "a slow request")
        assert caught.value.holder.where.startswith(f"{__file__}:")
        assert caught.value.holder.since.utcoffset() == timedelta(0)
        assert "a slow request" in str(caught.value)
        assert session_id not in str(caught.value)
    done.set()
    await holder


async def test_the_timeout_of_the_store_holds_where_none_is_given(new_store: NewStore) -> None:
    async with new_store(lock_timeout=0.001) as store:
        session_id = await store.create()
        done = asyncio.Event()
        holder = asyncio.create_task(hold(store, session_id, done))
        await until(lambda: store.statistics().holding == 1)
        with pytest.raises(LockTimeoutError):
            await store.open(session_id).__aenter__()
        with pytest.raises(LockTimeoutError):
            await store.destroy(session_id)
        done.set()
        await holder
        assert await stored(store, session_id) == {}


async def test_a_timeout_of_zero_tries_once(store: SessionStore) -> None:
    session_id = await store.create()
    done = asyncio.Event()
    holder = asyncio.create_task(hold(store, session_id, done))
    await until(lambda: store.statistics().holding == 1)
    for timeout in (0, timedelta(0)):
        with pytest.raises(LockTimeoutError):
            await store.open(session_id, timeout=timeout).__aenter__()
    done.set()
    await holder
    async with store.open(session_id, timeout=0) as session:
        session["a"] = 1
    assert await stored(store, session_id) == {"a": 1}


@pytest.mark.parametrize("timeout", [-1, -0.001, timedelta(seconds=-1), float("nan")])
def test_a_negative_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        MemoryStore().open("job", timeout=timeout)
    with pytest.raises(ValueError, match="lock_timeout"):
        MemoryStore(lock_timeout=timeout)


@pytest.mark.parametrize("name", ["idle_timeout", "lifetime", "sweep_interval"])
@pytest.mark.parametrize("wrong", [0, -1, timedelta(0)])
def test_a_limit_of_no_time_is_refused_by_its_name(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=name):
        MemoryStore(**{name: wrong})


async def test_opening_again_what_this_task_has_open_fails_at_once(store: SessionStore) -> None:
    session_id = await store.create()
    async with store.open(session_id) as session:
        with pytest.raises(DeadlockError, match=f"{__file__}:"):
            await store.open(session_id).__aenter__()
        with pytest.raises(DeadlockError):
            await store.destroy(session_id)
        session["a"] = 1
    assert await stored(store, session_id) == {"a": 1}


async def test_a_block_can_be_entered_by_a_task_that_was_started_in_another(store: SessionStore) -> None:
    session_id = await store.create()
    async with asyncio.TaskGroup() as tasks, store.open(session_id) as session:
        tasks.create_task(add(store, session_id, 1))  # waits, although its parent is the holder
        await until(lambda: store.statistics().waiting == 1)
        await session.release()
    assert await stored(store, session_id) == {"list": [1]}


async def test_sessions_do_not_wait_for_each_other(store: SessionStore) -> None:
    first, second = await store.create(), await store.create()
    async with store.open(first), store.open(second, timeout=1) as session:
        session["a"] = 1
    assert await stored(store, second) == {"a": 1}


# Starting and ending sessions.


async def test_create_returns_a_fresh_id_each_time(store: SessionStore) -> None:
    ids = [await store.create(values) for values in (None, {}, {"a": 1}, {"a": [1], "b": {}})]
    assert [await stored(store, session_id) for session_id in ids] == [{}, {}, {"a": 1}, {"a": [1], "b": {}}]
    assert sorted(await keys_of(store)) == sorted(map(key_of, ids))


async def test_create_does_not_share_what_it_was_given(store: SessionStore) -> None:
    values: dict[str, Any] = {"cart": []}
    session_id = await store.create(values)
    values["cart"].append(1)
    assert await stored(store, session_id) == {"cart": []}


async def test_destroy_tells_whether_there_was_a_session(store: SessionStore, clock: FakeClock) -> None:
    session_id, expired = await store.create(), await store.create()
    assert await store.destroy(session_id) is True
    assert await store.destroy(session_id) is False
    assert await store.destroy(UNKNOWN) is False
    clock.advance(1800)
    assert await store.destroy(expired) is False
    assert await keys_of(store) == []


async def test_destroy_waits_for_the_holder_and_nobody_brings_the_session_back(store: SessionStore) -> None:
    session_id = await store.create()
    async with asyncio.TaskGroup() as tasks, store.open(session_id) as session:
        destroyed = tasks.create_task(store.destroy(session_id))
        await until(lambda: store.statistics().waiting == 1)
        late = asyncio.create_task(add(store, session_id, 1))
        await until(lambda: store.statistics().waiting == 2)
        session["a"] = 1
    assert destroyed.result() is True
    with pytest.raises(SessionNotFoundError):
        await late
    assert await keys_of(store) == []


async def test_expired_sessions_are_deleted_and_counted(store: SessionStore, clock: FakeClock) -> None:
    for _ in range(3):
        await store.create()
    held = await store.create()
    async with store.open(held) as session:
        clock.advance(1800)
        kept = await store.create()
        assert await store.delete_expired() == 3
        assert sorted(await keys_of(store)) == sorted(map(key_of, (held, kept)))
        session["a"] = 1
    assert (await store.delete_expired(), store.statistics().swept) == (0, 3)


# What it says of itself.


async def test_statistics_tell_what_is_open_and_who_waits(store: SessionStore) -> None:
    session_id = await store.create()
    async with asyncio.TaskGroup() as tasks, store.open(session_id):
        tasks.create_task(add(store, session_id, 1))
        await until(lambda: store.statistics().waiting == 1)
        async with store.open(), store.open(session_id, readonly=True):
            now = store.statistics()
            assert (now.open, now.holding, now.waiting, now.corrupt, now.swept) == (3, 1, 1, 0, 0)
    now = store.statistics()
    assert (now.open, now.holding, now.waiting) == (0, 0, 0)


async def test_the_repr_names_the_place_and_no_session(store: SessionStore) -> None:
    session_id = await store.create({"password": "hunter22"})
    async with store.open(session_id):
        shown = repr(store)
    assert shown.startswith(f"<{type(store).__name__} <")
    assert not any(secret in shown for secret in (session_id, key_of(session_id), "hunter22"))


# Size.


async def test_a_session_beyond_the_limit_is_refused_and_the_last_version_stays(new_store: NewStore) -> None:
    async with new_store(max_size=100, codec=JSONCodec()) as store:
        session_id = await store.create({"a": "x" * 92})
        opening = store.open(session_id)
        session = await opening.__aenter__()
        session["a"] += "x"
        with pytest.raises(SessionTooLargeError, match="max_size") as caught:
            await opening.__aexit__(None, None, None)
        assert (caught.value.size, caught.value.limit) == (101, 100)
        assert await stored(store, session_id) == {"a": "x" * 92}
        with pytest.raises(SessionTooLargeError):
            await store.create({"a": "x" * 93})
        assert await keys_of(store) == [key_of(session_id)]


# Closing.


async def test_closing_waits_for_the_blocks_of_other_tasks(new_store: NewStore) -> None:
    done = asyncio.Event()
    async with new_store() as store:
        session_id = await store.create({"a": 1})
        holder = asyncio.create_task(hold(store, session_id, done, a=2))
        waiter = asyncio.create_task(add(store, session_id, 1))
        await until(lambda: store.statistics().waiting == 1)
        asyncio.get_running_loop().call_soon(done.set)
    assert (holder.done(), waiter.done()) == (True, True)
    await asyncio.gather(holder, waiter)
    async with store:
        assert await stored(store, session_id) == ({"a": 2, "list": [1]})


async def test_who_is_late_when_the_store_closes_loses_its_lock(store: SessionStore) -> None:
    session_id = await store.create({"a": 1})
    done = asyncio.Event()
    holder = asyncio.create_task(hold(store, session_id, done, a=2))
    await until(lambda: store.statistics().holding == 1)
    await store.aclose(timeout=0.001)
    done.set()
    with pytest.raises(LockLostError):
        await holder
    async with store:
        await add(store, session_id, 1, timeout=1)
        assert await stored(store, session_id) == {"a": 1, "list": [1]}


async def test_who_still_waits_when_the_store_closes_is_told(new_store: NewStore) -> None:
    done = asyncio.Event()
    async with new_store() as theirs, new_store() as mine:
        store = theirs if isinstance(mine, MemoryStore) else mine
        session_id = await theirs.create()
        holder = asyncio.create_task(hold(theirs, session_id, done))
        await until(lambda: theirs.statistics().holding == 1)
        waiters = [asyncio.create_task(add(store, session_id, number)) for number in range(2)]
        await until(lambda: store.statistics().waiting == 2)
        await store.aclose(timeout=0.001)
        done.set()
        results = await asyncio.gather(holder, *waiters, return_exceptions=True)
    assert [isinstance(result, StoreError | LockLostError) for result in results[1:]] == [True, True]


async def test_a_task_may_close_the_store_in_its_own_block(store: SessionStore) -> None:
    session_id = await store.create({"a": 1})
    opening = store.open(session_id)
    session = await opening.__aenter__()
    session["a"] = 2
    await store.aclose()  # does not wait for itself
    with pytest.raises(LockLostError):
        await opening.__aexit__(None, None, None)
    async with store:
        assert await stored(store, session_id) == {"a": 1}


async def test_a_cancelled_close_is_cancelled(new_store: NewStore) -> None:
    store = new_store()
    async with store:
        session_id = await store.create()
        done = asyncio.Event()
        holder = asyncio.create_task(hold(store, session_id, done))
        await until(lambda: store.statistics().holding == 1)
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        done.set()
        await holder


async def test_a_close_that_is_cancelled_while_a_sweep_ends_is_cancelled(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def delete_expired(*args: Any, **kwargs: Any) -> int:
        has_begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        while not may_end.is_set():  # as a thread that can't be stopped
            with suppress(asyncio.CancelledError):
                await may_end.wait()
        raise asyncio.CancelledError

    async with new_store(sweep_interval=0.001) as store:
        monkeypatch.setattr(store.backend, "delete_expired", delete_expired)
        await has_begun.wait()
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await closing


USES: dict[str, Callable[[SessionStore, str], Awaitable[Any]]] = {
    "open": lambda store, session_id: store.open(session_id).__aenter__(),
    "readonly": lambda store, session_id: store.open(session_id, readonly=True).__aenter__(),
    "adopt": lambda store, session_id: store.open("job-of-today", create=True).__aenter__(),
    "create": lambda store, session_id: store.create({"a": 1}),
    "fresh": lambda store, session_id: store.open().__aenter__(),
    "destroy": lambda store, session_id: store.destroy(session_id),
    "sweep": lambda store, session_id: store.delete_expired(),
    "keys": lambda store, session_id: keys_of(store),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
async def test_a_closed_store_can_not_be_used_until_it_is_entered_again(
    store: SessionStore, use: Callable[[SessionStore, str], Awaitable[Any]]
) -> None:
    session_id = await store.create({"a": 1})
    await store.aclose()
    with pytest.raises(StoreError, match="closed"):
        await use(store, session_id)
    assert store.statistics().open == 0
    async with store:
        assert await stored(store, session_id) == {"a": 1}


async def test_a_store_can_be_used_without_entering_it(new_store: NewStore) -> None:
    store = new_store()
    session_id = await store.create({"a": 1})
    assert await stored(store, session_id) == {"a": 1}
    await store.aclose()


async def test_a_store_can_be_entered_again_and_again(new_store: NewStore) -> None:
    store, ids = new_store(sweep_interval=0.001), []
    for count in range(3):
        async with store:
            ids.append(await store.create({"n": count}))
            assert [(await stored(store, session_id))["n"] for session_id in ids] == list(range(count + 1))


async def test_closing_twice_does_nothing_more(store: SessionStore) -> None:
    await store.aclose()
    await store.aclose()


async def test_memory_stores_share_nothing_and_others_what_they_keep(new_store: NewStore) -> None:
    async with new_store() as first, new_store() as second:
        session_id = await first.create({"a": 1})
        if not isinstance(first, MemoryStore):
            assert await stored(second, session_id) == {"a": 1}
        else:
            with pytest.raises(SessionNotFoundError):
                await stored(second, session_id)
