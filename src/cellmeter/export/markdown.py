"""The report for a pull request or an issue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from cellmeter.costs import costs
from cellmeter.export import company, elsewhere, plugged, said
from cellmeter.export.rows import cell_columns, cell_rows, heads, notable
from cellmeter.export.sized import SIZE_NAMES, costs_line, size_line
from cellmeter.export.summary import FINDINGS_SHOWN, counts, facts, lead, mute_counts, plain, unchecked, where
from cellmeter.rules import judge
from cellmeter.rules.scripts import is_script
from cellmeter.settings import load_settings
from cellmeter.sizing import sizes

if TYPE_CHECKING:
    from cellmeter.costs import Costs
    from cellmeter.rules import Finding, Judgement
    from cellmeter.run import Run
    from cellmeter.settings import Prices

SIGNS = {"critical": "🟥 **Critical**", "warning": "🔶 **Warning**", "info": "🔹 **Note**"}
NAME_LENGTH = 60
SPECIAL = re.compile(r"([\\`*_{}\[\]|#~!$])")


def markdown_report(run: Run, judgement: Judgement | None = None, prices: Prices | None = None) -> str:
    """Headline, findings, cells, the right size, what was not judged, and the facts of the run, in GitHub's Markdown."""
    judgement = judge(run) if judgement is None else judgement
    spent = costs(run, load_settings().prices if prices is None else prices)
    parts = [
        "## cellmeter report",
        f"**{escaped(lead(run, judgement))}**",
        "\n\n".join(f"🔹 {escaped(note.text)}" for note in judgement.notes),
        _findings(run, judgement),
        f"### {'Script' if is_script(run) else 'Cells'}\n\n" + _cells(run, judgement.findings),
        *_said(run),
        _sizes(run, spent),
        _unchecked(judgement),
        _facts(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """Text from a notebook, so that Markdown takes none of it for markup, a mention or a table's edge."""
    return SPECIAL.sub(r"\\\1", escape(plain(text), quote=False)).replace("@", "@\u200b")


def _findings(run: Run, judgement: Judgement) -> str:
    if not judgement.findings:
        return ""
    shown = [_finding(run, finding) for finding in judgement.findings[:FINDINGS_SHOWN]]
    more = len(judgement.findings) - len(shown)
    if more > 0:
        shown.append(f"… and {more} more.")
    return f"### Findings: {counts(judgement.findings)}\n\n" + "\n\n".join(shown)


def _finding(run: Run, finding: Finding) -> str:
    return (
        f"{SIGNS[finding.severity]} {escaped(where(run, finding))} (`{finding.rule}`)<br>\n"
        f"{escaped(finding.fact)} {escaped(finding.consequence)}<br>\n"
        f"**Do:** {escaped(finding.advice)}"
    )


def _cells(run: Run, findings: Sequence[Finding]) -> str:
    shown, note = notable(cell_rows(run), findings)
    if not shown:
        return "No cell was run."
    columns = cell_columns(run, shown)
    rows = [[row.short_name(NAME_LENGTH), *(row.text(name) for name in columns[1:])] for row in shown]
    table = _table(heads(run, columns), ["---", *["---:"] * (len(columns) - 2), "---"], rows)
    return f"{table}\n\n{note}" if note else table


def _sizes(run: Run, spent: Costs | None) -> str:
    lines = [f"- {SIZE_NAMES[size.resource]}: {size_line(size)}" for size in sizes(run) if size.peak is not None]
    if spent is not None:
        lines.append(f"- Cost: {escaped(costs_line(spent))}")
    return "### Right size\n\n" + "\n".join(lines) if lines else ""


def _table(headers: Sequence[str], rule: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, rule, *([escaped(text) for text in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _said(run: Run) -> list[str]:
    """Who else held GPUs, what plugins measured, what the code said and was told, and what machines elsewhere did."""
    parts = []
    for table in (*company.tables(run), *plugged.tables(run), *said.tables(run), *elsewhere.tables(run)):
        rule = ["---", *["---:"] * (len(table.headers) - 1)]
        note = f"\n\n{table.note}" if table.note else ""
        parts.append(f"### {table.title}{note}\n\n{_table(table.headers, rule, table.rows)}")
    if alarms := said.alarms(run):
        parts.append("### Alerts\n\n" + "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in alarms))
    return parts


def _unchecked(judgement: Judgement) -> str:
    words = {"unknown": "unknown", "not-applicable": "did not apply", "error": "failed"}
    lines = [
        f"- `{checked.rule}`: {words[checked.outcome]}, {escaped(checked.reason or 'no reason given')}"
        for checked in unchecked(judgement)
    ]
    return f"### Not judged: {mute_counts(judgement)}\n\n" + "\n".join(lines) if lines else ""


def _facts(run: Run) -> str:
    lines = "\n".join(f"- {fact.name}: {escaped(fact.value)}" for fact in (*facts(run), *elsewhere.fact(run)))
    return f"<details><summary>Run</summary>\n\n{lines}\n\n</details>"
