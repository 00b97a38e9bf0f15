"""`SessionStore`: the ways to open, start and end sessions, over any backend."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

from asyncsess.expiry import limit
from asyncsess.lifecycle import Lifecycle
from asyncsess.openings import (
    Caller,
    EditOpening,
    ExclusiveOpening,
    OwnedSession,
    ReadonlyOpening,
    VariablesOpening,
    apply,
    attempts,
    destroy,
    owned,
)
from asyncsess.operations import Operation
from asyncsess.rules import Resolve
from asyncsess.session import Session


class SessionStore(Lifecycle):
    """Sessions over a backend.

    Entered with ``async with``, it also deletes expired sessions from time to time, and closes itself at the end. Its
    options are those of `Lifecycle`.
    """

    def open(
        self,
        session_id: str | None = None,
        *,
        readonly: bool = False,
        create: bool = False,
        touch: bool = True,
        timeout: float | timedelta | None = None,
        lease: float | timedelta | None = None,
    ) -> AbstractAsyncContextManager[Session]:
        """Open a session for the block of an ``async with``.

        Leaving the block commits what was changed; leaving it by an exception or a cancellation does not. Either way
        the lock is gone.

        Args:
            session_id: Which session; None to start a new one under a fresh id, stored once something is put in.
            readonly: Take a snapshot: no lock, no wait, no change.
            create: Start the session under this very id if there is none. For jobs and tests that name their own
                sessions; an id that a client sent must never be adopted.
            touch: Whether this counts as a use of the session, which begins its ``idle_timeout`` anew. Read without by
                what no user asked for, such as a poll of a page that is left open.
            timeout: Seconds to wait for other holders, 0 to try once; the store's ``lock_timeout`` if None.
            lease: Seconds after which those who wait may take the session over from this block; the store's ``lease``
                if None, `math.inf` for never. `Session.renew` begins it anew.

        Raises:
            InvalidSessionIdError: The id is not one that could have been issued or chosen.
            SessionNotFoundError: On entering: there is no such session, or it has expired.
            LockTimeoutError: On entering: it was not free in time; the error names the holder.
            DeadlockError: On entering: this task has it open already.
            CorruptSessionError: On entering: what is stored is damaged; it was moved aside.
            CodecError: On entering: what is stored is of another codec or secret. On leaving: a value can't be stored.
            LockLostError: On leaving: the session was taken over, or taken away; nothing was stored.
            StoreError: The store was closed, or failed; on leaving: nothing was stored.
        """
        self._check_open()
        if not readonly:
            if not touch:
                raise ValueError("touch=False is for readonly=True: whoever may change a session uses it")
            wait = self._wait(timeout)
            return ExclusiveOpening(
                self._policy, session_id, create=create, timeout=wait, caller=_caller(), lease=limit(lease, "lease")
            )
        if session_id is None or create:
            raise ValueError("readonly=True reads a session that exists: pass its id, and not create=True")
        return ReadonlyOpening(self._policy, session_id, touch=touch)

    def edit(
        self, session_id: str | None, *, resolve: Resolve = None, timeout: float | timedelta | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """Open a session without a lock, for the block of an ``async with``.

        Leaving the block merges what was changed into what others have stored meanwhile, key by key, and commits it
        under the lock, which is held for a moment only. `Session.save` and `Session.release` do the same earlier.

            async with store.edit(session_id, resolve={"hits": rules.add}) as session:
                session["answer"] = await ask_slowly(session["question"])
                session["hits"] += 1

        Args:
            session_id: Which session; None to start a new one under a fresh id, stored once something is put in.
            resolve: What becomes of a key that both this block and others changed: a rule of `asyncsess.rules` for all
                keys, or a mapping from a key, a glob pattern or a compiled regular expression to a rule, of which the
                first that matches is taken. Without a rule, both making the same of it is agreement, so a counter needs
                `rules.add`, and anything else is a conflict.
            timeout: Seconds to wait for other holders at a commit; the store's ``lock_timeout`` if None.

        Raises:
            InvalidSessionIdError, SessionNotFoundError, CorruptSessionError: As `open`. A session that was destroyed
                meanwhile is not found on leaving, and stays destroyed.
            ConflictError: On leaving: others changed the same; nothing was stored.
            LockTimeoutError, DeadlockError, CodecError, StoreError: On leaving: nothing was stored.
        """
        self._check_open()
        return EditOpening(self._policy, session_id, resolve=resolve, timeout=self._wait(timeout), caller=_caller())

    def synchronize(
        self,
        session_id: str,
        *variables: str,
        resolve: Resolve = None,
        timeout: float | timedelta | None = None,
        lease: float | timedelta | None = None,
    ) -> AbstractAsyncContextManager[Session]:
        """Lock variables of a session, not the session, for the block of an ``async with``.

        Others change other variables meanwhile, and readers read. Leaving the block commits what was changed, and gives
        the locks back; `Session.release` does that for some of them earlier.

            async with store.synchronize(session_id, "search") as session:
                session["search"] = await search_slowly(session["question"])

        The locks are those of the id: who comes by a new one does not wait for those who came by the old, and whoever
        commits last meets a conflict.

        Args:
            session_id: Which session.
            variables: The keys to lock, which alone may be changed.
            resolve: What becomes of one of them if somebody changed it who had not locked it, by `open`, `edit` or
                `apply`; see `edit`.
            timeout: Seconds to wait for all of the locks; the store's ``lock_timeout`` if None.
            lease: Seconds after which those who wait may take a variable over from this block; as for `open`.

        Raises:
            LockTimeoutError: On entering: a variable was not free in time.
            DeadlockError: On entering: this task holds one of them.
            ReadOnlySessionError: On leaving: something inside another variable was changed; nothing was stored.
            InvalidSessionIdError, SessionNotFoundError, ConflictError and others: As `edit`.
        """
        self._check_open()
        if not variables or not all(isinstance(variable, str) for variable in variables):
            raise ValueError("name the variables to lock: one or more strings")
        return VariablesOpening(
            self._policy,
            session_id,
            variables,
            resolve=resolve,
            timeout=self._wait(timeout),
            caller=_caller(),
            lease=limit(lease, "lease"),
        )

    async def attempts(
        self,
        session_id: str,
        *,
        resolve: Resolve = None,
        times: int = 5,
        timeout: float | timedelta | None = None,
    ) -> AsyncIterator[AbstractAsyncContextManager[Session]]:
        """Yield openings of a session until the block in them meets no conflict.

        Each but the last is an `edit`. What is left then is a session that everybody changes, so the last opens it
        exclusively, and meets none.

            async for attempt in store.attempts(session_id):
                async with attempt as session:
                    session["total"] = price(session["cart"])

        Args:
            session_id: Which session.
            resolve: What settles a conflict without another attempt; as for `edit`.
            times: How many attempts there are at most.
            timeout: Seconds to wait for other holders; the store's ``lock_timeout`` if None.

        Raises:
            As `edit` and `open`, save for `ConflictError`.
        """
        self._check_open()
        async for attempt in attempts(
            self._policy, session_id, resolve=resolve, times=times, timeout=self._wait(timeout), caller=_caller()
        ):
            yield attempt

    def apply(
        self, session_id: str, *operations: Operation, timeout: float | timedelta | None = None
    ) -> Coroutine[Any, Any, tuple[Any, ...]]:
        """Run operations of `asyncsess.operations` on the newest data, all of them or none; return their results.

            hits, _ = await store.apply(session_id, increment("hits"), append("log", "x"))

        Args:
            session_id: Which session.
            operations: What to do, in this order.
            timeout: Seconds to wait for other holders; the store's ``lock_timeout`` if None.

        Raises:
            InvalidSessionIdError, SessionNotFoundError, LockTimeoutError, CorruptSessionError, StoreError: As `open`.
            DeadlockError: This task has it open: change that session itself.
            OperationError: One does not fit what is there; nothing was stored.
            ConflictError: ``compare_and_put`` found another value; nothing was stored.
            CodecError: A value can't be stored; nothing was.
        """
        self._check_open()
        opening = ExclusiveOpening(
            self._policy, session_id, timeout=self._wait(timeout), caller=_caller(), mode="apply"
        )
        return apply(opening, operations)

    async def create(self, values: Mapping[str, Any] | None = None) -> str:
        """Start a session that holds these values; return its fresh id.

        Raises:
            CodecError: A value can't be stored.
            StoreError: The store failed.
        """
        async with self.open() as session:
            session.update(values or {})
            await session.save()
        return session.id

    def destroy(self, session_id: str) -> Coroutine[Any, Any, bool]:
        """Delete a session, once whoever holds it is done; return whether there was one.

        Raises:
            LockTimeoutError: It was not free in time; it is still there.
            DeadlockError: This task has it open; use `Session.destroy`.
            StoreError: The store failed.
        """
        return destroy(self._policy, session_id, timeout=self._lock_timeout, caller=_caller())

    async def sessions_of(self, owner: str) -> list[OwnedSession]:
        """Return the live sessions of whoever has logged in as this owner, the one used last first.

        Raises:
            StoreError: The store failed.
        """
        self._check_open()
        return await owned.sessions_of(self._policy, owner)

    def destroy_all(self, owner: str, *, keep: Session | str | None = None) -> Coroutine[Any, Any, int]:
        """Delete all sessions of an owner, once whoever holds them is done; return how many there were.

        Args:
            owner: Whose.
            keep: The session, or its id, that stays: that of who asks for the others to end.

        Raises:
            LockTimeoutError, DeadlockError, StoreError: As `destroy`; the others were deleted nevertheless.
        """
        self._check_open()
        spared = keep if keep is None or isinstance(keep, str) else keep.id
        return owned.destroy_all(
            self._policy,
            owner,
            spared=spared,
            timeout=self._lock_timeout,
            caller=_caller(),
        )

    def destroy_one(self, owner: str, handle: str) -> Coroutine[Any, Any, bool]:
        """Delete the session of an owner that has a handle, see `sessions_of`; return whether there was one.

        Raises:
            LockTimeoutError, DeadlockError, StoreError: As `destroy`.
        """
        self._check_open()
        return owned.destroy_one(self._policy, owner, handle, timeout=self._lock_timeout, caller=_caller())


def _caller() -> Caller:
    """Return the file and line that called this package."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__", "").startswith("asyncsess.") and frame.f_back:
        frame = frame.f_back
    return Caller(frame.f_code.co_filename, frame.f_lineno)
