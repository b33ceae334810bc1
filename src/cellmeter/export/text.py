"""The report for the terminal and for ``%monitor report``; the table of ``%monitor cells``."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellmeter.export import said
from cellmeter.export.summary import (
    CELL_HEADERS,
    FINDINGS_SHOWN,
    cell_rows,
    counted,
    counts,
    ending,
    facts,
    gpus,
    lead,
    plain,
    recorder_cost,
    unchecked,
    where,
)
from cellmeter.metrics import METRICS
from cellmeter.rules import judge
from cellmeter.rules.units import bytes_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.rules import Finding, Judgement
    from cellmeter.run import Run

WIDTH = 92
TITLE_WIDTH = 26
SIGNS = {"critical": "■ CRITICAL", "warning": "▲ WARNING", "info": "● NOTE"}


def text_report(run: Run, judgement: Judgement | None = None) -> str:
    """Headline, findings, cells, what was not checked and why, and the facts of the run."""
    judgement = judge(run) if judgement is None else judgement
    title = f"cellmeter report · {counted(len(run.cells), 'cell')} in {seconds_text(run.duration)}"
    parts = [
        f"{title}\n{'═' * WIDTH}",
        _paragraph(lead(run, judgement), ""),
        _findings(run, judgement.findings),
        "Cells\n" + _indented(cells_table(run)),
        *_said(run),
        _unchecked(judgement),
        "Run\n" + "\n".join(_fact(fact.name, fact.value) for fact in facts(run)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _said(run: Run) -> list[str]:
    """What the user's code said, and what it was told."""
    parts = []
    for table in said.tables(run):
        rows = [(_shortened(row[0], TITLE_WIDTH), *row[1:]) for row in table.rows]
        note = f" ({table.note})" if table.note else ""
        parts.append(
            f"{table.title}{note}\n" + _indented(_table(table.headers, rows, set(range(1, len(table.headers)))))
        )
    if alarms := said.alarms(run):
        parts.append("Alerts\n" + "\n".join(_paragraph(f"{name} · {value}", "  ", "    ") for name, value in alarms))
    return parts


def cells_table(run: Run) -> str:
    """The cells in aligned columns: title, duration, average CPU in cores, memory, GPU, energy and status."""
    rows = [row.texts() for row in cell_rows(run)]
    if not rows:
        return "no cell has been run"
    titled = [(_shortened(row[0], TITLE_WIDTH), *row[1:]) for row in rows]
    return _table(CELL_HEADERS, titled, right={1, 2, 3, 4, 5, 6})


def runs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Runs in aligned columns, one a row with the keys of ``cellmeter runs --json``."""
    headers = ("Run", "Started (UTC)", "Duration", "Cells", "Ending", "Size", "Notebook")
    return _table(headers, [_run_line(row) for row in rows], right={2, 3, 5})


def _run_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["problem"] is not None:
        return row["id"], "", "", "", "unreadable", bytes_text(row["size_bytes"]), _shortened(plain(row["problem"]), 40)
    return (
        row["id"],
        row["started"][:16].replace("T", " "),
        seconds_text(row["seconds"]),
        str(row["cells"]),
        row["ending"] or "running",
        bytes_text(row["size_bytes"]),
        _shortened(plain(row["notebook"] or ""), 40),
    )


def status_text(run: Run) -> str:
    """What ``%monitor`` says: which run, at which rate, what is recorded, what is not and why, and the recorder's cost."""
    metrics = dict.fromkeys(column.metric for segment in run.segments for column in segment.columns)
    scopes = dict.fromkeys(METRICS[metric].scope for metric in metrics if metric in METRICS)
    lines = [
        ("Run", run.id),
        ("State", "recording" if run.ending is None else ending(run)),
        ("Rate", f"{run.rate_hz:g} a second inside cells; {counted(run.sample_count, 'sample')} so far"),
        ("Recorded", f"{counted(len(metrics), 'metric')} of {', '.join(scopes) or 'nothing'}"),
        ("GPUs", gpus(run)),
        *((f"No {name}", reason) for name, reason in run.unavailable.items()),
        *(("Notice", notice) for notice in run.notices),
        ("Recorder's own cost", recorder_cost(run)),
        ("Folder", run.path),
    ]
    return "\n".join(["cellmeter", *(_fact(plain(name), plain(value)) for name, value in lines)])


def _findings(run: Run, findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    shown = [_finding(run, finding) for finding in findings[:FINDINGS_SHOWN]]
    more = len(findings) - len(shown)
    if more > 0:
        shown.append(f"  and {more} more: `cellmeter report --format html` shows all")
    return f"Findings: {counts(findings)}\n" + "\n\n".join(shown)


def _finding(run: Run, finding: Finding) -> str:
    return "\n".join(
        [
            f"  {SIGNS[finding.severity]}  {finding.rule} · {where(run, finding)}",
            _paragraph(plain(finding.fact), "    "),
            _paragraph(plain(finding.consequence), "    "),
            _paragraph("→ " + plain(finding.advice), "    ", "      "),
        ]
    )


def _unchecked(judgement: Judgement) -> str:
    words = {"unknown": "unknown", "not-applicable": "not applicable", "error": "failed"}
    lines = [
        _fact(checked.rule, f"{words[checked.outcome]}: {plain(checked.reason or 'no reason given')}")
        for checked in unchecked(judgement)
    ]
    return "Not judged\n" + "\n".join(lines) if lines else ""


def _fact(name: str, value: str) -> str:
    return textwrap.fill(value, WIDTH, initial_indent=f"  {name:<20} ", subsequent_indent=" " * 23)


def _paragraph(text: str, indent: str, then: str | None = None) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent if then is None else then)


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> str:
    widths = [max(map(_width, column)) for column in zip(headers, *rows, strict=True)]
    lines = [headers, ["─" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            _padded(text, width, i in right) for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _width(text: str) -> int:
    """Columns on a terminal: East Asian characters and emoji take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _shortened(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[:-1]
    return text + "…"
