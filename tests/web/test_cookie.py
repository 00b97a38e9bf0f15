"""The cookie that carries a session id."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsess.ids import is_issued, new_session_id
from asyncsess.web import CookiePolicy

ID = "x" * 43


def attributes(header: str) -> set[str]:
    return set(header.split("; ")[1:])


def test_by_default_a_cookie_is_for_this_host_https_and_no_script() -> None:
    policy = CookiePolicy()
    assert policy.name == "__Host-session"
    assert policy.issue(ID, 100) == f"__Host-session={ID}; Path=/; SameSite=Lax; Secure; HttpOnly"
    assert policy.delete() == "__Host-session=; Max-Age=0; Path=/; SameSite=Lax; Secure; HttpOnly"


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        ({"secure": False}, "session", {"Path=/", "SameSite=Lax", "HttpOnly"}),
        ({"path": "/app"}, "__Secure-session", {"Path=/app", "SameSite=Lax", "Secure", "HttpOnly"}),
        (
            {"domain": "example.org"},
            "__Secure-session",
            {"Path=/", "Domain=example.org", "SameSite=Lax", "Secure", "HttpOnly"},
        ),
        ({"name": "sid", "same_site": "Strict"}, "sid", {"Path=/", "SameSite=Strict", "Secure", "HttpOnly"}),
        (
            {"same_site": "None", "is_partitioned": True},
            "__Host-session",
            {"Path=/", "SameSite=None", "Secure", "HttpOnly", "Partitioned"},
        ),
        ({"http_only": False}, "__Host-session", {"Path=/", "SameSite=Lax", "Secure"}),
    ],
)
def test_attributes_are_as_asked_for_and_the_name_fits_them(
    options: dict[str, Any], name: str, expected: set[str]
) -> None:
    policy = CookiePolicy(**options)
    assert policy.name == name
    assert attributes(policy.issue(ID, None)) == expected
    assert attributes(policy.delete()) == expected | {"Max-Age=0"}


@pytest.mark.parametrize(("seconds", "age"), [(86400.9, 86400), (None, 400 * 86400), (10**9, 400 * 86400), (0.0, 0)])
def test_a_persistent_cookie_lasts_as_long_as_the_session_can(seconds: float | None, age: int) -> None:
    assert f"Max-Age={age}" in attributes(CookiePolicy(is_persistent=True).issue(ID, seconds))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "__Host-session", "secure": False}, "unless it has secure=True, path='/', no domain"),
        ({"name": "__Host-session", "path": "/app"}, "unless it has secure=True, path='/', no domain"),
        ({"name": "__Host-session", "domain": "a.org"}, "unless it has secure=True, path='/', no domain"),
        ({"name": "__Secure-session", "secure": False}, "a name with __Secure-"),
        ({"same_site": "None", "secure": False}, "same_site='None'"),
        ({"is_partitioned": True, "secure": False}, "is_partitioned=True"),
        ({"same_site": "lax"}, "'Lax', 'Strict' or 'None', not 'lax'"),
        ({"name": "a b"}, "is no name for a cookie"),
        ({"name": "a=b"}, "is no name for a cookie"),
        ({"path": "app"}, "begins with '/'"),
        ({"path": "/; Domain=evil.org"}, "characters that end a cookie's attribute"),
        ({"domain": "a.org\r\nX: y"}, "characters that end a cookie's attribute"),
        ({"path": "/" + "x" * 4096}, "more than 4096 bytes"),
    ],
)
def test_what_browsers_would_refuse_is_refused_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        CookiePolicy(**options)


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{40,46}", fullmatch=True))
def test_only_what_has_the_form_of_an_id_is_looked_up(value: str) -> None:
    has_form = len(value) == 43 and value.isascii() and all(c.isalnum() or c in "-_" for c in value)
    assert CookiePolicy().session_id(value) == (value if has_form else None)


def test_what_is_issued_has_the_form() -> None:
    assert all(is_issued(new_session_id()) for _ in range(100))
    assert CookiePolicy().session_id(None) is None
