"""What becomes of an id whose session was destroyed, or got another id."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsess import (
    DeadlockError,
    EncryptedCodec,
    FileStore,
    LockLostError,
    LockTimeoutError,
    Session,
    SessionNotFoundError,
    SessionStore,
    StoreError,
    increment,
    put,
    rules,
    succession,
)
from asyncsess.backends.base import Held, Record, Tombstone
from asyncsess.events import Event, PredecessorUsed
from asyncsess.ids import key_of, new_session_id
from asyncsess.succession import Succession
from asyncsess.testing import FakeClock, until
from tests.conftest import NewStore, keys_of, stored

VALUES = {"n": 0}
Open = Callable[[SessionStore, str], AbstractAsyncContextManager[Session]]
WAYS: dict[str, Open] = {
    "open": lambda store, session_id: store.open(session_id),
    "adopt": lambda store, session_id: store.open(session_id, create=True),
    "readonly": lambda store, session_id: store.open(session_id, readonly=True),
    "edit": lambda store, session_id: store.edit(session_id),
    "synchronize": lambda store, session_id: store.synchronize(session_id, "n"),
}
way = pytest.mark.parametrize("way", WAYS)


async def regenerated(store: SessionStore, session_id: str, **how: Any) -> str:
    async with store.open(session_id) as session:
        await session.regenerate_id(**how)
    return session.id


async def is_dead(store: SessionStore, session_id: str, way: str) -> bool:
    try:
        async with WAYS[way](store, session_id):
            return False
    except SessionNotFoundError:
        return True


# The time of grace.


@way
async def test_the_old_id_leads_to_the_session_for_a_while(store: SessionStore, clock: FakeClock, way: str) -> None:
    first = await store.create(VALUES)
    second = await regenerated(store, first)
    clock.advance(29.9)
    async with WAYS[way](store, first) as session:
        assert (session.id, dict(session)) == (second, VALUES)
        if way != "readonly":
            session["n"] += 1
    assert await stored(store, second) == {"n": way != "readonly"}
    clock.advance(0.1)
    assert await is_dead(store, first, way)
    assert await stored(store, second) == {"n": way != "readonly"}


@way
@pytest.mark.parametrize("grace", [0, 5, timedelta(seconds=5)])
async def test_the_time_of_grace_can_be_chosen(
    store: SessionStore, clock: FakeClock, way: str, grace: float | timedelta
) -> None:
    first = await store.create(VALUES)
    await regenerated(store, first, grace=grace)
    assert await is_dead(store, first, way) == (grace == 0)
    clock.advance(5)
    assert await is_dead(store, first, way)


async def test_a_negative_time_of_grace_is_refused(store: SessionStore) -> None:
    first = await store.create(VALUES)
    async with store.open(first) as session:
        with pytest.raises(ValueError, match="grace must be 0 or more seconds"):
            await session.regenerate_id(grace=-1)
        assert session.id == first


async def test_apply_and_destroy_follow_the_old_id(store: SessionStore) -> None:
    first = await store.create(VALUES)
    second = await regenerated(store, first)
    assert await store.apply(first, increment("n")) == (1,)
    assert await stored(store, second) == {"n": 1}
    assert await store.destroy(first)  # a logout that was under way
    for session_id in (first, second):
        assert await is_dead(store, session_id, "open")
        assert not await store.destroy(session_id)


@way
async def test_ids_are_followed_through_several_changes(store: SessionStore, clock: FakeClock, way: str) -> None:
    ids = [await store.create(VALUES)]
    for _ in range(5):
        clock.advance(10)
        ids.append(await regenerated(store, ids[-1]))
    for session_id in ids[3:]:
        async with WAYS[way](store, session_id) as session:
            assert session.id == ids[-1]
    for session_id in ids[:2]:  # 50 and 40 s ago
        assert await is_dead(store, session_id, way)


async def test_the_old_id_can_be_followed_to_change_the_id_again(store: SessionStore) -> None:
    first = await store.create(VALUES)
    second = await regenerated(store, first)
    third = await regenerated(store, first)
    assert len({first, second, third}) == 3
    for session_id in (first, second):
        async with store.open(session_id, readonly=True) as session:
            assert session.id == third


async def test_a_predecessor_does_not_prolong_the_session(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=20) as store:
        first = await store.create(VALUES)
        await regenerated(store, first, grace=100)
        clock.advance(20)
        assert await is_dead(store, first, "open")
        assert await store.delete_expired() == 0  # opening it has deleted it
        clock.advance(100)
        await store.delete_expired()
        assert await store.backend.read(key_of(first)) is None


# In flight.


@pytest.mark.parametrize("commit", [Session.save, Session.release, None])
async def test_an_edit_is_merged_into_the_successor(
    store: SessionStore, commit: Callable[[Session], Awaitable[None]] | None
) -> None:
    first = await store.create({"n": 1, "name": "Ada"})
    async with store.edit(first, resolve={"n": rules.add}) as session:
        session["n"] += 1
        session["mine"] = True
        async with store.open(first) as other:
            await other.regenerate_id()
            other["n"] += 5
            other["theirs"] = True
        if commit:
            await commit(session)
            assert session.id == other.id
    assert session.id == other.id
    assert await stored(store, other.id) == {"n": 7, "name": "Ada", "mine": True, "theirs": True}


async def test_an_edit_that_others_gave_a_new_id_without_grace_is_refused(store: SessionStore) -> None:
    first = await store.create(VALUES)
    with pytest.raises(SessionNotFoundError):
        async with store.edit(first) as session:
            session["n"] = 1
            second = await regenerated(store, first, grace=0)
    assert await stored(store, second) == VALUES


async def test_those_who_waited_for_the_old_id_come_to_their_turn_with_the_new(
    store: SessionStore, new_store: NewStore, kind: str
) -> None:
    seen: list[str] = []

    async def wait(store: SessionStore, session_id: str) -> None:
        async with store.open(session_id) as session:
            seen.append(session.id)
            session["n"] += 1

    async with new_store() as other, asyncio.TaskGroup() as tasks:
        stores = (store, other) if kind == "file" else (store, store)
        first = await store.create(VALUES)
        async with store.open(first) as session:
            for each in stores:
                tasks.create_task(wait(each, first))
                tasks.create_task(wait(each, first))
            await until(lambda: sum(each.statistics().waiting for each in {*stores}) == 4)
            await session.regenerate_id()
            for each in stores:
                tasks.create_task(wait(each, first))
            await until(lambda: sum(each.statistics().waiting for each in {*stores}) >= 5)
            session["n"] += 10
    assert seen == [session.id] * 6
    assert await stored(store, session.id) == {"n": 16}


async def test_waiting_under_two_ids_ends_in_the_time_for_one(store: SessionStore) -> None:
    async def wait(session_id: str) -> None:
        async with store.open(session_id, timeout=0.05):
            raise AssertionError

    first = await store.create(VALUES)
    async with store.open(first) as session:
        await session.regenerate_id()
        with pytest.raises(LockTimeoutError) as caught:
            await asyncio.create_task(wait(first))
    assert caught.value.waited <= 0.05 + 1.0


async def test_a_task_that_holds_the_session_is_told_also_under_the_old_id(store: SessionStore) -> None:
    first = await store.create(VALUES)
    async with store.open(first) as session:
        await session.regenerate_id()
        with pytest.raises(DeadlockError):
            await store.open(first).__aenter__()
        with pytest.raises(DeadlockError):
            await store.apply(first, put("n", 1))


async def test_variables_are_locked_under_the_new_id(store: SessionStore) -> None:
    async def lock(session_id: str) -> None:
        async with store.synchronize(session_id, "n", timeout=0):
            raise AssertionError

    first = await store.create(VALUES)
    second = await regenerated(store, first)
    async with store.synchronize(first, "n") as session:
        session["n"] = 1
        for session_id in (first, second):
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(lock(session_id))
    assert await stored(store, second) == {"n": 1}


# Tombstones.


@way
async def test_a_destroyed_session_stays_dead_for_requests_in_flight(
    store: SessionStore, clock: FakeClock, way: str
) -> None:
    session_id = await store.create(VALUES)
    assert await store.destroy(session_id)
    for seconds in (0.0, 59.9):
        clock.advance(seconds)
        assert await is_dead(store, session_id, way)
        with pytest.raises(SessionNotFoundError, match="stays dead for"):
            await store.apply(session_id, put("n", 1))
        await store.backend.touch(key_of(session_id), now=clock())
    clock.advance(0.1)
    async with store.open(session_id, create=True) as session:
        assert (dict(session), session.is_new) == ({}, True)
        session["n"] = 2
    assert await stored(store, session_id) == {"n": 2}


async def test_a_tombstone_stands_as_long_as_a_lease(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(lease=100) as store:
        session_id = await store.create(VALUES)
        await store.destroy(session_id)
        clock.advance(99.9)
        assert await is_dead(store, session_id, "adopt")
        await store.delete_expired()
        assert await store.backend.read(key_of(session_id)) is not None
        clock.advance(0.1)
        await store.delete_expired()
        assert await store.backend.read(key_of(session_id)) is None


async def test_tombstones_are_neither_listed_nor_counted_and_are_swept(store: SessionStore, clock: FakeClock) -> None:
    for _ in range(3):
        await store.destroy(await store.create(VALUES))
        await regenerated(store, await store.create(VALUES))
    assert len(await keys_of(store)) == 3
    clock.advance(1799)
    assert await store.delete_expired() == 0
    clock.advance(1)
    assert await store.delete_expired() == 3  # the successors, which nobody used


@pytest.mark.parametrize("kind", ["file"])
async def test_a_tombstone_that_looks_old_from_outside_is_judged_by_what_it_says(
    store: SessionStore, directory: Path, clock: FakeClock
) -> None:
    """Whoever is killed while it looks at one leaves it with other times."""
    session_id = await store.create(VALUES)
    await store.destroy(session_id)
    (path,) = (path for path in directory.rglob("*") if path.is_file())
    for times in ((0.0, 1.0), (1.0, 1.0)):
        os.utime(path, times)
        await store.delete_expired()
        assert await is_dead(store, session_id, "adopt")


@pytest.mark.parametrize("kind", ["file"])
async def test_nothing_of_a_destroyed_session_is_left_on_the_disk(
    store: SessionStore, directory: Path, clock: FakeClock
) -> None:
    values = {"secret": "a very secret text, " * 200}
    destroyed, regenerated_ = await store.create(values), await store.create(values)
    for session_id in (destroyed, regenerated_):
        await store.apply(session_id, put("n", 1))
    await store.destroy(destroyed)
    second = await regenerated(store, regenerated_)
    files = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert sum(b"very secret" in data for data in files.values()) == 1
    for session_id in (destroyed, regenerated_, second):
        assert not any(session_id.encode() in data for data in files.values())
    clock.advance(10**6)
    await store.delete_expired()
    assert [path for path in directory.rglob("*") if path.is_file()] == []


KILLED_WHILE_IT_ERASES = """\
import asyncio, os, sys
from asyncsess import FileStore
from asyncsess.backends.file.held import FileHeld

async def main():
    async with FileStore(sys.argv[1], idle_timeout=None, lifetime=None) as store:
        FileHeld._erase = lambda self: os.kill(os.getpid(), 9)
        await store.destroy(sys.argv[2])

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["file"])
async def test_a_tombstone_of_a_killed_process_is_not_listed_and_is_swept_with_what_it_did_not_erase(
    new_store: NewStore, directory: Path
) -> None:
    now = time.time()
    async with new_store(idle_timeout=None, lifetime=None, clock=lambda: now) as store:
        session_id = await store.create(VALUES)
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED_WHILE_IT_ERASES, directory, session_id
        )
        assert await killed.wait() == -signal.SIGKILL
        assert await keys_of(store) == []
        assert await is_dead(store, session_id, "open")
        now += 100
        await store.delete_expired()
    assert [path for path in directory.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["file"])
async def test_a_session_that_looks_like_a_tombstone_is_listed_and_kept(store: SessionStore, directory: Path) -> None:
    """Whoever is killed before it writes one has set the times; and an import may have a session begin in 1970."""
    session_id = await store.create(VALUES)
    (path,) = (path for path in directory.rglob("*") if path.is_file())
    os.utime(path, (0.0, 1.0))
    assert await keys_of(store) == [key_of(session_id)]
    await store.delete_expired()
    assert await stored(store, session_id) == VALUES


# The sign of theft.


@pytest.mark.parametrize("grace", [0.0, 30.0])
async def test_the_use_of_a_dead_predecessor_is_reported(new_store: NewStore, clock: FakeClock, grace: float) -> None:
    told: list[Event] = []
    async with new_store(hooks=[told.append], idle_timeout=1000) as store:
        first = await store.create(VALUES)
        second = await regenerated(store, first, grace=grace)
        died_at = datetime.fromtimestamp(clock() + grace, UTC)
        clock.advance(999)
        for way in WAYS:
            told.clear()
            assert await is_dead(store, first, way)
            events = [event for event in told if isinstance(event, PredecessorUsed)]
            assert [(event.died_at, event.successor_id) for event in events] == [(died_at, second)]
            assert second not in repr(events)
        told.clear()
        assert await is_dead(store, new_session_id(), "open")
        await store.destroy(second)
        assert await is_dead(store, second, "open")
        assert [event for event in told if isinstance(event, PredecessorUsed)] == []


@given(st.text("abcXYZ019-_", min_size=1, max_size=128), st.floats(0, 1e10))
def test_a_successor_is_unsealed_with_the_old_id_alone(session_id: str, grace_ends: float) -> None:
    successor_id = new_session_id()
    note = succession.seal(session_id, Succession(grace_ends, successor_id))
    assert succession.unseal(session_id, note) == Succession(grace_ends, successor_id)
    assert len(note) <= 400
    assert successor_id.encode() not in note
    assert note != succession.seal(session_id, Succession(grace_ends, successor_id))
    for other in (session_id + "a", session_id[:-1] + ("b" if session_id[-1] != "b" else "c"), new_session_id()):
        assert succession.unseal(other, note) is None


@pytest.mark.parametrize("note", [b"", b"x", bytes(40), bytes(83), bytes(range(83))], ids=len)
def test_other_notes_name_no_successor(note: bytes) -> None:
    assert succession.unseal("id", note) is None


async def test_an_encrypted_session_is_sealed_for_its_new_id(new_store: NewStore) -> None:
    async with new_store(codec=EncryptedCodec([os.urandom(32)])) as store:
        first = await store.create(VALUES)
        async with store.edit(first) as session:
            session["n"] = 1
            second = await regenerated(store, first)
        for session_id in (first, second):
            assert await stored(store, session_id) == {"n": 1}


async def test_a_store_without_limits_forgets_a_predecessor_after_a_day(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=None, lifetime=None, lease=float("inf")) as store:
        first = await store.create(VALUES)
        await regenerated(store, first)
        destroyed = await store.create(VALUES)
        await store.destroy(destroyed)
        clock.advance(60)
        assert await store.delete_expired() == 0
        kinds = [type(await store.backend.read(key_of(session_id))) for session_id in (first, destroyed)]
        assert kinds == [Tombstone, type(None)]
        clock.advance(86400)
        await store.delete_expired()
        assert await store.backend.read(key_of(first)) is None


@pytest.mark.parametrize("kind", ["file"])
async def test_another_store_sees_the_same(store: FileStore, new_store: NewStore) -> None:
    first = await store.create(VALUES)
    second = await regenerated(store, first)
    async with new_store() as other:
        async with other.open(first) as session:
            assert session.id == second
        await other.destroy(first)
    assert isinstance(await store.backend.read(key_of(second)), Tombstone)
    assert not isinstance(await store.backend.read(key_of(first)), Record)


# What goes wrong on the way.


@pytest.mark.parametrize("end", ["destroy", "regenerate"])
async def test_a_late_holder_that_changes_the_id_neither_revives_nor_doubles_the_session(
    store: SessionStore, end: str
) -> None:
    session_id = await store.create(VALUES)

    async def follow() -> str:
        if end == "destroy":
            await store.destroy(session_id)
            return ""
        return await regenerated(store, session_id)

    async with store.open(session_id, lease=0.01) as session:
        second = await asyncio.create_task(follow())
        with pytest.raises(LockLostError):
            await session.regenerate_id()
        assert session.id == session_id
        await session.rollback()
    keys = await keys_of(store)
    assert keys == ([key_of(second)] if second else [])
    assert store.statistics().leases_lost == 1


@pytest.mark.parametrize("grace", [86401, float("inf"), 1e300])
async def test_a_time_of_grace_beyond_a_day_is_refused(store: SessionStore, grace: float) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        with pytest.raises(ValueError, match="grace must be at most 86400 seconds"):
            await session.regenerate_id(grace=grace)
    assert await stored(store, session_id) == VALUES


async def test_an_edit_goes_on_after_a_refresh_that_failed(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await store.create(VALUES)
    read, second = store.backend.read, ""

    async def fail_for_the_new(key: str) -> Any:
        if key == key_of(second):
            raise StoreError("no")
        return await read(key)

    async with store.edit(first) as session:
        second = await regenerated(store, first)
        with monkeypatch.context() as patch:
            patch.setattr(store.backend, "read", fail_for_the_new)
            with pytest.raises(StoreError):
                await session.refresh()
        session["n"] = 1
    assert await stored(store, second) == {"n": 1}


async def test_a_name_that_led_to_a_destroyed_session_does_not_begin_it_anew(
    store: SessionStore, clock: FakeClock
) -> None:
    async with store.open("job", create=True) as session:
        await session.save()
        await session.regenerate_id(grace=3600)
    await store.destroy(session.id)
    clock.advance(61)
    await store.delete_expired()
    assert await is_dead(store, "job", "adopt")
    assert await is_dead(store, session.id, "open")


async def test_a_store_that_is_closed_while_an_id_changes_says_so(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await store.create(VALUES)
    create = store.backend.create

    @asynccontextmanager
    async def create_and_close(*args: Any, **options: Any) -> AsyncIterator[Held]:
        async with create(*args, **options) as held:
            await store.aclose(timeout=0)
            yield held

    async with store.open(first) as session:
        with monkeypatch.context() as patch:
            patch.setattr(store.backend, "create", create_and_close)
            with pytest.raises(LockLostError):
                await session.regenerate_id()
        assert session.id == first
        await store.__aenter__()
        await session.rollback()
    assert await stored(store, first) == VALUES


async def test_a_store_that_is_closed_as_soon_as_an_id_has_changed_loses_nothing(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await store.create(VALUES)
    hold = store.backend.hold

    @asynccontextmanager
    async def hold_and_close(*args: Any, **options: Any) -> AsyncIterator[Held]:
        async with hold(*args, **options) as held:
            delete = held.delete

            async def delete_and_close(tombstone: Tombstone | None = None, *, now: float) -> None:
                await delete(tombstone, now=now)
                await store.aclose(timeout=0)

            monkeypatch.setattr(held, "delete", delete_and_close)
            yield held

    with monkeypatch.context() as patch:
        patch.setattr(store.backend, "hold", hold_and_close)
        async with store.open(first) as session:
            await session.regenerate_id()
    await store.__aenter__()
    assert await stored(store, session.id) == VALUES
