"""Trials of operations: each is disturbed once, and then everything is looked at that could be wrong."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from secrets import token_hex
from typing import Final, NamedTuple

from asyncsess import CommitUnknownError, LockLostError, SessionError, SessionNotFoundError, SessionStore, StoreError
from asyncsess.testing import until
from tests.network.operations import BEFORE, Operation, State, prepare, state_of
from tests.network.servers import Server, leftovers, store_at
from tests.proxy import Cut, Proxy

ALL: Final = bool(os.environ.get("ASYNCSESS_ALL_FAULTS"))
_SOON: Final = 5.0  # far less than a lease
_AT_ONCE: Final = 12


def dice(*words: object) -> random.Random:
    """Return what chooses between faults: on each Python others."""
    return random.Random(f"{sys.version_info} {words}")


class Fault(NamedTuple):
    """What happens to the network during an operation.

    Attributes:
        where: Where a connection breaks.
        number: In which exchange.
        for_good: Whether no other works either, until the operation has ended.
    """

    where: Cut
    number: int
    for_good: bool

    @property
    def patience(self) -> float | None:
        """Seconds that the store is to wait for an answer; None if none is late."""
        return 1.5 if self.where is Cut.LATE else None

    def __str__(self) -> str:
        return f"cut {self.where.value} of exchange {self.number}" + (", for good" if self.for_good else "")


class Trial:
    """An operation on a store of its own, behind a proxy of its own; begins and ends with ``async with``.

    Attributes:
        proxy: The network.
        space: Of the sessions of this trial.
        session_id: That of the session that the operation is about.
        outcome: The name of the error that the operation has raised; "done" if it has not.
    """

    def __init__(self, server: Server, operation: Operation, *, patience: float | None = None) -> None:
        self._server = server
        self._patience = patience
        self._operation = operation
        self.space = token_hex(6)
        self.proxy = Proxy("127.0.0.1", server.port)
        self.outcome = ""

    async def __aenter__(self) -> Trial:
        async with AsyncExitStack() as stack:
            url = self._server.url_at(self._server.port)
            self._other = await stack.enter_async_context(store_at(url, self.space, lock_timeout=_SOON))
            self.session_id = await prepare(self._other)
            await stack.enter_async_context(self.proxy)
            url = self._server.url_at(self.proxy.port)
            self.store = store_at(url, self.space, patience=self._patience, lock_timeout=_SOON)
            await self.store.__aenter__()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def run(self, how: Callable[[Awaitable[object]], Awaitable[None]]) -> AsyncIterator[str]:
        """Run the operation; yield what is wrong afterwards, when the network is healed."""
        error: BaseException | None = None
        try:
            async with asyncio.timeout(60):
                await how(self._operation.run(self.store, self.session_id))
        except (Exception, asyncio.CancelledError) as raised:
            error = raised
        self.outcome = "done" if error is None else type(error).__name__
        is_late = self.proxy.kept_back > 0
        self.proxy.heal()
        if is_late:
            await until(lambda: self.proxy.cuts)
        for complaint in _about(error):
            yield complaint
        async for complaint in self._afterwards(error):
            yield complaint

    async def _afterwards(self, error: BaseException | None) -> AsyncIterator[str]:
        if (state := await state_of(self._other, self.session_id)) not in self._right(error):
            yield f"stored is now {state}"
        for store, name in ((self._other, "another store"), (self.store, "its store")):
            if (failure := await _can_be_opened(store, self.session_id)) is not None:
                yield f"for {name}: {failure}"
        for _ in range(1000):  # what goes on in the background may need the network first
            if not (left := [*leftovers(self.store)]):
                break
            await asyncio.sleep(0.001)
        for each in left:
            yield f"left: {each}"
        await self.store.aclose()
        if not await self._is_unused(within=0.1):
            gc.collect()  # which psycopg leaves a connection to that is given up while it is being made
            if not await self._is_unused(within=_SOON):
                yield f"connections stay: {self.proxy}"

    async def _is_unused(self, within: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.proxy.until_unused()
        return not self.proxy.links

    def _right(self, error: BaseException | None) -> Iterable[State]:
        """Return what may be stored after an outcome."""
        if error is None:
            return [self._operation.after]
        if isinstance(error, CommitUnknownError | asyncio.CancelledError):
            return [BEFORE, *self._operation.halfway, self._operation.after]
        return [BEFORE, *self._operation.halfway]


def _about(error: BaseException | None) -> Iterable[str]:
    """Yield what is wrong with an error."""
    if error is not None and not isinstance(error, StoreError | LockLostError | asyncio.CancelledError):
        yield f"the error is not documented: {error!r}"
    if isinstance(error, StoreError) and error.__cause__ is None:
        yield f"the error has no cause: {error!r}"


async def _can_be_opened(store: SessionStore, session_id: str) -> str | None:
    """Change the session and its variable; return the error that this meets."""
    try:
        async with store.open(session_id) as session:
            before = session["n"]
            session["n"] += 1
        async with store.synchronize(session_id, "n") as session:
            session["n"] += 1
        async with store.open(session_id, readonly=True) as session:
            if session["n"] != before + 2:
                return f"{before} and two are {session['n']}"
        async with store.open("job", create=True):
            pass
    except SessionNotFoundError:  # it was destroyed, and stays so; but it is not locked
        return None
    except SessionError as error:
        return repr(error)
    return None


async def disturbed(
    server: Server, operation: Operation, ways: Iterable[Cut], *, for_good: bool = False, most: int = 15
) -> list[str]:
    """Disturb each exchange of an operation in each of these ways, or some of them; return what was wrong."""
    await exchanges_of(server, operation)  # the first time, the server may have to learn something
    count = await exchanges_of(server, operation)
    faults = [Fault(where, number, for_good) for number in range(1, count + 1) for where in ways]
    if not ALL and len(faults) > most:
        faults = dice(count, for_good).sample(faults, most)
    limit = asyncio.Semaphore(_AT_ONCE)
    found = await asyncio.gather(*(_one(server, operation, fault, limit) for fault in faults))
    return [each for some in found for each in some]


async def exchanges_of(server: Server, operation: Operation) -> int:
    """Run an operation undisturbed; return how many exchanges it makes."""
    async with Trial(server, operation) as trial:
        before = trial.proxy.exchanges
        count = 0

        async def run(work: Awaitable[object]) -> None:
            nonlocal count
            await work
            count = trial.proxy.exchanges - before

        wrong = [each async for each in trial.run(run)]
        assert (wrong, trial.outcome) == ([], "done")
    return count


async def _one(server: Server, operation: Operation, fault: Fault, limit: asyncio.Semaphore) -> list[str]:
    async def run(work: Awaitable[object]) -> None:
        await work

    async with limit, asyncio.timeout(120), Trial(server, operation, patience=fault.patience) as trial:
        trial.proxy.cut(fault.where, fault.number, for_good=fault.for_good)
        found = [each async for each in trial.run(run)]
        if not trial.proxy.cuts:
            found.append("nothing was cut")
        return [f"{fault} -> {trial.outcome}: {each}" for each in found]
