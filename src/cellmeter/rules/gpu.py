"""Rules about GPUs that are held and not used, or used too little."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cellmeter.rules import elsewhere
from cellmeter.rules.busy import DRAM_ACTIVE, SM_ACTIVE, UTILIZATION, Busy, busy_part, no_gpu, use_metric, why_missing
from cellmeter.rules.causes import cause_of
from cellmeter.rules.observed import ENOUGH, Observed, cell_end, cell_seconds, in_cells, observed, titles, top_cells
from cellmeter.rules.ownership import ownership
from cellmeter.rules.rule import (
    CLEAR,
    DeviceRule,
    Evidence,
    Finding,
    Outcome,
    Severity,
    Waste,
    combined,
    found,
    not_applicable,
    unknown,
)
from cellmeter.words import given_text, gpu_seconds_text, percent_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.run import Cell, Device, Run

FRAMEWORK = re.compile(
    r"\b(?:import|from)\s+(?:torch|tensorflow|keras|jax|cupy|cudf|cuml|rmm|cuda|pycuda|lightning|transformers|paddle|mxnet)\b"
    r"|\bnumba\.cuda\b|\bnumba\s+import\s+cuda\b"
)


@dataclass(frozen=True)
class GpuUnused(DeviceRule):
    """A GPU that is allocated to the kernel, or on which it holds a context, and that never worked."""

    id: ClassVar[str] = "gpu-unused"
    title: ClassVar[str] = "A GPU is held and never used"
    metrics: ClassVar[tuple[str, ...]] = (UTILIZATION, SM_ACTIVE, "gpu.process.memory.used", "gpu.foreign.processes")

    allocated_seconds: float = 300.0
    """Cell time after which a GPU that is allocated and never used is worth a word."""
    context_seconds: float = 10.0
    """Length of a cell that holds a context, after which the same is true."""

    def together(self, run: Run, parts: Sequence[list[Outcome]]) -> Outcome:
        """One outcome a GPU; cells are judged together, since a GPU that rests in one may have worked in the next."""
        here = [part for device in parts for part in device]
        return combined([*here, *elsewhere.unused(run, self.allocated_seconds, self.id)], no_gpu(run))

    def of_device(self, run: Run, device: Device) -> list[Outcome]:
        """One outcome."""
        return [self._device(run, device)]

    def _device(self, run: Run, device: Device) -> Outcome:
        metric = use_metric(run, device)
        there_seconds = cell_seconds(run, device.since)
        readings = in_cells(run, metric, device.id, device.since)
        held = [cell for cell in top_cells(run) if self._holds(run, device, cell)]
        if not held and there_seconds < self.allocated_seconds:
            needed = given_text(self.allocated_seconds, "s")
            return not_applicable(
                f"less than {needed} of cells, and no cell of {given_text(self.context_seconds, 's')} held it"
            )
        whose = ownership(run, device, device.since, run.duration)
        visible_only = whose.whose == "not-mine" and device.mine is None and _imports_framework(run)
        obstacle = None if visible_only else whose.obstacle()
        if obstacle is not None:
            return obstacle
        if readings.total < ENOUGH * there_seconds:
            return unknown(f"{device.id}: {why_missing(run, device, readings)}")
        if (readings.values > 0).any():
            return not_applicable(whose.reason) if visible_only else CLEAR
        return found(self._held(device, held, run) if held else self._allocated(device, run, readings))

    def _holds(self, run: Run, device: Device, cell: Cell) -> bool:
        start, end = max(cell.start, device.since), cell_end(run, cell)
        return end - start >= self.context_seconds and ownership(run, device, start, end).context is True

    def _held(self, device: Device, held: list[Cell], run: Run) -> Finding:
        seconds = sum(cell_end(run, cell) - max(cell.start, device.since) for cell in held)
        return Finding(
            rule=self.id,
            severity="warning",
            cells=tuple(cell.seq for cell in held),
            subject=device.id,
            cause=None,
            start=max(held[0].start, device.since),
            end=cell_end(run, held[-1]),
            fact=f"{titles(held)} held {device.id} ({device.name}) for {seconds_text(seconds)} and never used it.",
            consequence=f"{gpu_seconds_text(seconds)} were unused, and its memory was kept from others.",
            advice="Check that model and data are moved to this GPU (.to(device)); if it is not needed, hide it with "
            "CUDA_VISIBLE_DEVICES before the framework is imported.",
            evidence=Evidence(use_metric(run, device), 0.0, 0.0, "%"),
            waste=Waste(seconds),
        )

    def _allocated(self, device: Device, run: Run, readings: Observed) -> Finding:
        mine = device.mine is True
        cells = top_cells(run)
        how = "is allocated to this kernel" if mine else "is visible to this kernel, which imports a GPU framework,"
        return Finding(
            rule=self.id,
            severity="warning" if mine else "info",
            cells=tuple(cell.seq for cell in cells),
            subject=device.id,
            cause=None,
            start=readings.start,
            end=readings.end,
            fact=f"{device.id} ({device.name}) {how} and did no work in {seconds_text(readings.total)} of cells.",
            consequence=f"{gpu_seconds_text(readings.total)} were unused"
            + (", and nobody else could use them." if mine else "; others may use this GPU."),
            advice="If the code should use it, check that the framework sees it (torch.cuda.is_available()) and that "
            "model and data are moved to it; if not, choose a machine or a session without a GPU.",
            evidence=Evidence(use_metric(run, device), 0.0, 0.0, "%"),
            waste=Waste(readings.total if mine else 0.0),
        )


@dataclass(frozen=True)
class GpuUnderused(DeviceRule):
    """A GPU that worked in a cell, but waited for most of the time between its first and its last work."""

    id: ClassVar[str] = "gpu-underused"
    title: ClassVar[str] = "A GPU waits more than it works"
    metrics: ClassVar[tuple[str, ...]] = (
        UTILIZATION,
        SM_ACTIVE,
        "gpu.process.memory.used",
        "gpu.foreign.processes",
        "gpu.event_reasons",
        "gpu.pcie.received",
        "gpu.pcie.sent",
        "process.cpu.usage",
        "cgroup.cpu.throttled",
        "process.disk.read.rate",
        "host.disk.read.rate",
        "process.io.blocked",
        "process.children",
    )

    busy_seconds: float = 10.0
    """Least time from the first to the last work of the GPU in a cell."""
    mean_percent: float = 50.0
    """Below this mean utilisation of the busy part it is a finding (info) ..."""
    warning_percent: float = 30.0
    """... and below this a warning ..."""
    critical_percent: float = 15.0
    """... and below this, and for ``critical_seconds``, critical."""
    critical_seconds: float = 300.0

    def together(self, run: Run, parts: Sequence[list[Outcome]]) -> Outcome:
        """One outcome a cell and GPU."""
        here = [part for device in parts for part in device]
        there = elsewhere.underused(run, self.mean_percent, self.warning_percent, self.id)
        return combined([*here, *there], "no cell was run" if run.devices else no_gpu(run))

    def of_device(self, run: Run, device: Device) -> list[Outcome]:
        """One outcome a cell."""
        return [self._cell(run, device, cell) for cell in top_cells(run)]

    def _cell(self, run: Run, device: Device, cell: Cell) -> Outcome:
        busy = busy_part(run, device, cell, self.busy_seconds)
        if isinstance(busy, Outcome):
            return busy
        return CLEAR if busy.readings.mean() >= self.mean_percent else found(self._finding(busy))

    def _finding(self, busy: Busy) -> Finding:
        metric, mean, also = _use(busy)
        severity, threshold = self._severity(mean, busy.seconds)
        wasted = busy.seconds * (1 - mean / 100)
        cause = cause_of(busy, self.mean_percent)
        device, readings = busy.device, busy.readings
        return Finding(
            rule=self.id,
            severity=severity,
            cells=(busy.cell.seq,),
            subject=device.id,
            cause=cause.name,
            start=readings.start,
            end=readings.end,
            fact=f"{busy.cell.title} kept {device.id} at {percent_text(mean)} on average over "
            f"{seconds_text(busy.seconds)}{also}. {cause.why}{_crosses_edge(busy)} ({len(readings.values)} samples)",
            consequence=f"{gpu_seconds_text(wasted)} were unused, {percent_text(100 - mean)} of what was held.",
            advice=cause.advice,
            evidence=Evidence(metric, mean, threshold, "%"),
            waste=Waste(wasted),
        )

    def _severity(self, mean: float, seconds: float) -> tuple[Severity, float]:
        if mean < self.critical_percent and seconds >= self.critical_seconds:
            return "critical", self.critical_percent
        if mean < self.warning_percent:
            return "warning", self.warning_percent
        return "info", self.mean_percent


def _use(busy: Busy) -> tuple[str, float, str]:
    """Metric and mean of the best evidence there is, and words for it.

    It was the utilisation that made it a finding. SM activity, where it was read, is never above it and tells how much
    of the GPU worked; where memory bandwidth is what the work lives on, it says too little.
    """
    mean, active = busy.readings.mean(), busy.mean_of(SM_ACTIVE)
    if busy.metric == SM_ACTIVE:
        return SM_ACTIVE, mean, " (SM activity)"
    if active is None or active > mean or (busy.mean_of(DRAM_ACTIVE) or 0.0) > active:
        return UTILIZATION, mean, ""
    return SM_ACTIVE, active, f" (SM activity; utilisation {percent_text(mean)})"


def _crosses_edge(busy: Busy) -> str:
    """CUDA works asynchronously: what a cell started may go on after it."""
    end = busy.cell.end
    if end is None:
        return ""
    after = observed(busy.run, busy.metric, busy.device.id, end, end + 2.0).values
    busy_at_end = end - busy.readings.end < 1.0
    return " Its work went on after the cell's end." if busy_at_end and len(after) > 1 and after[:2].all() else ""


def _imports_framework(run: Run) -> bool:
    return any(FRAMEWORK.search(cell.source or cell.first_line) for cell in run.cells)
