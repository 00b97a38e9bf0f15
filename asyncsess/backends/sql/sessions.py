"""`SessionStatements`: what is run to read, store and delete records; how a row reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, bindparam, case, delete, exists, or_, select, tuple_, update

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.sql.databases import Database
from asyncsess.backends.sql.locks import LockStatements
from asyncsess.backends.sql.tables import Tables

AT_ONCE: Final = 500
_NOTHING: Final = 0.0  # the `until` of a row that is there for its lock


class SessionStatements(LockStatements):
    """The statements for the table of sessions, the locks of keys included.

    A commit names the version before it, so that one which reaches the database late, after its connection was given
    up, changes nothing any more.
    """

    def __init__(self, tables: Tables, database: Database) -> None:
        table = tables.sessions
        row = table.c
        found = [row.payload, row.version, row.created_at, row.accessed_at, row.until]
        super().__init__(table, database, row.payload.is_(None), found)
        used_at: ColumnElement[float] = bindparam("used_at")
        is_record = row.until.is_(None)
        is_held = and_(row.token.is_not(None), row.free_at > database.now)

        self.read = select(*found).where(self.of_key)
        self.committed = select(row.version, row.token, row.committed_by, row.until).where(self.of_key)
        self.adopt = self.insert({"version": 0, "created_at": 0.0, "accessed_at": 0.0, "until": _NOTHING})
        stored = {
            "payload": bindparam("data"),
            "created_at": bindparam("made_at"),
            "accessed_at": used_at,
            "until": None,
            "committed_by": bindparam("who"),
        }
        self.create = self.insert({**stored, "version": bindparam("number")})
        stored["version"] = row.version + 1
        commit = update(table).where(self.of_key, self.is_mine, row.version == bindparam("before"))
        self.commit = commit.values(stored)
        self.commit_last = self.hand_on_after(commit, stored)
        mine = update(table).where(self.of_key, self.is_mine)
        self.release_used = self.hand_on_after(
            mine, {"accessed_at": case((row.accessed_at < used_at, used_at), else_=row.accessed_at)}
        )
        buried: dict[str, Any] = {
            "payload": bindparam("data"),
            "until": bindparam("kept_until"),
            "committed_by": bindparam("who"),
        }
        self.bury = self.hand_on_after(mine, buried)
        emptied: dict[str, Any] = {"payload": None, "version": 0, "until": _NOTHING, "committed_by": bindparam("who")}
        self.empty = self.hand_on_after(mine, emptied)
        self.touch = (
            update(table).where(self.of_key, is_record, row.accessed_at < used_at, ~is_held).values(accessed_at=used_at)
        )
        self.keys = select(row.key).where(row.key > bindparam("after"), is_record).order_by(row.key).limit(AT_ONCE)

        # What is over is looked up, then deleted if that is still so: the same on each database, in short steps.
        at: ColumnElement[float] = bindparam("at")
        over = and_(
            row.created_at <= bindparam("made_until"),  # for the index
            or_(row.accessed_at + bindparam("idle") <= at, row.created_at + bindparam("lifetime") <= at),
        )
        among = row.key.in_(bindparam("keys", expanding=True))
        page = select(row.key).where(row.key > bindparam("after"), ~is_held).order_by(row.key).limit(AT_ONCE)
        self.expired = page.where(is_record, over)
        self.delete_expired = delete(table).where(among, ~is_held, is_record, over)
        self.buried = page.where(row.until <= at)
        self.delete_buried = delete(table).where(among, ~is_held, row.until <= at)


class MemberStatements:
    """The statements for the table of groups."""

    def __init__(self, tables: Tables, database: Database) -> None:
        table, sessions = tables.members, tables.sessions.c
        row = table.c
        in_group = row.owner == bindparam("group")
        values: dict[str, Any] = {"owner": bindparam("group"), "key": bindparam("of"), "added_at": bindparam("at")}
        self.all = select(row.key, row.added_at).where(in_group)
        self.add = database.put(table, values, column="added_at")
        self.remove = delete(table).where(in_group, row.key == bindparam("of"))
        is_old = row.added_at < bindparam("before")
        is_after = or_(
            row.owner > bindparam("after"), and_(row.owner == bindparam("after"), row.key > bindparam("after_key"))
        )
        is_there = exists().where(sessions.key == row.key, sessions.payload.is_not(None))
        self.old = (
            select(row.owner, row.key).where(is_old, is_after, ~is_there).order_by(row.owner, row.key).limit(AT_ONCE)
        )
        self.remove_old = delete(table).where(
            tuple_(row.owner, row.key).in_(bindparam("pairs", expanding=True)), is_old
        )


def decode(row: Sequence[Any] | None) -> Found:
    """Return what a row says."""
    if row is None:
        return None
    payload, version, created_at, accessed_at, until = row
    if payload is None:
        return None
    if until is not None:
        return Tombstone(bytes(payload), until)
    return Record(bytes(payload), version, created_at, accessed_at)
