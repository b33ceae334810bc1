"""The page: its frame, the order of its sections, its tiles and its timeline."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellmeter import timeline
from cellmeter.costs import Costs, costs
from cellmeter.export import company, elsewhere, plugged, said
from cellmeter.export.amounts import NOTABLE_DISK, disk_bytes, memory_peaks
from cellmeter.export.devices import device_statistics
from cellmeter.export.html.advice import costs_section, sizing_section
from cellmeter.export.html.cells import cells_section
from cellmeter.export.html.findings import findings_section
from cellmeter.export.html.gpus import gpus_section
from cellmeter.export.html.inline import inline
from cellmeter.export.html.memory import memory_section
from cellmeter.export.html.pieces import definitions, name_of, packaged, section, table, text
from cellmeter.export.rows import CellRow, cell_rows
from cellmeter.export.summary import (
    NOTES_TITLE,
    contents,
    counts,
    facts,
    headline,
    mute_counts,
    overline,
    plain,
    process_of,
    unchecked,
)
from cellmeter.rules import judge
from cellmeter.rules.observed import in_cells, top_cells
from cellmeter.rules.ownership import not_used
from cellmeter.rules.scripts import is_script
from cellmeter.settings import load_settings
from cellmeter.sizing import sizes
from cellmeter.words import (
    bytes_text,
    cores_text,
    counted,
    given_text,
    gpu_seconds_text,
    joules_text,
    money_text,
    percent_text,
    seconds_text,
)

if TYPE_CHECKING:
    from cellmeter.rules import Judgement
    from cellmeter.run import Run
    from cellmeter.settings import Prices

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


class Timeline(NamedTuple):
    """The charts of a run: the element they go into and the scripts that draw them, BokehJS first."""

    element: str
    scripts: tuple[str, ...]


def html_report(run: Run, judgement: Judgement | None = None, prices: Prices | None = None) -> str:
    """The whole report as one HTML file, charts included. ``prices``: by default those of the settings."""
    judgement = judge(run) if judgement is None else judgement
    spent = costs(run, load_settings().prices if prices is None else prices)
    drawn = _timeline(run)
    scripts = [packaged("report.js"), *(drawn.scripts if drawn else ())]
    return _page(plain(f"cellmeter report · {name_of(run)}"), _body(run, judgement, spent, drawn), scripts)


def inline_html(run: Run, judgement: Judgement | None = None, prices: Prices | None = None) -> str:
    """The report for a notebook's output: no script, some charts, and at most some tens of kB."""
    judgement = judge(run) if judgement is None else judgement
    return inline(run, judgement, sizes(run), costs(run, load_settings().prices if prices is None else prices))


def _page(title: str, body: str, scripts: Sequence[str]) -> str:
    sources = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    policy = f"{POLICY}; script-src {sources}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{packaged('report.css')}</style>\n</head>\n<body>\n{body}\n"
        + "\n".join(f"<script>{script}</script>" for script in scripts)
        + "\n</body>\n</html>\n"
    )


def _body(run: Run, judgement: Judgement, spent: Costs | None, drawn: Timeline | None) -> str:
    rows, script = cell_rows(run), is_script(run)
    sections = [
        section(NOTES_TITLE, "".join(f'<p class="note info">{text(note.text)}</p>' for note in judgement.notes)),
        section("Findings", findings_section(run, judgement.findings), counts(judgement.findings)),
        section("Timeline", f'<div class="panel timeline">{drawn.element}</div>' if drawn else ""),
        section(
            "Script" if script else "Cells",
            cells_section(run, rows, judgement.findings),
            "" if script else contents(run),
        ),
        *(section(one.title, _table(one, "as plugins measured them"), one.note) for one in plugged.tables(run)),
        *(section(one.title, _table(one, "as the code told them"), one.note) for one in said.tables(run)),
        *(section(one.title, _table(one, "as Prometheus told it"), one.note) for one in elsewhere.tables(run)),
        section("Alerts", definitions(said.alarms(run))),
        section(
            "Memory", memory_section(run, rows) if rows else "", "" if script else "bands are cells, dots their peaks"
        ),
        section("GPUs", gpus_section(run, device_statistics(run)), "inside cells"),
        *(section(one.title, _table(one, "as the driver lists processes"), one.note) for one in company.tables(run)),
        section(
            "Right size", sizing_section(sizes(run)), "for what was recorded here, so that it fills 70 to 80 % of it"
        )
        if rows
        else "",
        section("Cost", costs_section(run, spent), "by the prices in your settings"),
        section("Not judged", _unchecked(judgement), mute_counts(judgement)),
        section("This recording", definitions((fact.name, fact.value) for fact in (*facts(run), *elsewhere.fact(run)))),
    ]
    return (
        f'<header><div class="brand"><b>cellmeter</b><span>{text(name_of(run))}</span>'
        f"<span>{run.started:%Y-%m-%d %H:%M} UTC</span></div>"
        f'<p class="verdict">{overline(run, judgement) or "Verdict"}</p><h1>{text(headline(run, judgement))}</h1>'
        f"{_tiles(run, rows, judgement, spent)}</header>\n<main>{''.join(sections)}</main>\n"
        "<footer>Made by cellmeter. – means unknown: what could not be measured is never shown as 0.</footer>"
    )


def _tiles(run: Run, rows: Sequence[CellRow], judgement: Judgement, spent: Costs | None) -> str:
    tiles = [("Recorded", seconds_text(run.duration), contents(run)), _cpu_tile(run), _memory_tile(run)]
    if max(disk_bytes(run, "read") or 0, disk_bytes(run, "written") or 0) >= NOTABLE_DISK:
        tiles.append(
            ("Disk", bytes_text(disk_bytes(run, "written")), f"written; {bytes_text(disk_bytes(run, 'read'))} read")
        )
    if run.devices:
        tiles.append(_gpu_tile(run))
        most = sum(run.duration - device.since for device in run.devices)  # two findings may tell of the same time
        wasted = min(sum(finding.waste.gpu_seconds for finding in judgement.findings), most)
        unused = gpu_seconds_text(wasted).removesuffix(" GPU-seconds") if wasted else "none found"
        tiles.append(("GPU-seconds unused", unused, "by the findings below"))
    top = {cell.seq for cell in top_cells(run)}  # what ran within a cell is in its energy
    cells = [row for row in rows if row.seq in top]
    joules = [row.energy_joules for row in cells if row.energy_joules is not None]
    if joules:
        known = "inside cells" if len(joules) == len(cells) else f"of {len(joules)} of {counted(len(cells), 'cell')}"
        tiles.append(("GPU energy", joules_text(sum(joules)), known))
    if spent is not None and spent.items:
        unused = f"of it {money_text(spent.currency, spent.unused)} unused"
        tiles.append(("Cost", money_text(spent.currency, spent.total), unused))
    return '<dl class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</dl>"


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{name}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>"


def _cpu_tile(run: Run) -> tuple[str, str, str]:
    limit = run.limits.get("cpu_cores")
    usage = in_cells(run, "process.cpu.usage", "process")
    there = f"of {given_text(limit.value, '{cpu}')}, " if limit else "cores, "
    highest = f"at most {cores_text(float(usage.values.max()))}" if len(usage.values) else "not measured"
    return (
        "CPU use" if is_script(run) else "CPU use in cells",
        cores_text(usage.mean() if len(usage.values) else None),
        there + highest,
    )


def _memory_tile(run: Run) -> tuple[str, str, str]:
    limit, peaks = run.limits.get("memory_bytes"), memory_peaks(run)
    of = f"of {given_text(limit.value, 'By')}" if limit else "limit unknown"
    workers = f" with workers; {process_of(run)} alone {bytes_text(peaks.kernel)}" if peaks.workers_tell else ""
    return "Peak memory", bytes_text(peaks.most), of + workers


def _gpu_tile(run: Run) -> tuple[str, str, str]:
    others = not_used(run, 0.0, run.duration)
    devices = [device for device in run.devices if device.id not in others]
    if not devices:
        return "GPU use in cells", "none", f"{counted(len(run.devices), 'GPU')}, not used by this {process_of(run)}"
    readings = (in_cells(run, "gpu.utilization", device.id) for device in devices)  # not all are to be held at once
    used = [(one.mean(), one.total) for one in readings if one.total > 0]
    mean = sum(mean * seconds for mean, seconds in used) / sum(seconds for _, seconds in used) if used else None
    return "GPU use in cells", percent_text(mean), f"mean of {counted(len(devices), 'GPU')}"


def _table(one: said.Table, source: str) -> str:
    """What plugins measured, the user's code said (spans, logged values, steps), or machines elsewhere did."""
    rows = ([text(words) for words in row] for row in one.rows)
    return table(f"{one.title}, {source}", one.headers, rows)


def _unchecked(judgement: Judgement) -> str:
    words = {"unknown": "Unknown", "not-applicable": "Did not apply", "error": "The rule failed"}
    return definitions(
        (checked.rule, f"{words[checked.outcome]}: {checked.reason or 'no reason given'}")
        for checked in unchecked(judgement)
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _timeline(run: Run) -> Timeline | None:
    """The charts; None for a run without samples."""
    if run.sample_count == 0:
        return None
    import bokeh
    from bokeh.embed import components

    script, element = components(timeline.run_figures(run), wrap_script=False)
    bokehjs = Path(bokeh.__file__).parent.joinpath("server", "static", "js", "bokeh.min.js").read_text("utf-8")
    return Timeline(element, tuple(map(_scriptable, (bokehjs, script))))


def _scriptable(script: str) -> str:
    """A script as a page can hold it: it ends nowhere but at its end, and is what its hash says after parsing."""
    sound = script.encode("utf-8", "backslashreplace").decode()
    sound = re.sub("<(?=/script|!--)", r"\\x3c", sound, flags=re.IGNORECASE)
    return sound.replace("\r\n", "\n").replace("\r", "\n")
