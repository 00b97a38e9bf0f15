from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from asyncsess import (
    CodecError,
    ConflictError,
    DeadlockError,
    LockTimeoutError,
    Session,
    SessionClosedError,
    SessionNotFoundError,
    SessionStore,
    StoreError,
    append,
    discard,
    increment,
    put,
    rules,
)
from asyncsess.testing import FakeClock, until
from tests.conftest import NewStore, stored

VALUES = {"name": "Ada", "hits": 1, "cart": ["tea"], "user": {"id": 7, "roles": ["admin"]}}


async def version_of(store: SessionStore, session_id: str) -> int:
    async with store.open(session_id, readonly=True) as session:
        return session.version


async def test_what_others_changed_meanwhile_stays(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id) as session:
        session["name"] = "Bob"
        del session["user"]
        session["new"] = None
        await store.apply(session_id, append("cart", "milk"), put("other", 0))
    assert await stored(store, session_id) == {
        "name": "Bob", "hits": 1, "cart": ["tea", "milk"], "other": 0, "new": None
    }  # fmt: skip


async def test_an_edit_waits_for_nobody_until_it_commits(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    changed = asyncio.Event()

    async def edit() -> None:
        async with store.edit(session_id) as session:
            session["name"] = "Bob"
            changed.set()

    async with store.open(session_id) as session:
        editor = asyncio.create_task(edit())
        await changed.wait()
        await until(lambda: store.statistics().waiting == 1)
        session["hits"] = 2
    await editor
    assert await stored(store, session_id) == {**VALUES, "name": "Bob", "hits": 2}


async def test_an_edit_holds_no_lock_while_its_block_runs(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id) as session:
        session["name"] = "Bob"
        async with store.open(session_id, timeout=0) as other:
            other["hits"] = 2
    assert await stored(store, session_id) == {**VALUES, "name": "Bob", "hits": 2}


async def test_without_a_change_nothing_is_locked_or_written(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id):
        async with store.edit(session_id, timeout=0) as session:
            assert session["cart"] == ["tea"]
            session["name"] = "Ada"
        async with store.edit(session_id, timeout=0) as session:
            await session.save()
            await session.release()
    assert await version_of(store, session_id) == 1


async def test_a_change_that_others_made_too_is_not_written_again(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id) as session:
        session["name"] = "Bob"
        await store.apply(session_id, put("name", "Bob"))
    assert await version_of(store, session_id) == 2


async def test_a_conflict_is_reported_whole_and_nothing_is_written(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(ConflictError) as caught:
        async with store.edit(session_id) as session:
            await store.apply(session_id, put("name", "Eve"), discard("hits"))
            session["name"] = "Bob"
            session["hits"] = 0
            session["cart"].append("milk")
    assert [*caught.value.conflicts] == [
        (("name",), "Ada", "Bob", "Eve"),
        (("hits",), 1, 0, rules.MISSING),
    ]
    assert await stored(store, session_id) == {"name": "Eve", "cart": ["tea"], "user": VALUES["user"]}


@pytest.mark.parametrize(
    "resolve",
    [
        rules.add,
        {"hits": rules.add},
        {"h*": rules.add},
        {re.compile("h.ts"): rules.add},
        {"other": rules.fail, "hits": rules.add, "*": rules.fail},
    ],
)
async def test_rules_settle_conflicts(store: SessionStore, resolve: Any) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id, resolve=resolve) as session:
        session["hits"] += 1
        await store.apply(session_id, increment("hits", 10))
    assert (await stored(store, session_id))["hits"] == 12


async def test_two_that_add_the_same_add_twice(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id, resolve={"hits": rules.add, "cart": rules.append}) as session:
        session["hits"] += 1
        session["cart"].append("milk")
        await store.apply(session_id, increment("hits"), append("cart", "milk"))
    assert await stored(store, session_id) == {**VALUES, "hits": 3, "cart": ["tea", "milk", "milk"]}


async def test_nested_rules_merge_one_level_down(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id, resolve={"user": rules.nested({"roles": rules.union})}) as session:
        session["user"]["id"] = 8
        session["user"]["roles"].append("author")
        await store.apply(session_id, append(("user", "roles"), "editor"), put(("user", "mail"), "a@b.c"))
    user = (await stored(store, session_id))["user"]
    assert user == {"id": 8, "roles": ["admin", "editor", "author"], "mail": "a@b.c"}


def failing(base: Any, ours: Any, theirs: Any) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("rule", "cause"), [(failing, ZeroDivisionError), (lambda *_: {1, 2}, CodecError), (lambda *_: 2**64, CodecError)]
)
async def test_a_rule_that_settles_nothing_is_the_cause_of_a_conflict(
    store: SessionStore, rule: rules.Rule, cause: type[Exception]
) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(ConflictError) as caught:
        async with store.edit(session_id, resolve=rule) as session:
            session["hits"] = 5
            await store.apply(session_id, increment("hits"))
    assert isinstance(caught.value.__cause__, cause)
    assert (await stored(store, session_id))["hits"] == 2


async def test_save_commits_and_goes_on_with_what_others_stored(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id, resolve={"cart": rules.append, "hits": rules.add}) as session:
        cart, user = session["cart"], session["user"]
        cart.append("milk")
        session["hits"] += 1
        await store.apply(session_id, append("cart", "bread"), put(("user", "id"), 8), increment("hits", 10))
        await session.save()
        assert (cart, user["id"], session["hits"]) == (["tea", "bread", "milk"], 8, 12)
        assert await stored(store, session_id) == dict(session)
        cart.append("salt")
        session["hits"] += 1
        await store.apply(session_id, increment("hits", 100))
    assert await stored(store, session_id) == {
        **VALUES, "hits": 113, "cart": ["tea", "bread", "milk", "salt"], "user": {"id": 8, "roles": ["admin"]}
    }  # fmt: skip


async def test_what_is_changed_while_a_save_waits_is_for_the_next_commit(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id, resolve={"hits": rules.add}) as session:
        session["hits"] += 1
        async with store.open(session_id) as other:
            saving = asyncio.create_task(session.save())
            await until(lambda: store.statistics().waiting == 1)
            other["hits"] += 10
            session["hits"] += 100
        await saving
        assert (await stored(store, session_id))["hits"] == 12
    assert (await stored(store, session_id))["hits"] == 112


async def test_release_commits_and_leaves_it_readable(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id) as session:
        session["name"] = "Bob"
        await store.apply(session_id, increment("hits"))
        await session.release()
        assert (session["name"], session["hits"]) == ("Bob", 2)
        with pytest.raises(SessionClosedError):
            session["name"] = "Eve"
    assert await stored(store, session_id) == {**VALUES, "name": "Bob", "hits": 2}


async def test_rollback_and_errors_drop_what_was_changed(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id) as session:
        session["cart"].append("milk")
        await session.rollback()
        assert session["cart"] == ["tea"]
    with pytest.raises(ZeroDivisionError):
        async with store.edit(session_id) as session:
            session["name"] = "Bob"
            raise ZeroDivisionError
    assert await version_of(store, session_id) == 1


async def test_a_failed_save_can_be_repaired_and_repeated(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id) as session:
        session["name"] = "Bob"
        await store.apply(session_id, put("name", "Eve"), increment("hits"))
        with pytest.raises(ConflictError):
            await session.save()
        session["name"] = "Eve"
        session["cart"].append("milk")
    assert await stored(store, session_id) == {**VALUES, "name": "Eve", "hits": 2, "cart": ["tea", "milk"]}


async def test_refresh_begins_anew_with_what_is_stored(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.edit(session_id) as session:
        session["name"] = "Bob"
        await store.apply(session_id, put("name", "Eve"))
        await session.refresh()
        assert session["name"] == "Eve"
        session["name"] += "!"
    assert (await stored(store, session_id))["name"] == "Eve!"


async def destroy_and_begin_anew(store: SessionStore, session_id: str, clock: FakeClock) -> None:
    await store.destroy(session_id)
    clock.advance(60)
    async with store.open(session_id, create=True) as session:
        session["secret"] = "of somebody else"


async def expire(store: SessionStore, session_id: str, clock: FakeClock) -> None:
    clock.advance(1800)


async def destroy(store: SessionStore, session_id: str, clock: FakeClock) -> None:
    assert await store.destroy(session_id)


@pytest.mark.parametrize("end", [destroy, expire, destroy_and_begin_anew])
@pytest.mark.parametrize("commit", [Session.save, Session.release, None])
async def test_a_session_that_has_ended_meanwhile_is_not_revived(
    store: SessionStore, clock: FakeClock, end: Any, commit: Callable[[Session], Any] | None
) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(SessionNotFoundError):
        async with store.edit(session_id) as session:
            session["name"] = "Bob"
            await end(store, session_id, clock)
            if commit:
                await commit(session)
    if end is destroy_and_begin_anew:
        assert await stored(store, session_id) == {"secret": "of somebody else"}
    else:
        with pytest.raises(SessionNotFoundError):
            await stored(store, session_id)


async def test_destroy_and_regenerate_id_work_without_a_lock_too(store: SessionStore) -> None:
    first = await store.create(VALUES)
    async with store.edit(first) as session:
        session["name"] = "Bob"
        await session.regenerate_id(grace=0)
        session["hits"] = 2
    assert session.id != first
    assert await stored(store, session.id) == {**VALUES, "name": "Bob", "hits": 2}
    async with store.edit(session.id) as other:
        await other.destroy()
        with pytest.raises(SessionClosedError):
            other["name"] = "Eve"
    for session_id in (first, session.id):
        with pytest.raises(SessionNotFoundError):
            await stored(store, session_id)


async def test_what_does_not_exist_or_is_closed_can_not_be_edited(new_store: NewStore) -> None:
    async with new_store() as store:
        with pytest.raises(SessionNotFoundError):
            async with store.edit("unknown"):
                pass
    with pytest.raises(StoreError):
        store.edit("unknown")


async def test_an_edit_inside_an_exclusive_block_of_the_same_task_is_a_deadlock(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        with pytest.raises(DeadlockError):
            async with store.edit(session_id) as other:
                other["name"] = "Eve"
        session["hits"] = 2
    assert await stored(store, session_id) == {**VALUES, "hits": 2}


async def test_a_commit_that_waits_too_long_stores_nothing(store: SessionStore) -> None:
    session_id = await store.create(VALUES)

    async def edit() -> None:
        async with store.edit(session_id, timeout=0.01) as session:
            session["name"] = "Bob"

    async with store.open(session_id):
        with pytest.raises(LockTimeoutError) as caught:
            await asyncio.create_task(edit())
    assert caught.value.holder is not None
    assert await stored(store, session_id) == VALUES


# Attempts.


async def test_attempts_run_the_block_again_on_fresh_data(store: SessionStore) -> None:
    session_id = await store.create({"n": 0})
    seen = []
    async for attempt in store.attempts(session_id):
        async with attempt as session:
            seen.append(session["n"])
            if len(seen) < 3:
                await store.apply(session_id, increment("n", 10))
            session["n"] += 1
    assert seen == [0, 10, 20]
    assert await stored(store, session_id) == {"n": 21}


async def test_the_last_attempt_is_exclusive(store: SessionStore) -> None:
    session_id = await store.create({"n": 0})
    states = []
    async for attempt in store.attempts(session_id, times=3):
        async with attempt as session:
            states.append(repr(session).split()[1])
            if states[-1] == "optimistic":
                await store.apply(session_id, increment("n", 10))
            session["n"] += 1
    assert states == ["optimistic", "optimistic", "exclusive"]
    assert await stored(store, session_id) == {"n": 21}


async def test_a_conflict_at_a_save_is_a_reason_for_another_attempt(store: SessionStore) -> None:
    session_id = await store.create({"n": 0})
    saved = 0
    async for attempt in store.attempts(session_id):
        async with attempt as session:
            session["n"] += 1
            if not saved:
                await store.apply(session_id, increment("n", 10))
                saved += 1
            await session.save()
    assert await stored(store, session_id) == {"n": 11}


async def test_an_error_of_the_block_ends_the_attempts(store: SessionStore) -> None:
    session_id = await store.create({"n": 0})
    with pytest.raises(ZeroDivisionError):
        async for attempt in store.attempts(session_id):
            async with attempt as session:
                session["n"] += 1
                raise ZeroDivisionError
    assert await stored(store, session_id) == {"n": 0}


async def test_many_that_change_the_same_key_all_succeed(store: SessionStore) -> None:
    session_id = await store.create({"names": []})

    async def sign(name: int) -> None:
        async for attempt in store.attempts(session_id):
            async with attempt as session:
                session["names"].append(name)
                await asyncio.sleep(0)

    await asyncio.gather(*map(sign, range(30)))
    assert sorted((await stored(store, session_id))["names"]) == [*range(30)]


async def test_two_that_make_the_same_of_a_value_agree_unless_a_rule_tells_otherwise(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    for resolve, hits in ((None, 2), (rules.add, 4)):
        async with store.edit(session_id, resolve=resolve) as session:
            session["hits"] += 1
            await store.apply(session_id, increment("hits"))
        assert (await stored(store, session_id))["hits"] == hits
