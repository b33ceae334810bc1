"""The Grafana dashboard: overview, GPUs, CPU and memory, the user's own metrics, and what each cell took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

OF_RUN = '{run=~"$run"}'
OF_CELL = "* on (instance, run) group_left (cell, label) cellmeter_cell_info" + OF_RUN
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24


class Query(NamedTuple):
    """One line of a panel: PromQL, and what the legend calls it. ``instant``: its value now, and not over time."""

    expr: str
    legend: str = ""
    instant: bool = False


class Panel(NamedTuple):
    """One panel, ``width`` of 24 columns wide."""

    title: str
    kind: str
    unit: str
    width: int
    queries: Sequence[Query]
    most: float | None = None


def _quantile(share: float) -> Query:
    rate = f"rate(cellmeter_span_seconds_bucket{OF_RUN}[$__rate_interval])"
    return Query(f"histogram_quantile({share}, sum by (name, le) ({rate}))", f"p{share * 100:.0f} {{{{name}}}}")


def _per_cell(function: str, expr: str) -> Query:
    """Cells are one at a time, so what was measured while a cell ran is the cell's."""
    joined = f"{expr} {OF_CELL}"
    return Query(f"{function} by (run, cell, label) ({function}_over_time(({joined})[$__range:]))", instant=True)


GPU = "{{gpu}} {{instance}}"
ROWS: dict[str, Sequence[Panel]] = {
    "Overview": (
        Panel("Kernels recorded", "stat", "short", 6, [Query(f"count(cellmeter_run_info{OF_RUN}) or vector(0)")]),
        Panel("GPU use", "stat", "percentunit", 6, [Query(f"avg(cellmeter_gpu_utilization_ratio{OF_RUN})")], 1),
        Panel(
            "Memory of what the kernel may use",
            "stat",
            "percentunit",
            6,
            [
                Query(
                    f"max(cellmeter_process_tree_memory_rss_bytes{OF_RUN}"
                    f" / ignoring (from) cellmeter_memory_limit_bytes{OF_RUN})"
                )
            ],
            1,
        ),
        Panel(
            "Cells that failed",
            "stat",
            "short",
            6,
            [Query('sum(cellmeter_cells_total{run=~"$run",status="error"})')],
        ),
        Panel(
            "Cell that runs",
            "table",
            "short",
            24,
            [Query(f"time() - cellmeter_cell_start_timestamp_seconds{OF_RUN} {OF_CELL}", instant=True)],
        ),
    ),
    "GPU": (
        Panel(
            "GPU utilization",
            "timeseries",
            "percentunit",
            12,
            [Query(f"cellmeter_gpu_utilization_ratio{OF_RUN}", GPU)],
            1,
        ),
        Panel(
            "GPU memory",
            "timeseries",
            "bytes",
            12,
            [
                Query(f"cellmeter_gpu_memory_used_bytes{OF_RUN}", GPU),
                Query(f"cellmeter_gpu_memory_total_bytes{OF_RUN}", f"{GPU} total"),
            ],
        ),
        Panel(
            "GPU temperature", "timeseries", "celsius", 12, [Query(f"cellmeter_gpu_temperature_celsius{OF_RUN}", GPU)]
        ),
        Panel(
            "GPU power",
            "timeseries",
            "watt",
            12,
            [
                Query(f"cellmeter_gpu_power_watts{OF_RUN}", GPU),
                Query(f"cellmeter_gpu_power_limit_watts{OF_RUN}", f"{GPU} limit"),
            ],
        ),
    ),
    "Kernel": (
        Panel(
            "Cores busy",
            "timeseries",
            "short",
            12,
            [
                Query(f"rate(cellmeter_process_cpu_seconds_total{OF_RUN}[$__rate_interval])", "{{run}}"),
                Query(f"cellmeter_cpu_limit_cores{OF_RUN}", "{{run}} limit"),
            ],
        ),
        Panel(
            "Memory",
            "timeseries",
            "bytes",
            12,
            [
                Query(f"cellmeter_process_tree_memory_rss_bytes{OF_RUN}", "{{run}}"),
                Query(f"cellmeter_memory_limit_bytes{OF_RUN}", "{{run}} limit"),
            ],
        ),
    ),
    "Latency and throughput": (
        Panel("Latency", "timeseries", "s", 12, [_quantile(0.5), _quantile(0.95), _quantile(0.99)]),
        Panel(
            "Steps a second",
            "timeseries",
            "short",
            6,
            [Query(f"sum by (name) (rate(cellmeter_steps_total{OF_RUN}[$__rate_interval]))", "{{name}}")],
        ),
        Panel(
            "Spans that failed",
            "timeseries",
            "percentunit",
            6,
            [
                Query(
                    f"sum by (name) (rate(cellmeter_span_errors_total{OF_RUN}[$__rate_interval]))"
                    f" / sum by (name) (rate(cellmeter_span_seconds_count{OF_RUN}[$__rate_interval]))",
                    "{{name}}",
                )
            ],
        ),
    ),
    "Per cell": (
        Panel(
            "Highest memory",
            "table",
            "bytes",
            8,
            [_per_cell("max", f"cellmeter_process_tree_memory_rss_bytes{OF_RUN}")],
        ),
        Panel(
            "Mean GPU use", "table", "percentunit", 8, [_per_cell("avg", f"cellmeter_gpu_utilization_ratio{OF_RUN}")]
        ),
        Panel(
            "Highest GPU memory", "table", "bytes", 8, [_per_cell("max", f"cellmeter_gpu_memory_used_bytes{OF_RUN}")]
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    return {
        "uid": "cellmeter",
        "title": "cellmeter: notebooks' cells and their GPUs",
        "tags": ["cellmeter", "jupyter", "gpu"],
        "schemaVersion": 38,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _runs()]},
        "panels": list(_placed()),
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _runs() -> dict[str, Any]:
    query = "label_values(cellmeter_run_info, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "runs"},
        "definition": query,
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _placed() -> Iterator[dict[str, Any]]:
    """Rows of panels from the top down."""
    number, y = 1, 0
    for title, panels in ROWS.items():
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            "panels": [],
        }
        number, y, x, height = number + 1, y + 1, 0, 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            height = 4 if panel.kind == "stat" else 8 if panel.kind == "timeseries" else 7
            yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height})
            number, x = number + 1, x + panel.width
        y += height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "stat":  # a colour would judge where nobody said what is good
        defaults["color"] = {"mode": "fixed", "fixedColor": "text"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [_target(query, letter) for query, letter in zip(panel.queries, "ABC", strict=False)],
        "transformations": TABLE if panel.kind == "table" else [],
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}},
    "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    "table": {"showHeader": True},
}
TABLE = [
    {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True, "instance": True, "job": True, "kernel": True},
            "indexByName": {"run": 0, "cell": 1, "label": 2, "Value": 3},
        },
    }
]


def _target(query: Query, letter: str) -> dict[str, Any]:
    shape = {"instant": True, "format": "table"} if query.instant else {"range": True}
    return {"refId": letter, "datasource": DATASOURCE, "expr": query.expr, "legendFormat": query.legend, **shape}
