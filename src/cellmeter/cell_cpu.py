"""The CPU that a cell used, straight out of the run folder: without numpy, and out of a few records, however long it was."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cellmeter.layouts import rates_of
from cellmeter.records import first_since, record_layout
from cellmeter.run import OwnCpu, WorkersCpu, cpu_seconds
from cellmeter.usage import LATE_EDGE_SECONDS

METRICS = ("process.cpu.time", "process.children.cpu.time")

Event = Mapping[str, Any]


class Reading(NamedTuple):
    """CPU seconds at a time: of kernel and workers since the recording began, and of living workers since they were born."""

    t: int
    total: float
    workers: float


def mean_cores(folder: Path, header: Mapping[str, Any], start: Event, end: Event) -> float | None:
    """What the cell with these edges used on the average, as ``usage.cell_usage`` has it, by what is written so far.

    Raises OSError.
    """
    own, rates = OwnCpu.between(start, end), rates_of(header)
    before, inside = _readings(folder, header, start, end)
    total = workers = None
    if inside:
        first, last = inside[0], inside[-1]
        total = last.total - first.total if len(inside) > 1 else None
        late = (first.t - start["t"]) * 1e-9
        workers = WorkersCpu(before.workers if before else 0.0, first.workers, last.workers, late)
    used = cpu_seconds(own, total, workers, rates.own_cores)
    return rates.mean_cores(used, (end["t"] - start["t"]) * 1e-9)


def _readings(
    folder: Path, header: Mapping[str, Any], start: Event, end: Event
) -> tuple[Reading | None, list[Reading]]:
    """The last reading before a cell; and of those in each file that are the cell's, the first and the last."""
    before: Reading | None = None
    inside: list[Reading] = []
    for entry in header["segments"]:
        at = {metric: n for n, (metric, _, _) in enumerate(entry["columns"]) if metric in METRICS}
        if entry["stream"] != "main" or len(at) < len(METRICS):
            continue
        layout = record_layout(len(entry["columns"]), list(at.values()))
        with open(folder / entry["file"], "rb") as file:
            records = _Records(file.fileno(), layout, tuple(at))
            low, high = records.first_since(start["t"]), records.first_since(end["t"] + 1)
            if low:
                before = records[low - 1]
            inside += [records[number] for number in (low, high - 1) if low < high]
            late = range(high, records.first_since(end["t"] + int(LATE_EDGE_SECONDS * 1e9) + 1))
            inside += [records[number] for number in late if records.seq(number) == end["seq"]]
    return before, [reading for reading in inside if math.isfinite(reading.total + reading.workers)]


class _Records:
    """The records of an open file of samples; ``metrics``: in the order of their columns."""

    def __init__(self, fd: int, layout: struct.Struct, metrics: Sequence[str]) -> None:
        self._fd = fd
        self._layout = layout
        self._metrics = metrics
        self._count = os.fstat(fd).st_size // layout.size

    def first_since(self, t_ns: int) -> int:
        return first_since(self._fd, self._layout.size, self._count, t_ns)

    def seq(self, number: int) -> int:
        return int(self._unpacked(number)[1])

    def __getitem__(self, number: int) -> Reading:
        t, _, _, *values = self._unpacked(number)
        told = dict(zip(self._metrics, values, strict=True))
        return Reading(t, *(told[metric] for metric in METRICS))

    def _unpacked(self, number: int) -> tuple[Any, ...]:
        return self._layout.unpack(os.pread(self._fd, self._layout.size, number * self._layout.size))
