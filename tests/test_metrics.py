"""The hooks that count events, by the real libraries of OpenTelemetry and Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import get_args

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from asyncsess import ConflictError, LockLostError, LockTimeoutError, SessionNotFoundError, events, rules
from asyncsess.errors import Holder
from asyncsess.ids import key_of
from asyncsess.metrics.measures import MEASURES, measured
from asyncsess.metrics.opentelemetry import OpenTelemetryMetrics
from asyncsess.metrics.prometheus import PrometheusMetrics
from asyncsess.testing import until

from .conftest import NewStore


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader], shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """Return what Prometheus reads, without the times of creation and the buckets."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def collected(reader: InMemoryMetricReader) -> dict[str, float]:
    """Return the sums, and how many times there are in each histogram."""
    found: dict[str, float] = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            name = metric.name + "".join(f" {name}={value}" for name, value in (point.attributes or {}).items())
            if isinstance(point, HistogramDataPoint):
                found[name] = point.count
            elif isinstance(point, NumberDataPoint):
                found[name] = point.value
    return found


async def test_what_happens_in_a_store_is_counted_and_nothing_of_a_session_shown(
    new_store: NewStore,
    clock: object,
    registry: CollectorRegistry,
    reader: InMemoryMetricReader,
    provider: MeterProvider,
) -> None:
    hooks = [PrometheusMetrics(registry), OpenTelemetryMetrics(provider.get_meter("test"))]
    async with new_store(hooks=hooks, slow_hold=1e-9) as store:
        session_id = await store.create({"the-key": 1})

        async def wait() -> None:
            async with store.open(session_id):
                pass

        async with store.open(session_id) as session:
            waiter = asyncio.create_task(wait())
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(store.open(session_id, timeout=0).__aenter__())
            await until(lambda: store.statistics().waiting == 1)
            session["the-key"] = 2
        await waiter
        for resolve in (rules.add, None):
            edit = store.edit(session_id, resolve=resolve)
            async with edit as session:
                async with store.open(session_id) as other:
                    other["the-key"] += 1
                session["the-key"] += 5
                if resolve is None:
                    with pytest.raises(ConflictError):
                        await session.save()
                    await session.rollback()
        async with store.open(session_id) as session:
            await session.regenerate_id(grace=0)
        with pytest.raises(SessionNotFoundError):
            await store.open(session_id, readonly=True).__aenter__()
        late = store.open(session.id, lease=0.01)
        session = await late.__aenter__()
        session["the-key"] = 0

        async def follow() -> None:
            async with store.open(session.id) as following:
                following["the-key"] = 99

        await asyncio.create_task(follow())
        with pytest.raises(LockLostError):
            await late.__aexit__(None, None, None)
        committed = store.statistics().committed_bytes
    found = scraped(registry)
    assert found.pop("asyncsess_wait_duration_seconds_sum mode=exclusive") > 0
    assert found.pop("asyncsess_long_hold_duration_seconds_sum") > 0
    assert found.pop("asyncsess_long_hold_duration_seconds_count") >= 1
    assert found == {
        "asyncsess_opened_total mode=exclusive": 8,
        "asyncsess_opened_total mode=edit": 2,
        "asyncsess_wait_duration_seconds_count mode=exclusive": 2,
        "asyncsess_lock_timeouts_total mode=exclusive": 1,
        "asyncsess_commits_total merged=false": 6,
        "asyncsess_commits_total merged=true": 1,
        "asyncsess_committed_bytes_total": committed,
        "asyncsess_conflicts_total": 1,
        "asyncsess_retries_total": 0,
        "asyncsess_leases_lost_total": 1,
        "asyncsess_predecessors_used_total": 1,
    }
    also = collected(reader)
    assert also.pop("asyncsess.long_hold.duration") >= 1
    assert also == {
        "asyncsess.opened asyncsess.mode=exclusive": 8,
        "asyncsess.opened asyncsess.mode=edit": 2,
        "asyncsess.wait.duration asyncsess.mode=exclusive": 2,
        "asyncsess.lock.timeouts asyncsess.mode=exclusive": 1,
        "asyncsess.commits asyncsess.merged=false": 6,
        "asyncsess.commits asyncsess.merged=true": 1,
        "asyncsess.committed": committed,
        "asyncsess.conflicts": 1,
        "asyncsess.leases.lost": 1,
        "asyncsess.predecessors.used": 1,
    }
    data = reader.get_metrics_data()
    text = generate_latest(registry).decode() + ("" if data is None else data.to_json())
    for secret in (session_id, session.id, key_of(session_id), key_of(session.id), "the-key", __file__):
        assert secret not in text


def test_every_event_is_measured_and_every_measure_has_an_event() -> None:
    holder = Holder(1, "task", datetime.now(UTC), "where")
    examples: list[events.Event] = [
        events.Opened("edit"),
        events.Waited("edit", 1.0),
        events.TimedOut("edit", 1.0),
        events.Committed(1, True),
        events.Conflicted([]),
        events.Retried(2),
        events.HeldLong(holder, 1.0),
        events.LeaseLost(holder),
        events.PredecessorUsed(datetime.now(UTC), "successor"),
    ]
    assert {type(event) for event in examples} == set(get_args(events.Event))
    found = [each for event in examples for each in measured(event)]
    assert [each.measure for each in found] == list(MEASURES)
    for measure, _, labels in found:
        assert tuple(labels) == measure.labels


def test_stores_may_share_a_hook_and_registries_may_not(registry: CollectorRegistry) -> None:
    shared = PrometheusMetrics(registry)
    for _ in range(2):
        shared(events.Opened("edit"))
    assert scraped(registry)["asyncsess_opened_total mode=edit"] == 2
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusMetrics(registry)
