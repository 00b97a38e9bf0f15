"""`VariablesOpening`: a session of which some variables are locked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType

from asyncsess.openings.base import Caller, holder_at
from asyncsess.openings.edit import EditOpening
from asyncsess.policy import Policy
from asyncsess.rules import Resolve
from asyncsess.session import Session


class VariablesOpening(EditOpening):
    """An edit of some variables, which nobody else who locks them changes meanwhile.

    Args:
        policy, session_id, resolve, caller: As `EditOpening`.
        variables: The keys that may be changed.
        timeout: Seconds to wait for all of their locks together, and for the session at each commit.
    """

    __slots__ = ("_locks",)

    def __init__(
        self,
        policy: Policy,
        session_id: str,
        variables: Collection[str],
        *,
        resolve: Resolve,
        timeout: float,
        caller: Caller,
    ) -> None:
        super().__init__(policy, session_id, resolve=resolve, timeout=timeout, caller=caller)
        # One order for all, so that nobody waits for somebody who waits for him.
        self._locks: dict[str, AbstractAsyncContextManager[None] | None] = dict.fromkeys(sorted(set(variables)))
        self._session.lock(self._locks.keys())

    async def __aenter__(self) -> Session:
        started, holder = time.monotonic(), holder_at(asyncio.current_task(), self._caller)
        try:
            for variable in self._locks:
                left = max(0.0, self._timeout - (time.monotonic() - started))
                lock = self._policy.backend.hold_name(self._key, variable, timeout=left, holder=holder)
                await lock.__aenter__()
                self._locks[variable] = lock
            return await super().__aenter__()
        except BaseException:
            await self._give_back(list(self._locks))
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        finally:
            await self._give_back(list(self._locks))

    async def release(self, variables: Collection[str] = ()) -> None:
        """Commit, and give back the locks of these variables, or of all."""
        try:
            await (self.save() if variables else super().release())
        finally:
            await self._give_back(variables or list(self._locks))

    async def rollback(self) -> None:
        """Drop what was not committed, and give back all locks."""
        try:
            await super().rollback()
        finally:
            await self._give_back(list(self._locks))

    async def _give_back(self, variables: Collection[str]) -> None:
        async with AsyncExitStack() as stack:  # each is given back, whatever becomes of the others
            for variable in variables:
                lock = self._locks.pop(variable, None)
                if lock is not None:
                    stack.push_async_exit(lock)
