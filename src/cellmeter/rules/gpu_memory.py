"""Rules about device memory: it ran out, is held for nothing, or nearly full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cellmeter.holders import Holder, listed, others_on, told
from cellmeter.rules.busy import no_gpu, use_metric, why_missing
from cellmeter.rules.observed import ENOUGH, Observed, cell_end, observed, readings_of, stretches, titles, top_cells
from cellmeter.rules.ownership import ownership, reason_for
from cellmeter.rules.rule import (
    CLEAR,
    DeviceRule,
    Evidence,
    Finding,
    Outcome,
    Rule,
    Waste,
    combined,
    found,
    not_applicable,
    unknown,
)
from cellmeter.usage import FOREIGN, HELD, PROCESS_LIST_SECONDS, USED, GpuMemory, process_lists
from cellmeter.words import GIB, bytes_text, given_text, gpu_seconds_text, of_text, percent_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.run import Cell, Device, Run

EMPTY_SHARE = 0.05  # of a GPU's memory: less is nearly none


class Rest(NamedTuple):
    """The longest time in which device memory was held without work, and the most that was held."""

    start: float
    end: float
    held: float


@dataclass(frozen=True)
class GpuMemoryHeld(DeviceRule):
    """Device memory that this kernel holds, in or between cells, while the GPU does nothing for long."""

    id: ClassVar[str] = "gpu-memory-held"
    title: ClassVar[str] = "Device memory is held for nothing"
    metrics: ClassVar[tuple[str, ...]] = (HELD, "gpu.utilization")

    least_bytes: float = 1.0 * GIB
    """Less than this is a bare context's."""
    idle_seconds: float = 1800.0
    """Time without any work on the GPU after which it is worth a word."""

    def together(self, run: Run, parts: Sequence[list[Outcome]]) -> Outcome:
        """One outcome a GPU, over the whole run: memory is held between cells too."""
        if not run.devices:
            return not_applicable(no_gpu(run))
        if run.duration < self.idle_seconds:
            return not_applicable(f"the run is shorter than {given_text(self.idle_seconds, 's')}")
        return combined((part for device in parts for part in device), no_gpu(run))

    def of_device(self, run: Run, device: Device) -> list[Outcome]:
        """One outcome; none of a run that is too short."""
        return [self._device(run, device)] if run.duration >= self.idle_seconds else []

    def _device(self, run: Run, device: Device) -> Outcome:
        held = observed(run, HELD, device.id, device.since, run.duration)
        if not (held.values > self.least_bytes).any():
            if device.mine is False:
                return not_applicable(f"{device.id} is not visible to this kernel")
            if held.total < ENOUGH * (run.duration - device.since):
                return unknown(f"{device.id}: {reason_for(run, HELD, device.id)}")
            return not_applicable(f"this kernel held no {given_text(self.least_bytes, 'By')} of device memory")
        used = observed(run, use_metric(run, device), device.id, device.since, run.duration)
        rest = self._longest_rest(held, used)
        if rest.end - rest.start < self.idle_seconds:
            return CLEAR
        seen = used.where((used.time > rest.start) & (used.time <= rest.end))
        if seen.total < ENOUGH * (rest.end - rest.start):
            return unknown(f"{device.id}: {why_missing(run, device, seen)}")
        return found(self._finding(run, device, rest))

    def _longest_rest(self, held: Observed, used: Observed) -> Rest:
        """Work of anybody ends a rest: whose it was is not known."""
        import numpy as np

        longest = Rest(0.0, 0.0, 0.0)
        work = used.time[used.values > 0]
        for stretch in stretches(held, held.values > self.least_bytes):
            inside = work[work.searchsorted(stretch.start, "right") : work.searchsorted(stretch.end, "left")]
            times = np.concatenate([[stretch.start], inside, [stretch.end]])
            at = int(np.diff(times).argmax())
            start, end = float(times[at]), float(times[at + 1])
            if end - start > longest.end - longest.start:
                within = held.values[(held.time >= start) & (held.time <= end)]
                longest = Rest(start, end, float(within.max()) if len(within) else 0.0)
        return longest

    def _finding(self, run: Run, device: Device, rest: Rest) -> Finding:
        seconds = rest.end - rest.start
        before = [cell for cell in top_cells(run) if cell.start <= rest.start]
        during = [cell for cell in top_cells(run) if cell.start < rest.end and cell_end(run, cell) > rest.start]
        cells = during or before[-1:]
        after = f" after {before[-1].title}" if before else ""
        return Finding(
            rule=self.id,
            severity="warning",
            cells=tuple(cell.seq for cell in cells),
            subject=device.id,
            cause=None,
            start=rest.start,
            end=rest.end,
            fact=f"This kernel held {bytes_text(rest.held)} on {device.id} ({device.name}) for "
            f"{seconds_text(seconds)}{after}, and the GPU did nothing.",
            consequence=f"{gpu_seconds_text(seconds)} were unused, and its memory was kept from others.",
            advice="Shut the kernel down when it waits, or give the memory back: del the model and its data, then "
            "torch.cuda.empty_cache(); or move the model to the CPU meanwhile.",
            evidence=Evidence(HELD, rest.held, self.least_bytes, "By"),
            waste=Waste(seconds),
        )


@dataclass(frozen=True)
class GpuMemoryNearLimit(DeviceRule):
    """Device memory that grows in a cell until little is left. Pools that a framework takes at once are its own affair."""

    id: ClassVar[str] = "gpu-memory-near-limit"
    title: ClassVar[str] = "Device memory is nearly full"
    metrics: ClassVar[tuple[str, ...]] = (USED, HELD, FOREIGN)

    limit_share: float = 0.92
    """Share of the device's memory from which on it is nearly full."""
    rise_share: float = 0.05
    """It must have risen by this share of the device's memory during the cell."""
    pool_share: float = 0.2
    """A step of this share of the device's memory, and half of what was free, is a pool taken at once (JAX, TF, vLLM)."""

    def together(self, run: Run, parts: Sequence[list[Outcome]]) -> Outcome:
        """One outcome a cell and GPU."""
        if not run.devices:
            return not_applicable(no_gpu(run))
        return combined((part for device in parts for part in device), "no cell was run")

    def of_device(self, run: Run, device: Device) -> list[Outcome]:
        """One outcome a cell."""
        return [self._cell(run, device, cell) for cell in top_cells(run)]

    def _cell(self, run: Run, device: Device, cell: Cell) -> Outcome:
        import numpy as np

        start, end = max(cell.start, device.since), cell_end(run, cell)
        if end <= start:
            return not_applicable(f"{device.id} came after all cells")
        memory = readings_of(run, USED, device.id, cell)  # a cell of some ms has but the one taken at its end
        if not device.memory_bytes or not len(memory):
            return unknown(f"{device.id}: {reason_for(run, USED, device.id)}")
        if memory.max() < self.limit_share * device.memory_bytes:
            return CLEAR
        obstacle = ownership(run, device, start, end).obstacle()
        if obstacle is not None:
            return obstacle
        steps, free = np.diff(memory), device.memory_bytes - memory[:-1]
        pools = (steps >= self.pool_share * device.memory_bytes) & (steps >= 0.5 * free)
        if pools.any() or memory.max() - memory[0] < self.rise_share * device.memory_bytes:
            return not_applicable(f"{device.id} was filled at once, as by a framework that takes all memory for itself")
        return found(self._finding(run, device, cell, float(memory[0]), float(memory.max())))

    def _finding(self, run: Run, device: Device, cell: Cell, start: float, peak: float) -> Finding:
        share = percent_text(100 * peak / device.memory_bytes)
        others = _others(run, device, cell)
        return Finding(
            rule=self.id,
            severity="warning",
            cells=(cell.seq,),
            subject=device.id,
            cause=None,
            start=cell.start,
            end=cell_end(run, cell),
            fact=f"{titles([cell])} filled {device.id} to {share}: from {bytes_text(start)} to "
            f"{of_text(peak, device.memory_bytes, 'By')}{_beside(others)}.",
            consequence="A little more and allocation fails (CUDA out of memory).",
            advice="Use a smaller batch or gradient accumulation, mixed precision, activation checkpointing, and "
            "torch.no_grad() where no gradient is needed; del what an earlier cell left there"
            f"{''.join(f'; {step}' for step in _to_shut_down(others))}.",
            evidence=Evidence(USED, peak, self.limit_share * device.memory_bytes, "By"),
        )


class Full(NamedTuple):
    """A GPU on which an allocation may have failed, and whose its memory was."""

    device: Device
    peak: float
    memory: GpuMemory
    holders: Sequence[Holder]
    """The processes of others that are known, those that held most first."""

    @property
    def share(self) -> float:
        """How full it was, 0 to 1."""
        return self.peak / self.device.memory_bytes


@dataclass(frozen=True)
class GpuOutOfMemory(Rule):
    """A cell that failed as the memory of a GPU ran out, by the type of its exception."""

    id: ClassVar[str] = "gpu-out-of-memory"
    title: ClassVar[str] = "A GPU ran out of memory"
    metrics: ClassVar[tuple[str, ...]] = (USED, HELD, FOREIGN)

    others_share: float = 0.1
    """Share of the device's memory: where others hold as much, that comes first."""

    def check(self, run: Run) -> Outcome:
        """One outcome a cell."""
        if not run.devices and not any(cell.gpu_memory_ran_out for cell in run.cells):
            return not_applicable(no_gpu(run))
        return combined((self._cell(run, cell) for cell in run.cells), "no cell was run")

    def _cell(self, run: Run, cell: Cell) -> Outcome:
        if not cell.gpu_memory_ran_out:
            known = cell.status != "error" or cell.error is not None
            return CLEAR if known else unknown(f"how {cell.title} failed is not on record")
        there = [full for device in run.devices if (full := _fullness(run, device, cell)) is not None]
        if not there:
            return unknown(f"{cell.title} ran out of GPU memory, and how full which GPU was could not be read")
        return found(self._finding(run, cell, there))

    def _finding(self, run: Run, cell: Cell, there: Sequence[Full]) -> Finding:
        its = _of_the_cell(run, cell, there)
        full = max(its, key=lambda one: one.share)
        device, memory = full.device, full.memory
        others = memory.others is not None and memory.others >= self.others_share * device.memory_bytes
        where = device.id if len(its) == 1 else f"{device.id} most likely, the fullest of its {len(its)} GPUs"
        tensors = f"; PyTorch's tensors took up to {bytes_text(memory.torch)}" if memory.torch is not None else ""
        empty = [one.device.id for one in there if one.share < EMPTY_SHARE and one not in its]
        return Finding(
            rule=self.id,
            severity="critical",
            cells=(cell.seq,),
            subject=device.id,
            cause="shared GPU" if others else None,
            start=cell.start,
            end=cell_end(run, cell),
            fact=f"{cell.title} ran out of memory on {where}: {_whose(run, full)}{tensors}.",
            consequence="The cell failed there. What its variables and its traceback hold stays on the GPU.",
            advice=_elsewhere(empty, full.holders) if others else _less(memory),
            evidence=Evidence(USED, full.peak, float(device.memory_bytes), "By"),
        )


def _less(memory: GpuMemory) -> str:
    others = "" if memory.others == 0 else "; shut down other kernels that still hold some of it"
    return (
        "Use a smaller batch or gradient accumulation, mixed precision and gradient checkpointing; give back what is no "
        f"longer needed: del, then torch.cuda.empty_cache(){others}."
    )


def _elsewhere(empty: Sequence[str], holders: Sequence[Holder]) -> str:
    free = f"; {' and '.join(empty[:2])} stood nearly empty" if empty else ""
    known = any(one.user is not None for one in holders)
    steps = [
        *_to_shut_down(holders),
        f"choose another GPU (CUDA_VISIBLE_DEVICES, before the first use of CUDA{free})",
        "ask those who run them" if known else "ask whose they are",
    ]
    return f"Other processes hold much of it: {', or '.join(steps)}; else a smaller batch may fit beside them."


def _to_shut_down(holders: Sequence[Holder]) -> list[str]:
    """Of the same user, as their runs are in the same folder: what to do, if there is any such process."""
    own = [f"{one.recording} (pid {one.pid})" for one in holders if one.recording is not None]
    return [f"shut down what is no longer needed of your own: {listed(own)}"] if own else []


def _others(run: Run, device: Device, cell: Cell) -> Sequence[Holder]:
    return others_on(run.holders, device.id, cell.start, cell_end(run, cell), within=PROCESS_LIST_SECONDS)


def _beside(others: Sequence[Holder]) -> str:
    return f"; others held memory there too: {listed([told(one) for one in others])}" if others else ""


def _fullness(run: Run, device: Device, cell: Cell) -> Full | None:
    """As the samples of a cell have it; None without one. Short cells have no process list: the nearest tell as much."""
    used = readings_of(run, USED, device.id, cell)
    if not len(used) or not device.memory_bytes:
        return None
    start, end = cell.start, cell_end(run, cell)
    lists = process_lists(run, device, start, end)
    if not lists:
        lists = process_lists(run, device, start - PROCESS_LIST_SECONDS, end + PROCESS_LIST_SECONDS)
    peak = float(used.max())
    return Full(
        device, peak, GpuMemory.of(lists, peak, cell.torch_peak_bytes.get(device.uuid)), _others(run, device, cell)
    )


def _of_the_cell(run: Run, cell: Cell, there: Sequence[Full]) -> Sequence[Full]:
    """The GPUs it may have been: those that the kernel held, else those it may use."""
    until = cell_end(run, cell) + PROCESS_LIST_SECONDS
    held = [one for one in there if ownership(run, one.device, cell.start, until).context]
    return held or [one for one in there if one.device.mine is not False] or there


def _whose(run: Run, full: Full) -> str:
    size, own, others = given_text(full.device.memory_bytes, "By"), full.memory.own, full.memory.others
    in_use = f"{bytes_text(full.peak)} of its {size} were in use"
    if own is None:
        return f"{in_use}; how much by this kernel is not known ({reason_for(run, HELD, full.device.id)})"
    held = f"this kernel held {'' if full.memory.own_exact else 'at least '}{bytes_text(own)}"
    if others is None:
        return f"{held}, and {in_use}"
    if not others:
        return f"{held} of its {size}"
    who = listed([told(one) for one in full.holders]) or run.unavailable.get(f"{FOREIGN}:{full.device.id}")
    return f"{held} and others {bytes_text(others)} of its {size}{f' ({who})' if who else ''}"
