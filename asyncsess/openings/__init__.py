"""The ways to open a session: each a context manager that keeps a `Session` for its block.

What is read and committed when stands here, over any backend.
"""

from asyncsess.openings.base import Caller, holder_at
from asyncsess.openings.edit import EditOpening, attempts
from asyncsess.openings.exclusive import ExclusiveOpening, apply, destroy
from asyncsess.openings.owned import OwnedSession
from asyncsess.openings.readonly import AbsentOpening, ReadonlyOpening
from asyncsess.openings.variables import VariablesOpening

__all__ = [
    "AbsentOpening",
    "Caller",
    "EditOpening",
    "ExclusiveOpening",
    "OwnedSession",
    "ReadonlyOpening",
    "VariablesOpening",
    "apply",
    "attempts",
    "destroy",
    "holder_at",
]
