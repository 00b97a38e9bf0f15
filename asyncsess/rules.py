"""Rules that settle a conflict: what becomes of a value that both sides changed.

A rule is a function of three values: of the version that both sides began with, of ours, and of theirs, which has been
committed meanwhile. Any of them may be `MISSING`. What it returns is stored; `MISSING` removes the key. A rule that
can't settle a conflict raises, and the conflict is reported with that as its cause.

    async with store.edit(session_id, resolve={"hits": rules.add, "log*": rules.append}) as session:
        session["hits"] += 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from asyncsess.values import MISSING, identity, is_same

__all__ = [
    "MISSING", "Nested", "Resolve", "Rule", "add", "append", "fail", "maximum", "minimum", "nested", "ours", "theirs",
    "union",
]  # fmt: skip

Rule: TypeAlias = Callable[[Any, Any, Any], Any]
"""``(base, ours, theirs) -> value``"""

Resolve: TypeAlias = "Rule | Nested | Mapping[Any, Rule | Nested] | None"
"""One rule for all conflicts; or a mapping from a key, a glob pattern or a compiled regular expression to a rule, of
which the first that matches is taken; or None, which settles nothing."""


@dataclass(frozen=True, slots=True)
class Nested:
    """Rules for the keys of a mapping inside a session: made by `nested`."""

    rules: Resolve


def nested(rules: Resolve = None) -> Nested:
    """Merge a mapping inside the session key by key, as the session itself is, with rules of its own."""
    return Nested(rules)


def fail(base: Any, ours: Any, theirs: Any) -> Any:
    """Settle nothing: what happens where no rule is given."""
    raise ValueError("both sides changed it")


def ours(base: Any, ours: Any, theirs: Any) -> Any:
    """Take what this block made of it."""
    return ours


def theirs(base: Any, ours: Any, theirs: Any) -> Any:
    """Take what was committed meanwhile."""
    return theirs


def add(base: Any, ours: Any, theirs: Any) -> Any:
    """Add up what both sides added to a number, 0 if it was not there."""
    start = 0 if base is MISSING else _number(base)
    return start + ((_number(ours) - start) + (_number(theirs) - start))


def maximum(base: Any, ours: Any, theirs: Any) -> Any:
    """Take the larger of two numbers, strings or times."""
    return max(_comparable(ours, theirs), key=_rank)


def minimum(base: Any, ours: Any, theirs: Any) -> Any:
    """Take the smaller of two numbers, strings or times."""
    return min(_comparable(ours, theirs), key=_rank)


def union(base: Any, ours: Any, theirs: Any) -> Any:
    """Take a list as a set: without what either side removed, with what either side added.

    What was there stays in its order; what they added comes before what we added.
    """
    start = {} if base is MISSING else _by_identity(base)
    mine, its = _by_identity(ours), _by_identity(theirs)
    kept = {key: item for key, item in start.items() if key in mine and key in its}
    added = {key: item for key, item in (its | mine).items() if key not in start}
    return [*kept.values(), *added.values()]


def append(base: Any, ours: Any, theirs: Any) -> Any:
    """Take what both sides put at the end of a list: what they put there, then what we did."""
    start = [] if base is MISSING else _list(base)
    for side in (_list(ours), _list(theirs)):
        if not is_same(side[: len(start)], start):
            raise ValueError("one side did more to the list than put something at its end")
    return [*theirs, *ours[len(start) :]]


def _number(value: Any) -> int | float:
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    raise TypeError(f"{_name_of(value)} is no number")


def _comparable(one: Any, other: Any) -> tuple[Any, Any]:
    for kinds in ((int, float), (str,), (bytes,), (datetime,)):
        if type(one) in kinds and type(other) in kinds and one == one and other == other:  # not NaN
            return one, other
    raise TypeError(f"{_name_of(one)} and {_name_of(other)} have no order")


def _rank(value: Any) -> tuple[Any, str, str]:
    """Order equal values of two types too, or it would matter which side is which."""
    return value, type(value).__name__, repr(value)


def _list(value: Any) -> list[Any]:
    if type(value) is list:
        return value  # pyright: ignore[reportUnknownVariableType]
    raise TypeError(f"{_name_of(value)} is no list")


def _by_identity(value: Any) -> dict[object, Any]:
    return {identity(item): item for item in _list(value)}


def _name_of(value: Any) -> str:
    return "a value that is not there" if value is MISSING else f"a value of type {type(value).__name__}"
