"""Readings of one quantity over time, the rates that are made of counters, and what is asked of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.metrics import LONGEST_READING_SECONDS, SHORT_FOR_CPU_SECONDS, Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


HUB = "JupyterHub"  # what the source of its limits begins with
MOST_UNREAD = 0.05  # of some time, at its ends: what a counter did there is unknown, and left out of its growth


class Limit(NamedTuple):
    """The most that may be used of a resource, and what sets it.

    That is ``cgroup``, ``cpuset``, ``rlimit`` or ``host``; or ``JupyterHub (MEM_LIMIT)``, where a hub only says so.
    """

    value: float
    source: str

    @property
    def only_told(self) -> bool:
        """Whether nothing that can be seen holds the kernel to it."""
        return self.source.startswith(HUB)


class Series(NamedTuple):
    """Readings of one quantity: seconds since the run's start, values, and the cell each was taken in (0: none)."""

    time: Floats
    values: Floats
    seq: NDArray[np.int64]

    def between(self, start: float, end: float) -> Series:
        """The part from ``start`` to ``end``, both included."""
        low, high = self.time.searchsorted(start, "left"), self.time.searchsorted(end, "right")
        return Series(self.time[low:high], self.values[low:high], self.seq[low:high])


class Interval(NamedTuple):
    """From when to when, in seconds."""

    start: float
    end: float


def covered(intervals: Iterable[Interval]) -> float:
    """Seconds of intervals that do not overlap."""
    return sum(interval.end - interval.start for interval in intervals)


class Rates(NamedTuple):
    """How rates are made of counters: over no less than what a counter's steps and the samples' jitter ask for.

    No processor does more than a second's work in a second: what a counter says beyond that is its error. ``cores`` are the
    machine's, ``own_cores`` those that the kernel may run on.
    """

    rate_hz: float
    cores: float
    own_cores: float

    @classmethod
    def on(cls, rate_hz: float, cpu_count: int, limits: Mapping[str, Limit]) -> Rates:
        """For a machine with so many CPUs. A quota is no bound: what is left of one period is used in the next."""
        limit = limits.get("cpu_cores")
        cores = float(cpu_count or math.inf)
        return cls(rate_hz, cores, min(cores, limit.value) if limit and limit.source == "cpuset" else cores)

    def of(self, metric: Metric, counter: Series) -> Series:
        """A rate of the catalogue from its counter."""
        most = {"core": 1.0, "process": self.own_cores}.get(metric.scope, self.cores)
        least_seconds = max(0.5 / self.rate_hz, metric.least_seconds)
        return rate_of(counter, least_seconds, most if metric.unit == "{cpu}" else math.inf)

    def mean_cores(self, cpu_seconds: float | None, seconds: float) -> float | None:
        """Cores that a cell used; None where that is unknown, or the cell was too short for it to mean anything."""
        if cpu_seconds is None or seconds < SHORT_FOR_CPU_SECONDS:
            return None
        return min(cpu_seconds / seconds, self.own_cores)


def rate_of(counter: Series, least_seconds: float, most: float = math.inf) -> Series:
    """Increase per second of a counter, over at least ``least_seconds``: a tiny interval would turn jitter into spikes.

    The first reading, and any that looks back on a counter that was reset or unknown, is NaN.
    """
    import numpy as np

    time, values, seq = counter
    before = time.searchsorted(time - least_seconds, "right") - 1
    known = before >= 0
    before = np.maximum(before, 0)
    elapsed = time - time[before]
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (values - values[before]) / elapsed
    rate[~known | (rate < 0)] = np.nan
    return Series(time, np.minimum(rate, most), seq)


def known(values: Floats) -> Floats:
    """The readings that are numbers; the same array where all are, so not one to write to."""
    import numpy as np

    unknown = np.isnan(values)
    return values[~unknown] if unknown.any() else values


def seconds_since(time: Floats, start: float, most: float) -> Floats:
    """How long each reading stands for: since the one before it, the first since ``start``; ``most`` of a gap."""
    import numpy as np

    seconds = np.empty_like(time)
    if len(time):
        seconds[0] = time[0] - start
        np.subtract(time[1:], time[:-1], out=seconds[1:])
    return seconds.clip(0, most, out=seconds)


def time_weighted_mean(series: Series, start: float, end: float) -> float | None:
    """Mean over an interval, each reading standing for the time up to it, but not for a gap. None without a reading."""
    import numpy as np

    part = series.between(start, end)
    values, weights = part.values, seconds_since(part.time, start, LONGEST_READING_SECONDS)
    unknown = np.isnan(values)
    if unknown.any():
        values, weights = values[~unknown], weights[~unknown]
    if not len(values):
        return None
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else float(values.mean())


def growth_within(counter: Series, times: Sequence[Interval]) -> float | None:
    """Growth of a counter over some stretches of time, in order, taken to be even from one reading to the next.

    None where it is unknown: too much of the time is before the first reading or after the last, or the counter began anew.
    """
    import numpy as np

    if not times:
        return None
    time, values = readings_around(counter, Interval(times[0].start, times[-1].end))
    if len(time) < 2 or began_anew(values):
        return None
    if max(0.0, time[0] - times[0].start) + max(0.0, times[-1].end - time[-1]) > MOST_UNREAD * covered(times):
        return None
    edges = np.interp(np.array(times), time, values)
    return float((edges[:, 1] - edges[:, 0]).sum())


def readings_around(series: Series, interval: Interval) -> tuple[Floats, Floats]:
    """Times and values of the known readings from the one right before an interval to the one right after it."""
    import numpy as np

    first = max(0, int(series.time.searchsorted(interval.start, "right")) - 1)
    part = slice(first, int(series.time.searchsorted(interval.end, "left")) + 1)
    there = ~np.isnan(series.values[part])
    return series.time[part][there], series.values[part][there]


def began_anew(counted: Floats) -> bool:
    """Whether a counter fell: what it counts for was reset."""
    return bool((counted[1:] < counted[:-1]).any())


def quantile(values: Floats, share: float) -> float:
    """As ``np.quantile`` has it, to the last bit, for one share of known readings, and in a tenth of its time for few."""
    import numpy as np

    place = (len(values) - 1) * share
    low = int(place)
    high = min(low + 1, len(values) - 1)
    ordered = np.partition(values, (low, high))
    least, most, part = float(ordered[low]), float(ordered[high]), place - low
    return most - (most - least) * (1 - part) if part >= 0.5 else least + (most - least) * part


def last_known(series: Series, at: float) -> float | None:
    """The newest reading at or before a time; None if there is none or it is unknown."""
    index = int(series.time.searchsorted(at, "right")) - 1
    if index < 0 or math.isnan(series.values[index]):
        return None
    return float(series.values[index])
