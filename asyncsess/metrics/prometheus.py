"""`PrometheusMetrics`: the hook of a store for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from asyncsess.events import Event
from asyncsess.metrics.measures import BUCKETS, BYTES, MEASURES, SECONDS, Measure, measured

_SUFFIXES: Final = {SECONDS: "_seconds", BYTES: "_bytes"}


class PrometheusMetrics:
    """Count the events of one or more stores; needs the extra ``prometheus``.

        store = FileStore("var/sessions", hooks=[PrometheusMetrics()])

    There are counters such as ``asyncsess_opened_total`` and ``asyncsess_lock_timeouts_total``, and histograms of the
    seconds that were waited for others, ``asyncsess_wait_duration_seconds``, and for which others were kept waiting for
    longer than ``slow_hold``, ``asyncsess_long_hold_duration_seconds``.

    Args:
        registry: Where to; each has one such hook, which all stores of a process share.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counters: dict[Measure, Counter] = {}
        self._histograms: dict[Measure, Histogram] = {}
        for measure in MEASURES:
            name = f"asyncsess_{measure.name.replace('.', '_')}{_SUFFIXES.get(measure.unit, '')}"
            description, labels = measure.description, measure.labels
            if measure.unit == SECONDS:
                self._histograms[measure] = Histogram(name, description, labels, registry=registry, buckets=BUCKETS)
            else:
                self._counters[measure] = Counter(name, description, labels, registry=registry)

    def __call__(self, event: Event, /) -> None:
        """Count an event."""
        for measure, amount, labels in measured(event):
            if measure.unit == SECONDS:
                histogram = self._histograms[measure]
                (histogram.labels(**labels) if labels else histogram).observe(amount)
            else:
                counter = self._counters[measure]
                (counter.labels(**labels) if labels else counter).inc(amount)
