"""Subprocesses in a role of `benchmarks.worker`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

_LONGEST_LINE = 16 * 1024 * 1024


class Worker:
    """A subprocess that does one thing when it is told to, and then ends."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ready(self) -> None:
        """Wait until it can start."""
        await self._line()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def result(self) -> Any:
        """Wait for what it returns."""
        return json.loads(await self._line())

    def kill(self) -> None:
        self._process.kill()

    async def ended(self) -> None:
        await self._process.wait()

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {await self._process.wait()}")
        return line


@asynccontextmanager
async def worker(role: str, **arguments: object) -> AsyncIterator[Worker]:
    """Start a subprocess, and kill it at the end of the block if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.worker", role, json.dumps(arguments),
        cwd=Path(__file__).parents[1], limit=_LONGEST_LINE, start_new_session=True,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Worker(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def together(*workers: Worker) -> list[Any]:
    """Start workers at the same time; return their results."""
    for each in workers:
        await each.ready()
    for each in workers:
        each.go()
    return [await each.result() for each in workers]
