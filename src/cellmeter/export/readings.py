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

    from cellmeter.run import Run

_Item = TypeVar("_Item")
_OF_CODE = tuple(f"{kind}." for kind in KINDS)


class Choice(NamedTuple):
    """Which metrics are sent, as patterns of their names in an export to ``.csv``, and how often.

    Without a pattern: those that the other system has a name for, and what the user's code said.
    """

    patterns: tuple[str, ...] = ()
    interval_seconds: float | None = None


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


def chosen(run: Run, metric: Metric, subject: str, interval_seconds: float | None) -> Series:
    """The known readings of a metric, all of them or one an interval."""
    import numpy as np

    series = run.series(metric.name, subject)
    known = ~np.isnan(series.values)
    series = Series(series.time[known], series.values[known], series.seq[known])
    return series if interval_seconds is None else thinned(series, interval_seconds, metric.kind == "counter")


def thinned(series: Series, interval_seconds: float, last: bool) -> Series:
    """One reading an interval, at the time of the last one in it: their mean, or the last itself (counters).

    Intervals count from the run's start, so that the same run is always cut the same way.
    """
    import numpy as np

    if not len(series.time):
        return series
    slots = np.floor_divide(series.time, interval_seconds)
    first = np.flatnonzero(np.diff(slots, prepend=-np.inf))
    counts = np.diff(first, append=len(slots))
    ends = first + counts - 1
    values = series.values[ends] if last else np.add.reduceat(series.values, first) / counts
    return Series(series.time[ends], values, series.seq[ends])


def batched(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """The items in lists of at most ``size``."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
