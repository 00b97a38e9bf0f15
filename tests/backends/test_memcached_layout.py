"""The bytes, the steps and the clock of the backend on memcached, without a server."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncsess.backends.base import Record, Tombstone
from asyncsess.backends.memcached.clock import WholeSeconds
from asyncsess.backends.memcached.layout import (
    EMPTY,
    Item,
    Lock,
    Log,
    Waiter,
    added,
    decode,
    encode,
    new_log,
    read_log,
    removed,
)
from asyncsess.backends.memcached.steps import claimed, committed, created, deleted, released, used
from asyncsess.backends.remote import Busy, Claim, Granted
from asyncsess.errors import Holder, LockLostError, StoreError
from asyncsess.expiry import Expiry

NOW = 1_800_000_000.0
times = st.floats(0, 4e9)
texts = st.text(max_size=20)
keys = st.binary(min_size=32, max_size=32).map(bytes.hex)
holders = st.builds(Holder, st.integers(0, 2**31), texts, st.datetimes(timezones=st.just(UTC)), texts)
items = st.builds(
    Item,
    record=st.none() | st.builds(Record, st.binary(), st.integers(1, 2**40), times, times),
    tombstone=st.none() | st.builds(Tombstone, st.binary(max_size=400), times),
    ends_at=times,
    lock=st.none() | st.builds(Lock, texts, times | st.just(math.inf), times | st.just(math.inf), holders),
    waiter=st.none() | st.builds(Waiter, texts, times),
    committer=texts,
    groups=st.dictionaries(texts, times, max_size=3),
)


def claim(token: str = "me.1", *, lease: float = 30.0, create: bool = False, name: str | None = None) -> Claim:
    return Claim("0" * 64, name, token, Holder(1, "task", datetime.now(UTC), "x.py:1"), lease, create)


def lock(token: str = "other.1", *, lease: float = 30.0, since: float = NOW) -> Lock:
    return Lock.of(claim(token, lease=lease), since)


# The bytes.


@given(items)
def test_what_was_stored_is_read(item: Item) -> None:
    assert decode(encode(item)) == item


@given(st.binary(), items, st.integers(0, 500), st.integers(1, 255))
def test_what_is_damaged_is_an_item_or_told(data: bytes, item: Item, at: int, by: int) -> None:
    stored = bytearray(encode(item))
    stored[at % len(stored)] ^= by
    for garbage in (data, bytes(stored), encode(item)[:-1], encode(item) + b"\0", encode(EMPTY)[:10] + data):
        try:
            assert isinstance(decode(garbage), Item)
        except ValueError:
            continue


def test_a_holder_whose_names_are_no_text_is_stored() -> None:
    held = Lock.of(claim()._replace(holder=Holder(1, "\ud800", datetime.now(UTC), "\udcff")), NOW)
    assert decode(encode(Item(lock=held))) == Item(lock=held)


@given(st.lists(st.tuples(st.booleans(), keys, times)), st.booleans())
def test_a_log_says_who_was_added_and_not_removed(changes: list[tuple[bool, str, float]], is_whole: bool) -> None:
    data, expected = new_log(Log({}, is_whole)), dict[str, float]()
    for is_added, key, at in changes:
        data += added(key, at) if is_added else removed(key)
        if is_added:
            expected[key] = at
        else:
            expected.pop(key, None)
    assert read_log(data) == Log(expected, is_whole)
    assert read_log(new_log(read_log(data))) == Log(expected, is_whole)


@given(st.binary())
def test_what_is_no_log_is_told(data: bytes) -> None:
    with pytest.raises(ValueError, match="another program"):
        read_log(data)
    with pytest.raises(ValueError, match="another program"):
        read_log(new_log(Log({}, is_whole=True)) + b"x" * 41)


@given(items)
def test_no_lock_shortens_the_time_to_live_of_a_session(item: Item) -> None:
    assume(item.found is not None)
    free, taken = (Item(item.record, item.tombstone, item.ends_at, each).time_to_live(NOW) for each in (None, lock()))
    assert taken >= free
    assert (taken == 0) == (free == 0) == (item.ends_at == 0.0)


# The steps.


def test_a_lock_is_taken_over_once_the_lease_has_passed_before_ones_eyes_or_by_the_servers_clock() -> None:
    item = Item(Record(b"", 1, NOW, NOW), lock=lock(lease=30.0))
    for now, watched, is_late in (
        (NOW + 29.0, 29.9, False),
        (NOW + 30.5, 0.0, False),  # the clocks may differ by this much
        (NOW, 30.0, True),
        (NOW + 33.0, 0.0, True),
    ):
        answer, new = claimed(item, claim(), now, watched)
        assert isinstance(answer, Granted) is is_late
        assert new is not None
        assert new.lock is not None
        assert new.lock.token == ("me.1" if is_late else "other.1")
        if isinstance(answer, Granted):
            assert answer.was_late
    assert isinstance(claimed(Item(lock=lock(lease=math.inf)), claim(create=True), NOW * 2, 1e9)[0], Busy)


def test_who_waits_comes_before_who_comes_later_for_as_long_as_it_is_heard_of() -> None:
    answer, awaited = claimed(Item(Record(b"", 1, NOW, NOW), lock=lock()), claim("first.1"), NOW, 0.0)
    assert isinstance(answer, Busy)
    assert (answer.ahead, answer.holder is not None) == (1, True)
    assert awaited is not None
    free = released(awaited, claim("other.1"), None, Expiry(), NOW)
    assert free is not None
    later, nothing = claimed(free, claim("later.1"), NOW + 1.0, 0.0)
    assert (isinstance(later, Busy), nothing) == (True, None)
    assert isinstance(claimed(free, claim("first.1"), NOW + 1.0, 0.0)[0], Granted)
    assert isinstance(claimed(free, claim("later.1"), NOW + 2.0, 0.0)[0], Granted)
    assert claimed(awaited, claim("first.1"), NOW + 0.5, 0.0)[1] is None  # heard of already
    assert claimed(awaited, claim("first.1"), NOW + 1.5, 0.0)[1] is not None


@given(items)
def test_only_the_holder_changes_a_session(item: Item) -> None:
    me, record = claim("nobody knows this"), Record(b"new", 2, NOW, NOW)
    with pytest.raises(LockLostError):
        committed(item, me, record, Expiry(), NOW, is_last=False)
    assert released(item, me, NOW, Expiry(), NOW) is None
    assume(item.lock is not None)
    with pytest.raises(LockLostError):
        deleted(item, me, None, 0.0, NOW)
    assert used(item, 5e9, Expiry(), NOW) is None


@given(items, st.booleans())
def test_a_step_that_was_done_is_not_done_again(item: Item, is_last: bool) -> None:
    me, record = claim(), Record(b"new", 2, NOW, NOW)
    mine = Item(item.record, item.tombstone, item.ends_at, lock(me.token), item.waiter, "other.1", item.groups)
    done = committed(mine, me, record, Expiry(), NOW, is_last=is_last)
    assert done is not None
    assert (done.groups, done.waiter, done.lock) == (item.groups, item.waiter, None if is_last else mine.lock)
    assert committed(done, me, record, Expiry(), NOW, is_last=is_last) is None
    with pytest.raises(LockLostError):  # the same, by another
        committed(Item(record, committer="other.1"), me, record, Expiry(), NOW, is_last=is_last)
    new = created(Item(groups=item.groups), me, record, Expiry(), NOW)
    assert new is not None
    assert (new.groups, created(new, me, record, Expiry(), NOW)) == (item.groups, None)
    assert created(new, claim("other.2"), record, Expiry(), NOW) is None


@given(items, st.none() | st.builds(Tombstone, st.binary(max_size=400), times))
def test_a_deletion_is_not_done_again_and_leaves_who_waits(item: Item, tombstone: Tombstone | None) -> None:
    me = claim()
    mine = Item(item.record, None, item.ends_at, lock(me.token), item.waiter, "other.1", item.groups)
    for before in (mine, None):
        left = deleted(before, me, tombstone, 60.0, NOW)
        if left is not None:
            assert (left.found, left.lock, left.waiter) == (tombstone, None, before.waiter if before else None)
            assert deleted(left, me, tombstone, 60.0, NOW) is None
        else:
            assert before is tombstone is None


def test_what_was_evicted_is_not_stored_anew() -> None:
    with pytest.raises(StoreError, match="evicted"):
        committed(None, claim(), Record(b"new", 2, NOW, NOW), Expiry(), NOW, is_last=True)
    assert released(None, claim(), NOW, Expiry(), NOW) is None
    assert used(None, NOW, Expiry(), NOW) is None
    assert deleted(None, claim(), None, 0.0, NOW) is None


# The clock.


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1))
def test_a_clock_of_whole_seconds_is_known_to_half_a_second_and_what_the_way_took(
    offset: float, answers: list[tuple[float, float, float]]
) -> None:
    clock = WholeSeconds()
    for moment, there, back in answers:
        clock.learn(math.floor(moment + offset), asked_at=moment - there, answered_at=moment + back)
        assert abs(clock.at(moment) - moment - offset) <= 0.5 + (there + back) / 2 + 1e-6


def test_answers_at_different_moments_narrow_a_clock_down_and_a_clock_that_was_set_is_believed() -> None:
    clock = WholeSeconds()
    for tenth in range(11):
        clock.learn(math.floor(100.35 + tenth / 10), asked_at=tenth / 10, answered_at=tenth / 10)
    assert abs(clock.at(0.0) - 100.35) <= 0.05 + 1e-9
    clock.learn(5000, asked_at=1.0, answered_at=1.0)
    assert abs(clock.at(1.0) - 5000.5) <= 0.5
