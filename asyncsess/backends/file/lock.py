"""The lock of one file: a descriptor with an exclusive flock, taken through portalocker.

A lock belongs to the open file, so other descriptors of this process are other contenders, and nothing that else
opens or closes the file takes the lock away. It also belongs to the process that took it: a forked child closes its
copies at once, without unlocking.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from contextlib import suppress
from typing import Final

from portalocker.constants import LockFlags
from portalocker.portalocker import FlockLocker

from asyncsess.backends.file import layout
from asyncsess.errors import Holder, LockLostError, StoreError

logger = logging.getLogger("asyncsess")

# What portalocker locks and unlocks with. Its lock() calls this after looking at the flags each time, which takes 9.0
# instead of 1.0 µs for a pair.
_flock: Final = FlockLocker().locker
_EXCLUSIVE: Final = int(LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
_UNLOCK: Final = int(LockFlags.UNBLOCK)
# The time of access is ours to set; Linux would let a reading move it.
_NO_ATIME: Final = getattr(os, "O_NOATIME", 0)
FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_NOT_A_FILE: Final = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)


class _Process:
    """What is this process's alone, and made anew in the child of a fork."""

    def __init__(self) -> None:
        self.id = secrets.randbits(63) | 1  # for marks; process ids repeat between containers
        self.descriptors: set[int] = set()


_process = _Process()


class FileLock:
    """A file by its name below a directory, open for writing, and perhaps locked.

    Attributes:
        name: The name.
        fd: The descriptor, -1 once it is closed.
        status: What the system said of the file when it was opened.

    Raises:
        StoreError: What lies under that name is no regular file of this user's with one name.
        OSError: It can't be opened.
    """

    __slots__ = ("_is_locked", "_owner", "_root_fd", "fd", "name", "status")

    def __init__(self, name: str, root_fd: int, extra_flags: int = 0) -> None:
        self.name = name
        self._root_fd = root_fd
        self._is_locked = False
        self._owner = _process
        self.fd = -1
        self.fd = open_file(name, os.O_RDWR | extra_flags, root_fd)
        _process.descriptors.add(self.fd)
        try:
            self.status = os.fstat(self.fd)
            refuse_foreign(self.status)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self.fd < 0 else "locked" if self._is_locked else "open"
        return f"<{type(self).__name__} {state}>"

    @property
    def is_ours(self) -> bool:
        """Whether the descriptor is open, and was opened by this process."""
        return self.fd >= 0 and self._owner is _process

    def try_lock(self) -> bool:
        """Lock the file, or return False if another descriptor has the lock."""
        try:
            _flock(self.fd, _EXCLUSIVE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StoreError(f"the file system can't lock: {error.strerror}") from error
        self._is_locked = True
        return True

    def leads_here(self) -> bool:
        """Tell whether the name still leads to this file: it may have been replaced or deleted before the lock."""
        try:
            named = os.stat(self.name, dir_fd=self._root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return named.st_ino == self.status.st_ino and named.st_dev == self.status.st_dev

    def look_again(self) -> None:
        """Note the file's status as of now."""
        self.status = os.fstat(self.fd)

    def write(self, data: bytes, offset: int) -> None:
        """Write all of the data, in several calls if the system takes only a part.

        Raises:
            LockLostError: The lock was the parent's of this forked process.
        """
        if not self.is_ours:
            raise LockLostError("this lock is closed, or belongs to the process that this one was forked from")
        written = os.pwrite(self.fd, data, offset)
        while written < len(data):
            written += os.pwrite(self.fd, data[written:], offset + written)

    def mark(self) -> None:
        """Tell the holder that this process waits."""
        os.pwrite(self.fd, layout.encode_mark(_process.id), layout.MARK_AT)

    def is_marked(self) -> bool:
        """Tell whether anybody said that he waits, since the file was locked."""
        return _mark_in(self.fd) != 0

    def is_marked_by_others(self) -> bool:
        """Tell whether another process waits."""
        return _mark_in(self.fd) not in (0, _process.id)

    def is_unneeded(self) -> bool:
        """Lock the file if it is not, and tell whether nobody waits for it; a waiter that gives up no longer counts."""
        if not self._is_locked and _mark_in(self.fd) == _process.id:
            self.write(layout.encode_mark(0), layout.MARK_AT)
        return (self._is_locked or self.try_lock()) and not _mark_in(self.fd)

    def holder(self) -> Holder | None:
        """Return who holds the lock, as it says itself."""
        return layout.decode_holder(os.pread(self.fd, layout.HOLDER_LENGTH, layout.MARK_AT))

    def claim(self) -> layout.Claim:
        """Return what the last that locked it wrote of its lease."""
        return layout.decode_claim(os.pread(self.fd, layout.HOLDER_LENGTH, layout.MARK_AT))

    def touch(self, now: float) -> None:
        """Note that the session was used; the lock is not needed."""
        self.write(layout.encode_touch(now), layout.TOUCHED_AT)

    def close(self, times: tuple[float, float] | None = None, *, are_set: bool = False) -> None:
        """Unlock and close the file; may be called again.

        The order wakes whoever waits: unlock, then set the time, which raises an event even while a forked copy of the
        descriptor lives, then close, which raises one otherwise.

        Args:
            times: When the session was created and last used, for the sweeper to find without opening the file, as its
                times of access and of modification; None leaves these as they are.
            are_set: The file has these times, so they are set only if somebody waits.
        """
        if not self.is_ours:
            return
        fd, self.fd = self.fd, -1
        _process.descriptors.discard(fd)
        # Whatever fails here, closing the descriptor gives the lock back, and the time is but a hint.
        try:
            if self._is_locked:
                _flock(fd, _UNLOCK)
            if times is not None and (not are_set or _mark_in(fd)):
                os.utime(fd, times)
        except OSError as error:
            logger.warning("a session file could not be released as usual: %s", error.strerror)
        try:
            os.close(fd)
        except OSError as error:
            logger.warning("a session file could not be closed as usual: %s", error.strerror)

    def __del__(self) -> None:
        self.close()


class NewFile(FileLock):
    """A file that is being made; it goes when it is closed, unless it has got a session's name by then.

    Nobody else uses it, but if long enough passes before it is locked, a sweep takes it for a leftover.
    """

    __slots__ = ("_first_name",)

    def __init__(self, name: str, root_fd: int) -> None:
        self._first_name = name
        super().__init__(name, root_fd, os.O_CREAT | os.O_EXCL)
        try:
            if not self.try_lock() or not self.leads_here():
                raise FileNotFoundError(errno.ENOENT, "a sweep took the new file for a leftover")
        except BaseException:
            self.close()
            raise

    def close(self, times: tuple[float, float] | None = None, *, are_set: bool = False) -> None:
        """Unlock and close the file, and delete it if it has no session's name."""
        if self.is_ours and self.name == self._first_name:
            try:
                os.unlink(self.name, dir_fd=self._root_fd)
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.warning("an unfinished file stays until the next sweep: %s", error.strerror)
        super().close(times, are_set=are_set)


class DirectoryLock(FileLock):
    """The right to change which file a name in a directory leads to, for as long as a few system calls take."""

    __slots__ = ()

    def __init__(self, name: str, root_fd: int) -> None:
        self.name = name
        self._root_fd = root_fd
        self._is_locked = False
        self._owner = _process
        self.fd = -1
        self.fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | FLAGS, dir_fd=root_fd)
        _process.descriptors.add(self.fd)
        self.status = os.fstat(self.fd)


def _mark_in(fd: int) -> int:
    """Return the process that waits for a file, 0 if none does."""
    return layout.decode_mark(os.pread(fd, 8, layout.MARK_AT))


def open_file(name: str, flags: int, root_fd: int) -> int:
    """Open a file below a directory, and nothing that merely has its name; return the descriptor.

    Raises:
        StoreError: It is a symbolic link, a directory or a device.
    """
    try:
        return os.open(name, flags | FLAGS | _NO_ATIME, 0o600, dir_fd=root_fd)
    except OSError as error:
        if error.errno == errno.EPERM:
            error.filename = None
            raise StoreError("a session's file belongs to another user; refused") from error
        if error.errno in _NOT_A_FILE:
            error.filename = None
            raise StoreError("a session's name leads to something that is not a regular file; refused") from error
        raise


def refuse_foreign(status: os.stat_result) -> None:
    """Refuse what an attacker, not a store, would put in a session's place."""
    if not stat.S_ISREG(status.st_mode):
        raise StoreError("a session's name leads to something that is not a regular file; refused")
    if status.st_uid != os.geteuid() or status.st_nlink > 1:
        raise StoreError("a session's file belongs to another user or has a second name; refused")


def _drop_what_the_parent_holds() -> None:
    global _process
    inherited, _process = _process, _Process()
    for fd in inherited.descriptors:
        with suppress(OSError):  # it is closed all the same
            os.close(fd)


os.register_at_fork(after_in_child=_drop_what_the_parent_holds)
