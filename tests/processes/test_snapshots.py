"""Readers beside two writer processes: whole, newest, never backwards, never waiting."""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncsess import FileStore
from tests.processes.conftest import Worker


@pytest.mark.parametrize("size", [200, 60_000])
async def test_a_reader_sees_whole_versions_none_older_than_a_commit_that_had_returned(
    shared: FileStore, start: Callable[..., Worker], tmp_path: Path, size: int
) -> None:
    session_id = await shared.create({"n": 0, "fill": f"{0:08d}" * (size // 8)})
    board = tmp_path / "board"
    board.write_bytes(bytes(16))
    for place in range(2):
        start("publish", session_id, board, place, size)
    with board.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        seen, last, reads = set[int](), 0, 0
        while len(seen) < 500 or reads < 5_000:
            committed = max(struct.unpack("<QQ", memory[:16]))
            async with shared.open(session_id, readonly=True) as session:
                number, fill = session["n"], session["fill"]
            assert fill == f"{number:08d}" * (size // 8)
            assert number >= committed
            assert number >= last
            last = number
            seen.add(number)
            reads += 1


async def test_a_snapshot_is_served_while_another_process_holds_the_lock(
    shared: FileStore, start: Callable[..., Worker]
) -> None:
    session_id = await shared.create({"by": "me"})
    holder = start("hold", session_id)
    assert holder.says() == "holding"
    for _ in range(100):
        async with shared.open(session_id, readonly=True) as session:
            assert session["by"] == "me"
    holder.tell()
    assert holder.says() == "done"
    async with shared.open(session_id, readonly=True) as session:
        assert session["by"] == holder.pid
