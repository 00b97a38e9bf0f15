"""What can be done to the files of a session directory. The functions that block are synchronous, and say so."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Final, Protocol

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.file import layout
from asyncsess.backends.file.directory import (
    Directory,
    corrupt_name,
    make_directory,
    name_of,
    sync_directory,
    temporary_name,
)
from asyncsess.backends.file.io import IO
from asyncsess.backends.file.layout import DamagedError, Snapshot
from asyncsess.backends.file.lock import DirectoryLock, FileLock, NewFile, open_file, refuse_foreign
from asyncsess.errors import CommitUnknownError, Holder, LockLostError, LockTimeoutError, StoreError

logger = logging.getLogger("asyncsess")

# Beyond this size the header is looked at before memory is given to the rest.
_READ_AT_ONCE: Final = 65536
_READS_BEFORE_LOCKING: Final = 16
_NAMING_TIMEOUT: Final = 10.0
_RESTORATIONS: Final = 3
# The lock of a directory is held for a few system calls.
_TRIES: Final = 20
_BETWEEN_TRIES: Final = 0.0001


class UnsettledError(Exception):
    """Reading without the lock did not come to an answer."""


class SupportsLose(Protocol):
    """Who holds a file of the store."""

    def lose(self) -> None:
        """Give back the lock and everything that belongs to it, at once."""


class Files:
    """The files of one store.

    Args:
        directory: Where they lie.
        io: Where blocking calls run.
        is_durable: Whether a change is on the disk, not only with the system, when it is acknowledged.
    """

    def __init__(self, directory: Directory, io: IO, *, is_durable: bool) -> None:
        self.directory = directory
        self.io = io
        self.is_durable = is_durable
        self.write = io.in_thread if is_durable else io.run  # what waits for the disk to have it never runs on the loop
        self.corrupt = 0
        self.waiting = 0
        self.holders: set[SupportsLose] = set()

    @contextmanager
    def waiter(self) -> Generator[None]:
        """Count who waits for a lock of another process."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def ready(self) -> None:
        """Open the directory on first use."""
        if not self.directory.is_open and not self.directory.was_closed:
            await self.io.run(self.directory.open)

    def read(self, key: str) -> Found:
        """Read the newest version without a lock. Blocks.

        If the slot that is not the newest is torn, a commit may be under way, and may have ended before this read
        began: only two reads with the same bytes show that nothing moved.

        Raises:
            UnsettledError: It kept changing, or is damaged; the lock will tell.
        """
        try:
            fd = open_file(name_of(key), os.O_RDONLY, self.directory.fd)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            refuse_foreign(status)
            before = None
            for _ in range(_READS_BEFORE_LOCKING):
                data = read_all(fd, status.st_size)
                snapshot = layout.decode_file(data, key)
                if snapshot.is_settled or data == before:
                    return record_of(snapshot)
                before = data
        except DamagedError as error:
            raise UnsettledError from error
        finally:
            os.close(fd)
        raise UnsettledError

    def note(self, key: str) -> layout.Note | None:
        """Return the note in the file that has a session's name; None if there is none. Blocks."""
        try:
            fd = open_file(name_of(key), os.O_RDONLY, self.directory.fd)
        except FileNotFoundError:
            return None
        try:
            return layout.decode_note(os.pread(fd, layout.SECTOR, 0))
        finally:
            os.close(fd)

    def holder(self, name: str) -> Holder | None:
        """Return who holds a file, as it says itself; None if nobody ever did. Blocks."""
        try:
            fd = open_file(name, os.O_RDONLY, self.directory.fd)
        except (FileNotFoundError, StoreError):
            return None
        try:
            return layout.decode_holder(os.pread(fd, layout.HOLDER_LENGTH, layout.MARK_AT))
        finally:
            os.close(fd)

    def touch(self, key: str, now: float) -> None:
        """Set the time of last use, never backwards. Blocks.

        Whoever holds the lock notes the use of the session itself.
        """
        try:
            with closing(FileLock(name_of(key), self.directory.fd)) as file:
                if not file.try_lock() or not file.leads_here():
                    return
                snapshot = layout.decode_file(read_all(file.fd, file.status.st_size), key)
                if isinstance(record_of(snapshot), Record) and snapshot.accessed_at < now:
                    file.touch(now)
                    os.utime(file.fd, times_of(snapshot._replace(accessed_at=now)))
        except (FileNotFoundError, DamagedError):  # deleted meanwhile; or the next opener will tell
            return

    @asynccontextmanager
    async def naming(self, key: str) -> AsyncGenerator[None]:
        """Hold the right to change which file a key's name leads to."""
        started = time.monotonic()
        while (lock := await self.io.run(self.lock_shard, key[:2])) is None:
            if time.monotonic() - started > _NAMING_TIMEOUT:
                raise LockTimeoutError(time.monotonic() - started, None)
            await asyncio.sleep(0.001)
        with closing(lock):
            yield

    def lock_shard(self, shard: str) -> DirectoryLock | None:
        """Lock the directory of a shard, or return None if another has it. Blocks."""
        lock = self._open_shard(shard)
        try:
            if lock.try_lock() and lock.leads_here():
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()
        return None

    def _open_shard(self, shard: str) -> DirectoryLock:
        """Open the directory of a shard, made if it is missing. Blocks."""
        try:
            return DirectoryLock(shard, self.directory.fd)
        except FileNotFoundError:
            make_directory(shard, self.directory.fd)
            return DirectoryLock(shard, self.directory.fd)

    def make(self, content: bytes, claim: bytes, note: bytes, times: tuple[float, float] | None) -> NewFile:
        """Write a new file, locked, that has no session's name yet. Blocks."""
        file = self._new_file()
        try:
            file.write(content, 0)
            file.write(claim, layout.MARK_AT)
            file.write(note, layout.NOTE_AT)
            if times:
                os.utime(file.fd, times)
            if self.is_durable:
                os.fdatasync(file.fd)
        except BaseException:
            file.close()
            raise
        return file

    def _new_file(self) -> NewFile:
        for _ in range(_RESTORATIONS):
            try:
                return NewFile(temporary_name(), self.directory.fd)
            except FileNotFoundError:  # somebody deleted the directory, or a sweep the file
                self.directory.restore()
        return NewFile(temporary_name(), self.directory.fd)

    def publish(self, new: NewFile, key: str, old: FileLock | None) -> None:
        """Give a file that `make` made the name of a session; within `naming`. Blocks.

        Args:
            new: The file.
            key: The session.
            old: The file that it replaces; None if there must be none.

        Raises:
            FileExistsError: There is one.
            LockLostError: The name no longer leads to the old file.
            CommitUnknownError: The name is there, but perhaps not on the disk.
        """
        name, root_fd = name_of(key), self.directory.fd
        if old is None:
            if exists(name, root_fd):
                raise FileExistsError(errno.EEXIST, "there is a session of this key")
        elif not old.leads_here():
            raise LockLostError("the session's file was replaced or deleted; nothing was stored")
        os.rename(new.name, name, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        new.name = name
        self._sync_names(key)

    def delete(self, file: FileLock, key: str) -> None:
        """Delete a session's locked file; within `naming`. Blocks.

        Raises:
            LockLostError: The name leads to another file, which stays.
            CommitUnknownError: The name is gone, but perhaps not from the disk.
        """
        if file.leads_here():
            os.unlink(name_of(key), dir_fd=self.directory.fd)
            self._sync_names(key)
        elif exists(name_of(key), self.directory.fd):
            raise LockLostError("the session's file was replaced; nothing was deleted")

    def delete_unless_needed(self, file: FileLock, key: str) -> None:
        """Close the file of a name, which nobody needs who does not have it open; delete it unless somebody waits.

        Who waits and gives up takes its word back, and then deletes it unless somebody holds it. Blocks.
        """
        if not file.is_ours:
            return
        try:
            if file.is_unneeded():
                self.delete_alone(file, key)
        except (OSError, StoreError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            logger.warning("the file of a lock stays until the next sweep: %s", reason)
        finally:
            now = time.time()
            file.close((now, now), are_set=True)

    def delete_alone(self, file: FileLock, key: str) -> None:
        """Delete a file if its name leads to it, while nobody takes over from it."""
        for _ in range(_TRIES):
            shard = self.lock_shard(key[:2])
            if shard is not None:
                with closing(shard):
                    if file.leads_here():
                        os.unlink(file.name, dir_fd=self.directory.fd)
                return
            time.sleep(_BETWEEN_TRIES)
        logger.info("the file of a lock stays until the next sweep, since others use its directory")

    def delete_placeholder(self, file: FileLock, key: str) -> None:
        """Delete a locked placeholder; the sweeper does it if this can't be done now. Blocks."""
        try:
            shard = self.lock_shard(key[:2])
            if shard is not None:
                with closing(shard):
                    if file.leads_here():
                        os.unlink(name_of(key), dir_fd=self.directory.fd)
        except (OSError, StoreError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            logger.warning("the file of a session that was not stored stays until the next sweep: %s", reason)

    def quarantine(self, file: FileLock, key: str, reason: DamagedError) -> str | None:
        """Move a damaged, locked file aside; within `naming`. Blocks.

        Returns:
            Where it is kept; None if it could not be moved, or was replaced meanwhile.
        """
        if not file.leads_here():
            return None
        aside, root_fd = corrupt_name(), self.directory.fd
        try:
            os.rename(name_of(key), aside, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        except OSError as error:
            logger.error("a damaged session file (%s) could not be moved aside: %s", str(reason), error.strerror)
            return None
        self.corrupt += 1
        path = os.fspath(self.directory.path / aside)
        logger.error("a damaged session file (%s) was moved to %s", str(reason), path)
        return path

    def _sync_names(self, key: str) -> None:
        if not self.is_durable:
            return
        try:
            sync_directory(key[:2], self.directory.fd)
            os.fsync(self.directory.fd)  # the shard may have been made just now, by any process
        except OSError as error:
            error.filename = None
            raise CommitUnknownError(f"the change may be undone by a power cut: {error}") from error


def read_all(fd: int, size: int) -> bytes:
    """Return a session file's bytes; only the header's if they can't be one's."""
    if size > _READ_AT_ONCE:
        layout.check_size(os.pread(fd, layout.SECTOR, 0), size)
    return os.pread(fd, size, 0)


def record_of(snapshot: Snapshot) -> Found:
    """Return the record or the tombstone in a file; None for a placeholder."""
    if not snapshot.version:
        return None
    if snapshot.version >= layout.TOMBSTONE:
        return Tombstone(snapshot.payload, snapshot.accessed_at)
    return Record(snapshot.payload, snapshot.version, snapshot.created_at, snapshot.accessed_at)


def times_of(snapshot: Snapshot) -> tuple[float, float] | None:
    """Return the times of access and modification by which a sweep knows a file; None for a placeholder."""
    if not snapshot.version:
        return None
    return 0.0 if snapshot.version >= layout.TOMBSTONE else snapshot.created_at, snapshot.accessed_at


def exists(name: str, root_fd: int) -> bool:
    """Tell whether anything has this name. Blocks."""
    try:
        os.stat(name, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
