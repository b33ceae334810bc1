"""What to do about the size of the machine and what it cost, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmeter.export.summary import counted
from cellmeter.rules.units import UNKNOWN, bytes_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.costs import Costs
    from cellmeter.sizing import Size

SIZES_TITLE = "Right size, so that the work fills 70 % of it"
SIZE_NAMES = {"cpu": "CPU cores", "memory": "Memory", "gpu": "GPUs"}


def amount(size: Size, value: float | None) -> str:
    """So much of a resource: ``8``, ``12.0 GiB``."""
    if size.resource == "memory":
        return bytes_text(value)
    return UNKNOWN if value is None else f"{value:g}" if float(value).is_integer() else f"{value:.2f}"


def size_use(size: Size) -> str:
    """What a run used of a resource: ``0.48 over the busiest 11 s, 1.43 at the highest moment``."""
    used = amount(size, size.peak)
    if size.resource == "memory":
        return f"{used} at its peak, with workers"
    if size.sustained_seconds is None:
        return used
    highest = "" if size.highest is None else f", {amount(size, size.highest)} at the highest moment"
    return f"{used} over the busiest {seconds_text(size.sustained_seconds)}{highest}"


def size_line(size: Size) -> str:
    """What there is, what was used and what to do about it."""
    return f"{amount(size, size.available)} there; used {size_use(size)}: {size_advice(size)}"


def size_advice(size: Size) -> str:
    """What to do about the size of a resource."""
    words = {"cpu": "core", "memory": "memory", "gpu": "GPU"}
    if size.verdict is None:
        if size.doubt and size.needed is not None and size.available is not None:
            return f"no advice, as {size.doubt}"
        return f"unknown: {size.unknown or 'how much there is is not known'}"
    if size.verdict == "right":
        return "the right size"
    target = amount(size, size.needed)
    what = target if size.resource == "memory" else counted(int(size.needed or 0), words[size.resource])
    if size.needed == 0:
        return "none was needed"
    return f"{what} would do" if size.verdict == "smaller" else f"tight: {what} would leave room"


def money(currency: str, value: float) -> str:
    """``$2.50``; small sums with the digits that matter, and ISO codes apart from the number."""
    number = f"{value:,.2f}" if value == 0 or abs(value) >= 0.095 else f"{value:.2g}" if abs(value) >= 1e-4 else "0.00"
    return f"{currency} {number}" if currency[-1:].isalpha() else f"{currency}{number}"


def costs_line(costs: Costs) -> str:
    """All costs in a line."""
    names = {"gpu": "GPUs", "cpu": "cores", "memory": "memory"}
    parts = ", ".join(f"{names[item.resource]} {money(costs.currency, item.cost)}" for item in costs.items)
    total = f"{money(costs.currency, costs.total)} ({parts}), of it {money(costs.currency, costs.unused)} unused"
    return "; ".join([*([total] if costs.items else []), *(f"not counted: {why}" for why in costs.unknown)])
