"""The report for the terminal and for ``%monitor report``; the table of ``%monitor cells``. As wide as the terminal is."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellmeter.costs import costs
from cellmeter.export import company, elsewhere, plugged, said
from cellmeter.export.amounts import free_disk
from cellmeter.export.rows import CellRow, cell_columns, cell_rows, heads, notable
from cellmeter.export.sized import SIZE_NAMES, SIZES_TITLE, costs_line, size_line
from cellmeter.export.summary import (
    FINDINGS_SHOWN,
    NOTES_TITLE,
    contents,
    counts,
    ending,
    facts,
    gpus,
    lead,
    mute_counts,
    plain,
    plugins,
    recorder_cost,
    unavailable,
    unchecked,
    where,
)
from cellmeter.rules import judge
from cellmeter.rules.scripts import is_script
from cellmeter.settings import load_settings
from cellmeter.sizing import sizes
from cellmeter.words import BLANK, bytes_text, cores_text, counted, given_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.rules import Finding, Judgement
    from cellmeter.run import Run
    from cellmeter.settings import Prices

WIDTH = 92  # where there is no terminal
LEAST_WIDTH, MOST_WIDTH = 60, 120  # lines longer than that are hard to read
NAME_WIDTH = 20
LEAST_TITLE, GOOD_TITLE, MOST_TITLE = 14, 24, 44
DISK = ("Read", "Written")  # not worth a cell's name
DISPENSABLE = (
    *DISK,
    "Energy",
    "p90",
    "Growth",
    "First",
    "CPU",
    "Throughput",
)  # columns that go first where it is narrow
RUNS_HEADERS = ("Run", "Started (UTC)", "Duration", "Cells", "Ending", "Size", "Host", "Notebook or script")
RUNNING_HEADERS = ("PID", "CPU", "Memory", "GPU memory", "Notebook or script", "Run")
SIGNS = {"critical": "■ CRITICAL", "warning": "▲ WARNING", "info": "● NOTE"}


def terminal_width() -> int:
    """Columns to write in."""
    return min(max(shutil.get_terminal_size((WIDTH, 24)).columns, LEAST_WIDTH), MOST_WIDTH)


def text_report(run: Run, judgement: Judgement | None = None, prices: Prices | None = None) -> str:
    """Headline, findings, cells, the right size, what was not checked and why, and the facts of the run."""
    judgement = judge(run) if judgement is None else judgement
    spent = costs(run, load_settings().prices if prices is None else prices)
    title = f"cellmeter report · {contents(run)} in {seconds_text(run.duration)}"
    parts = [
        f"{title}\n{'═' * terminal_width()}",
        _paragraph(lead(run, judgement), ""),
        _notes(judgement),
        _findings(run, judgement.findings),
        _cells(run, judgement.findings),
        *_said(run),
        _sizes(run),
        _fact("Cost", costs_line(spent)) if spent else "",
        _unchecked(judgement),
        "Run\n" + "\n".join(_fact(fact.name, fact.value) for fact in (*facts(run), *elsewhere.fact(run))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _said(run: Run) -> list[str]:
    """Who else held GPUs, what plugins measured, what the code said and was told, and what machines elsewhere did."""
    parts = []
    for table in (*company.tables(run), *plugged.tables(run), *said.tables(run), *elsewhere.tables(run)):
        body = _fitted(table.headers, table.rows, terminal_width() - 2, range(1, len(table.headers)))
        parts.append(f"{_paragraph(table.title + (f' ({table.note})' if table.note else ''), '')}\n{_indented(body)}")
    if alarms := said.alarms(run):
        parts.append("Alerts\n" + "\n".join(_paragraph(f"{name} · {value}", "  ", "    ") for name, value in alarms))
    return parts


def cells_table(run: Run) -> str:
    """All cells in aligned columns: title, duration, average CPU in cores, memory, GPU, energy and status."""
    return _cells_table(run, cell_rows(run), terminal_width())


def _cells(run: Run, findings: Sequence[Finding]) -> str:
    """The cells that matter, for a notebook has thousands."""
    rows, note = notable(cell_rows(run), findings)
    table = _cells_table(run, rows, terminal_width() - 2)
    return ("Script\n" if is_script(run) else "Cells\n") + _indented(f"{table}\n{note}" if note else table)


def _cells_table(run: Run, rows: Sequence[CellRow], width: int) -> str:
    if not rows:
        return "no cell has been run"
    columns = cell_columns(run, rows)
    texts = [[row.name, *(row.text(name) for name in columns[1:])] for row in rows]
    return _fitted(heads(run, columns), texts, width, right=range(1, len(columns) - 1))


def _fitted(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int, right: Iterable[int]) -> str:
    """A table no wider than that, if need be with shorter names in its first column, then with fewer columns."""
    kept, room = list(range(len(heads))), 0
    for name in ("", *DISPENSABLE):
        kept = [index for index in kept if heads[index] != name]
        widths = [max(_width(heads[i]), *(_width(row[i]) for row in rows)) for i in kept[1:]]
        room = width - sum(widths) - 2 * len(widths)
        if room >= (GOOD_TITLE if any(heads[index] in DISK for index in kept) else LEAST_TITLE):
            break
    title = min(max(room, LEAST_TITLE), MOST_TITLE)
    shown = [(_shortened(row[0], title), *(row[index] for index in kept[1:])) for row in rows]
    return _table([heads[i] for i in kept], shown, {at for at, index in enumerate(kept) if index in set(right)})


def _sizes(run: Run) -> str:
    lines = [_fact(SIZE_NAMES[size.resource], size_line(size)) for size in sizes(run) if size.peak is not None]
    return "\n".join([SIZES_TITLE, *lines]) if lines else ""


def runs_table(rows: Sequence[Mapping[str, Any]], here: str) -> str:
    """Runs in aligned columns, one a row with the keys of ``cellmeter runs --json``.

    Their hosts are told where one is of another machine than this, whose name is ``here``, as in a home that a cluster shares.
    """
    table = [RUNS_HEADERS, *map(_run_line, rows)]
    if all(row["host"] in (None, here) for row in rows):
        host = RUNS_HEADERS.index("Host")
        table = [(*line[:host], *line[host + 1 :]) for line in table]
    return _table(table[0], table[1:], right={2, 3, 5})


def _run_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["problem"] is not None:
        size, problem = bytes_text(row["size_bytes"]), _shortened(plain(row["problem"]), 40)
        return row["id"], "", "", "", "unreadable", size, "", problem
    return (
        row["id"],
        row["started"][:16].replace("T", " "),
        seconds_text(row["seconds"]),
        str(row["cells"]),
        row["ending"] or "running",
        bytes_text(row["size_bytes"]),
        plain(row["host"]),
        _last_part(plain(row["notebook"] or row["script"] or ""), 40),
    )


def running_table(rows: Sequence[Mapping[str, Any]], here: str) -> str:
    """What those of them take now that are being recorded, the most memory first; empty if there is none.

    ``here``: the name of this machine, as a pid means something on its own alone.
    """
    running = [row for row in rows if row["now"] is not None]
    if not running:
        return ""
    running.sort(key=lambda row: -(row["now"]["memory_bytes"] or 0.0))
    table = [RUNNING_HEADERS, *(_running_line(row, here) for row in running)]
    if not any(row["now"]["gpu_memory_bytes"] for row in running):
        gpu = RUNNING_HEADERS.index("GPU memory")
        table = [(*line[:gpu], *line[gpu + 1 :]) for line in table]
    return "Running now\n" + _indented(_table(table[0], table[1:], right={0, 1}))


def _running_line(row: Mapping[str, Any], here: str) -> tuple[str, ...]:
    now, host = row["now"], row["host"]
    limit = now["memory_limit"]
    of = f" of {given_text(limit['value'], 'By')} ({limit['from']})" if limit["value"] else ""
    return (
        f"{row['pid'] or BLANK}" + ("" if host == here else f" on {plain(host)}"),
        f"{cores_text(now['cpu_cores'])} cores",
        f"{bytes_text(now['memory_bytes'])}{of}",
        f"{bytes_text(now['gpu_memory_bytes'])}{_others_text(now['gpu_others'])}",
        _last_part(plain(row["notebook"] or row["script"] or ""), 40),
        row["id"],
    )


def _others_text(others: Sequence[Mapping[str, Any]]) -> str:
    held = sum(one["used_bytes"] or 0.0 for one in others)
    return f" (others {bytes_text(held)})" if held else ""


def status_text(run: Run) -> str:
    """What ``%monitor`` says: which run, at which rate, what is recorded, what is not and why, and the recorder's cost."""
    metrics = dict.fromkeys(column.metric for segment in run.segments for column in segment.columns)
    scopes = dict.fromkeys(run.metrics[metric].scope for metric in metrics if metric in run.metrics)
    lines = [
        ("Run", run.id),
        ("State", "recording" if run.ending is None else ending(run)),
        ("Rate", f"{run.rate_hz:g} a second inside cells; {counted(run.sample_count, 'sample')} so far"),
        ("Recorded", f"{counted(len(metrics), 'metric')} of {', '.join(scopes) or 'nothing'}"),
        *([("Plugins", plugins(run))] if run.plugin_metrics else []),
        ("GPUs", gpus(run)),
        *company.fact(run),
        *([("Free disk", free)] if (free := free_disk(run)) else []),
        *elsewhere.fact(run),
        *(
            (whose, f"no {', '.join(metrics)}: {why}") if whose else (f"No {metrics[0]}", why)
            for whose, metrics, why in unavailable(run)
        ),
        *(("Notice", notice) for notice in run.notices),
        ("Recorder's own cost", recorder_cost(run)),
        ("Folder", run.path),
    ]
    return "\n".join(["cellmeter", *(_fact(plain(name), plain(value)) for name, value in lines)])


def _notes(judgement: Judgement) -> str:
    lines = [_paragraph(f"● {plain(note.text)}", "  ", "    ") for note in judgement.notes]
    return f"{NOTES_TITLE}\n" + "\n".join(lines) if lines else ""


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
    words = {"unknown": "unknown", "not-applicable": "did not apply", "error": "failed"}
    lines = [
        _fact(checked.rule, f"{words[checked.outcome]}: {plain(checked.reason or 'no reason given')}")
        for checked in unchecked(judgement)
    ]
    return f"Not judged: {mute_counts(judgement)}\n" + "\n".join(lines) if lines else ""


def _fact(name: str, value: str) -> str:
    if len(name) > NAME_WIDTH:
        return f"{_paragraph(name, '  ')}\n{_paragraph(value, ' ' * (NAME_WIDTH + 3))}"
    return _paragraph(value, f"  {name:<{NAME_WIDTH}} ", " " * (NAME_WIDTH + 3))


def _paragraph(text: str, indent: str, then: str | None = None) -> str:
    after = indent if then is None else then  # names of rules are not broken at their hyphens
    return textwrap.fill(text, terminal_width(), initial_indent=indent, subsequent_indent=after, break_on_hyphens=False)


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


def _last_part(path: str, width: int) -> str:
    """A path whose beginning gives way: its end tells one notebook from another."""
    while _width(path) > width:
        path = "…" + path[2:]
    return path
