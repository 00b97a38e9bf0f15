"""The stores that most programs use: a `SessionStore` together with its backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from asyncsess.backends.file import Durability, FileBackend, IOMode
from asyncsess.backends.memory import MemoryBackend
from asyncsess.backends.remote import RemoteBackend
from asyncsess.codec import Codec
from asyncsess.events import Hook
from asyncsess.expiry import Expiry
from asyncsess.store import SessionStore

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine


class StoreOptions(TypedDict, total=False):
    """What every store can be told; see `Lifecycle`."""

    idle_timeout: float | timedelta | None
    lifetime: float | timedelta | None
    lock_timeout: float | timedelta
    lease: float | timedelta
    slow_hold: float | timedelta
    hooks: Sequence[Hook]
    codec: Codec | None
    max_size: int
    max_sessions_per_owner: int | None
    sweep_interval: float | timedelta | None
    clock: Callable[[], float]


class FileStore(SessionStore):
    """Sessions as files in a directory that all processes of one machine may share.

        async with FileStore("var/sessions", idle_timeout=1800, lifetime=86400) as store:
            session_id = await store.create({"cart": []})
            async with store.open(session_id) as session:
                session["cart"].append("tea")

    Args:
        directory: Where; it is made if it is missing, and must be this user's alone.
        durability: What a commit that has returned survives: ``"process"``, the end of any process; ``"power"``, also
            a power cut, for the price of waiting for the disk each time.
        io: ``"loop"`` runs file calls on the event loop, ``"thread"`` in threads, ``"auto"`` on the loop as long as
            they take microseconds.
        allow_network_fs: Accept a network file system, on which one machine alone may use the store.
        **options: As for `Lifecycle`.

    Raises:
        StoreError: On first use: the directory can't be used, or is not safe; the message says what to do.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        durability: Durability = "process",
        io: IOMode = "auto",
        allow_network_fs: bool = False,
        **options: Unpack[StoreOptions],
    ) -> None:
        backend = FileBackend(directory, durability=durability, io=io, allow_network_fs=allow_network_fs)
        super().__init__(backend, **options)


class MemoryStore(SessionStore):
    """Sessions in this process's memory, with the same semantics; for tests, and for a single process.

    Args:
        **options: As for `Lifecycle`.
    """

    def __init__(self, **options: Unpack[StoreOptions]) -> None:
        super().__init__(MemoryBackend(), **options)


class RedisStore(SessionStore):
    """Sessions in Redis or Valkey, for processes on several machines; needs the extra ``redis``.

        async with RedisStore("redis://localhost", idle_timeout=1800) as store: ...

    Args:
        server: The server's URL, or a client of ``redis.asyncio``, which is used in its own event loop only.
        prefix: Of the names of all keys.
        **options: As for `Lifecycle`.
    """

    def __init__(self, server: str | Redis, *, prefix: str = "asyncsess:", **options: Unpack[StoreOptions]) -> None:
        try:
            from asyncsess.backends.redis import RedisEngine
        except ImportError as error:
            raise ImportError("RedisStore needs redis-py: pip install 'asyncsess[redis]'") from error
        backend = RemoteBackend(RedisEngine(server, prefix=prefix, expiry=Expiry.of(**options)))
        options.setdefault("clock", backend.clock)
        super().__init__(backend, **options)


class SQLStore(SessionStore):
    """Sessions in PostgreSQL, MariaDB, MySQL or SQLite; needs the extra ``postgresql``, ``mariadb`` or ``sqlite``.

        store = SQLStore("postgresql://localhost/app", idle_timeout=1800)
        await store.create_tables()
        async with store: ...

    No connection is kept, nor a transaction open, while a session is: its lock is in its row. Only with ``"advisory"``,
    and in PostgreSQL as soon as something waits, each event loop keeps one connection for itself. That one needs a
    pooler, if there is one between, to leave it the same session of the server (in pgbouncer, ``pool_mode=session``):
    where it does not, take ``"lease"``, with which those who wait are told late but all else holds.

    Args:
        database: Its URL, or an `AsyncEngine` of SQLAlchemy, which is used in its own event loop only, and which the
            program closes itself. An SQLite database is a file that processes of one machine share.
        prefix: Of the names of the tables.
        locking: When the lock of a process that was killed is free. ``"lease"``: at the end of its lease.
            ``"advisory"``, in PostgreSQL, MariaDB and MySQL: as soon as the server has ended the process's connection,
            which holds an advisory lock to show that it is there. Then sessions may be taken over also from a process
            that has lost this connection and goes on; what that one commits raises `LockLostError`, as ever.
        **options: As for `Lifecycle`.
    """

    def __init__(
        self,
        database: str | URL | AsyncEngine,
        *,
        prefix: str = "asyncsess_",
        locking: Literal["lease", "advisory"] = "lease",
        **options: Unpack[StoreOptions],
    ) -> None:
        try:
            from asyncsess.backends.sql import SQLEngine
        except ImportError as error:
            raise ImportError("SQLStore needs SQLAlchemy: pip install 'asyncsess[sql]'") from error
        self._sql = SQLEngine(database, prefix=prefix, locking=locking)
        backend = RemoteBackend(self._sql)
        options.setdefault("clock", backend.clock)
        super().__init__(backend, **options)

    def ddl(self) -> str:
        """Return the statements that make the tables, for those who make them by other means."""
        return self._sql.ddl()

    async def create_tables(self) -> None:
        """Make the tables, as far as they are not there; several processes may do this at once."""
        await self._sql.create_tables()
