"""Tokens that tell a visitor's own forms from those of another site: OWASP's synchronizer token pattern."""

from __future__ import annotations

import secrets
from hmac import compare_digest
from typing import Any, Final

from asyncsess.operations import put_default
from asyncsess.values import CSRF
from asyncsess.web.sessions import apply_session, open_session

HEADER: Final = "X-CSRF-Token"
FIELD: Final = "csrf_token"
REFUSAL: Final = (
    "The form was not sent from this session's own page, or it is too old: load the page again, and send its token in "
    f"the field {FIELD} or the header {HEADER}.\n"
)
_SAFE: Final = ("GET", "HEAD", "OPTIONS", "TRACE")


async def csrf_token(request: Any, *, cookie: str | None = None) -> str:
    """Return the token that this session's forms send back; it changes at each login.

    A visitor without a session gets one. Call it outside of a block that has the session locked.

    Args:
        request: A request.
        cookie: As for `open_session`.
    """
    async with open_session(request, readonly=True, cookie=cookie) as session:
        if CSRF in session:
            return str(session[CSRF])
    (token,) = await apply_session(request, put_default(CSRF, secrets.token_urlsafe(32)), cookie=cookie)
    return str(token)


def needs_token(method: str) -> bool:
    """Tell whether requests of a method change something, see RFC 9110, 9.2.1."""
    return method not in _SAFE


async def has_token(request: Any) -> bool:
    """Tell whether the session of a request has a token, so that its form is worth reading."""
    async with open_session(request, readonly=True) as session:
        return CSRF in session


async def is_token(request: Any, sent: str | None, *, cookie: str | None = None) -> bool:
    """Tell whether a request came with the token of its session."""
    async with open_session(request, readonly=True, cookie=cookie) as session:
        expected = session.get(CSRF)
    if not isinstance(expected, str) or not sent:
        return False
    return compare_digest(expected.encode(), sent.encode(errors="surrogateescape"))
