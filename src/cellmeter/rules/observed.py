"""Readings with the time each stands for, so that what was not observed counts as unknown and not as idle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.run import ENOUGH as ENOUGH
from cellmeter.run import LATE_EDGE_SECONDS, LONGEST_READING_SECONDS
from cellmeter.series import seconds_since

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Cell, Run

    Floats = NDArray[np.float64]


class Observed(NamedTuple):
    """The known readings of an interval: time, value, seconds each stands for (those before it), and its cell."""

    time: Floats
    values: Floats
    seconds: Floats
    seq: NDArray[np.int64]

    @property
    def total(self) -> float:
        """Seconds that were observed."""
        return float(self.seconds.sum())

    @property
    def start(self) -> float:
        """Where the first reading's time begins."""
        return float(self.time[0] - self.seconds[0])

    @property
    def end(self) -> float:
        """The last reading's time."""
        return float(self.time[-1])

    def mean(self) -> float:
        """Time-weighted mean; the plain one where the readings stand for no time at all."""
        total = self.total
        mean = (self.values * self.seconds).sum() / total if total > 0 else self.values.mean()
        return round(float(mean), 9)  # seconds are no binary fractions: the mean of fifties was 49.99999999999999

    def where(self, chosen: NDArray[np.bool_] | slice) -> Observed:
        """Some of the readings."""
        return Observed(self.time[chosen], self.values[chosen], self.seconds[chosen], self.seq[chosen])


class Stretch(NamedTuple):
    """Consecutive readings of the same kind, in seconds since the run's start."""

    start: float
    end: float
    seconds: float


def observed(run: Run, metric: str, subject: str, start: float, end: float) -> Observed:
    """The known readings from ``start`` to ``end`` with the time each stands for."""
    import numpy as np

    part = run.series(metric, subject).between(start, end)
    seconds = seconds_since(part.time, start, max(LONGEST_READING_SECONDS, 2.5 / run.rate_hz))
    readings, unknown = Observed(part.time, part.values, seconds, part.seq), np.isnan(part.values)
    return readings.where(~unknown) if unknown.any() else readings


def readings_of(run: Run, metric: str, subject: str, cell: Cell) -> Floats:
    """The known readings while a cell ran, whatever ran within it; the one of its end is taken a little after it."""
    import numpy as np

    end = cell_end(run, cell)
    part = run.series(metric, subject).between(cell.start, end + LATE_EDGE_SECONDS)
    inside = ((part.time <= end) & (part.seq > 0)) | (part.seq == cell.seq)
    values: Floats = part.values[inside & ~np.isnan(part.values)]
    return values


def in_cells(run: Run, metric: str, subject: str, since: float = 0.0) -> Observed:
    """The known readings inside cells from ``since`` on; none stands for time before its cell."""
    import numpy as np

    readings = observed(run, metric, subject, since, run.duration)
    readings = readings.where(readings.seq > 0)
    cells = sorted((cell.seq, cell.start) for cell in run.cells)
    seqs, starts = np.array([(-1, 0.0), *cells]).T
    at = seqs.searchsorted(readings.seq, "right") - 1
    began = np.where(seqs[at] == readings.seq, starts[at], 0.0)
    return readings._replace(seconds=np.minimum(readings.seconds, (readings.time - began).clip(0)))


def stretches(readings: Observed, chosen: NDArray[np.bool_]) -> list[Stretch]:
    """The stretches of consecutive readings that are ``chosen``, in order of time."""
    import numpy as np

    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    return [
        Stretch(
            float(readings.time[low] - readings.seconds[low]),
            float(readings.time[high - 1]),
            float(readings.seconds[low:high].sum()),
        )
        for low, high in zip(edges[::2], edges[1::2], strict=True)
    ]


def at_times(run: Run, metric: str, subject: str, times: Floats) -> Floats:
    """What a metric read at or just after times that are in order; NaN where it was not within ``LONGEST_READING_SECONDS``.

    Just after, because a rate looks back: the reading at the end of an interval is the one that speaks of it.
    """
    import numpy as np

    series = run.series(metric, subject)
    if not len(series.time) or not len(times):
        return np.full(len(times), np.nan)
    low, high = series.time.searchsorted(times[[0, -1]], "left")
    around = series.time[low : high + 1]
    if np.array_equal(around, times):  # nearly always, and there is nothing to look for
        return series.values[low : high + 1]
    index = (low + around.searchsorted(times, "left")).clip(max=len(series.time) - 1)
    near = np.abs(series.time[index] - times) <= LONGEST_READING_SECONDS
    return np.where(near, series.values[index], np.nan)


def cell_end(run: Run, cell: Cell) -> float:
    """The end of a cell, or the last moment known of one that has none."""
    return run.duration if cell.end is None else cell.end


def top_cells(run: Run) -> tuple[Cell, ...]:
    """The cells people ran: what a cell runs from within is part of it, and is not judged twice."""
    return tuple(cell for cell in run.cells if cell.parent is None)


def cell_seconds(run: Run, since: float = 0.0) -> float:
    """Time in which at least one cell ran, from ``since`` on."""
    total, reached = 0.0, since
    for start, end in sorted((cell.start, cell_end(run, cell)) for cell in run.cells):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def titles(cells: Sequence[Cell]) -> str:
    """``In [3], In [4] and 5 more``."""
    named = [cell.title for cell in cells[:3]]
    more = len(cells) - len(named)
    if more:
        return f"{', '.join(named)} and {more} more"
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
