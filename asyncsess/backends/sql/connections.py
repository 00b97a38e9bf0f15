"""`Connections`: those of one event loop to a database."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, Final, NamedTuple

from sqlalchemy import CursorResult
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.base import Executable

from asyncsess.backends.sql.databases import Database, code_of
from asyncsess.errors import StoreError

_MOST_RETRIES: Final = 5
_PAUSE: Final = 0.005
_MARGIN: Final = 1.0


class LostConnectionError(StoreError):
    """The connection broke when a statement was under way: it may have been run."""


class NoAnswerError(LostConnectionError):
    """Nothing came back in time: the statement may have been run, and it makes no sense to ask again."""


class MissingTablesError(StoreError):
    """The tables have not been made, or were dropped."""


class Answer(NamedTuple):
    """What came of a statement.

    Attributes:
        matched: How many rows it changed, or returned.
        rows: Those that it returned.
    """

    matched: int
    rows: Sequence[Any] = ()


class Connections:
    """A pool of connections, used by one event loop, one statement at a time on each.

    Args:
        engine: The pool.
        database: To what kind of database it leads.
        timeout: Seconds for which a connection, or an answer, is waited for.
        is_ours: Whether nobody else has a say in the pool, so that each statement is a transaction of its own; else
            it is committed, as a connection of a program may have begun one.
    """

    def __init__(self, engine: AsyncEngine, database: Database, timeout: float, *, is_ours: bool) -> None:
        self.engine = engine
        self.timeout = timeout
        self.is_ours = is_ours
        self._database = database
        # SQLAlchemy translates no error of a driver where it sets up a connection as a program's engine wants it.
        self._failures = SQLAlchemyError, OSError, TimeoutError, engine.dialect.loaded_dbapi.Error
        self._in_use = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def run(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Answer:
        """Run a statement, which is a transaction of its own; again, if the database has rolled it back.

        Raises:
            LostConnectionError: It may have been run.
            StoreError: It has changed nothing.
        """
        for retries in count():
            with self.failures(), self._counted():
                connection, is_answered = await self.connect(), False
                try:
                    answer = await self._execute(connection, statement, values or {})
                    is_answered = True
                    return answer
                except DBAPIError as error:
                    code = code_of(error)
                    if code in self._database.is_there:
                        return Answer(0)
                    if code not in self._database.rolled_back or retries == _MOST_RETRIES:
                        raise
                finally:
                    if is_answered and self.is_ours:  # then the server is asked nothing more
                        await connection.close()
                    else:
                        await asyncio.shield(self._give_back(connection))
            await asyncio.sleep(random.uniform(0, _PAUSE * 2**retries))
        raise AssertionError("counting has no end")

    async def connect(self) -> AsyncConnection:
        """Return a connection that is free, or a new one."""
        try:
            async with asyncio.timeout(self.timeout):
                return await self.engine.connect()
        except TypeError as error:
            raise StoreError(f"the driver of the database can't use an option that it is given: {error}") from error
        except TimeoutError as error:
            raise StoreError(
                f"no connection to the database could be had within {self.timeout:g} s: either it does not answer, or"
                f" is locked, or all that the pool may have are in use ({self.engine.pool.status()})"
            ) from error

    async def repeat(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Answer:
        """Run a statement that may be run twice: on another connection, if the first one broke."""
        try:
            return await self.run(statement, values)
        except NoAnswerError:
            raise
        except LostConnectionError:
            return await self.run(statement, values)

    async def _execute(self, connection: AsyncConnection, statement: Executable, values: Mapping[str, Any]) -> Answer:
        silence = _Silence(connection, self._database, self.timeout)
        try:
            with silence:
                async with asyncio.timeout(silence.longest):
                    result = await self.execute(connection, statement, values)
        except (TimeoutError, DBAPIError) as error:
            if isinstance(error, DBAPIError) and not silence.is_over:
                raise
            await connection.invalidate(error)
            raise NoAnswerError(f"the database has not answered for {self.timeout:g} s") from error
        except OSError as error:
            await connection.invalidate(error)
            raise LostConnectionError(f"the connection to the database broke: {error}") from error
        if not result.returns_rows:
            return Answer(result.rowcount)
        rows = result.all()
        return Answer(len(rows), rows)

    async def execute(
        self, connection: AsyncConnection, statement: Executable, values: Mapping[str, Any] | None = None
    ) -> CursorResult[Any]:
        """Run a statement on a connection, and leave no transaction open."""
        result = await connection.execute(statement, values)
        if not self.is_ours:
            await connection.commit()
        return result

    async def _give_back(self, connection: AsyncConnection) -> None:
        """Give a connection back; the pool may ask the server to reset it, and ends it if that fails."""
        with suppress(*self._failures):  # what was asked is answered, and the pool logs this
            async with asyncio.timeout(self.timeout):
                await connection.close()

    async def dispose(self) -> None:
        """End all connections, once the statements that are under way have ended."""
        await self._is_idle.wait()
        await self.engine.dispose()

    @contextmanager
    def _counted(self) -> Generator[None]:
        self._in_use += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._in_use -= 1
            if not self._in_use:
                self._is_idle.set()

    @contextmanager
    def failures(self) -> Generator[None]:
        """Translate what goes wrong with the database."""
        try:
            yield
        except DBAPIError as error:
            cause = error.orig or error
            if code_of(error) in self._database.is_missing:
                raise MissingTablesError("the tables of the store are missing") from cause
            kind = LostConnectionError if error.connection_invalidated else StoreError
            raise kind(f"the database could not be used: {_first_line(cause)}") from cause
        except self._failures as error:
            raise StoreError(f"the database could not be used: {_first_line(error)}") from error


class _Silence:
    """How long a server may keep silent; then its connection is hung up, if its driver would else ask it first.

    Attributes:
        longest: Seconds after which to cancel the driver.
        is_over: Whether the connection was hung up.
    """

    def __init__(self, connection: AsyncConnection, database: Database, timeout: float) -> None:
        self._fileno = database.fileno
        self._connection = connection
        self._timeout = timeout
        self.longest = timeout if self._fileno is None else timeout + _MARGIN
        self.is_over = False

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._timeout, self._hang_up)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _hang_up(self) -> None:
        raw = self._connection.sync_connection
        if self._fileno is not None and raw is not None:
            self.is_over = True
            with socket.socket(fileno=os.dup(self._fileno(raw.connection.driver_connection))) as connection:
                connection.shutdown(socket.SHUT_RDWR)


def _first_line(error: BaseException) -> str:
    """Return what an error says, without the statement that some drivers quote."""
    return next(iter(str(error).splitlines()), type(error).__name__)
