"""`VariablesOpening`: a session of which some variables are locked."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import NamedTuple

from asyncsess.backends.base import HeldName
from asyncsess.openings.base import Caller, granted, lock
from asyncsess.openings.edit import EditOpening
from asyncsess.policy import Policy
from asyncsess.rules import Resolve


class _Lock(NamedTuple):
    """The lock of a variable, how to leave it, and since when it is held."""

    held: HeldName
    hold: AbstractAsyncContextManager[HeldName]
    since: float


class VariablesOpening(EditOpening):
    """An edit of some variables, which nobody else who locks them changes meanwhile.

    Args:
        policy, session_id, resolve, caller: As `EditOpening`.
        variables: The keys that may be changed.
        timeout: Seconds to wait for all of their locks together, and for the session at each commit.
        lease: Seconds after which those who wait may take a variable over; the policy's if None.
    """

    __slots__ = ("_lease", "_locks")

    def __init__(
        self,
        policy: Policy,
        session_id: str,
        variables: Collection[str],
        *,
        resolve: Resolve,
        timeout: float,
        caller: Caller,
        lease: float | None = None,
    ) -> None:
        super().__init__(policy, session_id, resolve=resolve, timeout=timeout, caller=caller, mode="synchronize")
        self._lease = policy.lease if lease is None else lease
        # One order for all, so that nobody waits for somebody who waits for him.
        self._locks: dict[str, _Lock | None] = dict.fromkeys(sorted(set(variables)))
        self._session.lock(self._locks.keys())

    async def _enter(self) -> None:
        until, key = time.monotonic() + self._timeout, ""
        while key != self._key:  # else the session has got another id meanwhile
            key = self._key
            await self._give_back(self._locks)
            for variable in self._locks:
                await self._lock(variable, until)
            if any(held.was_late for held in self._held()):
                await self._let_commit(until)
            await self._load()

    async def _lock(self, variable: str, until: float) -> None:
        policy, left = self._policy, max(0.0, until - time.monotonic())
        hold = policy.backend.hold_name(self._key, variable, timeout=left, holder=self._holder, lease=self._lease)
        held = await granted(policy, hold, self._mode)
        self._locks[variable] = _Lock(held, hold, time.monotonic())

    async def _let_commit(self, until: float) -> None:
        """Let a late holder end what it is storing: from here on it finds, before it stores, that it was late."""
        left = max(0.0, until - time.monotonic())
        locked = await lock(
            self._policy,
            self._session.id,
            self._key,
            mode=self._mode,
            timeout=left,
            holder=self._holder,
            lease=self._policy.lease,
        )
        await locked.hold.__aexit__(None, None, None)

    def _held(self) -> list[HeldName]:
        return [lock.held for lock in self._locks.values() if lock]

    async def _check_locks(self) -> None:
        with self._telling_of_loss():
            for held in self._held():
                await held.check()

    async def renew(self, lease: float | None) -> None:
        async with self._busy:
            self._session.check_writable()
            self._lease = self._lease if lease is None else lease
            with self._telling_of_loss():
                for held in self._held():
                    await held.renew(self._lease)

    async def release(self, variables: Collection[str] = ()) -> None:
        """Commit, and give back the locks of these variables, or of all."""
        try:
            await (self.save() if variables else super().release())
        finally:
            await self._drop(variables or list(self._locks))

    async def rollback(self) -> None:
        """Drop what was not committed, and give back all locks."""
        try:
            await super().rollback()
        finally:
            await self._drop(list(self._locks))

    async def _leave(self) -> None:
        try:
            await super()._leave()
        finally:
            await self._drop(list(self._locks))

    async def _drop(self, variables: Collection[str]) -> None:
        """Give variables back; they can't be changed any more."""
        try:
            await self._give_back(variables)
        finally:
            for variable in variables:
                self._locks.pop(variable, None)

    async def _give_back(self, variables: Collection[str]) -> None:
        async with AsyncExitStack() as stack:  # each is given back, whatever becomes of the others
            for variable in variables:
                lock = self._locks.get(variable)
                if lock is not None:
                    self._note_if_long(lock.held, lock.since)
                    self._locks[variable] = None
                    stack.push_async_exit(lock.hold)
