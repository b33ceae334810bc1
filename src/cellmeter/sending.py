"""``cellmeter export --mlflow`` and ``--otlp``: a run to a server and not to a file."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from cellmeter.errors import BadUsage

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmeter.export.readings import Choice
    from cellmeter.run import Run

_FILES_ONLY = ("output", "per_cell", "jsonl", "cells", "since")
_MLFLOW_ONLY = ("tracking_uri", "experiment", "mlflow_run")
_SERVERS_ONLY = (*_MLFLOW_ONLY, "metrics", "interval")


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
        "--metrics", metavar="PATTERNS", help="which, by cellmeter's names, as in 'gpu.*,process.memory.rss'"
    )
    both.add_argument(
        "--interval",
        type=float,
        metavar="SECONDS",
        help="one value in so long (default: MLflow 1 s, longer from 1000 s on; OTLP every sample)",
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


def send(options: argparse.Namespace, open_run: Callable[[], Run]) -> None:
    """Sends the run and says on stderr what has arrived. Raises CellmeterError."""
    from cellmeter.export.readings import choice

    wanted = choice(options.metrics, options.interval)
    (_to_mlflow if options.mlflow else _to_otlp)(options, wanted, open_run)


def _to_mlflow(options: argparse.Namespace, wanted: Choice, open_run: Callable[[], Run]) -> None:
    from cellmeter.export import mlflow
    from cellmeter.rules import judge

    uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise BadUsage("export --mlflow: name the server by --tracking-uri or MLFLOW_TRACKING_URI")
    experiment = options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
    run = open_run()
    sent = mlflow.send(run, judge(run), mlflow.Target(uri, experiment, options.mlflow_run), wanted)
    print(f"sent {sent.points} points of {sent.metrics} metrics to MLflow run {sent.run_id}", file=sys.stderr)
    _tell_of_the_rest(run)


def _to_otlp(options: argparse.Namespace, wanted: Choice, open_run: Callable[[], Run]) -> None:
    from cellmeter.export import otlp
    from cellmeter.rules import judge

    run = open_run()
    sent = otlp.send(run, judge(run), options.otlp, wanted)
    print(f"sent {sent.points} points and {sent.spans} spans to {options.otlp}", file=sys.stderr)
    _tell_of_the_rest(run)


def _tell_of_the_rest(run: Run) -> None:
    if run.ending is None:
        print("the run is still being recorded: send it again when it is over", file=sys.stderr)
