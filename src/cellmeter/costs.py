"""What a run cost by the user's own prices, and how much of that was for what lay idle. No prices, no money."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from cellmeter.rules.neighbours import crowd
from cellmeter.rules.observed import Observed, observed
from cellmeter.rules.ownership import ownership
from cellmeter.words import cores_text

if TYPE_CHECKING:
    from cellmeter.run import Run
    from cellmeter.settings import Prices

GB = 1e9  # prices are per decimal gigabyte


@dataclass(frozen=True)
class Cost:
    """One resource: hours held (GPU-hours, core-hours, GB-hours), how they were spent, and the price of one.

    ``held`` is the sum of ``used``, ``unused`` and ``unknown``, the time without a reading.
    """

    resource: Literal["gpu", "cpu", "memory"]
    held: float
    used: float
    unused: float
    price: float

    @property
    def unknown(self) -> float:
        """Hours of which nothing is known."""
        return max(0.0, self.held - self.used - self.unused)

    @property
    def cost(self) -> float:
        """Of all that was held."""
        return self.held * self.price

    @property
    def unused_cost(self) -> float:
        """Of what lay idle."""
        return self.unused * self.price


@dataclass(frozen=True)
class Costs:
    """The resources that have a price, and why some could not be counted."""

    currency: str
    items: tuple[Cost, ...]
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Of all resources."""
        return sum(item.cost for item in self.items)

    @property
    def unused(self) -> float:
        """Of what lay idle of all of them."""
        return sum(item.unused_cost for item in self.items)


def costs(run: Run, prices: Prices) -> Costs | None:
    """What the run's whole time cost, pauses included, with all that the kernel could use held for it; None without prices."""
    items: list[Cost] = []
    unknown: list[str] = []
    if prices.gpu_hour is not None:
        items += _gpus(run, prices.gpu_hour, unknown)
    if prices.cpu_hour is not None:
        items += _limited(run, "cpu", "cpu_cores", 1.0, ("process.cpu.usage",), prices.cpu_hour, unknown)
    if prices.memory_gb_hour is not None:
        used_by = ("process.tree.memory.rss", "process.memory.rss")
        items += _limited(run, "memory", "memory_bytes", GB, used_by, prices.memory_gb_hour, unknown)
    if not items and not unknown:
        return None
    return _without_others(run, Costs(prices.currency, tuple(items), tuple(unknown)))


def _without_others(run: Run, spent: Costs) -> Costs:
    """While others fill the machine, what this run does not use does not lie idle."""
    full = crowd(run)
    if full is None:
        return spent
    items = tuple(item if item.resource == "gpu" else replace(item, unused=0.0) for item in spent.items)
    why = f"unused cores and memory: other processes used {cores_text(full.others)} of the {full.cores} cores meanwhile"
    return replace(spent, items=items, unknown=(*spent.unknown, why) if items != spent.items else spent.unknown)


def _gpus(run: Run, price: float, unknown: list[str]) -> list[Cost]:
    """All GPUs of the kernel together, each from when it was there."""
    spent = []
    for device in run.devices:
        owner = ownership(run, device, 0.0, run.duration)
        if owner.whose == "mine":
            readings = observed(run, "gpu.utilization", device.id, 0.0, run.duration)
            spent.append(_spent(readings, 100.0, (run.duration - device.since) / 3600))
        elif owner.whose in ("shared", "unknown"):
            unknown.append(owner.reason)
    held, used, unused = (sum(part) for part in zip(*spent, strict=True)) if spent else (0.0, 0.0, 0.0)
    return [Cost("gpu", held, used, unused, price)] if spent else []


def _limited(
    run: Run,
    resource: Literal["cpu", "memory"],
    limit: str,
    unit: float,
    metrics: tuple[str, ...],
    price: float,
    unknown: list[str],
) -> list[Cost]:
    """What is held to its limit all the time; the first of the metrics that has readings tells of its use."""
    most = run.limits.get(limit)
    if most is None or not math.isfinite(most.value):
        unknown.append(f"{resource}: how much the kernel could use is not known")
        return []
    found = [observed(run, metric, "process", 0.0, run.duration) for metric in metrics]
    readings = next((one for one in found if len(one.values)), found[0])
    held, used, unused = (hours * most.value / unit for hours in _spent(readings, most.value, run.duration / 3600))
    return [Cost(resource, held, used, unused, price)]


def _spent(readings: Observed, full: float, hours: float) -> tuple[float, float, float]:
    """Hours held, used and unused of what reads ``full`` when all of it is in use."""
    seen = min(readings.total / 3600, hours)
    used = min(float((readings.values * readings.seconds).sum()) / full / 3600, seen)
    return hours, used, seen - used
