"""`FileBackend`: records as files, after the contract in `asyncsess.backends.base`."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Final, Literal

from asyncsess.backends.base import BackendStatistics, Found, Record
from asyncsess.backends.file.directory import SHARDS, Directory
from asyncsess.backends.file.files import Files, UnsettledError
from asyncsess.backends.file.groups import Groups
from asyncsess.backends.file.held import FileHeld
from asyncsess.backends.file.io import IO, IOMode
from asyncsess.backends.file.lock import DirectoryLock
from asyncsess.backends.file.name_lock import NameLock
from asyncsess.backends.file.sweep import Sweep, keys_in
from asyncsess.backends.turns import Turns
from asyncsess.errors import Holder
from asyncsess.expiry import Expiry

Durability = Literal["process", "power"]

_READER_TIMEOUT: Final = 10.0


class FileBackend:
    """Keep each record in a file of its own.

    Args:
        directory: Where; it is made if it is missing, and must be this user's alone.
        durability: What a commit that has returned survives: the end of the process, or a power cut.
        io: Where blocking calls run; see `IO`.
        allow_network_fs: Accept a file system on which only one machine may use the store.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        durability: Durability = "process",
        io: IOMode = "auto",
        allow_network_fs: bool = False,
    ) -> None:
        if durability not in ("process", "power"):
            raise ValueError(f"durability is 'process' or 'power', not {durability!r}")
        self._io = IO(io)
        is_durable = durability == "power"
        self._directory = Directory(directory, allow_network_fs=allow_network_fs, is_durable=is_durable)
        self._files = Files(self._directory, self._io, is_durable=is_durable)
        self._groups = Groups(self._directory, is_durable=is_durable)
        self._turns = Turns()

    def __repr__(self) -> str:
        return f"<FileBackend {self._directory!r}>"

    async def open(self) -> None:
        await self._io.run(self._directory.open)

    async def aclose(self) -> None:
        await self._io.settle()
        for held in list(self._files.holders):
            held.lose()
        self._directory.close()
        self._io.close()

    async def read(self, key: str) -> Found:
        if not self._directory.is_open:
            await self._files.ready()
        try:
            return await self._io.run(self._files.read, key)
        except UnsettledError:
            async with self.hold(key, timeout=_READER_TIMEOUT, holder=_myself("reader")) as held:
                return held.record

    def hold(
        self, key: str, *, timeout: float, holder: Holder, lease: float = math.inf, create: bool = False
    ) -> FileHeld:
        return FileHeld(self._files, self._turns, key, timeout=timeout, lease=lease, holder=holder, create=create)

    def create(
        self,
        key: str,
        payload: bytes,
        *,
        created_at: float,
        now: float,
        holder: Holder,
        lease: float = math.inf,
        version: int = 1,
    ) -> FileHeld:
        first = Record(payload, version, created_at, now)
        return FileHeld(self._files, self._turns, key, timeout=0.0, lease=lease, holder=holder, first=first)

    def hold_name(self, key: str, name: str, *, timeout: float, holder: Holder, lease: float = math.inf) -> NameLock:
        return NameLock(self._files, self._turns, key, name, timeout=timeout, lease=lease, holder=holder)

    async def touch(self, key: str, *, now: float) -> None:
        await self._files.ready()
        await self._io.run(self._files.touch, key, now)

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        await self._files.ready()
        await self._files.write(self._groups.add, group, key, now)

    async def members(self, group: str) -> Mapping[str, float]:
        await self._files.ready()
        return await self._io.in_thread(self._groups.members, group)

    async def remove_member(self, group: str, key: str) -> None:
        await self._files.ready()
        await self._io.run(self._groups.remove, group, key)

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        await self._files.ready()
        with closing(await self._io.run(DirectoryLock, ".", self._directory.fd)) as lock:
            if not lock.try_lock():  # another process sweeps
                return 0
            sweep = Sweep(self._files, self._groups, expiry, now)
            while await self._io.in_thread(sweep.step):
                pass
            return sweep.deleted

    async def keys(self) -> AsyncIterator[str]:
        await self._files.ready()
        for shard in SHARDS:
            for key in await self._io.in_thread(keys_in, self._files, shard):
                yield key

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(
            holding=self._turns.holding,
            waiting=self._turns.waiting + self._files.waiting,
            corrupt=self._files.corrupt,
            io_switches=self._io.switches,
        )


def _myself(task: str) -> Holder:
    return Holder(os.getpid(), task, datetime.now(UTC), __name__)
