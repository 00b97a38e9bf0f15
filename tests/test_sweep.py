from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asyncsess import FileStore, MsgpackCodec, SessionNotFoundError, SessionStore, StoreError
from asyncsess.backends.file import acquisition, layout, lock, sweep
from asyncsess.backends.file.directory import Directory
from asyncsess.backends.file.lock import DirectoryLock, FileLock
from asyncsess.ids import key_of
from asyncsess.testing import FakeClock, until
from tests.conftest import NewStore, keys_of

IDLE = 1800.0
LEFTOVER_AGE = 60.0


async def exists(store: SessionStore, session_id: str) -> bool:
    try:
        async with store.open(session_id, readonly=True):
            return True
    except SessionNotFoundError:
        return False


def names_below(directory: Path) -> set[str]:
    return {os.fspath(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


# Any store.


async def test_only_what_has_expired_is_deleted(store: SessionStore, clock: FakeClock) -> None:
    expired = [await store.create({"n": number}) for number in range(5)]
    clock.advance(1)
    live = [await store.create({"n": number}) for number in range(5)]
    clock.advance(IDLE - 1)
    assert await store.delete_expired() == 5
    assert set(await keys_of(store)) == set(map(key_of, live))
    assert [await exists(store, session_id) for session_id in (*expired, *live)] == [False] * 5 + [True] * 5
    assert await store.delete_expired() == 0


async def test_the_lifetime_ends_sessions_that_are_in_use(new_store: NewStore, clock: FakeClock) -> None:
    for idle_timeout in (100, None):
        async with new_store(idle_timeout=idle_timeout, lifetime=250) as store:
            session_id = await store.create()
            for _ in range(4):
                clock.advance(60)
                async with store.open(session_id):
                    pass
            assert await store.delete_expired() == 0
            clock.advance(10)
            assert not await exists(store, session_id)
            assert await store.delete_expired() == 1


async def test_a_block_that_fails_is_no_use_of_the_session(new_store: NewStore, clock: FakeClock) -> None:
    clock.now = 1e9
    async with new_store() as store:
        session_id = await store.create()
        with suppress(ZeroDivisionError):
            async with store.open(session_id) as session:
                session["a"] = 1
                await session.save()
                raise ZeroDivisionError
        clock.advance(IDLE)
        assert await store.delete_expired() == 1


@pytest.mark.parametrize("now", [1e9, 4e9])
async def test_the_sweep_goes_by_the_clock_of_the_store(new_store: NewStore, clock: FakeClock, now: float) -> None:
    clock.now = now
    async with new_store() as store:
        session_id = await store.create()
        clock.advance(IDLE / 2)
        async with store.open(session_id) as session:
            session["a"] = 1
        clock.advance(IDLE / 2)
        assert await store.delete_expired() == 0
        clock.advance(IDLE / 2)
        assert await store.delete_expired() == 1


async def test_a_held_session_is_left_alone_until_it_is_released(store: SessionStore, clock: FakeClock) -> None:
    session_id = await store.create()
    async with store.open(session_id) as session:
        clock.advance(IDLE)
        assert await store.delete_expired() == 0
        session["a"] = 1
    assert await store.delete_expired() == 0
    assert await exists(store, session_id)


async def test_a_held_new_session_is_left_alone_however_long_it_takes(store: SessionStore, clock: FakeClock) -> None:
    async with store.open("job-of-today", create=True) as session:
        clock.advance(10 * IDLE)
        assert await store.delete_expired() == 0
        session["a"] = 1
    assert await exists(store, "job-of-today")


async def test_two_sweepers_at_once_delete_everything_once(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store() as first, new_store() as second:
        for _ in range(20):
            await first.create()
        clock.advance(IDLE)
        counts = await asyncio.gather(*(store.delete_expired() for store in (first, first, second, second)))
        assert sum(counts) == 20
        assert (await keys_of(first), await keys_of(second)) == ([], [])


async def test_a_sweep_disturbs_nobody_who_uses_the_store(store: SessionStore, clock: FakeClock) -> None:
    live = await store.create()
    for _ in range(20):
        await store.create()
    clock.advance(IDLE - 1)
    async with store.open(live):
        pass
    clock.advance(1)

    async def use() -> None:
        for number in range(10):
            async with store.open(live, timeout=5) as session:
                session.setdefault("list", []).append(number)
            await asyncio.sleep(0)

    deleted, *_ = await asyncio.gather(store.delete_expired(), use(), use())
    assert deleted == 20
    async with store.open(live, readonly=True) as session:
        assert sorted(session["list"]) == sorted([*range(10)] * 2)


async def test_an_entered_store_sweeps_by_itself(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(sweep_interval=0.001) as store:
        await store.create()
        clock.advance(IDLE)
        await until(lambda: store.statistics().swept == 1)
        assert await keys_of(store) == []
        await store.create()
        clock.advance(IDLE)
        await until(lambda: store.statistics().swept == 2)


async def test_a_sweep_that_fails_is_logged_and_tried_again(
    new_store: NewStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = iter([StoreError("the disk is gone"), StoreError("still gone")])

    async def delete_expired(*args: Any, **kwargs: Any) -> int:
        for error in outcomes:
            raise error
        return 7

    store = new_store(sweep_interval=0.001)
    monkeypatch.setattr(store._policy.backend, "delete_expired", delete_expired)
    async with store:
        await until(lambda: store.statistics().swept >= 7)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "the disk is gone" in caplog.text


# What lies in a directory of files besides sessions.


@pytest.fixture
async def file_store(directory: Path, clock: FakeClock) -> AsyncIterator[FileStore]:
    async with FileStore(directory, clock=clock, sweep_interval=None) as store:
        yield store


@pytest.fixture
def file_of(file_store: FileStore, directory: Path) -> Any:
    def path(session_id: str) -> Path:
        key = key_of(session_id)
        return directory / key[:2] / key[2:]

    return path


def age(path: Path, now: float, by: float) -> None:
    os.utime(path, (now - by, now - by), follow_symlinks=False)


async def test_the_sweep_leaves_empty_directories_and_nothing_else(
    file_store: FileStore, directory: Path, clock: FakeClock
) -> None:
    for _ in range(10):
        await file_store.create()
    clock.advance(IDLE)
    assert await file_store.delete_expired() == 10
    assert names_below(directory) == set()


async def test_files_that_a_killed_process_was_making_are_deleted_after_a_minute(
    file_store: FileStore, directory: Path, clock: FakeClock
) -> None:
    old, young = directory / "tmp" / ("a" * 32), directory / "tmp" / ("b" * 32)
    for path, seconds in ((old, LEFTOVER_AGE + 1), (young, LEFTOVER_AGE - 1)):
        path.write_bytes(b"half a ses")
        age(path, clock(), seconds)
    assert await file_store.delete_expired() == 0
    assert (old.exists(), young.exists()) == (False, True)
    young.unlink()


async def test_a_file_that_is_being_made_right_now_is_left_alone(
    file_store: FileStore, directory: Path, clock: FakeClock
) -> None:
    path = directory / "tmp" / ("a" * 32)
    path.write_bytes(b"half a ses")
    age(path, clock(), 10 * LEFTOVER_AGE)
    root = Directory(directory)
    root.open()
    with ExitStack() as stack:
        stack.callback(root.close)
        maker = FileLock(f"tmp/{path.name}", root.fd)
        stack.callback(maker.close)
        assert maker.try_lock()
        await file_store.delete_expired()
        assert path.exists()
    await file_store.delete_expired()
    assert not path.exists()


@pytest.mark.parametrize("sweeper_is_done", [True, False])
async def test_a_sweep_may_take_a_file_for_a_leftover_before_its_maker_locks_it(
    file_store: FileStore, directory: Path, monkeypatch: pytest.MonkeyPatch, sweeper_is_done: bool
) -> None:
    """As when a process is stopped for a minute between two system calls, by a debugger or with its machine."""
    flock, taken = lock._flock, list[Path]()
    sweeping = ExitStack()

    def sweep_first(fd: int, operation: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.parent.name == "tmp" and not taken:
            taken.append(path)
            sweeper = os.open(path, os.O_RDWR)
            sweeping.callback(os.close, sweeper)
            flock(sweeper, operation)
            sweeping.callback(path.unlink, missing_ok=True)
        if sweeper_is_done or path not in taken:
            sweeping.close()
        flock(fd, operation)

    monkeypatch.setattr(lock, "_flock", sweep_first)
    session_id = await file_store.create({"a": 1})
    async with file_store.open(session_id, readonly=True) as session:
        assert dict(session) == {"a": 1}
    assert len(taken) == 1


async def test_what_stands_between_the_files_that_are_being_made_stops_no_sweep(
    file_store: FileStore, directory: Path, clock: FakeClock
) -> None:
    await file_store.create()
    strange = directory / "tmp" / "strange"
    victim = directory.parent / "victim"
    victim.write_text("not yours")
    for make in (strange.mkdir, lambda: os.mkfifo(strange), lambda: strange.symlink_to(victim)):
        make()
        age(strange, clock(), -IDLE + LEFTOVER_AGE + 1)
        clock.advance(IDLE)
        await file_store.create()
        assert await file_store.delete_expired() == 1
        assert victim.read_text() == "not yours"
        with suppress(FileNotFoundError):
            strange.rmdir() if strange.is_dir() and not strange.is_symlink() else strange.unlink()


async def test_placeholders_of_killed_processes_are_deleted_after_a_minute_and_not_counted(
    file_store: FileStore, file_of: Any, clock: FakeClock
) -> None:
    old, young = file_of("old-job"), file_of("young-job")
    for path, name, seconds in ((old, "old-job", LEFTOVER_AGE + 1), (young, "young-job", LEFTOVER_AGE - 1)):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(layout.encode_file(key_of(name), 0, 0.0, 0, 0.0, b""))
        age(path, clock(), seconds)
    assert await file_store.delete_expired() == 0
    assert (old.exists(), young.exists()) == (False, True)


async def test_a_damaged_file_is_put_aside_and_does_not_stop_the_sweep(
    file_store: FileStore, file_of: Any, directory: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [await file_store.create({"n": number}) for number in range(20)]
    content = b"\0" * 1536
    for session_id in ids[::5]:
        file_of(session_id).write_bytes(content)
        age(file_of(session_id), clock(), 0)
    clock.advance(IDLE)
    assert await file_store.delete_expired() == 16
    assert file_store.statistics().corrupt == 4
    kept = [*(directory / "corrupt").iterdir()]
    assert [path.read_bytes() for path in kept] == [content] * 4
    assert names_below(directory) == {f"corrupt/{path.name}" for path in kept}
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 4
    assert all(str(path) in caplog.text for path in kept)


async def test_a_file_of_a_newer_format_is_left_alone(
    file_store: FileStore, file_of: Any, clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    session_id = await file_store.create()
    with monkeypatch.context() as newer:
        newer.setattr(layout, "_FORMAT", 2)
        content = layout.encode_file(key_of(session_id), 512, clock(), 1, clock(), b"{}")
    file_of(session_id).write_bytes(content)
    age(file_of(session_id), clock(), 10 * IDLE)
    await file_store.create()
    clock.advance(IDLE)
    assert await file_store.delete_expired() == 1
    assert file_of(session_id).read_bytes() == content
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert file_store.statistics().corrupt == 0


async def test_foreign_names_are_ignored(file_store: FileStore, directory: Path, clock: FakeClock) -> None:
    await file_store.create()
    foreign = [
        "README",
        "lost+found",
        "0a/short",
        f"0a/{'g' * 62}",
        f"0a/{'A' * 62}",
        f"0a/{'1' * 61}",
        "zz/" + "1" * 62,
    ]
    foreign += [f"0a/{'1' * 63}", f"0a/.{'1' * 61}", "corrupt/0123456789abcdef"]
    for name in foreign:
        path = directory / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text("mine")
        age(path, clock(), 10 * IDLE)
    clock.advance(IDLE)
    assert await file_store.delete_expired() == 1
    assert await keys_of(file_store) == []
    assert names_below(directory) == set(foreign)


async def test_what_has_a_sessions_name_and_is_no_file_is_left_alone(
    file_store: FileStore, directory: Path, clock: FakeClock
) -> None:
    await file_store.create()
    victim = directory.parent / "victim"
    victim.write_text("not yours")
    shard = directory / "0a"
    shard.mkdir(mode=0o700, exist_ok=True)
    (shard / ("1" * 62)).symlink_to(victim)
    (shard / ("2" * 62)).mkdir()
    os.mkfifo(shard / ("3" * 62))
    (shard / ("4" * 62)).hardlink_to(victim)
    for path in shard.iterdir():
        age(path, clock(), 10 * IDLE)
    clock.advance(IDLE)
    assert await file_store.delete_expired() == 1
    assert sorted(path.name[0] for path in shard.iterdir()) == ["1", "2", "3", "4"]
    assert victim.read_text() == "not yours"
    assert file_store.statistics().corrupt == 0


async def test_one_store_at_a_time_sweeps_a_directory(file_store: FileStore, directory: Path, clock: FakeClock) -> None:
    await file_store.create()
    clock.advance(IDLE)
    root = Directory(directory)
    root.open()
    with ExitStack() as stack:
        stack.callback(root.close)
        sweeper = DirectoryLock(".", root.fd)
        stack.callback(sweeper.close)
        assert sweeper.try_lock()
        assert await file_store.delete_expired() == 0
    assert await file_store.delete_expired() == 1


# What happens between the look at a file and its lock.


def before_each_lock(monkeypatch: pytest.MonkeyPatch, module: ModuleType, meanwhile: Callable[[], Any]) -> None:
    """Let something happen after a file was opened, and before it is locked."""

    class LateLock(FileLock):
        __slots__ = ()

        def try_lock(self) -> bool:
            meanwhile()
            return super().try_lock()

    monkeypatch.setattr(module, "FileLock", LateLock)


@pytest.mark.parametrize("module", [sweep, acquisition], ids=["sweep", "open"])
async def test_a_session_used_just_before_its_lock_is_taken_has_not_expired(
    file_store: FileStore, file_of: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    session_id = await file_store.create({"a": 1})
    key = key_of(session_id)
    clock.advance(IDLE)

    def another_process_commits() -> None:
        size = layout.decode_file(file_of(session_id).read_bytes(), key).slot_size
        with file_of(session_id).open("r+b") as file:
            file.seek(layout.slot_offset(1, size))
            file.write(layout.encode_slot(key, 2, clock() - 1, MsgpackCodec().encode({"a": 2})))

    before_each_lock(monkeypatch, module, another_process_commits)
    if module is sweep:
        assert await file_store.delete_expired() == 0
    async with file_store.open(session_id) as session:
        assert (session["a"], session.version) == (2, 2)


async def test_a_session_made_anew_while_the_sweeper_looks_stays(
    file_store: FileStore, file_of: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(await file_store.create({"a": 1}))

    def another_process_replaces_it() -> None:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)

    clock.advance(IDLE)
    before_each_lock(monkeypatch, sweep, another_process_replaces_it)
    assert await file_store.delete_expired() == 0
    assert path.exists()
