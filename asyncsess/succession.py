"""What a tombstone says: that a session was destroyed, or moved, or under which other id it lives on. Pure functions.

No id lies on the disk, so the successor's is sealed: with a pad and a tag that only the predecessor's id gives. Each is
the BLAKE2b (RFC 7693) of that id with a salt that is used once.
"""

from __future__ import annotations

import secrets
import struct
from hashlib import blake2b
from hmac import compare_digest
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct("<d16s16s")
_DEATH: Final = struct.Struct("<d")
_MOVED: Final = b"moved"
_SALT_LENGTH: Final = 16
_TAG_LENGTH: Final = 16


class Succession(NamedTuple):
    """Under which id a session lives on.

    Attributes:
        grace_ends: Until when the old id leads to it, in seconds of the store's clock.
        successor_id: The id.
    """

    grace_ends: float
    successor_id: str

    def __repr__(self) -> str:
        return f"<Succession grace_ends={self.grace_ends}>"


def destroyed(at: float) -> bytes:
    """Return what stands for a session that was destroyed at a time of the store's clock."""
    return _DEATH.pack(at)


def moved(at: float) -> bytes:
    """Return what stands for a session that lives on in another store; to those who know only this one, it is dead."""
    return _DEATH.pack(at) + _MOVED


def is_moved(note: bytes) -> bool:
    """Tell whether a session lives on in another store."""
    return note[_DEATH.size :] == _MOVED


def is_succession(note: bytes) -> bool:
    """Tell whether a session lives on under another id."""
    return len(note) > _HEAD.size


def died_at(note: bytes) -> float:
    """Return when the id ceased, or ceases, to lead to the session, in seconds of the store's clock."""
    return float(_DEATH.unpack_from(note)[0])


def seal(session_id: str, succession: Succession) -> bytes:
    """Return what only the old id opens; an id has at most 64 characters here, and a fresh one 43."""
    salt, successor = secrets.token_bytes(_SALT_LENGTH), succession.successor_id.encode("ascii")
    sealed = _padded(session_id, salt, successor)
    return _HEAD.pack(succession.grace_ends, salt, _tag(session_id, salt, successor)) + sealed


def unseal(session_id: str, note: bytes) -> Succession | None:
    """Return what was sealed under an id; None for what is not of that kind."""
    if not is_succession(note):
        return None
    grace_ends, salt, tag = _HEAD.unpack_from(note)
    successor = _padded(session_id, salt, note[_HEAD.size :])
    if not compare_digest(tag, _tag(session_id, salt, successor)):
        return None
    return Succession(grace_ends, successor.decode("ascii"))


def _padded(session_id: str, salt: bytes, text: bytes) -> bytes:
    pad = blake2b(session_id.encode("ascii"), salt=salt, person=b"asyncsess pad").digest()
    return bytes(a ^ b for a, b in zip(text, pad, strict=False))


def _tag(session_id: str, salt: bytes, successor: bytes) -> bytes:
    text = session_id.encode("ascii") + b"\0" + successor
    return blake2b(text, digest_size=_TAG_LENGTH, salt=salt, person=b"asyncsess tag").digest()
