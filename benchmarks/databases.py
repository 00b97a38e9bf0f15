"""Databases, and the bare statements that `SQLStore` is measured beside: SQLAlchemy, without a store."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bare import Bare, Usage
from benchmarks.contestants import SESSION, decode, encode

if TYPE_CHECKING:
    from tests.databases import DatabaseServer


@contextmanager
def _running(server: DatabaseServer) -> Iterator[str]:
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


def postgresql(directory: Path) -> AbstractContextManager[str]:
    """Run PostgreSQL, which brings nothing to the disk; give its URL."""
    import psycopg  # noqa: F401

    from tests.databases import PostgreSQL

    return _running(PostgreSQL(directory))


def mariadb(directory: Path) -> AbstractContextManager[str]:
    """Run MariaDB, which brings to the disk once a second what was committed; give its URL."""
    import asyncmy  # noqa: F401

    from tests.databases import MariaDB

    if shutil.which("mariadbd") is None:
        raise FileNotFoundError("mariadbd")
    return _running(MariaDB(directory))


@asynccontextmanager
async def statements(url: str) -> AsyncIterator[Bare]:
    """Give the bare statements, by SQLAlchemy; what only reads makes no transaction, so it is one round trip."""
    from sqlalchemy import Column, LargeBinary, MetaData, String, Table, bindparam, delete, insert, select, update
    from sqlalchemy.ext.asyncio import create_async_engine

    table = Table("bare", MetaData(), Column("name", String(64), primary_key=True), Column("content", LargeBinary))
    of_name = table.c.name == bindparam("of")
    engine = create_async_engine(url, pool_size=20)
    plain = create_async_engine(url, pool_size=20, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
    read, write = select(table.c.content).where(of_name), update(table).where(of_name).values(content=bindparam("data"))
    read_locked = read.with_for_update()
    async with engine.begin() as connection:
        await connection.run_sync(table.create, checkfirst=True)

    async def put(name: str) -> None:
        async with engine.begin() as connection:
            await connection.execute(delete(table).where(of_name), {"of": name})
            await connection.execute(insert(table), {"name": name, "content": encode(SESSION)})

    async def select_(name: str) -> None:
        async with plain.connect() as connection:
            await connection.scalar(read, {"of": name})

    async def change(name: str, reading: Any = read) -> None:
        async with engine.begin() as connection:
            values = decode(bytes(await connection.scalar(reading, {"of": name})))
            values["hits"] += 1
            await connection.execute(write, {"of": name, "data": encode(values)})

    async def change_locked(name: str) -> None:
        await change(name, read_locked)

    try:
        yield Bare(
            put,
            ("SELECT", select_),
            ("BEGIN + SELECT + UPDATE + COMMIT", change),
            ("BEGIN + SELECT FOR UPDATE + UPDATE + COMMIT", change_locked),
        )
    finally:
        await engine.dispose()
        await plain.dispose()


async def postgresql_usage(url: str) -> Usage:
    """Ask PostgreSQL."""
    size = (
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
        " WHERE relkind = 'r' AND relname LIKE 'asyncsess%'"
    )
    return await _usage(url, size, "SELECT current_setting('data_directory') || '/postmaster.pid'")


async def mariadb_usage(url: str) -> Usage:
    """Ask MariaDB."""
    tables = "FROM information_schema.innodb_sys_tablespaces WHERE name LIKE '%asyncsess%'"
    return await _usage(url, f"SELECT coalesce(sum(file_size), 0) {tables}", "SELECT @@pid_file")


async def _usage(url: str, size: str, pid_file: str) -> Usage:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            stored, path = await connection.scalar(text(size)), await connection.scalar(text(pid_file))
    finally:
        await engine.dispose()
    return Usage(int(stored), await asyncio.to_thread(_worked_by, Path(path)))


def _worked_by(pid_file: Path) -> float:
    """Return seconds of processor time of a server and of its children, those that have ended included."""
    pid = pid_file.read_text().split()[0]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return _fields(pid, 11, 15) + sum(_fields(child, 11, 13) for child in children)


def _fields(pid: str, first: int, end: int) -> float:
    """Return the sum of some times in what the kernel says of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:  # it has just ended
        return 0.0
    return sum(map(int, fields[first:end])) / os.sysconf("SC_CLK_TCK")
