"""`FileHeld`: one session file, locked, from the grant to the release."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from types import TracebackType
from typing import Final

from asyncsess.backends.base import Record
from asyncsess.backends.file import layout
from asyncsess.backends.file.acquisition import NOT_HELD, Acquisition
from asyncsess.backends.file.files import record_of
from asyncsess.backends.file.layout import Snapshot
from asyncsess.backends.file.lock import FileLock
from asyncsess.backends.file.waiting import Patience
from asyncsess.errors import CommitUnknownError, LockLostError

logger = logging.getLogger("asyncsess")

_SAME_TIME: Final = 0.1
_REPLACED: Final = "the session was taken over, or its file was replaced or deleted; nothing was stored"


class FileHeld(Acquisition):
    """The exclusive right to one session file: `Held` of `asyncsess.backends.base`."""

    async def __aenter__(self) -> FileHeld:
        patience = Patience(self._timeout)
        if not self._files.directory.is_open:
            await self._files.ready()
        self._turn = await self._turns.take(self._key, timeout=self._timeout, holder=self._holder)
        self._files.holders.add(self)
        try:
            if self._first is None:
                await self._acquire(patience)
            else:
                await self._store_anew(self._first)
        except BaseException:
            self.lose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lose()

    @property
    def record(self) -> Record | None:
        if self._snapshot is None:
            return None
        return record_of(self._snapshot)

    async def commit(self, payload: bytes, *, now: float) -> Record:
        self._check_held()
        if self._is_doubtful:
            raise CommitUnknownError("an earlier commit of this holder failed to reach the disk; open the session anew")
        if self._fits(len(payload)):
            record, is_sure = await self._files.write(self._overwrite, payload, now)
            if not is_sure:
                async with self._files.naming(self._key):
                    await self._files.write(self._confirm, record)
            return record
        version, created_at = (before.version + 1, before.created_at) if (before := self.record) else (1, now)
        record = Record(payload, version, created_at, now)
        await self._store_anew(record)
        return record

    async def delete(self) -> None:
        self._check_held()
        if self._file is not None:
            async with self._files.naming(self._key):
                await self._files.write(self._files.delete, self._file, self._key)
        self.lose()

    async def release(self, *, now: float) -> None:
        before = self._snapshot
        if self._file and before and before.version:
            if now - before.accessed_at > _SAME_TIME:  # else the commit has noted it
                self._touch(self._file, now)
            # Writing has set the file's time, by the system's clock; the store's may be another.
            self._close((before.created_at, now), are_set=abs(time.time() - now) < _SAME_TIME)
        self.lose()

    async def renew(self, lease: float) -> None:
        self._check_held()
        self._length = lease
        async with self._files.naming(self._key):
            await self._files.write(self._renew)

    def _renew(self) -> None:
        if self._file is None or not self._file.leads_here():
            raise LockLostError(_REPLACED)
        self._begin(self._file)

    def _touch(self, file: FileLock, now: float) -> None:
        try:
            file.touch(now)
        except OSError as error:  # what was to be stored has been
            logger.warning("that a session was used could not be recorded: %s", error.strerror)

    def _fits(self, length: int) -> bool:
        """Tell whether the next version can be written over the older slot."""
        before = self._snapshot
        return before is not None and not before.is_doubtful and layout.fits(length, before.slot_size)

    def _overwrite(self, payload: bytes, now: float) -> tuple[Record, bool]:
        """Write the next version over the older slot; tell also whether surely nobody took over meanwhile."""
        file, before = self._file, self._snapshot
        if file is None or before is None:  # the store was closed meanwhile
            raise LockLostError(NOT_HELD)
        slot, version = 1 - before.slot, before.version + 1
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
        self._snapshot = Snapshot(before.slot_size, before.created_at, now, version, payload, slot, True, False)
        return Record(payload, version, before.created_at, now), is_sure

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

    async def _store_anew(self, record: Record) -> None:
        """Store a version in a new file."""
        payload, version, created_at, accessed_at = record
        slot_size = layout.slot_size_for(len(payload))
        content = layout.encode_file(self._key, slot_size, created_at, version, accessed_at, payload)
        await self._publish(content, (created_at, accessed_at))
