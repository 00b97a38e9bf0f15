"""`Acquisition`: how a file comes to be locked, and into whose hands; and how it is given back."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TypeVar

from asyncsess.backends.file.files import Files
from asyncsess.backends.file.layout import MARK_AT, Claim
from asyncsess.backends.file.lease import Lease, is_late
from asyncsess.backends.file.lock import FileLock
from asyncsess.backends.file.waiting import Outcome, Patience, timed_out, wait_for
from asyncsess.backends.turns import Turn, Turns, boot_time
from asyncsess.errors import Holder, LockLostError, LockTimeoutError, StoreError

T = TypeVar("T")

logger = logging.getLogger("asyncsess")

NOT_HELD: Final = "the session is no longer held; nothing was stored"


class Acquisition(ABC):
    """The way to the exclusive right to one file, and back.

    Three rings: the queue of this process, the lock of the file, and the bell that tells when to try it again.

    Args:
        files: The files of the store.
        turns: The queues of this process.
        key: The session that the file belongs to, in whose directory's lock it gets and loses its name.
        name: The file.
        line: The queue.
        timeout: Seconds to wait for both rings together.
        lease: Seconds for which nobody takes over.
        holder: What to tell those who wait.

    Attributes:
        waited: Seconds that others took to let go; 0 if it was free.
    """

    def __init__(
        self,
        files: Files,
        turns: Turns,
        key: str,
        *,
        name: str,
        line: str,
        timeout: float,
        lease: float,
        holder: Holder,
    ) -> None:
        self._files = files
        self._turns = turns
        self._key = key
        self._name = name
        self._line = line
        self._timeout = timeout
        self._length = lease
        self._lease: Lease | None = None
        self._holder = holder
        self._turn: Turn | None = None
        self._file: FileLock | None = None
        self.waited = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._file!r}>"

    async def __aenter__(self) -> Self:
        patience = Patience(self._timeout)
        files = self._files
        if not files.directory.is_open:
            await files.ready()
        try:
            self._turn = await self._turns.take(self._line, timeout=self._timeout, holder=self._holder)
        except LockTimeoutError as error:
            raise await self._named(error) from None
        files.holders.add(self)
        try:
            await self._acquire(patience)
        except BaseException:
            self.lose()
            raise
        if self._turn.has_waited or patience.has_waited:
            self.waited = patience.waited()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.lose()

    @property
    def is_contended(self) -> bool:
        """Whether anybody waits for this."""
        if self._turn is None or not self._turns.is_current(self._turn):
            return False
        try:
            return self._turns.has_waiters(self._turn) or bool(self._file and self._file.is_marked())
        except OSError as error:  # what was to be stored need not fail for that
            logger.warning("whether others wait for a session could not be read: %s", error.strerror)
            return False

    def _check_held(self) -> None:
        if self._turn is None or not self._turns.is_current(self._turn):
            raise LockLostError(NOT_HELD)

    async def renew(self, lease: float) -> None:
        self._check_held()
        self._length = lease
        await self._alone(self._renew)

    def _renew(self) -> None:
        if self._file is None or not self._file.leads_here():
            raise LockLostError("others have taken over; nothing was stored")
        self._begin(self._file)

    async def _named(self, error: LockTimeoutError) -> LockTimeoutError:
        """Return who really holds, after the wait for a task that itself waits for another process."""
        who = None
        with suppress(StoreError):  # no descriptors, or no store any more: that it took too long is what matters
            who = await self._files.io.run(self._files.holder, self._name)
        if who is None or who.pid == self._holder.pid:
            return error
        return timed_out(error.waited, who, error.ahead)

    async def _acquire(self, patience: Patience) -> None:
        """Lock the file that the name leads to, and look at what is in it."""
        while True:
            outcome = await self._files.io.run(self._open)
            if outcome in (Outcome.BUSY, Outcome.OTHERS_WAIT):
                outcome = await self._wait(patience, outcome)
            if outcome in (Outcome.LATE, Outcome.UNSURE):
                outcome = await self._alone(self._take_over if outcome is Outcome.LATE else self._make_sure)
            if outcome is Outcome.REPLACED:
                patience.left(None)
                await asyncio.sleep(0)
            elif outcome is Outcome.HELD or await self._do_without():
                return

    async def _wait(self, patience: Patience, outcome: Outcome) -> Outcome:
        assert self._file is not None
        return await wait_for(
            self._file,
            lambda: self._files.io.run(self._try_again),
            files=self._files,
            patience=patience,
            is_polite=outcome is Outcome.OTHERS_WAIT,
        )

    def _open(self) -> Outcome:
        try:
            self._file = FileLock(self._name, self._files.directory.fd)
        except FileNotFoundError:
            return Outcome.ABSENT
        return self._try_first(self._file)

    def _try_first(self, file: FileLock) -> Outcome:
        if file.is_marked_by_others():
            return Outcome.OTHERS_WAIT
        return self._take(file) if file.try_lock() else Outcome.BUSY

    def _try_again(self) -> Outcome:
        file = self._opened()
        if not file.try_lock():
            file.mark()
            return Outcome.LATE if is_late(file) else Outcome.BUSY
        file.look_again()
        self._wait_ends()
        return self._take(file)

    def _wait_ends(self) -> None:
        if self._turn:
            self._turn.begins()

    def _opened(self) -> FileLock:
        if self._file is None:  # taken away meanwhile
            raise StoreError("the store was closed")
        return self._file

    def _take(self, file: FileLock) -> Outcome:
        """Check that the locked file is what the name leads to. Without the check two could hold it."""
        before = self._inspect(file)
        if before is None:
            return self._replaced()
        self._begin(file)
        if not file.leads_here():
            return self._replaced()
        return Outcome.UNSURE if 0 < before.deadline <= boot_time() else Outcome.HELD

    def _begin(self, file: FileLock) -> None:
        """Begin the lease, and say so in the file."""
        lease = self._lease = self._new_lease()
        file.write(lease.encoded(), MARK_AT)
        if self._turn:
            self._turn.deadline = lease.deadline

    def _new_lease(self) -> Lease:
        return Lease(self._turn.holder if self._turn else self._holder, self._length)

    async def _alone(self, step: Callable[[], T]) -> T:
        """Do a step while nobody else changes which file the name leads to."""
        async with self._files.naming(self._key):
            return await self._files.write(step)

    def _make_sure(self) -> Outcome:
        """Look again whether the name leads to the file: somebody may have been taking over from the holder before."""
        return Outcome.HELD if self._opened().leads_here() else self._replaced()

    def _replaced(self) -> Outcome:
        self._close()
        return Outcome.REPLACED

    def _take_over(self) -> Outcome:
        """Take the name from a holder that is late."""
        late = self._opened()
        if not late.leads_here():
            return self._replaced()
        late.look_again()
        self._wait_ends()
        if late.try_lock():
            outcome = self._take(late)
            return Outcome.HELD if outcome is Outcome.UNSURE else outcome
        if not is_late(late):  # it has renewed its lease
            return self._replaced()
        return self._replace(late)

    def lose(self) -> None:
        """Give everything back, without a word to the event loop: this also runs when a coroutine is thrown away."""
        if self._turn is None:
            return
        self._files.holders.discard(self)
        try:
            if self._file is not None:
                self._give_up()
        finally:
            turn, self._turn = self._turn, None
            self._turns.give_back(turn)

    def _close(self, times: tuple[float, float] | None = None, *, are_set: bool = False) -> None:
        file, self._file = self._file, None
        if file:
            file.close(times, are_set=are_set)

    # What each kind of file does in its own way.

    @abstractmethod
    def _inspect(self, file: FileLock) -> Claim | None:
        """Return what the last holder claimed in a locked file; None if it turns out to be another's by now."""

    @abstractmethod
    def _replace(self, late: FileLock) -> Outcome:
        """Take over from a holder that is late, within the lock of the directory."""

    @abstractmethod
    async def _do_without(self) -> bool:
        """Make do with a name that leads to no file; return False to look again."""

    @abstractmethod
    def _give_up(self) -> None:
        """Give the file back."""
