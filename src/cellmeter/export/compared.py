"""A comparison of two runs as text, Markdown, JSON (``comparison.schema.json`` beside this file) and one HTML file."""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from cellmeter.export.comparison import OVER_START, PEAK
from cellmeter.export.markdown import escaped
from cellmeter.export.summary import plain
from cellmeter.words import BLANK, change_text, counted, seconds_text, value_text

if TYPE_CHECKING:
    from cellmeter.export.comparison import Comparison, Difference, Matched
    from cellmeter.run import Run

VERSION = 1
HEADERS = ("", "before", "after", "change", "")
_TITLE_WIDTH = 44


def comparison_text(comparison: Comparison) -> str:
    """The cells that differ, with what differs; those that do not in one line."""
    lines = [f"before  {_run_line(comparison.a)}", f"after   {_run_line(comparison.b)}", "", verdict(comparison), ""]
    lines.append(f"{'':26}{'before':>12}{'after':>12}{'change':>12}")
    for name, differences, note in _shown(comparison):
        lines += _block(name, differences, note)
    return "\n".join([*lines, *_alone_lines(comparison)]) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """The same for a pull request or an issue."""
    rows = [f"| {' | '.join(HEADERS)} |", "| --- | ---: | ---: | ---: | --- |"]
    for name, differences, note in _shown(comparison):
        rows.append(f"| **{escaped(name)}**{f' ({escaped(note)})' if note else ''} | | | | |")
        rows += [f"| {d.quantity.name} | {' | '.join(cells_of(d))} |" for d in differences]
    runs = "\n".join(f"- {name}: {escaped(_run_line(run))}" for name, run in _runs(comparison))
    alone = [escaped(line) for line in _alone_lines(comparison) if line]
    return "\n\n".join([f"## {escaped(verdict(comparison))}", runs, "\n".join(rows), *alone]) + "\n"


def _shown(comparison: Comparison) -> list[tuple[str, list[Difference], str]]:
    """What text has room for: all cells together, then those that differ, with what differs."""
    blocks = [(_name(cell), shown(cell), _note(cell)) for cell in comparison.cells if differs(cell)]
    return [(name, _known(differences), "") for name, differences in _summed(comparison)] + blocks


def _summed(comparison: Comparison) -> list[tuple[str, tuple[Difference, ...]]]:
    """All cells of each run; where not all have a partner, those that have as well."""
    if not comparison.only_in_a and not comparison.only_in_b:
        return [("All cells", comparison.whole)]
    both = [("All cells that are in both", comparison.total)] if comparison.cells else []
    return [("All cells of each run", comparison.whole), *both]


def _known(differences: tuple[Difference, ...]) -> list[Difference]:
    return [difference for difference in differences if difference.a is not None or difference.b is not None]


def _runs(comparison: Comparison) -> tuple[tuple[str, Run], tuple[str, Run]]:
    return ("before", comparison.a), ("after", comparison.b)


def comparison_json(comparison: Comparison) -> str:
    """All of it for programs: keys are added, never renamed."""
    fields = {
        "version": VERSION,
        "a": _run_fields(comparison.a),
        "b": _run_fields(comparison.b),
        "cells": [_cell_fields(cell) for cell in comparison.cells],
        "total": _difference_fields(comparison.total),
        "whole": _difference_fields(comparison.whole),
        "only_in_a": list(comparison.only_in_a),
        "only_in_b": list(comparison.only_in_b),
    }
    return json.dumps(fields, indent=1, allow_nan=False) + "\n"


def comparison_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of :func:`comparison_json`."""
    text = resources.files("cellmeter.export").joinpath("comparison.schema.json").read_text("utf-8")
    fields: dict[str, Any] = json.loads(text)
    return fields


def comparison_html(comparison: Comparison) -> str:
    """A page that asks the network for nothing; every string of the notebook is escaped."""
    rows = "".join(_html_rows(name, differences) for name, differences in _summed(comparison))
    rows += "".join(_html_rows(_name(cell), cell.differences, _note(cell)) for cell in comparison.cells)
    heads = "".join(f'<th scope="col">{head}</th>' for head in HEADERS)
    table = f"<table><thead><tr>{heads}</tr></thead>{rows}</table>" if rows else ""
    runs = "".join(f"<dt>{name}</dt><dd>{escape(_run_line(run))}</dd>" for name, run in _runs(comparison))
    alone = "".join(f"<p>{escape(line)}</p>" for line in _alone_lines(comparison) if line)
    title = escape(f"cellmeter: {comparison.a.id} and {comparison.b.id}")
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{escape(verdict(comparison))}</h1><dl>{runs}</dl>{table}{alone}</main></body></html>\n"
    )


def verdict(comparison: Comparison) -> str:
    """What changed, in one sentence."""
    time = next(d for d in comparison.whole if d.quantity.key == "seconds")
    all_in_all = ""
    if time.verdict in ("more", "less"):
        word = "slower" if time.verdict == "more" else "faster"
        all_in_all = f"; all in all it is {word}: {seconds_text(time.a)} before, {seconds_text(time.b)} after"
    if not comparison.cells:
        return f"The two runs have no cell in common{all_in_all}."
    changed = sum(differs(cell) for cell in comparison.cells)
    alone = len(comparison.only_in_a) + len(comparison.only_in_b)
    compared = counted(len(comparison.cells), "cell") + (" that are in both" if alone else "")
    if not changed:
        return f"Nothing differs by more than noise in the {compared}{all_in_all}."
    return f"{changed} of {compared} {'differs' if changed == 1 else 'differ'}{all_in_all}."


def differs(cell: Matched) -> bool:
    """Whether anything of a cell is different by more than noise."""
    return cell.status_a != cell.status_b or any(d.verdict in ("more", "less") for d in cell.differences)


def shown(cell: Matched) -> list[Difference]:
    """What differs of a cell, its time in any case; of its memory what it added, where that is known to differ."""
    found = [d for d in cell.differences if d.verdict in ("more", "less") or d.quantity.key == "seconds"]
    added = any(d.quantity.key == OVER_START for d in found)
    return [d for d in found if not added or d.quantity.key != PEAK]


def _name(cell: Matched) -> str:
    return f"{cell.title} · {cell.first_line}" if cell.first_line else cell.title


def _note(cell: Matched) -> str:
    runs = "" if len(cell.a) == len(cell.b) == 1 else f"ran {len(cell.a)} × before, {len(cell.b)} × after: medians"
    status = "" if cell.status_a == cell.status_b else f"{cell.status_a} before, {cell.status_b} after"
    place = "matched by its place alone" if cell.matched_by == "place" else ""
    edited = "edited" if cell.edited and not place else ""
    return "; ".join(part for part in (status, place, edited, runs) if part)


def _block(name: str, differences: list[Difference], note: str) -> list[str]:
    title = name if len(name) <= _TITLE_WIDTH else name[: _TITLE_WIDTH - 1] + "…"
    lines = [f"{title} ({note})" if note else title]
    for difference in differences:
        before, after, change, means = cells_of(difference)
        lines.append(f"  {difference.quantity.name:<24}{before:>12}{after:>12}{change:>12}  {means}".rstrip())
    return lines


def cells_of(difference: Difference) -> tuple[str, str, str, str]:
    """Before, after, the change, and what it means."""
    unit, change, relative = difference.quantity.unit, difference.change, difference.relative
    before, after = (value_text(value, unit, BLANK) for value in (difference.a, difference.b))
    if change is None:
        return before, after, BLANK, "unknown"
    if unit == "%":
        said = change_text(change, "%").replace(" %", " points")
    else:
        said = change_text(change, unit) if relative is None else change_text(100 * relative, "%")
    return before, after, said, {"same": "noise"}.get(difference.verdict, difference.verdict)


def _alone_lines(comparison: Comparison) -> list[str]:
    lines = []
    for when, titles in (("before", comparison.only_in_a), ("after", comparison.only_in_b)):
        if titles:
            named = ", ".join(titles[:5]) + (f" and {len(titles) - 5} more" if len(titles) > 5 else "")
            lines.append(f"Only {when}: {named}")
    return ["", *lines] if lines else []


def _run_line(run: Run) -> str:
    took = f"{counted(len(run.cells), 'cell')} in {seconds_text(run.duration)}"
    return plain(f"{run.id}, {took}, {run.notebook or 'no notebook known'}, {run.host.name}")


def _run_fields(run: Run) -> dict[str, Any]:
    return {"id": run.id, "started": run.started.isoformat(), "notebook": run.notebook, "host": run.host.name}


def _cell_fields(cell: Matched) -> dict[str, Any]:
    fields = {key: value for key, value in asdict(cell).items() if key != "differences"}
    return {**fields, "differs": differs(cell), "differences": _difference_fields(cell.differences)}


def _difference_fields(differences: tuple[Difference, ...]) -> dict[str, Any]:
    return {
        d.quantity.key: {
            "a": d.a,
            "b": d.b,
            "change": d.change,
            "relative": d.relative,
            "noise": d.noise,
            "unit": d.quantity.unit,
            "verdict": d.verdict,
        }
        for d in differences
    }


def _html_rows(name: str, differences: tuple[Difference, ...], note: str = "") -> str:
    noted = f" <small>{escape(note)}</small>" if note else ""
    rows = f'<tr class="cell"><th scope="rowgroup" colspan="5">{escape(name)}{noted}</th></tr>'
    for difference in differences:
        if difference.a is None and difference.b is None:
            continue
        before, after, change, means = cells_of(difference)
        rows += (
            f'<tr class="{difference.verdict}"><th scope="row">{difference.quantity.name}</th>'
            f"<td>{before}</td><td>{after}</td><td>{change}</td><td>{means}</td></tr>"
        )
    return f"<tbody>{rows}</tbody>"


_STYLE = """
:root { color-scheme: light dark; --line: #d7dbe0; --quiet: #69707a; --more: #b3470f; --less: #146c5f; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --quiet: #9aa3ad; --more: #f0955c; --less: #5cc7b4; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; } main { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; line-height: 1.3; } dl { display: grid; grid-template-columns: auto 1fr; gap: 0 1rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; } small { color: var(--quiet); font-weight: normal; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: normal; }
td, thead th { text-align: right; padding: 2px 0 2px 1rem; font-variant-numeric: tabular-nums; }
td:last-child { text-align: left; } thead th { color: var(--quiet); } tbody th[scope=row] { padding-left: 1rem; }
.cell th { font-weight: 600; border-top: 1px solid var(--line); padding-top: 8px; overflow-wrap: anywhere; }
.same, .unknown { color: var(--quiet); } .more td:nth-child(n + 4) { color: var(--more); font-weight: 600; }
.less td:nth-child(n + 4) { color: var(--less); font-weight: 600; } tbody { break-inside: avoid; }
""".strip()
