"""What the user's code said, drawn below the charts of a run on the same time axis: spans, steps per second, logged values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellmeter import charts
from cellmeter.span_stats import Interval, stretches
from cellmeter.spans import STEP, Logged, Steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Run

    Floats = NDArray[np.float64]

MOST_CHARTS = 8  # of logged values; the table beside them has all
MOST_LANES = 8  # of spans
MOST_MARKS = 1500  # spans closer together than a pixel are one
RATE_BINS = 200
NAME_LENGTH = 40
HEIGHT = 108
LANE_HEIGHT = 20


def figures(run: Run, start: float, end: float, x_range: Any) -> list[Any]:
    """Bokeh figures of a run from ``start`` to ``end``; none if nothing was said."""
    drawn = []
    if lanes := _lanes(run, start, end):
        drawn.append(_spans(lanes, x_range))
    if rates := _rates(run.steps, start, end):
        drawn.append(_steps(rates, x_range))
    busiest = sorted(run.logged.items(), key=lambda item: -len(item[1].time))[:MOST_CHARTS]
    drawn += [_values(name, logged, x_range) for name, logged in busiest]
    for fig in drawn:
        charts.band(fig, run, start, end, titled=False)
    return drawn


def _lanes(run: Run, start: float, end: float) -> dict[str, list[Interval]]:
    """When spans of each name were open, for as many names as there is room."""
    own = run.own
    names = list(dict.fromkeys(part.name for part in own.spans)) + list(dict.fromkeys(b.name for b in own.batches))
    return {
        name: stretches(
            [span for span in own.spans if span.name == name and span.end >= start and span.start <= end],
            [batch for batch in own.batches if batch.name == name and batch.end >= start and batch.start <= end],
            (end - start) / MOST_MARKS,
        )
        for name in list(dict.fromkeys(names))[:MOST_LANES]
    }


def _spans(lanes: Mapping[str, Sequence[Interval]], x_range: Any) -> Any:
    models = charts.bokeh_models()
    fig = charts.bare_figure("spans", LANE_HEIGHT * len(lanes) + 50, x_range, charts.TOOLS)
    charts.label(fig, "Spans")
    rows = {name: len(lanes) - 1 - row for row, name in enumerate(lanes)}
    marks = [(rows[name], *interval) for name, intervals in lanes.items() for interval in intervals]
    source = models.ColumnDataSource(
        {
            "row": [row for row, _, _ in marks],
            "left": [left for _, left, _ in marks],
            "right": [right for _, _, right in marks],
        }
    )
    ink = charts.BLUE.light
    fig.hbar("row", right="right", left="left", height=0.7, source=source, fill_color=ink, line_color=ink, alpha=0.6)
    fig.y_range = models.Range1d(-0.6, len(lanes) - 0.4)
    fig.yaxis.ticker = models.FixedTicker(ticks=list(rows.values()))
    fig.yaxis.major_label_overrides = {row: _shortened(name, 14) for name, row in rows.items()}
    fig.ygrid.grid_line_color = None
    return fig


def _rates(steps: Mapping[str, Steps], start: float, end: float) -> dict[str, tuple[Floats, Floats]]:
    """Steps, or else amounts, per second: the edges of even bins, none shorter than a second, and the rate in each."""
    import numpy as np

    edges = np.linspace(start, end, max(1, min(RATE_BINS, int(end - start))) + 1)
    found = {}
    for name in sorted(steps, key=lambda name: name != STEP)[: len(charts.DEVICE_INKS)]:
        done, _ = np.histogram(steps[name].time, edges, weights=steps[name].amount)
        found[name] = (edges, done / np.diff(edges))
    return found


def _steps(rates: Mapping[str, tuple[Floats, Floats]], x_range: Any) -> Any:
    """Each rate as a share of its own highest, as steps and tokens are no common scale; the title has the figures."""
    import numpy as np

    fig = charts.bare_figure("steps", HEIGHT, x_range, charts.TOOLS)
    said = []
    for ink, (name, (edges, rate)) in zip(charts.DEVICE_INKS, rates.items(), strict=False):
        highest = float(rate.max())
        scale = highest if len(rates) > 1 and highest > 0 else 1.0
        line = np.append(rate, rate[-1:]) / scale
        fig.step(edges, line, mode="after", line_color=ink.light, line_width=1.6)
        said.append(f"{'steps' if name == STEP else _shortened(name)}/s peak {number_text(highest)}")
    charts.label(fig, " · ".join(said) + (" (each by its own peak)" if len(rates) > 1 else ""))
    fig.y_range.start = 0
    return fig


def _values(name: str, logged: Logged, x_range: Any) -> Any:
    import numpy as np

    models = charts.bokeh_models()
    fig = charts.bare_figure("logged", HEIGHT, x_range, charts.TOOLS)
    known = logged.value[np.isfinite(logged.value)]
    ends = f"last {number_text(float(logged.value[-1]))}" + (
        f", {number_text(float(known.min()))} to {number_text(float(known.max()))}" if len(known) else ""
    )
    charts.label(fig, f"{_shortened(name)} · {ends}")
    ink, first = charts.PURPLE.light, True
    for pid in np.unique(logged.pid)[: len(charts.DEVICE_INKS)]:
        mine = logged.pid == pid
        rows = np.column_stack([logged.value[mine], logged.low[mine], logged.high[mine]])
        rows[~np.isfinite(rows)] = np.nan
        time, rows = charts.decimate(logged.time[mine], rows, charts.MOST_POINTS)
        source = models.ColumnDataSource({"t": time, "value": rows[:, 0], "low": rows[:, 1], "high": rows[:, 2]})
        if (logged.count[mine] > 1).any():
            fig.varea("t", "low", "high", source=source, fill_color=ink, fill_alpha=0.2)
        line = fig.line("t", "value", source=source, line_color=ink, line_width=1.6, line_alpha=1.0 if first else 0.55)
        if len(time) < 60:
            fig.scatter("t", "value", source=source, color=ink, size=4)
        tips = [("time", "@t{0.0} s"), ("value", "@value{0.[000000]}")]
        fig.add_tools(models.HoverTool(renderers=[line], tooltips=tips, mode="vline"))
        first = False
    return fig


def number_text(value: float) -> str:
    """A value of the user's, whatever its size."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def _shortened(name: str, most: int = NAME_LENGTH) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
