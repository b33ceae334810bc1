"""``cellmeter serve``, ``%monitor serve`` and ``cellmeter prometheus-config``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from cellmeter import detached
from cellmeter.clock import monotonic
from cellmeter.errors import BadUsage, MissingExtra
from cellmeter.home import find_run, runs_home

PORT = 9767
START_SECONDS = 15.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``cellmeter serve`` takes."""
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="this run alone, until it ends (default: all that this machine records)"
    )
    parser.add_argument(
        "--all", action="store_true", help="also runs that other machines and containers record into the same home"
    )
    add_serve_options(parser)


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """What ``cellmeter serve`` and ``%monitor serve`` have in common."""
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: any that is free")
    parser.add_argument(
        "--address", default="127.0.0.1", help="any but this machine's own needs a token or TLS (default: 127.0.0.1)"
    )
    parser.add_argument("--token-file", type=Path, metavar="PATH", help="ask for this bearer token")
    parser.add_argument("--certfile", type=Path, metavar="PATH", help="serve by TLS with this certificate")
    parser.add_argument("--keyfile", type=Path, metavar="PATH", help="the certificate's key")
    parser.add_argument("--dcgm-names", action="store_true", help="GPUs under the names of dcgm-exporter too")


def serve(options: argparse.Namespace) -> int:
    """Serves until the run has ended, or the user interrupts. Raises BadUsage, RunNotFound and MissingExtra."""
    try:
        from cellmeter.prometheus.exposition import Exposition
        from cellmeter.prometheus.serving import Endpoint, open_server, read_token
        from cellmeter.prometheus.serving import serve as answer
    except ImportError as error:
        raise MissingExtra("prometheus_client", "prometheus", "serving metrics") from error
    home = runs_home()
    folder = find_run(options.run, home) if options.run is not None else None
    exposition = Exposition(home, folder, elsewhere=options.all, dcgm=options.dcgm_names)
    if folder is not None and not exposition.goes_on():
        raise BadUsage(f"{folder.name} is not being recorded: only what goes on is served")
    token = read_token(options.token_file) if options.token_file is not None else None
    endpoint = Endpoint(options.port, options.address, token, options.certfile, options.keyfile)
    server = open_server(exposition, endpoint)
    print(f"cellmeter: serving {server.url}", file=sys.stderr, flush=True)
    answer(server, ended=lambda: folder is not None and not exposition.goes_on())
    return 0


def serve_beside(folder: Path, options: argparse.Namespace) -> str:
    """Serves one run from a process of its own, which ends with the run; gives back what that says of itself.

    In the kernel a scrape would have to wait for a cell that holds the GIL. Raises BadUsage.
    """
    arguments = ["serve", str(folder), "--port", str(options.port), "--address", options.address]
    for name in ("token_file", "certfile", "keyfile"):
        if (path := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(path.expanduser().absolute())]
    if options.dcgm_names:
        arguments.append("--dcgm-names")
    with tempfile.TemporaryDirectory(prefix="cellmeter-") as place:
        log = Path(place) / "said"
        detached.start("cellmeter.cli", arguments, ("numpy", "prometheus_client", "psutil"), log, channel=False)
        until = monotonic() + START_SECONDS
        while not (said := log.read_text()).endswith("\n"):
            if monotonic() > until:
                raise BadUsage("%monitor serve: the endpoint has not come up: try `cellmeter serve` in a terminal")
            time.sleep(0.02)
    line = said.splitlines()[-1]
    if "serving" not in line:
        raise BadUsage(line.removeprefix("cellmeter: "))
    return line


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """What ``cellmeter prometheus-config`` takes."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the files go")
    parser.add_argument("--target", default=f"localhost:{PORT}", help=f"where it is served (default: localhost:{PORT})")
    parser.add_argument("--alertmanager", default="localhost:9093", help="default: localhost:9093")
    parser.add_argument(
        "--webhook", default="http://localhost:5001/", metavar="URL", help="where the Alertmanager sends alerts"
    )
    for option, metavar, text in (
        ("--latency", "SPAN", "alert if its 95th percentile is above 1 s"),
        ("--errors", "SPAN", "alert if more than 1 %% of it fail"),
        ("--pipeline", "AMOUNT", "alert if this amount of cellmeter.step() comes to a standstill"),
    ):
        parser.add_argument(option, metavar=metavar, action="append", default=[], help=f"{text}; may be repeated")


def write_config(options: argparse.Namespace) -> int:
    """Writes the files. Raises BadUsage."""
    from cellmeter.prometheus.config import Setup, write

    setup = Setup(
        options.target, options.alertmanager, options.webhook, options.latency, options.errors, options.pipeline
    )
    for path in write(setup, options.folder):
        print(f"wrote {path}", file=sys.stderr)
    return 0
