"""The directory of a file store: whose it must be, what lies where, and the names in it.

    <root>/<2 hex>/<62 hex>   a session, by its key      <root>/tmp/      files that are being made
    <root>/corrupt/           damaged sessions, kept     <root>/locks/    locks of variables, while they are held
    <root>/groups/            who has which sessions

Everything is reached through a descriptor of the root, so a path that is exchanged for a symbolic link after the check
leads nowhere else. Files have mode 0600, directories 0700, whatever the umask.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from asyncsess.errors import StoreError

TMP: Final = "tmp"
LOCKS: Final = "locks"
CORRUPT: Final = "corrupt"
SHARDS: Final = tuple(f"{number:02x}" for number in range(256))
_NETWORK_TYPES: Final = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "afs", "lustre", "gfs2", "ocfs2", "glusterfs")
_is_rest_of_key = re.compile("[0-9a-f]{62}", re.ASCII).fullmatch

_directories: weakref.WeakSet[Directory] = weakref.WeakSet()


class Directory:
    """An open session directory. All names are relative to it.

    Args:
        path: Where it is; it is made, with its parents, if it is missing.
        allow_network_fs: Do not refuse file systems whose locks do not hold.
        is_durable: Whether a directory that is made is on the disk before anything is put into it.
    """

    _fd = -1  # while it is not open
    was_closed = False

    def __init__(
        self, path: str | os.PathLike[str], *, allow_network_fs: bool = False, is_durable: bool = False
    ) -> None:
        self.path = Path(path).absolute()
        self._is_durable = is_durable
        self.renew_guard()
        self._allow_network_fs = allow_network_fs

    def __repr__(self) -> str:
        return f"Directory({os.fspath(self.path)!r})"

    def renew_guard(self) -> None:
        """Make the lock for several threads that are the first to use a store."""
        self._guard = threading.Lock()
        _directories.add(self)

    @property
    def is_open(self) -> bool:
        """Whether the directory is open."""
        return self._fd >= 0

    @property
    def fd(self) -> int:
        """The descriptor of the directory.

        Raises:
            StoreError: It is closed.
        """
        if self._fd < 0:
            raise StoreError("the store was closed; enter it again, or make a new one")
        return self._fd

    def open(self) -> None:
        """Make, check and open the directory; nothing happens if it is open.

        Raises:
            StoreError: It is somebody else's, others may write to it, it is a symbolic link that others could have
                put there, or it lies on a file system that does not keep the promises of a lock.
        """
        with self._guard:
            if not self.is_open:
                self._fd = self._open()
                self.was_closed = False

    def _open(self) -> int:
        try:
            self._make()
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._refuse_planted_link()  # after it was opened: else one could be planted in between
            self._check(os.fstat(fd))
            self._make_parts(fd)
        except OSError as error:
            os.close(fd)
            raise self._unusable(error) from error
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Give back the descriptor; from here on, only `open` opens the directory."""
        self.was_closed = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def restore(self) -> None:
        """Make again what was deleted of the directory, under the same descriptor."""
        if not os.fstat(self.fd).st_nlink:
            again = Directory(self.path, allow_network_fs=self._allow_network_fs, is_durable=self._is_durable)
            again.open()
            try:
                os.dup2(again.fd, self.fd, inheritable=False)
            finally:
                again.close()
        self._make_parts(self.fd)

    def _make(self) -> None:
        """Make the directory and the parents that it lacks, each for this user alone."""
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        for path in reversed(missing):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:  # by another process, or it is a planted link
                continue
            path.chmod(0o700)
            if self._is_durable:
                sync_directory(path.parent)

    def _make_parts(self, fd: int) -> None:
        for name in (TMP, LOCKS, CORRUPT):
            make_directory(name, fd)
        if self._is_durable:
            os.fsync(fd)

    def _unusable(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.path} can't be used as session directory: {error.strerror}; "
            "name a directory that this user can make, enter and write to"
        )

    def __del__(self) -> None:
        self.close()

    def _refuse_planted_link(self) -> None:
        try:
            link = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISLNK(link.st_mode):
            return
        parent = self.path.parent.stat()
        if parent.st_mode & 0o022 or link.st_uid not in (0, os.geteuid()):
            raise StoreError(
                f"{self.path} is a symbolic link in a directory that others may write to; "
                "name the directory that it leads to, or use one of your own"
            )

    def _check(self, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid():
            raise StoreError(
                f"{self.path} belongs to user {status.st_uid}, and this process runs as {os.geteuid()}; "
                "sessions would be theirs to read. Use a directory of your own, or chown it"
            )
        if status.st_mode & 0o022:
            raise StoreError(
                f"{self.path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may exchange sessions in it; "
                f"run: chmod 700 {self.path}"
            )
        kind = file_system_type(status.st_dev)
        if kind.startswith(_NETWORK_TYPES) and not self._allow_network_fs:
            raise StoreError(
                f"{self.path} lies on {kind}, where locks or the page cache are not reliable between machines; use a "
                "local disk, or pass allow_network_fs=True if one machine alone uses it"
            )


def name_of(key: str) -> str:
    """Return the name of a session's file."""
    return f"{key[:2]}/{key[2:]}"


def key_of_name(shard: str, name: str) -> str | None:
    """Return the key of a file in a shard; None for a file that is no session's."""
    return shard + name if _is_rest_of_key(name) else None


def temporary_name() -> str:
    """Return the name for a file that is being made. It tells nothing about the session."""
    return f"{TMP}/{secrets.token_hex(16)}"


def corrupt_name() -> str:
    """Return the name under which a damaged file is kept."""
    return f"{CORRUPT}/{secrets.token_hex(8)}"


def make_directory(name: str, root_fd: int) -> None:
    """Make a directory below the root, unless it is there."""
    try:
        os.mkdir(name, 0o700, dir_fd=root_fd)
    except FileExistsError:
        return
    os.chmod(name, 0o700, dir_fd=root_fd)


def sync_directory(name: str | Path, root_fd: int | None = None) -> None:
    """Make the names in a directory durable."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def list_directory(name: str, root_fd: int) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a directory below the root; none if it is missing."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    try:
        with os.scandir(fd) as entries:
            yield from entries
    finally:
        os.close(fd)


def file_system_type(device: int, table: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system on a device, "" where the system does not tell.

    See proc_pid_mountinfo(5): the third field is the device, the first after the hyphen the type.
    """
    try:
        lines = Path(table).read_text(errors="replace").splitlines()
    except OSError:  # no Linux, or no /proc in this container: then nobody can tell a network file system
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number:
            return rest.split()[0]
    return ""


def _renew_guards() -> None:
    for directory in list(_directories):
        directory.renew_guard()


os.register_at_fork(after_in_child=_renew_guards)
