"""A long run on a large machine, made up: what the report of a day's work costs cannot wait a day for its samples."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellmeter.run import EDGE_END, EDGE_START, Cell, Column, Device, Host, Limit, OwnCpu, Run, Segment
from cellmeter.store import Writer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

GIB = 2**30
RATE_HZ = 10.0
LIST_SECONDS = 2.0  # process lists are read that often
_START_NS = 10**12


def long_run(hours: float, gpus: int, cells: int) -> Run:
    """Cells from edge to edge for so many hours, at 10 Hz, with 74 columns for 8 GPUs: bursts, spikes and noise."""
    chance = np.random.default_rng(20261121)
    seconds = hours * 3600
    time = np.arange(0, seconds, 1 / RATE_HZ)
    edges = np.concatenate([[0.0], np.sort(chance.uniform(0, seconds, cells - 1)), [seconds]])
    seq = np.searchsorted(edges, time, "right")
    main = _main_columns(chance, time, gpus)
    lists = {
        Column(metric, f"gpu{gpu}", unit): np.full(len(time[::20]), value)
        for gpu in range(gpus)
        for metric, unit, value in (("gpu.process.memory.used", "By", 30.0 * GIB), ("gpu.foreign.processes", "1", 0.0))
    }
    segments = [_segment("main", main, time, seq)]
    if lists:
        segments.append(_segment("gpu-processes", lists, time[::20], seq[::20]))
    started = datetime(2026, 3, 1, 8, tzinfo=UTC)
    return Run(
        id="20260301T080000Z-0a1b2c",
        path="/runs/20260301T080000Z-0a1b2c",
        started=started,
        ended=started,
        ending="stopped",
        signal=None,
        exit_code=0,
        notebook="/home/ada/pretrain.ipynb",
        host=Host("node7", "Linux", "6.8", "x86_64", "3.11.9", 96, 1024 * GIB),
        devices=tuple(
            Device(f"gpu{i}", "NVIDIA H100 80GB HBM3", f"GPU-{i}", 80 * GIB, True, 700.0) for i in range(gpus)
        ),
        limits={"cpu_cores": Limit(64.0, "cpuset"), "memory_bytes": Limit(512.0 * GIB, "cgroup")},
        rate_hz=RATE_HZ,
        cells=tuple(_cell(n, start, end) for n, (start, end) in enumerate(pairwise(edges), 1)),
        gaps=(),
        unavailable={},
        start_ns=_START_NS,
        duration=seconds,
        segments=tuple(segments),
    )


def _cell(seq: int, start: float, end: float) -> Cell:
    return Cell(
        seq=seq,
        start=start,
        end=end,
        status="ok",
        execution_count=seq,
        first_line=f"trainer.step(batch[{seq}])",
        own_cpu=OwnCpu(1.5 * (end - start)),
        rss_start_bytes=20 * GIB,
        rss_end_bytes=(20 + seq % 3) * GIB,
        peak_rss_bytes=(24 + seq % 37) * GIB,
    )


def _main_columns(chance: np.random.Generator, time: Floats, gpus: int) -> dict[Column, Floats]:
    noise = chance.normal(0, 1, len(time))
    spikes = np.where(chance.random(len(time)) < 1e-5, 60.0 * GIB, 0.0)
    memory = (20 + 10 * (time / time[-1]) + 0.05 * noise) * GIB + spikes
    cores = (6 + 4 * np.sin(time / 600) + noise.clip(-2, 2)) / RATE_HZ
    columns = {
        Column("process.cpu.time", "process", "s"): np.cumsum(cores),
        Column("host.cpu.time", "host", "s"): np.cumsum(cores * 1.2),
        Column("process.memory.rss", "process", "By"): memory,
        Column("process.memory.file", "process", "By"): np.full(len(time), 0.1 * GIB),
        Column("process.tree.memory.rss", "process", "By"): memory * 1.3,
        Column("host.memory.used", "host", "By"): memory * 1.5,
        Column("process.children", "process", "1"): np.full(len(time), 8.0),
        Column("process.disk.read", "process", "By"): np.cumsum(np.full(len(time), 1e6)),
        Column("host.disk.read", "host", "By"): np.cumsum(np.full(len(time), 2e6)),
        Column("recorder.cpu.time", "recorder", "s"): np.arange(len(time)) * 0.0005,
    }
    for gpu in range(gpus):
        columns |= _gpu_columns(chance, time, gpu)
    return columns


def _gpu_columns(chance: np.random.Generator, time: Floats, gpu: int) -> dict[Column, Floats]:
    busy = np.sin(time / (40 + 7 * gpu)) > -0.3
    use = np.where(busy, 70 + 5 * (gpu % 4) + chance.normal(0, 6, len(time)), 4.0).clip(0, 100)
    watts = 120 + 5 * use
    readings = {
        ("gpu.utilization", "%"): use.round(),
        ("gpu.memory.used", "By"): (30 + gpu + 3 * np.sin(time / 900)) * GIB,
        ("gpu.power", "W"): watts,
        ("gpu.temperature", "Cel"): 45 + 0.3 * use,
        ("gpu.clock.sm", "MHz"): np.where(busy, 1980.0, 345.0),
        ("gpu.event_reasons", "1"): np.zeros(len(time)),
        ("gpu.energy", "J"): np.cumsum(watts / RATE_HZ),
        ("gpu.sm.active", "%"): use * 0.7,
    }
    return {Column(metric, f"gpu{gpu}", unit): values for (metric, unit), values in readings.items()}


def _segment(stream: str, columns: dict[Column, Floats], time: Floats, seq: NDArray[np.int64]) -> Segment:
    dtype = [("t", "<i8"), ("seq", "<u4"), ("flags", "<u4"), ("v", "<f8", (len(columns),)), ("crc", "<u4")]
    records = np.zeros(len(time), np.dtype(dtype))
    records["t"] = _START_NS + np.round(time * 1e9).astype(np.int64)
    records["seq"] = seq
    changes = np.diff(seq, prepend=0, append=0) != 0
    records["flags"] = np.where(changes[:-1], EDGE_START, 0) | np.where(changes[1:], EDGE_END, 0)
    for index, values in enumerate(columns.values()):
        records["v"][:, index] = values
    return Segment(stream, tuple(columns), records)


def write_run(run: Run, home: Path) -> Path:
    """A run made up in memory as a run folder below ``home``, as the recorder would have written it."""
    folder = home / run.id
    folder.mkdir(parents=True)
    writer = Writer(folder)
    limits = {name: list(limit) for name, limit in run.limits.items()}
    writer.describe(
        id=run.id,
        start_ns=run.start_ns,
        started=run.started.timestamp(),
        rate_hz=run.rate_hz,
        host=asdict(run.host),
        devices=[asdict(device) for device in run.devices],
        limits=limits,
        notebook=run.notebook,
        recorder=None,
    )
    for event in sorted(_edges(run), key=lambda event: event["t"]):
        writer.event(event)
    writer.event({"event": "end", "t": _ns(run, run.duration), "ending": "stopped", "signal": None, "exit_code": 0})
    for segment in run.segments:
        writer.add_segment(segment.stream, segment.columns)
    writer.close()
    for entry, segment in zip(writer.header["segments"], run.segments, strict=True):
        records = np.array(segment.records)
        each = records.view(np.uint8).reshape(len(records), -1)
        records["crc"] = [zlib.crc32(record[:-4]) for record in each]
        records.tofile(folder / entry["file"])
    return folder


def _ns(run: Run, seconds: float) -> int:
    return run.start_ns + round(seconds * 1e9)


def _edges(run: Run) -> Iterator[dict[str, Any]]:
    for cell in run.cells:
        about = {"seq": cell.seq, "execution_count": cell.execution_count}
        start = {"event": "cell_start", "t": _ns(run, cell.start), "first_line": cell.first_line, "label": cell.label}
        yield start | about | {"rss_bytes": cell.rss_start_bytes, "cpu_ns": 0}
        end = {"event": "cell_end", "t": _ns(run, cell.end or run.duration), "status": cell.status}
        used = round((cell.own_cpu.seconds or 0.0) * 1e9)
        peak = {"rss_bytes": cell.rss_end_bytes, "peak_rss_bytes": cell.peak_rss_bytes}
        yield end | about | peak | {"cpu_ns": used}
