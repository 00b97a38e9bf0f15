from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsess import (
    Conflict,
    ConflictError,
    Operation,
    OperationError,
    append,
    call,
    compare_and_put,
    decrement,
    discard,
    exclude,
    extend,
    include,
    increment,
    pop,
    put,
    put_default,
    remove,
    update,
)
from asyncsess.rules import MISSING
from asyncsess.values import is_same

Make = Callable[[Any], Operation]

SECRET = "hunter22"


class Case(NamedTuple):
    name: str
    make: Make
    before: Any
    after: Any
    result: Any


def case(name: str, make: Make, before: Any, after: Any) -> Case:
    return Case(name, make, before, after, after)


CASES = [
    case("put", lambda path: put(path, "new"), MISSING, "new"),
    case("put", lambda path: put(path, "new"), ["old"], "new"),
    case("put", lambda path: put(path, None), "old", None),
    case("put_default", lambda path: put_default(path, "new"), MISSING, "new"),
    case("put_default", lambda path: put_default(path, None), MISSING, None),
    case("put_default", lambda path: put_default(path, "new"), "old", "old"),
    case("put_default", lambda path: put_default(path, "new"), None, None),
    case("put_default", lambda path: put_default(path, "new"), 0, 0),
    case("compare_and_put", lambda path: compare_and_put(path, "old", "new"), "old", "new"),
    case("compare_and_put", lambda path: compare_and_put(path, {"a": [1]}, None), {"a": [1]}, None),
    case("compare_and_put", lambda path: compare_and_put(path, math.nan, 0), float("nan"), 0),
    case("compare_and_put", lambda path: compare_and_put(path, None, 0), None, 0),
    case("compare_and_put", lambda path: compare_and_put(path, MISSING, "new"), MISSING, "new"),
    Case("discard", discard, "old", MISSING, None),
    Case("discard", discard, None, MISSING, None),
    Case("discard", discard, MISSING, MISSING, None),
    Case("pop", pop, ["old"], MISSING, ["old"]),
    Case("pop", lambda path: pop(path, "default"), None, MISSING, None),
    Case("pop", lambda path: pop(path, "default"), MISSING, MISSING, "default"),
    Case("pop", pop, MISSING, MISSING, None),
    case("increment", increment, MISSING, 1),
    case("increment", increment, 41, 42),
    case("increment", lambda path: increment(path, 0.5), 1, 1.5),
    case("increment", lambda path: increment(path, -2), 1.0, -1.0),
    case("decrement", decrement, MISSING, -1),
    case("decrement", decrement, 41, 40),
    case("decrement", lambda path: decrement(path, 0.5), 1, 0.5),
    case("append", lambda path: append(path, "new"), MISSING, ["new"]),
    case("append", lambda path: append(path, ["new"]), ["old", ["new"]], ["old", ["new"], ["new"]]),
    case("extend", lambda path: extend(path, "ab"), MISSING, ["a", "b"]),
    case("extend", lambda path: extend(path, (item for item in [1, 2])), [2], [2, 1, 2]),
    case("extend", lambda path: extend(path, []), MISSING, []),
    case("remove", lambda path: remove(path, 1), MISSING, []),
    case("remove", lambda path: remove(path, 1), [True, 1.0, 1, 2, 1], [True, 1.0, 2, 1]),
    case("remove", lambda path: remove(path, {"id": 1}), [{"id": 1.0}, {"id": 1}], [{"id": 1.0}]),
    case("remove", lambda path: remove(path, math.nan), [0, float("nan")], [0]),
    case("remove", lambda path: remove(path, 3), [1, 2], [1, 2]),
    case("include", lambda path: include(path, 2, 1, 2), MISSING, [2, 1]),
    case("include", lambda path: include(path, 1, 1.0, True, 4), [3, 1], [3, 1, 1.0, True, 4]),
    case("include", lambda path: include(path, {"id": 1}, {"id": 2}), [{"id": 1}], [{"id": 1}, {"id": 2}]),
    case("include", include, [3], [3]),
    case("exclude", lambda path: exclude(path, 1), MISSING, []),
    case("exclude", lambda path: exclude(path, 1, 5), [3, 1, 1.0, True, 1, 2], [3, 1.0, True, 2]),
    case("exclude", lambda path: exclude(path, {"id": 1}), [{"id": 2}, {"id": 1}], [{"id": 2}]),
    case("update", lambda path: update({"a": None, 1: 2}, path), MISSING, {"a": None, 1: 2}),
    case("update", lambda path: update({"a": 1, "b": 2}, path), {"b": 3, "c": 4}, {"b": 2, "c": 4, "a": 1}),
    case("update", lambda path: update({}, path), MISSING, {}),
]

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
EACH = {case.name: case.make for case in CASES}
each = pytest.mark.parametrize("make", EACH.values(), ids=EACH)


def nest(path: tuple[Any, ...], value: Any) -> dict[Any, Any]:
    """Return a session with a value at a path, and others beside it at each level."""
    *way, last = path
    values = {"other": None} if value is MISSING else {"other": None, last: value}
    for key in reversed(way):
        values = {"other": None, key: values}
    return values


# What each does.


@cases
def test_an_operation_changes_what_its_path_leads_to_and_returns_the_result(case: Case) -> None:
    for path in (("k",), ("x", "k"), (1, b"y", "k"), ("k", "k", -1), ("",)):
        values = nest(path, copy.deepcopy(case.before))
        assert is_same(case.make(path)(values), case.result)
        assert is_same(values, nest(path, case.after))


@cases
def test_a_key_is_a_path_of_one(case: Case) -> None:
    for key in ("k", 2, b"k", 0, "", b""):
        values = nest((key,), copy.deepcopy(case.before))
        assert is_same(case.make(key)(values), case.result)
        assert is_same(values, nest((key,), case.after))


@pytest.mark.parametrize("case", [case for case in CASES if case.before is MISSING], ids=lambda case: case.name)
def test_mappings_on_the_way_are_made_if_there_is_something_to_hold(case: Case) -> None:
    starts: list[dict[Any, Any]] = [{}, {"x": {}}, {"x": {1: {}}}]
    for start in starts:
        values = copy.deepcopy(start)
        assert is_same(case.make(("x", 1, "k"))(values), case.result)
        assert is_same(values, start if case.after is MISSING else {"x": {1: {"k": case.after}}})


def test_update_without_a_path_stores_in_the_session_itself() -> None:
    values = {"a": 1, "b": 2}
    assert update({"b": 3, 1: 4})(values) == {"a": 1, "b": 3, 1: 4}
    assert values == {"a": 1, "b": 3, 1: 4}
    assert update({"b": 5}, ())(values) == values == {"a": 1, "b": 5, 1: 4}


def test_call_changes_the_session_and_returns_what_the_function_returns() -> None:
    def swap(values: dict[Any, Any]) -> str:
        values["a"], values["b"] = values["b"], values.pop("a")
        return "swapped"

    values = {"a": 1, "b": 2}
    assert call(swap)(values) == "swapped"
    assert values == {"a": 2, "b": 1}
    assert call(lambda values: values.clear())(values) is None
    assert values == {}
    with pytest.raises(ZeroDivisionError):
        call(lambda values: 1 / 0)(values)


@pytest.mark.parametrize(
    ("expected", "there"),
    [(1, 2), (1, 1.0), (1, True), (0, False), (None, MISSING), (MISSING, None), (0, MISSING), ("", None), (0.0, -0.0)],
)
def test_compare_and_put_finds_another_value(expected: Any, there: Any) -> None:
    for path in (("k",), ("x", "k")):
        values = nest(path, there)
        with pytest.raises(ConflictError) as caught:
            compare_and_put(path, expected, "new")(values)
        (conflict,) = caught.value.conflicts
        assert isinstance(conflict, Conflict)
        assert is_same([*conflict], [path, expected, "new", there])
        assert is_same(values, nest(path, there))
    values = {}
    with pytest.raises(ConflictError):
        compare_and_put(("x", "k"), "old", "new")(values)
    assert values == {}


def test_an_operation_can_run_again_on_another_session() -> None:
    for case in CASES:
        operation, sessions = case.make(("x", "k")), [nest(("x", "k"), copy.deepcopy(case.before)) for _ in range(3)]
        for values in sessions:
            assert is_same(operation(values), case.result)
        assert is_same(sessions, [nest(("x", "k"), case.after)] * 3)


@pytest.mark.parametrize("name", ["append", "extend", "remove", "include", "exclude"])
def test_a_list_is_replaced_so_an_earlier_result_stays_what_it_was(name: str) -> None:
    old = ["a", 1, {"id": 1}, "a"]
    values = {"k": old}
    change = {"append": append("k", 2), "extend": extend("k", [2]), "remove": remove("k", "a"),
              "include": include("k", 2), "exclude": exclude("k", "a")}[name]  # fmt: skip
    result = change(values)
    assert old == ["a", 1, {"id": 1}, "a"]
    assert result == values["k"] != old


def test_what_was_given_is_not_changed_later_on() -> None:
    items, given = ["a"], {"a": 1}
    values: dict[Any, Any] = {}
    extension = extend("list", items)
    items.append("b")
    extension(values)
    append("list", "c")(values)
    update(given, "mapping")(values)
    put(("mapping", "b"), 2)(values)
    update(given)(values)
    assert values == {"list": ["a", "c"], "mapping": {"a": 1, "b": 2}, "a": 1}
    assert (items, given) == (["a", "b"], {"a": 1})


# What does not fit.

NO_NUMBERS = [SECRET, "", "1", True, False, None, b"1", [1], {}]
NO_LISTS = [SECRET, "", b"", None, 1, True, {}, {SECRET: 1}]
NO_MAPPINGS = [SECRET, "", None, 1, False, [], [SECRET], [["a", 1]]]
UNFIT = {
    "increment": NO_NUMBERS, "decrement": NO_NUMBERS, "append": NO_LISTS, "extend": NO_LISTS, "remove": NO_LISTS,
    "include": NO_LISTS, "exclude": NO_LISTS, "update": NO_MAPPINGS,
}  # fmt: skip


def refused(operation: Operation, values: dict[Any, Any]) -> OperationError:
    before = copy.deepcopy(values)
    with pytest.raises(OperationError) as caught:
        operation(values)
    assert is_same(values, before)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__suppress_context__
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("name", "unfit"), UNFIT.items(), ids=UNFIT)
def test_a_value_of_the_wrong_type_is_refused_with_its_path(name: str, unfit: list[Any]) -> None:
    for path, value in product((("k",), ("x", 1, "k")), unfit):
        error = refused(EACH[name](path), nest(path, value))
        assert error.path == path
        assert str(error).startswith(f"session{''.join(f'[{key!r}]' for key in path)}: {name}: ")
        assert type(value).__name__ in str(error)


@each
def test_a_path_through_what_is_no_mapping_is_refused(make: Make) -> None:
    ways = ((("x", "k"), ("x",)), (("x", 0, "k"), ("x",)), (("x", 0, "k"), ("x", 0)))
    for (path, at), value in product(ways, NO_MAPPINGS):
        error = refused(make(path), nest(at, value))
        assert error.path == path
        assert f"{make(path).name}: {type(value).__name__} is no mapping" in str(error)


def test_an_empty_path_is_refused_at_once() -> None:
    for name in EACH.keys() - {"update"}:
        with pytest.raises(ValueError, match="empty path"):
            EACH[name](())


@pytest.mark.parametrize("key", [True, 1.5, ["a"], {"a": 1}, ("a", True), (False,), ("a", None), ("a", ("b",)), (1.0,)])
def test_keys_of_other_types_are_refused_at_once(key: Any) -> None:
    for make in EACH.values():
        with pytest.raises(TypeError, match="a path is a key"):
            make(key)


@pytest.mark.parametrize("by", ["1", "", True, False, None, [1], 1j, MISSING])
def test_a_number_is_changed_by_a_number_alone(by: Any) -> None:
    for make in (increment, decrement):
        with pytest.raises(TypeError, match=f"{make.__name__}ed by a number"):
            make("k", by)


def test_the_repr_shows_name_and_path_and_no_values() -> None:
    secret: Any = {SECRET: SECRET}
    path = ("cart", 1)
    operations = [
        put(path, SECRET), put_default(path, SECRET), compare_and_put(path, SECRET, secret), discard(path),
        pop(path, SECRET), increment(path, 12345), decrement(path, 12345), append(path, SECRET), extend(path, SECRET),
        remove(path, SECRET), include(path, SECRET), exclude(path, SECRET), update(secret, path),
    ]  # fmt: skip
    assert [repr(operation) for operation in operations] == [f"Operation({name=}, {path=})" for name in EACH]
    assert repr(put("k", SECRET)) == "Operation(name='put', path=('k',))"
    assert repr(update(secret)) == "Operation(name='update', path=())"
    assert repr(call(lambda values: SECRET)) == "Operation(name='call', path=())"


# One after the other.


def compared(values: dict[Any, Any], key: str) -> dict[Any, Any]:
    if values.get(key) != 1:
        raise KeyError
    return values


def listed(values: dict[Any, Any], key: str) -> list[Any]:
    if type(values.get(key, [])) is not list:
        raise TypeError
    return values.get(key, [])  # type: ignore[no-any-return]


def without_first(items: list[Any], n: int) -> list[Any]:
    return items[: items.index(n)] + items[items.index(n) + 1 :] if n in items else items


BY_HAND: dict[str, tuple[Callable[[Any, int], Operation], Callable[[dict[Any, Any], str, int], dict[Any, Any]]]] = {
    "put": (put, lambda old, key, n: {**old, key: n}),
    "put_default": (put_default, lambda old, key, n: {key: n, **old}),
    "compare_and_put": (lambda to, n: compare_and_put(to, 1, n), lambda old, key, n: {**compared(old, key), key: n}),
    "discard": (lambda path, n: discard(path), lambda old, key, n: {its: old[its] for its in old if its != key}),
    "pop": (lambda path, n: pop(path), lambda old, key, n: {its: old[its] for its in old if its != key}),
    "increment": (increment, lambda old, key, n: {**old, key: old.get(key, 0) + n}),
    "decrement": (decrement, lambda old, key, n: {**old, key: old.get(key, 0) - n}),
    "append": (append, lambda old, key, n: {**old, key: [*listed(old, key), n]}),
    "extend": (lambda path, n: extend(path, [n, 0]), lambda old, key, n: {**old, key: [*listed(old, key), n, 0]}),
    "remove": (remove, lambda old, key, n: {**old, key: without_first(listed(old, key), n)}),
    "include": (include, lambda old, key, n: {**old, key: [*dict.fromkeys([*listed(old, key), n])]}),
    "exclude": (exclude, lambda old, key, n: {**old, key: [item for item in listed(old, key) if item != n]}),
    "update": (lambda path, n: update({n: n}, path), lambda old, key, n: {**old, key: {**old.get(key, {}), n: n}}),
}

steps = st.lists(st.tuples(st.sampled_from([*BY_HAND]), st.sampled_from("ab"), st.integers(0, 2)), max_size=20)


@given(steps=steps, way=st.sampled_from([(), ("x",), ("x", 1)]))
def test_operations_one_after_the_other_do_what_was_done_by_hand(
    steps: list[tuple[str, str, int]], way: tuple[Any, ...]
) -> None:
    values: dict[Any, Any] = {}
    expected: dict[Any, Any] = {}
    for name, key, n in steps:
        make, do_by_hand = BY_HAND[name]
        try:
            before, expected = expected, do_by_hand(expected, key, n)
        except (TypeError, KeyError) as error:
            with pytest.raises(OperationError if isinstance(error, TypeError) else ConflictError):
                make((*way, key), n)(values)
        else:
            result = make((*way, key), n)(values)
            assert is_same(result, (before if name == "pop" else expected).get(key))
        inner = values
        for step in way:
            inner = inner.get(step, {})
        assert is_same(inner, expected)


def test_a_number_that_is_too_large_for_a_float_is_an_error_of_the_operation() -> None:
    with pytest.raises(OperationError, match="too large"):
        increment("n", 0.5)({"n": 10**400})
