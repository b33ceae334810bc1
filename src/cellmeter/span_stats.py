"""Statistics of spans: latencies, throughput, and what the GPUs did meanwhile. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cellmeter.metrics import LONGEST_READING_SECONDS, SHORT_FOR_ENERGY_SECONDS, SHORT_FOR_UTILIZATION_SECONDS
from cellmeter.series import Interval, Series, covered, growth_within
from cellmeter.spans import Span, SpanBatch, bucket_seconds

if TYPE_CHECKING:
    from cellmeter.run import Run


@dataclass(frozen=True)
class SpanStats:
    """The spans of one name. Durations are seconds; None: unknown, with its reason under ``unknown`` by the dotted key.

    ``gpu`` is by device: the mean utilisation in percent while at least one of the spans was open, and the energy in J.
    """

    name: str
    count: int
    errors: int
    exact: bool
    """Whether all were kept one by one; else the quantiles are within 1 %."""
    p50: float
    p90: float
    p99: float
    busy_seconds: float
    """All durations together."""
    open_seconds: float
    """Time in which at least one was open."""
    per_second: float | None
    """Spans ended per second of that time."""
    items_per_second: float | None
    utilization_mean: Mapping[str, float | None] = field(default_factory=dict)
    energy_joules: Mapping[str, float | None] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


def span_stats(run: Run, start: float, end: float) -> tuple[SpanStats, ...]:
    """See :meth:`Run.spans_in`."""
    named: dict[str, tuple[list[Span], list[SpanBatch]]] = {}
    parts: list[Span | SpanBatch] = [*run.own.spans, *run.own.batches]
    for part in sorted(parts, key=lambda part: part.end):
        if start <= part.end <= end:
            spans, batches = named.setdefault(part.name, ([], []))
            if isinstance(part, Span):
                spans.append(part)
            else:
                batches.append(part)
    return tuple(
        _with_gpus(run, stats_of(name, spans, batches), stretches(spans, batches, 1 / run.rate_hz))
        for name, (spans, batches) in named.items()
    )


def _with_gpus(run: Run, stats: SpanStats, open_times: Sequence[Interval]) -> SpanStats:
    """Use and energy of each GPU while a span was open. What is shorter than a reading is unknown, not nothing."""
    unknown: dict[str, str] = {}
    means: dict[str, float | None] = {}
    energies: dict[str, float | None] = {}
    seconds = covered(open_times)
    for gpu in (device.id for device in run.devices):
        means[gpu] = mean_within(run.series("gpu.utilization", gpu), open_times)
        energies[gpu] = growth_within(run.series("gpu.energy", gpu), open_times)
        for found, key, metric, shortest in (
            (means, "utilization_mean", "gpu.utilization", SHORT_FOR_UTILIZATION_SECONDS),
            (energies, "energy_joules", "gpu.energy", SHORT_FOR_ENERGY_SECONDS),
        ):
            if seconds < shortest:
                found[gpu] = None
                unknown[f"gpu.{gpu}.{key}"] = "the spans are shorter than a reading"
            elif found[gpu] is None:
                why = run.unavailable.get(f"{metric}:{gpu}", "too few samples in these spans")
                unknown[f"gpu.{gpu}.{key}"] = why
    return replace(stats, utilization_mean=means, energy_joules=energies, unknown=unknown)


def mean_within(gauge: Series, times: Iterable[Interval]) -> float | None:
    """Mean of a gauge over some stretches of time, each reading standing for the time up to it, but not for a gap."""
    import numpy as np

    valid = ~np.isnan(gauge.values)
    time, values = gauge.time[valid], gauge.values[valid]
    since = time - np.diff(time, prepend=time[:1]).clip(0, LONGEST_READING_SECONDS)
    total = weight = 0.0
    for start, end in times:
        part = slice(time.searchsorted(start, "left"), time.searchsorted(end, "left") + 1)
        overlap = (time[part].clip(max=end) - since[part].clip(min=start)).clip(min=0)
        total += float(overlap @ values[part])
        weight += float(overlap.sum())
    return total / weight if weight > 0 else None


def union(intervals: Iterable[Interval], bridge: float = 0.0) -> list[Interval]:
    """The time covered by intervals, in order; gaps up to ``bridge`` seconds count as covered."""
    merged: list[Interval] = []
    for interval in sorted(intervals):
        if merged and interval.start - merged[-1].end <= bridge:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        else:
            merged.append(interval)
    return merged


def stretches(spans: Iterable[Span], batches: Iterable[SpanBatch], bridge: float) -> list[Interval]:
    """When spans were open, as finely as samples every ``bridge`` seconds can tell; a batch counts from end to end."""
    return union([*(Interval(s.start, s.end) for s in spans), *(Interval(b.start, b.end) for b in batches)], bridge)


def stats_of(name: str, spans: Sequence[Span], batches: Sequence[SpanBatch]) -> SpanStats:
    """Statistics of the spans of one name, all but what they did to the GPUs. There must be at least one."""
    durations = _durations(spans, batches)
    quantiles = [_quantile(durations, share) for share in (0.5, 0.9, 0.99)]
    count = len(spans) + sum(batch.count for batch in batches)
    apart = union(Interval(span.start, span.end) for span in spans)
    open_seconds = covered(apart) + sum(min(b.seconds, b.end - b.start) for b in batches)
    items = [span.items for span in spans] + [batch.items for batch in batches]
    amounts = [amount for amount in items if amount is not None]
    return SpanStats(
        name=name,
        count=count,
        errors=sum(span.status == "error" for span in spans) + sum(batch.errors for batch in batches),
        exact=not batches,
        p50=quantiles[0],
        p90=quantiles[1],
        p99=quantiles[2],
        busy_seconds=sum(span.seconds for span in spans) + sum(batch.seconds for batch in batches),
        open_seconds=open_seconds,
        per_second=count / open_seconds if open_seconds > 0 else None,
        items_per_second=sum(amounts) / open_seconds if amounts and open_seconds > 0 else None,
    )


def _durations(spans: Iterable[Span], batches: Iterable[SpanBatch]) -> list[tuple[float, int]]:
    """Durations and how often each came, shortest first."""
    together: dict[int, int] = defaultdict(int)
    for batch in batches:
        for bucket, count in batch.histogram.items():
            together[bucket] += count
    apart = [(span.seconds, 1) for span in spans]
    return sorted([*apart, *((bucket_seconds(bucket), count) for bucket, count in together.items())])


def _quantile(durations: Sequence[tuple[float, int]], share: float) -> float:
    """The shortest duration that at least this share of all do not exceed."""
    totals, total = [], 0
    for _, count in durations:
        total += count
        totals.append(total)
    index = bisect_right(totals, math.ceil(share * total) - 1)
    return durations[min(index, len(durations) - 1)][0]
