"""The ways to open a session: each a context manager that keeps a `Session` for its block.

What is read and committed when stands here, over any backend.
"""

from asyncsess.openings.base import Caller, holder_at
from asyncsess.openings.edit import Attempt, EditOpening
from asyncsess.openings.exclusive import ExclusiveOpening
from asyncsess.openings.readonly import ReadonlyOpening
from asyncsess.openings.variables import VariablesOpening

__all__ = [
    "Attempt",
    "Caller",
    "EditOpening",
    "ExclusiveOpening",
    "ReadonlyOpening",
    "VariablesOpening",
    "holder_at",
]
