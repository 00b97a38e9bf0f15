from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncsess import CorruptSessionError, FileStore, Holder, SessionError, SessionNotFoundError, StoreError
from asyncsess.backends.file import layout
from asyncsess.backends.file.layout import DamagedError, decode_file, encode_file
from asyncsess.ids import key_of
from asyncsess.testing import FakeClock

KEY, OTHER_KEY = "0a" * 32, "b1" * 32
CREATED, NOW = 1_600_000_000.25, 1_700_000_000.5
Version = tuple[int, bytes]

payloads = st.binary(max_size=3_000)


def commit(file: bytes, key: str, payload: bytes) -> tuple[bytes, bytes, int]:
    """Return the file after the next commit in place, what the commit writes, and where."""
    before = decode_file(file, key)
    data = layout.encode_slot(key, before.version + 1, NOW, payload)
    at = layout.slot_offset(1 - before.slot, before.slot_size)
    return file[:at] + data + file[at + len(data) :], data, at


def history(*committed: bytes, key: str = KEY) -> bytes:
    """Return a file that has seen these commits, as a holder makes it."""
    file = b""
    for version, payload in enumerate(committed, 1):
        if file and layout.fits(len(payload), decode_file(file, key).slot_size):
            file, _, _ = commit(file, key, payload)
        else:
            file = encode_file(key, layout.slot_size_for(len(payload)), CREATED, version, NOW, payload)
    return file


FILES: dict[str, tuple[bytes, list[Version]]] = {
    "one": (history(b"first"), [(1, b"first")]),
    "two": (history(b"first", b"second"), [(1, b"first"), (2, b"second")]),
    "three": (history(b"first", b"second", b"the third"), [(2, b"second"), (3, b"the third")]),
    "grown": (history(b"first", b"second", b"3" * 600), [(3, b"3" * 600)]),
    "grown and more": (history(b"first", b"2" * 600, b"3" * 700), [(2, b"2" * 600), (3, b"3" * 700)]),
    "empty payloads": (history(b"", b""), [(1, b""), (2, b"")]),
}
files = pytest.mark.parametrize(("file", "versions"), FILES.values(), ids=FILES.keys())


def flips(file: bytes, *, step: int = 1) -> Iterator[bytes]:
    """Yield the file with each of its bits flipped, or only each so many."""
    for bit in range(0, 8 * len(file), step):
        flipped = bytearray(file)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


# Round trips.


@given(
    key=st.sampled_from([KEY, OTHER_KEY]), payload=payloads, version=st.integers(1, 2**64 - 1), slack=st.integers(0, 3)
)
def test_what_was_encoded_is_decoded(key: str, payload: bytes, version: int, slack: int) -> None:
    slot_size = layout.slot_size_for(len(payload)) + slack * layout.SECTOR
    file = encode_file(key, slot_size, CREATED, version, NOW, payload)
    assert len(file) == layout.file_size(slot_size)
    found = decode_file(file, key)
    assert (found.slot_size, found.version, found.payload, found.is_settled) == (slot_size, version, payload, True)
    assert (found.created_at, found.accessed_at, found.is_doubtful) == (CREATED, NOW, False)


@given(st.lists(payloads, min_size=1, max_size=8))
@example([b"", b"", b""])
@example([b"x" * 900, b"y", b"z" * 5_000, b""])
def test_a_file_holds_the_last_of_all_its_commits(committed: list[bytes]) -> None:
    snapshot = decode_file(history(*committed), KEY)
    assert (snapshot.version, snapshot.payload, snapshot.is_settled) == (len(committed), committed[-1], True)
    assert (snapshot.created_at, snapshot.accessed_at) == (CREATED, NOW)


@given(st.integers(0, 10_000_000))
@example(0)
def test_a_slot_has_room_to_grow_in_whole_sectors_and_is_left_when_it_is_far_too_large(length: int) -> None:
    slot_size = layout.slot_size_for(length)
    assert slot_size % layout.SECTOR == 0
    assert layout.fits(length, slot_size)
    assert layout.fits(int(length * 1.4), slot_size)
    assert not layout.fits(slot_size, slot_size)
    assert not layout.fits(length, 4 * slot_size)


def test_slots_lie_behind_the_header_and_do_not_overlap() -> None:
    assert [layout.slot_offset(slot, 1024) for slot in (0, 1)] == [512, 1536]
    assert layout.file_size(1024) == 2560


# Damage.


@files
def test_a_truncated_or_prolonged_file_is_damaged(file: bytes, versions: list[Version]) -> None:
    for broken in (*(file[:length] for length in range(len(file))), file + b"\0", file + file):
        with pytest.raises(DamagedError):
            decode_file(broken, KEY)


@files
def test_any_flipped_bit_is_detected_or_harmless(file: bytes, versions: list[Version]) -> None:
    for flipped in flips(file):
        with suppress(DamagedError):
            snapshot = decode_file(flipped, KEY)
            assert (snapshot.version, snapshot.payload) in versions
            assert (snapshot.created_at, snapshot.accessed_at) == (CREATED, NOW)


@files
@pytest.mark.parametrize("sector", range(3))
def test_a_sector_of_zeros_is_detected_or_harmless(file: bytes, versions: list[Version], sector: int) -> None:
    at = sector * layout.SECTOR
    with suppress(DamagedError):
        snapshot = decode_file(file[:at] + bytes(layout.SECTOR) + file[at + layout.SECTOR :], KEY)
        assert (snapshot.version, snapshot.payload) in versions


@pytest.mark.parametrize("before", [[b"old"], [b"older", b"old"], [b"oldest", b"older", b"old"]])
@pytest.mark.parametrize("payload", [b"new", b"", b"n" * 400])
def test_a_commit_that_is_cut_after_any_byte_leaves_the_old_or_the_new_version(
    before: list[bytes], payload: bytes
) -> None:
    file = history(*before)
    whole, data, at = commit(file, KEY, payload)
    old, new = decode_file(file, KEY), decode_file(whole, KEY)
    assert (new.version, new.payload) == (old.version + 1, payload)
    for length in range(len(data)):
        torn = decode_file(file[:at] + data[:length] + file[at + length :], KEY)
        assert torn._replace(is_settled=True) in (old, new)
        assert torn.version == old.version or torn == new
    for length in range(len(data)):  # the last bytes first, as a disk may do it
        torn = decode_file(whole[:at] + file[at : at + length] + whole[at + length :], KEY)
        assert torn._replace(is_settled=True) in (old, new)


def test_a_reader_is_told_that_a_commit_may_be_under_way() -> None:
    file = history(b"older", b"old")
    _, data, at = commit(file, KEY, b"new")
    torn = decode_file(file[:at] + data[:-1] + file[at + len(data) - 1 :], KEY)
    assert (torn.payload, torn.is_settled) == (b"old", False)


@files
def test_the_file_of_another_session_does_not_open(file: bytes, versions: list[Version]) -> None:
    with pytest.raises(DamagedError):
        decode_file(file, OTHER_KEY)


def test_a_slot_of_another_session_does_not_open() -> None:
    file, theirs = history(b"mine"), history(b"theirs", b"theirs too", key=OTHER_KEY)
    assert decode_file(file[:1024] + theirs[1024:], KEY).payload == b"mine"


@given(st.binary(max_size=2_000))
@example(b"")
@example(b"\0" * 1536)
@example(b"\xff" * 1536)
def test_foreign_bytes_are_damaged(data: bytes) -> None:
    with pytest.raises(DamagedError):
        decode_file(data, KEY)


@given(st.binary(min_size=1024, max_size=1024), st.sampled_from([512, 1024]))
def test_foreign_bytes_behind_a_good_header_are_damaged(data: bytes, at: int) -> None:
    file = history(b"mine", b"mine too")
    with suppress(DamagedError):
        assert decode_file((file[:at] + data)[: len(file)], KEY).payload == b"mine"


def test_a_newer_format_is_told_from_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_FORMAT", 2)
    newer = encode_file(KEY, 512, CREATED, 1, NOW, b"payload")
    monkeypatch.undo()
    for file in (newer, newer[:512] + b"whatever comes then", newer[:16] + b"\xff" * 600):
        with pytest.raises(StoreError, match="format 2"):
            decode_file(file, KEY)


def test_a_placeholder_holds_no_version() -> None:
    file = encode_file(KEY, 0, 0.0, 0, 0.0, b"")
    snapshot = decode_file(file, KEY)
    assert (len(file), snapshot.version, snapshot.payload, snapshot.slot_size) == (512, 0, b"", 0)
    assert not layout.fits(0, 0)


def test_the_size_is_checked_before_memory_is_given_to_the_rest() -> None:
    header = encode_file(KEY, 512, CREATED, 1, NOW, b"payload")[: layout.SECTOR]
    assert layout.check_size(header, 1536) == (512, CREATED)
    with pytest.raises(DamagedError):
        layout.check_size(header, 2**30)


# What is written beside the commits: a doubt, the time of a reading; marks and holders, which no checksum covers.


@files
def test_a_doubt_is_told_and_changes_nothing_else(file: bytes, versions: list[Version]) -> None:
    doubtful = file[: layout.DOUBT_AT] + b"\1" + file[layout.DOUBT_AT + 1 :]
    assert decode_file(doubtful, KEY) == decode_file(file, KEY)._replace(is_doubtful=True)


@given(st.floats(0, 1e12))
@example(NOW)
def test_a_touch_moves_the_time_of_last_use_only_forward(touched_at: float) -> None:
    file, touch = history(b"old", b"new"), layout.encode_touch(touched_at)
    touched = file[: layout.TOUCHED_AT] + touch + file[layout.TOUCHED_AT + len(touch) :]
    assert layout.TOUCHED_AT + len(touch) <= layout.MARK_AT
    assert decode_file(touched, KEY) == decode_file(file, KEY)._replace(accessed_at=max(NOW, touched_at))


@files
def test_a_damaged_touch_is_none(file: bytes, versions: list[Version]) -> None:
    touch = layout.encode_touch(NOW + 60)
    for bit in range(8 * len(touch)):
        flipped = bytearray(touch)
        flipped[bit // 8] ^= 1 << bit % 8
        touched = file[: layout.TOUCHED_AT] + flipped + file[layout.TOUCHED_AT + len(touch) :]
        assert decode_file(touched, KEY) == decode_file(file, KEY)


texts = st.text(st.characters(), max_size=300)


@given(
    pid=st.integers(1, 2**32 - 1),
    task=texts,
    where=texts,
    since=st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1)),
)
@example(pid=1, task="\0\0", where="\0", since=datetime(2026, 1, 1))
@example(pid=1, task="ä" * 200, where="\U0001f36a" * 200, since=datetime(2026, 1, 1))
def test_any_holder_fits_in_its_place(pid: int, task: str, where: str, since: datetime) -> None:
    data = layout.encode_holder(Holder(pid, task, since.replace(tzinfo=UTC), where), 0.0, 0)
    assert len(data) == layout.HOLDER_LENGTH
    assert layout.MARK_AT + len(data) <= layout.SECTOR
    holder = layout.decode_holder(data)
    assert holder is not None
    assert (holder.pid, holder.since.tzinfo, layout.decode_mark(data)) == (pid, UTC, 0)


def test_a_holder_is_decoded_as_it_was_encoded() -> None:
    holder = Holder(4711, "a task", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "/srv/app/views.py:42")
    assert layout.decode_holder(layout.encode_holder(holder, 0.0, 0)) == holder


def test_of_a_long_place_the_end_is_kept_and_of_a_long_task_the_beginning() -> None:
    holder = Holder(1, "t" * 100, datetime(2026, 1, 1, tzinfo=UTC), "/deep" * 100 + "/views.py:42")
    decoded = layout.decode_holder(layout.encode_holder(holder, 0.0, 0))
    assert decoded is not None
    assert decoded.task == "t" * 60
    assert decoded.where.endswith("/deep/views.py:42")


@given(st.binary(max_size=300))
@example(b"\xff" * 200)
@example(b"\0" * 200)
def test_any_bytes_are_a_holder_or_none_and_a_mark(data: bytes) -> None:
    holder = layout.decode_holder(data)
    assert holder is None or (holder.pid > 0 and str(holder))
    assert 0 <= layout.decode_mark(data) < 2**64


@given(st.integers(0, 2**64 - 1))
def test_a_mark_is_decoded_as_it_was_encoded(process: int) -> None:
    assert layout.decode_mark(layout.encode_mark(process)) == process


@files
@given(data=st.binary(max_size=layout.HOLDER_LENGTH))
def test_marks_and_holders_do_not_touch_the_session(file: bytes, versions: list[Version], data: bytes) -> None:
    changed = file[: layout.MARK_AT] + data + file[layout.MARK_AT + len(data) :]
    assert decode_file(changed, KEY) == decode_file(file, KEY)


# The same through a store.


class Vandal:
    """Knows where the file of a session lies, and puts something else there."""

    def __init__(self, store: FileStore, directory: Path, session_id: str) -> None:
        self.store = store
        self.directory = directory
        self.session_id = session_id
        key = key_of(session_id)
        self.path = directory / key[:2] / key[2:]
        self.content = self.path.read_bytes()

    async def look(self, *, readonly: bool) -> dict[str, Any]:
        async with self.store.open(self.session_id, readonly=readonly, timeout=1) as session:
            return dict(session)

    async def put(self, content: bytes, *, readonly: bool) -> dict[str, Any] | None:
        """Open a session whose file has this content; return what it held, None if it was found damaged."""
        self.path.write_bytes(content)
        try:
            return await self.look(readonly=readonly)
        except CorruptSessionError as error:
            quarantined = Path(error.path or "")
        assert quarantined.parent == self.directory / "corrupt"
        kept = quarantined.read_bytes()
        quarantined.unlink()
        assert kept[: layout.MARK_AT] == content[: layout.MARK_AT]
        assert kept[layout.MARK_AT + 8 :] == content[layout.MARK_AT + 8 :]
        with pytest.raises(SessionNotFoundError):
            await self.look(readonly=readonly)
        return None


READONLY = pytest.mark.parametrize("readonly", [False, True], ids=["exclusive", "readonly"])
OLD, NEW = {"n": 0, "list": ["old"]}, {"n": 1, "list": ["new"]}


@pytest.fixture
async def vandal(directory: Path, clock: FakeClock) -> AsyncIterator[Vandal]:
    async with FileStore(directory, clock=clock, sweep_interval=None, io="loop") as store:
        session_id = await store.create(OLD)
        async with store.open(session_id) as session:
            session.update(NEW)
        yield Vandal(store, directory, session_id)
        async with store.open(session_id, create=True, timeout=1) as session:  # whatever was there, life goes on
            session["again"] = True
        assert (await store.destroy(session_id), store.statistics().holding) == (True, 0)


@READONLY
async def test_a_truncated_session_is_quarantined(vandal: Vandal, readonly: bool) -> None:
    lengths = range(0, len(vandal.content), 5 if readonly else 1)
    for length in lengths:
        assert await vandal.put(vandal.content[:length], readonly=readonly) is None
    assert vandal.store.statistics().corrupt == len(lengths)


@READONLY
async def test_a_flipped_bit_never_shows_in_a_session(vandal: Vandal, readonly: bool) -> None:
    found = [await vandal.put(content, readonly=readonly) for content in flips(vandal.content, step=9)]
    assert [values for values in found if values not in (NEW, OLD, None)] == []
    assert found.count(None) >= 3  # of the magic, the sizes and their checksum
    assert found.count(OLD) >= 3  # of the newer slot


@READONLY
@pytest.mark.parametrize("content", [b"", b"\0" * 1536, b"\xff" * 1536, b"{}", b"\0" * 512], ids=len)
async def test_a_foreign_file_is_quarantined(vandal: Vandal, content: bytes, readonly: bool) -> None:
    assert await vandal.put(content, readonly=readonly) is None


@READONLY
async def test_the_file_of_another_session_shows_nobody_elses_data(vandal: Vandal, readonly: bool) -> None:
    other = Vandal(vandal.store, vandal.directory, await vandal.store.create({"secret": "of another user"}))
    assert await vandal.put(other.content, readonly=readonly) is None


@READONLY
async def test_a_huge_file_is_quarantined_without_being_read(vandal: Vandal, readonly: bool) -> None:
    with vandal.path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CorruptSessionError):
        await vandal.look(readonly=readonly)


@READONLY
async def test_a_session_of_a_newer_format_is_refused_and_left_alone(
    vandal: Vandal, readonly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(layout, "_FORMAT", 2)
        content = encode_file(key_of(vandal.session_id), 512, NOW, 1, NOW, b"payload")
    content = content[:16] + b"\xff" * 48 + bytes(8) + b"\xff" * 3_000  # nobody knows what it has but for the mark
    vandal.path.write_bytes(content)
    with pytest.raises(StoreError, match="upgrade") as caught:
        await vandal.look(readonly=readonly)
    assert not isinstance(caught.value, CorruptSessionError)
    found = vandal.path.read_bytes()
    vandal.path.unlink()
    assert found[: layout.MARK_AT] == content[: layout.MARK_AT]
    assert found[layout.MARK_AT + 8 :] == content[layout.MARK_AT + 8 :]  # the mark keeps its place
    assert vandal.store.statistics().corrupt == 0


async def test_damage_is_found_by_destroy_and_by_create(vandal: Vandal) -> None:
    vandal.path.write_bytes(b"damaged")
    with pytest.raises(CorruptSessionError):
        await vandal.store.destroy(vandal.session_id)
    assert await vandal.store.destroy(vandal.session_id) is False
    vandal.path.write_bytes(b"damaged")
    with pytest.raises(CorruptSessionError):
        await vandal.store.open(vandal.session_id, create=True).__aenter__()
    assert vandal.store.statistics().corrupt == 2


@pytest.mark.parametrize("kind", ["symlink", "dangling", "directory", "fifo", "hard link"])
async def test_what_is_no_file_of_its_own_is_refused_and_left_alone(vandal: Vandal, kind: str) -> None:
    victim = vandal.directory.parent / "victim"
    victim.write_bytes(vandal.content)
    path = vandal.path
    path.unlink()
    make = {
        "symlink": lambda: path.symlink_to(victim),
        "dangling": lambda: path.symlink_to("nowhere"),
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "hard link": lambda: path.hardlink_to(victim),
    }
    make[kind]()
    before = path.lstat()
    for use in (
        vandal.look(readonly=False),
        vandal.look(readonly=True),
        vandal.store.open(vandal.session_id, create=True).__aenter__(),
        vandal.store.destroy(vandal.session_id),
    ):
        with pytest.raises(SessionError, match="refused") as caught:
            await use
        assert type(caught.value) is StoreError
        assert vandal.store.statistics().holding == 0
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert (victim.read_bytes(), vandal.store.statistics().corrupt) == (vandal.content, 0)
    path.rmdir() if kind == "directory" else path.unlink()
