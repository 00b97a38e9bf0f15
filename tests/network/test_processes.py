"""Processes on one server: one is stopped, one is killed, one has another idea of the time."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncsess import CommitUnknownError, LockLostError, LockTimeoutError, SessionNotFoundError, SessionStore
from asyncsess.testing import until
from tests.conftest import stored
from tests.faults.needs import need
from tests.network.servers import Server, leftovers, store_at
from tests.processes.conftest import Worker
from tests.proxy import Proxy

Start = Callable[..., Worker]
DAY = 86400.0
LEASE = 1e6


async def test_a_holder_that_was_stopped_beyond_its_lease_stores_nothing_over_the_new_holder(
    shared: SessionStore, start: Start
) -> None:
    session_id = await shared.create({"n": 0})
    late = start("hold", session_id, 0.5)
    assert await asyncio.to_thread(late.says) == "holding"
    late.send_signal(signal.SIGSTOP)
    async with shared.open(session_id, timeout=20) as session:
        assert session["by"] == "the late one"  # a commit that had returned is not undone
        session["by"] = "the new one"
        await session.save()
        late.send_signal(signal.SIGCONT)
        late.tell("go on")
        assert await asyncio.to_thread(late.says) == "lost"
        session["n"] = 1
    assert await stored(shared, session_id) == {"n": 1, "by": "the new one"}


async def test_a_stopped_holder_keeps_the_session_while_its_lease_runs(shared: SessionStore, start: Start) -> None:
    session_id = await shared.create({"n": 0})
    holder = start("hold", session_id, LEASE)
    assert await asyncio.to_thread(holder.says) == "holding"
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LockTimeoutError) as caught:
        async with shared.open(session_id, timeout=2.5):  # longer than a process may be gone
            pass
    assert caught.value.holder is not None
    assert caught.value.holder.pid == holder.pid
    holder.send_signal(signal.SIGCONT)
    holder.tell("go on")
    assert await asyncio.to_thread(holder.says) == "stored"
    assert (await stored(shared, session_id))["by"] == "the late one, again"


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
async def test_the_lock_of_a_process_that_has_ended_is_free_long_before_its_lease_is_over(
    server: Server, shared: SessionStore, start: Start, ending: signal.Signals
) -> None:
    if not server.notices_the_dead:
        pytest.skip("here the lock ends with its lease")
    session_id = await shared.create({"n": 0})
    holder = start("hold", session_id, LEASE)
    assert await asyncio.to_thread(holder.says) == "holding"
    holder.send_signal(ending)
    async with shared.open(session_id, timeout=20) as session:
        assert session["by"] == "the late one"


async def test_a_holder_that_the_network_has_left_alone_is_told_that_it_lost_the_session(
    server: Server, shared: SessionStore, space: str
) -> None:
    session_id = await shared.create({"n": 0})
    async with Proxy("127.0.0.1", server.port) as proxy, store_at(server.url_at(proxy.port), space) as late:
        with pytest.raises((LockLostError, CommitUnknownError)):
            async with late.open(session_id, lease=0.5) as session:
                session["n"] = 1
                proxy.is_refusing = True
                proxy.cut_all()
                async with shared.open(session_id, timeout=20) as other:
                    other["n"] = 2
                proxy.heal()
        assert await stored(late, session_id) == {"n": 2}
        await until(lambda: not [*leftovers(late)])


async def test_processes_whose_clocks_differ_by_a_day_agree_on_leases_and_on_what_has_expired(
    shared: SessionStore, start: Start
) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    need(library, "libfaketime")
    session_id = await shared.create({"n": 0})
    async with shared.open(session_id, readonly=True) as session:
        assert session.expires_at is not None
        ends_at = session.expires_at.timestamp()
    for offset in (DAY, -DAY):
        fake = {"LD_PRELOAD": str(library), "FAKETIME": f"{offset:+.0f}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        other = start("tell_time", session_id, **fake)
        wall, clock, end = map(float, (await asyncio.to_thread(other.says)).split())
        assert abs(wall - time.time() - offset) < DAY / 2
        assert abs(clock - shared.clock()) < 600
        assert abs(end - ends_at) < 600
        other.tell("sweep")
        assert await asyncio.to_thread(other.says) == "swept 0"
        other.tell("change")
        assert await asyncio.to_thread(other.says) == "changed"
        assert await shared.delete_expired() == 0
        assert await stored(shared, session_id) == {"n": 0, "by": "the other"}

        holder = start("hold", session_id, 1000, **fake)
        assert await asyncio.to_thread(holder.says) == "holding"
        with pytest.raises(LockTimeoutError):
            async with shared.open(session_id, timeout=0):
                pass
        holder.tell("go on")
        assert await asyncio.to_thread(holder.says) == "stored"
    await shared.destroy(session_id)
    with pytest.raises(SessionNotFoundError):
        await stored(shared, session_id)
