"""`Lifecycle`: a store from its options to its end, whatever is done with its sessions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from asyncsess.backends.base import Backend, Record, Tombstone
from asyncsess.codec import Codec, MsgpackCodec
from asyncsess.errors import StoreError
from asyncsess.events import Hook
from asyncsess.expiry import IDLE_TIMEOUT, LIFETIME, Expiry, limit, seconds
from asyncsess.observer import Observer
from asyncsess.policy import Policy
from asyncsess.statistics import Statistics
from asyncsess.sweeper import Sweeper

_CLOSE_TIMEOUT: Final = 10.0


class Lifecycle:
    """What a store has been told, and its life: it is entered, deletes what has expired, and is closed.

    Args:
        backend: Where sessions are kept.
        idle_timeout: Seconds without use after which a session ends; None for no such limit.
        lifetime: Seconds since its creation after which it ends in any case; None for no such limit.
        lock_timeout: Seconds that `open` waits for other holders, unless it is told otherwise.
        lease: Seconds after which those who wait may take a session over from a holder that was stopped or hangs.
        slow_hold: Seconds for which somebody may keep others waiting without a warning in the log.
        hooks: Who is told of every event of `asyncsess.events`, for metrics and alarms.
        codec: How values become bytes; `MsgpackCodec` if None.
        max_size: Bytes that an encoded session may have.
        max_sessions_per_owner: How many sessions an owner may have: beyond that, a login ends the least recently used.
        sweep_interval: Seconds between two sweeps; None for none.
        clock: Returns seconds since the epoch; expiry is judged by it alone.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        idle_timeout: float | timedelta | None = IDLE_TIMEOUT,
        lifetime: float | timedelta | None = LIFETIME,
        lock_timeout: float | timedelta = 40.0,
        lease: float | timedelta = 30.0,
        slow_hold: float | timedelta = 1.0,
        hooks: Sequence[Hook] = (),
        codec: Codec | None = None,
        max_size: int = 1024 * 1024,
        max_sessions_per_owner: int | None = None,
        sweep_interval: float | timedelta | None = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        expiry = Expiry.of(idle_timeout, lifetime)
        observer = Observer(hooks, seconds(slow_hold, "slow_hold"))
        if max_sessions_per_owner is not None and max_sessions_per_owner < 1:
            raise ValueError(f"max_sessions_per_owner must be 1 or more, or None, not {max_sessions_per_owner}")
        self._policy = Policy(
            backend,
            codec or MsgpackCodec(),
            expiry,
            max_size,
            seconds(lease, "lease"),
            clock,
            observer,
            max_sessions_per_owner,
        )
        self._lock_timeout = seconds(lock_timeout, "lock_timeout", or_zero=True)
        self._sweeper = Sweeper(self.delete_expired, limit(sweep_interval, "sweep_interval"))
        self._swept = self._entered = 0
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._policy.backend!r}>"

    async def __aenter__(self) -> Self:
        await self._policy.backend.open()
        self._entered += 1
        self._is_closed = False
        self._policy.openings.begin()
        self._sweeper.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered <= 0:  # an application and its framework may both have entered it
            await self.aclose()

    async def delete_expired(self) -> int:
        """Delete the sessions that have expired and are not open; return how many."""
        policy = self._policy
        deleted = await policy.backend.delete_expired(policy.expiry, now=policy.clock())
        self._swept += deleted
        return deleted

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError("the store was closed; enter it again, or make a new one")

    def _wait(self, timeout: float | timedelta | None) -> float:
        return self._lock_timeout if timeout is None else seconds(timeout, "timeout", or_zero=True)

    @property
    def lifetime(self) -> float | None:
        """Seconds for which a session lasts at most; None for no such limit."""
        return self._policy.expiry.lifetime

    @property
    def clock(self) -> Callable[[], float]:
        """Returns seconds since the epoch."""
        return self._policy.clock

    @property
    def backend(self) -> Backend:
        """Where the sessions are kept."""
        return self._policy.backend

    def has_expired(self, record: Record | Tombstone) -> bool:
        """Tell whether a record is that of an expired session, or a tombstone that has had its time."""
        return self._policy.has_expired(record)

    def keys(self) -> AsyncIterator[str]:
        """Yield the keys of all sessions, also of those that expired since the last sweep.

        A key is the SHA-256 of the id: it tells sessions apart, and opens none.
        """
        return self._policy.backend.keys()

    def statistics(self) -> Statistics:
        """Return what the store is doing right now, and has done."""
        now = self._policy.backend.statistics()
        return self._policy.observer.statistics(now, opened_now=len(self._policy.openings), swept=self._swept)

    async def aclose(self, *, timeout: float = _CLOSE_TIMEOUT) -> None:
        """Close the store.

        Waits for the blocks that other tasks still have open. Whoever is late loses its lock: committing raises
        `LockLostError`, and opening anything raises `StoreError`, until the store is entered again.

        Args:
            timeout: Seconds to wait.
        """
        self._is_closed = True
        self._entered = 0
        try:
            await self._sweeper.stop()
            await self._policy.openings.until_others_end(timeout)
        finally:
            await self._policy.backend.aclose()
