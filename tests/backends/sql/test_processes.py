"""Several processes on one database: none loses an update, and one that is killed or stopped is followed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from asyncsess import SQLStore
from tests.backends.sql.conftest import Place
from tests.processes.conftest import Worker

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # test_contract.py runs on both

Start = Callable[..., Worker]
LEASE = pytest.mark.parametrize("database", ["postgresql", "mariadb", "sqlite"])
ADVISORY = pytest.mark.parametrize("database", ["postgresql advisory", "mariadb advisory"])


@pytest.fixture
def start(place: Place) -> Iterator[Start]:
    """Start a worker in a role."""
    workers: list[Worker] = []

    def start(role: str, *arguments: object) -> Worker:
        workers.append(Worker(role, *place, *arguments, module="tests.backends.sql.worker"))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


@pytest.fixture
async def shared(place: Place) -> AsyncIterator[SQLStore]:
    """The store that the workers use too."""
    async with SQLStore(place.url, prefix=place.prefix, locking=place.locking, lock_timeout=60) as store:
        yield store


async def test_processes_lose_no_increment(shared: SQLStore, start: Start) -> None:
    session_id = await shared.create({"n": 0})
    ways = ("open", "release", "edit", "apply", "synchronize")
    workers = [start("count", session_id, 5, 10, *ways) for _ in range(3)]
    assert [await asyncio.to_thread(worker.wait) for worker in workers] == [0, 0, 0]
    async with shared.open(session_id, readonly=True) as session:
        assert (session["n"], session.version) == (3 * 5 * 10, 3 * 5 * 10 + 1)


@LEASE
async def test_the_session_of_a_process_that_was_killed_is_free_when_its_lease_is_over(
    shared: SQLStore, start: Start
) -> None:
    session_id = await shared.create({"n": 0})
    holder = start("hold_for_a_lease", session_id, 1.5)
    assert await asyncio.to_thread(holder.says) == "holding"
    holder.kill()
    async with shared.open(session_id, timeout=30) as session:
        assert session["by"] == "the late one"  # what had been committed


@ADVISORY
async def test_the_session_of_a_process_that_was_killed_is_free_at_once_if_an_advisory_lock_shows_it(
    shared: SQLStore, start: Start
) -> None:
    session_id = await shared.create({"n": 0})
    for variables in ((), ("by",)):
        holder = start("hold_for_a_lease", session_id, 3600, *variables)
        assert await asyncio.to_thread(holder.says) == "holding"
        async with asyncio.TaskGroup() as tasks:
            waiter = tasks.create_task(change(shared, session_id, *variables))
            await asyncio.sleep(0)
            assert not waiter.done()
            holder.kill()


async def change(store: SQLStore, session_id: str, *variables: str) -> None:
    async with (
        store.synchronize(session_id, *variables, timeout=30) if variables else store.open(session_id, timeout=30)
    ) as session:
        session["by"] = "who followed"


@LEASE
async def test_the_variable_of_a_stopped_process_is_taken_over_and_it_is_told(shared: SQLStore, start: Start) -> None:
    session_id = await shared.create({"n": 0})
    late = start("hold_for_a_lease", session_id, 0.5, "by")
    assert await asyncio.to_thread(late.says) == "holding"
    late.send_signal(signal.SIGSTOP)
    async with shared.synchronize(session_id, "by") as session:
        assert session["by"] == "the late one"
        late.send_signal(signal.SIGCONT)
        late.tell("go on")
        assert await asyncio.to_thread(late.says) == "lost"
        session["by"] = "who followed"
    async with shared.open(session_id, readonly=True) as session:
        assert dict(session) == {"n": 0, "by": "who followed"}


async def test_a_process_that_was_killed_while_it_waited_does_not_keep_others_waiting(
    shared: SQLStore, start: Start
) -> None:
    session_id = await shared.create({"n": 0})
    async with shared.open(session_id) as session:
        waiter = start("wait", session_id)
        assert await asyncio.to_thread(waiter.says) == "waiting"
        while not session._keeper._held.is_contended:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        waiter.kill()
        waiter.wait()
    async with shared.open(session_id, timeout=30) as session:
        session["n"] += 1
