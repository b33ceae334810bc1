"""Machines elsewhere, drawn below the charts of a run on the same time axis: a lane each GPU and each machine's cores.

A dot is a sample, at the time Prometheus took it; between two dots nothing is known, so the line between them is thin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter import charts, timeline
from cellmeter.remote import CPU, UTILIZATION, Readings, host_of
from cellmeter.words import given_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.charts import Ink
    from cellmeter.run import Run

    Floats = NDArray[np.float64]

MOST_LANES = 16
LANE_HEIGHT, LEAST_HEIGHT = 34, 68
GAP = 0.16  # between two lanes, of a lane's height
LABEL_LENGTH = 13
BROKEN = 2.5  # intervals without a sample: nothing is drawn across
FEW_POINTS = 400  # have a dot each


class Lane(NamedTuple):
    """One row: what it is called, its readings in percent, and its colour."""

    label: str
    readings: Readings
    interval: float
    ink: Ink


def figures(run: Run, start: float, end: float, x_range: Any) -> list[Any]:
    """A Bokeh figure of what was read from ``start`` to ``end``; none if nothing was."""
    lanes = _lanes(run, start, end)
    if not lanes or run.remote is None:
        return []
    shown = lanes[:MOST_LANES]
    fig = timeline.bare_figure("elsewhere", max(LANE_HEIGHT * len(shown), LEAST_HEIGHT) + 50, x_range, timeline.TOOLS)
    left = f", {len(lanes) - len(shown)} more in the table" if len(lanes) > len(shown) else ""
    interval = run.remote.interval_seconds
    timeline.label(fig, f"Elsewhere, in % · coarse: every {given_text(interval, 's')}, from Prometheus{left}")
    fig.y_range = _models().Range1d(0, len(shown))
    for row, lane in enumerate(reversed(shown)):
        _draw(fig, row, lane)
    fig.yaxis.ticker = _models().FixedTicker(ticks=[row + 0.42 for row in range(len(shown))])
    names = {row + 0.42: lane.label for row, lane in enumerate(reversed(shown))}
    fig.yaxis.major_label_overrides = names
    fig.ygrid.grid_line_color = None
    timeline.band(fig, timeline.bands_of(run, start, end), start, end, titled=False)
    return [fig]


def _models() -> Any:
    """``bokeh.models``, whose type stubs lack half of it."""
    import bokeh.models

    return bokeh.models


def _lanes(run: Run, start: float, end: float) -> list[Lane]:
    remote = run.remote
    if remote is None:
        return []
    wanted = [(device.id, UTILIZATION, device.id, 1.0, charts.VERMILLION) for device in remote.devices]
    wanted += [
        (f"{machine.id} CPU", CPU, host_of(machine.id), 100.0 / machine.cpu_count, charts.BLUE)
        for machine in remote.machines
        if machine.cpu_count
    ]
    lanes = []
    for label, metric, subject, scale, ink in wanted:
        found = remote.readings.get((metric, subject))
        if found is None:
            continue
        inside = (found.time >= start) & (found.time <= end)
        if inside.any():
            time, values, seconds = (column[inside] for column in found)
            lanes.append(
                Lane(_shortened(label), Readings(time, values * scale, seconds), remote.interval(subject), ink)
            )
    return lanes


def _draw(fig: Any, row: int, lane: Lane) -> None:
    models, ink = _models(), lane.ink.light
    time, values = _broken(lane.readings, BROKEN * lane.interval)
    time, columns = charts.decimate(time, values[:, None], timeline.MOST_POINTS)
    values = columns[:, 0]
    placed = row + (1 - GAP) * values.clip(0, 100) / 100
    source = models.ColumnDataSource({"t": time, "y": placed, "value": values, "ground": _grounded(placed, row)})
    fig.line(x=[fig.x_range.start, fig.x_range.end], y=[row, row], line_color="#808080", line_alpha=0.25, line_width=1)
    fig.varea("t", row, "ground", source=source, fill_color=ink, fill_alpha=0.14)
    line = fig.line("t", "y", source=source, line_color=ink, line_width=1, line_alpha=0.7, line_join="round")
    if len(time) <= FEW_POINTS:
        fig.scatter("t", "y", source=source, color=ink, size=4)
    tips = [("time", "@t{00:00:00}"), (lane.label, "@value{0} %")]
    fig.add_tools(models.HoverTool(renderers=[line], tooltips=tips, mode="vline", point_policy="snap_to_data"))


def _grounded(placed: Floats, row: int) -> Floats:
    """Without gaps, as Bokeh fills across them."""
    import numpy as np

    return np.nan_to_num(placed, nan=float(row))


def _broken(readings: Readings, longest: float) -> tuple[Floats, Floats]:
    """The same with unknown values at both ends of a time without a sample, so that no area spans it."""
    import numpy as np

    time, values, _ = readings
    wide = np.repeat(np.flatnonzero(np.diff(time) > longest) + 1, 2)
    ends = np.where(np.arange(len(wide)) % 2, time[wide] - 1e-3, time[wide - 1] + 1e-3)
    return np.insert(time, wide, ends), np.insert(values, wide, np.nan)


def _shortened(name: str) -> str:
    """The end of a name tells GPUs apart."""
    return name if len(name) <= LABEL_LENGTH else "…" + name[1 - LABEL_LENGTH :]
