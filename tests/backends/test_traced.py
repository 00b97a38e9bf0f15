"""The contract on a backend that is traced, and what its spans show, by the real SDK."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from asyncsess import LockTimeoutError, SessionStore, StoreError
from asyncsess.backends.base import Backend, Found, Tombstone
from asyncsess.backends.file import FileBackend
from asyncsess.backends.memory import MemoryBackend
from asyncsess.backends.traced import TracedBackend
from asyncsess.expiry import Expiry
from asyncsess.ids import key_of
from asyncsess.testing import BackendContract, until
from asyncsess.testing.contract import KEY, NOW, create, hold, put
from asyncsess.testing.contract.groups import GROUP
from asyncsess.testing.contract.helpers import hold_name, keys_of
from asyncsess.web import login

NAME = "the-variable"
PAYLOAD = b"the-payload"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def backend(provider: TracerProvider) -> TracedBackend:
    return TracedBackend(MemoryBackend(), system="memory", provider=provider)


class TestMemory(BackendContract):
    @pytest.fixture
    async def backend(self, provider: TracerProvider) -> AsyncIterator[TracedBackend]:
        backend = TracedBackend(MemoryBackend(), provider=provider)
        await backend.open()
        yield backend
        await backend.aclose()

    async def test_release_never_suspends(self, backend: Backend) -> None:
        async with create(backend) as held:
            with pytest.raises(StopIteration):
                held.release(now=NOW).send(None)  # type: ignore[attr-defined]


class TestFile(BackendContract):
    @pytest.fixture
    async def backend(self, directory: Path, provider: TracerProvider) -> AsyncIterator[TracedBackend]:
        backend = TracedBackend(FileBackend(directory), provider=provider)
        await backend.open()
        yield backend
        await backend.aclose()

    @pytest.fixture
    async def other(self, backend: TracedBackend, directory: Path) -> AsyncIterator[TracedBackend]:
        other = TracedBackend(FileBackend(directory))  # without an SDK
        await other.open()
        yield other
        await other.aclose()


async def use(backend: Backend) -> None:
    """Do everything that there is to do."""
    await backend.open()
    async with create(backend, PAYLOAD) as held:
        await held.renew(30.0)
        await held.commit(PAYLOAD * 2, now=NOW)
        await held.release(now=NOW)
    async with hold(backend), hold_name(backend, NAME) as name:
        await name.check()
    await backend.read(KEY)
    await backend.touch(KEY, now=NOW + 1)
    await backend.add_member(GROUP, KEY, now=NOW)
    await backend.members(GROUP)
    await backend.remove_member(GROUP, KEY)
    await keys_of(backend)
    await backend.delete_expired(Expiry(1.0), now=NOW)
    async with hold(backend) as held:
        await held.delete(Tombstone(b"", NOW), now=NOW)
    await backend.aclose()


def shown(exporter: InMemorySpanExporter) -> str:
    """Return all that is exported, as text."""
    return "\n".join(f"{span.to_json()} {span.events!r}" for span in exporter.get_finished_spans())


class FailingProcessor(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise OSError("no span is taken")


async def test_nothing_stays_locked_where_spans_can_not_be_taken_in(provider: TracerProvider) -> None:
    memory = MemoryBackend()
    await put(memory)
    provider.add_span_processor(FailingProcessor())
    with pytest.raises(OSError, match="no span"):
        await hold(TracedBackend(memory, provider=provider)).__aenter__()
    async with hold(memory, timeout=0):
        pass


async def test_each_operation_has_a_span_with_the_attributes_of_the_conventions(
    backend: TracedBackend, exporter: InMemorySpanExporter
) -> None:
    await use(backend)
    spans = exporter.get_finished_spans()
    names = ["open", "create", "renew", "commit", "release", "hold", "hold_name", "check", "release", "release", "read"]
    names += ["touch", "add_member", "members", "remove_member", "keys", "delete_expired", "hold", "delete", "close"]
    assert [span.name for span in spans] == [f"asyncsess.{name}" for name in names]
    for span, name in zip(spans, names, strict=True):
        assert span.attributes is not None
        assert (span.attributes["db.system.name"], span.attributes["db.operation.name"]) == ("memory", name)
        assert "error.type" not in span.attributes
        assert (span.kind, span.status.status_code) == (SpanKind.CLIENT, StatusCode.UNSET)
    more = {
        key: value for span in spans for key, value in (span.attributes or {}).items() if key.startswith("asyncsess")
    }
    assert more == {"asyncsess.waited": 0.0, "asyncsess.size": len(PAYLOAD) * 2, "asyncsess.deleted": 0}


async def test_nothing_of_a_session_is_exported(
    tmp_path: Path, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """Ids, keys, groups, names and values, also where the driver shows them in an error."""

    class Talkative(FileBackend):
        async def read(self, key: str) -> Found:
            try:
                raise OSError(5, "no disk", f"/{key}")
            except OSError as error:
                raise StoreError(f"it failed: {error}") from error

    secrets = [KEY, KEY[2:], GROUP, NAME, PAYLOAD.decode()]
    await use(TracedBackend(FileBackend(tmp_path / "one"), provider=provider))
    async with SessionStore(TracedBackend(FileBackend(tmp_path / "two"), provider=provider)) as store:
        async with store.open() as session:
            session["secret"] = "the-value"
            await login(session, "the-owner")
        async with store.open(session.id, timeout=0) as session:
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(store.open(session.id, timeout=0).__aenter__())
        secrets += [session.id, key_of(session.id), key_of(session.id)[2:], "the-value", "the-owner"]
        await store.destroy_all("the-owner")
    with pytest.raises(StoreError, match=KEY):
        await TracedBackend(Talkative(tmp_path / "one"), provider=provider).read(KEY)
    text = shown(exporter)
    assert "asyncsess.errors.StoreError" in text
    assert "held by process" in text
    assert [secret for secret in secrets if secret in text] == []


async def test_an_error_is_recorded_after_the_conventions(
    backend: TracedBackend, exporter: InMemorySpanExporter
) -> None:
    await put(backend)
    await backend.aclose()
    exporter.clear()
    with pytest.raises(StoreError):
        await keys_of(backend)
    with pytest.raises(StoreError):
        await backend.read(KEY)
    for span in exporter.get_finished_spans():
        assert span.attributes is not None
        assert span.attributes["error.type"] == "asyncsess.errors.StoreError"
        assert span.status.status_code is StatusCode.ERROR
        assert "was closed" in (span.status.description or "")
        (event,) = span.events
        assert (event.name, event.attributes and event.attributes["exception.type"]) == (
            "exception",
            "asyncsess.errors.StoreError",
        )
        assert "_check_open" in str(event.attributes and event.attributes["exception.stacktrace"])


async def test_spans_are_children_of_what_is_current_in_their_own_task(
    backend: TracedBackend, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    tracer, all_are_in = provider.get_tracer("an application"), asyncio.Barrier(5)

    async def handle(number: int) -> None:
        with tracer.start_as_current_span(f"request {number}"):
            await all_are_in.wait()
            async with hold(backend, create=True) as held:
                await asyncio.sleep(0)
                await held.commit(b"", now=NOW)
                with tracer.start_as_current_span("inside"):
                    await backend.read(KEY)
                assert [key async for key in backend.keys() if await backend.read(key)] == [KEY]  # noqa: SIM118

    await asyncio.gather(*(handle(number) for number in range(5)))
    spans = exporter.get_finished_spans()
    requests = {span.context.span_id: span for span in spans if span.name.startswith("request") and span.context}

    def children(of: int) -> list[str]:
        return sorted(span.name for span in spans if span.parent and span.parent.span_id == of)

    assert len(requests) == 5
    for span_id in requests:
        names = [
            "asyncsess.commit",
            "asyncsess.hold",
            "asyncsess.keys",
            "asyncsess.read",
            "asyncsess.release",
            "inside",
        ]
        assert children(span_id) == names
    inside = [span for span in spans if span.name == "inside"]
    assert [children(span.context.span_id) for span in inside if span.context] == [["asyncsess.read"]] * 5
    waited = [waited_by(span) for span in spans if span.name == "asyncsess.hold"]
    assert [seconds > 0 for seconds in sorted(waited)] == [False, True, True, True, True]


def waited_by(span: ReadableSpan) -> float:
    assert span.attributes is not None
    waited = span.attributes["asyncsess.waited"]
    assert isinstance(waited, float)
    return waited


async def test_a_cancellation_ends_the_span_and_is_no_error(
    backend: TracedBackend, exporter: InMemorySpanExporter
) -> None:
    async with hold(backend, create=True):
        waiter = asyncio.create_task(hold(backend, create=True).__aenter__())
        await until(lambda: backend.statistics().waiting == 1)
        exporter.clear()
        waiter.cancel()
        with suppress(asyncio.CancelledError):
            await waiter
        (span,) = exporter.get_finished_spans()
    assert (span.name, span.status.status_code, span.events) == ("asyncsess.hold", StatusCode.UNSET, ())
    assert span.end_time is not None


async def test_keys_that_nobody_reads_to_the_end_end_their_span(
    backend: TracedBackend, exporter: InMemorySpanExporter
) -> None:
    await put(backend)
    keys = backend.keys()
    assert await anext(keys) == KEY
    exporter.clear()
    await keys.aclose()  # type: ignore[attr-defined]
    assert [span.name for span in exporter.get_finished_spans()] == ["asyncsess.keys"]


def test_without_an_sdk_it_just_works() -> None:
    program = """
import asyncio, sys
sys.modules["opentelemetry.sdk"] = None
from asyncsess import SessionStore
from asyncsess.backends.memory import MemoryBackend
from asyncsess.backends.traced import TracedBackend
from asyncsess.metrics.opentelemetry import OpenTelemetryMetrics

async def main():
    async with SessionStore(TracedBackend(MemoryBackend()), hooks=[OpenTelemetryMetrics()]) as store:
        session_id = await store.create({"n": 1})
        async with store.open(session_id) as session:
            session["n"] += 1
        async with store.open(session_id, readonly=True) as session:
            assert session["n"] == 2

asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk.")]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
