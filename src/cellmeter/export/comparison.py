"""Two runs side by side: the same cells matched, what each took, and whether the difference is more than noise.

A cell is the same by its ``cell_id``, which notebooks keep when it is edited, else by its source, else by its label; where none
of these is in both runs, by its place between cells that are.

A cell that ran more than once counts with the median of its executions, and how far these lie apart is noise. One execution
tells nothing of that, so a difference must at least be as large as what the same notebook differs from itself
(docs/compare.md), a difference in time larger than what the cell waited for a processor or a disk, by the kernel's pressure
counters, and one in peak memory larger than the difference there was already when the cell began.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from cellmeter.export.rows import CellRow, cell_row
from cellmeter.rules.observed import top_cells
from cellmeter.run import known
from cellmeter.words import MIB

if TYPE_CHECKING:
    from cellmeter.run import Cell, Run

Verdict = Literal["more", "less", "same", "unknown"]
MatchedBy = Literal["id", "source", "label", "place"]


@dataclass(frozen=True)
class Quantity:
    """Something a cell takes. A difference under both floors is noise, however often the cell ran."""

    key: str
    name: str
    unit: str
    of: Callable[[_Execution], float | None]
    relative_floor: float
    absolute_floor: float


@dataclass(frozen=True)
class _Execution:
    cell: Cell
    row: CellRow
    waited: float
    start_bytes: int | None


def _over_start(one: _Execution) -> float | None:
    """What the cell itself added: the peak alone is mostly what cells before it have left."""
    known_both = one.row.peak_bytes is not None and one.start_bytes is not None
    return max(0.0, float(one.row.peak_bytes or 0) - (one.start_bytes or 0)) if known_both else None


PEAK, OVER_START = "peak_rss_bytes", "peak_over_start_bytes"
QUANTITIES = (
    Quantity("seconds", "time", "s", lambda one: one.row.seconds, 0.15, 0.15),
    Quantity("cpu_seconds", "CPU time", "s", lambda one: one.row.cpu_seconds, 0.25, 0.15),
    Quantity(PEAK, "peak memory", "By", lambda one: one.row.peak_bytes, 0.05, 16 * MIB),
    Quantity(OVER_START, "peak over its start", "By", _over_start, 0.05, 16 * MIB),
    Quantity("gpu_utilization_percent", "GPU use", "%", lambda one: one.row.gpu_percent, 0.1, 5.0),
    Quantity("energy_joules", "GPU energy", "J", lambda one: one.row.energy_joules, 0.15, 20.0),
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
    matched_by: MatchedBy
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Comparison:
    """``a`` is the run from before, ``b`` the new one. ``total`` is of the matched cells, ``whole`` of all: all executions."""

    a: Run
    b: Run
    cells: tuple[Matched, ...]
    total: tuple[Difference, ...]
    whole: tuple[Difference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]


def compare(a: Run, b: Run) -> Comparison:
    """Matches the cells of two runs, in the order of the second, and sets their figures side by side."""
    before, after = _executions(a), _executions(b)
    pairs, alone_a, alone_b = _pairs(before, after)
    cells = tuple(_matched(pair) for pair in pairs)
    total = _total([one for pair in pairs for one in pair.a], [one for pair in pairs for one in pair.b])
    return Comparison(a, b, cells, total if pairs else (), _total(before, after), _titles(alone_a), _titles(alone_b))


def _executions(run: Run) -> list[_Execution]:
    """Of the cells that no other cell ran."""
    return [
        _Execution(cell, cell_row(run, cell), _waited(run, cell), run.usage(cell).rss_start_bytes)
        for cell in top_cells(run)
    ]


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


class _Pair(NamedTuple):
    """The executions of one cell in both runs."""

    a: list[_Execution]
    b: list[_Execution]
    by: MatchedBy


def _pairs(a: list[_Execution], b: list[_Execution]) -> tuple[list[_Pair], list[_Execution], list[_Execution]]:
    """First by id, then what is left by source, by label and by place; and what is left of both then."""
    pairs: list[_Pair] = []
    all_a, all_b = a, b
    keys: tuple[tuple[MatchedBy, Callable[[_Execution], str | None]], ...] = (
        ("id", lambda one: one.cell.cell_id),
        ("source", lambda one: one.cell.source_hash or None),
        ("label", lambda one: one.cell.label),
    )
    for by, key in keys:
        ours, theirs = _grouped(a, key), _grouped(b, key)
        shared = ours.keys() & theirs.keys()
        pairs += [_Pair(ours[name], theirs[name], by) for name in shared]
        a, b = ([one for one in rest if key(one) not in shared] for rest in (a, b))
    number = {id(one): n for n, pair in enumerate(pairs) for one in (*pair.a, *pair.b)}
    here, there = _stretches(all_a, number), _stretches(all_b, number)
    for stretch in here.keys() & there.keys():
        pairs += [_Pair(x, y, "place") for x, y in _side_by_side(here[stretch], there[stretch])]
    done = {id(one) for pair in pairs for one in (*pair.a, *pair.b)}
    alone_a, alone_b = ([one for one in rest if id(one) not in done] for rest in (a, b))
    return sorted(pairs, key=lambda pair: pair.b[0].cell.seq), alone_a, alone_b


def _side_by_side(a: list[list[_Execution]], b: list[list[_Execution]]) -> Iterator[tuple[list[_Execution], ...]]:
    """In their order; where a cell was added or removed, nobody knows which one, those with the same ``In [n]``."""
    if len(a) == len(b):
        yield from zip(a, b, strict=True)
        return
    numbered = {cell[-1].cell.execution_count: cell for cell in b}
    for cell in a:
        number = cell[-1].cell.execution_count
        if number is not None and number in numbered:
            yield cell, numbered[number]


def _stretches(
    executions: Sequence[_Execution], number: Mapping[int, int]
) -> dict[tuple[int, int], list[list[_Execution]]]:
    """The cells without a partner, each with its executions, by the numbers of the pairs before and after them (-1: none)."""
    found: dict[tuple[int, int], list[list[_Execution]]] = {}
    seen: dict[str, list[_Execution]] = {}
    before = -1
    for at, one in enumerate(executions):
        if id(one) in number:
            before = number[id(one)]
            continue
        name = one.cell.cell_id or one.cell.source_hash or str(one.cell.seq)
        if name in seen:
            seen[name].append(one)
            continue
        seen[name] = [one]
        after = next((number[id(later)] for later in executions[at:] if id(later) in number), -1)
        found.setdefault((before, after), []).append(seen[name])
    return found


def _grouped(executions: Sequence[_Execution], key: Callable[[_Execution], str | None]) -> dict[str, list[_Execution]]:
    groups: dict[str, list[_Execution]] = {}
    for one in executions:
        if (name := key(one)) is not None:
            groups.setdefault(name, []).append(one)
    return groups


def _matched(pair: _Pair) -> Matched:
    a, b, by = pair
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
        matched_by=by,
        edited={one.cell.source_hash for one in a}.isdisjoint(one.cell.source_hash for one in b),
        differences=tuple(
            _difference(
                quantity,
                [quantity.of(one) for one in alike_a],
                [quantity.of(one) for one in alike_b],
                waited if quantity.unit == "s" else 0.0,  # threads that wait for each other spin
                _inherited(alike_a, alike_b) if quantity.key == PEAK else 0.0,
            )
            for quantity in QUANTITIES
        ),
    )


def _inherited(a: Sequence[_Execution], b: Sequence[_Execution]) -> float:
    """How much more or less memory there was already when the cell began, in bytes."""
    starts = [[one.start_bytes for one in side if one.start_bytes is not None] for side in (a, b)]
    return abs(statistics.median(starts[0]) - statistics.median(starts[1])) if all(starts) else 0.0


def _status(executions: Sequence[_Execution]) -> str:
    """``ok`` if any execution was: a cell that failed half-way says nothing of what it takes. Else the last one's."""
    return "ok" if any(one.cell.status == "ok" for one in executions) else executions[-1].cell.status


def _difference(
    quantity: Quantity,
    a: Sequence[float | None],
    b: Sequence[float | None],
    disturbed: float,
    inherited: float = 0.0,
) -> Difference:
    sides = [[value for value in values if value is not None] for values in (a, b)]
    before, after = (statistics.median(side) if side else None for side in sides)
    if before is None or after is None:
        return Difference(quantity, before, after, None, "unknown")
    spreads = (max(side) - min(side) for side in sides)
    floors = (quantity.absolute_floor, quantity.relative_floor * max(abs(before), abs(after)))
    noise = max(*spreads, disturbed, *floors) + inherited
    verdict: Verdict = "same" if abs(after - before) <= noise else "more" if after > before else "less"
    return Difference(quantity, before, after, noise, verdict)


def _total(before: Sequence[_Execution], after: Sequence[_Execution]) -> tuple[Difference, ...]:
    """Of all executions: a change that is not noise adds up, and so does what each cell waited for."""
    waited = max(sum(one.waited for one in side) for side in (before, after))
    return tuple(
        _difference(q, [_sum(q, before)], [_sum(q, after)], waited if q.unit == "s" else 0.0) for q in QUANTITIES
    )


def _sum(quantity: Quantity, executions: Sequence[_Execution]) -> float | None:
    """Of all executions: the sum, of a peak the highest, of GPU use the mean over the time it is known for."""
    valued = [(value, one.row.seconds) for one in executions if (value := quantity.of(one)) is not None]
    if quantity.unit == "By":
        return max((value for value, _ in valued), default=None)
    if quantity.key == "gpu_utilization_percent":
        seconds = sum(weight for _, weight in valued)
        return sum(value * weight for value, weight in valued) / seconds if seconds > 0 else None
    return sum(value for value, _ in valued) if valued and len(valued) == len(executions) else None


def _titles(executions: Sequence[_Execution]) -> tuple[str, ...]:
    return tuple(f"{one.row.title} {one.row.first_line}".strip() for one in executions)
