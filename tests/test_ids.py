from __future__ import annotations

import hashlib
import re
import string
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncsess import InvalidSessionIdError
from asyncsess.ids import key_of, new_session_id

HOSTILE = [
    "", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "a\0b", "\0", "*", "a*", "?", "[a]",
    "a\r\nSet-Cookie: b", "a\n", "\n", "a b", " a", "%2e%2e", "%2e%2e%2f", "~root", "a;b", "a'b", 'a"b', "a|b", "$HOME",
    "ä", "é", "\u0661", "\uff41", "a\u200b", "\udc80", "\U0001f36a", ".hidden", ":a", "a" * 129, "a" * 5_000,
]  # fmt: skip
LETTERS = string.ascii_letters + string.digits + "-_"


def test_a_fresh_id_has_256_bits_in_characters_that_need_no_quoting() -> None:
    ids = {new_session_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", session_id) for session_id in ids)


def test_a_fresh_id_has_a_key() -> None:
    assert len({key_of(new_session_id()) for _ in range(1_000)}) == 1_000


def test_the_key_is_the_hash_of_the_id() -> None:
    assert key_of("job-1") == hashlib.sha256(b"job-1").hexdigest()


@pytest.mark.parametrize("session_id", ["a", "0", "-", "_", "a.b", "a:b", "tenant:job-1.2_3", "z" * 128])
def test_ids_that_a_program_may_choose_are_accepted(session_id: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", key_of(session_id))


@pytest.mark.parametrize("session_id", HOSTILE)
def test_an_id_that_nobody_issued_is_refused_and_not_repeated(session_id: str) -> None:
    with pytest.raises(InvalidSessionIdError) as caught:
        key_of(session_id)
    assert isinstance(caught.value, ValueError)
    if len(session_id) > 2:
        assert session_id not in str(caught.value)


@pytest.mark.parametrize("session_id", [None, 1, b"abc", ["a"], ("a",), object(), 1.5, True])
def test_what_is_no_string_is_refused(session_id: Any) -> None:
    with pytest.raises(InvalidSessionIdError, match=f"not {type(session_id).__name__}"):
        key_of(session_id)


@pytest.mark.parametrize(("session_id", "reason"), [("", "empty"), ("a" * 129, "129"), ("a/b", "letters")])
def test_the_refusal_says_why(session_id: str, reason: str) -> None:
    with pytest.raises(InvalidSessionIdError, match=reason):
        key_of(session_id)


@given(st.one_of(st.text(st.characters()), st.text(LETTERS + ".:/%\n", max_size=140)))
@example("a" * 128)
@example("a" * 128 + "\n")
def test_exactly_the_documented_alphabet_is_accepted(session_id: str) -> None:
    is_valid = 1 <= len(session_id) <= 128 and session_id[0] in LETTERS and set(session_id) <= {*LETTERS, ".", ":"}
    if is_valid:
        assert key_of(session_id) == hashlib.sha256(session_id.encode()).hexdigest()
    else:
        with pytest.raises(InvalidSessionIdError):
            key_of(session_id)
