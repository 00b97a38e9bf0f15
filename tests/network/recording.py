"""What a client process does to some sessions, and its record of it: a line before each operation, one after it.

A session is the register of `tests.linearizability`: each change adds one to ``n`` and leaves its name in ``by``, so
that version ``n + 1`` of the session is of the operation ``by``.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from asyncsess import CommitUnknownError, Session, SessionError, SessionStore, increment, put, rules
from tests.linearizability import Operation

FIRST: Final = {"n": 0, "by": ""}


class Seen(NamedTuple):
    """What an operation saw of a session: a version, and of which operation it is."""

    version: int
    writer: str


def _seen(session: Session) -> Seen:
    assert session.version == session["n"] + 1, f"version {session.version} has counted {session['n']}"
    return Seen(session.version, session["by"])


async def _read(store: SessionStore, session_id: str, name: str) -> Seen:
    async with store.open(session_id, readonly=True) as session:
        return _seen(session)


async def _look(store: SessionStore, session_id: str, name: str) -> Seen:
    async with store.open(session_id) as session:
        return _seen(session)


async def _change(store: SessionStore, session_id: str, name: str) -> Seen:
    async with store.open(session_id) as session:
        _seen(session)
        session.update(n=session["n"] + 1, by=name)
    return Seen(session.version, name)


async def _edit(store: SessionStore, session_id: str, name: str) -> Seen:
    async with store.edit(session_id, resolve={"n": rules.add, "by": rules.ours}) as session:
        _seen(session)
        session.update(n=session["n"] + 1, by=name)
    return Seen(session.version, name)


async def _apply(store: SessionStore, session_id: str, name: str) -> Seen:
    n, _ = await store.apply(session_id, increment("n"), put("by", name))
    return Seen(n + 1, name)


WAYS: Final[Mapping[str, Callable[[SessionStore, str, str], Awaitable[Seen]]]] = {
    "read": _read, "look": _look, "change": _change, "edit": _edit, "apply": _apply,
}  # fmt: skip
READING: Final = ("read", "look")


async def record(store: SessionStore, sessions: list[str], client: str, path: Path, go_on: Callable[[], bool]) -> None:
    """Do one thing after the other to one session or another."""
    dice = random.Random(client)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    count = 0

    def note(**line: Any) -> None:
        os.write(file, json.dumps(line).encode() + b"\n")  # one write: never half a line, also when killed

    while go_on():
        count += 1
        name, way, place = f"{client}.{count}", dice.choice([*WAYS]), dice.randrange(len(sessions))
        note(name=name, session=place, way=way, began=time.monotonic())
        try:
            seen = await WAYS[way](store, sessions[place], name)
        except CommitUnknownError:
            note(name=name, ended=None)
        except SessionError as error:
            note(name=name, ended=time.monotonic(), error=type(error).__name__)
        else:
            note(name=name, ended=time.monotonic(), version=seen.version, writer=seen.writer)
    os.close(file)


def histories(files: Iterable[Path]) -> dict[int, list[Operation]]:
    """Return what clients have recorded of each session."""
    found: defaultdict[int, list[Operation]] = defaultdict(list)
    for path in files:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ends = {line["name"]: line for line in lines if "ended" in line}
        for begin in lines:
            if "began" in begin:
                end = ends.get(begin["name"], {"ended": None})
                found[begin["session"]].append(_operation(begin, end))
    return found


def _operation(begin: Mapping[str, Any], end: Mapping[str, Any]) -> Operation:
    each = Operation(begin["name"], begin["way"] not in READING, begin["began"])
    if end["ended"] is None:
        return each
    return each._replace(ended=end["ended"], version=end.get("version"), writer=end.get("writer", ""))
