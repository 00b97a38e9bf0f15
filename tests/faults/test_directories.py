"""Directories as an operator, or an attacker, may have left them (cases 57 to 60)."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncsess import SessionNotFoundError, StoreError

from .needs import NOBODY, need_root, unprivileged
from .operations import session_files_in, store_at, sweep_later


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of one's own; the test is a user to whom permissions apply."""
    with unprivileged() as directory:
        yield directory


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


async def _works(directory: Path) -> bool:
    async with store_at(directory) as store:
        session_id = await store.create({"value": 1})
        async with store.open(session_id) as session:
            session["value"] += 1
        async with store.open(session_id, readonly=True) as session:
            return bool(session["value"] == 2)


def _modes(directory: Path) -> dict[str, set[int]]:
    """Return the modes of all directories, and of all files, below a directory."""
    paths = [*directory.rglob("*")]
    return {
        "directories": {stat.S_IMODE(path.lstat().st_mode) for path in paths if path.is_dir()},
        "files": {stat.S_IMODE(path.lstat().st_mode) for path in paths if not path.is_dir()},
    }


def _is_empty(directory: Path) -> bool:
    return not any(directory.iterdir())


async def _is_refused(directory: Path, because: str) -> None:
    """Check that a store can't be opened, and that the error names the directory and the reason."""
    with pytest.raises(StoreError, match=because) as caught:
        await store_at(directory).__aenter__()
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], indirect=True, ids=lambda mask: f"umask {mask:03o}")
async def test_what_a_store_makes_is_for_its_user_alone(umask: int, tmp_path: Path) -> None:
    assert await _works(tmp_path / "parent" / "parents child" / "sessions")

    assert _modes(tmp_path) == {"directories": {0o700}, "files": {0o600}}


async def test_directories_that_were_there_keep_their_mode(tmp_path: Path) -> None:
    parent, directory = tmp_path / "parent", tmp_path / "parent" / "sessions"
    parent.mkdir()
    parent.chmod(0o755)
    directory.mkdir()
    directory.chmod(0o750)

    assert await _works(directory)

    assert [stat.S_IMODE(path.stat().st_mode) for path in (parent, directory)] == [0o755, 0o750]


async def test_a_directory_that_can_not_be_written_to_is_refused(home: Path) -> None:
    directory = home / "sessions"
    directory.mkdir(mode=0o500)

    await _is_refused(directory, "Permission denied")


async def test_a_directory_that_can_not_be_made_is_refused(home: Path) -> None:
    parent = home / "parent"
    parent.mkdir(mode=0o500)

    await _is_refused(parent / "sessions", "Permission denied")


async def test_a_directory_below_one_that_can_not_be_entered_is_refused(home: Path) -> None:
    parent = home / "parent"
    parent.mkdir(mode=0o000)

    await _is_refused(parent / "sessions", "Permission denied")


async def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    need_root()
    directory = tmp_path / "sessions"
    directory.mkdir(mode=0o700)
    os.chown(directory, NOBODY, NOBODY)

    await _is_refused(directory, f"belongs to user {NOBODY}.*chown")

    assert _is_empty(directory)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o770, 0o702, 0o720], ids=oct)
async def test_a_directory_that_others_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    directory = tmp_path / "sessions"
    directory.mkdir()
    directory.chmod(mode)

    await _is_refused(directory, "chmod 700")

    assert _is_empty(directory)


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o775], ids=oct)
async def test_a_symbolic_link_in_a_directory_that_others_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    shared.chmod(mode)
    own.mkdir(mode=0o700)
    (shared / "sessions").symlink_to(own)

    await _is_refused(shared / "sessions", "symbolic link")

    assert _is_empty(own)


async def test_a_symbolic_link_of_another_user_is_refused(tmp_path: Path) -> None:
    need_root()
    own, link = tmp_path / "own", tmp_path / "sessions"
    own.mkdir(mode=0o700)
    link.symlink_to(own)
    os.lchown(link, NOBODY, NOBODY)

    await _is_refused(link, "symbolic link")

    assert _is_empty(own)


async def test_a_symbolic_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    own, link = tmp_path / "own", tmp_path / "sessions"
    own.mkdir(mode=0o700)
    link.symlink_to(own)

    assert await _works(link)

    assert (own / "tmp").is_dir()


async def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "sessions"
    place.write_text("not sessions")

    await _is_refused(place, "not a directory|Not a directory|File exists")

    assert place.read_text() == "not sessions"


async def test_a_file_in_the_place_of_a_parent_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "parent"
    place.write_text("not a parent")

    await _is_refused(place / "sessions", "Not a directory|not a directory")


@pytest.mark.parametrize("is_made_again", [False, True], ids=["deleted", "deleted and made again"])
async def test_a_store_goes_on_after_its_directory_was_deleted(is_made_again: bool, tmp_path: Path) -> None:
    directory = tmp_path / "sessions"
    async with store_at(directory) as store, store_at(directory) as other:
        before = await store.create({"value": "before"})
        shutil.rmtree(directory)
        if is_made_again:
            assert await _works(directory)
        with pytest.raises(SessionNotFoundError):
            await store.open(before, readonly=True).__aenter__()

        after = await store.create({"value": "after"})
        async with store.open(after) as session:
            session["value"] = "changed"

        await other.create({})  # a store that only reads would not find out
        async with other.open(after, readonly=True) as session:
            assert session["value"] == "changed"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_a_holder_whose_directory_was_deleted_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "sessions"
    async with store_at(directory) as store:
        session_id = await store.create({"value": "before"})
        opening = store.open(session_id)
        session = await opening.__aenter__()
        session["value"] = "lost"
        shutil.rmtree(directory)

        with pytest.raises(Exception, match="replaced or deleted") as caught:
            await opening.__aexit__(None, None, None)

        assert type(caught.value).__name__ == "LockLostError"
        assert store.statistics().holding == 0


async def test_a_store_goes_on_after_a_cleaner_removed_its_empty_directories(tmp_path: Path) -> None:
    async with store_at(tmp_path) as store:
        await store.destroy(await store.create({}))
        await sweep_later(tmp_path)
        for name in os.listdir(tmp_path):
            os.rmdir(tmp_path / name)

        session_id = await store.create({"value": 1})
        async with store.open(session_id) as session:
            session["value"] = "grown" * 1000


async def test_a_path_exchanged_for_a_symbolic_link_leads_an_open_store_nowhere_else(tmp_path: Path) -> None:
    directory, aside, victim = tmp_path / "sessions", tmp_path / "aside", tmp_path / "victim"
    victim.mkdir(mode=0o700)
    async with store_at(directory) as store:
        session_id = await store.create({"value": "small"})
        directory.rename(aside)
        directory.symlink_to(victim)

        async with store.open(session_id) as session:
            session["value"] = "grown" * 1000
        await store.create({})
        await store.delete_expired()

        assert _is_empty(victim)
    assert len(session_files_in(aside)) == 2


async def test_a_link_planted_where_the_directory_was_is_not_followed(tmp_path: Path) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    shared.chmod(0o1777)
    victim.mkdir(mode=0o700)
    async with store_at(shared / "sessions") as store:
        shutil.rmtree(shared / "sessions")
        (shared / "sessions").symlink_to(victim)

        with pytest.raises(StoreError, match="symbolic link"):
            await store.create({"value": "small"})

    assert _is_empty(victim)


async def test_a_link_planted_while_the_directory_is_made_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, victim, mkdir = tmp_path / "shared", tmp_path / "victim", os.mkdir
    shared.mkdir()
    shared.chmod(0o1777)
    victim.mkdir()
    victim.chmod(0o755)

    def mkdir_too_late(path: Any, *args: Any, **kwargs: Any) -> None:
        if path == shared / "sessions" and not path.is_symlink():
            path.symlink_to(victim)
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir_too_late)

    with pytest.raises(StoreError):
        await store_at(shared / "sessions").__aenter__()

    assert stat.S_IMODE(victim.stat().st_mode) == 0o755
    assert _is_empty(victim)


async def test_others_can_neither_read_nor_lock_a_session(tmp_path: Path) -> None:
    need_root()
    with unprivileged() as shared:
        os.seteuid(0)
        directory = shared / "sessions"
        await store_at(directory).create({"value": "secret"})
        (file,) = session_files_in(directory)
        os.seteuid(NOBODY)

        for path, flags in ((file, os.O_RDONLY), (file, os.O_RDWR), (directory, os.O_RDONLY)):
            with pytest.raises(PermissionError):
                os.open(path, flags)
        os.seteuid(0)
        shutil.rmtree(directory)
        os.seteuid(NOBODY)
