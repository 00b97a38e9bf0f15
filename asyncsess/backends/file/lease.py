"""Leases: how long a holder may keep others waiting, and how one of them takes over from a holder that is late.

A waiter that finds the lease over copies the session into a file of its own and renames that over the holder's, all
under the lock of the directory; the copy notes from whom it was taken, and up to which version. So a file is never
shared, and whoever is killed in between leaves either file whole.

A holder writes into its own file without the directory's lock, and looks at two things afterwards: whether the name
still leads there, and whether its lease still runs. If both are so, nobody had begun to copy when it wrote. If not, it
takes the directory's lock, so that nobody is in the middle of it, and looks again: its version is in the file that has
the name, or the note there tells that it was carried over, or it is lost. Whoever locks a file whose last lease was
over may have met a waiter in the middle of it as well, and looks again in the same way.
"""

from __future__ import annotations

import itertools
import secrets

from asyncsess.backends.file import layout
from asyncsess.backends.file.lock import FileLock
from asyncsess.backends.turns import boot_time
from asyncsess.errors import Holder

_tokens = itertools.count(secrets.randbits(62))


class Lease:
    """A holder's lease, beginning when it is made.

    Args:
        holder: Who holds.
        length: Seconds, which may be infinite.

    Attributes:
        deadline: When it ends, by `boot_time`.
        token: What tells this holder from all others.
    """

    __slots__ = ("_holder", "deadline", "token")

    def __init__(self, holder: Holder, length: float) -> None:
        self._holder = holder
        self.token = next(_tokens)
        self.deadline = boot_time() + length

    @property
    def is_over(self) -> bool:
        """Whether another may have taken over."""
        return boot_time() >= self.deadline

    def encoded(self) -> bytes:
        """Return what its holder writes into the file."""
        return layout.encode_holder(self._holder, self.deadline, self.token)


def is_late(file: FileLock) -> bool:
    """Tell whether the lease of the last that locked a file is over."""
    return 0 < file.claim().deadline <= boot_time()
