"""`Contents`: what a session holds, and how that differs from what the store has. It does no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, MutableMapping
from datetime import datetime
from typing import Any, Final

from asyncsess.codec import Codec
from asyncsess.errors import ReadOnlySessionError, SessionClosedError
from asyncsess.keeper import WHY_CLOSED, WRITABLE, State
from asyncsess.values import MISSING, is_same

_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes, datetime})


class Contents(MutableMapping[str, Any]):
    """A mapping that knows how it differs from what the store has, nested values included.

    Args:
        state: What may be done with it.
        codec: Encodes it; two contents are the same if their encoded values are.
    """

    __slots__ = ("_baseline", "_codec", "_is_changed", "_is_exposed", "_locked", "_state", "_touched", "_values")

    def __init__(self, state: State, codec: Codec) -> None:
        self._state = state
        self._codec = codec
        self._values: dict[str, Any] = {}
        self._baseline: bytes | None = None
        self._is_changed = self._is_exposed = False
        self._touched = set[str]()
        self._locked: Collection[str] | None = None

    # The mapping.

    def __getitem__(self, key: str) -> Any:
        if self._state is State.CLOSED:
            raise self._closed()
        value = self._values[key]
        if type(value) not in _ATOMS:
            self._is_exposed = True
            self._touched.add(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.check_writable()
        if self._locked is not None and key not in self._locked:
            raise self._not_locked(key)
        self._is_changed = True
        self._values[key] = value
        self._touched.add(key)
        if type(value) not in _ATOMS:  # whoever has it may change it after the next commit too
            self._is_exposed = True

    def __delitem__(self, key: str) -> None:
        self.check_writable()
        if self._locked is not None and key not in self._locked:
            raise self._not_locked(key)
        del self._values[key]
        self._is_changed = True

    def __contains__(self, key: object) -> bool:
        if self._state is State.CLOSED:
            raise self._closed()
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        if self._state is State.CLOSED:
            raise self._closed()
        return iter(self._values)

    def __len__(self) -> int:
        if self._state is State.CLOSED:
            raise self._closed()
        return len(self._values)

    # What may be done with it.

    @property
    def state(self) -> State:
        """What may be done with it now."""
        return self._state

    @property
    def is_modified(self) -> bool:
        """Whether there is something to commit."""
        return self._state is not State.CLOSED and self.changes() is not None

    def check_writable(self) -> None:
        """Raise what explains why this session can't be changed, if it can't."""
        if self._state is State.READONLY:
            raise ReadOnlySessionError("the session was opened with readonly=True; open it without to change it")
        if self._state not in WRITABLE:
            raise self._closed()

    def check_unchanged(self) -> None:
        """Raise if something nested was changed in a session that can't be committed any more."""
        if not self._is_exposed or self._baseline is None:
            return
        # What another version of the codec stored may be encoded differently: compare like with like.
        if self.changes() in (None, self._codec.encode(self._codec.decode(self._baseline))):
            return
        if self._state is State.READONLY:
            raise ReadOnlySessionError("something inside a session opened with readonly=True was changed, and is lost")
        raise SessionClosedError("something inside the session was changed after its lock was given back, and is lost")

    def _closed(self) -> SessionClosedError:
        return SessionClosedError(WHY_CLOSED[self._state])

    def lock(self, variables: Collection[str]) -> None:
        """Allow only these to be changed."""
        self._locked = variables

    def unlock(self, variables: Iterable[str]) -> None:
        """Allow these to be changed too."""
        if self._locked is not None:
            self._locked = {*self._locked, *variables}

    def check_locked(self) -> None:
        """Raise if something inside a variable was changed that is not among those that may be."""
        if self._locked is None:
            return
        base, others = self.stored(), self._touched.difference(self._locked)
        for key in others:
            if not is_same(base.get(key, MISSING), self._values.get(key, MISSING)):
                raise self._not_locked(key)

    def _not_locked(self, key: str) -> ReadOnlySessionError:
        return ReadOnlySessionError(f"the variable {key!r} is not locked here; name it in synchronize() to change it")

    # What it holds, and what the store has.

    @property
    def baseline(self) -> bytes:
        """What the store has, encoded; an empty mapping for a session that was never stored."""
        return self._codec.encode({}) if self._baseline is None else self._baseline

    def stored(self) -> dict[str, Any]:
        """Return a copy of what the store has."""
        return self._codec.decode(self.baseline)

    def load(self, values: dict[str, Any], baseline: bytes | None) -> None:
        """Hold these values.

        Args:
            values: What the store has.
            baseline: The same, encoded; None if the store has nothing.
        """
        self._values = values
        self._baseline = baseline
        self._is_changed = self._is_exposed = False
        self._touched.clear()

    def reset(self) -> None:
        """Hold what the store has, and drop what was changed."""
        baseline = self._baseline
        self.load({} if baseline is None else self._codec.decode(baseline), baseline)

    def replace(self, values: dict[str, Any]) -> None:
        """Hold other values, none of which has been checked; whoever has a list or a mapping of these keeps it."""
        self._take_over(values)
        self._touched.update(values)
        self._is_changed = self._is_exposed = True

    def rebase(self, values: dict[str, Any], baseline: bytes) -> None:
        """Hold other values, of which the store has ``baseline``; whoever has a list or a mapping of these keeps it."""
        self._take_over(values)
        self._baseline = baseline
        self._is_changed = self.encoded() != baseline

    def _take_over(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            mine = self._values.get(key)
            if mine is value:
                continue
            if type(mine) is list and type(value) is list:
                mine[:] = value
                values[key] = mine
            elif type(mine) is dict and type(value) is dict:
                _exchange(mine, value)
                values[key] = mine
        self._values = values

    # How they differ.

    def encoded(self) -> bytes:
        """Return the values encoded.

        Raises:
            CodecError: A value can't be stored.
        """
        return self._codec.encode(self._values, self._touched)

    def changes(self) -> bytes | None:
        """Return the values encoded if they differ from what the store has, else None."""
        if not self._is_changed and not self._is_exposed:
            return None
        encoded = self.encoded()
        return None if encoded == self._baseline else encoded

    def take_changes(self) -> bytes | None:
        """Return `changes` to commit them: what is changed from here on is for the next commit."""
        data = self.changes()
        self._is_changed = False
        return data

    def committed(self, baseline: bytes) -> None:
        """Note what the store has now. What was handed out may still be changed, so it stays exposed."""
        self._baseline = baseline

    def not_committed(self) -> None:
        """Note that what was taken to be committed is still to be."""
        self._is_changed = True


def _exchange(mapping: dict[Any, Any], content: dict[Any, Any]) -> None:
    mapping.clear()
    mapping.update(content)
