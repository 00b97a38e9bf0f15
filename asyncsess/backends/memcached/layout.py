"""What is stored in memcached: pure functions between bytes and what they say.

memcached changes one item at a time, so whatever has to change together is one item: a session's record, its lock, who
waits for that, and the groups that it is a member of. Its ``cas`` is then all that the fencing of late holders needs.

The members of a group are a log, to which any number of processes can append without reading it; it is an index of what
the sessions say themselves.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.remote.engine import Claim
from asyncsess.errors import Holder
from asyncsess.expiry import Expiry

DAY: Final = 86400.0
MEMBER_AGE: Final = 60.0
UNCERTAINTY: Final = 2.0  # by how much two processes may tell the server's time differently, and more
_LATE_AT_MOST: Final = 600.0  # for how long a holder that nobody follows may be late
GONE: Final = 1  # as memcached can't delete on a condition, what is to go gets a second to live
_MAGIC: Final = b"asyncsess\x01"
_LOG_MAGIC: Final = b"asyncsess+\x01"
_ENTRY: Final = struct.Struct(">c32sd")
_ADDED, _REMOVED, _WHOLE = b"+", b"-", b"!"


class Lock(msgspec.Struct, frozen=True, array_like=True):
    """Who holds a session or a name.

    Attributes:
        token: The claim's.
        lease: Seconds for which it may keep others waiting.
        deadline: Until when, by the server's clock.
        holder: What to tell those who wait.
    """

    token: str
    lease: float
    deadline: float
    holder: Holder

    @classmethod
    def of(cls, claim: Claim, now: float) -> Lock:
        """Return the lock of a claim that is granted."""
        holder = claim.holder
        task, where = (text.encode(errors="replace").decode() for text in (holder.task, holder.where))
        return cls(claim.token, claim.lease, now + claim.lease, holder._replace(task=task, where=where))

    def is_late(self, now: float, watched: float) -> bool:
        """Tell whether others may take over: the lease is over by the server's clock, or for one who watched it all."""
        return watched >= self.lease or now >= self.deadline + UNCERTAINTY


class Waiter(msgspec.Struct, frozen=True, array_like=True):
    """Who is to have a lock next.

    Attributes:
        token: The claim's.
        until: When others need not let it go first any more, by the server's clock.
    """

    token: str
    until: float


class Item(msgspec.Struct, frozen=True, array_like=True):
    """All that belongs to a session, or the lock of a name.

    Attributes:
        record: The newest version.
        tombstone: What is left of a deleted one.
        ends_at: When either may go, by the server's clock; 0 for never.
        lock: Who has it.
        waiter: Who is to have it next.
        committer: The token of the claim that stored the record.
        groups: Those that this is a member of, and since when.
    """

    record: Record | None = None
    tombstone: Tombstone | None = None
    ends_at: float = 0.0
    lock: Lock | None = None
    waiter: Waiter | None = None
    committer: str = ""
    groups: dict[str, float] = {}

    @property
    def found(self) -> Found:
        """What a reader finds."""
        return self.record or self.tombstone

    def is_held_by(self, claim: Claim) -> bool:
        """Tell whether a claim has the lock."""
        return self.lock is not None and self.lock.token == claim.token

    def is_awaited(self, now: float) -> bool:
        """Tell whether somebody is to have the lock next."""
        return self.waiter is not None and self.waiter.until > now

    def is_awaited_by(self, claim: Claim) -> bool:
        """Tell whether a claim is noted as that."""
        return self.waiter is not None and self.waiter.token == claim.token

    def time_to_live(self, now: float) -> int:
        """Return what to tell memcached of when this may go: 0 for never, else a second at the least.

        A lock keeps it a while longer than its holder may be late, and no longer, as the holder may be dead.
        """
        if self.found is not None and self.ends_at == 0.0:
            return 0
        end = self.ends_at
        if self.lock is not None:
            end = max(end, now + DAY if math.isinf(self.lock.lease) else self.lock.deadline + _LATE_AT_MOST)
        if self.waiter is not None:
            end = max(end, self.waiter.until)
        if self.groups:
            end = max(end, now + 2 * MEMBER_AGE)
        return exptime(end - now, now)


EMPTY: Final = Item()
_decoder: Final = msgspec.msgpack.Decoder(Item)


def exptime(seconds: float, now: float) -> int:
    """Return memcached's figure for so many seconds from now: a date, since it would take 30 days and more for one."""
    return GONE if seconds < GONE else math.ceil(now + seconds)


def ends_at(record: Record, expiry: Expiry, now: float) -> float:
    """Return when a record that is used now may go, by the server's clock; 0 for never."""
    left = expiry.ends_at(record.created_at, record.accessed_at) - record.accessed_at
    return 0.0 if math.isinf(left) else now + max(left, 0.0) + UNCERTAINTY


def encode(item: Item) -> bytes:
    """Return what is stored of an item."""
    return _MAGIC + msgspec.msgpack.encode(item)


def decode(data: bytes) -> Item:
    """Return what was stored.

    Raises:
        ValueError: This is no item.
    """
    if not data.startswith(_MAGIC):
        raise ValueError("another program has stored something there")
    return _decoder.decode(memoryview(data)[len(_MAGIC) :])


class Log(NamedTuple):
    """What is known of the members of a group.

    Attributes:
        members: When each was added.
        is_whole: Whether these are all; not so if memcached may have dropped an older log.
    """

    members: Mapping[str, float]
    is_whole: bool


def new_log(log: Log) -> bytes:
    """Return a log from the beginning."""
    entries = b"".join(added(key, at) for key, at in log.members.items())
    return _LOG_MAGIC + (_ENTRY.pack(_WHOLE, b"", 0.0) if log.is_whole else b"") + entries


def added(key: str, at: float) -> bytes:
    """Return what to append to a log when a key is added."""
    return _ENTRY.pack(_ADDED, bytes.fromhex(key), at)


def removed(key: str) -> bytes:
    """Return what to append to a log when a key is removed."""
    return _ENTRY.pack(_REMOVED, bytes.fromhex(key), 0.0)


def read_log(data: bytes) -> Log:
    """Return what a log says.

    Raises:
        ValueError: This is no log.
    """
    entries = data[len(_LOG_MAGIC) :]
    if not data.startswith(_LOG_MAGIC) or len(entries) % _ENTRY.size:
        raise ValueError("another program has stored something there")
    members: dict[str, float] = {}
    is_whole = False
    for kind, key, at in _ENTRY.iter_unpack(entries):
        if kind == _ADDED:
            members[key.hex()] = at
        elif kind == _REMOVED:
            members.pop(key.hex(), None)
        elif kind == _WHOLE:
            is_whole = True
        else:
            raise ValueError("another program has stored something there")
    return Log(members, is_whole)
