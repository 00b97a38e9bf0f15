"""The smallest FUSE file system: one directory, in which every name leads to a directory like it.

Enough for a store to find itself on a network file system, as the system calls it. See fuse(4) and <linux/fuse.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .needs import need, need_root

_REQUEST = struct.Struct("<IIQQ")  # length, operation, number, node; more follows
_REQUEST_LENGTH = 40
_LOOKUP, _FORGET, _GETATTR, _INIT, _OPENDIR, _RELEASEDIR, _BATCH_FORGET = 1, 2, 3, 26, 27, 29, 42
_MNT_DETACH = 2
_ATTRIBUTES = struct.pack(
    "<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o040700, 2, os.geteuid(), os.getegid(), 0, 4096, 0
)
_ANSWERS = {
    _LOOKUP: struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + _ATTRIBUTES,
    _GETATTR: struct.pack("<QII", 0, 0, 0) + _ATTRIBUTES,
    _OPENDIR: struct.pack("<QII", 0, 0, 0),
    _RELEASEDIR: b"",
}


def _serve(fd: int) -> None:
    while True:
        try:
            request = os.read(fd, 1 << 17)
        except OSError:  # unmounted
            return
        _, operation, number, _ = _REQUEST.unpack_from(request)
        if operation in (_FORGET, _BATCH_FORGET):
            continue
        if operation == _INIT:
            (ahead,) = struct.unpack_from("<I", request, _REQUEST_LENGTH + 8)
            error, answer = 0, struct.pack("<IIIIHHIII28x", 7, 31, ahead, 0, 0, 0, 4096, 1, 0)
        else:
            answer = _ANSWERS.get(operation, b"")
            error = 0 if operation in _ANSWERS else -errno.ENOSYS
        with suppress(FileNotFoundError):  # nobody waits for it any more, as after an unmount
            os.write(fd, struct.pack("<IiQ", 16 + len(answer), error, number) + answer)


@contextmanager
def fuse_mounted(at: Path) -> Iterator[Path]:
    """Mount it.

    Yields:
        Where it is mounted.
    """
    need_root()
    need(os.path.exists("/dev/fuse"), "/dev/fuse")
    libc = ctypes.CDLL(None, use_errno=True)
    at.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fd},rootmode=40700,user_id=0,group_id=0"
        failed = libc.mount(b"nothing", os.fsencode(at), b"fuse", 0, options.encode())
        need(not failed, f"to mount FUSE ({os.strerror(ctypes.get_errno())})")
        server = threading.Thread(target=_serve, args=[fd])
        server.start()
        try:
            yield at
        finally:
            libc.umount2(os.fsencode(at), _MNT_DETACH)
            server.join()
    finally:
        os.close(fd)
