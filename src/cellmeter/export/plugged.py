"""What sources of other packages measured, as the reports tell it: gauges and rates, over the run and in each cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter.export.said import Table
from cellmeter.export.summary import plain
from cellmeter.metrics import Metric
from cellmeter.run import Series, known, time_weighted_mean
from cellmeter.words import BLANK, value_text

if TYPE_CHECKING:
    from cellmeter.run import Cell, Run

ROWS_SHOWN = 20
MOST_PER_CELL = 50  # quantities: a plugin may have a thousand, a notebook thousands of cells


class Quantity(NamedTuple):
    """A gauge, or the rate of a counter, of one subject."""

    metric: Metric
    subject: str

    @property
    def name(self) -> str:
        """With its subject, where that is not all there is: ``disk.temp nvme0``."""
        return self.metric.name if self.subject == self.metric.scope else f"{self.metric.name} {self.subject}"


class Use(NamedTuple):
    """Mean, least and most in some time."""

    mean: float
    low: float
    high: float


def quantities(run: Run) -> list[Quantity]:
    """All that can be told of, in the order in which the plugins name it."""
    metrics = [metric for metric in run.plugin_metrics if metric.kind != "counter"]
    return [Quantity(metric, subject) for metric in metrics for subject in run.subjects(metric.name)]


def use_of(run: Run, quantity: Quantity, start: float, end: float) -> Use | None:
    """From ``start`` to ``end``; None without a reading."""
    series = run.series(quantity.metric.name, quantity.subject)
    values, mean = known(series.between(start, end).values), time_weighted_mean(series, start, end)
    return Use(mean, float(values.min()), float(values.max())) if mean is not None else None


def tables(run: Run) -> list[Table]:
    """One, if there is a plugin that measures."""
    found = quantities(run)
    left_out = len(found) - ROWS_SHOWN
    note = f"{left_out} more in an export to .csv" if left_out > 0 else ""
    rows = tuple(tuple(map(plain, _row(run, quantity))) for quantity in found[:ROWS_SHOWN])
    return [Table("Plugins", note, ("Measured", "Mean", "Lowest", "Highest", "Highest in"), rows)] if rows else []


def _row(run: Run, quantity: Quantity) -> tuple[str, ...]:
    use = use_of(run, quantity, 0.0, run.duration)
    if use is None:
        return quantity.name, BLANK, BLANK, BLANK, BLANK
    numbers = (value_text(value, quantity.metric.unit) for value in use)
    return (quantity.name, *numbers, _cell_at_peak(run, run.series(quantity.metric.name, quantity.subject)))


def _cell_at_peak(run: Run, series: Series) -> str:
    import numpy as np

    seq = int(series.seq[np.nanargmax(series.values)])
    return next((cell.title for cell in run.cells if cell.seq == seq), "between cells")


def fields(run: Run) -> list[dict[str, Any]]:
    """Each metric over the run, for the JSON report: by subject, null without a reading."""
    by_metric: dict[Metric, dict[str, Any]] = {}
    for quantity in quantities(run):
        use = use_of(run, quantity, 0.0, run.duration)
        by_metric.setdefault(quantity.metric, {})[quantity.subject] = use and use._asdict()
    return [
        {"metric": m.name, "unit": m.unit, "kind": m.kind, "meaning": m.meaning, "subjects": subjects}
        for m, subjects in by_metric.items()
    ]


def cell_fields(run: Run, cell: Cell) -> tuple[dict[str, dict[str, Any]], Mapping[str, str]]:
    """Mean and most in a cell by metric and subject, and why some are not known."""
    found: dict[str, dict[str, Any]] = {}
    unknown: dict[str, str] = {}
    for quantity in quantities(run)[:MOST_PER_CELL]:
        use = use_of(run, quantity, cell.start, run.duration if cell.end is None else cell.end)
        place = found.setdefault(quantity.metric.name, {})
        place[quantity.subject] = {"mean": use.mean if use else None, "max": use.high if use else None}
        if use is None:
            unknown[f"plugins.{quantity.metric.name}.{quantity.subject}"] = "no reading in this cell"
    return found, unknown
