"""``--prometheus URL --match SELECTOR`` and ``cellmeter fetch``: what the user types, and when the server is asked."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

from cellmeter import detached
from cellmeter.clock import monotonic, wall
from cellmeter.errors import BadUsage, CellmeterError, FetchFailed
from cellmeter.home import find_run, may_be_open, runs_home
from cellmeter.prometheus.source import LOGIN, Source, source_of

LOG = "prometheus.log"
PROBE_SECONDS = 1.0  # the longest that starting waits for the server
READER_SECONDS = 10.0
FETCH_SECONDS = 600.0
LOOK_SECONDS = 1.0
RETRY_SECONDS = (5.0, 15.0, 40.0, 60.0)  # after a run, if the server does not answer; then readers ask it again


def asked_for(url: str | None, match: str | None) -> Source | None:
    """The source that two options name, None if they are not there. Raises BadUsage."""
    if url is None:
        if match is not None:
            raise BadUsage("--match goes with --prometheus URL")
        return None
    return source_of(url, match)


def probe(source: Source) -> str | None:
    """Asks the server what it has now, and waits a second at the most; what is wrong in a line, None if nothing is.

    Raises BadUsage where the server does not take the selector.
    """
    from cellmeter.prometheus.fetching import LOOKBACK_SECONDS, look

    found: list[int] = []
    problems: list[CellmeterError] = []

    def work() -> None:
        try:
            now = wall()
            found.append(len(look(source, now - LOOKBACK_SECONDS, now, monotonic() + PROBE_SECONDS)))
        except CellmeterError as error:
            problems.append(error)
        except Exception as error:  # it is asked again when the run is over
            problems.append(FetchFailed(f"{type(error).__name__}: {error}".splitlines()[0]))

    thread = threading.Thread(target=work, daemon=True, name="cellmeter-probe")
    thread.start()
    thread.join(PROBE_SECONDS)
    later = "it is asked again when the run is over"
    if not found and not problems:
        return f"{source.url} has not answered within {PROBE_SECONDS:g} s; {later}"
    if problems:
        if isinstance(problems[0], BadUsage):
            raise problems[0]
        return f"{problems[0]}; {later}"
    if not found[0]:
        return f"{source.url} knows now of no dcgm-exporter or node_exporter that {source.match:.80} matches; {later}"
    return None


def attach(folder: Path, source: Source) -> None:
    """Notes in a run folder what to ask when the run is over, and starts who will: a process that outlives the kernel.

    Raises FetchFailed where the folder cannot be written.
    """
    from cellmeter.prometheus.fetching import keep, kept_in

    if kept_in(folder).source == source and (folder / LOG).exists():
        return
    keep(folder, source)
    environ = {LOGIN: source.login} if source.login is not None else {}
    arguments = ["fetch", str(folder), "--wait"]
    detached.start("cellmeter.cli", arguments, ("numpy",), folder / LOG, channel=False, environ=environ)


def add_start_options(parser: argparse.ArgumentParser) -> None:
    """What ``%monitor start`` and ``cellmeter fetch`` have in common."""
    parser.add_argument("--prometheus", metavar="URL", help="a Prometheus server, as in http://prometheus:9090")
    parser.add_argument(
        "--match", metavar="SELECTOR", help="which machines: labels in braces, as in '{instance=\"node7:9400\"}'"
    )


def add_fetch_options(parser: argparse.ArgumentParser) -> None:
    """What ``cellmeter fetch`` takes."""
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run id, an id's unique prefix, or a path (default: the newest run)"
    )
    add_start_options(parser)
    parser.add_argument("--wait", action="store_true", help="until the recording is over, if it goes on")


def fetch_run(options: argparse.Namespace) -> int:
    """``cellmeter fetch``. Raises CellmeterError."""
    from cellmeter.prometheus.fetching import fetch

    source = asked_for(options.prometheus, options.match)
    folder = find_run(options.run, runs_home())
    if not options.wait:
        print(f"cellmeter: {fetch(folder, source, FETCH_SECONDS)}", file=sys.stderr)
        return 0
    while folder.exists() and may_be_open(folder):
        time.sleep(LOOK_SECONDS)
    for pause in (*RETRY_SECONDS, None):
        try:
            if folder.exists():
                print(f"cellmeter: {fetch(folder, source, FETCH_SECONDS)}", file=sys.stderr, flush=True)
            return 0
        except FetchFailed as problem:
            if pause is None:
                raise
            print(f"cellmeter: {problem}; once more in {pause:g} s", file=sys.stderr, flush=True)
        until = monotonic() + pause
        while monotonic() < until and folder.exists():
            time.sleep(LOOK_SECONDS)
    return 0
