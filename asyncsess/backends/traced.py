"""`TracedBackend`: spans of OpenTelemetry around what any backend does."""

from __future__ import annotations

import math
import traceback
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider, get_tracer

from asyncsess.backends.base import Backend, BackendStatistics, Found, Held, HeldName, Hold, Record, Tombstone
from asyncsess.errors import Holder, SessionError
from asyncsess.expiry import Expiry

H = TypeVar("H", bound=Hold)

_WAITED: Final = "asyncsess.waited"
_SIZE: Final = "asyncsess.size"
_DELETED: Final = "asyncsess.deleted"


class TracedBackend:
    """Show what a backend does as spans, after the conventions of OpenTelemetry for clients of databases.

        store = SessionStore(TracedBackend(FileBackend("var/sessions")))

    There is a span of its own for each operation, such as ``asyncsess.read`` and ``asyncsess.commit``, below the span
    that is current. ``asyncsess.hold`` lasts until the session is held, and has the seconds that others were waited for
    as ``asyncsess.waited``. No id, key, name, group or value is in any of them. Needs the extra ``opentelemetry``; as
    long as no SDK is set up, nothing is recorded.

    Args:
        backend: Whose operations.
        system: Its ``db.system.name``, such as "redis" or "postgresql".
        provider: Who makes the spans; the global one if None.
    """

    def __init__(self, backend: Backend, *, system: str = "asyncsess", provider: TracerProvider | None = None) -> None:
        self._backend = backend
        self._spans = _Spans(system, provider)

    def __repr__(self) -> str:
        return f"<TracedBackend {self._backend!r}>"

    async def open(self) -> None:
        with self._spans.current("open"):
            await self._backend.open()

    async def aclose(self) -> None:
        with self._spans.current("close"):
            await self._backend.aclose()

    async def read(self, key: str) -> Found:
        with self._spans.current("read"):
            return await self._backend.read(key)

    def hold(
        self, key: str, *, timeout: float, holder: Holder, lease: float = math.inf, create: bool = False
    ) -> TracedHeld:
        hold = self._backend.hold(key, timeout=timeout, holder=holder, lease=lease, create=create)
        return TracedHeld(hold, self._spans, "hold")

    def create(
        self,
        key: str,
        payload: bytes,
        *,
        created_at: float,
        now: float,
        holder: Holder,
        lease: float = math.inf,
        version: int = 1,
    ) -> TracedHeld:
        hold = self._backend.create(
            key, payload, created_at=created_at, now=now, holder=holder, lease=lease, version=version
        )
        return TracedHeld(hold, self._spans, "create")

    def hold_name(
        self, key: str, name: str, *, timeout: float, holder: Holder, lease: float = math.inf
    ) -> TracedHeldName:
        hold = self._backend.hold_name(key, name, timeout=timeout, holder=holder, lease=lease)
        return TracedHeldName(hold, self._spans, "hold_name")

    async def touch(self, key: str, *, now: float) -> None:
        with self._spans.current("touch"):
            await self._backend.touch(key, now=now)

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        with self._spans.current("add_member"):
            await self._backend.add_member(group, key, now=now)

    async def members(self, group: str) -> Mapping[str, float]:
        with self._spans.current("members"):
            return await self._backend.members(group)

    async def remove_member(self, group: str, key: str) -> None:
        with self._spans.current("remove_member"):
            await self._backend.remove_member(group, key)

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        with self._spans.current("delete_expired") as span:
            deleted = await self._backend.delete_expired(expiry, now=now)
            span.set_attribute(_DELETED, deleted)
            return deleted

    async def keys(self) -> AsyncIterator[str]:
        # What the caller does between two keys is not part of it, so the span is not made the current one.
        span = self._spans.start("keys")
        try:
            async for key in self._backend.keys():
                yield key
        except Exception as error:
            _record(error, span)
            raise
        finally:
            span.end()

    def statistics(self) -> BackendStatistics:
        return self._backend.statistics()


class _Spans:
    """Where spans come from, and what all of them have.

    Args:
        system, provider: As `TracedBackend`.
    """

    def __init__(self, system: str, provider: TracerProvider | None) -> None:
        self._tracer = get_tracer("asyncsess", tracer_provider=provider)
        self._system = system

    def start(self, operation: str) -> Span:
        return self._tracer.start_span(f"asyncsess.{operation}", kind=SpanKind.CLIENT, attributes=self._of(operation))

    @contextmanager
    def current(self, operation: str) -> Generator[Span]:
        """Make a span the current one; a cancellation ends it, and is no error."""
        with self._tracer.start_as_current_span(
            f"asyncsess.{operation}",
            kind=SpanKind.CLIENT,
            attributes=self._of(operation),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as error:
                _record(error, span)
                raise

    def _of(self, operation: str) -> dict[str, str]:
        return {"db.system.name": self._system, "db.operation.name": operation}


class _TracedHold(Generic[H]):
    """A hold, from the wait for it to its end.

    Args:
        hold: The hold.
        spans: Where spans come from.
        operation: How it came to be.
    """

    _held: H

    def __init__(self, hold: AbstractAsyncContextManager[H], spans: _Spans, operation: str) -> None:
        self._hold = hold
        self._spans = spans
        self._operation = operation
        self._is_over = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._hold!r}>"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:  # what takes in the spans may fail, also with one that is at its end
            with self._spans.current(self._operation) as span:
                self._held = await stack.enter_async_context(self._hold)
                span.set_attribute(_WAITED, self._held.waited)
            stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_over:
            await self._hold.__aexit__(kind, error, traceback)
            return
        with self._spans.current("release"):
            await self._hold.__aexit__(kind, error, traceback)

    @property
    def waited(self) -> float:
        return self._held.waited

    @property
    def is_contended(self) -> bool:
        return self._held.is_contended

    async def renew(self, lease: float) -> None:
        with self._spans.current("renew"):
            await self._held.renew(lease)


class TracedHeld(_TracedHold[Held]):
    """A key, held: `Held` of `asyncsess.backends.base`."""

    @property
    def record(self) -> Found:
        return self._held.record

    async def commit(self, payload: bytes, *, now: float, is_last: bool = False) -> Record:
        with self._spans.current("commit") as span:
            span.set_attribute(_SIZE, len(payload))
            return await self._held.commit(payload, now=now, is_last=is_last)

    async def delete(self, tombstone: Tombstone | None = None, *, now: float) -> None:
        with self._spans.current("delete"):
            await self._held.delete(tombstone, now=now)
        self._is_over = True

    async def release(self, *, now: float) -> None:
        with self._spans.current("release"):
            await self._held.release(now=now)
        self._is_over = True


class TracedHeldName(_TracedHold[HeldName]):
    """A name inside a key, held: `HeldName` of `asyncsess.backends.base`."""

    @property
    def was_late(self) -> bool:
        return self._held.was_late

    async def check(self) -> None:
        with self._spans.current("check"):
            await self._held.check()


def _record(error: Exception, span: Span) -> None:
    """Record an error after the conventions, without what others put into its text."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    # Our own texts show neither an id nor a key nor a value; those of a driver, which some of ours repeat, may.
    text = str(error) if isinstance(error, SessionError) and error.__cause__ is None else None
    span.set_attribute("error.type", name)
    span.set_status(StatusCode.ERROR, text)
    frames = "".join(traceback.format_tb(error.__traceback__))
    event = {"exception.type": name, "exception.stacktrace": frames}
    span.add_event("exception", event if text is None else event | {"exception.message": text})
