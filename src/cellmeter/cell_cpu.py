"""The CPU that a cell used, straight out of the run folder: without numpy, and out of a few records, however long it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellmeter.edge_readings import edge_readings
from cellmeter.layouts import rates_of
from cellmeter.run import OwnCpu, WorkersCpu, cpu_seconds

ALL, WORKERS = ("process.cpu.time", "process"), ("process.children.cpu.time", "process")

Event = Mapping[str, Any]


def mean_cores(folder: Path, header: Mapping[str, Any], start: Event, end: Event) -> float | None:
    """What the cell with these edges used on the average, as ``usage.cell_usage`` has it, by what is written so far.

    Raises OSError.
    """
    own, rates = OwnCpu.between(start, end), rates_of(header)
    readings = edge_readings(folder, header, (ALL, WORKERS), start["t"], end["t"])
    before = [reading for reading in readings if reading.t < start["t"] and reading.known]
    inside = [reading for reading in readings if reading.known and reading.of_cell(start["t"], end["t"], end["seq"])]
    total = workers = None
    if inside:
        first, last = inside[0], inside[-1]
        total = last.values[0] - first.values[0] if len(inside) > 1 else None
        late = (first.t - start["t"]) * 1e-9
        workers = WorkersCpu(before[-1].values[1] if before else 0.0, first.values[1], last.values[1], late)
    used = cpu_seconds(own, total, workers, rates.own_cores)
    return rates.mean_cores(used, (end["t"] - start["t"]) * 1e-9)
