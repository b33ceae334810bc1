"""The findings, worst first: what, what of it, what to do, and a chart of what it rests on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmeter import charts
from cellmeter.export.html.pieces import SEVERITY_WORDS, text
from cellmeter.export.html.plot import Curve, Level, Mark, Plot, drawn, top_of
from cellmeter.export.summary import where
from cellmeter.rules.observed import top_cells
from cellmeter.run import Series, known
from cellmeter.words import bytes_text, counted, given_text, held_text, moment_text

if TYPE_CHECKING:
    from cellmeter.rules import Finding
    from cellmeter.run import Run

SHOWN = 20  # with a chart each; nobody reads more, and the worst come first
LISTED = 200
PADDING = 0.12  # of the evidence's length, to see what was before and after it
INKS = {
    "cpu": charts.BLUE,
    "memory": charts.GREEN,
    "gpu": charts.VERMILLION,
    "power": charts.AMBER,
    "io": charts.BLUE,
    "net": charts.BLUE,
}
KINDS = {"cpu": "cpu", "memory": "memory", "gpu": "gpu", "power": "power", "io": "cpu", "net": "cpu"}


def findings_section(run: Run, findings: Sequence[Finding]) -> str:
    """The worst in full, the others in a list."""
    shown = "".join(_finding(run, finding, number) for number, finding in enumerate(findings[:SHOWN], start=1))
    return shown + _others(run, findings)


def _finding(run: Run, finding: Finding, number: int) -> str:
    rests = finding.evidence
    return (
        f'<article class="finding {finding.severity}" id="finding-{number}"><header>'
        f'<span class="chip">{SEVERITY_WORDS[finding.severity]}</span><span>{text(where(run, finding))}</span>'
        f"<code>{text(finding.rule)}</code></header>"
        f'<div><p>{text(finding.fact)}</p><p class="consequence">{text(finding.consequence)}</p>'
        f'<p class="advice"><b>What to do</b>{text(finding.advice)}</p></div>{evidence(run, finding)}'
        f"<footer>Rests on <code>{text(rests.metric)}</code>: {text(held_text(rests.value, rests.unit))}, "
        f"threshold {text(given_text(rests.threshold, rests.unit))}, from {moment_text(finding.start, run.duration)} to "
        f"{moment_text(finding.end, run.duration)} of the run</footer></article>"
    )


def _others(run: Run, findings: Sequence[Finding]) -> str:
    others = list(enumerate(findings, start=1))[SHOWN:]
    if not others:
        return ""
    lines = "".join(
        f'<li id="finding-{number}"><span class="chip {one.severity}">{SEVERITY_WORDS[one.severity]}</span> '
        f"<b>{text(where(run, one))}</b> {text(one.fact)}</li>"
        for number, one in others[:LISTED]
    )
    left_out = len(others) - LISTED
    more = f'<p class="none">… and {left_out} more, milder ones.</p>' if left_out > 0 else ""
    title = counted(len(others), "more finding")
    return f'<details class="panel others"><summary>{title}</summary><ul>{lines}</ul>{more}</details>'


def evidence(run: Run, finding: Finding, height: int = 132) -> str:
    """The chart of what a finding rests on, a little wider than the evidence; nothing where there are no readings."""
    metric, subject = finding.evidence.metric, finding.subject
    if metric not in run.metrics:
        return ""
    padding = max(PADDING * (finding.end - finding.start), 2.0)
    start, end = max(0.0, finding.start - padding), min(run.duration, finding.end + padding)
    series = run.series(metric, subject).between(start, end)
    values = known(series.values)
    if not len(values) or end <= start:
        return ""
    about, peak = run.metrics[metric], float(values.max())
    unit = about.unit
    levels, marks = _levels(finding, unit), _peaks(run, finding, series, unit)
    top = top_of([peak, *(level.value for level in levels), *(mark.value for mark in marks)], unit)
    limit = _limit(run, metric, subject)
    if limit is not None and peak < limit.value <= 2 * top:
        levels, top = (*levels, limit), max(top, 1.06 * limit.value)
    name = curve_name(run, metric, subject)
    return drawn(
        run,
        Plot(
            label=f"{name}, from {moment_text(start, run.duration)} to {moment_text(end, run.duration)} of the run",
            start=start,
            end=end,
            top=top,
            unit=unit,
            curves=(
                Curve(name, KINDS.get(about.group, "cpu"), series),
                *_others_too(run, finding),
            ),
            height=height,
            levels=levels,
            marks=marks,
            bands=top_cells(run),
            window=(finding.start, finding.end),
        ),
    )


def curve_name(run: Run, metric: str, subject: str) -> str:
    """What a metric is, in its first clause, and of which part of the machine."""
    of = "" if subject in ("process", "host") else f", {subject}"
    return re.split(r"[;:.] ", run.metrics[metric].meaning, maxsplit=1)[0] + of


def _others_too(run: Run, finding: Finding) -> tuple[Curve, ...]:
    """The same of another subject of which the same is true: more lines than two cannot be told apart."""
    drawn = [Curve(subject, "soft", run.series(finding.evidence.metric, subject)) for subject in finding.also[:1]]
    return tuple(curve for curve in drawn if len(curve.series.time))


def _levels(finding: Finding, unit: str) -> tuple[Level, ...]:
    """The threshold, where it is one of the quantity drawn and not of a difference or a share of it."""
    if unit == finding.evidence.unit == "%" and finding.evidence.threshold > 0:
        return (Level(finding.evidence.threshold, f"threshold {given_text(finding.evidence.threshold, '%')}"),)
    return ()


def _peaks(run: Run, finding: Finding, series: Series, unit: str) -> tuple[Mark, ...]:
    """The highest point of a memory chart; the exact peak of the cell where the samples missed it."""
    import numpy as np

    if unit != "By":
        return ()
    inside = series.between(finding.start, finding.end)
    if not len(known(inside.values)):
        return ()
    at = int(np.nanargmax(inside.values))
    time, value = float(inside.time[at]), float(inside.values[at])
    exact = next((cell.peak_rss_bytes for cell in run.cells if finding.cells and cell.seq == finding.cells[0]), None)
    if finding.evidence.metric == "process.memory.rss" and exact is not None and exact > 1.02 * value:
        return (Mark(time, exact, f"exact peak {bytes_text(exact)}, between two samples"),)
    return (Mark(time, value, f"peak {bytes_text(value)}"),)


def _limit(run: Run, metric: str, subject: str) -> Level | None:
    if metric in ("process.memory.rss", "process.tree.memory.rss", "cgroup.memory.used", "host.memory.used"):
        limit = run.limits.get("memory_bytes")
        return Level(limit.value, f"limit {given_text(limit.value, 'By')}") if limit else None
    device = next((device for device in run.devices if device.id == subject), None)
    if metric == "gpu.memory.used" and device is not None:
        return Level(device.memory_bytes, f"all of it: {given_text(device.memory_bytes, 'By')}")
    return None
