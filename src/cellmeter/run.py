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

from cellmeter.frames import cells_frame, logged_frame, samples_frame, spans_frame
from cellmeter.metrics import LONGEST_READING_SECONDS as LONGEST_READING_SECONDS
from cellmeter.metrics import (
    METRICS,
    RATE_OF,
    SHORT_FOR_CPU_SECONDS,
    SHORT_FOR_ENERGY_SECONDS,
    SHORT_FOR_UTILIZATION_SECONDS,
    Metric,
)
from cellmeter.remote import Anchor, Remote, RemoteUsage, epochs, usage_between
from cellmeter.span_stats import SpanStats, span_stats
from cellmeter.spans import Logged, Own, Span, Steps

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

DRIVER_SAMPLE_SECONDS = 1 / 6
_OWN_CPU = "cpu_ns", "alone_cpu_ns"  # of an edge
BORN_SINCE_SECONDS = (
    0.02  # of CPU time: a worker of no more at a cell's first sample was born between its start and that
)
ENOUGH = 0.8  # of an interval must have been observed to judge it
MOSTLY_UNREAD = f"it was read for less than {ENOUGH:.0%} of the cell".replace("%", " %")
LATE_EDGE_SECONDS = 2.0  # the recorder takes a cell's last sample when the edge reaches it: late on a starved machine


class Column(NamedTuple):
    """One stored quantity of one subject (``host``, ``process``, ``cpu3``, ``gpu0``)."""

    metric: str
    subject: str
    unit: str


class Gap(NamedTuple):
    """Time without samples, in seconds since the start, and why."""

    start: float
    end: float
    reason: str


class Limit(NamedTuple):
    """The most that may be used of a resource, and what sets it (``cgroup``, ``cpuset``, ``rlimit``, ``host``)."""

    value: float
    source: str


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
    cgroup_peak_bytes: int | None = None
    """Exact peak of the control group, other processes in it and file cache included (cgroup v2, Linux 6.12)."""

    def __repr__(self) -> str:
        took = "" if self.seconds is None else f" {self.seconds:.3g} s"
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


class Series(NamedTuple):
    """Readings of one quantity: seconds since the run's start, values, and the cell each was taken in (0: none)."""

    time: Floats
    values: Floats
    seq: NDArray[np.int64]

    def between(self, start: float, end: float) -> Series:
        """The part from ``start`` to ``end``, both included."""
        low, high = self.time.searchsorted(start, "left"), self.time.searchsorted(end, "right")
        return Series(self.time[low:high], self.values[low:high], self.seq[low:high])


@dataclass(frozen=True)
class Segment:
    """Samples that share their columns: a structured array ``t`` (ns), ``seq``, ``flags``, ``v`` (n × columns)."""

    stream: str
    columns: tuple[Column, ...]
    records: NDArray[Any]


@dataclass(frozen=True)
class GpuUsage:
    """What one cell did to one GPU. None: unknown."""

    utilization_mean: float | None
    utilization_p95: float | None
    memory_peak_bytes: int | None
    energy_joules: float | None
    torch_peak_bytes: int | None


@dataclass(frozen=True)
class CellUsage:
    """What one cell used; ``cores`` on the average. ``unknown`` says why a number is None, by its dotted key."""

    samples: int
    cpu_seconds: float | None
    cores: float | None
    peak_rss_bytes: int | None
    peak_exact: bool
    rss_start_bytes: int | None
    rss_end_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None
    gpu: Mapping[str, GpuUsage]
    unknown: Mapping[str, str]


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
    ending_sure: bool = True
    """False: there is no end record; the ending is what the last samples make probable."""
    notices: tuple[str, ...] = ()
    """What the recorder or the reader has to say about this recording: damage, devices lost, what was not recorded."""
    alerts: tuple[AlertFired, ...] = ()
    over_budget: tuple[OverBudget, ...] = ()
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
        return f"<Run {self.id}: {cells} in {self.duration:.3g} s, {self.ending or 'still running'}>"

    @cached_property
    def _cache(self) -> dict[tuple[str, str], Series]:
        return {}

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
        kind = self.metrics[metric].kind
        key = (metric, subject)
        if key not in self._cache and self.remote is not None and key in self.remote.readings:
            told = self.remote.readings[key]
            self._cache[key] = Series(told.time, told.values, self.cells_at(told.time))
        if key not in self._cache:
            stored = self._stored(self.counter_of(metric), subject)
            self._cache[key] = self.rates.of(self.metrics[metric], stored) if kind == "rate" else stored
        return self._cache[key]

    def _stored(self, metric: str, subject: str) -> Series:
        import numpy as np

        def place(segment: Segment) -> int | None:
            found = (i for i, c in enumerate(segment.columns) if c.metric == metric and c.subject == subject)
            return next(found, None)

        streams = {segment.stream for segment in self.segments if place(segment) is not None}
        times, values, seqs = [], [], []
        for segment in self.segments:
            if segment.stream in streams:
                index, count = place(segment), len(segment.records)
                times.append(segment.records["t"])
                # a device that came later, or went: unknown while the stream went on without it
                values.append(np.full(count, np.nan) if index is None else segment.records["v"][:, index])
                seqs.append(segment.records["seq"])
        if not times:
            return Series(np.empty(0), np.empty(0), np.empty(0, np.int64))
        seconds = (np.concatenate(times) - self.start_ns) * 1e-9
        readings = np.concatenate(values)
        readings[np.isinf(readings)] = np.nan
        return Series(seconds, readings, np.concatenate(seqs).astype(np.int64))

    def usage(self, cell: Cell) -> CellUsage:
        """What a cell used, from its edges and its samples."""
        known = self.memo.get(("usage", cell.seq))
        if known is None or known[0] is not cell:
            known = self.memo["usage", cell.seq] = (cell, cell_usage(self, cell))
        usage: CellUsage = known[1]
        return usage

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


class Rates(NamedTuple):
    """How rates are made of counters: over no less than what a counter's steps and the samples' jitter ask for.

    No processor does more than a second's work in a second: what a counter says beyond that is its error. ``cores`` are the
    machine's, ``own_cores`` those that the kernel may run on.
    """

    rate_hz: float
    cores: float
    own_cores: float

    @classmethod
    def on(cls, rate_hz: float, cpu_count: int, limits: Mapping[str, Limit]) -> Rates:
        """For a machine with so many CPUs. A quota is no bound: what is left of one period is used in the next."""
        limit = limits.get("cpu_cores")
        cores = float(cpu_count or math.inf)
        return cls(rate_hz, cores, min(cores, limit.value) if limit and limit.source == "cpuset" else cores)

    def of(self, metric: Metric, counter: Series) -> Series:
        """A rate of the catalogue from its counter."""
        most = {"core": 1.0, "process": self.own_cores}.get(metric.scope, self.cores)
        least_seconds = max(0.5 / self.rate_hz, metric.least_seconds)
        return rate_of(counter, least_seconds, most if metric.unit == "{cpu}" else math.inf)

    def mean_cores(self, cpu_seconds: float | None, seconds: float) -> float | None:
        """Cores that a cell used; None where that is unknown, or the cell was too short for it to mean anything."""
        if cpu_seconds is None or seconds < SHORT_FOR_CPU_SECONDS:
            return None
        return min(cpu_seconds / seconds, self.own_cores)


def rate_of(counter: Series, least_seconds: float, most: float = math.inf) -> Series:
    """Increase per second of a counter, over at least ``least_seconds``: a tiny interval would turn jitter into spikes.

    The first reading, and any that looks back on a counter that was reset or unknown, is NaN.
    """
    import numpy as np

    time, values, seq = counter
    before = time.searchsorted(time - least_seconds, "right") - 1
    known = before >= 0
    before = np.maximum(before, 0)
    elapsed = time - time[before]
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (values - values[before]) / elapsed
    rate[~known | (rate < 0)] = np.nan
    return Series(time, np.minimum(rate, most), seq)


def known(values: Floats) -> Floats:
    """The readings that are numbers."""
    import numpy as np

    return values[~np.isnan(values)]


def time_weighted_mean(series: Series, start: float, end: float) -> float | None:
    """Mean over an interval, each reading standing for the time up to it, but not for a gap. None without a reading."""
    import numpy as np

    part = series.between(start, end)
    valid = ~np.isnan(part.values)
    if not valid.any():
        return None
    weights = np.diff(part.time, prepend=start).clip(0, LONGEST_READING_SECONDS)[valid]
    if weights.sum() <= 0:
        return float(part.values[valid].mean())
    return float(np.average(part.values[valid], weights=weights))


def last_known(series: Series, at: float) -> float | None:
    """The newest reading at or before a time; None if there is none or it is unknown."""
    index = int(series.time.searchsorted(at, "right")) - 1
    if index < 0 or math.isnan(series.values[index]):
        return None
    return float(series.values[index])


def cell_usage(run: Run, cell: Cell) -> CellUsage:
    """What a cell used; see :class:`CellUsage`."""
    end = run.duration if cell.end is None else cell.end
    unknown: dict[str, str] = {}
    rss = _tagged(run.series("process.memory.rss", "process"), cell, end)
    sampled = known(rss.values)
    peak, exact = cell.peak_rss_bytes, cell.peak_rss_bytes is not None
    if peak is None and len(sampled):
        peak = int(sampled.max())
    if not exact:
        unknown["peak_exact"] = cell.peak_unknown or "the cell has no end record"
    first, last = cell.rss_start_bytes, cell.rss_end_bytes
    if first is None and len(sampled):
        first = int(sampled[0])
    if last is None and len(sampled) > 1:
        last = int(sampled[-1])
    why = run.unavailable.get("process.memory.rss:process", "too few samples in this cell")
    for key, value in (("peak_rss_bytes", peak), ("rss_start_bytes", first), ("rss_end_bytes", last)):
        if value is None:
            unknown[key] = why
    gpu = {device.id: _gpu_usage(run, device, cell, end, unknown) for device in run.devices}
    cpu = _cell_cpu(run, cell, end, unknown)
    read, written = (
        _disk_bytes(run, cell, end, metric, own, unknown)
        for metric, own in (("read", cell.own_read_bytes), ("written", cell.own_written_bytes))
    )
    cores = run.rates.mean_cores(cpu, end - cell.start)
    if cores is None:
        unknown["cores"] = unknown.get("cpu_seconds", f"cell shorter than {SHORT_FOR_CPU_SECONDS:g} s")
    return CellUsage(len(rss.time), cpu, cores, peak, exact, first, last, read, written, gpu, unknown)


def _disk_bytes(run: Run, cell: Cell, end: float, name: str, own: int | None, unknown: dict[str, str]) -> int | None:
    """The kernel's own count at the edges is exact, and all there is without workers; else the samples know of these too.

    Then it is the more of both; but if a worker ended that was there before, the kernel's own count has all that it ever did.
    """
    sampled = _growth(run.series(f"process.disk.{name}", "process"), cell, end)
    before, least, most = _workers(run, cell, end)
    if own is not None and most == 0:  # the samples begin and end a little later than the cell
        return own
    if sampled is not None and least < before:
        own = None
    found = [int(value) for value in (own, sampled) if value is not None]
    if not found:
        unknown[f"{name}_bytes"] = run.unavailable.get(f"process.disk.{name}", "too few samples in this cell")
    return max(found, default=None)


def _workers(run: Run, cell: Cell, end: float) -> tuple[float, float, float]:
    """How many there were at a cell's start, and the least and the most of them since; NaN if that is unknown."""
    workers = run.series("process.children", "process")
    inside = known(_tagged(workers, cell, end).values)
    if not len(inside):
        return math.nan, math.nan, math.nan
    before = max(last_known(workers, cell.start) or 0.0, float(inside[0]))
    return before, float(inside.min()), max(before, float(inside.max()))


def _tagged(series: Series, cell: Cell, end: float) -> Series:
    """The samples taken while a cell ran, whatever ran within it, and the one taken at its end."""
    part = series.between(cell.start, end + LATE_EDGE_SECONDS)
    mine = ((part.time <= end) & (part.seq > 0)) | (part.seq == cell.seq)
    return Series(part.time[mine], part.values[mine], part.seq[mine])


def _cell_cpu(run: Run, cell: Cell, end: float, unknown: dict[str, str]) -> float | None:
    """See :func:`cpu_seconds`."""
    total = _growth(run.series("process.cpu.time", "process"), cell, end)
    of_workers = run.series("process.children.cpu.time", "process")
    workers = known(_tagged(of_workers, cell, end).values)
    # a worker may be waited for before the cell's first sample is taken
    first = max(float(workers[0]), last_known(of_workers, cell.start) or 0.0) if len(workers) else 0.0
    used = cpu_seconds(cell.own_cpu, total, (first, float(workers[-1])) if len(workers) else None)
    if used is None:
        unknown["cpu_seconds"] = "too few samples in this cell"
    return used


def cpu_seconds(own: OwnCpu, total: float | None, workers: tuple[float, float] | None) -> float | None:
    """CPU time of a cell.

    ``own``: by the kernel's clocks at its edges; ``total``: by the samples; ``workers``: that of living workers at the start
    and at the last sample. The kernel's own clocks are exact, but count a worker when it is waited for, whenever it worked. So
    they serve where no worker was there at the start; what those born since did is added. Else the samples tell, which begin
    and end a little later than the cell: what the kernel process did alone it did in any case.
    """
    if own.seconds is None or (total is not None and workers is not None and workers[0] > BORN_SINCE_SECONDS):
        return total if total is None or own.alone is None else max(total, own.alone)
    return own.seconds if total is None or workers is None else max(own.seconds + workers[1], total)


def _growth(counter: Series, cell: Cell, end: float) -> float | None:
    values = known(_tagged(counter, cell, end).values)
    return float(values[-1] - values[0]) if len(values) > 1 else None


def _gpu_usage(run: Run, device: Device, cell: Cell, end: float, unknown: dict[str, str]) -> GpuUsage:
    import numpy as np

    gpu = device.id
    prefix, seconds = f"gpu.{gpu}.", end - cell.start
    utilization = run.series("gpu.utilization", gpu)
    if seconds < SHORT_FOR_UTILIZATION_SECONDS:
        # too short for readings of ours; a sample of the driver's stands for the sixth of a second before it
        own = run.series("gpu.utilization.driver", gpu).between(cell.start, end + DRIVER_SAMPLE_SECONDS)
        if len(known(own.values)):
            utilization, end = own, end + DRIVER_SAMPLE_SECONDS
    inside = known(utilization.between(cell.start, end).values)
    mean = time_weighted_mean(utilization, cell.start, end)
    p95 = float(np.percentile(inside, 95)) if len(inside) else None
    if mean is None or _mostly_unread(run, utilization, max(cell.start, device.since), end):
        why = _gpu_unknown(run, "gpu.utilization", device, end) if mean is None else MOSTLY_UNREAD
        mean = p95 = None
        unknown[prefix + "utilization_mean"] = unknown[prefix + "utilization_p95"] = why
    memory = known(run.series("gpu.memory.used", gpu).between(cell.start, end).values)
    if not len(memory):
        unknown[prefix + "memory_peak_bytes"] = _gpu_unknown(run, "gpu.memory.used", device, end)
    counter = run.series("gpu.energy", gpu)
    energy = _growth(counter, cell, cell.start + seconds)
    if energy is None:
        unknown[prefix + "energy_joules"] = _gpu_unknown(run, "gpu.energy", device, end)
    elif seconds < SHORT_FOR_ENERGY_SECONDS:
        energy = None
        unknown[prefix + "energy_joules"] = "cell shorter than the counter's period"
    elif (np.diff(known(_tagged(counter, cell, end).values)) < 0).any():
        energy = None
        unknown[prefix + "energy_joules"] = "the GPU's counter began anew within the cell: it was reset"
    torch = cell.torch_peak_bytes.get(device.uuid)
    if torch is None:
        unknown[prefix + "torch_peak_bytes"] = "PyTorch was not in use, or the cell stayed below an earlier peak"
    return GpuUsage(mean, p95, int(memory.max()) if len(memory) else None, energy, torch)


def _mostly_unread(run: Run, series: Series, start: float, end: float) -> bool:
    """Whether too much of an interval is without a reading for those there are to speak for it."""
    import numpy as np

    part = series.between(start, end)
    each = np.diff(part.time, prepend=start).clip(0, max(LONGEST_READING_SECONDS, 2.5 / run.rate_hz))
    unread = end - start - float(each[~np.isnan(part.values)].sum())
    return unread > max((1 - ENOUGH) * (end - start), LONGEST_READING_SECONDS)


def _gpu_unknown(run: Run, metric: str, device: Device, end: float) -> str:
    if end <= device.since:
        return f"{device.id} came after this cell"
    return run.unavailable.get(f"{metric}:{device.id}", "too few samples in this cell")
