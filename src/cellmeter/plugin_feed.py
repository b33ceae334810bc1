"""What sources of other packages measure, as the live panel's page takes it: marks beside those of the user's code.

Their streams are files of their own, which come about a second after the recording starts: they are looked at once a second,
and not at all where no such package is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter.charts import decimate
from cellmeter.clock import monotonic, monotonic_ns
from cellmeter.metrics import Metric
from cellmeter.own_feed import OwnFeed
from cellmeter.plugins import found
from cellmeter.store import Tail, read_header
from cellmeter.words import KNOWN_UNITS, unit_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cellmeter.run import Column

LOOK_SECONDS = 1.0
MOST_MARKS = 10  # of a quantity and look
RATE_SECONDS = 0.2  # a rate over less is jitter


class PluginFeed:
    """The gauges and rates of a run from now on. Not thread-safe."""

    def __init__(self, folder: Path, clock: Callable[[], float] = monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._since_ns = monotonic_ns()
        self._look_at = 0.0
        self._tails: dict[str, Tail] = {}
        self._metrics: dict[str, Metric] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._units: dict[str, str] = {}
        self._before: dict[Column, tuple[int, float]] = {}
        self._feed = OwnFeed()

    def message(self, start_ns: int | None, *, anew: bool = False, rest: bool = False) -> dict[str, Any] | None:
        """As :meth:`OwnFeed.message`, with the ``units`` by name: those of ``charts``, or what stands behind a number."""
        if found("cellmeter.sources") and (rest or self._clock() >= self._look_at):
            self._look_at = self._clock() + LOOK_SECONDS
            self._look()
        marks = self._feed.message(start_ns, anew=anew, rest=rest)
        return marks and {**marks, "k": "plugins", "units": self._units}

    def _look(self) -> None:
        header = read_header(self._folder)
        self._metrics = {metric["name"]: Metric(**metric) for metric in header.get("metrics", ())}
        for segment in header["segments"]:
            if segment["stream"] not in self._tails and any(c[0] in self._metrics for c in segment["columns"]):
                self._tails[segment["stream"]] = Tail(self._folder, segment["stream"], since_ns=self._since_ns)
        for tail in self._tails.values():
            for columns, records in tail.samples():
                for index, column in enumerate(columns):
                    self._take(column, records["t"], records["v"][:, index])

    def _take(self, column: Column, times: NDArray[Any], values: NDArray[Any]) -> None:
        import numpy as np

        metric = self._metrics.get(column.metric)
        if metric is not None and metric.kind == "counter":
            metric = self._metrics.get(metric.rate or "")
            times, values = self._rates(column, times, values)
        if metric is None:
            return
        name = self._name(metric, column.subject)
        known = np.isfinite(values)
        moments, rows = decimate(times[known].astype(float), values[known][:, None], MOST_MARKS)
        self._feed.take(
            {"event": "logged", "t": int(t), "values": {name: value}}
            for t, value in zip(moments.tolist(), rows[:, 0].tolist(), strict=True)
        )

    def _rates(self, column: Column, times: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """A counter's rate between readings that are far enough apart; none where it fell or is unknown."""
        import numpy as np

        found: list[tuple[int, float]] = []
        for t, value in zip(times.tolist(), values.tolist(), strict=True):
            since, before = self._before.get(column, (t, math.nan))
            if value >= before and t - since >= RATE_SECONDS * 1e9:
                found.append((t, (value - before) / ((t - since) * 1e-9)))
            elif value >= before:
                continue
            self._before[column] = (t, value)
        return np.array([t for t, _ in found], np.int64), np.array([rate for _, rate in found])

    def _name(self, metric: Metric, subject: str) -> str:
        """Without the plugin's own name, as a lane has little room; the whole where another is called so."""
        key = (metric.name, subject)
        if key not in self._names:
            whole = metric.name if subject == metric.scope else f"{metric.name} {subject}"
            short = whole.partition(".")[2]
            self._names[key] = name = whole if short in self._names.values() else short
            unit = metric.unit if metric.unit in KNOWN_UNITS else unit_text(metric.unit)
            if unit:
                self._units[name] = unit
        return self._names[key]
