"""`MigratingBackend`: from one store to another while both are in use, and nobody is logged out."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Final

from asyncsess.backends.base import Backend, BackendStatistics, Found, Record
from asyncsess.backends.migrating.held import MigratingHeld, MigratingHeldName, Route
from asyncsess.backends.migrating.places import is_in_old, unless_moved
from asyncsess.backends.turns import Turns
from asyncsess.errors import CorruptSessionError, Holder
from asyncsess.expiry import Expiry

_MOVER_TIMEOUT: Final = 40.0
_MOVER_LEASE: Final = 30.0


class MigratingBackend:
    """Read from an old and a new backend, and move each session to the new one when it is opened for writing.

        backend = MigratingBackend(FileBackend("var/sessions"), new)
        store = SessionStore(backend)

    A session keeps its version, its times and its owner. It is in one of the two, and in both only while it is moved,
    under the locks of both: first it is copied, then a tombstone takes its place in the old one. Whatever interrupts
    that, the copy counts for nothing before the tombstone is there, and the next who opens the session goes on with it.

    Replace the processes that serve in three rounds, each of which may overlap with the one before, and no update, no
    login and no logout is lost: first by such that know both backends and use the old one, with ``moves=False``; then
    by such that move; and once all do, and `move_all` has returned, by such that know the new one alone.

    Without the first round, processes that know the old backend alone run beside such that move. Then

    - what they have committed is carried over, and what they commit later finds no session: it raises
      `SessionNotFoundError`, and is not lost in silence; locks, of variables too, are respected by both;
    - they do not find a session that was moved or has begun in the new backend: its visitor seems logged out there,
      and they neither list nor end it for its owner. So send each visitor to processes of one kind;
    - a name that they adopt with ``create=True`` after others have begun it in the new backend leads to two sessions,
      of which that in the new one stays, unless the other has had more commits;
    - a session that they destroy while its move is interrupted by the end of a process comes back if nobody opens it
      as long as its tombstone stands.

    Locks are taken in the order of the two, so let no process use them in the other while one uses them in this. When
    none does, what was moved can be moved back.

    Args:
        old: Where sessions have been kept.
        new: Where they are to be kept.
        moves: Whether sessions are moved, and begin in the new backend; else they stay where they are, and begin in the
            old one.
    """

    def __init__(self, old: Backend, new: Backend, *, moves: bool = True) -> None:
        self.old = old
        self.new = new
        self._turns = Turns()
        self._route = Route(old, new, moves, self._turns)

    def __repr__(self) -> str:
        return f"<MigratingBackend from {self.old!r} to {self.new!r}>"

    async def open(self) -> None:
        async with AsyncExitStack() as stack:
            await self.old.open()
            stack.push_async_callback(self.old.aclose)
            await self.new.open()
            stack.pop_all()

    async def aclose(self) -> None:
        async with AsyncExitStack() as stack:  # the one is closed whatever becomes of the other
            stack.callback(self._turns.take_back)
            stack.push_async_callback(self.new.aclose)
            stack.push_async_callback(self.old.aclose)

    async def read(self, key: str) -> Found:
        old = unless_moved(await self.old.read(key))  # first: what is moved in between is found in the new one
        new = unless_moved(await self.new.read(key))
        return old if is_in_old(old, new) else new

    def hold(
        self, key: str, *, timeout: float, holder: Holder, lease: float = math.inf, create: bool = False
    ) -> MigratingHeld:
        return MigratingHeld(self._route, key, timeout=timeout, holder=holder, lease=lease, create=create)

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
    ) -> MigratingHeld:
        first = Record(payload, version, created_at, now)
        return MigratingHeld(self._route, key, timeout=0.0, holder=holder, lease=lease, first=first)

    def hold_name(
        self, key: str, name: str, *, timeout: float, holder: Holder, lease: float = math.inf
    ) -> MigratingHeldName:
        return MigratingHeldName(self._route, key, name, timeout=timeout, holder=holder, lease=lease)

    async def touch(self, key: str, *, now: float) -> None:
        await self.old.touch(key, now=now)
        await self.new.touch(key, now=now)

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        # Sweeps leave it where its record is, or where that was before it was moved.
        await self.old.add_member(group, key, now=now)
        await self.new.add_member(group, key, now=now)

    async def members(self, group: str) -> Mapping[str, float]:
        old, new = await self.old.members(group), await self.new.members(group)
        return {key: max(old.get(key, -math.inf), new.get(key, -math.inf)) for key in {**old, **new}}

    async def remove_member(self, group: str, key: str) -> None:
        await self.old.remove_member(group, key)
        await self.new.remove_member(group, key)

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        return await self.old.delete_expired(expiry, now=now) + await self.new.delete_expired(expiry, now=now)

    async def keys(self) -> AsyncIterator[str]:
        seen = set[str]()
        async for key in self.old.keys():  # first: what is moved meanwhile comes twice rather than never
            seen.add(key)
            yield key
        async for key in self.new.keys():
            if key not in seen:
                yield key

    def statistics(self) -> BackendStatistics:
        old, new = self.old.statistics(), self.new.statistics()
        return BackendStatistics(
            holding=self._turns.holding,  # which may be held in both
            waiting=self._turns.waiting + old.waiting + new.waiting,
            corrupt=old.corrupt + new.corrupt,
            io_switches=old.io_switches + new.io_switches,
        )

    async def move_all(self) -> int:
        """Move the sessions that nobody has opened for writing; return how many. Then the old backend can go.

        Raises:
            LockTimeoutError, StoreError: One could not be moved; call this again.
        """
        count = 0
        async for key in self.old.keys():
            holder = Holder(os.getpid(), "mover", datetime.now(UTC), __name__)
            try:
                async with self.hold(key, timeout=_MOVER_TIMEOUT, holder=holder, lease=_MOVER_LEASE):
                    count += 1
            except CorruptSessionError:  # it was moved aside, and told of; the others are still to come
                continue
        return count
