"""Why a GPU was underused: one cause, the most likely that the recorded metrics can decide, or ``unknown``.

Each test looks at the moments in which the GPU was idle between bursts of work, and at what the kernel did meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.rules.busy import GAP_SECONDS, Busy
from cellmeter.spans import STEP
from cellmeter.words import bytes_text, given_text, percent_text, seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GAP_SHARE = 0.2
PHASE_SECONDS = 10.0
BURSTS = 3
SATURATED_CORES = 0.9
SATURATED_SHARE = 0.7
IO_BYTES_PER_SECOND = 50 * 2**20
IO_SHARE_OF_MAXIMUM = 0.5
IO_WAIT_SHARE = 0.5
TRANSFER_BYTES_PER_SECOND = 2 * 2**30  # pageable copies reach 3 GB/s and more; control traffic stays far below 1
THROTTLED_SHARE = 0.1
# NVML's clocks event reasons: hardware slowdown, software thermal, hardware thermal, hardware power brake.
THROTTLE_BITS = 0x08 | 0x20 | 0x40 | 0x80
SLOW_SECONDS = 0.1  # a step or request of this length could do more
WORK_SHARE = 0.5
ROOMY_SHARE = 0.5
LOADER = re.compile(r"\bDataLoader\b|\bnum_workers\b")


class Cause(NamedTuple):
    """A cause: its name, the sentence that shows it in the record, and what to change."""

    name: str
    why: str
    advice: str


def cause_of(busy: Busy, target_percent: float) -> Cause:
    """The most likely cause of use below a target."""
    found = _partly_idle(busy, target_percent)
    return found or next(filter(None, (test(busy) for test in TESTS)), None) or _unknown(busy)


def _partly_idle(busy: Busy, target_percent: float) -> Cause | None:
    """One or two long phases without GPU work explain all of it: outside them the use is as it should be."""
    import numpy as np

    phases = [gap for gap in busy.gaps if gap.seconds >= PHASE_SECONDS]
    if not 1 <= len(phases) < BURSTS:
        return None
    time, within = busy.readings.time, np.zeros(len(busy.readings.time), bool)
    for phase in phases:
        within |= (time > phase.start) & (time <= phase.end)
    if within.all() or busy.readings.where(~within).mean() < target_percent:
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
    throttled = busy.while_idle("cgroup.cpu.throttled", "cgroup")
    held_back = len(throttled) > 0 and float(throttled.mean()) > THROTTLED_SHARE
    if held_back:
        first = "Ask for more cores: the CPU quota of this control group is used up, and more workers would only wait"
    return Cause(
        "input-bound",
        f"It waited {len(busy.gaps)} times; the CPU was busy in {percent_text(saturated * 100)} of these moments"
        f"{', and its quota held it back' if held_back else ''}.",
        f"{first}; then move decoding and augmentation out of the loop: cache their result or do them on the GPU.",
    )


def _io(busy: Busy) -> Cause | None:
    if not _has_bursts(busy):
        return None
    what = _disk_busy(busy) or _io_wait(busy)
    if what is None:
        return None
    return Cause(
        "io",
        f"It waited {len(busy.gaps)} times while the kernel {what}.",
        "Copy the data to local disk or memory first, store it in fewer, larger files, or read the next batch ahead.",
    )


def _disk_busy(busy: Busy) -> str | None:
    """Reads near the most that this machine's disks were seen to give."""
    import numpy as np

    reads = busy.while_idle("process.disk.read.rate")
    if not len(reads):
        return None
    rate = float(np.median(reads))
    disk = busy.run.series("host.disk.read.rate", "host").values
    maximum = float(np.nanmax(disk)) if (~np.isnan(disk)).any() else rate
    if rate < IO_BYTES_PER_SECOND or rate < IO_SHARE_OF_MAXIMUM * maximum:
        return None
    return f"read from disk at {bytes_text(rate)}/s"


def _io_wait(busy: Busy) -> str | None:
    waits = busy.while_idle("process.io.blocked")
    share = float(waits.mean()) if len(waits) else 0.0
    return f"waited for I/O in {percent_text(100 * share)} of these moments" if share > IO_WAIT_SHARE else None


def _transfer(busy: Busy) -> Cause | None:
    """Copies keep the GPU's multiprocessors waiting: PCIe is busy while they are idle."""
    import numpy as np

    rates = [busy.while_idle(metric, busy.device.id) for metric in ("gpu.pcie.received", "gpu.pcie.sent")]
    rate = sum(float(np.median(readings)) for readings in rates if len(readings))
    if rate < TRANSFER_BYTES_PER_SECOND:
        return None
    return Cause(
        "transfer",
        f"While it was idle, {bytes_text(rate)}/s went over PCIe.",
        "Copy less and earlier: pin_memory=True with non_blocking=True, smaller dtypes, data that is used again kept on "
        "the GPU.",
    )


def _gaps(busy: Busy) -> Cause | None:
    if busy.gap_share <= GAP_SHARE:
        return None
    longest = max(gap.seconds for gap in busy.gaps)
    return Cause(
        "gaps",
        f"It was idle {len(busy.gaps)} times for {given_text(GAP_SECONDS, 's')} or more, at most {seconds_text(longest)}, "
        f"together {percent_text(busy.gap_share * 100)} of that time.",
        "Find what runs between the bursts (validation, checkpoints, logging, .item() and .cpu()) and do it less often "
        "or in the background.",
    )


def _small_work(busy: Busy) -> Cause | None:
    """Slow spans or steps with room in the GPU's memory: each gives the GPU too little at once. Nothing else tells it."""
    slow = _slow_span(busy) or _slow_steps(busy)
    used = busy.mean_of("gpu.memory.used")
    if slow is None or used is None or used >= ROOMY_SHARE * busy.device.memory_bytes:
        return None
    return Cause(
        "small-work",
        f"{slow}, while {percent_text(100 * used / busy.device.memory_bytes)} of its memory was in use.",
        "Give it more at once: a larger batch, several requests together; then fewer, larger kernels "
        "(torch.compile, CUDA graphs).",
    )


def _slow_span(busy: Busy) -> str | None:
    """The span that filled most of the busy part, if it filled half of it and each took long."""
    start, end = busy.readings.start, busy.readings.end
    longest = max(busy.run.spans_in(start, end), key=lambda stats: stats.open_seconds, default=None)
    if longest is None or longest.open_seconds < WORK_SHARE * (end - start) or longest.p50 < SLOW_SECONDS:
        return None
    return f"Each “{longest.name}” took {seconds_text(longest.p50)} (median of {longest.count})"


def _slow_steps(busy: Busy) -> str | None:
    steps = busy.run.steps.get(STEP)
    rate = steps.per_second(busy.readings.start, busy.readings.end) if steps is not None else None
    if rate is None or rate * SLOW_SECONDS > 1:
        return None
    return f"Each step took {seconds_text(1 / rate)} on average"


def _throttled(busy: Busy) -> Cause | None:
    share = throttled_share(busy, THROTTLE_BITS)
    if share is None or share <= THROTTLED_SHARE:
        return None
    return Cause(
        "throttled",
        f"Heat or the power supply held its clock down in {percent_text(share * 100)} of its work.",
        "Tell the machine's operator: cooling or power supply is at fault, the code cannot mend it.",
    )


def throttled_share(busy: Busy, bits: int) -> float | None:
    """In which share of the working moments one of the event reasons held the clock down; None if that is unknown."""
    import numpy as np

    reasons: NDArray[np.int64] = busy.while_working("gpu.event_reasons").astype(np.int64)
    return float(((reasons & bits) != 0).mean()) if len(reasons) else None


def _unknown(busy: Busy) -> Cause:
    return Cause(
        "unknown",
        "What held it back cannot be told from what was recorded.",
        "Try a larger batch first; then profile a few steps (torch.profiler, nsys) for small kernels and copies.",
    )


TESTS: tuple[Callable[[Busy], Cause | None], ...] = (_input_bound, _io, _transfer, _gaps, _small_work, _throttled)


def _has_bursts(busy: Busy) -> bool:
    return len(busy.gaps) >= BURSTS and busy.gap_share > GAP_SHARE


def _children(busy: Busy) -> float:
    import numpy as np

    part = busy.run.series("process.children", "process").between(busy.readings.start, busy.readings.end).values
    return float(np.nanmax(part)) if (~np.isnan(part)).any() else 0.0
