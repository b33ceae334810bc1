"""What cells kept of the memory they took, and what of that is still held: a later cell may have given it back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.rules.observed import readings_of, top_cells
from cellmeter.words import MIB

if TYPE_CHECKING:
    from cellmeter.run import Cell, Run

MAPPED = "process.memory.file"
SAME_SHARE = 0.05  # what is given back is within this of what was kept: then it is the same, whatever was kept since
LEAST_SAME = 32 * MIB  # below it, likeness is chance


class Level(NamedTuple):
    """The kernel's resident memory at an edge of a cell in bytes, and how much of it is files that it maps."""

    resident: float
    mapped: float

    @property
    def own(self) -> float:
        """Without mapped files, which cost nothing: the system takes them back as it needs to."""
        return self.resident - self.mapped


class Held(NamedTuple):
    """A cell that took memory: its levels at both edges, and what of its growth is still held. Bytes."""

    cell: Cell
    start: Level
    end: Level
    still: float

    @property
    def taken(self) -> float:
        """What it kept at its own end, mapped files aside."""
        return self.end.own - self.start.own


class Holding(NamedTuple):
    """All cells that took memory, in the order they ran, and the last edge that was seen, with its cell."""

    by_seq: Mapping[int, Held]
    last: tuple[Cell, Level] | None

    @property
    def cells(self) -> tuple[Held, ...]:
        """Without their numbers."""
        return tuple(self.by_seq.values())

    def of(self, cell: Cell) -> Held | None:
        """What there is to say of one cell; None if it took nothing or that is not known."""
        return self.by_seq.get(cell.seq)


def levels(run: Run, cell: Cell) -> tuple[Level | None, Level | None]:
    """Memory at a cell's start and end; None where it is not known."""
    usage = run.usage(cell)
    mapped = readings_of(run, MAPPED, "process", cell)
    first, last = (float(mapped[0]), float(mapped[-1])) if len(mapped) else (0.0, 0.0)
    start = None if usage.rss_start_bytes is None else Level(usage.rss_start_bytes, first)
    end = None if usage.rss_end_bytes is None or cell.end is None else Level(usage.rss_end_bytes, last)
    return start, end


def holding(run: Run, until: float = math.inf) -> Holding:
    """Who holds what after the cells that began up to ``until`` (seconds since the run's start); several readers ask."""
    key = ("holding", until)
    if key not in run.memo:
        run.memo[key] = _holding(run, until)
    found: Holding = run.memo[key]
    return found


def _holding(run: Run, until: float) -> Holding:
    taken: list[Held] = []
    holders: list[int] = []  # of those that still hold something, the newest last
    last: tuple[Cell, Level] | None = None
    for cell in sorted(top_cells(run), key=lambda cell: cell.start):
        start, end = levels(run, cell)
        if start is None or cell.start > until:
            continue
        if last is not None:
            _give_back(taken, holders, last[1].own - start.own)
        last = (cell, start)
        if end is None:
            continue
        _give_back(taken, holders, start.own - end.own)
        if end.own > start.own:
            holders.append(len(taken))
            taken.append(Held(cell, start, end, end.own - start.own))
        last = (cell, end)
    return Holding({held.cell.seq: held for held in taken}, last)


def _give_back(taken: list[Held], holders: list[int], amount: float) -> None:
    """Takes what was given back from the cell that had kept just as much, else from the newest first."""
    if amount >= LEAST_SAME:
        like = (index for index in reversed(holders) if abs(taken[index].still - amount) <= SAME_SHARE * amount)
        if (same := next(like, None)) is not None:
            holders.remove(same)
            holders.append(same)
    while amount > 0 and holders:
        newest = holders[-1]
        part = min(amount, taken[newest].still)
        amount -= part
        taken[newest] = taken[newest]._replace(still=taken[newest].still - part)
        if taken[newest].still <= 0:
            holders.pop()
