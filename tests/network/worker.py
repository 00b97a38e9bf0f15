"""What the client processes do; each role is started with a URL and a space, and talks over its pipes.

A line on standard output tells what has happened, a line on standard input what to do next.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from asyncsess import CommitUnknownError, LockLostError, SessionStore, StoreError
from tests.network.recording import record
from tests.network.servers import store_at
from tests.processes.worker import say, told

ROLES: dict[str, Callable[..., Awaitable[None]]] = {}


def role(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    ROLES[function.__name__] = function
    return function


@role
async def hold(store: SessionStore, session_id: str, lease: str) -> None:
    """Hold the session for a lease, having changed it and committed once; commit again when told to."""
    try:
        async with store.open(session_id, lease=float(lease)) as session:
            session["by"] = "the late one"
            await session.save()
            session["by"] = "the late one, again"
            say("holding")
            await told()
    except LockLostError:
        say("lost")
    except CommitUnknownError:
        say("unknown")
    else:
        say("stored")


@role
async def tell_time(store: SessionStore, session_id: str) -> None:
    """Tell the wall clock of this process, then what it knows of the session, each time it is told to."""
    while True:
        async with store.open(session_id, readonly=True, touch=False) as session:
            assert session.expires_at is not None
            say(time.time(), store.clock(), session.expires_at.timestamp())
        await told()
        say("swept", await store.delete_expired())
        await told()
        async with store.open(session_id, lease=1000) as session:
            session["by"] = "the other"
        say("changed")
        await told()


@role
async def clients(store: SessionStore, name: str, tasks: str, directory: str, *sessions: str) -> None:
    """Be some clients, which record what they do, until told to stop."""
    is_over = False
    async with asyncio.TaskGroup() as group:
        for task in range(int(tasks)):
            client = f"{name}.{task}"
            group.create_task(record(store, [*sessions], client, Path(directory) / client, lambda: not is_over))
        await told()
        is_over = True


async def entered(url: str, space: str) -> SessionStore:
    """Return a store that was entered, at the latest by the tenth try: the network may fail meanwhile."""
    for _ in range(9):
        with suppress(StoreError):
            return await store_at(url, space, lease=3.0).__aenter__()
    return await store_at(url, space, lease=3.0).__aenter__()


async def main(name: str, url: str, space: str, *arguments: str) -> None:
    store = await entered(url, space)
    try:
        await ROLES[name](store, *arguments)
    finally:
        await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
