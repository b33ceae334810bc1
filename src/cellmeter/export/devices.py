"""What each GPU did over the cells of a run: the spread of its readings, and how long it was how busy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellmeter.metrics import METRICS
from cellmeter.rules.observed import Observed, in_cells
from cellmeter.usage import HELD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Run

GPU_METRICS = (
    "gpu.utilization",
    "gpu.sm.active",
    "gpu.memory.used",
    HELD,
    "gpu.power",
    "gpu.temperature",
    "gpu.clock.sm",
)
QUANTILES = (("max", 100), ("p99", 99), ("p95", 95), ("p50", 50), ("min", 0))
BINS = 10


@dataclass(frozen=True)
class Spread:
    """The readings of one metric of one GPU over the time of cells; ``quantiles`` by the names of ``QUANTILES``. None: none."""

    metric: str
    unit: str
    samples: int
    mean: float | None
    quantiles: dict[str, float | None]
    unknown: str | None = None


@dataclass(frozen=True)
class DeviceStatistics:
    """One GPU: its spreads, and seconds of cell time by tenths of utilisation, the idle tenth first (None: unknown)."""

    device: str
    spreads: tuple[Spread, ...]
    histogram_seconds: tuple[float, ...] | None

    def of(self, metric: str) -> Spread | None:
        """The spread of a metric, if it was to be measured at all."""
        return next((spread for spread in self.spreads if spread.metric == metric), None)


def device_statistics(run: Run) -> tuple[DeviceStatistics, ...]:
    """One entry a GPU, in the order of the run's devices."""
    gpus = [device.id for device in run.devices]
    spreads = [[_spread(run, gpu, metric) for gpu in gpus] for metric in GPU_METRICS]
    return tuple(
        DeviceStatistics(
            gpu, tuple(one for of_gpus in spreads if (one := of_gpus[n]) is not None), _histogram(run, gpu)
        )
        for n, gpu in enumerate(gpus)
    )


def _spread(run: Run, gpu: str, metric: str) -> Spread | None:
    readings = in_cells(run, metric, gpu)
    unit, reason = METRICS[metric].unit, run.unavailable.get(f"{metric}:{gpu}")
    if not len(readings.values):
        if reason is None and not len(run.series(metric, gpu).time):
            return None
        why = reason or "no readings inside cells"
        return Spread(metric, unit, 0, None, {name: None for name, _ in QUANTILES}, why)
    at = _quantiles(readings)
    quantiles: dict[str, float | None] = {name: float(q) for (name, _), q in zip(QUANTILES, at, strict=True)}
    return Spread(metric, unit, len(readings.values), readings.mean(), quantiles)


def _quantiles(readings: Observed) -> NDArray[np.float64]:
    """Over time: a short cell has two readings at its edges, and weighs no more for it. Extremes are of all readings."""
    import numpy as np

    order = readings.values.argsort()
    values, seconds = readings.values[order], readings.seconds[order]
    if readings.total <= 0:
        seconds = np.ones(len(values))
    extremes = values[[0, -1]]
    values, seconds = values[seconds > 0], seconds[seconds > 0]
    middle = seconds.cumsum() - seconds / 2
    middle -= middle[0]
    percent = 100 * middle / (middle[-1] or 1.0)
    at = [np.interp(wanted, percent, values) for _, wanted in QUANTILES]
    return np.array([extremes[1], *at[1:-1], extremes[0]])


def _histogram(run: Run, gpu: str) -> tuple[float, ...] | None:
    import numpy as np

    readings = in_cells(run, "gpu.utilization", gpu)
    if not len(readings.values):
        return None
    seconds, _ = np.histogram(readings.values, BINS, (0.0, 100.0), weights=readings.seconds)
    return tuple(float(s) for s in seconds)
