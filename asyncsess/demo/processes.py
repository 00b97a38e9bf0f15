"""The demo's server processes: started, awaited until they answer, and always ended."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

_START_TIMEOUT: Final = 30.0
_END_TIMEOUT: Final = 5.0


class ServerError(Exception):
    """A server process did not get ready."""


@asynccontextmanager
async def server_processes(count: int, directory: Path) -> AsyncGenerator[list[str], None]:
    """Run servers on one directory for the block of an ``async with``; yield their URLs.

    Raises:
        ServerError: One of them did not get ready.
    """
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(_process(directory)) for _ in range(count)]
        yield [await _address(process) for process in processes]


@asynccontextmanager
async def _process(directory: Path) -> AsyncGenerator[Process, None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncsess.demo.server", str(directory)),
        stdin=PIPE,  # it ends when this does, even if nobody is left to end it
        stdout=PIPE,
        start_new_session=True,  # Ctrl-C is for the demo, which then ends its servers
    )
    try:
        yield process
    finally:
        await _end(process)


async def _address(process: Process) -> str:
    """Return the URL that a server prints once it listens."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            line = await process.stdout.readline()
    except TimeoutError:
        raise ServerError(f"A server was not ready within {_START_TIMEOUT:g} s.") from None
    if not line:
        code = await process.wait()
        raise ServerError(f"A server ended with exit code {code} before it was ready; its own words stand above.")
    return line.decode().strip()


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        process.terminate()
    try:
        async with asyncio.timeout(_END_TIMEOUT):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
