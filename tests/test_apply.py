from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncsess import (
    CodecError,
    ConflictError,
    DeadlockError,
    LockTimeoutError,
    OperationError,
    SessionNotFoundError,
    SessionStore,
    SessionTooLargeError,
    StoreError,
    append,
    call,
    compare_and_put,
    discard,
    include,
    increment,
    pop,
    put,
    put_default,
    update,
)
from asyncsess.testing import FakeClock
from tests.conftest import NewStore, stored

VALUES = {"hits": 1, "cart": {"items": ["tea"]}, "name": "Ada"}


async def version_of(store: SessionStore, session_id: str) -> int:
    async with store.open(session_id, readonly=True) as session:
        return session.version


async def test_operations_run_in_order_and_return_what_they_made(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    results = await store.apply(
        session_id,
        increment("hits"),
        append(("cart", "items"), "milk"),
        put(("a", "b"), None),
        increment("hits", 2.5),
        pop("name"),
        update({"x": 1, "y": 2}),
        call(lambda values: values.pop("x")),
    )
    assert results[:5] == (2, ["tea", "milk"], None, 4.5, "Ada")
    assert results[6] == 1
    assert await stored(store, session_id) == {
        "hits": 4.5, "cart": {"items": ["tea", "milk"]}, "a": {"b": None}, "y": 2
    }  # fmt: skip
    assert await version_of(store, session_id) == 2


async def test_operations_that_change_nothing_write_nothing(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    await store.apply(session_id)
    await store.apply(session_id, put("hits", 1), discard("unknown"), include(("cart", "items"), "tea"))
    assert await version_of(store, session_id) == 1


def fail(values: dict[Any, Any]) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (append("hits", 1), OperationError),
        (increment("name"), OperationError),
        (put(("hits", "a"), 1), OperationError),
        (compare_and_put("hits", True, 2), ConflictError),
        (compare_and_put("hits", 2, 3), ConflictError),
        (put("a", (1, 2)), CodecError),
        (put(("cart", "new"), {1}), CodecError),
        (append(("cart", "items"), {1}), CodecError),
        (call(lambda values: values.update(a=object())), CodecError),
        (call(fail), ZeroDivisionError),
        (put("a", "x" * 2**20), SessionTooLargeError),
    ],
)
async def test_all_operations_happen_or_none(store: SessionStore, operation: Any, error: type[Exception]) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(error):
        await store.apply(session_id, put("hits", 5), append(("cart", "items"), "milk"), operation)
    assert await stored(store, session_id) == VALUES
    assert await store.apply(session_id, increment("hits"), timeout=0) == (2,)


async def test_an_error_names_the_path_and_no_value(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    with pytest.raises(OperationError) as caught:
        await store.apply(session_id, increment(("cart", "items")))
    assert caught.value.path == ("cart", "items")
    assert str(caught.value) == "session['cart']['items']: increment: list is no number"


async def test_a_thousand_increments_at_once_all_count(store: SessionStore) -> None:
    session_id = await store.create({"n": 0})
    results = await asyncio.gather(*(store.apply(session_id, increment("n")) for _ in range(1000)))
    assert sorted(results) == [(number,) for number in range(1, 1001)]
    assert await stored(store, session_id) == {"n": 1000}


async def test_an_apply_inside_an_exclusive_block_of_the_same_task_is_a_deadlock(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id):
        with pytest.raises(DeadlockError):
            await store.apply(session_id, increment("hits"))


async def test_an_apply_waits_for_its_turn(store: SessionStore) -> None:
    session_id = await store.create(VALUES)
    async with store.open(session_id) as session:
        with pytest.raises(LockTimeoutError):
            await asyncio.create_task(store.apply(session_id, increment("hits"), timeout=0.01))
        applying = asyncio.create_task(store.apply(session_id, increment("hits")))
        await asyncio.sleep(0)
        session["hits"] = 10
    assert await applying == (11,)


async def test_nothing_is_applied_to_what_is_unknown_expired_destroyed_or_closed(
    new_store: NewStore, clock: FakeClock
) -> None:
    async with new_store() as store:
        expired, destroyed = await store.create(), await store.create()
        await store.destroy(destroyed)
        clock.advance(1800)
        for session_id in ("unknown", expired, destroyed):
            with pytest.raises(SessionNotFoundError):
                await store.apply(session_id, put("a", 1))
            with pytest.raises(SessionNotFoundError):
                await stored(store, session_id)
    with pytest.raises(StoreError):
        await store.apply("unknown", put("a", 1))


async def test_an_operation_can_be_used_again_and_carries_nothing_from_one_session_to_another(
    store: SessionStore,
) -> None:
    given: dict[str, Any] = {"m": {}}
    first = (put_default("cart", {}), put("list", []), update(given), put("tree", {"leaf": {}}))
    alice, bob = await store.create(), await store.create()
    await store.apply(alice, *first, put(("cart", "card"), 1), put(("m", "x"), 1), put(("tree", "leaf", "x"), 1))
    results = await store.apply(bob, *first)
    assert results[0] == {}
    assert await stored(store, bob) == {"cart": {}, "list": [], "m": {}, "tree": {"leaf": {}}}
    assert given == {"m": {}}


async def test_a_result_is_what_its_operation_made_whatever_the_next_ones_do(store: SessionStore) -> None:
    session_id = await store.create()
    assert await store.apply(session_id, update({"a": 1}), put("t", {}), put(("t", "x"), 1), update({"a": 2})) == (
        {"a": 1},
        {},
        1,
        {"a": 2, "t": {"x": 1}},
    )
