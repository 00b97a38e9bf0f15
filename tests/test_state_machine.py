"""A store and a plain dict are driven side by side; after each step they hold the same."""

from __future__ import annotations

import asyncio
import copy
import tempfile
from collections.abc import Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asyncsess import FileStore, MemoryStore, MsgpackCodec, SessionNotFoundError, SessionStore
from asyncsess.backends.base import Record
from asyncsess.ids import key_of
from asyncsess.testing import FakeClock

T = TypeVar("T")
Change = Callable[[MutableMapping[str, Any]], None]

IDLE, LIFETIME, TOUCH, DEAD = 100.0, 300.0, 5.0, 60.0
codec = MsgpackCodec()


@dataclass
class Expected:
    """What a record holds, expired or not."""

    values: dict[str, Any]
    version: int
    created_at: float
    accessed_at: float


@dataclass
class Ended:
    """What is known of an id that leads to no record any more."""

    until: float
    successor: str = ""
    grace_ends: float = 0.0


def put(name: str, value: Any) -> Change:
    return lambda session: session.__setitem__(name, copy.deepcopy(value))


def drop(name: str) -> Change:
    return lambda session: session.pop(name, None)


def append(name: str, value: Any) -> Change:
    def change(session: MutableMapping[str, Any]) -> None:
        if type(session.setdefault(name, [])) is list:
            session[name].append(value)

    return change


def nest(name: str, value: Any) -> Change:
    return lambda session: session.setdefault("tree", {}).setdefault(name, {}).update({name: value})


def clear() -> Change:
    return lambda session: session.clear()


names = st.sampled_from(["a", "b", "list"])
values = st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["", "x", "y" * 700]) | st.just([])
change = (
    st.builds(put, names, values)
    | st.builds(drop, names)
    | st.builds(append, names, values)
    | st.builds(nest, names, values)
    | st.builds(clear)
)
changes = st.lists(change, max_size=3)


class Machine(RuleBasedStateMachine):
    """Rules that hold for any store."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock(1_700_000_000.0)
        self.records: dict[str, Expected] = {}
        self.ended: dict[str, Ended] = {}
        self.seen: set[str] = set()
        self.store: SessionStore

    def new_store(self) -> SessionStore:
        raise NotImplementedError  # by each kind of store below; hypothesis' metaclass leaves no room for an ABC

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    @initialize()
    def enter(self) -> None:
        self.store = self.new_store()
        self.run(self.store.__aenter__())

    def teardown(self) -> None:
        self.run(self.the_store_lists_what_the_dict_lists())
        self.run(self.store.aclose())
        self.runner.close()

    async def the_store_lists_what_the_dict_lists(self) -> None:
        keys = [key async for key in self.store.keys()]  # noqa: SIM118 - no mapping
        assert sorted(keys) == sorted(map(key_of, self.records))

    def is_live(self, session_id: str) -> bool:
        record = self.records.get(session_id)
        return record is not None and self.clock() < min(record.created_at + LIFETIME, record.accessed_at + IDLE)

    def follow(self, session_id: str) -> str:
        """Return the id that an id leads to."""
        while (ended := self.ended.get(session_id)) and self.clock() < ended.grace_ends:
            session_id = ended.successor
        return session_id

    def commit(self, session_id: str, after: dict[str, Any]) -> None:
        """Expect what a commit of these values does, if it is one."""
        now, record = self.clock(), self.records.get(session_id)
        if record is None:
            self.records[session_id] = Expected(after, 1, now, now)
        else:
            record.version += codec.encode(after) != codec.encode(record.values)
            record.values, record.accessed_at = after, now

    # Rules.

    @rule(target=sessions, first=changes)
    def create(self, first: list[Change]) -> str:
        expected: dict[str, Any] = {}
        for change in first:
            change(expected)
        session_id = self.run(self.store.create(copy.deepcopy(expected)))
        self.commit(session_id, expected)
        return session_id

    @rule(target=sessions, changes=changes)
    def start_without_an_id(self, changes: list[Change]) -> Any:
        async def start() -> str:
            async with self.store.open() as session:
                for change in changes:
                    change(session)
            return session.id

        expected: dict[str, Any] = {}
        for change in changes:
            change(expected)
        session_id = self.run(start())
        if self.run(self.store.backend.read(key_of(session_id))) is None:
            assert expected == {}
            return multiple()
        self.commit(session_id, expected)
        return session_id

    @rule(target=sessions, name=st.sampled_from(["job-1", "job-2"]), changes=changes)
    def adopt(self, name: str, changes: list[Change]) -> str:
        async def adopt() -> dict[str, Any]:
            async with self.store.open(given, create=True) as session:
                assert (session.id, dict(session)) == (name, before)
                for change in changes:
                    change(session)
                return copy.deepcopy(dict(session))

        given, name = name, self.follow(name)
        before: dict[str, Any] = {}
        if (ended := self.ended.get(name)) and self.clock() < ended.until:
            with pytest.raises(SessionNotFoundError):
                self.run(adopt())
            return given
        self.ended.pop(name, None)
        if not self.is_live(name):
            self.records.pop(name, None)
            if name != given:  # what an id leads to is not begun anew
                with pytest.raises(SessionNotFoundError):
                    self.run(adopt())
                return given
        if name in self.records:
            before = self.records[name].values
        after = self.run(adopt())
        if name in self.records or after or self.run(self.store.backend.read(key_of(name))):
            self.commit(name, after)
        return given

    @rule(
        session_id=sessions,
        rounds=st.lists(changes, min_size=1, max_size=3),
        end=st.sampled_from(["leave", "raise", "save and raise", "release", "rollback", "refresh"]),
    )
    def change(self, session_id: str, rounds: list[list[Change]], end: str) -> None:
        """Change and save several times, then end the block in some way."""

        async def work() -> None:
            async with self.store.open(given) as session:
                assert (session.id, dict(session)) == (session_id, self.records[session_id].values)
                for number, changes in enumerate(rounds):
                    for change in changes:
                        change(session)
                        change(expected)
                    if number < len(rounds) - 1 or end == "save and raise":
                        await session.save()
                        self.commit_if_changed(session_id, copy.deepcopy(expected))
                if end in ("raise", "save and raise"):
                    raise ZeroDivisionError
                if end in ("release", "rollback", "refresh"):
                    await getattr(session, end)()
                    if end != "release":
                        assert dict(session) == self.records[session_id].values
                if end in ("leave", "release"):
                    self.commit(session_id, expected)

        given, session_id = session_id, self.follow(session_id)
        if not self.is_live(session_id):
            with pytest.raises(SessionNotFoundError):
                self.run(work())
            self.records.pop(session_id, None)
            return
        expected = copy.deepcopy(self.records[session_id].values)
        try:
            self.run(work())
        except ZeroDivisionError:
            assert end in ("raise", "save and raise")
        if end == "refresh":
            self.records[session_id].accessed_at = self.clock()

    def commit_if_changed(self, session_id: str, after: dict[str, Any]) -> None:
        if codec.encode(after) != codec.encode(self.records[session_id].values):
            self.commit(session_id, after)

    @rule(session_id=sessions)
    def read(self, session_id: str) -> None:
        async def read() -> dict[str, Any]:
            async with self.store.open(given, readonly=True) as session:
                assert session.id == session_id
                return dict(session)

        given, session_id = session_id, self.follow(session_id)
        if self.is_live(session_id):
            record = self.records[session_id]
            assert self.run(read()) == record.values
            if self.clock() - record.accessed_at >= TOUCH:
                record.accessed_at = self.clock()
        else:
            with pytest.raises(SessionNotFoundError):
                self.run(read())

    @rule(session_id=sessions)
    def destroy(self, session_id: str) -> None:
        given, session_id = session_id, self.follow(session_id)
        is_live = self.is_live(session_id)
        assert self.run(self.store.destroy(given)) == is_live
        self.records.pop(session_id, None)
        if is_live:
            self.ended[session_id] = Ended(self.clock() + DEAD)

    @rule(session_id=sessions)
    def destroy_while_open(self, session_id: str) -> None:
        async def destroy() -> None:
            async with self.store.open(given) as session:
                await session.destroy()

        given, session_id = session_id, self.follow(session_id)
        if self.is_live(session_id):
            self.run(destroy())
            del self.records[session_id]
            self.ended[session_id] = Ended(self.clock() + DEAD)

    @rule(
        target=sessions,
        session_id=sessions,
        changes=changes,
        fails=st.booleans(),
        grace=st.sampled_from([0.0, 30.0, 150.0]),
    )
    def regenerate(self, session_id: str, changes: list[Change], fails: bool, grace: float) -> Any:
        new_id = ""

        async def regenerate() -> None:
            nonlocal new_id
            async with self.store.open(given) as session:
                for change in changes:
                    change(session)
                await session.regenerate_id(grace=grace)
                new_id = session.id
                if fails:
                    session["lost"] = True
                    raise ZeroDivisionError

        given, session_id = session_id, self.follow(session_id)
        if not self.is_live(session_id):
            return multiple()
        record = self.records.pop(session_id)
        for change in changes:
            change(record.values)
        try:
            self.run(regenerate())
        except ZeroDivisionError:
            assert fails
        self.records[new_id] = Expected(record.values, 1, record.created_at, self.clock())
        self.ended[session_id] = Ended(self.clock() + max(grace, IDLE), new_id, self.clock() + grace)
        return new_id

    @rule(by=st.sampled_from([1.0, 4.0, 60.0, 99.0, 100.0, 250.0]))
    def advance_the_clock(self, by: float) -> None:
        self.clock.advance(by)

    @rule()
    def sweep(self) -> None:
        expired = [session_id for session_id in self.records if not self.is_live(session_id)]
        assert self.run(self.store.delete_expired()) == len(expired)
        for session_id in expired:
            del self.records[session_id]

    @precondition(lambda self: self.records)
    @rule()
    def reopen_the_store(self) -> None:
        self.run(self.store.aclose())
        self.store = self.new_store()
        self.run(self.store.__aenter__())

    # What holds after each step.

    @invariant()
    def the_store_holds_what_the_dict_holds(self) -> None:
        async def find() -> dict[str, Expected]:
            found = {}
            for session_id in self.seen | self.records.keys():
                record = await self.store.backend.read(key_of(session_id))
                if isinstance(record, Record):
                    values = codec.decode(record.payload)
                    found[session_id] = Expected(values, record.version, record.created_at, record.accessed_at)
            return found

        if hasattr(self, "store"):
            self.seen.update(self.records)
            assert self.run(find()) == self.records

    @invariant()
    def nothing_is_held(self) -> None:
        if hasattr(self, "store"):
            now = self.store.statistics()
            assert (now.open, now.holding, now.waiting, now.corrupt) == (0, 0, 0, 0)


class MemoryMachine(Machine):
    def new_store(self) -> SessionStore:
        if hasattr(self, "store"):
            return self.store
        return MemoryStore(clock=self.clock, idle_timeout=IDLE, lifetime=LIFETIME, sweep_interval=None)


class FileMachine(Machine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()

    def new_store(self) -> SessionStore:
        return FileStore(
            self.directory.name, clock=self.clock, idle_timeout=IDLE, lifetime=LIFETIME, sweep_interval=None
        )

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


@pytest.mark.parametrize("machine", [MemoryMachine, FileMachine], ids=["memory", "file"])
def test_a_store_behaves_like_a_dict_with_expiry(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=20, deadline=None))
