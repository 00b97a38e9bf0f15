"""`Client`: what one event loop has of a database: connections, who waits, and what is held."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.base import Executable

from asyncsess.backends.remote.engine import Claim
from asyncsess.backends.sql.connections import Answer, Connections, MissingTablesError
from asyncsess.backends.sql.databases import Database
from asyncsess.backends.sql.listener import Listener
from asyncsess.backends.sql.locks import LockStatements
from asyncsess.backends.sql.tables import Tables
from asyncsess.backends.sql.waits import Waits
from asyncsess.errors import StoreError

logger = logging.getLogger("asyncsess")

_LOOK_EVERY: Final = 0.5


class _Held(NamedTuple):
    """Where a lock is that is held."""

    locks: LockStatements
    key: str


class Client(Connections):
    """The connections of one event loop, and what goes on there. It ends with the loop, or by `close`.

    Args:
        engine: The pool.
        database: To what kind of database it leads.
        tables: Those of the store, which are made if they are missing.
        timeout: Seconds for which a connection, or an answer, is waited for.
        is_ours: As for `Connections`; then the pool ends with this.
        is_advisory: Whether an advisory lock is to show that this process is there.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        database: Database,
        tables: Tables,
        timeout: float,
        *,
        is_ours: bool,
        is_advisory: bool,
    ) -> None:
        super().__init__(engine, database, timeout, is_ours=is_ours)
        self._tables = tables
        self.waits = Waits()
        self._is_advisory = is_advisory
        self._listener = Listener(self, database, self.waits, database.take_lifeline if is_advisory else None)
        self._listening: asyncio.Task[None] | None = None
        self._held: dict[str, _Held] = {}
        self._is_holding = asyncio.Event()
        self._contended = frozenset[str]()
        self._is_looking = True
        self._watching = asyncio.create_task(self._watch(), name="asyncsess watcher")

    async def run(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Answer:
        try:
            return await super().run(statement, values)
        except MissingTablesError:
            await self._make_missing_tables()
            return await super().run(statement, values)

    async def _make_missing_tables(self) -> None:
        try:
            await self.make_tables()
        except StoreError as error:
            raise StoreError(
                f"the tables are missing and could not be made: {error}; have create_tables() called by somebody who"
                " may, or the statements run that ddl() returns"
            ) from error.__cause__

    async def make_tables(self) -> None:
        """Make the tables, as far as they are not there."""
        for statement in self._tables.ddl(self.engine.dialect):
            await super().run(statement)

    def hear(self) -> None:
        """Hear from now on of locks that others give back, if the server tells."""
        if self._listening is None and (self._database.notifies or self._is_advisory):
            self._listening = asyncio.create_task(self._listener.run(), name="asyncsess listener")

    async def lifeline(self) -> int | None:
        """Return the number of the advisory lock that is there as long as this process is; None if there is none."""
        if not self._is_advisory:
            return None
        self.hear()
        return await self._listener.lifeline()

    def holds(self, claim: Claim, locks: LockStatements, key: str) -> None:
        """Note that a claim has its lock."""
        self.waits.end(claim.token)
        self._held[claim.token] = _Held(locks, key)
        self._is_holding.set()

    def forget(self, claim: Claim) -> None:
        """Note that a claim neither has its lock nor waits for it."""
        self.waits.end(claim.token)
        self._held.pop(claim.token, None)

    def is_contended(self, claim: Claim) -> bool:
        """Tell whether somebody waited for a lock when the watcher looked."""
        return claim.token in self._contended

    async def close(self) -> None:
        """Give the connections back."""
        tasks = [task for task in (self._listening, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._end()

    async def _end(self) -> None:
        if self.is_ours:
            await self.dispose()

    async def _watch(self) -> None:
        """Look from time to time, while something is held for long, who of those that hold is waited for."""
        try:
            while True:
                await self._is_holding.wait()
                held = dict(self._held)
                await asyncio.sleep(_LOOK_EVERY)
                if lasting := {token: where for token, where in self._held.items() if token in held}:
                    await self._look(lasting)
                elif not self._held:
                    self._is_holding.clear()
        finally:
            await self._end()

    async def _look(self, held: dict[str, _Held]) -> None:
        contended = set[str]()
        try:
            for locks in {where.locks for where in held.values()}:
                keys = [where.key for where in held.values() if where.locks is locks]
                contended |= {token for (token,) in (await self.repeat(locks.waited_for, {"keys": keys})).rows}
        except StoreError as error:  # nothing depends on it but whether a long hold is told of
            if self._is_looking:
                logger.warning("who is waited for can not be looked up: %s", error)
            self._is_looking = False
        else:
            self._is_looking = True
        self._contended = frozenset(contended)
