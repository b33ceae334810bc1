"""What size of machine the work needs, and what this one cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmeter.export.html.pieces import definitions, meter, table, text
from cellmeter.export.sized import SIZE_NAMES, amount, size_advice, used
from cellmeter.words import count_text, given_text, money_text, percent_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.costs import Cost, Costs
    from cellmeter.run import Run
    from cellmeter.sizing import Size

HOURS = {"cpu": "core-hours", "memory": "GB-hours", "gpu": "GPU-hours"}


def sizing_section(sizes: Sequence[Size]) -> str:
    """A row a resource: what there is, what the work peaks at, what it needs. What is unknown is said below."""
    if all(size.peak is None for size in sizes):
        reasons = dict.fromkeys(size.unknown or "" for size in sizes)
        return f'<p class="panel none">Unknown: {text("; ".join(reasons))}.</p>'
    heads = ("Resource", "Advice", "There is", "Used", "Highest moment", "Needed at 70 %", "at 80 %")
    rows = [
        (
            SIZE_NAMES[size.resource],
            f'<span class="verdict-{size.verdict}">{text(size_advice(size))}</span>',
            amount(size, size.available),
            _peak(size),
            used(size, size.highest if size.sustained_seconds else size.peak),
            amount(size, size.needed),
            amount(size, size.needed_at_least),
        )
        for size in sizes
    ]
    notes = definitions((SIZE_NAMES[size.resource], size.unknown or f"{size.basis}.") for size in sizes)
    caption = "Needed is what was used, over the target, rounded up"
    seconds = next((size.sustained_seconds for size in sizes if size.sustained_seconds), None)
    if seconds:
        caption += f"; used is the mean of the busiest {given_text(seconds, 's')}, of memory the highest moment"
    shown = table(caption, heads, rows, left=2)
    return f"{shown}<details><summary>What was used</summary>{notes}</details>"


def _peak(size: Size) -> str:
    share = None if size.peak is None or not size.available else size.peak / size.available
    return meter(text(used(size, size.peak)), share, size.resource)


def costs_section(run: Run, costs: Costs | None) -> str:
    """A row a resource that has a price; nothing without prices."""
    if costs is None:
        return ""
    rows = [_cost(costs, item) for item in costs.items]
    if len(costs.items) > 1:
        rows.append(("<b>Together</b>", _bold(costs, costs.total), _bold(costs, costs.unused), "", "", "", ""))
    heads = ("Resource", "Cost", "of it unused", "Held", "Price", "Used", "Unknown")
    shown = table(f"{seconds_text(run.duration)}, with all that the kernel could use held for it", heads, rows)
    missing = "".join(f'<p class="none">Not counted: {text(why)}.</p>' for why in costs.unknown)
    return (shown if rows else "") + missing


def _cost(costs: Costs, item: Cost) -> tuple[str, ...]:
    share = item.used / item.held if item.held else 0.0
    return (
        SIZE_NAMES[item.resource],
        text(money_text(costs.currency, item.cost)),
        text(money_text(costs.currency, item.unused_cost)),
        f"{_hours(item.held)} {HOURS[item.resource]}",
        text(f"{money_text(costs.currency, item.price)} an hour"),
        meter(percent_text(100 * share), share, item.resource),
        _hours(item.unknown) if item.unknown > 0.005 * item.held else "none",
    )


def _hours(value: float) -> str:
    return count_text(value) if value >= 1e-4 else "0"


def _bold(costs: Costs, value: float) -> str:
    return f"<b>{text(money_text(costs.currency, value))}</b>"
