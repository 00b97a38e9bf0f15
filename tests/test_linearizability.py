"""The checker of histories accepts what can have happened, and nothing else."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linearizability import Operation, complaints

History = list[Operation]


def happened(dice: random.Random, length: int) -> History:
    """Return what some clients saw of a register that really was used by one after the other.

    Each moment of the register is one of the interval that the client saw, so intervals overlap; some answers and some
    requests got lost.
    """
    history: History = []
    version, writer = 1, ""
    for moment in range(1, length + 1):
        name, is_write = f"{moment}", dice.random() < 0.6
        began, ended = moment - dice.expovariate(0.4), moment + dice.expovariate(0.4)
        fate = dice.random()
        if fate < 0.1:  # it failed, and did nothing
            history.append(Operation(name, is_write, began, ended))
        elif fate < 0.2:  # the request got lost
            history.append(Operation(name, is_write, began))
        else:
            if is_write:
                version, writer = version + 1, name
            is_answered = fate < 0.9
            history.append(
                Operation(name, is_write, began, ended, version, writer)
                if is_answered
                else Operation(name, is_write, began)
            )
    history.append(Operation("the end", False, length + 100, length + 101, version, writer))
    dice.shuffle(history)
    return history


@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_what_happened_is_accepted(dice: random.Random, length: int) -> None:
    assert [*complaints(happened(dice, length))] == []


@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_it_judges_as_a_search_through_all_orders_does(dice: random.Random, length: int) -> None:
    history = [dice.choice([each, _twisted(each, dice)]) for each in happened(dice, length)]
    assert (not [*complaints(history)]) == _can_be_ordered(history)


def _twisted(each: Operation, dice: random.Random) -> Operation:
    """Return an operation with another end, version or fate."""
    version = max(1, (each.version or 1) + dice.choice((-1, 1)))
    return dice.choice(
        [
            each._replace(began=each.began + 2, ended=each.ended + 2),
            Operation(each.name, each.is_write, each.began, each.began + 1),
            Operation(each.name, each.is_write, each.began),
            Operation(each.name, each.is_write, each.began, each.ended, version, each.name if each.is_write else ""),
        ]
    )


def _can_be_ordered(left: History, version: int = 1, writer: str = "") -> bool:
    """Try each operation as the next one, an unknown write only if it helps: slow, and plainly right."""
    if all(each.version is None for each in left):
        return True
    for each in left:
        rest = [other for other in left if other is not each]
        if any(other.ended < each.began for other in rest):
            continue
        if each.is_write and (each.version == version + 1 or (each.version is None and math.isinf(each.ended))):
            is_possible = _can_be_ordered(rest, version + 1, each.name)
        else:
            is_possible = each.version is None or (
                (each.version, each.writer) == (version, writer) and not each.is_write
            )
            is_possible = is_possible and _can_be_ordered(rest, version, writer)
        if is_possible:
            return True
    return False


GOOD: History = [
    Operation("a", True, 1, 2, 2, "a"),
    Operation("reads a", False, 3, 4, 2, "a"),
    Operation("b", True, 5, 8, 3, "b"),
    Operation("c", True, 9, 10, 4, "c"),
    Operation("killed", True, 9),
    Operation("failed", True, 9, 10),
    Operation("reads c", False, 11, 12, 4, "c"),
]


def _but(history: History, *others: Operation) -> History:
    """Return a history in which other operations are in the place of those of the same names, or follow."""
    named = {each.name: each for each in others}
    return [named.pop(each.name, each) for each in history] + [*named.values()]


def test_a_good_history_is_good_whatever_became_of_the_unknown() -> None:
    last = [Operation("last", False, 20, 21, 4, "c"), Operation("last", False, 20, 21, 5, "killed")]
    for each in last:
        assert [*complaints(_but(GOOD, each))] == []


FAULTS: dict[str, tuple[History, str]] = {
    "a lost update": (
        _but(GOOD, Operation("b", True, 5, 8, 3, "b"), Operation("too", True, 5, 8, 3, "too")),
        "version 3 is of 'b', and of 'too'",
    ),
    "a stale read": (_but(GOOD, Operation("reads c", False, 11, 12, 3, "b")), "'reads c' has version 3"),
    "a read that goes back": (
        _but(GOOD, Operation("one", False, 6, 6.5, 3, "b"), Operation("two", False, 7, 7.5, 2, "a")),
        "'two' has version 2",
    ),
    "a read of what is not yet written": (
        _but(GOOD, Operation("reads a", False, 3, 4, 3, "b")),
        "'b' has version 3, and began when 3 had been seen",
    ),
    "a phantom commit after an error": (
        _but(GOOD, Operation("last", False, 20, 21, 5, "failed")),
        "'failed' made version 5, but has failed",
    ),
    "a phantom commit that others have overwritten": (
        _but(GOOD[:4], Operation("last", False, 20, 21, 6, "c")),
        "again version 6",
    ),
    "a commit of nobody": (_but(GOOD, Operation("last", False, 20, 21, 5, "x")), "who is 'x'?"),
    "a duplicate commit": (
        _but(GOOD, Operation("last", False, 20, 21, 5, "c")),
        "'c' made version 4, and again version 5",
    ),
    "a duplicate commit that nobody saw": (
        _but(GOOD, Operation("d", True, 20, 21, 7, "d")),
        "nobody can have made version 6",
    ),
    "a commit that vanished": (
        _but(GOOD, Operation("last", False, 20, 21, 3, "b")),
        "'last' has version 3, and began when 4 had been seen",
    ),
    "a commit that vanished under another": (
        _but(GOOD, Operation("reads c", False, 11, 12, 4, "killed")),
        "version 4 is of 'c', and of 'killed'",
    ),
    "an unknown commit that took effect before it began": (
        _but(
            GOOD,
            Operation("b", True, 5, 8),
            Operation("c", True, 9, 10, 3, "c"),
            Operation("reads c", False, 2.5, 2.6, 3, "b"),
        ),
        "'reads c'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_catches(fault: str) -> None:
    history, complaint = FAULTS[fault]
    found = [*complaints(history)]
    assert any(complaint in each for each in found), found
