"""Every system call of every operation fails, or is the last of a killed process (cases 20 and 30 to 33)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .injection import Injection
from .operations import CHANGED, GROWN, OPERATIONS, state_of, store_at
from .trials import Trials, met_with

IS_COMPLETE = bool(os.environ.get("ASYNCSESS_ALL_FAULTS"))
ALL_ERRORS = ["EIO", "ENOSPC", "EDQUOT", "EROFS", "EACCES", "EMFILE", "ENFILE", "ENOLCK", "EINTR", "ESTALE"]
ERRORS = [f"error={name}" for name in (ALL_ERRORS if IS_COMPLETE else ["EIO"])]
DURABILITIES = ["process", "power"] if IS_COMPLETE else ["power"]  # which makes all calls of the other, and more
CHANGE_NOTHING = ["newfstatat", "pread64", "fdatasync", "fsync"]
BRIEF = [name for name in OPERATIONS if name != "sweep"]


@met_with(*ERRORS)
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("name", BRIEF)
async def test_a_system_call_that_fails_is_a_typed_error_and_nothing_is_lost(
    injection: Injection, name: str, durability: str, workspace: Path
) -> None:
    assert await Trials(injection, name, durability, workspace).complaints() == []


@met_with(*(error for error in ERRORS if error != "error=EINTR"), more="persistent")
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("name", BRIEF if IS_COMPLETE else ["adopt and leave", "change in place", "regenerate"])
async def test_system_calls_that_go_on_failing_are_a_typed_error_and_nothing_is_lost(
    injection: Injection, name: str, durability: str, workspace: Path
) -> None:
    assert await Trials(injection, name, durability, workspace).complaints() == []


@met_with("signal=KILL")
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("name", BRIEF)
async def test_a_process_killed_at_a_system_call_leaves_the_old_value_or_the_new_and_no_lock(
    injection: Injection, name: str, durability: str, workspace: Path
) -> None:
    trials = Trials(injection, name, durability, workspace)

    assert await trials.complaints(passed_over=() if IS_COMPLETE else CHANGE_NOTHING) == []


@met_with("error=EIO", "signal=KILL", more="sweep")
async def test_a_sweep_that_fails_or_is_killed_deletes_nothing_that_lives(
    injection: Injection, workspace: Path
) -> None:
    trials = Trials(injection, "sweep", "process", workspace)

    assert await trials.complaints(step=1 if IS_COMPLETE else 101) == []


@met_with("error=EINTR")
async def test_a_system_call_interrupted_by_a_signal_is_made_again(injection: Injection, workspace: Path) -> None:
    trials = Trials(injection, "change in place", "power", workspace)

    outcomes = [await trials.run(call, 1) for call in ("openat", "flock", "pwrite64", "fdatasync")]

    assert [outcome.kind for outcome in outcomes] == ["done"] * 4


@met_with("error=EIO")
async def test_after_a_failed_fdatasync_nothing_is_tried_again_on_that_descriptor(
    injection: Injection, workspace: Path
) -> None:
    outcome = await Trials(injection, "save twice", "power", workspace).run("fdatasync", 1)

    descriptor = outcome.met().partition("(")[2].partition(")")[0]
    after = outcome.trace[outcome.trace.index(outcome.met()) + 1 :]
    assert outcome.kind == "CommitUnknownError"
    assert [line for line in after if line.startswith("fdatasync") and descriptor in line] == []


@met_with("error=EIO")
@pytest.mark.parametrize("name", ["create", "grow"])
async def test_when_the_directory_can_not_be_synced_the_commit_is_unknown(
    injection: Injection, name: str, workspace: Path
) -> None:
    trials = Trials(injection, name, "power", workspace)
    syncs = (await trials.run()).calls()["fsync"]

    outcome = await trials.run("fsync", syncs)

    assert outcome.kind == "CommitUnknownError"


@met_with("error=EIO")
async def test_when_a_tombstone_can_not_be_synced_the_end_is_unknown(injection: Injection, workspace: Path) -> None:
    outcome = await Trials(injection, "destroy", "power", workspace).run("fdatasync", 1)

    assert outcome.kind == "CommitUnknownError"


@met_with("error=EIO")
@pytest.mark.parametrize("name", ["create", "grow"])
async def test_a_new_file_that_can_not_be_synced_gets_no_name(injection: Injection, name: str, workspace: Path) -> None:
    outcome = await Trials(injection, name, "power", workspace).run("fdatasync", 1)

    assert outcome.kind == "StoreError"
    assert outcome.calls()["renameat"] == 0


@met_with("retval=0")
async def test_a_write_that_takes_nothing_is_made_again(injection: Injection, workspace: Path) -> None:
    outcome = await Trials(injection, "grow", "process", workspace).run("pwrite64", 1)

    assert outcome.kind == "done"
    assert await state_of(workspace / "sessions") == OPERATIONS["grow"].after


@pytest.mark.parametrize("value", [CHANGED, GROWN], ids=["in place", "in a new file"])
@pytest.mark.parametrize("at_most", [1, 100, 4096])
async def test_writes_that_take_only_a_part_are_completed(
    at_most: int, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:at_most], offset))

    async with store_at(tmp_path) as store:
        session_id = await store.create({"value": "first"})
        async with store.open(session_id) as session:
            session["value"] = value
        async with store.open(session_id, readonly=True) as session:
            assert session["value"] == value
