"""The bytes of a record in Redis, as `asyncsess.backends.redis.scripts` describes them."""

from __future__ import annotations

import struct
from base64 import b64encode
from hashlib import sha256
from typing import Final

from asyncsess.backends.base import Found, Record, Tombstone

_HEAD: Final = struct.Struct(">Bddd")
_RECORD: Final = 1
_TOMBSTONE: Final = 2
_SIZE: Final = 57  # of the head and the marks


def mark_of(token: str, payload: bytes = b"") -> str:
    """Return what a commit of a claim leaves in the record, eight characters."""
    return b64encode(sha256(token.encode() + b" " + payload).digest()[:6]).decode()


def is_record(first: bytes) -> bool:
    """Tell from the first byte of what is stored whether it is a record."""
    return first == bytes([_RECORD])


def decode(data: bytes | None) -> Found:
    """Return what was stored.

    Raises:
        ValueError: It is nothing that this has stored.
    """
    if data is None:
        return None
    if len(data) < _SIZE or data[0] not in {_RECORD, _TOMBSTONE}:
        raise ValueError("what the server has under its key is no session")
    kind, created_at, accessed_at, version = _HEAD.unpack_from(data)
    rest = data[_SIZE:]
    if kind == _TOMBSTONE:
        return Tombstone(rest, accessed_at)
    return Record(rest, int(version), created_at, accessed_at)
