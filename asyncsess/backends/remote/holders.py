"""What a server keeps of a holder, to be told to those who wait for him elsewhere."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from functools import cache

import msgspec

from asyncsess.errors import Holder

_here = cache(socket.gethostname)


def located(holder: Holder) -> Holder:
    """Return a holder who says on which machine he is."""
    return Holder(holder.pid, holder.task, holder.since, f"{holder.where} on {_here()}")


def pack(holder: Holder) -> bytes:
    """Return what is kept of a holder: JSON."""
    pid, task, since, where = holder
    try:
        return msgspec.json.encode((pid, task, since.timestamp(), where))
    except UnicodeEncodeError:
        task, where = (name.encode(errors="replace").decode() for name in (task, where))
        return msgspec.json.encode((pid, task, since.timestamp(), where))


def unpack(data: bytes | None) -> Holder | None:
    """Return the holder; None if there is none, or it can't be told who it is."""
    if not data:
        return None
    try:
        pid, task, since, where = msgspec.json.decode(data, type=tuple[int, str, float, str])
    except msgspec.MsgspecError:
        return None
    return Holder(pid, task, datetime.fromtimestamp(since, UTC), where)
