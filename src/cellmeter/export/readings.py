"""The readings of a run as other systems take them: chosen by name, and one an interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cellmeter.errors import BadUsage
from cellmeter.export.own_values import KINDS
from cellmeter.metrics import Metric
from cellmeter.run import Series

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.export.own_values import Cut
    from cellmeter.run import Run

    Floats = NDArray[np.float64]

_Item = TypeVar("_Item")
POINTS = 1000  # seconds of a run, and about so many points of each metric, before they are thinned
_OF_CODE = tuple(f"{kind}." for kind in KINDS)


class Choice(NamedTuple):
    """Which metrics are sent, as patterns of their names in an export to ``.csv``, and how often.

    Without a pattern: those that the other system has a name for, and what the user's code said.
    """

    patterns: tuple[str, ...] = ()
    interval_seconds: float | None = None

    @property
    def cut(self) -> Cut | None:
        """The intervals, if any are asked for."""
        return None if self.interval_seconds is None else every(self.interval_seconds)


def choice(metrics: str | None, interval_seconds: float | None) -> Choice:
    """Reads ``--metrics 'gpu.*,logged.loss'`` and ``--interval 5``. Raises BadUsage."""
    patterns = tuple(part.strip() for part in (metrics or "").split(",") if part.strip())
    if interval_seconds is not None and not 0 < interval_seconds < float("inf"):
        raise BadUsage(f"--interval must be a number of seconds above 0, not {interval_seconds:g}")
    return Choice(patterns, interval_seconds)


def check_names(choice: Choice, run: Run) -> None:
    """Raises BadUsage for a pattern that matches no metric there can be in a run: its own, its plugins', its code's."""
    for pattern in choice.patterns:
        if not pattern.startswith(_OF_CODE) and not any(fnmatchcase(name, pattern) for name in run.metrics):
            raise BadUsage(f"--metrics: no metric is called {pattern!r}; names are as in an export to .csv")


def is_chosen(name: str, patterns: Sequence[str], by_default: bool) -> bool:
    """Whether the metric of that name is sent."""
    return any(fnmatchcase(name, pattern) for pattern in patterns) if patterns else by_default


def every(seconds: float) -> Cut:
    """Intervals of the same length."""
    import numpy as np

    return lambda times: np.floor_divide(times, seconds) * seconds


def ever_longer(times: Floats) -> Floats:
    """Intervals of a second, and from ``POINTS`` seconds on of twice as many each time that the run has doubled.

    Where time is cut does not depend on how long the run has become: what is sent of one that goes on stays as it was.
    """
    import numpy as np

    doubled = np.floor(np.log2(np.maximum(times, POINTS / 2) / POINTS)) + 1
    seconds = np.exp2(doubled)
    starts: Floats = np.floor_divide(times, seconds) * seconds
    return starts


def chosen(run: Run, metric: Metric, subject: str, cut: Cut | None) -> Series:
    """The known readings of a metric, all of them or one an interval."""
    import numpy as np

    series = run.series(metric.name, subject)
    known = ~np.isnan(series.values)
    series = Series(series.time[known], series.values[known], series.seq[known])
    return series if cut is None else thinned(series, cut, metric.kind == "counter")


def thinned(series: Series, cut: Cut, last: bool) -> Series:
    """One reading an interval, at the time of the last one in it: their mean, or the last itself (counters)."""
    import numpy as np

    if not len(series.time):
        return series
    first = np.flatnonzero(np.diff(cut(series.time), prepend=-np.inf))
    counts = np.diff(first, append=len(series.time))
    ends = first + counts - 1
    values = series.values[ends] if last else np.add.reduceat(series.values, first) / counts
    return Series(series.time[ends], values, series.seq[ends])


def batched(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """The items in lists of at most ``size``."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
