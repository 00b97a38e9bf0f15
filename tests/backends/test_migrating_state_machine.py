"""A store whose sessions begin in the old backend, beside a dict; and a store that knows the old backend alone."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import rule, run_state_machine_as_test

from asyncsess import SessionStore
from asyncsess.backends.base import Backend, Record
from asyncsess.backends.file import FileBackend
from asyncsess.backends.memory import MemoryBackend
from asyncsess.backends.migrating import MigratingBackend
from asyncsess.ids import key_of
from tests.test_state_machine import IDLE, LIFETIME, Change, Machine, changes


class MigratingMachine(Machine):
    """Rules of the sessions that are in the old backend, besides those of any store."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.old, self.new = self.backends()
        self.before = self.store_on(self.old)

    def backends(self) -> tuple[Backend, Backend]:
        raise NotImplementedError  # by each pair below; hypothesis' metaclass leaves no room for an ABC

    def store_on(self, backend: Backend) -> SessionStore:
        return SessionStore(backend, clock=self.clock, idle_timeout=IDLE, lifetime=LIFETIME, sweep_interval=None)

    def new_store(self) -> SessionStore:
        return self.store_on(MigratingBackend(self.old, self.new))

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()

    @rule(target=Machine.sessions, first=changes)
    def create_in_the_old(self, first: list[Change]) -> str:
        expected: dict[str, Any] = {}
        for change in first:
            change(expected)
        session_id = self.run(self.before.create(copy.deepcopy(expected)))
        self.commit(session_id, expected)
        return session_id

    @rule(session_id=Machine.sessions, changes=changes)
    def change_in_the_old(self, session_id: str, changes: list[Change]) -> None:
        async def work() -> None:
            async with self.before.open(session_id) as session:
                assert dict(session) == expected
                for change in changes:
                    change(session)
                    change(expected)

        if self.is_live(session_id) and isinstance(self.run(self.old.read(key_of(session_id))), Record):
            expected = copy.deepcopy(self.records[session_id].values)
            self.run(work())
            self.commit(session_id, expected)


class MemoryMachine(MigratingMachine):
    def backends(self) -> tuple[Backend, Backend]:
        return MemoryBackend(), MemoryBackend()


class FileMachine(MigratingMachine):
    def backends(self) -> tuple[Backend, Backend]:
        directory = Path(self.directory.name)
        return FileBackend(directory / "old"), FileBackend(directory / "new")


@pytest.mark.parametrize("machine", [MemoryMachine, FileMachine], ids=["memory", "file"])
def test_a_store_that_migrates_behaves_like_a_dict_with_expiry(machine: type[MigratingMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=20, deadline=None))
