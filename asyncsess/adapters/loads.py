"""What a request has loaded, for libraries that tell their stores nothing of the request."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from asyncsess.adapters.entries import Entry

_MOST: Final = 256


class Loaded:
    """What was loaded under an id; `entry` is None if there was nothing."""

    __slots__ = ("__weakref__", "entry")

    def __init__(self, entry: Entry | None) -> None:
        self.entry: Final = entry


_Key = tuple[object, str]

# Contexts outlive requests: timers, tasks that go on in the background and the next request of a connection inherit
# them. So a context knows only weakly of what the task that loaded it keeps while it runs.
_seen: ContextVar[Mapping[_Key, weakref.ref[Loaded]] | None] = ContextVar("asyncsess.adapters.loads", default=None)
_kept: Final[weakref.WeakKeyDictionary[asyncio.Task[Any], dict[_Key, Loaded]]] = weakref.WeakKeyDictionary()


class Loads:
    """What the requests under way have loaded from one adapter.

    Seen by the task that loaded it, and by the tasks that this started afterwards, until the former has ended. So it is
    not seen where a task loads and the one that started it saves. A task keeps what it loaded last, of 256 ids.
    """

    def __init__(self) -> None:
        self._token = object()

    def remember(self, session_id: str, entry: Entry | None) -> None:
        """Note what this request knows of an id from now on."""
        task = asyncio.current_task()
        assert task is not None
        key, loaded = (self._token, session_id), Loaded(entry)
        kept = _kept.get(task)
        if kept is None:
            kept = _kept[task] = {}
            task.add_done_callback(_drop)  # somebody may keep the task
        kept.pop(key, None)
        kept[key] = loaded
        if len(kept) > _MOST:
            del kept[next(iter(kept))]
        _seen.set({**self._others(key), key: weakref.ref(loaded)})

    def forget(self, session_id: str) -> None:
        """Know nothing of an id any more."""
        task, key = asyncio.current_task(), (self._token, session_id)
        if task is not None and task in _kept:
            _kept[task].pop(key, None)
        _seen.set(self._others(key))

    def forget_each(self, is_meant: Callable[[Entry], bool]) -> None:
        """Know nothing any more of the ids under which there was an entry of a kind."""
        for token, session_id in list(_seen.get() or {}):
            if token is self._token:
                loaded = self.recall(session_id)
                if loaded is not None and loaded.entry is not None and is_meant(loaded.entry):
                    self.forget(session_id)

    def recall(self, session_id: str) -> Loaded | None:
        """Return what this request has loaded under an id; None if it has not looked there."""
        reference = (_seen.get() or {}).get((self._token, session_id))
        return None if reference is None else reference()

    def _others(self, key: _Key) -> dict[_Key, weakref.ref[Loaded]]:
        seen = _seen.get() or {}
        return {other: loaded for other, loaded in seen.items() if other != key and loaded() is not None}


def _drop(task: asyncio.Task[Any]) -> None:
    _kept.pop(task, None)
