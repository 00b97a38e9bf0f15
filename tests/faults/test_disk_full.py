"""Disks without room, or without inodes, and disks that turn read-only (cases 34, 35 and 37)."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from asyncsess import FileStore, SessionNotFoundError, StoreError
from asyncsess.testing import FakeClock

from .needs import mounted, need, need_root, remount
from .operations import GROWN, files_in, store_at, sweep_later

KILOBYTE = 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted("tmpfs", "size=256k,mode=700", tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def disk_of_few_files(tmp_path: Path) -> Iterator[Path]:
    with mounted("tmpfs", "size=1m,nr_inodes=16,mode=700", tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that turns read-only although files are open, as ext4 does by itself when it finds an error."""
    need_root()
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 * KILOBYTE * KILOBYTE)
    need(shutil.which("mkfs.ext4"), "mkfs.ext4")
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted("ext4", "loop", tmp_path / "disk", device=os.fspath(image)) as disk:
        yield disk


def _fill(disk: Path) -> Path:
    """Fill a disk to the last byte; return the file to delete to have room again."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(KILOBYTE)):
            pass
    assert os.statvfs(disk).f_bavail == 0
    return filler


def _fill_with_files(disk: Path) -> list[Path]:
    """Use up all inodes of a disk; return the files to delete to have some again."""
    with suppress(OSError):
        for number in range(100):
            (disk / f"filler{number}").touch()
    assert os.statvfs(disk).f_favail == 0
    return [*disk.glob("filler*")]


async def _value(store: FileStore, session_id: str) -> object:
    async with store.open(session_id, readonly=True) as session:
        return session["value"]


async def _set(store: FileStore, session_id: str, value: str) -> None:
    async with store.open(session_id) as session:
        session["value"] = value


@contextmanager
def _refused(*because: int) -> Iterator[None]:
    """Expect an error of the store, caused by one of these errors of the system, and in its words."""
    with pytest.raises(StoreError) as caught:
        yield
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno in because
    assert cause.strerror in str(caught.value)


async def test_on_a_full_disk_what_needs_no_room_goes_on_and_the_rest_is_refused(small_disk: Path) -> None:
    directory = small_disk / "sessions"
    async with store_at(directory) as store:
        ids = [await store.create({"value": "old"}) for _ in range(3)]
        large = await store.create({"value": GROWN})
        filler = _fill(small_disk)
        before = files_in(directory)

        with _refused(errno.ENOSPC):
            await store.create({"value": "new"})
        with _refused(errno.ENOSPC):
            await _set(store, ids[0], GROWN)
        with _refused(errno.ENOSPC):
            async with store.open(ids[0]) as session:
                await session.regenerate_id()

        assert files_in(directory) == before
        assert store.statistics().holding == 0
        assert [await _value(store, session_id) for session_id in ids] == ["old"] * 3
        await _set(store, ids[1], "new")
        for session_id in (ids[2], large):
            assert await store.destroy(session_id)
            with pytest.raises(SessionNotFoundError):
                await _value(store, session_id)

        filler.unlink()
        await _set(store, ids[0], GROWN)
        assert await _value(store, await store.create({"value": "new"})) == "new"
        assert [await _value(store, session_id) for session_id in ids[:2]] == [GROWN, "new"]


async def test_on_a_full_disk_a_store_that_has_no_directory_yet_says_so(disk_of_few_files: Path) -> None:
    fillers = _fill_with_files(disk_of_few_files)

    with _refused(errno.ENOSPC):
        await store_at(disk_of_few_files / "sessions").__aenter__()

    for path in fillers:
        path.unlink()
    async with store_at(disk_of_few_files / "sessions") as store:
        assert await _value(store, await store.create({"value": "new"})) == "new"


async def test_a_holder_who_could_not_grow_can_still_save_what_fits(small_disk: Path) -> None:
    async with store_at(small_disk / "sessions") as store:
        session_id = await store.create({"value": "old"})
        filler = _fill(small_disk)

        async with store.open(session_id) as session:
            session["value"] = GROWN
            with _refused(errno.ENOSPC):
                await session.save()
            session["value"] = "new"

        assert await _value(store, session_id) == "new"
        filler.unlink()


async def test_without_inodes_what_needs_none_goes_on_and_the_rest_is_refused(disk_of_few_files: Path) -> None:
    directory = disk_of_few_files / "sessions"
    async with store_at(directory) as store:
        ids = [await store.create({"value": "old"}) for _ in range(3)]
        fillers = _fill_with_files(disk_of_few_files)
        before = files_in(directory)

        with _refused(errno.ENOSPC):
            await store.create({"value": "new"})
        with _refused(errno.ENOSPC):
            await _set(store, ids[0], GROWN)

        assert files_in(directory) == before
        await _set(store, ids[0], "new")
        assert [await _value(store, session_id) for session_id in ids] == ["new", "old", "old"]
        assert await store.destroy(ids[2])
        await sweep_later(directory)
        await _set(store, ids[0], GROWN)  # the inode that was given back suffices

        for path in fillers:
            path.unlink()
        assert await _value(store, await store.create({"value": "new"})) == "new"


async def test_a_file_beyond_the_limit_of_its_size_is_refused(directory: Path) -> None:
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN  # as Python sets it
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with store_at(directory) as store:
        session_id = await store.create({"value": "old"})
        files = files_in(directory)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 * KILOBYTE, before[1]))
        try:
            with _refused(errno.EFBIG):
                await _set(store, session_id, "x" * 200 * KILOBYTE)
            with _refused(errno.EFBIG):
                await store.create({"value": "x" * 200 * KILOBYTE})

            assert files_in(directory) == files
            await _set(store, session_id, "x" * 20 * KILOBYTE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert await _value(store, session_id) == "x" * 20 * KILOBYTE


async def test_on_a_disk_that_is_remounted_read_only_reading_goes_on(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = small_disk / "sessions"
    async with store_at(directory, clock=lambda: 1_700_000_000.0) as earlier:
        ids = [await earlier.create({"value": "old"}) for _ in range(2)]
    async with store_at(directory, clock=lambda: 1_700_000_100.0) as store:
        remount(small_disk, "ro")

        assert [await _value(store, session_id) for session_id in ids] == ["old"] * 2
        assert {record.levelno for record in caplog.records} <= {logging.WARNING}
        with _refused(errno.EROFS):
            await _set(store, ids[0], "new")
        with _refused(errno.EROFS):
            await store.create({"value": "new"})
        with _refused(errno.EROFS):
            await store.destroy(ids[0])
        assert await store.delete_expired() == 0
        assert store.statistics().holding == 0

        remount(small_disk, "rw")
        await _set(store, ids[0], "new")
        assert [await _value(store, session_id) for session_id in ids] == ["new", "old"]


async def test_a_store_can_be_opened_and_read_on_a_read_only_disk(small_disk: Path) -> None:
    async with store_at(small_disk / "sessions") as store:
        session_id = await store.create({"value": "old"})
    remount(small_disk, "ro")

    async with store_at(small_disk / "sessions") as store:
        assert await _value(store, session_id) == "old"


async def test_a_holder_whose_disk_turns_read_only_is_told_and_leaves_no_lock(
    failing_disk: Path, clock: FakeClock
) -> None:
    async with store_at(failing_disk / "sessions", clock=clock) as store:
        changed, unchanged = [await store.create({"value": "old"}) for _ in range(2)]
        clock.advance(100)
        opening, other = store.open(changed), store.open(unchanged)
        session, _ = await opening.__aenter__(), await other.__aenter__()
        session["value"] = "new"
        remount(failing_disk, "abort")

        with _refused(errno.EROFS, errno.EIO):
            await opening.__aexit__(None, None, None)
        await other.__aexit__(None, None, None)  # there was nothing to write

        assert store.statistics().holding == 0
        assert [await _value(store, session_id) for session_id in (changed, unchanged)] == ["old"] * 2
