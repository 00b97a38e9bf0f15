"""A server that is not there, ends, hangs or is full: an error that says so, soon, and nothing is lost in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncsess import (
    CommitUnknownError,
    LockLostError,
    SessionError,
    SessionNotFoundError,
    SessionStore,
    StoreError,
    increment,
)
from asyncsess.testing import until
from tests.conftest import keys_of, stored
from tests.network.servers import SERVERS, Server, leftovers, store_at
from tests.servers import free_port

NewStore = Callable[..., Awaitable[SessionStore]]
_BOUND = 30.0


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> Callable[..., Server]:
    return SERVERS[request.param]


@pytest.fixture
def is_persistent() -> bool:
    return False


@pytest.fixture
def own(kind: Callable[..., Server], tmp_path: Path, is_persistent: bool) -> Iterator[Server]:
    """A server of the test's own."""
    server = kind(tmp_path, is_persistent=is_persistent)
    server.start()
    yield server
    server.end()


@pytest.fixture
async def new_store(own: Server) -> AsyncIterator[NewStore]:
    """Return what makes a store on that server that has been entered."""
    async with AsyncExitStack() as stack:

        async def make(*, patience: float | None = None, **options: Any) -> SessionStore:
            store = store_at(own.url_at(own.port), "test", patience=patience, **options)
            return await stack.enter_async_context(store)

        yield make


async def everything(store: SessionStore, session_id: str) -> list[type[BaseException] | None]:
    """Do everything that a program does; return what became of each."""

    async def open_and_leave() -> None:
        async with store.open(session_id):
            pass

    async def synchronize() -> None:
        async with store.synchronize(session_id, "n"):
            pass

    work: list[Awaitable[object]] = [
        store.create({}),
        open_and_leave(),
        synchronize(),
        stored(store, session_id),
        store.apply(session_id, increment("n")),
        store.destroy(session_id),
        store.sessions_of("ada"),
        store.delete_expired(),
        keys_of(store),
    ]
    async with asyncio.timeout(_BOUND):
        results = await asyncio.gather(*work, return_exceptions=True)
    return [type(each) if isinstance(each, BaseException) else None for each in results]


async def test_a_store_can_not_be_entered_without_a_server(kind: Callable[..., Server], tmp_path: Path) -> None:
    nowhere = kind(tmp_path)
    async with asyncio.timeout(_BOUND):
        with pytest.raises(StoreError) as caught:
            async with store_at(nowhere.url_at(free_port()), "test"):
                pass
    assert caught.value.__cause__ is not None


async def test_a_store_that_was_not_entered_raises_without_a_server(
    kind: Callable[..., Server], tmp_path: Path
) -> None:
    store = store_at(kind(tmp_path).url_at(free_port()), "test")
    assert {*await everything(store, "a" * 43)} <= {StoreError, CommitUnknownError}
    await store.aclose()


async def test_what_is_done_while_the_server_is_gone_raises_soon_and_works_when_it_is_back(
    own: Server, new_store: NewStore
) -> None:
    store = await new_store()
    session_id = await store.create({"n": 0})
    own.end()
    assert {*await everything(store, session_id)} <= {StoreError, CommitUnknownError}
    own.start()
    session_id = await store.create({"n": 0})
    assert await store.apply(session_id, increment("n")) == (1,)
    await until(lambda: not [*leftovers(store)])


@pytest.mark.parametrize("is_persistent", [True, False], ids=["with persistence", "without"])
async def test_a_server_that_ends_while_sessions_are_held_and_waited_for_loses_nothing_in_silence(
    own: Server, new_store: NewStore, is_persistent: bool
) -> None:
    mine, other = await new_store(), await new_store()
    session_id = await mine.create({"n": 0})
    outcomes: dict[str, str] = {}

    async def add_as(name: str, store: SessionStore, may_go_on: Awaitable[object] | None = None) -> None:
        try:
            async with store.open(session_id) as session:
                session["n"] += 1
                if may_go_on is not None:
                    is_held.set()
                    await may_go_on
            outcomes[name] = "done"
        except SessionError as error:
            outcomes[name] = type(error).__name__

    is_held, is_back = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(_BOUND), asyncio.TaskGroup() as group:
        group.create_task(add_as("holder", mine, is_back.wait()))
        await is_held.wait()
        group.create_task(add_as("waiter", other))
        await until(lambda: other.statistics().waiting == 1)
        own.end()
        own.start()
        is_back.set()

    try:
        n = (await stored(mine, session_id))["n"]
    except SessionNotFoundError:
        assert not is_persistent
        assert set(outcomes.values()) <= {"LockLostError", "CommitUnknownError", "StoreError", "SessionNotFoundError"}
    else:
        done = [*outcomes.values()].count("done")
        assert done <= n <= done + [*outcomes.values()].count("CommitUnknownError"), outcomes
    session_id = await mine.create({"n": 0})
    for store in (mine, other):
        await store.apply(session_id, increment("n"))
        await until(lambda store=store: not [*leftovers(store)])  # type: ignore[misc]
    assert await stored(other, session_id) == {"n": 2}


async def test_a_server_that_hangs_is_told_of_soon_and_used_again_when_it_goes_on(
    own: Server, new_store: NewStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "psycopg")  # its warning holds an exception, and that a socket
    store, other = await new_store(patience=0.1), await new_store()
    session_id = await store.create({"n": 0})
    async with store.open(session_id, lease=2.0) as session:
        session["n"] = 1
        own.stop()
        try:
            async with asyncio.timeout(_BOUND):
                with pytest.raises(CommitUnknownError, match=r"\S$"):
                    await session.save()
                assert {*await everything(store, await _another_id())} <= {StoreError, CommitUnknownError}
        finally:
            own.go_on()
        await session.rollback()
    async with other.open(session_id) as session:
        assert session["n"] in (0, 1)
        session["n"] = 7
    assert await stored(store, session_id) == {"n": 7}
    await until(lambda: not [*leftovers(store)])


async def test_closing_takes_no_longer_the_more_is_held_on_a_server_that_hangs(own: Server) -> None:
    store = store_at(own.url_at(own.port), "test", patience=0.5)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(store.open(await store.create({"n": 0})))
        own.stop()
        try:
            async with asyncio.timeout(5):
                await store.aclose(timeout=0)
        finally:
            own.go_on()


async def _another_id() -> str:
    return "b" * 43


async def test_a_full_server_refuses_writes_and_loses_nothing(own: Server, new_store: NewStore) -> None:
    if not own.url_at(own.port).startswith("redis:"):
        pytest.skip("full memory is a matter of Redis")
    store = await new_store()
    session_id, victim = await store.create({"n": 1}), await store.create({"fill": "x" * 1_000_000})
    client = Redis.from_url(own.url_at(own.port))
    used = (await client.info("memory"))["used_memory"]
    await client.config_set("maxmemory", used)
    await client.config_set("maxmemory-policy", "noeviction")

    with pytest.raises(StoreError, match="maxmemory") as caught:
        await store.create({"fill": "y" * 1000})
    assert not isinstance(caught.value, CommitUnknownError)
    with pytest.raises(StoreError, match="maxmemory") as caught:
        await store.apply(session_id, increment("n"))
    assert not isinstance(caught.value, CommitUnknownError)
    assert await stored(store, session_id) == {"n": 1}
    assert len(await keys_of(store)) == 2
    assert await store.delete_expired() == 0

    assert await store.destroy(victim)
    assert await store.apply(session_id, increment("n")) == (2,)
    await client.config_set("maxmemory", 0)
    await client.aclose()
    await until(lambda: not [*leftovers(store)])


async def test_memory_that_runs_out_while_a_session_is_held_leaves_the_old_value_and_the_lock_free(
    own: Server, new_store: NewStore
) -> None:
    if not own.url_at(own.port).startswith("redis:"):
        pytest.skip("full memory is a matter of Redis")
    store, other = await new_store(), await new_store()
    session_id = await store.create({"n": 1})
    client = Redis.from_url(own.url_at(own.port))
    with pytest.raises(StoreError, match="maxmemory") as caught:
        async with store.open(session_id) as session:
            session["n"] = 2
            await client.config_set("maxmemory", 1)
    assert not isinstance(caught.value, CommitUnknownError | LockLostError)
    assert await stored(other, session_id) == {"n": 1}
    await client.config_set("maxmemory", 0)
    async with other.open(session_id, timeout=5) as session:
        session["n"] = 3
    assert await stored(store, session_id) == {"n": 3}
    await client.aclose()
