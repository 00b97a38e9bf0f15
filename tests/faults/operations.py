"""The operations that faults are injected into, each with what may be readable afterwards."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncsess import CommitUnknownError, CorruptSessionError, FileStore, Session, SessionError, SessionNotFoundError
from asyncsess.backends.base import Tombstone
from asyncsess.web import login

ID = "the-session"
OWNER = "ada"
STALE_ID = "the-expired-session"
FRESH_ID = "F" * 43  # what the server makes of every fresh id
SMALL, LARGE, CHANGED, GROWN = "small", "large" * 1000, "changed", "grown" * 1000
SESSION_FILE = re.compile("[0-9a-f]{2}/[0-9a-f]{62}")
State = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One thing that a program does to a store.

    Attributes:
        run: Does it.
        before: What each id leads to before; None for no session.
        after: What each id leads to once it has been acknowledged.
        halfway: What is right besides the two, if it was interrupted.
    """

    run: Callable[[FileStore], Awaitable[Any]]
    before: State
    after: State
    halfway: tuple[State, ...] = field(default=())


async def _create(store: FileStore) -> None:
    await store.create({"value": CHANGED})


async def _adopt(store: FileStore) -> None:
    async with store.open(FRESH_ID, create=True) as session:
        session["value"] = CHANGED


async def _adopt_and_leave(store: FileStore) -> None:
    async with store.open(FRESH_ID, create=True):
        pass


def _change(value: str) -> Callable[[FileStore], Awaitable[Any]]:
    async def change(store: FileStore) -> None:
        async with store.open(ID) as session:
            session["value"] = value

    return change


async def _leave_unchanged(store: FileStore) -> None:
    async with store.open(ID):
        pass


async def _read(store: FileStore) -> None:
    async with store.open(ID, readonly=True) as session:
        assert session["value"] == SMALL


async def _regenerate(store: FileStore) -> None:
    async with store.open(ID) as session:
        await session.regenerate_id()


async def _login(store: FileStore) -> None:
    async with store.open(ID) as session:
        await login(session, OWNER)


async def _destroy(store: FileStore) -> None:
    await store.destroy(ID)


async def _sweep(store: FileStore) -> None:
    await store.delete_expired()


async def _save_twice(store: FileStore) -> None:
    async with store.open(ID) as session:
        session["value"] = CHANGED
        with suppress(CommitUnknownError):
            await session.save()
        session["value"] = CHANGED.upper()
        await session.save()


_PREPARED = {ID: SMALL, FRESH_ID: None}
OPERATIONS = {
    "create": Operation(_create, _PREPARED, {ID: SMALL, FRESH_ID: CHANGED}),
    "adopt": Operation(_adopt, _PREPARED, {ID: SMALL, FRESH_ID: CHANGED}),
    "adopt and leave": Operation(_adopt_and_leave, _PREPARED, _PREPARED),
    "read": Operation(_read, _PREPARED, _PREPARED),
    "leave unchanged": Operation(_leave_unchanged, _PREPARED, _PREPARED),
    "change in place": Operation(_change(CHANGED), _PREPARED, {ID: CHANGED, FRESH_ID: None}),
    "grow": Operation(_change(GROWN), _PREPARED, {ID: GROWN, FRESH_ID: None}),
    "shrink": Operation(_change(SMALL), {ID: LARGE, FRESH_ID: None}, _PREPARED),
    "regenerate": Operation(_regenerate, _PREPARED, {ID: SMALL, FRESH_ID: SMALL}),
    "login": Operation(_login, _PREPARED, {ID: None, FRESH_ID: SMALL}, halfway=({ID: SMALL, FRESH_ID: SMALL},)),
    "destroy": Operation(_destroy, _PREPARED, {ID: None, FRESH_ID: None}),
    "save twice": Operation(
        _save_twice, _PREPARED, {ID: CHANGED.upper(), FRESH_ID: None}, halfway=({ID: CHANGED, FRESH_ID: None},)
    ),
    "sweep": Operation(_sweep, _PREPARED, _PREPARED),
}


def store_at(directory: Path | str, **options: Any) -> FileStore:
    """Return the store that all of this is about; a lock that stays is an error after a moment.

    It never looks whether a slow holder keeps others waiting, which would be more calls on a busy machine.
    """
    usual = {"lock_timeout": 0.5, "slow_hold": 3600.0, "sweep_interval": None, "io": "loop"}
    return FileStore(directory, **(usual | options))


async def prepare(directory: Path, operation: Operation) -> None:
    """Make a directory in which an operation can begin: its session, one that has expired, and a dead writer's file."""
    long_ago, lately = time.time() - 7200, time.time() - 100
    async with store_at(directory, clock=lambda: long_ago) as store, store.open(STALE_ID, create=True) as session:
        session["value"] = SMALL
    async with store_at(directory, clock=lambda: lately) as store, store.open(ID, create=True) as session:
        session["value"] = operation.before[ID]
    leftover = directory / "tmp" / "of-a-dead-writer"
    leftover.write_bytes(b"half a session")
    leftover.chmod(0o600)
    os.utime(leftover, (long_ago, long_ago))


async def state_of(directory: Path) -> State:
    """Return what each id leads to, for a process that knows nothing of what happened."""
    state: State = {}
    async with store_at(directory) as store:
        for session_id in (ID, FRESH_ID):
            try:
                async with store.open(session_id, readonly=True) as session:
                    state[session_id] = session["value"]
                    await _check_owner(store, session)
            except SessionNotFoundError:
                state[session_id] = None
            except CorruptSessionError:
                state[session_id] = "damaged"
    return state


def files_in(directory: Path) -> list[str]:
    """Return the names of all files of a store, relative to its directory."""
    return [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]


def session_files_in(directory: Path) -> list[Path]:
    """Return the files of the sessions of a store."""
    return [directory / name for name in files_in(directory) if SESSION_FILE.fullmatch(name)]


async def sweep_later(directory: Path) -> None:
    """Sweep as two minutes later, when no tombstone stands any more; then what belonged to those that are gone."""
    async with store_at(directory, clock=lambda: time.time() + 120) as store:
        await store.delete_expired()
        await store.delete_expired()


async def litter_in(directory: Path) -> list[str]:
    """Return the files that a fault left behind for good: those that a sweep a little later does not remove."""
    await sweep_later(directory)
    async with store_at(directory) as store:
        predecessors = [
            name
            for name in files_in(directory)
            if SESSION_FILE.fullmatch(name) and isinstance(await store.backend.read(name.replace("/", "")), Tombstone)
        ]
    names = [name for name in files_in(directory) if name not in predecessors]  # which stand until they have expired
    sessions = [name for name in names if SESSION_FILE.fullmatch(name)]
    alive = [value for value in (await state_of(directory)).values() if value]
    members = [name for name in names if name.startswith("groups/")]
    others = [name for name in names if name not in sessions and name not in members]
    return others + sessions[len(alive) :] + members[len(alive) :]


async def locked_in(directory: Path) -> list[str]:
    """Return the ids that can't be opened."""
    locked = []
    async with store_at(directory) as store:
        for session_id in (ID, FRESH_ID):
            try:
                async with store.open(session_id, create=True):
                    pass
            except SessionNotFoundError:  # it was destroyed, and stays so; but it is not locked
                continue
            except SessionError as error:
                locked.append(f"{session_id}: {error}")
    return locked


async def _check_owner(store: FileStore, session: Session) -> None:
    """Make sure that whoever has logged in has a new id, and is found when all sessions are to end."""
    if session.owner is not None:
        assert session.id != ID
        assert session.handle in {owned.handle for owned in await store.sessions_of(OWNER)}
