"""The three-way merge of what two sides made of one mapping. Pure functions.

Key by key: what one side changed is taken, and what both changed is settled by a rule, or else reported as a conflict,
unless both made the same of it. Deleting a key is a change of it, so what one side added or changed is never lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from re import Pattern
from typing import Any

from asyncsess import rules
from asyncsess.errors import Conflict, ConflictError
from asyncsess.rules import Nested, Resolve, Rule
from asyncsess.values import MISSING, is_same

Values = dict[Any, Any]
Path = tuple[Any, ...]


def merge(
    base: Values, ours: Values, theirs: Values, resolve: Resolve = None, check: Callable[[Any], None] | None = None
) -> Values:
    """Return what both sides made of ``base``: their mapping, and in it what we changed.

    Args:
        base: What both began with.
        ours: What we made of it.
        theirs: What they made of it. None of the three is changed; the result shares values with them.
        resolve: What settles conflicts.
        check: Raises if a value that a rule returned can't be stored.

    Raises:
        ConflictError: With every conflict that was not settled.
    """
    merger = _Merger(check)
    merged = merger.merge(base, ours, theirs, resolve, ())
    if merger.conflicts:
        raise ConflictError(merger.conflicts) from merger.cause
    return merged


class _Merger:
    def __init__(self, check: Callable[[Any], None] | None) -> None:
        self._check = check
        self.conflicts: list[Conflict] = []
        self.cause: Exception | None = None

    def merge(self, base: Values, ours: Values, theirs: Values, resolve: Resolve, path: Path) -> Values:
        merged = dict(theirs)
        for key in _changed(base, ours):
            value = self._value_of((*path, key), base.get(key, MISSING), ours.get(key, MISSING),
                                   theirs.get(key, MISSING), _rule_for(key, resolve))  # fmt: skip
            if value is MISSING:
                merged.pop(key, None)
            else:
                merged[key] = value
        return merged

    def _value_of(self, path: Path, base: Any, ours: Any, theirs: Any, rule: Rule | Nested) -> Any:
        """Return what becomes of a value that we changed."""
        if is_same(base, theirs) or (ours is MISSING and theirs is MISSING):
            return ours
        if isinstance(rule, Nested):
            return self._nested(path, base, ours, theirs, rule)
        try:
            value = rule(base, ours, theirs)  # also for the same change on both sides: two that add 1 add 2
            if self._check and value is not MISSING:
                self._check(value)
        except Exception as error:  # whatever a rule raises, it has not settled the conflict
            if is_same(ours, theirs):
                return ours
            return self._conflict(path, base, ours, theirs, None if rule is rules.fail else error)
        return value

    def _nested(self, path: Path, base: Any, ours: Any, theirs: Any, rule: Nested) -> Any:
        if type(ours) is not dict or type(theirs) is not dict or type(base) not in (dict, type(MISSING)):
            if is_same(ours, theirs):
                return ours
            return self._conflict(path, base, ours, theirs, None)
        start: Values = {} if base is MISSING else base
        return self.merge(start, ours, theirs, rule.rules, path)

    def _conflict(self, path: Path, base: Any, ours: Any, theirs: Any, cause: Exception | None) -> Any:
        self.conflicts.append(Conflict(path, base, ours, theirs))
        self.cause = self.cause or cause
        return theirs


def _changed(base: Values, ours: Values) -> Iterator[Any]:
    """Yield the keys whose values we changed, removed or added."""
    for key in [*(key for key in base if key not in ours), *ours]:
        if not is_same(base.get(key, MISSING), ours.get(key, MISSING)):
            yield key


def _rule_for(key: Any, resolve: Resolve) -> Rule | Nested:
    if resolve is None:
        return rules.fail
    if not isinstance(resolve, Mapping):
        return resolve
    for pattern, rule in resolve.items():
        if is_same(pattern, key) or _matches(pattern, key):
            return rule
    return rules.fail


def _matches(pattern: Any, key: Any) -> bool:
    if not isinstance(key, str):
        return False
    if isinstance(pattern, Pattern):
        return isinstance(pattern.pattern, str) and pattern.fullmatch(key) is not None
    return isinstance(pattern, str) and fnmatchcase(key, pattern)
