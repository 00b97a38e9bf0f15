"""`Listener`: the one connection that an event loop keeps, to hear of locks and to show that its process is there."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from typing import Any, Final

from sqlalchemy import TextClause, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from asyncsess.backends.remote.lines import process
from asyncsess.backends.sql.connections import Connections
from asyncsess.backends.sql.databases import Database
from asyncsess.backends.sql.locks import CHANNEL
from asyncsess.backends.sql.waits import Waits
from asyncsess.errors import StoreError

logger = logging.getLogger("asyncsess")

_PAUSE: Final = 0.2
_PING_EVERY: Final = 30.0


class Listener:
    """Stays connected as long as `run` runs.

    Args:
        connections: Where to take the connection.
        database: To what kind of database it leads.
        waits: Who is told.
        take_lifeline: How to take the advisory lock that shows that the process is there; None to take none.
    """

    def __init__(
        self, connections: Connections, database: Database, waits: Waits, take_lifeline: TextClause | None
    ) -> None:
        self._connections = connections
        self._database = database
        self._waits = waits
        self._take_lifeline = take_lifeline
        self._lifeline: int | None = None
        self._is_connected = asyncio.Event()
        self._failure: Exception | None = None

    async def lifeline(self) -> int | None:
        """Return the number of the advisory lock, once it is taken.

        Raises:
            StoreError: That takes too long.
        """
        if self._take_lifeline is not None and self._lifeline is None:
            try:
                async with asyncio.timeout(self._connections.timeout):
                    await self._is_connected.wait()
            except TimeoutError as error:
                failure = self._failure or "the database did not answer in time"
                raise StoreError(f"no advisory lock could be taken: {failure}") from self._failure or error
        return self._lifeline

    async def run(self) -> None:
        """Connect, and again when the connection broke; then all who wait ask: they may have been told meanwhile."""
        while True:
            try:
                await self._attend()
            except (SQLAlchemyError, StoreError, OSError, TimeoutError) as error:
                self._failure = error
                logger.warning(
                    "the connection that tells of locks was interrupted: %s", str(error) or type(error).__name__
                )
            finally:
                self._waits.is_hearing = False
                self._lifeline = None
                self._is_connected.clear()
            self._waits.tell_all()
            await asyncio.sleep(random.uniform(0.5, 1.0) * _PAUSE)

    async def _attend(self) -> None:
        connection = await self._connections.connect()
        try:
            async with asyncio.timeout(self._connections.timeout):
                if self._take_lifeline is not None:
                    self._lifeline = await self._tie(connection, self._take_lifeline)
                if self._database.notifies:
                    await self._connections.execute(connection, text(f"LISTEN {CHANNEL}{process.name}"))
            self._is_connected.set()
            if self._database.notifies:
                await self._hear(connection)
            while True:
                await asyncio.sleep(_PING_EVERY)  # else the server takes it for abandoned
                async with asyncio.timeout(self._connections.timeout):
                    await self._connections.execute(connection, select(1))
        finally:
            await asyncio.shield(_end(connection))

    async def _tie(self, connection: AsyncConnection, take_lifeline: TextClause) -> int:
        number = secrets.randbits(62)  # never used again: whoever finds it free knows that this connection is gone
        if (await self._connections.execute(connection, take_lifeline, {"lifeline": number})).scalar() != 1:
            raise StoreError("the advisory lock of this process could not be taken")
        return number

    async def _hear(self, connection: AsyncConnection) -> None:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        self._waits.is_hearing = True
        self._waits.tell_all()
        try:
            async for notice in driver.notifies():
                self._waits.tell(notice.payload)
        except self._connections.engine.dialect.loaded_dbapi.Error as error:
            raise StoreError(f"the server has ended the connection: {error}") from error


async def _end(connection: AsyncConnection) -> None:
    await connection.invalidate()  # nobody else is to have what it listens to, and its lock
    await connection.close()
