"""A row a cell, as all tables of cells have it, and which rows matter where there is no room for all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellmeter.charts import notably_more
from cellmeter.export.amounts import NOTABLE_DISK, tree_peak
from cellmeter.export.summary import plain, title_of
from cellmeter.rules.ownership import not_used
from cellmeter.rules.scripts import is_script
from cellmeter.run import is_ours
from cellmeter.words import BLANK, bytes_text, change_text, cores_text, counted, joules_text, percent_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.rules import Finding
    from cellmeter.run import Cell, CellUsage, GpuUsage, Run

CELLS_SHOWN = 40
ROUTINE_SECONDS = 1.0

CELL_HEADERS = ("Cell", "Duration", "CPU", "Peak memory", "Growth", "GPU", "Energy", "Status")
WITH_WORKERS = "With workers"
NUMBERED = re.compile(r"In \[\d+\]|cell #\d+")


@dataclass(frozen=True)
class CellRow:
    """One cell in numbers. None: unknown. What GPUs did counts where they may have done it for the kernel."""

    seq: int
    title: str
    first_line: str
    status: str
    seconds: float
    cpu_seconds: float | None
    cores: float | None
    peak_bytes: int | None
    peak_exact: bool
    growth_bytes: int | None
    gpu_percent: float | None
    """The mean over these GPUs; 0 of a cell that used none, as is its energy."""
    energy_joules: float | None
    tree_bytes: float | None = None
    """The highest sample of the kernel and its workers, and no less than the kernel's own peak."""
    read_bytes: int | None = None
    written_bytes: int | None = None

    @property
    def name(self) -> str:
        """What it is called, and what stands in it where that is only a number."""
        return f"{self.title}  {self.first_line}" if NUMBERED.fullmatch(self.title) else self.title

    def short_name(self, most: int) -> str:
        """The name in at most so many characters."""
        return self.name if len(self.name) <= most else f"{self.name[: most - 1]}…"

    def text(self, column: str) -> str:
        """One of the columns of :func:`cell_columns` in words."""
        if column == WITH_WORKERS:
            return "" if self.workers_bytes is None else bytes_text(self.workers_bytes)
        disk = {"Read": self.read_bytes, "Written": self.written_bytes}
        return bytes_text(disk[column]) if column in disk else self.texts()[CELL_HEADERS.index(column)]

    @property
    def workers_bytes(self) -> float | None:
        """The peak with workers; None where they add too little to be said, or that is unknown."""
        return self.tree_bytes if notably_more(self.tree_bytes, self.peak_bytes) else None

    def texts(self) -> tuple[str, ...]:
        """The row in words, in the order of ``CELL_HEADERS``."""
        at_least = "" if self.peak_exact or self.peak_bytes is None else "≥ "
        return (
            self.title,
            seconds_text(self.seconds),
            cores_text(self.cores),
            at_least + bytes_text(self.peak_bytes),
            change_text(self.growth_bytes, "By", BLANK),
            percent_text(self.gpu_percent),
            joules_text(self.energy_joules),
            self.status,
        )


def cell_columns(run: Run, rows: Sequence[CellRow]) -> list[str]:
    """The columns worth showing: none about GPUs without one, about workers and disks only where they did something."""
    idle = set() if run.devices else {"GPU", "Energy"}
    columns = [name for name in CELL_HEADERS if name not in idle]
    if any(row.workers_bytes is not None for row in rows):
        columns.insert(columns.index("Peak memory") + 1, WITH_WORKERS)
    disk = {"Read": [row.read_bytes for row in rows], "Written": [row.written_bytes for row in rows]}
    done = [name for name, counts in disk.items() if any((count or 0) >= NOTABLE_DISK for count in counts)]
    return [*columns[:-1], *done, columns[-1]]


def heads(run: Run, columns: Sequence[str]) -> list[str]:
    """What stands above the columns: a script is no cell."""
    return ["Script" if is_script(run) else columns[0], *columns[1:]]


def routine(rows: Sequence[CellRow], findings: Sequence[Finding]) -> frozenset[int]:
    """Cells that nobody looks for: short ones that begin with a line magic, ended well and that no finding names.

    Only a cell's first line is known, so one that took a while may hold more than the magic.
    """
    named = {seq for finding in findings for seq in finding.cells}
    return frozenset(row.seq for row in rows if _is_quick_magic(row) and row.seq not in named)


def _is_quick_magic(row: CellRow) -> bool:
    if row.status == "running":  # the cell that asks for the table
        return is_ours(row.first_line)
    magic = row.first_line.startswith("%") and not row.first_line.startswith("%%")
    return magic and row.seconds < ROUTINE_SECONDS and row.status == "ok"


def notable(rows: Sequence[CellRow], findings: Sequence[Finding]) -> tuple[list[CellRow], str]:
    """At most ``CELLS_SHOWN`` rows for where there is no room for all, in the order they ran, and a line on the others.

    Routine cells go first, then those that are neither named by a finding nor failed, the shortest first.
    """
    quiet = routine(rows, findings)
    named = {seq for finding in findings for seq in finding.cells}
    left = [row for row in rows if row.seq not in quiet] or list(rows)
    ranked = sorted(left, key=lambda row: (row.status == "ok", row.seq not in named, -row.seconds))
    chosen = sorted(ranked[:CELLS_SHOWN], key=lambda row: row.seq)
    parts = [f"{counted(len(left) - len(chosen), 'shorter cell')}"] if len(left) > len(chosen) else []
    parts += [f"{counted(len(quiet), 'line magic')}"] if len(left) < len(rows) else []
    return chosen, f"Left out: {' and '.join(parts)}." if parts else ""


def cell_rows(run: Run) -> list[CellRow]:
    """A row a cell, in the order they ran; what a cell magic ran of its own cell, as ``%%capture`` does, is that cell."""
    run.usages()
    within = Counter(cell.parent for cell in run.cells)
    wraps = {cell.seq for cell in run.cells if within[cell.seq] == 1 and cell.first_line.startswith("%%")}
    return [cell_row(run, cell) for cell in run.cells if cell.parent not in wraps]


def cell_row(run: Run, cell: Cell) -> CellRow:
    """One cell in numbers."""
    usage = run.usage(cell)
    until = run.duration if cell.end is None else cell.end
    start, end = usage.rss_start_bytes, usage.rss_end_bytes
    gpus = _gpus_used(run, cell.start, until, usage)
    return CellRow(
        seq=cell.seq,
        title=plain(title_of(cell)),
        first_line=plain(cell.first_line),
        status=cell.status,
        seconds=until - cell.start,
        cpu_seconds=usage.cpu_seconds,
        cores=usage.cores,
        peak_bytes=usage.peak_rss_bytes,
        peak_exact=usage.peak_exact,
        growth_bytes=None if start is None or end is None else end - start,
        gpu_percent=_gpu_percent(gpus),
        energy_joules=_energy(gpus),
        tree_bytes=tree_peak(run, cell),
        read_bytes=usage.read_bytes,
        written_bytes=usage.written_bytes,
    )


def _gpus_used(run: Run, start: float, until: float, usage: CellUsage) -> list[GpuUsage] | None:
    """What the GPUs did that may have worked for the kernel; None if there was no GPU."""
    there = [device.id for device in run.devices if device.since < until]
    others = not_used(run, start, until)
    return [usage.gpu[gpu] for gpu in there if gpu not in others] if there else None


def _gpu_percent(gpus: Sequence[GpuUsage] | None) -> float | None:
    if not gpus:
        return None if gpus is None else 0.0
    known = [used.utilization_mean for used in gpus if used.utilization_mean is not None]
    return sum(known) / len(known) if known else None


def _energy(gpus: Sequence[GpuUsage] | None) -> float | None:
    """Of all of them; a sum without one would be too small, so it is unknown."""
    if gpus is None:
        return None
    known = [used.energy_joules for used in gpus if used.energy_joules is not None]
    return sum(known, 0.0) if len(known) == len(gpus) else None
