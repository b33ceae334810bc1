"""Two runs side by side: the same cells matched, what each took, and whether the difference is more than noise.

A cell is the same by its ``cell_id``, which notebooks keep when it is edited, else by its source. A cell that ran more than
once counts with the median of its executions, and how far these lie apart is noise. One execution tells nothing of that, so a
difference must at least be as large as what the same notebook differs from itself (docs/compare.md), and a difference in time
larger than what the cell waited for a processor or a disk, by the kernel's pressure counters.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cellmeter.export.summary import CellRow, cell_rows
from cellmeter.run import known

if TYPE_CHECKING:
    from cellmeter.run import Cell, Run

Verdict = Literal["more", "less", "same", "unknown"]
MIB = 2**20


@dataclass(frozen=True)
class Quantity:
    """Something a cell takes. A difference under both floors is noise, however often the cell ran."""

    key: str
    name: str
    unit: str
    of: Callable[[CellRow], float | None]
    relative_floor: float
    absolute_floor: float


QUANTITIES = (
    Quantity("seconds", "time", "s", lambda row: row.seconds, 0.15, 0.15),
    Quantity("cpu_seconds", "CPU time", "s", lambda row: row.cpu_seconds, 0.25, 0.15),
    Quantity("peak_rss_bytes", "peak memory", "By", lambda row: row.peak_bytes, 0.05, 16 * MIB),
    Quantity("gpu_utilization_percent", "GPU use", "%", lambda row: row.gpu_percent, 0.1, 5.0),
    Quantity("energy_joules", "GPU energy", "J", lambda row: row.energy_joules, 0.15, 20.0),
)


@dataclass(frozen=True)
class Difference:
    """One quantity in both runs, in its unit. ``noise``: the change that means nothing. None: unknown."""

    quantity: Quantity
    a: float | None
    b: float | None
    noise: float | None
    verdict: Verdict

    @property
    def change(self) -> float | None:
        """How much more it is in the second run."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def relative(self) -> float | None:
        """The change as a share of the first run's value; None where that is 0."""
        return self.change / self.a if self.change is not None and self.a else None


@dataclass(frozen=True)
class Matched:
    """One cell in both runs. ``a`` and ``b``: its executions there, by sequence."""

    title: str
    first_line: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    status_a: str
    status_b: str
    edited: bool
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Comparison:
    """``a`` is the run from before, ``b`` the new one; ``total`` is of the matched cells only, all their executions."""

    a: Run
    b: Run
    cells: tuple[Matched, ...]
    total: tuple[Difference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]


def compare(a: Run, b: Run) -> Comparison:
    """Matches the cells of two runs, in the order of the second, and sets their figures side by side."""
    pairs, alone_a, alone_b = _pairs(_executions(a), _executions(b))
    cells = tuple(_matched(pair) for pair in pairs)
    total = _total(pairs) if pairs else ()
    return Comparison(a, b, cells, total, _titles(alone_a), _titles(alone_b))


@dataclass(frozen=True)
class _Execution:
    cell: Cell
    row: CellRow
    waited: float


def _executions(run: Run) -> list[_Execution]:
    """Of the cells that no other cell ran."""
    pairs = zip(run.cells, cell_rows(run), strict=True)
    return [_Execution(cell, row, _waited(run, cell)) for cell, row in pairs if cell.parent is None]


def _waited(run: Run, cell: Cell) -> float:
    """Seconds of a cell in which a task waited for a processor or for I/O; 0 where the system does not count them."""
    import numpy as np

    end = run.duration if cell.end is None else cell.end
    total = 0.0
    for resource in ("cpu", "io"):
        # the control group's where it is there: on a large machine somebody always waits
        for scope in ("cgroup", "host"):
            series = run.series(f"{scope}.pressure.{resource}.time", scope)
            if len(known(series.values)) > 1:
                first, last = np.interp([cell.start, end], series.time, series.values)
                total += max(0.0, float(last - first))
                break
    return total


Pair = tuple[list[_Execution], list[_Execution]]


def _pairs(a: list[_Execution], b: list[_Execution]) -> tuple[list[Pair], list[_Execution], list[_Execution]]:
    """First by id, then what is left by source; and what is left of both then."""
    pairs: list[Pair] = []
    for key in (_id, _source):
        ours, theirs = _grouped(a, key), _grouped(b, key)
        shared = ours.keys() & theirs.keys()
        pairs += [(ours[name], theirs[name]) for name in shared]
        a, b = ([one for one in rest if key(one) not in shared] for rest in (a, b))
    return sorted(pairs, key=lambda pair: pair[1][0].cell.seq), a, b


def _id(one: _Execution) -> str | None:
    return one.cell.cell_id


def _source(one: _Execution) -> str | None:
    return one.cell.source_hash or None


def _grouped(executions: Sequence[_Execution], key: Callable[[_Execution], str | None]) -> dict[str, list[_Execution]]:
    groups: dict[str, list[_Execution]] = {}
    for one in executions:
        if (name := key(one)) is not None:
            groups.setdefault(name, []).append(one)
    return groups


def _matched(pair: Pair) -> Matched:
    a, b = pair
    status_a, status_b = _status(a), _status(b)
    alike_a = [one for one in a if one.cell.status == status_a]
    alike_b = [one for one in b if one.cell.status == status_b]
    waited = max(one.waited for one in (*alike_a, *alike_b))
    return Matched(
        title=b[-1].row.title,
        first_line=b[-1].row.first_line,
        a=tuple(one.cell.seq for one in a),
        b=tuple(one.cell.seq for one in b),
        status_a=status_a,
        status_b=status_b,
        edited={one.cell.source_hash for one in a}.isdisjoint(one.cell.source_hash for one in b),
        differences=tuple(
            _difference(
                quantity,
                [quantity.of(one.row) for one in alike_a],
                [quantity.of(one.row) for one in alike_b],
                waited if quantity.unit == "s" else 0.0,  # threads that wait for each other spin
            )
            for quantity in QUANTITIES
        ),
    )


def _status(executions: Sequence[_Execution]) -> str:
    """``ok`` if any execution was: a cell that failed half-way says nothing of what it takes. Else the last one's."""
    return "ok" if any(one.cell.status == "ok" for one in executions) else executions[-1].cell.status


def _difference(
    quantity: Quantity, a: Sequence[float | None], b: Sequence[float | None], disturbed: float = 0.0
) -> Difference:
    sides = [[value for value in values if value is not None] for values in (a, b)]
    before, after = (statistics.median(side) if side else None for side in sides)
    if before is None or after is None:
        return Difference(quantity, before, after, None, "unknown")
    spreads = (max(side) - min(side) for side in sides)
    noise = max(*spreads, disturbed, quantity.absolute_floor, quantity.relative_floor * max(abs(before), abs(after)))
    verdict: Verdict = "same" if abs(after - before) <= noise else "more" if after > before else "less"
    return Difference(quantity, before, after, noise, verdict)


def _total(pairs: Sequence[Pair]) -> tuple[Difference, ...]:
    """Of all that is in both runs: a change that is not noise adds up, and so does what each cell waited for."""
    before, after = ([one for pair in pairs for one in pair[side]] for side in (0, 1))
    waited = max(sum(one.waited for one in side) for side in (before, after))
    rows = [[one.row for one in side] for side in (before, after)]
    return tuple(
        _difference(q, [_sum(q, rows[0])], [_sum(q, rows[1])], waited if q.unit == "s" else 0.0) for q in QUANTITIES
    )


def _sum(quantity: Quantity, rows: Sequence[CellRow]) -> float | None:
    """Of all executions: the sum, of a peak the highest, of GPU use the mean over the time it is known for."""
    valued = [(value, row.seconds) for row in rows if (value := quantity.of(row)) is not None]
    if quantity.key == "peak_rss_bytes":
        return max((value for value, _ in valued), default=None)
    if quantity.key == "gpu_utilization_percent":
        seconds = sum(weight for _, weight in valued)
        return sum(value * weight for value, weight in valued) / seconds if seconds > 0 else None
    return sum(value for value, _ in valued) if valued and len(valued) == len(rows) else None


def _titles(executions: Sequence[_Execution]) -> tuple[str, ...]:
    return tuple(f"{one.row.title} {one.row.first_line}".strip() for one in executions)
