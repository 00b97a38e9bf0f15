"""In which of two backends a session is: pure functions."""

from __future__ import annotations

from typing import Final

from asyncsess import succession
from asyncsess.backends.base import Found, Record, Tombstone

# As long as a session may be found, or be a member of a group, through what is left of it. Ten years from now, every
# storage can still tell the time.
_STANDS: Final = 10 * 365 * 86400.0


def is_in_old(old: Found, new: Found) -> bool:
    """Tell whether what the old backend has is what counts; a copy in the new one does not, before it was changed."""
    if isinstance(old, Record):
        return new is None or (isinstance(new, Record) and new.version <= old.version)
    return old is not None


def moved(record: Record) -> Tombstone:
    """Return what is left of a record that was moved."""
    return Tombstone(succession.moved(record.accessed_at), record.accessed_at + _STANDS)


def is_moved(found: Found) -> bool:
    """Tell whether this is left of a record that was moved."""
    return isinstance(found, Tombstone) and succession.is_moved(found.note)


def unless_moved(found: Found) -> Found:
    """Return what was found; None for what is left of a record that was moved."""
    return None if is_moved(found) else found
