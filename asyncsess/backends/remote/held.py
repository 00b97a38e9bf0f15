"""`RemoteHeld` and `RemoteHeldName`: locks on a server elsewhere, from the line in this process to the release."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.remote.engine import Busy, Claim, Granted
from asyncsess.backends.remote.lines import CLOSED, Lines, process
from asyncsess.backends.turns import Turn, boot_time
from asyncsess.errors import CommitUnknownError, LockLostError, LockTimeoutError, SessionError, StoreError

T = TypeVar("T")

logger = logging.getLogger("asyncsess")

_NOT_HELD: Final = "the session is no longer held; nothing was stored"


class RemoteHold:
    """The way to a lock on a server, and back: first the line of this process, then that of the server.

    Args:
        lines: Those of this process.
        claim: What is wanted.
        timeout: Seconds to wait for both.

    Attributes:
        waited: Seconds that others took to let go; 0 if it was free.
        is_waiting: Whether it stands in the line of the server.
    """

    def __init__(self, lines: Lines, claim: Claim, timeout: float) -> None:
        self._lines = lines
        self._engine = lines.engine
        self._claim = claim
        self._timeout = timeout
        self._turn: Turn | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sleep: asyncio.Future[None] | None = None
        self._is_locked = self.is_waiting = False
        self.waited = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'locked' if self._is_locked else 'free'}>"

    async def __aenter__(self) -> Self:
        started, claim = time.monotonic(), self._claim
        line = claim.key if claim.name is None else f"{claim.key}:{claim.name}"
        turn = self._turn = await self._lines.take(line, timeout=self._timeout, holder=claim.holder)
        self._loop = asyncio.get_running_loop()
        self._lines.asking.add(self)
        try:
            await self._engine.ready()
            self._granted(await self._acquire(started))
            if turn.has_waited or self.is_waiting:
                self.waited = time.monotonic() - started
        except BaseException:
            self._give_back()
            raise
        finally:
            self.is_waiting = False
            self._lines.asking.discard(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._release(None)

    async def _acquire(self, started: float) -> Granted:
        """Ask until the lock is granted. Whoever gives up leaves no lock behind, granted or not."""
        answer = None
        try:
            while not self._lines.is_closed:
                answer = await self._engine.take(self._claim)
                if isinstance(answer, Busy):
                    await self._wait(answer, started)
                elif not self._lines.is_closed:
                    return answer
        except BaseException as error:
            await self._undo(error)
            raise
        if answer is not None:
            await finish(self.leave())
        raise StoreError(CLOSED)

    async def _undo(self, error: BaseException) -> None:
        """Give back what may be granted to somebody who fails, or is cancelled, before he knows."""
        if isinstance(error, StoreError):
            self.leave_later(error)
        else:
            await finish(self.leave())

    async def _wait(self, answer: Busy, started: float) -> None:
        waited = time.monotonic() - started
        if waited >= self._timeout:
            raise LockTimeoutError(waited, answer.holder, ahead=answer.ahead)
        self.is_waiting = True
        await self._told(min(self._timeout - waited, answer.pause))

    async def _told(self, seconds: float) -> None:
        """Wait until the lock may be free, or until `wake`."""
        self._sleep = asyncio.ensure_future(self._engine.told(self._claim, seconds))
        try:
            await asyncio.wait([self._sleep])
        finally:
            self._sleep.cancel()
        if not self._sleep.cancelled():
            self._sleep.result()

    def wake(self) -> None:
        """Wait no longer; for the thread of the one who waits."""
        if self._sleep is not None:
            self._sleep.cancel()

    def is_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether this is asked for in an event loop."""
        return self._loop is loop

    async def leave(self) -> None:
        """Leave the line of the server, or give back what may have been granted meanwhile."""
        try:
            await self._engine.leave(self._claim)
        except StoreError as error:
            self.leave_later(error)

    def leave_later(self, error: StoreError) -> None:
        """Leave as soon as the server can be used."""
        self._lines.returns.add(self._claim, error)

    def _granted(self, answer: Granted) -> None:
        """Note what is held from now on."""
        self._is_locked = answer.is_locked
        self._lines.holds.add(self)
        if self._turn is not None:
            self._turn.deadline = boot_time() + self._claim.lease
            if self._turn.has_waited:
                self._turn.begins()

    @property
    def is_contended(self) -> bool:
        """Whether anybody waits for this, here or, where the server tells, elsewhere."""
        if self._turn is None or not self._is_locked:
            return False
        return self._lines.has_waiters(self._turn) or self._engine.is_contended(self._claim)

    @property
    def _is_current(self) -> bool:
        """Whether it still is this one's turn, and not in the child of a fork."""
        return self._turn is not None and self._lines.is_current(self._turn)

    async def renew(self, lease: float) -> None:
        self._check_held()
        await self._engine.renew(self._claim, lease)
        self._claim = self._claim._replace(lease=lease)
        if self._turn is not None:
            self._turn.deadline = boot_time() + lease

    def _check_held(self) -> None:
        if not self._is_locked or not self._is_current:
            raise LockLostError(_NOT_HELD)

    async def _release(self, now: float | None) -> None:
        is_locked, self._is_locked = self._is_locked, False
        try:
            if is_locked and process.has_made(self._claim.token):
                await finish(self._let_go(now))  # also if another has the turn, as the engine remembers this one
        finally:
            self._give_back()

    async def _let_go(self, now: float | None) -> None:
        try:
            await self._engine.release(self._claim, now=now)
        except StoreError as error:
            self._lines.returns.add(self._claim, error)

    async def lose(self) -> None:
        """Give everything back, whatever its holder is about."""
        await self._release(None)

    def _give_back(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._lines.give_back(turn)


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
        lines, claim, timeout: As `RemoteHold`.
        first: The first version, to be stored on entering; None to take what is there.
    """

    def __init__(self, lines: Lines, claim: Claim, timeout: float, *, first: Record | None = None) -> None:
        super().__init__(lines, claim, timeout)
        self._first = first
        self._found: Found = None
        self._is_doubtful = False

    @property
    def record(self) -> Found:
        return self._found

    async def _acquire(self, started: float) -> Granted:
        if self._first is None:
            return await super()._acquire(started)
        try:
            is_new = await self._engine.create(self._claim, self._first)
        except BaseException as error:
            await self._undo(error)
            raise
        if not is_new:
            raise StoreError("there is a session of this key already")
        return Granted(self._first)

    def _granted(self, answer: Granted) -> None:
        super()._granted(answer)
        self._found = answer.found

    async def commit(self, payload: bytes, *, now: float, is_last: bool = False) -> Record:
        self._check_held()
        if isinstance(self._found, Tombstone):
            raise StoreError("a session that was deleted can't be changed")
        if self._is_doubtful:
            raise CommitUnknownError(
                "what became of an earlier commit of this holder is not known; open the session anew"
            )
        try:
            return await self._commit(payload, now, is_last=is_last)
        except asyncio.CancelledError:
            try:
                await finish(self._commit(payload, now, is_last=is_last))
            except SessionError as error:
                logger.warning("a commit that was under way when it was cancelled has failed: %s", error)
            raise

    async def _commit(self, payload: bytes, now: float, *, is_last: bool) -> Record:
        is_doubtful, self._is_doubtful = self._is_doubtful, True
        try:
            record = await self._engine.commit(self._claim, self._found, payload, now=now, is_last=is_last)
        except CommitUnknownError:
            raise
        except LockLostError:
            self._is_locked = False
            raise
        except StoreError:  # nothing was stored, this time
            self._is_doubtful = is_doubtful
            raise
        self._found, self._is_doubtful = record, False
        if is_last:
            self._is_locked = False
        return record

    async def delete(self, tombstone: Tombstone | None = None, *, now: float) -> None:
        if self._found is None and not self._is_locked and self._is_current:  # there is nothing to delete
            return
        self._check_held()
        await finish(self._delete(tombstone if isinstance(self._found, Record) else None, now))
        self._give_back()

    async def _delete(self, tombstone: Tombstone | None, now: float) -> None:
        try:
            await self._engine.delete(self._claim, tombstone, now=now)
        except LockLostError:
            self._is_locked = False
            raise
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
