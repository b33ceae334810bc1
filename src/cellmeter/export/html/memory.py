"""Memory over the whole run: where it peaked, and who kept what they took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmeter.export.html.pieces import meter, table, text
from cellmeter.export.html.plot import Curve, Level, Mark, Plot, drawn, top_of
from cellmeter.export.summary import CellRow, counted
from cellmeter.rules.observed import cell_end, top_cells
from cellmeter.rules.units import MIB, bytes_text
from cellmeter.run import Series, known

if TYPE_CHECKING:
    from cellmeter.run import Run

PEAKS = 3
RETAINERS = 6
LEAST_RETAINED = 32 * MIB  # allocators keep some MiB of whatever was there


def memory_section(run: Run, rows: Sequence[CellRow]) -> str:
    """The chart and the table; nothing for a run without readings of memory."""
    chart = _chart(run)
    return (f'<div class="panel">{chart}</div>' if chart else "") + _retainers(run, rows)


def _chart(run: Run) -> str:
    named = {"kernel": "process.memory.rss", "with children": "process.tree.memory.rss"}
    series = {name: run.series(metric, "process") for name, metric in named.items()}
    peaks = {name: float(known(one.values).max()) for name, one in series.items() if len(known(one.values))}
    if not peaks or run.duration <= 0:
        return ""
    if peaks.get("with children", 0.0) <= 1.01 * peaks.get("kernel", 0.0):
        peaks.pop("with children", None)  # it would only be drawn over the other
    marks = _marks(run)
    top = top_of([*peaks.values(), *(mark.value for mark in marks)], "By")
    limit, levels = run.limits.get("memory_bytes"), ()
    if limit and limit.value <= 2 * top:
        levels, top = (Level(limit.value, f"limit {bytes_text(limit.value)}"),), max(top, 1.06 * limit.value)  # type: ignore[assignment]
    curves = tuple(Curve(name, "memory" if name == "kernel" else "soft", series[name]) for name in peaks)
    label = f"Resident memory over the run, at most {bytes_text(max(peaks.values()))}"
    plot = Plot(label, 0.0, run.duration, top, "By", curves, 190, levels, marks, top_cells(run))
    return drawn(run, plot)


def _marks(run: Run) -> tuple[Mark, ...]:
    """The highest peaks, one a cell and far enough apart for their names; exact where they are known to be."""
    import numpy as np

    rss: Series = run.series("process.memory.rss", "process")
    found = []
    for cell in top_cells(run):
        inside = rss.between(cell.start, cell_end(run, cell))
        if cell.peak_rss_bytes is None or not len(known(inside.values)):
            continue
        at = float(inside.time[int(np.nanargmax(inside.values))])
        found.append(Mark(at, cell.peak_rss_bytes, f"{cell.title[:24]} {bytes_text(cell.peak_rss_bytes)}"))
    chosen: list[Mark] = []
    for mark in sorted(found, key=lambda mark: -mark.value):
        if len(chosen) < PEAKS and all(abs(mark.time - other.time) > 0.16 * run.duration for other in chosen):
            chosen.append(mark)
    return tuple(chosen)


def _retainers(run: Run, rows: Sequence[CellRow]) -> str:
    grown = [row for row in rows if row.growth_bytes is not None and row.growth_bytes >= LEAST_RETAINED]
    grown.sort(key=lambda row: -(row.growth_bytes or 0))
    if not grown:
        return '<p class="panel none">No cell kept more than a little of what it took.</p>' if rows else ""
    most = grown[0].growth_bytes or 1
    lines = [
        (
            f"{text(row.title)} <code>{text(row.first_line[:60])}</code>",
            meter(f"+{bytes_text(row.growth_bytes)}", (row.growth_bytes or 0) / most, "memory"),
            bytes_text(row.peak_bytes),
        )
        for row in grown[:RETAINERS]
    ]
    shown = table("What stayed after a cell's end, most first", ("Who retained memory", "Kept", "Peak"), lines)
    rest = grown[RETAINERS:]
    if not rest:
        return shown
    kept = bytes_text(sum(row.growth_bytes or 0 for row in rest))
    return f'{shown}<p class="none">{counted(len(rest), "other cell")} kept {kept} together.</p>'
