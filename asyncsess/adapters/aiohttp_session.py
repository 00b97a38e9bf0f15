"""Drop-in for aiohttp-session: `AsyncsessStorage` keeps its sessions in a `SessionStore`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from aiohttp import web
from aiohttp_session import AbstractStorage, Session

from asyncsess.adapters.entries import Entries, Entry, Format, store_id
from asyncsess.errors import CodecError
from asyncsess.ids import new_session_id
from asyncsess.rules import Resolve
from asyncsess.store import SessionStore

_ADAPTER: Final = "aiohttp-session"


class AsyncsessStorage(AbstractStorage):
    """A storage for aiohttp-session that merges what concurrent requests change.

        aiohttp_session.setup(app, AsyncsessStorage(store, max_age=1800, resolve={"hits": rules.add}))

    A change inside a value counts without `Session.changed`. `Session.invalidate` and `Session.clear` end the session
    for good: what is put in afterwards begins a new one under a fresh id. So does `new_session`, which ends the session
    that the request came with. A request that saves too late for any of these is told by an error, as is one that meets
    a conflict: the client gets a 500.

    Args:
        store: Where the sessions are. Its own limits hold beside ``max_age``: for sessions that are to last longer,
            make them longer. By them the files of all are deleted.
        resolve: What becomes of what two requests changed; as for `SessionStore.edit`.
        cookie_name, domain, max_age, path, secure, httponly, samesite, encoder, decoder: As for the storages of
            aiohttp-session. A ``max_age`` that a handler gives to a session stays with it.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        resolve: Resolve = None,
        cookie_name: str = "AIOHTTP_SESSION",
        domain: str | None = None,
        max_age: int | None = None,
        path: str = "/",
        secure: bool | None = None,
        httponly: bool = True,
        samesite: str | None = None,
        encoder: Callable[[object], str] = json.dumps,
        decoder: Callable[[str], Any] = json.loads,
    ) -> None:
        super().__init__(
            cookie_name=cookie_name,
            domain=domain,
            max_age=max_age,
            path=path,
            secure=secure,
            httponly=httponly,
            samesite=samesite,
            encoder=encoder,
            decoder=decoder,
        )
        self._entries = Entries(store, resolve, Format(self._values, self._data))

    async def new_session(self) -> Session:
        """Return an empty session, which is stored once something is put in."""
        return _Session(None, {}, None, max_age=self.max_age, encode=self._data)

    async def load_session(self, request: web.Request) -> Session:
        """Return the session that the cookie leads to, or an empty one, whose id will be a fresh one.

        Raises:
            CodecError: ``decoder`` does not understand what is stored.
        """
        cookie = self.load_cookie(request)
        entry = await self._entries.load(store_id(_ADAPTER, cookie)) if cookie else None
        if entry is None:
            return await self.new_session()
        max_age = None if entry.ttl is None else int(entry.ttl)
        return _Session(cookie, self._values(entry.data), entry, max_age=max_age, encode=self._data)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Store what the request made of its session, and set the cookie.

        Raises:
            ConflictError, SessionNotFoundError: As `Entries.save`.
        """
        base = session.base if isinstance(session, _Session) else None
        ours = Entry(self._data(dict(session)), session.max_age)
        identity = None if session.identity is None else str(session.identity)
        if base is not None and identity is not None:
            stored = await self._entries.save(store_id(_ADAPTER, identity), base, ours)
        else:
            identity, stored = await self._begin(identity, ours) if len(session) else None, ours
            await self._end({self.load_cookie(request), getattr(session, "ended", None)} - {identity})
        if identity is None:
            if self.load_cookie(request):
                self.save_cookie(response, "")
            return
        if isinstance(session, _Session):
            session.saved(identity, replace(stored, data=ours.data))
        self.save_cookie(response, identity, max_age=None if stored.ttl is None else int(stored.ttl))

    async def _begin(self, identity: str | None, entry: Entry) -> str:
        """Store a new session under the id that its handler chose, or else a fresh one; return the id."""
        identity = identity or new_session_id()
        await self._entries.put(store_id(_ADAPTER, identity), entry)
        return identity

    async def _end(self, identities: set[str | None]) -> None:
        for identity in identities:
            if identity:
                await self._entries.destroy(store_id(_ADAPTER, identity))

    def _values(self, data: bytes) -> dict[str, Any]:
        try:
            values = self._decoder(data.decode())
        except ValueError as error:
            raise CodecError("the decoder does not understand the stored session") from error
        if type(values) is not dict:
            raise CodecError(f"the decoder makes a {type(values).__name__} of the stored session, not a dict")
        return values

    def _data(self, values: dict[str, Any]) -> bytes:
        return self._encoder(values).encode()


class _Session(Session):
    """A session of one request, which knows what it was loaded with.

    Attributes:
        base: What is stored, as far as this request knows; None for nothing.
        ended: The id that it had before it was ended.
    """

    def __init__(
        self,
        identity: str | None,
        values: dict[str, Any],
        base: Entry | None,
        *,
        max_age: int | None,
        encode: Callable[[dict[str, Any]], bytes],
    ) -> None:
        self._is_marked = False
        self.base = base
        self.ended: str | None = None
        self._encode = encode
        saved_at = None if base is None else int(base.saved_at)
        # Given the values, aiohttp-session would judge their age once more, by the storage's max_age.
        super().__init__(identity, data=None, new=base is None, max_age=max_age)
        self._mapping.update(values)
        self._created = saved_at or self._created

    @property
    def _changed(self) -> bool:
        """Whether aiohttp-session is to save this: also for what was changed inside a value."""
        if self._is_marked or self.base is None:
            return self._is_marked
        try:
            return self._encode(self._mapping) != self.base.data
        except Exception:  # whatever an encoder raises, it is for the saving to raise
            return True

    @_changed.setter
    def _changed(self, is_marked: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._is_marked = is_marked

    def invalidate(self) -> None:
        """End this session; what is put in from here on begins another."""
        super().invalidate()
        self.ended = self._identity or self.ended
        self.base = self._identity = None

    def clear(self) -> None:
        """Do as `invalidate`."""
        self.invalidate()

    def saved(self, identity: str, stored: Entry) -> None:
        """Note under which id the session is now, and what the store has of what the request knows."""
        self._identity = identity
        self._new = False
        self.base = stored
