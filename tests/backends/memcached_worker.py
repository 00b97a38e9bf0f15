"""What other processes do with sessions in memcached: started with a role, a URL, a prefix and a session id.

A line on standard output tells what has happened, a line on standard input what to do next.
"""

from __future__ import annotations

import asyncio
import sys

from asyncsess import LockLostError, increment, rules
from asyncsess.stores import MemcachedStore


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def count(store: MemcachedStore, session_id: str) -> None:
    """Increment a number in every way, 25 times each."""
    for _ in range(25):
        async with store.open(session_id) as session:
            session["n"] += 1
        async with store.edit(session_id, resolve={"n": rules.add}) as session:
            session["n"] += 1
        async with store.synchronize(session_id, "n", resolve=rules.add) as session:
            session["n"] += 1
        await store.apply(session_id, increment("n"))


async def hold(store: MemcachedStore, session_id: str) -> None:
    """Hold the session until told to commit."""
    try:
        async with store.open(session_id, lease=1.0) as session:
            session["n"] = "late"
            say("holds")
            sys.stdin.readline()
    except LockLostError:
        say("lost")
    else:
        say("stored")


async def main(role: str, url: str, prefix: str, session_id: str) -> None:
    async with MemcachedStore(url, prefix=prefix, lock_timeout=60, sweep_interval=None) as store:
        await {"count": count, "hold": hold}[role](store, session_id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
