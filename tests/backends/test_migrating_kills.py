"""Processes that are killed while they move a session from files to files, before each of their calls."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.file import FileBackend
from asyncsess.backends.migrating import MigratingBackend
from asyncsess.expiry import Expiry
from asyncsess.testing.contract import KEY, NOW, create, hold

CALLS = ("open", "close", "pread", "pwrite", "rename", "unlink", "mkdir", "chmod", "utime", "stat", "fstat")
OLD = Record(b"old", 3, NOW, NOW + 5)
NEXT = Record(b"next" * 300, 4, NOW, NOW + 9)
DEAD = Tombstone(b"dead", NOW + 60)
Work = Callable[[MigratingBackend], Coroutine[Any, Any, None]]


async def change(backend: MigratingBackend) -> None:
    async with hold(backend) as held:
        await held.commit(NEXT.payload, now=NEXT.accessed_at, is_last=True)


async def destroy(backend: MigratingBackend) -> None:
    async with hold(backend) as held:
        await held.delete(DEAD, now=NOW)


def backend_at(directory: Path) -> MigratingBackend:
    return MigratingBackend(FileBackend(directory / "old", io="loop"), FileBackend(directory / "new", io="loop"))


async def begin(directory: Path) -> None:
    """Leave a session in the old backend."""
    backend = backend_at(directory)
    await backend.open()
    async with create(backend.old, OLD.payload, now=OLD.accessed_at, created_at=OLD.created_at, version=OLD.version):
        pass
    await backend.aclose()


def is_killed(directory: Path, number: int, work: Work) -> bool:
    """Do some work in a child that is killed before a call; tell whether it was, or had come to the end before."""
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(_work(directory, number, work))
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


async def _work(directory: Path, number: int, work: Work) -> None:
    backend, left = backend_at(directory), number
    await backend.open()

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted

    for name in CALLS:
        setattr(os, name, before(getattr(os, name)))
    await work(backend)
    os._exit(0)


async def look(directory: Path) -> tuple[Found, Found, Found]:
    """Return what is found by all, and in each backend."""
    backend = backend_at(directory)
    await backend.open()
    found = await backend.read(KEY), await backend.old.read(KEY), await backend.new.read(KEY)
    await backend.aclose()
    return found


async def go_on(directory: Path, found: Found) -> None:
    """Open the session that was found, change it, and see that it is in one place, and free."""
    backend = backend_at(directory)
    await backend.open()
    async with hold(backend, timeout=5.0) as held:
        assert held.record == found
        if isinstance(found, Record):
            found = await held.commit(b"on", now=NOW + 10)
            assert found.version in (OLD.version + 1, NEXT.version + 1)
    assert await backend.read(KEY) == found
    if isinstance(found, Record):
        assert not isinstance(await backend.old.read(KEY), Record)
        assert await backend.new.read(KEY) == found
    else:
        await backend.delete_expired(Expiry(), now=DEAD.until)
        assert await backend.read(KEY) is None
    await backend.aclose()


@pytest.mark.parametrize(("work", "after"), [(change, NEXT), (destroy, DEAD)], ids=["change", "destroy"])
def test_a_process_killed_while_it_moves_a_session_leaves_it_whole_and_free(
    tmp_path: Path, work: Work, after: Found
) -> None:
    prepared, interrupted = tmp_path / "prepared", tmp_path / "interrupted"
    asyncio.run(begin(prepared))
    assert OLD in kill_at_each_call(prepared, work, after, interrupted)
    kill_at_each_call(interrupted, work, after)  # who goes on with what the first has left is killed as well


def kill_at_each_call(prepared: Path, work: Work, after: Found, interrupted: Path | None = None) -> list[Found]:
    """Begin some work with what is prepared, killed once before each call; return what was found each time.

    Args:
        prepared: A directory.
        work: The work.
        after: What is found when it is complete.
        interrupted: Where to leave what a process left that had copied the session and not yet said so.
    """
    found, was_killed = list[Found](), True
    while was_killed:
        directory = Path(shutil.copytree(prepared, prepared.with_name("directory")))
        was_killed = is_killed(directory, len(found) + 1, work)
        now, in_old, in_new = asyncio.run(look(directory))
        found.append(now)
        if in_old == in_new == OLD and interrupted and not interrupted.exists():
            shutil.copytree(directory, interrupted)
        asyncio.run(go_on(directory, now))
        shutil.rmtree(directory)
    first = found.index(after)
    assert found == [OLD] * first + [after] * (len(found) - first)  # in effect at once
    return found
