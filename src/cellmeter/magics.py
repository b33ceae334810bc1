"""``%load_ext cellmeter`` and the ``%monitor`` magics: the thin layer between IPython and the session."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class

from cellmeter import script, sending
from cellmeter.alerts import parse_budget
from cellmeter.errors import BadUsage, CellmeterError, RecorderUnavailable
from cellmeter.lookout import Callback, unit_note
from cellmeter.prometheus.commands import add_serve_options, serve_beside
from cellmeter.prometheus.reading import add_start_options, asked_for, attach, probe
from cellmeter.session import READY_SECONDS, MagicParser, Session, notebook_path, say
from cellmeter.settings import checked_rate

if TYPE_CHECKING:
    from cellmeter.run import Run

CATCH_UP_SECONDS = 2.0  # the longest that what is shown waits for a recorder that gets no CPU
_NAME = "MonitorMagics"
_COMMANDS = {
    "start": "start recording: [--rate HZ] [--auto] [--max-memory 0.9]",
    "stop": "stop it",
    "cells": "a table of the cells run so far",
    "report": "findings and what to do, or with a PATH as a file",
    "show": "draw a recorded cell again, by its number; with FILE.png as a picture",
    "dock": "the whole run, live",
    "compare": "two runs side by side",
    "alert": 'say when that holds: "gpu.utilization < 30 for 60s"',
    "serve": "let a Prometheus server ask",
}
_COMMANDS_TEXT = "\n".join(
    [
        "  %monitor          what is recorded, and what that costs",
        *(f"  %monitor {name:<8} {what}" for name, what in _COMMANDS.items()),
        "  %%monitor         in a cell's first line: live charts under it",
        "  %monitor?         tells more",
    ]
)


def _line_parser() -> MagicParser:
    parser = MagicParser(prog="%monitor", add_help=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=MagicParser)
    start = commands.add_parser("start", add_help=False)
    start.add_argument("--rate", type=float, metavar="HZ")
    start.add_argument("--auto", action="store_true")
    start.add_argument("--max-memory", metavar="BUDGET")
    start.add_argument("--interrupt", action="store_true")
    add_start_options(start)
    alert = commands.add_parser("alert", add_help=False)
    alert.add_argument("expression", nargs="*")
    alert.add_argument("--remove", type=int, metavar="N")
    alert.add_argument("--metrics", action="store_true")
    commands.add_parser("stop", add_help=False)
    commands.add_parser("cells", add_help=False)
    commands.add_parser("report", add_help=False).add_argument("path", nargs="?")
    commands.add_parser("show", add_help=False).add_argument("what", nargs="*", metavar="[N] [FILE.png]")
    commands.add_parser("dock", add_help=False)
    compare = commands.add_parser("compare", add_help=False)
    compare.add_argument("a", metavar="BEFORE")
    compare.add_argument("b", metavar="AFTER", nargs="?")
    add_serve_options(commands.add_parser("serve", add_help=False))
    return parser


@magics_class
class MonitorMagics(Magics):
    """The magics; what they do is in the session."""

    def __init__(self, shell: InteractiveShell, session: Session) -> None:
        super().__init__(shell)
        self.session = session

    @line_cell_magic
    def monitor(self, line: str, cell: str | None = None) -> None:
        """Measure cells: CPU, memory and GPU, live and afterwards.

        Every cell is recorded from ``%load_ext cellmeter`` on. In a cell's first line::

            %%monitor [LABEL] [--rate HZ] [--show cpu,memory,gpu,io,net,power] [--no-chart]

        shows live charts under it while it runs, and a picture of them afterwards; with --no-chart a line of text
        afterwards. On a line of its own::

            %monitor                     what is recorded, at which rate, what is unavailable and why, and what it costs
            %monitor help                what there is, in a few lines
            %monitor start [--rate HZ]   start a new recording
            %monitor start --auto        the same, or go on, with a line of figures under each cell of a second or more,
                                         or with a memory spike; %monitor start without --auto takes the line away again
            %monitor start --max-memory 0.9 [--interrupt]
                                         warn when a cell goes beyond that share of the memory limit, or bytes
                                         (12GiB) of its own; with --interrupt the cell is interrupted, and the
                                         kernel and its variables live on
            %monitor start --prometheus URL --match '{instance="node7:9400"}'
                                         GPUs and machines elsewhere, as a Prometheus server tells of them when the run
                                         is over or a report is asked for: coarse, a reading every 15 s or so
            %monitor alert "gpu.utilization < 30 for 60s"
                                         a line under the cell when that has held so long; METRIC[:SUBJECT], < or >
            %monitor alert [--remove N]  list the alerts, remove one
            %monitor alert --metrics     what can be watched
            %monitor stop                stop it
            %monitor cells               a table of the cells run so far
            %monitor report              findings: what was underused, what spiked, and what to do
            %monitor report PATH         the same as a file: .html .json .md .txt .csv .parquet
            %monitor show [N]            draw the recorded cell In [N] again, also of a kernel that died; the last one without N
            %monitor show [N] FILE.png   the same as a picture for other documents
            %monitor dock                the whole run live, its cells as bands, beside the notebook where the package
                                         sidecar is installed, else under this cell
            %monitor compare A [B]       two runs side by side, by cell; this one without B
            %monitor serve [--port N] [--dcgm-names]
                                         let a Prometheus server ask what this kernel does, as `cellmeter serve` does

        Unasked, and once a recording, a line under the cell says when 90 % of the memory limit is taken.
        Recordings are kept: see ``cellmeter runs`` on a command line, or ``cellmeter.open_run()``.
        """
        if cell is not None:  # only when a program calls the magic: typed ones never get here (see tagging)
            self.session.shell.run_cell(  # type: ignore[no-untyped-call]
                f"%%monitor {line}\n{cell}", store_history=False
            )
            return  # it has shown its value
        try:
            asked = next(iter(line.split()), "")
            if asked in ("help", "-h", "--help"):
                print(_COMMANDS_TEXT)
            elif asked and not asked.startswith("-") and asked not in _COMMANDS:
                raise BadUsage(f"there is no %monitor {asked:.40}\n{_COMMANDS_TEXT}")
            else:
                self._run(_line_parser().parse(line))
        except CellmeterError as error:
            raise UsageError(str(error)) from None

    def _run(self, options: argparse.Namespace) -> None:
        if options.command is None:
            print(self._status())
        elif options.command == "start":
            if options.interrupt and options.max_memory is None:
                raise BadUsage("%monitor start: --interrupt needs --max-memory")
            budget = options.max_memory and parse_budget(options.max_memory, options.interrupt)
            source = asked_for(options.prometheus, options.match)
            recording = self.session.start(options.rate, budget)
            if source is not None:
                self.session.read_from(source)
            self.session.auto = options.auto
            each = ", with a line under each cell of a second or more" if options.auto else ""
            print(f"cellmeter: recording {recording.folder.name} at {recording.rate_hz:g} Hz{each}")
            if (line := budget and self.session.lookout.budget_line()) is not None:
                print(f"cellmeter: {line}")
        elif options.command == "stop":
            folder = self.session.stop()
            print(f"cellmeter: stopped {folder.name}" if folder else "cellmeter: nothing was being recorded")
        else:
            getattr(self, f"_{options.command}")(options)

    def _run_folder(self) -> Path:
        """The folder of this shell's run, the last one if it has been stopped. Raises RecorderUnavailable."""
        recording = self.session.recording
        if recording is not None:
            if not recording.recorder.ready(READY_SECONDS):
                raise RecorderUnavailable(recording.trouble() or "the recorder did not get ready")
            recording.catch_up(CATCH_UP_SECONDS)
        if self.session.last_folder is None:
            raise RecorderUnavailable("nothing has been recorded yet: %monitor start")
        return self.session.last_folder

    def _status(self) -> str:
        from cellmeter.export import status_text
        from cellmeter.store import read_run

        if self.session.last_folder is None:
            return "cellmeter: recording is off: %monitor start"
        watched = [f"  Watched for          {line}" for line in self.session.lookout.status()]
        return "\n".join([status_text(read_run(self._run_folder())), *watched])

    def _alert(self, options: argparse.Namespace) -> None:
        lookout = self.session.lookout
        if options.remove is not None:
            print(f"cellmeter: removed {lookout.remove(options.remove).text}")
        elif options.metrics:
            print("\n".join(lookout.watchable()))
        elif options.expression:
            alert = lookout.add(" ".join(options.expression))
            blind = lookout.blind(alert)
            print(f"cellmeter: alert {alert.text}{unit_note(alert)}" + (f": {blind}" if blind else ""))
        else:
            print("\n".join(lookout.status()) or "no alerts")

    def _cells(self, options: argparse.Namespace) -> None:
        from cellmeter.export import cells_table, inline_cells
        from cellmeter.store import read_run

        run = read_run(self._run_folder())
        _publish(cells_table(run), inline_cells(run))

    def _report(self, options: argparse.Namespace) -> None:
        from cellmeter import export

        run = self.session.whole_run(self._run_folder())
        if options.path is not None:
            path = Path(options.path).expanduser()
            try:
                export.write(run, path)
            except OSError as error:
                raise BadUsage(f"{path} cannot be written: {error.strerror}") from None
            print(f"cellmeter: wrote {path}")
            return
        _publish(export.render(run, "text"), export.inline_html(run))

    def _dock(self, options: argparse.Namespace) -> None:
        self.session.open_dock()

    def _show(self, options: argparse.Namespace) -> None:
        from cellmeter import still
        from cellmeter.rules.observed import top_cells

        number, path = _number_and_picture(options.what)
        for run in self._this_and_the_last_run():
            ended = [cell for cell in top_cells(run) if cell.status != "running"]
            if number is None:  # one that only asked us is not what somebody wants to see
                chosen = [cell for cell in ended if not cell.ours]
            else:
                chosen = [cell for cell in ended if cell.execution_count == number]
            if chosen and path is not None:
                _write_picture(still.cell_png(run, chosen[-1]), path)
                return
            if chosen:
                still.show_cell(run, chosen[-1])
                return
        wanted = (
            "no cell has ended yet" if number is None else f"In [{number}] is not in this run, nor in the one before"
        )
        raise BadUsage(f"{wanted}; %monitor cells lists what there is")

    def _this_and_the_last_run(self) -> Iterator[Run]:
        """The run of this kernel, then that of the notebook's kernel before, which may have died."""
        from cellmeter.home import previous_run
        from cellmeter.store import read_run

        folder, notebook = self._run_folder(), notebook_path(self.session.shell)
        yield read_run(folder)
        if notebook is not None and (previous := previous_run(folder, notebook)) is not None:
            yield read_run(previous)

    def _compare(self, options: argparse.Namespace) -> None:
        from cellmeter import export
        from cellmeter.home import find_two, runs_home
        from cellmeter.store import read_run

        before, after = find_two(options.a, options.b, runs_home(), newest=self._run_folder())
        print(export.render_comparison(read_run(before), read_run(after), "text"), end="")

    def _serve(self, options: argparse.Namespace) -> None:
        print(serve_beside(self._run_folder(), options))


def _number_and_picture(what: list[str]) -> tuple[int | None, Path | None]:
    """Which cell to show, and the picture to write. Raises BadUsage."""
    numbers, files = [word for word in what if word.isdecimal()], [word for word in what if not word.isdecimal()]
    if len(numbers) > 1 or len(files) > 1:
        raise BadUsage("%monitor show: name one cell, by its number, and one FILE.png at the most")
    if files and not files[0].lower().endswith(".png"):
        raise BadUsage(f"%monitor show takes the number of a cell, and writes a FILE.png; {files[0]:.60} is neither")
    return int(numbers[0]) if numbers else None, Path(files[0]).expanduser() if files else None


def _write_picture(image: bytes, path: Path) -> None:
    try:
        path.write_bytes(image)
    except OSError as error:
        raise BadUsage(f"{path} cannot be written: {error.strerror}") from None
    print(f"cellmeter: wrote {path}")


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext cellmeter``: recording starts. What goes wrong is one line; it never raises."""
    _load(shell, greet=True)


def _load(shell: InteractiveShell, greet: bool = False, rate_hz: float | None = None) -> Session:
    """The shell's session; ``rate_hz``: at which it starts to record if it is a new one."""
    if _NAME not in shell.magics_manager.registry:
        magics = MonitorMagics(shell, Session(shell))
        shell.register_magics(magics)
        magics.session.attach(greet, rate_hz)
    session: Session = shell.magics_manager.registry[_NAME].session
    return session


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """``%unload_ext cellmeter``: recording stops, and the shell is as it was."""
    magics = shell.magics_manager.registry.pop(_NAME, None)
    if magics is None:
        return
    magics.session.detach()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("monitor", None)


def _publish(text: str, html: str) -> None:
    from IPython.display import publish_display_data

    publish_display_data({"text/plain": text, "text/html": html})  # type: ignore[no-untyped-call]


def alert(expression: str, callback: Callback | None = None) -> Callable[[], None]:
    """Watches cells for ``METRIC[:SUBJECT] < or > VALUE for DURATION``: ``"gpu.utilization < 30 for 60s"``.

    When that has held so long, a line comes out under the cell, ``callback`` is called with an
    :class:`~cellmeter.run.AlertFired` from a thread of its own, and the run keeps it. It is watched by the recorder, also while
    a cell holds the GIL; line and callback then come when it lets go. Call what is returned to remove the alert.
    In IPython it starts recording as :func:`start` does. Raises BadUsage with a caret under what is wrong.
    """
    shell = get_ipython()
    lookout = script.lookout
    if shell is not None:
        lookout = _load(shell).lookout
    added = lookout.add(expression, callback)
    return lambda: lookout.discard(added)


def start(
    rate_hz: float | None = None,
    max_memory: str | float | None = None,
    interrupt: bool = False,
    mlflow: bool = False,
    prometheus: str | None = None,
    match: str | None = None,
) -> None:
    """Starts recording: in IPython as ``%monitor start`` does, in a plain script for this process.

    ``rate_hz``: samples a second, 0.1 to 100. ``max_memory``: warn beyond that share of the memory limit (0.9), or beyond
    bytes of the process and its workers (``"12GiB"``); with ``interrupt`` as if somebody had pressed Ctrl-C as well.
    ``mlflow``: a process of its own sends the run to the MLflow server as it goes on, into the MLflow run that is active now.
    ``prometheus``, ``match``: a Prometheus server's address and a selector of labels, as in ``'{instance="node7:9400"}'``: what
    it tells of GPUs and machines elsewhere is joined to this run when it is over.
    Raises BadUsage, FetchFailed, MissingExtra and RecorderUnavailable.
    """
    if rate_hz is not None:
        checked_rate(rate_hz)
    if interrupt and max_memory is None:
        raise BadUsage("start: interrupt=True goes with max_memory")
    budget = None if max_memory is None else parse_budget(str(max_memory), interrupt)
    source = asked_for(prometheus, match)
    if mlflow:
        sending.can_send_to_mlflow()
    shell = get_ipython()
    if shell is None:
        recording = script.start(rate_hz, budget)
        if source is not None and recording is not None:
            trouble = probe(source)
            attach(recording.folder, source)
            if trouble is not None:
                say(trouble)
    else:
        session = _load(shell, rate_hz=rate_hz)
        recording = session.start(rate_hz, budget)
        if source is not None:
            session.read_from(source)
    if mlflow and recording is not None:
        sending.send_along(recording.folder)


def stop() -> None:
    """Stops what :func:`start` started; does nothing if nothing is recorded."""
    shell = get_ipython()
    if shell is not None and _NAME in shell.magics_manager.registry:
        shell.magics_manager.registry[_NAME].session.stop()
    script.stop()
