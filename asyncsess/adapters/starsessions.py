"""Drop-in for starsessions: `AsyncsessStore` keeps its sessions in a `SessionStore`."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b64decode, b64encode
from dataclasses import replace
from hmac import compare_digest
from typing import Any, Final

import msgspec
import starsessions
from starsessions.serializers import JsonSerializer, Serializer

from asyncsess.adapters.entries import Entries, Entry, Format, store_id
from asyncsess.adapters.loads import Loads
from asyncsess.ids import new_session_id
from asyncsess.rules import Resolve
from asyncsess.store import SessionStore

_ADAPTER: Final = "starsessions"
_METADATA: Final = "__metadata__"  # where starsessions puts its own
_TICKET: Final = "asyncsess"
_SECRET: Final = secrets.token_bytes(32)
_NONCE, _TAG = 16, 32
_Content = tuple[str, bytes, float | None, float, str]


class AsyncsessStore(starsessions.SessionStore):
    """A store for starsessions that merges what concurrent requests change.

        SessionMiddleware(app, store=AsyncsessStore(store, resolve={"hits": rules.add}), lifetime=3600)

    What a request loaded travels with its session's metadata, sealed, under the name ``asyncsess``: so it is at hand
    wherever the response begins, also outside of a ``BaseHTTPMiddleware``, and goes with the request. It is not stored.
    For data without metadata, the request is known by its task, and by the tasks that this started afterwards; a write
    of one that has read nothing replaces what is there.

    An id that leads to no session is not adopted: the session begins under a fresh one, also if
    ``regenerate_session_id`` gave it another before it was first stored. Once it is stored, ``regenerate_session_id``
    moves it, and the old id is dead. A request that saves too late for that, or for a logout, is told by an error, as
    is one that meets a conflict: the client gets a 500.

    Args:
        store: Where the sessions are. Its own limits hold beside ``lifetime``: for sessions that are to last longer,
            make them longer. They alone end the sessions of a middleware with ``lifetime=0``, and by them the files of
            all are deleted.
        resolve: What becomes of what two requests changed; as for `SessionStore.edit`.
        serializer: That of the middleware. What it can't read is stored whole, and can't be merged.
    """

    def __init__(self, store: SessionStore, *, resolve: Resolve = None, serializer: Serializer | None = None) -> None:
        self._serializer = serializer or JsonSerializer()
        self._entries = Entries(store, resolve, Format(self._values, self._data))
        self._loads = Loads()

    async def read(self, session_id: str, lifetime: int) -> bytes:
        """Return the data of a session; nothing if it is unknown, expired or was removed."""
        key = store_id(_ADAPTER, session_id)
        entry = await self._entries.load(key)
        self._loads.remember(key, entry)
        if entry is None:
            return b""
        metadata = self._metadata_of(entry)
        if metadata is None:
            return entry.data
        return self._data({**(self._values(entry.data) or {}), _METADATA: {**metadata, _TICKET: _ticket(key, entry)}})

    async def write(self, session_id: str, data: bytes, lifetime: int, ttl: int) -> str:
        """Store what a request made of a session; return the id that it has now.

        Raises:
            ConflictError, SessionNotFoundError: As `Entries.save`.
        """
        ours, ticket = self._parted(data, float(max(1, ttl)) if lifetime > 0 else None)
        key = old_key = store_id(_ADAPTER, session_id)
        loaded = self._loads.recall(ticket or key)  # by its ticket, a request is known that saves once more
        base = loaded.entry if loaded else None
        if base is None and ticket and (opened := _opened(ticket)):
            old_key, base = opened
        if base is None:
            ticket = None
            if loaded or ours.extra:  # of a request that began with nothing, perhaps under an id that a client chose
                session_id = new_session_id()
                key = store_id(_ADAPTER, session_id)
            stored = await self._entries.put(key, ours)
        elif old_key == key:
            stored = await self._entries.save(key, base, ours)
        else:
            stored = await self._entries.move(old_key, key, base, ours)
        self._loads.remember(ticket or key, replace(stored, data=ours.data))
        return session_id

    async def remove(self, session_id: str) -> None:
        """Delete a session, so that no request in flight brings it back."""
        await self._entries.destroy(store_id(_ADAPTER, session_id))

    def _parted(self, data: bytes, ttl: float | None) -> tuple[Entry, str | None]:
        """Return what is to be stored of a session's data, and the ticket in it."""
        values = self._values(data)
        metadata = values.pop(_METADATA, None) if values else None
        if values is None or not isinstance(metadata, dict):
            return Entry(data, ttl), None
        ticket = metadata.pop(_TICKET, None)
        # The metadata change with each request, and are none of what is merged.
        ours = Entry(self._data(values), ttl, extra={"metadata": self._data(metadata)})
        return ours, ticket if isinstance(ticket, str) else None

    def _metadata_of(self, entry: Entry) -> dict[str, Any] | None:
        metadata = entry.extra.get("metadata")
        return None if metadata is None else self._values(metadata)

    def _values(self, data: bytes) -> dict[str, Any] | None:
        try:
            values = self._serializer.deserialize(data)
        except Exception:  # whatever a serializer raises, the data is not of its making
            return None
        return values if type(values) is dict else None

    def _data(self, values: dict[str, Any]) -> bytes:
        return self._serializer.serialize(values)


def _ticket(key: str, entry: Entry) -> str:
    """Return what a request has loaded, as a text that only this process opens.

    An application may show its session's metadata, but perhaps not its values.
    """
    nonce = secrets.token_bytes(_NONCE)
    text = msgspec.msgpack.encode((key, entry.data, entry.ttl, entry.saved_at, entry.born))
    sealed = _padded(nonce, text)
    return b64encode(nonce + _tag(nonce + sealed) + sealed).decode()


def _opened(ticket: str) -> tuple[str, Entry] | None:
    """Return what a request has loaded, with its key; None for a text that is no ticket of this process."""
    try:
        raw = b64decode(ticket, validate=True)
    except ValueError:
        return None
    nonce, tag, sealed = raw[:_NONCE], raw[_NONCE : _NONCE + _TAG], raw[_NONCE + _TAG :]
    if not compare_digest(tag, _tag(nonce + sealed)):
        return None
    key, data, ttl, saved_at, born = msgspec.msgpack.decode(_padded(nonce, sealed), type=_Content)
    return key, Entry(data, ttl, saved_at, born)


def _padded(nonce: bytes, text: bytes) -> bytes:
    pad = hashlib.shake_256(b"pad" + _SECRET + nonce).digest(len(text))
    return (int.from_bytes(text) ^ int.from_bytes(pad)).to_bytes(len(text))


def _tag(text: bytes) -> bytes:
    return hashlib.blake2b(text, key=_SECRET, digest_size=_TAG).digest()
