"""Connections that are cut, servers that are gone, commands that are cancelled."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asyncsess import LockLostError
from asyncsess.backends.base import Record, Tombstone
from asyncsess.backends.remote import RemoteBackend
from asyncsess.backends.sql import SQLEngine
from asyncsess.expiry import Expiry
from asyncsess.testing import until
from asyncsess.testing.contract import KEY, NOW, OTHER_KEY, create, hold, put
from asyncsess.testing.contract.helpers import hold_name, keys_of
from tests.backends.sql.conftest import Place
from tests.databases import DatabaseServer
from tests.proxy import Cut, Proxy

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # test_contract.py runs on both

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mariadb"])
POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"])
MARIADB = pytest.mark.parametrize("database", ["mariadb"])


@pytest.fixture
async def admin(place: Place) -> AsyncIterator[AsyncEngine]:
    """Another client of the database."""
    engine = create_async_engine(place.url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def between(server: DatabaseServer) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", server.port) as between:
        yield between


@pytest.fixture
async def far(server: DatabaseServer, place: Place, between: Proxy) -> AsyncIterator[RemoteBackend]:
    """A backend with a proxy before its server."""
    far = place._replace(url=server.url_at(between.port)).backend()
    await far.open()
    yield far
    await far.aclose()


async def end_all_connections(admin: AsyncEngine) -> None:
    """Have PostgreSQL end all connections but this one."""
    async with admin.connect() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        )


class Blocked:
    """A row that somebody else keeps for himself, so that what changes it waits."""

    def __init__(self, admin: AsyncEngine, place: Place, key: str = KEY) -> None:
        self._admin, self._place, self._key = admin, place, key

    async def __aenter__(self) -> AsyncConnection:
        self._connection = await self._admin.connect()
        await self._connection.execute(
            text(f"UPDATE {self._place.prefix}sessions SET line = line WHERE {self._quoted('key')} = :of"),
            {"of": self._key},
        )
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        await self._connection.rollback()
        await self._connection.close()

    def _quoted(self, name: str) -> str:
        return self._admin.dialect.identifier_preparer.quote(name)

    async def is_waited_for(self) -> None:
        """Return once another waits for the row."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :what"
            if self._admin.dialect.name == "postgresql"
            else "SELECT count(*) FROM information_schema.innodb_trx"
            " WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE :what"
        )
        async with self._admin.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            while not await connection.scalar(text(query), {"what": f"%{self._place.prefix}%"}):
                await asyncio.sleep(0.15)  # InnoDB looks anew only after 0.1 s in which nobody has asked


@POSTGRESQL
async def test_a_holder_whose_connections_were_ended_goes_on(backend: RemoteBackend, admin: AsyncEngine) -> None:
    async with create(backend) as held:
        await end_all_connections(admin)
        await held.commit(b"second", now=NOW)
        await end_all_connections(admin)
        await held.commit(b"third", now=NOW, is_last=True)
    assert await backend.read(KEY) == Record(b"third", 3, NOW, NOW)
    await end_all_connections(admin)
    assert await keys_of(backend) == [KEY]


@SERVERS
@pytest.mark.parametrize("where", [Cut.BEFORE, Cut.BEFORE_ANSWER])
@pytest.mark.parametrize("number", range(1, 5))
async def test_a_cut_in_what_an_engine_of_the_program_adds_costs_no_connection(
    place: Place, server: DatabaseServer, between: Proxy, where: Cut, number: int
) -> None:
    theirs = create_async_engine(server.url_at(between.port), pool_size=1, max_overflow=0)
    backend = RemoteBackend(SQLEngine(theirs, prefix=place.prefix))
    await backend.open()
    between.cut(where, number)
    for _ in range(4):
        assert await backend.read(KEY) is None
    assert theirs.pool.checkedout() == 0  # type: ignore[attr-defined]
    await backend.aclose()
    await theirs.dispose()


@MARIADB
async def test_a_server_that_is_silent_when_it_is_to_roll_back_is_not_waited_for(
    place: Place, server: DatabaseServer, between: Proxy
) -> None:
    theirs = create_async_engine(server.url_at(between.port), pool_size=1, max_overflow=0)
    backend = RemoteBackend(SQLEngine(theirs, prefix=place.prefix, timeout=0.3))
    await backend.open()
    event.listen(theirs.sync_engine, "rollback", lambda _: between.stall())
    event.listen(theirs.sync_engine.pool, "reset", lambda *_: between.stall())
    async with asyncio.timeout(5):
        assert await backend.read(KEY) is None
    between.heal()
    assert theirs.pool.checkedout() == 0  # type: ignore[attr-defined]
    await backend.aclose()
    await theirs.dispose()


@POSTGRESQL
async def test_a_commit_whose_connection_was_ended_before_it_was_stored_is_stored(
    backend: RemoteBackend, admin: AsyncEngine, place: Place
) -> None:
    async with create(backend) as held:
        blocked = Blocked(admin, place)
        async with blocked as connection:
            commit = asyncio.create_task(held.commit(b"second", now=NOW))
            await blocked.is_waited_for()
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            )
        assert await commit == await backend.read(KEY) == Record(b"second", 2, NOW, NOW)


@SERVERS
@pytest.mark.parametrize("is_last", [False, True])
async def test_a_commit_whose_answer_was_lost_is_known_to_be_stored(
    far: RemoteBackend, other: RemoteBackend, between: Proxy, is_last: bool
) -> None:
    async with create(far) as held:
        between.cut(Cut.BEFORE_ANSWER)
        assert await held.commit(b"second", now=NOW, is_last=is_last) == Record(b"second", 2, NOW, NOW)
        assert between.cuts
    assert await other.read(KEY) == Record(b"second", 2, NOW, NOW)
    async with hold(other, timeout=5) as held:
        assert held.record == Record(b"second", 2, NOW, NOW)


@SERVERS
async def test_a_commit_whose_answer_was_lost_is_lost_if_another_has_the_session(
    far: RemoteBackend, other: RemoteBackend, between: Proxy
) -> None:
    async with create(far) as held:
        async with hold(far, OTHER_KEY, create=True):
            pass
        await held.renew(0.01)
        async with hold(other, timeout=5):
            between.cut(Cut.BEFORE_ANSWER)
            with pytest.raises(LockLostError):
                await held.commit(b"late", now=NOW)
    assert await other.read(KEY) == Record(b"payload", 1, NOW, NOW)


async def test_a_commit_that_reaches_the_database_late_changes_nothing(backend: RemoteBackend) -> None:
    engine = engine_of(backend)
    async with create(backend) as held:
        await held.commit(b"second", now=NOW)
        for statement in (engine._sessions.commit, engine._sessions.commit_last):
            values = {"data": b"first", "before": 1, "made_at": NOW, "used_at": NOW, "of": KEY}
            claim = held._claim  # type: ignore[attr-defined]
            assert (await engine._here().run(statement, {**values, "who": claim.token})).matched == 0
        await held.commit(b"third", now=NOW)
    assert await backend.read(KEY) == Record(b"third", 3, NOW, NOW)


@SERVERS
@pytest.mark.parametrize("tombstone", [None, Tombstone(b"note", NOW)])
async def test_a_deletion_whose_answer_was_lost_is_known(
    far: RemoteBackend, other: RemoteBackend, between: Proxy, tombstone: Tombstone | None
) -> None:
    async with create(far) as held:
        between.cut(Cut.BEFORE_ANSWER)
        await held.delete(tombstone, now=NOW)
    assert await other.read(KEY) == tombstone


@SERVERS
async def test_a_deletion_counts_although_the_server_is_gone_when_it_is_to_tidy_up(
    far: RemoteBackend, between: Proxy, backend: RemoteBackend
) -> None:
    async with create(far) as held:
        between.cut(Cut.AFTER, for_good=True)
        await held.delete(now=NOW)
        assert await backend.read(KEY) is None
        between.heal()
    async with hold(backend, create=True) as held:
        await held.commit(b"anew", now=NOW)


@SERVERS
async def test_a_session_whose_creation_was_not_answered_is_there_and_held(
    far: RemoteBackend, other: RemoteBackend, between: Proxy
) -> None:
    between.cut(Cut.BEFORE_ANSWER)
    async with create(far) as held:
        await held.commit(b"second", now=NOW)
    assert await other.read(KEY) == Record(b"second", 2, NOW, NOW)


@SERVERS
async def test_a_lock_whose_grant_was_not_answered_is_had(
    far: RemoteBackend, other: RemoteBackend, between: Proxy
) -> None:
    await put(other)
    between.cut(Cut.BEFORE_ANSWER)
    async with hold(far, timeout=0) as held:
        await held.commit(b"second", now=NOW)
    for name in "ab":
        between.cut(Cut.BEFORE_ANSWER)
        async with hold_name(far, name, timeout=0) as name_held:
            await name_held.check()
            between.cut(Cut.BEFORE_ANSWER)
    async with hold(other, timeout=0), hold_name(other, "a", timeout=0), hold_name(other, "b", timeout=0):
        pass


@SERVERS
async def test_two_round_trips_are_enough_for_an_exclusive_block_and_one_for_a_snapshot(
    far: RemoteBackend, between: Proxy, database: str
) -> None:
    await put(far)
    await far.read(KEY)

    async def turns(work: Any) -> int:
        before = between.exchanges
        await work
        return between.exchanges - before

    async def change() -> None:
        async with hold(far) as held:
            await held.commit(b"new", now=NOW, is_last=True)

    async def lock_a_name() -> None:
        async with hold_name(far, "a"):
            pass

    first_asks_to_load = 1 if database == "mariadb" else 0  # it returns no rows from an update
    assert await turns(change()) == 2 + first_asks_to_load
    assert await turns(far.read(KEY)) == 1
    assert await turns(far.touch(KEY, now=NOW + 1)) == 1
    assert await turns(lock_a_name()) == 2
    assert await turns(hold(far, "c3" * 32).__aenter__()) == 2  # there is none


async def test_nothing_is_open_while_a_session_is_held(backend: RemoteBackend, place: Place, database: str) -> None:
    async with create(backend):
        pool = engine_of(backend)._here().engine.pool
        assert pool.checkedout() == ("advisory" in database)  # type: ignore[attr-defined]


async def test_cancelled_commands_leave_neither_locks_nor_connections_behind(
    backend: RemoteBackend, other: RemoteBackend, place: Place, database: str
) -> None:
    await put(backend)
    dice, versions = random.Random(7), [1]

    async def work() -> None:
        async with hold(backend, create=True) as held:
            versions.append((await held.commit(b"new", now=NOW)).version)
            await backend.read(KEY)
            await backend.touch(KEY, now=NOW)

    for _ in range(200):
        task = asyncio.create_task(work())
        for _ in range(dice.randrange(60)):
            await asyncio.sleep(0 if dice.randrange(3) else 0.0003)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    async with hold(other, timeout=10) as held:
        assert isinstance(held.record, Record)
        assert held.record.version >= max(versions)
    pool = engine_of(backend)._here().engine.pool
    await until(lambda: pool.checkedout() == ("advisory" in database))  # type: ignore[attr-defined]
    if database.startswith("postgresql"):
        async with engine_of(other)._here().engine.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
            assert await connection.scalar(text(query)) == 0
    assert (backend.statistics().holding, backend.statistics().waiting) == (0, 0)


@SERVERS
async def test_a_sweep_that_was_rolled_back_for_a_deadlock_is_run_again(
    backend: RemoteBackend, admin: AsyncEngine, place: Place, database: str
) -> None:
    keys = [f"{number:064x}" for number in range(50)]
    for key in keys:
        await put(backend, key=key)
    last, first = Blocked(admin, place, keys[-1]), keys[0]
    async with last as connection:
        quoted = connection.dialect.identifier_preparer.quote("key")
        if database == "postgresql":
            await connection.execute(text("SET deadlock_timeout = '1h'"))  # so that it ends the other
        else:  # it ends whoever has changed less
            await connection.execute(text(f"CREATE TABLE {place.prefix}more (n INT)"))
            await connection.rollback()
            numbers = ", ".join(f"({number})" for number in range(1000))
            await connection.execute(text(f"INSERT INTO {place.prefix}more VALUES {numbers}"))
            await connection.execute(
                text(f"UPDATE {place.prefix}sessions SET line = line WHERE {quoted} = :of"), {"of": keys[-1]}
            )
        sweep = asyncio.create_task(backend.delete_expired(Expiry(1.0), now=NOW + 9))
        await last.is_waited_for()
        await connection.execute(
            text(f"UPDATE {place.prefix}sessions SET accessed_at = :now WHERE {quoted} = :of"),
            {"of": first, "now": NOW + 99},
        )
        await connection.commit()
    assert await sweep == len(keys) - 1
    assert await keys_of(backend) == [first]


@pytest.mark.parametrize("database", ["postgresql", "mariadb", "sqlite"])
async def test_closing_waits_for_what_is_under_way(place: Place) -> None:
    for turns in range(0, 40, 3):
        backend = place.backend()
        await backend.open()
        read = asyncio.create_task(backend.read(KEY))
        for _ in range(turns):
            await asyncio.sleep(0)
        await backend.aclose()
        await asyncio.wait([read])
        await backend.aclose()  # it may have begun after the first


def engine_of(backend: RemoteBackend) -> SQLEngine:
    assert isinstance(backend._engine, SQLEngine)
    return backend._engine


@POSTGRESQL
async def test_a_server_that_isolates_transactions_strictly_loses_no_update_and_raises_no_error(place: Place) -> None:
    strict = place._replace(url=f"{place.url}?options=-c%20default_transaction_isolation%3Dserializable")
    backends = [strict.backend() for _ in range(4)]
    async with create(backends[0]):
        pass

    async def add(backend: RemoteBackend) -> None:
        for _ in range(20):
            async with hold(backend, timeout=30) as held:
                assert isinstance(held.record, Record)
                await held.commit(str(int(held.record.payload) + 1).encode(), now=NOW, is_last=True)

    async with hold(backends[0]) as held:
        await held.commit(b"0", now=NOW)
    async with asyncio.TaskGroup() as tasks:
        for backend in backends * 4:
            tasks.create_task(add(backend))
    assert await backends[0].read(KEY) == Record(b"320", 322, NOW, NOW)
    for backend in backends:
        await backend.aclose()


async def test_a_file_of_sqlite_to_which_others_just_write_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN IMMEDIATE")
        engine = SQLEngine(f"sqlite:///{path}")
        making = asyncio.create_task(engine.create_tables())
        await asyncio.wait([making], timeout=0.1)
        assert not making.done()
        other.execute("COMMIT")
    await making
    await engine.aclose()
