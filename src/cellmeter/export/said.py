"""What the user's code said and what it was told, before a report gives it a form: spans, values, steps, alerts, budgets."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter.alerts import metric_of
from cellmeter.export.summary import Fact, plain
from cellmeter.rules.ownership import not_used
from cellmeter.run import known
from cellmeter.words import (
    BLANK,
    bytes_text,
    count_text,
    counted,
    given_text,
    held_text,
    joules_text,
    moment_text,
    percent_text,
    seconds_text,
)

if TYPE_CHECKING:
    from cellmeter.run import AlertFired, Run
    from cellmeter.span_stats import SpanStats
    from cellmeter.spans import Logged, Steps

FACTS_SHOWN = 20
SPAN_HEADERS = ("Span", "Count", "p50", "p90", "p99", "Throughput", "GPU", "Energy")


class Table(NamedTuple):
    """A titled table; its first column is text, the others are numbers."""

    title: str
    note: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(run: Run) -> list[Table]:
    """Spans, logged values and steps, as far as there are any."""
    stats = run.span_stats()
    shown = len(SPAN_HEADERS) if _used(run) else SPAN_HEADERS.index("GPU")
    note = "" if all(s.exact for s in stats) else "≈ summed up as they came too fast to be kept one by one, within 1 %"
    found = [
        Table(
            "Spans",
            note,
            SPAN_HEADERS[:shown],
            tuple(_span(run, s)[:shown] for s in stats),
        ),
        Table(
            "Logged values",
            "",
            ("Value", "Count", "First", "Last", "Lowest", "Highest"),
            tuple(_value(name, logged) for name, logged in run.logged.items()),
        ),
        Table(
            "Steps",
            "",
            ("Counted", "In all", "Per second"),
            tuple((plain(n), count_text(float(s.amount.sum())), _rate(overall_rate(s))) for n, s in run.steps.items()),
        ),
    ]
    return [table for table in found if table.rows]


def _span(run: Run, stats: SpanStats) -> tuple[str, ...]:
    mine = _used(run)
    means = [mean for gpu in mine if (mean := stats.utilization_mean.get(gpu)) is not None]
    joules = [energy for gpu in mine if (energy := stats.energy_joules.get(gpu)) is not None]
    about = "" if stats.exact else "≈ "
    failed = f" ({stats.errors} failed)" if stats.errors else ""
    per_second = _rate(stats.per_second)
    if stats.items_per_second is not None:
        per_second = f"{count_text(stats.items_per_second)} items/s"
    return (
        plain(stats.name),
        f"{stats.count:,}{failed}",
        *(about + seconds_text(quantile) for quantile in (stats.p50, stats.p90, stats.p99)),
        per_second,
        percent_text(sum(means) / len(means) if means else None),
        joules_text(sum(joules) if joules and len(joules) == len(mine) else None),
    )


def _used(run: Run) -> list[str]:
    """The GPUs that may have worked for the kernel."""
    others = not_used(run, 0.0, run.duration)
    return [device.id for device in run.devices if device.id not in others]


def _value(name: str, logged: Logged) -> tuple[str, ...]:
    low, high = _bounds(logged)
    ends = (float(logged.value[0]), float(logged.value[-1]), low, high)
    return (plain(name), f"{int(logged.count.sum()):,}", *(BLANK if x is None else count_text(x) for x in ends))


def _bounds(logged: Logged) -> tuple[float | None, float | None]:
    low, high = known(logged.low), known(logged.high)
    return (float(low.min()) if len(low) else None, float(high.max()) if len(high) else None)


def _rate(per_second: float | None) -> str:
    return BLANK if per_second is None else f"{count_text(per_second)}/s"


def overall_rate(steps: Steps) -> float | None:
    """Per second from the first record to the last; None where there is only one."""
    seconds = float(steps.time[-1] - steps.time[0])
    return float(steps.amount[1:].sum()) / seconds if seconds > 0 else None


def alarms(run: Run) -> list[Fact]:
    """A line for each alert that went off and each cell that went beyond the budget, in the order of time."""
    titles = {cell.seq: cell.title for cell in run.cells}
    stopped = {cell.seq for cell in run.cells if cell.status == "interrupted"}
    lines = [(f.time, f.alert, f"{f.subject} at {_reading(run, f)}", f.cell, f.cleared) for f in run.alerts]
    for over in run.over_budget:
        most = "at most " if over.upper_bound else ""
        used = (
            f"{most}{bytes_text(over.value_bytes)} in use of {given_text(over.threshold_bytes, 'By')} ({over.metric})"
        )
        how = f"{used}{'; the cell was interrupted' if over.interrupt and over.cell in stopped else ''}"
        lines.append((over.time, f"memory budget {over.budget}", how, over.cell, None))
    found = []
    for time, what, how, seq, cleared in sorted(lines, key=lambda line: line[0]):
        until = f", until {moment_text(cleared, run.duration)}" if cleared is not None else ""
        where = titles.get(seq, f"cell #{seq}")
        found.append(
            Fact(plain(what), plain(f"{where}, at {moment_text(time, run.duration)} of the run{until}: {how}"))
        )
    more = len(found) - FACTS_SHOWN
    return [*found[:FACTS_SHOWN], Fact("More", counted(more, "alarm"))] if more > 0 else found


def _reading(run: Run, fired: AlertFired) -> str:
    """As the line under the cell has it."""
    metric = run.metrics.get(metric_of(fired.alert))
    return count_text(fired.value) if metric is None else held_text(fired.value, metric.unit)


def fields(run: Run) -> dict[str, Any]:
    """The same for the JSON report."""
    return {
        "spans": [_span_fields(stats) for stats in run.span_stats()],
        "logged": [_value_fields(name, logged) for name, logged in run.logged.items()],
        "steps": [
            {"name": name, "amount": float(steps.amount.sum()), "per_second": overall_rate(steps)}
            for name, steps in run.steps.items()
        ],
        "alerts": [asdict(fired) for fired in run.alerts],
        "over_budget": [asdict(over) for over in run.over_budget],
    }


def _span_fields(stats: SpanStats) -> dict[str, Any]:
    return {
        "name": stats.name,
        "count": stats.count,
        "errors": stats.errors,
        "exact": stats.exact,
        "p50_seconds": stats.p50,
        "p90_seconds": stats.p90,
        "p99_seconds": stats.p99,
        "busy_seconds": stats.busy_seconds,
        "open_seconds": stats.open_seconds,
        "per_second": stats.per_second,
        "items_per_second": stats.items_per_second,
        "gpu": {
            gpu: {"utilization_mean": stats.utilization_mean[gpu], "energy_joules": stats.energy_joules[gpu]}
            for gpu in stats.utilization_mean
        },
        "unknown": dict(stats.unknown),
    }


def _value_fields(name: str, logged: Logged) -> dict[str, Any]:
    low, high = _bounds(logged)
    return {
        "name": name,
        "count": int(logged.count.sum()),
        "first": float(logged.value[0]),
        "last": float(logged.value[-1]),
        "low": low if low is not None and math.isfinite(low) else None,
        "high": high if high is not None and math.isfinite(high) else None,
        "workers": sorted({int(pid) for pid in logged.pid} - {0}),
    }
