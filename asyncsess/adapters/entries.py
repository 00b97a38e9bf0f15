"""What the adapters keep for another library, and how a late save is merged into it.

Those libraries hand over a whole session at a time. What a request loaded is the base of what it saves, so the merge
is three-way, under the lock, which is held for that moment only. Data that nothing is merged into is kept as it came.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Self

from asyncsess.errors import Conflict, ConflictError, SessionNotFoundError
from asyncsess.merge import merge
from asyncsess.rules import Resolve
from asyncsess.session import Session
from asyncsess.store import SessionStore
from asyncsess.values import is_same

_FIELDS: Final = ("data", "ttl", "saved_at", "born")
_LONGEST_DELAY: Final = 60.0
_GONE: Final = "the session that this request loaded was destroyed meanwhile; what the request changed was not stored"


def store_id(adapter: str, *parts: str) -> str:
    """Return the id under which a store keeps what another library knows by any strings at all.

    The library's own id is neither stored nor an id of the store: whoever has it reaches this adapter's sessions only.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    return f"{adapter}.{digest.hexdigest()}"


class Format(NamedTuple):
    """How the data of another library becomes a mapping, and back.

    Attributes:
        decode: Returns None for data that is no mapping, which can't be merged.
        encode: Raises for values that it can't encode.
    """

    decode: Callable[[bytes], dict[str, Any] | None]
    encode: Callable[[dict[str, Any]], bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept under an id.

    Attributes:
        data: The library's own bytes.
        ttl: Seconds from `saved_at` on after which the entry is over; None for the store's limits alone.
        saved_at: When it was saved or renewed, in seconds since the epoch.
        born: Tells an entry from another one that has its id since it was destroyed.
        extra: What else the adapter notes of it.
    """

    data: bytes
    ttl: float | None = None
    saved_at: float = field(default_factory=time.time)
    born: str = field(default_factory=lambda: secrets.token_hex(8))
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Entry {len(self.data)} bytes ttl={self.ttl}>"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self | None:
        """Return what a session of the store holds, whether it is over or not; None for a session that is new."""
        if "data" not in values:
            return None
        data = values["data"]
        extra = {name: value for name, value in values.items() if name not in _FIELDS}
        data = data.encode() if isinstance(data, str) else data
        return cls(data, values["ttl"], values["saved_at"], values["born"], extra)

    def put_into(self, session: Session) -> None:
        """Make a session of the store hold this."""
        values = {"data": _text(self.data), "ttl": self.ttl, "saved_at": self.saved_at, "born": self.born, **self.extra}
        for name in [name for name in session if name not in values]:
            del session[name]
        session.update(values)

    @property
    def expires_at(self) -> float:
        """When it is over, in seconds since the epoch; `math.inf` for never."""
        return math.inf if self.ttl is None else self.saved_at + self.ttl

    @property
    def is_over(self) -> bool:
        """Whether that has come. The clock is the wall's, which tests may move."""
        return time.time() >= self.expires_at

    def is_renewed_by(self, other: Entry) -> bool:
        """Tell whether another time is worth storing where only the time is another.

        If readers recorded each reading, they would be writers. A twentieth of the time, a minute at the most, is how
        much sooner than promised an entry that is only read can be over. Libraries that round down get a second.
        """
        if self.ttl is None or other.ttl is None:
            return self.ttl is not other.ttl
        gained = other.expires_at - self.expires_at
        return gained >= min(_LONGEST_DELAY, other.ttl / 20) or gained <= -1


class Entries:
    """The entries of one adapter.

    Args:
        store: Where they are kept.
        resolve: What becomes of what two requests changed; as for `SessionStore.edit`.
        form: What makes their data mappings.
    """

    def __init__(self, store: SessionStore, resolve: Resolve, form: Format) -> None:
        self._store = store
        self._resolve = resolve
        self._format = form

    async def load(self, session_id: str) -> Entry | None:
        """Return what is there now, without waiting for anybody; None for nothing."""
        try:
            async with self._store.open(session_id, readonly=True) as session:
                entry = Entry.of(session)
        except SessionNotFoundError:
            return None
        return None if entry is None or entry.is_over else entry

    async def put(self, session_id: str, entry: Entry) -> Entry:
        """Store an entry in the place of whatever is there; return it."""
        async with self._store.open(session_id, create=True) as session:
            theirs = Entry.of(session)
            if theirs is not None and not theirs.is_over:
                entry = replace(entry, born=theirs.born)
            entry.put_into(session)
        return entry

    async def save(self, session_id: str, base: Entry | None, ours: Entry) -> Entry:
        """Store what a request made of what it loaded; return what is stored then.

        A request that changed nothing writes nothing, except for a new time.

        Args:
            session_id: Under which id.
            base: What the request loaded; None if there was nothing.
            ours: What it made of that.

        Raises:
            ConflictError: Others changed the same meanwhile, and no rule settles it; nothing was stored.
            SessionNotFoundError: The session was destroyed meanwhile; nothing was stored.
        """
        if base is not None and self.is_same(base, ours):
            return await self.renew(session_id, base, ours)
        async with self._store.open(session_id, create=base is None) as session:
            merged = self._merged(base, ours, Entry.of(session))
            merged.put_into(session)
        return merged

    async def move(self, session_id: str, new_id: str, base: Entry, ours: Entry) -> Entry:
        """Do as `save`, and leave under another id, that nobody knows yet, what was under the first."""
        async with self._store.open(session_id) as session:
            merged = self._merged(base, ours, Entry.of(session))
            await self.put(new_id, merged)
            await session.destroy()
        return merged

    async def renew(self, session_id: str, base: Entry, ours: Entry) -> Entry:
        """Let an entry last for as long as another does, if that is worth a write and it is still there."""
        if not base.is_renewed_by(ours):
            return base
        try:
            async with self._store.open(session_id) as session:
                theirs = Entry.of(session)
                if theirs is None or theirs.born != base.born:
                    return base
                ttl = theirs.ttl if ours.ttl == base.ttl else ours.ttl
                renewed = replace(theirs, ttl=ttl, saved_at=ours.saved_at)
                if theirs.is_renewed_by(renewed):
                    renewed.put_into(session)
        except SessionNotFoundError:  # it is over, and the request had nothing to add
            return base
        return replace(base, ttl=renewed.ttl, saved_at=renewed.saved_at)

    async def destroy(self, session_id: str) -> None:
        """Delete what is there, so that no request in flight brings it back."""
        await self._store.destroy(session_id)

    def is_same(self, one: Entry, other: Entry) -> bool:
        """Tell whether two entries hold the same values."""
        if one.data == other.data:
            return True
        values = self._format.decode(one.data)
        return values is not None and is_same(values, self._format.decode(other.data))

    def _merged(self, base: Entry | None, ours: Entry, theirs: Entry | None) -> Entry:
        """Return what becomes of ours, under the lock."""
        if base is None:
            if theirs is None or theirs.is_over:
                return ours
            return replace(ours, data=self._joined(ours.data, theirs.data), born=theirs.born)
        if theirs is None or theirs.born != base.born:
            raise SessionNotFoundError(_GONE)
        # Over or not: it is still there, and this request came in time.
        ttl = theirs.ttl if ours.ttl == base.ttl else ours.ttl
        return replace(ours, data=self._settled(base.data, ours.data, theirs.data), ttl=ttl, born=theirs.born)

    def _joined(self, ours: bytes, theirs: bytes) -> bytes:
        """Return what becomes of two that both began with nothing; what is no mapping replaces what is there."""
        if self._format.decode(ours) is None or self._format.decode(theirs) is None:
            return ours
        return self._settled(self._format.encode({}), ours, theirs)

    def _settled(self, base: bytes, ours: bytes, theirs: bytes) -> bytes:
        """Return ours merged into theirs."""
        if theirs == base:
            return ours
        start, mine, its = map(self._format.decode, (base, ours, theirs))
        if start is None or mine is None or its is None:
            if theirs == ours:
                return ours
            raise ConflictError([Conflict((), base, ours, theirs)])
        return self._format.encode(merge(start, mine, its, self._resolve, self._check))

    def _check(self, value: Any) -> None:
        self._format.encode({"value": value})


def json_values(data: bytes) -> dict[str, Any] | None:
    """Return the values of a JSON object; None for anything else."""
    try:
        values = json.loads(data.decode())
    except (ValueError, RecursionError):
        return None
    return values if type(values) is dict else None


def json_data(values: dict[str, Any]) -> bytes:
    """Return values as a JSON object."""
    return json.dumps(values, separators=(",", ":")).encode()


def _text(data: bytes) -> str | bytes:
    """Return text as such: every codec of the store takes it, and people can read it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
