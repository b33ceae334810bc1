"""The running kernels of this user as Prometheus' metric families.

Every series says its ``run`` and ``kernel``, those of GPUs ``gpu`` and ``uuid`` too. The cell is a series of its own,
``cellmeter_cell_info``, and not a label of all: else each cell would begin every series anew. A query joins it:
``cellmeter_gpu_utilization_ratio * on (run) group_left (cell, label) cellmeter_cell_info``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cellmeter.errors import RunUnreadable
from cellmeter.home import run_folders
from cellmeter.prometheus.names import DCGM, EVENT_REASONS, EXPOSED, PLUGIN_PREFIX, PREFIX, Exposed, exposed_plugins
from cellmeter.prometheus.watched import State, Watched
from cellmeter.run import Device
from cellmeter.store import is_open, read_header

RUNS_LOOKED_AT = 200  # the newest, and those that were open at the last look
RUN = ("run", "kernel")
GPU = (*RUN, "gpu", "uuid")
MOUNT = (*RUN, "mountpoint")
SUBJECT = (*RUN, "subject")
MOST_PLUGIN_SERIES = 500  # of a run
WHOLE_GPU = re.compile(r"gpu(\d+)")
MINE = {True: "yes", False: "no", None: "unknown"}


class Exposition(Collector):
    """Looks at the runs each time it is asked. ``folder``: at that run alone.

    ``elsewhere``: at those too that other machines and containers record into the same home.
    """

    def __init__(self, home: Path, folder: Path | None = None, *, elsewhere: bool = False, dcgm: bool = False) -> None:
        self._home = home
        self._only = folder
        self._elsewhere = elsewhere
        self._dcgm = dcgm
        self._watched: dict[Path, Watched] = {}
        self._ended: set[Path] = set()
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is changes with the runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, those that have no series left out."""
        with self._lock:
            states, unreadable = self._look()
        yield from families(states, unreadable)
        if self._dcgm:
            yield from dcgm_families(states)

    def goes_on(self) -> bool:
        """Whether the run it looks at alone is still recorded."""
        return self._only is not None and self._is_open(self._only)

    def _look(self) -> tuple[list[State], int]:
        folders = [self._only] if self._only is not None else run_folders(self._home)[-RUNS_LOOKED_AT:]
        self._ended &= set(folders)
        looked_at = dict.fromkeys(folder for folder in (*self._watched, *folders) if folder not in self._ended)
        wanted = [folder for folder in looked_at if self._is_open(folder)]
        self._watched = {folder: self._watched.get(folder) or Watched(folder) for folder in sorted(wanted)}
        states, unreadable = [], 0
        for watched in self._watched.values():
            try:
                states.append(watched.look())
            except (
                RunUnreadable,
                OSError,
                LookupError,
                TypeError,
                ValueError,
            ):  # somebody else's form, or just removed
                unreadable += 1
        return states, unreadable

    def _is_open(self, folder: Path) -> bool:
        try:
            goes_on = is_open(read_header(folder), folder if self._elsewhere else None)
        except RunUnreadable:  # its recorder has yet to write it, or it has been removed
            return False
        if not (goes_on or self._elsewhere):  # another machine's is only seen not to be written, which may change
            self._ended.add(folder)
        return goes_on


def families(states: Sequence[State], unreadable: int) -> Iterator[Metric]:
    """What is told of some runs; ``unreadable`` is how many others could not be read."""
    count = GaugeMetricFamily(PREFIX + "runs_unreadable", "Open runs that could not be read")
    count.add_metric((), unreadable)
    for family in (
        count,
        *_about_runs(states),
        *_about_cells(states),
        *_about_gpus(states),
        *_readings(states),
        *_of_plugins(states),
        *_own(states),
    ):
        if family.samples:
            yield family


def _about_runs(states: Sequence[State]) -> Iterator[Metric]:
    info = InfoMetricFamily(PREFIX + "run", "A run that is being recorded", labels=RUN)
    sampled = GaugeMetricFamily(
        PREFIX + "last_sample_timestamp_seconds", "When the newest sample was taken", labels=RUN
    )
    memory = GaugeMetricFamily(
        PREFIX + "memory_limit_bytes", "The most memory the kernel may use, and what sets it", labels=(*RUN, "from")
    )
    cores = GaugeMetricFamily(
        PREFIX + "cpu_limit_cores", "The most cores the kernel may use, and what sets it", labels=(*RUN, "from")
    )
    limits = {"memory_bytes": memory, "cpu_cores": cores}
    for state in states:
        key = (state.run, state.kernel)
        info.add_metric(key, {"host": state.host, "notebook": state.notebook, "version": state.version})
        if state.sampled is not None:
            sampled.add_metric(key, state.sampled)
        for name, family in limits.items():
            if (limit := state.limits.get(name)) is not None:
                family.add_metric((*key, limit.source), limit.value)
    yield from (info, sampled, *limits.values())


def _about_cells(states: Sequence[State]) -> Iterator[Metric]:
    info = InfoMetricFamily(PREFIX + "cell", "The innermost cell that runs", labels=RUN)
    started = GaugeMetricFamily(
        PREFIX + "cell_start_timestamp_seconds", "When the innermost cell that runs was started", labels=RUN
    )
    ended = CounterMetricFamily(PREFIX + "cells", "Cells that have ended", labels=(*RUN, "status"))
    for state in states:
        key = (state.run, state.kernel)
        if state.cell is not None:
            info.add_metric(key, {"cell": state.cell.number, "label": state.cell.label})
            started.add_metric(key, state.cell.started)
        for status, count in sorted(state.ended.items()):
            ended.add_metric((*key, status), count)
    yield from (info, started, ended)


def _about_gpus(states: Sequence[State]) -> Iterator[Metric]:
    info = InfoMetricFamily(PREFIX + "gpu", "A GPU or MIG instance, and whether it is the kernel's own", labels=GPU)
    limit = GaugeMetricFamily(PREFIX + "gpu_power_limit_watts", "The most power the GPU may draw", labels=GPU)
    reasons = GaugeMetricFamily(
        PREFIX + "gpu_event_reason", "Whether this holds the GPU's clock down now", labels=(*GPU, "reason")
    )
    for state in states:
        for device in state.devices:
            key = (state.run, state.kernel, device.id, device.uuid)
            info.add_metric(key, {"name": device.name, "mine": MINE[device.mine]})
            if device.power_limit_watts is not None:
                limit.add_metric(key, device.power_limit_watts)
            mask = state.readings.get(("gpu.event_reasons", device.id))
            for bit, reason in EVENT_REASONS.items() if mask is not None else ():
                reasons.add_metric((*key, reason), float(bool(int(mask or 0) & bit)))
    yield from (info, limit, reasons)


def _readings(states: Sequence[State]) -> Iterator[Metric]:
    for exposed in EXPOSED.values():
        scope = exposed.metric.scope
        mounted = exposed.metric.name.startswith("host.filesystem.")
        family = _family(exposed, labels := GPU if scope == "gpu" else MOUNT if mounted else RUN)
        for state in states:
            for key, value in _of(state, exposed.metric.name, labels):
                family.add_metric(key, value * exposed.scale)
        yield family


def _family(exposed: Exposed, labels: Sequence[str]) -> Any:
    kind = CounterMetricFamily if exposed.metric.kind == "counter" else GaugeMetricFamily
    return kind(exposed.name, exposed.metric.meaning, labels=labels)


def _of(state: State, metric: str, labels: Sequence[str]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Readings of one metric with the values of their labels."""
    if labels is not GPU:
        for (name, subject), value in state.readings.items():
            if name == metric:
                yield (state.run, state.kernel, subject)[: len(labels)], value
        return
    for device in state.devices:
        if (reading := state.readings.get((metric, device.id))) is not None:
            yield (state.run, state.kernel, device.id, device.uuid), reading


def _of_plugins(states: Sequence[State]) -> Iterator[Metric]:
    """What sources of other packages measure, with its ``subject``. Runs may differ in what a name means: the newest counts."""
    left_out = GaugeMetricFamily(
        PLUGIN_PREFIX + "series_left_out", f"Series of plugins beyond the first {MOST_PLUGIN_SERIES}", labels=RUN
    )
    families: dict[str, tuple[Exposed, Any]] = {}
    for state in reversed(states):
        count = 0
        for name, exposed in exposed_plugins(state.plugin_metrics).items():
            alike, family = families.setdefault(exposed.name, (exposed, _family(exposed, SUBJECT)))
            for key, value in _of(state, name, SUBJECT) if alike == exposed else ():
                count += 1
                if count <= MOST_PLUGIN_SERIES:
                    family.add_metric(key, value * exposed.scale)
        if count > MOST_PLUGIN_SERIES:
            left_out.add_metric((state.run, state.kernel), count - MOST_PLUGIN_SERIES)
    yield from (left_out, *(family for _, family in families.values()))


def _own(states: Sequence[State]) -> Iterator[Metric]:
    """What the user's code said by ``log``, ``step`` and ``span``: a series a name."""
    labels = (*RUN, "name")
    logged = GaugeMetricFamily(PREFIX + "logged", "What was last logged", labels=labels)
    steps = CounterMetricFamily(PREFIX + "steps", "Steps done, and what was done in them", labels=labels)
    seconds = HistogramMetricFamily(PREFIX + "span_seconds", "Durations of spans", labels=labels)
    errors = CounterMetricFamily(PREFIX + "span_errors", "Spans that an exception left", labels=labels)
    items = CounterMetricFamily(PREFIX + "span_items", "Items that spans handled", labels=labels)
    for state in states:
        for name, value in state.own.logged.items():
            logged.add_metric((state.run, state.kernel, name), value)
        for name, value in state.own.steps.items():
            steps.add_metric((state.run, state.kernel, name), value)
        for name, spans in state.own.spans.items():
            key = (state.run, state.kernel, name)
            seconds.add_metric(key, buckets=spans.cumulated(), sum_value=spans.seconds)
            errors.add_metric(key, spans.errors)
            if spans.items is not None:
                items.add_metric(key, spans.items)
    yield from (logged, steps, seconds, errors, items)


def dcgm_families(states: Sequence[State]) -> Iterator[Metric]:
    """The GPUs as dcgm-exporter tells of them, each once however many kernels see it; MIG instances are left out.

    Its releases spell the same label ``uuid`` or ``UUID``: the series have both.
    """
    labels = ("gpu", "UUID", "uuid", "device", "modelName", "Hostname")
    found: dict[str, tuple[State, Device, str]] = {}
    for state in sorted(states, key=lambda state: state.sampled or 0.0):
        for device in state.devices:
            if match := WHOLE_GPU.fullmatch(device.id):
                found[device.uuid] = state, device, match[1]
    for name, (text, metric, scale, less) in DCGM.items():
        family = GaugeMetricFamily(name, text, labels=labels)
        for state, device, index in found.values():
            value = state.readings.get((metric, device.id))
            subtracted = 0.0 if less is None else state.readings.get((less, device.id))
            if value is not None and subtracted is not None:
                key = (index, device.uuid, device.uuid, f"nvidia{index}", device.name, state.host)
                family.add_metric(key, (value - subtracted) * scale)
        if family.samples:
            yield family
