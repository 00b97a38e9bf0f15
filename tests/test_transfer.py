"""Export and import: whole, private, one session at a time, and clear about what is wrong with a file."""

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from asyncsess import CodecError, EncryptedCodec, FileStore, MemoryStore
from asyncsess.testing import FakeClock
from asyncsess.transfer import Imported, export_sessions, import_sessions


async def test_an_export_brings_every_live_session_to_another_store_with_its_times(tmp_path: Path) -> None:
    clock = FakeClock()
    async with FileStore(tmp_path / "s", clock=clock, idle_timeout=100, lifetime=1000) as source:
        dead = await source.create({"n": -1})
        clock.advance(99)
        ids = [await source.create({"n": number, "bytes": b"\xff"}) for number in range(20)]
        clock.advance(50)
        assert await export_sessions(source, tmp_path / "dump") == 20
        async with MemoryStore(clock=clock, idle_timeout=100, lifetime=1000) as target:
            assert await import_sessions(target, tmp_path / "dump") == Imported(20, 0)
            for number, session_id in enumerate(ids):
                async with target.open(session_id, readonly=True) as session:
                    assert dict(session) == {"n": number, "bytes": b"\xff"}
                    assert session.created_at is not None
                    assert session.expires_at is not None
                    assert session.created_at.timestamp() == pytest.approx(clock() - 50)
                    assert session.expires_at.timestamp() == pytest.approx(clock() + 50)
            assert await target.destroy(dead) is False


async def test_an_export_is_for_its_owner_only_and_leaves_no_unfinished_file(tmp_path: Path) -> None:
    async with MemoryStore() as store:
        await store.create({"a": 1})
        await export_sessions(store, tmp_path / "dump")
    assert stat.S_IMODE((tmp_path / "dump").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["dump"]


async def test_an_export_does_not_wait_for_a_holder(tmp_path: Path) -> None:
    async with FileStore(tmp_path / "s") as store:
        session_id = await store.create({"a": 1})
        async with store.open(session_id) as session:
            session["a"] = 2
            assert await asyncio.create_task(export_sessions(store, tmp_path / "dump")) == 1


async def test_an_import_leaves_existing_sessions_alone_unless_it_is_told_to_replace_them(tmp_path: Path) -> None:
    async with FileStore(tmp_path / "s") as store:
        session_id = await store.create({"a": "exported"})
        await export_sessions(store, tmp_path / "dump")
        async with store.open(session_id) as session:
            session["a"] = "newer"
        assert await import_sessions(store, tmp_path / "dump") == Imported(0, 1)
        async with store.open(session_id, readonly=True) as session:
            assert session["a"] == "newer"
        assert await import_sessions(store, tmp_path / "dump", replace=True) == Imported(1, 0)
        async with store.open(session_id, readonly=True) as session:
            assert (session["a"], session.version) == ("exported", 3)


async def test_an_import_waits_for_the_holder_of_a_session(tmp_path: Path) -> None:
    async with FileStore(tmp_path / "s") as store:
        session_id = await store.create({"a": 1})
        await export_sessions(store, tmp_path / "dump")
        async with store.open(session_id) as session:
            importing = asyncio.create_task(import_sessions(store, tmp_path / "dump", replace=True))
            while not store.statistics().waiting:
                await asyncio.sleep(0)
            session["a"] = 2
        assert await importing == Imported(1, 0)


async def test_an_encrypted_store_gives_an_encrypted_export(tmp_path: Path) -> None:
    codec = EncryptedCodec([os.urandom(32)])
    async with MemoryStore(codec=codec) as store:
        session_id = await store.create({"name": "PLAINTEXT"})
        await export_sessions(store, tmp_path / "dump")
    content = (tmp_path / "dump").read_bytes()
    assert b"PLAINTEXT" not in content
    assert session_id.encode() not in content
    async with MemoryStore(codec=codec) as store:
        await import_sessions(store, tmp_path / "dump")
        async with store.open(session_id, readonly=True) as session:
            assert session["name"] == "PLAINTEXT"


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda lines: [], "empty"),
        (lambda lines: ["{}"], "line 1 .* missing required field"),
        (lambda lines: ['{"asyncsess_export": 2}'], "format 2"),
        (lambda lines: [*lines, lines[1][:40]], "line 3 .* damaged"),
        (lambda lines: [lines[0], json.dumps(json.loads(lines[1]) | {"key": "../../etc/passwd"})], "line 2"),
        (lambda lines: [lines[0], json.dumps(json.loads(lines[1]) | {"payload": "?"})], "line 2"),
        (lambda lines: ["\0" * 100], "line 1"),
    ],
)
async def test_a_damaged_export_is_refused_with_the_line(tmp_path: Path, damage, complaint) -> None:
    async with MemoryStore() as store:
        await store.create({"a": 1})
        await export_sessions(store, tmp_path / "dump")
    lines = (tmp_path / "dump").read_text().splitlines()
    (tmp_path / "damaged").write_text("".join(f"{line}\n" for line in damage(lines)))
    async with MemoryStore() as store:
        with pytest.raises(CodecError, match=complaint):
            await import_sessions(store, tmp_path / "damaged")


async def test_an_export_that_fails_leaves_the_file_before_it(tmp_path: Path) -> None:
    (tmp_path / "dump").write_text("before")
    store = MemoryStore()
    await store.create({"a": 1})
    await store.aclose()
    with pytest.raises(Exception, match="closed"):
        await export_sessions(store, tmp_path / "dump")
    assert (tmp_path / "dump").read_text() == "before"
    assert os.listdir(tmp_path) == ["dump"]


@pytest.mark.parametrize("replace", [False, True])
async def test_an_import_does_not_bring_back_what_was_destroyed_a_moment_ago(tmp_path: Path, replace: bool) -> None:
    async with FileStore(tmp_path / "sessions") as store:
        session_id = await store.create({"a": 1})
        await export_sessions(store, tmp_path / "dump")
        await store.destroy(session_id)
        assert await import_sessions(store, tmp_path / "dump", replace=replace) == Imported(0, 1)
        assert await store.destroy(session_id) is False
