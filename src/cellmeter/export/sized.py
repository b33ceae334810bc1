"""What to do about the size of the machine and what it cost, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmeter.words import BLANK, bytes_text, cores_text, count_text, counted, given_text, money_text

if TYPE_CHECKING:
    from cellmeter.costs import Costs
    from cellmeter.sizing import Size

SIZES_TITLE = "Right size, so that the work fills 70 % of it"
SIZE_NAMES = {"cpu": "CPU cores", "memory": "Memory", "gpu": "GPUs"}


def amount(size: Size, value: float | None) -> str:
    """As much of a resource as there is or should be: ``8``, ``12 GiB``."""
    if value is None:
        return BLANK
    return given_text(value, "By") if size.resource == "memory" else count_text(value)


def used(size: Size, value: float | None) -> str:
    """As much of it as was in use: ``0.48``, ``3.21 GiB``."""
    return bytes_text(value) if size.resource == "memory" else cores_text(value)


def size_use(size: Size) -> str:
    """What a run used of a resource: ``0.48 over the busiest 11 s, 1.43 at the highest moment``."""
    most = used(size, size.peak)
    if size.resource == "memory":
        return f"{most} at its peak, with workers"
    if size.sustained_seconds is None:
        return most
    highest = "" if size.highest is None else f", {used(size, size.highest)} at the highest moment"
    return f"{most} over the busiest {given_text(size.sustained_seconds, 's')}{highest}"


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


def costs_line(costs: Costs) -> str:
    """All costs in a line."""
    names = {"gpu": "GPUs", "cpu": "cores", "memory": "memory"}
    parts = ", ".join(f"{names[item.resource]} {money_text(costs.currency, item.cost)}" for item in costs.items)
    total = (
        f"{money_text(costs.currency, costs.total)} ({parts}), of it {money_text(costs.currency, costs.unused)} unused"
    )
    return "; ".join([*([total] if costs.items else []), *(f"not counted: {why}" for why in costs.unknown)])
