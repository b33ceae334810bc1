"""A recorded run as plain frozen data, and what can be computed from it. No I/O.

Times are seconds since the run's start on the monotonic clock; memory is bytes; utilisation is percent; CPU use is cores.
An unknown number is NaN in arrays and None in records, with its reason beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cellmeter.columns import Column as Column
from cellmeter.columns import Columns
from cellmeter.columns import Records as Records
from cellmeter.columns import Segment as Segment
from cellmeter.frames import cells_frame, logged_frame, samples_frame, spans_frame
from cellmeter.holders import Holder
from cellmeter.metrics import LONGEST_READING_SECONDS as LONGEST_READING_SECONDS
from cellmeter.metrics import METRICS, RATE_OF, Metric
from cellmeter.remote import Anchor, Remote, RemoteUsage, epochs, usage_between
from cellmeter.series import Limit as Limit
from cellmeter.series import Rates as Rates
from cellmeter.series import Series as Series
from cellmeter.series import known as known
from cellmeter.series import time_weighted_mean as time_weighted_mean
from cellmeter.span_stats import SpanStats, span_stats
from cellmeter.spans import Logged, Own, Span, Steps
from cellmeter.usage import ENOUGH as ENOUGH
from cellmeter.usage import LATE_EDGE_SECONDS as LATE_EDGE_SECONDS
from cellmeter.usage import CellUsage as CellUsage
from cellmeter.usage import GpuUsage as GpuUsage
from cellmeter.usage import WorkersCpu as WorkersCpu
from cellmeter.usage import cell_usage as cell_usage
from cellmeter.usage import cpu_seconds as cpu_seconds
from cellmeter.usage import last_sample as last_sample
from cellmeter.usage import peak_of as peak_of
from cellmeter.usage import usages
from cellmeter.words import seconds_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CellStatus = Literal["ok", "error", "interrupted", "died", "running"]
Ending = Literal["stopped", "exited", "restarted", "killed", "out-of-memory", "crashed", "unknown"]

# Flag bits of a sample.
EDGE_START = 1
EDGE_END = 2

_OWN_CPU = "cpu_ns", "alone_cpu_ns"  # of an edge


class Gap(NamedTuple):
    """Time without samples, in seconds since the start, and why."""

    start: float
    end: float
    reason: str


@dataclass(frozen=True)
class Host:
    """The machine a run was recorded on."""

    name: str
    system: str
    release: str
    machine: str
    python: str
    cpu_count: int
    memory_bytes: int


@dataclass(frozen=True)
class Device:
    """A GPU or MIG instance. ``mine`` is None where it cannot be told whose it is.

    ``since``: seconds from the run's start until it was there; what it did before, if anything, is unknown.
    """

    id: str
    name: str
    uuid: str
    memory_bytes: int
    mine: bool | None = None
    power_limit_watts: float | None = None
    since: float = 0.0


class OwnCpu(NamedTuple):
    """CPU seconds of the kernel process by its own clocks: with children it has waited for, and alone. None: unknown."""

    seconds: float | None = None
    alone: float | None = None

    @classmethod
    def between(cls, start: Mapping[str, Any], end: Mapping[str, Any]) -> OwnCpu:
        """From a cell's start edge to its end edge."""
        used = ((end[key] - start[key]) * 1e-9 if key in start and key in end else None for key in _OWN_CPU)
        return cls(*used)


NO_OWN_CPU = OwnCpu()


@dataclass(frozen=True)
class Cell:
    """One execution of a cell. ``seq`` counts executions; ``parent`` is the cell that ran this one from within."""

    seq: int
    start: float
    end: float | None
    status: CellStatus
    execution_count: int | None = None
    cell_id: str | None = None
    label: str | None = None
    parent: int | None = None
    source_hash: str = ""
    first_line: str = ""
    ours: bool = False
    """It asked cellmeter for something, and did nothing else."""
    source: str | None = None
    own_cpu: OwnCpu = NO_OWN_CPU
    """CPU time by the kernel's own clocks at both edges."""
    own_read_bytes: int | None = None
    own_written_bytes: int | None = None
    """What the kernel process made the disks do, by its own counters at both edges."""
    rss_start_bytes: int | None = None
    rss_end_bytes: int | None = None
    """Resident memory as the kernel read it at its edges."""
    peak_rss_bytes: int | None = None
    """The kernel's own high-water mark over the cell; None where it could not be reset or read."""
    peak_unknown: str | None = None
    workers_peak_bytes: int | None = None
    """Sum of the high-water marks of the workers there at the end: an upper bound, as they need not peak at once."""
    torch_peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """Peaks of PyTorch's allocator by the GPU's UUID, where the cell set a new one."""
    error: str | None = None
    """The type of the exception that it failed with; None if it did not, or that was not recorded."""
    gpu_memory_ran_out: bool = False
    """That exception says that the memory of a GPU ran out."""
    cgroup_peak_bytes: int | None = None
    """Exact peak of the control group, other processes in it and file cache included (cgroup v2, Linux 6.12)."""

    def __repr__(self) -> str:
        took = "" if self.seconds is None else f" {seconds_text(self.seconds)}"
        return f"<Cell {self.seq}: {self.title}, {self.status}{took}, {self.first_line!r}>"

    @property
    def title(self) -> str:
        """What people call it: its label, else ``In [n]``, else its place in the run."""
        if self.label:
            return self.label
        return f"In [{self.execution_count}]" if self.execution_count else f"cell #{self.seq}"

    @property
    def seconds(self) -> float | None:
        """How long it ran; None while it runs."""
        return None if self.end is None else self.end - self.start


def is_ours(source: str) -> bool:
    """Whether a cell has nothing but lines of ``%monitor`` and comments."""
    lines = [line for line in map(str.strip, source.splitlines()) if line and not line.startswith("#")]
    return bool(lines) and all(re.match(r"%monitor(\s|$)", line) for line in lines)


@dataclass(frozen=True)
class AlertFired:
    """An alert that went off, in seconds since the run's start. ``cleared`` None: it held to the end of its cell."""

    alert: str
    subject: str
    cell: int
    time: float
    value: float
    cleared: float | None = None


@dataclass(frozen=True)
class OverBudget:
    """A cell that went beyond the memory budget. ``interrupt``: the cell was to be interrupted for it.

    ``upper_bound``: there may have been less in use.
    """

    budget: str
    metric: str
    cell: int
    time: float
    value_bytes: float
    threshold_bytes: float
    interrupt: bool
    upper_bound: bool = False


@dataclass(frozen=True)
class Run:
    """One recording, from the start of the recorder to its end."""

    id: str
    path: str
    started: datetime
    ended: datetime | None
    ending: Ending | None
    signal: int | None
    exit_code: int | None
    notebook: str | None
    host: Host
    devices: tuple[Device, ...]
    limits: Mapping[str, Limit]
    rate_hz: float
    cells: tuple[Cell, ...]
    gaps: tuple[Gap, ...]
    unavailable: Mapping[str, str]
    """Why a metric is not there at all, by ``metric`` or ``metric:subject``."""
    start_ns: int
    duration: float
    """Seconds from the start to the end, or to the last thing known of a run that has no end."""
    segments: tuple[Segment, ...] = field(repr=False, default=())
    held: Mapping[str, Limit] = field(default_factory=dict)
    """What the system holds the kernel to, where :attr:`limits` has less that a hub only told it."""
    ending_sure: bool = True
    """False: there is no end record; the ending is what the last samples make probable."""
    notices: tuple[str, ...] = ()
    """What the recorder or the reader has to say about this recording: damage, devices lost, what was not recorded."""
    alerts: tuple[AlertFired, ...] = ()
    over_budget: tuple[OverBudget, ...] = ()
    holders: tuple[Holder, ...] = field(repr=False, default=())
    """The processes that held memory of GPUs, the kernel's own among them, by the time they were first seen."""
    plugin_metrics: tuple[Metric, ...] = ()
    """What sources of other packages have measured; they are in no catalogue but this run's."""
    own: Own = field(repr=False, default_factory=Own)
    """What the user's code said: :attr:`spans`, :attr:`logged`, :attr:`steps`."""
    anchors: tuple[Anchor, ...] = field(repr=False, default=())
    """Moments by the run's clock and by the wall's, a minute apart or so."""
    remote: Remote | None = None
    """What a Prometheus server told of other machines; None if none was to be asked."""

    def __repr__(self) -> str:
        cells = "1 cell" if len(self.cells) == 1 else f"{len(self.cells)} cells"
        return f"<Run {self.id}: {cells} in {seconds_text(self.duration)}, {self.ending or 'still running'}>"

    @cached_property
    def _columns(self) -> Columns:
        return Columns(self.segments, self.start_ns)

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """The catalogue, and what plugins have added to it in this run."""
        return {**METRICS, **{metric.name: metric for metric in self.plugin_metrics}}

    def counter_of(self, metric: str) -> str:
        """The metric that is stored: the counter behind a rate, else itself."""
        if metric in RATE_OF:
            return RATE_OF[metric]
        return next((m.name for m in self.plugin_metrics if m.rate == metric), metric)

    @cached_property
    def rates(self) -> Rates:
        """How rates are made of counters in this run."""
        return Rates.on(self.rate_hz, self.host.cpu_count, self.limits)

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What readers worked out of this run and will ask for again, by a key of theirs."""
        return {}

    @property
    def memory_held(self) -> Limit:
        """The memory limit at which the system kills, or refuses memory. Raises KeyError if it is not known."""
        return self.held.get("memory_bytes") or self.limits["memory_bytes"]

    @property
    def sample_count(self) -> int:
        """Samples in the main stream."""
        return sum(len(s.records) for s in self.segments if s.stream == "main")

    def subjects(self, metric: str) -> tuple[str, ...]:
        """Subjects that have readings of a metric (or of the counter behind a rate), in the order of their columns."""
        stored = self.counter_of(metric)
        seen = {c.subject: None for s in self.segments for c in s.columns if c.metric == stored}
        return tuple(seen)

    def series(self, metric: str, subject: str) -> Series:
        """All readings of a metric of the catalogue; a rate is computed from its counter. Those of :attr:`remote` too.

        Empty if it was never recorded. Raises KeyError if :attr:`metrics` has no such metric.
        """
        about, key = self.metrics[metric], (metric, subject)
        if self.remote is not None and key in self.remote.readings:
            told = self.remote.readings[key]
            return self._columns.made(key, lambda: Series(told.time, told.values, self.cells_at(told.time)))
        if about.kind != "rate":
            return self._columns.stored(self.counter_of(metric), subject)
        return self._columns.made(
            key, lambda: self.rates.of(about, self._columns.stored(self.counter_of(metric), subject))
        )

    def times(self, metric: str, subject: str) -> Floats:
        """The times of :meth:`series`, for which no reading is read."""
        if self.remote is not None and (metric, subject) in self.remote.readings:
            return self.remote.readings[metric, subject].time
        return self._columns.times(self.counter_of(metric), subject)

    def usage(self, cell: Cell) -> CellUsage:
        """What a cell used, from its edges and its samples."""
        known = self.memo.get(("usage", cell.seq))
        if known is None or known[0] is not cell:
            known = self.memo["usage", cell.seq] = (cell, cell_usage(self, cell))
        usage: CellUsage = known[1]
        return usage

    def usages(self) -> tuple[CellUsage, ...]:
        """What each of :attr:`cells` used. For all of them at once: a long run is not to be read again for each."""
        if "usages" not in self.memo:
            self.memo["usages"] = found = usages(self)
            self.memo.update({("usage", c.seq): (c, used) for c, used in zip(self.cells, found, strict=True)})
        every: tuple[CellUsage, ...] = self.memo["usages"]
        return every

    def epoch(self, time: float) -> float:
        """Seconds since the epoch at a time of the run (:func:`cellmeter.remote.epochs`)."""
        import numpy as np

        return float(self.epochs(np.array(time, float)))

    def epochs(self, times: Floats) -> Floats:
        """The same of many times."""
        return epochs(times, self._anchors)

    @property
    def _anchors(self) -> Sequence[Anchor]:
        return self.anchors or (Anchor(0.0, self.started.timestamp()),)

    def since(self, epoch: float) -> float:
        """The first time of the run at or after a moment in seconds since the epoch."""
        import numpy as np

        times = np.array([*(anchor.time for anchor in self._anchors), math.inf])
        walls = self.epochs(times[:-1])
        last = max(int(walls.searchsorted(epoch, "right")) - 1, 0)
        return float(max(0.0, min(times[last] + epoch - walls[last], times[last + 1])))

    def remote_usage(self, cell: Cell) -> RemoteUsage | None:
        """What the machines of :attr:`remote` did during a cell; None if there are none to ask for."""
        if self.remote is None:
            return None
        return usage_between(self.remote, cell.start, self.duration if cell.end is None else cell.end)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans that were kept one by one, in the order of their ends; :meth:`span_stats` knows of all."""
        return self.own.spans

    @property
    def logged(self) -> Mapping[str, Logged]:
        """What ``cellmeter.log`` was given, by name: arrays over time."""
        return self.own.logged

    @property
    def steps(self) -> Mapping[str, Steps]:
        """What ``cellmeter.step`` counted: ``step`` itself, and each amount by its name."""
        return self.own.steps

    def span_stats(self) -> tuple[SpanStats, ...]:
        """One entry a span name, in the order they first ended: latencies, throughput, and what the GPUs did meanwhile."""
        return self.spans_in(-math.inf, math.inf)

    def spans_in(self, start: float, end: float) -> tuple[SpanStats, ...]:
        """The same of the spans that ended from ``start`` to ``end`` (seconds since the run's start)."""
        return span_stats(self, start, end)

    def cells_frame(self) -> pd.DataFrame:
        """The cells as a DataFrame, indexed by ``seq``: what they are, and what each used, in seconds and bytes.

        Raises MissingExtra without pandas.
        """
        return cells_frame(self)

    def logged_frame(self) -> pd.DataFrame:
        """Logged values as a DataFrame in long form: time, name, value, low, high, mean, count, pid, cell.

        Raises MissingExtra without pandas.
        """
        return logged_frame(self)

    def spans_frame(self) -> pd.DataFrame:
        """The spans that were kept one by one as a DataFrame: name, start, end, seconds, status, parent, items, pid, cell.

        Raises MissingExtra without pandas.
        """
        return spans_frame(self)

    def cells_at(self, times: Floats) -> NDArray[np.int64]:
        """The sequence of the innermost cell that ran at each of some times, which are in order; 0 where none did."""
        import numpy as np

        found = np.zeros(len(times), np.int64)
        for cell in sorted(self.cells, key=lambda cell: cell.start):
            end = math.inf if cell.end is None else cell.end
            found[times.searchsorted(cell.start, "left") : times.searchsorted(end, "right")] = cell.seq
        return found

    def samples(self) -> pd.DataFrame:
        """The main stream as a DataFrame: one row a sample, indexed by seconds since the start.

        Columns: ``cell`` (sequence, 0 between cells), then ``metric:subject`` for gauges, counters and the rates made of them;
        ``attrs["units"]`` maps each to its unit. Raises MissingExtra without pandas.
        """
        return samples_frame(self)

    def findings(self) -> Sequence[Any]:
        """The findings of all rules, worst first (:class:`cellmeter.rules.Finding`)."""
        import cellmeter

        return list(cellmeter.judge(self).findings)
