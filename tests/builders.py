"""Runs made by hand: a timetable of cells with what happened in them, and out comes the Run a reader would get.

    a_run(a_cell(30, rss=GIB), a_cell(60, label="train", gpu={"gpu0": GpuWork(90)}), devices=[a_device("gpu0")])

A signal is a number or a function of the seconds since its cell's start. Cells are sampled at the run's rate and at both
edges, the time between them once a second, as the recorder does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from cellmeter.failures import Failure
from cellmeter.metrics import Metric
from cellmeter.run import EDGE_END, EDGE_START, Cell, CellStatus, Column, Device, Gap, Host, Limit, Run, Segment
from cellmeter.spans import Logged, Own, Span, SpanBatch, Steps

GIB = 2**30
MIB = 2**20
NAN = math.nan

Signal = float | Callable[[float], float]

START_NS = 5_000_000_000
STARTED = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class GpuWork:
    """What happens on one GPU while a cell runs. ``context``: device memory held by the kernel; 0 for none."""

    utilization: Signal = 0.0
    context: Signal = float(2 * GIB)
    foreign: Signal = 0.0
    memory: Signal = float(2 * GIB)
    power: Signal = 100.0
    reasons: Signal = 0.0
    clock: Signal = 1755.0
    active: Signal = NAN
    dram: Signal = NAN
    pcie: Signal = NAN


RESTING = GpuWork(context=0.0, memory=float(MIB), power=50.0)


@dataclass(frozen=True)
class CellPlan:
    """One cell of the timetable."""

    seconds: float
    rss: Signal = float(GIB)
    mapped: Signal = float(100 * MIB)
    cores: Signal = 0.1
    children: Signal = 0.0
    disk_read: Signal = 0.0
    disk_written: Signal = 0.0
    received: Signal = 0.0
    blocked: Signal = 0.0
    group: Signal | None = None
    host_memory: Signal = float(20 * GIB)
    throttled: Signal = 0.0
    cpu_pressure: Signal = 0.0
    io_pressure: Signal | None = None
    runnable: Signal = 1.0
    machine: Signal | None = None
    """Cores busy on the whole machine, which has 16."""
    free: Signal = float(500 * GIB)
    hash: str = ""
    gpu: Mapping[str, GpuWork] = field(default_factory=dict)
    peak: int | None = None
    peak_unknown: str | None = None
    label: str | None = None
    first_line: str = "work()"
    status: CellStatus = "ok"
    failure: Failure | None = None


def a_cell(seconds: float, **plan: object) -> CellPlan:
    """A cell that runs for so long. Its exact peak is the highest ``rss`` unless given."""
    return CellPlan(seconds, **plan)  # type: ignore[arg-type]


def a_device(name: str = "gpu0", mine: bool | None = None, memory_bytes: int = 80 * GIB) -> Device:
    return Device(name, "NVIDIA H100 80GB HBM3", f"GPU-{name}", memory_bytes, mine, 700.0)


def bursts(period: float, busy: float, percent: float = 95.0) -> Callable[[float], float]:
    """Work for the first ``busy`` seconds of every period."""
    return lambda t: percent if t % period < busy else 0.0


def hump(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """``high`` from ``start`` to ``end``, ``low`` otherwise."""
    return lambda t: high if start <= t < end else low


def _value(signal: Signal, t: float) -> float:
    return float(signal(t) if callable(signal) else signal)


@dataclass(frozen=True)
class _Moment:
    time: float
    seq: int
    flags: int
    plan: CellPlan
    since: float


def _moments(plans: Sequence[CellPlan], pause: float, rate: float) -> list[_Moment]:
    idle, moments, now = CellPlan(pause), [], 0.0
    for seq, plan in enumerate(plans, start=1):
        moments += [_Moment(now + s, 0, 0, idle, 0.0) for s in np.arange(0, pause, 1.0)]
        now += pause
        steps = np.arange(0, plan.seconds, 1 / rate)
        moments += [_Moment(now + s, seq, EDGE_START if s == 0 else 0, plan, s) for s in steps]
        now += plan.seconds
        moments.append(_Moment(now, seq, EDGE_END, plan, plan.seconds))
    moments += [_Moment(now + s, 0, 0, idle, 0.0) for s in np.arange(1, pause + 1, 1.0)]
    return moments


def _columns(devices: Sequence[Device]) -> dict[Column, Callable[[_Moment], float]]:
    """Columns of the main stream; counters are given as their rate."""
    columns: dict[Column, Callable[[_Moment], float]] = {
        Column("process.memory.rss", "process", "By"): lambda m: _value(m.plan.rss, m.since),
        Column("process.memory.file", "process", "By"): lambda m: _value(m.plan.mapped, m.since),
        Column("process.children", "process", "1"): lambda m: _value(m.plan.children, m.since),
        Column("process.cpu.time", "process", "s"): lambda m: _value(m.plan.cores, m.since),
        Column("process.disk.read", "process", "By"): lambda m: _value(m.plan.disk_read, m.since),
        Column("host.disk.read", "host", "By"): lambda m: _value(m.plan.disk_read, m.since),
        Column("process.disk.written", "process", "By"): lambda m: _value(m.plan.disk_written, m.since),
        Column("process.tree.memory.rss", "process", "By"): lambda m: _value(m.plan.rss, m.since),
        Column("process.io.blocked", "process", "1"): lambda m: _value(m.plan.blocked, m.since),
        Column("cgroup.memory.anon", "cgroup", "By"): _of_group,
        Column("host.memory.used", "host", "By"): lambda m: _value(m.plan.host_memory, m.since),
        Column("host.network.received", "host", "By"): lambda m: _value(m.plan.received, m.since),
        Column("cgroup.cpu.periods", "cgroup", "1"): lambda m: 10.0,
        Column("cgroup.cpu.throttled.periods", "cgroup", "1"): lambda m: 10.0 * _value(m.plan.throttled, m.since),
        Column("cgroup.cpu.throttled.time", "cgroup", "s"): lambda m: _value(m.plan.throttled, m.since),
        Column("cgroup.pressure.cpu.time", "cgroup", "s"): lambda m: _value(m.plan.cpu_pressure, m.since),
        Column("host.tasks.runnable", "host", "1"): lambda m: _value(m.plan.runnable, m.since),
        Column("recorder.cpu.time", "recorder", "s"): lambda m: 0.004,
    }
    for device in devices:
        for metric, unit, name in (
            ("gpu.utilization", "%", "utilization"),
            ("gpu.memory.used", "By", "memory"),
            ("gpu.power", "W", "power"),
            ("gpu.event_reasons", "1", "reasons"),
            ("gpu.energy", "J", "power"),
            ("gpu.clock.sm", "MHz", "clock"),
            ("gpu.sm.active", "%", "active"),
            ("gpu.dram.active", "%", "dram"),
            ("gpu.pcie.received", "By/s", "pcie"),
        ):
            columns[Column(metric, device.id, unit)] = _of_gpu(device.id, name)
    return columns


def _of_group(moment: _Moment) -> float:
    plan = moment.plan
    return _value(plan.rss if plan.group is None else plan.group, moment.since)


def _of_gpu(gpu: str, name: str) -> Callable[[_Moment], float]:
    return lambda m: _value(getattr(m.plan.gpu.get(gpu, RESTING), name), m.since)


COUNTERS = {
    "process.cpu.time",
    "host.cpu.time",
    "process.disk.read",
    "process.disk.written",
    "host.disk.read",
    "host.network.received",
    "cgroup.cpu.periods",
    "cgroup.cpu.throttled.periods",
    "cgroup.cpu.throttled.time",
    "cgroup.pressure.cpu.time",
    "cgroup.pressure.io.time",
    "recorder.cpu.time",
    "gpu.energy",
}
DISK = {
    Column("host.filesystem.free", "/home", "By"): lambda m: _value(m.plan.free, m.since),
    Column("host.filesystem.size", "/home", "By"): lambda m: float(1000 * GIB),
}


def _segment(stream: str, columns: Mapping[Column, Callable[[_Moment], float]], moments: Sequence[_Moment]) -> Segment:
    records = _records(len(moments), len(columns))
    times = np.array([m.time for m in moments])
    records["t"] = START_NS + np.round(times * 1e9).astype(np.int64)
    records["seq"] = [m.seq for m in moments]
    records["flags"] = [m.flags for m in moments]
    for index, (column, read) in enumerate(columns.items()):
        values = np.array([read(m) for m in moments])
        counter = column.metric in COUNTERS
        records["v"][:, index] = np.cumsum(values * np.diff(times, prepend=times[:1])) if counter else values
    return Segment(stream, tuple(columns), records)


def _cells(plans: Sequence[CellPlan], pause: float, rate: float) -> tuple[Cell, ...]:
    cells, now = [], 0.0
    for seq, plan in enumerate(plans, start=1):
        now += pause
        highest = max(_value(plan.rss, s) for s in [*np.arange(0, plan.seconds, 1 / rate), plan.seconds])
        peak = plan.peak if plan.peak is not None else (None if plan.peak_unknown else int(highest))
        cells.append(
            Cell(
                seq=seq,
                start=now,
                end=now + plan.seconds,
                status="error" if plan.failure else plan.status,
                execution_count=seq,
                label=plan.label,
                first_line=plan.first_line,
                source_hash=plan.hash,
                peak_rss_bytes=peak,
                peak_unknown=plan.peak_unknown,
                error=plan.failure.error if plan.failure else None,
                gpu_memory_ran_out=plan.failure is not None and plan.failure.gpu_memory,
            )
        )
        now += plan.seconds
    return tuple(cells)


def a_run(
    *plans: CellPlan,
    devices: Sequence[Device] = (),
    limit_bytes: float | None = 64.0 * GIB,
    rate_hz: float = 10.0,
    pause: float = 2.0,
    unavailable: Mapping[str, str] | None = None,
    gaps: tuple[Gap, ...] = (),
    notebook: str | None = "/home/ada/train.ipynb",
    host_name: str = "node7",
    cores: float = 8.0,
    limit_source: str = "cgroup",
) -> Run:
    """The run of a timetable, with ``pause`` seconds around each cell. ``limit_bytes`` None: the limit is unknown."""
    moments = _moments(plans, pause, rate_hz)
    listed = [m for i, m in enumerate(moments) if i == 0 or int(m.time / 2) != int(moments[i - 1].time / 2)]
    lists = {
        Column(metric, device.id, unit): _of_gpu(device.id, name)
        for device in devices
        for metric, unit, name in (
            ("gpu.process.memory.used", "By", "context"),
            ("gpu.foreign.processes", "1", "foreign"),
        )
    }
    minutes = [m for i, m in enumerate(moments) if i == 0 or int(m.time / 60) != int(moments[i - 1].time / 60)]
    columns = _columns(devices)
    if any(plan.machine is not None for plan in plans):
        columns[Column("host.cpu.time", "host", "s")] = lambda m: _value(m.plan.machine or 0.0, m.since)
    if any(plan.io_pressure is not None for plan in plans):
        columns[Column("cgroup.pressure.io.time", "cgroup", "s")] = lambda m: _value(m.plan.io_pressure or 0.0, m.since)
    segments = [_segment("main", columns, moments), _segment("filesystems", DISK, minutes)]
    if lists:
        segments.append(_segment("gpu-processes", lists, listed))
    limits = {"cpu_cores": Limit(cores, "cpuset")}
    if limit_bytes is not None:
        limits["memory_bytes"] = Limit(limit_bytes, limit_source)
    duration = sum(plan.seconds + pause for plan in plans) + pause
    return Run(
        id="20260301T120000Z-0a1b2c",
        path="/runs/20260301T120000Z-0a1b2c",
        started=STARTED,
        ended=STARTED,
        ending="stopped",
        signal=None,
        exit_code=0,
        notebook=notebook,
        host=Host(host_name, "Linux", "6.8", "x86_64", "3.11.9", 16, 128 * GIB),
        devices=tuple(devices),
        limits=limits,
        rate_hz=rate_hz,
        cells=_cells(plans, pause, rate_hz),
        gaps=gaps,
        unavailable=unavailable or {},
        start_ns=START_NS,
        duration=duration,
        segments=tuple(segments),
    )


def own_words(seconds: float, loss: str = "loss", span: str = "inference") -> Own:
    """What code says that trains for so long, from second 2 on: a step of 0.5 s each second, a loss, a worker's too."""
    times = np.arange(3.0, 2.0 + seconds)
    ones, zeros = np.ones(len(times), np.int64), np.zeros(len(times), np.int64)
    value = 1 / times
    both = [
        np.concatenate(pair) for pair in ((times, times), (value, 2 * value), (ones, 3 * ones), (zeros, zeros + 77))
    ]
    time, values, count, pid = both
    spans = [Span(span, t - 0.5, t, "error" if t == 5 else "ok", items=8.0) for t in times]
    batch = SpanBatch("tokenize", 3.0, 4.0, 1000, 0, 0.5, None, {-384: 900, -300: 100})
    return Own(
        tuple(spans),
        (batch,),
        {loss: Logged(time, values, 0.9 * values, 1.1 * values, values, count, pid)},
        {"step": Steps(times, ones.astype(float)), "tokens": Steps(times, 4096.0 * ones)},
    )


def without(run: Run, metric: str, subject: str, reason: str) -> Run:
    """The same run on a machine that cannot measure a metric: all its readings are unknown."""
    segments = []
    for segment in run.segments:
        records = segment.records.copy()
        for index, column in enumerate(segment.columns):
            if (column.metric, column.subject) == (metric, subject):
                records["v"][:, index] = NAN
        segments.append(replace(segment, records=records))
    unavailable = {**run.unavailable, f"{metric}:{subject}": reason}
    return replace(run, segments=tuple(segments), unavailable=unavailable)


def with_workers(run: Run, seq: int, more: float) -> Run:
    """The same run with workers in one cell that hold ``more`` bytes together."""
    segments = []
    for segment in run.segments:
        records = segment.records.copy()
        for index, column in enumerate(segment.columns):
            if column.metric == "process.tree.memory.rss":
                records["v"][records["seq"] == seq, index] += more
        segments.append(replace(segment, records=records))
    return replace(run, segments=tuple(segments))


def come_late(run: Run, gpu: str, since: float) -> Run:
    """The same run on a machine to which a GPU came only ``since`` seconds after its start."""
    segments = []
    for segment in run.segments:
        records = segment.records.copy()
        before = records["t"] < run.start_ns + round(since * 1e9)
        for index, column in enumerate(segment.columns):
            if column.subject == gpu:
                records["v"][before, index] = NAN
        segments.append(replace(segment, records=records))
    devices = tuple(replace(device, since=since) if device.id == gpu else device for device in run.devices)
    return replace(run, segments=tuple(segments), devices=devices)


def _records(rows: int, columns: int) -> np.ndarray:
    dtype = [("t", "<i8"), ("seq", "<u4"), ("flags", "<u4"), ("v", "<f8", (columns,)), ("crc", "<u4")]
    return np.zeros(rows, np.dtype(dtype))


PLUGIN_METRICS = (
    Metric("load.one", "1", "gauge", "host", "cpu", "Runnable tasks", "os.getloadavg"),
    Metric("load.switches", "1", "counter", "host", "cpu", "Context switches", "/proc/stat", rate="load.switches.rate"),
    Metric("load.switches.rate", "1/s", "rate", "host", "cpu", "Context switches", "derived"),
    Metric("load.heat", "Cel", "gauge", "host", "power", "Temperature of a disk", "/sys"),
)


def with_plugin(run: Run, every: float = 0.5, start: float = 0.0) -> Run:
    """The same run with a plugin's readings: a load that is the time, 100 switches a second, two disks, one below zero."""
    columns = (
        Column("load.one", "host", "1"),
        Column("load.switches", "host", "1"),
        Column("load.heat", "nvme0", "Cel"),
        Column("load.heat", "nvme1", "Cel"),
    )
    times = np.arange(start, run.duration, every)
    records = _records(len(times), len(columns))
    records["t"] = run.start_ns + np.round(times * 1e9).astype(np.int64)
    records["seq"] = run.cells_at(times)
    records["v"] = np.column_stack([times, 100 * times, 40 + 0 * times, -5 + 0 * times])
    segments = (*run.segments, Segment("load", columns, records))
    return replace(run, segments=segments, plugin_metrics=PLUGIN_METRICS)
