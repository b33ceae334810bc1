"""The busy part of a cell on one GPU: what all rules about a GPU's work look at."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from cellmeter.rules.observed import ENOUGH, Observed, Stretch, at_times, cell_end, observed, stretches
from cellmeter.rules.ownership import ownership, reason_for
from cellmeter.rules.rule import Outcome, not_applicable, unknown
from cellmeter.run import known
from cellmeter.words import given_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Cell, Device, Run

UTILIZATION = "gpu.utilization"
SM_ACTIVE = "gpu.sm.active"
DRAM_ACTIVE = "gpu.dram.active"
IDLE_PERCENT = 10.0  # a reading below this is idle: NVML averages over 1/6 s to 1 s, so that the edges of bursts smear
GAP_SECONDS = 0.5


class Busy:
    """The readings of ``metric`` from the first to the last work of a GPU in a cell."""

    def __init__(self, run: Run, device: Device, cell: Cell, work: slice) -> None:
        self.run = run
        self.device = device
        self.cell = cell
        self.metric = use_metric(run, device)
        self._work = work

    @cached_property
    def readings(self) -> Observed:
        """From the first to the last work."""
        return _in_cell(self.run, self.device, self.cell).where(self._work)

    @property
    def seconds(self) -> float:
        """How much of it was observed."""
        return self.readings.total

    @cached_property
    def idle(self) -> NDArray[np.bool_]:
        """Which readings are idle."""
        return self.readings.values < IDLE_PERCENT

    @cached_property
    def gaps(self) -> list[Stretch]:
        """Idle stretches long enough to be one."""
        return [stretch for stretch in stretches(self.readings, self.idle) if stretch.seconds >= GAP_SECONDS]

    @property
    def gap_share(self) -> float:
        """Share of the time that was spent in gaps, 0 to 1."""
        return sum(gap.seconds for gap in self.gaps) / self.readings.total

    def while_idle(self, metric: str, subject: str = "process") -> NDArray[np.float64]:
        """Known readings of another metric at the idle moments."""
        return self._at(metric, subject, self.readings.time[self.idle])

    def while_working(self, metric: str) -> NDArray[np.float64]:
        """Known readings of another metric of the GPU at the moments of work."""
        return self._at(metric, self.device.id, self.readings.time[~self.idle])

    def _at(self, metric: str, subject: str, times: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        values = at_times(self.run, metric, subject, times)
        return values[~np.isnan(values)]

    def mean_of(self, metric: str) -> float | None:
        """Mean of another metric of the GPU over the busy part; None where it was not read for most of it."""
        part = observed(self.run, metric, self.device.id, self.readings.start, self.readings.end)
        enough = len(part.values) > 0 and part.total >= ENOUGH * (self.readings.end - self.readings.start)
        return part.mean() if enough else None


def busy_part(run: Run, device: Device, cell: Cell, least_seconds: float) -> Busy | Outcome:
    """The busy part of a cell on a GPU of the kernel's own, or why there is none to judge.

    Several rules ask for it, so it is kept which readings these are; not the readings, which in a long run are many.
    """
    key = ("busy", device.id, cell.seq, least_seconds)
    if key not in run.memo:
        run.memo[key] = _work(run, device, cell, least_seconds)
    found: slice | Outcome = run.memo[key]
    return Busy(run, device, cell, found) if isinstance(found, slice) else found


def _in_cell(run: Run, device: Device, cell: Cell) -> Observed:
    return observed(run, use_metric(run, device), device.id, max(cell.start, device.since), cell_end(run, cell))


def _work(run: Run, device: Device, cell: Cell, least_seconds: float) -> slice | Outcome:
    """Which of a cell's readings lie between the first and the last work."""
    start, end = max(cell.start, device.since), cell_end(run, cell)
    too_short = not_applicable(f"no cell with {given_text(least_seconds, 's')} of GPU work")
    if end - start < least_seconds:
        return too_short
    readings = _in_cell(run, device, cell)
    working = readings.values > 0
    seen = readings.total >= ENOUGH * (end - start)
    if seen and not working.any():
        return too_short
    obstacle = ownership(run, device, start, end).obstacle()
    if obstacle is not None:
        return obstacle
    if not seen:
        return unknown(f"{device.id}: {why_missing(run, device, readings)}")
    first, last = int(working.argmax()), len(working) - int(working[::-1].argmax())
    work = slice(first, last)
    busy = readings.where(work)
    return work if busy.end - busy.start >= least_seconds else too_short


def use_metric(run: Run, device: Device) -> str:
    """What tells whether a GPU works: its utilisation, or SM activity where there is no other, as on MIG instances."""
    key = ("use", device.id)
    if key not in run.memo:
        read = [metric for metric in (UTILIZATION, SM_ACTIVE) if len(known(run.series(metric, device.id).values))]
        run.memo[key] = read[0] if read else UTILIZATION
    metric: str = run.memo[key]
    return metric


def why_missing(run: Run, device: Device, readings: Observed) -> str:
    """Why a GPU's use is not known well enough to judge."""
    if len(readings.values):
        return f"its utilisation was read for less than {given_text(100 * ENOUGH, '%')} of the time"
    return reason_for(run, UTILIZATION, device.id)


def no_gpu(run: Run) -> str:
    """Why there is no GPU to judge."""
    why = next((run.unavailable[key] for key in (UTILIZATION, "gpu") if key in run.unavailable), None)
    return f"no GPU: {why}" if why else "no GPU on this machine"
