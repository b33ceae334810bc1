"""Lines of measured figures, as plain text and JSON."""

from __future__ import annotations

import random
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WIDTH = 110
_COLUMNS = (36, 11, 22, 22, 9, 4)
LONGEST_METRIC = _COLUMNS[0] - 2
_HEADS = ("metric", "cellmeter", "peer", "ratio [95 %]", "target", "met?")
_RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A median with its 95 % bootstrap interval; ``low`` and ``high`` are None for a single reading."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 1


@dataclass(frozen=True)
class Line:
    """One comparison. ``ratio`` is ours / the peer's, taken pair by pair; None where there is nothing to compare with.

    ``met`` is None where there is no target, or where what was measured cannot decide.
    """

    metric: str
    unit: str
    ours: Figure
    peer_name: str | None = None
    peer: Figure | None = None
    ratio: Figure | None = None
    target: str | None = None
    met: bool | None = None


@dataclass(frozen=True)
class Section:
    """What one bench measured."""

    title: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def figure(values: Sequence[float]) -> Figure:
    """Median and bootstrap interval of repeated readings. Raises StatisticsError where there are none."""
    middle = statistics.median(values)
    if len(values) < 3:
        return Figure(middle, count=len(values))
    # A fixed seed: the same readings give the same interval.
    choose = random.Random(20261121).choices
    medians = sorted(statistics.median(choose(values, k=len(values))) for _ in range(_RESAMPLES))
    edge = int(_RESAMPLES * 0.025)
    return Figure(middle, medians[edge], medians[-1 - edge], len(values))


def percentile(values: Sequence[float], percent: int) -> float:
    """The reading that so many per cent do not exceed. Raises IndexError where there are none."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def paired_ratio(ours: Sequence[float], peer: Sequence[float]) -> Figure | None:
    """Ratio of readings that were taken side by side; None where the peer read 0."""
    if not peer or not all(peer):
        return None
    return figure([a / b for a, b in zip(ours, peer, strict=True)])


def compare(
    metric: str, unit: str, ours: Sequence[float], peer_name: str, peer: Sequence[float], most_ratio: float | None
) -> Line:
    """A line of paired readings, met if the median of their ratios is at most ``most_ratio``."""
    ratio = paired_ratio(ours, peer)
    met = None if most_ratio is None or ratio is None else ratio.value <= most_ratio
    target = None if most_ratio is None else f"≤ {most_ratio:.2g} ×"
    return Line(metric, unit, figure(ours), peer_name, figure(peer), ratio, target, met)


def alone(metric: str, unit: str, ours: Sequence[float], most: float | None = None) -> Line:
    """A line with no peer, met if the median is at most ``most``."""
    measured = figure(ours)
    if most is None:
        return Line(metric, unit, measured)
    return Line(metric, unit, measured, target=f"≤ {_number(most)} {unit}", met=measured.value <= most)


def heading() -> str:
    """The table's first two rows."""
    return "\n".join([_row(_HEADS), _row(tuple("─" * width for width in _COLUMNS))])


def render(section: Section) -> str:
    """A section's rows, of at most 110 columns; notes are wrapped below them."""
    rows = [section.title, *(_row(_cells(line)) for line in section.lines)]
    for note in section.notes:
        rows += textwrap.wrap(note, WIDTH, initial_indent="  · ", subsequent_indent="    ")
    return "\n".join(rows)


def as_json(sections: Iterable[Section]) -> list[dict[str, Any]]:
    """The sections as plain values."""
    return [asdict(section) for section in sections]


def _row(cells: Sequence[str]) -> str:
    aligned = [cells[0].ljust(_COLUMNS[0])]
    aligned += [cell.rjust(width) for cell, width in zip(cells[1:], _COLUMNS[1:], strict=True)]
    return " ".join(aligned).rstrip()


def _cells(line: Line) -> tuple[str, ...]:
    peer = ""
    if line.peer is not None:
        peer = f"{_number(line.peer.value)} {line.unit}" + (f" {line.peer_name}" if line.peer_name else "")
    return (
        f"  {line.metric}",
        f"{_number(line.ours.value)} {line.unit}",
        peer,
        _interval(line.ratio) if line.ratio is not None else "",
        line.target or "",
        {True: "yes", False: "NO", None: "?" if line.target else ""}[line.met],
    )


def _interval(ratio: Figure) -> str:
    style: Callable[[float], str] = (lambda v: f"{v:.3f}") if ratio.value < 1.1 else _number
    if ratio.low is None or ratio.high is None:
        return style(ratio.value)
    return f"{style(ratio.value)} [{style(ratio.low)}, {style(ratio.high)}]"


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
