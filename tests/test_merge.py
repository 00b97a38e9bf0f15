from __future__ import annotations

import asyncio
import copy
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsess import Conflict, ConflictError, rules
from asyncsess.merge import merge
from asyncsess.rules import MISSING, Resolve, Rule, nested
from asyncsess.values import identity, is_same

Values = dict[Any, Any]

NOW, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)

keys = st.sampled_from(["a", "b", "c", 1, 2])
numbers = st.integers(-3, 3) | st.sampled_from([0.0, -0.0, 0.1, 0.2, 0.7, 1.0, math.inf, math.nan])
leaves = st.none() | st.booleans() | numbers | st.sampled_from(["", "1", "x"])
lists = st.lists(leaves | st.fixed_dictionaries({"id": st.integers(0, 1)}), max_size=3)
mappings = st.dictionaries(keys, leaves | lists, max_size=3)
values = leaves | lists | mappings


def changed(base: Values, changes: Values) -> Values:
    return {key: value for key, value in {**base, **changes}.items() if value is not MISSING}


def versions(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Values, Values, Values]]:
    """Make a version that both sides begin with, and what either made of it."""
    sessions = st.dictionaries(keys, values, max_size=4)
    changes = st.dictionaries(keys, values | st.just(MISSING), max_size=4)

    def sides(base: Values, ours: Values, theirs: Values) -> tuple[Values, Values, Values]:
        return base, changed(base, ours), changed(base, theirs)

    return st.builds(sides, sessions, changes, changes)


def different() -> list[Any]:
    """Return values of which no two are the same, made anew each time."""
    return [
        MISSING, None, False, True, 0, 1, 0.0, -0.0, 1.0, float("nan"), math.inf, "", "0", "1", b"", b"1", NOW, LATER,
        [], [0], [0.0], [False], [None], [0, 0], [[]], [float("nan")], {}, {"a": 0}, {"a": 0.0}, {"a": None}, {"b": 0},
        {1: 0}, {"1": 0}, {"a": 0, "b": 0}, {"a": [{"b": -0.0}]}, {"a": [{"b": 0.0}]},
    ]  # fmt: skip


def session(value: Any) -> Values:
    return {} if value is MISSING else {"k": value}


def conflict_error(
    base: Values, ours: Values, theirs: Values, resolve: Resolve = None, check: Callable[[Any], None] | None = None
) -> ConflictError:
    with pytest.raises(ConflictError) as caught:
        merge(base, ours, theirs, resolve, check)
    return caught.value


def paths(*arguments: Any) -> list[tuple[Any, ...]]:
    return [conflict.path for conflict in conflict_error(*arguments).conflicts]


# When two values are the same.


def test_values_are_the_same_as_themselves_and_as_no_others() -> None:
    for (i, one), (j, other) in product(enumerate(different()), enumerate(different())):
        assert is_same(one, other) is (i == j)
        assert (identity(one) == identity(other)) is (i == j)


def test_the_order_of_keys_does_not_count_and_that_of_items_does() -> None:
    one, other = {"a": [1], 2: {"x": 0, "y": 0}}, {2: {"y": 0, "x": 0}, "a": [1]}
    assert is_same(one, other)
    assert identity(one) == identity(other)
    assert not is_same([1, 2], [2, 1])
    assert identity([1, 2]) != identity([2, 1])


few = st.sampled_from([0, 0.0, -0.0, False, None, math.nan])
alike = few | st.lists(few, max_size=1) | st.dictionaries(st.sampled_from(["a", 0]), few, max_size=2)


@given(one=alike | values, other=alike | values, third=alike)
def test_being_the_same_is_an_equivalence_and_that_of_identities(one: Any, other: Any, third: Any) -> None:
    assert is_same(one, copy.deepcopy(one))
    assert is_same(one, other) is is_same(other, one) is (identity(one) == identity(other))
    if is_same(one, other):
        assert is_same(one, third) is is_same(other, third)


# What is merged.


def test_what_one_side_changed_is_taken() -> None:
    base = {"same": 0, "ours": 0, "theirs": 0, "ours, deleted": 0, "theirs, deleted": 0}
    ours = {"same": 0, "ours": 1, "theirs": 0, "theirs, deleted": 0, "ours, added": 1}
    theirs = {"same": 0, "ours": 0, "theirs": 2, "ours, deleted": 0, "theirs, added": 2}
    merged = {"same": 0, "ours": 1, "theirs": 2, "ours, added": 1, "theirs, added": 2}
    assert is_same(merge(base, ours, theirs), merged)
    assert is_same(merge(base, theirs, ours), merged)


def pairs() -> Iterator[tuple[Any, Any]]:
    for (i, one), (j, other) in product(enumerate(different()), enumerate(different())):
        if i != j:
            yield one, other


def test_a_change_to_a_value_that_only_looks_equal_is_a_change() -> None:
    for before, after in pairs():
        assert repr(merge(session(before), session(after), session(before))) == repr(session(after))
        assert repr(merge(session(before), session(before), session(after))) == repr(session(after))


def test_the_same_change_on_both_sides_is_no_conflict() -> None:
    for before, after in pairs():
        assert is_same(merge(session(before), session(after), session(copy.deepcopy(after))), session(after))
    ours, theirs = {"k": {"a": 1, "b": 2}}, {"k": {"b": 2, "a": 1}}
    assert merge({}, ours, theirs) == ours


def test_different_changes_conflict_even_if_they_look_equal() -> None:
    for ours, theirs in pairs():
        error = conflict_error({"k": "before"}, session(ours), session(theirs))
        assert [conflict.path for conflict in error.conflicts] == [("k",)]
        assert is_same([*error.conflicts[0]][1:], ["before", ours, theirs])
        assert error.__cause__ is None
    assert conflict_error({}, {"k": None}, {"k": 0}).conflicts == (Conflict(("k",), MISSING, None, 0),)


def test_changes_inside_of_one_value_conflict_as_a_whole() -> None:
    base, ours, theirs = {"k": {"a": 0, "b": 0}}, {"k": {"a": 1, "b": 0}}, {"k": {"a": 0, "b": 1}}
    assert conflict_error(base, ours, theirs).conflicts == (Conflict(("k",), base["k"], ours["k"], theirs["k"]),)


def test_integer_keys_stay_integer_keys() -> None:
    assert merge({1: "a"}, {1: "b", 2: "c"}, {1: "a", "1": "d", "2": "e"}) == {1: "b", 2: "c", "1": "d", "2": "e"}
    assert merge({1: "a", "1": "a"}, {"1": "a"}, {1: "a", "1": "a"}) == {"1": "a"}
    assert repr(paths({}, {1: "a", "1": "a"}, {1: "b", "1": "b"})) == "[(1,), ('1',)]"


def test_clearing_the_session_removes_what_we_saw_and_not_what_others_added() -> None:
    assert merge({"a": 1, "b": None}, {}, {"a": 1, "b": None, "c": None}) == {"c": None}
    assert paths({"a": 1, "b": 2}, {}, {"a": 1, "b": 3, "c": 4}) == [("b",)]


def test_all_conflicts_are_reported_at_once() -> None:
    base = {"changed": 0, "deleted by us": 0, "deleted by them": 0, "deleted": 0, "fine": 0}
    ours = {"changed": 1, "deleted by them": 1, "added": 1, "fine": 1}
    theirs = {"changed": 2, "deleted by us": 2, "added": 2, "fine": 0}
    assert {*conflict_error(base, ours, theirs).conflicts} == {
        Conflict(("changed",), 0, 1, 2),
        Conflict(("deleted by us",), 0, MISSING, 2),
        Conflict(("deleted by them",), 0, 1, MISSING),
        Conflict(("added",), MISSING, 1, 2),
    }


def test_what_is_reported_shows_keys_and_no_values() -> None:
    base, ours, theirs = {"a": {1: "secret"}, "b": 0}, {"a": {1: "secret2"}, "b": 1}, {"a": {1: "secret3"}, "b": 1234}
    error = conflict_error(base, ours, theirs, nested())
    assert repr(error.conflicts[0]) == str(error.conflicts[0]) == "<Conflict session['a'][1]>"
    assert "session['a'][1], session['b']" in str(error)
    assert "secret" not in f"{error} {error!r}"
    assert "1234" not in f"{error} {error!r}"


# Rules.


def test_a_rule_is_asked_about_what_both_sides_changed_and_told_all_three_values() -> None:
    asked: list[Any] = []

    def rule(*values: Any) -> Any:
        asked.append(values)
        return "settled"

    base = {"changed": 0, "ours": 0, "theirs": 0, "both": 0, "deleted": 0, "not deleted": 0, "gone": 0}
    ours = {"changed": 1, "ours": 1, "theirs": 0, "both": 3, "added": 1, "not deleted": 1}
    theirs = {"changed": 2, "ours": 0, "theirs": 1, "both": 3, "added": 2, "deleted": 2}
    settled = dict.fromkeys(["changed", "both", "added", "deleted", "not deleted"], "settled")
    assert merge(base, ours, theirs, rule) == {**settled, "ours": 1, "theirs": 1}
    assert sorted(asked, key=repr) == [(0, 1, 2), (0, 1, MISSING), (0, 3, 3), (0, MISSING, 2), (MISSING, 1, 2)]


def test_a_rule_that_cannot_settle_the_same_change_on_both_sides_leaves_it() -> None:
    def rule(base: Any, ours: Any, theirs: Any) -> Any:
        return 1 / 0

    def check(value: Any) -> None:
        raise ValueError

    for before, after in pairs():
        sides = session(before), session(after), session(copy.deepcopy(after))
        for resolve in (rule, rules.fail, nested(rule), nested()):
            assert is_same(merge(*sides, resolve), session(after))
        assert is_same(merge(*sides, rules.ours, check), session(after))


def test_a_mapping_gives_rules_to_keys_patterns_and_regular_expressions() -> None:
    resolve: Resolve = {"exact": rules.ours, "log*": rules.theirs, "[ab]?": rules.ours, re.compile(r"n\d"): rules.ours}
    taken = {"exact": 1, "log": 2, "login": 2, "a1": 1, "n1": 1}
    left = ["exactly", "Exact", "a log", "Log", "c1", "a12", "n12", "an1", "N1"]
    for key, value in taken.items():
        assert merge({}, {key: 1}, {key: 2}, resolve) == {key: value}
    for key in left:
        assert paths({}, {key: 1}, {key: 2}, resolve) == [(key,)]


def test_the_first_rule_that_matches_is_taken() -> None:
    patterns = ["a1", "a*", "*1", re.compile("a.")]
    for first, second in product(patterns, patterns):
        if first is not second:
            assert merge({}, {"a1": 1}, {"a1": 2}, {first: rules.ours, second: rules.theirs}) == {"a1": 1}


@pytest.mark.parametrize("key", ["a[b]", "[!a]", "[", "*", "a?", "[[]"])
def test_a_key_with_glob_characters_is_matched_by_itself(key: str) -> None:
    assert merge({}, {key: 1}, {key: 2}, {key: rules.ours}) == {key: 1}


@pytest.mark.parametrize("key", [1, b"1"])
def test_a_key_that_is_no_string_is_matched_by_itself_alone(key: Any) -> None:
    others: dict[Any, Rule] = dict.fromkeys(["1", "*", re.compile(".*"), 2], rules.theirs)
    assert paths({}, {key: 1}, {key: 2}, others) == [(key,)]
    assert merge({}, {key: 1}, {key: 2}, {**others, key: rules.ours}) == {key: 1}
    assert paths({}, {1: 1}, {1: 2}, {True: rules.ours}) == paths({}, {1: 1}, {1: 2}, {1.0: rules.ours}) == [(1,)]


def test_a_rule_that_returns_missing_removes_the_key() -> None:
    def remove(base: Any, ours: Any, theirs: Any) -> Any:
        return MISSING

    def refuse(value: Any) -> None:
        raise ValueError

    assert merge({"a": 0, "b": 0}, {"a": 1, "b": 0}, {"a": 2, "b": 0}, remove, refuse) == {"b": 0}
    assert merge({"a": 0}, {"a": 1}, {}, remove) == {}


def test_a_rule_that_raises_leaves_the_conflict_with_that_as_its_cause() -> None:
    raised = {key: KeyError(key) for key in "abc"}

    def rule(base: Any, ours: Any, theirs: Any) -> Any:
        raise raised[ours]

    error = conflict_error({}, {"z": 0, "a": "a", "b": "b"}, {"z": 1, "a": 0, "b": 0}, {"[ab]": rule})
    assert {*error.conflicts} == {
        Conflict(("z",), MISSING, 0, 1), Conflict(("a",), MISSING, "a", 0), Conflict(("b",), MISSING, "b", 0)
    }  # fmt: skip
    assert error.__cause__ is raised["a"]
    assert conflict_error({}, {"k": {"x": "c"}}, {"k": {"x": 0}}, nested(rule)).__cause__ is raised["c"]
    assert conflict_error({}, {"k": 1}, {"k": 2}, rules.fail).__cause__ is None


def test_a_cancellation_is_no_refusal() -> None:
    def rule(base: Any, ours: Any, theirs: Any) -> Any:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        merge({}, {"k": 1}, {"k": 2}, rule)


def test_what_a_rule_returns_is_checked_and_nothing_else_is() -> None:
    refused = ValueError("not storable")

    def check(value: Any) -> None:
        if value == 1:
            raise refused

    base, ours, theirs = {"n": 0}, {"n": 1, "ours": 1}, {"n": 2, "theirs": 1}
    assert merge(base, ours, theirs, rules.theirs, check) == {"n": 2, "ours": 1, "theirs": 1}
    error = conflict_error(base, ours, theirs, rules.ours, check)
    assert error.conflicts == (Conflict(("n",), 0, 1, 2),)
    assert error.__cause__ is refused
    assert conflict_error({}, {"k": ours}, {"k": theirs}, nested(rules.ours), check).__cause__ is refused


# Laws.


@given(versions(values))
def test_if_one_side_changed_nothing_the_other_is_taken(sides: tuple[Values, Values, Values]) -> None:
    one, other, _ = sides
    for ours, theirs in ((one, other), (other, one), (other, other)):
        assert is_same(merge(one, ours, theirs), other)


@given(
    base=st.dictionaries(keys, values),
    ours=st.dictionaries(st.sampled_from(["a", 1]), values | st.just(MISSING)),
    theirs=st.dictionaries(st.sampled_from(["b", "c", 2]), values | st.just(MISSING)),
)
def test_changes_to_different_keys_come_to_the_same_in_any_order(base: Values, ours: Values, theirs: Values) -> None:
    both = changed(changed(base, ours), theirs)
    assert is_same(merge(base, changed(base, ours), changed(base, theirs)), both)
    assert is_same(merge(base, changed(base, theirs), changed(base, ours)), both)


@given(versions(values))
def test_each_key_is_merged_or_reported_and_never_mixed(sides: tuple[Values, Values, Values]) -> None:
    merged, expected = Values(), set[Any]()
    for key in {key for side in sides for key in side}:
        base, ours, theirs = (side.get(key, MISSING) for side in sides)
        if not (is_same(base, ours) or is_same(base, theirs) or is_same(ours, theirs)):
            expected.add((key,))
        merged[key] = theirs if is_same(base, ours) else ours
    if expected:
        assert {*paths(*sides, rules.fail)} == {*paths(*sides)} == expected
    else:
        assert is_same(merge(*sides, rules.fail), changed({}, merged))


def test_a_pattern_of_bytes_matches_no_key() -> None:
    assert merge({}, {"a": 1, b"a": 1}, {}, {re.compile(b"a"): rules.fail}) == {"a": 1, b"a": 1}
