"""Sessions as files: one file a session, locked in place, read without a lock."""

from asyncsess.backends.file.backend import Durability, FileBackend
from asyncsess.backends.file.io import IOMode

__all__ = ["Durability", "FileBackend", "IOMode"]
