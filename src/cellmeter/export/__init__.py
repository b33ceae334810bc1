"""A run and its findings, made into something to read or to work on: the suffix of a file or the name of a format chooses.

``text`` for the terminal, ``html`` as one file that needs nothing else, ``md`` for an issue, ``json`` for programs, and the
samples themselves as ``csv`` or ``parquet``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cellmeter.errors import BadUsage
from cellmeter.export.compared import comparison_html, comparison_json, comparison_markdown, comparison_text
from cellmeter.export.comparison import compare
from cellmeter.export.html import html_report, inline_cells, inline_html
from cellmeter.export.in_notebook import annotate
from cellmeter.export.markdown import markdown_report
from cellmeter.export.records import jsonl_report, write_cells_csv, write_cells_parquet
from cellmeter.export.report_json import json_report
from cellmeter.export.selection import WHOLE, Part, narrowed, part_of, selection
from cellmeter.export.table import write_csv, write_parquet
from cellmeter.export.text import cells_table, running_table, runs_table, status_text, text_report
from cellmeter.plugins import found
from cellmeter.rules import judge

if TYPE_CHECKING:
    import os

    from cellmeter.rules import Judgement
    from cellmeter.run import Run

__all__ = [
    "COMPARISON_FORMATS",
    "FORMATS",
    "FORMAT_OF",
    "SUFFIXES",
    "Part",
    "annotate",
    "cells_table",
    "compare",
    "html_report",
    "inline_cells",
    "inline_html",
    "narrowed",
    "part_of",
    "render",
    "render_comparison",
    "running_table",
    "runs_table",
    "selection",
    "status_text",
    "suffixes",
    "write",
]

_REPORTS: dict[str, Callable[[Run, Judgement | None], str]] = {
    "text": text_report,
    "html": html_report,
    "json": json_report,
    "md": markdown_report,
    "jsonl": jsonl_report,
}
_COMPARISONS = {
    "text": comparison_text,
    "html": comparison_html,
    "json": comparison_json,
    "md": comparison_markdown,
}
_TABLES: dict[str, Callable[[Run, BinaryIO, Part], None]] = {".csv": write_csv, ".parquet": write_parquet}
_CELL_TABLES: dict[str, Callable[[Run, BinaryIO], None]] = {
    ".csv": write_cells_csv,
    ".parquet": write_cells_parquet,
}
FORMAT_OF = {".html": "html", ".json": "json", ".md": "md", ".txt": "text", ".jsonl": "jsonl"}

FORMATS = tuple(_REPORTS)
COMPARISON_FORMATS = tuple(_COMPARISONS)
SUFFIXES = (*FORMAT_OF, *_TABLES)


def render(run: Run, format: str, judgement: Judgement | None = None) -> str:
    """The report as a string, in one of ``FORMATS``. ``judgement``: by default that of all rules as they come.

    Raises BadUsage for another format.
    """
    if format not in _REPORTS:
        raise BadUsage(f"there is no report format {format!r}: the formats are {', '.join(FORMATS)}")
    return _REPORTS[format](run, judgement)


def render_comparison(a: Run, b: Run, format: str) -> str:
    """Two runs side by side, the earlier one first, in one of ``COMPARISON_FORMATS``. Raises BadUsage for another."""
    if format not in _COMPARISONS:
        raise BadUsage(f"there is no format {format!r} of a comparison: the formats are {', '.join(_COMPARISONS)}")
    return _COMPARISONS[format](compare(a, b))


def write(
    run: Run,
    path: str | os.PathLike[str],
    judgement: Judgement | None = None,
    *,
    per_cell: bool = False,
    part: Part | None = None,
) -> Path:
    """Writes the report, or the samples, to a file whose suffix is one of ``SUFFIXES``; returns its path.

    ``per_cell``: tables have a row a cell and not a row a reading. ``part``: only that part of the run; judged is all of it.

    The file is there whole or not at all. Raises BadUsage for another suffix, MissingExtra where ``.parquet`` needs a package
    that is not installed, and OSError.
    """
    target = Path(path).expanduser()
    suffix = target.suffix.lower()
    if suffix not in suffixes():
        raise BadUsage(f"{str(path)!r} has no suffix that tells the format: use one of {', '.join(suffixes())}")
    place = target.with_name(target.name + ".part")
    try:
        with place.open("wb") as file:
            _write(run, file, suffix, judgement, per_cell, part or WHOLE)
        place.replace(target)
    finally:
        place.unlink(missing_ok=True)
    return target


def suffixes() -> tuple[str, ...]:
    """``SUFFIXES``, and those that other packages add."""
    return (*SUFFIXES, *(f".{point.name}" for point in found("cellmeter.exports") if f".{point.name}" not in SUFFIXES))


def _added(run: Run, suffix: str, judgement: Judgement) -> bytes:
    """What the export of another package makes. Raises BadUsage where it fails."""
    (point,) = (point for point in found("cellmeter.exports") if f".{point.name}" == suffix)
    try:
        made = point.load()(run, judgement)
        content = made.encode("utf-8", "backslashreplace") if isinstance(made, str) else made
        if not isinstance(content, bytes):
            raise TypeError(f"it made {type(made).__name__}, not str or bytes")
    except (Exception, SystemExit) as error:
        raise BadUsage(f"the export {point.name} ({point.value}) failed: {type(error).__name__}: {error}") from error
    return content


def _write(run: Run, file: BinaryIO, suffix: str, judgement: Judgement | None, per_cell: bool, part: Part) -> None:
    if suffix in _TABLES and not per_cell:
        return _TABLES[suffix](run, file, part)
    run, judgement = narrowed(run, judgement or judge(run), part)
    if suffix in _TABLES:
        return _CELL_TABLES[suffix](run, file)
    if suffix not in FORMAT_OF:
        file.write(_added(run, suffix, judgement))
        return None
    file.write(render(run, FORMAT_OF[suffix], judgement).encode("utf-8", "backslashreplace"))
    return None
