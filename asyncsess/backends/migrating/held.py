"""`MigratingHeld` and `MigratingHeldName`: what is held in two backends, one after the other."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, NamedTuple, Self

from asyncsess.backends.base import Backend, Found, Held, HeldName, Hold, Record, Tombstone
from asyncsess.backends.migrating.places import is_in_old, is_moved, moved, unless_moved
from asyncsess.backends.turns import Turn, Turns, boot_time
from asyncsess.errors import Holder, LockLostError, LockTimeoutError, StoreError

_DAY: Final = 86400.0  # for which a tombstone of unknown age is to stand
_NO_TIME: Final = 0.0  # where no tombstone is left


class Route(NamedTuple):
    """From where to where sessions go, and whether they do yet.

    Attributes:
        old, new: The backends.
        moves: Whether they do.
        turns: The queues of this process before both, in which it shows who waits for whom.
    """

    old: Backend
    new: Backend
    moves: bool
    turns: Turns


class _Hold(ABC):
    """What it takes to hold something in two backends, one after the other: first the turn in this process.

    Args:
        route: Between which backends.
        key, timeout, holder, lease: As `Backend.hold`.
        line: The queue of this process.
    """

    def __init__(self, route: Route, key: str, *, line: str, timeout: float, holder: Holder, lease: float) -> None:
        self._old, self._new, self._moves, self._turns = route
        self._turn: Turn | None = None
        self._line = line
        self._key = key
        self._timeout = timeout
        self._holder = holder
        self._lease = lease
        self._until = 0.0
        self._has_waited = False
        self._holds = AsyncExitStack()
        self.waited = 0.0

    async def __aenter__(self) -> Self:
        started = time.monotonic()
        self._until = started + self._timeout
        self._turn = turn = await self._turns.take(self._line, timeout=self._timeout, holder=self._holder)
        try:
            turn.deadline = boot_time() + self._lease  # also for who hangs on the way: the locks are what counts
            while not await self._attempt():
                self._has_waited = True
        except LockTimeoutError as error:
            self._give_back()
            waited = time.monotonic() - started
            raise LockTimeoutError(waited, error.holder, ahead=error.ahead, state=error.state) from None
        except BaseException:
            self._give_back()
            raise
        turn.deadline = boot_time() + self._lease
        if self._has_waited:
            turn.begins()
        if self._has_waited or turn.has_waited:
            self.waited = time.monotonic() - started
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._holds.__aexit__(kind, error, traceback)
        finally:
            self._give_back()

    @property
    def is_contended(self) -> bool:
        has_waiters = self._turn is not None and self._turns.has_waiters(self._turn)
        return has_waiters or any(held.is_contended for held in self._all())

    async def renew(self, lease: float) -> None:
        for held in self._all():
            await held.renew(lease)
        if self._turn is not None:
            self._turn.deadline = boot_time() + lease

    def _give_back(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._turns.give_back(turn)

    async def _attempt(self) -> bool:
        """Hold it; or nothing, if others have taken over the one while this waited for the other."""
        try:
            async with AsyncExitStack() as olds, AsyncExitStack() as news:
                await self._enter(olds, news)
        except LockLostError:
            return False
        return True

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    @abstractmethod
    def _all(self) -> Sequence[Hold]:
        """Return what is held."""

    @abstractmethod
    async def _enter(self, olds: AsyncExitStack, news: AsyncExitStack) -> None:
        """Hold it in the old backend, then in the new one, and keep what is to be held."""


class MigratingHeld(_Hold):
    """A key, held in the backend that its session is in, or is moved to: `Held` of `asyncsess.backends.base`.

    Args:
        route: Between which backends.
        key, timeout, holder, lease: As `Backend.hold`.
        create: Hold the key although it has no record.
        first: The first version, to be stored on entering; None to take what is there.
    """

    _held: Held

    def __init__(
        self,
        route: Route,
        key: str,
        *,
        timeout: float,
        holder: Holder,
        lease: float,
        create: bool = False,
        first: Record | None = None,
    ) -> None:
        super().__init__(route, key, line=key, timeout=timeout, holder=holder, lease=lease)
        self._create = create
        self._first = first

    @property
    def record(self) -> Found:
        return self._held.record

    async def commit(self, payload: bytes, *, now: float, is_last: bool = False) -> Record:
        return await self._held.commit(payload, now=now, is_last=is_last)

    async def delete(self, tombstone: Tombstone | None = None, *, now: float) -> None:
        await self._held.delete(tombstone, now=now)
        self._give_back()

    async def release(self, *, now: float) -> None:
        try:
            await self._held.release(now=now)
        finally:
            self._give_back()

    def _all(self) -> tuple[Held]:
        return (self._held,)

    async def _enter(self, olds: AsyncExitStack, news: AsyncExitStack) -> None:
        if self._first is not None:
            self._held, self._holds = await self._begin(self._first, news), news.pop_all()
            return
        old = await self._take_in(self._old, olds)
        before = unless_moved(old.record)
        is_adopted = self._create and old.record is None
        if before is None and not is_adopted:
            await olds.aclose()  # nothing there is to be kept from others
        new = await self._take_in(self._new, news)
        if new.waited and (before is not None or is_adopted):
            await old.renew(self._lease)
        if is_moved(new.record):  # and comes back
            await new.delete(now=_NO_TIME)
            await news.aclose()
            new = await self._take_in(self._new, news)
        if before is not None:
            self._held = await self._settle(before, old, new, news)
        else:
            self._held = old if is_adopted and not self._moves and new.record is None else new
        self._holds = (olds if self._held is old else news).pop_all()

    async def _take_in(self, backend: Backend, stack: AsyncExitStack) -> Held:
        hold = backend.hold(
            self._key, timeout=self._left(), holder=self._holder, lease=self._lease, create=self._create
        )
        held = await stack.enter_async_context(hold)
        self._has_waited |= held.waited > 0
        return held

    async def _begin(self, first: Record, stack: AsyncExitStack) -> Held:
        """Store a first version, where sessions begin."""
        old, new = await self._old.read(self._key), await self._new.read(self._key)
        if unless_moved(old) is not None or unless_moved(new) is not None:
            raise StoreError("there is a session of this key already")
        here = self._old if old is None and not self._moves else self._new
        return await self._create_in(here, first, stack)

    async def _create_in(self, backend: Backend, record: Record, stack: AsyncExitStack) -> Held:
        payload, version, created_at, accessed_at = record
        hold = backend.create(
            self._key,
            payload,
            created_at=created_at,
            now=accessed_at,
            holder=self._holder,
            lease=self._lease,
            version=version,
        )
        return await stack.enter_async_context(hold)

    async def _settle(self, before: Record | Tombstone, old: Held, new: Held, news: AsyncExitStack) -> Held:
        """Leave in one backend only what the old one has; return that which has it then."""
        copied = new.record if isinstance(new.record, Record) else None
        if isinstance(before, Tombstone):  # which is younger than the copy
            if copied is not None:
                await new.delete(before, now=before.until - _DAY)
            return old
        if not is_in_old(before, new.record):
            await old.delete(moved(before), now=before.accessed_at)
            return new
        if self._moves:
            return await self._move(before, old, new, news)
        if copied is not None:
            await new.delete(now=_NO_TIME)
        return old

    async def _move(self, record: Record, old: Held, new: Held, news: AsyncExitStack) -> Held:
        """Copy a session to the new backend, then leave a tombstone in the old one."""
        is_copied = new.record == record  # by a move that was interrupted
        if not is_copied:
            if new.record is not None:
                await new.delete(now=_NO_TIME)
            await news.aclose()
            try:
                new = await self._create_in(self._new, record, news)
            except StoreError:
                await old.renew(self._lease)  # else another has moved it meanwhile
                raise
        try:
            await old.delete(moved(record), now=record.accessed_at)
        except LockLostError:
            if not is_copied:  # else it may be what another has moved
                await new.delete(now=_NO_TIME)
            raise
        return new


class MigratingHeldName(_Hold):
    """A name inside a key, held in both backends: `HeldName` of `asyncsess.backends.base`.

    Args:
        route: Between which backends.
        key, timeout, holder, lease: As `Backend.hold`.
        name: The name.
    """

    _both: tuple[HeldName, HeldName]

    def __init__(self, route: Route, key: str, name: str, *, timeout: float, holder: Holder, lease: float) -> None:
        super().__init__(route, key, line=f"{key}:{name}", timeout=timeout, holder=holder, lease=lease)
        self._name = name

    @property
    def was_late(self) -> bool:
        return any(held.was_late for held in self._both)

    async def check(self) -> None:
        for held in self._both:
            await held.check()

    def _all(self) -> tuple[HeldName, HeldName]:
        return self._both

    async def _enter(self, olds: AsyncExitStack, news: AsyncExitStack) -> None:
        old = await self._take_in(self._old, olds)
        new = await self._take_in(self._new, news)
        if new.waited:
            await old.renew(self._lease)
        self._both = old, new
        self._holds.push_async_exit(olds.pop_all())
        self._holds.push_async_exit(news.pop_all())

    async def _take_in(self, backend: Backend, stack: AsyncExitStack) -> HeldName:
        hold = backend.hold_name(self._key, self._name, timeout=self._left(), holder=self._holder, lease=self._lease)
        held = await stack.enter_async_context(hold)
        self._has_waited |= held.waited > 0
        return held
