"""`RemoteBackend`: a server elsewhere, after the contract in `asyncsess.backends.base`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping

from asyncsess.backends.base import BackendStatistics, Found, Record
from asyncsess.backends.remote.clock import ServerClock
from asyncsess.backends.remote.engine import Claim, Engine
from asyncsess.backends.remote.held import RemoteHeld, RemoteHeldName
from asyncsess.backends.remote.holders import located
from asyncsess.backends.remote.lines import Lines, process
from asyncsess.errors import Holder
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
        self._turns = Lines(engine)

    def __repr__(self) -> str:
        return f"<RemoteBackend {self._engine!r}>"

    async def open(self) -> None:
        self._turns.is_closed = False
        try:
            await self._engine.open()
            await self.clock.set_by(self._engine.now)
        except BaseException:
            await self._engine.aclose()
            raise

    async def aclose(self) -> None:
        await self._turns.close()
        await self._engine.aclose()

    async def read(self, key: str) -> Found:
        return await self._open_engine().read(key)

    def hold(
        self, key: str, *, timeout: float, holder: Holder, lease: float = math.inf, create: bool = False
    ) -> RemoteHeld:
        claim = Claim(key, None, process.token(), located(holder), lease, create)
        return RemoteHeld(self._open_lines(), claim, timeout)

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
        claim = Claim(key, None, process.token(), located(holder), lease, True)
        first = Record(payload, version, created_at, now)
        return RemoteHeld(self._open_lines(), claim, 0.0, first=first)

    def hold_name(
        self, key: str, name: str, *, timeout: float, holder: Holder, lease: float = math.inf
    ) -> RemoteHeldName:
        claim = Claim(key, name, process.token(), located(holder), lease, True)
        return RemoteHeldName(self._open_lines(), claim, timeout)

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
        return BackendStatistics(holding=self._turns.holding, waiting=self._turns.waiting)

    def _open_lines(self) -> Lines:
        self._turns.check_open()
        return self._turns

    def _open_engine(self) -> Engine:
        self._turns.check_open()
        return self._engine
