"""What the test processes do; each role is started with a directory and a session id, and talks over its pipes.

A line on standard output tells what has happened, a line on standard input what to do next.
"""

import asyncio
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable

from asyncsess import FileStore, LockLostError, increment, rules

ROLES: dict[str, Callable[..., Awaitable[None]]] = {}


def role(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    ROLES[function.__name__] = function
    return function


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # one write: never half a line, also when killed


async def told() -> None:
    """Wait for a line, on the loop: a thread that waits would outlive a signal."""
    loop = asyncio.get_running_loop()
    is_there = asyncio.Event()
    loop.add_reader(0, is_there.set)
    await is_there.wait()
    loop.remove_reader(0)
    os.read(0, 4096)


async def increment_exclusively(store: FileStore, session_id: str, key: str) -> int:
    async with store.open(session_id) as session:
        number = session[key] = session.get(key, 0) + 1
    return number


async def increment_and_release(store: FileStore, session_id: str, key: str) -> int:
    async with store.open(session_id) as session:
        number = session[key] = session.get(key, 0) + 1
        await session.release()
        await asyncio.sleep(0)
    return number


async def increment_in_an_edit(store: FileStore, session_id: str, key: str) -> int:
    async with store.edit(session_id, resolve={key: rules.add}) as session:
        number = session[key] = session.get(key, 0) + 1
    return number


async def increment_by_an_operation(store: FileStore, session_id: str, key: str) -> int:
    (number,) = await store.apply(session_id, increment(key))
    return number


async def increment_a_variable(store: FileStore, session_id: str, key: str) -> int:
    async with store.synchronize(session_id, key, resolve=rules.add) as session:
        number = session[key] = session.get(key, 0) + 1
    return number


WAYS = {"open": increment_exclusively, "release": increment_and_release, "edit": increment_in_an_edit,
        "apply": increment_by_an_operation, "synchronize": increment_a_variable}  # fmt: skip


@role
async def count(store: FileStore, session_id: str, tasks: str, times: str, *ways: str) -> None:
    """Increment a number so many times in each of so many tasks, in one way after the other."""

    async def increment(way: str) -> None:
        for _ in range(int(times)):
            await WAYS[way](store, session_id, "n")

    async with asyncio.TaskGroup() as group:
        for task in range(int(tasks)):
            group.create_task(increment(ways[task % len(ways)]))


@role
async def compete(store: FileStore, session_id: str, name: str, tasks: str) -> None:
    """Increment one's own number until told to stop."""
    is_over = False

    async def increment() -> None:
        while not is_over:
            async with store.open(session_id) as session:
                session[name] = session.get(name, 0) + 1
            await asyncio.sleep(0)  # opening what nobody else has does not let the loop read its word

    async with asyncio.TaskGroup() as group:
        for _ in range(int(tasks)):
            group.create_task(increment())
        await told()
        is_over = True


@role
async def acknowledge(store: FileStore, session_id: str, name: str, tasks: str, *ways: str) -> None:
    """Increment a number of each task's own, and say so each time, until killed."""

    async def increment(task: int) -> None:
        while True:
            number = await WAYS[ways[task % len(ways)]](store, session_id, f"{name}.{task}")
            say(f"{name}.{task}", number)
            if not task:  # grows and shrinks the file
                async with store.open(session_id) as session:
                    session["fill"] = "x" * (number * 37 % 3000)

    async with asyncio.TaskGroup() as group:
        for task in range(int(tasks)):
            group.create_task(increment(task))


@role
async def publish(store: FileStore, session_id: str, board: str, place: str, size: str) -> None:
    """Count up in a session of a given size, and note each number on a board in shared memory once it is committed."""
    with open(board, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        while True:
            async with store.open(session_id) as session:
                session["n"] += 1
                number = session["n"]
                session["fill"] = f"{number:08d}" * (int(size) // 8)
            struct.pack_into("<Q", memory, 8 * int(place), number)
            await asyncio.sleep(0)


@role
async def hold(store: FileStore, session_id: str) -> None:
    """Hold the session until told to go on, having changed it."""
    async with store.open(session_id) as session:
        session["by"] = os.getpid()
        say("holding")
        await told()
    say("done")


@role
async def hold_for_a_lease(store: FileStore, session_id: str, lease: str, *variables: str) -> None:
    """Hold the session, or variables of it, having committed once; when told to, commit again, and say what became."""
    length, resolve = float(lease), rules.ours
    locked = (
        (lambda: store.synchronize(session_id, *variables, lease=length, resolve=resolve))
        if variables
        else (lambda: store.open(session_id, lease=length))
    )
    try:
        async with locked() as session:
            session["by"] = "the late one"
            await session.save()
            session["by"] = "the late one, again"
            say("holding")
            await told()
    except LockLostError:
        say("lost")
    else:
        say("stored")


@role
async def wait(store: FileStore, session_id: str) -> None:
    """Wait for the session, and say when it came."""
    say("waiting")
    async with store.open(session_id) as session:
        session["by"] = os.getpid()
    say("done")


@role
async def hold_with_child(store: FileStore, session_id: str) -> None:
    """Hold the session with a child process that knows nothing of it."""
    async with store.open(session_id):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        say("holding", child.pid)
        await told()


@role
async def hold_and_fork(store: FileStore, session_id: str) -> None:
    """Hold the session in this process, with a forked child that outlives it."""
    async with store.open(session_id):
        child = os.fork()
        if not child:
            os.read(0, 1)  # until the test closes the pipe
            os._exit(0)
        say("holding", child)
        await asyncio.sleep(3600)


async def main(name: str, directory: str, session_id: str, *arguments: str) -> None:
    async with FileStore(directory) as store:
        await ROLES[name](store, session_id, *arguments)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
