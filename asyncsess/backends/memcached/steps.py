"""What becomes of an item, step by step: pure functions from what is stored to what is to be stored instead."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from asyncsess.backends.base import Record, Tombstone
from asyncsess.backends.memcached.layout import EMPTY, UNCERTAINTY, Item, Lock, Waiter, ends_at
from asyncsess.backends.remote.engine import Busy, Claim, Granted
from asyncsess.errors import LockLostError, StoreError
from asyncsess.expiry import Expiry

LOST: Final = "the session was taken over by another; nothing was stored"
GONE: Final = "memcached has evicted the session, or was restarted or flushed; nothing was stored"
_PATIENCE: Final = 2.0  # seconds for which others let one go first whom nothing is heard of


def claimed(item: Item, claim: Claim, now: float, watched: float) -> tuple[Granted | Busy, Item | None]:
    """Return what a claim is told, and what it makes of an item.

    Args:
        item: What is there.
        claim: Who wants the lock.
        now: The server's time.
        watched: For how many seconds the claim has seen the lock as it is.
    """
    lock = item.lock
    found = None if claim.name is not None else item.found
    if item.is_held_by(claim):
        return Granted(found), None
    was_late = lock is not None and lock.is_late(now, watched)
    others = item.is_awaited(now) and not item.is_awaited_by(claim)
    if (lock is None or was_late) and not others:
        if item.found is None and not claim.create:
            is_clean = lock is None and item.waiter is None
            return Granted(None, is_locked=False), None if is_clean else replace(item, lock=None, waiter=None)
        return Granted(found, was_late), replace(item, lock=Lock.of(claim, now), waiter=None)
    busy = Busy(lock.holder if lock else None, (lock is not None) + others, 0.0)
    if others or (item.waiter and item.is_awaited_by(claim) and item.waiter.until > now + _PATIENCE / 2):
        return busy, None
    return busy, replace(item, waiter=Waiter(claim.token, now + _PATIENCE))


def created(item: Item | None, claim: Claim, record: Record, expiry: Expiry, now: float) -> Item | None:
    """Return a new session that a claim holds; None if it has it already, or somebody else has one there."""
    item = item or EMPTY
    if item.is_held_by(claim) and item.record == record:
        return None
    if item.found is not None or (item.lock is not None and not item.lock.is_late(now, 0.0)):
        return None
    lock = Lock.of(claim, now)
    return replace(item, record=record, ends_at=ends_at(record, expiry, now), lock=lock, committer=claim.token)


def committed(
    item: Item | None, claim: Claim, record: Record, expiry: Expiry, now: float, *, is_last: bool
) -> Item | None:
    """Return a session with its next version.

    Raises:
        LockLostError: It is another's.
        StoreError: It is gone.
    """
    if item is None:
        raise StoreError(GONE)
    if item.record == record and item.committer == claim.token:
        return None
    lock = held(item, claim)
    return replace(
        item,
        record=record,
        ends_at=ends_at(record, expiry, now),
        lock=None if is_last else lock,
        committer=claim.token,
    )


def held(item: Item | None, claim: Claim) -> Lock:
    """Return the lock of a claim.

    Raises:
        LockLostError: It is another's.
    """
    if item is None or item.lock is None or not item.is_held_by(claim):
        raise LockLostError(LOST)
    return item.lock


def deleted(item: Item | None, claim: Claim, tombstone: Tombstone | None, stands: float, now: float) -> Item | None:
    """Return what is left of a session that a claim holds: a tombstone that stands for so many seconds, if any.

    Raises:
        LockLostError: It is another's.
    """
    if item is None:  # memcached was faster
        return None if tombstone is None else deleted(Item(lock=Lock.of(claim, now)), claim, tombstone, stands, now)
    if item.lock is None and item.record is None and item.tombstone == tombstone:
        return None
    held(item, claim)
    if tombstone is None:
        return replace(EMPTY, waiter=item.waiter)
    return replace(item, record=None, tombstone=tombstone, ends_at=now + stands + UNCERTAINTY, lock=None)


def released(item: Item | None, claim: Claim, used_at: float | None, expiry: Expiry, now: float) -> Item | None:
    """Return a session without the lock and the place in the line of a claim."""
    if item is None:
        return None
    if item.is_awaited_by(claim):
        item = replace(item, waiter=None)
    elif not item.is_held_by(claim):
        return None
    if item.is_held_by(claim):
        item = replace(item, lock=None)
    return item if used_at is None else used(item, used_at, expiry, now) or item


def used(item: Item | None, at: float, expiry: Expiry, now: float) -> Item | None:
    """Return a session that was used at a time and that nobody holds, unless it was used later."""
    if item is None or item.record is None or item.lock is not None or item.record.accessed_at >= at:
        return None
    record = item.record._replace(accessed_at=at)
    return replace(item, record=record, ends_at=ends_at(record, expiry, now))


def expired(item: Item | None, expiry: Expiry, at: float) -> Item | None:
    """Return what is left of a session that has expired and that nobody holds."""
    if item is None or item.lock is not None:
        return None
    if item.tombstone is not None:
        return EMPTY if item.tombstone.until <= at else None
    record = item.record
    is_over = record is not None and expiry.is_over(record.created_at, record.accessed_at, at)
    return EMPTY if is_over else None
