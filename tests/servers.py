"""Servers that tests start on a free port of this machine, for as long as a block lasts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Memcached:
    """A memcached server that was started; `start` may start another one at its address once it has been killed."""

    def __init__(self, program: str, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
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
    if program is None:
        missing = "memcached is not installed: apt install memcached"
        if "CI" in os.environ:
            pytest.fail(missing)
        pytest.skip(missing)
    server = Memcached(program, *options)
    try:
        yield server
    finally:
        server.kill()
