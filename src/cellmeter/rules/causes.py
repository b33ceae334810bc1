"""Why a GPU was underused: one cause, the most likely that the recorded metrics can decide, or ``unknown``.

Each test looks at the moments in which the GPU was idle between bursts of work, and at what the kernel did meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.rules.observed import Observed, Stretch, at_times, stretches
from cellmeter.rules.units import bytes_text, percent_text, seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Cell, Device, Run

IDLE_PERCENT = 10.0  # a reading below this is idle: NVML averages over 1/6 s to 1 s, so that the edges of bursts smear
GAP_SECONDS = 0.5
GAP_SHARE = 0.2
PHASE_SECONDS = 10.0
BURSTS = 3
SATURATED_CORES = 0.9
SATURATED_SHARE = 0.7
IO_BYTES_PER_SECOND = 50 * 2**20
IO_SHARE_OF_MAXIMUM = 0.5
THROTTLED_SHARE = 0.1
# NVML's clocks event reasons: hardware slowdown, software thermal, hardware thermal, hardware power brake.
THROTTLE_BITS = 0x08 | 0x20 | 0x40 | 0x80
LOADER = re.compile(r"\bDataLoader\b|\bnum_workers\b")


class Cause(NamedTuple):
    """A cause: its name, the sentence that shows it in the record, and what to change."""

    name: str
    why: str
    advice: str


class Busy:
    """The busy part of a cell on one GPU: the readings from its first to its last work."""

    def __init__(self, run: Run, device: Device, cell: Cell, readings: Observed, target_percent: float) -> None:
        self.run = run
        self.device = device
        self.cell = cell
        self.readings = readings
        self.target_percent = target_percent

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

    def while_idle(self, metric: str) -> NDArray[np.float64]:
        """Known readings of a metric of the kernel's processes at the idle moments."""
        import numpy as np

        values = at_times(self.run, metric, "process", self.readings.time[self.idle])
        return values[~np.isnan(values)]


def cause_of(busy: Busy) -> Cause:
    """The most likely cause."""
    return next(filter(None, (test(busy) for test in TESTS)), None) or _unknown(busy)


def _partly_idle(busy: Busy) -> Cause | None:
    """One or two long phases without GPU work explain all of it: outside them the use is as it should be."""
    import numpy as np

    phases = [gap for gap in busy.gaps if gap.seconds >= PHASE_SECONDS]
    if not 1 <= len(phases) < BURSTS:
        return None
    time, within = busy.readings.time, np.zeros(len(busy.readings.time), bool)
    for phase in phases:
        within |= (time > phase.start) & (time <= phase.end)
    if within.all() or busy.readings.where(~within).mean() < busy.target_percent:
        return None
    longest = max(phases, key=lambda phase: phase.seconds)
    return Cause(
        "partly-idle cell",
        f"It did nothing for {seconds_text(longest.seconds)}, from {seconds_text(longest.start - busy.cell.start)}"
        " into the cell, and was well used before and after.",
        "Move the phase without GPU work into a cell of its own, before the GPU is needed, or run both side by side.",
    )


def _input_bound(busy: Busy) -> Cause | None:
    cores = busy.while_idle("process.cpu.usage")
    if not _has_bursts(busy) or not len(cores):
        return None
    saturated = float((cores >= SATURATED_CORES).mean())
    if saturated < SATURATED_SHARE:
        return None
    has_loader = _children(busy) > 0 or LOADER.search(busy.cell.source or busy.cell.first_line)
    first = (
        "Raise the DataLoader's num_workers (with pin_memory=True and prefetch_factor)"
        if has_loader
        else "Prepare batches ahead of the GPU, in a background thread or process"
    )
    return Cause(
        "input-bound",
        f"It waited {len(busy.gaps)} times; the CPU was busy in {percent_text(saturated * 100)} of these moments.",
        f"{first}; then move decoding and augmentation out of the loop: cache their result or do them on the GPU.",
    )


def _io(busy: Busy) -> Cause | None:
    import numpy as np

    reads = busy.while_idle("process.disk.read.rate")
    if not _has_bursts(busy) or not len(reads):
        return None
    rate = float(np.median(reads))
    disk = busy.run.series("host.disk.read.rate", "host").values
    maximum = float(np.nanmax(disk)) if (~np.isnan(disk)).any() else rate
    if rate < IO_BYTES_PER_SECOND or rate < IO_SHARE_OF_MAXIMUM * maximum:
        return None
    return Cause(
        "io",
        f"It waited {len(busy.gaps)} times while the kernel read from disk at {bytes_text(rate)}/s.",
        "Copy the data to local disk or memory first, store it in fewer, larger files, or read the next batch ahead.",
    )


def _gaps(busy: Busy) -> Cause | None:
    if busy.gap_share <= GAP_SHARE:
        return None
    longest = max(gap.seconds for gap in busy.gaps)
    return Cause(
        "gaps",
        f"It was idle {len(busy.gaps)} times for {seconds_text(GAP_SECONDS)} or more, at most {seconds_text(longest)}, "
        f"together {percent_text(busy.gap_share * 100)} of that time.",
        "Find what runs between the bursts (validation, checkpoints, logging, .item() and .cpu()) and do it less often "
        "or in the background.",
    )


def _throttled(busy: Busy) -> Cause | None:
    import numpy as np

    working = busy.readings.time[~busy.idle]
    reasons = at_times(busy.run, "gpu.event_reasons", busy.device.id, working)
    bits: NDArray[np.int64] = reasons[~np.isnan(reasons)].astype(np.int64)
    if not len(bits):
        return None
    share = float(((bits & THROTTLE_BITS) != 0).mean())
    if share <= THROTTLED_SHARE:
        return None
    return Cause(
        "throttled",
        f"Heat or the power supply held its clock down in {percent_text(share * 100)} of its work.",
        "Tell the machine's operator: cooling or power supply is at fault, the code cannot mend it.",
    )


def _unknown(busy: Busy) -> Cause:
    return Cause(
        "unknown",
        "What held it back cannot be told from what was recorded.",
        "Try a larger batch first; then profile a few steps (torch.profiler, nsys) for small kernels and copies.",
    )


TESTS: tuple[Callable[[Busy], Cause | None], ...] = (_partly_idle, _input_bound, _io, _gaps, _throttled)


def _has_bursts(busy: Busy) -> bool:
    return len(busy.gaps) >= BURSTS and busy.gap_share > GAP_SHARE


def _children(busy: Busy) -> float:
    import numpy as np

    part = busy.run.series("process.children", "process").between(busy.readings.start, busy.readings.end).values
    return float(np.nanmax(part)) if (~np.isnan(part)).any() else 0.0
