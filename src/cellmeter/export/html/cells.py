"""The table of cells: a page of it as markup, all of it as data for the script that sorts it and turns the pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmeter.export.html.pieces import SEVERITY_WORDS, scrollable, text
from cellmeter.export.rows import WITH_WORKERS, CellRow, cell_columns, heads, routine
from cellmeter.rules.scripts import is_script
from cellmeter.words import counted

if TYPE_CHECKING:
    from cellmeter.rules import Finding
    from cellmeter.run import Run

PAGE = 50
MARKS = 4  # of findings, beside a cell's name
CODE = 72
BARS = {"Duration": "", "Peak memory": "memory", WITH_WORKERS: "memory", "GPU": "gpu"}

Mark = tuple[str, int, str]


def cells_section(run: Run, rows: Sequence[CellRow], findings: Sequence[Finding]) -> str:
    """The first page and the data of all rows."""
    if not rows:
        return '<p class="panel none">No cell was run.</p>'
    names = cell_columns(run, rows)
    texts = [[row.text(name) for name in names] for row in rows]
    quiet, marks, tops = routine(rows, findings), _marks(rows, findings), _tops(run, rows, names)
    head = "".join(
        f'<th scope="col"{_left(name)}><button type="button">{shown}</button></th>'
        for name, shown in zip(names, heads(run, names), strict=True)
    )
    body = "".join(
        _row(row, names, words, marks[row.seq], tops, row.seq in quiet)
        for row, words in zip(rows[:PAGE], texts, strict=False)
    )
    data = {
        "page": PAGE,
        "tops": [tops.get(name) for name in names],
        "rows": [
            [row.first_line[:CODE], marks[row.seq], int(row.seq in quiet), _values(row, names), words]
            for row, words in zip(rows, texts, strict=True)
        ],
    }
    table = (
        f'<table id="cells"><caption>{_caption(run)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    return (
        f"{scrollable('Cells', table)}{_pages(len(rows))}{_dimmed(len(quiet))}"
        f'<script type="application/json" id="cells-data">{_data(data)}</script>'
    )


def _caption(run: Run) -> str:
    return "From its start to its end" if is_script(run) else "Cells in the order they ran; press a heading to sort"


def _pages(rows: int) -> str:
    hidden = " hidden" if rows <= PAGE else ""
    return (
        f'<nav class="pages" aria-label="Pages of the table of cells"{hidden}><button type="button">Previous</button>'
        f'<output>1–{min(PAGE, rows)} of {rows}</output><button type="button">Next</button></nav>'
    )


def _dimmed(count: int) -> str:
    return f'<p class="none">Dimmed: {counted(count, "short cell")} that begin with a line magic.</p>' if count else ""


def _left(name: str) -> str:
    return ' class="left"' if name in ("Cell", "Status") else ""


def _marks(rows: Sequence[CellRow], findings: Sequence[Finding]) -> dict[int, list[Mark]]:
    marks: dict[int, list[Mark]] = {row.seq: [] for row in rows}
    for number, finding in enumerate(findings, start=1):
        for seq in finding.cells:
            if seq in marks and len(marks[seq]) < MARKS:
                marks[seq].append((finding.severity, number, finding.rule))
    return marks


def _tops(run: Run, rows: Sequence[CellRow], names: Sequence[str]) -> dict[str, float]:
    """What fills a bar of each column that has bars."""
    limit = run.limits.get("memory_bytes")
    peak = max((row.tree_bytes or row.peak_bytes or 0 for row in rows), default=0)
    memory = min(limit.value, 4.0 * peak) if limit else float(peak)
    tops = {
        "Duration": max(row.seconds for row in rows),
        "Peak memory": memory,
        WITH_WORKERS: memory,
        "GPU": 100.0,
    }
    return {name: top for name, top in tops.items() if name in names and top > 0}


def _values(row: CellRow, names: Sequence[str]) -> list[float | str | None]:
    """What the columns are sorted by."""
    values: dict[str, float | str | None] = {
        "Cell": row.seq,
        "Duration": row.seconds,
        "CPU": row.cores,
        "Peak memory": row.peak_bytes,
        WITH_WORKERS: row.workers_bytes,
        "Growth": row.growth_bytes,
        "Read": row.read_bytes,
        "Written": row.written_bytes,
        "GPU": row.gpu_percent,
        "Energy": row.energy_joules,
        "Status": row.status,
    }
    return [float(f"{v:.6g}") if isinstance(v := values[name], float) else v for name in names]


def _row(
    row: CellRow,
    names: Sequence[str],
    texts: Sequence[str],
    marks: Sequence[Mark],
    tops: dict[str, float],
    quiet: bool,
) -> str:
    links = "".join(
        f'<a class="mark {severity}" href="#finding-{number}" title="{text(rule)}">{SEVERITY_WORDS[severity][0]}</a>'  # type: ignore[index]
        for severity, number, rule in marks
    )
    title = f'<th scope="row" class="left cell" title="{text(row.first_line)}"><span>{text(texts[0])}</span>'
    cells = [f"{title}<span>{links}</span><code>{text(row.first_line[:CODE])}</code></th>"]
    for name, words, value in zip(names[1:-1], texts[1:-1], _values(row, names)[1:-1], strict=True):
        if name not in BARS:
            cells.append(f'<td data-name="{name}"><span>{text(words)}</span></td>')
            continue
        share = float(value or 0.0) / tops[name] if name in tops else 0.0
        width = 100 * min(max(share, 0.0), 1.0)
        cells.append(
            f'<td class="meter {BARS[name]}" data-name="{name}"><span>{text(words)}</span>'
            f'<i style="width:{width:.1f}%"></i></td>'
        )
    status = text(row.status)
    cells.append(f'<td class="left"><span class="chip status {status}">{status}</span></td>')
    return f"<tr{' class=quiet' if quiet else ''}>{''.join(cells)}</tr>"


def _data(data: object) -> str:
    """JSON as a page can hold it: nothing in it opens or ends an element."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
