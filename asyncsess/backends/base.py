"""The seam between the policy (`asyncsess.store`) and the places where sessions are kept.

A backend knows keys, bytes, versions, times and locks. It never sees a session id or a value, and it judges no
expiry: it compares times only as an `Expiry` tells it. `asyncsess.testing.BackendContract` runs what is said here.

- A *key* is 64 hexadecimal digits. A *record* is one committed version, whole; its versions count up from 1.
- Times are seconds of the store's clock since the epoch, as float; the caller passes them, a backend has no clock.
- Every method raises `StoreError` with the original as ``__cause__`` when the storage fails, `CorruptSessionError`
  when what is stored is damaged (after moving it aside), and leaves no lock behind in either case.
- A backend may be used from several event loops, one after another or at once in several threads.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from asyncsess.errors import Holder
from asyncsess.expiry import Expiry


class Record(NamedTuple):
    """One committed version of a session.

    Attributes:
        payload: What the codec sealed.
        version: 1 for the first commit, then one more for each.
        created_at: When the first version was committed.
        accessed_at: When the session was last used; commits and exclusive holders move it, reads do by `touch`.
    """

    payload: bytes
    version: int
    created_at: float
    accessed_at: float


class Tombstone(NamedTuple):
    """What is left of a record for a while after it was deleted, so that nothing in flight brings it back.

    Attributes:
        note: What the policy wrote on it, at most 400 bytes.
        until: When it may go; `Backend.delete_expired` removes it then.
    """

    note: bytes
    until: float


Found = Record | Tombstone | None


@dataclass(frozen=True, slots=True)
class BackendStatistics:
    """What a backend is doing right now, and what it has met; the counts are of this process.

    Attributes:
        holding: Locks held, or being taken.
        waiting: Tasks in the queue behind a holder, of this process or another.
        corrupt: Damaged records met and moved aside.
        io_switches: How often slow storage made the backend change from the event loop to threads.
    """

    holding: int = 0
    waiting: int = 0
    corrupt: int = 0
    io_switches: int = 0


class Hold(Protocol):
    """An exclusive right, from the moment it was granted."""

    @property
    def waited(self) -> float:
        """Seconds that others took to let go; 0 if it was free."""
        ...

    @property
    def is_contended(self) -> bool:
        """Whether anybody waits for it now."""
        ...

    async def renew(self, lease: float) -> None:
        """Begin the lease anew, with so many seconds from now on.

        Raises:
            LockLostError: Another has taken over.
        """
        ...


class HeldName(Hold, Protocol):
    """The exclusive right to a name inside a key."""

    @property
    def was_late(self) -> bool:
        """Whether it was taken over from a holder that was late, and may be committing what it has not checked."""
        ...

    async def check(self) -> None:
        """Return if this is still so.

        Raises:
            LockLostError: Another has taken over.
        """
        ...


class Held(Hold, Protocol):
    """The exclusive right to one key, from the moment it was granted until `release`.

    After `release`, or once the lock is lost, the others raise `LockLostError` and store nothing.
    """

    @property
    def record(self) -> Found:
        """The newest version, as of the grant, then as of the last commit; or the tombstone; None if there is none."""
        ...

    async def commit(self, payload: bytes, *, now: float, is_last: bool = False) -> Record:
        """Store the next version and keep the lock; it is there for every reader when this returns.

        With ``is_last``, `release` follows at once, and a store elsewhere does both in one step.

        Cancelled, it either has not begun, or completes before the cancellation comes out.

        Raises:
            LockLostError: The key is no longer this holder's; nothing was stored.
            StoreError: Nothing was stored, the version before is intact. So it is with a tombstone, which takes no
                record until it was deleted.
            CommitUnknownError: The version is visible, but perhaps not durable.
        """
        ...

    async def delete(self, tombstone: Tombstone | None = None, *, now: float) -> None:
        """Remove the record, or the tombstone, and the lock with it.

        Args:
            tombstone: What to leave in the place of a record, in one atomic step; nothing if None.
            now: The time, from which a store that deletes by itself counts how long the tombstone stands.
        """
        ...

    async def release(self, *, now: float) -> None:
        """Give the key to the next in the queue. Never suspends on a local store; may be called again."""
        ...


class Backend(Protocol):
    """A place where sessions are kept."""

    async def open(self) -> None:
        """Get ready, or raise `StoreError` that says what is in the way. The first use does this too."""
        ...

    async def aclose(self) -> None:
        """Give back descriptors, connections and threads. Locks still held are lost.

        Using the backend after this raises `StoreError`, until `open` is called.
        """
        ...

    async def read(self, key: str) -> Found:
        """Return the newest committed version, or the tombstone. Never waits for a holder, never goes back."""
        ...

    def hold(
        self, key: str, *, timeout: float, holder: Holder, lease: float = math.inf, create: bool = False
    ) -> AbstractAsyncContextManager[Held]:
        """Hold a key exclusively; first come, first served among the tasks of a process.

        A key without a record: with ``create`` it is held, and the first commit makes its record; nothing is left
        of it if there is no commit. Without ``create`` nothing needs to be locked, and `Held.record` is None.

        Args:
            key: The key.
            timeout: Seconds to wait for other holders.
            holder: What to tell those who time out behind this one.
            lease: Seconds after which those who wait may take over, from a holder that was stopped or hangs. What it
                commits from then on raises `LockLostError`, and is not stored; what had been committed stays. While
                nobody takes over, it goes on.
            create: Hold the key although it has no record.

        Raises:
            LockTimeoutError: The key was not free in time; its holder is named where known.
            DeadlockError: The current task holds the key already, or would wait for one that waits for it.
        """
        ...

    def create(
        self,
        key: str,
        payload: bytes,
        *,
        created_at: float,
        now: float,
        holder: Holder,
        lease: float = math.inf,
        version: int = 1,
    ) -> AbstractAsyncContextManager[Held]:
        """Store the first version under a fresh key and hold it.

        Args:
            key: The key.
            payload: What the codec sealed.
            created_at: When the session began; one that gets a new key keeps this.
            now: When it was last used.
            holder: As `hold`.
            lease: As `hold`.
            version: Another number than 1 for a session that comes from another backend, so that nobody sees it go
                back.

        Raises:
            StoreError: The key has a record or a tombstone, which stays as it is: no id is handed out twice.
        """
        ...

    def hold_name(
        self, key: str, name: str, *, timeout: float, holder: Holder, lease: float = math.inf
    ) -> AbstractAsyncContextManager[HeldName]:
        """Hold a name inside a key exclusively, such as that of a variable; the key itself stays free.

        The key need not have a record. Nothing of the lock is left once nobody holds it or waits for it.

        Raises:
            LockTimeoutError, DeadlockError: As `hold`.
        """
        ...

    async def touch(self, key: str, *, now: float) -> None:
        """Record an access. Waits for nobody, moves a time never backwards, revives nothing.

        Of a key that is held, nothing needs to be recorded: its holder does that on release.
        """
        ...

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        """Add a key to a group, such as that of an owner's sessions. It need not have a record yet, nor later on.

        A group is named by 64 hexadecimal digits, and is there as long as it has members. Adding one again notes the
        time anew.
        """
        ...

    async def members(self, group: str) -> Mapping[str, float]:
        """Return the keys in a group, and when each was added. Whoever asks looks whether they have a record."""
        ...

    async def remove_member(self, group: str, key: str) -> None:
        """Remove a key from a group, if it is there."""
        ...

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        """Delete the records that have expired and are not held; return how many. Tombstones go too, but do not count.

        So do members of groups that have neither a record nor a tombstone, a minute after they were added.

        One damaged record does not keep the others from being deleted. Several processes may call this at once.
        """
        ...

    def keys(self) -> AsyncIterator[str]:
        """Yield the keys that have a record, those that have expired included, in no order; not those of tombstones."""
        ...

    def statistics(self) -> BackendStatistics:
        """Return what the backend is doing right now."""
        ...
