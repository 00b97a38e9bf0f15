"""`Session`: the mapping that a block works on, and its life. It does no I/O of its own."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from asyncsess.codec import Codec
from asyncsess.errors import CodecError, ReadOnlySessionError, SessionClosedError
from asyncsess.expiry import seconds
from asyncsess.ids import handle_of, key_of
from asyncsess.keeper import NO_KEEPER, WHY_CLOSED, WRITABLE, Keeper, State
from asyncsess.values import MISSING, is_same, owner_of

_LONGEST_GRACE: Final = 86400.0
_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes, datetime})


class Session(MutableMapping[str, Any]):
    """One opening of a session: a mapping of what it holds.

    Changes are found by comparing encoded values, so nested ones count:

        async with store.open(session_id) as session:
            session["cart"].append("tea")

    It belongs to the block that opened it; after the block, using it raises `SessionClosedError`.
    """

    __slots__ = (
        "__weakref__", "_baseline", "_codec", "_created_at", "_ends_at", "_has_new_id", "_id", "_is_changed",
        "_is_exposed", "_is_pinned", "_keeper", "_locked", "_state", "_touched", "_values", "_version",
    )  # fmt: skip

    def __init__(self, keeper: Keeper, session_id: str, state: State, codec: Codec) -> None:
        self._keeper = keeper
        self._id = session_id
        self._state = state
        self._codec = codec
        self._values: dict[str, Any] = {}
        self._baseline: bytes | None = None
        self._is_changed = self._is_exposed = self._has_new_id = self._is_pinned = False
        self._touched = set[str]()
        self._locked: Collection[str] | None = None
        self._version = 0
        self._created_at = self._ends_at = math.nan

    # The mapping.

    def __getitem__(self, key: str) -> Any:
        if self._state is State.CLOSED:
            raise self._closed()
        value = self._values[key]
        if type(value) not in _ATOMS:
            self._is_exposed = True
            self._touched.add(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.check_writable()
        if self._locked is not None and key not in self._locked:
            raise self._not_locked(key)
        self._is_changed = True
        self._values[key] = value
        self._touched.add(key)
        if type(value) not in _ATOMS:  # whoever has it may change it after the next commit too
            self._is_exposed = True

    def __delitem__(self, key: str) -> None:
        self.check_writable()
        if self._locked is not None and key not in self._locked:
            raise self._not_locked(key)
        del self._values[key]
        self._is_changed = True

    def __contains__(self, key: object) -> bool:
        if self._state is State.CLOSED:
            raise self._closed()
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        if self._state is State.CLOSED:
            raise self._closed()
        return iter(self._values)

    def __len__(self) -> int:
        if self._state is State.CLOSED:
            raise self._closed()
        return len(self._values)

    def __repr__(self) -> str:
        try:
            modified = " modified" if self._state in WRITABLE and self.is_modified else ""
        except CodecError:
            modified = " not storable"
        return f"<Session {self._state.value} version={self._version}{modified}>"

    # What is known about it.

    @property
    def id(self) -> str:
        """The session id. Whoever knows it has the session: never log it."""
        return self._id

    @property
    def handle(self) -> str:
        """What names the session in public, as in `SessionStore.sessions_of`; it opens nothing."""
        return handle_of(key_of(self._id))

    @property
    def owner(self) -> str | None:
        """Who has logged in, see `asyncsess.web.login`; None if nobody has."""
        return owner_of(self._values)

    @property
    def has_new_id(self) -> bool:
        """Whether this block has given it the id that it has, so that its user is to be told."""
        return self._has_new_id

    @property
    def version(self) -> int:
        """The committed version that this is based on; 0 for a session that was never committed."""
        return self._version

    @property
    def is_new(self) -> bool:
        """Whether the session has never been committed."""
        return self._version == 0

    @property
    def is_modified(self) -> bool:
        """Whether there is something to commit."""
        return self._state is not State.CLOSED and self.changes() is not None

    @property
    def created_at(self) -> datetime | None:
        """When the session was first committed, in UTC; None if it has not been."""
        return None if math.isnan(self._created_at) else datetime.fromtimestamp(self._created_at, UTC)

    @property
    def expires_at(self) -> datetime | None:
        """When the session ends unless it is used before, in UTC; None for never, or not committed yet."""
        if not math.isfinite(self._ends_at):
            return None
        return datetime.fromtimestamp(self._ends_at, UTC)

    # What can be done with it.

    async def save(self) -> None:
        """Commit now, and keep the lock. A new session is stored even if it is empty.

        Raises:
            CodecError: A value can't be stored; nothing was.
            LockLostError: The session was taken away; nothing was stored.
            StoreError: The store failed; nothing was stored.
        """
        await self._keeper.save()

    async def release(self, *variables: str) -> None:
        """Commit now, and let others in. What was read stays readable; writing raises from here on.

        Args:
            variables: Of a session opened by `SessionStore.synchronize`, those to give back; all of them if none is
                named.

        Raises:
            CodecError, LockLostError, StoreError: As `save`; the lock is gone in any case.
        """
        if variables and not set(variables) <= set(self._locked or ()):
            raise ValueError("only variables that synchronize() has locked can be released by name")
        if self._state not in (State.RELEASED, State.DESTROYED):
            await self._keeper.release(variables)

    async def renew(self, lease: float | timedelta | None = None) -> None:
        """Begin the lease anew: nobody takes the session over for so long from now on.

        Args:
            lease: Seconds; as many as it was opened with if None.

        Raises:
            LockLostError: Somebody has taken over.
        """
        if self._state not in (State.RELEASED, State.DESTROYED):
            await self._keeper.renew(None if lease is None else seconds(lease, "lease"))

    async def rollback(self) -> None:
        """Drop what was not committed, and let others in."""
        if self._state not in (State.RELEASED, State.DESTROYED):
            await self._keeper.rollback()

    async def refresh(self) -> None:
        """Drop what was not committed, and go on with what is stored now; a lock is kept.

        Raises:
            SessionNotFoundError: The session was destroyed or has expired.
        """
        if self._state is State.DESTROYED:
            raise self._closed()
        await self._keeper.refresh()

    async def destroy(self) -> None:
        """Delete the session and let others in, who will not find it."""
        await self._keeper.destroy()

    async def regenerate_id(self, *, grace: float | timedelta = 30.0) -> None:
        """Commit under a fresh id, in `id` from now on, to which the old one leads for a while; then that is dead.

        Do this at each change of privilege, such as a login, so that an id that somebody planted or saw before
        is worth nothing. If the process is killed in between, both ids lead to the session, never none.

        Args:
            grace: Seconds for which requests that are under way with the old id reach the session. With 0 it is dead at
                once: right where somebody may have planted it, as before a login.

        Raises:
            ValueError: ``grace`` is more than a day.
            CodecError, LockLostError, StoreError: As `save`; the old id leads to the session as before.
        """
        length = seconds(grace, "grace", or_zero=True)
        if length > _LONGEST_GRACE:
            raise ValueError(f"grace must be at most {_LONGEST_GRACE:g} seconds, not {length:g}")
        if self._is_pinned:
            raise SessionClosedError("the headers have left, so the visitor can't be told of another id; do it before")
        before = self._id
        try:
            await self._keeper.regenerate_id(length)
        finally:  # if it was cancelled once it was done, the user is to be told all the same
            self._has_new_id |= self._id != before

    # For the keeper.

    @property
    def state(self) -> State:
        """What may be done with it now."""
        return self._state

    @property
    def baseline(self) -> bytes:
        """What the store has, encoded; an empty mapping for a session that was never stored."""
        return self._codec.encode({}) if self._baseline is None else self._baseline

    def stored(self) -> dict[str, Any]:
        """Return a copy of what the store has."""
        return self._codec.decode(self.baseline)

    def check_writable(self) -> None:
        """Raise what explains why this session can't be changed, if it can't."""
        if self._state is State.READONLY:
            raise ReadOnlySessionError("the session was opened with readonly=True; open it without to change it")
        if self._state not in WRITABLE:
            raise self._closed()

    def pin(self) -> None:
        """Allow no other id: nobody could be told of it."""
        self._is_pinned = True

    def lock(self, variables: Collection[str]) -> None:
        """Allow only these to be changed."""
        self._locked = variables

    def unlock(self, variables: Iterable[str]) -> None:
        """Allow these to be changed too."""
        if self._locked is not None:
            self._locked = {*self._locked, *variables}

    def check_locked(self) -> None:
        """Raise if something inside a variable was changed that is not among those that may be."""
        if self._locked is None:
            return
        base, others = self.stored(), self._touched.difference(self._locked)
        for key in others:
            if not is_same(base.get(key, MISSING), self._values.get(key, MISSING)):
                raise self._not_locked(key)

    def load(self, values: dict[str, Any], baseline: bytes | None) -> None:
        """Hold these values.

        Args:
            values: What the store has.
            baseline: The same, encoded; None if the store has nothing.
        """
        self._values = values
        self._baseline = baseline
        self._is_changed = self._is_exposed = False
        self._touched.clear()

    def reset(self) -> None:
        """Hold what the store has, and drop what was changed."""
        baseline = self._baseline
        self.load({} if baseline is None else self._codec.decode(baseline), baseline)

    def replace(self, values: dict[str, Any]) -> None:
        """Hold other values, none of which has been checked; whoever has a list or a mapping of these keeps it."""
        self._take_over(values)
        self._touched.update(values)
        self._is_changed = self._is_exposed = True

    def rebase(self, values: dict[str, Any], baseline: bytes) -> None:
        """Hold other values, of which the store has ``baseline``; whoever has a list or a mapping of these keeps it."""
        self._take_over(values)
        self._baseline = baseline
        self._is_changed = self.encoded() != baseline

    def _take_over(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            mine = self._values.get(key)
            if mine is value:
                continue
            if type(mine) is list and type(value) is list:
                mine[:] = value
                values[key] = mine
            elif type(mine) is dict and type(value) is dict:
                _exchange(mine, value)
                values[key] = mine
        self._values = values

    def take_changes(self) -> bytes | None:
        """Return `changes` to commit them: what is changed from here on is for the next commit."""
        data = self.changes()
        self._is_changed = False
        return data

    def committed(self, baseline: bytes) -> None:
        """Note what the store has now. What was handed out may still be changed, so it stays exposed."""
        self._baseline = baseline

    def not_committed(self) -> None:
        """Note that what was taken to be committed is still to be."""
        self._is_changed = True

    def dated(self, version: int, created_at: float, ends_at: float) -> None:
        """Note the version and the times of what the store has."""
        self._version = version
        self._created_at = created_at
        self._ends_at = ends_at

    def becomes(self, state: State, session_id: str | None = None) -> None:
        """Change what may be done with it, or the id that leads to it."""
        self._state = state
        self._id = session_id or self._id
        if state is State.CLOSED:  # no cycle is left behind, so what it holds goes with the last reference to it
            self._keeper = NO_KEEPER

    def encoded(self) -> bytes:
        """Return the values encoded.

        Raises:
            CodecError: A value can't be stored.
        """
        return self._codec.encode(self._values, self._touched)

    def changes(self) -> bytes | None:
        """Return the values encoded if they differ from what the store has, else None."""
        if not self._is_changed and not self._is_exposed:
            return None
        encoded = self.encoded()
        return None if encoded == self._baseline else encoded

    def check_unchanged(self) -> None:
        """Raise if something nested was changed in a session that can't be committed any more."""
        if not self._is_exposed or self._baseline is None:
            return
        # What another version of the codec stored may be encoded differently: compare like with like.
        if self.changes() in (None, self._codec.encode(self._codec.decode(self._baseline))):
            return
        if self._state is State.READONLY:
            raise ReadOnlySessionError("something inside a session opened with readonly=True was changed, and is lost")
        raise SessionClosedError("something inside the session was changed after its lock was given back, and is lost")

    def _not_locked(self, key: str) -> ReadOnlySessionError:
        return ReadOnlySessionError(f"the variable {key!r} is not locked here; name it in synchronize() to change it")

    def _closed(self) -> SessionClosedError:
        return SessionClosedError(WHY_CLOSED[self._state])


def _exchange(mapping: dict[Any, Any], content: dict[Any, Any]) -> None:
    mapping.clear()
    mapping.update(content)
