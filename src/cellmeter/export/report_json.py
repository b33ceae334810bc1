"""The report for programs: version 1 of the JSON report, whose schema is ``report.schema.json`` beside this file.

Keys are added, never renamed. No key is ever missing; what is unknown is null, with its reason under ``unknown``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

import cellmeter
from cellmeter.costs import Costs, costs
from cellmeter.export import company, elsewhere, plugged, said
from cellmeter.export.amounts import disk_bytes, tree_peak
from cellmeter.export.devices import DeviceStatistics, Spread, device_statistics
from cellmeter.rules import judge
from cellmeter.settings import load_settings
from cellmeter.sizing import HIGHEST_TARGET, TARGET, sizes

if TYPE_CHECKING:
    from cellmeter.rules import Judgement
    from cellmeter.run import Cell, Device, Limit, Run
    from cellmeter.settings import Prices

VERSION = 1
LIMITS = ("memory_bytes", "cpu_cores")


def json_report(run: Run, judgement: Judgement | None = None, prices: Prices | None = None) -> str:
    """The report as JSON, indented; pure ASCII, so that no encoding on the way can hurt it."""
    return json.dumps(report(run, judgement, prices), indent=1, allow_nan=False) + "\n"


def report(run: Run, judgement: Judgement | None = None, prices: Prices | None = None) -> dict[str, Any]:
    """The report as plain data."""
    judgement = judge(run) if judgement is None else judgement
    run.usages()
    fields = {
        "version": VERSION,
        "generator": {"name": "cellmeter", "version": cellmeter.__version__},
        "run": _run(run) | {"notes": [note._asdict() for note in judgement.notes]},
        "devices": [_device(*both) for both in zip(run.devices, device_statistics(run), strict=True)],
        "gpu_holders": company.fields(run),
        "cells": [_cell(run, cell) for cell in run.cells],
        "plugins": plugged.fields(run),
        **said.fields(run),
        "findings": [asdict(finding) for finding in judgement.findings],
        "checked": [asdict(checked) for checked in judgement.checked],
        "sizing": {
            "target": TARGET,
            "highest_target": HIGHEST_TARGET,
            "resources": [asdict(size) | {"verdict": size.verdict} for size in sizes(run)],
        },
        "costs": _costs(costs(run, load_settings().prices if prices is None else prices)),
    }
    clean: dict[str, Any] = _finite(fields)
    return clean


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of :func:`report`."""
    text = resources.files("cellmeter.export").joinpath("report.schema.json").read_text("utf-8")
    fields: dict[str, Any] = json.loads(text)
    return fields


def _run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "started": run.started.isoformat(),
        "ended": run.ended.isoformat() if run.ended else None,
        "ending": run.ending,
        "ending_sure": run.ending_sure,
        "signal": run.signal,
        "exit_code": run.exit_code,
        "notebook": run.notebook,
        "duration": run.duration,
        "host": asdict(run.host),
        "limits": {name: _limit(run.limits.get(name)) for name in dict.fromkeys([*LIMITS, *run.limits])},
        "rate_hz": run.rate_hz,
        "samples": run.sample_count,
        "read_bytes": disk_bytes(run, "read"),
        "written_bytes": disk_bytes(run, "written"),
        "gaps": [gap._asdict() for gap in run.gaps],
        "unknown": dict(run.unavailable),
        "notices": list(run.notices),
        "remote": elsewhere.run_fields(run),
    }


def _device(device: Device, statistics: DeviceStatistics) -> dict[str, Any]:
    return asdict(device) | {
        "statistics": {spread.metric: _spread(spread) for spread in statistics.spreads},
        "utilization_histogram_seconds": statistics.histogram_seconds,
    }


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "unit": spread.unit,
        "samples": spread.samples,
        "mean": spread.mean,
        **spread.quantiles,
        "unknown": spread.unknown,
    }


def _costs(spent: Costs | None) -> dict[str, Any] | None:
    if spent is None:
        return None
    items = [
        asdict(item) | {"unknown": item.unknown, "cost": item.cost, "unused_cost": item.unused_cost}
        for item in spent.items
    ]
    return asdict(spent) | {"items": items, "total": spent.total, "unused": spent.unused}


def _limit(limit: Limit | None) -> dict[str, Any]:
    return {"value": limit.value if limit else None, "from": limit.source if limit else None}


def _cell(run: Run, cell: Cell) -> dict[str, Any]:
    usage = run.usage(cell)
    plugins, unknown = plugged.cell_fields(run, cell)
    return {
        "seq": cell.seq,
        "execution_count": cell.execution_count,
        "cell_id": cell.cell_id,
        "label": cell.label,
        "parent": cell.parent,
        "first_line": cell.first_line,
        "start": cell.start,
        "end": cell.end,
        "status": cell.status,
        "error": cell.error,
        "samples": usage.samples,
        "cpu_seconds": usage.cpu_seconds,
        "cores": usage.cores,
        "peak_rss_bytes": usage.peak_rss_bytes,
        "peak_exact": usage.peak_exact,
        "workers_peak_rss_bytes": cell.workers_peak_bytes,
        "tree_peak_rss_bytes": tree_peak(run, cell),
        "cgroup_peak_bytes": cell.cgroup_peak_bytes,
        "rss_start_bytes": usage.rss_start_bytes,
        "rss_end_bytes": usage.rss_end_bytes,
        "read_bytes": usage.read_bytes,
        "written_bytes": usage.written_bytes,
        "gpu": {gpu: asdict(used) for gpu, used in usage.gpu.items()},
        "plugins": plugins,
        "unknown": {**usage.unknown, **unknown},
        "remote": elsewhere.cell_fields(run, cell),
    }


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have; numpy numbers as Python's."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
