"""Operations under strace, which makes one system call fail, or kills the program at it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import asyncsess

from .server import NOTHING, NOWHERE


@dataclass(frozen=True)
class Outcome:
    """What came of an operation.

    Attributes:
        kind: "done", "killed" or the name of the exception.
        answer: More about the exception.
        check: What the program found afterwards.
        trace: The system calls of the operation, one a line.
    """

    kind: str
    answer: dict[str, Any]
    check: dict[str, Any]
    trace: list[str]

    def calls(self) -> Counter[str]:
        """Return how many system calls of each kind the operation made."""
        return Counter(line.partition("(")[0] for line in self.trace)

    def met(self) -> str:
        """Return the call that met the fault."""
        if self.kind == "killed":
            return self.trace[-1]
        return next((line for line in self.trace if "INJECTED" in line), "")


class Injection:
    """A program, and strace at it.

    Args:
        directory: For the traces.
        fault: As strace's ``inject`` knows it, such as ``error=EIO``.
        is_persistent: Whether every call from the chosen one on meets the fault.
        limit: More calls of one kind than any operation makes.
    """

    def __init__(self, directory: Path, fault: str, *, is_persistent: bool = False, limit: int = 40) -> None:
        self._traces = directory / "trace"
        self._fault = fault
        self._is_persistent = is_persistent
        self._limit = limit

    def __enter__(self) -> Self:
        package = Path(__file__).parent
        self._program = subprocess.Popen(
            [sys.executable, "-m", f"{package.name}.server"],
            cwd=package.parent,
            # A new arena of malloc would open a file, to count the processors.
            env=os.environ | {"MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(Path(asyncsess.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pid = json.loads(self._answer())["pid"]
        when = f"when={self._limit}{'+' if self._is_persistent else ''}"
        injections = [f"--inject={call}:{self._fault}:{when}" for call in NOTHING]
        command = ["strace", "-ff", "-y", "-o", os.fspath(self._traces), f"--trace={','.join(NOTHING)}", *injections]
        self._strace = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        assert "attached" in self._strace.stderr.readline()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait()
        self._strace.communicate()
        assert self._program.stdout is not None
        self._program.stdout.close()

    def run(
        self, operation: str, directory: Path, durability: str, system_call: str = "close", number: int = 0
    ) -> Outcome:
        """Do an operation in a prepared directory, and let its N-th call of a kind meet the fault; 0 for none."""
        order = {
            "operation": operation,
            "directory": os.fspath(directory),
            "durability": durability,
            "system_call": system_call,
            "calls_before": self._limit - number if number else 1,
            "is_persistent": self._is_persistent,
        }
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(order) + "\n")
        self._program.stdin.flush()
        told = [json.loads(line) for line in iter(self._answer, "")]
        trace = self._trace_of(told[0]["thread"])
        if len(told) == 1:
            return Outcome("killed", {}, {}, trace)
        return Outcome(told[1]["outcome"], told[1], told[2] if len(told) > 2 else {}, trace)

    def _trace_of(self, thread: int) -> list[str]:
        """Return the calls between those that come to nothing."""
        path = self._traces.with_name(f"trace.{thread}")
        lines = _complete(path)
        path.unlink()
        is_nothing = [bool(re.search(rf"\b{NOWHERE}\b", line)) for line in lines]
        begin = is_nothing.index(True)
        begin += is_nothing[begin:].index(False)
        end = is_nothing.index(True, begin) if True in is_nothing[begin:] else len(lines)
        return [line for line in lines[begin:end] if line.partition("(")[0] in NOTHING]

    def _answer(self) -> str:
        assert self._program.stdout is not None
        return self._program.stdout.readline().rstrip("\n")


def _complete(trace: Path) -> list[str]:
    """Return the lines of a trace once strace has told the end of the thread; the program may know of it before."""
    until = time.monotonic() + 30
    while True:
        lines = trace.read_text().splitlines()
        if lines and lines[-1].startswith("+++"):
            return lines
        assert time.monotonic() < until, "strace does not tell of the end of a thread"
        time.sleep(0.001)
