"""The power is cut at any moment (cases 38 and 39), on the model of a disk that `disk` is."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncsess import CommitUnknownError, FileStore

from .disk import Disk, restore
from .injection import Injection
from .operations import CHANGED, FRESH_ID, GROWN, ID, LARGE, OPERATIONS, SMALL, State, prepare, state_of, store_at
from .trials import Trials, met_with

AT_LEAST = 300  # images, over all operations
NAMES = [name for name in OPERATIONS if name not in ("read", "sweep")]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What is patched while the disk is watched."""
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _=None: FRESH_ID)
    with monkeypatch.context() as patches:
        yield patches


async def _wrong_states(disk: Disk, workspace: Path) -> list[tuple[State, list[State]]]:
    """Return what a store finds after a power cut and should not, with what it should find."""
    wrong, directory, states = [], workspace / "image", dict[Any, State]()
    for right, image in disk.power_cuts:
        content = frozenset(image.items())
        if content not in states:  # most differ in nothing
            restore(image, directory)
            states[content] = await state_of(directory / "sessions")
            shutil.rmtree(directory)
        if states[content] not in right:
            wrong.append((states[content], right))
    return wrong


@pytest.mark.parametrize("name", NAMES)
async def test_a_power_cut_undoes_nothing_that_was_acknowledged(
    name: str, workspace: Path, watched: pytest.MonkeyPatch
) -> None:
    operation = OPERATIONS[name]
    await prepare(workspace / "disk" / "sessions", operation)
    async with store_at(workspace / "disk" / "sessions", durability="power") as store:
        disk = Disk(workspace / "disk")
        disk.label = [operation.before, *operation.halfway, operation.after]
        disk.watch(watched)
        await operation.run(store)
        disk.label = [operation.after]
        disk.cut_power()
        watched.undo()

    assert await _wrong_states(disk, workspace) == []


async def test_a_power_cut_undoes_nothing_of_a_store_that_was_just_made(
    workspace: Path, watched: pytest.MonkeyPatch
) -> None:
    (workspace / "disk").mkdir()
    disk = Disk(workspace / "disk")
    nothing, stored = {ID: None, FRESH_ID: None}, {ID: None, FRESH_ID: SMALL}
    disk.label = [nothing, stored]
    disk.watch(watched)
    async with store_at(workspace / "disk" / "sessions", durability="power") as store:
        await store.create({"value": SMALL})
        disk.label = [stored]
        disk.cut_power()
    watched.undo()

    assert await _wrong_states(disk, workspace) == []


async def test_power_cuts_during_many_commits_leave_the_last_that_was_acknowledged(
    workspace: Path, watched: pytest.MonkeyPatch
) -> None:
    values = [CHANGED, GROWN, GROWN.upper(), LARGE, SMALL, "x" * 2000, "y" * 2000, CHANGED]
    await prepare(workspace / "disk" / "sessions", OPERATIONS["grow"])
    async with store_at(workspace / "disk" / "sessions", durability="power") as store:
        disk = Disk(workspace / "disk")
        disk.watch(watched)
        last: State = {ID: SMALL, FRESH_ID: None}
        for value in values:
            disk.label = [last, last | {ID: value}]
            async with store.open(ID) as session:
                session["value"] = value
                await session.save()
                last = last | {ID: value}
                disk.label = [last]
        disk.cut_power()
        watched.undo()

    assert len(disk.power_cuts) >= AT_LEAST
    assert await _wrong_states(disk, workspace) == []


async def test_a_power_cut_after_a_failed_sync_leaves_what_was_acknowledged_before(
    workspace: Path, watched: pytest.MonkeyPatch
) -> None:
    """The next commit must not overwrite the only version that is known to be on the disk."""
    values = LARGE, LARGE.upper(), GROWN  # several sectors, so that the write can be torn
    await prepare(workspace / "disk" / "sessions", OPERATIONS["shrink"])
    async with store_at(workspace / "disk" / "sessions", durability="power") as store:
        disk = Disk(workspace / "disk")
        disk.watch(watched)
        known, unknown, last = ({ID: value, FRESH_ID: None} for value in values)
        disk.label = [known, unknown]
        disk.is_failing = True
        with pytest.raises(CommitUnknownError):
            await _set(store, values[1])

        disk.label = [known, unknown, last]
        await _set(store, values[2])
        disk.label = [last]
        disk.cut_power()
        watched.undo()

    assert await _wrong_states(disk, workspace) == []


async def test_without_durability_a_power_cut_can_lose_a_session_but_not_falsify_one(
    workspace: Path, watched: pytest.MonkeyPatch
) -> None:
    values = [CHANGED, GROWN, GROWN.upper(), LARGE, SMALL, CHANGED]
    await prepare(workspace / "disk" / "sessions", OPERATIONS["grow"])
    async with store_at(workspace / "disk" / "sessions", durability="process") as store:
        disk = Disk(workspace / "disk")
        disk.watch(watched)
        disk.label = [{ID: value, FRESH_ID: None} for value in (SMALL, "damaged", None, *values)]
        for value in values:
            await _set(store, value)
        disk.cut_power()
        watched.undo()

    assert await _wrong_states(disk, workspace) == []


async def _set(store: FileStore, value: Any) -> None:
    async with store.open(ID) as session:
        session["value"] = value


# What the model is told are calls of Python; these are the system's, in their order.


def _calls(trace: list[str], *kinds: str) -> list[str]:
    return [line.partition("(")[0] for line in trace if line.startswith(kinds)]


@met_with("error=EIO")
async def test_a_commit_in_place_is_one_write_to_the_older_slot_and_one_sync(
    injection: Injection, workspace: Path
) -> None:
    outcome = await Trials(injection, "save twice", "power", workspace).run()

    holder, *slots = [re.search(r", (\d+), (\d+)\) = ", line) for line in outcome.trace if line.startswith("pwrite64")]
    assert holder is not None
    assert _calls(outcome.trace, "pwrite64", "fdatasync") == ["pwrite64"] + ["pwrite64", "fdatasync"] * 2
    assert [int(slot[2]) for slot in slots if slot] == [1024, 512]  # the first version lies in the first slot


@met_with("error=EIO")
@pytest.mark.parametrize("name", ["create", "grow", "shrink"])
async def test_a_new_file_is_synced_before_it_is_named_and_its_name_before_it_is_acknowledged(
    injection: Injection, name: str, workspace: Path
) -> None:
    outcome = await Trials(injection, name, "power", workspace).run()

    calls = _calls(outcome.trace, "pwrite64", "fdatasync", "renameat", "fsync")
    assert [call for call in calls if call != "fsync"][-3:] == ["pwrite64", "fdatasync", "renameat"]
    assert calls[-1] == "fsync"


@met_with("error=EIO")
async def test_without_durability_nothing_is_synced(injection: Injection, workspace: Path) -> None:
    outcome = await Trials(injection, "grow", "process", workspace).run()

    assert _calls(outcome.trace, "fdatasync", "fsync") == []
