"""What a store tells of itself: counts, events, warnings, and who keeps others waiting."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from asyncsess import (
    ConflictError,
    DeadlockError,
    FileStore,
    LockLostError,
    LockTimeoutError,
    MsgpackCodec,
    SessionStore,
    increment,
    put,
    rules,
)
from asyncsess.backends.file.waiting import state_of
from asyncsess.events import (
    Committed,
    Conflicted,
    Event,
    HeldLong,
    LeaseLost,
    Opened,
    Retried,
    TimedOut,
    Waited,
)
from asyncsess.ids import key_of
from asyncsess.testing import until
from tests.conftest import NewStore, stored

VALUES = {"n": 0, "m": 0}


class Recorder(list[Event]):
    """A hook that keeps what it is told."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, *kinds: type[Event]) -> list[Event]:
        return [event for event in self if isinstance(event, kinds)]


@pytest.fixture
def told() -> Recorder:
    return Recorder()


async def hold(store: SessionStore, session_id: str, holds: asyncio.Event, may_go: asyncio.Event) -> None:
    async with store.open(session_id):
        holds.set()
        await may_go.wait()


async def wait(store: SessionStore, session_id: str, **how: Any) -> None:
    async with store.open(session_id, **how):
        pass


# Counts and events.


async def test_each_way_to_open_is_counted_and_told(new_store: NewStore, told: Recorder) -> None:
    async with new_store(hooks=[told]) as store:
        session_id = await store.create(VALUES)
        async with store.open(session_id):
            pass
        async with store.open(session_id, readonly=True):
            pass
        async with store.edit(session_id):
            pass
        async with store.synchronize(session_id, "n", "m"):
            pass
        await store.apply(session_id, increment("n"))
        async for attempt in store.attempts(session_id):
            async with attempt:
                pass
        assert store.statistics().opened == {
            "exclusive": 2, "readonly": 1, "edit": 2, "synchronize": 1, "apply": 1
        }  # fmt: skip
    modes = ["exclusive", "exclusive", "readonly", "edit", "synchronize", "apply", "edit"]
    assert told.of(Opened) == [Opened(mode) for mode in modes]


async def test_commits_are_counted_by_their_bytes_and_merges_apart(new_store: NewStore, told: Recorder) -> None:
    async with new_store(hooks=[told]) as store:
        session_id = await store.create(VALUES)
        size = len(MsgpackCodec().encode(VALUES))
        async with store.edit(session_id) as session:
            session["n"] = 1
            await store.apply(session_id, put("m", 1))
        async with store.open(session_id) as session:
            await session.regenerate_id()
        async with store.edit(session_id) as session:
            session["n"] = 2
        now = store.statistics()
        assert (now.committed_bytes, now.merges, now.conflicts) == (size * 5, 1, 0)
    assert told.of(Committed) == [Committed(size, is_merged) for is_merged in (False, False, True, False, False)]


async def test_conflicts_and_retries_are_counted(new_store: NewStore, told: Recorder) -> None:
    async with new_store(hooks=[told]) as store:
        session_id = await store.create(VALUES)
        tries = 0
        async for attempt in store.attempts(session_id):
            async with attempt as session:
                tries += 1
                session["n"] = tries
                if tries <= 2:
                    await store.apply(session_id, put("n", -tries))
        now = store.statistics()
        assert (tries, now.conflicts, now.retries) == (3, 2, 2)
    assert told.of(Conflicted, Retried) == [
        Conflicted((("n",),)), Retried(2), Conflicted((("n",),)), Retried(3)
    ]  # fmt: skip


async def test_a_conflict_names_every_path(new_store: NewStore, told: Recorder) -> None:
    async with new_store(hooks=[told]) as store:
        session_id = await store.create({"a": 1, "tree": {"b": 1}})
        with pytest.raises(ConflictError):
            async with store.edit(session_id, resolve={"tree": rules.nested({})}) as session:
                session["a"], session["tree"]["b"] = 2, 2
                await store.apply(session_id, put("a", 3), put(("tree", "b"), 3))
    assert told.of(Conflicted) == [Conflicted((("a",), ("tree", "b")))]


@pytest.mark.parametrize("way", ["open", "edit", "synchronize", "apply"])
async def test_waits_are_counted_with_their_seconds_and_those_in_vain_apart(
    new_store: NewStore, told: Recorder, way: str
) -> None:
    async def use(**how: Any) -> None:
        if way == "apply":
            await store.apply(session_id, increment("n"), **how)
            return
        variables = ("n",) if way == "synchronize" else ()
        rule = {"resolve": rules.add} if way == "edit" else {}
        async with getattr(store, way)(session_id, *variables, **rule, **how) as session:
            session["n"] += 1

    async with new_store(hooks=[told]) as store:
        session_id = await store.create(VALUES)
        variable = store.synchronize(session_id, "n") if way == "synchronize" else store.open(session_id)
        async with asyncio.TaskGroup() as tasks, variable:
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(use(timeout=0.01))
            for number in (1, 2):
                tasks.create_task(use())
                await until(lambda: store.statistics().waiting == number)  # noqa: B023
            await asyncio.sleep(0.01)
        now = store.statistics()
        assert now.timeouts == 1
        waits = [event.seconds for event in told if isinstance(event, Waited)]
        assert (now.waits, now.wait_total, now.wait_longest) == (2, pytest.approx(sum(waits)), max(waits))
        assert min(waits) >= 0.005
        assert (await stored(store, session_id))["n"] == 2
    mode = "exclusive" if way == "open" else way
    assert [event.mode for event in told if isinstance(event, Waited | TimedOut)] == [mode] * 3


async def test_a_lost_lease_is_counted_and_told(new_store: NewStore, told: Recorder) -> None:
    async with new_store(hooks=[told]) as store:
        session_id = await store.create(VALUES)
        for lose in (store.open(session_id, lease=0.01), store.synchronize(session_id, "n", lease=0.01)):
            with pytest.raises(LockLostError):
                async with lose as session:
                    session["n"] = -1

                    async def follow() -> None:
                        async with store.synchronize(session_id, "n") as session:
                            session["n"] += 1
                        await store.apply(session_id, increment("n"))

                    await asyncio.create_task(follow())
        assert store.statistics().leases_lost == 2
        assert await stored(store, session_id) == {"n": 4, "m": 0}
    for event in told.of(LeaseLost):
        assert isinstance(event, LeaseLost)
        assert (event.holder.pid, Path(event.holder.where.rpartition(":")[0])) == (os.getpid(), Path(__file__))


def test_events_are_frozen() -> None:
    for kind in (Opened, TimedOut, Committed, Conflicted, Retried, HeldLong, LeaseLost):
        assert dataclasses.fields(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


async def test_a_hook_that_fails_is_logged_and_harms_nobody(
    new_store: NewStore, told: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Event) -> None:
        raise ZeroDivisionError

    async with new_store(hooks=[fail, told]) as store:
        session_id = await store.create(VALUES)
        assert await stored(store, session_id) == VALUES
    assert [type(event) for event in told] == [Opened, Committed, Opened]
    assert [(record.exc_text or "").endswith("ZeroDivisionError\n") for record in caplog.records] == [True] * 3
    assert "a hook failed on Opened" in caplog.text


# Slow holders.


@pytest.mark.parametrize("way", ["open", "synchronize"])
@pytest.mark.parametrize("from_another_store", [False, True], ids=["one store", "two stores"])
async def test_who_keeps_others_waiting_for_long_is_named_once(
    new_store: NewStore,
    told: Recorder,
    caplog: pytest.LogCaptureFixture,
    way: str,
    from_another_store: bool,
    kind: str,
) -> None:
    async with new_store(hooks=[told], slow_hold=0.2) as store, new_store() as other:
        variables = ("n",) if way == "synchronize" else ()
        another = other if from_another_store and kind == "file" else store
        session_id = await store.create(VALUES)
        for is_slow, is_contended in ((True, True), (True, False), (False, True)):
            async with asyncio.TaskGroup() as tasks, getattr(store, way)(session_id, *variables) as session:
                if is_contended:
                    task = asyncio.create_task(_enter(another, way, session_id, *variables))
                    tasks.create_task(_finish(task))
                    await until(lambda: another.statistics().waiting == 1)
                if is_slow:
                    await asyncio.sleep(0.21)
                session["n"] += 1
        assert store.statistics().held_long == 1
    (event,) = told.of(HeldLong)
    assert isinstance(event, HeldLong)
    assert event.seconds >= 0.2
    (warning,) = caplog.messages
    assert f"task {asyncio.current_task().get_name()!r}" in warning  # type: ignore[union-attr]
    assert f"opened at {__file__}:" in warning


async def _enter(store: SessionStore, way: str, *what: str) -> None:
    async with getattr(store, way)(*what):
        pass


async def _finish(task: asyncio.Task[None]) -> None:
    await task


@pytest.mark.parametrize("end", ["release", "rollback", "destroy", "regenerate_id", "raise"])
async def test_however_it_ends_a_slow_hold_is_told_once(
    new_store: NewStore, told: Recorder, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    caplog.set_level(logging.CRITICAL, "asyncsess")
    async with new_store(hooks=[told], slow_hold=0.01) as store:
        session_id = await store.create(VALUES)

        async def wait_for_it() -> None:
            with pytest.raises(LookupError) if end == "destroy" else _Nothing():
                await wait(store, session_id)

        try:
            async with store.open(session_id) as session:
                waiter = asyncio.create_task(wait_for_it())
                await until(lambda: store.statistics().waiting == 1)
                await asyncio.sleep(0.02)
                if end == "raise":
                    raise ZeroDivisionError
                await getattr(session, end)()
        except ZeroDivisionError:
            assert end == "raise"
        await waiter
    assert len(told.of(HeldLong)) == 1


async def test_a_session_that_is_begun_by_its_new_id_is_no_slow_hold(
    new_store: NewStore, told: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    async with new_store(hooks=[told], slow_hold=60) as store, asyncio.TaskGroup() as tasks, store.open() as session:
        await session.regenerate_id()
        tasks.create_task(wait(store, session.id))
        await until(lambda: store.statistics().waiting == 1)
    assert told.of(HeldLong) == []


async def test_a_block_with_several_variables_is_told_of_once(
    new_store: NewStore, told: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "asyncsess")
    async with new_store(hooks=[told], slow_hold=0.01) as store:
        session_id = await store.create(VALUES)
        async with asyncio.TaskGroup() as tasks, store.synchronize(session_id, *VALUES) as session:
            for number, variable in enumerate(VALUES, 1):
                tasks.create_task(_enter(store, "synchronize", session_id, variable))
                await until(lambda: store.statistics().waiting == number)  # noqa: B023
            await asyncio.sleep(0.02)
            await session.release("n")
    assert len(told.of(HeldLong)) == 1


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


# Who is waited for.


@pytest.mark.parametrize("from_another_store", [False, True], ids=["one store", "two stores"])
@pytest.mark.parametrize("is_late", [False, True], ids=["in time", "late"])
async def test_a_timeout_counts_from_when_the_holder_got_the_lock(
    new_store: NewStore, kind: str, from_another_store: bool, is_late: bool
) -> None:
    async with new_store() as store, new_store() as other:
        other = other if from_another_store and kind == "file" else store
        session_id = await store.create(VALUES)
        async with store.open(session_id, lease=0.1 if is_late else 30):
            holds, may_go = asyncio.Event(), asyncio.Event()
            holder = asyncio.create_task(hold(other, session_id, holds, may_go))
            await until(lambda: other.statistics().waiting == 1)
            granted = datetime.now(UTC)
            if is_late:
                await holds.wait()
        await holds.wait()
        for who in (store, other):
            with pytest.raises(LockTimeoutError) as error:
                await wait(who, session_id, timeout=0)
            assert error.value.holder is not None
            assert error.value.holder.since >= granted
        may_go.set()
        await holder


HOLDER = """\
import asyncio, sys
from asyncsess import FileStore

async def main():
    async with FileStore(sys.argv[1]) as store, store.open(sys.argv[2]):
        print("holds", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["file"])
@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
async def test_a_timeout_says_who_holds_in_another_process_and_whether_it_runs(
    store: FileStore, directory: Path, is_stopped: bool
) -> None:
    session_id = await store.create(VALUES)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, directory, session_id], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holds\n"
            if is_stopped:
                holder.send_signal(signal.SIGSTOP)
                await until(lambda: state_of(holder.pid) == "stopped")
            state = "stopped" if is_stopped else "running"

            waiters = [asyncio.create_task(wait(store, session_id, timeout=0.2)) for _ in range(3)]
            errors = await asyncio.gather(*waiters, return_exceptions=True)
        finally:
            holder.kill()
    for ahead, error in enumerate(errors, 1):
        assert isinstance(error, LockTimeoutError)
        assert error.holder is not None
        assert (error.holder.pid, error.holder.task, error.state) == (holder.pid, "Task-1", state)
        assert 1 <= error.ahead <= ahead  # those ahead may have given up before
        for part in (
            f"process {holder.pid}",
            "task 'Task-1'",
            "opened at <string>:5",
            f"which is {state}",
            "within 0.",
        ):
            assert part in str(error)
    assert state_of(holder.pid) == "gone"


# Deadlocks.


async def test_tasks_that_open_two_sessions_in_opposite_order_are_told(store: SessionStore) -> None:
    ids = [await store.create(VALUES) for _ in range(2)]
    first_waits, told = asyncio.Event(), []

    async def take(first: str, second: str, *, is_last: bool) -> None:
        async with store.open(first) as one:
            if is_last:
                await until(lambda: store.statistics().waiting == 1)
            else:
                first_waits.set()
                await until(lambda: store.statistics().holding == 2)
            try:
                async with store.open(second) as other:
                    other["n"] += 1
            except DeadlockError as error:
                told.append(error)
            one["n"] += 10

    other = asyncio.create_task(take(ids[0], ids[1], is_last=False), name="first")
    await first_waits.wait()
    await asyncio.gather(other, asyncio.create_task(take(ids[1], ids[0], is_last=True), name="second"))
    (error,) = told
    assert [holder.task for holder in error.cycle] == ["first", "second"]
    for part in ("task 'first'", "task 'second'", f"opened at {__file__}:", "which is this task"):
        assert part in str(error)
    assert not any(session_id in str(error) for session_id in ids)
    assert [(await stored(store, session_id))["n"] for session_id in ids] == [10, 11]


async def test_a_session_and_a_variable_can_make_a_ring_too(store: SessionStore) -> None:
    a, b = await store.create(VALUES), await store.create(VALUES)
    told = []

    async def slowly() -> None:
        async with store.synchronize(a, "n"):
            await until(lambda: store.statistics().holding == 2)
            async with store.open(b):
                pass

    async def late() -> None:
        async with store.open(b):
            await until(lambda: store.statistics().waiting == 1)
            try:
                async with store.synchronize(a, "m", "n"):
                    pass
            except DeadlockError as error:
                told.append(len(error.cycle))

    await asyncio.gather(slowly(), late())
    assert told == [2]
    now = store.statistics()
    assert (now.holding, now.waiting, now.open) == (0, 0, 0)


async def test_waiting_in_a_long_row_is_no_deadlock(store: SessionStore) -> None:
    ids = [await store.create(VALUES) for _ in range(5)]
    all_hold = asyncio.Barrier(5)

    async def take(number: int) -> None:
        async with store.open(ids[number]):
            await all_hold.wait()
            if number + 1 < len(ids):
                async with store.open(ids[number + 1]) as other:
                    other["n"] += 1

    await asyncio.gather(*(take(number) for number in range(5)))
    assert [(await stored(store, session_id))["n"] for session_id in ids] == [0, 1, 1, 1, 1]


async def test_a_ring_with_a_holder_that_is_late_is_no_deadlock(store: SessionStore) -> None:
    a, b = await store.create(VALUES), await store.create(VALUES)
    told = []

    async def be_late() -> None:
        with pytest.raises(LockLostError):
            async with store.open(a, lease=0.01) as session:
                await until(lambda: store.statistics().holding == 2)
                async with store.open(b):
                    session["n"] = -1

    async def follow() -> None:
        async with store.open(b):
            await until(lambda: store.statistics().waiting == 1)
            await asyncio.sleep(0.03)
            async with store.open(a) as session:
                session["n"] += 1
                told.append(session["n"])

    await asyncio.gather(be_late(), follow())
    assert told == [1]
    assert (await stored(store, a))["n"] == 1


@pytest.mark.parametrize("way", ["apply", "destroy"])
async def test_a_deadlock_names_the_line_also_of_what_runs_as_a_task(store: SessionStore, way: str) -> None:
    session_id = await store.create(VALUES)
    seen: list[str] = []

    async with store.open(session_id):
        holder = asyncio.create_task(
            store.apply(session_id, increment("n")) if way == "apply" else store.destroy(session_id)
        )
        await until(lambda: store.statistics().waiting == 1)
        waiter = asyncio.create_task(wait(store, session_id, timeout=0.01))
        with pytest.raises(LockTimeoutError) as caught:
            await waiter
        assert caught.value.ahead == 2
        turns = store.backend._turns  # type: ignore[attr-defined]
        seen += [turn.holder.where for turn in turns._lines[key_of(session_id)].waiters]
    await holder
    assert [where.rpartition(":")[0] for where in seen] == [__file__]


async def test_a_lock_that_was_held_for_a_moment_was_not_held_long(new_store: NewStore, told: Recorder) -> None:
    async with new_store(hooks=[told], slow_hold=5) as store:
        session_id = await store.create(VALUES)

        async def wait(variable: str) -> None:
            async with store.synchronize(session_id, variable):
                pass

        async with store.synchronize(session_id, "n"), asyncio.TaskGroup() as tasks:
            in_vain = asyncio.create_task(_both(store, session_id))
            await until(lambda: store.statistics().waiting == 1)
            tasks.create_task(wait("m"))
            await until(lambda: store.statistics().waiting == 2)
            with pytest.raises(LockTimeoutError):
                await in_vain
    assert told.of(HeldLong) == []


async def _both(store: SessionStore, session_id: str) -> None:
    async with store.synchronize(session_id, "m", "n", timeout=0.05):
        raise AssertionError


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
async def test_a_process_that_can_not_be_looked_at_is_not_called_gone(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert state_of(os.getpid()) is None
