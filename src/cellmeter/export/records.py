"""A cell as one flat record: a row of CSV or Parquet, and with the findings a line of JSON for log shippers.

Field names are flat and say their unit; times are ISO 8601 in UTC. Unknown is null, an empty field in CSV.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from cellmeter.errors import MissingExtra
from cellmeter.export import plugged
from cellmeter.export.amounts import tree_peak
from cellmeter.export.table import neutral
from cellmeter.rules import judge

if TYPE_CHECKING:
    from cellmeter.rules import Finding, Judgement
    from cellmeter.run import Cell, Run

Record = dict[str, Any]
PLUGIN = "plugin_"  # begins the fields of what plugins measured
_UNIT_OF_ENDING = {"seconds": "s", "bytes": "By", "percent": "%", "joules": "J"}


def cell_records(run: Run) -> list[Record]:
    """A record a cell, all with the same fields."""
    run.usages()
    return [_cell(run, cell) for cell in run.cells]


def _cell(run: Run, cell: Cell) -> Record:
    usage, tree = run.usage(cell), tree_peak(run, cell)
    record: Record = {
        "timestamp": _iso(run, cell.start),
        "run_id": run.id,
        "notebook": run.notebook,
        "host": run.host.name,
        "seq": cell.seq,
        "execution_count": cell.execution_count,
        "cell_id": cell.cell_id,
        "label": cell.label,
        "parent": cell.parent,
        "first_line": cell.first_line,
        "status": cell.status,
        "error": cell.error,
        "start_seconds": cell.start,
        "duration_seconds": cell.seconds,
        "samples": usage.samples,
        "cpu_seconds": usage.cpu_seconds,
        "peak_rss_bytes": usage.peak_rss_bytes,
        "peak_exact": usage.peak_exact,
        "tree_peak_rss_bytes": None if tree is None else int(tree),
        "rss_start_bytes": usage.rss_start_bytes,
        "rss_end_bytes": usage.rss_end_bytes,
        "workers_peak_rss_bytes": cell.workers_peak_bytes,
        "read_bytes": usage.read_bytes,
        "written_bytes": usage.written_bytes,
    }
    for gpu, used in usage.gpu.items():
        record |= {
            f"{gpu}_utilization_mean_percent": used.utilization_mean,
            f"{gpu}_utilization_p95_percent": used.utilization_p95,
            f"{gpu}_memory_peak_bytes": used.memory_peak_bytes,
            f"{gpu}_own_memory_peak_bytes": used.own_memory_peak_bytes,
            f"{gpu}_energy_joules": used.energy_joules,
        }
    for metric, subjects in plugged.cell_fields(run, cell)[0].items():
        for subject, told in subjects.items():
            flat = re.sub(r"\W", "_", f"{PLUGIN}{metric}_{subject}")
            record |= {f"{flat}_{name}": value for name, value in told.items()}
    return {key: _known(value) for key, value in record.items()}


def _known(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(float(value), 6) if math.isfinite(value) else None


def _iso(run: Run, seconds: float) -> str:
    time = datetime.fromtimestamp(run.epoch(seconds), UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_cells_csv(run: Run, file: BinaryIO) -> None:
    """A row a cell as UTF-8 CSV with a header."""
    records = cell_records(run)
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    rows = csv.writer(text)
    rows.writerow(_names(run, records))
    for record in records:
        rows.writerow([neutral(value) if isinstance(value, str) else value for value in record.values()])
    text.flush()
    text.detach()


def write_cells_parquet(run: Run, file: BinaryIO) -> None:
    """A row a cell as Parquet, each column's unit in its metadata. Raises MissingExtra without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", "a Parquet file") from error
    records = cell_records(run)
    columns = {name: [_storable(record[name]) for record in records] for name in _names(run, records)}
    columns["timestamp"] = [datetime.fromisoformat(time) for time in columns["timestamp"]]
    fields = [pa.field(name, _type(pa, name), metadata=_unit(name)) for name in columns]
    schema = pa.schema(fields, metadata={"cellmeter_run": run.id})
    pq.write_table(pa.table(columns, schema=schema), file, compression="zstd")


def _names(run: Run, records: list[Record]) -> list[str]:
    """Of all fields, also where no cell has been run."""
    return list(records[0]) if records else ["timestamp", "run_id", "seq", "status"]


def _storable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _unit(name: str) -> dict[str, str] | None:
    unit = _UNIT_OF_ENDING.get(name.rpartition("_")[2])
    return {"unit": unit} if unit else None


def _type(pa: Any, name: str) -> Any:
    if name == "timestamp":
        return pa.timestamp("ms", tz="UTC")
    if name == "peak_exact":
        return pa.bool_()
    if name in ("seq", "execution_count", "parent", "samples") or name.endswith("_bytes"):
        return pa.int64()
    return pa.float64() if _unit(name) or name.startswith(PLUGIN) else pa.string()


def jsonl_report(run: Run, judgement: Judgement | None = None) -> str:
    """One JSON document a line: each cell, at the time it began, then each finding, at the time its interval begins."""
    judgement = judge(run) if judgement is None else judgement
    cells = [{"type": "cell", **record} for record in cell_records(run)]
    findings = [{"type": "finding", **_finding(run, finding)} for finding in judgement.findings]
    return "".join(json.dumps(document, allow_nan=False) + "\n" for document in (*cells, *findings))


def _finding(run: Run, finding: Finding) -> Record:
    record = {
        "timestamp": _iso(run, finding.start),
        "run_id": run.id,
        "notebook": run.notebook,
        "host": run.host.name,
        "rule": finding.rule,
        "severity": finding.severity,
        "cells": list(finding.cells),
        "subject": finding.subject,
        "cause": finding.cause,
        "start_seconds": finding.start,
        "duration_seconds": finding.end - finding.start,
        "fact": finding.fact,
        "consequence": finding.consequence,
        "advice": finding.advice,
        "evidence_metric": finding.evidence.metric,
        "evidence_value": finding.evidence.value,
        "evidence_threshold": finding.evidence.threshold,
        "evidence_unit": finding.evidence.unit,
        "waste_gpu_seconds": finding.waste.gpu_seconds,
    }
    return {key: _known(value) for key, value in record.items()}
