"""`LockStatements`: what is run to take a lock, to wait for it, and to hand it on; the same for keys and for names.

A lock may be taken from `free_at` on, by the first in the line, or by anybody if there is no line. Each statement
decides on the newest version of one row, so two claims never meet; a row that is in the way is waited for by the
database itself, for as long as another such statement takes.

The first in the line has `KEPT` seconds to come. Once they are over, whoever asks takes it out of the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Insert,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.base import Executable

from asyncsess.backends.sql.databases import Database

KEPT: Final = 1.0
FOREVER: Final = 1e12  # seconds: for a lease without an end
CHANNEL: Final = "asyncsess_"
PROCESS_DIGITS: Final = 16


class LockStatements:
    """The statements for the locks of one table.

    Args:
        table: One with the columns of a lock.
        database: Where it is.
        is_empty: What is true of a row that goes with its lock; None if each does.
        granted: The columns that are read when a lock is taken.
    """

    def __init__(
        self,
        table: Table,
        database: Database,
        is_empty: ColumnElement[bool] | None = None,
        granted: Sequence[ColumnElement[Any]] = (),
    ) -> None:
        self._table = table
        self._database = database
        lock = table.c
        self.of_key = lock.key == bindparam("of")
        self.is_mine = lock.token == bindparam("who")
        self._is_free = or_(lock.token.is_(None), lock.free_at <= database.now)
        is_first = lock.line.like(bindparam("first"))
        is_in_line = lock.line.like(bindparam("within"))
        nobody_waits = lock.line == ""
        without_me = func.replace(lock.line, bindparam("entry"), "")

        columns = [lock.taken_from, *granted]
        goes = true() if is_empty is None else is_empty
        take = (
            update(table)
            .where(self.of_key, or_(self.is_mine, and_(self._is_free, or_(nobody_waits, is_first))))
            .ordered_values(  # MariaDB assigns in this order, and reads what it has assigned
                (lock.taken_from, case((self.is_mine, lock.taken_from), else_=lock.token)),
                (lock.token, bindparam("who")),
                (lock.free_at, self._after_lease()),
                (lock.holder, bindparam("by")),
                (lock.lifeline, bindparam("alive")),
                (lock.line, without_me),
            )
        )
        self.take = take.returning(*columns) if database.returns_rows else take
        self.taken = select(*columns).where(self.of_key, self.is_mine)
        self.look = select(
            lock.token,
            lock.holder,
            lock.lifeline,
            lock.line,
            (lock.free_at - database.now).label("left"),
            self._is_free.label("is_free"),
        ).where(self.of_key)
        self.join = (
            update(table)
            .where(self.of_key, ~is_in_line, or_(lock.token.is_(None), ~self.is_mine))
            .values(line=lock.line + bindparam("entry"))
        )
        self.leave = self._hand_on(
            update(table)
            .where(self.of_key, or_(self.is_mine, is_in_line))
            .ordered_values(
                (lock.line, without_me),
                (
                    lock.free_at,
                    case((or_(self.is_mine, lock.token.is_(None)), database.now), else_=lock.free_at),
                ),
                (lock.token, case((self.is_mine, None), else_=lock.token)),
            )
        )
        # Who was to have it next has not come; unless another has found out before.
        self.skip = self._hand_on(
            update(table)
            .where(self.of_key, self._is_free, is_first, lock.free_at + KEPT <= database.now)
            .values(line=without_me, free_at=database.now)
        )
        # The holder's process is gone; unless the lock has been given to another since.
        self.expire = self._hand_on(
            update(table).where(self.of_key, self.is_mine, lock.free_at > database.now).values(free_at=database.now)
        )
        self.renew = update(table).where(self.of_key, self.is_mine).values(free_at=self._after_lease())
        self.check = select(lock.token).where(self.of_key, self.is_mine)
        self.release = self.hand_on_after(update(table).where(self.of_key, self.is_mine), {})
        self.release_empty = delete(table).where(self.of_key, self.is_mine, nobody_waits, goes)
        self.tidy = delete(table).where(self.of_key, lock.token.is_(None), nobody_waits, goes)
        # While one waits, its row is needed: an abandoned one goes an hour later.
        self.sweep = delete(table).where(lock.free_at + 3600.0 <= database.now, goes)
        self.waited_for = select(lock.token).where(
            lock.key.in_(bindparam("keys", expanding=True)), lock.token.is_not(None), ~nobody_waits
        )

        self.adopt = self.insert({})

    def insert(self, values: dict[str, Any]) -> Insert:
        """Return what makes a row with its lock, if there is none."""
        values = values | {
            "key": bindparam("of"),
            "token": bindparam("who"),
            "free_at": self._after_lease(),
            "holder": bindparam("by"),
            "lifeline": bindparam("alive"),
            "line": literal(""),
        }
        return self._database.insert_new(self._table, values)

    def hand_on_after(self, change: Update, values: dict[str, Any]) -> Executable:
        """Return a change of a row, after which its lock is the next one's."""
        lock = self._table.c
        ordered = [(lock[name], value) for name, value in values.items()]
        return self._hand_on(
            change.ordered_values(*ordered, (lock.free_at, self._database.now), (lock.token, None), (lock.holder, None))
        )

    def _hand_on(self, change: Update) -> Executable:
        """Return a change that tells the first in the line; it returns or counts the rows that were changed."""
        if not self._database.notifies:
            return change
        changed = change.returning(self._table.c.line).cte("changed")
        line = changed.c.line
        channel = literal(CHANNEL) + func.left(line, PROCESS_DIGITS)
        told = cast(func.pg_notify(channel, func.split_part(line, " ", 1)), Text)
        return select(case((line != "", told)))

    def _after_lease(self) -> ColumnElement[float]:
        lease: BindParameter[float] = bindparam("lease")
        return self._database.now + lease
