"""What is answered when a session could not be had, or not be stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncsess.errors import (
    ConflictError,
    CorruptSessionError,
    DeadlockError,
    LockLostError,
    LockTimeoutError,
    SessionError,
    SessionNotFoundError,
    SessionTooLargeError,
    StoreError,
)

logger = logging.getLogger("asyncsess")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, in any framework.

    Attributes:
        status: Its code.
        text: Its body, plain text.
        headers: More headers.
    """

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def answer_to(error: SessionError) -> Answer | None:
    """Return the answer to an error of a session; None for what is a mistake of the application, which raises.

    What others did meanwhile is a 409, a session that others hold a 503 with ``Retry-After``, one that would be too
    large a 413, and a store that fails a 500, which is logged.
    """
    if isinstance(error, ConflictError | LockLostError | SessionNotFoundError):
        return Answer(409, "Another request changed the same meanwhile, so this one could not. Please try again.\n")
    if isinstance(error, DeadlockError) and len(error.cycle) > 1:  # which is over now that this one has given up
        logger.error("requests waited for each other: %s", error)
        return Answer(503, "Other requests keep this session busy. Please try again.\n", {"Retry-After": "1"})
    if isinstance(error, LockTimeoutError):
        return Answer(503, "Other requests keep this session busy. Please try again.\n", {"Retry-After": "1"})
    if isinstance(error, SessionTooLargeError):
        return Answer(413, "This session can't hold any more. Nothing was stored.\n")
    if isinstance(error, StoreError | CorruptSessionError):
        logger.error("a session could not be used: %s", error, exc_info=error)
        return Answer(500, "The session could not be read or stored. This has been logged.\n")
    return None
