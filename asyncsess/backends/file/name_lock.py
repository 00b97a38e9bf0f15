"""`NameLock`: the lock of a name inside a session, such as one of its variables."""

from __future__ import annotations

import errno
import hashlib
import logging
import os

from asyncsess.backends.file.acquisition import Acquisition
from asyncsess.backends.file.directory import LOCKS
from asyncsess.backends.file.files import Files
from asyncsess.backends.file.layout import Claim
from asyncsess.backends.file.lock import FileLock
from asyncsess.backends.file.waiting import Outcome
from asyncsess.backends.turns import Turns
from asyncsess.errors import Holder, LockLostError

logger = logging.getLogger("asyncsess")


class NameLock(Acquisition):
    """The exclusive right to a name, by the lock of a file that is there only while somebody needs it.

    Whoever is the last deletes the file, and whoever locks one that was deleted meanwhile begins again: else two could
    hold the name, on two files. So a holder that is late loses the name when its file is deleted.

    Args:
        files, turns, key, timeout, lease, holder: As `Acquisition`.
        name: What of the session.

    Attributes:
        was_late: Whether the name was taken from a holder that was late.
    """

    def __init__(
        self, files: Files, turns: Turns, key: str, name: str, *, timeout: float, lease: float, holder: Holder
    ) -> None:
        line = f"{key}:{name}"
        path = f"{LOCKS}/{key[:2]}{hashlib.sha256(line.encode()).hexdigest()}"
        super().__init__(files, turns, key, name=path, line=line, timeout=timeout, lease=lease, holder=holder)
        self.was_late = False

    async def check(self) -> None:
        self._check_held()
        await self._files.io.run(self._check)

    def _check(self) -> None:
        if self._file is None or not self._file.leads_here():
            raise LockLostError("a variable was taken over, or its lock was deleted; nothing was stored")

    def _open(self) -> Outcome:
        directory = self._files.directory
        try:
            self._file = FileLock(self._name, directory.fd, os.O_CREAT)
        except FileNotFoundError:  # somebody deleted the directory
            directory.restore()
            self._file = FileLock(self._name, directory.fd, os.O_CREAT)
        return self._try_first(self._file)

    def _inspect(self, file: FileLock) -> Claim | None:
        return file.claim()

    def _replace(self, late: FileLock) -> Outcome:
        """Put a locked file in the place of a late holder's, and let nobody in between, who would not know."""
        who, root_fd = late.holder(), self._files.directory.fd
        lease = self._lease = self._new_lease()
        try:
            new = self._files.make(b"", lease.encoded(), b"", None)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.unlink(self._name, dir_fd=root_fd)  # which needs no room
            self.was_late = True
            return self._replaced()
        try:
            os.rename(new.name, self._name, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        except BaseException:
            new.close()
            raise
        new.name = self._name
        self._file, self.was_late = new, True
        late.close()
        if self._turn:
            self._turn.deadline = lease.deadline
        logger.warning("a variable was taken over, since the lease was over of %s", who)
        return Outcome.HELD

    async def _do_without(self) -> bool:
        return False

    def _give_up(self) -> None:
        file, self._file = self._file, None
        if file:
            self._files.delete_unless_needed(file, self._key)
