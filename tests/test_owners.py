"""Who has logged in where: owners, their sessions, and how these end."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncsess import (
    EncryptedCodec,
    FileStore,
    LockTimeoutError,
    OwnedSession,
    Session,
    SessionNotFoundError,
    SessionStore,
    StoreError,
    increment,
)
from asyncsess.backends.base import Record
from asyncsess.ids import group_of, handle_of, key_of
from asyncsess.testing import FakeClock, until
from asyncsess.web.login import login, logout
from tests.conftest import NewStore, keys_of, stored

VALUES = {"n": 0}
way = pytest.mark.parametrize("way", ["open", "edit"])


async def log_in(store: SessionStore, owner: str = "ada", label: str = "") -> str:
    async with store.open() as session:
        await login(session, owner, label=label)
    return session.id


async def handles(store: SessionStore, owner: str = "ada") -> set[str]:
    return {session.handle for session in await store.sessions_of(owner)}


def handle(session_id: str) -> str:
    return handle_of(key_of(session_id))


async def is_alive(store: SessionStore, session_id: str) -> bool:
    try:
        await stored(store, session_id)
    except SessionNotFoundError:
        return False
    return True


# Login and logout.


@way
async def test_a_login_gives_a_new_id_and_keeps_what_the_session_holds(store: SessionStore, way: str) -> None:
    first = await store.create({"cart": ["tea"], "_csrf": "token"})
    async with getattr(store, way)(first) as session:
        assert session.owner is None
        session["n"] = 1
        await login(session, "ada", label="a browser")
        assert (session.owner, session.has_new_id) == ("ada", True)
        assert not await is_alive(store, first)
        session["n"] += 1
    assert session.id != first
    ownership = {"id": "ada", "label": "a browser"}
    assert await stored(store, session.id) == {"cart": ["tea"], "n": 2, "_owner": ownership}


@way
async def test_the_old_id_never_leads_to_somebody_who_has_logged_in(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    first = await store.create(VALUES)
    seen: list[Any] = []
    create, hold = store.backend.create, store.backend.hold

    async def look() -> None:
        record = await store.backend.read(key_of(first))
        seen.append(b"ada" in record.payload if isinstance(record, Record) else None)

    def looking(make: Any) -> Any:
        def make_and_look(*args: Any, **options: Any) -> AbstractAsyncContextManager[Any]:
            inner = make(*args, **options)
            enter, leave = inner.__aenter__, inner.__aexit__

            async def enter_and_look() -> Any:
                held = await enter()
                await look()
                return held

            async def look_and_leave(*error: Any) -> Any:
                await look()
                return await leave(*error)

            class Looking:
                __aenter__ = staticmethod(enter_and_look)
                __aexit__ = staticmethod(look_and_leave)

            return Looking()  # type: ignore[return-value]

        return make_and_look

    async with getattr(store, way)(first) as session:
        monkeypatch.setattr(store.backend, "create", looking(create))
        monkeypatch.setattr(store.backend, "hold", looking(hold))
        await login(session, "ada")
    monkeypatch.undo()
    assert set(seen) == {False, None}


@pytest.mark.parametrize(("way", "is_new"), [("open", False), ("open", True), ("edit", False)])
async def test_a_login_that_fails_leaves_nobody_logged_in(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, way: str, is_new: bool
) -> None:
    first = None if is_new else await store.create({"_csrf": "token"})

    def fail(*args: Any, **options: Any) -> Any:
        raise StoreError("the disk is full")

    async with getattr(store, way)(first) as session:
        with monkeypatch.context() as patch:
            patch.setattr(store.backend, "create", fail)
            with pytest.raises(StoreError):
                await login(session, "ada")
        session["n"] = 1
        assert session.owner is None
    assert await stored(store, session.id) == ({"n": 1} if is_new else {"_csrf": "token", "n": 1})
    assert await store.sessions_of("ada") == []


async def test_a_login_merges_what_others_stored_meanwhile(store: SessionStore) -> None:
    first = await store.create({"n": 0, "m": 0})
    async with store.edit(first) as session:
        session["n"] = 1
        await store.apply(first, increment("m"))
        await login(session, "ada")
        assert dict(session) == {"n": 1, "m": 1, "_owner": {"id": "ada", "label": ""}}
    assert (await stored(store, session.id))["m"] == 1


async def test_a_logout_ends_the_session_for_all(store: SessionStore) -> None:
    session_id = await log_in(store)
    with pytest.raises(SessionNotFoundError):
        async with store.edit(session_id) as slow:
            slow["n"] = 1
            async with store.open(session_id) as session:
                await logout(session)
    assert not await is_alive(store, session_id)
    assert await store.sessions_of("ada") == []


@pytest.mark.parametrize("owner", ["", None, 7, b"ada"])
async def test_an_owner_is_a_string(store: SessionStore, owner: Any) -> None:
    async with store.open() as session:
        with pytest.raises(ValueError, match="an owner is named by a string"):
            await login(session, owner)
    with pytest.raises(ValueError, match="an owner is named by a string"):
        await store.sessions_of(owner)
    assert await keys_of(store) == []


@pytest.mark.parametrize(("label", "noted"), [(None, ""), ("M\udcf6zilla", "M?zilla"), ("x" * 1000, "x" * 256)])
async def test_whatever_a_header_brings_is_a_label_that_can_be_read(
    store: SessionStore, label: str | None, noted: str
) -> None:
    async with store.open() as session:
        await login(session, "ada", label=label)
    (session_,) = await store.sessions_of("ada")
    assert session_.label == noted


# The list.


async def test_an_owner_sees_each_session_once_the_last_used_first(store: SessionStore, clock: FakeClock) -> None:
    start = datetime.fromtimestamp(clock(), UTC)
    first, second = await log_in(store, label="a phone"), await log_in(store, "grace")
    clock.advance(10)
    third = await log_in(store, label="x" * 1000)
    clock.advance(100)
    await store.apply(first, increment("n"))
    seconds = timedelta(seconds=1)
    assert await store.sessions_of("ada") == [
        OwnedSession(handle(first), "a phone", start, start + 110 * seconds),
        OwnedSession(handle(third), "x" * 256, start + 10 * seconds, start + 10 * seconds),
    ]
    assert await handles(store, "grace") == {handle(second)}
    assert await store.sessions_of("nobody") == []
    async with store.open(first, readonly=True) as session:
        assert session.handle == handle(first)
    for known in (first, key_of(first)):
        assert known not in handle(first)


async def test_a_session_that_is_over_is_not_in_the_list(store: SessionStore, clock: FakeClock) -> None:
    destroyed, changed, expired, cleared = [await log_in(store) for _ in range(4)]
    clock.advance(1000)
    async with store.open(changed) as session:
        await session.regenerate_id()
    await store.destroy(destroyed)
    async with store.open(cleared) as cleared_session:
        cleared_session.clear()
    clock.advance(1000)
    await store.apply(session.id, increment("n"))
    assert await handles(store) == {handle(session.id)}
    assert not await is_alive(store, expired)


async def test_who_logs_in_as_somebody_else_has_changed_hands(store: SessionStore) -> None:
    first = await log_in(store)
    async with store.open(first) as session:
        session["cart"] = ["tea"]
        await session.save()
        await login(session, "grace")
    assert (await handles(store), await handles(store, "grace")) == (set(), {handle(session.id)})
    assert await stored(store, session.id) == {"_owner": {"id": "grace", "label": ""}}


async def test_a_session_that_was_joined_but_never_stored_is_not_in_the_list(store: SessionStore) -> None:
    await store.backend.add_member(group_of("ada"), "ab" * 32, now=store._policy.clock())
    session_id = await log_in(store)
    assert await handles(store) == {handle(session_id)}
    assert await store.destroy_all("ada") == 1


@pytest.mark.parametrize("kind", ["file"])
async def test_one_damaged_session_hides_no_other(store: FileStore, directory: Path) -> None:
    damaged, other = await log_in(store), await log_in(store)
    key = key_of(damaged)
    (directory / key[:2] / key[2:]).write_bytes(b"\1" * 600)
    assert await handles(store) == {handle(other)}
    assert await store.destroy_all("ada") == 1


@pytest.mark.parametrize("kind", ["file"])
async def test_what_another_secret_sealed_is_not_listed_but_ended(new_store: NewStore) -> None:
    async with new_store(codec=EncryptedCodec([b"1" * 32])) as store:
        session_id = await log_in(store)
    async with new_store(codec=EncryptedCodec([b"2" * 32])) as store:
        assert await store.sessions_of("ada") == []
        assert await store.destroy_all("ada") == 1
        assert not await is_alive(store, session_id)


# The end.


@pytest.mark.parametrize("by", ["session", "id", "nothing"])
async def test_all_sessions_of_an_owner_end_but_for_the_one_that_is_kept(store: SessionStore, by: str) -> None:
    mine, other, third, theirs = [await log_in(store, owner) for owner in ("ada", "ada", "ada", "grace")]
    async with store.open(mine, readonly=True) as session:
        keep: Session | str | None = {"session": session, "id": mine, "nothing": None}[by]
        assert await store.destroy_all("ada", keep=keep) == (3 if keep is None else 2)
    assert [await is_alive(store, each) for each in (mine, other, third, theirs)] == [
        keep is not None, False, False, True
    ]  # fmt: skip
    assert await store.destroy_all("ada", keep=keep) == 0


async def test_one_session_of_an_owner_ends_by_its_handle(store: SessionStore) -> None:
    mine, other, theirs = await log_in(store), await log_in(store), await log_in(store, "grace")
    assert await store.destroy_one("ada", handle(other))
    assert not await store.destroy_one("ada", handle(other))
    assert not await store.destroy_one("ada", handle(theirs))
    assert [await is_alive(store, each) for each in (mine, other, theirs)] == [True, False, True]


async def test_whoever_holds_a_session_that_is_to_end_is_waited_for(store: SessionStore) -> None:
    first = await log_in(store)
    async with asyncio.TaskGroup() as tasks, store.open(first) as session:
        ending = tasks.create_task(store.destroy_all("ada"))
        await until(lambda: store.statistics().waiting == 1)
        session["n"] = 1
    assert ending.result() == 1
    assert not await is_alive(store, first)


async def test_a_session_that_gets_another_id_meanwhile_ends_too(store: SessionStore) -> None:
    first, second = await log_in(store), await log_in(store)
    async with asyncio.TaskGroup() as tasks, store.open(first) as session:
        ending = tasks.create_task(store.destroy_all("ada"))
        await until(lambda: store.statistics().waiting == 1)
        await session.regenerate_id()
    assert ending.result() == 2
    assert [await is_alive(store, each) for each in (first, second, session.id)] == [False] * 3


async def test_one_that_can_not_be_ended_does_not_keep_the_others_alive(new_store: NewStore) -> None:
    async with new_store(lock_timeout=0.01) as store:
        ids = [await log_in(store) for _ in range(3)]

        async def hold(holds: asyncio.Event, may_go: asyncio.Event) -> None:
            async with store.open(ids[1]):
                holds.set()
                await may_go.wait()

        holds, may_go = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(hold(holds, may_go))
        await holds.wait()
        with pytest.raises(LockTimeoutError) as error:
            await store.destroy_all("ada")
        assert error.value.__notes__ == ["2 sessions of this owner were destroyed, and 1 could not be"]
        assert error.value.holder is not None
        assert error.value.holder.where.startswith(__file__)
        may_go.set()
        await holder
        assert [await is_alive(store, each) for each in ids] == [False, True, False]


# The limit.


async def test_a_login_too_many_ends_the_session_used_least_recently(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(max_sessions_per_owner=2) as store:
        first = await log_in(store)
        clock.advance(1)
        second = await log_in(store)
        clock.advance(1)
        await store.apply(first, increment("n"))
        other = await log_in(store, "grace")
        clock.advance(1)
        third = await log_in(store)
        assert [await is_alive(store, each) for each in (first, second, third, other)] == [True, False, True, True]
        async with store.open(first) as session:  # no login, so the number is as before
            await session.regenerate_id()
        assert await handles(store) == {handle(session.id), handle(third)}


async def test_whoever_has_just_logged_in_stays_although_others_are_busier(
    new_store: NewStore, clock: FakeClock
) -> None:
    async with new_store(max_sessions_per_owner=1) as store:
        first = await log_in(store)
        clock.advance(1)
        async with store.open() as session:
            await login(session, "ada")
            await store.backend.touch(key_of(first), now=clock() + 1)  # by a process whose turn comes first
        assert await handles(store) == {handle(session.id)}


async def test_many_logins_at_once_leave_as_many_as_are_allowed(new_store: NewStore) -> None:
    async with new_store(max_sessions_per_owner=3) as store:
        await asyncio.gather(*(log_in(store) for _ in range(10)))
        assert len(await store.sessions_of("ada")) == 3


async def test_a_session_that_gets_another_id_while_it_is_one_too_many_ends_nevertheless(
    new_store: NewStore, clock: FakeClock
) -> None:
    async with new_store(max_sessions_per_owner=1) as store:
        first = await log_in(store)
        clock.advance(1)
        async with asyncio.TaskGroup() as tasks, store.open(first) as session:
            tasks.create_task(log_in(store))
            await until(lambda: store.statistics().waiting == 1)
            await session.regenerate_id()
        assert len(await store.sessions_of("ada")) == 1


async def test_a_store_that_fails_while_it_looks_for_sessions_too_many_fails_no_login(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(group: str) -> Any:
        raise StoreError("the disk is gone")

    async with new_store(max_sessions_per_owner=1) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store.backend, "members", fail)
            session_id = await log_in(store)
        assert "could not be ended: the disk is gone" in caplog.text
        assert await handles(store) == {handle(session_id)}


async def test_a_session_too_many_that_can_not_be_ended_is_logged(
    new_store: NewStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with new_store(max_sessions_per_owner=1, lock_timeout=0.01) as store:
        first = await log_in(store)
        clock.advance(1)
        async with store.open(first):
            second = await asyncio.create_task(log_in(store))  # a login waits for others only when it is done
        assert await handles(store) == {handle(first), handle(second)}
    assert "an owner has a session too many, which could not be ended" in caplog.text


@pytest.mark.parametrize("number", [0, -1])
def test_a_limit_of_no_session_is_refused(new_store: NewStore, number: int) -> None:
    with pytest.raises(ValueError, match="max_sessions_per_owner must be 1 or more"):
        new_store(max_sessions_per_owner=number)
