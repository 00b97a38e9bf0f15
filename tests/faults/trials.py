"""Trials of an operation under strace: one call meets a fault, then everything is looked at that could be wrong."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from .injection import Injection, Outcome
from .operations import ID, OPERATIONS, Operation, files_in, litter_in, locked_in, prepare, state_of


def met_with(*faults: str, more: str = "") -> pytest.MarkDecorator:
    """Run the test with each of these faults.

    Args:
        faults: As strace knows them.
        more: "persistent" for faults that do not go away, "sweep" for operations with very many calls.
    """
    return pytest.mark.parametrize("injection", [(fault, more) for fault in faults], indirect=True, ids=faults)


class Trials:
    """An operation, again and again in a directory in which it can begin."""

    def __init__(self, injection: Injection, name: str, durability: str, directory: Path) -> None:
        self._injection = injection
        self._name = name
        self._durability = durability
        self._template = directory / "template"
        self.directory = directory / "sessions"

    async def run(self, system_call: str = "close", number: int = 0) -> Outcome:
        """Let the N-th system call of a kind meet the fault; 0 for none."""
        if not self._template.exists():
            await prepare(self._template, OPERATIONS[self._name])
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(self._template, self.directory)
        return self._injection.run(self._name, self.directory, self._durability, system_call, number)

    async def complaints(self, step: int = 1, passed_over: Sequence[str] = ()) -> list[str]:
        """Let each system call meet the fault; return what is not as it should be.

        Args:
            step: Of many calls of a kind, take only each so-many-th.
            passed_over: Kinds of calls to leave out.
        """
        undisturbed = await self.run()
        assert undisturbed.kind == "done"
        complaints = []
        for system_call, count in undisturbed.calls().items():
            numbers = {*range(1, min(count, 6) + 1), *range(1, count + 1, step)}
            for number in sorted(numbers) if system_call not in passed_over else ():
                outcome = await self.run(system_call, number)
                assert outcome.met().startswith(system_call), f"there was no {system_call} number {number}"
                found = _complaints(outcome, OPERATIONS[self._name], self.directory)
                complaints += [f"{outcome.met()} -> {outcome.kind}: {complaint}" async for complaint in found]
        return complaints


async def _complaints(outcome: Outcome, operation: Operation, directory: Path) -> AsyncIterator[str]:
    state = await state_of(directory)
    match outcome.kind:
        case "done":
            right = [operation.after]
        case "killed" | "CommitUnknownError":
            right = [operation.before, *operation.halfway, operation.after]
        case _:
            right = [operation.before, *operation.halfway]
    if state not in right:
        yield f"stored is now {state}"
    if outcome.answer.get("message"):
        has_cause = outcome.answer["has_cause"] or outcome.kind != "StoreError"
        if not outcome.answer["is_typed"] or not has_cause:
            yield f"the error is bare: {outcome.answer}"
        secrets = {ID, *(name.partition("/")[2] for name in files_in(directory))}
        if any(secret in outcome.answer["message"] for secret in secrets):
            yield f"the error betrays the session: {outcome.answer}"
    if outcome.check:
        if outcome.check["holding"] or outcome.check["is_usable"] is not True:
            yield f"the lock stayed with the process: {outcome.check}"
        if outcome.check["descriptors"] and not outcome.met().startswith("close"):  # strace keeps close from closing
            yield f"left open: {outcome.check['descriptors']}"
    for locked in await locked_in(directory):
        yield f"locked: {locked}"
    for litter in await litter_in(directory):
        yield f"litter: {litter}"
