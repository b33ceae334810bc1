"""Rules about memory that grows towards its limit, or stands there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from cellmeter.rules.held import MAPPED, holding
from cellmeter.rules.memory import RSS, TREE, kept_bytes, when_full
from cellmeter.rules.observed import Observed, at_times, cell_end, observed, titles, top_cells
from cellmeter.rules.ownership import reason_for
from cellmeter.rules.rule import CLEAR, Evidence, Finding, Outcome, Rule, combined, found, not_applicable, unknown
from cellmeter.rules.trend import steady_slope, thinned
from cellmeter.words import MIB, about_text, bytes_text, given_text, of_text, percent_text, seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Cell, Limit, Run

WITHOUT_CACHE = "cgroup.memory.anon"
CGROUP = "cgroup.memory.used"
HOST = "host.memory.used"


@dataclass(frozen=True)
class MemoryGrowth(Rule):
    """Memory that a cell takes and never gives back: more with each run of it, or more and more while it runs."""

    id: ClassVar[str] = "memory-growth"
    title: ClassVar[str] = "Memory grows and is not given back"
    metrics: ClassVar[tuple[str, ...]] = (RSS, MAPPED, "process.disk.read", "host.network.received")

    runs: float = 3.0
    """The same cell must have kept memory this many times in a row, to the last ..."""
    limit_share: float = 0.01
    """... each time more than this share of the limit ..."""
    least_bytes: float = 48.0 * MIB
    """... and more than this."""
    slope_seconds: float = 60.0
    """Least length of a cell for its slope to mean anything."""
    horizon_seconds: float = 3600.0
    """A steady slope counts if it would reach the limit within this time."""
    loaded_share: float = 0.25
    """Growth is a load and no leak where the cell read at least this share of it from disk or network."""

    def check(self, run: Run) -> Outcome:
        """One outcome a cell that was run several times, and one a long cell."""
        limit = run.limits.get("memory_bytes")
        if limit is None:
            return unknown("the memory limit is not known") if run.cells else not_applicable("no cell was run")
        repeats = [self._repeated(run, cells, limit) for cells in _same(top_cells(run)) if len(cells) >= self.runs]
        slopes = [self._within(run, cell, limit) for cell in top_cells(run)]
        return combined(
            [*repeats, *slopes], f"no cell ran {self.runs:g} times or for {given_text(self.slope_seconds, 's')}"
        )

    def _bound(self, limit: Limit) -> float:
        return max(self.least_bytes, self.limit_share * limit.value)

    def _repeated(self, run: Run, cells: Sequence[Cell], limit: Limit) -> Outcome:
        ended = [cell for cell in cells if cell.end is not None]
        kept = [kept_bytes(run, cell) for cell in ended]
        if any(bytes_kept is None for bytes_kept in kept):
            return unknown("what some cells kept was not recorded")
        streak = list(_last_streak([(c, k) for c, k in zip(ended, kept, strict=True) if k], self._bound(limit), ended))
        if len(streak) < self.runs:
            return CLEAR
        first, last = streak[0][0], streak[-1][0]
        total = sum(bytes_kept for _, bytes_kept in streak)
        stayed = (run.usage(last).rss_end_bytes or 0) - (run.usage(first).rss_start_bytes or 0)
        grown = [cell for cell, _ in streak]
        still = sum(held.still for cell in grown if (held := holding(run).of(cell)))
        if min(stayed, still) < 0.5 * total:  # something else gave it back, in between or since
            return CLEAR
        each = total / len(streak)
        own = run.usage(last).rss_end_bytes or 0
        more = (limit.value - own) / each
        return found(
            Finding(
                rule=self.id,
                severity="warning",
                cells=tuple(cell.seq for cell in grown),
                subject="process",
                cause="repeated",
                start=first.start,
                end=cell_end(run, last),
                fact=f"The same cell ran {len(grown)} times ({titles(grown)}) and kept {bytes_text(each)} each time, "
                f"{bytes_text(total)} together.",
                consequence=f"After {max(0, int(more))} more runs of it the {given_text(limit.value, 'By')} there are "
                "will be full.",
                advice="Look for what it adds to: a list, dict or cache that outlives it, tensors with their graph "
                "(loss.item() instead of loss), figures that are not closed (plt.close()), or Out[n] and _.",
                evidence=Evidence(RSS, each, self._bound(limit), "By"),
            )
        )

    def _within(self, run: Run, cell: Cell, limit: Limit) -> Outcome:
        end = cell_end(run, cell)
        if end - cell.start < self.slope_seconds:
            return not_applicable(f"no cell ran {self.runs:g} times or for {given_text(self.slope_seconds, 's')}")
        own = _own(run, cell.start, end)
        own = own.where(own.seq > 0)
        if len(own.time) < 6:
            return unknown(reason_for(run, RSS, "process"))
        grown = float(own.values[-1] - own.values[0])
        if grown < self._bound(limit):
            return CLEAR
        time, values = thinned(own)
        rate = steady_slope(time, values)
        left = max(0.0, limit.value - float(own.values[-1]))
        if rate is None or rate <= 0 or left / rate > self.horizon_seconds:
            return CLEAR
        if _loaded(run, cell, end) >= self.loaded_share * grown:
            return Outcome("clear", f"{cell.title} grew by what it read")
        return found(self._slope(cell, own, rate, left, limit))

    def _slope(self, cell: Cell, own: Observed, rate: float, left: float, limit: Limit) -> Finding:
        went_on = "It is" if cell.status == "running" else "It was"
        return Finding(
            rule=self.id,
            severity="warning",
            cells=(cell.seq,),
            subject="process",
            cause="steady",
            start=own.start,
            end=own.end,
            fact=f"{cell.title} took {bytes_text(rate)} more each second, steadily, for "
            f"{seconds_text(own.end - own.start)}: {bytes_text(own.values[-1] - own.values[0])} in all.",
            consequence=f"{went_on} {about_text(left / rate)} away from the {given_text(limit.value, 'By')} there are; "
            f"then {when_full(limit)}.",
            advice="Look for what its loop adds to: a list or cache that only grows, tensors with their graph (loss.item() "
            "instead of loss), results kept that could be written out.",
            evidence=Evidence(RSS, rate * self.horizon_seconds, left, "By"),
        )


def _same(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Executions of the same source; of the same cell where sources are not told apart."""

    def key(cell: Cell) -> str:
        return cell.source_hash or cell.cell_id or f"#{cell.seq}"

    for _, same in groupby(sorted(cells, key=key), key=key):
        yield sorted(same, key=lambda cell: cell.seq)


def _last_streak(
    kept: Sequence[tuple[Cell, float]], bound: float, ended: Sequence[Cell]
) -> Iterator[tuple[Cell, float]]:
    """The last executions in a row that each kept more than a bound: one that keeps nothing shows that it levels off."""
    amounts = {cell.seq: amount for cell, amount in kept}
    count = 0
    for cell in reversed(ended):
        if amounts.get(cell.seq, 0.0) <= bound:
            break
        count += 1
    yield from ((cell, amounts[cell.seq]) for cell in ended[len(ended) - count :])


def _own(run: Run, start: float, end: float) -> Observed:
    """The kernel's memory without the files it maps."""
    import numpy as np

    rss = observed(run, RSS, "process", start, end)
    mapped = at_times(run, MAPPED, "process", rss.time)
    return rss._replace(values=rss.values - np.nan_to_num(mapped))


def _loaded(run: Run, cell: Cell, end: float) -> float:
    """Bytes that came from disk or network during a cell. The machine's network: nobody counts it by process."""
    total = 0.0
    for metric, subject in (("process.disk.read", "process"), ("host.network.received", "host")):
        values = observed(run, metric, subject, cell.start, end).values
        total += float(values[-1] - values[0]) if len(values) else 0.0
    return total


@dataclass(frozen=True)
class MemoryNearLimit(Rule):
    """Memory that stood close to the limit. Caches of files do not count, and neither does what a neighbour takes."""

    id: ClassVar[str] = "memory-near-limit"
    title: ClassVar[str] = "Memory is nearly full"
    metrics: ClassVar[tuple[str, ...]] = (WITHOUT_CACHE, CGROUP, HOST, TREE, RSS, "cgroup.pressure.memory")

    limit_share: float = 0.9
    """Share of the limit from which on memory is nearly full."""
    own_share: float = 0.25
    """Share of the limit that this kernel and its workers must hold; else it is others who fill it."""

    def check(self, run: Run) -> Outcome:
        """One outcome for the run."""
        limit = run.limits.get("memory_bytes")
        if limit is None:
            return unknown("the memory limit is not known") if run.cells else not_applicable("no cell was run")
        metric, subject = _under(run, limit)
        readings = observed(run, metric, subject, 0.0, run.duration)
        readings = readings.where(readings.seq > 0)
        if not len(readings.values):
            return unknown(reason_for(run, metric, subject)) if run.cells else not_applicable("no cell was run")
        full = readings.where(readings.values >= self.limit_share * limit.value)
        if not len(full.values):
            return CLEAR
        tree = at_times(run, TREE if run.subjects(TREE) else RSS, "process", full.time)
        if not (tree >= self.own_share * limit.value).any():
            who = "the control group" if subject == "cgroup" else "the machine"
            return not_applicable(
                f"others fill {who}: this kernel holds less than {given_text(100 * self.own_share, '%')} of it"
            )
        return found(self._finding(run, full, limit, metric, subject))

    def _finding(self, run: Run, full: Observed, limit: Limit, metric: str, subject: str) -> Finding:
        peak = float(full.values.max())
        near = [cell for cell in top_cells(run) if _has_any(full.time, cell.start, cell_end(run, cell))]
        keepers = _keepers(run, near[-1])
        named = ", ".join(f"{cell.title} ({bytes_text(amount)})" for amount, cell in keepers)
        share = percent_text(100 * peak / limit.value)
        return Finding(
            rule=self.id,
            severity="warning",
            cells=tuple(dict.fromkeys(cell.seq for cell in [*near, *(cell for _, cell in keepers)])),
            subject=subject,
            cause=None,
            start=full.start,
            end=full.end,
            fact=f"Memory stood at up to {share} of the limit in {titles(near)}: "
            f"{of_text(peak, limit.value, 'By')} ({limit.source}).{_pressure(run, full)}"
            + (f" Most was kept by {named}." if named else ""),
            consequence=f"A little more and {when_full(limit)}{_with_all(limit)}.",
            advice="del what is no longer needed, load less at once (chunks, fewer columns, smaller dtypes), start fewer "
            "workers; or ask for more memory.",
            evidence=Evidence(metric, peak, self.limit_share * limit.value, "By"),
        )


def _with_all(limit: Limit) -> str:
    return "" if limit.source == "rlimit" else ", with all its variables"


def _under(run: Run, limit: Limit) -> tuple[str, str]:
    """Metric and subject that tell how near the limit is."""
    if limit.source == "cgroup":
        return (WITHOUT_CACHE if run.subjects(WITHOUT_CACHE) else CGROUP), "cgroup"
    if limit.source == "host" and run.subjects(HOST):
        return HOST, "host"
    alone = limit.source == "rlimit" or not run.subjects(TREE)  # each process has that limit for itself
    return (RSS if alone else TREE), "process"


def _has_any(times: NDArray[np.float64], start: float, end: float) -> bool:
    return bool(((times >= start) & (times <= end)).any())


def _pressure(run: Run, full: Observed) -> str:
    """Only that of the kernel's own control group: a neighbour's is not its concern."""
    import numpy as np

    waits = at_times(run, "cgroup.pressure.memory", "cgroup", full.time)
    share = float(np.nanmean(waits)) if (~np.isnan(waits)).any() else 0.0
    return f" It waited for memory in {percent_text(100 * share)} of that time." if share > 0.01 else ""


def _keepers(run: Run, last: Cell) -> list[tuple[float, Cell]]:
    """The two cells that held most when a cell ran, and how much; they are part of the problem."""
    held = sorted(holding(run, last.start).cells, key=lambda held: -held.still)
    return [(one.still, one.cell) for one in held[:2] if one.still >= 256 * MIB]
