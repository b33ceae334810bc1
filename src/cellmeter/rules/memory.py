"""Rules about memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from cellmeter.rules.held import MAPPED, Held, Level, holding, levels
from cellmeter.rules.observed import cell_end, observed, readings_of, top_cells
from cellmeter.rules.ownership import ownership
from cellmeter.rules.rule import (
    CLEAR,
    DeviceRule,
    Evidence,
    Finding,
    Outcome,
    Rule,
    Severity,
    combined,
    found,
    not_applicable,
    unknown,
)
from cellmeter.run import known
from cellmeter.words import MIB, bytes_text, given_text, percent_text

if TYPE_CHECKING:
    from cellmeter.run import Cell, CellUsage, Device, Limit, Run

RSS = "process.memory.rss"
TREE = "process.tree.memory.rss"
DEVICE_MEMORY = "gpu.memory.used"


def relative_bound(base_share: float, base: float, limit_share: float, limit: float | None) -> float:
    """A share of what was there, or of the limit, whichever is less."""
    return min(base_share * base, limit_share * limit) if limit else base_share * base


class Hump(NamedTuple):
    """Memory that rose and fell within a cell: the peak, and the more of what was there before and after."""

    metric: str
    subject: str
    peak: float
    base: float
    limit: float | None
    mapped: float | None = 0.0
    """Growth that mapped files explain; None if they cannot be told apart."""
    exact: bool = True

    @property
    def height(self) -> float:
        """What was needed for a time only."""
        return self.peak - self.base - (self.mapped or 0.0)


@dataclass(frozen=True)
class MemorySpike(DeviceRule):
    """A cell that needed much more memory for a while than before or after it. What stays is no spike."""

    id: ClassVar[str] = "memory-spike"
    title: ClassVar[str] = "A cell needs much more memory for a time"
    metrics: ClassVar[tuple[str, ...]] = (
        RSS,
        MAPPED,
        DEVICE_MEMORY,
        "gpu.process.memory.used",
        "gpu.foreign.processes",
    )

    least_bytes: float = 256.0 * MIB
    """No spike below this is worth a word."""
    base_share: float = 0.5
    """A spike is at least this share of what was there before and after, or ..."""
    limit_share: float = 0.1
    """... this share of the limit, whichever is less; above it, it is a warning."""
    critical_share: float = 0.5
    """Share of the limit above which it is critical."""

    def together(self, run: Run, parts: Sequence[list[Outcome]]) -> Outcome:
        """One outcome a cell for the kernel's memory, and one a GPU that it holds alone."""
        kernel = [self._kernel(run, cell) for cell in top_cells(run) if cell.end is not None]
        devices = [part for of_cell in zip(*parts, strict=True) for part in of_cell]
        return combined([*kernel, *devices], "no cell has ended")

    def of_device(self, run: Run, device: Device) -> list[Outcome]:
        """One outcome a cell."""
        return [self._device(run, cell, device) for cell in top_cells(run) if cell.end is not None]

    def _kernel(self, run: Run, cell: Cell) -> Outcome:
        usage = run.usage(cell)
        if usage.peak_rss_bytes is None or usage.rss_start_bytes is None or usage.rss_end_bytes is None:
            return unknown(usage.unknown.get("rss_start_bytes", "too few samples in this cell"))
        limit = run.limits.get("memory_bytes")
        hump = Hump(
            RSS,
            "process",
            usage.peak_rss_bytes,
            max(usage.rss_start_bytes, usage.rss_end_bytes),
            limit.value if limit else None,
            _mapped_growth(run, cell, usage),
            usage.peak_exact,
        )
        clear = CLEAR if usage.peak_exact else Outcome("clear", "some peaks are the highest sample, not exact")
        return self._verdict(run, cell, hump) or clear

    def _device(self, run: Run, cell: Cell, device: Device) -> Outcome:
        end = cell_end(run, cell)
        if ownership(run, device, max(cell.start, device.since), end).whose != "mine":
            return not_applicable(f"{device.id} is not this kernel's alone")
        memory = observed(run, DEVICE_MEMORY, device.id, cell.start, end).values
        if not len(memory):
            return not_applicable(f"no reading of the memory of {device.id}")
        hump = Hump(
            DEVICE_MEMORY, device.id, memory.max(), max(memory[0], memory[-1]), device.memory_bytes, exact=False
        )
        return self._verdict(run, cell, hump) or CLEAR

    def _verdict(self, run: Run, cell: Cell, hump: Hump) -> Outcome | None:
        threshold = self.threshold(hump)
        if hump.height < threshold:
            return None
        return found(self._finding(run, cell, hump, threshold))

    def threshold(self, hump: Hump) -> float:
        """The height in bytes from which on it is a spike."""
        return max(self.least_bytes, relative_bound(self.base_share, hump.base, self.limit_share, hump.limit))

    def _finding(self, run: Run, cell: Cell, hump: Hump, threshold: float) -> Finding:
        where = "" if hump.subject == "process" else f" on {hump.subject}"
        return Finding(
            rule=self.id,
            severity=self._severity(hump),
            cells=(cell.seq,),
            subject=hump.subject,
            cause=None,
            start=cell.start,
            end=cell_end(run, cell),
            fact=f"{cell.title} needed {bytes_text(hump.height)} more{where} for a time: memory peaked at "
            f"{'' if hump.exact else 'no less than '}{bytes_text(hump.peak)}, and was at {bytes_text(hump.base)} or less "
            "before and after."
            + ("" if hump.mapped is not None else " Mapped files, which cost nothing, could not be told apart."),
            consequence=_consequence(run, hump),
            advice=_advice(hump),
            evidence=Evidence(hump.metric, float(hump.height), float(threshold), "By"),
        )

    def _severity(self, hump: Hump) -> Severity:
        if not hump.limit or hump.mapped is None:
            return "info"
        if hump.height >= self.critical_share * hump.limit:
            return "critical"
        return "warning" if hump.height >= self.limit_share * hump.limit else "info"


def when_full(limit: Limit) -> str:
    """What happens at a memory limit."""
    if limit.only_told:
        return "the kernel may be killed"
    return "allocation fails (MemoryError)" if limit.source == "rlimit" else "the kernel is killed"


def _consequence(run: Run, hump: Hump) -> str:
    if not hump.limit:
        return "The limit is unknown; a machine sized for the peak is larger than the rest of the cell needs."
    share = percent_text(100 * hump.peak / hump.limit)
    end = (
        when_full(run.limits["memory_bytes"]) if hump.subject == "process" else "allocation fails (CUDA out of memory)"
    )
    return f"The peak was {share} of the limit, {given_text(hump.limit, 'By')}; beyond it {end}."


def _advice(hump: Hump) -> str:
    if hump.subject != "process":
        return "Use a smaller batch or gradient accumulation, torch.no_grad() where no gradient is needed."
    return (
        "Avoid full temporary copies: work in place or in chunks, read only the columns needed, use smaller dtypes, "
        "and del intermediate results before the next step."
    )


def _mapped_growth(run: Run, cell: Cell, usage: CellUsage) -> float | None:
    """How far mapped files rose above what they were at the base: too far if anything.

    The exact peak may stand above all samples; of that part files have the share that they have of the rise in the samples.
    None if they were not recorded: such a rise may then be nothing but file cache.
    """
    mapped, sampled = (readings_of(run, metric, "process", cell) for metric in (MAPPED, RSS))
    if not len(mapped):
        return None
    start, end = usage.rss_start_bytes or 0, usage.rss_end_bytes or 0
    base, at_base = (start, mapped[0]) if start >= end else (end, mapped[-1])
    growth = max(0.0, float(mapped.max() - min(at_base, base)))
    seen = float(sampled.max()) - base
    unseen = max(0.0, (usage.peak_rss_bytes or 0) - float(sampled.max()))
    return growth + (unseen * min(1.0, growth / seen) if seen > 0 else 0.0)


def kept_bytes(run: Run, cell: Cell) -> float | None:
    """What a cell kept, less the files it left mapped; None if that is not known."""
    usage = run.usage(cell)
    if usage.rss_start_bytes is None or usage.rss_end_bytes is None:
        return None
    mapped = readings_of(run, MAPPED, "process", cell)
    left = max(0.0, float(mapped[-1] - mapped[0])) if len(mapped) else 0.0
    return usage.rss_end_bytes - usage.rss_start_bytes - left


@dataclass(frozen=True)
class MemoryRetained(Rule):
    """A cell that leaves much more memory behind than it found, which no later cell gives back."""

    id: ClassVar[str] = "memory-retained"
    title: ClassVar[str] = "A cell keeps much memory"
    metrics: ClassVar[tuple[str, ...]] = (RSS, MAPPED)

    least_bytes: float = 256.0 * MIB
    """Nothing below this is worth a word."""
    base_share: float = 0.5
    """What is kept is at least this share of what is there afterwards, or ..."""
    limit_share: float = 0.1
    """... this share of the limit, whichever is less."""
    warning_share: float = 0.5
    """Share of the limit that is taken afterwards, above which it is a warning."""

    def check(self, run: Run) -> Outcome:
        """One outcome a cell."""
        cells = [cell for cell in top_cells(run) if cell.end is not None]
        return combined((self._cell(run, cell) for cell in cells), "no cell has ended")

    def _cell(self, run: Run, cell: Cell) -> Outcome:
        if None in levels(run, cell):
            return unknown(run.usage(cell).unknown.get("rss_start_bytes", "too few samples in this cell"))
        holds = holding(run)
        held = holds.of(cell)
        if held is None:
            return CLEAR
        limit = run.limits.get("memory_bytes")
        end = held.end.resident
        relative = relative_bound(self.base_share, end, self.limit_share, limit.value if limit else None)
        threshold = max(self.least_bytes, relative)
        if held.taken < threshold:
            return CLEAR
        if holds.last is None or holds.last[0] is cell:
            return not_applicable("nothing ran after the cell that took much memory")
        if held.still < threshold:
            return Outcome("clear", f"{cell.title} kept {bytes_text(held.taken)}, and it was given back")
        return found(self._finding(run, held, holds.last, threshold))

    def _finding(self, run: Run, held: Held, last: tuple[Cell, Level], threshold: float) -> Finding:
        cell, limit, amount = held.cell, run.limits.get("memory_bytes"), _still(held)
        known_share = limit is not None and len(readings_of(run, MAPPED, "process", cell)) > 0
        most = min(held.end.own, last[1].own)  # at its end, and still now
        full = known_share and limit is not None and most > self.warning_share * limit.value
        level = last[1].resident
        share = f", {percent_text(100 * level / limit.value)} of the limit" if limit else ""
        when = "in" if last[0].end is None else "after"
        part = "" if amount == held.taken else f" It gave the rest of {bytes_text(held.taken)} back later."
        return Finding(
            rule=self.id,
            severity="warning" if full else "info",
            cells=(cell.seq,),
            subject="process",
            cause=None,
            start=cell.start,
            end=cell_end(run, cell),
            fact=f"{cell.title} kept {bytes_text(amount)}: the kernel had {bytes_text(held.start.resident)} before it and "
            f"{bytes_text(held.end.resident)} after it{_with_mapped(held)}.{part}",
            consequence=f"No later cell gave that back: the kernel had {bytes_text(level)} {when} {last[0].title}{share}.",
            advice="If it is no longer needed, del it, and mind that Out[n] and _ keep results; if it is, use smaller "
            "dtypes (category, float32), fewer columns, or a file that is read in parts.",
            evidence=Evidence(RSS, float(amount), float(threshold), "By"),
        )


def _still(held: Held) -> float:
    """What is still held; all that was taken where the difference is what any cell's allocator gives and takes."""
    return held.taken if held.still >= 0.95 * held.taken else held.still


def _with_mapped(held: Held) -> str:
    """Why the two levels differ by something else than what was kept."""
    mapped = held.end.mapped - held.start.mapped
    if abs(mapped) < max(MIB, 0.005 * held.taken):
        return ""
    return f", with {bytes_text(abs(mapped))} {'more' if mapped > 0 else 'less'} in mapped files, which do not count"


def memory_under_limit(run: Run) -> tuple[str, str]:
    """Metric and subject that the limit is about which ends kernels: the control group where it sets it, else the tree."""
    if run.memory_held.source == "cgroup" and run.subjects("cgroup.memory.used"):
        return "cgroup.memory.used", "cgroup"
    alone = run.memory_held.source == "rlimit" or not run.subjects(TREE)  # each process has that for itself
    return (RSS if alone else TREE), "process"


@dataclass(frozen=True)
class OutOfMemory(Rule):
    """The run was ended by the kernel's out-of-memory killer."""

    id: ClassVar[str] = "out-of-memory"
    title: ClassVar[str] = "The kernel ran out of memory"
    metrics: ClassVar[tuple[str, ...]] = (TREE, "cgroup.memory.used")

    def check(self, run: Run) -> Outcome:
        """Found or clear once the run has ended; unknown if nobody saw how."""
        if run.ending is None or not run.cells:
            return not_applicable("the run goes on" if run.cells else "no cell was run")
        if run.ending == "unknown":
            return unknown("nobody saw how the run ended")
        return found(self._finding(run)) if run.ending == "out-of-memory" else CLEAR

    def _finding(self, run: Run) -> Finding:
        limit = run.memory_held
        dead = [cell for cell in run.cells if cell.status == "died"]
        start = dead[-1].start if dead else run.duration
        metric, subject = memory_under_limit(run)
        used = known(run.series(metric, subject).between(start, run.duration).values)
        last, peak = (float(used[-1]), float(used.max())) if len(used) else (0.0, 0.0)
        where = f"in {dead[-1].title}" if dead else "between cells"
        seen = (
            f"the last sample stood at {bytes_text(last)}, the highest at {bytes_text(peak)}" if peak else "unsampled"
        )
        probably = "" if run.ending_sure else "probably "
        return Finding(
            rule=self.id,
            severity="critical",
            cells=tuple(cell.seq for cell in dead[-1:]),
            subject=subject,
            cause=None,
            start=start,
            end=run.duration,
            fact=f"The kernel {probably}ran out of memory {where}: {seen}, "
            f"of {given_text(limit.value, 'By')} ({limit.source}).",
            consequence="It was killed: variables and what was not saved are lost.",
            advice="Load less at once: chunks, fewer columns, smaller dtypes or memory-mapped files; del what is done with; "
            "else a larger limit.",
            evidence=Evidence(metric, peak, limit.value, "By"),
        )
