"""`Engine`: what a server elsewhere has to do, each in one atomic step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Protocol

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.errors import Holder
from asyncsess.expiry import Expiry


class Claim(NamedTuple):
    """Who wants a lock, or has it.

    Attributes:
        key: The key.
        name: The name inside the key; None for the key itself.
        token: What tells this claim from all others: a commit is refused unless the lock is still this claim's.
        holder: What to tell those who wait for it.
        lease: Seconds after which others may take over; infinite for never.
        create: Whether the key is locked although it has no record.
    """

    key: str
    name: str | None
    token: str
    holder: Holder
    lease: float
    create: bool = False


class Granted(NamedTuple):
    """The lock is the claim's.

    Attributes:
        found: What is stored under the key; None for a claim on a name.
        was_late: Whether it was taken over.
        is_locked: False if there is no record, and so nothing to lock.
    """

    found: Found
    was_late: bool = False
    is_locked: bool = True


class Busy(NamedTuple):
    """Others have the lock, or are to have it first.

    Attributes:
        holder: Who has it, where known.
        ahead: How many are before this claim.
        pause: Seconds after which it is worth to ask again, unless `Engine.told` returns before.
    """

    holder: Holder | None
    ahead: int
    pause: float


class Engine(Protocol):
    """A server that keeps records and locks.

    Every method raises `StoreError` when the server fails, in bounded time. One that changes something raises
    `CommitUnknownError` if it can't be found out whether it did.

    Any may be cancelled. `leave` then undoes a `take` or a `create`, and a `commit` is asked for again, with the same
    payload: it must not be done twice, however late the server comes to what it was asked first.
    """

    async def open(self) -> None:
        """Get ready, or raise `StoreError` that says what is in the way; may be called again."""
        ...

    async def aclose(self) -> None:
        """Give back the connections."""
        ...

    async def now(self) -> float:
        """Return the server's time, in seconds since the epoch."""
        ...

    async def read(self, key: str) -> Found:
        """Return the newest version or the tombstone."""
        ...

    async def ready(self) -> None:
        """See to it that a lock can be asked for; if not, nothing needs to be given back."""
        ...

    async def take(self, claim: Claim) -> Granted | Busy:
        """Take a lock and read, or stand in line for it; called again, keep the place in the line."""
        ...

    async def told(self, claim: Claim, seconds: float) -> None:
        """Wait until the lock may be free for a claim that stands in line; ``seconds`` at most."""
        ...

    def is_contended(self, claim: Claim) -> bool:
        """Whether the server has told that others wait for a lock."""
        ...

    async def leave(self, claim: Claim) -> None:
        """Leave the line, or give back a lock that may have been granted meanwhile."""
        ...

    async def create(self, claim: Claim, record: Record) -> bool:
        """Store a first version and take its lock; return False if there is a record or a tombstone of this key."""
        ...

    async def commit(self, claim: Claim, before: Found, payload: bytes, *, now: float, is_last: bool) -> Record:
        """Store the next version if the lock is still the claim's; with ``is_last``, give it to the next as well.

        Args:
            claim: Whose the lock is.
            before: What this claim has stored or found.
            payload: What to store.
            now: The time.
            is_last: Whether nothing more follows.

        Raises:
            LockLostError: The lock is another's; nothing was stored.
        """
        ...

    async def delete(self, claim: Claim, tombstone: Tombstone | None, *, now: float) -> None:
        """Delete the record, or leave a tombstone in its place, and give the lock to the next.

        Raises:
            LockLostError: The lock is another's; nothing was deleted.
        """
        ...

    async def release(self, claim: Claim, *, now: float | None) -> None:
        """Give the lock to the next, if it is the claim's; note that the record was used at a time, if one is given."""
        ...

    async def renew(self, claim: Claim, lease: float) -> None:
        """Begin the lease anew.

        Raises:
            LockLostError: The lock is another's.
        """
        ...

    async def check(self, claim: Claim) -> None:
        """Return if the lock is the claim's.

        Raises:
            LockLostError: It is another's.
        """
        ...

    async def touch(self, key: str, *, now: float) -> None:
        """Note that a record was used, unless it was later on or is locked."""
        ...

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        """Add a key to a group."""
        ...

    async def members(self, group: str) -> Mapping[str, float]:
        """Return the keys in a group and when each was added."""
        ...

    async def remove_member(self, group: str, key: str) -> None:
        """Remove a key from a group."""
        ...

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        """Delete what has expired and is not locked; return how many records."""
        ...

    def keys(self) -> AsyncIterator[str]:
        """Yield the keys that have a record."""
        ...
