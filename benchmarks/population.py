"""A population: many sessions on disk, made faster than a store would make them."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from asyncsess.backends.file import layout
from asyncsess.backends.file.directory import SHARDS, name_of
from asyncsess.ids import key_of
from benchmarks.contestants import SESSION, encode

_AT_ONCE = 500


def session_id_of(number: int) -> str:
    return f"session-{number}"


async def populate(directory: Path, count: int) -> None:
    """Write the files of so many sessions that were used just now."""
    root_fd = _open_with_shards(directory)
    try:
        for start in range(0, count, _AT_ONCE):
            for number in range(start, min(start + _AT_ONCE, count)):
                _write(number, root_fd)
            await asyncio.sleep(0)  # an interruption gets in here
    finally:
        os.close(root_fd)


def _open_with_shards(directory: Path) -> int:
    directory.mkdir(mode=0o700)
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for shard in SHARDS:
        os.mkdir(shard, 0o700, dir_fd=root_fd)
    return root_fd


def _write(number: int, root_fd: int) -> None:
    key, payload = key_of(session_id_of(number)), encode(SESSION)
    now, slot_size = time.time(), layout.slot_size_for(len(payload))
    content = layout.encode_file(key, slot_size, created_at=now, version=1, committed_at=now, payload=payload)
    fd = os.open(name_of(key), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=root_fd)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
