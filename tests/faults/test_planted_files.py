"""Something that is no session of this store's under the name of one (case 57)."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncsess import FileStore, StoreError

from .needs import NOBODY, need_root
from .operations import session_files_in, store_at

VICTIM = b"what must not be touched"


def _symbolic_link(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def _dangling_link(place: Path, victim: Path) -> None:
    place.symlink_to(victim.with_name("nothing"))


def _hard_link(place: Path, victim: Path) -> None:
    place.hardlink_to(victim)


def _fifo(place: Path, victim: Path) -> None:
    os.mkfifo(place, 0o600)


def _directory(place: Path, victim: Path) -> None:
    place.mkdir(0o700)


def _device(place: Path, victim: Path) -> None:
    need_root()
    os.mknod(place, 0o020600, os.makedev(1, 3))


def _foreign_file(place: Path, victim: Path) -> None:
    need_root()
    place.write_bytes(VICTIM)
    os.chown(place, NOBODY, NOBODY)


async def _read(store: FileStore, session_id: str) -> None:
    async with store.open(session_id, readonly=True):
        pass


async def _open(store: FileStore, session_id: str) -> None:
    async with store.open(session_id):
        pass


async def _open_or_create(store: FileStore, session_id: str) -> None:
    async with store.open(session_id, create=True) as session:
        session["value"] = "planted"


async def _destroy(store: FileStore, session_id: str) -> None:
    await store.destroy(session_id)


PLANTS = [_symbolic_link, _dangling_link, _hard_link, _fifo, _directory, _device, _foreign_file]


@pytest.fixture(autouse=True)
def _nothing_blocks() -> Iterator[None]:
    """Let a call fail that waits for the other end of a FIFO, which it would do for ever."""

    def fail(*_: object) -> None:
        pytest.fail("blocked")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    victim = tmp_path / "victim"
    victim.write_bytes(VICTIM)
    victim.chmod(0o600)
    return victim


def _is_untouched(victim: Path) -> bool:
    return victim.read_bytes() == VICTIM and not victim.with_name("nothing").exists()


async def _planted(
    store: FileStore, directory: Path, plant: Callable[[Path, Path], None], victim: Path
) -> tuple[str, Path]:
    session_id = await store.create({"value": "first"})
    (place,) = session_files_in(directory)
    place.unlink()
    plant(place, victim)
    return session_id, place


@pytest.mark.parametrize("use", [_read, _open, _open_or_create, _destroy])
@pytest.mark.parametrize("plant", PLANTS)
async def test_what_is_no_session_file_is_refused_and_left_alone(
    plant: Callable[[Path, Path], None], use: Callable[..., Awaitable[Any]], victim: Path, directory: Path
) -> None:
    async with store_at(directory) as store:
        session_id, place = await _planted(store, directory, plant, victim)
        before = place.lstat()

        with pytest.raises(StoreError, match="refused"):
            await use(store, session_id)

        after = place.lstat()
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
        assert store.statistics().holding == 0
    assert _is_untouched(victim)


@pytest.mark.parametrize("plant", PLANTS)
async def test_a_sweep_passes_over_what_is_no_session_file(
    plant: Callable[[Path, Path], None], victim: Path, directory: Path
) -> None:
    async with store_at(directory) as store:
        _, place = await _planted(store, directory, plant, victim)
        for path in (place, victim):
            os.utime(path, (0, 0), follow_symlinks=False)
        async with store_at(directory, clock=lambda: 1000.0) as earlier:
            await earlier.create({"value": "expired"})

        assert await store.delete_expired() == 1

        assert place.is_symlink() or place.exists()
    assert _is_untouched(victim)


@pytest.mark.parametrize("plant", PLANTS)
async def test_a_sweep_passes_over_what_is_no_file_of_a_dead_writer(
    plant: Callable[[Path, Path], None], victim: Path, workspace: Path
) -> None:
    async with store_at(workspace) as store:
        place = workspace / "tmp" / "planted"
        plant(place, victim)
        for path in (place, victim):
            os.utime(path, (0, 0), follow_symlinks=False)
        async with store_at(workspace, clock=lambda: 1000.0) as earlier:
            await earlier.create({"value": "expired"})

        assert await store.delete_expired() == 1

    assert _is_untouched(victim)
