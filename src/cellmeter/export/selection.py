"""A part of a run: some of its cells, or what came after a time."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.errors import BadUsage
from cellmeter.words import seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.rules import Judgement
    from cellmeter.run import Cell, Run

    Floats = NDArray[np.float64]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_NUMBERS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True)
class Selection:
    """``numbers``: ranges of ``In [n]``; ``ago``: seconds before the run's end; ``since``: a time. None: all."""

    numbers: tuple[tuple[int, int], ...] | None = None
    ago: float | None = None
    since: datetime | None = None


class Part(NamedTuple):
    """What is selected of a run: sequences of cells, and seconds since the run's start from which on samples count."""

    cells: frozenset[int] | None
    start: float


WHOLE = Part(None, 0.0)


def selection(cells: str | None, since: str | None) -> Selection:
    """Reads ``--cells 3,5-7`` and ``--since 10m`` or ``--since 2026-03-01T12:00``. Raises BadUsage."""
    return Selection(_numbers(cells) if cells is not None else None, *_since(since))


def _numbers(text: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for part in text.split(","):
        found = _NUMBERS.fullmatch(part.strip())
        if found is None:
            raise BadUsage(f"--cells {text}: {part.strip()!r} is no cell's number; write numbers of In [n] as in 3,5-7")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            raise BadUsage(f"--cells {text}: {part.strip()} runs backwards; write {last}-{first}")
        ranges.append((first, last))
    return tuple(ranges)


def _since(text: str | None) -> tuple[float | None, datetime | None]:
    if text is None:
        return None, None
    if found := _AGO.fullmatch(text.strip()):
        return float(found[1]) * _SECONDS[found[2]], None
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise BadUsage(
            f"--since {text}: write 90s, 10m, 2h or 1d, counted back from the run's end, or a time"
        ) from None
    return None, time if time.tzinfo else time.replace(tzinfo=UTC)


def part_of(run: Run, selected: Selection) -> Part:
    """What is selected of this run; cells that began before the time are out. Raises BadUsage if it is nothing."""
    start = 0.0
    if selected.ago is not None:
        start = max(0.0, run.duration - selected.ago)
    if selected.since is not None:
        start = run.since(selected.since.timestamp())
    if start > run.duration:
        raise BadUsage(f"nothing of {run.id} is that late: it ended after {seconds_text(run.duration)}")
    if selected.numbers is None:
        return Part(None, start)
    cells = frozenset(cell.seq for cell in run.cells if cell.start >= start and _in(cell, selected.numbers))
    if not cells:
        raise BadUsage(f"{run.id} has none of these cells; `cellmeter report` and %monitor cells list what there is")
    return Part(cells, start)


def _in(cell: Cell, ranges: tuple[tuple[int, int], ...]) -> bool:
    return cell.execution_count is not None and any(low <= cell.execution_count <= high for low, high in ranges)


def narrowed(run: Run, judgement: Judgement, part: Part) -> tuple[Run, Judgement]:
    """The run with the selected cells only, and the findings that touch one of them: judged is the whole run."""
    if part == WHOLE:
        return run, judgement
    cells = tuple(c for c in run.cells if c.start >= part.start and (part.cells is None or c.seq in part.cells))
    seqs = {cell.seq for cell in cells}
    findings = tuple(
        finding
        for finding in judgement.findings
        if seqs.intersection(finding.cells) or (not finding.cells and part.cells is None and finding.end >= part.start)
    )
    return _with_cells(run, cells, part), replace(judgement, findings=findings)


def _with_cells(run: Run, cells: tuple[Cell, ...], part: Part) -> Run:
    """The run with these cells, and of what its code said and was told only what belongs to the part."""
    import numpy as np

    def wanted(times: Floats) -> NDArray[np.bool_]:
        late: NDArray[np.bool_] = times >= part.start
        return late if part.cells is None else late & np.isin(run.cells_at(times), list(part.cells))

    seqs = {cell.seq for cell in cells}
    return replace(
        run,
        cells=cells,
        own=run.own.only(wanted),
        alerts=tuple(fired for fired in run.alerts if fired.cell in seqs),
        over_budget=tuple(over for over in run.over_budget if over.cell in seqs),
        holders=tuple(one for one in run.holders if one.between(part.start, run.duration) is not None),
    )
