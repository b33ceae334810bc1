"""Rules about disks: cells that wait for them, and disks that fill up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cellmeter.rules.busy import IDLE_PERCENT, use_metric
from cellmeter.rules.observed import ENOUGH, Observed, cell_end, observed, titles, top_cells
from cellmeter.rules.ownership import ownership, reason_for
from cellmeter.rules.rule import CLEAR, Evidence, Finding, Outcome, Rule, combined, found, not_applicable, unknown
from cellmeter.rules.trend import steady_slope
from cellmeter.words import GIB, about_text, bytes_text, given_text, percent_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.run import Cell, Run

LEAST_MOVED = 2**20  # bytes of a cell that has to do with the disk at all
FREE = "host.filesystem.free"
SIZE = "host.filesystem.size"
# What tells that a cell waited for I/O: the kernel's own account, that of its control group, what each sample saw.
WAITS = (("process.io.wait", "process"), ("cgroup.pressure.io", "cgroup"), ("process.io.blocked", "process"))


@dataclass(frozen=True)
class IoBound(Rule):
    """A cell that waits for disks or network file systems most of the time, while neither CPU nor GPU does much."""

    id: ClassVar[str] = "io-bound"
    title: ClassVar[str] = "A cell waits for the disk"
    metrics: ClassVar[tuple[str, ...]] = (*(metric for metric, _ in WAITS), "process.cpu.usage", "gpu.utilization")

    cell_seconds: float = 10.0
    """Least length of a cell."""
    wait_share: float = 0.5
    """Share of the cell it must have waited."""
    most_cores: float = 0.5
    """CPU use above which it is not the disk that holds it up."""

    def check(self, run: Run) -> Outcome:
        """One outcome a cell."""
        return combined((self._cell(run, cell) for cell in top_cells(run)), "no cell was run")

    def _cell(self, run: Run, cell: Cell) -> Outcome:
        end = cell_end(run, cell)
        if end - cell.start < self.cell_seconds:
            return not_applicable(f"no cell of {given_text(self.cell_seconds, 's')}")
        waits = [
            (metric, observed(run, metric, subject, cell.start, end))
            for metric, subject in WAITS
            if subject == "process" or _moved_any(run, cell)  # others in the control group may wait, and this cell not
        ]
        known = [(metric, part.mean()) for metric, part in waits if part.total >= ENOUGH * (end - cell.start)]
        if not known:
            return unknown(reason_for(run, WAITS[-1][0], WAITS[-1][1]))
        metric, share = max(known, key=lambda pair: pair[1])
        if share <= self.wait_share:
            return CLEAR
        cores = observed(run, "process.cpu.usage", "process", cell.start, end)
        if (len(cores.values) and cores.mean() > self.most_cores) or _gpu_worked(run, cell, end):
            return CLEAR
        return found(self._finding(run, cell, metric, share))

    def _finding(self, run: Run, cell: Cell, metric: str, share: float) -> Finding:
        usage = run.usage(cell)
        moved = ", ".join(
            f"{bytes_text(count)} {what}"
            for count, what in ((usage.read_bytes, "read"), (usage.written_bytes, "written"))
            if count
        )
        seconds = cell_end(run, cell) - cell.start
        return Finding(
            rule=self.id,
            severity="warning",
            cells=(cell.seq,),
            subject="process",
            cause=None,
            start=cell.start,
            end=cell_end(run, cell),
            fact=f"{cell.title} waited for I/O in {percent_text(100 * share)} of its {seconds_text(seconds)}"
            f"{f' ({moved})' if moved else ''}.",
            consequence="CPU and GPU did little meanwhile: the disk or the network file system sets the pace.",
            advice="Copy the data to a local disk first, read fewer and larger files (Parquet, Arrow, tar shards), only the "
            "columns needed, ahead of time in threads; write seldom, and without a flush each time.",
            evidence=Evidence(metric, share, self.wait_share, "1"),
        )


def _moved_any(run: Run, cell: Cell) -> bool:
    usage = run.usage(cell)
    moved = [count for count in (usage.read_bytes, usage.written_bytes) if count is not None]
    return not moved or sum(moved) >= LEAST_MOVED


def _gpu_worked(run: Run, cell: Cell, end: float) -> bool:
    for device in run.devices:
        start = max(cell.start, device.since)
        if start < end and ownership(run, device, start, end).whose != "not-mine":
            used = observed(run, use_metric(run, device), device.id, start, end)
            if len(used.values) and used.mean() >= IDLE_PERCENT:
                return True
    return False


@dataclass(frozen=True)
class DiskFilling(Rule):
    """A file system that the run works on, and that is nearly full or will be soon."""

    id: ClassVar[str] = "disk-filling"
    title: ClassVar[str] = "A disk fills up"
    metrics: ClassVar[tuple[str, ...]] = (FREE, SIZE, "process.disk.written")

    slope_seconds: float = 600.0
    """Least time for a slope to mean anything; one checkpoint is no slope."""
    window_seconds: float = 1800.0
    """How far back the slope looks."""
    horizon_seconds: float = 3600.0
    """It counts if the disk would be full within this time."""
    least_share: float = 0.05
    """Nearly full: less than this share free ..."""
    least_bytes: float = 5.0 * GIB
    """... and less than this."""

    def check(self, run: Run) -> Outcome:
        """One outcome a file system, as it stood at the end."""
        if not run.cells:
            return not_applicable("no cell was run")
        mounts = run.subjects(FREE)
        if not mounts:
            return unknown(reason_for(run, FREE, "host"))
        return combined((self._mount(run, mount) for mount in mounts), "no file system was looked at")

    def _mount(self, run: Run, mount: str) -> Outcome:
        free = observed(run, FREE, mount, max(0.0, run.duration - self.window_seconds), run.duration)
        size = observed(run, SIZE, mount, 0.0, run.duration).values
        if not len(free.values) or not len(size):
            return unknown(f"{mount}: {reason_for(run, FREE, mount)}")
        left, total = float(free.values[-1]), float(size[-1])
        if left < self.least_share * total and left < self.least_bytes:
            fact = f"{bytes_text(left)} are free on {mount}, {percent_text(100 * left / total)} of {given_text(total, 'By')}"
            bound = min(self.least_bytes, self.least_share * total)
            return found(self._finding(run, mount, free, fact, Evidence(FREE, left, bound, "By")))
        if free.time[-1] - free.time[0] < self.slope_seconds:
            return Outcome("clear", f"its slope was not judged: less than {given_text(self.slope_seconds, 's')}")
        rate = steady_slope(free.time, free.values)
        if rate is None or rate >= 0 or left / -rate > self.horizon_seconds:
            return CLEAR
        fact = f"{mount} lost {bytes_text(-rate * 60)} a minute, steadily; {bytes_text(left)} are free"
        evidence = Evidence(FREE, left, -rate * self.horizon_seconds, "By")
        return found(self._finding(run, mount, free, f"{fact}: full in {about_text(left / -rate)}", evidence))

    def _finding(self, run: Run, mount: str, free: Observed, fact: str, evidence: Evidence) -> Finding:
        start, lost = float(free.time[0]), float(free.values[0] - free.values[-1])
        wrote = [(_written(run, max(start, cell.start), cell_end(run, cell)), cell) for cell in top_cells(run)]
        writers = [cell for amount, cell in sorted(wrote, key=lambda p: -p[0]) if amount > 0.1 * max(lost, 1.0)][:3]
        who = f" Most was written by {titles(writers)}." if writers and lost > 0 else ""
        if lost > 0 and not writers and run.subjects("process.disk.written"):
            who = " Little of it was written by this kernel."
        cells = writers or [cell for cell in top_cells(run)][-1:]
        return Finding(
            rule=self.id,
            severity="warning",
            cells=tuple(cell.seq for cell in cells),
            subject=mount,
            cause=None,
            start=start,
            end=float(free.time[-1]),
            fact=f"{fact}.{who}",
            consequence="Checkpoints, results and the notebook itself cannot be saved on a full disk.",
            advice="Keep fewer checkpoints (the last and the best), remove old ones and caches, write to a larger disk, "
            "or less often.",
            evidence=evidence,
        )


def _written(run: Run, start: float, end: float) -> float:
    values = observed(run, "process.disk.written", "process", start, end).values
    return float(values[-1] - values[0]) if len(values) else 0.0
