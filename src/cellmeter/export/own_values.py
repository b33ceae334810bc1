"""What the user's code said, as numbers over time for other systems: logged values, steps done so far, durations of spans.

Their metrics are called as in an export to ``.csv``: ``logged.loss``, ``step.tokens``, ``span.inference``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from cellmeter.spans import BOUNDS, STEP, Span, SpanBatch, bucket_seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Run

    Floats = NDArray[np.float64]
    Cut = Callable[[Floats], Floats]
    """How time is cut into intervals: the start of the one that each of some times lies in. Seconds since the run's start."""

Kind = Literal["logged", "step", "span"]
KINDS: tuple[Kind, ...] = ("logged", "step", "span")
HISTOGRAM_SECONDS = 1.0  # a histogram has a point so often at the most, where no interval is given


@dataclass(frozen=True)
class OwnValue:
    """One name's records in the order of time: ``time``, ``value``, ``mean`` and ``count`` have an entry each.

    A record stands for ``count`` values: ``value`` is the last of them. Of a ``step`` it is how much was done so far, of a
    ``span`` seconds, which are a mean where many came too fast to be kept one by one.
    """

    kind: Kind
    name: str
    time: Floats
    value: Floats
    mean: Floats
    count: Floats

    @property
    def metric(self) -> str:
        """What it is called in an export to ``.csv``."""
        return f"{self.kind}.{self.name}"

    def every(self, cut: Cut | None) -> tuple[Floats, Floats]:
        """Times and values: all records, or one an interval at the time of its last: the mean, of steps the last.

        Of numbers one is NaN, their mean is too.
        """
        import numpy as np

        if cut is None or not len(self.time):
            return self.time, self.value
        first = np.flatnonzero(np.diff(cut(self.time), prepend=-np.inf))
        ends = np.append(first[1:], len(self.time)) - 1
        if self.kind == "step":
            return self.time[ends], self.value[ends]
        with np.errstate(invalid="ignore"):
            means = np.add.reduceat(self.mean * self.count, first) / np.add.reduceat(self.count, first)
        return self.time[ends], means

    def said_by(self, times: Floats) -> Floats:
        """How many values there were until some times, those included."""
        import numpy as np

        return np.append(0.0, self.count.cumsum())[self.time.searchsorted(times, "right")]


def own_values(run: Run) -> Iterator[OwnValue]:
    """All names: logged values, steps and amounts, spans; of all processes together, as Prometheus has them."""
    for name, logged in run.logged.items():
        yield _ordered("logged", name, (logged.time, logged.value, logged.mean, logged.count))
    for name, steps in run.steps.items():
        done = steps.amount.clip(0).cumsum()  # a counter never falls
        yield _ordered("step", name, (steps.time, done, done, steps.amount * 0 + 1))
    for name, parts in _spans_by_name(run).items():
        rows = [(part.end, *_mean_seconds(part)) for part in parts]
        ends, seconds, count = zip(*rows, strict=True)
        yield _ordered("span", name, (ends, seconds, seconds, count))


def steps_done(run: Run, times: Floats) -> Floats:
    """How many steps had been done by some times, those included."""
    import numpy as np

    steps = run.steps.get(STEP)
    if steps is None:
        return np.zeros(len(times))
    return np.append(0.0, steps.amount.clip(0).cumsum())[steps.time.searchsorted(times, "right")]


def _ordered(kind: Kind, name: str, columns: Sequence[Sequence[float] | NDArray[np.float64 | np.int64]]) -> OwnValue:
    import numpy as np

    time, *others = (np.asarray(column, dtype=float) for column in columns)
    order = time.argsort(kind="stable")
    return OwnValue(kind, name, time[order], *(column[order] for column in others))


def _spans_by_name(run: Run) -> dict[str, list[Span | SpanBatch]]:
    """In the order in which they ended."""
    parts: list[Span | SpanBatch] = [*run.own.spans, *run.own.batches]
    named: dict[str, list[Span | SpanBatch]] = {}
    for part in sorted(parts, key=lambda part: part.end):
        named.setdefault(part.name, []).append(part)
    return named


def _mean_seconds(part: Span | SpanBatch) -> tuple[float, int]:
    return (part.seconds, 1) if isinstance(part, Span) else (part.seconds / part.count, part.count)


class SpanPoint(NamedTuple):
    """Spans of one name from the run's start to a time: how many there were of each length, and what became of them.

    ``counts`` has one entry a bound of ``cellmeter.spans.BOUNDS``, and one for what is above the last.
    """

    time: float
    counts: tuple[int, ...]
    seconds: float
    errors: int
    items: float | None
    """None: they have not said any."""


def span_points(run: Run, interval_seconds: float | None) -> Iterator[tuple[str, list[SpanPoint]]]:
    """By name, a point for each interval (a second) in which spans ended, at the end of the last."""
    interval = interval_seconds or HISTOGRAM_SECONDS
    for name, parts in _spans_by_name(run).items():
        points: dict[float, SpanPoint] = {}
        so_far = SpanPoint(0.0, (0,) * (len(BOUNDS) + 1), 0.0, 0, None)
        for part in parts:
            so_far = points[part.end // interval] = _with(so_far, part)
        yield name, list(points.values())


def _with(so_far: SpanPoint, part: Span | SpanBatch) -> SpanPoint:
    counts = list(so_far.counts)
    if isinstance(part, Span):
        counts[bisect_left(BOUNDS, part.seconds)] += 1
        errors = int(part.status == "error")
    else:
        for bucket, count in part.histogram.items():
            counts[bisect_left(BOUNDS, bucket_seconds(bucket))] += count
        errors = part.errors
    items = so_far.items if part.items is None else (so_far.items or 0.0) + max(0.0, part.items)
    return SpanPoint(part.end, tuple(counts), so_far.seconds + part.seconds, so_far.errors + errors, items)
