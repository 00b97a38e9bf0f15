"""Reading without a lock: whole, newest, never backwards, and without a trace."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from asyncsess import SessionError
from asyncsess.backends.base import Record
from asyncsess.backends.file import FileBackend, files, layout
from asyncsess.testing import until
from asyncsess.testing.contract import KEY, NOW, create, hold, put


@pytest.fixture
async def backend(directory: Path) -> AsyncIterator[FileBackend]:
    backend = FileBackend(directory, io="loop")
    await backend.open()
    yield backend
    await backend.aclose()


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / KEY[:2] / KEY[2:]


def under_way(file: bytes, payload: bytes, *, done: float = 0.5) -> bytes:
    """Return a file whose next commit has been written to this part."""
    before = layout.decode_file(file, KEY)
    data = layout.encode_slot(KEY, before.version + 1, NOW, payload)
    data = data[: int(done * len(data))]
    at = layout.slot_offset(1 - before.slot, before.slot_size)
    return file[:at] + data + file[at + len(data) :]


def reads(monkeypatch: pytest.MonkeyPatch, contents: Iterable[bytes]) -> list[bytes]:
    """Let readers of a file find these contents, one after another; return the list of those that were read."""
    source, read = iter(contents), list[bytes]()

    def read_all(*args: Any) -> bytes:
        read.append(next(source))
        return read[-1]

    monkeypatch.setattr(files, "read_all", read_all)
    return read


async def three_versions(backend: FileBackend, path: Path) -> list[bytes]:
    """Return the file after each of three commits in place."""
    async with create(backend, b"1" * 100) as held:
        contents = [path.read_bytes()]
        for number in (b"2", b"3"):
            await held.commit(number * 100, now=NOW)
            contents.append(path.read_bytes())
    return contents


async def test_a_file_at_rest_is_read_once(backend: FileBackend, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = await three_versions(backend, path)
    read = reads(monkeypatch, contents[2:])
    record = await backend.read(KEY)
    assert record is not None
    assert (record.payload, record.version, len(read)) == (b"3" * 100, 3, 1)


async def test_a_torn_slot_is_looked_at_twice_and_then_the_other_is_the_newest(
    backend: FileBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = under_way((await three_versions(backend, path))[2], b"4" * 100)
    read = reads(monkeypatch, [torn] * 3)
    record = await backend.read(KEY)
    assert record is not None
    assert (record.payload, record.version, len(read)) == (b"3" * 100, 3, 2)


async def test_two_commits_within_one_read_do_not_hide_the_first_of_them(
    backend: FileBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = await three_versions(backend, path)
    # The read began before version 3 was written over version 1, and ended while version 4 was written over version 2.
    mixed = first[: layout.slot_offset(1, 512)] + under_way(third, b"4" * 100)[layout.slot_offset(1, 512) :]
    assert layout.decode_file(mixed, KEY).version == 1
    reads(monkeypatch, [mixed, third])
    record = await backend.read(KEY)
    assert record is not None
    assert record.version == 3
    assert second != third


async def test_a_file_that_keeps_changing_is_read_under_its_lock_at_last(
    backend: FileBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = (await three_versions(backend, path))[2]
    changing = (under_way(newest, b"%d" % number * 100) for number in count(1000))
    read = reads(monkeypatch, changing)
    record = await backend.read(KEY)
    assert record is not None
    assert (record.payload, record.version) == (b"3" * 100, 3)
    assert 2 < len(read) < 100


async def test_a_reader_that_needs_the_lock_waits_for_it(
    backend: FileBackend, directory: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = (await three_versions(backend, path))[2]
    other = FileBackend(directory, io="loop")
    async with hold(backend) as held:
        reads(monkeypatch, (under_way(newest, b"%d" % number * 100) for number in count(1000)))
        readers = [asyncio.create_task(handle.read(KEY)) for handle in (backend, other)]
        await until(lambda: backend.statistics().waiting + other.statistics().waiting == 2)
        committed = await held.commit(b"5" * 100, now=NOW)
    assert [record and record.payload for record in await asyncio.gather(*readers)] == [committed.payload] * 2
    await other.aclose()


async def test_a_writer_that_was_killed_in_a_commit_leaves_the_version_before(backend: FileBackend, path: Path) -> None:
    newest = (await three_versions(backend, path))[2]
    for done in (0.01, 0.1, 0.5, 0.99):
        path.write_bytes(under_way(newest, b"4" * 100, done=done))
        for _ in range(2):
            record = await backend.read(KEY)
            assert record is not None
            assert (record.payload, record.version) == (b"3" * 100, 3)
    async with hold(backend) as held:  # and the next commit takes the torn slot
        assert (await held.commit(b"5" * 100, now=NOW)).version == 4
    assert await backend.read(KEY) == Record(b"5" * 100, 4, NOW, NOW)


async def test_a_touch_of_a_file_that_keeps_changing_is_no_error(
    backend: FileBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = (await three_versions(backend, path))[2]
    with monkeypatch.context() as patch:
        reads(patch, (under_way(newest, b"%d" % number * 100) for number in count(1000)))
        await backend.touch(KEY, now=NOW + 60)
    record = await backend.read(KEY)
    assert record is not None
    assert (record.payload, record.version) == (b"3" * 100, 3)


async def test_a_touch_of_a_damaged_file_is_a_typed_error_if_any(backend: FileBackend, path: Path) -> None:
    await put(backend)
    path.write_bytes(b"damaged")
    with suppress(SessionError):
        await backend.touch(KEY, now=NOW + 60)


async def test_a_reader_leaves_no_trace(backend: FileBackend, path: Path) -> None:
    await three_versions(backend, path)
    os.utime(path, (1.0, 2.0))
    content, before = path.read_bytes(), path.stat()
    path.chmod(0o400)
    for _ in range(3):
        assert await backend.read(KEY) == Record(b"3" * 100, 3, NOW, NOW)
    after = path.stat()
    assert (path.read_bytes(), after.st_mtime_ns, after.st_ino) == (content, before.st_mtime_ns, before.st_ino)


async def test_what_is_not_there_reads_as_none(backend: FileBackend, directory: Path, path: Path) -> None:
    assert await backend.read(KEY) is None
    await put(backend)
    path.unlink()
    assert await backend.read(KEY) is None
    path.write_bytes(layout.encode_file(KEY, 0, 0.0, 0, 0.0, b""))  # a placeholder
    assert await backend.read(KEY) is None
    path.unlink()
    path.parent.rmdir()
    assert await backend.read(KEY) is None
    assert [*directory.rglob(KEY[2:])] == []


async def test_a_file_replaced_under_a_reader_shows_one_version_whole(
    backend: FileBackend, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three_versions(backend, path)
    read_all = files.read_all

    def read_while_it_grows(fd: int, size: int) -> bytes:
        path.rename(path.with_name("old"))
        path.write_bytes(layout.encode_file(KEY, 8192, NOW, 4, NOW, b"4" * 5_000))
        return read_all(fd, size)

    monkeypatch.setattr(files, "read_all", read_while_it_grows)
    record = await backend.read(KEY)
    assert record is not None
    assert (record.payload, record.version) == (b"3" * 100, 3)
    monkeypatch.undo()
    record = await backend.read(KEY)
    assert record is not None
    assert (record.payload, record.version) == (b"4" * 5_000, 4)


@pytest.mark.parametrize("size", [100, 60_000])
async def test_a_reader_beside_a_writer_sees_each_version_whole_and_none_older_than_the_last_acknowledged(
    backend: FileBackend, directory: Path, size: int
) -> None:
    acknowledged, is_done = [1], threading.Event()
    await put(backend, b"\0" * size)

    async def write() -> None:
        writer = FileBackend(directory, io="loop")
        async with hold(writer) as held:
            for number in sequence(300):
                record = await held.commit(bytes([number % 256]) * (size + number % 7), now=NOW)
                acknowledged[0] = record.version
        await writer.aclose()
        is_done.set()

    def sequence(length: int) -> Iterator[int]:
        yield from range(2, length + 2)

    writer = asyncio.create_task(asyncio.to_thread(asyncio.run, write()))
    seen = 0
    while not is_done.is_set():
        floor = acknowledged[0]
        record = await backend.read(KEY)
        assert record is not None
        assert record.version >= max(floor, seen)
        assert set(record.payload) <= {record.version % 256 if record.version > 1 else 0}
        seen = record.version
        await asyncio.sleep(0)
    await writer
    assert (await backend.read(KEY) or record).version == 301
