"""The whole run as Bokeh figures above each other, for the report: pan and zoom, banded by cells, readings under the mouse.

A long run has more readings than the page has pixels: then a line is the mean of each pixel or so (the peak, of memory), and
a shade around it goes from the least to the most, so that a spike of one sample stays visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter.charts import (
    BESIDE,
    DEFAULT_GROUPS,
    VERMILLION,
    PanelSpec,
    all_times,
    at_each,
    axis_of,
    caption,
    decimate,
    lane_values,
    panels,
    scale_top,
    within,
    without,
)
from cellmeter.metrics import Group
from cellmeter.rules.ownership import not_used
from cellmeter.rules.scripts import is_script
from cellmeter.run import Cell, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_POINTS = 2000  # of a line that is drawn as it is
MOST_STEPS = 900  # of means with what lies around them: one per pixel or so
MOST_BANDS = 800  # a cell narrower than a pixel and a half has no band
MOST_NAMES = 40  # of bands: each is an annotation
FRAME_WIDTH = 900.0  # CSS pixels of a plot area where the page is wide
CHARACTER_WIDTH = 5.8  # of a name
LEAST_NAME, MOST_NAME = 4, 40  # characters
HOVER_FORMS = {
    "By": ("0.00 ib", ""),
    "By/s": ("0.00 ib", "/s"),
    "%": ("0", " %"),
    "W": ("0", " W"),
    "{cpu}": ("0.00", " cores"),
}
FRAME_LEFT = 58  # CSS pixels between a figure's edge and its plot area: fixed, so that all panels' times align
FRAME_RIGHT = 10
TOOLS = "xpan,xbox_zoom,xwheel_pan,reset"
AREA, READING, LOW, HIGH = "a", "r", "l", "h"  # end the names of a line's other columns; see _columns


def run_figures(run: Run, groups: Sequence[Group] = DEFAULT_GROUPS) -> Any:
    """A Bokeh layout of the whole run, banded by cells: its panels, plugins, machines elsewhere, what its code said.

    Raises nothing on an empty run.
    """
    from cellmeter import own_charts, plugin_charts, remote_charts

    layout = window_figures(run, 0.0, run.duration, groups)
    if layout.children:
        x_range = layout.children[0].x_range
        for more in (plugin_charts, remote_charts, own_charts):
            layout.children = [*layout.children, *more.figures(run, 0.0, run.duration, x_range)]
    return layout


@dataclass(frozen=True)
class Thinned:
    """Readings for a page's width: times (n) and values (n × lines), and the extremes around them, where they are means."""

    time: Floats
    values: Floats
    low: Floats | None = None
    high: Floats | None = None

    def peaks(self) -> list[float]:
        """The highest reading of each line; NaN where none is known."""
        import numpy as np

        values = self.values if self.high is None else self.high
        return [float(peak) for peak in np.fmax.reduce(values)] if len(values) else [math.nan] * values.shape[1]


def window_figures(run: Run, start: float, end: float, groups: Sequence[Group] = DEFAULT_GROUPS) -> Any:
    """A Bokeh layout of a run from ``start`` to ``end`` (seconds since its start), thinned so that spikes stay."""
    from bokeh.layouts import column

    models = _models()
    columns = dict.fromkeys(c for segment in run.segments for c in segment.columns)
    specs = without(panels(columns, run.limits, run.devices, groups), not_used(run, start, end))
    lines = [line for spec in specs for line in spec.lines]
    time = all_times([within(run.times(line.metric, line.subject), start, end) for line in lines])
    x_range = models.Range1d(start, max(end, start + 1e-3), bounds=(start, max(end, start + 1e-3)))
    bands = bands_of(run, start, end)
    figures: list[Any] = []
    for spec in specs:
        readings = _thinned_lines(run, spec, time, start, end)
        if is_script(run):
            spec = replace(
                spec, lines=tuple(x._replace(label="script") if x.label == "kernel" else x for x in spec.lines)
            )
        if spec.key == "memory":
            spec = replace(spec, exact_peak=_exact_peak(run, start, end))
        names = [f"c{index}" for index in range(len(spec.lines))]
        source = models.ColumnDataSource(_columns(spec, readings, names))
        fig = _figure(spec, source, names, x_range, TOOLS)
        if readings.low is not None:
            _shade(fig, spec, source, names)
        _dress(fig, spec, readings, names, first=not figures)
        band(fig, bands, start, end, titled=not figures)
        figures.append(fig)
    return column(figures, sizing_mode="stretch_width", spacing=6)


def _thinned_lines(run: Run, spec: PanelSpec, time: Floats, start: float, end: float) -> Thinned:
    """Line by line where there are many readings: those of all GPUs are not to be held side by side."""
    import numpy as np

    by_peaks = spec.unit == "By"
    lines = ((at_each(run.series(line.metric, line.subject).between(start, end), time)) for line in spec.lines)
    if len(time) <= 4 * MOST_POINTS:
        return thinned(time, np.column_stack(list(lines)), by_peaks=by_peaks)
    parts = [thinned(time, values[:, None], by_peaks=by_peaks) for values in lines]
    low, high = (np.hstack([getattr(part, end) for part in parts]) for end in ("low", "high"))
    return Thinned(parts[0].time, np.hstack([part.values for part in parts]), low, high)


def thinned(time: Floats, values: Floats, *, by_peaks: bool = False) -> Thinned:
    """Extremes in their order where that is enough, else the mean of each step, with its extremes. Gaps (NaN) stay.

    ``by_peaks``: the highest of each step and not its mean, for what is full at its peak, as memory is.
    """
    import numpy as np

    rows = len(time)
    if rows <= 4 * MOST_POINTS:
        return Thinned(*decimate(time, values, MOST_POINTS))
    edges = np.arange(MOST_STEPS) * rows // MOST_STEPS
    counts = np.add.reduceat((~np.isnan(values)).astype(float), edges)
    low, high = np.fmin.reduceat(values, edges), np.fmax.reduceat(values, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.add.reduceat(np.nan_to_num(values), edges) / counts
    return Thinned(time[edges], high if by_peaks else means, low, high)


def _exact_peak(run: Run, start: float, end: float) -> float | None:
    """The highest peak of the cells that began in a window, which samples may have missed."""
    inside = (cell.peak_rss_bytes for cell in run.cells if start <= cell.start <= end)
    return max((float(peak) for peak in inside if peak is not None), default=None)


def _columns(spec: PanelSpec, readings: Thinned, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """What a page needs to draw a panel, in single precision: a day of eight GPUs is to be a small file.

    Beside ``t`` and a column a line: with ``AREA`` the same without gaps, with ``LOW`` and ``HIGH`` the extremes around it,
    and with ``READING`` what was read, where a line is drawn in a lane of its own.
    """
    import numpy as np

    def placed(values: Floats) -> Floats:
        return lane_values(spec, values) if spec.lanes else values

    columns: dict[str, NDArray[Any]] = {"t": readings.time}
    drawn = placed(readings.values)
    extremes = {LOW: readings.low, HIGH: readings.high}
    ends = {end: placed(values) for end, values in extremes.items() if values is not None}
    for index, name in enumerate(names):
        columns[name] = drawn[:, index]
        floor = len(spec.lines) - 1.0 - index if spec.lanes else 0.0
        if np.isnan(drawn[:, index]).any():
            columns[name + AREA] = np.nan_to_num(drawn[:, index], nan=floor)
        for end, values in ends.items():
            columns[name + end] = np.nan_to_num(values[:, index], nan=floor)
        if spec.lanes:
            columns[name + READING] = readings.values[:, index]
    return {name: values if name == "t" else values.astype(np.float32) for name, values in columns.items()}


def _shade(fig: Any, spec: PanelSpec, source: Any, names: Sequence[str]) -> None:
    """From the least to the most around each line; nothing stands behind the machine's own, which is faint anyway."""
    for line, name in zip(spec.lines, names, strict=True):
        if line.role not in BESIDE:
            fig.varea("t", name + LOW, name + HIGH, source=source, fill_color=line.ink.light, fill_alpha=0.28)


def _models() -> Any:
    """``bokeh.models``, whose type stubs lack half of it."""
    import bokeh.models

    return bokeh.models


def bare_figure(name: str, height: int, x_range: Any, tools: str) -> Any:
    """A figure with nothing in it, whose frame lies above and below all others'."""
    from bokeh.plotting import figure

    fig: Any = figure(
        name=name,
        height=height,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools=tools,
        x_range=x_range,
        min_border_left=FRAME_LEFT,
        min_border_right=FRAME_RIGHT,
        min_border_top=4,
        min_border_bottom=18,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
    )
    fig.xaxis.minor_tick_line_color = fig.yaxis.minor_tick_line_color = None
    fig.xaxis.major_tick_line_color = fig.yaxis.major_tick_line_color = None
    fig.xaxis.axis_line_color = fig.yaxis.axis_line_color = None
    fig.xaxis.major_label_text_font_size = fig.yaxis.major_label_text_font_size = "10px"
    fig.xgrid.grid_line_color = None
    return fig


def _figure(spec: PanelSpec, source: Any, names: Sequence[str], x_range: Any, tools: str) -> Any:
    """A bare figure with its lines; an area under the only one, grounded where there are gaps: Bokeh fills across NaN."""
    models = _models()
    fig = bare_figure(spec.key, spec.height, x_range, tools)
    fig.y_range = models.Range1d(0, 1)
    fig.yaxis.ticker = models.FixedTicker(ticks=[])
    base = len(spec.lines) - 1
    for index, (line, name) in reversed(list(enumerate(zip(spec.lines, names, strict=True)))):
        ink = line.ink.light
        if line.role == "main" and (spec.lanes or sum(x.role == "main" for x in spec.lines) == 1):
            floor = base - index if spec.lanes else 0
            ground = name + AREA if name + AREA in source.data else name
            fig.varea("t", floor, ground, source=source, fill_color=ink, fill_alpha=0.16, name=name + AREA)
        width = 1.1 if line.role in BESIDE else 1.3 if spec.lanes else 1.8
        dash = [4, 3] if line.role == "second" and spec.key == "memory" else []
        fig.line(
            "t", name, source=source, line_color=ink, line_width=width, line_dash=dash, line_join="round", name=name
        )
    if spec.limit and not spec.lanes and spec.unit != "%":
        mark = models.Span(location=spec.limit, dimension="width", line_dash=[2, 3], line_width=1.2, name="limit")
        mark.line_color = VERMILLION.light
        fig.add_layout(mark)
    return fig


def _dress(fig: Any, spec: PanelSpec, readings: Thinned, names: Sequence[str], *, first: bool) -> None:
    """Title, scale and hover of a figure that stands alone, without ``live.js`` to do it."""
    models = _models()
    peaks = readings.peaks()
    fig.y_range.end = scale_top(spec, peaks)
    ticks, labels = axis_of(spec, fig.y_range.end)
    fig.yaxis.ticker.ticks = ticks
    fig.yaxis.major_label_overrides = dict(zip(ticks, labels, strict=True))
    who = f" {spec.lines[0].label}" if spec.lines[0].about else ""
    label(fig, f"{spec.title}{who} · {caption(spec, peaks)}")
    fig.height = spec.height + (84 if first else 66)
    _name_lines(fig, spec, names)
    shown = [renderer for renderer in fig.renderers if renderer.name == names[0]]
    tips = [("time", time_form(fig)), *_tips(spec, readings, names)]
    fig.add_tools(models.HoverTool(renderers=shown, tooltips=tips, mode="vline", point_policy="snap_to_data"))


def label(fig: Any, title: str) -> None:
    """Title, time axis and the quiet colours of a report's figure."""
    models = _models()
    span = fig.x_range.end - fig.x_range.start
    fig.xaxis.formatter = (
        models.PrintfTickFormatter(format="%.1f s" if span < 6 else "%d s")
        if span < 60
        else models.NumeralTickFormatter(format="00:00:00")
    )
    fig.xaxis.ticker = models.AdaptiveTicker(
        base=60, mantissas=[1, 2, 5, 10, 15, 30], min_interval=0.1 if span < 6 else 1.0
    )
    fig.title.text = title
    fig.title.text_font_size = "12px"
    fig.title.text_color = "#6E757B"
    fig.axis.major_label_text_color = "#767D83"
    fig.grid.grid_line_color = "#808080"
    fig.grid.grid_line_alpha = 0.22


def time_form(fig: Any) -> str:
    """How the mouse tells a moment: as the time axis does."""
    return "@t{0.0} s" if fig.x_range.end - fig.x_range.start < 60 else "@t{00:00:00}"


def _tips(spec: PanelSpec, readings: Thinned, names: Sequence[str]) -> list[tuple[str, str]]:
    """What the mouse tells of each line, in the numeral formats that Bokeh knows without running code."""
    form, suffix = HOVER_FORMS.get(spec.unit, ("0.00", spec.unit))
    reading = READING if spec.lanes else ""
    around = "" if spec.lanes or readings.low is None else " (@{name}l{form} to @{name}h{form})"
    text = "@{name}{reading}{form}" + suffix + around
    return [
        (line.label, text.replace("{name}", name).replace("{reading}", reading).replace("{form}", f"{{{form}}}"))
        for line, name in zip(spec.lines, names, strict=True)
    ]


def _name_lines(fig: Any, spec: PanelSpec, names: Sequence[str]) -> None:
    """A legend above the plot: every line drawn, by name. Lanes have theirs beside them."""
    if spec.lanes:
        return
    drawn = {renderer.name: renderer for renderer in fig.renderers}
    legend(fig, [(line.label, drawn[name]) for line, name in zip(spec.lines, names, strict=True)])


def legend(fig: Any, lines: Sequence[tuple[str, Any]]) -> None:
    """Names of lines, with their renderers, above the plot."""
    models = _models()
    items = [models.LegendItem(label={"value": name}, renderers=[line]) for name, line in lines]
    above = models.Legend(
        items=items, orientation="horizontal", padding=0, margin=0, spacing=14, border_line_color=None
    )
    above.background_fill_color = None
    above.label_text_font_size, above.label_text_color = "10px", "#767D83"
    above.glyph_height, above.glyph_width, above.label_standoff = 10, 14, 4
    fig.add_layout(above, "above")


Band = tuple[Cell, float]


class Bands(NamedTuple):
    """The cells that are wide enough to be seen, with their ends, and the source that all figures draw them from."""

    seen: list[Band]
    source: Any


def bands_of(run: Run, start: float, end: float) -> Bands:
    """Every other cell is shaded. Cells too narrow to be seen have no band: a thousand annotations would take a minute."""
    span = end - start
    cells = [(cell, run.duration if cell.end is None else cell.end) for cell in run.cells if cell.parent is None]
    inside = [(n, cell, stop) for n, (cell, stop) in enumerate(cells) if stop >= start and cell.start <= end]
    seen = [(n, cell, stop) for n, cell, stop in inside if stop - cell.start >= span / MOST_BANDS]
    columns = {
        "left": [cell.start for _, cell, _ in seen],
        "right": [stop for _, _, stop in seen],
        "alpha": [0.13 if n % 2 == 0 else 0.05 for n, _, _ in seen],
    }
    return Bands([(cell, stop) for _, cell, stop in seen], _models().ColumnDataSource(columns))


def band(fig: Any, bands: Bands, start: float, end: float, *, titled: bool) -> None:
    """Shades the cells, as one glyph; the first figure of a column names those that are wide enough."""
    models = _models()
    fig.vstrip(
        x0="left",
        x1="right",
        source=bands.source,
        fill_color="#808080",
        fill_alpha="alpha",
        line_color=None,
        level="underlay",
    )
    widest = sorted(bands.seen, key=lambda seen: seen[0].start - seen[1])[:MOST_NAMES] if titled else []
    for cell, stop in widest:
        left, right = max(cell.start, start), min(stop, end)
        name = models.Label(x=left, y=fig.y_range.end, text_font_size="10px", x_offset=3, text_baseline="top")
        name.text = fitted(cell.title, (right - left) / max(end - start, 1e-9) * FRAME_WIDTH)
        name.name, name.tags, name.text_color = "band", [cell.title[:MOST_NAME], right], "#6E757B"
        fig.add_layout(name)


def fitted(title: str, width: float) -> str:
    """As much of a name as a band of so many CSS pixels holds; ``report.js`` does the same for the page's true width."""
    most = min(int((width - 4) / CHARACTER_WIDTH), MOST_NAME)
    return title if len(title) <= most else f"{title[: most - 1]}…" if most >= LEAST_NAME else ""
