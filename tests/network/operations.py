"""What a program does to a store on a server, and what is stored before and afterwards."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from asyncsess import SessionNotFoundError, SessionStore, append, increment, rules
from asyncsess.ids import key_of
from asyncsess.web import login

OWNER: Final = "ada"


class State(NamedTuple):
    """What is stored.

    Attributes:
        n: A number in the session; None if there is no session.
        sessions: How many there are, the one that has expired included.
        log: What the session has noted of itself.
    """

    n: int | None
    sessions: int
    log: tuple[str, ...] = ()


BEFORE: Final = State(0, 2)


@dataclass(frozen=True)
class Operation:
    """One thing that a program does to a store.

    Attributes:
        run: Does it, to the session of an id.
        after: What is stored once that has succeeded; `BEFORE` is what was.
        halfway: What is right besides, if it has not.
    """

    run: Callable[[SessionStore, str], Awaitable[Any]]
    after: State = BEFORE
    halfway: tuple[State, ...] = ()


async def _create(store: SessionStore, session_id: str) -> None:
    await store.create({"n": 0})


async def _adopt(store: SessionStore, session_id: str) -> None:
    async with store.open("job", create=True) as session:
        session["n"] = 0


async def _change(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1


async def _save_twice(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1
        await session.save()
        session["n"] += 1


async def _release_early(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1
        await session.release()
        assert session["n"] == 1


async def _leave_unchanged(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        assert session["n"] == 0


async def _roll_back(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1
        await session.rollback()


async def _renew(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id, lease=20) as session:
        await session.renew(30)
        session["n"] += 1


async def _read(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id, readonly=True) as session:
        assert session["n"] == 0


async def _edit(store: SessionStore, session_id: str) -> None:
    async with store.edit(session_id, resolve={"n": rules.add}) as session:
        session["n"] += 1


async def _apply(store: SessionStore, session_id: str) -> None:
    assert await store.apply(session_id, increment("n"), append("log", "x")) == (1, ["x"])


async def _synchronize(store: SessionStore, session_id: str) -> None:
    async with store.synchronize(session_id, "n", resolve={"n": rules.add}) as session:
        session["n"] += 1


async def _renew_a_variable(store: SessionStore, session_id: str) -> None:
    async with store.synchronize(session_id, "n", lease=20, resolve={"n": rules.add}) as session:
        await session.renew(30)
        session["n"] += 1


async def _destroy(store: SessionStore, session_id: str) -> None:
    assert await store.destroy(session_id)


async def _destroy_all(store: SessionStore, session_id: str) -> None:
    assert await store.destroy_all(OWNER) == 1


async def _regenerate(store: SessionStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["n"] += 1
        await session.regenerate_id()


async def _log_in(store: SessionStore, session_id: str) -> None:
    async with store.open() as session:
        session["n"] = 0
        await login(session, OWNER)


async def _touch(store: SessionStore, session_id: str) -> None:
    await store.backend.touch(key_of(session_id), now=store.clock())


async def _sessions_of(store: SessionStore, session_id: str) -> None:
    assert len(await store.sessions_of(OWNER)) == 1


async def _sweep(store: SessionStore, session_id: str) -> None:
    assert await store.delete_expired() <= 1  # 0 if the answer to the first try was lost


async def _keys(store: SessionStore, session_id: str) -> None:
    assert len([key async for key in store.keys()]) == 2  # noqa: SIM118 - a store is no mapping


_CHANGED: Final = State(1, 2)
OPERATIONS: Final = {
    "create": Operation(_create, State(0, 3)),
    "adopt": Operation(_adopt, State(0, 3)),
    "change": Operation(_change, _CHANGED),
    "save twice": Operation(_save_twice, State(2, 2), (_CHANGED,)),
    "release early": Operation(_release_early, _CHANGED),
    "leave unchanged": Operation(_leave_unchanged),
    "roll back": Operation(_roll_back),
    "renew": Operation(_renew, _CHANGED),
    "read": Operation(_read),
    "edit": Operation(_edit, _CHANGED),
    "apply": Operation(_apply, State(1, 2, ("x",))),
    "synchronize": Operation(_synchronize, _CHANGED),
    "renew a variable": Operation(_renew_a_variable, _CHANGED),
    "destroy": Operation(_destroy, State(None, 1)),
    "destroy all": Operation(_destroy_all, State(None, 1)),
    # Both ids may lead to a session if it was interrupted, but never none.
    "regenerate": Operation(_regenerate, _CHANGED, (State(0, 3),)),
    "log in": Operation(_log_in, State(0, 3)),
    "touch": Operation(_touch),
    "sessions of an owner": Operation(_sessions_of),
    "sweep": Operation(_sweep, State(0, 1), (State(0, 1),)),
    "keys": Operation(_keys),
}


async def prepare(store: SessionStore) -> str:
    """Make one session of an owner, and one that has expired; return the id of the first."""
    await SessionStore(store.backend, clock=lambda: time.time() - 7200).create({"n": 0})
    async with store.open() as session:
        session["n"] = 0
        session["log"] = []
        await login(session, OWNER)
    return session.id


async def state_of(store: SessionStore, session_id: str) -> State:
    """Return what is stored."""
    sessions = len([key async for key in store.keys()])  # noqa: SIM118 - a store is no mapping
    try:
        async with store.open(session_id, readonly=True) as session:
            return State(session["n"], sessions, tuple(session["log"]))
    except SessionNotFoundError:
        return State(None, sessions)
