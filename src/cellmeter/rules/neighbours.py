"""Other processes that took the cores while cells ran: then durations and CPU use tell of the machine, not of the code."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cellmeter.rules.observed import at_times, in_cells

if TYPE_CHECKING:
    from cellmeter.run import Run

FULL_SHARE = 0.9  # of the machine's cores: from here on who wants one waits
OTHERS_SHARE = 0.25  # of the machine's cores that others take: less, and it is the run itself that fills the machine
LEAST_CORES = 0.05  # a cell that only sleeps is slowed by nobody
LEAST_SECONDS = 5.0
TIME_SHARE = 1 / 3  # of the time in which cells worked
LEAST_WAIT = 0.05  # share of the time in which tasks of the own control group waited for a core, where that is known


class Crowd(NamedTuple):
    """Seconds in cells, the share of them in which others left no core free, and means over them in cores."""

    seconds: float
    share: float
    others: float
    own: float
    cores: int


def crowd(run: Run) -> Crowd | None:
    """How others filled the machine; None if they did not, or where that was not measured. Several readers ask."""
    if "crowd" not in run.memo:
        run.memo["crowd"] = _crowd(run)
    found: Crowd | None = run.memo["crowd"]
    return found


def _crowd(run: Run) -> Crowd | None:
    import numpy as np

    cores = run.host.cpu_count
    machine = in_cells(run, "host.cpu.usage", "host")
    own = at_times(run, "process.cpu.usage", "process", machine.time)
    machine, own = machine.where(~np.isnan(own)), own[~np.isnan(own)]
    worked = own >= LEAST_CORES
    others = np.clip(machine.values - own, 0.0, None)
    full = (machine.values >= FULL_SHARE * cores) & (others >= OTHERS_SHARE * cores)
    slowed = float(machine.seconds[full & worked].sum())
    if cores < 1 or slowed < LEAST_SECONDS or slowed < TIME_SHARE * float(machine.seconds[worked].sum()):
        return None
    waited = at_times(run, "cgroup.pressure.cpu", "cgroup", machine.time[full & worked])
    if (~np.isnan(waited)).any() and float(np.nanmean(waited)) < LEAST_WAIT:
        return None
    taken, used = (float(np.average(values, weights=machine.seconds)) for values in (others, own))
    return Crowd(machine.total, float(machine.seconds[full].sum()) / machine.total, taken, used, cores)
