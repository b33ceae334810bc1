"""``cellmeter export --mlflow`` and ``--otlp``, ``cellmeter.start(mlflow=True)``: a run to a server and not to a file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cellmeter import detached
from cellmeter.clock import monotonic
from cellmeter.errors import BadUsage, CellmeterError, MissingExtra
from cellmeter.home import find_run, may_be_open, runs_home
from cellmeter.settings import MAX_RATE_HZ
from cellmeter.store import read_run

if TYPE_CHECKING:
    from cellmeter.export.mlflow import Sent, Target
    from cellmeter.export.readings import Choice
    from cellmeter.run import Run

LOG = "mlflow.log"
LOOK_SECONDS = 0.5
LIVE_SECONDS = 15.0  # between what is sent while a run is recorded
REST = 20.0  # it takes at most a twentieth of a core
SLACK_SECONDS = 120.0  # read again of what was sent before: rates look back, and free disk space is read once a minute

_FILES_ONLY = ("output", "per_cell", "jsonl", "cells", "since")
_MLFLOW_ONLY = ("tracking_uri", "experiment", "mlflow_run")
_SERVERS_ONLY = (*_MLFLOW_ONLY, "metrics", "interval", "wait")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both."""
    mlflow = parser.add_argument_group("to an MLflow server")
    mlflow.add_argument(
        "--mlflow",
        action="store_true",
        help="system metrics under MLflow's own names, the report as artefact, findings as tags; again: nothing twice",
    )
    mlflow.add_argument("--tracking-uri", metavar="URI", help="default: $MLFLOW_TRACKING_URI")
    mlflow.add_argument("--experiment", metavar="NAME", help="default: $MLFLOW_EXPERIMENT_NAME, else Default")
    mlflow.add_argument("--mlflow-run", metavar="ID", help="an MLflow run there is (default: one of its own)")
    otlp = parser.add_argument_group("to an OpenTelemetry collector")
    otlp.add_argument(
        "--otlp",
        metavar="ENDPOINT",
        help="metrics, cells and spans by OTLP over HTTP, as in http://localhost:4318; "
        "headers: $OTEL_EXPORTER_OTLP_HEADERS",
    )
    both = parser.add_argument_group("to either")
    both.add_argument(
        "--metrics", metavar="PATTERNS", help="which, by their names in an export to .csv, as in 'gpu.*,logged.loss'"
    )
    both.add_argument(
        "--interval",
        type=float,
        metavar="SECONDS",
        help="one value in so long (default: MLflow 1 s, ever longer from 1000 s on; OTLP every sample)",
    )
    both.add_argument(
        "--wait", action="store_true", help="if it is still recorded, until that is over; MLflow has it meanwhile"
    )


def is_wanted(options: argparse.Namespace) -> bool:
    """Whether the run goes to a server. Raises BadUsage for options that do not go together."""
    if not options.mlflow and not options.otlp:
        _refuse(options, _SERVERS_ONLY, "goes with --mlflow or --otlp")
        return False
    if options.mlflow and options.otlp:
        raise BadUsage("export: --mlflow or --otlp, one at a time")
    _refuse(options, _FILES_ONLY, "is for exports to a file; a server gets the whole run")
    if options.otlp:
        _refuse(options, _MLFLOW_ONLY, "goes with --mlflow")
    return True


def _refuse(options: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if getattr(options, name):
            raise BadUsage(f"export: --{name.replace('_', '-')} {reason}")


def send(options: argparse.Namespace) -> None:
    """Sends the run and says on stderr what has arrived. Raises CellmeterError."""
    from cellmeter.export.readings import check_names, choice

    wanted = choice(options.metrics, options.interval)
    uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if options.mlflow and not uri:
        raise BadUsage("export --mlflow: name the server by --tracking-uri or MLFLOW_TRACKING_URI")
    folder = find_run(options.run, runs_home())
    live = Live(folder, _target(options, uri), wanted) if uri and options.mlflow else None
    while options.wait and folder.exists() and may_be_open(folder):
        if live is not None:
            live.look()
        time.sleep(LOOK_SECONDS)
    run = read_run(folder)
    check_names(wanted, run)
    said = _to_otlp(options, run, wanted) if live is None else live.finish(run)
    print(said, file=sys.stderr)
    if run.ending is None:
        print("the run is still being recorded: send it again when it is over", file=sys.stderr)


def _target(options: argparse.Namespace, uri: str) -> Target:
    from cellmeter.export.mlflow import Target

    experiment = options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
    return Target(uri, experiment, options.mlflow_run)


class Live:
    """Sends a run to MLflow while it is recorded, by whole intervals, and the rest when it is over.

    ``look`` is called often, reads what has come since it last sent, and does so the more seldom the longer that takes.
    """

    def __init__(self, folder: Path, target: Target, wanted: Choice) -> None:
        from cellmeter.export.mlflow import Stretch

        self._folder = folder
        self._target = target
        self._wanted = wanted
        self._stretch = Stretch()
        self._sent: Sent | None = None
        self._read_at = monotonic()
        self._due = self._read_at + LIVE_SECONDS
        self._told = ""

    def look(self) -> None:
        """Sends what is new, if it is time to. What fails is said once, and tried again."""
        started = monotonic()
        if started < self._due:
            return
        try:
            self._send(started)
        except CellmeterError as error:
            if str(error) != self._told:
                self._told = str(error)
                print(f"cellmeter: while it is recorded: {error}", file=sys.stderr)
        ended = monotonic()
        self._due = ended + max(LIVE_SECONDS, REST * (ended - started))

    def _send(self, now: float) -> None:
        from cellmeter.export import mlflow

        newest = int(MAX_RATE_HZ * (now - self._read_at + SLACK_SECONDS)) if self._sent else None
        run = read_run(self._folder, newest)
        until = mlflow.whole_until(run, self._wanted)
        if until <= self._stretch.since:
            return
        part = replace(self._stretch, until=until)
        self._sent = mlflow.send_points(run, self._target, self._wanted, part).after(self._sent)
        self._stretch.since, self._read_at = until, now

    def finish(self, run: Run) -> str:
        """Sends the rest and the report of a run that is over; returns what has arrived, in words."""
        from cellmeter.export import mlflow
        from cellmeter.rules import judge

        sent = mlflow.send(run, judge(run), self._target, self._wanted, self._stretch).after(self._sent)
        return f"sent {sent.points} points of {len(sent.keys)} metrics to MLflow run {sent.run_id}"


def _to_otlp(options: argparse.Namespace, run: Run, wanted: Choice) -> str:
    from cellmeter.export import otlp
    from cellmeter.rules import judge

    sent = otlp.send(run, judge(run), options.otlp, wanted)
    return f"sent {sent.points} points and {sent.spans} spans to {options.otlp}"


def can_send_to_mlflow() -> None:
    """Raises MissingExtra or BadUsage where :func:`send_along` would only fail later."""
    if find_spec("mlflow") is None:
        raise MissingExtra("mlflow-skinny", "mlflow", "start(mlflow=True)")
    if not _tracking_uri():
        raise BadUsage("start(mlflow=True): name the server by MLFLOW_TRACKING_URI or mlflow.set_tracking_uri")


def send_along(folder: Path) -> None:
    """From a process of its own, which outlives the kernel: the run goes to MLflow, while it is recorded and when that is over.

    Into the MLflow run that is active now, else a new one. What becomes of it stands in ``mlflow.log`` in the run folder.
    """
    if (folder / LOG).exists():  # asked for before
        return
    arguments = ["export", str(folder), "--mlflow", "--wait"]
    if (uri := _tracking_uri()) != os.environ.get("MLFLOW_TRACKING_URI"):
        arguments += ["--tracking-uri", uri]
    mlflow = sys.modules.get("mlflow")
    active = mlflow.active_run() if mlflow is not None else None
    if active is not None:
        arguments += ["--mlflow-run", active.info.run_id]
    detached.start("cellmeter.cli", arguments, ("numpy", "bokeh", "mlflow"), folder / LOG, channel=False)


def _tracking_uri() -> str:
    """The server the user's code has chosen; mlflow is not imported for it."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and mlflow.is_tracking_uri_set():
        return str(mlflow.get_tracking_uri())
    return os.environ.get("MLFLOW_TRACKING_URI", "")
