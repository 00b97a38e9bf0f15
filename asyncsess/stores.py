"""The stores that most programs use: a `SessionStore` together with its backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, TypedDict, Unpack
from urllib.parse import unquote, urlsplit

from asyncsess.backends.file import Durability, FileBackend, IOMode
from asyncsess.backends.memory import MemoryBackend
from asyncsess.backends.remote import RemoteBackend
from asyncsess.codec import Codec
from asyncsess.events import Hook
from asyncsess.expiry import Expiry, seconds
from asyncsess.store import SessionStore

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine


_HOUR: Final = 3600.0


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
    """Sessions in Redis or Valkey (7.0 or later), for processes on several machines; needs the extra ``redis``.

        async with RedisStore("redis://localhost", idle_timeout=1800) as store: ...

    All times are the server's once the store was entered; without that they are this machine's. The server itself
    deletes what has expired: nothing is swept. It must not evict keys when its memory is full. What a commit survives
    is the server's matter: its ``appendfsync``, its replicas.

    Who commits so late that others have committed more than four times meanwhile gets `CommitUnknownError` instead of
    `LockLostError`: by then, the server can't tell it from a repetition of a commit that was stored.

    Args:
        server: The server's URL, or a client of ``redis.asyncio``, also of Sentinel or a cluster, which is used in its
            own event loop only. By a URL, all commands of an event loop share one connection, which costs much less
            than a client's pool; only those of a cluster go through a client.
        prefix: Of the names of all keys.
        **options: As for `Lifecycle`.

    Raises:
        StoreError: On first use: the server can't be reached, is too old, or would evict sessions.
    """

    def __init__(
        self, server: str | Redis | RedisCluster, *, prefix: str = "asyncsess:", **options: Unpack[StoreOptions]
    ) -> None:
        try:
            from asyncsess.backends.redis import RedisEngine
        except ImportError as error:
            raise ImportError("RedisStore needs redis-py: pip install 'asyncsess[redis]'") from error
        backend = RemoteBackend(RedisEngine(server, prefix=prefix, expiry=Expiry.of(**options)))
        options.setdefault("clock", backend.clock)
        options.setdefault("sweep_interval", None)
        super().__init__(backend, **options)


class MemcachedStore(SessionStore):
    """Sessions in memcached, for processes on several machines; needs the extra ``memcached``.

        async with MemcachedStore("memcached://localhost", idle_timeout=1800) as store: ...

    **memcached is a cache: it may forget any session at any time.** All are gone when it is restarted. When its memory
    is full, it drops those that were not used for long, without telling anybody, so give it more memory (``-m``) than
    all sessions need. With ``-M`` it refuses to store instead, which raises `StoreError`. Keep nothing in it that its
    users can't do without, such as what they have ordered; `RedisStore` and files keep what they were given.

    What it still has is as safe as elsewhere: no update is lost, a late holder stores nothing, and a session that was
    dropped while it was held is not stored anew: its commit raises `StoreError`. The sessions of an owner are found
    even if the list of them was dropped, but then all sessions are read for it. Only the server's counter of evictions
    tells that one may have been, so never reset it (``stats reset``).

    A session has less than 1 MiB, unless memcached is started with a larger ``-I``. Those who wait ask again and again,
    at most 50 ms apart. There is one server; several, between which a client chooses, would be several stores.

    Args:
        url: The server's, as ``memcached://host:port`` or ``memcached:///path/of/socket``. Whoever can reach it can
            read and change all sessions.
        prefix: Of all keys.
        **options: As for `Lifecycle`.

    Raises:
        ValueError: The URL or the prefix can't be used.
    """

    def __init__(self, url: str, *, prefix: str = "asyncsess:", **options: Unpack[StoreOptions]) -> None:
        try:
            from asyncsess.backends.memcached import MemcachedEngine
        except ImportError as error:
            raise ImportError("MemcachedStore needs aiomcache: pip install 'asyncsess[memcached]'") from error
        backend = RemoteBackend(MemcachedEngine(url, prefix=prefix, expiry=Expiry.of(**options)))
        options.setdefault("clock", backend.clock)
        options.setdefault("sweep_interval", _HOUR)
        super().__init__(backend, **options)


class SQLStore(SessionStore):
    """Sessions in PostgreSQL, MariaDB, MySQL or SQLite; needs the extra ``postgresql``, ``mariadb`` or ``sqlite``.

        async with SQLStore("postgresql://localhost/app", idle_timeout=1800) as store: ...

    Its tables are made when they are first missed, if the user of the database may; else by `create_tables`, or by what
    `ddl` returns.

    No connection is kept, nor a transaction open, while a session is: its lock is in its row. Only with ``"advisory"``,
    and in PostgreSQL as soon as something waits, each event loop keeps one connection for itself. That one needs a
    pooler, if there is one between, to leave it the same session of the server (in pgbouncer, ``pool_mode=session``):
    where it does not, take ``"lease"``, with which those who wait are told late but all else holds. The driver prepares
    statements, which pgbouncer knows in its other modes from 1.21 on.

    Args:
        database: Its URL, or an `AsyncEngine` of SQLAlchemy, which is used in its own event loop only, and which the
            program closes itself; its pool needs room for two connections, one of them as said above. An SQLite
            database is a file that processes of one machine share.
        prefix: Of the names of the tables.
        locking: When the lock of a process that was killed is free. ``"lease"``: at the end of its lease.
            ``"advisory"``, in PostgreSQL, MariaDB and MySQL: as soon as the server has ended the process's connection,
            which holds an advisory lock to show that it is there. Then sessions may be taken over also from a process
            that has lost this connection and goes on; what that one commits raises `LockLostError`, as ever.
        timeout: Seconds for which a connection, or an answer, is waited for; then `StoreError` is raised.
        **options: As for `Lifecycle`.
    """

    def __init__(
        self,
        database: str | URL | AsyncEngine,
        *,
        prefix: str = "asyncsess_",
        locking: Literal["lease", "advisory"] = "lease",
        timeout: float | timedelta = 5.0,
        **options: Unpack[StoreOptions],
    ) -> None:
        try:
            from asyncsess.backends.sql import SQLEngine
        except ImportError as error:
            raise ImportError("SQLStore needs SQLAlchemy: pip install 'asyncsess[sql]'") from error
        self._sql = SQLEngine(database, prefix=prefix, locking=locking, timeout=seconds(timeout, "timeout"))
        backend = RemoteBackend(self._sql)
        options.setdefault("clock", backend.clock)
        super().__init__(backend, **options)

    def ddl(self) -> str:
        """Return the statements that make the tables, for those who make them by other means."""
        return self._sql.ddl()

    async def create_tables(self) -> None:
        """Make the tables, as far as they are not there; several processes may do this at once."""
        await self._sql.create_tables()


_STORES: Final[Mapping[str, Callable[..., SessionStore]]] = {
    "redis": RedisStore,
    "rediss": RedisStore,
    "unix": RedisStore,
    "memcached": MemcachedStore,
    "postgresql": SQLStore,
    "mysql": SQLStore,
    "mariadb": SQLStore,
    "sqlite": SQLStore,
}


def open_store(url: str, **options: Unpack[StoreOptions]) -> SessionStore:
    """Return the store that a URL names, such as one from a configuration file or a command line.

        async with open_store(os.environ["SESSIONS"], idle_timeout=1800) as store: ...

    Args:
        url: ``file:var/sessions``, ``file:///var/sessions`` or ``memory:``; ``redis://host``, ``rediss://host``,
            ``redis+cluster://host,host`` or ``redis+sentinel://host,host/service``; ``memcached://host``;
            ``postgresql+psycopg://user@host/name``, ``mysql+asyncmy://user@host/name`` or
            ``sqlite+aiosqlite:///path``, also without the driver.
        **options: As for `Lifecycle`.

    Raises:
        ValueError: No store has such a URL.
        ImportError: What the store needs is not installed; the message says how to get it.
    """
    parts = urlsplit(url)
    kind = parts.scheme.partition("+")[0]
    if kind == "memory":
        return MemoryStore(**options)
    if kind == "file":
        if parts.netloc not in {"", "localhost"}:
            raise ValueError("a directory is file:relative/path or file:///absolute/path, not file://path")
        return FileStore(unquote(parts.path), **options)
    if kind not in _STORES:
        known = ", ".join(f"{name}:" for name in ("file", "memory", *_STORES))
        raise ValueError(f"no store has a URL that begins with {parts.scheme!r}; those are {known}")
    return _STORES[kind](url, **options)
