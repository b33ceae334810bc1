"""``%load_ext cellmeter`` and the ``%monitor`` magics: the thin layer between IPython and the recording."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class

from cellmeter import own, remote, script, sending, strip
from cellmeter.alerts import Budget, parse_budget
from cellmeter.errors import BadUsage, CellmeterError, RecorderUnavailable
from cellmeter.lookout import Callback, Lookout
from cellmeter.prometheus.commands import add_serve_options, serve_beside
from cellmeter.prometheus.reading import READER_SECONDS, add_start_options, asked_for, attach, probe
from cellmeter.recording import OpenCell, Recording
from cellmeter.settings import checked_rate, load_settings, missing_settings
from cellmeter.tagging import Begun, Finished, Tagger

if TYPE_CHECKING:
    from cellmeter.dock import Dock
    from cellmeter.live import Panel
    from cellmeter.metrics import Group
    from cellmeter.prometheus.source import Source
    from cellmeter.run import Run

READY_SECONDS = 5.0
PANEL_SECONDS = 0.5  # the longest a cell waits for the recorder to get ready, for the sake of its panel
MOST_OPTIONS = 2000  # characters of a %%monitor line
GROUPS = ("cpu", "memory", "gpu", "io", "net", "power")
_NAME = "MonitorMagics"
_GREETING = "%%monitor in a cell's first line shows it live, %monitor report tells what was found"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise BadUsage(f"{self.prog}: {message}; see %monitor?")

    def parse(self, text: str) -> argparse.Namespace:
        try:
            return self.parse_args(shlex.split(text))
        except ValueError as error:
            raise BadUsage(f"{self.prog}: {error}; see %monitor?") from None


def _cell_parser() -> _Parser:
    parser = _Parser(prog="%%monitor", add_help=False)
    parser.add_argument("label", nargs="*")
    parser.add_argument("--rate", type=float, metavar="HZ")
    parser.add_argument("--show", type=_groups, default=("cpu", "memory", "gpu"), metavar="GROUPS")
    parser.add_argument("--no-chart", action="store_true")
    return parser


def _line_parser() -> _Parser:
    parser = _Parser(prog="%monitor", add_help=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
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
    commands.add_parser("show", add_help=False).add_argument("cell", nargs="?", type=int)
    commands.add_parser("dock", add_help=False)
    compare = commands.add_parser("compare", add_help=False)
    compare.add_argument("a", metavar="BEFORE")
    compare.add_argument("b", metavar="AFTER", nargs="?")
    add_serve_options(commands.add_parser("serve", add_help=False))
    return parser


def _groups(text: str) -> tuple[Group, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"there is no group {name!r}; there are {', '.join(GROUPS)}")
    return names  # type: ignore[return-value]


@dataclass
class Monitored:
    """A cell that runs: its place in the recording, and its panel if it shows one."""

    recording: Recording
    cell: OpenCell
    title: str
    top: bool
    """Not run by another cell from within."""
    ours: bool
    """It asks us for something and does nothing else."""
    panel: Panel | None = None


class Session:
    """cellmeter in one shell: the recording there is, if any, and the panels of its cells. A failure here is one line."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.recording: Recording | None = None
        self.last_folder: Path | None = None
        self.auto = False
        """Whether a line is shown under each cell."""
        self.dock: Dock | None = None
        self.source: Source | None = None
        """The Prometheus that tells of other machines, as far as this session knows how to be let in."""
        self._tagger = Tagger(shell, self._begun, self._finished)
        self._told: set[str] = set()
        self.lookout = Lookout(self.tell)

    def attach(self, greet: bool) -> None:
        """Hooks into the shell and starts recording. ``greet``: says so, where somebody reads it."""
        self._tagger.attach()
        atexit.register(self._goodbye)
        self._guarded(self.start)
        told = self._guarded(self._tell_of_last_kernel)
        if greet and not told and self.recording is not None and _is_read(self.shell):
            print(f"cellmeter: recording at {self.recording.rate_hz:g} Hz; {_GREETING}")
        self._guarded(self._prepare_live)

    def detach(self) -> None:
        """Stops recording and leaves the shell as it was."""
        from cellmeter import live

        self._tagger.detach()
        atexit.unregister(self._goodbye)
        self._guarded(self.stop)
        self._guarded(lambda: live.forget(self.shell))

    def _tell_of_last_kernel(self) -> bool:
        """How the kernel before this one died, and in which cell; False if there is nothing to tell."""
        notebook = notebook_path(self.shell)
        if self.recording is None or notebook is None:
            return False
        from cellmeter.store import previous_run, read_run

        previous = previous_run(self.recording.folder, notebook)
        if previous is not None:
            from cellmeter.export.summary import last_kernel

            if line := last_kernel(read_run(previous, newest=50)):
                print(f"cellmeter: {line}")
                return True
        return False

    def _prepare_live(self) -> None:
        from cellmeter import live

        if self.recording is not None:
            live.prepare(self.shell)

    def start(self, rate_hz: float | None = None, budget: Budget | None = None) -> Recording:
        """Starts a run, or gives back the one there is; a budget holds for either. Raises CellmeterError."""
        if rate_hz is not None:
            checked_rate(rate_hz)
        if self.recording is not None and self.recording.recorder.alive():
            if budget is not None:
                self.lookout.set_budget(budget)
            return self.recording
        settings = load_settings()
        if (missing := missing_settings()) is not None:
            self.tell(f"{missing}: recording with the defaults")
        if rate_hz is not None:
            settings = replace(settings, rate_hz=checked_rate(rate_hz))
        self.recording = Recording.start(settings, notebook_path(self.shell))
        self.last_folder = self.recording.folder
        self._told.clear()
        self.lookout.budget = budget
        self.lookout.follow(self.recording)
        return self.recording

    def read_from(self, source: Source) -> None:
        """Other machines of this run are told of by a Prometheus server. Raises BadUsage and FetchFailed."""
        trouble = probe(source)
        if self.recording is not None:
            attach(self.recording.folder, source)
            self.source = source
        if trouble is not None:
            _say(trouble)

    def whole_run(self, folder: Path) -> Run:
        """The run as it is now, with what a Prometheus server has to tell of it. Raises RunUnreadable."""
        from cellmeter.store import read_run

        if not (folder / remote.FILE).exists():
            return read_run(folder)
        from cellmeter.prometheus.fetching import brought

        return brought(folder, self.source, READER_SECONDS, _say)

    def stop(self) -> Path | None:
        """Stops the run and gives back its folder; None if there was none."""
        recording, self.recording, self.auto = self.recording, None, False
        if recording is None:
            return None
        self.lookout.follow(None)
        recording.stop()
        self._guarded(self._finish_dock)
        return recording.folder

    def open_dock(self) -> Dock:
        """The panel of the whole run, in place of the one there is. Raises CellmeterError."""
        if self.recording is None:
            raise RecorderUnavailable("recording is off: %monitor start")
        if not self.recording.recorder.ready(READY_SECONDS):
            raise RecorderUnavailable(self.recording.trouble() or "the recorder did not get ready")
        from cellmeter.dock import Dock

        before, self.dock = self.dock, None
        if before is not None:
            before.abandon()
        self.dock = Dock.show(self.shell, self.recording.folder)
        return self.dock

    def _finish_dock(self) -> None:
        dock, self.dock = self.dock, None
        if dock is not None:
            dock.finish(time.monotonic_ns())

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """The user's cell is sacred: whatever fails here is said in one line and goes no further."""
        try:
            return action()
        except CellmeterError as error:
            self.tell(str(error))
        except Exception as error:
            self.tell(f"{type(error).__name__}: {error}")
        return None

    def tell(self, message: str) -> None:
        """One line on stderr, once."""
        if message not in self._told:
            self._told.add(message)
            with contextlib.suppress(Exception):  # the user may have closed or replaced stderr
                kernel = _starting(self.shell)
                if kernel is not None:  # no cell would show it
                    kernel.log.warning("cellmeter: %s", message)
                else:
                    print(f"cellmeter: {message}", file=sys.stderr)

    def _begun(self, begun: Begun) -> Monitored | None:
        monitored: Monitored | None = self._guarded(lambda: self._begin(begun))
        return monitored

    def _begin(self, begun: Begun) -> Monitored | None:
        recording = self.recording
        options = self._cell_options(begun)
        if recording is None:
            if options is not None:
                raise RecorderUnavailable("recording is off, so this cell is not measured: %monitor start")
            return None
        label = " ".join(options.label) if options is not None else ""
        cell = recording.next_cell()
        title = label or (f"In [{begun.execution_count}]" if begun.execution_count else f"cell #{cell.seq}")
        monitored = Monitored(recording, cell, title, top=begun.parent is None, ours=_is_ours(begun.source))
        if options is not None:  # before the start edge: its time is not the cell's
            monitored.panel = self._guarded(lambda: self._open_panel(recording, monitored, options, begun.cell_id))
        try:
            recording.cell_started(
                begun.source,
                cell,
                cell_id=begun.cell_id,
                label=label or None,
                parent=begun.parent.cell.seq if begun.parent is not None else None,
                execution_count=begun.execution_count,
                rate_hz=options.rate if options is not None else None,
            )
        except RecorderUnavailable:
            self._give_up(recording)
        self.lookout.cell_began(cell.seq)
        return monitored

    def _cell_options(self, begun: Begun) -> argparse.Namespace | None:
        """What ``%%monitor`` asks for; a mistake in it is told, and the cell is measured with the defaults."""
        if begun.options is None:
            return None
        try:
            if len(begun.options) > MOST_OPTIONS:
                raise BadUsage(f"%%monitor: its line has more than {MOST_OPTIONS} characters")
            options = _cell_parser().parse(begun.options)
            if options.rate is not None:
                checked_rate(options.rate)
            return options
        except BadUsage as error:
            self.tell(f"{error} (the cell runs, and is measured with the defaults)")
            return _cell_parser().parse("")

    def _open_panel(
        self, recording: Recording, monitored: Monitored, options: argparse.Namespace, cell_id: str | None
    ) -> Panel:
        from cellmeter.live import Panel

        if not recording.recorder.ready(PANEL_SECONDS):
            raise RecorderUnavailable(recording.trouble() or "the recorder is not ready yet, so there is no live panel")
        seq, chart = monitored.cell.seq, not options.no_chart
        return Panel.open(
            self.shell, recording.folder, seq, monitored.title, options.show, chart=chart, cell_id=cell_id
        )

    def _finished(self, monitored: Monitored | None, finished: Finished) -> None:
        if monitored is not None:
            seq = monitored.cell.seq
            try:
                self.lookout.cell_over(seq, finished.status)
            except KeyboardInterrupt:  # the budget's, too late for the cell
                self.lookout.cell_over(seq, finished.status)
            self._guarded(lambda: self._finish(monitored, finished))
            self._guarded(lambda: self.lookout.cell_ended(seq))

    def _finish(self, monitored: Monitored, finished: Finished) -> None:
        ended_ns = time.monotonic_ns()
        if monitored.recording is self.recording:  # else the cell itself has stopped it
            try:
                ended_ns = self.recording.cell_ended(monitored.cell, finished.status, finished.execution_count)
            except RecorderUnavailable:
                self._give_up(self.recording)
        if monitored.panel is not None:
            monitored.panel.close(monitored.title, finished.status, monitored.cell.started_ns, ended_ns)
        elif self.auto and monitored.top and not monitored.ours and monitored.recording is self.recording:
            strip.show(monitored.recording.folder, monitored.cell.edges)
        if self.recording is not None and (trouble := self.recording.trouble()):
            self.tell(trouble)

    def _give_up(self, recording: Recording) -> None:
        self.recording = None
        recording.recorder.close()
        trouble = recording.trouble() or "the recorder has died"
        self._guarded(self._finish_dock)
        self.tell(f"{trouble}; recording is off, what there is lies in {recording.folder}. %monitor start starts anew")

    def _goodbye(self) -> None:
        """At an orderly exit: tells the recorder whether the user restarts or ends the kernel."""
        recording = self.recording
        if recording is None:
            return
        message = getattr(getattr(self.shell, "kernel", None), "_shutdown_message", None) or {}
        how = "restart" if (message.get("content") or {}).get("restart") else "exit"
        own.flush()
        try:
            recording.say({"event": "goodbye", "t": time.monotonic_ns(), "how": how})
        except RecorderUnavailable:
            return


def _say(line: str) -> None:
    """One line on stderr, each time: somebody has asked for what it is about."""
    print(f"cellmeter: {line}", file=sys.stderr)


def _is_ours(source: str) -> bool:
    """Whether a cell has nothing but lines of ``%monitor`` and comments."""
    lines = [line for line in map(str.strip, source.splitlines()) if line and not line.startswith("#")]
    return bool(lines) and all(re.match(r"%monitor(\s|$)", line) for line in lines)


def _is_read(shell: InteractiveShell) -> bool:
    """Whether somebody sits before it: those who run notebooks without a browser cannot be asked for input."""
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", True))


def _starting(shell: InteractiveShell) -> Any:
    """The kernel, while it is only being set up (``--ext cellmeter``); None in a cell and in a terminal."""
    return None if getattr(shell, "parent_header", None) else getattr(shell, "kernel", None)


def notebook_path(shell: InteractiveShell | None) -> str | None:
    """The notebook's path where the front end tells it: Jupyter by JPY_SESSION_NAME, VS Code by a variable."""
    name = os.environ.get("JPY_SESSION_NAME")
    if name is None and shell is not None:
        name = shell.user_ns.get("__vsc_ipynb_file__")
    return str(name) if name else None


@magics_class
class MonitorMagics(Magics):
    """The magics; what they do is in the session."""

    def __init__(self, shell: InteractiveShell, session: Session) -> None:
        super().__init__(shell)
        self.session = session

    @line_cell_magic
    def monitor(self, line: str, cell: str | None = None) -> Any:
        """Measure cells: CPU, memory and GPU, live and afterwards.

        Every cell is recorded from ``%load_ext cellmeter`` on. In a cell's first line::

            %%monitor [LABEL] [--rate HZ] [--show cpu,memory,gpu,io,net,power] [--no-chart]

        shows live charts under it while it runs, and a picture of them afterwards; with --no-chart a line of text
        afterwards. On a line of its own::

            %monitor                     what is recorded, at which rate, what is unavailable and why, and what it costs
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
            %monitor dock                the whole run live, its cells as bands, beside the notebook where the package
                                         sidecar is installed, else under this cell
            %monitor compare A [B]       two runs side by side, by cell; this one without B
            %monitor serve [--port N] [--dcgm-names]
                                         let a Prometheus server ask what this kernel does, as `cellmeter serve` does

        Recordings are kept: see ``cellmeter runs`` on a command line, or ``cellmeter.open_run()``.
        """
        if cell is not None:  # only when a program calls the magic: typed ones never get here (see tagging)
            result = self.session.shell.run_cell(  # type: ignore[no-untyped-call]
                f"%%monitor {line}\n{cell}", store_history=False
            )
            return result.result
        try:
            self._run(_line_parser().parse(line))
        except CellmeterError as error:
            raise UsageError(str(error)) from None
        return None

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
            each = ", with a line under each cell" if options.auto else ""
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
        if recording is not None and not recording.recorder.ready(READY_SECONDS):
            raise RecorderUnavailable(recording.trouble() or "the recorder did not get ready")
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
            print(f"cellmeter: alert {alert.text}" + (f": {blind}" if blind else ""))
        else:
            print("\n".join(lookout.status()) or "no alerts")

    def _cells(self, options: argparse.Namespace) -> None:
        from cellmeter.export import cells_table
        from cellmeter.store import read_run

        print(cells_table(read_run(self._run_folder())))

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
        from IPython.display import publish_display_data

        publish_display_data(
            {  # type: ignore[no-untyped-call]
                "text/plain": export.render(run, "text"),
                "text/html": export.inline_html(run),
            }
        )

    def _dock(self, options: argparse.Namespace) -> None:
        self.session.open_dock()

    def _show(self, options: argparse.Namespace) -> None:
        from cellmeter import still

        for run in self._this_and_the_last_run():
            cells = [c for c in run.cells if c.status != "running" and options.cell in (None, c.execution_count)]
            if cells:
                still.show_cell(run, cells[-1])
                return
        wanted = (
            "no cell has ended yet"
            if options.cell is None
            else f"In [{options.cell}] is not in this run, nor in the one before"
        )
        raise BadUsage(f"{wanted}; %monitor cells lists what there is")

    def _this_and_the_last_run(self) -> Iterator[Run]:
        """The run of this kernel, then that of the notebook's kernel before, which may have died."""
        from cellmeter.store import previous_run, read_run

        folder, notebook = self._run_folder(), notebook_path(self.session.shell)
        yield read_run(folder)
        if notebook is not None and (previous := previous_run(folder, notebook)) is not None:
            yield read_run(previous)

    def _compare(self, options: argparse.Namespace) -> None:
        from cellmeter import export
        from cellmeter.store import find_run, read_run, runs_home

        before = find_run(options.a, runs_home())
        after = find_run(options.b, runs_home()) if options.b else self._run_folder()
        print(export.render_comparison(read_run(before), read_run(after), "text"), end="")

    def _serve(self, options: argparse.Namespace) -> None:
        print(serve_beside(self._run_folder(), options))


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext cellmeter``: recording starts. What goes wrong is one line; it never raises."""
    _load(shell, greet=True)


def _load(shell: InteractiveShell, greet: bool = False) -> Session:
    if _NAME not in shell.magics_manager.registry:
        magics = MonitorMagics(shell, Session(shell))
        shell.register_magics(magics)
        magics.session.attach(greet)
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
    ``mlflow``: when the recording is over, a process of its own sends it to the MLflow server, into the run that is active now.
    ``prometheus``, ``match``: a Prometheus server's address and a selector of labels, as in ``'{instance="node7:9400"}'``: what
    it tells of GPUs and machines elsewhere is joined to this run when it is over.
    Raises BadUsage, FetchFailed, MissingExtra and RecorderUnavailable.
    """
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
                _say(trouble)
    else:
        session = _load(shell)
        recording = session.start(rate_hz, budget)
        if source is not None:
            session.read_from(source)
    if mlflow and recording is not None:
        sending.send_when_over(recording.folder)


def stop() -> None:
    """Stops what :func:`start` started; does nothing if nothing is recorded."""
    shell = get_ipython()
    if shell is not None and _NAME in shell.magics_manager.registry:
        shell.magics_manager.registry[_NAME].session.stop()
    script.stop()
