"""What the user's code said, drawn below the charts of a run on the same time axis: spans, steps per second, logged values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellmeter import charts, timeline
from cellmeter.series import Interval
from cellmeter.span_stats import stretches
from cellmeter.spans import STEP, Logged, Steps
from cellmeter.words import count_text, short_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Run

    Floats = NDArray[np.float64]

MOST_CHARTS = 8  # of logged values; the table beside them has all
MOST_LANES = 8  # of spans
MOST_MARKS = 1500  # spans closer together than a pixel are one
MOST_RATES = 3  # steps and two amounts
RATE_BINS = 200
FEW_POINTS = 60  # have a mark each
INKS = (charts.PURPLE, charts.BLUE, charts.VERMILLION, charts.GREEN, charts.AMBER, charts.GREY)  # kernel, workers
NAME_LENGTH = 40
HEIGHT = 118
LANE_HEIGHT = 20
LEAST_LETTER = 1e4  # from here on an axis counts in thousands


def _models() -> Any:
    """``bokeh.models``, whose type stubs lack half of it."""
    import bokeh.models

    return bokeh.models


def figures(run: Run, start: float, end: float, x_range: Any) -> list[Any]:
    """Bokeh figures of a run from ``start`` to ``end``; none if nothing was said."""
    drawn = []
    if lanes := _lanes(run, start, end):
        drawn.append(_spans(lanes, x_range))
    counted = sorted(run.steps.items(), key=lambda item: item[0] != STEP)[:MOST_RATES]
    drawn += [_rate(name, steps, start, end, x_range) for name, steps in counted]
    busiest = sorted(run.logged.items(), key=lambda item: -len(item[1].time))[:MOST_CHARTS]
    drawn += [_values(name, logged, x_range) for name, logged in busiest]
    if not drawn:
        return []
    bands = timeline.bands_of(run, start, end)
    for fig in drawn:
        timeline.band(fig, bands, start, end, titled=False)
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
    models = _models()
    fig = timeline.bare_figure("spans", LANE_HEIGHT * len(lanes) + 50, x_range, timeline.TOOLS)
    timeline.label(fig, "Spans")
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


def _rate(name: str, steps: Steps, start: float, end: float, x_range: Any) -> Any:
    """Steps, or an amount of what they did, per second, in even bins none of which is shorter than a second."""
    import numpy as np

    edges = np.linspace(start, end, max(1, min(RATE_BINS, int(end - start))) + 1)
    done, _ = np.histogram(steps.time, edges, weights=steps.amount)
    rate = done / np.diff(edges)
    fig = _figure("steps", HEIGHT, x_range)
    fig.step(edges, np.append(rate, rate[-1:]), mode="after", line_color=charts.GREEN.light, line_width=1.6)
    unit = "Steps" if name == STEP else _shortened(name)
    timeline.label(fig, f"{unit}/s · peak {count_text(float(rate.max()))}")
    fig.y_range.start = 0
    _scale(fig, 0.0, float(rate.max()))
    return fig


def _figure(name: str, height: int, x_range: Any) -> Any:
    fig = timeline.bare_figure(name, height, x_range, timeline.TOOLS)
    fig.yaxis.ticker.desired_num_ticks, fig.yaxis.ticker.num_minor_ticks = 3, 0
    return fig


def _scale(fig: Any, low: float, high: float) -> None:
    """Round values beside the axis, with a letter for thousands and millions: Bokeh would write powers of ten."""
    if max(abs(low), abs(high)) < LEAST_LETTER:
        return
    step = charts.value_ticks(high - low, "1")[1] if high > low else abs(high)
    ticks = [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    fig.yaxis.ticker = _models().FixedTicker(ticks=ticks)
    fig.yaxis.major_label_overrides = {tick: short_text(tick) for tick in ticks}


def _values(name: str, logged: Logged, x_range: Any) -> Any:
    import numpy as np

    models = _models()
    fig = _figure("logged", HEIGHT, x_range)
    known = logged.value[np.isfinite(logged.value)]
    ends = f"last {count_text(float(logged.value[-1]))}" + (
        f", {count_text(float(known.min()))} to {count_text(float(known.max()))}" if len(known) else ""
    )
    if len(known):
        _scale(fig, float(known.min()), float(known.max()))
    timeline.label(fig, f"{_shortened(name)} · {ends}")
    sayers = np.unique(logged.pid)
    for pid, hue in zip(sayers, INKS, strict=False):
        ink, mine = hue.light, logged.pid == pid
        rows = np.column_stack([logged.value[mine], logged.low[mine], logged.high[mine]])
        rows[~np.isfinite(rows)] = np.nan
        time, rows = charts.decimate(logged.time[mine], rows, timeline.MOST_POINTS)
        source = models.ColumnDataSource({"t": time, "value": rows[:, 0], "low": rows[:, 1], "high": rows[:, 2]})
        if (logged.count[mine] > 1).any():
            fig.varea("t", "low", "high", source=source, fill_color=ink, fill_alpha=0.2)
        line = fig.line("t", "value", source=source, line_color=ink, line_width=1.6)
        if len(time) < FEW_POINTS:
            fig.scatter("t", "value", source=source, color=ink, size=4)
        who = f"worker {pid}" if pid else "kernel"
        tips = [("time", timeline.time_form(fig)), (who if len(sayers) > 1 else "value", "@value{0.[000000]}")]
        fig.add_tools(models.HoverTool(renderers=[line], tooltips=tips, mode="vline"))
    return fig


def _shortened(name: str, most: int = NAME_LENGTH) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
