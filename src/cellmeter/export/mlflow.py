"""A run to an MLflow server: system metrics under MLflow's own names, the report as artefact, findings as tags.

What the user's code logged has the name it gave. MLflow keeps a point by key, time, step and value, so the same run can be
sent again: what is there already is not doubled.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter import __version__
from cellmeter.errors import BadUsage, ExportFailed, MissingExtra
from cellmeter.export.html import html_report
from cellmeter.export.own_values import OwnValue, own_values, steps_done
from cellmeter.export.readings import Choice, batched, chosen, ever_longer, is_chosen
from cellmeter.export.report_json import json_report
from cellmeter.rules.ownership import not_used

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.rules import Finding, Judgement
    from cellmeter.run import Device, Run

    Floats = NDArray[np.float64]
    Value = Callable[[Run, str, Floats, float], Floats]
    """What is sent of some readings of a subject, of which the run's first is the last argument."""

MEGABYTE = 1e6
MOST_METRICS = 1000  # that a batch may hold
MOST_TAG = 5000  # characters of a tag's value
LATE_SECONDS = 2.0  # what the code says and the driver tells may come so much later than its own time
MOST_VALUES = 10_000  # of a name that the user's code logged, each as it was; of more, one an interval
ROOT = "/"
RUN_TAG = "cellmeter.run_id"
MADE_TAG = "cellmeter.made_this_run"  # nobody else logs to it
OURS = ("system/", "cellmeter/")

# One line after seconds, and not after the ten minutes MLflow waits by itself. The user's own settings win.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Target(NamedTuple):
    """Where a run goes. ``run_id``: an MLflow run there is; None: the one it went to before, else a new one."""

    uri: str
    experiment: str
    run_id: str | None = None


class Sent(NamedTuple):
    """What has arrived: the MLflow run, the metrics by their keys there, and how many points."""

    run_id: str
    keys: frozenset[str]
    points: int

    def after(self, before: Sent | None) -> Sent:
        """Both together."""
        return self if before is None else Sent(self.run_id, self.keys | before.keys, self.points + before.points)


class SystemMetric(NamedTuple):
    """A metric of MLflow's system metrics: its name (``{index}``: the GPU's), what it is made of, and how."""

    name: str
    metric: str
    value: Value


def _megabytes(run: Run, subject: str, values: Floats, first: float) -> Floats:
    return values / MEGABYTE


def _as_is(run: Run, subject: str, values: Floats, first: float) -> Floats:
    return values


def _megabytes_since_start(run: Run, subject: str, values: Floats, first: float) -> Floats:
    return (values - first) / MEGABYTE


def _percent_of(whole: Callable[[Run, str], float | None]) -> Value:
    return lambda run, subject, values, first: 100 * values / (whole(run, subject) or math.nan)


def _device(run: Run, subject: str) -> Device | None:
    return next((device for device in run.devices if device.id == subject), None)


def _device_memory(run: Run, subject: str) -> float | None:
    device = _device(run, subject)
    return device.memory_bytes if device else None


def _power_limit(run: Run, subject: str) -> float | None:
    device = _device(run, subject)
    return device.power_limit_watts if device else None


def _disk_size(run: Run) -> float:
    sizes = run.series("host.filesystem.size", ROOT).values
    return float(sizes[-1]) if len(sizes) else math.nan


def _disk_used(run: Run, subject: str, free: Floats, first: float) -> Floats:
    return (_disk_size(run) - free) / MEGABYTE


def _disk_percent(run: Run, subject: str, free: Floats, first: float) -> Floats:
    return 100 * (1 - free / _disk_size(run))


# The list of mlflow/system_metrics/metrics, the same up to MLflow 3; megabytes are 10^6 bytes there.
SYSTEM_METRICS = (
    SystemMetric("cpu_utilization_percentage", "host.cpu.usage", _percent_of(lambda run, _: run.host.cpu_count)),
    SystemMetric("system_memory_usage_megabytes", "host.memory.used", _megabytes),
    SystemMetric(
        "system_memory_usage_percentage", "host.memory.used", _percent_of(lambda run, _: run.host.memory_bytes)
    ),
    SystemMetric("disk_usage_percentage", "host.filesystem.free", _disk_percent),
    SystemMetric("disk_usage_megabytes", "host.filesystem.free", _disk_used),
    SystemMetric("disk_available_megabytes", "host.filesystem.free", _megabytes),
    SystemMetric("network_receive_megabytes", "host.network.received", _megabytes_since_start),
    SystemMetric("network_transmit_megabytes", "host.network.sent", _megabytes_since_start),
    SystemMetric("gpu_{index}_memory_usage_percentage", "gpu.memory.used", _percent_of(_device_memory)),
    SystemMetric("gpu_{index}_memory_usage_megabytes", "gpu.memory.used", _megabytes),
    SystemMetric("gpu_{index}_utilization_percentage", "gpu.utilization", _as_is),
    SystemMetric("gpu_{index}_power_usage_watts", "gpu.power", _as_is),
    SystemMetric("gpu_{index}_power_usage_percentage", "gpu.power", _percent_of(_power_limit)),
)


class Points(NamedTuple):
    """One metric as MLflow keeps it: its key, milliseconds since 1970, steps, values."""

    key: str
    milliseconds: list[int]
    steps: list[int]
    values: list[float]


@dataclass
class Stretch:
    """A part of a run: its points from ``since`` on and before ``until``, in seconds since the run's start.

    ``first``: readings that a part has to be told, as it begins after them, by metric and subject.
    """

    since: float = 0.0
    until: float = math.inf
    first: dict[tuple[str, str], float] = field(default_factory=dict)


def points(run: Run, choice: Choice, plain: bool = True, stretch: Stretch | None = None) -> Iterator[Points]:
    """All that is sent of the chosen metrics; those without a reading, and GPUs that did not work for the kernel, are left out.

    ``plain``: what the user's code logged has the name it gave; else that stands behind ``cellmeter/logged.``, so as not to
    get among what the user logs to MLflow himself.
    """
    stretch = stretch or Stretch()
    cut = choice.cut or ever_longer
    taken: set[str] = set()
    for key, metric, subject, value in _wanted(run, choice.patterns):
        key = _free(key, taken)
        series = chosen(run, run.metrics[metric], subject, cut)
        if not len(series.time):
            continue
        first = stretch.first.setdefault((metric, subject), float(series.values[0]))
        values = value(run, subject, series.values, first)
        asked = (values == values) & (series.time >= stretch.since) & (series.time < stretch.until)
        if asked.any():
            seconds = series.time[asked]
            steps = (cut(seconds) / (choice.interval_seconds or 1.0)).round().astype(int).tolist()
            yield Points(key, _milliseconds(run, seconds), steps, values[asked].tolist())
    for own in own_values(run):
        if is_chosen(own.metric, choice.patterns, by_default=True):
            seconds, values = own.every(cut if choice.interval_seconds or len(own.time) > MOST_VALUES else None)
            asked = (seconds >= stretch.since) & (seconds < stretch.until)
            key = _free(_key_of_code(own, plain), taken)
            seconds = seconds[asked]
            if len(seconds):
                yield Points(key, _milliseconds(run, seconds), _steps(run, own, seconds), values[asked].tolist())


def _milliseconds(run: Run, seconds: Floats) -> list[int]:
    wall: list[int] = (run.epochs(seconds) * 1000).round().astype(int).tolist()
    return wall


def _steps(run: Run, own: OwnValue, seconds: Floats) -> list[int]:
    """How many ``cellmeter.step()`` there had been; before the first, the value's own number.

    Each is told by what came before it, so that a run that goes on can be sent again.
    """
    import numpy as np

    done = steps_done(run, seconds)
    steps: list[int] = np.where(done > 0, done, own.said_by(seconds) - 1).astype(int).tolist()
    return steps


def _wanted(run: Run, patterns: Sequence[str]) -> Iterator[tuple[str, str, str, Value]]:
    named = {system.metric for system in SYSTEM_METRICS}
    others = not_used(run, 0.0, run.duration)
    for system in SYSTEM_METRICS:
        if is_chosen(system.metric, patterns, by_default=True):
            for subject in (one for one in run.subjects(system.metric) if one not in others):
                if system.metric != "host.filesystem.free" or subject == ROOT:
                    key = "system/" + system.name.format(index=subject.removeprefix("gpu"))
                    yield key, system.metric, subject, system.value
    for metric in run.metrics.values():
        if metric.name not in named and is_chosen(metric.name, patterns, by_default=False):
            for subject in (one for one in run.subjects(metric.name) if one not in others):
                place = "" if subject == metric.scope else "/" + (subject.strip("/") or "root")
                yield _key(f"cellmeter/{metric.name}{place}"), metric.name, subject, _as_is


def _key_of_code(own: OwnValue, plain: bool) -> str:
    if plain and own.kind == "logged" and not own.name.startswith(OURS):
        return _key(own.name)
    return _key(f"cellmeter/{own.metric}")


def _key(name: str) -> str:
    """A name as MLflow takes it: letters, digits, a few signs, and no path that could be shorter."""
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:250] or "_"


def _free(key: str, taken: set[str]) -> str:
    """The key, or one beside it where two names came to be the same."""
    free = next(one for number in count(1) if (one := key if number == 1 else f"{key[:245]}-{number}") not in taken)
    taken.add(free)
    return free


def tags(run: Run, judgement: Judgement) -> dict[str, str]:
    """What the MLflow run is tagged with: which recording, how it ended, and each rule's findings."""
    found: dict[str, list[Finding]] = {}
    for finding in judgement.findings:
        found.setdefault(finding.rule, []).append(finding)
    said = {
        RUN_TAG: run.id,
        "cellmeter.version": __version__,
        "cellmeter.host": run.host.name,
        "cellmeter.notebook": run.notebook or "",
        "cellmeter.ending": run.ending or "",
        "cellmeter.findings": ", ".join(found) or "none",
    }
    for rule, findings in found.items():
        said[f"cellmeter.finding.{rule}"] = "\n".join(f"{f.severity}: {f.fact}" for f in findings)
    return {key: value[:MOST_TAG] for key, value in said.items() if value}


def send(run: Run, judgement: Judgement, target: Target, choice: Choice, stretch: Stretch | None = None) -> Sent:
    """Sends a run, or the rest of it.

    Raises ExportFailed where the server does not take it all, MissingExtra without ``mlflow``.
    """
    with _client(target) as (client, progress):
        there, made = _place(client, run, target)
        keys = _send_points(client, there, points(run, choice, made, stretch), progress)
        _send_report(client, there, run, judgement)
        if made and target.run_id is None and run.ending is not None:
            client.set_terminated(there, _status(run), int(run.epoch(run.duration) * 1000))
    return Sent(there, keys, progress.points)


def send_points(run: Run, target: Target, choice: Choice, stretch: Stretch) -> Sent:
    """Sends a stretch of a run that goes on. Raises as :func:`send` does."""
    with _client(target) as (client, progress):
        there, made = _place(client, run, target)
        keys = _send_points(client, there, points(run, choice, made, stretch), progress)
    return Sent(there, keys, progress.points)


def whole_until(run: Run, choice: Choice) -> float:
    """The end of the last interval of a run that goes on to which nothing will be added."""
    import numpy as np

    cut = choice.cut or ever_longer
    return float(cut(np.array([max(0.0, run.duration - LATE_SECONDS)]))[0])


@contextmanager
def _client(target: Target) -> Iterator[tuple[Any, _Progress]]:
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise MissingExtra("mlflow-skinny", "mlflow", "an export to MLflow") from error
    progress = _Progress()
    try:
        yield MlflowClient(tracking_uri=target.uri), progress
    except BadUsage:
        raise
    except Exception as error:  # stores are plugins: any of them fails in its own way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportFailed(
            f"MLflow at {target.uri} took {progress.points} points and then failed: {reason} "
            "(nothing is lost: the same command sends it again, and nothing twice)"
        ) from None


class _Progress:
    points = 0


def _place(client: Any, run: Run, target: Target) -> tuple[str, bool]:
    """Id of the MLflow run that it goes to, and whether that is one of ours, to which nobody else logs."""
    there = client.get_run(target.run_id) if target.run_id else _run_of(client, run, target.experiment)
    return str(there.info.run_id), MADE_TAG in there.data.tags


def _send_points(client: Any, run_id: str, parts: Iterator[Points], progress: _Progress) -> frozenset[str]:
    """Returns the keys of those that were sent."""
    from mlflow.entities import Metric

    keys: set[str] = set()
    entries = (
        Metric(part.key, value, time, step)
        for part in parts
        for value, time, step in zip(part.values, part.milliseconds, part.steps, strict=True)
    )
    for batch in batched(entries, MOST_METRICS):
        client.log_batch(run_id, metrics=batch)
        progress.points += len(batch)
        keys.update(metric.key for metric in batch)
    return frozenset(keys)


def _send_report(client: Any, run_id: str, run: Run, judgement: Judgement) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags(run, judgement).items()])
    client.log_text(run_id, html_report(run, judgement), "cellmeter/report.html")
    client.log_text(run_id, json_report(run, judgement), "cellmeter/report.json")


def _run_of(client: Any, run: Run, name: str) -> Any:
    """The MLflow run this recording has gone to before, or a new one."""
    experiment = client.get_experiment_by_name(name)
    experiment_id: str = experiment.experiment_id if experiment else client.create_experiment(name)
    for before in client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1):
        return before
    title = PurePath(run.notebook).stem if run.notebook else run.id
    started = int(run.started.timestamp() * 1000)
    told = {RUN_TAG: run.id, MADE_TAG: "yes"}
    return client.create_run(experiment_id, start_time=started, tags=told, run_name=title)


def _status(run: Run) -> str:
    if run.ending in ("killed", "out-of-memory"):
        return "KILLED"
    return "FAILED" if run.ending == "crashed" else "FINISHED"
