"""Values as sessions hold them: when two are the same, and what stands for none. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING
"""Stands for the value of a key that is not there. None is a value."""


OWNER: Final = "_owner"
"""The key under which a session names its owner."""
CSRF: Final = "_csrf"
"""The key under which it has the token of its forms."""


def owner_of(values: Mapping[str, Any]) -> str | None:
    """Return the owner of a session that holds these values; None if nobody has logged in."""
    ownership = values.get(OWNER)
    return ownership.get("id") if isinstance(ownership, dict) else None


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two values would be stored alike: ``1``, ``1.0`` and ``True`` are three values.

    The order of the keys of a mapping does not count.
    """
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    if type(one) is list:
        return len(one) == len(other) and all(map(is_same, one, other))
    if type(one) is float:
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (one != one and other != other)
    return bool(one == other)


def identity(value: Any) -> object:
    """Return something hashable that is equal for values that are the same, and for no others."""
    if type(value) is dict:
        return dict, frozenset((identity(key), identity(item)) for key, item in value.items())
    if type(value) is list:
        return list, tuple(map(identity, value))
    if type(value) is float:
        return float, "nan" if math.isnan(value) else value.hex()
    return type(value), value
