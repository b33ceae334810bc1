"""Rules about cores: one at work where there are many, or more work than there are cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cellmeter.rules.busy import IDLE_PERCENT, use_metric
from cellmeter.rules.neighbours import FULL_SHARE
from cellmeter.rules.observed import Observed, at_times, cell_end, observed, stretches, titles, top_cells
from cellmeter.rules.ownership import ownership, reason_for
from cellmeter.rules.rule import CLEAR, Evidence, Finding, Outcome, Rule, combined, found, not_applicable, unknown
from cellmeter.words import given_text, percent_text, seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Cell, Run

USAGE = "process.cpu.usage"
STRETCH_SECONDS = 5.0  # passing through the band is no time spent in it


class OneCore(NamedTuple):
    """A cell, how long it kept one core busy, and from when to when."""

    cell: Cell
    seconds: float
    start: float
    end: float


@dataclass(frozen=True)
class CpuOneCore(Rule):
    """Cells that keep one core busy while others rest, and no GPU works either. Said once a run."""

    id: ClassVar[str] = "cpu-one-core"
    title: ClassVar[str] = "One core works, the others rest"
    metrics: ClassVar[tuple[str, ...]] = (USAGE, "gpu.utilization")

    least_seconds: float = 60.0
    """Cell time on one core, all cells together."""
    least_cores: float = 4.0
    """With fewer cores there is little to win."""
    low_cores: float = 0.85
    """From this use ..."""
    high_cores: float = 1.05
    """... to this, one core is at work."""

    def check(self, run: Run) -> Outcome:
        """One outcome for the run."""
        limit = run.limits.get("cpu_cores")
        if limit is None or limit.value < self.least_cores:
            return not_applicable(f"the kernel has fewer than {given_text(self.least_cores, '{cpu}')}")
        cells = top_cells(run)
        if sum(cell_end(run, cell) - cell.start for cell in cells) < self.least_seconds:
            return not_applicable(f"less than {given_text(self.least_seconds, 's')} of cells")
        if not run.subjects(USAGE):
            return unknown(reason_for(run, USAGE, "process"))
        spent = [one for cell in cells if (one := self._cell(run, cell, limit.value)).seconds > 0]
        total = sum(one.seconds for one in spent)
        return found(self._finding(spent, total, limit.value)) if total >= self.least_seconds else CLEAR

    def _cell(self, run: Run, cell: Cell, cores: float) -> OneCore:
        usage = a_second_each(observed(run, USAGE, "process", cell.start, cell_end(run, cell)))
        one = (usage.values >= self.low_cores) & (usage.values <= self.high_cores)
        one &= ~_gpu_works(run, cell, usage.time) & ~_others_work(run, usage.time, cores)
        parts = [part for part in stretches(usage, one) if part.seconds >= STRETCH_SECONDS]
        if not parts:
            return OneCore(cell, 0.0, cell.start, cell.start)
        return OneCore(cell, sum(part.seconds for part in parts), parts[0].start, parts[-1].end)

    def _finding(self, spent: list[OneCore], total: float, cores: float) -> Finding:
        worst = sorted(spent, key=lambda one: -one.seconds)
        return Finding(
            rule=self.id,
            severity="info",
            cells=tuple(one.cell.seq for one in worst),
            subject="process",
            cause=None,
            start=worst[0].start,
            end=worst[0].end,
            fact=f"{titles([one.cell for one in worst])} kept one of {given_text(cores, '{cpu}')} busy for "
            f"{seconds_text(total)}{' together' if len(worst) > 1 else ''}, while the others had nothing to do.",
            consequence=f"At best {percent_text(100 / cores)} of the CPU was used.",
            advice="Use whole-array operations (NumPy, Polars) instead of loops; where the work splits, joblib, "
            "multiprocessing or n_jobs=-1; else a machine with fewer cores does as well.",
            evidence=Evidence(USAGE, total, self.least_seconds, "s"),
        )


def a_second_each(readings: Observed) -> Observed:
    """Means over about a second each: ten readings a second of CPU time jitter by the ticks of the scheduler."""
    import numpy as np

    if not len(readings.time) or not readings.total:
        return readings
    slot = np.floor(readings.time - readings.time[0]).astype(np.int64)
    starts = np.flatnonzero(np.diff(slot, prepend=-1))
    seconds = np.add.reduceat(readings.seconds, starts)
    work = np.add.reduceat(readings.values * readings.seconds, starts)
    last = np.append(starts[1:], len(slot)) - 1
    means = np.divide(work, seconds, out=np.zeros(len(starts)), where=seconds > 0)
    return Observed(readings.time[last], means, seconds, readings.seq[last])


def _others_work(run: Run, times: NDArray[np.float64], cores: float) -> NDArray[np.bool_]:
    """Whether the machine's cores are full: then those that the cell leaves do not rest."""
    full: NDArray[np.bool_] = at_times(run, "host.cpu.usage", "host", times) >= FULL_SHARE * max(
        cores, run.host.cpu_count
    )
    return full


def _gpu_works(run: Run, cell: Cell, times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether a GPU that may be the kernel's works, or may work for all that is known."""
    import numpy as np

    works = np.zeros(len(times), bool)
    for device in run.devices:
        start, end = max(cell.start, device.since), cell_end(run, cell)
        if start < end and ownership(run, device, start, end).whose != "not-mine":
            used = at_times(run, use_metric(run, device), device.id, times)
            works |= ~(used < IDLE_PERCENT) & (times >= start)  # unknown is no rest
    return works


@dataclass(frozen=True)
class CpuOversubscribed(Rule):
    """More threads or processes than the kernel may use cores: they wait for each other, or for the quota."""

    id: ClassVar[str] = "cpu-oversubscribed"
    title: ClassVar[str] = "More work is started than there are cores"
    metrics: ClassVar[tuple[str, ...]] = (
        "cgroup.cpu.periods",
        "cgroup.cpu.throttled.periods",
        "host.tasks.runnable",
        "cgroup.pressure.cpu",
    )

    cell_seconds: float = 10.0
    """Least length of a cell."""
    throttled_share: float = 0.1
    """Share of the quota's periods in which it was used up, above which it is a finding ..."""
    runnable_ratio: float = 2.0
    """... or this many runnable tasks a core of the machine ..."""
    pressure_share: float = 0.25
    """... with this share of the time in which tasks of the own control group waited for a core ..."""
    own_share: float = 0.5
    """... in both cases while the kernel used this share of its cores itself: else it is others who take them."""

    def check(self, run: Run) -> Outcome:
        """One outcome a cell."""
        return combined((self._cell(run, cell) for cell in top_cells(run)), "no cell was run")

    def _cell(self, run: Run, cell: Cell) -> Outcome:
        end = cell_end(run, cell)
        if end - cell.start < self.cell_seconds:
            return not_applicable(f"no cell of {given_text(self.cell_seconds, 's')}")
        cores, used = run.limits.get("cpu_cores"), observed(run, USAGE, "process", cell.start, end)
        own = cores is None or not len(used.values) or used.mean() >= self.own_share * cores.value
        throttled = _throttled_share(run, cell.start, end)
        if throttled is not None and throttled > self.throttled_share and own:
            what = f"used its control group's CPU quota up in {percent_text(100 * throttled)} of all periods"
            return found(
                self._finding(run, cell, "cgroup.cpu.throttled.periods", throttled, self.throttled_share, what)
            )
        pressure = observed(run, "cgroup.pressure.cpu", "cgroup", cell.start, end)
        runnable = observed(run, "host.tasks.runnable", "host", cell.start, end)
        if not len(pressure.values) or not len(runnable.values) or cores is None:
            if throttled is not None:
                return CLEAR
            return unknown("it has no CPU quota, and how long its control group waits for cores is not known")
        waited, ratio = pressure.mean(), runnable.mean() / run.host.cpu_count  # they are those of the whole machine
        if waited <= self.pressure_share or ratio <= self.runnable_ratio or not own:
            return CLEAR
        what = (
            f"ran while there were {runnable.mean():.0f} tasks for the {run.host.cpu_count} cores of the machine, and some "
            f"of its own control group waited for a core in {percent_text(100 * waited)} of the time"
        )
        return found(self._finding(run, cell, "cgroup.pressure.cpu", waited, self.pressure_share, what))

    def _finding(self, run: Run, cell: Cell, metric: str, value: float, threshold: float, what: str) -> Finding:
        return Finding(
            rule=self.id,
            severity="warning",
            cells=(cell.seq,),
            subject="process",
            cause=None,
            start=cell.start,
            end=cell_end(run, cell),
            fact=f"{cell.title} {what}.",
            consequence="Threads stop in the middle of their work and hold up those that wait for them: it takes longer than "
            "with fewer.",
            advice=f"Start no more threads and processes than there are cores{_cores(run)}: n_jobs, num_workers and "
            "OMP_NUM_THREADS multiply where libraries nest (threadpoolctl limits them); or ask for more cores.",
            evidence=Evidence(metric, value, threshold, "1"),
        )


def _throttled_share(run: Run, start: float, end: float) -> float | None:
    """Share of the quota's periods that ended throttled; None where there is no quota."""
    grown = []
    for metric in ("cgroup.cpu.throttled.periods", "cgroup.cpu.periods"):
        values = observed(run, metric, "cgroup", start, end).values
        grown.append(float(values[-1] - values[0]) if len(values) else 0.0)
    return grown[0] / grown[1] if grown[1] > 0 else None


def _cores(run: Run) -> str:
    limit = run.limits.get("cpu_cores")
    return f" ({given_text(limit.value, '{cpu}')} here)" if limit else ""
