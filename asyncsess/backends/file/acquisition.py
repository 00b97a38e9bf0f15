"""`Acquisition`: how a session file comes to be locked, and into whose hands; and how it is given back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from asyncsess.backends.base import Record
from asyncsess.backends.file import layout
from asyncsess.backends.file.directory import name_of
from asyncsess.backends.file.files import Files, decode, read_all
from asyncsess.backends.file.layout import DamagedError, Snapshot
from asyncsess.backends.file.lease import Lease, is_late
from asyncsess.backends.file.lock import FileLock, NewFile
from asyncsess.backends.file.waiting import Outcome, Patience, wait_for
from asyncsess.backends.turns import Turn, Turns, boot_time
from asyncsess.errors import (
    CommitUnknownError,
    CorruptSessionError,
    Holder,
    LockLostError,
    StoreError,
)

logger = logging.getLogger("asyncsess")

NO_NOTE: Final = layout.encode_note(layout.Note(0, 0))
NOT_HELD: Final = "the session is no longer held; nothing was stored"


class Acquisition:
    """The way to the exclusive right to one session file, and what it leads to.

    Three rings: the queue of this process, the lock of the file, and the bell that tells when to try it again.

    Args:
        files: The files of the store.
        turns: The queues of this process.
        key: The session.
        timeout: Seconds to wait for both rings together.
        lease: Seconds for which nobody takes over.
        holder: What to tell those who wait.
        create: Lock the session although it does not exist.
        first: The first version, to be stored on entering; None to take what is there.
    """

    def __init__(
        self,
        files: Files,
        turns: Turns,
        key: str,
        *,
        timeout: float,
        lease: float,
        holder: Holder,
        create: bool = False,
        first: Record | None = None,
    ) -> None:
        self._files = files
        self._turns = turns
        self._key = key
        self._timeout = timeout
        self._length = lease
        self._lease: Lease | None = None
        self._note = NO_NOTE
        self._holder = holder
        self._create = create
        self._first = first
        self._turn: Turn | None = None
        self._file: FileLock | None = None
        self._snapshot: Snapshot | None = None
        self._is_doubtful = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._file!r}>"

    def _check_held(self) -> None:
        if self._turn is None or not self._turns.is_current(self._turn):
            raise LockLostError(NOT_HELD)

    async def _acquire(self, patience: Patience) -> None:
        """Lock the file that the session's name leads to, and read it."""
        while True:
            outcome = await self._look(self._open)
            if outcome in (Outcome.BUSY, Outcome.OTHERS_WAIT):
                outcome = await self._wait(patience, outcome)
            if outcome in (Outcome.LATE, Outcome.UNSURE):
                outcome = await self._alone(self._take_over if outcome is Outcome.LATE else self._make_sure)
            if outcome is Outcome.REPLACED:
                patience.left(None)
                await asyncio.sleep(0)
            elif outcome is Outcome.HELD or not self._create or await self._place():
                return

    async def _wait(self, patience: Patience, outcome: Outcome) -> Outcome:
        assert self._file is not None
        is_polite = outcome is Outcome.OTHERS_WAIT
        return await wait_for(
            self._file,
            lambda: self._look(self._try_again),
            files=self._files,
            patience=patience,
            is_polite=is_polite,
        )

    async def _look(self, step: Callable[[], Outcome]) -> Outcome:
        try:
            return await self._files.io.run(step)
        except DamagedError as error:
            assert self._file is not None
            async with self._files.naming(self._key):
                path = await self._files.io.run(self._files.quarantine, self._file, self._key, error)
            raise CorruptSessionError(str(error), path) from error

    def _open(self) -> Outcome:
        try:
            self._file = FileLock(name_of(self._key), self._files.directory.fd)
        except FileNotFoundError:
            return Outcome.ABSENT
        if self._file.is_marked_by_others():
            return Outcome.OTHERS_WAIT
        return self._take() if self._file.try_lock() else Outcome.BUSY

    def _try_again(self) -> Outcome:
        if self._file is None:  # taken away meanwhile
            raise StoreError("the store was closed")
        if not self._file.try_lock():
            self._file.mark()
            return Outcome.LATE if is_late(self._file) else Outcome.BUSY
        self._file.look_again()
        return self._take()

    def _take(self) -> Outcome:
        """Check that the locked file is the session's, and read it. Without the check two could hold the session."""
        file = self._file
        assert file is not None
        data = read_all(file.fd, file.status.st_size)
        try:
            self._snapshot = decode(data, self._key)
        except DamagedError:
            if file.leads_here():
                raise
            self._close()
            return Outcome.REPLACED
        before = layout.decode_claim(data, layout.MARK_AT)
        self._begin(file)
        if not file.leads_here():
            return self._replaced()
        self._note = data[layout.NOTE_AT : layout.NOTE_AT + len(NO_NOTE)]
        return Outcome.UNSURE if 0 < before.deadline <= boot_time() else Outcome.HELD

    def _begin(self, file: FileLock) -> None:
        """Begin the lease, and say so in the file."""
        lease = self._lease = Lease(self._holder, self._length)
        file.write(lease.encoded(), layout.MARK_AT)
        if self._turn:
            self._turn.deadline = lease.deadline

    async def _alone(self, step: Callable[[], Outcome]) -> Outcome:
        """Do a step while nobody else changes which file the name leads to."""
        async with self._files.naming(self._key):
            return await self._files.write(step)

    def _make_sure(self) -> Outcome:
        """Look again whether the file is the session's: somebody may have been taking over from the holder before."""
        if self._file is None:
            raise StoreError("the store was closed")
        return Outcome.HELD if self._file.leads_here() else self._replaced()

    def _replaced(self) -> Outcome:
        self._close()
        self._snapshot = None
        return Outcome.REPLACED

    def _take_over(self) -> Outcome:
        """Copy the session of a holder that is late into a file of one's own, and give that the name."""
        late = self._file
        if late is None:
            raise StoreError("the store was closed")
        if not late.leads_here():
            return self._replaced()
        late.look_again()
        if late.try_lock():
            outcome = self._take()
            return Outcome.HELD if outcome is Outcome.UNSURE else outcome
        if not is_late(late):  # it has renewed its lease
            return self._replaced()
        data, who, claim = read_all(late.fd, late.status.st_size), late.holder(), late.claim()
        try:
            snapshot = decode(data, self._key)
        except DamagedError as error:
            raise CorruptSessionError(str(error), self._files.quarantine(late, self._key, error)) from error
        lease = self._lease = Lease(self._holder, self._length)
        self._note = layout.encode_note(layout.Note(claim.token, snapshot.version))
        new = self._files.make(data, lease.encoded(), self._note, (snapshot.created_at, snapshot.accessed_at))
        try:
            self._files.publish(new, self._key, late)
        except BaseException:
            new.close()
            raise
        self._file, self._snapshot = new, snapshot
        late.close()
        if self._turn:
            self._turn.deadline = lease.deadline
        logger.warning("a session was taken over, since the lease was over of %s", who)
        return Outcome.HELD

    async def _place(self) -> bool:
        """Lock a session that does not exist, by a placeholder; return False if another came first."""
        content = layout.encode_file(self._key, 0, 0.0, 0, 0.0, b"")
        since = self._holder.since.timestamp()
        try:
            await self._publish(content, (since, since))
        except StoreError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        return True

    async def _publish(self, content: bytes, times: tuple[float, float]) -> None:
        if self._lease is None:
            self._lease = Lease(self._holder, self._length)
        new = await self._files.write(self._files.make, content, self._lease.encoded(), self._note, times)
        try:
            async with self._files.naming(self._key):
                await self._files.write(self._exchange, new, content)
        finally:
            if self._file is not new:
                new.close()

    def _exchange(self, new: NewFile, content: bytes) -> None:
        self._check_held()
        old = self._file
        try:
            self._files.publish(new, self._key, old)
        except CommitUnknownError:
            self._is_doubtful = True
            raise
        finally:
            if new.name == name_of(self._key):
                self._file, self._snapshot = new, layout.decode_file(content, self._key)
                if self._turn and self._lease:
                    self._turn.deadline = self._lease.deadline
                if old:
                    old.close()

    def lose(self) -> None:
        """Give everything back, without a word to the event loop: this also runs when a coroutine is thrown away."""
        if self._turn is None:
            return
        self._files.holders.discard(self)
        file, before = self._file, self._snapshot
        try:
            if file and file.is_ours and before and not before.version:
                self._files.delete_placeholder(file, self._key)
        finally:
            # Locking has written into the file, which is no use of the session.
            self._close((before.created_at, before.accessed_at) if before and before.version else None)
            self._snapshot = None
            turn, self._turn = self._turn, None
            self._turns.give_back(turn)

    def _close(self, times: tuple[float, float] | None = None, *, are_set: bool = False) -> None:
        file, self._file = self._file, None
        if file:
            file.close(times, are_set=are_set)
