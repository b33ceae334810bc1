"""What a run would have needed, and what it cost: plain arithmetic on its sustained peaks. No verdict is in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.rules.busy import use_metric
from cellmeter.rules.cpu import USAGE
from cellmeter.rules.memory import RSS, TREE
from cellmeter.rules.observed import observed, top_cells
from cellmeter.rules.ownership import ownership
from cellmeter.run import known

if TYPE_CHECKING:
    from cellmeter.rules.observed import Observed
    from cellmeter.run import Device, Run
    from cellmeter.settings import Prices

TARGET = 0.7  # full enough to be worth its price, with room for what a run did not show
SUSTAINED_SECONDS = 10.0
GB = 1e9
GIB = 2**30


class Need(NamedTuple):
    """A resource (``cores``, ``memory``, ``gpus``): its sustained peak, what is needed for it, what there was.

    In cores, GiB and GPUs; ``had`` is None where no limit is known.
    """

    resource: str
    peak: float
    needed: int
    had: float | None


class Cost(NamedTuple):
    """A resource that was held over the run: how much, for how many hours, at which price, and what that makes."""

    resource: str
    amount: float
    hours: float
    price: float
    cost: float


def units_needed(demand: float, per_unit: float = 1.0, target: float = TARGET) -> int:
    """How many units carry a demand when each is used to ``target`` of what it can do. Raises ValueError for no capacity.

    150 requests a second at 20 an instance and 70 % take 11.
    """
    if per_unit <= 0 or not 0 < target <= 1:
        raise ValueError(f"a unit of {per_unit:g} used to {target:g} carries nothing")
    return math.ceil(round(demand / (per_unit * target), 9))  # 0.7 is no binary fraction: 7 / 0.7 must be 10


def needs(run: Run, target: float = TARGET) -> list[Need]:
    """What the run needed, of what was measured; nothing for a run without cells."""
    return [need for need in _needs(run, target) if need.peak > 0] if run.cells else []


def _needs(run: Run, target: float) -> Iterator[Need]:
    cores = run.limits.get("cpu_cores")
    used = sustained(observed(run, USAGE, "process", 0.0, run.duration))
    yield Need("cores", used, units_needed(used, 1.0, target), cores.value if cores else None)
    memory = run.limits.get("memory_bytes")
    peak = _memory_peak(run) / GIB
    yield Need("memory", peak, units_needed(peak, 1.0, target), memory.value / GIB if memory else None)
    mine = _mine(run)
    busy = sum(sustained(observed(run, use_metric(run, device), device.id, 0.0, run.duration)) / 100 for device in mine)
    yield Need("gpus", busy, units_needed(busy, 1.0, target), float(len(mine)))


def sustained(readings: Observed) -> float:
    """The highest mean over ``SUSTAINED_SECONDS`` of what was observed, or over all of it; 0 without readings."""
    import numpy as np

    if not readings.total:
        return 0.0
    if readings.total <= SUSTAINED_SECONDS:
        return readings.mean()
    elapsed = np.concatenate([[0.0], np.cumsum(readings.seconds)])
    work = np.concatenate([[0.0], np.cumsum(readings.seconds * readings.values)])
    ends = elapsed[elapsed >= SUSTAINED_SECONDS]
    before = np.interp(ends - SUSTAINED_SECONDS, elapsed, work)
    return float((work[elapsed >= SUSTAINED_SECONDS] - before).max() / SUSTAINED_SECONDS)


def _memory_peak(run: Run) -> float:
    """Memory is needed for as long as its peak lasts, however short: the exact one where there is one."""
    sampled = known(run.series(TREE if run.subjects(TREE) else RSS, "process").values)
    exact = [usage.peak_rss_bytes or 0 for usage in map(run.usage, top_cells(run))]
    return float(max([0.0, *exact, *([sampled.max()] if len(sampled) else [])]))


def _mine(run: Run) -> list[Device]:
    return [device for device in run.devices if ownership(run, device, 0.0, run.duration).whose == "mine"]


def costs(run: Run, prices: Prices) -> list[Cost]:
    """What was held over the run, for each resource that has a price. Cores and memory are those of the limits."""
    hours, limits = run.duration / 3600, run.limits
    held = (
        ("gpus", float(len(_mine(run))), prices.gpu_hour),
        ("cores", limits["cpu_cores"].value if "cpu_cores" in limits else 0.0, prices.cpu_hour),
        ("memory", limits["memory_bytes"].value / GB if "memory_bytes" in limits else 0.0, prices.memory_gb_hour),
    )
    return [
        Cost(resource, amount, hours, price, amount * hours * price)
        for resource, amount, price in held
        if price is not None and amount > 0
    ]
