"""What the user's own code says of itself, as a reader finds it: spans, logged values, steps. No I/O.

A process keeps what it says one by one as long as that is little (see ``own``). What comes faster is summed up: values to
their last, lowest, highest and mean, spans to a histogram of their durations whose buckets are 2 % wide.
Times are seconds since the run's start.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Event = Mapping[str, Any]
    Floats = NDArray[np.float64]

BUCKET = 1.02  # a duration is told by the middle of its bucket: at most 1 % off
MOST_BUCKET = 2000  # some years, and the nanosecond on the other side
STEP = "step"  # what step() counts, beside the amounts it is given
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds: the histogram of latencies that other systems get
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no such numbers


def bucket_of(seconds: float) -> int:
    """The bucket a duration falls into; all under a nanosecond are one."""
    return math.ceil(math.log(max(seconds, 1e-9)) / math.log(BUCKET))


def bucket_seconds(bucket: int) -> float:
    """The duration that stands for a bucket."""
    return 2 * BUCKET**bucket / (BUCKET + 1)


@dataclass(frozen=True)
class Span:
    """One ``with cellmeter.span(name)``. ``pid`` is that of a worker, or 0 for the kernel itself."""

    name: str
    start: float
    end: float
    status: str
    """``ok``, or ``error`` if an exception left it."""
    parent: str | None = None
    """The name of the span around it, in the same thread or task."""
    items: float | None = None
    pid: int = 0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True)
class SpanBatch:
    """Spans of one name that came too fast to be kept one by one; from the first one's start to the last one's end."""

    name: str
    start: float
    end: float
    count: int
    errors: int
    seconds: float
    """All their durations together."""
    items: float | None
    histogram: Mapping[int, int]
    """How many fell into each bucket (:func:`bucket_of`)."""
    pid: int = 0


@dataclass(frozen=True)
class Logged:
    """A logged value over time. All arrays have one entry a record, in the order of time.

    Where ``count`` is above 1, that many values came too fast to be kept one by one: ``value`` is the last of them.
    """

    time: Floats
    value: Floats
    low: Floats
    high: Floats
    mean: Floats
    count: NDArray[np.int64]
    pid: NDArray[np.int64]
    """The worker that logged it; 0 for the kernel itself."""


@dataclass(frozen=True)
class Steps:
    """Steps done, or an amount done by them: how much in the time that ended at ``time``."""

    time: Floats
    amount: Floats

    def per_second(self, start: float, end: float) -> float | None:
        """The rate from ``start`` to ``end``; None where nothing was done or no time passed."""
        inside = self.amount[self.time.searchsorted(start, "right") : self.time.searchsorted(end, "right")]
        return float(inside.sum()) / (end - start) if len(inside) and end > start else None


@dataclass(frozen=True)
class Own:
    """All that a run's processes said of themselves."""

    spans: tuple[Span, ...] = ()
    batches: tuple[SpanBatch, ...] = ()
    logged: Mapping[str, Logged] = field(default_factory=dict)
    steps: Mapping[str, Steps] = field(default_factory=dict)

    def only(self, wanted: Callable[[Floats], NDArray[np.bool_]]) -> Own:
        """What was said at the times that are wanted; ``wanted`` is asked for times in order."""
        import numpy as np

        spans = wanted(np.array([span.end for span in self.spans]))
        batches = wanted(np.array([batch.end for batch in self.batches]))
        logged = {name: _rows(values, wanted(values.time)) for name, values in self.logged.items()}
        steps = {name: _rows(done, wanted(done.time)) for name, done in self.steps.items()}
        return Own(
            tuple(span for span, keep in zip(self.spans, spans, strict=True) if keep),
            tuple(batch for batch, keep in zip(self.batches, batches, strict=True) if keep),
            {name: values for name, values in logged.items() if len(values.time)},
            {name: done for name, done in steps.items() if len(done.time)},
        )


_Columns = TypeVar("_Columns", Logged, Steps)


def _rows(columns: _Columns, keep: NDArray[np.bool_]) -> _Columns:
    return replace(columns, **{name: column[keep] for name, column in vars(columns).items()})


# ---- events to data --------------------------------------------------------------------------------------------------


def own_from(events: Iterable[Event], start_ns: int) -> Own:
    """What the events tell. Raises ValueError for one that is not in the form known."""
    events = sorted(events, key=_time)
    spans = (_span(e, start_ns) for e in events if e.get("event") == "span")
    batches = (_batch(e, start_ns) for e in events if e.get("event") == "spans")
    said = [e for e in events if e.get("event") == "logged"]
    return Own(tuple(spans), tuple(batches), _logged(said, start_ns), _steps(said, start_ns))


def _time(event: Event) -> int:
    t = event.get("t")
    return t if isinstance(t, int) else 0


def _span(event: Event, start_ns: int) -> Span:
    return Span(
        name=event["name"],
        start=(event["start"] - start_ns) * 1e-9,
        end=(event["t"] - start_ns) * 1e-9,
        status=event["status"],
        parent=event.get("parent"),
        items=event.get("items"),
        pid=event.get("pid", 0),
    )


def _batch(event: Event, start_ns: int) -> SpanBatch:
    histogram = {int(bucket): count for bucket, count in event["histogram"].items()}
    if sum(histogram.values()) != event["count"] or event["count"] < 1 or any(abs(b) > MOST_BUCKET for b in histogram):
        raise ValueError(f"the histogram of {event['name']!r:.40} is {histogram!r:.40}")
    return SpanBatch(
        name=event["name"],
        start=(event["start"] - start_ns) * 1e-9,
        end=(event["t"] - start_ns) * 1e-9,
        count=event["count"],
        errors=event["errors"],
        seconds=event["seconds"],
        items=event.get("items"),
        histogram=histogram,
        pid=event.get("pid", 0),
    )


def _logged(events: Sequence[Event], start_ns: int) -> dict[str, Logged]:
    import numpy as np

    rows: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for event in events:
        time, pid = (event["t"] - start_ns) * 1e-9, event.get("pid", 0)
        for name, said in event.get("values", {}).items():
            count, last, low, high, total = said if isinstance(said, list) else (1, said, said, said, said)
            rows[name].append(
                (time, _number(last), _number(low), _number(high), _number(total) / int(count), count, pid)
            )
    found = {}
    for name, table in rows.items():
        time, value, low, high, mean, count, pid = np.array(table, dtype=float).T
        found[name] = Logged(time, value, low, high, mean, count.astype(np.int64), pid.astype(np.int64))
    return found


def _number(value: Any) -> float:
    if isinstance(value, str):
        if value not in NOT_FINITE:
            raise ValueError(f"{value!r:.40} is no number")
        return NOT_FINITE[value]
    return float(value)


def _steps(events: Sequence[Event], start_ns: int) -> dict[str, Steps]:
    import numpy as np

    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        for name, amount in event.get("steps", {}).items():
            rows[name].append(((event["t"] - start_ns) * 1e-9, amount))
    return {name: Steps(*np.array(table, dtype=float).T) for name, table in rows.items()}
