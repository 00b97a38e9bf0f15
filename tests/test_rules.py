from __future__ import annotations

import copy
import math
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsess import Conflict, ConflictError, rules
from asyncsess.merge import merge
from asyncsess.rules import MISSING, Resolve, Rule, nested
from asyncsess.values import identity, is_same
from tests.test_merge import Values, conflict_error, keys, lists, mappings, numbers, paths, session, values, versions

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=1)
SECRET = "hunter22"

items = st.sampled_from([0, 1, 1.0, True, None, "a", {"id": 1}, {"id": True}, [1]])
item_lists = st.lists(items, max_size=5)


def identities(items: list[Any]) -> list[object]:
    return [identity(item) for item in items]


# Taking a side, or none.


@pytest.mark.parametrize(("one", "other"), [(1, 2), (None, MISSING), ([1], {"a": 1}), (MISSING, 0)])
def test_ours_and_theirs_take_a_side(one: Any, other: Any) -> None:
    assert rules.ours("base", one, other) is rules.theirs("base", other, one) is one
    sides = {"k": "base"}, session(one), session(other)
    assert merge(*sides, rules.ours) == session(one)
    assert merge(*sides, rules.theirs) == session(other)


def test_fail_settles_nothing() -> None:
    with pytest.raises(ValueError, match="both sides changed it"):
        rules.fail(0, 1, 2)
    assert paths({}, {"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": rules.fail, "*": rules.ours}) == [("a",)]


# Numbers.


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "total"),
    [
        (5, 7, 4, 6),
        (5, 6, 6, 7),
        (10, 0, 0, -10),
        (MISSING, 2, 3, 5),
        (MISSING, 1, 1, 2),
        (1.5, 2.0, 1.0, 1.5),
        (0, 1, 0.5, 1.5),
        (0.1, 0.2, 0.7, 0.7999999999999999),
        (1, 1.0, 2, 2.0),
        (2**60, 2**60 + 1, 2**60 + 1, 2**60 + 2),
    ],
)
def test_add_adds_up_what_both_sides_added(base: Any, ours: Any, theirs: Any, total: Any) -> None:
    assert repr(rules.add(base, ours, theirs)) == repr(rules.add(base, theirs, ours)) == repr(total)
    assert repr(merge(session(base), session(ours), session(theirs), rules.add)) == repr({"k": total})


def test_two_sides_that_make_the_same_change_have_both_made_it() -> None:
    base, both = {"n": 0, "log": [], "m": {"n": 1}, "x": "a"}, {"n": 1, "log": ["tea"], "m": {"n": 3}, "x": "b"}
    resolve: Resolve = {"n": rules.add, "log": rules.append, "m": nested(rules.add), "x": rules.add}
    merged = {"n": 2, "log": ["tea", "tea"], "m": {"n": 5}, "x": "b"}
    assert is_same(merge(base, both, copy.deepcopy(both), resolve), merged)
    assert is_same(merge(base, both, copy.deepcopy(both)), both)


@pytest.mark.parametrize("wrong", [True, False, "1", "", None, [1], {}, b"1", NOON])
def test_add_refuses_what_is_no_number(wrong: Any) -> None:
    for wrongly in ((wrong, 2, 3), (1, wrong, 3), (1, 2, wrong), (MISSING, wrong, 3), (MISSING, 2, wrong)):
        with pytest.raises(TypeError, match=f"a value of type {type(wrong).__name__} is no number"):
            rules.add(*wrongly)


def test_add_refuses_a_number_that_one_side_deleted() -> None:
    for wrongly in ((1, MISSING, 2), (1, 2, MISSING)):
        with pytest.raises(TypeError, match="a value that is not there is no number"):
            rules.add(*wrongly)


@given(base=st.integers(), ours=st.integers(), theirs=st.integers())
def test_add_comes_to_what_one_after_the_other_would_have(base: int, ours: int, theirs: int) -> None:
    assert rules.add(base, base + ours, base + theirs) == base + ours + theirs


# What has an order.


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [(1, 2), (-1, 0.5), (1.5, 2), (-math.inf, 0), (2**53, 2**53 + 1), (2.0**53, 2**53 + 1), ("", "a"), ("10", "9"),
     (b"a", b"b"), (NOON, LATER)],
)  # fmt: skip
def test_maximum_and_minimum_compare(smaller: Any, larger: Any) -> None:
    for sides in ((smaller, larger), (larger, smaller)):
        for base in (smaller, larger, MISSING, None, [SECRET]):
            assert rules.maximum(base, *sides) is larger
            assert rules.minimum(base, *sides) is smaller


@pytest.mark.parametrize(("smaller", "larger"), [(1.0, 1), (-0.0, 0.0), (0.0, 0), (2.0**60, 2**60)])
def test_ties_do_not_depend_on_the_side(smaller: Any, larger: Any) -> None:
    for sides in ((smaller, larger), (larger, smaller)):
        assert rules.maximum(0, *sides) is larger
        assert rules.minimum(0, *sides) is smaller


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, "1"), (True, 2), (1.0, False), (True, False), (math.nan, 1), (math.nan, math.nan), (1, MISSING), (None, 1),
     (None, None), ("a", b"a"), ([1], [2]), ({}, {}), (NOON, 1.0), (NOON, NOON.replace(tzinfo=None))],
)  # fmt: skip
@pytest.mark.parametrize("rule", [rules.maximum, rules.minimum])
def test_maximum_and_minimum_refuse_what_has_no_order(rule: Rule, one: Any, other: Any) -> None:
    for sides in ((one, other), (other, one)):
        with pytest.raises(TypeError):
            rule(0, *sides)


# Lists.


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "union"),
    [
        ([1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 3]),
        ([1, 2, 3], [2, 3], [1, 2], [2]),
        ([1, 2], [1, 3], [2, 4], [4, 3]),
        ([1, 2, 3], [3, 2, 1], [2, 1, 3, 0], [1, 2, 3, 0]),
        (MISSING, [1, 2], [2, 3], [2, 3, 1]),
        ([], ["b", "a"], ["c", "a"], ["c", "a", "b"]),
        ([1], [], [], []),
        ([1], [1, 1.0], [1, True], [1, True, 1.0]),
        ([1, 1.0, True], [1, True], [1.0, True, "1"], [True, "1"]),
        ([{0: 1}], [{0: 1}, {0: 2}, []], [{0: 1}, {0: 1.0}], [{0: 1}, {0: 1.0}, {0: 2}, []]),
        ([{"a": 1, "b": 2}], [{"b": 2, "a": 1}], [{"a": 1, "b": 2}, math.nan], [{"a": 1, "b": 2}, math.nan]),
        ([1, 1], [1, 1, 2, 2], [1], [1, 2]),
    ],
)
def test_union_is_what_was_kept_and_added(base: Any, ours: Any, theirs: Any, union: Any) -> None:
    assert repr(rules.union(base, ours, theirs)) == repr(union)


@given(base=item_lists, ours=item_lists, theirs=item_lists)
def test_union_has_each_item_that_was_added_and_none_that_was_removed(
    base: list[Any], ours: list[Any], theirs: list[Any]
) -> None:
    union = identities(rules.union(base, ours, theirs))
    was, mine, its = ({*identities(side)} for side in (base, ours, theirs))
    assert {*union} == (was & mine & its) | (mine - was) | (its - was)
    assert len(union) == len({*union})


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "both"),
    [
        (["a"], ["a", "o1", "o2"], ["a", "t1", "t2"], ["a", "t1", "t2", "o1", "o2"]),
        (["a", "b"], ["a", "b", "a"], ["a", "b", "b"], ["a", "b", "b", "a"]),
        (MISSING, ["o"], ["t"], ["t", "o"]),
        ([], ["x"], ["x"], ["x", "x"]),
        (["a"], ["a"], ["a", "t"], ["a", "t"]),
        ([{"id": 1}], [{"id": 1}, 1], [{"id": 1}, 1.0], [{"id": 1}, 1.0, 1]),
        ([math.nan, -0.0], [math.nan, -0.0, 1], [math.nan, -0.0, 2], [math.nan, -0.0, 2, 1]),
    ],
)
def test_append_takes_what_both_sides_put_at_the_end(base: Any, ours: Any, theirs: Any, both: Any) -> None:
    assert repr(rules.append(base, ours, theirs)) == repr(both)


@pytest.mark.parametrize(
    "other", [[], ["a"], ["b", "a"], ["a", "c"], ["x", "a", "b"], ["b"], ["a", "x", "b"], ["a", 0]]
)
def test_append_refuses_a_list_to_which_more_was_done(other: list[Any]) -> None:
    for sides in ((["a", "b", "c"], other), (other, ["a", "b", "c"])):
        with pytest.raises(ValueError, match="more to the list"):
            rules.append(["a", "b"], *sides)


def test_append_refuses_a_list_of_which_an_item_only_looks_equal() -> None:
    for one, other in ((1, 1.0), (1, True), (0.0, -0.0), ({"id": 1}, {"id": True})):
        with pytest.raises(ValueError, match="more to the list"):
            rules.append([one], [one, "a"], [other, "b"])


@given(base=item_lists, ours=item_lists, theirs=item_lists)
def test_append_loses_and_reorders_nothing(base: list[Any], ours: list[Any], theirs: list[Any]) -> None:
    assert is_same(rules.append(base, base + ours, base + theirs), base + theirs + ours)


@pytest.mark.parametrize("rule", [rules.union, rules.append])
@pytest.mark.parametrize("wrong", [None, "ab", {"a": 1}, 1, ("a",), {"a"}])
def test_union_and_append_refuse_what_is_no_list(rule: Rule, wrong: Any) -> None:
    for base, ours, theirs in ((wrong, [1], [2]), ([], wrong, [2]), ([], [1], wrong), (MISSING, wrong, [2])):
        with pytest.raises(TypeError, match=f"a value of type {type(wrong).__name__} is no list"):
            rule(base, ours, theirs)
    with pytest.raises(TypeError, match="a value that is not there is no list"):
        rule([], MISSING, [2])
    with pytest.raises(TypeError, match="a value that is not there is no list"):
        rule([], [1], MISSING)


@pytest.mark.parametrize("rule", [rules.add, rules.maximum, rules.minimum, rules.union, rules.append, rules.fail])
def test_no_refusal_shows_a_value(rule: Rule) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        rule({SECRET: SECRET}, {SECRET: 1}, [SECRET])
    assert SECRET not in str(caught.value)


# Nested rules.


def test_nested_merges_one_level_down() -> None:
    base = {"cart": {"tea": 1, "milk": 1, 1: 0, "gone": 0}}
    ours = {"cart": {"tea": 3, "milk": 1, 1: 1, "gone": 0, "ours": 1}}
    theirs = {"cart": {"tea": 2, "milk": 2, 1: 0, "theirs": 2}}
    merged = {"cart": {"tea": 4, "milk": 2, 1: 1, "ours": 1, "theirs": 2}}
    for resolve in (nested(rules.add), {"c*": nested({"tea": rules.add})}):
        assert is_same(merge(base, ours, theirs, resolve), merged)


def test_nested_conflicts_are_reported_with_their_full_paths_and_all_others() -> None:
    base = {"a": {"x": {"n": 0}, 1: 0}, "z": 0}
    ours = {"a": {"x": {"n": 1}, 1: 1}, "z": 1}
    theirs = {"a": {"x": {"n": 2}, 1: 2}, "z": 2}
    assert paths(base, ours, theirs) == [("a",), ("z",)]
    assert paths(base, ours, theirs, nested()) == [("a", "x"), ("a", 1), ("z",)]
    assert conflict_error(base, ours, theirs, nested(nested())).conflicts == (
        Conflict(("a", "x", "n"), 0, 1, 2), Conflict(("a", 1), 0, 1, 2), Conflict(("z",), 0, 1, 2)
    )  # fmt: skip


def test_nested_rules_reach_two_levels_down() -> None:
    resolve: Resolve = {"a": nested({"x": nested({"n": rules.add}), "y": rules.theirs})}
    base = {"a": {"x": {"n": 1}, "y": 0}}
    ours = {"a": {"x": {"n": 2, "o": 1}, "y": 1}}
    theirs = {"a": {"x": {"n": 3, "t": 1}, "y": 2}}
    assert merge(base, ours, theirs, resolve) == {"a": {"x": {"n": 4, "o": 1, "t": 1}, "y": 2}}


def test_nested_begins_with_an_empty_mapping_where_both_sides_added_one() -> None:
    ours, theirs = {"k": {"a": 1, "n": 1}}, {"k": {"b": 2, "n": 2}}
    assert merge({}, ours, theirs, nested(rules.add)) == {"k": {"a": 1, "b": 2, "n": 3}}
    assert conflict_error({}, ours, theirs, nested()).conflicts == (Conflict(("k", "n"), MISSING, 1, 2),)


@pytest.mark.parametrize(
    ("base", "ours", "theirs"),
    [
        (MISSING, {"a": 1}, [1]),
        ({"a": 0}, {"a": 1}, MISSING),
        ({"a": 0}, {"a": 1}, None),
        (None, {"a": 1}, {"b": 2}),
        ([], {"a": 1}, {"b": 2}),
        (MISSING, 1, 2),
    ],
)
def test_nested_does_not_settle_what_is_no_mapping(base: Any, ours: Any, theirs: Any) -> None:
    for mine, its in ((ours, theirs), (theirs, ours)):
        error = conflict_error(session(base), session(mine), session(its), nested(rules.ours))
        assert error.conflicts == (Conflict(("k",), base, mine, its),)


# Laws.

SHIPPED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (rules.ours, values), (rules.theirs, values), (rules.add, numbers), (rules.maximum, numbers),
    (rules.minimum, numbers), (rules.union, lists), (rules.append, lists), (rules.fail, values),
    (nested(rules.theirs), mappings), (nested(rules.append), st.dictionaries(keys, lists, max_size=3)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "suited"), SHIPPED)
@given(data=st.data())
def test_what_one_side_added_is_never_lost_and_no_side_is_changed(
    rule: Any, suited: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    sides = data.draw(versions(suited))
    before = copy.deepcopy(sides)
    base, ours, theirs = sides
    try:
        merged = merge(base, ours, theirs, rule)
    except ConflictError as error:
        for conflict in error.conflicts:
            assert is_same([*conflict[1:]], [at(conflict.path, side) for side in sides])
            assert not any(is_same(*two) for two in combinations(conflict[1:], 2))
    else:
        for one, other in ((ours, theirs), (theirs, ours)):
            for key in {*one} - {*base} - {*other}:
                assert is_same(merged[key], one[key])
    assert is_same([*before], [*sides])


def at(path: tuple[Any, ...], value: Any) -> Any:
    for key in path:
        value = MISSING if value is MISSING else value.get(key, MISSING)
    return value


ordered = numbers | st.booleans() | st.text(max_size=1) | st.sampled_from([NOON, LATER])
SYMMETRIC: list[tuple[Rule, st.SearchStrategy[Any]]] = [
    (rules.add, numbers | st.booleans()), (rules.maximum, ordered), (rules.minimum, ordered), (rules.union, lists)
]  # fmt: skip


@pytest.mark.parametrize(("rule", "suited"), SYMMETRIC)
@given(data=st.data())
def test_it_does_not_matter_which_side_is_which(
    rule: Rule, suited: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    def settled(base: Values, ours: Values, theirs: Values) -> Any:
        try:
            merged = merge(base, ours, theirs, rule)
        except ConflictError as error:
            return {conflict.path for conflict in error.conflicts}
        return {key: {*identities(value)} if rule is rules.union else identity(value) for key, value in merged.items()}

    base, ours, theirs = data.draw(versions(suited))
    assert settled(base, ours, theirs) == settled(base, theirs, ours)
