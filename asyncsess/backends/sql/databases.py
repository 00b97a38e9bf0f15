"""`Database`: in what PostgreSQL, MariaDB, MySQL and SQLite differ."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from sqlalchemy import URL, ColumnElement, Double, Insert, Table, TextClause, event, literal_column, text
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

_PAUSE: Final = 0.01  # seconds between two attempts to have a file


@dataclass(frozen=True)
class Database:
    """One kind of database.

    Attributes:
        now: The server's time, in seconds since the epoch.
        driver: What it is reached by.
        extra: The one that installs the driver.
        connect_args: What the driver is told; called with the seconds after which to give up.
        on_connect: What each new connection runs first.
        insert: Makes an INSERT of its dialect.
        most_connections: How many each event loop has at most.
        rolled_back: Codes of errors after which nothing was changed, and the same statement may succeed.
        is_there: Codes of errors that say that something is there already.
        is_missing: Codes of errors that say that a table is missing.
        returns_rows: Whether an UPDATE can return rows.
        notifies: Whether the server can tell those who wait; it does so only outside of transactions.
        fileno: Gives the socket of a connection whose driver, when it is cancelled, asks the server to give up first.
        take_lifeline: How a connection takes the advisory lock of a number; None if there are no such locks.
        is_gone: Whether nobody has the advisory lock of a number any more.
    """

    now: ColumnElement[float]
    driver: str
    extra: str
    connect_args: Callable[[float], Mapping[str, Any]]
    insert: Callable[[Table], Any]
    on_connect: tuple[str, ...] = ()
    most_connections: int = 20
    rolled_back: frozenset[object] = frozenset()
    is_there: frozenset[object] = frozenset()
    is_missing: frozenset[object] = frozenset()
    returns_rows: bool = True
    notifies: bool = False
    fileno: Callable[[Any], int] | None = None
    take_lifeline: TextClause | None = None
    is_gone: TextClause | None = None

    def connect(self, url: URL, timeout: float) -> AsyncEngine:
        """Return an engine each of whose statements is a transaction of its own."""
        engine = create_async_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_size=self.most_connections // 2,
            max_overflow=self.most_connections // 2,
            pool_timeout=timeout,
            pool_reset_on_return=None,  # there is nothing to roll back, and that would be a round trip
            skip_autocommit_rollback=True,
            hide_parameters=True,  # a log is no place for keys
            connect_args=dict(self.connect_args(timeout)),
        )
        if self.on_connect:
            event.listen(engine.sync_engine, "connect", self._prepare)
        return engine

    def share(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine of a program as it is used here, with the same pool.

        Only PostgreSQL's driver needs no round trip for AUTOCOMMIT. Others would ask the server at each use of a
        connection, where SQLAlchemy loses what fails; and SQLite's would forget how the program begins transactions.
        """
        return engine.execution_options(isolation_level="AUTOCOMMIT") if self.notifies else engine

    def insert_new(self, table: Table, values: Mapping[str, Any]) -> Insert:
        """Return what inserts a row unless its key is there; MariaDB tells that by an error, of those in `is_there`."""
        statement: Any = self.insert(table).values(values)
        inserted: Insert = statement if self.insert is mysql.insert else statement.on_conflict_do_nothing()
        return inserted.execution_options(preserve_rowcount=True)

    def put(self, table: Table, values: Mapping[str, Any], *, column: str) -> Insert:
        """Return what inserts a row, or changes one column of that which has its key."""
        statement: Any = self.insert(table).values(values)
        changed = {column: values[column]}
        inserted: Insert = (
            statement.on_duplicate_key_update(changed)
            if self.insert is mysql.insert
            else statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)
        )
        return inserted

    def _prepare(self, connection: Any, _: object) -> None:
        connection.run_async(self._run_first)

    async def _run_first(self, connection: Any) -> None:
        """Run what each new connection runs first, as soon as the file can be had.

        SQLite does not wait by itself for others when it changes the mode of the journal.
        """
        for statement in self.on_connect:
            while True:
                try:
                    await connection.execute_fetchall(statement)
                    break
                except Exception as error:
                    if getattr(error, "sqlite_errorname", None) != "SQLITE_BUSY":
                        raise
                await asyncio.sleep(_PAUSE)


def database_of(database: str | URL | AsyncEngine) -> tuple[Database, URL]:
    """Return the kind of a database, and its URL with the driver.

    Raises:
        TypeError: It is neither a URL nor an engine of SQLAlchemy's asyncio extension.
        ValueError: It is none of those that are supported, or one that ends with its connection.
        ImportError: Its driver is not installed; the message says how to get it.
    """
    if not isinstance(database, str | URL | AsyncEngine):
        raise TypeError(
            f"pass the URL of a database, or what create_async_engine returns, not a {type(database).__name__}"
        )
    try:
        url = database.url if isinstance(database, AsyncEngine) else make_url(database)
    except (ArgumentError, ValueError) as error:  # the second for a port that is none
        raise ValueError("this is no URL of a database, such as postgresql://user@host/name") from error
    backend, _, driver = url.drivername.partition("+")
    kind = DATABASES.get(backend)
    if kind is None:
        raise ValueError(f"{backend} is not supported; these are: {', '.join(DATABASES)}")
    if driver not in {"", kind.driver}:
        raise ValueError(f"{driver} is not supported; the driver for {backend} is {kind.driver}")
    if find_spec(kind.driver) is None:
        raise ImportError(f"SQLStore needs {kind.driver} for {backend}: pip install 'asyncsess[{kind.extra}]'")
    if kind is SQLITE and (not url.database or ":memory:" in url.database or url.query.get("mode") == "memory"):
        raise ValueError("an SQLite database in memory belongs to one connection; name a file, or take a MemoryStore")
    return kind, url.set(drivername=f"{backend}+{kind.driver}")


def code_of(error: DBAPIError) -> object:
    """Return what the database calls an error: a SQLSTATE of PostgreSQL, a number of MariaDB, a name of SQLite."""
    orig = error.orig
    if orig is not None and orig.args and isinstance(orig.args[0], int):
        return orig.args[0]
    name = getattr(orig, "sqlite_errorname", None)
    if name == "SQLITE_ERROR":  # which it calls most things
        return "no such table" if "no such table" in str(orig) else name
    return name or getattr(orig, "sqlstate", None)


def _seconds(sql: str) -> ColumnElement[float]:
    return literal_column(sql, Double)


POSTGRESQL: Final = Database(
    now=_seconds("CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"),
    driver="psycopg",
    extra="postgresql",
    insert=postgresql.insert,
    connect_args=lambda timeout: {
        "connect_timeout": math.ceil(timeout),
        "keepalives_idle": 15,
        "keepalives_interval": 5,
    },
    rolled_back=frozenset({"40001", "40P01"}),  # serialization failure, deadlock
    is_there=frozenset({"42P07", "23505", "42710"}),  # two who create a table may also meet in the catalogue
    is_missing=frozenset({"42P01"}),
    notifies=True,
    fileno=lambda connection: int(connection.fileno()),
    take_lifeline=text("SELECT CAST(pg_try_advisory_lock(:lifeline) AS int)"),
    is_gone=text("SELECT CAST(pg_try_advisory_xact_lock_shared(:lifeline) AS int)"),
)

MARIADB: Final = Database(
    # In UTC, so that no hour comes twice; the beginning of the statement, so a lease is rather too short.
    now=_seconds("(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"),
    driver="asyncmy",
    extra="mariadb",
    insert=mysql.insert,
    connect_args=lambda timeout: {
        "connect_timeout": math.ceil(timeout),
        "init_command": f"SET SESSION innodb_lock_wait_timeout = {math.ceil(timeout)}",
    },
    rolled_back=frozenset({1213, 1205, 1020}),  # deadlock, time for a lock is up, changed since it was read
    is_there=frozenset({1050, 1061, 1062}),
    is_missing=frozenset({1146}),
    returns_rows=False,
    take_lifeline=text("SELECT GET_LOCK(CONCAT('asyncsess.', :lifeline), 0)"),
    is_gone=text("SELECT IS_FREE_LOCK(CONCAT('asyncsess.', :lifeline))"),
)

SQLITE: Final = Database(
    now=_seconds("((julianday('now') - 2440587.5) * 86400.0)"),
    driver="aiosqlite",
    extra="sqlite",
    insert=sqlite.insert,
    connect_args=lambda timeout: {"timeout": timeout},
    on_connect=("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL"),
    most_connections=8,  # each is a thread, and one at a time writes
    rolled_back=frozenset({"SQLITE_BUSY_SNAPSHOT", "SQLITE_BUSY_RECOVERY", "SQLITE_LOCKED"}),
    is_missing=frozenset({"no such table"}),
)

DATABASES: Final = {"postgresql": POSTGRESQL, "mariadb": MARIADB, "mysql": MARIADB, "sqlite": SQLITE}
