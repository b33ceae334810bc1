"""The report as a page: one file that asks the network for nothing, and a light version for a notebook's output.

Everything that comes from the notebook is escaped; the page's own scripts are allowed by their hashes and no other.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellmeter import charts
from cellmeter.export import said
from cellmeter.export.summary import (
    CELL_HEADERS,
    FINDINGS_SHOWN,
    CellRow,
    cell_rows,
    counted,
    counts,
    facts,
    headline,
    lead,
    overline,
    plain,
    unchecked,
    where,
)
from cellmeter.metrics import METRICS
from cellmeter.rules import judge
from cellmeter.rules.units import UNKNOWN, bytes_text, joules_text, percent_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.rules import Finding, Judgement, Severity
    from cellmeter.run import Run

SEVERITY_WORDS: dict[Severity, str] = {"critical": "■ Critical", "warning": "▲ Warning", "info": "● Note"}
GPU_METRICS = ("gpu.utilization", "gpu.memory.used", "gpu.power", "gpu.temperature", "gpu.clock.sm")
QUANTILES = (("max", 100), ("p99", 99), ("p95", 95), ("p50", 50), ("min", 0))
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


class Timeline(NamedTuple):
    """The charts of a run: the element they go into and the scripts that draw them, BokehJS first."""

    element: str
    scripts: tuple[str, ...]


def html_report(run: Run, judgement: Judgement | None = None) -> str:
    """The whole report as one HTML file, charts included."""
    judgement = judge(run) if judgement is None else judgement
    timeline = _timeline(run)
    scripts = [*(timeline.scripts if timeline else ()), _packaged("report.js")]
    return _page(plain(f"cellmeter report · {_name(run)}"), _body(run, judgement, timeline), scripts)


def inline_html(run: Run, judgement: Judgement | None = None) -> str:
    """The report for a notebook's output: no script, no chart, and the colours of JupyterLab's theme where there is one."""
    judgement = judge(run) if judgement is None else judgement
    shown = judgement.findings[:FINDINGS_SHOWN]
    more = len(judgement.findings) - len(shown)
    parts = [
        f"<style>{_packaged('inline.css')}</style>",
        f"<p>{_text(lead(run, judgement))}</p>",
        *(_inline_finding(run, finding) for finding in shown),
        f'<div class="soft">and {more} more: %monitor report report.html shows all</div>' if more > 0 else "",
        _inline_cells(run),
        *(f"<b>{table.title}</b>{_inline_table(table.headers, table.rows)}" for table in said.tables(run)),
        *(f"<div><b>{_text(name)}</b> {_text(value)}</div>" for name, value in said.alarms(run)),
        _inline_details(run, judgement),
    ]
    return f'<div class="cellmeter-report">{"".join(parts)}</div>'


def _page(title: str, body: str, scripts: Sequence[str]) -> str:
    sources = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    policy = f"{POLICY}; script-src {sources}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{_packaged('report.css')}</style>\n</head>\n<body>\n{body}\n"
        + "\n".join(f"<script>{script}</script>" for script in scripts)
        + "\n</body>\n</html>\n"
    )


def _body(run: Run, judgement: Judgement, timeline: Timeline | None) -> str:
    rows = cell_rows(run)
    sections = [
        _section("Findings", _findings(run, judgement.findings), counts(judgement.findings)),
        _section("Timeline", f'<div class="panel">{timeline.element}</div>' if timeline else ""),
        _section("Cells", _cells(run, rows, judgement.findings), "press a heading to sort"),
        *(_section(table.title, _said(table), table.note) for table in said.tables(run)),
        _section("Alerts", _definitions(said.alarms(run))),
        _section("GPUs", _gpus(run), "over all samples of the run"),
        _section("Not judged", _unchecked(judgement)),
        _section("This recording", _definitions((fact.name, fact.value) for fact in facts(run))),
    ]
    return (
        f'<header><div class="brand"><b>cellmeter</b><span>{_text(_name(run))}</span>'
        f"<span>{run.started:%Y-%m-%d %H:%M} UTC</span></div>"
        f'<p class="verdict">{overline(run, judgement) or "Verdict"}</p><h1>{_text(headline(run, judgement))}</h1>'
        f"{_tiles(run, rows, judgement)}</header>\n<main>{''.join(sections)}</main>\n"
        "<footer>Made by cellmeter. – means unknown: what could not be measured is never shown as 0.</footer>"
    )


def _section(title: str, content: str, note: str = "") -> str:
    small = f" <small>{_text(note)}</small>" if note else ""
    return f"<section><h2>{title}{small}</h2>{content}</section>\n" if content else ""


# ---- the parts of the page -------------------------------------------------------------------------------------------


def _tiles(run: Run, rows: Sequence[CellRow], judgement: Judgement) -> str:
    peaks = [row.peak_bytes for row in rows if row.peak_bytes is not None]
    limit = run.limits.get("memory_bytes")
    tiles = [
        ("Recorded", seconds_text(run.duration), counted(len(rows), "cell")),
        (
            "Peak memory",
            bytes_text(max(peaks, default=None)),
            f"of {bytes_text(limit.value)}" if limit else "limit unknown",
        ),
    ]
    if run.devices:
        tiles.append(_gpu_tile(run))
        wasted = sum(finding.waste.gpu_seconds for finding in judgement.findings)
        tiles.append(("GPU time unused", seconds_text(wasted) if wasted else "none found", "by the findings below"))
    joules = [row.energy_joules for row in rows if row.energy_joules is not None]
    if joules:
        known = "inside cells" if len(joules) == len(rows) else f"of {len(joules)} of {counted(len(rows), 'cell')}"
        tiles.append(("GPU energy", joules_text(sum(joules)), known))
    return '<dl class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</dl>"


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{name}</dt><dd>{_text(value)}<small>{_text(note)}</small></dd></div>"


def _gpu_tile(run: Run) -> tuple[str, str, str]:
    import numpy as np

    known, devices = [np.empty(0)], [device for device in run.devices if device.mine is not False]
    for device in devices:
        series = run.series("gpu.utilization", device.id)
        known.append(series.values[(series.seq > 0) & ~np.isnan(series.values)])
    values = np.concatenate(known)
    mean = float(values.mean()) if len(values) else None
    return "GPU use in cells", percent_text(mean), f"mean of {counted(len(devices), 'GPU')}"


def _findings(run: Run, findings: Sequence[Finding]) -> str:
    return "".join(_finding(run, finding, number) for number, finding in enumerate(findings, start=1))


def _finding(run: Run, finding: Finding, number: int) -> str:
    evidence = finding.evidence
    unit = evidence.unit
    return (
        f'<article class="finding {finding.severity}" id="finding-{number}"><header>'
        f'<span class="chip">{SEVERITY_WORDS[finding.severity]}</span><span>{_text(where(run, finding))}</span>'
        f"<code>{_text(finding.rule)}</code></header>"
        f'<div><p>{_text(finding.fact)}</p><p class="consequence">{_text(finding.consequence)}</p></div>'
        f'<p class="advice"><b>What to do</b>{_text(finding.advice)}</p>'
        f"<footer>Rests on <code>{_text(evidence.metric)}</code>: {_text(_with_unit(evidence.value, unit))}, "
        f"threshold {_text(_with_unit(evidence.threshold, unit))}, from {seconds_text(finding.start)} to "
        f"{seconds_text(finding.end)} of the run</footer></article>"
    )


def _cells(run: Run, rows: Sequence[CellRow], findings: Sequence[Finding]) -> str:
    if not rows:
        return '<p class="panel none">No cell was run.</p>'
    marks = {row.seq: "" for row in rows}
    for number, finding in enumerate(findings, start=1):
        for seq in finding.cells:
            marks[seq] = marks.get(seq, "") + _mark(finding, number)
    limit = run.limits.get("memory_bytes")
    peak = max((row.peak_bytes or 0 for row in rows), default=0)
    longest = max(row.seconds for row in rows)
    heads = "".join(f'<th scope="col"{_left(name)}><button type="button">{name}</button></th>' for name in CELL_HEADERS)
    body = "".join(_cell(row, marks[row.seq], longest, limit.value if limit else peak) for row in rows)
    return f'<div class="panel wide"><table data-sortable><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _said(table: said.Table) -> str:
    heads = "".join(f'<th scope="col"{_left_if(n == 0)}>{_text(name)}</th>' for n, name in enumerate(table.headers))
    rows = ("".join(f"<td{_left_if(n == 0)}>{_text(text)}</td>" for n, text in enumerate(row)) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="panel wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _left_if(text: bool) -> str:
    return ' class="left"' if text else ""


def _left(name: str) -> str:
    return ' class="left"' if name in ("Cell", "Status") else ""


def _mark(finding: Finding, number: int) -> str:
    word = SEVERITY_WORDS[finding.severity]
    return f'<a class="mark {finding.severity}" href="#finding-{number}" title="{_text(finding.rule)}">{word[0]}</a>'


def _cell(row: CellRow, marks: str, longest: float, memory: float) -> str:
    title, duration, cores, peak, growth, gpu, energy, status = (_text(text) for text in row.texts())
    code = f"<code>{_text(row.first_line[:80])}</code>" if row.first_line else ""
    return (
        f'<tr><td class="left cell" data-value="{row.seq}" title="{_text(row.first_line)}">{title}{marks}{code}</td>'
        + _meter(duration, row.seconds, row.seconds / longest if longest else 0.0, "")
        + _number(cores, row.cores)
        + _meter(peak, row.peak_bytes, (row.peak_bytes or 0) / memory if memory else 0.0, "memory")
        + _number(growth, row.growth_bytes)
        + _meter(gpu, row.gpu_percent, (row.gpu_percent or 0) / 100, "gpu")
        + _number(energy, row.energy_joules)
        + f'<td class="left" data-value="{status}"><span class="chip status {status}">{status}</span></td></tr>'
    )


def _number(text: str, value: float | None) -> str:
    return f"<td{_value(value)}>{text}</td>"


def _meter(text: str, value: float | None, share: float, kind: str) -> str:
    width = 0.0 if value is None else 100 * min(max(share, 0.0), 1.0)
    return f'<td class="meter {kind}"{_value(value)}>{text}<i style="width:calc({width:.1f}% * 0.78)"></i></td>'


def _value(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f' data-value="{value:.9g}"'


def _gpus(run: Run) -> str:
    rows = "".join(_gpu_row(run, device.id, metric) for device in run.devices for metric in GPU_METRICS)
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{name}</th>' for name, _ in QUANTILES)
    return (
        '<div class="panel wide"><table><thead><tr><th scope="col" class="left">GPU</th>'
        f'<th scope="col" class="left">Reading</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _gpu_row(run: Run, gpu: str, metric: str) -> str:
    import numpy as np

    values = run.series(metric, gpu).values
    known = values[~np.isnan(values)]
    reason = run.unavailable.get(f"{metric}:{gpu}")
    if not len(known) and reason is None:
        return ""
    name = METRICS[metric].name.removeprefix("gpu.").replace(".", " ")
    head = f'<tr><td class="left">{_text(gpu)}</td><td class="left">{_text(name)}</td>'
    if not len(known):
        return f'{head}<td colspan="{len(QUANTILES)}">unknown: {_text(reason or "")}</td></tr>'
    quantiles = np.percentile(known, [q for _, q in QUANTILES])
    return head + "".join(f"<td>{_with_unit(float(q), METRICS[metric].unit)}</td>" for q in quantiles) + "</tr>"


def _unchecked(judgement: Judgement) -> str:
    words = {"unknown": "Unknown", "not-applicable": "Not applicable", "error": "The rule failed"}
    return _definitions(
        (checked.rule, f"{words[checked.outcome]}: {checked.reason or 'no reason given'}")
        for checked in unchecked(judgement)
    )


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in pairs)
    return f'<dl class="panel facts">{lines}</dl>' if lines else ""


# ---- the notebook's output -------------------------------------------------------------------------------------------


def _inline_finding(run: Run, finding: Finding) -> str:
    return (
        f'<div class="finding {finding.severity}"><b>{SEVERITY_WORDS[finding.severity]}</b> '
        f'<span class="soft">{_text(where(run, finding))}</span><div>{_text(finding.fact)}</div>'
        f'<div class="soft">{_text(finding.consequence)}</div><div>→ {_text(finding.advice)}</div></div>'
    )


def _inline_cells(run: Run) -> str:
    return _inline_table(CELL_HEADERS, [row.texts() for row in cell_rows(run)])


def _inline_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in headers)
    body = "".join("<tr>" + "".join(f"<td>{_text(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def _inline_details(run: Run, judgement: Judgement) -> str:
    lines = [(checked.rule, f"{checked.outcome}: {checked.reason}") for checked in unchecked(judgement)]
    lines += [(fact.name, fact.value) for fact in facts(run)]
    body = "".join(f"<div><b>{_text(name)}</b> {_text(value)}</div>" for name, value in lines)
    return (
        f'<details><summary>What was not judged, and this recording</summary><div class="soft">{body}</div></details>'
    )


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _name(run: Run) -> str:
    return Path(run.notebook).name if run.notebook else run.id


def _text(text: str) -> str:
    return escape(plain(text))


def _with_unit(value: float, unit: str) -> str:
    if unit == "By":
        return bytes_text(value)
    if unit == "%":
        return percent_text(value)
    return f"{value:.0f} {'°C' if unit == 'Cel' else unit}" if math.isfinite(value) else UNKNOWN


def _packaged(name: str) -> str:
    return resources.files("cellmeter.export").joinpath(name).read_text("utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _timeline(run: Run) -> Timeline | None:
    """The charts; None for a run without samples."""
    if run.sample_count == 0:
        return None
    import bokeh
    from bokeh.embed import components

    script, element = components(charts.run_figures(run), wrap_script=False)
    bokehjs = Path(bokeh.__file__).parent.joinpath("server", "static", "js", "bokeh.min.js").read_text("utf-8")
    return Timeline(element, tuple(map(_scriptable, (bokehjs, script))))


def _scriptable(script: str) -> str:
    """A script as a page can hold it: it ends nowhere but at its end, and is what its hash says after parsing."""
    sound = script.encode("utf-8", "backslashreplace").decode()
    sound = re.sub("<(?=/script|!--)", r"\\x3c", sound, flags=re.IGNORECASE)
    return sound.replace("\r\n", "\n").replace("\r", "\n")
