"""What is particular to databases: their tables, whose turn it is among processes, and what their servers tell."""

from __future__ import annotations

import asyncio
import gc
import math
import secrets
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from asyncsess import LockLostError, LockTimeoutError, SQLStore, StoreError
from asyncsess.backends.base import Backend, Held, Record, Tombstone
from asyncsess.backends.remote import RemoteBackend
from asyncsess.backends.remote.engine import Busy, Claim, Granted
from asyncsess.backends.remote.lines import process
from asyncsess.backends.sql import SQLEngine, acquisition, listener, locks
from asyncsess.expiry import Expiry
from asyncsess.testing import until
from asyncsess.testing.contract import KEY, NOW, OTHER_KEY, hold, put
from asyncsess.testing.contract.helpers import hold_name, keys_of
from tests.backends.sql.conftest import Place

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # test_contract.py runs on both

POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"])
LEASE = pytest.mark.parametrize("database", ["postgresql", "mariadb", "sqlite"])
ADVISORY = pytest.mark.parametrize("database", ["postgresql advisory", "mariadb advisory"])


# Tables.


@LEASE
async def test_tables_may_be_made_at_once_and_again(place: Place) -> None:
    for number in range(5):
        engines = [SQLEngine(place.url, prefix=f"{place.prefix}{number}_") for _ in range(4)]
        await asyncio.gather(*(engine.create_tables() for engine in engines))
        await engines[0].create_tables()
        await asyncio.gather(*(engine.aclose() for engine in engines))


@LEASE
async def test_the_statements_that_are_shown_make_the_tables(place: Place) -> None:
    store = SQLStore(place.url, prefix=f"{place.prefix}shown_", sweep_interval=None)
    engine = create_async_engine(store._sql._url)
    async with engine.begin() as connection:
        for statement in store.ddl().split(";"):
            if statement.strip():
                await connection.execute(text(statement))
    await engine.dispose()
    async with store:
        session_id = await store.create({"n": 1})
        async with store.open(session_id) as session:
            session["n"] += 1


@LEASE
async def test_tables_are_made_when_they_are_missed(place: Place) -> None:
    store = SQLStore(place.url, prefix=place.prefix, sweep_interval=None)  # not entered
    session_id = await store.create({"n": 1})
    for table in ("sessions", "locks", "members"):
        await store._sql._here().run(text(f"DROP TABLE {place.prefix}{table}"))
    assert not await store.destroy(session_id)
    async with store.synchronize(await store.create({"n": 1}), "n") as session:
        session["n"] += 1
    await store.aclose()


@POSTGRESQL
async def test_whoever_may_not_make_tables_is_told_what_to_do(backend: RemoteBackend, place: Place) -> None:
    await store_engine(backend)._here().run(text(f"CREATE ROLE {place.prefix}reader LOGIN"))
    url = place.url.replace("postgres@", f"{place.prefix}reader@")
    with pytest.raises(StoreError, match=r"permission denied.*create_tables\(\).*ddl\(\)") as caught:
        async with SQLStore(url, prefix=f"{place.prefix}more_"):
            pass
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("url", "options", "why"),
    [
        ("sqlite://", {}, "name a file"),
        ("sqlite+aiosqlite:///:memory:", {}, "name a file"),
        ("sqlite:///file:shared?mode=memory&cache=shared&uri=true", {}, "name a file"),
        ("sqlite:///some.file", {"timeout": 0}, "timeout must be greater than 0"),
        ("sqlite:///some.file", {"timeout": math.inf}, "timeout must .* have an end"),
        ("oracle://host/db", {}, "oracle is not supported"),
        ("sqlite:///some.file", {"locking": "advisory"}, "sqlite has no advisory locks"),
        ("sqlite:///some.file", {"locking": "hope"}, "lease, advisory"),
    ],
)
async def test_what_can_not_work_is_refused(url: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SQLStore(url, **options)


@LEASE
async def test_an_engine_that_is_not_of_asyncio_is_refused(place: Place) -> None:
    engine = create_engine(place.url)
    with pytest.raises(TypeError, match="create_async_engine returns, not a Engine"):
        SQLStore(engine)  # type: ignore[arg-type]
    engine.dispose()


@LEASE
async def test_an_engine_of_the_program_is_used_in_its_loop_and_stays_open(place: Place) -> None:
    theirs = create_async_engine(SQLEngine(place.url)._url)
    pool = theirs.pool
    async with SQLStore(theirs, prefix=place.prefix) as store:
        session_id = await store.create({"n": 1})
        async with store.open(session_id) as session:
            session["n"] += 1

        def elsewhere() -> None:
            with pytest.raises(StoreError, match="one event loop"):
                asyncio.run(store._sql.read(KEY))

        await asyncio.to_thread(elsewhere)
    assert theirs.pool is pool  # disposing of it would make another
    assert pool.checkedout() == 0  # type: ignore[attr-defined]
    async with theirs.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await theirs.dispose()


async def test_an_engine_that_begins_transactions_by_itself_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/db"
    theirs = create_async_engine(url)

    def leave_it_to_the_program(connection: Any, _: object) -> None:
        connection.isolation_level = None

    event.listen(theirs.sync_engine, "connect", leave_it_to_the_program)
    event.listen(theirs.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    async with SQLStore(theirs, sweep_interval=None) as store:
        session_id = await store.create({"n": 1})
        async with store.open(session_id) as session:
            session["n"] += 1
    async with theirs.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        assert raw.isolation_level is None
    await theirs.dispose()
    async with SQLStore(url, sweep_interval=None) as store, store.open(session_id) as session:
        assert session["n"] == 2


@LEASE
async def test_event_loops_that_have_ended_are_let_go(place: Place) -> None:
    store = SQLStore(place.url, prefix=place.prefix, sweep_interval=None)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def use() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await store.create({"n": 1})

    for _ in range(3):
        await asyncio.to_thread(asyncio.run, use())
    gc.collect()
    assert [loop() for loop in loops[:-1]] == [None, None]
    await store.aclose()


@POSTGRESQL
async def test_a_pool_that_is_too_small_is_told_of(place: Place) -> None:
    theirs = create_async_engine(place.url, pool_size=1, max_overflow=0)
    backend = RemoteBackend(SQLEngine(theirs, prefix=place.prefix, timeout=0.3))
    await backend.open()
    async with theirs.connect():
        with pytest.raises(StoreError, match=r"no connection .* within 0.3 s: .*Pool size: 1"):
            await backend.read(KEY)
    await backend.aclose()
    await theirs.dispose()


# Records.


@pytest.mark.parametrize("database", ["mariadb"])
async def test_a_server_that_takes_backslashes_literally_gives_back_what_was_stored(place: Place) -> None:
    literally = {"init_command": "SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'"}
    theirs = create_async_engine(place.url, connect_args=literally)
    backend = RemoteBackend(SQLEngine(theirs, prefix=place.prefix))
    await backend.open()
    strange = bytes(range(256)) + b"', token = NULL, line = '"
    await put(backend, payload=b"\\' \0")
    async with hold(backend) as held:
        await held.commit(strange, now=NOW)
        assert held.record == await backend.read(KEY) == Record(strange, 2, NOW, NOW)
        await held.delete(Tombstone(strange, NOW), now=NOW)
    assert await backend.read(KEY) == Tombstone(strange, NOW)
    await backend.aclose()
    await theirs.dispose()


async def test_what_is_large_or_named_strangely_comes_back(backend: RemoteBackend, other: RemoteBackend) -> None:
    payload = bytes(range(256)) * 4096
    await put(backend, payload)
    assert await other.read(KEY) == Record(payload, 1, NOW, NOW)
    async with (
        hold_name(backend, "a"),
        hold_name(other, "A", timeout=0),
        hold_name(other, "a ", timeout=0),
        hold_name(other, "ä" * 4000, timeout=0),
        hold_name(other, "\udcff\0", timeout=0),
    ):
        pass


async def test_a_sweep_goes_through_more_than_one_page(backend: RemoteBackend) -> None:
    old = [f"{number:064x}" for number in range(505)]
    group = "e" * 64
    await put(backend, key=OTHER_KEY, now=NOW + 60)
    for first in range(0, len(old), 20):
        some = old[first : first + 20]
        await asyncio.gather(*(put(backend, key=key) for key in some))
        await asyncio.gather(*(backend.add_member(group, key, now=NOW) for key in some))
    async with hold(backend, old[0]) as held:
        await held.delete(Tombstone(b"", NOW + 9), now=NOW)
    assert await keys_of(backend) == [*old[1:], OTHER_KEY]
    assert await backend.delete_expired(Expiry(60.0, None), now=NOW + 60) == 504
    assert await keys_of(backend) == [OTHER_KEY]
    await backend.delete_expired(Expiry(), now=NOW + 61)
    assert (await backend.read(old[0]), await backend.members(group)) == (None, {})


async def test_what_is_used_after_a_sweep_has_found_it_stays(backend: RemoteBackend) -> None:
    held_key, used_key, old_key = ("0" * 63 + digit for digit in "123")
    for key in (held_key, used_key, old_key):
        await put(backend, key=key)
    engine, limits = store_engine(backend), {"idle": 60.0, "lifetime": 1e15, "at": NOW + 60, "made_until": NOW}
    found = (await engine._here().run(engine._sessions.expired, {**limits, "after": ""})).rows
    assert found == [(held_key,), (used_key,), (old_key,)]
    await backend.touch(used_key, now=NOW + 1)
    async with hold(backend, held_key):
        keys = [key for (key,) in found]
        assert (await engine._here().run(engine._sessions.delete_expired, {**limits, "keys": keys})).matched == 1
        assert await keys_of(backend) == [held_key, used_key]


async def test_a_lock_leaves_no_row_behind(backend: RemoteBackend, other: RemoteBackend, place: Place) -> None:
    async def enter(handle: Backend) -> None:
        async with hold(handle, create=True), hold_name(handle, "a"):
            pass

    for _ in range(5):
        waiters = [asyncio.create_task(enter(handle)) for handle in (backend, other)]
        await asyncio.gather(*waiters)
    async with hold(backend, create=True):
        waiter = asyncio.create_task(enter(other))
        await until(lambda: other.statistics().waiting == 1)
        waiter.cancel()
        await asyncio.wait([waiter])
    engine = store_engine(other)
    for name in (None, "a"):
        async with hold(backend, create=True) as held, hold_name(backend, "a"):
            claim = Claim(KEY, name, process.token(), held._claim.holder, 60.0, True)  # type: ignore[attr-defined]
            assert isinstance(await engine.take(claim), Busy)
        await engine.leave(claim)  # as the last
    client = store_engine(backend)._here()
    for table in ("sessions", "locks"):
        assert (await client.run(text(f"SELECT count(*) FROM {place.prefix}{table}"))).rows == [(0,)]


# Whose turn it is.


async def test_processes_come_in_the_order_in_which_they_asked(
    backend: RemoteBackend, other: RemoteBackend, place: Place
) -> None:
    third = place.backend()
    came: list[int] = []

    async def enter(number: int, handle: Backend) -> None:
        async with hold(handle):
            came.append(number)

    await put(backend)
    async with asyncio.TaskGroup() as tasks, hold(backend):
        for number, handle in enumerate((other, third)):
            tasks.create_task(enter(number, handle))
            await until(lambda: handle.statistics().waiting == 1)  # noqa: B023
        tasks.create_task(enter(2, backend))
        await until(lambda: backend.statistics().waiting == 1)
    assert came == [0, 1, 2]
    await third.aclose()


async def test_a_process_that_wants_it_again_at_once_lets_those_who_wait_go_first(
    backend: RemoteBackend, other: RemoteBackend
) -> None:
    await put(backend)
    came: list[str] = []

    async def enter(name: str, handle: Backend) -> None:
        async with hold(handle):
            came.append(name)

    async with asyncio.TaskGroup() as tasks:
        async with hold(backend):
            tasks.create_task(enter("who waited", other))
            await until(lambda: other.statistics().waiting == 1)
        await enter("who had it", backend)
    assert came == ["who waited", "who had it"]


async def test_a_claim_that_comes_no_more_is_passed_over(backend: RemoteBackend, other: RemoteBackend) -> None:
    engine = store_engine(other)
    await put(backend)
    async with hold(backend) as held:
        for number in range(2):
            claim = Claim(KEY, None, f"{'0' * 16}.{number}", held._claim.holder, 60.0)  # type: ignore[attr-defined]
            assert isinstance(await engine.take(claim), Busy)
    async with hold(backend, timeout=20) as held:
        await held.commit(b"new", now=NOW)
    async with hold(backend, timeout=0):  # and nobody stands in line any more
        pass


async def test_a_late_holder_stores_nothing_beside_one_that_has_not_stored_anything_yet(
    backend: RemoteBackend, other: RemoteBackend
) -> None:
    await put(backend)
    for is_last in (False, True):
        async with hold(backend, lease=0.01) as late:

            async def follow(late: Held = late, is_last: bool = is_last) -> None:
                async with hold(other):
                    with pytest.raises(LockLostError):
                        await late.commit(b"late", now=NOW, is_last=is_last)
                    with pytest.raises(LockLostError):
                        await late.renew(1.0)

            await asyncio.create_task(follow())
    assert await other.read(KEY) == Record(b"payload", 1, NOW, NOW)


async def test_a_grant_is_told_again_to_who_asks_again(backend: RemoteBackend) -> None:
    await put(backend)
    engine = store_engine(backend)
    async with hold(backend) as held:
        claim = held._claim  # type: ignore[attr-defined]
        for _ in range(2):
            assert await engine.take(claim) == Granted(Record(b"payload", 1, NOW, NOW))
    assert isinstance(await engine.take(claim), Granted)
    await engine.leave(claim)


async def test_the_clock_of_a_client_ends_no_lease(backend: RemoteBackend, other: RemoteBackend) -> None:
    await put(backend)
    async with hold(backend, lease=60):
        with time_machine.travel(timedelta(days=400)), pytest.raises(LockTimeoutError):
            await asyncio.create_task(hold(other, timeout=0.05).__aenter__())
    async with hold(other, timeout=0):
        pass


# What servers tell.


@POSTGRESQL
async def test_who_waits_for_another_process_is_told_by_postgresql(
    backend: RemoteBackend, other: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acquisition, "_LONGEST_PAUSE", 3600.0)
    await put(backend)

    async def enter(handle: Backend) -> None:
        async with hold(handle):
            pass

    async def enter_name(handle: Backend) -> None:
        async with hold_name(handle, "a"):
            pass

    for enter_it, held in ((enter, hold(backend)), (enter_name, hold_name(backend, "a"))):
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            async with held:
                waiter = tasks.create_task(enter_it(other))
                waits = store_engine(other)._here().waits
                await until(lambda: other.statistics().waiting == 1 and waits.is_hearing)  # noqa: B023
            await waiter


@POSTGRESQL
async def test_who_waits_is_told_also_if_the_lock_was_given_back_while_nobody_listened(
    backend: RemoteBackend, other: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acquisition, "_LONGEST_PAUSE", 3600.0)
    await put(backend)
    client, is_relying = store_engine(other)._here(), asyncio.Event()
    told = client.waits.told

    async def told_and_noted(token: str, seconds: float) -> None:
        if client.waits.is_hearing:
            is_relying.set()
        await told(token, seconds)

    monkeypatch.setattr(client.waits, "told", told_and_noted)

    async def enter() -> None:
        async with hold(other):
            pass

    async with asyncio.timeout(20), hold(backend) as held:
        waiter = asyncio.create_task(enter())
        await is_relying.wait()  # on being told: it does not ask by itself
        end = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE :what")
        await store_engine(backend)._here().run(end, {"what": f"LISTEN {locks.CHANNEL}{listener.process.name}"})
        await until(lambda: not client.waits.is_hearing)
        await held.release(now=NOW)
        await waiter


@ADVISORY
async def test_a_lock_ends_with_the_connection_that_shows_that_its_holder_is_there(
    backend: RemoteBackend, other: RemoteBackend, database: str
) -> None:
    await put(backend)
    seen = asyncio.Event()

    async def follow() -> None:
        async with hold(other, timeout=30) as held:
            await held.commit(b"theirs", now=NOW)
            seen.set()

    async with hold(backend) as held:  # with no end of its lease
        with pytest.raises(LockTimeoutError):
            await asyncio.create_task(hold(other, timeout=0.5).__aenter__())
        lifeline = await store_engine(backend)._here().lifeline()
        await end_connection_of(other, database, lifeline)
        await asyncio.create_task(follow())
        with pytest.raises(LockLostError):
            await held.commit(b"late", now=NOW)
    assert await other.read(KEY) == Record(b"theirs", 2, NOW, NOW)
    async with hold(backend, timeout=30) as held:  # with a new connection
        await held.commit(b"again", now=NOW)


async def end_connection_of(backend: RemoteBackend, database: str, lifeline: int | None) -> None:
    client = store_engine(backend)._here()
    if database.startswith("postgresql"):
        find = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = :low"
        assert lifeline is not None
        await client.run(text(find), {"low": lifeline & 0xFFFFFFFF})
        return
    used = text("SELECT IS_USED_LOCK(CONCAT('asyncsess.', :lifeline))")
    ((number,),) = (await client.run(used, {"lifeline": lifeline})).rows
    await client.run(text(f"KILL {number}"))


@ADVISORY
async def test_without_its_advisory_lock_a_process_takes_no_lock(
    backend: RemoteBackend, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = await store_engine(backend)._here().lifeline()
    monkeypatch.setattr(secrets, "randbits", lambda _: taken)
    impatient = place.backend(timeout=0.3)
    with pytest.raises(StoreError, match="advisory") as caught:
        await put(impatient)
    assert caught.value.__cause__ is not None
    await impatient.aclose()


# SQLite.


async def test_an_sqlite_database_lets_readers_read_while_one_writes(tmp_path: Path) -> None:
    async with SQLStore(f"sqlite:///{tmp_path}/db", sweep_interval=None) as store:
        await store.create_tables()
        ((mode,),) = (await store._sql._here().run(text("PRAGMA journal_mode"))).rows
        assert mode == "wal"


def store_engine(backend: RemoteBackend) -> SQLEngine:
    assert isinstance(backend._engine, SQLEngine)
    return backend._engine
