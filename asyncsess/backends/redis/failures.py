"""What goes wrong with a Redis server, and how it comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

from redis.exceptions import AuthenticationError, ReadOnlyError, RedisClusterException, RedisError

from asyncsess.errors import StoreError

FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)

_REMEDIES: Final = {
    AuthenticationError: "; give the user and the password that it knows, as redis://user:password@host",
    ReadOnlyError: "; this is a replica: give its primary, or the sentinels that know which one that is",
}


class _Translating:
    """A block in which what goes wrong with the server becomes a `StoreError` that says what may help."""

    def __enter__(self) -> None:
        """Begin; nothing needs to be noted."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, FAILURES):
            remedies = [remedy for failure, remedy in _REMEDIES.items() if isinstance(error, failure)]
            reason = str(error) or "it did not answer in time"
            raise StoreError(f"the Redis server could not be used: {reason}{''.join(remedies)}") from error


translating: Final = _Translating()  # one for all, since each step to the server is such a block


def cancellations() -> int:
    """Return how often the running task was cancelled, though it may not have heard of it.

    Before Python 3.12, a cancellation can get lost in `asyncio.wait_for`, which clients with a ``socket_timeout`` use.
    """
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


@contextmanager
def no_cancellation_lost() -> Generator[None]:
    """Bring out in the end a cancellation that a client has lost."""
    before = cancellations()
    yield
    if cancellations() > before:
        raise asyncio.CancelledError
