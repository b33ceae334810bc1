"""``cellmeter export --mlflow`` and ``--otlp``, ``cellmeter.start(mlflow=True)``: a run to a server and not to a file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cellmeter import detached
from cellmeter.errors import BadUsage, MissingExtra
from cellmeter.store import find_run, may_be_open, read_run, runs_home

if TYPE_CHECKING:
    from cellmeter.export.readings import Choice
    from cellmeter.run import Run

LOG = "mlflow.log"
LOOK_SECONDS = 0.5

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
        help="one value in so long (default: MLflow 1 s, longer from 1000 s on; OTLP every sample)",
    )
    both.add_argument("--wait", action="store_true", help="until the recording is over, if it goes on")


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
    while options.wait and folder.exists() and may_be_open(folder):
        time.sleep(LOOK_SECONDS)
    run = read_run(folder)
    check_names(wanted, run)
    said = _to_mlflow(options, run, wanted, uri) if uri and options.mlflow else _to_otlp(options, run, wanted)
    print(said, file=sys.stderr)
    if run.ending is None:
        print("the run is still being recorded: send it again when it is over", file=sys.stderr)


def _to_mlflow(options: argparse.Namespace, run: Run, wanted: Choice, uri: str) -> str:
    from cellmeter.export import mlflow
    from cellmeter.rules import judge

    experiment = options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
    sent = mlflow.send(run, judge(run), mlflow.Target(uri, experiment, options.mlflow_run), wanted)
    return f"sent {sent.points} points of {sent.metrics} metrics to MLflow run {sent.run_id}"


def _to_otlp(options: argparse.Namespace, run: Run, wanted: Choice) -> str:
    from cellmeter.export import otlp
    from cellmeter.rules import judge

    sent = otlp.send(run, judge(run), options.otlp, wanted)
    return f"sent {sent.points} points and {sent.spans} spans to {options.otlp}"


def can_send_to_mlflow() -> None:
    """Raises MissingExtra or BadUsage where :func:`send_when_over` would only fail later."""
    if find_spec("mlflow") is None:
        raise MissingExtra("mlflow-skinny", "mlflow", "start(mlflow=True)")
    if not _tracking_uri():
        raise BadUsage("start(mlflow=True): name the server by MLFLOW_TRACKING_URI or mlflow.set_tracking_uri")


def send_when_over(folder: Path) -> None:
    """From a process of its own, which outlives the kernel: once the recording is over, the run goes to MLflow.

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
