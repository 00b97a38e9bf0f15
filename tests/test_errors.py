from __future__ import annotations

import copy
import os
import pickle
from datetime import UTC, datetime

import pytest

from asyncsess import (
    CodecError,
    Conflict,
    ConflictError,
    CorruptSessionError,
    DeadlockError,
    Holder,
    LockTimeoutError,
    OperationError,
    SessionError,
    SessionTooLargeError,
    rules,
)

HOLDER = Holder(os.getpid(), "task", datetime.now(UTC), "here:1")
ERRORS = [
    SessionError("words"),
    DeadlockError("words", [HOLDER]),
    CodecError("words", ("a", 1)),
    SessionTooLargeError(10, 5),
    CorruptSessionError("words", "/corrupt/1"),
    LockTimeoutError(1.5, HOLDER, ahead=3, state="stopped"),
    OperationError("words", ("a",)),
    ConflictError([Conflict(("a",), rules.MISSING, 1, [2])]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_reaches_another_process_with_its_evidence(error: SessionError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), again.__dict__) == (str(error), error.__dict__)
