"""Sessions in this process's memory: for tests, and the reference reading of the contract."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import AsyncIterator, Collection, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from asyncsess.backends.base import BackendStatistics, Found, Record, Tombstone
from asyncsess.backends.turns import Turn, Turns, boot_time
from asyncsess.errors import Holder, LockLostError, StoreError
from asyncsess.expiry import Expiry

_MEMBER_AGE: Final = 60.0
_SWEEPER = Holder(os.getpid(), "sweeper", datetime.fromtimestamp(0, UTC), __name__)


class MemoryBackend:
    """Keep records in a dict. They end with the process; several processes share nothing."""

    def __init__(self) -> None:
        self._records: dict[str, Record | Tombstone] = {}
        self._groups: dict[str, dict[str, float]] = {}  # a change replaces the inner one, which readers may have
        self._turns = Turns()
        self._guard = threading.Lock()  # a touch comes without a turn, perhaps from another thread
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<MemoryBackend records={len(self._records)}>"

    async def open(self) -> None:
        self._is_closed = False

    async def aclose(self) -> None:
        self._is_closed = True
        self._turns.take_back()

    async def read(self, key: str) -> Found:
        self._check_open()
        return self._records.get(key)

    def hold(
        self, key: str, *, timeout: float, holder: Holder, lease: float = math.inf, create: bool = False
    ) -> _MemoryHeld:
        return _MemoryHeld(self, key, timeout, lease, holder)

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
    ) -> _MemoryHeld:
        return _MemoryHeld(self, key, 0.0, lease, holder, first=Record(payload, version, created_at, now))

    def hold_name(
        self, key: str, name: str, *, timeout: float, holder: Holder, lease: float = math.inf
    ) -> _MemoryHeldName:
        return _MemoryHeldName(self, f"{key}:{name}", timeout, lease, holder)

    async def touch(self, key: str, *, now: float) -> None:
        self._check_open()
        self._touch(key, now)

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        self._check_open()
        with self._guard:
            self._groups[group] = {**self._groups.get(group, {}), key: now}

    async def members(self, group: str) -> Mapping[str, float]:
        self._check_open()
        return self._groups.get(group, {})

    async def remove_member(self, group: str, key: str) -> None:
        self._check_open()
        self._remove_members(group, {key})

    def _remove_members(self, group: str, keys: Collection[str]) -> None:
        with self._guard:
            left = {key: added_at for key, added_at in self._groups.pop(group, {}).items() if key not in keys}
            if left:
                self._groups[group] = left

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        self._check_open()
        deleted = 0
        for key, record in list(self._records.items()):
            if not _is_over(record, expiry, now):
                continue
            turn = self._turns.try_take(key, _SWEEPER)
            if turn is None:
                continue
            with self._guard:
                if self._records.get(key) is record:  # not touched meanwhile
                    del self._records[key]
                    deleted += isinstance(record, Record)
            self._turns.give_back(turn)
        for group, members in list(self._groups.items()):
            old = {key for key, added_at in members.items() if added_at < now - _MEMBER_AGE}
            self._remove_members(group, old - self._records.keys())
        return deleted

    async def keys(self) -> AsyncIterator[str]:
        self._check_open()
        for key, record in list(self._records.items()):
            if isinstance(record, Record):
                yield key

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(holding=self._turns.holding, waiting=self._turns.waiting)

    def _touch(self, key: str, now: float) -> None:
        with self._guard:
            record = self._records.get(key)
            if isinstance(record, Record) and record.accessed_at < now:
                self._records[key] = record._replace(accessed_at=now)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError("the store was closed; enter it again, or make a new one")


class _MemoryHold:
    """The turn at a key or a name."""

    def __init__(self, backend: MemoryBackend, line: str, timeout: float, lease: float, holder: Holder) -> None:
        self._backend = backend
        self._turns = backend._turns
        self._line = line
        self._timeout = timeout
        self._lease = lease
        self._holder = holder
        self._turn: Turn | None = None
        self.waited = 0.0

    async def __aenter__(self) -> Self:
        self._backend._check_open()
        started = time.monotonic()
        turn = await self._turns.take(self._line, timeout=self._timeout, holder=self._holder)
        try:
            self._backend._check_open()
            turn.deadline = boot_time() + self._lease
            self._enter()
        except BaseException:
            self._turns.give_back(turn)
            raise
        self._turn = turn
        if turn.has_waited:
            self.waited = time.monotonic() - started
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._give_back()

    def _enter(self) -> None:
        """Do what follows at once upon the turn."""

    @property
    def is_contended(self) -> bool:
        return self._turn is not None and self._turns.has_waiters(self._turn)

    async def renew(self, lease: float) -> None:
        self._check_held()
        assert self._turn is not None
        self._turn.deadline = boot_time() + lease

    def _give_back(self) -> None:
        if self._turn:
            self._turns.give_back(self._turn)
            self._turn = None

    def _is_held(self) -> bool:
        return self._turn is not None and self._turns.is_current(self._turn)

    def _check_held(self) -> None:
        if not self._is_held():
            raise LockLostError("the session is no longer held; nothing was stored")


class _MemoryHeldName(_MemoryHold):
    @property
    def was_late(self) -> bool:
        return self._turn is not None and self._turn.was_late

    async def check(self) -> None:
        self._check_held()


class _MemoryHeld(_MemoryHold):
    def __init__(
        self,
        backend: MemoryBackend,
        key: str,
        timeout: float,
        lease: float,
        holder: Holder,
        first: Record | None = None,
    ) -> None:
        super().__init__(backend, key, timeout, lease, holder)
        self._records = backend._records
        self._key = key
        self._first = first

    def _enter(self) -> None:
        if self._first:
            if self._key in self._records:
                raise StoreError("there is a session of this key already")
            self._records[self._key] = self._first

    @property
    def record(self) -> Found:
        return self._records.get(self._key)

    async def commit(self, payload: bytes, *, now: float, is_last: bool = False) -> Record:
        self._check_held()
        with self._backend._guard:
            before = self.record
            if isinstance(before, Tombstone):
                raise StoreError("a session that was deleted can't be changed")
            version, created_at = (before.version + 1, before.created_at) if before else (1, now)
            record = self._records[self._key] = Record(payload, version, created_at, now)
        return record

    async def delete(self, tombstone: Tombstone | None = None, *, now: float) -> None:
        self._check_held()
        with self._backend._guard:
            if tombstone and isinstance(self.record, Record):
                self._records[self._key] = tombstone
            else:
                self._records.pop(self._key, None)
        self._give_back()

    async def release(self, *, now: float) -> None:
        if self._is_held():
            self._backend._touch(self._key, now)
        self._give_back()


def _is_over(record: Record | Tombstone, expiry: Expiry, now: float) -> bool:
    if isinstance(record, Tombstone):
        return record.until <= now
    return expiry.is_over(record.created_at, record.accessed_at, now)
