"""Session ids: fresh ones, the check of foreign ones, and the key that stands for an id in a store."""

from __future__ import annotations

import hashlib
import re
import secrets

from asyncsess.errors import InvalidSessionIdError

_MAX_LENGTH = 128
_is_fresh = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII).fullmatch
_is_valid = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._:-]{0,127}", re.ASCII).fullmatch


def new_session_id() -> str:
    """Return a fresh id: 256 bits from the system's generator, as 43 URL-safe characters."""
    return secrets.token_urlsafe(32)


def is_issued(text: str) -> bool:
    """Tell whether a text has the form of the ids that `new_session_id` makes."""
    return _is_fresh(text) is not None


def key_of(session_id: str) -> str:
    """Return the key of an id: its SHA-256 as 64 hexadecimal digits.

    Stores, file names and logs see the key only, so whoever can read them can't take over a session, and
    looking a key up tells nothing about ids that resemble each other.

    Raises:
        InvalidSessionIdError: The id is not a string of 1 to 128 letters, digits and ``-_.:`` that starts
            with a letter, a digit, ``-`` or ``_``.
    """
    if not isinstance(session_id, str):
        raise InvalidSessionIdError(f"a session id is a string, not {type(session_id).__name__}")
    if not _is_valid(session_id):
        raise InvalidSessionIdError(_complaint(session_id))
    return hashlib.sha256(session_id.encode("ascii")).hexdigest()


def group_of(owner: str) -> str:
    """Return the name of the group of an owner's sessions: its SHA-256 as 64 hexadecimal digits.

    Raises:
        ValueError: The owner is not a string, or empty.
    """
    if not isinstance(owner, str) or not owner:
        raise ValueError(f"an owner is named by a string that is not empty, such as a user's id; not by {type(owner)}")
    return hashlib.sha256(b"owner\0" + owner.encode(errors="surrogatepass")).hexdigest()


def handle_of(key: str) -> str:
    """Return what names a session in public: it opens nothing, and neither the id nor the key follows from it."""
    return hashlib.sha256(b"handle\0" + key.encode("ascii")).hexdigest()[:32]


def _complaint(session_id: str) -> str:
    if not session_id:
        return "the session id is empty; pass None to start a new session"
    if len(session_id) > _MAX_LENGTH:
        return f"the session id has {len(session_id):,} characters; at most {_MAX_LENGTH} are allowed"
    return "a session id consists of letters, digits and '-_.:' and starts with none of '.:'"
