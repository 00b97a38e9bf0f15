"""The sweep: delete what has expired, and what killed processes left behind.

Whoever releases a session sets its file's times of access and modification to those of its creation and last use, or
for a tombstone to zero and the time until which it stands; the latter before it is written, so that it is found even if
its writer is killed. So whether a file may be over shows without opening it; whether it really is is judged by its
content, under its lock.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Final, ParamSpec

from asyncsess.backends.base import Record
from asyncsess.backends.file import layout
from asyncsess.backends.file.directory import LOCKS, SHARDS, TMP, key_of_name, list_directory, name_of
from asyncsess.backends.file.files import Files, UnsettledError, exists, read_all, record_of
from asyncsess.backends.file.groups import Groups
from asyncsess.backends.file.layout import DamagedError
from asyncsess.backends.file.lock import FileLock
from asyncsess.errors import SessionError
from asyncsess.expiry import Expiry

P = ParamSpec("P")

logger = logging.getLogger("asyncsess")

_SLICE: Final = 250
_BATCH: Final = 20
_LEFTOVER_AGE: Final = 60.0
_PLACEHOLDER_SIZE: Final = layout.file_size(0)


class Sweep:
    """One pass over a session directory, made in slices by `step`.

    Args:
        files: The files of the store.
        groups: Its groups.
        expiry: What has expired.
        now: By this clock.
    """

    def __init__(self, files: Files, groups: Groups, expiry: Expiry, now: float) -> None:
        self._files = files
        self._groups = groups
        self._expiry = expiry
        self._now = now
        self._entries = self._leftovers_then_sessions()
        self.deleted = 0

    def step(self) -> bool:
        """Look at the next few files; return False when there are no more. Blocks."""
        for _ in range(_SLICE):
            try:
                next(self._entries)
            except StopIteration:
                return False
        return True

    def _leftovers_then_sessions(self) -> Iterator[None]:
        """Yield after each file that was looked at, so that a slice may end there."""
        for directory in (TMP, LOCKS):
            for entry in list_directory(directory, self._files.directory.fd):
                self._guarded(self._look_at_leftover, directory, entry)
                yield
        for group, key, added_at in self._groups.all_members():
            self._guarded(self._look_at_member, group, key, added_at)
            yield
        for shard in SHARDS:
            candidates: list[str] = []
            for entry in list_directory(shard, self._files.directory.fd):
                self._guarded(self._look_at_session, entry, key_of_name(shard, entry.name), candidates)
                yield
            for start in range(0, len(candidates), _BATCH):
                self._guarded(self._delete_those_over, shard, candidates[start : start + _BATCH])
                yield

    def _guarded(self, look: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Look at one file, so that none keeps the others from being looked at."""
        try:
            look(*args, **kwargs)
        except FileNotFoundError:  # deleted meanwhile
            return
        except (OSError, SessionError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            logger.warning("a file could not be swept, and was left alone: %s", reason)

    def _look_at_leftover(self, directory: str, entry: os.DirEntry[str]) -> None:
        """Delete a file that was being made, or the lock of a variable, unless somebody holds it."""
        if entry.stat(follow_symlinks=False).st_mtime >= self._now - _LEFTOVER_AGE:
            return
        name = f"{directory}/{entry.name}"
        with closing(FileLock(name, self._files.directory.fd)) as file:
            if not file.try_lock():
                return
            if directory == LOCKS:
                self._files.delete_alone(file, entry.name)
            elif file.leads_here():
                os.unlink(name, dir_fd=self._files.directory.fd)

    def _look_at_member(self, group: str, key: str, added_at: float) -> None:
        """Remove a member that has no session; one that was added a moment ago may get it yet."""
        if added_at < self._now - _LEFTOVER_AGE and not exists(name_of(key), self._files.directory.fd):
            self._groups.remove(group, key)

    def _look_at_session(self, entry: os.DirEntry[str], key: str | None, candidates: list[str]) -> None:
        """Note a session that seems to have expired or was never committed, or a tombstone that has had its time."""
        if key is None:
            return
        status = entry.stat(follow_symlinks=False)
        if status.st_size == _PLACEHOLDER_SIZE:
            is_over = status.st_mtime < self._now - _LEFTOVER_AGE
        elif not status.st_atime:
            is_over = status.st_mtime <= self._now
        else:
            is_over = self._expiry.is_over(status.st_atime, status.st_mtime, self._now)
        if is_over:
            candidates.append(key)

    def _delete_those_over(self, shard: str, keys: list[str]) -> None:
        """Delete the sessions that really have expired, under one lock of their directory."""
        lock = self._files.lock_shard(shard)
        if lock is None:
            return  # somebody makes or moves a file here: the next sweep finds these again
        with closing(lock):
            for key in keys:
                self._guarded(self._delete_if_over, key)

    def _delete_if_over(self, key: str) -> None:
        with closing(FileLock(name_of(key), self._files.directory.fd)) as file:
            if not file.try_lock() or not file.leads_here():
                return
            try:
                snapshot = layout.decode_file(read_all(file.fd, file.status.st_size), key)
            except DamagedError as error:
                self._files.quarantine(file, key, error)
                return
            found = record_of(snapshot)
            if isinstance(found, Record):
                if self._expiry.is_over(found.created_at, found.accessed_at, self._now):
                    self._files.delete(file, key)
                    self.deleted += 1
            elif found is None or found.until <= self._now:
                self._files.delete(file, key)


def keys_in(files: Files, shard: str) -> list[str]:
    """Return the keys of the sessions in a shard, neither those never committed nor those deleted. Blocks."""
    keys = []
    for entry in list_directory(shard, files.directory.fd):
        key = key_of_name(shard, entry.name)
        with suppress(FileNotFoundError):
            if key is not None and _has_session(files, entry, key):
                keys.append(key)
    return keys


def _has_session(files: Files, entry: os.DirEntry[str], key: str) -> bool:
    status = entry.stat(follow_symlinks=False)
    if status.st_size == _PLACEHOLDER_SIZE:
        return False
    if status.st_atime:
        return True
    try:  # it seems to be a tombstone, or was about to become one
        return isinstance(files.read(key), Record)
    except (UnsettledError, SessionError):  # whoever opens it will be told
        return True
