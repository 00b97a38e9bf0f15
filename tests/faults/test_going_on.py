"""A program that catches an error inside a block and goes on: what it saves from there is stored, or it is told."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from asyncsess import CommitUnknownError, FileStore, SessionError, StoreError

from .operations import GROWN, LARGE, files_in, store_at


@contextmanager
def failing_once(name: str, *, after: int = 0, is_done: bool = False) -> Iterator[None]:
    """Let the call of a function of ``os`` fail that follows on some; ``is_done``: after it did what it was to do."""
    call, calls = getattr(os, name), count()

    def failing(*args: Any, **kwargs: Any) -> Any:
        is_next = next(calls) == after
        result = call(*args, **kwargs) if is_done or not is_next else None
        if is_next:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return result

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(os, name, failing)
        yield


async def _value(store: FileStore, session_id: str) -> object:
    async with store.open(session_id, readonly=True) as session:
        return session["value"]


async def _set(store: FileStore, session_id: str, value: str) -> None:
    async with store.open(session_id) as session:
        session["value"] = value


@pytest.mark.parametrize("value", ["new", GROWN], ids=["in place", "in a new file"])
@pytest.mark.parametrize("call", ["pwrite", "rename", "open", "fdatasync", "utime", "stat"])
@pytest.mark.parametrize("durability", ["process", "power"])
async def test_after_a_failed_save_the_next_one_stores_or_raises(
    durability: str, call: str, value: str, directory: Path
) -> None:
    async with store_at(directory, durability=durability) as store:
        session_id = await store.create({"value": "old"})
        expected: object = "newer"
        try:
            async with store.open(session_id) as session:
                session["value"] = value
                with failing_once(call), suppress(StoreError):
                    await session.save()
                session["value"] = "newer"
        except CommitUnknownError:
            expected = await _value(store, session_id)
            assert expected in ("old", value, "newer")

        assert await _value(store, session_id) == expected
    assert len(files_in(directory)) == 1


async def test_a_session_that_was_to_be_created_and_was_not_leaves_no_file(directory: Path) -> None:
    async with store_at(directory) as store:
        async with store.open("job", create=True):
            pass
        with failing_once("rename"), pytest.raises(StoreError):
            await store.create({})
        assert files_in(directory) == []


async def test_a_write_that_fails_in_the_middle_leaves_readers_the_old_value(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store_at(directory) as store, store_at(directory) as other:
        session_id = await store.create({"value": LARGE})
        write = os.pwrite

        def write_the_half(fd: int, data: bytes, offset: int) -> int:
            monkeypatch.setattr(os, "pwrite", fail)
            return write(fd, data[: len(data) // 2], offset)

        def fail(fd: int, data: bytes, offset: int) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        async with store.open(session_id) as session:
            session["value"] = GROWN
            monkeypatch.setattr(os, "pwrite", write_the_half)
            with pytest.raises(StoreError):
                await session.save()
            assert await _value(other, session_id) == LARGE
            monkeypatch.setattr(os, "pwrite", write)
            await session.rollback()

        assert await _value(other, session_id) == LARGE
        async with other.open(session_id) as session:
            session["value"] = GROWN.upper()
        assert await _value(store, session_id) == GROWN.upper()


@pytest.mark.parametrize(
    ("call", "after"),
    [("rename", 0), ("pwrite", 0), ("open", 0), ("pwrite", 3)],
    ids=["no name", "no content", "no file", "no tombstone"],
)
async def test_after_a_failed_change_of_id_the_session_is_stored_under_the_id_it_had(
    call: str, after: int, directory: Path
) -> None:
    async with store_at(directory) as store:
        session_id = await store.create({"value": "old"})
        async with store.open(session_id) as session:
            with failing_once(call, after=after), pytest.raises(StoreError):
                await session.regenerate_id()
            session["value"] = "saved"
            await session.save()
            assert session.id == session_id

        assert await _value(store, session_id) == "saved"
    assert len(files_in(directory)) == 1


@pytest.mark.parametrize("last", ["short again", "y" * 2000], ids=["short", "long"])
async def test_after_a_cancelled_save_the_next_one_is_stored(
    last: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store_at(directory, io="thread") as store:
        session_id = await store.create({"value": "old"})
        rename, loop, task = os.rename, asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def rename_while_cancelled(*args: Any, **kwargs: Any) -> None:
            monkeypatch.setattr(os, "rename", rename)
            loop.call_soon_threadsafe(task.cancel)
            rename(*args, **kwargs)

        async with store.open(session_id) as session:
            session["value"] = "x" * 3000
            monkeypatch.setattr(os, "rename", rename_while_cancelled)
            with pytest.raises(asyncio.CancelledError):
                await session.save()
            task.uncancel()
            session["value"] = last

        assert await _value(store, session_id) == last


async def test_a_first_commit_that_is_unknown_stays_visible(directory: Path) -> None:
    async with store_at(directory, durability="power") as store:
        opening = store.open("job", create=True)
        session = await opening.__aenter__()
        session["value"] = "new"
        with failing_once("fsync"), pytest.raises(CommitUnknownError) as caught:
            await session.save()
        assert await _value(store, "job") == "new"

        await opening.__aexit__(CommitUnknownError, caught.value, None)

        assert await _value(store, "job") == "new"


@pytest.mark.parametrize("value", ["new", GROWN], ids=["a new session", "a new file"])
async def test_an_error_in_clearing_up_does_not_hide_the_first_one(value: str, directory: Path) -> None:
    async with store_at(directory) as store:
        session_id = await store.create({"value": "old"})
        before = os.listdir("/proc/self/fd")

        with failing_once("rename"), failing_once("unlink"), pytest.raises(StoreError, match="Input/output error"):
            if value == GROWN:
                await _set(store, session_id, value)
            else:
                await store.create({"value": value})

        assert os.listdir("/proc/self/fd") == before
        assert store.statistics().holding == 0
        assert await _value(store, session_id) == "old"
        for name in os.listdir(directory / "tmp"):
            (directory / "tmp" / name).unlink()  # what could not be deleted stays until a sweep


@pytest.mark.parametrize("call", ["open", "pread", "fstat", "stat", "pwrite", "close"])
async def test_a_session_that_could_not_be_opened_is_not_held(call: str, directory: Path) -> None:
    async with store_at(directory) as store:
        session_id = await store.create({"value": "old"})
        with failing_once("close", is_done=True), failing_once(call, is_done=call == "close"), suppress(SessionError):
            async with store.open(session_id):
                pass

        assert store.statistics().holding == 0
        async with store.open(session_id) as session:
            session["value"] = "new"
        assert await _value(store, session_id) == "new"
