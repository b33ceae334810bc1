"""Rules about how well GPUs work while they do: hollow, unevenly loaded, or held down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cellmeter.rules.busy import DRAM_ACTIVE, SM_ACTIVE, UTILIZATION, Busy, busy_part, no_gpu, use_metric, why_missing
from cellmeter.rules.causes import THROTTLE_BITS, throttled_share
from cellmeter.rules.observed import ENOUGH, at_times, cell_end, observed, top_cells
from cellmeter.rules.ownership import ownership, reason_for
from cellmeter.rules.rule import (
    CLEAR,
    DeviceRule,
    Evidence,
    Finding,
    Outcome,
    Rule,
    Severity,
    Waste,
    combined,
    found,
    not_applicable,
    unknown,
)
from cellmeter.run import known
from cellmeter.words import given_text, gpu_seconds_text, percent_text, seconds_text, value_text

if TYPE_CHECKING:
    from cellmeter.run import Cell, Device, Run

POWER = "gpu.power"
REASONS = "gpu.event_reasons"
CLOCK = "gpu.clock.sm"
POWER_CAP_BIT = 0x04
OWNERS = ("gpu.process.memory.used", "gpu.foreign.processes")


@dataclass(frozen=True)
class GpuHollow(DeviceRule):
    """A GPU that always has a kernel to run, but kernels that leave most of it idle."""

    id: ClassVar[str] = "gpu-hollow"
    title: ClassVar[str] = "A GPU looks busy and does little"
    metrics: ClassVar[tuple[str, ...]] = (UTILIZATION, SM_ACTIVE, DRAM_ACTIVE, POWER, *OWNERS)

    busy_seconds: float = 10.0
    """Least time from the first to the last work of the GPU in a cell."""
    utilization_percent: float = 70.0
    """From this mean utilisation on the GPU looks busy ..."""
    active_percent: float = 50.0
    """... and below this mean SM activity it is hollow ..."""
    dram_percent: float = 50.0
    """... unless memory bandwidth is used to this share: then memory is the bound."""
    power_percent: float = 25.0
    """Without SM activity: the share of the power between idle and the limit below which it is hollow (info)."""

    def together(self, run: Run, parts: Sequence[list[Outcome]]) -> Outcome:
        """One outcome a cell and GPU."""
        if not run.devices:
            return not_applicable(no_gpu(run))
        return combined((part for device in parts for part in device), "no cell was run")

    def of_device(self, run: Run, device: Device) -> list[Outcome]:
        """One outcome a cell."""
        return [self._cell(run, device, cell) for cell in top_cells(run)]

    def _cell(self, run: Run, device: Device, cell: Cell) -> Outcome:
        busy = busy_part(run, device, cell, self.busy_seconds)
        if isinstance(busy, Outcome):
            return busy
        if busy.metric != UTILIZATION:
            return unknown(f"{device.id}: {reason_for(run, UTILIZATION, device.id)}")
        if busy.readings.mean() < self.utilization_percent:
            return not_applicable(f"no cell kept a GPU at {given_text(self.utilization_percent, '%')} utilisation")
        active = busy.mean_of(SM_ACTIVE)
        return self._by_power(busy) if active is None else self._by_activity(busy, active)

    def _by_activity(self, busy: Busy, active: float) -> Outcome:
        dram = busy.mean_of(DRAM_ACTIVE)
        if active >= self.active_percent:
            return CLEAR
        if dram is not None and dram >= self.dram_percent:
            where = f"{busy.cell.title} used {percent_text(dram)} of the memory bandwidth of {busy.device.id}"
            return Outcome("clear", f"{where}: bound by memory, not hollow")
        wasted = busy.seconds * (1 - active / 100)
        return found(
            self._finding(
                busy,
                Evidence(SM_ACTIVE, active, self.active_percent, "%"),
                f"only {percent_text(active)} of its multiprocessors had work (SM activity)",
                f"{gpu_seconds_text(wasted)} of its multiprocessors were unused.",
                Waste(wasted),
            )
        )

    def _by_power(self, busy: Busy) -> Outcome:
        device = busy.device
        power, limit, idle = busy.mean_of(POWER), device.power_limit_watts, _idle_power(busy.run, device)
        if power is None or limit is None or idle is None or idle >= limit:
            return unknown(f"{device.id} has no SM activity, and its power at rest or its limit is not known")
        share = 100 * (power - idle) / (limit - idle)
        if share >= self.power_percent:
            return CLEAR
        drew, rest = value_text(power, "W"), value_text(idle, "W")
        fact = f"it drew {drew}, {percent_text(max(0.0, share))} of the way from rest ({rest}) to its limit"
        evidence = Evidence(POWER, power, idle + self.power_percent / 100 * (limit - idle), "W")
        consequence = "Little of it seems to work; this GPU does not tell how many of its multiprocessors do."
        return found(self._finding(busy, evidence, fact, consequence, Waste()))

    def _finding(self, busy: Busy, evidence: Evidence, shows: str, consequence: str, waste: Waste) -> Finding:
        used = percent_text(busy.readings.mean())
        return Finding(
            rule=self.id,
            severity="warning" if evidence.metric == SM_ACTIVE else "info",
            cells=(busy.cell.seq,),
            subject=busy.device.id,
            cause=None,
            start=busy.readings.start,
            end=busy.readings.end,
            fact=f"{busy.cell.title} kept {busy.device.id} busy for {seconds_text(busy.seconds)} (utilisation {used}), "
            f"but {shows}.",
            consequence=consequence,
            advice="Give it more work at once: a larger batch, or fewer and larger kernels (torch.compile, CUDA graphs); "
            "or let several processes share the GPU (MPS, MIG).",
            evidence=evidence,
            waste=waste,
        )


def _idle_power(run: Run, device: Device) -> float | None:
    """The least power drawn at rest; None if it never rested."""
    import numpy as np

    power, used = run.series(POWER, device.id), run.series(UTILIZATION, device.id)
    resting = power.values[(used.values == 0) & ~np.isnan(power.values)] if len(power.time) == len(used.time) else []
    return float(np.min(resting)) if len(resting) else None


@dataclass(frozen=True)
class GpuImbalance(Rule):
    """GPUs that one cell holds together and loads unevenly."""

    id: ClassVar[str] = "gpu-imbalance"
    title: ClassVar[str] = "The GPUs of one cell are loaded unevenly"
    metrics: ClassVar[tuple[str, ...]] = (UTILIZATION, SM_ACTIVE, *OWNERS)

    busy_seconds: float = 10.0
    """Least time from the first to the last work of any of the GPUs in a cell."""
    difference_percent: float = 30.0
    """How far apart the means may be, in points."""

    def check(self, run: Run) -> Outcome:
        """One outcome a cell."""
        if len(run.devices) < 2:
            return not_applicable("there is only one GPU" if run.devices else no_gpu(run))
        return combined((self._cell(run, cell) for cell in top_cells(run)), "no cell was run")

    def _cell(self, run: Run, cell: Cell) -> Outcome:
        end = cell_end(run, cell)
        alone = not_applicable("no cell held two GPUs")
        if end - cell.start < self.busy_seconds:
            return alone
        there = [device for device in run.devices if device.since < end]
        whose = {device: ownership(run, device, max(cell.start, device.since), end) for device in there}
        held = [device for device, owner in whose.items() if owner.context]
        unclear = next((o for o in whose.values() if o.whose in ("shared", "unknown") and o.context is not False), None)
        if len(held) < 2:
            return unknown(unclear.reason) if unclear and unclear.context is None else alone
        if unclear is not None:
            return unknown(unclear.reason)
        return self._held(run, cell, held)

    def _held(self, run: Run, cell: Cell, held: list[Device]) -> Outcome:
        end = cell_end(run, cell)
        first = max(cell.start, *(device.since for device in held))
        readings = [observed(run, use_metric(run, device), device.id, first, end) for device in held]
        for device, one in zip(held, readings, strict=True):
            if one.total < ENOUGH * (end - first):
                return unknown(f"{device.id}: {why_missing(run, device, one)}")
        busy = [one.where(one.values > 0) for one in readings]
        start = min((one.start for one in busy if len(one.time)), default=end)
        stop = max((one.end for one in busy if len(one.time)), default=cell.start)
        if stop - start < self.busy_seconds:
            return not_applicable(f"no cell with {given_text(self.busy_seconds, 's')} of work on two GPUs")
        parts = [one.where((one.time > start) & (one.time <= stop)) for one in readings]
        means = sorted(zip([part.mean() for part in parts], held, strict=True), key=lambda pair: pair[0])
        if means[-1][0] - means[0][0] <= self.difference_percent:
            return CLEAR
        return found(self._finding(run, cell, means, start, stop))

    def _finding(self, run: Run, cell: Cell, means: list[tuple[float, Device]], start: float, end: float) -> Finding:
        most, busiest = means[-1]
        lesser = [(mean, device) for mean, device in means if most - mean > self.difference_percent]
        wasted = sum((most - mean) / 100 * (end - start) for mean, _ in lesser)
        named = ", ".join(f"{device.id} at {percent_text(mean)}" for mean, device in lesser[:3])
        more = f" and {len(lesser) - 3} more" if len(lesser) > 3 else ""
        least, device = lesser[0]
        return Finding(
            rule=self.id,
            severity="warning",
            cells=(cell.seq,),
            subject=device.id,
            cause=None,
            start=start,
            end=end,
            fact=f"{cell.title} kept {busiest.id} at {percent_text(most)}, but {named}{more}, "
            f"over {seconds_text(end - start)}.",
            consequence=f"{gpu_seconds_text(wasted)} were unused while the others waited for {busiest.id}.",
            advice="Split the work evenly: DistributedDataParallel instead of DataParallel, equal shards and batch sizes; "
            "or hold only the GPUs that are needed (CUDA_VISIBLE_DEVICES).",
            evidence=Evidence(use_metric(run, device), most - least, self.difference_percent, "%"),
            waste=Waste(wasted),
            also=tuple(device.id for _, device in lesser[1:]),
        )


@dataclass(frozen=True)
class GpuThrottled(DeviceRule):
    """A GPU whose clock is held down while it works."""

    id: ClassVar[str] = "gpu-throttled"
    title: ClassVar[str] = "A GPU's clock is held down"
    metrics: ClassVar[tuple[str, ...]] = (REASONS, CLOCK, UTILIZATION, *OWNERS)

    busy_seconds: float = 10.0
    """Least time from the first to the last work of the GPU in a cell."""
    busy_share: float = 0.1
    """Share of the busy samples with heat or the power brake as a reason, above which it is a warning."""
    cap_percent: float = 90.0
    """From this mean utilisation on, the software power cap in more than half of the samples is worth a note."""

    def together(self, run: Run, parts: Sequence[list[Outcome]]) -> Outcome:
        """One outcome a cell and GPU."""
        if not run.devices:
            return not_applicable(no_gpu(run))
        return combined((part for device in parts for part in device), "no cell was run")

    def of_device(self, run: Run, device: Device) -> list[Outcome]:
        """One outcome a cell."""
        return [self._cell(run, device, cell) for cell in top_cells(run)]

    def _cell(self, run: Run, device: Device, cell: Cell) -> Outcome:
        busy = busy_part(run, device, cell, self.busy_seconds)
        if isinstance(busy, Outcome):
            return busy
        share = throttled_share(busy, THROTTLE_BITS)
        if share is None:
            return unknown(f"{device.id}: {reason_for(run, REASONS, device.id)}")
        if share > self.busy_share:
            return found(self._finding(busy, share))
        capped = throttled_share(busy, POWER_CAP_BIT) or 0.0
        full = busy.readings.mean() >= self.cap_percent
        return found(self._capped(busy, capped)) if full and capped > 0.5 else CLEAR

    def _finding(self, busy: Busy, share: float) -> Finding:
        slower = _slowed(busy)
        wasted = share * busy.seconds * (slower or 0.0)
        clock = f", to {percent_text(100 - 100 * slower)} of the best seen" if slower else ""
        lost = f"{gpu_seconds_text(wasted)} were lost to it." if wasted else "How much that cost cannot be told."
        return self._about(
            busy,
            "warning",
            share,
            f"heat or the power supply held its clock down{clock}",
            lost,
            "Tell the machine's operator: cooling or power supply is at fault, the code cannot mend it.",
            Waste(wasted),
        )

    def _capped(self, busy: Busy, share: float) -> Finding:
        return self._about(
            busy,
            "info",
            share,
            "its own power limit held its clock down",
            "That is normal at full use: the GPU gives what its limit allows.",
            "Nothing need be done; a higher power limit (nvidia-smi -pl), if allowed, makes it a little faster.",
            Waste(),
        )

    def _about(
        self, busy: Busy, severity: Severity, share: float, what: str, consequence: str, advice: str, waste: Waste
    ) -> Finding:
        return Finding(
            rule=self.id,
            severity=severity,
            cells=(busy.cell.seq,),
            subject=busy.device.id,
            cause=None,
            start=busy.readings.start,
            end=busy.readings.end,
            fact=f"In {percent_text(100 * share)} of the work of {busy.cell.title} on {busy.device.id} {what}.",
            consequence=consequence,
            advice=advice,
            evidence=Evidence(REASONS, share, self.busy_share, "1"),
            waste=waste,
        )


def _slowed(busy: Busy) -> float | None:
    """How far the clock lay below the best of the run while it was held down, 0 to 1."""
    import numpy as np

    times, device = busy.readings.time[~busy.idle], busy.device.id
    reasons, clocks = (at_times(busy.run, metric, device, times) for metric in (REASONS, CLOCK))
    held = ~np.isnan(reasons) & ~np.isnan(clocks) & ((np.nan_to_num(reasons).astype(np.int64) & THROTTLE_BITS) != 0)
    best = known(busy.run.series(CLOCK, device).values)
    return max(0.0, 1 - float(clocks[held].mean() / best.max())) if held.any() and best.max() > 0 else None
