"""Sessions in this process's memory: for tests, and the reference reading of the contract."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import TracebackType

from asyncsess.backends.base import BackendStatistics, Record
from asyncsess.backends.turns import Turn, Turns
from asyncsess.errors import Holder, LockLostError, StoreError
from asyncsess.expiry import Expiry

_SWEEPER = Holder(os.getpid(), "sweeper", datetime.fromtimestamp(0, UTC), __name__)


class MemoryBackend:
    """Keep records in a dict. They end with the process; several processes share nothing."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._turns = Turns()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<MemoryBackend records={len(self._records)}>"

    async def open(self) -> None:
        self._is_closed = False

    async def aclose(self) -> None:
        self._is_closed = True
        self._turns = Turns()

    async def read(self, key: str) -> Record | None:
        self._check_open()
        return self._records.get(key)

    def hold(self, key: str, *, timeout: float, holder: Holder, create: bool = False) -> _MemoryHeld:
        self._check_open()
        return _MemoryHeld(self._records, self._turns, key, timeout, holder)

    def create(self, key: str, payload: bytes, *, created_at: float, holder: Holder) -> _MemoryHeld:
        self._check_open()
        return _MemoryHeld(self._records, self._turns, key, 0.0, holder, first=(payload, created_at))

    async def touch(self, key: str, *, now: float) -> None:
        self._check_open()
        record = self._records.get(key)
        if record and record.accessed_at < now:
            self._records[key] = record._replace(accessed_at=now)

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        self._check_open()
        deleted = 0
        for key, record in list(self._records.items()):
            if not expiry.is_over(record.created_at, record.accessed_at, now):
                continue
            turn = self._turns.try_take(key, _SWEEPER)
            if turn is None:
                continue
            if self._records.get(key) is record:
                del self._records[key]
                deleted += 1
            self._turns.give_back(turn)
        return deleted

    async def keys(self) -> AsyncIterator[str]:
        self._check_open()
        for key in list(self._records):
            yield key

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(holding=self._turns.holding, waiting=self._turns.waiting)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError("the store was closed; enter it again, or make a new one")


class _MemoryHeld:
    def __init__(
        self,
        records: dict[str, Record],
        turns: Turns,
        key: str,
        timeout: float,
        holder: Holder,
        first: tuple[bytes, float] | None = None,
    ) -> None:
        self._records = records
        self._turns = turns
        self._key = key
        self._timeout = timeout
        self._holder = holder
        self._first = first
        self._turn: Turn | None = None

    async def __aenter__(self) -> _MemoryHeld:
        self._turn = await self._turns.take(self._key, timeout=self._timeout, holder=self._holder)
        if self._first:
            payload, now = self._first
            if self._key in self._records:
                await self.release(now=now)
                raise StoreError("there is a session of this key already")
            await self.commit(payload, now=now)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give_back()

    @property
    def record(self) -> Record | None:
        return self._records.get(self._key)

    async def commit(self, payload: bytes, *, now: float) -> Record:
        self._check_held()
        before = self.record
        version, created_at = (before.version + 1, before.created_at) if before else (1, now)
        record = self._records[self._key] = Record(payload, version, created_at, now)
        return record

    async def delete(self) -> None:
        self._check_held()
        self._records.pop(self._key, None)
        self._give_back()

    async def release(self, *, now: float) -> None:
        before = self.record
        if self._turn and before and before.accessed_at < now:
            self._records[self._key] = before._replace(accessed_at=now)
        self._give_back()

    def _give_back(self) -> None:
        if self._turn:
            self._turns.give_back(self._turn)
            self._turn = None

    def _check_held(self) -> None:
        if self._turn is None or not self._turns.is_current(self._turn):
            raise LockLostError("the session is no longer held; nothing was stored")
