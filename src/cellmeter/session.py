"""cellmeter in one shell: the recording there is, the panels of its cells, and what its user is told. A failure is one line."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from IPython.core.interactiveshell import InteractiveShell

from cellmeter import own, remote, strip
from cellmeter.alerts import Budget
from cellmeter.clock import monotonic_ns
from cellmeter.errors import BadUsage, CellmeterError, RecorderUnavailable
from cellmeter.lookout import Lookout
from cellmeter.prometheus.reading import READER_SECONDS, attach, probe
from cellmeter.recording import OpenCell, Recording
from cellmeter.run import is_ours
from cellmeter.settings import checked_rate, load_settings, missing_settings
from cellmeter.tagging import Begun, Finished, Tagger

if TYPE_CHECKING:
    from cellmeter.dock import Dock
    from cellmeter.live import Panel
    from cellmeter.metrics import Group
    from cellmeter.prometheus.source import Source
    from cellmeter.run import Run

READY_SECONDS = 5.0
PANEL_SECONDS = 2.0  # the longest a cell waits for its panel's recorder: opening the GPUs' driver takes a second
MOST_OPTIONS = 2000  # characters of a %%monitor line
GROUPS = ("cpu", "memory", "gpu", "io", "net", "power")
_GREETING = "%%monitor in a cell's first line shows it live, %monitor report tells what was found"


class MagicParser(argparse.ArgumentParser):
    """Says what is wrong instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raises BadUsage."""
        raise BadUsage(f"{self.prog}: {message}; see %monitor?")

    def parse(self, text: str) -> argparse.Namespace:
        """The options of a line. Raises BadUsage."""
        try:
            return self.parse_args(shlex.split(text))
        except ValueError as error:
            raise BadUsage(f"{self.prog}: {error}; see %monitor?") from None


def _cell_parser() -> MagicParser:
    parser = MagicParser(prog="%%monitor", add_help=False)
    parser.add_argument("label", nargs="*")
    parser.add_argument("--rate", type=float, metavar="HZ")
    parser.add_argument("--show", type=_groups, default=("cpu", "memory", "gpu"), metavar="GROUPS")
    parser.add_argument("--no-chart", action="store_true")
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
        self._patience = PANEL_SECONDS
        self.lookout = Lookout(self.tell, unasked=True)

    def attach(self, greet: bool, rate_hz: float | None = None) -> None:
        """Hooks into the shell and starts recording. ``greet``: says so, where somebody reads it."""
        self._tagger.attach()
        atexit.register(self._goodbye)
        self._guarded(lambda: self.start(rate_hz))
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
        from cellmeter.home import previous_run
        from cellmeter.store import read_run

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
        """Starts a run, or gives back the one there is; a budget holds for either. Raises CellmeterError.

        One that goes on keeps its rate, and says so where another is asked for. One whose folder is gone is stopped.
        """
        if rate_hz is not None:
            checked_rate(rate_hz)
        if self.recording is not None and self.recording.recorder.alive():
            if self.recording.folder.is_dir():
                if budget is not None:
                    self.lookout.set_budget(budget)
                if (kept := self.recording.keeps_rate(rate_hz)) is not None:
                    say(f"{kept}: %monitor stop first, or %%monitor --rate {rate_hz:g} for one cell")
                return self.recording
            self.stop()
        settings = load_settings()
        if (missing := missing_settings()) is not None:
            self.tell(f"{missing}: recording with the defaults")
        if rate_hz is not None:
            settings = replace(settings, rate_hz=rate_hz)
        self.recording = Recording.start(settings, notebook_path(self.shell))
        self.last_folder = self.recording.folder
        self._told.clear()
        self._patience = PANEL_SECONDS
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
            say(trouble)

    def whole_run(self, folder: Path) -> Run:
        """The run as it is now, with what a Prometheus server has to tell of it. Raises RunUnreadable."""
        from cellmeter.store import read_run

        if not (folder / remote.FILE).exists():
            return read_run(folder)
        from cellmeter.prometheus.fetching import brought

        return brought(folder, self.source, READER_SECONDS, say)

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
            dock.finish(monotonic_ns())

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
        monitored = Monitored(recording, cell, title, top=begun.parent is None, ours=is_ours(begun.source))
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

        if not recording.recorder.ready(self._patience):
            self._patience = 0.0  # a driver that hangs holds up one cell, not each
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
        ended_ns = monotonic_ns()
        if monitored.recording is self.recording:  # else the cell itself has stopped it
            try:
                ended_ns = self.recording.cell_ended(monitored.cell, *finished)
            except RecorderUnavailable:
                self._give_up(self.recording)
        if monitored.panel is not None:
            start = {"t": monitored.cell.started_ns, **monitored.cell.edges.get("cell_start", {})}
            end = {"t": ended_ns, "seq": monitored.cell.seq, **monitored.cell.edges.get("cell_end", {})}
            monitored.panel.close(monitored.title, finished.status, start, end)
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
            recording.say({"event": "goodbye", "t": monotonic_ns(), "how": how})
        except RecorderUnavailable:
            return


def say(line: str) -> None:
    """One line on stderr, each time: somebody has asked for what it is about."""
    print(f"cellmeter: {line}", file=sys.stderr)


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
