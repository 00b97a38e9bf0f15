from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsess import (
    CodecError,
    MemoryStore,
    ReadOnlySessionError,
    Session,
    SessionClosedError,
    SessionNotFoundError,
    SessionStore,
)
from asyncsess.testing import FakeClock
from tests.conftest import NewStore, keys_of, stored

VALUES = {"name": "Ada", "cart": ["tea"], "user": {"id": 7, "roles": ["admin"]}}
Change = Callable[[Session], Any]
Life = Callable[[Session], Any]


async def version_of(store: SessionStore, session_id: str) -> int:
    async with store.open(session_id, readonly=True) as session:
        return session.version


# The mapping.


async def test_a_session_reads_like_a_dict(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    for how in ({"readonly": True}, {}):
        async with store.open(session_id, **how) as session:
            assert (session["name"], session.get("name"), session.get("nothing"), session.get("x", 1)) == (
                "Ada", "Ada", None, 1,
            )  # fmt: skip
            assert session == VALUES
            assert [*session] == [*session.keys()] == [*VALUES]
            assert [*session.values()] == [*VALUES.values()]
            assert [*session.items()] == [*VALUES.items()]
            assert (len(session), "cart" in session, "x" in session, bool(session)) == (3, True, False, True)
            with pytest.raises(KeyError, match="nothing"):
                session["nothing"]


CHANGES: dict[str, tuple[Change, dict[str, Any]]] = {
    "set": (lambda s: s.__setitem__("new", 1), {**VALUES, "new": 1}),
    "replace": (lambda s: s.__setitem__("name", "Bob"), {**VALUES, "name": "Bob"}),
    "delete": (lambda s: s.__delitem__("name"), {"cart": ["tea"], "user": VALUES["user"]}),
    "update": (lambda s: s.update({"name": 1}, new=2), {**VALUES, "name": 1, "new": 2}),
    "pop": (lambda s: s.pop("name"), {"cart": ["tea"], "user": VALUES["user"]}),
    "popitem": (lambda s: s.popitem(), None),
    "clear": (lambda s: s.clear(), {}),
    "setdefault": (lambda s: s.setdefault("new", []).append(1), {**VALUES, "new": [1]}),
    "append": (lambda s: s["cart"].append("milk"), {**VALUES, "cart": ["tea", "milk"]}),
    "deep": (lambda s: s["user"]["roles"].clear(), {**VALUES, "user": {"id": 7, "roles": []}}),
    "get": (lambda s: s.get("cart").append(1), {**VALUES, "cart": ["tea", 1]}),
    "values": (lambda s: [v.append(1) for v in s.values() if type(v) is list], {**VALUES, "cart": ["tea", 1]}),
    "items": (lambda s: dict(s.items())["user"].pop("id"), {**VALUES, "user": {"roles": ["admin"]}}),
    "in place": (lambda s: s["cart"].__iadd__(["x"]), {**VALUES, "cart": ["tea", "x"]}),
    "same type": (lambda s: s.__setitem__("name", s["name"].upper()), {**VALUES, "name": "ADA"}),
    "other type": (lambda s: s["user"].__setitem__("id", True), {**VALUES, "user": {"id": True, "roles": ["admin"]}}),
}
changes = pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES.keys())


@changes
async def test_every_kind_of_change_is_committed_once(store: SessionStore, change: Change, expected: Any) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        assert not session.is_modified
        change(session)
        assert session.is_modified
        expected = dict(session) if expected is None else expected
        assert session == expected
    found = await stored(store, session_id)
    assert found == expected
    assert [type(value) for value in found.get("user", {}).values()] == [
        type(value) for value in expected.get("user", {}).values()
    ]
    assert await version_of(store, session_id) == 2


@changes
async def test_no_change_is_committed_when_the_block_fails(store: SessionStore, change: Change, expected: Any) -> None:
    session_id = await store.create(VALUES)
    with suppress(ZeroDivisionError):
        async with store.open(session_id) as session:
            change(session)
            raise ZeroDivisionError
    assert await stored(store, session_id) == VALUES
    assert await version_of(store, session_id) == 1


@changes
async def test_every_kind_of_change_is_committed_by_save_and_goes_on(
    store: SessionStore, change: Change, expected: Any
) -> None:
    session_id = await store.create(VALUES)
    with suppress(ZeroDivisionError):
        async with store.open(session_id) as session:
            change(session)
            await session.save()
            assert (session.is_modified, session.version) == (False, 2)
            session["lost"] = True
            raise ZeroDivisionError
    assert "lost" not in await stored(store, session_id)
    assert await version_of(store, session_id) == 2


async def test_an_untouched_session_is_not_written(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        session["cart"].append(1)
        session["cart"].pop()
        session["name"] = "Ada"
        del session["user"]
        session["user"] = {"id": 7, "roles": ["admin"]}
        assert not session.is_modified
    assert await version_of(store, session_id) == 1


async def test_what_was_handed_out_before_a_save_may_be_changed_after_it(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        cart = session["cart"]
        await session.save()
        cart.append("milk")
    assert (await stored(store, session_id))["cart"] == ["tea", "milk"]


@pytest.mark.parametrize("put", [lambda s, v: s.__setitem__("list", v), lambda s, v: s.setdefault("list", v)])
@pytest.mark.parametrize("commit", [Session.save, Session.regenerate_id], ids=["save", "regenerate"])
async def test_what_was_put_in_before_a_commit_may_be_changed_after_it(
    store: SessionStore, put: Callable[[Session, list[Any]], None], commit: Life
) -> None:
    for start in (None, await store.create(VALUES)):
        async with store.open(start) as session:
            mine: list[Any] = []
            put(session, mine)
            await commit(session)
            mine.append("milk")
        assert (await stored(store, session.id))["list"] == ["milk"]


async def test_a_value_that_can_not_be_stored_is_named_and_nothing_is_written(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    opening = store.open(session_id)
    session = await opening.__aenter__()
    session["name"] = "Bob"
    session["cart"].append((1, 2))
    with pytest.raises(CodecError) as caught:
        await opening.__aexit__(None, None, None)
    assert caught.value.path == ("cart", 1)
    assert await stored(store, session_id) == VALUES
    async with store.open(session_id, timeout=1) as session:
        assert session.version == 1


@pytest.mark.parametrize(
    "touch",
    [
        lambda session: session.__setitem__("new", {1, 2}),
        lambda session: session.__setitem__("name", (1, 2)),
        lambda session: session.__setitem__(1.5, "x"),
        lambda session: session["cart"].append((1, 2)),
        lambda session: session.get("cart").append((1, 2)),
        lambda session: next(iter(session.values())).append((1, 2)),
        lambda session: dict(session.items())["cart"].append((1, 2)),
        lambda session: session.setdefault("cart", []).append((1, 2)),
        lambda session: session.update({"cart": [(1, 2)]}),
    ],
)
async def test_whatever_was_touched_is_checked_also_after_a_commit(store: SessionStore, touch: Change) -> None:
    session_id = await store.create({"cart": ["tea"], "name": "Ada"})
    async with store.open(session_id) as session:
        cart = session["cart"]
        cart.append("milk")
        await session.save()
        touch(session)
        with pytest.raises(CodecError):
            await session.save()
        await session.rollback()
    assert await stored(store, session_id) == {"cart": ["tea", "milk"], "name": "Ada"}


@pytest.mark.parametrize("readonly", [True, False])
async def test_what_a_session_held_goes_with_the_last_reference_to_it(store: SessionStore, readonly: bool) -> None:
    session_id = await store.create(VALUES)
    gc.disable()
    try:
        async with store.open(session_id, readonly=readonly) as session:
            assert session["name"] == "Ada"
        reference = weakref.ref(session)
        del session
        assert reference() is None
    finally:
        gc.enable()


async def test_a_failed_save_can_be_repaired_and_repeated(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        session["tags"] = {"a", "b"}
        with pytest.raises(CodecError):
            await session.save()
        session["tags"] = ["a", "b"]
        await session.save()
    assert (await stored(store, session_id))["tags"] == ["a", "b"]


# Its life.


async def test_release_commits_lets_others_in_and_leaves_it_readable(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        session["name"] = "Bob"
        await session.release()
        assert (session["name"], session.version, session.is_modified) == ("Bob", 2, False)
        async with store.open(session_id, timeout=1) as again:
            again["name"] = "Eve"
        assert session["name"] == "Bob"
        await session.refresh()
        assert (session["name"], session.version) == ("Eve", 3)
    assert await version_of(store, session_id) == 3


async def test_rollback_drops_what_was_changed_and_lets_others_in(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        session["name"] = "Bob"
        session["cart"].append("milk")
        await session.save()
        session["name"] = "Eve"
        session["cart"].clear()
        await session.rollback()
        expected = {**VALUES, "name": "Bob", "cart": ["tea", "milk"]}
        assert session == expected
        async with store.open(session_id, timeout=1) as again:
            assert again == expected
    assert await stored(store, session_id) == expected


async def test_refresh_drops_what_was_changed_and_keeps_the_lock(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        session["cart"].clear()
        await session.refresh()
        assert (dict(session), session.is_modified) == (VALUES, False)
        session["name"] = "Bob"
    assert await stored(store, session_id) == {**VALUES, "name": "Bob"}


@pytest.mark.parametrize("how", [{}, {"create": True}], ids=["fresh", "adopted"])
async def test_refresh_and_rollback_empty_a_session_that_was_never_stored(
    store: SessionStore, how: dict[str, bool]
) -> None:
    for drop in (Session.refresh, Session.rollback):
        async with store.open("job-of-today" if how else None, **how) as session:
            session["a"] = [1]
            await drop(session)
            assert dict(session) == {}
        with pytest.raises(SessionNotFoundError):
            await stored(store, session.id)


async def test_a_snapshot_can_be_refreshed_and_not_be_held(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, readonly=True) as session:
        async with store.open(session_id, timeout=1) as writer:
            writer["name"] = "Bob"
        assert (session["name"], session.version) == ("Ada", 1)
        await session.release()
        await session.rollback()
        assert (session["name"], session.version) == ("Bob", 2)
        await store.destroy(session_id)
        with pytest.raises(SessionNotFoundError):
            await session.refresh()


async def test_refresh_after_release_finds_what_became_of_the_session(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        await session.release()
        await store.destroy(session_id)
        with pytest.raises(SessionNotFoundError):
            await session.refresh()


async def test_destroy_deletes_and_lets_others_in(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        session["name"] = "Bob"
        await session.destroy()
        assert dict(session) == {}
        with pytest.raises(SessionNotFoundError):
            await stored(store, session_id)
        for create in (False, True):
            with pytest.raises(SessionNotFoundError):
                async with store.open(session_id, create=create, timeout=1):
                    pass
    assert await keys_of(store) == []


@pytest.mark.parametrize("how", [{}, {"create": True}], ids=["fresh", "adopted"])
async def test_what_was_never_stored_can_be_destroyed(store: SessionStore, how: dict[str, bool]) -> None:
    async with store.open("job-of-today" if how else None, **how) as session:
        session["a"] = 1
        await session.destroy()
    assert await keys_of(store) == []


async def test_regenerate_id_moves_the_session_and_keeps_the_lock(store: SessionStore, clock: FakeClock) -> None:
    session_id = await store.create(VALUES)
    clock.advance(60)
    async with store.open(session_id) as session:
        created_at = session.created_at
        session["user"]["id"] = 8
        await session.regenerate_id(grace=0)
        new_id = session.id
        assert (new_id != session_id, session.is_modified, session.created_at) == (True, False, created_at)
        assert (await stored(store, new_id))["user"]["id"] == 8
        with pytest.raises(SessionNotFoundError):
            await stored(store, session_id)
        session["name"] = "Bob"
    assert session.id == new_id
    assert await stored(store, new_id) == {**VALUES, "name": "Bob", "user": {"id": 8, "roles": ["admin"]}}
    assert len(await keys_of(store)) == 1


@pytest.mark.parametrize("how", [{}, {"create": True}], ids=["fresh", "adopted"])
async def test_a_new_session_can_change_its_id(store: SessionStore, how: dict[str, bool]) -> None:
    async with store.open("job-of-today" if how else None, **how) as session:
        first = session.id
        await session.regenerate_id()
        await session.regenerate_id()
        session["a"] = 1
    assert await stored(store, session.id) == {"a": 1}
    assert session.id != first
    assert len(await keys_of(store)) == 1


async def test_a_new_id_does_not_prolong_the_lifetime(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=None, lifetime=100) as store:
        session_id = await store.create(VALUES)
        clock.advance(60)
        async with store.open(session_id) as session:
            await session.regenerate_id()
        clock.advance(39)
        assert await stored(store, session.id) == VALUES
        clock.advance(1)
        with pytest.raises(SessionNotFoundError):
            await stored(store, session.id)


async def test_a_new_id_is_a_use_of_the_session_also_if_the_block_fails_later(
    new_store: NewStore, clock: FakeClock
) -> None:
    async with new_store(idle_timeout=100) as store:
        session_id = await store.create(VALUES)
        for _ in range(3):
            clock.advance(90)
            async with store.open(session_id):
                pass
        with suppress(ZeroDivisionError):
            async with store.open(session_id) as session:
                await session.regenerate_id()
                assert session.expires_at == datetime.fromtimestamp(clock() + 100, UTC)
                assert await stored(store, session.id) == VALUES
                raise ZeroDivisionError
        assert await stored(store, session.id) == VALUES


async def test_an_id_is_kept_when_the_session_can_not_be_stored_under_another(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        session["tags"] = {1}
        with pytest.raises(CodecError):
            await session.regenerate_id()
        assert session.id == session_id
        session["tags"] = [1]
    assert (await stored(store, session_id))["tags"] == [1]


# What is not allowed any more, or was never.

WRITES: dict[str, Change] = {
    "set": lambda s: s.__setitem__("new", 1),
    "delete": lambda s: s.__delitem__("name"),
    "update": lambda s: s.update(a=1),
    "pop": lambda s: s.pop("name"),
    "popitem": lambda s: s.popitem(),
    "clear": lambda s: s.clear(),
    "setdefault": lambda s: s.setdefault("new", 1),
}
READS: dict[str, Change] = {
    "item": lambda s: s["name"],
    "get": lambda s: s.get("name"),
    "in": lambda s: "name" in s,
    "iter": lambda s: iter(s),
    "len": lambda s: len(s),
    "dict": lambda s: dict(s),
    "bool": lambda s: bool(s),
    "equal": lambda s: s == VALUES,
}
COMMITS = [Session.save, Session.destroy, Session.regenerate_id]
ALL = [*COMMITS, Session.release, Session.rollback, Session.refresh]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_writing_to_a_snapshot_raises_at_once(store: SessionStore, write: Change) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, readonly=True) as session:
        with pytest.raises(ReadOnlySessionError, match="readonly=True") as caught:
            write(session)
        assert isinstance(caught.value, TypeError)
        assert session == VALUES
    assert await version_of(store, session_id) == 1


@pytest.mark.parametrize("commit", COMMITS, ids=lambda method: method.__name__)
async def test_a_snapshot_can_not_be_stored(store: SessionStore, commit: Life) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, readonly=True) as session:
        with pytest.raises(ReadOnlySessionError):
            await commit(session)
    assert await stored(store, session_id) == VALUES


@pytest.mark.parametrize("end", [Session.release, Session.rollback, Session.destroy], ids=lambda end: end.__name__)
@pytest.mark.parametrize("write", [WRITES[name] for name in ("set", "update", "setdefault")])
async def test_writing_without_the_lock_raises_at_once(store: SessionStore, end: Life, write: Change) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        await end(session)
        with pytest.raises(SessionClosedError):
            write(session)
        for commit in COMMITS:
            with pytest.raises(SessionClosedError):
                await commit(session)
        await session.release()
        await session.rollback()


NESTED = [CHANGES[name][0] for name in ("append", "deep", "get", "values", "items")]


@pytest.mark.parametrize("change", NESTED)
async def test_a_nested_change_of_a_snapshot_is_told_at_the_end_of_the_block(
    store: SessionStore, change: Change
) -> None:
    session_id = await store.create(VALUES)
    opening = store.open(session_id, readonly=True)
    change(await opening.__aenter__())
    with pytest.raises(ReadOnlySessionError, match="lost"):
        await opening.__aexit__(None, None, None)
    assert await stored(store, session_id) == VALUES


@pytest.mark.parametrize("change", NESTED)
@pytest.mark.parametrize("end", [Session.release, Session.rollback], ids=lambda end: end.__name__)
async def test_a_nested_change_without_the_lock_is_told_at_the_end_of_the_block(
    store: SessionStore, change: Change, end: Life
) -> None:
    session_id = await store.create(VALUES)
    opening = store.open(session_id)
    session = await opening.__aenter__()
    await end(session)
    change(session)
    with pytest.raises(SessionClosedError, match="lost"):
        await opening.__aexit__(None, None, None)
    assert await stored(store, session_id) == VALUES


async def test_a_change_of_what_was_put_in_is_told_when_the_lock_is_gone(store: SessionStore) -> None:
    mine: list[int] = []
    opening = store.open()
    session = await opening.__aenter__()
    session["list"] = mine
    await session.release()
    mine.append(1)
    with pytest.raises(SessionClosedError, match="lost"):
        await opening.__aexit__(None, None, None)
    assert await stored(store, session.id) == {"list": []}


async def test_a_nested_change_that_was_undone_or_refreshed_is_no_loss(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, readonly=True) as session:
        session["cart"].append(1)
        session["cart"].pop()
        session["cart"].append(2)
        await session.refresh()
    async with store.open(session_id) as session:
        await session.release()
        session["cart"].append(3)
        await session.refresh()


async def test_an_error_of_the_block_is_not_replaced_by_that_of_a_lost_change(store: SessionStore) -> None:
    opening = store.open(await store.create(VALUES), readonly=True)
    session = await opening.__aenter__()
    session["cart"].append(1)
    error = ZeroDivisionError()
    await opening.__aexit__(type(error), error, None)


@pytest.mark.parametrize("use", [*READS.values(), *WRITES.values()], ids=[*READS.keys(), *WRITES.keys()])
@pytest.mark.parametrize("readonly", [False, True], ids=["exclusive", "readonly"])
async def test_a_session_ends_with_its_block(store: SessionStore, use: Change, readonly: bool) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, readonly=readonly) as session:
        pass
    with pytest.raises(SessionClosedError, match="block"):
        use(session)
    assert (session.id, session.version, session.is_modified) == (session_id, 1, False)


@pytest.mark.parametrize("readonly", [False, True], ids=["exclusive", "readonly"])
async def test_nothing_can_be_done_with_a_session_after_its_block(store: SessionStore, readonly: bool) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id, readonly=readonly) as session:
        pass
    for method in ALL:
        with pytest.raises(SessionClosedError, match="block"):
            await method(session)
    assert await stored(store, session_id) == VALUES


async def test_a_destroyed_session_can_not_be_refreshed(store: SessionStore) -> None:
    async with store.open(await store.create(VALUES)) as session:
        await session.destroy()
        with pytest.raises(SessionClosedError, match="destroyed"):
            await session.refresh()


# What is known about it.


async def test_a_session_is_new_until_its_first_commit(store: SessionStore) -> None:
    async with store.open() as session:
        assert (session.is_new, session.version, session.is_modified) == (True, 0, False)
        assert (session.created_at, session.expires_at) == (None, None)
        session["a"] = 1
        assert (session.is_new, session.is_modified) == (True, True)
        await session.save()
        assert (session.is_new, session.version, session.is_modified) == (False, 1, False)
    async with store.open(session.id) as session:
        assert (session.is_new, session.version) == (False, 1)


async def test_times_are_utc_and_follow_the_clock_of_the_store(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=100, lifetime=250) as store:
        start = datetime.fromtimestamp(clock(), UTC)
        session_id = await store.create(VALUES)
        for elapsed, left in ((0, 100), (90, 100), (180, 70)):
            clock.now = start.timestamp() + elapsed
            async with store.open(session_id) as session:
                session["n"] = elapsed
                await session.save()
                assert session.created_at == start
                assert session.expires_at == start + timedelta(seconds=elapsed + left)
                assert (session.created_at.tzinfo, session.expires_at.tzinfo) == (UTC, UTC)
            async with store.open(session_id, readonly=True) as snapshot:
                assert (snapshot.created_at, snapshot.expires_at) == (session.created_at, session.expires_at)


async def test_versions_count_commits(store: SessionStore) -> None:
    session_id = await store.create()
    async with store.open(session_id) as session:
        for version in range(2, 6):
            session["n"] = version
            await session.save()
            assert session.version == version
            await session.save()
            assert session.version == version


async def test_the_repr_shows_the_state_and_neither_id_nor_values(store: SessionStore) -> None:
    session_id = await store.create({"password": "hunter22"})
    shown = []
    async with store.open(session_id, readonly=True) as session:
        shown.append(repr(session))
    shown.append(repr(session))
    async with store.open(session_id) as session:
        shown.append(repr(session))
        session["password"] = "hunter23"
        shown.append(repr(session))
        await session.save()
        await session.release()
        shown.append(repr(session))
    async with store.open(session_id) as session:
        await session.destroy()
        shown.append(repr(session))
    assert shown == [
        "<Session readonly version=1>",
        "<Session closed version=1>",
        "<Session exclusive version=1>",
        "<Session exclusive version=1 modified>",
        "<Session released version=2>",
        "<Session destroyed version=2>",
    ]


async def test_the_repr_never_fails(session_store: MemoryStore) -> None:
    async with session_store.open() as session:
        session["tags"] = {1, 2}
        assert repr(session).startswith("<Session exclusive")
        del session["tags"]
