"""Limits of the process and of the system: descriptors, and inotify (cases 36 and 53)."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

import asyncsess
from asyncsess import FileStore, Session, StoreError

from .handover import ROUNDS
from .needs import need
from .operations import GROWN, files_in, store_at

DESCRIPTORS = 64
SESSIONS = 100


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Let this process open no more than a few descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = set(map(int, os.listdir("/proc/self/fd")))
    free = [fd for fd in range(DESCRIPTORS + len(in_use)) if fd not in in_use]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[DESCRIPTORS - 1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def _open_all(store: FileStore, ids: list[str], stack: AsyncExitStack) -> list[Session]:
    """Open sessions until the descriptors are used up."""
    opened = []
    with pytest.raises(StoreError, match="Too many open files") as caught:
        for session_id in ids:
            opened.append(await stack.enter_async_context(store.open(session_id)))  # noqa: PERF401
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EMFILE
    return opened


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_without_descriptors_holders_can_save_and_release(durability: str, directory: Path) -> None:
    async with store_at(directory, durability=durability) as store:
        ids = [await store.create({"value": "old"}) for _ in range(SESSIONS)]
        await store.delete_expired()  # whatever a thread needs has been opened
        with few_descriptors():
            async with AsyncExitStack() as stack:
                opened = await _open_all(store, ids, stack)
                assert DESCRIPTORS // 2 < len(opened) < SESSIONS
                assert store.statistics().holding == len(opened)

                for session in opened:
                    session["value"] = "new"
                    await session.save()
                for session in opened[: len(opened) // 2]:
                    await session.release()

            values = []
            for session_id in ids:
                async with store.open(session_id) as session:
                    values.append(session["value"])
        assert values == ["new"] * len(opened) + ["old"] * (SESSIONS - len(opened))


async def test_without_descriptors_what_needs_one_is_refused_and_leaves_nothing(directory: Path) -> None:
    async with store_at(directory) as store:
        ids = [await store.create({"value": "old"}) for _ in range(SESSIONS)]
        files = files_in(directory)
        with few_descriptors():
            async with AsyncExitStack() as stack:
                opened = await _open_all(store, ids, stack)
                opened[0]["value"] = GROWN

                for refused in (
                    opened[0].save(),
                    opened[0].regenerate_id(),
                    store.create({}),
                    store.destroy(ids[-1]),
                    store.delete_expired(),
                    store.open(ids[-1], readonly=True).__aenter__(),
                    store.open("fresh", create=True).__aenter__(),
                ):
                    with pytest.raises(StoreError, match="Too many open files"):
                        await refused
                assert store.statistics().holding == len(opened)

                await opened[1].release()
                await opened[2].release()
                await opened[3].destroy()
                assert files_in(directory) == files
                await opened[0].save()  # there is room for the new file, and for its directory
            async with store.open(ids[0], readonly=True) as session:
                assert session["value"] == GROWN


def _handed_over(limits: dict[str, int]) -> str:
    """Run `handover` in a user namespace, with limits of inotify that are its own."""
    need(shutil.which("unshare"), "unshare")
    unshare = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    # Not those in /proc/sys/fs/inotify: they are the whole machine's.
    set_limits = "; ".join(f"echo {limit} > /proc/sys/user/max_inotify_{what}" for what, limit in limits.items())
    tried = subprocess.run([*unshare, set_limits or "true"], capture_output=True, check=False, text=True)
    need(tried.returncode == 0, f"user namespaces ({tried.stderr.strip()})")
    package = Path(__file__).parent
    return subprocess.run(
        [*unshare, f'{set_limits or "true"}; exec "$0" -m {package.name}.handover', sys.executable],
        cwd=package.parent,
        env=os.environ | {"PYTHONPATH": str(Path(asyncsess.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("limits", "instances"),
    [({}, 1), ({"instances": 0}, 0), ({"watches": 0}, 1)],
    ids=["no limit", "no instances", "no watches"],
)
def test_a_session_is_handed_over_also_when_inotify_is_at_its_limits(limits: dict[str, int], instances: int) -> None:
    """Holding all 128 instances would take them from whatever else this user runs."""
    assert _handed_over(limits) == f"{2 * ROUNDS} {instances}"
