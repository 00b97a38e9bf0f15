"""`Tables`: where a database keeps sessions, locks of names, and groups.

The lock of a session lies in its own row, so that one statement on one row takes the lock and reads what is there, and
one statement checks the lock and stores. The locks of names inside sessions have a table with the same columns.

    token       whose the lock is; NULL if it is free
    taken_from  the token of the late holder from whom it was taken over; NULL if it was free
    free_at     from when on others may take it: the end of the lease; or since when it has been free
    holder      what to tell those who wait
    lifeline    the number of an advisory lock that is there as long as the holder's process is; NULL if nothing tells
    line        the tokens of those who wait, in their order, a space after each

Times of locks are seconds since the epoch by the server's clock; those of records are the caller's.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Double,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    func,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.ddl import ExecutableDDLElement
from sqlalchemy.types import TypeEngine

_MYSQL: Final = ("mysql", "mariadb")


class _Hexadecimal(TypeDecorator[bytes]):
    """Bytes that are sent as digits.

    The driver writes them into the statement, where it escapes them with backslashes even if the server takes those
    literally (``NO_BACKSLASH_ESCAPES``): then bytes came back changed, or ended the string they were in.

    Args:
        impl: As what they are stored.
    """

    impl = LargeBinary
    cache_ok = True

    def __init__(self, impl: TypeEngine[bytes]) -> None:
        super().__init__()
        self.impl = impl  # type: ignore[assignment]

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        return None if value is None else value.hex().encode()

    def bind_expression(self, bindparam: BindParameter[bytes]) -> ColumnElement[bytes]:
        return func.unhex(bindparam)


class Tables:
    """The tables of a store.

    Args:
        prefix: Of their names.
    """

    def __init__(self, prefix: str) -> None:
        metadata = MetaData()
        self.sessions = Table(
            f"{prefix}sessions",
            metadata,
            *_lock_columns(),
            # Of a record, what was sealed; of a tombstone, its note; NULL while there is nothing but a lock.
            Column("payload", LargeBinary().with_variant(_Hexadecimal(mysql.LONGBLOB()), *_MYSQL)),
            Column("version", BigInteger, nullable=False),
            Column("created_at", Double, nullable=False),
            Column("accessed_at", Double, nullable=False),
            Column("until", Double),  # NULL for a record; when a tombstone may go; 0 while there is nothing but a lock
            Column("committed_by", _ascii(40)),  # the token of the last who has changed it
            # No index has a column that changes with each use, so that PostgreSQL updates rows in their page.
            Index(f"{prefix}sessions_created_at", "created_at"),
            Index(f"{prefix}sessions_until", "until"),
            postgresql_with={"fillfactor": 70},
            mysql_engine="InnoDB",
            mariadb_engine="InnoDB",
        )
        self.locks = Table(f"{prefix}locks", metadata, *_lock_columns(), mysql_engine="InnoDB", mariadb_engine="InnoDB")
        self.members = Table(
            f"{prefix}members",
            metadata,
            Column("owner", _ascii(64), primary_key=True),
            Column("key", _ascii(64), primary_key=True),
            Column("added_at", Double, nullable=False),
            Index(f"{prefix}members_added_at", "added_at"),
            mysql_engine="InnoDB",
            mariadb_engine="InnoDB",
        )
        self._metadata = metadata

    def ddl(self, dialect: Dialect) -> list[ExecutableDDLElement]:
        """Return what makes the tables, as far as they are not there."""
        statements: list[ExecutableDDLElement] = []
        for table in self._metadata.sorted_tables:
            statements.append(CreateTable(table, if_not_exists=True))
            indexes = sorted(table.indexes, key=lambda index: str(index.name))
            statements += [CreateIndex(index, if_not_exists=dialect.name not in _MYSQL) for index in indexes]
        return statements

    def script(self, dialect: Dialect) -> str:
        """Return the same as text."""
        texts = (str(statement.compile(dialect=dialect)).strip() for statement in self.ddl(dialect))
        return "".join("\n".join(line.rstrip() for line in text.splitlines()) + ";\n\n" for text in texts)


def _lock_columns() -> list[Column[object]]:
    return [
        Column("key", _ascii(64), primary_key=True),
        Column("token", _ascii(40)),
        Column("taken_from", _ascii(40)),
        Column("free_at", Double, nullable=False),
        Column("holder", LargeBinary().with_variant(_Hexadecimal(mysql.BLOB()), *_MYSQL)),
        Column("lifeline", BigInteger),
        Column("line", _ascii(None), nullable=False),
    ]


def _ascii(length: int | None) -> String:
    """Return the type of what is compared byte by byte."""
    if length is None:
        own: String = mysql.MEDIUMTEXT(charset="ascii", collation="ascii_bin")
        return Text().with_variant(postgresql.TEXT(collation="C"), "postgresql").with_variant(own, *_MYSQL)
    own = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return (
        String(length).with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql").with_variant(own, *_MYSQL)
    )
