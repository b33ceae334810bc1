"""Alerts and the memory budget: what they say, and when a row of readings sets one off. Pure; the recorder drives it.

    METRIC[:SUBJECT] < or > VALUE for DURATION        gpu.utilization:gpu0 < 30 for 60s

An alert watches cells, each anew; between them it rests. It goes off once it has held for its duration in every reading of a
cell, and again only after it has not held for as long (a second at least). An unknown reading breaks both off. Going off in a
cell is marked ``again`` where it has not cleared since it went off before, in or between cells: that is no news.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

from cellmeter.errors import BadUsage
from cellmeter.metrics import METRICS, Metric

LATE = "gpu.utilization.driver"
MOST_NAMED = 4  # metrics in an error
MOST_CHARACTERS = 200
MOST_ALERTS = 20
LONGEST_SECONDS = 86_400.0
LEAST_CLEAR_SECONDS = 1.0  # else one that holds at every other reading would go off ten times a second
SILENT_SECONDS = 5.0  # readings further apart than that (a suspend, a stopped recorder) say nothing of the time between
RATE_SECONDS = 0.2  # a rate over less is jitter
GROWTH_SHARE = 0.01  # of the budget: a cell that is only as big as its predecessor left it may clean up

_BYTES = {"": 1, "B": 1} | {f"{prefix}B": 1000**i for i, prefix in enumerate(("k", "M", "G", "T"), 1)}
_BYTES |= {f"{prefix}iB": 1024**i for i, prefix in enumerate(("K", "M", "G", "T"), 1)}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "By": _BYTES,
    "By/s": _BYTES | {f"{unit}/s": size for unit, size in _BYTES.items() if unit},
    "%": {"": 1, "%": 1},
    "{cpu}": {"": 1, "cores": 1},
    "Cel": {"": 1, "C": 1, "°C": 1},
    "1": {"": 1},
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Alert:
    """What to watch for. ``subject`` None: each there is, on its own."""

    text: str
    metric: str
    subject: str | None
    above: bool
    threshold: float
    """In the metric's unit."""
    seconds: float
    unit: str = "1"
    counter: str | None = None
    """What is stored, where the metric is a rate."""


@dataclass(frozen=True)
class Budget:
    """What a cell may use of memory: a share of the limit, or bytes of the kernel and its workers."""

    text: str
    share: float | None
    size_bytes: float | None
    interrupt: bool


# ---- expressions -----------------------------------------------------------------------------------------------------


class _Reader:
    """Reads an expression from left to right; a fault is one error with a caret under it."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.start = self.at = 0
        if len(self.text) > MOST_CHARACTERS:
            raise BadUsage(f"an alert of more than {MOST_CHARACTERS} characters is none")

    def take(self, pattern: str, otherwise: str) -> str:
        """What matches here, blanks before it left out."""
        match = re.compile(rf" ?({pattern})").match(self.text, self.at)
        if match is None:
            self.start = self.at + (self.text[self.at : self.at + 1] == " ")
            following = re.compile(r"\S+").match(self.text, self.start)
            self.at = following.end() if following else self.start + 1
            self.fault(otherwise)
        self.start, self.at = match.span(1)
        return match[1]

    def fault(self, why: str) -> NoReturn:
        """Raises BadUsage about what was taken last."""
        before, fault = _columns(self.text[: self.start]), max(1, _columns(self.text[self.start : self.at]))
        raise BadUsage(f"alert: {why}\n  {self.text}\n  {' ' * before}{'^' * fault}")


def _columns(text: str) -> int:
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def parse(text: str, metrics: Mapping[str, Metric] = METRICS) -> Alert:
    """The alert an expression means, of the metrics there are. Raises BadUsage with a caret under what is wrong."""
    reader = _Reader(text)
    metric, subject = _metric(reader, metrics)
    above = reader.take("[<>](?!=)", "here goes < or >") == ">"
    threshold = _threshold(reader, metric)
    reader.take("for(?= |$)", 'here goes "for" and how long, as in "for 60s"')
    seconds = float(reader.take(r"[0-9]+(?:\.[0-9]+)?", "here goes how long, as in 60s"))
    start = reader.start
    unit = reader.take(r"[^ 0-9.]\S*", f"a duration has a unit: {', '.join(_SECONDS)}")
    if unit not in _SECONDS:
        reader.fault(f"there is no time {unit!r}: use {', '.join(_SECONDS)}")
    if seconds * _SECONDS[unit] > LONGEST_SECONDS:
        reader.start = start
        reader.fault("that is more than a day")
    if reader.at < len(reader.text):
        reader.take("$", "nothing may follow the duration")
    counter = next((m.name for m in metrics.values() if m.rate == metric.name), None)
    return Alert(reader.text, metric.name, subject, above, threshold, seconds * _SECONDS[unit], metric.unit, counter)


def _metric(reader: _Reader, metrics: Mapping[str, Metric]) -> tuple[Metric, str | None]:
    named = reader.take(r"[^ <>=]+", "here goes the name of a metric, as in gpu.utilization")
    metric, colon, subject = named.partition(":")
    reader.at = reader.start + len(metric)
    if metric not in metrics:
        reader.fault(f"there is no metric {metric!r}: {_instead(metric, metrics)}")
    if metrics[metric].kind == "counter":
        rate = metrics[metric].rate
        reader.fault(f"{metric} only ever grows: {f'use {rate}' if rate in metrics else _instead(metric, metrics)}")
    reader.at = reader.start + len(named)
    if metric == LATE:
        reader.fault("the driver's own samples come too late to be watched: use gpu.utilization")
    if colon and not subject:
        reader.fault("after the colon goes a subject, as in gpu.utilization:gpu0")
    return metrics[metric], subject or None


def watchable(metrics: Mapping[str, Metric] = METRICS) -> list[Metric]:
    """Those of some metrics that an alert can be about: what only ever grows is watched as its rate."""
    return [metric for metric in metrics.values() if metric.kind != "counter" and metric.name != LATE]


def _instead(name: str, metrics: Mapping[str, Metric]) -> str:
    """What may have been meant: a name much like it, else those it shares its beginning with."""
    import difflib

    names = [metric.name for metric in watchable(metrics)]
    family: list[str] = []
    stem = name
    while stem and not family:
        family = [one for one in names if one.startswith(f"{stem}.")]
        stem = stem.rpartition(".")[0]
    near = difflib.get_close_matches(name, names, 1, 0.85) or (family if len(family) == 1 else [])
    if near:
        return f"did you mean {near[0]}?"
    if not family:
        return "there are gpu.utilization, process.memory.rss, host.cpu.usage and more: %monitor alert --metrics"
    more = " and more: %monitor alert --metrics" if len(family) > MOST_NAMED else ""
    return f"there are {', '.join(family[:MOST_NAMED])}{more}"


def metric_of(text: str) -> str:
    """The name of the metric that an expression begins with."""
    return text.partition(" ")[0].partition(":")[0].partition("<")[0].partition(">")[0]


def _threshold(reader: _Reader, metric: Metric) -> float:
    number = reader.take(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", "here goes a number")
    value = float(number)
    if not math.isfinite(value):
        reader.fault("that is too much")
    following = re.compile(r" ?([^\s0-9.]\S*)").match(reader.text, reader.at)
    if following is None or following[1] == "for":
        return value
    reader.start, reader.at = following.span(1)
    sizes = _UNITS.get(metric.unit, {"": 1, metric.unit: 1})
    if following[1] not in sizes:
        known = ", ".join(unit for unit in sizes if unit)
        reader.fault(f"{metric.name} has no unit {following[1]!r}" + (f": use {known}" if known else ""))
    return value * sizes[following[1]]


def parse_budget(text: str, interrupt: bool = False) -> Budget:
    """``0.9`` or ``90%`` of the memory limit, or bytes with their unit: ``12GiB``. Raises BadUsage."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(%|[kKMGT]i?B|B)?\s*", text)
    if match is None:
        raise BadUsage(f"a memory budget is a share of the limit (0.9, 90%) or bytes (12GiB), not {text!r:.40}")
    number, unit = float(match[1]), match[2]
    if unit in _BYTES and number > 0:
        return Budget(text.strip(), None, number * _BYTES[unit], interrupt)
    share = number / 100 if unit == "%" else number
    if unit not in (None, "%") or not 0 < share <= 1:
        raise BadUsage(f"a memory budget is a share of the limit (0.9, 90%) or bytes (12GiB), not {text!r:.40}")
    return Budget(text.strip(), share, None, interrupt)


# ---- watching --------------------------------------------------------------------------------------------------------


class _Column(Protocol):
    @property
    def metric(self) -> str: ...
    @property
    def subject(self) -> str: ...


Event = dict[str, Any]


class _Rate:
    """A counter as its rate. Unknown until two readings are far enough apart."""

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None
        self._rate = math.nan

    def of(self, now: int, value: float) -> float:
        if self._since is None or now - self._since[0] > SILENT_SECONDS * 1e9 or not value >= self._since[1]:
            self._since, self._rate = (now, value) if value == value else None, math.nan
        elif now - self._since[0] >= RATE_SECONDS * 1e9:
            self._rate = (value - self._since[1]) / ((now - self._since[0]) * 1e-9)
            self._since = (now, value)
        return self._rate


class Watch:
    """One alert on one subject."""

    def __init__(self, alert: Alert, subject: str) -> None:
        self.alert = alert
        self.subject = subject
        self.value = math.nan
        self._rate = _Rate() if alert.counter is not None else None
        self._fire_ns = int(alert.seconds * 1e9)
        self._clear_ns = max(self._fire_ns, int(LEAST_CLEAR_SECONDS * 1e9))
        self._last_ns = 0
        self._known = False
        self._quiet_ns: int | None = None
        self.rest()

    def rest(self) -> None:
        """Another cell runs, or none."""
        self.on = False
        self._since: int | None = None
        self._held = False

    def see(self, now: int, reading: float, within: bool = True) -> Literal["fired", "again", "cleared"] | None:
        """Takes in a reading, ``within`` a cell or between cells, and tells whether that changed anything."""
        value = self._rate.of(now, reading) if self._rate is not None else reading
        self.value = value
        known = math.isfinite(value)
        if not known or now - self._last_ns > SILENT_SECONDS * 1e9:
            self._since = self._quiet_ns = None
        self._last_ns = now
        if not known:
            return None
        holds = value > self.alert.threshold if self.alert.above else value < self.alert.threshold
        self._forget(now, holds)
        if not within:
            return None
        if self._since is None or holds is not self._held:
            self._since, self._held = now, holds
        if holds is self.on or now - self._since < (self._fire_ns if holds else self._clear_ns):
            return None
        self.on = holds
        if not holds:
            return "cleared"
        before, self._known = self._known, True
        return "again" if before else "fired"

    def _forget(self, now: int, holds: bool) -> None:
        """Once it has not held for long enough, whatever ran meanwhile, it is news when it goes off again."""
        if holds:
            self._quiet_ns = None
        elif self._quiet_ns is None:
            self._quiet_ns = now
        if self._quiet_ns is not None and now - self._quiet_ns >= self._clear_ns:
            self._known = False


class Guard:
    """The memory budget over the cells of a run: says so once a cell, when it goes beyond and still grows."""

    def __init__(self, budget: Budget, metric: str, subject: str, threshold: float, upper_bound: bool = False) -> None:
        self.budget = budget
        self.metric = metric
        self.subject = subject
        self.threshold = threshold
        self.upper_bound = upper_bound
        """There may be less in use than is read: that is no reason to interrupt a cell."""
        self._seq = 0
        self._said = False
        self._lowest = math.inf

    def see(self, seq: int, value: float) -> bool:
        """Whether the budget has just been exceeded."""
        if seq != self._seq:
            self._seq, self._said, self._lowest = seq, False, math.inf
        if not seq or not math.isfinite(value):
            return False
        self._lowest = min(self._lowest, value)
        if self._said or value <= self.threshold or value - self._lowest < GROWTH_SHARE * self.threshold:
            return False
        self._said = True
        return True


def not_held(mine: Mapping[str, bool | None], contexts: Mapping[str, float]) -> list[str]:
    """The GPUs that the kernel does not hold, as far as that is known.

    ``mine``: what ``CUDA_VISIBLE_DEVICES`` says of each; ``contexts``: how many the kernel and its descendants hold on it, by
    the driver's last list of processes (NaN: unknown).
    """
    holds = {gpu: count > 0 if count == count else None for gpu, count in contexts.items()}
    return [
        gpu
        for gpu, is_mine in mine.items()
        if not is_mine and not (held := holds.get(gpu)) and (is_mine is False or held is False)
    ]


def watches(alert: Alert, metric: str, subject: str) -> bool:
    """Whether an alert is about a stored column; that of a rate is its counter."""
    return metric == (alert.counter or alert.metric) and alert.subject in (None, subject)


class _Place(NamedTuple):
    column: int
    watch: Watch


class Board:
    """All that is watched in a run. ``see`` costs about a microsecond a watch."""

    def __init__(self) -> None:
        self._alerts: list[Alert] = []
        self._watches: dict[tuple[Alert, str], Watch] = {}
        self._guards: tuple[Guard, ...] = ()
        self._foreign: frozenset[str] = frozenset()
        self._seq = 0
        self._places: dict[int, tuple[list[_Place], list[tuple[int, Guard]]]] = {}

    def set_alerts(self, alerts: Sequence[Mapping[str, Any]]) -> None:
        """From here on these and no others; one that stays goes on as it is."""
        self._alerts = [Alert(**alert) for alert in alerts]
        self._watches = {key: watch for key, watch in self._watches.items() if key[0] in self._alerts}
        self._places.clear()

    def set_foreign(self, gpus: Iterable[str]) -> None:
        """GPUs that are not the kernel's: what they do is watched only where an alert names them."""
        foreign = frozenset(gpus)
        if foreign != self._foreign:
            self._foreign = foreign
            self._places.clear()

    def set_guards(self, guards: Sequence[Guard]) -> None:
        """From here on the budget of these and no other; of those that see at once that it is exceeded the first speaks."""
        self._guards = tuple(guards)
        self._places.clear()

    def see(self, segment: int, columns: Sequence[_Column], now: int, seq: int, row: Sequence[float]) -> list[Event]:
        """The events that a row of readings makes. ``segment`` stands for its columns; ``seq`` is the cell, 0 between."""
        if not self._alerts and not self._guards:
            return []
        if segment not in self._places:
            self._places[segment] = self._place(columns)
        if seq != self._seq:
            self._seq = seq
            for watch in self._watches.values():
                watch.rest()
        watched, guarded = self._places[segment]
        events = []
        for index, watch in watched:
            if (state := watch.see(now, row[index], bool(seq))) is not None:
                events.append(_alert_event(watch, state, now, seq))
        exceeded = [(guard, row[index]) for index, guard in guarded if guard.see(seq, row[index])]
        return events + [_guard_event(guard, now, seq, value) for guard, value in exceeded[:1]]

    def _place(self, columns: Sequence[_Column]) -> tuple[list[_Place], list[tuple[int, Guard]]]:
        watched = []
        for index, column in enumerate(columns):
            for alert in self._alerts:
                named = alert.subject is not None or column.subject not in self._foreign
                if named and watches(alert, column.metric, column.subject):
                    key = (alert, column.subject)
                    watched.append(_Place(index, self._watches.setdefault(key, Watch(*key))))
        at = {(column.metric, column.subject): index for index, column in enumerate(columns)}
        places = [(at.get((guard.metric, guard.subject)), guard) for guard in self._guards]
        return watched, [(index, guard) for index, guard in places if index is not None]


def _alert_event(watch: Watch, state: str, now: int, seq: int) -> Event:
    return {
        "event": "alert",
        "t": now,
        "seq": seq,
        "state": "fired" if state == "again" else state,
        "again": state == "again",
        "alert": watch.alert.text,
        "subject": watch.subject,
        "value": watch.value,
    }


def _guard_event(guard: Guard, now: int, seq: int, value: float) -> Event:
    return {
        "event": "budget",
        "t": now,
        "seq": seq,
        "budget": guard.budget.text,
        "metric": guard.metric,
        "value": value,
        "threshold": guard.threshold,
        "interrupt": guard.budget.interrupt and not guard.upper_bound,
        "upper_bound": guard.upper_bound,
    }


TREE = ("process.tree.memory.rss", "process")
KERNEL = ("process.memory.rss", "process")


def guards_of(
    budget: Budget, columns: Sequence[_Column], limit_bytes: float, limit_from: str, upper_bound: bool = False
) -> tuple[Guard, ...]:
    """What a budget is watched by: a share by what the limit is about, bytes by the kernel and its workers.

    With ``upper_bound``, which says that what the workers use is not known better, the kernel's own memory is watched as well.
    Empty where all that is not measured, or the limit is unknown.
    """
    there = {(column.metric, column.subject) for column in columns}
    wanted = {"cgroup": [("cgroup.memory.used", "cgroup")], "host": [("host.memory.used", "host")]}
    choice = [*(wanted.get(limit_from, []) if budget.share is not None else []), TREE, KERNEL]
    threshold = budget.size_bytes if budget.size_bytes is not None else (budget.share or 0.0) * limit_bytes
    found = next((quantity for quantity in choice if quantity in there), None)
    if found is None or threshold <= 0:
        return ()
    if not upper_bound or found != TREE:
        return (Guard(budget, *found, threshold),)
    return Guard(budget, *KERNEL, threshold), Guard(budget, *TREE, threshold, upper_bound=True)


def message_of(alerts: Sequence[Alert], budget: Budget | None) -> Event:
    """What the kernel tells its recorder."""
    return {
        "event": "watch",
        "alerts": [asdict(alert) for alert in alerts],
        "budget": None if budget is None else asdict(budget),
    }
