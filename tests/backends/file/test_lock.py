"""The lock of a session file: one name, one file, one holder."""

import asyncio
import errno
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from asyncsess import FileStore, LockLostError, LockTimeoutError, SessionNotFoundError, StoreError
from asyncsess.backends.file import layout, lock, wakeup
from asyncsess.backends.file.directory import name_of
from asyncsess.ids import key_of


@pytest.fixture(params=["loop", "thread"])
async def files(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[FileStore]:
    async with FileStore(tmp_path, io=request.param) as store:
        yield store


def path_of(root: Path, session_id: str) -> Path:
    return root / name_of(key_of(session_id))


def without_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the waiters to the events alone."""
    monkeypatch.setattr(wakeup, "_AFTER_AN_EVENT", ())
    monkeypatch.setattr(wakeup, "_BEHIND_EVENTS", (3600, 3600))
    monkeypatch.setattr(wakeup, "_POLLING", (3600,))


def replace_by_copy(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


@pytest.mark.parametrize("interfere", [Path.unlink, replace_by_copy])
@pytest.mark.parametrize("value", ["same", "x" * 9000], ids=["in place", "growing"])
async def test_the_holder_of_a_file_that_was_deleted_or_replaced_is_told(
    files: FileStore, tmp_path: Path, interfere: Callable[[Path], None], value: str
) -> None:
    session_id = await files.create({"a": 1})
    with pytest.raises(LockLostError, match="nothing was stored"):
        async with files.open(session_id) as session:
            interfere(path_of(tmp_path, session_id))
            session["b"] = value
    if interfere is Path.unlink:
        with pytest.raises(SessionNotFoundError):
            async with files.open(session_id):
                pass
    else:
        async with files.open(session_id) as session:
            assert dict(session) == {"a": 1}
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("interfere", [Path.unlink, replace_by_copy])
async def test_a_waiter_goes_on_to_the_file_that_the_name_leads_to(
    files: FileStore, tmp_path: Path, interfere: Callable[[Path], None]
) -> None:
    session_id = await files.create({"n": 0})
    async with FileStore(tmp_path) as other:

        async def increment() -> None:
            async with other.open(session_id) as session:
                session["n"] += 1

        with pytest.raises(LockLostError):
            async with files.open(session_id) as session:
                session["n"] += 1
                waiter = asyncio.create_task(increment())
                while not other.statistics().waiting:
                    await asyncio.sleep(0)
                interfere(path_of(tmp_path, session_id))
        if interfere is Path.unlink:
            with pytest.raises(SessionNotFoundError):
                await waiter
        else:
            await waiter
            async with files.open(session_id, readonly=True) as session:
                assert session["n"] == 1


async def test_other_descriptors_of_the_process_do_not_take_the_lock_away(files: FileStore, tmp_path: Path) -> None:
    session_id = await files.create({})
    path = path_of(tmp_path, session_id)
    async with files.open(session_id):
        path.read_bytes()
        fd = os.open(path, os.O_RDWR)
        os.close(fd)
        fd = os.open(path, os.O_RDWR)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)


async def test_a_copy_of_the_descriptor_keeps_neither_the_lock_nor_the_waiters(
    files: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_timers(monkeypatch)
    session_id = await files.create({"n": 0})
    async with FileStore(tmp_path, lock_timeout=3600) as other:

        async def increment() -> None:
            async with other.open(session_id) as session:
                session["n"] += 1

        async with files.open(session_id):
            held = [fd for fd in os.listdir("/proc/self/fd") if is_link_to(fd, path_of(tmp_path, session_id))]
            copy = os.dup(int(held[0]))  # as a child has it between fork and exec
            waiter = asyncio.create_task(increment())
            while not other.statistics().waiting:
                await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await waiter
        os.close(copy)


def is_link_to(fd: str, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except FileNotFoundError:
        return False


async def test_a_waiter_says_in_the_file_that_it_waits(files: FileStore, tmp_path: Path) -> None:
    session_id = await files.create({"n": 0})
    path = path_of(tmp_path, session_id)
    async with FileStore(tmp_path) as other:

        async def increment() -> None:
            async with other.open(session_id) as session:
                session["n"] += 1

        async with files.open(session_id):
            waiter = asyncio.create_task(increment())
            while not layout.decode_mark(path.read_bytes()[layout.MARK_AT :]):
                await asyncio.sleep(0)
        await waiter
    assert layout.decode_mark(path.read_bytes()[layout.MARK_AT :]) == 0


async def test_an_opener_stands_back_for_another_process_that_said_it_waits(files: FileStore, tmp_path: Path) -> None:
    session_id = await files.create({"n": 0})
    path = path_of(tmp_path, session_id)
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, layout.encode_mark(12345), layout.MARK_AT)

        async def increment() -> None:
            async with files.open(session_id) as session:
                session["n"] += 1

        opener = asyncio.create_task(increment())
        while not files.statistics().waiting:
            await asyncio.sleep(0)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the other comes first
        fcntl.flock(fd, fcntl.LOCK_UN)
        await opener
        assert layout.decode_mark(os.pread(fd, 8, layout.MARK_AT)) == 0
    finally:
        os.close(fd)


async def test_a_session_that_is_created_by_two_stores_at_once_has_one_holder(files: FileStore, tmp_path: Path) -> None:
    async with FileStore(tmp_path) as other:

        async def increment(store: FileStore) -> None:
            async with store.open("job-1", create=True) as session:
                session["n"] = session.get("n", 0) + 1
                await asyncio.sleep(0)

        await asyncio.gather(*(increment(store) for _ in range(20) for store in (files, other)))
        async with files.open("job-1", readonly=True) as session:
            assert session["n"] == 40


async def test_without_inotify_waiters_poll_and_lose_nothing(
    files: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_instance_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(wakeup, "Inotify", no_instance_left)
    session_id = await files.create({"n": 0})
    async with FileStore(tmp_path) as other:

        async def increment(store: FileStore) -> None:
            async with store.open(session_id) as session:
                session["n"] += 1
                await asyncio.sleep(0)

        await asyncio.gather(*(increment(store) for _ in range(20) for store in (files, other)))
        async with files.open(session_id) as session:
            assert session["n"] == 40
            assert wakeup.running_bells().watching == 0
            with pytest.raises(LockTimeoutError):
                async with other.open(session_id, timeout=0.02):
                    pass
    (warning,) = caplog.messages
    assert "max_user_instances" in warning


async def test_an_event_queue_that_overflowed_wakes_every_waiter(
    files: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_timers(monkeypatch)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    session_id, noisy_id = await files.create({"n": 0}), await files.create({})
    async with FileStore(tmp_path) as other:

        async def increment(session_id: str) -> None:
            async with other.open(session_id) as session:
                session["n"] = session.get("n", 0) + 1

        async with files.open(noisy_id):
            async with files.open(session_id):
                waiters = [asyncio.create_task(increment(each)) for each in (session_id, noisy_id)]
                while other.statistics().waiting < 2:
                    await asyncio.sleep(0)
                for number in range(limit + 10):  # events of two kinds in turn, since equal ones are merged
                    path = path_of(tmp_path, noisy_id)
                    if number % 2:
                        os.utime(path)
                    else:
                        os.close(os.open(path, os.O_WRONLY))
            await waiters[0]
        await waiters[1]


async def test_a_commit_in_place_leaves_the_version_before_it_whole(files: FileStore, tmp_path: Path) -> None:
    session_id = await files.create({"n": 0})
    path = path_of(tmp_path, session_id)
    for number in range(1, 5):
        before = path.read_bytes()
        async with files.open(session_id) as session:
            session["n"] = number
        half = (len(before) - layout.SECTOR) // 2
        old_slots = {before[layout.SECTOR :][:half], before[layout.SECTOR :][half:]}
        after = path.read_bytes()
        kept = old_slots & {after[layout.SECTOR :][:half], after[layout.SECTOR :][half:]}
        assert len(kept) == 1
        version_before = layout.decode_file(before, key_of(session_id)).version
        restored = after[: layout.SECTOR] + kept.pop() + bytes(half)
        assert layout.decode_file(restored, key_of(session_id)).version == version_before == number


async def test_where_locks_do_not_work_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    async with FileStore(tmp_path) as store:
        session_id = await store.create({"a": 1})
        monkeypatch.setattr(lock, "_flock", no_locks)
        with pytest.raises(StoreError, match=r"can't lock: .*No locks available"):
            async with store.open(session_id):
                pass
        async with store.open(session_id, readonly=True) as session:
            assert session["a"] == 1
