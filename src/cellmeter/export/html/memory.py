"""Memory over the whole run: where it peaked, and who kept what they took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmeter.export.amounts import memory_peaks, tree_peak
from cellmeter.export.html.pieces import meter, table, text
from cellmeter.export.html.plot import Curve, Level, Mark, Plot, drawn, top_of
from cellmeter.export.rows import WITH_WORKERS, CellRow
from cellmeter.export.summary import process_of
from cellmeter.rules.held import holding
from cellmeter.rules.memory import RSS, TREE
from cellmeter.rules.observed import cell_end, top_cells
from cellmeter.rules.scripts import is_script
from cellmeter.run import known
from cellmeter.words import MIB, bytes_text, change_text, counted, given_text

if TYPE_CHECKING:
    from cellmeter.run import Run

PEAKS = 3
LEAST_RISE = 0.05  # of the highest peak, above what was there at the cell's start
RETAINERS = 6
LEAST_RETAINED = 32 * MIB  # allocators keep some MiB of whatever was there


def memory_section(run: Run, rows: Sequence[CellRow]) -> str:
    """The chart and the table; nothing for a run without readings of memory."""
    chart = _chart(run)
    return (f'<div class="panel">{chart}</div>' if chart else "") + _retainers(run, rows)


def _chart(run: Run) -> str:
    """Lines and colours as in the timeline: with workers, and the kernel alone where that is less."""
    who = process_of(run)
    named = {WITH_WORKERS.lower(): TREE, who: RSS}
    series = {name: run.series(metric, "process") for name, metric in named.items()}
    series = {name: one for name, one in series.items() if len(known(one.values))}
    if not series or run.duration <= 0:
        return ""
    if len(series) > 1 and not memory_peaks(run).workers_tell:
        series.pop(who)  # it would only be drawn over the other
    marks = _marks(run)
    top = top_of([*(float(known(one.values).max()) for one in series.values()), *(mark.value for mark in marks)], "By")
    limit, levels = run.limits.get("memory_bytes"), ()
    if limit and limit.value <= 2 * top:
        levels, top = (Level(limit.value, f"limit {given_text(limit.value, 'By')}"),), max(top, 1.06 * limit.value)  # type: ignore[assignment]
    kinds = ("memory", "soft")
    curves = tuple(Curve(name, kind, one) for (name, one), kind in zip(series.items(), kinds, strict=False))
    label = f"Resident memory over the run, at most {bytes_text(memory_peaks(run).most)}"
    plot = Plot(label, 0.0, run.duration, top, "By", curves, 190, levels, marks, top_cells(run))
    return drawn(run, plot)


def _marks(run: Run) -> tuple[Mark, ...]:
    """The highest peaks that a cell itself set, far enough apart for their names; exact where they are known to be."""
    import numpy as np

    tree = run.series(TREE if run.subjects(TREE) else RSS, "process")
    least = LEAST_RISE * (memory_peaks(run).most or 0.0)
    found = []
    for cell in top_cells(run):
        inside = tree.between(cell.start, cell_end(run, cell))
        values, peak = known(inside.values), tree_peak(run, cell)
        if peak is None or not len(values) or peak < float(values[0]) + least:
            continue  # what stood there when it began is none of its peaks
        at = float(inside.time[int(np.nanargmax(inside.values))])
        found.append(Mark(at, peak, f"{cell.title[:24]} {bytes_text(peak)}"))
    chosen: list[Mark] = []
    for mark in sorted(found, key=lambda mark: -mark.value):
        if len(chosen) < PEAKS and all(abs(mark.time - other.time) > 0.16 * run.duration for other in chosen):
            chosen.append(mark)
    return tuple(chosen)


def _retainers(run: Run, rows: Sequence[CellRow]) -> str:
    """What cells took and nobody gave back. A script gives all back at its end."""
    if is_script(run):
        return ""
    holds = holding(run).by_seq
    grown = [(row, holds[row.seq]) for row in rows if row.seq in holds and holds[row.seq].still >= LEAST_RETAINED]
    grown.sort(key=lambda pair: -pair[1].still)
    if not grown:
        return '<p class="panel none">No cell kept more than a little of what it took.</p>' if rows else ""
    most = grown[0][1].still
    lines = [
        (
            f"{text(row.title)} <code>{text(row.first_line[:60])}</code>",
            meter(bytes_text(held.still), held.still / most, "memory"),
            change_text(held.end.resident - held.start.resident, "By"),
        )
        for row, held in grown[:RETAINERS]
    ]
    caption = "What no later cell gave back, most first; files that are only mapped do not count"
    shown = table(caption, ("Who keeps memory", "Still held", "Growth in the cell"), lines)
    rest = grown[RETAINERS:]
    if not rest:
        return shown
    kept = bytes_text(sum(held.still for _, held in rest))
    return f'{shown}<p class="none">{counted(len(rest), "other cell")} hold {kept} together.</p>'
