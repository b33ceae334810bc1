"""A run's figures written into the notebook it is of: ``metadata.cellmeter`` of each cell, and of the notebook itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellmeter.export.records import cell_records
from cellmeter.rules import judge

if TYPE_CHECKING:
    from cellmeter.rules import Judgement
    from cellmeter.run import Run

VERSION = 1
_OF_THE_NOTEBOOK = ("notebook", "host", "execution_count", "cell_id", "label", "parent", "first_line")


def annotate(notebook: Any, run: Run, judgement: Judgement | None = None) -> int:
    """Sets ``metadata.cellmeter`` of a notebook (nbformat 4) and of its code cells; returns how many were in the run.

    A cell is known by its ``In [n]``, as headless runners do not tell the kernel its id; one that was not in the run loses
    what an earlier run had written. Field names are those of ``cellmeter export --jsonl``.
    """
    judgement = judge(run) if judgement is None else judgement
    rules = {cell.seq: [f.rule for f in judgement.findings if cell.seq in f.cells] for cell in run.cells}
    figures = {}
    for record in cell_records(run):
        if record["execution_count"] is not None and record["parent"] is None:
            own = {key: value for key, value in record.items() if key not in _OF_THE_NOTEBOOK}
            figures[record["execution_count"]] = {**own, "findings": rules[record["seq"]]}
    found = 0
    for cell in notebook.cells:
        cell.metadata.pop("cellmeter", None)
        if cell.cell_type == "code" and cell.execution_count in figures:
            cell.metadata["cellmeter"] = figures[cell.execution_count]
            found += 1
    notebook.metadata["cellmeter"] = {
        "version": VERSION,
        "run_id": run.id,
        "started": run.started.isoformat(),
        "duration_seconds": run.duration,
        "ending": run.ending,
        "findings": [
            {"rule": f.rule, "severity": f.severity, "fact": f.fact, "advice": f.advice} for f in judgement.findings
        ],
    }
    return found
