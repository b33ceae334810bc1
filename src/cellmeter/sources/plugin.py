"""A source of another package: imported, opened and read on a thread of its own, so that it can fail or hang alone.

The recorder waits for a reading no longer than a few milliseconds. One that comes later is the next sample's, and a source that
does not answer, or raises, is off for the rest of the run, which keeps one line of it.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Any

from cellmeter.clock import monotonic
from cellmeter.metrics import METRICS, Metric
from cellmeter.run import Column, Device
from cellmeter.sources import Notice

WAIT_SECONDS = 0.005
GONE_SECONDS = 5.0
MOST_METRICS = 200
MOST_COLUMNS = 1000
LEAST_SECONDS = 0.01  # its stream is never the main one, whose columns then would change
KINDS = ("gauge", "counter", "rate")
OF_CODE = ("logged", "step", "span")  # begin the names of what the user's code says
NAN = float("nan")


class PluginSource:
    """A :class:`cellmeter.sources.Source` around that of a plugin; it can be read once :meth:`ready` is True."""

    def __init__(self, point: Mapping[str, str], pid: int) -> None:
        self.name = point["name"]
        self.interval = LEAST_SECONDS
        self.columns: tuple[Column, ...] = ()
        self.metrics: tuple[Metric, ...] = ()
        self.notices: list[Notice] = []
        self._failure: str | None = None
        self._opened = False
        self._asked_at: float | None = None
        self._questions: SimpleQueue[bool] = SimpleQueue()
        self._answers: SimpleQueue[list[float] | str] = SimpleQueue()
        threading.Thread(target=self._serve, args=(point, pid), daemon=True).start()

    def ready(self) -> bool:
        """Whether it has been opened, and has told what it reads."""
        return self._opened

    def take_failure(self) -> str | None:
        """Why it could not be opened, once; None if it could, or is not known yet."""
        failure, self._failure = self._failure, None
        return failure

    def _serve(self, point: Mapping[str, str], pid: int) -> None:
        try:
            source = self._open(point, pid)
        except BaseException as error:  # a plugin may say sys.exit()
            self._failure = _line(error)
            return
        while True:
            self._questions.get()
            try:
                row = [float(value) for value in source.read()]
                if len(row) != len(self.columns):
                    raise ValueError(f"a reading of {len(row)} values for {len(self.columns)} columns")
            except BaseException as error:
                self._answers.put(_line(error))
                return
            self._answers.put(row)

    def _open(self, point: Mapping[str, str], pid: int) -> Any:
        if point["folder"] not in sys.path:
            sys.path.append(point["folder"])
        module, _, path = point["value"].partition(":")
        made: Any = importlib.import_module(module.strip())
        for name in path.partition("[")[0].strip().split("."):
            made = getattr(made, name)
        source = made(pid)
        metrics = checked_metrics(self.name, source.metrics)
        columns = tuple(Column(*map(str, column)) for column in source.columns)
        if len(columns) > MOST_COLUMNS:
            raise ValueError(f"it has {len(columns)} columns; at most {MOST_COLUMNS} are possible")
        units = {metric.name: metric.unit for metric in metrics}
        for column in columns:
            if units.get(column.metric) != column.unit:
                raise ValueError(f"its column {column.metric!r} in {column.unit!r} is none of its metrics")
        self.interval = max(LEAST_SECONDS, float(source.interval))
        self.metrics, self.columns = metrics, columns
        self._opened = True
        return source

    def read(self) -> list[float]:
        """One row, or what was asked for before and has come since."""
        if not self._opened:
            return [NAN] * len(self.columns)
        if self._asked_at is None:
            self._asked_at = monotonic()
            self._questions.put(True)
        try:
            answer = self._answers.get(timeout=WAIT_SECONDS)
        except Empty:
            if monotonic() - self._asked_at > GONE_SECONDS:
                self._give_up(f"it has not answered for {GONE_SECONDS:g} s")
            return [NAN] * len(self.columns)
        self._asked_at = None
        if isinstance(answer, str):
            self._give_up(answer)
            return [NAN] * len(self.columns)
        return answer

    def _give_up(self, why: str) -> None:
        self._opened = False
        self.notices.append(Notice("lost", None, f"source {self.name}", why))

    def devices(self) -> list[Device]:
        """None."""
        return []

    def close(self) -> None:
        """Its thread ends with the recorder."""


def checked_metrics(plugin: str, metrics: Any) -> tuple[Metric, ...]:
    """The metrics of a source, if they can join the catalogue. Raises ValueError."""
    if plugin in OF_CODE:
        raise ValueError(f"no source can be called {plugin!r}: so begin the names of what the user's code says")
    checked = tuple(Metric(*metric) for metric in metrics)
    if not 0 < len(checked) <= MOST_METRICS:
        raise ValueError(f"it has {len(checked)} metrics; 1 to {MOST_METRICS} are possible")
    for metric in checked:
        if not metric.name.startswith(f"{plugin}.") or metric.name in METRICS:
            raise ValueError(f"its metric {metric.name!r} must be named {plugin}.…")
        if not re.fullmatch(r"[\w.-]+", metric.name, re.ASCII):
            raise ValueError(f"its metric {metric.name!r} has other signs than letters, digits, '.', '_' and '-'")
        if not _is_described(metric):
            raise ValueError(f"its metric {metric.name!r} is not well described: {metric!r:.120}")
    return checked


def _is_described(metric: Metric) -> bool:
    *texts, least_seconds = metric
    named = all(isinstance(text, str) for text in texts[:7]) and all(isinstance(text, str | None) for text in texts[7:])
    return named and metric.kind in KINDS and isinstance(least_seconds, int | float) and least_seconds >= 0


def _line(error: BaseException) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]:.200}" if text else type(error).__name__
