"""Taking a lock in a database, and standing in line for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from asyncsess.backends.remote import holders
from asyncsess.backends.remote.engine import Busy
from asyncsess.backends.sql.client import Client
from asyncsess.backends.sql.databases import Database
from asyncsess.backends.sql.locks import KEPT, LockStatements
from asyncsess.backends.sql.waits import LONGEST_PAUSE

_LONGEST_PAUSE: Final = 0.5  # also for those whom a server tells: what it tells may get lost on the way


class Acquisition:
    """One claim's.

    Args:
        client: The connections.
        database: What kind of database it is.
        locks: The statements for the table where the lock is.
        values: The claim, as they need it.
    """

    def __init__(self, client: Client, database: Database, locks: LockStatements, values: Mapping[str, Any]) -> None:
        self._client = client
        self._database = database
        self._locks = locks
        self._values = values

    async def take(self) -> Sequence[Any] | Busy | None:
        """Take the lock; return from whom it was taken over and what is stored, or who has it; None if it has no row.

        Whoever finds it held stands in line from then on.
        """
        while True:
            if (taken := await self._try_to_take()) is not None:
                return taken
            state = await self._look()
            if state is not None and self._place(state) is None:
                await self._client.repeat(self._locks.join, self._values)
                state = await self._look()  # it may have been given back before
            if state is None:
                return None
            if await self._is_worth_another_try(state):
                continue
            return self._busy(state)

    async def _try_to_take(self) -> Sequence[Any] | None:
        answer = await self._client.repeat(self._locks.take, self._values)
        if answer.matched and not self._database.returns_rows:  # nobody changes what is there while the lock is ours
            answer = await self._client.repeat(self._locks.taken, self._values)
        return answer.rows[0] if answer.rows else None

    async def _look(self) -> Any:
        rows = (await self._client.repeat(self._locks.look, self._values)).rows
        return rows[0] if rows else None

    def _place(self, state: Any) -> int | None:
        """Return how many stand before this claim."""
        line = state.line.split()
        return line.index(self._values["who"]) if self._values["who"] in line else None

    async def _is_worth_another_try(self, state: Any) -> bool:
        """Tell whether the lock may be had now, having taken care of who is gone."""
        if not state.is_free:
            return state.lifeline is not None and await self._expire_if_gone(state)
        if not self._place(state):  # the first; or no longer in line, for it has been away for too long
            return True
        if state.left + KEPT > 0:
            return False
        first = f"{state.line.split()[0]} "
        values = {**self._values, "entry": first, "first": f"{first}%"}
        await self._client.repeat(self._locks.skip, values)
        return True

    async def _expire_if_gone(self, state: Any) -> bool:
        if self._database.is_gone is None:
            return False
        ((is_gone,),) = (await self._client.repeat(self._database.is_gone, {"lifeline": state.lifeline})).rows
        if is_gone == 1:
            await self._client.repeat(self._locks.expire, {**self._values, "who": state.token})
        return bool(is_gone == 1)

    def _busy(self, state: Any) -> Busy:
        left = state.left + KEPT if state.is_free else state.left
        longest = _LONGEST_PAUSE if state.lifeline is None else LONGEST_PAUSE  # that a holder is gone, nobody tells
        place = self._place(state) or 0
        return Busy(holders.unpack(state.holder), place + (not state.is_free), min(longest, max(0.0, left)))
