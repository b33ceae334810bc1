"""Right-sizing: how much of each resource the recorded work needs, so that it is used to 70 % and not to 7.

Needed is the sustained peak over the target, rounded up. What fits between the targets of 70 % and 80 % is the right size.
While others fill the machine, what is used says little of what is needed: then nobody is told to take less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from cellmeter.rules.neighbours import crowd
from cellmeter.rules.observed import ENOUGH, Observed, at_times, cell_seconds, observed
from cellmeter.rules.ownership import ownership, reason_for
from cellmeter.run import known
from cellmeter.words import GIB, bytes_text, cores_text, given_text, seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Device, Run

    Floats = NDArray[np.float64]

Resource = Literal["cpu", "memory", "gpu"]
Verdict = Literal["smaller", "right", "larger"]

TARGET = 0.7
HIGHEST_TARGET = 0.8
LEAST_CELL_SECONDS = 60.0  # of cells: of less nothing can be said
SUSTAINED_SECONDS = (
    10.0,
    60.0,
)  # a peak is sustained over a tenth of the cells' time, but no less and no more than this
WORTH_CHANGING = 0.9  # of what there is: to save less than a tenth is not worth the change


@dataclass(frozen=True)
class Size:
    """What a run had of a resource, used of it at most, and needs: cores, bytes or GPUs. None: unknown, and why."""

    resource: Resource
    available: float | None
    peak: float | None
    needed: float | None
    """At the target of 70 %."""
    needed_at_least: float | None
    """At 80 %, the most that is still sound."""
    basis: str
    """What ``peak`` is."""
    unknown: str | None = None
    highest: float | None = None
    """Of any moment, where ``peak`` is a mean ..."""
    sustained_seconds: float | None = None
    """... over so long."""
    doubt: str | None = None
    """Why it may need more than it used here, so that nobody should be told to take less."""

    @property
    def verdict(self) -> Verdict | None:
        """Whether less would do, or more is called for; None where that is unknown or in doubt."""
        if self.available is None or self.needed is None or self.needed_at_least is None:
            return None
        if self.needed <= WORTH_CHANGING * self.available:
            return None if self.doubt else "smaller"
        return "larger" if self.needed_at_least > self.available else "right"


def needed(peak: float, capacity: float = 1.0, target: float = TARGET) -> int:
    """How many units carry a sustained ``peak``, when each has a ``capacity`` and is to be used to ``target``.

    150 requests/s at 20 per instance and 70 %: 11. Raises ValueError for what cannot be: a negative or infinite peak, a
    capacity of 0 or less, a target outside of 0 to 1.
    """
    if not (0 <= peak < math.inf and 0 < capacity < math.inf and 0 < target <= 1):
        raise ValueError(f"no number of units serves a peak of {peak:g} with {capacity:g} each, used to {target:g}")
    return math.ceil(peak / (capacity * target) * (1 - 1e-12))  # 0.7 is no binary number: 2.1 / 0.7 must be 3


def sizes(run: Run) -> tuple[Size, ...]:
    """The advice for cores, memory and, where the kernel has any, GPUs."""
    devices = [device for device in run.devices if ownership(run, device, 0.0, run.duration).whose == "mine"]
    shared = [device for device in run.devices if ownership(run, device, 0.0, run.duration).whose == "shared"]
    recorded = cell_seconds(run)
    if recorded < LEAST_CELL_SECONDS:
        why = f"only {seconds_text(recorded)} of work were recorded, and it takes {given_text(LEAST_CELL_SECONDS, 's')}"
        resources: tuple[Resource, ...] = ("cpu", "memory", *(("gpu",) if devices else ()))
        return tuple(Size(resource, None, None, None, None, "", why) for resource in resources)
    least, most = SUSTAINED_SECONDS
    seconds = float(round(min(max(recorded / 10, least), most)))
    found = [_cores(run, seconds), _memory(run)]
    if devices or shared:
        found.append(_gpus(run, devices, shared, seconds))
    return tuple(replace(size, doubt=_doubt(run)) for size in found)


def _doubt(run: Run) -> str | None:
    """Who is kept waiting uses less than he would."""
    full = crowd(run)
    if full is None:
        return None
    return f"other processes used {cores_text(full.others)} of the {full.cores} cores meanwhile"


def sustained(readings: Observed, seconds: float) -> float | None:
    """The highest mean over any ``seconds`` of which enough was observed; None if there is no such time."""
    import numpy as np

    if not len(readings.time):
        return None
    sums = np.concatenate([[0.0], np.cumsum(readings.values * readings.seconds)])
    weights = np.concatenate([[0.0], np.cumsum(readings.seconds)])
    first = readings.time.searchsorted(readings.time - seconds, "right")
    last = np.arange(1, len(sums))
    weight = weights[last] - weights[first]
    enough = weight >= ENOUGH * seconds
    if not enough.any():
        return None
    return float(((sums[last] - sums[first])[enough] / weight[enough]).max())


def _cores(run: Run, seconds: float) -> Size:
    limit = run.limits.get("cpu_cores")
    available = limit.value if limit else None
    usage = observed(run, "process.cpu.usage", "process", 0.0, run.duration)
    peak = sustained(usage, seconds)
    basis = f"the most cores in use over {given_text(seconds, 's')}, worker processes included"
    if peak is None:
        return Size("cpu", available, None, None, None, basis, reason_for(run, "process.cpu.time", "process"))
    if available is not None and peak >= 0.95 * available:
        basis += f"; it used all {given_text(available, '{cpu}')} there were, so more may be of use than this says"
    least, most = (float(max(1, needed(peak, target=target))) for target in (HIGHEST_TARGET, TARGET))
    minute = sustained(usage, SUSTAINED_SECONDS[1]) or 0.0
    if available is not None and least > available >= needed(minute, target=HIGHEST_TARGET):
        least = most = available  # a burst of seconds may well use all there is
        basis += "; over no minute it used more than 80 % of what there is"
    return Size("cpu", available, peak, most, least, basis, None, float(usage.values.max()), seconds)


def _memory(run: Run) -> Size:
    limit = run.limits.get("memory_bytes")
    available = limit.value if limit and math.isfinite(limit.value) else None
    peaks = [float(cell.peak_rss_bytes) for cell in run.cells if cell.peak_rss_bytes is not None]
    for metric in ("process.tree.memory.rss", "process.memory.rss"):
        values = known(run.series(metric, "process").values)
        peaks += [float(values.max())] if len(values) else []
    basis = "the highest of any moment, worker processes included, for memory has no second chance"
    if not peaks:
        return Size("memory", available, None, None, None, basis, reason_for(run, "process.memory.rss", "process"))
    peak = max(peaks)
    least, most = (max(1, needed(peak, GIB, target)) * float(GIB) for target in (HIGHEST_TARGET, TARGET))
    return Size("memory", available, peak, most, least, basis)


def _gpus(run: Run, devices: list[Device], shared: list[Device], seconds: float) -> Size:
    count = len(devices) + len(shared)
    window = given_text(seconds, "s")
    basis = f"the most GPUs at work over {window}, by utilisation, which is an upper bound of what they did"
    if shared:
        names = ", ".join(device.id for device in shared)
        return Size("gpu", count, None, None, None, basis, f"{names}: shared, others work on it too")
    together = _together(run, "gpu.utilization", devices)
    use = sustained(together, seconds)
    if use is None:
        return Size("gpu", count, None, None, None, basis, reason_for(run, "gpu.utilization", devices[0].id))
    peak = use / 100
    least, most = (needed(peak, target=target) for target in (HIGHEST_TARGET, TARGET))
    memory = _together(run, "gpu.memory.used", devices).values
    capacity = min(device.memory_bytes for device in devices)
    held = float(memory.max()) if len(memory) and capacity > 0 else 0.0
    if held and min(count, needed(held, capacity)) > most:
        least, most = (min(count, needed(held, capacity, target)) for target in (HIGHEST_TARGET, TARGET))
        basis = (
            f"their memory, of which {bytes_text(held)} were held at most: fewer would do if each holds a copy of the same, "
            f"or if the framework took it in advance. At work over {window}: {cores_text(peak)} GPUs at most"
        )
    return Size("gpu", count, peak, most, least, basis, None, float(together.values.max()) / 100, seconds)


def _together(run: Run, metric: str, devices: list[Device]) -> Observed:
    """The sum over GPUs, at the times one of them was read; unknown where it is of any."""
    import numpy as np

    first = observed(run, metric, devices[0].id, 0.0, run.duration)
    total = np.zeros(len(first.time))
    for device in devices:
        total += at_times(run, metric, device.id, first.time)
    return Observed(first.time, total, first.seconds, first.seq).where(~np.isnan(total))
