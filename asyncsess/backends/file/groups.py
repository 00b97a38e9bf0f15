"""Groups of keys, such as the sessions of one owner: an empty file for each member.

So adding and removing one are single system calls, which need no lock, and leave nothing half done.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from asyncsess.backends.file.directory import Directory, list_directory, make_directory, sync_directory
from asyncsess.backends.file.lock import FLAGS

GROUPS: Final = "groups"
_SHARD_LENGTH: Final = 3  # a million members make some 250 names in each directory
_KEY_LENGTH: Final = 64
_is_member = re.compile("[0-9a-f]{125}", re.ASCII).fullmatch


class Groups:
    """The groups of one store. Its methods block.

    Args:
        directory: That of the store.
        is_durable: Whether a member is on the disk once it is added.
    """

    def __init__(self, directory: Directory, *, is_durable: bool) -> None:
        self._directory = directory
        self._is_durable = is_durable

    def add(self, group: str, key: str, now: float) -> None:
        """Add a member, or note the time anew."""
        shard, name = _place_of(group)
        try:
            self._add(f"{shard}/{name}{key}", now)
        except FileNotFoundError:
            make_directory(GROUPS, self._directory.fd)
            make_directory(shard, self._directory.fd)
            self._add(f"{shard}/{name}{key}", now)
        if self._is_durable:
            for directory in (shard, GROUPS, "."):
                sync_directory(directory, self._directory.fd)

    def _add(self, name: str, now: float) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | FLAGS, 0o600, dir_fd=self._directory.fd)
        try:
            os.utime(fd, (now, now))
        finally:
            os.close(fd)

    def members(self, group: str) -> dict[str, float]:
        """Return the members of a group, and when each was added."""
        shard, name = _place_of(group)
        return {key: added_at for group_name, key, added_at in self._entries(shard) if group_name == name}

    def remove(self, group: str, key: str) -> None:
        """Remove a member, if it is there."""
        shard, name = _place_of(group)
        with suppress(FileNotFoundError):
            os.unlink(f"{shard}/{name}{key}", dir_fd=self._directory.fd)

    def all_members(self) -> Iterator[tuple[str, str, float]]:
        """Yield each member of each group: the group, the key, and when it was added."""
        for shard in list_directory(GROUPS, self._directory.fd):
            for name, key, added_at in self._entries(f"{GROUPS}/{shard.name}"):
                yield shard.name + name, key, added_at

    def _entries(self, shard: str) -> Iterator[tuple[str, str, float]]:
        for entry in list_directory(shard, self._directory.fd):
            with suppress(FileNotFoundError):  # removed meanwhile
                if _is_member(entry.name):
                    yield (
                        entry.name[:-_KEY_LENGTH],
                        entry.name[-_KEY_LENGTH:],
                        entry.stat(follow_symlinks=False).st_mtime,
                    )


def _place_of(group: str) -> tuple[str, str]:
    """Return the directory that a group shares with others, and how the names of its members begin there."""
    return f"{GROUPS}/{group[:_SHARD_LENGTH]}", group[_SHARD_LENGTH:]
