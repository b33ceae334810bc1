"""Writes the table of docs/metrics.md out of the catalogue: ``.venv/bin/python tools/metrics_table.py``."""

from pathlib import Path

from cellmeter.metrics import CATALOGUE, Metric
from cellmeter.prometheus.names import DCGM, EXPOSED

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEADERS = (
    "cellmeter",
    "unit",
    "what",
    "OpenTelemetry",
    "Prometheus, by `cellmeter serve`",
    "by others",
    "DCGM",
    "MLflow",
)


def page() -> str:
    """The page as it should be: what stands above the table is kept."""
    prose = PAGE.read_text(encoding="utf-8").partition(f"| {HEADERS[0]} |")[0]
    return prose + table()


def table() -> str:
    """One row a metric; what has no such name is empty."""
    rows = [HEADERS, ("---",) * len(HEADERS), *map(_row, CATALOGUE)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _row(metric: Metric) -> tuple[str, ...]:
    others = metric.prometheus or ""
    dcgm = {others} if others.startswith("DCGM_") else set()
    dcgm |= {name for name, made in DCGM.items() if metric.name in (made.metric, made.less)}
    exposed = EXPOSED.get(metric.name)
    return (
        _code(metric.name),
        metric.unit,
        f"{metric.meaning} ({metric.kind})",
        _code(metric.otel),
        _code(exposed.name if exposed else None),
        "" if dcgm else _code(others),
        ", ".join(map(_code, sorted(dcgm))),
        _code(f"system/{metric.mlflow}".replace("{index}", "N") if metric.mlflow else None),
    )


def _code(name: str | None) -> str:
    return f"`{name}`" if name else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
