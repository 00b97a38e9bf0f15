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

    A visitor without a session gets one. A new token is stored at once; in a session that this request has locked, with
    what its block commits.

    Args:
        request: A request.
        cookie: As for `open_session`.
    """
    found = await token_of(request, cookie=cookie)
    if found is not None:
        return found
    (token,) = await apply_session(request, put_default(CSRF, secrets.token_urlsafe(32)), cookie=cookie)
    return str(token)


def needs_token(method: str) -> bool:
    """Tell whether requests of a method change something, see RFC 9110, 9.2.1."""
    return method not in _SAFE


async def token_of(request: Any, *, cookie: str | None = None) -> str | None:
    """Return the token of a request's session; None if it has none, so that no form can be its own."""
    async with open_session(request, readonly=True, cookie=cookie) as session:
        token = session.get(CSRF)
    return token if isinstance(token, str) else None


def is_same_token(expected: str | None, sent: str | None) -> bool:
    """Tell whether a request came with its session's token, in a time that does not tell how much of it is right."""
    if not expected or not sent:
        return False
    return compare_digest(expected.encode(), sent.encode(errors="surrogateescape"))
