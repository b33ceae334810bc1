"""What stays in a live panel's place when its cell has ended: a line of text, a picture, and readings that bring it to life."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cellmeter import charts
from cellmeter.errors import BadUsage
from cellmeter.gpu_shares import shares_text
from cellmeter.metrics import SHORT_FOR_CPU_SECONDS
from cellmeter.rules.ownership import not_used
from cellmeter.run import Cell, Run, Series, last_sample, time_weighted_mean
from cellmeter.usage import GpuMemory, own_part
from cellmeter.words import UNKNOWN, cell_cores_text, change_text, peak_text, seconds_text, value_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.metrics import Group

    Floats = NDArray[np.float64]
    Event = Mapping[str, Any]

STILL_BYTES = 14_200  # of the static output in the notebook's JSON, its 500 bytes of markup not counted
STILL_ROWS = 180  # of its readings, or as many as there is room for
LEAST_ROWS = 16
_LEVELS = 1022  # of a packed reading: 0.1 % of its range, a quarter of a pixel; one more means unknown


@dataclass(frozen=True)
class Facts:
    """What a cell's static output says of it besides the charts, as the kernel measured it. None: only samples tell."""

    title: str
    status: str
    seconds: float
    peak_rss_bytes: int | None = None
    growth_bytes: int | None = None
    cores: float | None = None
    gpu_memory: Mapping[str, GpuMemory] = field(default_factory=dict)
    """Whose the memory of each GPU was, by its id."""


def facts_of(
    title: str,
    status: str,
    start: Event,
    end: Event,
    cores: float | None,
    gpu_memory: Mapping[str, GpuMemory],
) -> Facts:
    """The facts of a cell from its edges; ``cores``: what it used on the average."""
    seconds = (end["t"] - start["t"]) * 1e-9
    before, after = start.get("rss_bytes"), end.get("rss_bytes")
    growth = after - before if before is not None and after is not None else None
    return Facts(title, status, seconds, end.get("peak_rss_bytes"), growth, cores, gpu_memory)


_NO_GPU = f"GPU {charts.NOT_USED}"
ENDINGS = {"ok": "done", "error": "failed", "interrupted": "interrupted", "died": "kernel died", "running": "recording"}


def summary(frame: charts.Frame, facts: Facts) -> str:
    """One line: how it ended, CPU, memory and its growth, GPUs."""
    how = ENDINGS.get(facts.status, facts.status)
    after = {"ok": "in", "running": "for"}.get(facts.status, "after")
    head = f"{facts.title}: {how} {after} {seconds_text(facts.seconds)}"
    return " · ".join([head, *_numbers(frame, facts)])


def _numbers(frame: charts.Frame, facts: Facts) -> list[str]:
    parts = [f"{charts.title_of(group)}: {why}" for group, why in frame.missing.items()]
    for spec in frame.panels:
        values = frame.of(spec)
        mains = [i for i, line in enumerate(spec.lines) if line.role == "main"]
        if not spec.used:
            parts += [] if _NO_GPU in parts else [_NO_GPU]
        elif spec.key == "cpu":
            cores = facts.cores
            if cores is None and facts.seconds >= SHORT_FOR_CPU_SECONDS:  # no end edge: only samples tell
                cores = _mean(frame.time, values[:, mains[0]], facts.seconds)
            parts.append(f"CPU {cell_cores_text(cores, facts.seconds, spec.limit)}")
        elif spec.key == "memory":
            parts.append(_memory(spec, values, facts))
        elif spec.unit == "%":
            means = [m for i in mains if (m := _mean(frame.time, values[:, i], facts.seconds)) is not None]
            mean = sum(means) / len(means) if means else None
            parts.append(f"{spec.title} {value_text(mean, '%')} mean, {_peak(values[:, mains], '%')} peak")
        elif spec.key == "gpu-memory" and (shares := _shares(spec, values, facts)):
            parts.append(f"{spec.title} peak {shares}")
        elif any(line.role == "second" for line in spec.lines):  # read and written, in and out: a peak each
            peaks = [f"{line.label} {_peak(values[:, [i]], spec.unit)}" for i, line in enumerate(spec.lines)]
            parts.append(f"{spec.title} peak {', '.join(peaks)}")
        else:
            highest = " of one" if len(mains) > 1 else ""
            parts.append(f"{spec.title} peak{highest} {_peak(values[:, mains], spec.unit)}")
    return parts


def _memory(spec: charts.PanelSpec, values: Floats, facts: Facts) -> str:
    """Peak of the kernel and its workers, no less than the kernel's own, which is exact where it is known; its growth."""
    import numpy as np

    main = values[:, 0][~np.isnan(values[:, 0])]
    peaks = np.fmax.reduce(values, initial=np.nan)
    kernel = [i for i, line in enumerate(spec.lines) if line.role == "second"]
    exact = np.nan if spec.exact_peak is None else spec.exact_peak
    own = float(np.fmax(peaks[kernel[0] if kernel else 0], exact))
    peak = float(np.fmax(own, peaks[0]))
    if np.isnan(peak):
        return f"memory {UNKNOWN}"
    growth = float(main[-1] - main[0]) if facts.growth_bytes is None and len(main) else facts.growth_bytes
    text = f"memory {peak_text(peak, spec.limit, 'By')} ({change_text(growth, 'By')})"
    alone = kernel and charts.notably_more(float(peaks[0]), own)
    return f"{text}, kernel alone {value_text(own, 'By')}" if alone else text


def _shares(spec: charts.PanelSpec, values: Floats, facts: Facts) -> str | None:
    """Whose the memory of a GPU was that others hold memory of too."""
    mains = {line.subject: i for i, line in enumerate(spec.lines) if line.role == "main"}
    memory = {gpu: facts.gpu_memory[gpu] for gpu in mains if gpu in facts.gpu_memory}
    told = own_part(memory) if len(memory) == len(mains) else None
    if told is None:
        return None
    import numpy as np

    peak = float(np.fmax.reduce(values[:, mains[told]]))
    one = "of one " if len(mains) > 1 else ""
    return f"{one}{shares_text(memory[told], peak, spec.lines[mains[told]].top or spec.limit)}"


def _peak(values: Floats, unit: str) -> str:
    import numpy as np

    known = values[~np.isnan(values)]
    return value_text(float(known.max()) if len(known) else None, unit)


def _mean(times: Floats, values: Floats, seconds: float) -> float | None:
    """As the tables have it: the sample taken at the cell's end tells of what comes after it too, and counts if it is all."""
    import numpy as np

    series = Series(times, values, np.zeros(len(times), np.int64))
    inside = time_weighted_mean(series, 0.0, seconds)
    return inside if inside is not None else time_weighted_mean(series, 0.0, math.inf)


def with_exact_peak(frame: charts.Frame, facts: Facts) -> charts.Frame:
    """The frame with what the kernel knows of its peak memory."""
    panels = tuple(
        replace(spec, exact_peak=float(facts.peak_rss_bytes)) if spec.key == "memory" and facts.peak_rss_bytes else spec
        for spec in frame.panels
    )
    return replace(frame, panels=panels)


def still(
    frame: charts.Frame, facts: Facts, shown: Sequence[Group] = charts.DEFAULT_GROUPS, name: str = ""
) -> tuple[dict[str, str], dict[str, Any]]:
    """The static output's MIME bundle and metadata: HTML, whose picture comes to life in a page with the runtime, and text.

    ``shown``: the groups in the picture and the text. ``name``: the live panel's, whose chart goes on in its place.
    """
    from cellmeter import picture

    seen = frame.only(shown)
    text = summary(seen, facts)
    if not len(frame.time):
        return {"text/plain": f"{text} · no samples"}, {}
    drawn = picture.draw(seen, facts.seconds) if seen.panels else None
    room = STILL_BYTES - 3 * len(json.dumps(text)) - (len(drawn.image) * 4 // 3 if drawn else 0)
    packed = base64.b64encode(pack(frame, facts, shown, room * 3 // 4)).decode()
    return {"text/plain": text, "text/html": _still_html(text, drawn, packed, name)}, {}


def image_html(text: str, drawn: Any) -> str:
    """A picture as an ``img`` element that carries it; ``text`` is said in its place where it cannot be seen."""
    return (
        f'<img alt="Charts of {html.escape(text)}" style="max-width:100%" width="{drawn.width}" '
        f'src="data:{drawn.type};base64,{base64.b64encode(drawn.image).decode()}">'
    )


def _still_html(text: str, drawn: Any, packed: str, name: str) -> str:
    image = image_html(text, drawn) if drawn is not None else ""
    return (
        '<div class="cellmeter-still">'
        f'<div style="font-size:12px;padding:2px 0 6px;opacity:.8">{html.escape(text)}</div>{image}'
        f'<script>(globalThis[Symbol.for("cellmeter.stills")]??=[])'
        f'.push([document.currentScript,"{packed}","{name}"])</script></div>'
    )


def pack(frame: charts.Frame, facts: Facts, shown: Sequence[Group], room: int) -> bytes:
    """The static output's data, gzipped, in at most ``room`` bytes if fewer rows can make it so; for ``unpack`` in live.js.

    Length of the JSON, the JSON, then 16-bit levels, each as its difference from the one before, column after column: all low
    bytes, then all high bytes, for so they compress best.
    """
    page = {
        "panels": charts.spec_for_page(frame.panels),
        "shown": shown,
        "asked": tuple(shown) != charts.DEFAULT_GROUPS,
        "missing": frame.missing,
        "title": facts.title,
        **ending_of(frame.only(shown), facts),
    }
    rows = STILL_ROWS
    while True:
        columns, bounds = _levels(*charts.decimate(frame.time, frame.values, rows))
        text = json.dumps(page | {"bounds": bounds}, separators=(",", ":"), allow_nan=False).encode()
        packed = gzip.compress(len(text).to_bytes(4, "little") + text + columns, 9, mtime=0)
        if len(packed) <= room or rows < LEAST_ROWS:
            return packed
        rows = rows * 3 // 4


def _levels(times: Floats, values: Floats) -> tuple[bytes, list[list[float]]]:
    """Packed columns, the time first, and what their lowest and highest level stand for."""
    import numpy as np

    columns, bounds = [], []
    for index, column in enumerate([times, *values.T]):
        known = column[~np.isnan(column)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        span, levels = (high - low) or 1.0, _LEVELS if index else 65535
        words = np.where(np.isnan(column), levels + 1, np.round((column - low) / span * levels)).astype(np.int64)
        columns.append(np.diff(words, prepend=0) & 0xFFFF)
        bounds.append([low, low + span])
    words = np.concatenate(columns)
    return (words & 0xFF).astype(np.uint8).tobytes() + (words >> 8).astype(np.uint8).tobytes(), bounds


def ending_of(frame: charts.Frame, facts: Facts) -> dict[str, Any]:
    """How the cell ended and what it took, for the panel's header."""
    word = ENDINGS.get(facts.status, facts.status)
    return {"status": facts.status, "word": word, "end": facts.seconds, "notes": _numbers(frame, facts)}


def show_cell(run: Run, cell: Cell, groups: Sequence[Group] = charts.DEFAULT_GROUPS) -> None:
    """Draws a recorded cell again, as its static output."""
    from IPython.display import publish_display_data

    data, metadata = still(*_recorded(run, cell), groups)
    publish_display_data(data, metadata)  # type: ignore[no-untyped-call]


def cell_png(run: Run, cell: Cell, groups: Sequence[Group] = charts.DEFAULT_GROUPS) -> bytes:
    """The same as a picture for other documents. Raises BadUsage where there is nothing to draw."""
    from cellmeter import picture

    frame, facts = _recorded(run, cell)
    seen = frame.only(groups)
    if not len(frame.time) or not seen.panels:
        raise BadUsage(f"{cell.title} has no samples, so there is nothing to draw")
    return picture.as_png(seen, facts.seconds, summary(seen, facts))


def _recorded(run: Run, cell: Cell) -> tuple[charts.Frame, Facts]:
    end = run.duration if cell.end is None else cell.end
    frame = charts.frame_of(run, cell.start, last_sample(run, cell), charts.GROUPS)
    panels = charts.without(frame.panels, not_used(run, cell.start, end))
    frame = replace(frame, panels=panels, time=frame.time - cell.start)
    before, after = cell.rss_start_bytes, cell.rss_end_bytes
    growth = after - before if before is not None and after is not None else None
    used = run.usage(cell)
    memory = {gpu: one.memory for gpu, one in used.gpu.items()}
    facts = Facts(cell.title, cell.status, end - cell.start, cell.peak_rss_bytes, growth, used.cores, memory)
    return with_exact_peak(frame, facts), facts
