"""`SessionLock`: the acquisition of a session's file, which has something in it."""

from __future__ import annotations

import logging
from typing import Final

from asyncsess.backends.base import Record
from asyncsess.backends.file import layout
from asyncsess.backends.file.acquisition import Acquisition
from asyncsess.backends.file.directory import name_of
from asyncsess.backends.file.files import Files, read_all, times_of
from asyncsess.backends.file.layout import Claim, DamagedError, Snapshot
from asyncsess.backends.file.lock import FileLock, NewFile
from asyncsess.backends.file.waiting import Outcome, Patience
from asyncsess.backends.turns import Turns
from asyncsess.errors import CommitUnknownError, CorruptSessionError, Holder, StoreError

logger = logging.getLogger("asyncsess")

NO_NOTE: Final = layout.encode_note(layout.Note(0, 0))


class SessionLock(Acquisition):
    """The exclusive right to a session's file, and its newest version.

    Args:
        files, turns, key, timeout, lease, holder: As `Acquisition`.
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
        super().__init__(files, turns, key, name=name_of(key), line=key, timeout=timeout, lease=lease, holder=holder)
        self._note = NO_NOTE
        self._create = create
        self._first = first
        self._snapshot: Snapshot | None = None
        self._is_doubtful = False

    async def _acquire(self, patience: Patience) -> None:
        if self._first is not None:
            await self._store_anew(self._first)
            return
        try:
            await super()._acquire(patience)
        except DamagedError as error:
            file, damage = self._opened(), error
            path = await self._alone(lambda: self._files.quarantine(file, self._key, damage))
            raise CorruptSessionError(str(error), path) from error

    def _inspect(self, file: FileLock) -> Claim | None:
        data = read_all(file.fd, file.status.st_size)
        try:
            self._snapshot = layout.decode_file(data, self._key)
        except DamagedError:
            if file.leads_here():
                raise
            return None
        self._note = data[layout.NOTE_AT : layout.NOTE_AT + len(NO_NOTE)]
        return layout.decode_claim(data, layout.MARK_AT)

    def _replaced(self) -> Outcome:
        self._snapshot = None
        return super()._replaced()

    def _replace(self, late: FileLock) -> Outcome:
        """Copy the session of a holder that is late into a file of one's own, and give that the name."""
        data = read_all(late.fd, late.status.st_size)
        who, claim = layout.decode_holder(data[layout.MARK_AT :]), layout.decode_claim(data, layout.MARK_AT)
        try:
            snapshot = layout.decode_file(data, self._key)
        except DamagedError as error:
            raise CorruptSessionError(str(error), self._files.quarantine(late, self._key, error)) from error
        lease = self._lease = self._new_lease()
        self._note = layout.encode_note(layout.Note(claim.token, snapshot.version))
        new = self._files.make(data, lease.encoded(), self._note, times_of(snapshot))
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

    async def _do_without(self) -> bool:
        """Lock a session that does not exist, by a placeholder, if that is wanted."""
        if not self._create:
            return True
        try:
            await self._publish(layout.encode_file(self._key, 0, 0.0, 0, 0.0, b""))
        except StoreError as error:
            if isinstance(error.__cause__, FileExistsError):  # another came first
                return False
            raise
        return True

    async def _store_anew(self, record: Record) -> None:
        """Store a version in a new file."""
        payload, version, created_at, accessed_at = record
        slot_size = layout.slot_size_for(len(payload))
        await self._publish(layout.encode_file(self._key, slot_size, created_at, version, accessed_at, payload))

    async def _publish(self, content: bytes) -> None:
        if self._lease is None:
            self._lease = self._new_lease()
        snapshot = layout.decode_file(content, self._key)
        claim, times = self._lease.encoded(), times_of(snapshot)
        new = await self._files.write(self._files.make, content, claim, self._note, times)
        try:
            async with self._files.naming(self._key):
                await self._files.write(self._exchange, new, snapshot)
        finally:
            if self._file is not new:
                new.close()

    def _exchange(self, new: NewFile, snapshot: Snapshot) -> None:
        self._check_held()
        old = self._file
        try:
            self._files.publish(new, self._key, old)
        except CommitUnknownError:
            self._is_doubtful = True
            raise
        finally:
            if new.name == self._name:
                self._file, self._snapshot = new, snapshot
                if self._turn and self._lease:
                    self._turn.deadline = self._lease.deadline
                if old:
                    old.close()

    def _give_up(self) -> None:
        file, before = self._file, self._snapshot
        try:
            if file and file.is_ours and before and not before.version:
                self._files.delete_placeholder(file, self._key)
        finally:
            # Locking has written into the file, which is no use of the session.
            self._close(times_of(before) if before else None)
            self._snapshot = None
