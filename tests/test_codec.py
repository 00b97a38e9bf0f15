from __future__ import annotations

import collections
import decimal
import enum
import math
import os
import struct
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncsess import Codec, CodecError, EncryptedCodec, JSONCodec, MemoryStore, MsgpackCodec, SessionStore

KEY, OTHER_KEY = "0a" * 32, "b1" * 32
SECRETS = [bytes([number]) * 32 for number in range(3)]
PLAIN = [MsgpackCodec(), JSONCodec()]
ALGORITHMS: list[Literal["aes-gcm", "chacha20-poly1305"]] = ["aes-gcm", "chacha20-poly1305"]

plain = pytest.mark.parametrize("codec", PLAIN, ids=["msgpack", "json"])
algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS)


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


class Mapping(dict[str, Any]):
    pass


class Row(list[Any]):
    pass


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    A = "a"


def is_same(a: object, b: object) -> bool:
    """Tell whether two values are equal in value and in type, bit by bit, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, datetime) and isinstance(b, datetime):
        return (a, a.tzinfo, a.fold) == (b, b.tzinfo, b.fold)
    return a == b


text = st.text(st.characters(codec="utf-8"), max_size=8)
json_leaves = st.none() | st.booleans() | st.integers() | text | st.floats(allow_nan=False, allow_infinity=False)
msgpack_numbers = st.integers(-(2**63), 2**64 - 1)
times = st.datetimes(timezones=st.just(UTC)).map(lambda time: time.replace(fold=0))
msgpack_leaves = st.none() | st.booleans() | msgpack_numbers | text | st.floats() | st.binary(max_size=8) | times
odd_leaves = (
    st.integers() | st.text(st.characters(), max_size=4) | st.decimals() | st.dates() | st.datetimes()
    | st.sampled_from(Level) | st.builds(Text, text) | st.builds(bytearray, st.binary(max_size=8))
)  # fmt: skip


def sessions(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any] = text) -> st.SearchStrategy[dict[str, Any]]:
    def nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)

    return st.dictionaries(text, st.recursive(leaves, nest, max_leaves=6), max_size=3)


small_sessions = sessions(st.integers(0, 9) | text)
json_sessions = sessions(json_leaves)
msgpack_sessions = sessions(msgpack_leaves, text | st.binary(max_size=8) | msgpack_numbers)
anything = sessions(
    msgpack_leaves
    | odd_leaves
    | st.lists(msgpack_leaves | odd_leaves, max_size=2).map(tuple)
    | st.builds(Row, st.lists(msgpack_leaves, max_size=2))
    | st.builds(Mapping, st.dictionaries(text, msgpack_leaves, max_size=2)),
    text | st.integers() | st.booleans() | st.none() | st.text(st.characters(), max_size=4),
)


# What comes back as it was put in.


@given(msgpack_sessions)
@example({"float": -0.0, "nan": math.nan, "inf": -math.inf, "max": 2**64 - 1, "min": -(2**63), "b": b"", "n": None})
@example({"keys": {1: "int", "1": "str", b"1": "bytes"}, "empty": {}, "list": [[], [[]]], "": 0, "\0": "\0"})
@example({"time": datetime(1, 1, 1, tzinfo=UTC), "late": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)})
def test_messagepack_gives_back_what_it_was_given(values: dict[str, Any]) -> None:
    assert is_same(MsgpackCodec().decode(MsgpackCodec().encode(values)), values)


@given(json_sessions)
@example({"float": 1.0, "zero": -0.0, "int": 1, "true": True, "max": 10**4000, "min": -(2**64), "big": 1e308})
@example({"tiny": 5e-324, "text": '\0\u2028"\\</script>', "": {"": [{}]}, "emoji": "\U0001f36a"})
def test_json_gives_back_what_it_was_given(values: dict[str, Any]) -> None:
    assert is_same(JSONCodec().decode(JSONCodec().encode(values)), values)


@plain
@given(values=anything)
def test_any_value_comes_back_unchanged_or_is_refused(codec: Codec, values: dict[str, Any]) -> None:
    with suppress(CodecError):
        assert is_same(codec.decode(codec.encode(values)), values)


@plain
@given(values=small_sessions)
def test_the_same_values_give_the_same_bytes(codec: Codec, values: dict[str, Any]) -> None:
    data = codec.encode(values)
    assert codec.encode(codec.decode(data)) == data == codec.unseal(codec.seal(data, KEY), KEY)


def test_json_is_what_other_programs_read() -> None:
    assert JSONCodec().encode({"a": [1, 2.5, None, True, "x"]}) == b'{"a":[1,2.5,null,true,"x"]}'


# What is refused, and where.

NOT_UNCHANGED = [
    (1, 2), {1}, frozenset({1}), decimal.Decimal("1.0"), Colour.RED, Level.LOW, Name.A, Text("a"), Number(1), Real(1.0),
    Mapping(), Row(), collections.OrderedDict(), collections.defaultdict(list), collections.Counter(), 1j,
    bytearray(b"a"), memoryview(b"a"), date(2026, 1, 1), timedelta(1), UUID(int=1), PurePosixPath("a"), range(3),
    object(), print, int, ..., NotImplemented, ValueError(), iter([]), collections.deque(), {}.keys(),
]  # fmt: skip
TIMES = [
    datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(0), "Z")), datetime(2026, 1, 1, tzinfo=UTC, fold=1),
]  # fmt: skip
SURROGATES = ["\ud800", "a\udc80", "\udfff" * 3]
WRONG_KEYS = [None, True, 1.5, (1, 2), Text("a"), Number(1), Level.LOW, Name.A, frozenset()]


@plain
@pytest.mark.parametrize("value", [*NOT_UNCHANGED, *TIMES, *SURROGATES], ids=lambda value: type(value).__name__)
def test_what_would_change_is_refused_with_its_path(codec: Codec, value: object) -> None:
    for values, path in (
        ({"a": value}, ("a",)),
        ({"x": 1, "a": {"b": [0, "\0", {"c": value}]}}, ("a", "b", 2, "c")),
        ({"a": [[], [value, value]]}, ("a", 1, 0)),
    ):
        with pytest.raises(CodecError) as caught:
            codec.encode(values)
        assert caught.value.path == path
        assert isinstance(caught.value, ValueError)
        assert str(caught.value).startswith("session" + "".join(f"[{step!r}]" for step in path) + ":")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, b"a", datetime(2026, 1, 1, tzinfo=UTC)])
def test_json_refuses_what_only_messagepack_has(value: object) -> None:
    with pytest.raises(CodecError) as caught:
        JSONCodec().encode({"a": [value]})
    assert caught.value.path == ("a", 0)


@plain
@pytest.mark.parametrize("key", [*WRONG_KEYS, *SURROGATES], ids=repr)
def test_keys_that_would_change_are_refused_with_their_path(codec: Codec, key: Any) -> None:
    for values, path in (({key: 1}, (key,)), ({"a": [{key: 1}]}, ("a", 0, key))):
        with pytest.raises(CodecError) as caught:
            codec.encode(values)
        assert caught.value.path == path


@pytest.mark.parametrize("key", [1, b"a"])
def test_json_refuses_keys_that_would_become_text(key: Any) -> None:
    with pytest.raises(CodecError) as caught:
        JSONCodec().encode({"a": {key: 1}})
    assert caught.value.path == ("a", key)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400])
def test_messagepack_refuses_integers_beyond_64_bits(number: int) -> None:
    for values, path in (({"a": [number]}, ("a", 0)), ({"a": {number: 1}}, ("a", number))):
        with pytest.raises(CodecError) as caught:
            MsgpackCodec().encode(values)
        assert caught.value.path == path


def test_json_refuses_integers_that_could_not_be_read_again() -> None:
    with pytest.raises(CodecError) as caught:
        JSONCodec().encode({"a": [10**5_000]})
    assert caught.value.path == ("a", 0)


@plain
def test_what_contains_itself_is_refused(codec: Codec) -> None:
    cycle: dict[str, Any] = {"a": []}
    cycle["a"].append(cycle)
    with pytest.raises(CodecError, match="contains itself") as caught:
        codec.encode(cycle)
    assert caught.value.path[:3] == ("a", 0, "a")


@plain
@pytest.mark.parametrize("depth", [101, 1_000, 100_000])
def test_what_is_nested_too_deep_is_refused(codec: Codec, depth: int) -> None:
    value: Any = []
    for _ in range(depth):
        value = [value]
    with pytest.raises(CodecError, match="deeper"):
        codec.encode({"a": value})
    while value:  # a deep list is taken apart one by one: not every Python frees it without recursion
        value = value[0]


@plain
def test_a_hundred_levels_are_not_too_deep(codec: Codec) -> None:
    values: dict[str, Any] = {}
    for _ in range(99):
        values = {"a": values}
    assert codec.decode(codec.encode(values)) == values


# What was stored by something else.


@plain
@given(data=st.binary(max_size=200))
@example(b"\x81\xa1a\xdd\xff\xff\xff\xff")  # a list of 2**32 - 1 items
@example(b"\x81\xa1a\xdf\xff\xff\xff\xff")
@example(b"\x91" * 100_000)
@example(b"\x81\xa1a" * 100_000)
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"a":1' + b"0" * 10_000 + b"}")
@example(b'{"a":1e999}')
@example(b'{"a":NaN}')
@example(b'{"a":"\\ud800"}')
@example(b"\x81\x91\x90\x01")
@example(b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12)
@example(b"\x80\x80")
@example(b"cos\nsystem\n(S'true'\ntR.")
def test_hostile_bytes_are_a_mapping_or_an_error(codec: Codec, data: bytes) -> None:
    with suppress(CodecError):
        assert type(codec.decode(data)) is dict


@plain
@given(values=small_sessions, cut=st.floats(0, 1, exclude_max=True))
def test_truncated_data_is_an_error(codec: Codec, values: dict[str, Any], cut: float) -> None:
    data = codec.encode(values)
    with pytest.raises(CodecError):
        codec.decode(data[: int(cut * len(data))])


@plain
@pytest.mark.parametrize("value", [[], "a", 1, None, 1.5, True])
def test_data_that_is_no_mapping_is_an_error(codec: Codec, value: Any) -> None:
    data = codec._encode(value)  # type: ignore[attr-defined]
    with pytest.raises(CodecError, match="not a mapping"):
        codec.decode(data)


# Encryption.


@algorithms
@given(values=msgpack_sessions)
def test_encryption_gives_back_what_it_was_given(algorithm: Any, values: dict[str, Any]) -> None:
    codec = EncryptedCodec(SECRETS, algorithm=algorithm)
    assert is_same(codec.decode(codec.unseal(codec.seal(codec.encode(values), KEY), KEY)), values)


@algorithms
def test_the_payload_shows_nothing_and_differs_each_time(algorithm: Any) -> None:
    codec = EncryptedCodec(SECRETS, algorithm=algorithm)
    data = codec.encode({"password": "hunter22"})
    payloads = {codec.seal(data, KEY) for _ in range(100)}
    assert len(payloads) == 100
    assert not any(b"hunter22" in payload or b"password" in payload for payload in payloads)
    assert data == codec.encode({"password": "hunter22"})  # else every session would be rewritten each time


@algorithms
def test_a_payload_moved_to_another_session_does_not_open(algorithm: Any) -> None:
    codec = EncryptedCodec(SECRETS, algorithm=algorithm)
    with pytest.raises(CodecError):
        codec.unseal(codec.seal(b"data", KEY), OTHER_KEY)


@algorithms
def test_a_payload_with_any_bit_flipped_does_not_open(algorithm: Any) -> None:
    codec = EncryptedCodec(SECRETS, algorithm=algorithm)
    payload = codec.seal(codec.encode({"a": 1}), KEY)
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            codec.unseal(bytes(flipped), KEY)


@algorithms
def test_a_truncated_or_prolonged_payload_does_not_open(algorithm: Any) -> None:
    codec = EncryptedCodec(SECRETS, algorithm=algorithm)
    payload = codec.seal(codec.encode({"a": 1}), KEY)
    for broken in (*(payload[:length] for length in range(len(payload))), payload + b"\0"):
        with pytest.raises(CodecError):
            codec.unseal(broken, KEY)


@algorithms
@given(payload=st.binary(max_size=100), head=st.binary(max_size=40))
def test_a_payload_that_was_not_sealed_never_passes_as_plain_data(algorithm: Any, payload: bytes, head: bytes) -> None:
    codec = EncryptedCodec(SECRETS, algorithm=algorithm)
    sealed = codec.seal(b"", KEY)
    for forged in (payload, codec.encode({"admin": True}), sealed[:5] + payload, sealed[:17] + payload, head + sealed):
        if forged != sealed:
            with pytest.raises(CodecError):
                codec.unseal(forged, KEY)


@algorithms
def test_the_newest_secret_seals_and_every_secret_opens(algorithm: Any) -> None:
    first = EncryptedCodec(SECRETS[:1], algorithm=algorithm)
    both = EncryptedCodec([SECRETS[1], SECRETS[0]], algorithm=algorithm)
    second = EncryptedCodec(SECRETS[1:2], algorithm=algorithm)
    assert both.unseal(first.seal(b"data", KEY), KEY) == b"data"
    assert second.unseal(both.seal(b"data", KEY), KEY) == b"data"
    for codec, payload in ((second, first.seal(b"data", KEY)), (first, both.seal(b"data", KEY))):
        with pytest.raises(CodecError, match="not encrypted with any"):
            codec.unseal(payload, KEY)


def test_a_change_of_algorithm_leaves_old_payloads_readable() -> None:
    aes, chacha = (EncryptedCodec(SECRETS, algorithm=algorithm) for algorithm in ALGORITHMS)
    assert chacha.unseal(aes.seal(b"data", KEY), KEY) == b"data"
    assert aes.unseal(chacha.seal(b"data", KEY), KEY) == b"data"
    assert aes.seal(b"data", KEY)[0] != chacha.seal(b"data", KEY)[0]


def test_any_codec_can_be_encrypted() -> None:
    codec = EncryptedCodec(SECRETS, JSONCodec())
    assert codec.decode(b'{"a":1}') == {"a": 1}
    with pytest.raises(CodecError):
        codec.encode({"a": b"not in JSON"})


@pytest.mark.parametrize("secrets", [[], [b""], [b"short"], [os.urandom(32), os.urandom(31)], [os.urandom(33)]])
def test_secrets_of_the_wrong_length_are_refused(secrets: list[bytes]) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        EncryptedCodec(secrets)


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="aes-gcm, chacha20-poly1305"):
        EncryptedCodec(SECRETS, algorithm="rot13")  # type: ignore[arg-type]


def test_the_repr_shows_no_secret() -> None:
    secrets = [os.urandom(32), os.urandom(32)]
    shown = repr(EncryptedCodec(secrets))
    assert "secrets=2" in shown
    assert not any(repr(secret)[2:-1] in shown or secret.hex() in shown for secret in secrets)


@algorithms
async def test_a_session_stays_readable_through_all_its_life(algorithm: Any) -> None:
    async with MemoryStore(codec=EncryptedCodec(SECRETS, algorithm=algorithm), sweep_interval=None) as store:
        async with store.open(await store.create({"n": 0})) as session:
            session["n"] += 1
            await session.save()
            await session.regenerate_id()
            await session.refresh()
            session["n"] += 1
        async with store.open(session.id, readonly=True) as snapshot:
            assert snapshot["n"] == 2


async def test_a_session_of_another_secret_is_refused_and_left_alone() -> None:
    store = MemoryStore(codec=EncryptedCodec(SECRETS[:1]), sweep_interval=None)
    other = SessionStore(store.backend, codec=EncryptedCodec(SECRETS[1:]), sweep_interval=None)
    session_id = await store.create({"n": 0})
    for how in ({}, {"readonly": True}, {"create": True}):
        with pytest.raises(CodecError):
            await other.open(session_id, **how).__aenter__()
    async with store.open(session_id, timeout=1) as session:
        assert session["n"] == 0


@algorithms
async def test_a_session_that_was_only_looked_at_is_not_sealed_anew(algorithm: Any) -> None:
    async with MemoryStore(codec=EncryptedCodec(SECRETS, algorithm=algorithm), sweep_interval=None) as store:
        session_id = await store.create({"cart": ["tea"]})
        async with store.open(session_id) as session:
            assert session["cart"] == ["tea"]
        async with store.open(session_id, readonly=True) as session:
            assert session.version == 1
