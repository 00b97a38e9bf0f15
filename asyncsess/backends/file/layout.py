"""The bytes of a session file: pure functions, no I/O.

A file is a header of one sector and two slots of equal size, each beginning at a sector. A commit overwrites the
older slot and leaves the newer one alone, so whatever interrupts it leaves a whole version behind. All numbers are
little-endian.

    0    magic, format, length of the header, CRC-32 of these
    16   size of a slot, created at, CRC-32 of all before
    32   read at (since the last commit), CRC-32 of it
    48   not zero: the last commit may not have reached the disk
    64   mark: who else waits | holder: process, since, end of its lease, token, task and place; no checksum
    272  note: token of the holder that this was taken over from, version that was carried over, CRC-32 of these
    512  slot A, slot B: CRC-32 of the key and what follows, length, version, committed at, payload

Whoever meets a file of a newer format reads the first line of this and may set the mark: these stay where they are.

A version with its highest bit set is a tombstone: committed last, at the time until which it stands, and followed by
none. A slot size of zero makes a placeholder: the file of a session that has been opened and not committed yet.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Final, NamedTuple
from zlib import crc32

from asyncsess.errors import Holder, StoreError

SECTOR: Final = 512
TOUCHED_AT: Final = 32
DOUBT_AT: Final = 48
MARK_AT: Final = 64
NOTE_AT: Final = 272
TOMBSTONE: Final = 1 << 63
_MAGIC: Final = b"asyncses"
_FORMAT: Final = 1
_PREAMBLE = struct.Struct("<8sHHI")
_HEADER = struct.Struct("<8sHHIIdI")
_MARK = struct.Struct("<Q")
_HOLDER = struct.Struct("<IddQ160s")
_MARK_AND_HOLDER = struct.Struct("<QIddQ160s")
_CLAIM, _CLAIM_AT = struct.Struct("<dQ"), 20
_NOTE = struct.Struct("<QQI")
_SLOT = struct.Struct("<IIQd")
_CHECKED = struct.Struct("<IQd")
_TOUCH = struct.Struct("<dI")
_SUM_LENGTH: Final = 4
_SLACK: Final = 1.5
_SHRINK: Final = 4


class DamagedError(ValueError):
    """These bytes are not a session file, or not this session's."""


class Snapshot(NamedTuple):
    """What a file holds.

    Attributes:
        slot_size: Bytes of one slot; 0 for a placeholder.
        created_at: When the session was created.
        accessed_at: When it was last committed or touched; of a tombstone, until when it stands.
        version: The newest whole version; 0 for a placeholder, `TOMBSTONE` or more for a tombstone.
        payload: Its payload.
        slot: The slot it lies in, 0 or 1.
        is_settled: Whether it is known to be the newest. If not, the other slot is torn: it is being written
            now, or its writer was killed.
        is_doubtful: Whether this version may be missing on the disk, so that the other slot must be kept too.
    """

    slot_size: int
    created_at: float
    accessed_at: float
    version: int
    payload: bytes
    slot: int
    is_settled: bool
    is_doubtful: bool


def slot_size_for(length: int) -> int:
    """Return the slot size for a payload of ``length`` bytes: with room to grow by half, in whole sectors."""
    return -int(-(_SLOT.size + length * _SLACK) // SECTOR) * SECTOR


def fits(length: int, slot_size: int) -> bool:
    """Tell whether a payload belongs into slots of this size: neither too large nor wastefully small."""
    if _SLOT.size + length > slot_size:
        return False
    return slot_size_for(length) * _SHRINK > slot_size


def slot_offset(slot: int, slot_size: int) -> int:
    """Return where slot 0 or 1 begins."""
    return SECTOR + slot * slot_size


def file_size(slot_size: int) -> int:
    """Return the size of a file with two such slots."""
    return SECTOR + 2 * slot_size


def encode_slot(key: str, version: int, committed_at: float, payload: bytes) -> bytes:
    """Return the bytes to write at the beginning of a slot."""
    checked = _CHECKED.pack(len(payload), version, committed_at) + payload
    return crc32(checked, crc32(key.encode())).to_bytes(_SUM_LENGTH, "little") + checked


def unused(snapshot: Snapshot) -> tuple[tuple[int, int], ...]:
    """Return offset and length of what the slots of a file hold beside its newest version."""
    size, used = snapshot.slot_size, _SLOT.size + len(snapshot.payload)
    mine, other = slot_offset(snapshot.slot, size), slot_offset(1 - snapshot.slot, size)
    return (mine + used, size - used), (other, size)


def encode_file(
    key: str, slot_size: int, created_at: float, version: int, committed_at: float, payload: bytes
) -> bytes:
    """Return a whole file with this version in its first slot; zeros after it, so that the disk has the room."""
    start = _PREAMBLE.pack(_MAGIC, _FORMAT, SECTOR, crc32(_PREAMBLE.pack(_MAGIC, _FORMAT, SECTOR, 0)[:12]))
    start += struct.pack("<Id", slot_size, created_at)
    header = start + struct.pack("<I", crc32(start))
    content = header.ljust(SECTOR, b"\0")
    if slot_size:
        content += encode_slot(key, version, committed_at, payload)
    return content.ljust(file_size(slot_size), b"\0")


def decode_file(data: bytes, key: str) -> Snapshot:
    """Return the newest whole version in a file.

    Only the slot of the higher version needs to be looked at: a slot under way has the higher version from its
    first bytes on, and a version that was there when the read began can't have been overwritten by a lower one.

    Raises:
        DamagedError: The bytes are damaged, or belong to another key.
        StoreError: They are of a newer format, which is left alone.
    """
    slot_size, created_at = check_size(data, len(data))
    if not slot_size:
        return Snapshot(0, created_at, 0.0, 0, b"", 1, True, False)
    heads = _SLOT.unpack_from(data, SECTOR), _SLOT.unpack_from(data, SECTOR + slot_size)
    newer = 1 if heads[1][2] > heads[0][2] else 0
    for slot in (newer, 1 - newer):
        checksum, length, version, committed_at = heads[slot]
        start = slot_offset(slot, slot_size)
        end = start + _SLOT.size + length
        if (
            version
            and length <= slot_size - _SLOT.size
            and checksum == crc32(data[start + _SUM_LENGTH : end], crc32(key.encode()))
        ):
            accessed_at = max(committed_at, _decode_touch(data))
            payload = data[start + _SLOT.size : end]
            is_doubtful = data[DOUBT_AT] != 0
            return Snapshot(slot_size, created_at, accessed_at, version, payload, slot, slot == newer, is_doubtful)
    raise DamagedError("neither of its two slots is whole")


def check_size(header: bytes, size: int) -> tuple[int, float]:
    """Return slot size and time of creation from a header, if a file of ``size`` bytes can have it.

    Raises:
        DamagedError: It can't, or the header is damaged.
        StoreError: It is of a newer format.
    """
    slot_size, created_at = _decode_header(header)
    if size != file_size(slot_size):
        raise DamagedError(f"it has {size} bytes instead of {file_size(slot_size)}")
    return slot_size, created_at


def _decode_header(header: bytes) -> tuple[int, float]:
    if len(header) < SECTOR:
        raise DamagedError(f"it ends after {len(header)} bytes" if header else "it is empty")
    magic, version, _, start_sum, slot_size, created_at, header_sum = _HEADER.unpack_from(header)
    if magic == _MAGIC and version == _FORMAT and crc32(header[:28]) == header_sum:
        return slot_size, created_at
    if magic == _MAGIC and version > _FORMAT and crc32(header[:12]) == start_sum:
        raise StoreError(
            f"a newer asyncsess wrote this session: it has format {version}, and this one reads up to {_FORMAT}; "
            "upgrade asyncsess here"
        )
    raise DamagedError("its header is damaged")


def encode_touch(touched_at: float) -> bytes:
    """Return the time of a reading, to be written at `TOUCHED_AT`."""
    time = struct.pack("<d", touched_at)
    return time + crc32(time).to_bytes(4, "little")


def _decode_touch(data: bytes) -> float:
    touched_at, checksum = _TOUCH.unpack_from(data, TOUCHED_AT)
    if not checksum or crc32(data[TOUCHED_AT : TOUCHED_AT + 8]) != checksum:
        return 0.0
    return float(touched_at)


def encode_mark(process: int) -> bytes:
    """Return the mark, to be written at `MARK_AT`, by which a process says that it waits."""
    return _MARK.pack(process)


def decode_mark(data: bytes) -> int:
    """Return the process that waits, 0 if none does."""
    return int(_MARK.unpack_from(data)[0]) if len(data) >= _MARK.size else 0


def encode_holder(holder: Holder, deadline: float, token: int) -> bytes:
    """Return what a new holder writes at `MARK_AT`: no mark, itself, and its lease."""
    label = f"{holder.task[:60]}\0{holder.where[-90:]}".encode(errors="replace")[:160]
    return _MARK_AND_HOLDER.pack(0, holder.pid & 0xFFFFFFFF, holder.since.timestamp(), deadline, token, label)


def decode_holder(data: bytes) -> Holder | None:
    """Return the last holder from the bytes at `MARK_AT`; None if there was none."""
    if len(data) < HOLDER_LENGTH:
        return None
    pid, since, _, _, label = _HOLDER.unpack_from(data, _MARK.size)
    if not pid:
        return None
    task, _, where = label.rstrip(b"\0").decode(errors="replace").partition("\0")
    try:
        return Holder(pid, task, datetime.fromtimestamp(since, UTC), where)
    except (ValueError, OverflowError, OSError):  # these bytes have no checksum
        return None


HOLDER_LENGTH: Final = _MARK.size + _HOLDER.size


class Claim(NamedTuple):
    """What the last holder wrote of its lease: when it ends, 0 if there was none; and what tells it from others."""

    deadline: float
    token: int


def decode_claim(data: bytes, offset: int = 0) -> Claim:
    """Return the claim of the last holder from the bytes at `MARK_AT`, which are there in ``data`` at an offset."""
    if len(data) < offset + HOLDER_LENGTH:
        return Claim(0.0, 0)
    return Claim._make(_CLAIM.unpack_from(data, offset + _CLAIM_AT))


class Note(NamedTuple):
    """From which holder a file was taken over, 0 for none, and up to which version."""

    token: int
    version: int


def encode_note(note: Note) -> bytes:
    """Return the note, to be written at `NOTE_AT`."""
    data = _NOTE.pack(note.token, note.version, 0)[:16]
    return data + crc32(data).to_bytes(4, "little")


def decode_note(data: bytes) -> Note:
    """Return the note in a whole file."""
    token, version, checksum = _NOTE.unpack_from(data, NOTE_AT)
    return Note(token, version) if crc32(data[NOTE_AT : NOTE_AT + 16]) == checksum else Note(0, 0)
