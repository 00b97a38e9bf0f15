"""`Connections`: those of one event loop to memcached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from asyncsess.backends.memcached.connection import Address, Connection, CutError, RefusedError, failures
from asyncsess.errors import SessionError, StoreError

TIMEOUT: Final = 5.0
_MOST: Final = 16


class Connections:
    """Opens connections when they are needed, and keeps them; they end with the event loop, or by `aclose`.

    Args:
        address: Where to.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[Connection] = []
        self._places = asyncio.Semaphore(_MOST)
        self._keeper: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def use(self, seconds: float = TIMEOUT) -> AsyncIterator[Connection]:
        """Lend a connection for so many seconds at most; whoever fails or is cancelled with it is the last to use it.

        Raises:
            CutError: It broke meanwhile.
            StoreError: There is none to be had.
        """
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._places.acquire()
        except TimeoutError as error:
            raise StoreError("all connections to memcached are in use") from error
        try:
            connection = await self._connection()
            is_in_step = False
            try:
                with failures():
                    async with asyncio.timeout(seconds):
                        yield connection
                is_in_step = True
            except (CutError, RefusedError):
                raise
            except SessionError:  # raised between two commands
                is_in_step = True
                raise
            finally:
                if is_in_step and self._keeper is not None:
                    self._idle.append(connection)
                else:
                    connection.hang_up()
        finally:
            self._places.release()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            connection.hang_up()
        try:
            async with asyncio.timeout(TIMEOUT):
                connection = await self._address.connect()
        except TimeoutError as error:
            raise StoreError("memcached can't be reached in time") from error
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="asyncsess connections")
        return connection

    async def _keep(self) -> None:
        """Close the connections once the event loop ends."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        self._keeper = None
        while self._idle:
            self._idle.pop().hang_up()

    async def aclose(self) -> None:
        """Close all that nobody uses; the others follow."""
        keeper = self._keeper
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
            self._hang_up()
            await asyncio.sleep(0)  # a transport closes with the next turn of the loop
