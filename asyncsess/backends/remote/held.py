"""`RemoteHeld` and `RemoteHeldName`: locks on a server elsewhere, from the line in this process to the release."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
import weakref
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.remote.debts import Debts
from asyncsess.backends.remote.engine import Busy, Claim, Engine, Granted
from asyncsess.backends.turns import Turn, Turns, boot_time
from asyncsess.errors import Holder, LockLostError, LockTimeoutError, StoreError

T = TypeVar("T")

logger = logging.getLogger("asyncsess")

_NOT_HELD: Final = "the session is no longer held; nothing was stored"
_numbers = count(1)


class Process:
    """What tells this process from all others that use a server; made anew in the child of a fork."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)

    def token(self) -> str:
        """Return what no claim has had before."""
        return f"{self.name}.{next(_numbers)}"


process = Process()


class Lines(Turns):
    """The lines of this process, whose first stand in those of a server.

    Attributes:
        debts: What could not be given back yet.
        elsewhere: How many stand there.
        holds: What is held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.debts = Debts()
        self.elsewhere = 0
        self.holds = weakref.WeakSet[RemoteHold]()


class RemoteHold:
    """The way to a lock on a server, and back: first the line of this process, then that of the server.

    Args:
        engine: The server.
        lines: Those of this process.
        claim: What is wanted.
        timeout: Seconds to wait for both.

    Attributes:
        waited: Seconds that others took to let go; 0 if it was free.
    """

    def __init__(self, engine: Engine, lines: Lines, claim: Claim, timeout: float) -> None:
        self._engine = engine
        self._turns = lines
        self._claim = claim
        self._timeout = timeout
        self._turn: Turn | None = None
        self._is_locked = False
        self.waited = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'locked' if self._is_locked else 'free'}>"

    async def __aenter__(self) -> Self:
        started = time.monotonic()
        claim = self._claim
        line = claim.key if claim.name is None else f"{claim.key}:{claim.name}"
        self._turn = await self._turns.take(line, timeout=self._timeout, holder=claim.holder)
        try:
            has_waited = await self._acquire(started + self._timeout, started)
        except BaseException:
            self._give_back()
            raise
        if has_waited or self._turn.has_waited:
            self.waited = time.monotonic() - started
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._release(None)

    async def _acquire(self, until: float, started: float) -> bool:
        """Take the lock; return whether others had to let go of it first."""
        has_waited = False
        try:
            while isinstance(answer := await self._take(), Busy):
                self._turns.elsewhere += not has_waited
                has_waited = True
                left = until - time.monotonic()
                if left <= 0:
                    raise LockTimeoutError(time.monotonic() - started, answer.holder, ahead=answer.ahead)
                await self._engine.told(self._claim, min(left, answer.pause))
        except StoreError:  # it may have been granted all the same
            self._turns.debts.owe(partial(self._engine.leave, self._claim), self._claim.lease)
            raise
        except BaseException:
            if has_waited:
                await finish(self._leave())
            raise
        finally:
            self._turns.elsewhere -= has_waited
        self._granted(answer)
        self._turns.holds.add(self)
        return has_waited

    async def _take(self) -> Granted | Busy:
        """Ask for the lock. A grant that a cancellation keeps from being known is given back."""
        asking = asyncio.ensure_future(self._engine.take(self._claim))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            with suppress(StoreError):
                await finish(_wait(asking))
            await finish(self._leave())
            raise

    async def _leave(self) -> None:
        try:
            await self._engine.leave(self._claim)
        except StoreError as error:
            logger.warning("a lock that nobody waits for any more could not be given up yet: %s", error)
            self._turns.debts.owe(partial(self._engine.leave, self._claim), self._claim.lease)

    def _granted(self, answer: Granted) -> None:
        """Note what is held from now on."""
        self._is_locked = answer.is_locked
        if self._turn is not None:
            self._turn.deadline = boot_time() + self._claim.lease
            if self._turn.has_waited:
                self._turn.begins()

    @property
    def is_contended(self) -> bool:
        """Whether anybody waits for this, here or, where the server tells, elsewhere."""
        if self._turn is None or not self._is_locked:
            return False
        return self._turns.has_waiters(self._turn) or self._engine.is_contended(self._claim)

    async def renew(self, lease: float) -> None:
        self._check_held()
        await self._engine.renew(self._claim, lease)
        self._claim = self._claim._replace(lease=lease)
        if self._turn is not None:
            self._turn.deadline = boot_time() + lease

    def _check_held(self) -> None:
        if self._turn is None or not self._is_locked or not self._turns.is_current(self._turn):
            raise LockLostError(_NOT_HELD)

    async def _release(self, now: float | None) -> None:
        try:
            if self._is_locked:
                self._is_locked = False
                await finish(self._let_go(now))
        finally:
            self._give_back()

    async def _let_go(self, now: float | None) -> None:
        try:
            await self._engine.release(self._claim, now=now)
        except StoreError as error:  # what was to be stored has been
            logger.warning("a lock could not be given back yet: %s", error)
            self._turns.debts.owe(partial(self._engine.release, self._claim, now=now), self._claim.lease)

    async def lose(self) -> None:
        """Give everything back, whatever its holder is about."""
        await self._release(None)

    def _give_back(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._turns.give_back(turn)


class RemoteHeldName(RemoteHold):
    """A name inside a key, held: `HeldName` of `asyncsess.backends.base`."""

    was_late = False

    def _granted(self, answer: Granted) -> None:
        super()._granted(answer)
        self.was_late = answer.was_late

    async def check(self) -> None:
        self._check_held()
        await self._engine.check(self._claim)


class RemoteHeld(RemoteHold):
    """A key, held: `Held` of `asyncsess.backends.base`.

    Args:
        engine, lines, claim, timeout: As `RemoteHold`.
        first: The first version, to be stored on entering; None to take what is there.
    """

    def __init__(
        self, engine: Engine, lines: Lines, claim: Claim, timeout: float, *, first: Record | None = None
    ) -> None:
        super().__init__(engine, lines, claim, timeout)
        self._first = first
        self._found: Found = None

    @property
    def record(self) -> Found:
        return self._found

    async def _take(self) -> Granted | Busy:
        if self._first is None:
            return await super()._take()
        await finish(self._engine.create(self._claim, self._first))
        return Granted(self._first)

    def _granted(self, answer: Granted) -> None:
        super()._granted(answer)
        self._found = answer.found

    async def commit(self, payload: bytes, *, now: float, is_last: bool = False) -> Record:
        self._check_held()
        if isinstance(self._found, Tombstone):
            raise StoreError("a session that was deleted can't be changed")
        return await finish(self._commit(payload, now, is_last=is_last))

    async def _commit(self, payload: bytes, now: float, *, is_last: bool) -> Record:
        try:
            record = await self._engine.commit(self._claim, self._found, payload, now=now, is_last=is_last)
        except LockLostError:
            self._is_locked = False
            raise
        self._found = record
        if is_last:
            self._is_locked = False
        return record

    async def delete(self, tombstone: Tombstone | None = None) -> None:
        self._check_held()
        left = tombstone if isinstance(self._found, Record) else None
        await finish(self._delete(left))
        self._give_back()

    async def _delete(self, tombstone: Tombstone | None) -> None:
        await self._engine.delete(self._claim, tombstone)
        self._found, self._is_locked = tombstone, False

    async def release(self, *, now: float) -> None:
        await self._release(now if isinstance(self._found, Record) else None)


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run what must not be abandoned in the middle; a cancellation comes out afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        with anyio.CancelScope(shield=True):  # else anyio repeats its cancellation at each turn of the loop
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("what was under way when it was cancelled has failed: %s", error)
        raise


async def _wait(future: asyncio.Future[Any]) -> None:
    await future


def _begin_process() -> None:
    process.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_begin_process)
