"""Hands a session over between two stores, many times; run it where inotify has its limits reached.

Each store has its own queue, so the one waits for the file's lock as another process would.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from asyncsess import FileStore

ROUNDS = 20
_FOR_EVER = 60.0


async def _add(store: FileStore, session_id: str) -> None:
    async with store.open(session_id, timeout=_FOR_EVER) as session:
        session["count"] += 1


async def _hand_over(directory: Path) -> int:
    async with FileStore(directory) as one, FileStore(directory) as other:
        session_id = await one.create({"count": 0})
        for _ in range(ROUNDS):
            async with one.open(session_id) as session:
                waiter = asyncio.create_task(_add(other, session_id))
                while not (other.statistics().waiting or waiter.done()):
                    await asyncio.sleep(0)
                session["count"] += 1
            await waiter
        async with one.open(session_id, readonly=True) as session:
            return int(session["count"])


def _watches() -> int:
    """Return how many inotify instances this process has."""
    links = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return sum("inotify" in os.readlink(link) for link in links if link.is_symlink())


async def main() -> None:
    """Print how often the session was handed over, and how many inotify instances it took."""
    with tempfile.TemporaryDirectory() as directory:
        count = await _hand_over(Path(directory, "sessions"))
    sys.stdout.write(f"{count} {_watches()}")


if __name__ == "__main__":
    asyncio.run(main())
