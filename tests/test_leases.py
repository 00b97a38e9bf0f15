"""Whoever holds a session for too long may be followed by another, and what it commits then is refused."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from asyncsess import LockLostError, LockTimeoutError, Session, SessionClosedError, SessionStore, rules
from asyncsess.openings import VariablesOpening
from tests.conftest import NewStore, stored

LEASE = 0.02
VALUES = {"n": 0, "by": "nobody"}


async def follow(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 10
        session["by"] = "another"


async def save(session: Session) -> None:
    await session.save()


async def grow(session: Session) -> None:
    session["fill"] = "x" * 50_000
    await session.save()


async def leave(session: Session) -> None:
    pass


COMMITS: list[Callable[[Session], Awaitable[None]]] = [
    save, grow, Session.release, Session.destroy, Session.regenerate_id, Session.renew, leave
]  # fmt: skip


@pytest.fixture(params=["one store", "two stores"])
async def another(request: pytest.FixtureRequest, new_store: NewStore, store: SessionStore, kind: str) -> Any:
    """Whoever follows: a task of the same store, or of another on the same directory, as in another process."""
    if request.param == "one store" or kind == "memory":
        yield store
        return
    async with new_store() as other:
        yield other


@pytest.mark.parametrize("commit", COMMITS)
async def test_a_late_holder_is_followed_and_commits_nothing_any_more(
    store: SessionStore, another: SessionStore, commit: Callable[[Session], Awaitable[None]]
) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(LockLostError):
        async with store.open(session_id, lease=LEASE) as session:
            session["n"] += 1
            await session.save()
            session["n"] += 100
            session["by"] = "the late one"
            await asyncio.create_task(follow(another, session_id))
            await commit(session)
    assert await stored(store, session_id) == {"n": 11, "by": "another"}
    async with store.open(session_id, timeout=1):
        pass


@pytest.mark.parametrize("commit", [save, grow, Session.release, leave])
async def test_a_late_holder_that_nobody_follows_goes_on(
    store: SessionStore, commit: Callable[[Session], Awaitable[None]]
) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, lease=LEASE) as session:
        await asyncio.sleep(2 * LEASE)
        session["n"] += 1
        await commit(session)
    assert (await stored(store, session_id))["n"] == 1


async def test_nobody_follows_while_the_lease_is_renewed(store: SessionStore, another: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, lease=40 * LEASE) as session:
        follower = asyncio.create_task(follow(another, session_id))
        for _ in range(3):
            await asyncio.sleep(17 * LEASE)
            await session.renew()
        session["n"] += 1
        await session.save()
        await session.renew(timedelta(hours=1))
        assert not follower.done()
    await follower
    assert (await stored(store, session_id))["n"] == 11


async def test_a_lease_may_last_for_ever(store: SessionStore, another: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, lease=math.inf):
        with pytest.raises(LockTimeoutError):
            async with asyncio.timeout(30):
                await asyncio.create_task(enter(another, session_id, 5 * LEASE))


async def enter(store: SessionStore, session_id: str, timeout: float) -> None:
    async with store.open(session_id, timeout=timeout):
        pass


async def test_a_late_holder_of_a_new_session_is_followed(store: SessionStore, another: SessionStore) -> None:
    async def follow() -> None:
        async with another.open("job-1", create=True) as session:
            session["by"] = "another"

    with pytest.raises(LockLostError):
        async with store.open("job-1", create=True, lease=LEASE) as session:
            session["by"] = "the late one"
            await asyncio.create_task(follow())
    assert await stored(store, "job-1") == {"by": "another"}


async def test_those_who_wait_follow_one_after_another(store: SessionStore, another: SessionStore) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(LockLostError):
        async with store.open(session_id, lease=LEASE) as session:
            session["n"] = 1000
            await asyncio.gather(*(asyncio.create_task(follow(one, session_id)) for one in (store, another) * 5))
    assert await stored(store, session_id) == {"n": 100, "by": "another"}


async def test_an_error_of_a_late_holder_comes_out_as_it_was(store: SessionStore, another: SessionStore) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(ZeroDivisionError):
        async with store.open(session_id, lease=LEASE) as session:
            session["n"] += 1
            await asyncio.create_task(follow(another, session_id))
            raise ZeroDivisionError
    assert (await stored(store, session_id))["n"] == 10


@pytest.mark.parametrize("hours", [-5, 5, 90_000])
async def test_the_wall_clock_may_be_set_without_any_effect(
    store: SessionStore, another: SessionStore, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    session_id = await store.create(VALUES)
    real = time.time
    async with store.open(session_id, lease=3600) as session:
        session["n"] += 1
        await session.save()
        monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
        with pytest.raises(LockTimeoutError):
            await asyncio.create_task(enter(another, session_id, 5 * LEASE))
        session["n"] += 1
    assert (await stored(store, session_id))["n"] == 2


@pytest.mark.parametrize("lease", [0, -1, timedelta(0)])
async def test_a_lease_has_a_length(new_store: NewStore, store: SessionStore, lease: Any) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(ValueError, match="lease must be greater than 0"):
        store.open(session_id, lease=lease)
    with pytest.raises(ValueError, match="lease must be greater than 0"):
        store.synchronize(session_id, "n", lease=lease)
    with pytest.raises(ValueError, match="lease must be greater than 0"):
        new_store(lease=lease)
    async with store.open(session_id) as session:
        with pytest.raises(ValueError, match="lease must be greater than 0"):
            await session.renew(lease)


async def test_what_has_no_lock_needs_no_renewal(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    for opening in (store.open(session_id, readonly=True), store.edit(session_id)):
        async with opening as session:
            await session.renew()
        with pytest.raises(SessionClosedError):
            await session.renew()


# Leases of variables.


async def follow_variable(store: SessionStore, session_id: str) -> None:
    async with store.synchronize(session_id, "n") as session:
        session["n"] += 10


@pytest.mark.parametrize("commit", [save, Session.release, Session.renew, leave])
async def test_a_late_holder_of_a_variable_is_followed_and_commits_nothing_any_more(
    store: SessionStore, another: SessionStore, commit: Callable[[Session], Awaitable[None]]
) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(LockLostError):
        async with store.synchronize(session_id, "n", "by", lease=LEASE, resolve=rules.ours) as session:
            session["n"] += 1
            await session.save()
            session["n"] += 100
            session["by"] = "the late one"
            await asyncio.create_task(follow_variable(another, session_id))
            await commit(session)
    assert await stored(store, session_id) == {"n": 11, "by": "nobody"}
    async with another.synchronize(session_id, "n", "by", timeout=1):
        pass


async def test_a_late_holder_may_commit_the_variables_that_it_has_given_back(
    store: SessionStore, another: SessionStore
) -> None:
    session_id = await store.create(VALUES)
    async with store.synchronize(session_id, "n", "by", lease=LEASE) as session:
        session["n"] += 1
        await session.release("n")
        await asyncio.create_task(follow_variable(another, session_id))
        session["by"] = "the late one"
    assert await stored(store, session_id) == {"n": 11, "by": "the late one"}


async def test_a_late_holder_of_a_variable_that_nobody_follows_goes_on(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.synchronize(session_id, "n", lease=LEASE) as session:
        await asyncio.sleep(2 * LEASE)
        session["n"] += 1
    assert (await stored(store, session_id))["n"] == 1


async def test_nobody_follows_a_variable_while_its_lease_is_renewed(store: SessionStore, another: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.synchronize(session_id, "n", lease=40 * LEASE) as session:
        follower = asyncio.create_task(follow_variable(another, session_id))
        for _ in range(3):
            await asyncio.sleep(17 * LEASE)
            await session.renew()
        await session.renew(timedelta(hours=1))
        session["n"] += 1
        assert not follower.done()
    await follower
    assert (await stored(store, session_id))["n"] == 11


async def test_who_follows_sees_what_the_late_holder_was_about_to_commit(
    store: SessionStore, another: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has made sure that the variable is its own, and has not yet stored: others must not begin before that."""
    session_id = await store.create(VALUES)
    followers: list[asyncio.Task[None]] = []
    check = VariablesOpening._check_locks

    async def check_and_be_late(self: VariablesOpening) -> None:
        await check(self)
        if not followers:
            followers.append(asyncio.create_task(follow_variable(another, session_id)))
            await asyncio.sleep(5 * LEASE)

    monkeypatch.setattr(VariablesOpening, "_check_locks", check_and_be_late)
    async with store.synchronize(session_id, "n", lease=LEASE) as session:
        session["n"] += 1
    await asyncio.gather(*followers)
    assert (await stored(store, session_id))["n"] == 11


async def test_a_variable_may_be_held_for_ever(store: SessionStore, another: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.synchronize(session_id, "n", lease=math.inf):
        with pytest.raises(LockTimeoutError):
            await asyncio.create_task(enter_variable(another, session_id, 5 * LEASE))


async def enter_variable(store: SessionStore, session_id: str, timeout: float) -> None:
    async with store.synchronize(session_id, "n", timeout=timeout):
        pass
