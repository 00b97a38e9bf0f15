"""Server-side sessions for asyncio that lose no update, keep no reader waiting and leak no lock."""

from asyncsess.codec import Codec, EncryptedCodec, JSONCodec, MsgpackCodec
from asyncsess.errors import (
    CodecError,
    CommitUnknownError,
    CorruptSessionError,
    DeadlockError,
    Holder,
    InvalidSessionIdError,
    LockLostError,
    LockTimeoutError,
    ReadOnlySessionError,
    SessionClosedError,
    SessionError,
    SessionNotFoundError,
    SessionTooLargeError,
    StoreError,
)
from asyncsess.session import Session
from asyncsess.store import SessionStore, Statistics
from asyncsess.stores import FileStore, MemoryStore

__all__ = [
    "Codec",
    "CodecError",
    "CommitUnknownError",
    "CorruptSessionError",
    "DeadlockError",
    "EncryptedCodec",
    "FileStore",
    "Holder",
    "InvalidSessionIdError",
    "JSONCodec",
    "LockLostError",
    "LockTimeoutError",
    "MemoryStore",
    "MsgpackCodec",
    "ReadOnlySessionError",
    "Session",
    "SessionClosedError",
    "SessionError",
    "SessionNotFoundError",
    "SessionStore",
    "SessionTooLargeError",
    "Statistics",
    "StoreError",
]
