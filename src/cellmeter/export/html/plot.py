"""Small charts drawn as markup: they need no script, follow the page's colours, and print as sharp as text.

The curves are one SVG that stretches with the page; what is written stands beside it as text, so that it never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.charts import decimate, time_ticks, value_ticks
from cellmeter.export.html.pieces import text
from cellmeter.words import axis_text, moment_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Cell, Run, Series

    Floats = NDArray[np.float64]

POINTS = 600  # of a curve: a minimum and a maximum for each 300th of the width
BREAK_SECONDS = 5.0  # the line is not drawn across time without samples
LEAST_BAND = 1 / 400  # of the width: a cell narrower than that is not seen
LEAST_NAMED = 0.07
MOST_TIMES = 5


class Curve(NamedTuple):
    """One line. ``kind`` chooses its colour: ``cpu``, ``memory``, ``gpu``, ``soft``."""

    label: str
    kind: str
    series: Series


class Level(NamedTuple):
    """A line across the whole plot, with its name."""

    value: float
    label: str


class Mark(NamedTuple):
    """A point worth naming."""

    time: float
    value: float
    label: str


@dataclass(frozen=True)
class Plot:
    """A chart from ``start`` to ``end`` (seconds since the run's start), 0 to ``top`` in ``unit``."""

    label: str
    start: float
    end: float
    top: float
    unit: str
    curves: tuple[Curve, ...]
    height: int = 110
    levels: tuple[Level, ...] = ()
    marks: tuple[Mark, ...] = ()
    bands: tuple[Cell, ...] = ()
    window: tuple[float, float] | None = None
    """The part that matters; the rest stands back."""

    def x(self, time: float) -> float:
        """Where a time lies, 0 to 100."""
        return 100 * min(max((time - self.start) / max(self.end - self.start, 1e-9), 0.0), 1.0)

    def y(self, value: float) -> float:
        """Where a value lies from the top, 0 to 100."""
        return 100 - 100 * min(max(value / self.top, 0.0), 1.0)


def drawn(run: Run, plot: Plot) -> str:
    """A plot as a figure."""
    curves = "".join(_curve(plot, curve) for curve in plot.curves)
    ticks = value_ticks(plot.top, plot.unit) if plot.unit != "%" else [0.0, 50.0, 100.0]
    grid = "".join(f'<path class="grid" d="M0 {plot.y(t):.1f}H100"/>' for t in ticks)
    levels = "".join(f'<path class="level" d="M0 {plot.y(one.value):.1f}H100"/>' for one in plot.levels)
    svg = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{grid}{curves}{levels}</svg>'
    words = [
        *(f'<u style="top:{plot.y(tick):.1f}%">{text(axis_text(tick, plot.unit))}</u>' for tick in ticks),
        *(f'<s style="left:{plot.x(at):.2f}%">{text(label)}</s>' for at, label in _times(run, plot)),
        *(_mark(plot, mark) for mark in plot.marks),
    ]
    legend = "".join(f'<span class="key {curve.kind}">{text(curve.label)}</span>' for curve in plot.curves)
    legend += "".join(f'<span class="key level">{text(one.label)}</span>' for one in plot.levels)
    inside = f"{_bands(run, plot)}{_window(plot)}{svg}{''.join(words)}"
    return (
        f'<figure class="plot" role="img" aria-label="{text(plot.label)}"><figcaption>{legend}</figcaption>'
        f'<div class="area" style="height:{plot.height}px">{inside}</div></figure>'
    )


def _times(run: Run, plot: Plot) -> list[tuple[float, str]]:
    """Where times are written, in the one form that moments have on the page."""
    ticks = [at for at, _ in time_ticks(plot.start, plot.end, MOST_TIMES)]
    whole = all(at == round(at) for at in ticks)
    return [(at, f"{at:.0f} s" if 6 <= run.duration < 60 and whole else moment_text(at, run.duration)) for at in ticks]


def _mark(plot: Plot, mark: Mark) -> str:
    x = plot.x(mark.time)
    side = "end" if x > 50 else "start"
    kind = plot.curves[0].kind
    return f'<b class="{kind} {side}" style="left:{x:.2f}%;top:{plot.y(mark.value):.1f}%"><span>{text(mark.label)}</span></b>'


def _bands(run: Run, plot: Plot) -> str:
    span = max(plot.end - plot.start, 1e-9)
    parts = []
    for number, cell in enumerate(plot.bands):
        left, right = max(cell.start, plot.start), min(run.duration if cell.end is None else cell.end, plot.end)
        share = (right - left) / span
        if share >= LEAST_BAND:
            name = f"<span>{text(cell.title[:24])}</span>" if share >= LEAST_NAMED else ""
            odd = "odd" if number % 2 else "even"
            parts.append(f'<i class="{odd}" style="left:{plot.x(left):.2f}%;width:{100 * share:.2f}%">{name}</i>')
    return "".join(parts)


def _window(plot: Plot) -> str:
    if plot.window is None:
        return ""
    left, right = (plot.x(at) for at in plot.window)
    return f'<i class="window" style="left:{left:.2f}%;width:{max(right - left, 0.2):.2f}%"></i>'


def _curve(plot: Plot, curve: Curve) -> str:
    pieces = list(_pieces(plot, curve.series.between(plot.start, plot.end)))
    line = "".join("M" + "L".join(piece) for piece in pieces)
    fill = "".join(f"M{piece[0].split()[0]} 100L{'L'.join(piece)}V100Z" for piece in pieces)
    area = "" if curve.kind == "soft" else f'<path class="fill {curve.kind}" d="{fill}"/>'
    return f'{area}<path class="line {curve.kind}" d="{line}"/>'


def _pieces(plot: Plot, series: Series) -> Iterator[list[str]]:
    """The points of each stretch without a gap, as ``x y``."""
    import numpy as np

    time, values = _broken(series.time, series.values)
    time, columns = decimate(time, values[:, None], POINTS)
    known = ~np.isnan(columns[:, 0])
    edges = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0, append=0))
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        pairs = zip(time[low:high].tolist(), columns[low:high, 0].tolist(), strict=True)
        yield [f"{plot.x(t):.2f} {plot.y(v):.1f}" for t, v in pairs]


def _broken(time: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The same with an unknown value wherever there was no sample for long."""
    import numpy as np

    apart = np.diff(time)
    usual = float(np.median(apart)) if len(apart) else 0.0  # a scrape of another machine is one of 15 s or so
    wide = np.flatnonzero(apart > max(BREAK_SECONDS, 2.5 * usual)) + 1
    return np.insert(time, wide, time[wide] - 1e-3), np.insert(values, wide, np.nan)


def top_of(values: Sequence[float], unit: str) -> float:
    """Where a scale ends that shows all of these values."""
    least = {"By": 64.0 * 2**20, "By/s": 2.0**20, "%": 100.0}.get(unit, 1.0)
    return 104.0 if unit == "%" else max([least, *values]) * 1.12
