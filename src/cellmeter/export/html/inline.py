"""The report as a notebook's output: no script, charts as pictures, and bounded however many cells were run."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cellmeter.export import company, elsewhere, plugged, said
from cellmeter.export.html.pieces import SEVERITY_WORDS, packaged, text
from cellmeter.export.rows import CellRow, cell_columns, cell_rows, heads, notable
from cellmeter.export.sized import SIZE_NAMES, costs_line, size_line
from cellmeter.export.summary import FINDINGS_SHOWN, facts, lead, unchecked, where
from cellmeter.words import seconds_text

if TYPE_CHECKING:
    from cellmeter.costs import Costs
    from cellmeter.rules import Finding, Judgement
    from cellmeter.run import Run
    from cellmeter.sizing import Size

NAME_LENGTH = 44
CHARTS = 3  # some kB each, which are kept in the notebook


def inline(run: Run, judgement: Judgement, sizes: tuple[Size, ...], costs: Costs | None) -> str:
    """The colours of JupyterLab's theme where there is one."""
    shown = judgement.findings[:FINDINGS_SHOWN]
    more = len(judgement.findings) - len(shown)
    tables = (*company.tables(run), *plugged.tables(run), *said.tables(run), *elsewhere.tables(run))
    parts = [
        f"<p>{text(lead(run, judgement))}</p>",
        *(f'<div class="finding info">{text(note.text)}</div>' for note in judgement.notes),
        *(_finding(run, finding, number < CHARTS) for number, finding in enumerate(shown)),
        f'<div class="soft">and {more} more: %monitor report report.html shows all</div>' if more > 0 else "",
        _cells(run, judgement),
        *(f"<b>{one.title}</b>{_table(one.headers, one.rows)}" for one in tables),
        *(f"<div><b>{text(name)}</b> {text(value)}</div>" for name, value in said.alarms(run)),
        _advice(sizes, costs),
        _details(run, judgement),
    ]
    return _page(parts)


def inline_cells(run: Run) -> str:
    """The table of all cells, which scrolls within itself where it is wider or longer than there is room."""
    rows = cell_rows(run)
    if not rows:
        return _page(["<p>No cell has been run.</p>"])
    return _page([_rows(run, rows, "wide all")])


def _page(parts: Iterable[str]) -> str:
    return f'<div class="cellmeter-report"><style>{packaged("inline.css")}</style>{"".join(parts)}</div>'


def _finding(run: Run, finding: Finding, charted: bool) -> str:
    return (
        f'<div class="finding {finding.severity}"><b>{SEVERITY_WORDS[finding.severity]}</b> '
        f'<span class="soft">{text(where(run, finding))}</span><div>{text(finding.fact)}</div>'
        f'<div class="soft">{text(finding.consequence)}</div><div>→ {text(finding.advice)}</div>'
        f"{_picture(run, finding) if charted else ''}</div>"
    )


def _picture(run: Run, finding: Finding) -> str:
    """What the finding rests on, drawn as the panels under cells are; nothing where there are no readings."""
    from cellmeter.charts import Frame, Line, PanelSpec
    from cellmeter.export.html.findings import INKS, curve_name
    from cellmeter.picture import draw

    metric, subject = finding.evidence.metric, finding.subject
    if metric not in run.metrics:
        return ""
    series = run.series(metric, subject).between(finding.start, finding.end)
    if len(series.time) < 2 or finding.end <= finding.start:
        return ""
    title, about = curve_name(run, metric, subject), run.metrics[metric]
    line = Line(metric, subject, subject, "main", INKS.get(about.group, INKS["cpu"]))
    spec = PanelSpec(about.group, title, about.unit, (line,))
    picture = draw(Frame((spec,), series.time - finding.start, series.values[:, None]), finding.end - finding.start)
    over = seconds_text(finding.end - finding.start)
    source = f"data:{picture.type};base64,{base64.b64encode(picture.image).decode()}"
    return f'<img width="{picture.width}" height="{picture.height}" alt="{text(title)} over {over}" src="{source}">'


def _cells(run: Run, judgement: Judgement) -> str:
    rows = cell_rows(run)
    if not rows:
        return ""
    shown, note = notable(rows, judgement.findings)
    return _rows(run, shown) + (f'<div class="soft">{text(note)}</div>' if note else "")


def _rows(run: Run, rows: Sequence[CellRow], kind: str = "wide") -> str:
    columns = cell_columns(run, rows)
    texts = [[row.short_name(NAME_LENGTH), *(row.text(name) for name in columns[1:])] for row in rows]
    table = _table(heads(run, columns), texts)
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="Cells">{table}</div>'


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{text(name)}</th>' for name in headers)
    body = "".join("<tr>" + "".join(f"<td>{text(words)}</td>" for words in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _advice(sizes: tuple[Size, ...], costs: Costs | None) -> str:
    lines = [(SIZE_NAMES[size.resource], size_line(size)) for size in sizes if size.peak is not None]
    if costs is not None:
        lines.append(("Cost", costs_line(costs)))
    body = "".join(f"<div><b>{text(name)}</b> {text(words)}</div>" for name, words in lines)
    return f"<details><summary>Right size{' and cost' if costs else ''}</summary>{body}</details>" if body else ""


def _details(run: Run, judgement: Judgement) -> str:
    mute = unchecked(judgement)
    words = {"unknown": "unknown", "not-applicable": "did not apply", "error": "failed"}
    lines = [(checked.rule, f"{words[checked.outcome]}: {checked.reason}") for checked in mute]
    lines += [(fact.name, fact.value) for fact in (*facts(run), *elsewhere.fact(run))]
    body = "".join(f"<div><b>{text(name)}</b> {text(value)}</div>" for name, value in lines)
    title = "What was not judged, and this recording" if mute else "This recording"
    return f'<details><summary>{title}</summary><div class="soft">{body}</div></details>'
