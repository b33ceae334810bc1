"""The kernel's side of alerts and the memory budget: tells the recorder what to watch for, and passes on what it saw.

The recorder judges, as it reads on while a cell holds the GIL, and writes what it saw to the run. While a cell runs, a thread
here follows that, prints a line under the cell, calls back, and interrupts the cell where a budget says so. There is no thread
without an alert or a budget, and none between cells, but for the one that says that memory is nearly full (``memory_watch``).

The interrupt comes from here and not from the recorder so that it can hit no other cell than the one meant: within one process
a lock tells for certain whether that cell is still running.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter.alerts import MOST_ALERTS, Alert, Budget, guards_of, message_of, parse, watchable, watches
from cellmeter.clock import monotonic
from cellmeter.errors import BadUsage, RecorderUnavailable, RunUnreadable
from cellmeter.memory_watch import MemoryWatch
from cellmeter.metrics import METRICS, SHARED_PAGES, Metric
from cellmeter.plugins import found
from cellmeter.run import AlertFired, CellStatus, Column
from cellmeter.store import Tail, read_header
from cellmeter.words import bytes_text, given_text, held_text

if TYPE_CHECKING:
    from pathlib import Path

    from cellmeter.recording import Recording

LOOK_SECONDS = 0.25
LOOK_FAST_SECONDS = 0.05  # where a cell is to be interrupted
ARRIVAL_SECONDS = 0.05  # a signal sent to oneself is there by then
CELL_END_SECONDS = 1.0
READY_SECONDS = 5.0
_UNIT_NAMES = {"By": "bytes", "By/s": "bytes/s", "{cpu}": "cores", "Cel": "°C", "1": ""}
_WHOSE = {"process": "the kernel and its workers", "cgroup": "its control group", "host": "the machine"}

Callback = Callable[[AlertFired], Any]


def unit_note(alert: Alert) -> str:
    """``, in cores``: the unit of a threshold that was typed without one."""
    unit = _UNIT_NAMES.get(alert.unit, alert.unit)
    return f", in {unit}" if unit and re.search(r"[0-9] for ", alert.text) else ""


class Gate:
    """Lets an interrupt through to a cell that runs on the main thread, and to nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seq: int | None = None
        self._sent = False

    def open(self, seq: int) -> None:
        """A cell begins. On another thread (a subshell) it cannot be interrupted."""
        if threading.current_thread() is threading.main_thread():
            self._seq, self._sent = seq, False

    def interrupt(self, seq: int) -> bool:
        """Interrupts a cell as the stop button does, from another thread; False if it has ended or cannot be."""
        main = threading.main_thread().ident
        with self._lock:
            if self._seq != seq or self._sent or main is None:
                return False
            self._sent = True
            signal.pthread_kill(main, signal.SIGINT)
            return True

    def close(self, status: CellStatus) -> None:
        """The cell has ended. An interrupt that came too late for it is taken here, so that it hits nothing else."""
        while self._seq is not None:
            try:
                with self._lock:
                    self._seq = None
            except KeyboardInterrupt:
                self._sent = False
        if self._sent and status != "interrupted":
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(ARRIVAL_SECONDS)
        self._sent = False


class Told(NamedTuple):
    """An alert and who wants to know."""

    alert: Alert
    callback: Callback | None


class Lookout:
    """The alerts and the budget of one session, over all its recordings.

    ``unasked``: it also says when memory is nearly full. Not in a script, which may fork and is not to have a thread for that.
    """

    def __init__(self, tell: Callable[[str], None], unasked: bool = False) -> None:
        self._tell = tell
        self._unasked = unasked
        self._memory: MemoryWatch | None = None
        self.alerts: list[Told] = []
        self.budget: Budget | None = None
        self._recording: Recording | None = None
        self._gate = Gate()
        self._running: list[int] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, text: str, callback: Callback | None = None) -> Alert:
        """One more alert; the same again takes the new callback. Raises BadUsage."""
        alert = parse(text, self._metrics(text))
        rest = [told for told in self.alerts if told.alert != alert]
        if len(rest) >= MOST_ALERTS:
            raise BadUsage(f"alert: there are {MOST_ALERTS} already: %monitor alert --remove N")
        self.alerts = [*rest, Told(alert, callback)]
        self._say()
        return alert

    def _metrics(self, text: str) -> Mapping[str, Metric]:
        """The catalogue, and what the plugin that an alert names measures: which is known once the recorder has opened it."""
        plugin = next(
            (point.name for point in found("cellmeter.sources") if text.strip().startswith(f"{point.name}.")), None
        )
        if plugin is None:
            return METRICS
        if self._recording is None:
            raise BadUsage(f"alert: what {plugin} measures is known once it is recorded: %monitor start")
        until = monotonic() + READY_SECONDS
        while not (metrics := _read_from(self._recording.folder, plugin)):
            if monotonic() > until:
                raise BadUsage(f"alert: the source {plugin} is not recorded: %monitor says why, or cellmeter doctor")
            time.sleep(LOOK_FAST_SECONDS)
        return {**METRICS, **metrics}

    def watchable(self) -> list[str]:
        """A line for each metric that can be watched: its name, its unit, what it means."""
        found = self._watchable()
        width = max((len(metric.name) for metric in found), default=0)
        return [f"{m.name:<{width}}  {_UNIT_NAMES.get(m.unit, m.unit):<7}  {m.meaning}" for m in found]

    def _watchable(self) -> list[Metric]:
        """Of a recording what it has, else of the catalogue."""
        header = self._header()
        if header is None:
            return watchable()
        own = {metric["name"]: Metric(**metric) for metric in header.get("metrics", ())}
        there = {column[0] for segment in header["segments"] for column in segment["columns"]}
        rates = {metric.rate for metric in (METRICS | own).values() if metric.name in there}
        return [metric for metric in watchable(METRICS | own) if metric.name in there | rates]

    def _header(self) -> dict[str, Any] | None:
        """What the recorder says of the run, its columns included; None as long as nobody knows."""
        if self._recording is None or not self._recording.recorder.ready(READY_SECONDS):
            return None
        until = monotonic() + READY_SECONDS
        try:
            while not (header := read_header(self._recording.folder))["segments"]:
                if monotonic() > until:
                    return None
                time.sleep(0.005)
        except RunUnreadable:
            return None
        return header

    def budget_line(self) -> str | None:
        """What the budget comes to in this recording and what becomes of a cell beyond it; None if there is none."""
        budget, header = self.budget, self._header()
        if budget is None:
            return None
        then = "interrupts a cell that goes beyond" if budget.interrupt else "warns of a cell that goes beyond"
        if header is None:
            return f"memory budget {budget.text}: {then} it"
        limit, source = header["limits"].get("memory_bytes", (0.0, ""))
        columns = [Column(*column) for segment in header["segments"] for column in segment["columns"]]
        guards = guards_of(budget, columns, limit, source, SHARED_PAGES in header.get("unavailable", {}))
        if not guards:
            return f"memory budget {budget.text} is not watched: its limit or the use is not known here"
        guard = guards[-1]
        if (
            guard.upper_bound and budget.interrupt
        ):  # of workers only "at most" is known: the kernel's own memory is certain
            then = "interrupts a cell for what the kernel itself has, warns of one that goes beyond"
        of = f"{given_text(guard.threshold, 'By')} in use by {_WHOSE[guard.subject]}"
        if budget.share is not None:
            of += f", {given_text(100 * budget.share, '%')} of {given_text(limit, 'By')} ({source})"
        return f"memory budget {budget.text}: {then} {of}"

    def blind(self, alert: Alert) -> str | None:
        """Why an alert cannot go off in the run as it is; None if it can, or nobody knows yet."""
        header = self._header()
        if self._recording is None or header is None:
            return None
        try:
            sampled = (self._recording.folder / header["segments"][0]["file"]).stat().st_size > 0
        except (LookupError, OSError):
            return None
        there = ((metric, subject) for segment in header["segments"] for metric, subject, _ in segment["columns"])
        if not sampled or any(watches(alert, *column) for column in there):
            return None
        named = alert.metric if alert.subject is None else f"{alert.metric}:{alert.subject}"
        reasons = header.get("unavailable", {})
        why = next((text for key, text in reasons.items() if key == named or key.startswith(f"{named}:")), None)
        return f"this run has no {named}, so it cannot go off" + (f" ({why})" if why else "")

    def status(self) -> list[str]:
        """A line for each alert, and one for the budget."""
        lines = [f"{number}  {told.alert.text}" for number, told in enumerate(self.alerts, 1)]
        if self.budget is not None:
            lines.append(self.budget_line() or "")
        return lines

    def remove(self, number: int) -> Alert:
        """Removes an alert by its place in the list, from 1. Raises BadUsage."""
        if not 1 <= number <= len(self.alerts):
            raise BadUsage(f"alert: there is no number {number}: %monitor alert lists them")
        removed = self.alerts[number - 1].alert
        self.discard(removed)
        return removed

    def discard(self, alert: Alert) -> None:
        """Removes an alert if it is there."""
        self.alerts = [told for told in self.alerts if told.alert != alert]
        self._say()

    def set_budget(self, budget: Budget | None) -> None:
        """From here on this memory budget."""
        self.budget = budget
        self._say()

    def follow(self, recording: Recording | None) -> None:
        """The recording to be watched from here on; None: none."""
        self._recording = recording
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        if recording is not None:
            self._memory = MemoryWatch(recording.folder) if self._unasked else None
            self._tail = Tail(recording.folder)
            if self.alerts or self.budget:
                self._say()

    def _say(self) -> None:
        if self._recording is not None:
            try:
                self._recording.say(message_of([told.alert for told in self.alerts], self.budget))
            except RecorderUnavailable as error:
                self._tell(str(error))
        if self._running:
            self._start()

    # ---- while a cell runs ----

    def cell_began(self, seq: int) -> None:
        """Follows what the recorder sees from here on."""
        self._running.append(seq)
        if len(self._running) == 1:
            self._gate.open(seq)
            if self._memory is not None:
                self._memory.cell_began()
        if self._recording is not None and (self.alerts or self.budget):
            self._start()

    def cell_over(self, seq: int, status: CellStatus) -> None:
        """From here on the cell is not interrupted. May be called again, when an interrupt has broken it off."""
        if self._running[:1] == [seq]:
            self._gate.close(status)

    def cell_ended(self, seq: int) -> None:
        """Stops with the outermost cell, and passes on what has come since."""
        if seq in self._running:
            self._running.remove(seq)
        if self._running:
            return
        if self._memory is not None:
            self._memory.cell_ended()
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(CELL_END_SECONDS)
            self._look()

    def _start(self) -> None:
        """A thread in the context of the cell, so that what it prints comes out there."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop = stop = threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=lambda: context.run(self._follow, stop), name="cellmeter-alerts", daemon=True
        )
        self._thread.start()

    def _follow(self, stop: threading.Event) -> None:
        while not stop.wait(LOOK_FAST_SECONDS if self.budget is not None and self.budget.interrupt else LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        try:
            with self._lock:
                events = self._tail.events()
            for event in events:
                if event.get("event") == "alert" and event["state"] == "fired" and not event.get("again"):
                    self._alert(event)
                elif event.get("event") == "budget":
                    self._over_budget(event)
        except Exception as error:
            self._tell(f"alerts: {type(error).__name__}: {error}")

    def _alert(self, event: Mapping[str, Any]) -> None:
        for told in self.alerts:
            if told.alert.text == event["alert"]:
                value = held_text(event["value"], told.alert.unit)
                self._print(f"alert: {told.alert.text} ({event['subject']} is at {value})")
                if told.callback is not None:
                    self._call(told.callback, event)

    def _call(self, callback: Callback, event: Mapping[str, Any]) -> None:
        time = (event["t"] - int(self._tail.header()["start_ns"])) * 1e-9
        try:
            callback(AlertFired(event["alert"], event["subject"], event["seq"], time, event["value"]))
        except Exception as error:
            self._tell(f"the callback of {event['alert']!r} failed: {type(error).__name__}: {error}")

    def _over_budget(self, event: Mapping[str, Any]) -> None:
        running = list(self._running)  # a line of a cell that has ended may come now
        stopped = event["interrupt"] and event["seq"] in running and self._gate.interrupt(running[0])
        used = f"{bytes_text(event['value'])} in use of {given_text(event['threshold'], 'By')}"
        if event.get("upper_bound"):
            used = f"at most {used}, as pages that workers share count each time here: no reason to interrupt"
        self._print(f"memory budget {event['budget']}: {used}{'; the cell is interrupted' if stopped else ''}")

    @staticmethod
    def _print(line: str) -> None:
        """To the cell that runs; each time, for each time it is news."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the user may have closed or replaced stderr
            print(f"cellmeter: {line}", file=sys.stderr, flush=True)


def _read_from(folder: Path, plugin: str) -> dict[str, Metric]:
    """What a plugin measures in a run that goes on; none before the first reading has a file to go to."""
    try:
        header = read_header(folder)
    except RunUnreadable:
        return {}
    columns = (column[0] for segment in header["segments"] for column in segment["columns"])
    if not any(name.startswith(f"{plugin}.") for name in columns):
        return {}
    return {metric["name"]: Metric(**metric) for metric in header.get("metrics", ())}
