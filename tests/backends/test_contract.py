"""The contract in `asyncsess.backends.base`, run on each backend of the package."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import pytest

from asyncsess import LockLostError, StoreError
from asyncsess.backends.base import Backend, Record
from asyncsess.backends.file import Durability, FileBackend, IOMode
from asyncsess.backends.file.directory import Directory
from asyncsess.backends.file.lock import DirectoryLock
from asyncsess.backends.memory import MemoryBackend
from asyncsess.testing import BackendContract, until
from asyncsess.testing.contract import KEY, NOW, OTHER_KEY, create, hold, put


class LocalContract(BackendContract):
    """What the contract promises of a local store besides."""

    async def test_release_never_suspends(self, backend: Backend) -> None:
        async with create(backend) as held:
            with pytest.raises(StopIteration):
                held.release(now=NOW).send(None)  # type: ignore[attr-defined]


class TestMemoryBackend(LocalContract):
    @pytest.fixture
    async def backend(self) -> AsyncIterator[MemoryBackend]:
        backend = MemoryBackend()
        await backend.open()
        yield backend
        await backend.aclose()


class Options(TypedDict):
    io: IOMode
    durability: Durability


LOOP: Options = {"io": "loop", "durability": "process"}
THREAD: Options = {"io": "thread", "durability": "process"}
POWER: Options = {"io": "auto", "durability": "power"}


class TestFileBackend(LocalContract):
    @pytest.fixture(params=[LOOP, THREAD, POWER], ids=["loop", "thread", "power"])
    def options(self, request: pytest.FixtureRequest) -> Options:
        return request.param

    @pytest.fixture
    async def backend(self, directory: Path, options: Options) -> AsyncIterator[FileBackend]:
        backend = FileBackend(directory, **options)
        await backend.open()
        yield backend
        await backend.aclose()

    @pytest.fixture
    async def other(self, backend: FileBackend, directory: Path, options: Options) -> AsyncIterator[FileBackend]:
        other = FileBackend(directory, **options)
        await other.open()
        yield other
        await other.aclose()


class SlowRename:
    """`os.rename` that returns a moment after it has done its work: when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_done, self._may_return = threading.Event(), threading.Event()
        self._rename = os.rename
        monkeypatch.setattr(os, "rename", self)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._rename(*args, **kwargs)
        self.is_done.set()
        self._may_return.wait(10)

    async def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task after the rename and before it knows."""
        await until(self.is_done.is_set)
        task.cancel()
        asyncio.get_running_loop().call_soon(self._may_return.set)
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture
async def threaded(directory: Path) -> AsyncIterator[FileBackend]:
    backend = FileBackend(directory, io="thread")
    await backend.open()
    yield backend
    await backend.aclose()


async def test_a_commit_that_was_cancelled_while_its_file_grew_is_known_to_the_holder(
    threaded: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with create(threaded, b"old") as held:
        with monkeypatch.context() as patch:
            rename = SlowRename(patch)
            await rename.cancel(asyncio.create_task(held.commit(b"grown" * 600, now=NOW + 1)))
        assert held.record == await threaded.read(KEY) == Record(b"grown" * 600, 2, NOW, NOW + 1)
        last = await held.commit(b"l" * 480, now=NOW + 2)
        assert last == await threaded.read(KEY) == Record(b"l" * 480, 3, NOW, NOW + 2)
    assert await threaded.read(KEY) == last


async def test_a_cancelled_hold_of_a_new_key_leaves_nothing(
    threaded: FileBackend, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        rename = SlowRename(patch)
        await rename.cancel(asyncio.create_task(hold(threaded, create=True).__aenter__()))
    assert [path for path in directory.rglob("*") if path.is_file()] == []


async def test_a_waiter_for_another_process_is_told_when_its_backend_is_closed(directory: Path) -> None:
    theirs, mine = FileBackend(directory), FileBackend(directory)
    async with create(theirs):
        waiter = asyncio.create_task(hold(mine).__aenter__())
        await until(lambda: mine.statistics().waiting == 1)
        await mine.aclose()
        with pytest.raises(StoreError):
            await waiter
    await theirs.aclose()


async def test_a_session_file_that_was_exchanged_is_not_deleted_in_silence(directory: Path) -> None:
    backend = FileBackend(directory)
    path = directory / KEY[:2] / KEY[2:]
    async with create(backend) as held:
        copied = path.with_name("copy")
        copied.write_bytes(path.read_bytes())
        copied.rename(path)
        with pytest.raises(LockLostError):
            await held.delete(now=NOW)
    assert await backend.read(KEY) == Record(b"payload", 1, NOW, NOW)
    await backend.aclose()


@pytest.mark.parametrize("payload", [b"fits", b"grows" * 600], ids=["in place", "grown"])
@pytest.mark.parametrize("is_exchanged", [True, False], ids=["exchanged", "deleted"])
async def test_a_holder_whose_file_is_gone_is_told_at_its_commit(
    directory: Path, payload: bytes, is_exchanged: bool
) -> None:
    backend = FileBackend(directory)
    path = directory / KEY[:2] / KEY[2:]
    async with create(backend) as held:
        content = path.read_bytes()
        path.unlink()
        if is_exchanged:
            path.write_bytes(content)
        with pytest.raises(LockLostError):
            await held.commit(payload, now=NOW + 1)
    assert await backend.read(KEY) == (Record(b"payload", 1, NOW, NOW) if is_exchanged else None)
    await backend.aclose()


async def test_nobody_changes_a_name_while_another_process_does(directory: Path) -> None:
    backend, path = FileBackend(directory), directory / KEY[:2] / KEY[2:]
    await put(backend)
    root = Directory(directory)
    root.open()

    async def in_vain(work: Coroutine[Any, Any, None]) -> None:
        """Run what changes the name, and see that it does not while another has the right to."""
        before = path.stat().st_ino if path.exists() else None
        lock = DirectoryLock(KEY[:2], root.fd)
        assert lock.try_lock()
        task = asyncio.create_task(work)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (path.stat().st_ino if path.exists() else None) == before
        lock.close()
        await task
        assert (path.stat().st_ino if path.exists() else None) != before

    async def grow() -> None:
        async with hold(backend) as held:
            await held.commit(b"grown" * 600, now=NOW)

    async def delete() -> None:
        async with hold(backend) as held:
            await held.delete(now=NOW)

    for work in (grow, delete, lambda: put(backend)):
        await in_vain(work())
    root.close()
    await backend.aclose()


async def test_tasks_that_use_a_backend_first_at_the_same_time_open_it_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, check, opened = threading.Barrier(2), Directory._check, []

    def check_slowly(self: Directory, *args: Any) -> None:
        opened.append(self)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.05)
        check(self, *args)

    monkeypatch.setattr(Directory, "_check", check_slowly)
    backend = FileBackend(directory, io="thread")
    await asyncio.gather(backend.read(KEY), backend.read(OTHER_KEY))
    await backend.aclose()
    assert len(opened) == 1
