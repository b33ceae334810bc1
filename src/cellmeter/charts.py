"""What is drawn and how: panels as plain data.

The live panel, the picture left behind in the notebook and the report all draw the same :class:`PanelSpec`. Plain Python here,
numpy where arrays come in: Bokeh, which takes 0.5 s to import, is left to ``timeline``.
``js/live.js`` has its own copy of these scales and of ``words``; ``js/format_cases.json`` holds both to the same answers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from cellmeter.metrics import METRICS, RATE_OF, Group
from cellmeter.run import Column, Device, Limit, Rates, Run, Series
from cellmeter.words import axis_text, half_up, peak_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Role = Literal["main", "second", "faint", "other"]
BESIDE = ("faint", "other")  # roles that no peak, mean or sum counts
DEFAULT_GROUPS: tuple[Group, ...] = ("cpu", "memory", "gpu")
GROUPS: tuple[Group, ...] = ("cpu", "memory", "gpu", "io", "net", "power")
_TITLES: dict[Group, str] = {
    "cpu": "CPU",
    "memory": "memory",
    "gpu": "GPU",
    "io": "disk",
    "net": "network",
    "power": "GPU power",
}
_TREE = "the kernel and its worker processes"
MOST_LINES = 3  # more devices than that get a lane each: eight lines in one chart cannot be told apart
LANE_FILL = 0.84  # of a lane's height, so that full lanes do not touch
NOT_USED = "not used"
NOTABLE_SHARE, NOTABLE_BYTES = 1.05, 32 << 20  # what workers add to the kernel's own memory, to be worth a word


class Ink(NamedTuple):
    """One colour on a light and on a dark page, both at 3:1 contrast or more; after Okabe and Ito."""

    light: str
    dark: str


BLUE = Ink("#0072B2", "#56B4E9")
GREEN = Ink("#008A64", "#2FC597")
VERMILLION = Ink("#D55E00", "#F58B45")
PURPLE = Ink("#A8518A", "#DB8FBE")
AMBER = Ink("#A87400", "#E69F00")
GREY = Ink("#8C9196", "#7D848B")
DEVICE_INKS = (VERMILLION, BLUE, PURPLE)
_INKS = {"cpu": BLUE, "memory": GREEN, "io": BLUE, "net": BLUE}


class Line(NamedTuple):
    """One quantity in a panel. ``top`` is what fills its lane, in the panel's unit; None outside of lanes.

    ``about`` says what the label is short for.
    """

    metric: str
    subject: str
    label: str
    role: Role
    ink: Ink
    top: float | None = None
    about: str = ""


@dataclass(frozen=True)
class PanelSpec:
    """One chart: its lines share a unit and a scale. With ``lanes`` each line has a row of its own."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    limit: float | None = None
    lanes: bool = False
    exact_peak: float | None = None
    """Known otherwise than by samples, which may have missed it."""

    @property
    def group(self) -> Group:
        """What ``--show`` calls it."""
        return cast("Group", self.key.partition("-")[0])

    @property
    def used(self) -> bool:
        """Whether any of its lines counts: GPUs that others use do not."""
        return any(line.role not in BESIDE for line in self.lines)

    @property
    def height(self) -> int:
        """Of the chart without its heading, in CSS pixels."""
        return 26 + 18 * len(self.lines) if self.lanes else 112


@dataclass(frozen=True)
class Frame:
    """Readings to draw: ``time`` in seconds (n), ``values`` n × lines of all panels in their order; NaN where unknown.

    ``missing`` says why a group has no panel.
    """

    panels: tuple[PanelSpec, ...]
    time: Floats
    values: Floats
    missing: Mapping[Group, str] = field(default_factory=dict)

    def only(self, groups: Sequence[Group]) -> Frame:
        """The panels of these groups, and what is missing of them, if they are not those that everybody gets."""
        kept = tuple(spec for spec in self.panels if spec.group in groups)
        if kept == self.panels:
            values = self.values
        else:
            import numpy as np

            values = np.column_stack([self.of(spec) for spec in kept]) if kept else self.values[:, :0]
        asked = () if tuple(groups) == DEFAULT_GROUPS else groups
        return Frame(kept, self.time, values, {group: why for group, why in self.missing.items() if group in asked})

    def of(self, panel: PanelSpec) -> Floats:
        """The values of one panel, n × its lines."""
        before = self.panels[: self.panels.index(panel)]
        at = sum(len(p.lines) for p in before)
        return self.values[:, at : at + len(panel.lines)]


# ---- what there is to draw -------------------------------------------------------------------------------------------


def panels(
    columns: Iterable[Column], limits: Mapping[str, Limit], devices: Sequence[Device], groups: Sequence[Group]
) -> tuple[PanelSpec, ...]:
    """The panels that a run with these columns can fill, in the order cpu, memory, gpu, io, net, power."""
    recorded = {(column.metric, column.subject) for column in columns}

    def line(metric: str, subject: str, label: str, role: Role, ink: Ink, about: str = "") -> tuple[Line, ...]:
        there = (RATE_OF.get(metric, metric), subject) in recorded
        return (Line(metric, subject, label, role, ink, about=about),) if there else ()

    gpus = [d for d in devices if d.mine is not False]
    cores, memory = limits.get("cpu_cores"), limits.get("memory_bytes")
    made: list[PanelSpec | None] = []
    if "cpu" in groups:
        drawn = line("process.cpu.usage", "process", "with workers", "main", BLUE, _TREE)
        drawn += line("host.cpu.usage", "host", "machine", "faint", GREY, "all processes of the machine")
        made.append(_panel("cpu", "CPU", drawn, cores.value if cores else None))
    if "memory" in groups:
        drawn = line("process.tree.memory.rss", "process", "with workers", "main", GREEN, _TREE)
        drawn += line("process.memory.rss", "process", "kernel", "second", AMBER, "the kernel process alone")
        drawn += line("host.memory.used", "host", "machine", "faint", GREY, "all processes of the machine")
        made.append(_panel("memory", "Memory", drawn, memory.value if memory else None))
    if "gpu" in groups:
        made.append(_device_panel("gpu", "GPU", "gpu.utilization", gpus, recorded, [100.0] * len(gpus)))
        sizes = [float(d.memory_bytes) for d in gpus]
        made.append(_device_panel("gpu-memory", "GPU memory", "gpu.memory.used", gpus, recorded, sizes))
    if "io" in groups:
        drawn = line("process.disk.read.rate", "process", "read", "main", BLUE)
        drawn += line("process.disk.written.rate", "process", "written", "second", VERMILLION)
        made.append(_panel("io", "Disk", drawn, None))
    if "net" in groups:
        drawn = line("host.network.received.rate", "host", "in", "main", BLUE)
        drawn += line("host.network.sent.rate", "host", "out", "second", VERMILLION)
        made.append(_panel("net", "Network", drawn, None))
    if "power" in groups:
        watts = [d.power_limit_watts or 0.0 for d in gpus]
        made.append(_device_panel("power", "GPU power", "gpu.power", gpus, recorded, watts))
    return tuple(panel for panel in made if panel is not None)


def without(specs: Sequence[PanelSpec], others: Collection[str]) -> tuple[PanelSpec, ...]:
    """The panels with GPUs that do not work for the kernel in grey, and counted nowhere. ``others``: the subjects of these."""
    return tuple(
        replace(
            spec,
            lines=tuple(
                line._replace(role="other", ink=GREY, about="not used by this kernel")
                if line.subject in others
                else line
                for line in spec.lines
            ),
        )
        for spec in specs
    )


def _panel(key: str, title: str, lines: tuple[Line, ...], limit: float | None) -> PanelSpec | None:
    if not lines:
        return None
    if lines[0].role != "main":  # the first choice is not recorded: what is takes its place
        lines = (lines[0]._replace(role="main", ink=_INKS[key]), *lines[1:])
    return PanelSpec(key, title, METRICS[lines[0].metric].unit, lines, limit)


def _device_panel(
    key: str,
    title: str,
    metric: str,
    devices: Sequence[Device],
    recorded: set[tuple[str, str]],
    tops: Sequence[float],
) -> PanelSpec | None:
    there = [(d, top) for d, top in zip(devices, tops, strict=True) if (metric, d.id) in recorded]
    if not there:
        return None
    lanes = len(there) > MOST_LINES
    lines = tuple(
        Line(
            metric,
            device.id,
            device.id,
            "main",
            _device_ink(key, index, len(there)),
            (top or None) if lanes else None,
        )
        for index, (device, top) in enumerate(there)
    )
    same = len({top for _, top in there}) == 1
    limit = there[0][1] if same and there[0][1] else None
    return PanelSpec(key, title, METRICS[metric].unit, lines, limit, lanes)


def _device_ink(key: str, index: int, count: int) -> Ink:
    if 1 < count <= MOST_LINES:
        return DEVICE_INKS[index]
    return {"gpu": VERMILLION, "gpu-memory": PURPLE}.get(key, AMBER)


def missing(specs: Sequence[PanelSpec], devices: Sequence[Device]) -> dict[Group, str]:
    """Why a group has no panel, for each that has none."""
    there = {spec.group for spec in specs}
    gpu = "not measured here" if devices else "no GPU on this machine"
    if devices and all(device.mine is False for device in devices):
        gpu = "none of this machine's GPUs is yours"
    return {group: gpu if group in ("gpu", "power") else "not measured here" for group in GROUPS if group not in there}


def title_of(group: Group) -> str:
    """A group's name within a sentence."""
    return _TITLES[group]


def spec_for_page(specs: Sequence[PanelSpec]) -> list[dict[str, Any]]:
    """The panels as ``js/live.js`` wants them."""
    return [
        {
            "key": spec.key,
            "title": spec.title,
            "unit": spec.unit,
            "limit": spec.limit,
            "lanes": spec.lanes,
            "exact": spec.exact_peak,
            "height": spec.height,
            "lines": [
                {"label": x.label, "role": x.role, "ink": list(x.ink), "top": x.top}
                | ({"about": x.about} if x.about else {})
                for x in spec.lines
            ],
        }
        for spec in specs
    ]


def notably_more(tree: float | None, kernel: float | None) -> bool:
    """Whether workers add so much to the kernel's own memory that it is to be said."""
    return tree is not None and kernel is not None and tree > max(NOTABLE_SHARE * kernel, kernel + NOTABLE_BYTES)


# ---- scales ----------------------------------------------------------------------------------------------------------

_LEAST_TOP = {"{cpu}": 1.0, "By": 64.0 * 2**20, "%": 100.0, "W": 50.0, "By/s": 2.0**20}


def scale_top(spec: PanelSpec, peaks: Sequence[float]) -> float:
    """Where a panel's scale ends, its peaks (one a line, NaN: none) given; lanes end at their number.

    The limit comes into the picture at half of it, so that a small use is not pressed flat by a large machine; faint lines
    do not stretch the scale to more than twice what the others need.
    """
    if spec.lanes:
        return float(len(spec.lines))
    if spec.unit == "%":
        return 104.0
    top = max(_LEAST_TOP.get(spec.unit, 1.0), spec.exact_peak or 0.0)
    pairs = [(line.role, peak) for line, peak in zip(spec.lines, peaks, strict=True) if not math.isnan(peak)]
    top = max([top, *(peak for role, peak in pairs if role != "faint")])
    wide = max([top, *(peak for role, peak in pairs if role == "faint" and peak <= 2 * top)])
    if spec.limit and wide >= 0.5 * spec.limit:
        wide = max(wide, spec.limit)
    return wide * 1.1


def highest(spec: PanelSpec, peaks: Sequence[float]) -> float | None:
    """The greatest of the peaks, what is beside aside, and of what is known exactly; None if none is known."""
    known = [
        peak for line, peak in zip(spec.lines, peaks, strict=True) if line.role not in BESIDE and not math.isnan(peak)
    ]
    return max([*known, *([spec.exact_peak] if spec.exact_peak else [])], default=None)


def caption(spec: PanelSpec, peaks: Sequence[float]) -> str:
    """What stands above a panel: its highest reading, if it has a line that counts."""
    return peak_text(highest(spec, peaks), spec.limit, spec.unit) if spec.used else NOT_USED


def worth_drawing(spec: PanelSpec, peaks: Sequence[float], top: float) -> tuple[bool, ...]:
    """Which lines say something: not those off the scale, nor the kernel's memory where it is all there is."""
    first = peaks[0] if peaks else math.nan
    return tuple(
        line.role == "main" or (line.role == "faint" and peak <= top) or (line.role == "second" and first > 1.01 * peak)
        if spec.key == "memory"
        else not math.isnan(peak)
        for line, peak in zip(spec.lines, peaks, strict=True)
    )


def hidden_peak(spec: PanelSpec, peaks: Sequence[float]) -> float | None:
    """The exact peak, where no sample has seen it."""
    exact = spec.exact_peak
    return exact if exact and peaks and exact > 1.02 * peaks[0] else None


def value_ticks(top: float, unit: str) -> list[float]:
    """Two to four round values from 0 to at most ``top``; bytes in steps of round KiB, MiB, GiB."""
    factor = 1.0
    if unit in ("By", "By/s"):
        while top / factor >= 999.5:
            factor *= 1024
    step = _round_step(top / factor / 2) * factor
    return [index * step for index in range(math.floor(top / step + 1e-9) + 1)]


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    fit = [m for m in (1.0, 2.0, 5.0) if m * power <= raw * (1 + 1e-9)]
    return fit[-1] * power


_TIME_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def time_ticks(start: float, end: float, most: int = 6) -> list[tuple[float, str]]:
    """Round times between ``start`` and ``end`` (seconds), at most ``most`` of them, with labels like ``0:30``, ``0.2 s``."""
    span = max(end - start, 1e-3)
    step = next((s for s in _TIME_STEPS if span / s <= most), 86400.0)
    first = math.ceil(start / step - 1e-9)
    last = math.floor(end / step + 1e-9)
    return [(index * step, _clock(index * step, step)) for index in range(first, last + 1)]


def _clock(seconds: float, step: float) -> str:
    if step < 1:
        return f"{seconds:.1f} s"
    whole = half_up(seconds)
    if whole < 60 and step < 30:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def lane_values(spec: PanelSpec, values: Floats) -> Floats:
    """Values of a panel with lanes moved to their rows: the first device is the topmost."""
    import numpy as np

    count = len(spec.lines)
    peaks = np.fmax.reduce(values, axis=0) if len(values) else np.zeros(count)
    most = float(np.fmax.reduce(peaks)) if count else 1.0
    tops = np.array([line.top or most or 1.0 for line in spec.lines])
    base = count - 1 - np.arange(count)
    drawn: Floats = base + np.clip(values / tops, 0, 1) * LANE_FILL
    return drawn


# ---- readings --------------------------------------------------------------------------------------------------------


def decimate(time: Floats, values: Floats, most_rows: int) -> tuple[Floats, Floats]:
    """At most ``most_rows`` rows that draw the same picture: the extremes of every column in equal times, in their order.

    All columns share the times, the first and the last of each bucket, so an extreme moves by less than a bucket's width.
    ``values`` is n × k; a gap (NaN) stays where it fills a bucket.
    """
    import numpy as np

    buckets = most_rows // 2
    if len(time) <= most_rows or buckets < 1 or time[-1] <= time[0]:
        return time, values
    part = (time - time[0]) / (time[-1] - time[0]) * buckets
    return _bucketed(time, values, np.minimum(np.floor(part), buckets - 1))


def thinned(time: Floats, values: Floats, seconds: float) -> tuple[Floats, Floats]:
    """Rows of which at most two are left in each ``seconds`` of time, with the extremes of every column.

    Doing it again changes nothing, and an extreme moves by less than that time: so a recording that grows can be thinned again
    and again, all of it alike, by doubling ``seconds`` as it needs to.
    """
    import numpy as np

    return _bucketed(time, values, np.floor(time / seconds))


def _bucketed(time: Floats, values: Floats, part: Floats) -> tuple[Floats, Floats]:
    import numpy as np

    cuts = np.flatnonzero(np.diff(part)) + 1
    times, rows = [time[:0]], [values[:0]]
    for low, high in itertools.pairwise([0, *cuts.tolist(), len(time)]):
        times.append(time[[low, high - 1]] if high - low > 1 else time[low:high])
        rows.append(_extremes(values[low:high]) if high - low > 2 else values[low:high])
    return np.concatenate(times), np.concatenate(rows)


def _extremes(values: Floats) -> Floats:
    """The least and the greatest of each column (2 × k), in their order; NaN where all are unknown."""
    import numpy as np

    least, most = np.nan_to_num(values, nan=np.inf), np.nan_to_num(values, nan=-np.inf)
    falling = most.argmax(0) < least.argmin(0)
    ends = np.where(falling, (most.max(0), least.min(0)), (least.min(0), most.max(0)))
    return np.where(np.isinf(ends), np.nan, ends)


def frame_of(run: Run, start: float, end: float, groups: Sequence[Group] = DEFAULT_GROUPS) -> Frame:
    """The readings of a run from ``start`` to ``end``, in seconds since the run's start."""
    import numpy as np

    columns = dict.fromkeys(c for segment in run.segments for c in segment.columns)
    specs = panels(columns, run.limits, run.devices, groups)
    lines = [line for spec in specs for line in spec.lines]
    time = all_times([within(run.times(line.metric, line.subject), start, end) for line in lines])
    values = np.empty((len(time), len(lines)))
    for index, line in enumerate(lines):
        values[:, index] = at_each(run.series(line.metric, line.subject).between(start, end), time)
    return Frame(specs, time, values, missing(specs, run.devices))


def within(times: Floats, start: float, end: float) -> Floats:
    """Those from ``start`` to ``end``, both included."""
    return times[times.searchsorted(start, "left") : times.searchsorted(end, "right")]


def at_each(series: Series, times: Floats) -> Floats:
    """The readings at times that have all of theirs among them; NaN at the others."""
    import numpy as np

    if np.array_equal(series.time, times):
        return series.values
    values = np.full(len(times), np.nan)
    values[times.searchsorted(series.time)] = series.values
    return values


def all_times(times: Sequence[Floats]) -> Floats:
    """The times of all series together. Nearly always they are the same, and a day of them takes seconds to sort."""
    import numpy as np

    different = [one for index, one in enumerate(times) if index == 0 or not np.array_equal(one, times[0])]
    if len(different) == 1 and (np.diff(different[0]) > 0).all():
        return different[0]
    return np.unique(np.concatenate(different or [np.empty(0)]))


def values_of(
    specs: Sequence[PanelSpec], columns: Sequence[Column], time: Floats, stored: Floats, rates: Rates
) -> Floats:
    """Readings of all lines (n × lines) from stored records: gauges as they are, rates of their counters."""
    import numpy as np

    at = {(column.metric, column.subject): index for index, column in enumerate(columns)}
    lines = [line for spec in specs for line in spec.lines]
    values = np.full((len(time), len(lines)), np.nan)
    nobody = np.zeros(len(time), np.int64)
    for index, line in enumerate(lines):
        column = at.get((RATE_OF.get(line.metric, line.metric), line.subject))
        if column is None:
            continue
        reading = stored[:, column]
        if line.metric in RATE_OF:
            reading = rates.of(METRICS[line.metric], Series(time, reading, nobody)).values
        values[:, index] = reading
    return values


# ---- axes -------------------------------------------------------------------------------------------------------------


def axis_of(spec: PanelSpec, top: float) -> tuple[list[float], list[str]]:
    """Ticks of the value axis and their labels."""
    if spec.lanes:
        rows = len(spec.lines)
        return [rows - 1 - i + LANE_FILL / 2 for i in range(rows)], [line.label for line in spec.lines]
    ticks = [0.0, 50.0, 100.0] if spec.unit == "%" else value_ticks(top, spec.unit)
    return ticks, [axis_text(tick, spec.unit) for tick in ticks]
