"""Export and import of a store as a stream of JSON Lines, one session a line, never the whole store at once.

Payloads travel as they are stored, in base64: an encrypted store gives an encrypted export, and the importing store
needs the same codec and secrets.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Final, NamedTuple, TypeVar

import aiofiles
import aiofiles.os
import msgspec

from asyncsess.backends.base import Record, Tombstone
from asyncsess.errors import CodecError
from asyncsess.openings import Caller, holder_at
from asyncsess.store import SessionStore

T = TypeVar("T")

_FORMAT: Final = 1
_LOCK_TIMEOUT: Final = 40.0


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    asyncsess_export: int


_Time = Annotated[float, msgspec.Meta(ge=0, le=253402300799)]  # until the year 9999


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    key: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    created_at: _Time
    accessed_at: _Time
    payload: bytes


class Imported(NamedTuple):
    """What an import did.

    Attributes:
        stored: Sessions that were stored.
        skipped: Sessions that were there already, or were destroyed a moment ago, and left as they were.
    """

    stored: int
    skipped: int


async def export_sessions(store: SessionStore, path: str | os.PathLike[str]) -> int:
    """Write all live sessions to a file, and return how many.

    Each is one committed version, read without its lock, so nobody waits; what begins meanwhile may be missing. The
    file, of mode 0600, appears under its name when it is complete.

    Raises:
        OSError: The file can't be written.
        StoreError, CorruptSessionError: A session can't be read; there is no file then.
    """
    unfinished = f"{os.fspath(path)}.{secrets.token_hex(8)}"
    count = 0
    try:
        async with aiofiles.open(unfinished, "wb", opener=_private) as file:
            await file.write(msgspec.json.encode(_Head(_FORMAT)) + b"\n")
            async for line in _lines(store):
                await file.write(msgspec.json.encode(line) + b"\n")
                count += 1
        await aiofiles.os.replace(unfinished, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
    return count


async def import_sessions(store: SessionStore, path: str | os.PathLike[str], *, replace: bool = False) -> Imported:
    """Store the sessions of an export under the ids that they had, each under its own lock.

    Args:
        store: Where to.
        path: The file.
        replace: Commit over sessions that are there already, instead of leaving those as they are.

    Raises:
        CodecError: A line is no session; the sessions before it have been stored, none after it.
        OSError: The file can't be read.
        LockTimeoutError, StoreError: A session could not be stored; likewise.
    """
    stored = skipped = number = 0
    async with aiofiles.open(path, "rb") as file:
        async for text in file:
            number += 1
            if number == 1:
                _check_head(text)
            elif await _store_line(store, _parse(text, number, _Line), replace):
                stored += 1
            else:
                skipped += 1
    if not number:
        raise CodecError("the file is empty, so it is no export of sessions")
    return Imported(stored, skipped)


async def _lines(store: SessionStore) -> AsyncIterator[_Line]:
    async for key in store.keys():
        record = await store.backend.read(key)
        if isinstance(record, Record) and not store.has_expired(record):
            yield _Line(key, record.created_at, record.accessed_at, record.payload)


async def _store_line(store: SessionStore, line: _Line, replace: bool) -> bool:
    holder = holder_at(asyncio.current_task(), Caller(__name__, 0))
    while True:
        async with store.backend.hold(line.key, timeout=_LOCK_TIMEOUT, holder=holder, create=True) as held:
            found = held.record
            if isinstance(found, Tombstone) and store.has_expired(found):
                await held.delete(now=store.clock())
            elif isinstance(found, Tombstone) or (found and not replace):
                return False
            else:
                await held.commit(line.payload, now=line.created_at)
                await held.release(now=line.accessed_at)  # before a sweep can find it long unused
                return True


def _check_head(text: bytes) -> None:
    found = _parse(text, 1, _Head).asyncsess_export
    if found != _FORMAT:
        raise CodecError(f"the export has format {found}, and this asyncsess reads {_FORMAT}")


def _parse(text: bytes, number: int, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CodecError(f"line {number} of the export is damaged: {error}; what came before it is stored") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)
