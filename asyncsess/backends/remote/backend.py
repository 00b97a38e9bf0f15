"""`RemoteBackend`: a server elsewhere, after the contract in `asyncsess.backends.base`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping

from asyncsess.backends.base import BackendStatistics, Found, Record
from asyncsess.backends.remote.clock import ServerClock
from asyncsess.backends.remote.engine import Claim, Engine
from asyncsess.backends.remote.held import Lines, RemoteHeld, RemoteHeldName, process
from asyncsess.errors import Holder, StoreError
from asyncsess.expiry import Expiry


class RemoteBackend:
    """Keep records on a server.

    Args:
        engine: Which.

    Attributes:
        clock: The server's, as of the last `open` or `delete_expired`.
    """

    def __init__(self, engine: Engine) -> None:
        self.clock = ServerClock()
        self._engine = engine
        self._lines = Lines()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<RemoteBackend {self._engine!r}>"

    async def open(self) -> None:
        self._is_closed = False
        await self._engine.open()
        await self.clock.set_by(self._engine.now)

    async def aclose(self) -> None:
        self._is_closed = True
        for held in list(self._lines.holds):
            await held.lose()
        self._lines.take_back()
        await self._engine.aclose()

    async def read(self, key: str) -> Found:
        return await self._open_engine().read(key)

    def hold(
        self, key: str, *, timeout: float, holder: Holder, lease: float = math.inf, create: bool = False
    ) -> RemoteHeld:
        claim = Claim(key, None, process.token(), holder, lease, create)
        return RemoteHeld(self._open_engine(), self._lines, claim, timeout)

    def create(
        self,
        key: str,
        payload: bytes,
        *,
        created_at: float,
        now: float,
        holder: Holder,
        lease: float = math.inf,
        version: int = 1,
    ) -> RemoteHeld:
        claim = Claim(key, None, process.token(), holder, lease, True)
        first = Record(payload, version, created_at, now)
        return RemoteHeld(self._open_engine(), self._lines, claim, 0.0, first=first)

    def hold_name(
        self, key: str, name: str, *, timeout: float, holder: Holder, lease: float = math.inf
    ) -> RemoteHeldName:
        claim = Claim(key, name, process.token(), holder, lease, True)
        return RemoteHeldName(self._open_engine(), self._lines, claim, timeout)

    async def touch(self, key: str, *, now: float) -> None:
        await self._open_engine().touch(key, now=now)

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        await self._open_engine().add_member(group, key, now=now)

    async def members(self, group: str) -> Mapping[str, float]:
        return await self._open_engine().members(group)

    async def remove_member(self, group: str, key: str) -> None:
        await self._open_engine().remove_member(group, key)

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        engine = self._open_engine()
        await self.clock.set_by(engine.now)
        return await engine.delete_expired(expiry, now=now)

    async def keys(self) -> AsyncIterator[str]:
        async for key in self._open_engine().keys():
            yield key

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(holding=self._lines.holding, waiting=self._lines.waiting + self._lines.elsewhere)

    def _open_engine(self) -> Engine:
        if self._is_closed:
            raise StoreError("the store was closed; enter it again, or make a new one")
        return self._engine
