"""`SQLEngine`: records and locks in a database; each step is one statement on one row."""

from __future__ import annotations

import asyncio
import hashlib
import math
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, get_args

from sqlalchemy import URL, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.base import Executable

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.remote import holders
from asyncsess.backends.remote.engine import Busy, Claim, Granted
from asyncsess.backends.remote.held import finish
from asyncsess.backends.remote.loops import drop_ended
from asyncsess.backends.sql.acquisition import Acquisition
from asyncsess.backends.sql.client import Client
from asyncsess.backends.sql.connections import LostConnectionError, NoAnswerError
from asyncsess.backends.sql.databases import database_of
from asyncsess.backends.sql.locks import FOREVER, LockStatements
from asyncsess.backends.sql.sessions import AT_ONCE, MemberStatements, SessionStatements, decode
from asyncsess.backends.sql.sweep import sweep
from asyncsess.backends.sql.tables import Tables
from asyncsess.errors import CommitUnknownError, LockLostError, StoreError
from asyncsess.expiry import Expiry

Locking = Literal["lease", "advisory"]
_LOST: Final = "the session was taken over by another; nothing was stored"


class SQLEngine:
    """A PostgreSQL, MariaDB, MySQL or SQLite database.

    Args:
        database: Its URL, or an engine of SQLAlchemy, which is used in its own event loop only.
        prefix: Of the names of the tables.
        locking: When the lock of a process that is gone is free: ``"lease"``, at the end of its lease; ``"advisory"``,
            as soon as the server ends its connection, which holds an advisory lock.
        timeout: Seconds for which a connection, or an answer, is waited for.
    """

    def __init__(
        self,
        database: str | URL | AsyncEngine,
        *,
        prefix: str = "asyncsess_",
        locking: Locking = "lease",
        timeout: float = 5.0,
    ) -> None:
        self._engine = database if isinstance(database, AsyncEngine) else None
        self._database, self._url = database_of(database)
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be greater than 0 seconds and have an end, not {timeout:g}")
        if locking not in get_args(Locking):
            raise ValueError(f"locking is one of {', '.join(get_args(Locking))}, not {locking!r}")
        if locking == "advisory" and self._database.is_gone is None:
            raise ValueError(f"{self._url.get_backend_name()} has no advisory locks")
        self._locking = locking
        self._timeout = timeout
        self._tables = Tables(prefix)
        self._prefix = prefix
        self._sessions = SessionStatements(self._tables, self._database)
        self._names = LockStatements(self._tables.locks, self._database)
        self._members = MemberStatements(self._tables, self._database)
        self._clients = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Client]()

    def __repr__(self) -> str:
        return f"<SQLEngine {self._url.get_backend_name()} prefix={self._prefix!r} locking={self._locking!r}>"

    def ddl(self) -> str:
        """Return the statements that make the tables."""
        return self._tables.script(self._url.get_dialect()())

    async def create_tables(self) -> None:
        """Make the tables, as far as they are not there; several processes may do so at once."""
        await self._here().make_tables()

    async def open(self) -> None:
        await self.read("")

    async def aclose(self) -> None:
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await finish(client.close())

    async def now(self) -> float:
        ((now,),) = (await self._here().repeat(select(self._database.now))).rows
        return float(now)

    async def read(self, key: str) -> Found:
        return decode(await self._row(self._sessions.read, key))

    # Locks.

    async def ready(self) -> None:
        """Do nothing: what could not be sent leaves nothing behind."""

    async def take(self, claim: Claim) -> Granted | Busy:
        return await finish(self._take(claim))

    async def _take(self, claim: Claim) -> Granted | Busy:
        client, locks = self._here(), self._locks(claim)
        is_new = client.waits.begin(claim.token)
        values = await self._taking(claim)
        if claim.name is not None and is_new and (await client.repeat(locks.adopt, values)).matched:
            return self._granted(client, claim, None)  # as most often: a name has a row only while it is held
        answer = await Acquisition(client, self._database, locks, values).take()
        if isinstance(answer, Busy):
            client.hear()
            return answer
        if answer is None:
            if not claim.create:
                client.forget(claim)
                return Granted(None, is_locked=False)
            if not (await client.repeat(locks.adopt, values)).matched:
                return Busy(None, 0, 0.0)  # another was faster: ask again
            return self._granted(client, claim, None)
        taken_from, *rest = answer
        found = decode(rest) if claim.name is None else None
        if found is None and not claim.create:  # it was deleted while this claim waited
            await self.release(claim, now=None)
            return Granted(None, is_locked=False)
        return self._granted(client, claim, found, was_late=taken_from is not None)

    def _granted(self, client: Client, claim: Claim, found: Found, *, was_late: bool = False) -> Granted:
        client.holds(claim, self._locks(claim), _row_key(claim))
        return Granted(found, was_late)

    async def told(self, claim: Claim, seconds: float) -> None:
        await self._here().waits.told(claim.token, seconds)

    def is_contended(self, claim: Claim) -> bool:
        return self._here().is_contended(claim)

    async def leave(self, claim: Claim) -> None:
        client, locks = self._here(), self._locks(claim)
        client.forget(claim)
        await client.repeat(locks.leave, _values(claim))
        await client.repeat(locks.tidy, _values(claim))

    async def release(self, claim: Claim, *, now: float | None) -> None:
        client, locks, values = self._here(), self._locks(claim), _values(claim)
        client.forget(claim)
        if now is not None:
            await client.repeat(self._sessions.release_used, {**values, "used_at": now})
        elif not (await client.repeat(locks.release_empty, values)).matched:
            await client.repeat(locks.release, values)
            await client.repeat(locks.tidy, values)  # those who waited may have left meanwhile

    async def renew(self, claim: Claim, lease: float) -> None:
        values = _values(claim) | {"lease": min(lease, FOREVER)}
        if not (await self._here().repeat(self._locks(claim).renew, values)).matched:
            raise LockLostError(_LOST)

    async def check(self, claim: Claim) -> None:
        if not (await self._here().repeat(self._locks(claim).check, _values(claim))).matched:
            raise LockLostError("a variable was taken over; nothing was stored")

    # Records.

    async def create(self, claim: Claim, record: Record) -> bool:
        return await finish(self._create(claim, record))

    async def _create(self, claim: Claim, record: Record) -> bool:
        client = self._here()
        stored = {"data": record.payload, "made_at": record.created_at, "used_at": record.accessed_at}
        values = await self._taking(claim) | stored | {"number": record.version}
        try:
            is_made = (await client.run(self._sessions.create, values)).matched
        except NoAnswerError as error:
            raise _unknown(error) from error
        except LostConnectionError as error:
            try:
                is_made = (await client.repeat(self._sessions.create, values)).matched or (
                    await client.repeat(self._sessions.check, values)
                ).matched
            except StoreError:
                raise _unknown(error) from error
        if is_made:
            self._granted(client, claim, record)
        return bool(is_made)

    async def commit(self, claim: Claim, before: Found, payload: bytes, *, now: float, is_last: bool) -> Record:
        version, created_at = (before.version, before.created_at) if isinstance(before, Record) else (0, now)

        def was_stored(row: Any) -> bool | None:
            if row is None or row.until is not None or row.version > version + 1:
                return None
            return bool(row.version == version + 1 and row.committed_by == claim.token)

        values = {"data": payload, "before": version, "made_at": created_at, "used_at": now}
        statement = self._sessions.commit_last if is_last else self._sessions.commit
        await self._change(claim, statement, values, was_stored)
        if is_last:
            self._here().forget(claim)
        return Record(payload, version + 1, created_at, now)

    async def delete(self, claim: Claim, tombstone: Tombstone | None, *, now: float) -> None:
        def was_deleted(row: Any) -> bool | None:
            if row is None:
                return tombstone is None or None
            return row.until is not None and row.committed_by == claim.token

        if tombstone is not None:
            values = {"data": tombstone.note, "kept_until": tombstone.until}
            await self._change(claim, self._sessions.bury, values, was_deleted)
        else:
            await self._change(claim, self._sessions.empty, {}, was_deleted)
            with suppress(StoreError):  # it is deleted; a row that stays is taken for empty, and swept
                await self._here().repeat(self._sessions.tidy, _values(claim))
        self._here().forget(claim)

    async def _change(
        self, claim: Claim, statement: Executable, values: Mapping[str, Any], was_done: Callable[[Any], bool | None]
    ) -> None:
        """Change the row that a claim holds, once, however often and late the statement is run.

        Args:
            claim: Whose the lock is.
            statement: What to run; it changes nothing if it has been run before, or the lock is another's.
            values: Its parameters, besides those that tell the claim.
            was_done: Tells from the row whether the change was made; None if that can't be told any more.

        Raises:
            LockLostError: The lock is another's, and it was not changed.
            CommitUnknownError: That can't be found out.
        """
        client, values = self._here(), {**_values(claim), **values}
        lost: LostConnectionError | None = None
        try:
            if (await client.run(statement, values)).matched:
                return
        except NoAnswerError as error:
            raise _unknown(error) from error
        except LostConnectionError as error:
            lost = error
        try:
            if lost and (await client.repeat(statement, values)).matched:
                return
            is_done = was_done(await self._row(self._sessions.committed, claim.key))
        except StoreError as error:
            raise _unknown(lost or error) from error
        if is_done is None and lost:
            raise _unknown(lost) from lost
        if not is_done:
            client.forget(claim)
            raise LockLostError(_LOST)

    async def touch(self, key: str, *, now: float) -> None:
        await self._here().repeat(self._sessions.touch, {"of": key, "used_at": now})

    async def keys(self) -> AsyncIterator[str]:
        after = ""
        while rows := (await self._here().repeat(self._sessions.keys, {"after": after})).rows:
            for (after,) in rows:
                yield after
            if len(rows) < AT_ONCE:
                return

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        return await sweep(self._here(), self._sessions, self._names, self._members, expiry, now)

    # Groups.

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        await self._here().repeat(self._members.add, {"group": group, "of": key, "at": now})

    async def members(self, group: str) -> Mapping[str, float]:
        rows = (await self._here().repeat(self._members.all, {"group": group})).rows
        return {key: float(added_at) for key, added_at in rows}

    async def remove_member(self, group: str, key: str) -> None:
        await self._here().repeat(self._members.remove, {"group": group, "of": key})

    # The connections.

    def _here(self) -> Client:
        """Return the client of the running loop."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            drop_ended(self._clients)
            if self._engine is not None and self._clients:
                raise StoreError("an engine of SQLAlchemy belongs to one event loop: pass a URL to use several")
            theirs = self._engine and self._database.share(self._engine)
            client = self._clients[loop] = Client(
                theirs or self._database.connect(self._url, self._timeout),
                self._database,
                self._tables,
                self._timeout,
                is_ours=theirs is None,
                is_advisory=self._locking == "advisory",
            )
        return client

    async def _row(self, statement: Executable, key: str) -> Any:
        rows = (await self._here().repeat(statement, {"of": key})).rows
        return rows[0] if rows else None

    async def _taking(self, claim: Claim) -> dict[str, Any]:
        lease = FOREVER if math.isinf(claim.lease) else claim.lease
        lifeline = await self._here().lifeline()
        return _values(claim) | {"lease": lease, "by": holders.pack(claim.holder), "alive": lifeline}

    def _locks(self, claim: Claim) -> LockStatements:
        return self._sessions if claim.name is None else self._names


def _values(claim: Claim) -> dict[str, Any]:
    """Return the parameters that tell a claim and its lock."""
    entry = f"{claim.token} "
    return {"of": _row_key(claim), "who": claim.token, "entry": entry, "first": f"{entry}%", "within": f"%{entry}%"}


def _row_key(claim: Claim) -> str:
    if claim.name is None:
        return claim.key
    return hashlib.sha256(f"{claim.key}:{claim.name}".encode(errors="surrogatepass")).hexdigest()


def _unknown(error: StoreError) -> CommitUnknownError:
    return CommitUnknownError(f"whether it was stored is not known: {error}")
