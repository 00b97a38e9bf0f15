"""Operations for `SessionStore.apply`: small changes that run on the newest data, all of a call or none.

Each names what it changes by a key, or by a tuple of keys that leads into nested mappings, and gives the new value of
that. What is not there counts as 0, an empty list or an empty mapping; the mappings on the way to it are made.

    hits, items = await store.apply(session_id, increment("hits"), append(("cart", "items"), "tea"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from asyncsess.errors import Conflict, ConflictError, OperationError
from asyncsess.values import MISSING, identity, is_same

Values: TypeAlias = dict[Any, Any]
Path: TypeAlias = str | int | bytes | tuple[Any, ...]
Change: TypeAlias = Callable[[Any], tuple[Any, Any]]


class _UnfitError(Exception):
    """A value is not what an operation needs."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A change of a session, made by one of the functions of this module.

    Attributes:
        name: Which function.
        path: Keys that lead from the session to what it changes; none for the session itself.
    """

    name: str
    path: tuple[Any, ...]
    _change: Change = field(repr=False)  # of a value, or `MISSING`: to a new one and the result

    def __call__(self, values: Values) -> Any:
        """Change the values of a session, and return the result.

        Raises:
            OperationError: It does not fit what is there.
            ConflictError: What is there is not what was expected.
        """
        try:
            return self._run(values)
        except _UnfitError as error:
            raise OperationError(f"{self.name}: {error}", self.path) from None
        except OverflowError as error:
            raise OperationError(f"{self.name}: {error}", self.path) from error

    def _run(self, values: Values) -> Any:
        if not self.path:
            return self._change(values)[1]
        *way, last = self.path
        mappings = [values]
        for key in way:
            mappings.append(_mapping(mappings[-1].get(key, MISSING)))
        value, result = self._change(mappings[-1].get(last, MISSING))
        if value is MISSING:
            mappings[-1].pop(last, None)
            return result
        mappings[-1][last] = value
        for mapping, key, inner in zip(mappings, way, mappings[1:], strict=False):
            mapping[key] = inner
        return result


def put(path: Path, value: Any) -> Operation:
    """Store a value, whatever is there."""
    return _changing("put", _keys(path), lambda current: deepcopy(value))


def put_default(path: Path, value: Any) -> Operation:
    """Store a value unless there is one."""
    return _changing("put_default", _keys(path), lambda current: deepcopy(value) if current is MISSING else current)


def compare_and_put(path: Path, expected: Any, value: Any) -> Operation:
    """Store a value if that which is there is the expected one, `asyncsess.rules.MISSING` for none.

    Otherwise, `ConflictError` is raised, and nothing of the call is stored.
    """

    def change(current: Any) -> Any:
        if not is_same(current, expected):
            raise ConflictError([Conflict(_keys(path), expected, value, current)])
        return deepcopy(value)

    return _changing("compare_and_put", _keys(path), change)


def discard(path: Path) -> Operation:
    """Remove a key, if it is there; the result is None."""
    return Operation("discard", _keys(path), lambda current: (MISSING, None))


def pop(path: Path, default: Any = None) -> Operation:
    """Remove a key; the result is its value, or the default if it is not there."""
    return Operation("pop", _keys(path), lambda current: (MISSING, default if current is MISSING else current))


def increment(path: Path, by: float = 1) -> Operation:
    """Add to a number."""
    if type(by) not in (int, float):
        raise TypeError(f"a number is incremented by a number, not by {by!r}")
    return _changing("increment", _keys(path), lambda current: _number(current) + by)


def decrement(path: Path, by: float = 1) -> Operation:
    """Subtract from a number."""
    if type(by) not in (int, float):
        raise TypeError(f"a number is decremented by a number, not by {by!r}")
    return _changing("decrement", _keys(path), lambda current: _number(current) - by)


def append(path: Path, item: Any) -> Operation:
    """Put an item at the end of a list."""
    return _changing("append", _keys(path), lambda current: [*_list(current), deepcopy(item)])


def extend(path: Path, items: Iterable[Any]) -> Operation:
    """Put items at the end of a list."""
    added = list(items)
    return _changing("extend", _keys(path), lambda current: [*_list(current), *deepcopy(added)])


def remove(path: Path, item: Any) -> Operation:
    """Remove the first item of a list that is the same, if there is one."""

    def change(current: Any) -> list[Any]:
        items = _list(current)
        found = next((index for index, its in enumerate(items) if is_same(its, item)), len(items))
        return items[:found] + items[found + 1 :]

    return _changing("remove", _keys(path), change)


def include(path: Path, *items: Any) -> Operation:
    """Put items at the end of a list that has each but once."""
    return _changing(
        "include", _keys(path), lambda current: [*_by_identity([*_list(current), *deepcopy(items)]).values()]
    )


def exclude(path: Path, *items: Any) -> Operation:
    """Remove items from a list that has each but once."""
    gone = _by_identity(items)
    return _changing("exclude", _keys(path), lambda now: [its for its in _list(now) if identity(its) not in gone])


def update(values: Mapping[Any, Any], path: Path = ()) -> Operation:
    """Store several values in a mapping, the session itself if no path is given."""

    def change(current: Any) -> Values:
        mapping = _mapping(current)
        mapping.update(deepcopy(dict(values)))
        return mapping

    return _changing("update", () if path == () else _keys(path), change)


def call(function: Callable[[Values], Any]) -> Operation:
    """Call a function with the values of the session, which it may change; the result is what it returns.

    Others wait meanwhile, and so does the event loop.
    """
    return Operation("call", (), lambda values: (values, function(values)))


def _changing(name: str, keys: tuple[Any, ...], change: Callable[[Any], Any]) -> Operation:
    """Return an operation whose result is the new value."""

    def run(current: Any) -> tuple[Any, Any]:
        value = change(current)
        return value, deepcopy(value)  # later operations of the call may change it

    return Operation(name, keys, run)


def _keys(path: Path) -> tuple[Any, ...]:
    keys = path if isinstance(path, tuple) else (path,)
    if not keys:
        raise ValueError("an empty path leads to the session itself, which only update() and call() can change")
    if not all(type(key) in (str, int, bytes) for key in keys):
        raise TypeError(f"a path is a key (str, int or bytes) or a tuple of keys, not {path!r}")
    return keys


def _number(value: Any) -> int | float:
    if value is MISSING:
        return 0
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    raise _UnfitError(f"{type(value).__name__} is no number")


def _list(value: Any) -> list[Any]:
    if value is MISSING:
        return []
    if type(value) is list:
        return value
    raise _UnfitError(f"{type(value).__name__} is no list")


def _mapping(value: Any) -> Values:
    if value is MISSING:
        return {}
    if type(value) is dict:
        return value
    raise _UnfitError(f"{type(value).__name__} is no mapping")


def _by_identity(items: Iterable[Any]) -> dict[object, Any]:
    by_identity: dict[object, Any] = {}
    for item in items:
        by_identity.setdefault(identity(item), item)
    return by_identity
