from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsess import SessionNotFoundError, SessionStore
from asyncsess.expiry import Expiry, limit, seconds
from asyncsess.testing import FakeClock
from tests.conftest import NewStore

HOUR = 3600.0
TEN_YEARS = 10 * 365 * 24 * HOUR
NOW = 1_700_000_000.0

times = st.floats(0, 4e9)
limits = st.none() | st.floats(1e-3, 1e9)


# The pure part.


@pytest.mark.parametrize(("duration", "expected"), [(1, 1.0), (0.5, 0.5), (timedelta(minutes=2), 120.0)])
def test_a_duration_is_seconds_or_a_timedelta(duration: Any, expected: float) -> None:
    assert seconds(duration, "idle_timeout") == limit(duration, "idle_timeout") == expected


def test_none_is_no_limit() -> None:
    assert limit(None, "idle_timeout") is None


@pytest.mark.parametrize("wrong", [0, -1, timedelta(0), timedelta(seconds=-1), math.nan])
def test_a_duration_that_is_not_positive_is_refused_by_its_name(wrong: Any) -> None:
    for check in (seconds, limit):
        with pytest.raises(ValueError, match="idle_timeout"):
            check(wrong, "idle_timeout")


@pytest.mark.parametrize("nothing", [0, 0.0, timedelta(0)])
def test_a_duration_may_be_zero_only_where_it_is_said_so(nothing: Any) -> None:
    assert seconds(nothing, "timeout", or_zero=True) == 0.0
    for wrong in (-1, math.nan):
        with pytest.raises(ValueError, match="timeout"):
            seconds(wrong, "timeout", or_zero=True)


@given(created=times, accessed=times, now=times)
def test_without_limits_nothing_ends(created: float, accessed: float, now: float) -> None:
    assert Expiry().ends_at(created, accessed) == math.inf
    assert not Expiry().is_over(created, accessed, now)


@given(idle=limits, lifetime=limits, created=times, accessed=times, now=times)
def test_a_session_is_over_from_the_moment_at_which_it_ends(
    idle: float | None, lifetime: float | None, created: float, accessed: float, now: float
) -> None:
    expiry = Expiry(idle, lifetime)
    ends_at = expiry.ends_at(created, accessed)
    ends = [since + limit for since, limit in ((accessed, idle), (created, lifetime)) if limit is not None]
    assert ends_at == min(ends, default=math.inf)
    assert expiry.is_over(created, accessed, now) == (now >= ends_at)
    if ends:
        assert expiry.is_over(created, accessed, ends_at)
        assert not expiry.is_over(created, accessed, math.nextafter(ends_at, 0))


@pytest.mark.parametrize(("idle", "interval"), [(1800.0, 60.0), (1200.0, 60.0), (100.0, 5.0), (1.0, 0.05)])
def test_a_read_is_recorded_after_a_twentieth_of_the_idle_timeout_or_a_minute(idle: float, interval: float) -> None:
    expiry = Expiry(idle_timeout=idle, lifetime=1.0)
    assert not expiry.is_touch_due(0.0, math.nextafter(interval, 0))
    assert expiry.is_touch_due(0.0, interval)


def test_a_read_is_not_recorded_where_nothing_depends_on_it() -> None:
    assert not Expiry(lifetime=10.0).is_touch_due(0.0, 1e9)


@given(accessed=times, back=st.floats(0, 1e9))
def test_a_read_is_not_recorded_while_the_clock_is_behind(accessed: float, back: float) -> None:
    assert not Expiry(idle_timeout=60.0).is_touch_due(accessed, accessed - back)


# The same through a store, whose clock stands still until the test moves it.


async def exists(store: SessionStore, session_id: str, **how: Any) -> bool:
    try:
        async with store.open(session_id, **how):
            return True
    except SessionNotFoundError:
        return False


async def is_alive(store: SessionStore, session_id: str) -> bool:
    """Look at a session in each way that would find it, without using it before."""
    found = {await exists(store, session_id, readonly=True), await exists(store, session_id)}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("how", [{"readonly": True}, {}])
async def test_idle_timeout_ends_a_session_at_the_very_second(
    new_store: NewStore, clock: FakeClock, how: dict[str, bool]
) -> None:
    async with new_store(idle_timeout=100, lifetime=None) as store:
        first, second = await store.create(), await store.create()
        clock.advance(99)
        assert await exists(store, first, **how)
        clock.advance(1)
        assert not await exists(store, second, **how)


async def test_use_puts_the_idle_timeout_off_but_not_the_lifetime(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=100, lifetime=250) as store:
        session_id = await store.create()
        for _ in range(2):
            clock.advance(90)
            assert await is_alive(store, session_id)
        clock.advance(69)
        assert await is_alive(store, session_id)
        clock.advance(1)
        assert not await is_alive(store, session_id)


@pytest.mark.parametrize("how", [{"readonly": True}, {}])
async def test_each_way_of_opening_counts_as_use(new_store: NewStore, clock: FakeClock, how: dict[str, bool]) -> None:
    async with new_store(idle_timeout=100) as store:
        session_id = await store.create({"a": 1})
        for _ in range(5):
            clock.advance(90)
            async with store.open(session_id, **how) as session:
                assert session["a"] == 1


async def test_a_snapshot_records_its_use_only_once_in_a_while(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=100) as store:
        session_id = await store.create()
        clock.advance(4.5)
        assert await exists(store, session_id, readonly=True)
        clock.advance(95.5)
        assert not await exists(store, session_id, readonly=True)


async def test_a_poll_is_no_use(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=100) as store:
        session_id = await store.create({"a": 1})
        clock.advance(90)
        async with store.open(session_id, readonly=True, touch=False) as session:
            assert session["a"] == 1
            await session.refresh()
        clock.advance(10)
        assert not await is_alive(store, session_id)


async def test_whoever_may_change_a_session_uses_it(store: SessionStore) -> None:
    with pytest.raises(ValueError, match="touch=False is for readonly=True"):
        store.open(await store.create(), touch=False)


async def test_without_limits_a_session_outlives_everything(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=None, lifetime=None) as store:
        session_id = await store.create()
        async with store.open(session_id, readonly=True) as session:
            assert session.expires_at is None
        clock.advance(TEN_YEARS)
        assert await store.delete_expired() == 0
        assert await is_alive(store, session_id)


async def test_timedeltas_are_limits_as_well(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=timedelta(minutes=1), lifetime=timedelta(hours=1)) as store:
        session_id = await store.create()
        clock.advance(timedelta(seconds=59))
        assert await is_alive(store, session_id)
        clock.advance(timedelta(seconds=60))
        assert not await is_alive(store, session_id)


async def test_what_was_found_expired_comes_not_back_with_the_clock(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=100) as store:
        opened, swept = await store.create(), await store.create()
        clock.advance(TEN_YEARS)
        assert not await exists(store, opened)
        assert await store.delete_expired() == 1
        clock.advance(-TEN_YEARS)
        assert not await is_alive(store, opened)
        assert not await is_alive(store, swept)


@pytest.mark.parametrize("step", [HOUR, TEN_YEARS])
async def test_a_clock_set_back_ends_no_session_and_breaks_nothing(
    new_store: NewStore, clock: FakeClock, step: float
) -> None:
    async with new_store(idle_timeout=100, lifetime=200) as store:
        session_id = await store.create({"n": 0})
        clock.advance(-step)
        assert await store.delete_expired() == 0
        assert await is_alive(store, session_id)
        async with store.open(session_id) as session:
            session["n"] += 1
        async with store.open(session_id, readonly=True) as session:
            assert session["n"] == 1
        clock.advance(99)
        assert await is_alive(store, session_id)
        clock.advance(step + 101)
        assert not await is_alive(store, session_id)


@pytest.mark.parametrize("step", [HOUR, TEN_YEARS])
async def test_a_clock_set_forward_ends_every_session_and_breaks_nothing(
    new_store: NewStore, clock: FakeClock, step: float
) -> None:
    async with new_store(idle_timeout=100, lifetime=200) as store:
        session_id = await store.create()
        clock.advance(step)
        assert not await is_alive(store, session_id)
        session_id = await store.create({"n": 0})
        assert await is_alive(store, session_id)


async def test_locks_do_not_depend_on_the_clock(new_store: NewStore, clock: FakeClock) -> None:
    async with new_store(idle_timeout=100) as store:
        session_id = await store.create({"n": 0})
        async with store.open(session_id) as session:
            session["n"] = 1
            clock.advance(TEN_YEARS)
            assert await store.delete_expired() == 0
            clock.advance(-2 * TEN_YEARS)
            session["n"] = 2
        assert await is_alive(store, session_id)
