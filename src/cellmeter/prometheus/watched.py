"""One run as it goes on: its cells from its events, its newest readings from the ends of its sample files.

Each look reads the events that have come since the last one and a few records, however long the run is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter import form
from cellmeter.clock import wall
from cellmeter.metrics import Metric
from cellmeter.prometheus.names import EXPOSED
from cellmeter.prometheus.totals import OwnTotals
from cellmeter.run import Device, Limit
from cellmeter.store import EVENTS, MOST_WORKER_FILES, EventTail, Tail, read_header, worker_events

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLOWEST_NS = 300 * 10**9  # apart is what is taken for a stream with a single record
ROWS = 20  # of which each column's last number is taken: not all are read with every record
FRESH_SECONDS = 5.0  # older than the newest record, and than two of its own readings: the device or the source is gone
STALE_SECONDS = 60.0  # the recorder hangs, or the disk is full
MOST_LABELS = 50
LABEL_LENGTH = 64
OTHER = "other"
TOLD = {*EXPOSED, "gpu.event_reasons"}
CHUNK_BYTES = 4 << 20  # a long run that says much has hundreds of MiB of events to begin with


class CurrentCell(NamedTuple):
    """The innermost cell that runs. ``number`` is its ``In [n]``, or ``#`` and its place in the run."""

    number: str
    label: str
    started: float
    """Seconds since the epoch."""


class Cells:
    """The cells of a run, put together as their edges come."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter(dict.fromkeys(("ok", "error", "interrupted"), 0))
        self._open: dict[int, Mapping[str, Any]] = {}
        self._labels: set[str] = set()

    def take(self, event: Mapping[str, Any]) -> None:
        """One event."""
        if event.get("event") == "cell_start":
            self._open[event["seq"]] = event
        elif event.get("event") == "cell_end":
            self._open.pop(event["seq"], None)
            self.ended[event["status"]] += 1

    def current(self, clock: Clock) -> CurrentCell | None:
        """The cell that runs now."""
        if not self._open:
            return None
        start = self._open[next(reversed(self._open))]
        number = start.get("execution_count")
        return CurrentCell(str(number or f"#{start['seq']}"), self._known(start.get("label")), clock.wall(start["t"]))

    def _known(self, label: str | None) -> str:
        """A label is a series' name for as long as Prometheus keeps it, so there may not be any number of them."""
        label = (label or "")[:LABEL_LENGTH]
        if label not in self._labels:
            if len(self._labels) >= MOST_LABELS:
                return OTHER
            self._labels.add(label)
        return label


class Clock(NamedTuple):
    """The recorder's clock set against the time of day, last said by it so long ago at the most as a minute."""

    t_ns: int
    epoch: float

    def wall(self, t_ns: int) -> float:
        """Seconds since the epoch."""
        return self.epoch + (t_ns - self.t_ns) * 1e-9


@dataclass(frozen=True)
class State:
    """A run at one moment."""

    run: str
    kernel: str
    """The pid of the process that is recorded."""
    version: str
    host: str
    notebook: str
    limits: Mapping[str, Limit]
    devices: tuple[Device, ...]
    cell: CurrentCell | None
    ended: Mapping[str, int]
    """How many cells have ended, by status."""
    sampled: float | None
    """When the newest sample was taken, in seconds since the epoch."""
    readings: Mapping[tuple[str, str], float]
    """The newest by metric and subject. What is unknown now is not in it."""
    own: OwnTotals
    plugin_metrics: tuple[Metric, ...] = ()
    """What sources of other packages measure."""


class Watched:
    """Follows one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events = EventTail(folder / EVENTS)
        self._said_by_workers: dict[Path, EventTail] = {}
        self._cells = Cells()
        self._own = OwnTotals()
        self._clock: Clock | None = None

    def look(self) -> State:
        """How it is now. Raises RunUnreadable, and LookupError, TypeError or ValueError if its form is not known."""
        header = read_header(self.folder)
        form.check_header(header)
        self._clock = self._clock or Clock(header["start_ns"], header["started"])
        self._catch_up()
        plugin_metrics = tuple(Metric(**metric) for metric in header.get("metrics", ()))
        newest_ns, readings = self._newest(header, TOLD | {metric.name for metric in plugin_metrics})
        sampled = None if newest_ns is None else self._clock.wall(newest_ns)
        if sampled is None or wall() - sampled > STALE_SECONDS:
            readings = {}
        return State(
            run=header["id"],
            kernel=str((header.get("kernel") or {}).get("pid", "")),
            version=str(header.get("cellmeter", "")),
            host=header["host"]["name"],
            notebook=header.get("notebook") or "",
            limits={name: Limit(*limit) for name, limit in header["limits"].items()},
            devices=tuple(Device(**device) for device in header["devices"]),
            cell=self._cells.current(self._clock),
            ended=dict(self._cells.ended),
            sampled=sampled,
            readings=readings,
            own=self._own,
            plugin_metrics=plugin_metrics,
        )

    def _catch_up(self) -> None:
        """Takes what the recorder, and workers of the kernel, have written since the last look."""
        for path in worker_events(self.folder)[:MOST_WORKER_FILES]:
            self._said_by_workers.setdefault(path, EventTail(path))
        for event in _new(self._events):
            self._cells.take(event)
            self._own.take(event)
            if event.get("event") == "anchor":
                self._clock = Clock(event["t"], event["wall"])
        for tail in self._said_by_workers.values():
            for event in _new(tail):
                self._own.take(event)

    def _newest(self, header: Mapping[str, Any], told: Set[str]) -> tuple[int | None, dict[tuple[str, str], float]]:
        """When the newest sample was taken, and the last number of each column."""
        newest_ns: int | None = None
        readings: dict[tuple[str, str], float] = {}
        streams = dict.fromkeys(
            segment["stream"] for segment in header["segments"] if told & {column[0] for column in segment["columns"]}
        )
        for stream in streams:  # the main one first
            grown = [part for part in Tail(self.folder, stream, newest=ROWS).samples() if len(part[1])]
            if not grown:
                continue
            columns, records = grown[-1]
            if newest_ns is None:
                newest_ns = int(records["t"][-1])
            fresh = records[records["t"] >= newest_ns - max(int(FRESH_SECONDS * 1e9), 2 * _spacing_ns(records))]
            for index, column in enumerate(columns):
                numbers = [value for value in fresh["v"][:, index].tolist() if math.isfinite(value)]
                if numbers:
                    readings[column.metric, column.subject] = numbers[-1]
        return newest_ns, readings


def _spacing_ns(records: NDArray[Any]) -> int:
    """How far apart a stream's records are: file systems are read once a minute, a plugin as often as it likes."""
    times = records["t"].tolist()
    return int(times[-1] - times[-2]) if len(times) > 1 else SLOWEST_NS


def _new(tail: EventTail) -> Iterator[dict[str, Any]]:
    """What has come since the last look, however much that is."""
    while events := tail.events(CHUNK_BYTES):
        form.check_events(events)
        yield from events
