"""The lock passes from process to process, whatever becomes of its holder."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from asyncsess import FileStore, LockTimeoutError
from tests.processes.conftest import Worker


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_the_end_of_a_holder_frees_the_lock_for_a_waiter_and_rolls_back(
    shared: FileStore, start: Callable[..., Worker], ending: signal.Signals
) -> None:
    session_id = await shared.create({"by": "me"})
    holder = start("hold", session_id)
    assert holder.says() == "holding"

    async def wait() -> object:
        async with shared.open(session_id) as session:
            return session["by"]

    waiter = asyncio.create_task(wait())
    while not shared.statistics().waiting:
        await asyncio.sleep(0)
    holder.send_signal(ending)
    assert await waiter == "me"
    assert holder.wait() != 0


async def test_a_stopped_holder_is_named_and_its_commit_is_right_when_it_goes_on(
    shared: FileStore, start: Callable[..., Worker]
) -> None:
    session_id = await shared.create({"by": "me"})
    holder = start("hold", session_id)
    assert holder.says() == "holding"
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LockTimeoutError) as caught:
        async with shared.open(session_id, timeout=0.1):
            pass
    assert caught.value.holder is not None
    assert caught.value.holder.pid == holder.pid
    assert "worker.py:" in caught.value.holder.where
    assert caught.value.waited >= 0.1
    assert str(holder.pid) in str(caught.value)
    holder.send_signal(signal.SIGCONT)
    holder.tell()
    assert holder.says() == "done"
    async with shared.open(session_id) as session:
        assert session["by"] == holder.pid


async def test_a_waiter_that_is_killed_changes_nothing_for_the_others(
    shared: FileStore, start: Callable[..., Worker]
) -> None:
    session_id = await shared.create({"by": "me"})
    async with shared.open(session_id) as session:
        waiters = [start("wait", session_id) for _ in range(3)]
        for waiter in waiters:
            assert waiter.says() == "waiting"
        waiters[0].kill()
        session["by"] = "still me"
    assert [waiter.says() for waiter in waiters[1:]] == ["done", "done"]
    async with shared.open(session_id) as session:
        assert session["by"] in [waiter.pid for waiter in waiters[1:]]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_a_program_that_waits_can_be_ended(
    shared: FileStore, start: Callable[..., Worker], ending: signal.Signals
) -> None:
    session_id = await shared.create({"by": "me"})
    async with shared.open(session_id):
        waiter = start("wait", session_id)
        assert waiter.says() == "waiting"
        waiter.send_signal(ending)
        assert await asyncio.to_thread(waiter.wait) != 0


async def test_a_child_process_that_was_started_meanwhile_does_not_keep_the_lock(
    shared: FileStore, start: Callable[..., Worker]
) -> None:
    session_id = await shared.create({})
    holder = start("hold_with_child", session_id)
    word, child = holder.says().split()
    assert word == "holding"
    try:
        assert not any("sessions" in path for path in opened_by(child))
        holder.kill()
        async with shared.open(session_id, timeout=5):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)


def opened_by(process: str) -> Iterator[str]:
    """Yield the paths of what a process has opened, which may close it meanwhile."""
    for fd in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(f"/proc/{process}/fd/{fd}")


async def test_a_forked_child_does_not_keep_the_lock_of_its_killed_parent(
    shared: FileStore, start: Callable[..., Worker]
) -> None:
    session_id = await shared.create({})
    holder = start("hold_and_fork", session_id)
    word, child = holder.says().split()
    assert word == "holding"
    try:
        with pytest.raises(LockTimeoutError):
            async with shared.open(session_id, timeout=0.05):
                pass
        holder.kill()
        os.kill(int(child), 0)  # it lives
        async with shared.open(session_id, timeout=5):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "hanging"])
async def test_a_session_is_taken_over_from_a_holder_whose_lease_is_over(
    shared: FileStore, start: Callable[..., Worker], is_stopped: bool
) -> None:
    session_id = await shared.create({"n": 0})
    late = start("hold_for_a_lease", session_id, 0.2)
    assert await asyncio.to_thread(late.says) == "holding"
    if is_stopped:
        late.send_signal(signal.SIGSTOP)
    async with shared.open(session_id) as session:
        assert session["by"] == "the late one"  # a commit that had returned is not undone
        session["n"] += 1
        await session.save()
        late.send_signal(signal.SIGCONT)
        late.tell("go on")
        assert await asyncio.to_thread(late.says) == "lost"
        session["n"] += 1
    async with shared.open(session_id, readonly=True) as session:
        assert dict(session) == {"n": 2, "by": "the late one"}


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "hanging"])
async def test_a_variable_is_taken_over_from_a_holder_whose_lease_is_over(
    shared: FileStore, start: Callable[..., Worker], is_stopped: bool
) -> None:
    session_id = await shared.create({"n": 0})
    late = start("hold_for_a_lease", session_id, 0.2, "by")
    assert await asyncio.to_thread(late.says) == "holding"
    if is_stopped:
        late.send_signal(signal.SIGSTOP)
    async with shared.synchronize(session_id, "by") as session:
        assert session["by"] == "the late one"
        late.send_signal(signal.SIGCONT)
        late.tell("go on")
        assert await asyncio.to_thread(late.says) == "lost"
        session["by"] = "who followed"
    async with shared.open(session_id, readonly=True) as session:
        assert dict(session) == {"n": 0, "by": "who followed"}


async def test_a_stopped_holder_keeps_the_session_while_its_lease_runs(
    shared: FileStore, start: Callable[..., Worker]
) -> None:
    session_id = await shared.create({"n": 0})
    holder = start("hold_for_a_lease", session_id, 3600)
    assert await asyncio.to_thread(holder.says) == "holding"
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LockTimeoutError):
        async with shared.open(session_id, timeout=0.5):
            pass
    holder.send_signal(signal.SIGCONT)
    holder.tell("go on")
    assert await asyncio.to_thread(holder.says) == "stored"
    async with shared.open(session_id, readonly=True) as session:
        assert session["by"] == "the late one, again"
