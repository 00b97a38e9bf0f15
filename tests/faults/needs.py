"""What the machine must have for a test: without it the test is skipped, but fails in CI, where all of it must run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


def need(is_there: object, what: str) -> None:
    """Skip the test, or fail it in CI, if something is not there."""
    if is_there:
        return
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}, and in CI nothing is skipped")
    pytest.skip(f"needs {what}")


def need_root() -> None:
    """Need to be root."""
    need(os.geteuid() == 0, "root")


def need_strace() -> None:
    """Need strace, and the right to trace."""
    strace = shutil.which("strace")
    need(strace, "strace")
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    need(tried.returncode == 0, "the right to use strace")


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Be a user to whom permissions apply, and have a directory of one's own.

    Yields:
        The directory.
    """
    is_root = os.geteuid() == 0
    directory = Path(tempfile.mkdtemp())  # pytest's own directories are closed to others
    if is_root:
        os.chown(directory, NOBODY, NOBODY)
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield directory
    finally:
        if is_root:
            os.seteuid(0)
            os.setegid(0)
        for path in directory.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(directory)


@contextmanager
def mounted(kind: str, options: str, at: Path, device: str = "none") -> Iterator[Path]:
    """Mount a file system, and unmount it.

    Yields:
        Where it is mounted.
    """
    need_root()
    at.mkdir()
    tried = subprocess.run(
        ["mount", "-t", kind, "-o", options, device, at], capture_output=True, check=False, text=True
    )
    need(tried.returncode == 0, f"to mount {kind} ({tried.stderr.strip()})")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)  # also if something on it was left open


def remount(at: Path, options: str) -> None:
    """Change the options of what is mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", at], check=True)
