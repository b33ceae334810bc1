"""What sources of other packages measured, drawn below the charts of a run on the same time axis: a chart a metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellmeter import charts, timeline
from cellmeter.run import known
from cellmeter.words import KNOWN_UNITS, axis_text, unit_text, value_text

if TYPE_CHECKING:
    from cellmeter.metrics import Metric
    from cellmeter.run import Run

MOST_CHARTS = 8  # the table of plugins and an export have more
INKS = (charts.BLUE, charts.VERMILLION, charts.GREEN, charts.PURPLE, charts.AMBER, charts.GREY)  # a subject each
HEIGHT = 118
LEGEND_HEIGHT = 18


def figures(run: Run, start: float, end: float, x_range: Any) -> list[Any]:
    """Bokeh figures of a run from ``start`` to ``end``: gauges and rates; none without plugins."""
    metrics = [metric for metric in run.plugin_metrics if metric.kind != "counter" and run.subjects(metric.name)]
    drawn = [_figure(run, metric, start, end, x_range) for metric in metrics[:MOST_CHARTS]]
    if not drawn:
        return []
    bands = timeline.bands_of(run, start, end)
    for fig in drawn:
        timeline.band(fig, bands, start, end, titled=False)
    return drawn


def _figure(run: Run, metric: Metric, start: float, end: float, x_range: Any) -> Any:
    fig: Any = timeline.bare_figure("plugin", HEIGHT, x_range, timeline.TOOLS)
    subjects = run.subjects(metric.name)
    lines, ends = [], []
    for subject, ink in zip(subjects, INKS, strict=False):
        series = run.series(metric.name, subject).between(start, end)
        readings = timeline.thinned(series.time, series.values[:, None])
        lines.append((subject, _line(fig, metric, subject, ink, readings)))
        if len(numbers := known(series.values)):
            ends += [float(numbers.min()), float(numbers.max())]
    _scale(fig, metric.unit, ends)
    timeline.label(fig, _title(metric, len(subjects), max(ends, default=math.nan)))
    if len(subjects) > 1:
        timeline.legend(fig, lines)
        fig.height += LEGEND_HEIGHT
    return fig


def _line(fig: Any, metric: Metric, subject: str, ink: charts.Ink, readings: timeline.Thinned) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool

    columns: dict[str, Any] = {"t": readings.time, "value": readings.values[:, 0]}
    if readings.low is not None and readings.high is not None:
        columns |= {"low": readings.low[:, 0], "high": readings.high[:, 0]}
    source = ColumnDataSource(columns)
    if readings.low is not None:
        fig.varea("t", "low", "high", source=source, fill_color=ink.light, fill_alpha=0.28)
    line = fig.line("t", "value", source=source, line_color=ink.light, line_width=1.6)
    form, suffix = timeline.HOVER_FORMS.get(metric.unit, ("0.[0000]", unit_text(metric.unit)))
    tips = [("time", "@t{00:00:00}"), (subject, f"@value{{{form}}}{suffix}")]
    fig.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline"))
    return line


def _scale(fig: Any, unit: str, ends: Sequence[float]) -> None:
    """From 0 where nothing is below it, with round ticks; the title has the unit where it is none of ours."""
    fig.yaxis.ticker.desired_num_ticks, fig.yaxis.ticker.num_minor_ticks = 3, 0
    if not ends or min(ends) < 0 or max(ends) == 0:
        return
    top, unit = 1.1 * max(ends), unit if unit in KNOWN_UNITS else "1"
    fig.y_range.start, fig.y_range.end = 0, top
    ticks = charts.value_ticks(top, unit)
    fig.yaxis.ticker = ticks
    fig.yaxis.major_label_overrides = {tick: axis_text(tick, unit) for tick in ticks}


def _title(metric: Metric, subjects: int, most: float) -> str:
    left_out = f" · {subjects - len(INKS)} more not drawn" if subjects > len(INKS) else ""
    return f"{metric.name} · peak {value_text(most, metric.unit)}{left_out}"
