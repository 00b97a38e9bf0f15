"""`FileHeld`: one session file, locked, from the grant to the release."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import Final

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.file import layout
from asyncsess.backends.file.acquisition import NOT_HELD
from asyncsess.backends.file.files import record_of
from asyncsess.backends.file.layout import Snapshot
from asyncsess.backends.file.lock import FileLock
from asyncsess.backends.file.session_lock import SessionLock
from asyncsess.errors import CommitUnknownError, LockLostError, StoreError

logger = logging.getLogger("asyncsess")

_SAME_TIME: Final = 0.1
_REPLACED: Final = "the session was taken over, or its file was replaced or deleted; nothing was stored"


class FileHeld(SessionLock):
    """The exclusive right to one session file: `Held` of `asyncsess.backends.base`."""

    @property
    def record(self) -> Found:
        if self._snapshot is None:
            return None
        return record_of(self._snapshot)

    async def commit(self, payload: bytes, *, now: float, is_last: bool = False) -> Record:
        self._check_held()
        if self._is_doubtful:
            raise CommitUnknownError("an earlier commit of this holder failed to reach the disk; open the session anew")
        before = self._snapshot
        if before is None or not before.version:
            record = Record(payload, 1, now, now)
        elif before.version < layout.TOMBSTONE:
            record = Record(payload, before.version + 1, before.created_at, now)
        else:
            raise StoreError("a session that was deleted can't be changed")
        await self._store(record)
        return record

    async def _store(self, record: Record) -> None:
        if not self._fits(record):
            await self._store_anew(record)
        elif not await self._files.write(self._overwrite, record):
            async with self._files.naming(self._key):
                await self._files.write(self._confirm, record)

    async def delete(self, tombstone: Tombstone | None = None, *, now: float) -> None:
        self._check_held()
        before = self._snapshot
        if tombstone and before and 0 < before.version < layout.TOMBSTONE:
            version = before.version + 1 | layout.TOMBSTONE
            await self._files.io.run(self._date, (0.0, tombstone.until))  # first, so that a sweep surely looks here
            await self._store(Record(tombstone.note, version, before.created_at, tombstone.until))
            await self._files.io.run(self._erase)
        elif self._file is not None:
            async with self._files.naming(self._key):
                await self._files.write(self._files.delete, self._file, self._key)
        self.lose()

    def _date(self, times: tuple[float, float]) -> None:
        if self._file is not None:
            os.utime(self._file.fd, times)

    def _erase(self) -> None:
        """Write zeros over the values of a deleted session."""
        file, now = self._file, self._snapshot
        if file is None or now is None:
            return
        try:
            for offset, length in layout.unused(now):
                file.write(bytes(length), offset)
        except OSError as error:
            logger.warning("what a deleted session held stays on the disk until a sweep: %s", error.strerror)

    async def release(self, *, now: float) -> None:
        before = self._snapshot
        if self._file and before and 0 < before.version < layout.TOMBSTONE:
            if now - before.accessed_at > _SAME_TIME:  # else the commit has noted it
                self._touch(self._file, now)
            # Writing has set the file's time, by the system's clock; the store's may be another.
            self._close((before.created_at, now), are_set=abs(time.time() - now) < _SAME_TIME)
        self.lose()

    def _touch(self, file: FileLock, now: float) -> None:
        try:
            file.touch(now)
        except OSError as error:  # what was to be stored has been
            logger.warning("that a session was used could not be recorded: %s", error.strerror)

    def _fits(self, record: Record) -> bool:
        """Tell whether the next version can be written over the older slot; a tombstone can, also on a full disk."""
        before = self._snapshot
        if before is None or before.is_doubtful:
            return False
        return record.version >= layout.TOMBSTONE or layout.fits(len(record.payload), before.slot_size)

    def _overwrite(self, record: Record) -> bool:
        """Write the next version over the older slot; tell whether surely nobody took over meanwhile."""
        file, before = self._file, self._snapshot
        if file is None or before is None:  # the store was closed meanwhile
            raise LockLostError(NOT_HELD)
        payload, version, created_at, now = record
        slot = 1 - before.slot
        data = layout.encode_slot(self._key, version, now, payload)
        file.write(data, layout.slot_offset(slot, before.slot_size))
        try:
            if self._files.is_durable:
                os.fdatasync(file.fd)
            is_ours = file.leads_here()
        except OSError as error:
            # After a failed sync, the system may have dropped what it could not write, and would call the next attempt
            # a success: nothing is tried again here, and whoever comes next keeps both slots.
            self._is_doubtful = True
            with suppress(OSError, LockLostError):
                file.write(b"\1", layout.DOUBT_AT)
            raise CommitUnknownError(f"the commit may not have reached the disk: {error.strerror}") from error
        is_sure = self._lease is not None and not self._lease.is_over
        if is_sure and not is_ours:
            raise LockLostError(_REPLACED)
        self._snapshot = Snapshot(before.slot_size, created_at, now, version, payload, slot, True, False)
        return is_sure

    def _confirm(self, record: Record) -> None:
        """Find out what became of a version that was written after the lease was over."""
        file, lease = self._file, self._lease
        if file is None or lease is None:
            raise CommitUnknownError("the store was closed while the commit was under way")
        if file.leads_here():
            return
        note = self._files.note(self._key)
        if note is None or note.token not in (0, lease.token):
            raise CommitUnknownError("others took the session over one after the other while the commit was under way")
        if not note.token or note.version < record.version:
            raise LockLostError(_REPLACED)
