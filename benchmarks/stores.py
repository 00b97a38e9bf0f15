"""The stores: what each operation costs, beside bare commands; hand-overs, crowds, many sessions, memory."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from asyncsess import SessionStore, increment, open_store
from benchmarks.bare import Bare, Usage
from benchmarks.contestants import SESSION
from benchmarks.figures import Figure, micro, milli, number
from benchmarks.places import PLACES, Place
from benchmarks.population import session_id_of
from benchmarks.processes import hand_overs
from benchmarks.rounds import Timing, Turn, of_coroutine, race
from benchmarks.scale import Scale
from benchmarks.workers import together, worker
from tests.proxy import Proxy

_PROCESSES, _TASKS = 2, 50
_VISITED, _VISITORS = 1_000, 32
_COUNTED = 10

READ, CHANGE, APPLY, EDIT = "open(readonly=True)", "open, change, commit", "apply(increment)", "edit"
CREATE, DESTROY = "create", "destroy"

Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an operation of a store costs, or a bare one.

    Attributes:
        store: Which store.
        operation: What is done.
        is_bare: Whether that is done without the store.
        round_trips: How often the server is asked for it; None if there is none.
        timing: What it takes.
    """

    store: str
    operation: str
    is_bare: bool
    round_trips: float | None
    timing: Timing


@dataclass(slots=True)
class Stores:
    """How all stores did.

    Attributes:
        costs: Of each operation of each.
        figures: What is to be reached.
        missing: Which could not be measured, and the command that installs it.
    """

    costs: list[Cost] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


async def measure(scale: Scale, directory: Path, say: Callable[[str], object]) -> Stores:
    """Measure one store after another, each on a server of its own."""
    stores = Stores()
    for scheme, place in PLACES.items():
        with ExitStack() as stack:
            at = directory / scheme
            at.mkdir(mode=0o700)
            try:
                url = stack.enter_context(place.run(at))
                name = type(open_store(url)).__name__ + (f" on {place.title}" if place.title else "")
            except (ImportError, FileNotFoundError):
                stores.missing[f"{scheme}:"] = f"not installed: {place.install}"
                continue
            say(f"{name}: each operation")
            costs = await _costs(scale, name, place, url)
            stores.costs += costs
            stores.figures += _comparisons(name, place, costs)
            say(f"{name}: two processes")
            stores.figures.append(await _hand_over(scale, name, place, url))
            stores.figures += await _crowd(scale, name, url)
            say(f"{name}: {_VISITED:,} sessions")
            stores.figures += await _visits(scale, name, place, url)
            stores.figures.append(await _memory(scale, name, place, url))
    return stores


# Each operation.


async def _costs(scale: Scale, name: str, place: Place, url: str) -> list[Cost]:
    async with open_store(url, sweep_interval=None) as store, place.bare(url) as bare:
        operations, commands = await _operations(store), await _commands(bare)
        turns = {what: of_coroutine(operation) for what, operation in operations.items()}
        turns[DESTROY] = _destroying(store)
        turns |= {what: of_coroutine(command) for what, command in commands.items()}
        gc.freeze()
        took = await race(turns, scale.rounds, scale.turn)
    trips = await _round_trips(place, url)
    return [Cost(name, what, what in commands, trips.get(what), timing) for what, timing in took.items()]


async def _operations(store: SessionStore) -> dict[str, Operation]:
    """Return what is done with a session, save for its end."""
    session_id = await store.create(SESSION)

    async def read() -> None:
        async with store.open(session_id, readonly=True) as session:
            session["hits"]

    async def change() -> None:
        async with store.open(session_id) as session:
            session["hits"] += 1

    async def edit() -> None:
        async with store.edit(session_id) as session:
            session["hits"] += 1

    return {
        READ: read,
        CHANGE: change,
        APPLY: lambda: store.apply(session_id, increment("hits")),
        EDIT: edit,
        CREATE: lambda: store.create(SESSION),
    }


async def _commands(bare: Bare) -> dict[str, Operation]:
    """Return the bare commands, for one name."""
    await bare.put("session")
    different = dict((bare.reading, bare.changing, bare.locking))
    return {what: lambda call=call: call("session") for what, call in different.items()}


def _destroying(store: SessionStore) -> Turn:
    async def turn(count: int) -> float:
        session_ids = [await store.create(SESSION) for _ in range(count)]
        started = time.perf_counter()
        for session_id in session_ids:
            await store.destroy(session_id)
        return time.perf_counter() - started

    return turn


async def _round_trips(place: Place, url: str) -> dict[str, float]:
    """Count the exchanges with the server that each operation makes, in between."""
    where = urlsplit(url)
    if where.hostname is None or where.port is None:
        return {}
    counted: dict[str, float] = {}
    async with Proxy(where.hostname, where.port) as proxy:
        user, at, _ = where.netloc.rpartition("@")
        through = where._replace(netloc=f"{user}{at}{where.hostname}:{proxy.port}").geturl()
        async with open_store(through, sweep_interval=None) as store, place.bare(through) as bare:
            operations = await _operations(store) | await _commands(bare)
            session_ids = [await store.create(SESSION) for _ in range(_COUNTED + 1)]
            operations[DESTROY] = lambda: store.destroy(session_ids.pop())
            for what, operation in operations.items():
                await operation()  # which may have to connect first
                before = proxy.exchanges
                for _ in range(_COUNTED):
                    await operation()
                counted[what] = (proxy.exchanges - before) / _COUNTED
    return counted


def _comparisons(name: str, place: Place, costs: list[Cost]) -> list[Figure]:
    """Compare reading and changing with the bare commands that do the same."""
    by_name = {cost.operation: cost for cost in costs}
    bare = [cost for cost in costs if cost.is_bare]
    pairs = ((READ, bare[0], place.snapshot), (CHANGE, bare[-1], place.exclusive))
    return [
        Figure(
            f"{name}: {what}: against {theirs.operation}",
            by_name[what].timing.times(theirs.timing),
            "times as long",
            at_most=goal,
            detail=f"{micro(by_name[what].timing.median)} against {micro(theirs.timing.median)}, "
            f"best {micro(by_name[what].timing.best)} against {micro(theirs.timing.best)}",
        )
        for what, theirs, goal in pairs
    ]


# Several processes.


async def _hand_over(scale: Scale, name: str, place: Place, url: str) -> Figure:
    async with open_store(url, sweep_interval=None) as store:
        session_id = await store.create(SESSION)
    ask = {"url": url, "session_id": session_id, "count": scale.swaps}
    async with worker("swap", **ask) as one, worker("swap", **ask) as other:
        took = sorted(hand_overs(*await together(one, other)))
    return Figure(
        f"{name}: hand-over between two processes, p50",
        median(took) * 1e3,
        "ms",
        at_most=place.hand_over,
        detail=f"{len(took)} hand-overs, p95 {milli(took[len(took) * 95 // 100])}",
    )


async def _crowd(scale: Scale, name: str, url: str) -> list[Figure]:
    """Let all clients change one session as fast as they can."""
    async with open_store(url, sweep_interval=None) as store, AsyncExitStack() as stack:
        session_id = await store.create(SESSION)
        ask = {"url": url, "session_id": session_id, "tasks": _TASKS, "seconds": scale.crowd}
        workers = [await stack.enter_async_context(worker("crowd", **ask)) for _ in range(_PROCESSES)]
        results = await together(*workers)
        async with store.open(session_id, readonly=True) as session:
            counted = session["hits"] - SESSION["hits"]
    commits = sum(result["commits"] for result in results)
    longest, middle = max(result["longest"] for result in results), median(result["median"] for result in results)
    shares = " and ".join(f"{100 * result['commits'] / commits:.0f} %" for result in results)
    what = f"{name}: {_PROCESSES * _TASKS} clients in {_PROCESSES} processes, one session"
    return [
        Figure(f"{what}: updates lost", commits - counted, "", at_most=0,
               detail=f"{commits:,} commits, {commits / scale.crowd:,.0f} a second"),
        Figure(f"{what}: longest wait", longest / middle, "times the median", at_most=20,
               detail=f"{milli(longest)}, median {milli(middle)}; shares of the processes {shares}"),
    ]  # fmt: skip


async def _visits(scale: Scale, name: str, place: Place, url: str) -> list[Figure]:
    """Let clients change many sessions, each time another one; in turns with the bare commands."""
    async with open_store(url, sweep_interval=None) as store, place.bare(url) as bare:
        for number_ in range(_VISITED):
            async with store.open(session_id_of(number_), create=True) as session:
                session.update(SESSION)
            await bare.put(session_id_of(number_))
    ways = {"open": CHANGE, "changing": bare.changing[0], "locking": bare.locking[0]}
    if bare.locking == bare.changing:
        del ways["locking"]
    rates: dict[str, list[float]] = {way: [] for way in ways}
    worked: list[float] = []
    for _ in range(scale.visit_rounds):
        for way, of_these in rates.items():
            ask = {"url": url, "sessions": _VISITED, "tasks": _VISITORS, "seconds": scale.visits, "way": way}
            before = await place.usage(url)
            async with worker("visit", **ask) as one, worker("visit", **ask) as other:
                changes = sum(await together(one, other))
            of_these.append(changes / scale.visits)
            after = await place.usage(url)
            if way == "open" and before.worked is not None and after.worked is not None:
                worked.append((after.worked - before.worked) / changes)
    what = f"{name}: {_PROCESSES * _VISITORS} clients in {_PROCESSES} processes, {_VISITED:,} sessions"

    def against(way: str) -> tuple[str, float, str]:
        """Return what is compared, how many times as often the bare calls were made, and how often both."""
        times = median(theirs / ours for ours, theirs in zip(rates["open"], rates[way], strict=True))
        detail = f"{median(rates['open']):,.0f} a second against {median(rates[way]):,.0f}"
        return f"{what}: {CHANGE}: against {ways[way]}", times, detail

    title, times, detail = against("changing")
    found = [Figure(title, 100 / times, "%", at_least=place.rate, detail=detail)]
    if "locking" in ways:
        title, times, detail = against("locking")
        found.append(Figure(title, times, "times as long", at_most=place.exclusive, detail=detail))
    if worked:
        detail = f"at most {1 / median(worked):,.0f} a second, if clients are not what limits it"
        found.append(Figure(f"{what}: the server's work for each", median(worked) * 1e6, "µs", detail=detail))
    return found


async def _memory(scale: Scale, name: str, place: Place, url: str) -> Figure:
    async with open_store(url, sweep_interval=None) as store:
        await store.create(SESSION)
        before: Usage = await place.usage(url)
        for _ in range(scale.stored // _VISITORS):
            await asyncio.gather(*(store.create(SESSION) for _ in range(_VISITORS)))
        after: Usage = await place.usage(url)
    count = scale.stored // _VISITORS * _VISITORS
    each = (after.stored - before.stored) / count
    return Figure(
        f"{name}: memory of a session",
        each,
        "bytes",
        detail=f"{count:,} sessions that nobody holds, in {number(each * count)} bytes",
    )
