"""`OpenTelemetryMetrics`: the hook of a store for OpenTelemetry."""

from __future__ import annotations

from opentelemetry.metrics import Counter, Histogram, Meter, get_meter

from asyncsess.events import Event
from asyncsess.metrics.measures import BUCKETS, MEASURES, SECONDS, Measure, measured


class OpenTelemetryMetrics:
    """Count the events of one or more stores; needs the extra ``opentelemetry``.

        store = FileStore("var/sessions", hooks=[OpenTelemetryMetrics()])

    There are counters such as ``asyncsess.opened`` and ``asyncsess.lock.timeouts``, and histograms of the seconds that
    were waited for others, ``asyncsess.wait.duration``, and for which others were kept waiting for longer than
    ``slow_hold``, ``asyncsess.long_hold.duration``.

    Args:
        meter: Where to; one of the global provider if None.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or get_meter("asyncsess")
        self._counters: dict[Measure, Counter] = {}
        self._histograms: dict[Measure, Histogram] = {}
        for measure in MEASURES:
            name, unit, description, _ = measure
            if unit == SECONDS:
                self._histograms[measure] = meter.create_histogram(
                    f"asyncsess.{name}", unit, description, explicit_bucket_boundaries_advisory=BUCKETS
                )
            else:
                self._counters[measure] = meter.create_counter(f"asyncsess.{name}", unit, description)

    def __call__(self, event: Event, /) -> None:
        """Count an event."""
        for measure, amount, labels in measured(event):
            attributes = {f"asyncsess.{label}": value for label, value in labels.items()}
            if measure.unit == SECONDS:
                self._histograms[measure].record(amount, attributes)
            else:
                self._counters[measure].add(amount, attributes)
