"""A run as a trace: one span for the run, one a cell, one a span of the user's, each within the one around it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cellmeter.rules import Judgement
    from cellmeter.run import Cell, Run
    from cellmeter.spans import Span

    Values = Mapping[str, str | int | float | bool]

NANOSECONDS = 1_000_000_000
ROOT = "run"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOOK_BACK = 64  # spans of one name that may have begun since the one around began: threads of one process


class TraceEvent(NamedTuple):
    """Something at one moment of a span."""

    name: str
    time_ns: int
    attributes: Values


@dataclass(frozen=True)
class TraceSpan:
    """A span. ``key`` names it within its run, ``parent`` is the key of the one around it; ``problem``: how it failed."""

    key: str
    parent: str | None
    name: str
    start_ns: int
    end_ns: int
    attributes: Values
    problem: str | None = None
    events: Sequence[TraceEvent] = ()


def trace_spans(run: Run, judgement: Judgement) -> Iterator[TraceSpan]:
    """All that has ended: of a run that is being recorded not the run itself, nor the cell that runs."""
    if run.ending is not None:
        yield _of_run(run, judgement)
    seqs = {cell.seq for cell in run.cells}
    for cell in run.cells:
        if cell.end is not None or run.ending is not None:
            yield _of_cell(run, cell, f"cell {cell.parent}" if cell.parent in seqs else ROOT)
    yield from _of_code(run)


def at_ns(run: Run, seconds: float) -> int:
    """A time of the run in nanoseconds since 1970."""
    return round(run.epoch(seconds) * NANOSECONDS)


def _known(values: Mapping[str, str | int | float | bool | None]) -> Values:
    return {key: value for key, value in values.items() if value is not None}


def _of_run(run: Run, judgement: Judgement) -> TraceSpan:
    events = [
        TraceEvent(
            "cellmeter.finding",
            at_ns(run, finding.end),
            _known(
                {
                    "cellmeter.finding.rule": finding.rule,
                    "cellmeter.finding.severity": finding.severity,
                    "cellmeter.finding.subject": finding.subject,
                    "cellmeter.finding.cause": finding.cause,
                    "cellmeter.finding.fact": finding.fact,
                    "cellmeter.finding.advice": finding.advice,
                }
            ),
        )
        for finding in judgement.findings
    ]
    name = PurePath(run.notebook).name if run.notebook else run.id
    problem = run.ending if run.ending in ("killed", "out-of-memory", "crashed") else None
    attributes = _known({"cellmeter.run.ending": run.ending, "cellmeter.run.exit_code": run.exit_code})
    return TraceSpan(ROOT, None, name, at_ns(run, 0), at_ns(run, run.duration), attributes, problem, events)


def _of_cell(run: Run, cell: Cell, parent: str) -> TraceSpan:
    usage = run.usage(cell)
    attributes = {
        "cellmeter.cell.seq": cell.seq,
        "cellmeter.cell.execution_count": cell.execution_count,
        "cellmeter.cell.id": cell.cell_id,
        "cellmeter.cell.status": cell.status,
        "cellmeter.cell.first_line": cell.first_line or None,
        "cellmeter.cell.cpu_seconds": usage.cpu_seconds,
        "cellmeter.cell.peak_rss_bytes": usage.peak_rss_bytes,
    }
    for gpu, used in usage.gpu.items():
        attributes[f"cellmeter.cell.{gpu}.utilization_mean_percent"] = used.utilization_mean
        attributes[f"cellmeter.cell.{gpu}.memory_peak_bytes"] = used.memory_peak_bytes
        attributes[f"cellmeter.cell.{gpu}.own_memory_peak_bytes"] = used.own_memory_peak_bytes
        attributes[f"cellmeter.cell.{gpu}.energy_joules"] = used.energy_joules
    end = run.duration if cell.end is None else cell.end
    problem = None if cell.status == "ok" else cell.status
    return TraceSpan(
        f"cell {cell.seq}", parent, cell.title, at_ns(run, cell.start), at_ns(run, end), _known(attributes), problem
    )


def _of_code(run: Run) -> Iterator[TraceSpan]:
    """The user's spans, and one for each lot that came too fast to be kept one by one."""
    keys = {id(span): f"span {number}" for number, span in enumerate(run.spans)}
    around = _Around(run, keys)
    for span in run.spans:
        attributes = _known({"cellmeter.span.items": span.items, "cellmeter.worker.pid": span.pid or None})
        problem = None if span.status == "ok" else span.status
        times = (at_ns(run, span.start), at_ns(run, span.end))
        yield TraceSpan(keys[id(span)], around.parent(span), span.name, *times, attributes, problem)
    for number, batch in enumerate(run.own.batches):
        counted = {
            "cellmeter.spans.count": batch.count,
            "cellmeter.spans.errors": batch.errors,
            "cellmeter.spans.seconds": batch.seconds,
            "cellmeter.span.items": batch.items,
            "cellmeter.worker.pid": batch.pid or None,
        }
        times = (at_ns(run, batch.start), at_ns(run, batch.end))
        yield TraceSpan(f"spans {number}", around.cell(batch.start), batch.name, *times, _known(counted))


class _Around:
    """Finds what a span lies in: a span tells its parent's name, not which of that name."""

    def __init__(self, run: Run, keys: Mapping[int, str]) -> None:
        import numpy as np

        self._keys = keys
        self._by_name: dict[tuple[int, str], list[Span]] = defaultdict(list)
        for span in sorted(run.spans, key=attrgetter("start")):
            self._by_name[span.pid, span.name].append(span)
        starts = np.unique([span.start for span in run.spans] + [batch.start for batch in run.own.batches])
        self._cell_at = dict(zip(starts.tolist(), run.cells_at(starts).tolist(), strict=True))

    def parent(self, span: Span) -> str:
        """The newest span of the parent's name and process that holds this one, else the cell."""
        named = self._by_name.get((span.pid, span.parent), []) if span.parent is not None else []
        last = bisect_right(named, span.start, key=attrgetter("start"))
        for other in reversed(named[max(0, last - _LOOK_BACK) : last]):
            if other.end >= span.end and other is not span:
                return self._keys[id(other)]
        return self.cell(span.start)

    def cell(self, start: float) -> str:
        """The innermost cell that ran when a span or batch began, else the run."""
        seq = self._cell_at[start]
        return f"cell {seq}" if seq else ROOT
