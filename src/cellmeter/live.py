"""The live panel: a widget under the running cell, fed from the run folder, and what stays in its place afterwards.

Kernel and page share three things: ``Runtime``, a widget without a view that brings ``live.js`` and BokehJS into the page
once a kernel; a ``Stage`` for each cell, which streams rows; and the static output, which comes to life where the page has
the runtime. Code and rows travel as custom messages, never as widget state: JupyterLab and nbclient save state in notebooks.

Messages, kernel to page: ``code`` (buffers: gzipped live.js, gzipped BokehJS), ``open`` (layout), ``d`` (rows from ``s`` on),
``c`` (loads of the cores from ``s`` on), ``h`` (all there is, the next row being number ``n``, the next load ``c``), ``end``
(how the cell ended), ``said`` (a line of own values and alerts). Page to kernel: ``here``, ``need``. Rows are float64 columns,
the time first; loads are float64 times, and a byte a core and time. The page gets the rows of all groups, so that what it shows
is its own choice.
"""

from __future__ import annotations

import base64
import contextvars
import gzip
import html
import json
import os
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter import charts, layouts, widget
from cellmeter.errors import CellmeterError
from cellmeter.run import EDGE_END, Cell, Column, Run
from cellmeter.store import Tail
from cellmeter.ticker import Ticker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.metrics import Group

    Floats = NDArray[np.float64]
    Event = Mapping[str, Any]

UPDATE_SECONDS = 0.25
IDLE_SECONDS = 2.0  # in this time a page with widgets says that it is there
PICTURE_SECONDS = 1.0  # between pictures for those without
LAST_SAMPLE_SECONDS = 0.06  # the longest a cell's end waits for its last sample
MOST_ROWS = 36_000  # kept in the kernel: an hour at 10 Hz; older ones are thinned out, spikes stay
MOST_CORE_ROWS = 3_600  # an hour of the cores' loads: what a page that is loaded anew gets of a longer cell
KEPT_FOR_RATES = 32  # records: half an interval and more at any rate
STILL_BYTES = 14_200  # of the static output in the notebook's JSON, its 500 bytes of markup not counted
STILL_ROWS = 180  # of its readings, or as many as there is room for
LEAST_ROWS = 16
_LEVELS = 1022  # of a packed reading: 0.1 % of its range, a quarter of a pixel; one more means unknown
_WIDGET = "application/vnd.jupyter.widget-view+json"

# Both widgets' module. The page keeps one slot a version of the code, shared by all widgets of all notebooks in it; a
# panel that is there before the code keeps what it hears. anywidget holds messages back until `initialize` has returned.
_STUB = """
const slots = (globalThis[Symbol.for("cellmeter.code")] ??= new Map());
function slot(key) {
  if (!slots.has(key)) { const s = { taken: false }; s.ready = new Promise((r) => (s.resolve = r)); slots.set(key, s); }
  return slots.get(key);
}
const gunzip = (b) => new Response(new Blob([b]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
async function take(s, [js, bokeh]) {
  if (s.taken) return;
  s.taken = true;
  const url = URL.createObjectURL(new Blob([await gunzip(js)], { type: "text/javascript" }));
  const code = (await import(url)).default;
  URL.revokeObjectURL(url);
  code.install(bokeh);
  s.resolve(code);
}
export default () => {
  let panel;
  return {
    initialize({ model }) {
      const s = slot(model.get("code"));
      const early = [];
      const keep = (message, buffers) => {
        if (message.k === "code") take(s, buffers);
        else early.push([message, buffers]);
      };
      model.on("msg:custom", keep);
      if (model.get("role") === "runtime") {
        model.send({ k: "here" });
        const ask = () => s.taken || model.send({ k: "need" });
        model.get("sent") ? ask() : setTimeout(ask, 3000);
      } else {
        panel = s.ready.then((code) => { model.off("msg:custom", keep); return code.open(model, early); });
      }
    },
    async render({ el, signal }) {
      if (panel) await (await panel).show(el, signal);
    },
  };
};
"""


# ---- the page's side, as seen from the kernel ------------------------------------------------------------------------


def script_path() -> Path:
    """Where ``live.js`` lies: in the installed package, else in the repository."""
    here = Path(__file__).parent
    installed = here / "static" / "live.js"
    return installed if installed.exists() else here.parents[1] / "js" / "live.js"


def _code_key() -> str:
    """Tells one version of the page's code from another."""
    stat = layouts.bokeh_js().stat()
    return f"{zlib.crc32(script_path().read_bytes()):08x}-{stat.st_size:x}-{int(stat.st_mtime):x}"


@lru_cache(maxsize=1)
def _code_buffers() -> list[bytes]:
    return [gzip.compress(path.read_bytes(), 6) for path in (script_path(), layouts.bokeh_js())]


class _AtMostASecond(threading.Event):
    """An event that is waited for no longer than a second where no time is given."""

    def wait(self, timeout: float | None = None) -> bool:
        """See :meth:`threading.Event.wait`."""
        return super().wait(1.0 if timeout is None else timeout)


class Stage:
    """What one shell has on its pages: the runtime widget and the thread that fills it. None where no comm is."""

    def __init__(self, shell: Any) -> None:
        self._shell = weakref.ref(shell)
        self._told: set[str] = set()
        self.panels: set[Panel] = set()
        self._last: Panel | None = None
        self.widget: Any = None
        self._page_speaks = False
        self._idle_since = time.monotonic()
        self._was_idle = False
        self._thread: threading.Thread | None = None
        self._comms = getattr(getattr(shell, "kernel", None), "comm_manager", None)
        if self._comms is None:
            return  # terminal IPython, or a kernel that has no widgets
        self._key = _code_key()
        self.widget = widget.Widget(_STUB, {"code": self._key, "role": "runtime", "sent": False}, self._asked)
        self.answer_reloads()
        shell.events.register("post_run_cell", self.answer_reloads)
        self._thread = self.run_thread(self._warm_up, "cellmeter-runtime")

    def run_thread(self, work: Callable[[], None], name: str) -> threading.Thread:
        """A daemon that runs ``work`` in the cell's context: ipykernel 7.0 finds its parent message there."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(self._guarded, work), name=name, daemon=True)
        # Thread.start waits without bound for a thread that, short of memory, may die before it says that it has started
        thread._started = started = _AtMostASecond()  # type: ignore[attr-defined]
        thread.start()
        if not started.is_set():
            raise CellmeterError("no thread could be started (is memory short?), so there is no live panel")
        return thread

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            line = str(error) if isinstance(error, CellmeterError) else f"{type(error).__name__}: {error}"
            if line not in self._told:
                self._told.add(line)
                print(f"cellmeter: live panel: {line}", file=sys.stderr)

    def _warm_up(self) -> None:
        self._send_code()
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageFont
        import PIL.WebPImagePlugin  # noqa: F401

    def _send_code(self) -> None:
        self.widget.send({"k": "code"}, buffers=_code_buffers())
        self.widget.update(sent=True)

    def _asked(self, message: Event) -> None:
        self._page_speaks = True
        if message.get("k") == "need":
            self._guarded(self._send_code)

    @property
    def unanswered(self) -> bool:
        """Whether the front end seems to have no widgets: none has spoken, though the kernel had time to listen."""
        return self._was_idle and not self._page_speaks

    def answer_reloads(self, _result: Any = None) -> None:
        """At each cell's end, for the cell may have imported ipywidgets."""
        self._idle_since = time.monotonic()
        self._guarded(lambda: widget.answer_reloads(self._comms))

    def panel_widget(self, on_message: Callable[[Event], None]) -> widget.Widget:
        """A widget for one cell, which begins now."""
        self._was_idle |= time.monotonic() - self._idle_since > IDLE_SECONDS
        return widget.Widget(_STUB, {"code": self._key, "role": "panel"}, on_message)

    def outlive(self, panel: Panel) -> None:
        """Keeps the widget of the cell that ended last, for a page that was loaded anew while the cell ran.

        JupyterLab restores widgets only when the kernel is idle, and such a page does not hear of the static output.
        """
        if self._last is not None:
            self._last.abandon()
        self._last = panel

    def close(self) -> None:
        """Closes widgets and joins threads."""
        for panel in list(self.panels):
            panel.abandon()
        if self._thread is not None:
            self._thread.join(5)
        if self.widget is None:
            return
        shell = self._shell()
        if shell is not None:
            shell.events.unregister("post_run_cell", self.answer_reloads)
        widget.leave_reloads(self._comms)
        self.widget.close()


_stages: weakref.WeakKeyDictionary[Any, Stage] = weakref.WeakKeyDictionary()


def prepare(shell: Any) -> None:
    """At ``%load_ext``: sends the page its code, and gets ready in the background what the first panel needs.

    Cheap (10 ms), and does nothing in terminal IPython. Raises MissingExtra where anywidget is not installed.
    """
    if shell not in _stages:
        _stages[shell] = Stage(shell)


def stage_of(shell: Any) -> Stage:
    """What :func:`prepare` has made."""
    return _stages[shell]


def forget(shell: Any) -> None:
    """At ``%unload_ext``: closes the widgets and joins the threads."""
    stage = _stages.pop(shell, None)
    if stage is not None:
        stage.close()


# ---- one cell's readings ---------------------------------------------------------------------------------------------


class Feed:
    """A cell's rows out of a run folder's tail: of all groups, whichever are ``shown`` first. Not thread-safe.

    ``tail``: by default that of a cell which is yet to start.
    """

    def __init__(self, folder: Path, seq: int, shown: Sequence[Group], tail: Tail | None = None) -> None:
        import numpy as np

        self.seq = seq
        self.folder = folder
        self.shown = tuple(shown)
        self._tail = tail or Tail(folder, newest=0)
        self._rate_hz = float(self._tail.header()["rate_hz"])
        self.panels = layouts.panels_of(folder)
        self.missing = layouts.missing_in(folder, self.panels)
        self.loads = CoreLoads(folder)
        self._width = 1 + sum(len(spec.lines) for spec in self.panels)
        self._rows = np.empty((256, self._width))
        self._count = 0
        self._seconds = 0.5  # in which two of the older rows are left
        self._before: tuple[tuple[Column, ...], NDArray[Any]] | None = None
        self._events: list[Event] = []
        self.started_ns: int | None = None
        self.next = 0
        """Number of the next row; earlier ones may have been thinned out."""
        self._intact_from = 0
        self.ended = False

    def poll(self) -> Floats:
        """Takes in what is new and returns it: rows × (time, lines), seconds since the cell's first sample."""
        import numpy as np

        fresh = [np.empty((0, self._width))]
        for columns, records in self._tail.samples():
            if not self.ended:
                fresh.append(self._taken(columns, records))
        rows = np.concatenate(fresh)
        self._keep(rows)
        if self.started_ns is not None:
            self.loads.poll(self.started_ns, self.ended)
        return rows

    def _taken(self, columns: tuple[Column, ...], records: NDArray[Any]) -> Floats:
        """Rows of the records that belong to the cell; the newest are kept for the next rates.

        A rate that looks back to before the cell would be its predecessor's, so the first one is unknown.
        """
        import numpy as np

        known = self._before[1] if self._before is not None and self._before[0] == columns else records[:0]
        together = np.concatenate([known, records])
        first = len(known)
        mine = np.flatnonzero(together["seq"] == self.seq)
        if self.started_ns is None:
            if not len(mine):
                return np.empty((0, self._width))
            self.started_ns, first = int(together["t"][mine[0]]), 0
            together, mine = together[mine[0] :], mine - mine[0]
        self._before = (columns, together[-KEPT_FOR_RATES:])
        last = len(together)
        ends = mine[(together["flags"][mine] & EDGE_END) != 0]
        if len(ends):
            self.ended, last = True, int(ends[-1]) + 1
        seconds = (together["t"] - self.started_ns) * 1e-9
        values = charts.values_of(self.panels, columns, seconds, together["v"], self._rate_hz)
        return np.column_stack([seconds, values])[first:last]

    def _keep(self, rows: Floats) -> None:
        import numpy as np

        needed = self._count + len(rows)
        if needed > len(self._rows):
            self._rows = np.concatenate([self._rows[: self._count], np.empty((max(needed, self._count), self._width))])
        self._rows[self._count : needed] = rows
        self._count = needed
        self.next += len(rows)
        if self._count > MOST_ROWS:
            self._thin()

    def _thin(self) -> None:
        """The newer half stays, of the rest as many rows as make a quarter at most, all of it alike."""
        import numpy as np

        newer = MOST_ROWS // 2
        older = self._rows[: self._count - newer]
        few = charts.thinned(older[:, 0], older[:, 1:], self._seconds)
        while len(few[0]) > max(2, newer // 2):
            self._seconds *= 2
            few = charts.thinned(older[:, 0], older[:, 1:], self._seconds)
        thinned = np.concatenate([np.column_stack(few), self._rows[self._count - newer : self._count]])
        self._intact_from = self.next - newer
        self._rows, self._count = thinned, len(thinned)

    def since(self, number: int) -> Floats | None:
        """The rows from a number on; None where they have been thinned out, or are none of this cell's."""
        if not self._intact_from <= number <= self.next:
            return None
        return self._rows[self._count - (self.next - number) : self._count]

    def rows(self) -> Floats:
        """All rows that are kept: rows × (time, lines)."""
        return self._rows[: self._count]

    def frame(self, started_ns: int) -> charts.Frame:
        """The rows, with times since ``started_ns``."""
        rows = self.rows()
        shift = ((self.started_ns or started_ns) - started_ns) * 1e-9
        return charts.Frame(self.panels, rows[:, 0] + shift, rows[:, 1:], self.missing)

    def edges(self) -> dict[str, Event]:
        """The cell's edges as the kernel sent them, ``cell_start`` and ``cell_end``, as far as they have been written."""
        self._events += [e for e in self._tail.events() if e.get("seq") == self.seq]
        return {event["event"]: event for event in self._events}


class CoreLoads:
    """How busy each core was while a cell ran, once a second. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.cores = layouts.cores_of(folder)
        self._tail = Tail(folder, layouts.CORES, newest=0)
        self._before: tuple[float, Floats] | None = None
        self._ended = False
        self._times: Floats = np.empty(0)
        self._loads: NDArray[np.uint8] = np.empty((0, len(self.cores)), np.uint8)
        self.next = 0
        """Number of the next row."""

    def poll(self, started_ns: int, ended: bool) -> None:
        """Takes in what the cell's time has brought: from ``started_ns`` on, and nothing after the poll that saw its end."""
        import numpy as np

        if self._ended or not self.cores:
            return
        self._ended = ended
        for _, records in self._tail.samples():
            for at, busy in zip((records["t"] - started_ns) * 1e-9, records["v"], strict=True):
                if self._before is not None and at > self._before[0] and busy.shape == self._before[1].shape:
                    share = (busy - self._before[1]) / (at - self._before[0])
                    load = np.where(np.isnan(share), 255, np.round(np.clip(share, 0, 1) * 250)).astype(np.uint8)
                    self._times = np.append(self._times[-MOST_CORE_ROWS:], at)
                    self._loads = np.vstack([self._loads[-MOST_CORE_ROWS:], load])
                    self.next += 1
                if at >= 0:  # what came before is the cell before
                    self._before = at, busy

    def since(self, number: int) -> list[bytes]:
        """The rows from a number on, as buffers: float64 times, and a byte a core and row (0 to 250, 255 unknown)."""
        count = min(self.next - number, len(self._times))
        if count <= 0:
            return [b"", b""]
        return [self._times[-count:].tobytes(), self._loads[-count:].tobytes()]


def column_major(rows: Floats) -> bytes:
    """Float64 columns one after the other, as ``Samples.put`` in live.js takes them."""
    return rows.T.tobytes()


class Panel:
    """The live panel of one cell."""

    def __init__(self, stage: Stage, feed: Feed, title: str) -> None:
        self._stage = stage
        self._feed = feed
        self._ticker = Ticker(feed.folder)
        self._title = title
        self._loads_sent = 0
        self._id = "cm" + os.urandom(6).hex()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._widget: Any = None
        self._thread: threading.Thread | None = None
        self._layout: dict[str, Any] | None = None
        self._bundle: dict[str, Any] = {}
        self._next_picture = PICTURE_SECONDS
        self._again = False
        stage.panels.add(self)

    @classmethod
    def open(
        cls, shell: Any, folder: Path, seq: int, title: str, groups: tuple[Group, ...], *, chart: bool = True
    ) -> Panel:
        """Shows the panel under the cell that has just begun; 4 updates a second from here on.

        Without ``chart`` nothing is shown until the cell ends, and a line of text then.
        Raises RunUnreadable if the run folder cannot be read, MissingExtra where the widgets' packages are not there.
        """
        prepare(shell)
        panel = cls(stage_of(shell), Feed(folder, seq, groups), title)
        if chart and panel._stage.widget is not None:
            panel._show()
        return panel

    def _show(self) -> None:
        self._widget = self._stage.panel_widget(self._asked)
        view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
        self._bundle = {_WIDGET: view, "text/plain": f"cellmeter: recording {self._title}"}
        self._place(self._bundle)
        self._thread = self._stage.run_thread(self._stream, "cellmeter-live")

    def _place(self, data: dict[str, Any]) -> None:
        from IPython.display import display

        display(data, raw=True, display_id=self._id)  # type: ignore[no-untyped-call]

    def _replace(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        from IPython.display import update_display

        update_display(data, raw=True, display_id=self._id, metadata=metadata)  # type: ignore[no-untyped-call]

    def _asked(self, message: Event) -> None:
        """The page was loaded anew, or has missed rows: the thread sends it all there is."""
        if message.get("k") != "need":
            return
        self._again = True
        if self._stop.is_set():  # no thread is left to do it
            self._update()

    def _stream(self) -> None:
        feed = self._feed
        self._layout = {
            "panels": charts.spec_for_page(feed.panels),
            "shown": feed.shown,
            "asked": feed.shown != charts.DEFAULT_GROUPS,
            "missing": feed.missing,
            "cores": feed.loads.cores,
            "prefix": self._id,
            "title": self._title,
        }
        if feed.seq:  # the server follows cells, not whole runs
            self._layout["tail"] = f"runs/{feed.folder.name}/cells/{feed.seq}/tail"
        self._widget.send({"k": "open", "layout": self._layout})
        while not self._stop.is_set():
            self._update()
            if feed.seq and self._stage.unanswered:
                self._show_picture()
            self._stop.wait(UPDATE_SECONDS)

    def _show_picture(self) -> None:
        """For a front end that ignores widgets and shows what else there is: once a second, seldom in a long cell."""
        from cellmeter import picture

        with self._lock:  # so that none comes after what `close` puts there
            rows = self._feed.rows()
            seconds = float(rows[-1, 0]) if len(rows) else 0.0
            if seconds < self._next_picture or self._stop.is_set():
                return
            self._next_picture = seconds + max(PICTURE_SECONDS, 0.01 * seconds)
            frame = self._feed.frame(self._feed.started_ns or 0).only(self._feed.shown)
            text = summary(frame, Facts(self._title, "running", seconds))
            image = _image_html(text, picture.draw(frame, seconds)) if frame.panels else ""
            self._replace({**self._bundle, "text/plain": text, "text/html": image or html.escape(text)}, {})

    def _update(self) -> None:
        with self._lock:
            start = self._feed.next
            rows = self._feed.poll()
            said = self._ticker.poll()
            if self._again:
                self._again = False
                rows, start, self._loads_sent, said = self._feed.rows(), -1, 0, self._ticker.text
            sent, self._loads_sent = self._loads_sent, self._feed.loads.next
            loads = self._feed.loads.since(sent)
        self._send(rows, start, loads, sent)
        if said is not None:
            self._widget.send({"k": "said", "text": said})

    def _send(self, rows: Floats, start: int, loads: list[bytes], sent: int) -> None:
        if start < 0:
            self._widget.send({"k": "open", "layout": self._layout})
            numbers = {"n": self._feed.next, "c": self._feed.loads.next}
            self._widget.send({"k": "h", **numbers}, buffers=[column_major(rows), *loads])
            return
        if len(rows):
            self._widget.send({"k": "d", "s": start}, buffers=[column_major(rows)])
        if loads[0]:
            self._widget.send({"k": "c", "s": sent}, buffers=loads)

    def close(self, title: str, status: str, start_ns: int, end_ns: int) -> None:
        """Puts the static output in the panel's place. Waits up to 60 ms for the cell's last sample."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1)
        start, rows = self._feed.next, self._last_rows()
        frame = self._feed.frame(start_ns)
        facts = facts_of(title, status, (end_ns - start_ns) * 1e-9, self._feed.edges())
        frame = with_exact_peak(frame, facts)
        if self._widget is None:
            print(summary(frame.only(self._feed.shown), facts))
            return self.abandon()
        try:
            self._end(frame, facts, start, rows)
            self._replace(*still(frame, facts, self._feed.shown, self._id))
        finally:
            self._stage.outlive(self)

    def _last_rows(self) -> Floats:
        """The rows since the last update, the cell's last sample among them if it comes in time."""
        import numpy as np

        deadline = time.monotonic() + LAST_SAMPLE_SECONDS
        fresh = []
        while True:
            with self._lock:
                fresh.append(self._feed.poll())
            if self._feed.ended or time.monotonic() > deadline:
                return np.concatenate(fresh)
            time.sleep(0.004)

    def _end(self, frame: charts.Frame, facts: Facts, start: int, rows: Floats) -> None:
        """Tells the page how the cell ended, whose chart goes on in the static output."""
        if self._layout is None:
            return
        ending, specs = _ending(frame.only(self._feed.shown), facts), charts.spec_for_page(frame.panels)
        self._layout |= {"panels": specs, **ending}
        self._send(rows, start, self._feed.loads.since(self._loads_sent), self._loads_sent)
        self._loads_sent = self._feed.loads.next
        self._widget.send({"k": "end", "panels": specs, "ending": ending})

    def abandon(self) -> None:
        """Ends the stream; what is shown stays."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1)
        if self._widget is not None:
            self._widget.close()
        self._stage.panels.discard(self)


# ---- what stays ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What a cell's static output says of it besides the charts, as the kernel measured it. None: only samples tell."""

    title: str
    status: str
    seconds: float
    peak_rss_bytes: int | None = None
    growth_bytes: int | None = None
    cpu_seconds: float | None = None


def facts_of(title: str, status: str, seconds: float, edges: Mapping[str, Event]) -> Facts:
    """The facts of a cell from its edges."""
    start, end = edges.get("cell_start", {}), edges.get("cell_end", {})
    before, after = start.get("rss_bytes"), end.get("rss_bytes")
    growth = after - before if before is not None and after is not None else None
    cpu = (end["cpu_ns"] - start["cpu_ns"]) * 1e-9 if "cpu_ns" in start and "cpu_ns" in end else None
    return Facts(title, status, seconds, end.get("peak_rss_bytes"), growth, cpu)


ENDINGS = {"ok": "done", "error": "failed", "interrupted": "interrupted", "died": "kernel died", "running": "recording"}


def summary(frame: charts.Frame, facts: Facts) -> str:
    """One line: how it ended, CPU, memory and its growth, GPUs."""
    how = ENDINGS.get(facts.status, facts.status)
    after = {"ok": "in", "running": "for"}.get(facts.status, "after")
    head = f"{facts.title}: {how} {after} {charts.format_duration(facts.seconds)}"
    return " · ".join([head, *_numbers(frame, facts)])


def _numbers(frame: charts.Frame, facts: Facts) -> list[str]:
    parts = [f"{charts.title_of(group)}: {why}" for group, why in frame.missing.items()]
    for spec in frame.panels:
        values = frame.of(spec)
        mains = [i for i, line in enumerate(spec.lines) if line.role == "main"]
        if spec.key == "cpu":
            parts.append(_cpu(spec, _mean(frame.time, values[:, mains[0]]), facts))
        elif spec.key == "memory":
            parts.append(_memory(spec, values, facts))
        elif spec.unit == "%":
            means = [m for i in mains if (m := _mean(frame.time, values[:, i])) is not None]
            mean = sum(means) / len(means) if means else None
            parts.append(f"{spec.title} {charts.format_value(mean, '%')} mean, {_peak(values[:, mains], '%')} peak")
        elif len(mains) < len(spec.lines):  # read and written, in and out: a peak each
            peaks = [f"{line.label} {_peak(values[:, [i]], spec.unit)}" for i, line in enumerate(spec.lines)]
            parts.append(f"{spec.title} peak {', '.join(peaks)}")
        else:
            highest = " of one" if len(mains) > 1 else ""
            parts.append(f"{spec.title} peak{highest} {_peak(values[:, mains], spec.unit)}")
    return parts


def _cpu(spec: charts.PanelSpec, mean_cores: float | None, facts: Facts) -> str:
    if mean_cores is None and facts.cpu_seconds is not None and facts.seconds > 0:
        mean_cores = facts.cpu_seconds / facts.seconds  # too short for a rate between two samples
    text = f"CPU {charts.format_value(mean_cores, spec.unit)}"
    return text.replace(" cores", f" of {spec.limit:g} cores") if spec.limit else text


def _memory(spec: charts.PanelSpec, values: Floats, facts: Facts) -> str:
    """Peak of the kernel and its workers, no less than the kernel's own, which is exact where it is known; its growth."""
    import numpy as np

    main = values[:, 0][~np.isnan(values[:, 0])]
    if not len(main):
        return f"memory {charts.UNKNOWN}"
    peaks = [float(peak) for peak in np.fmax.reduce(values)]
    kernel = [i for i, line in enumerate(spec.lines) if line.role == "second"]
    own = max(peaks[kernel[0]] if kernel else peaks[0], spec.exact_peak or 0.0)
    growth = float(main[-1] - main[0]) if facts.growth_bytes is None else facts.growth_bytes
    sign = "+" if growth >= 0 else "−"
    text = f"memory {charts.format_peak(max(own, peaks[0]), spec)} ({sign}{charts.format_value(abs(growth), 'By')})"
    alone = kernel and peaks[0] > 1.01 * own
    return f"{text}, kernel alone {charts.format_value(own, 'By')}" if alone else text


def _peak(values: Floats, unit: str) -> str:
    import numpy as np

    known = values[~np.isnan(values)]
    return charts.format_value(float(known.max()) if len(known) else None, unit)


def _mean(times: Floats, values: Floats) -> float | None:
    """Each reading stands for the time up to it, from the one before, known or not."""
    import numpy as np

    valid = ~np.isnan(values)
    if not valid.any():
        return None
    weights = np.diff(times, prepend=min(0.0, float(times[0])))[valid]
    if weights.sum() <= 0:
        return float(values[valid].mean())
    return float(np.average(values[valid], weights=weights))


def with_exact_peak(frame: charts.Frame, facts: Facts) -> charts.Frame:
    """The frame with what the kernel knows of its peak memory."""
    panels = tuple(
        replace(spec, exact_peak=float(facts.peak_rss_bytes)) if spec.key == "memory" and facts.peak_rss_bytes else spec
        for spec in frame.panels
    )
    return replace(frame, panels=panels)


def still(
    frame: charts.Frame, facts: Facts, shown: Sequence[Group] = charts.DEFAULT_GROUPS, name: str = ""
) -> tuple[dict[str, str], dict[str, Any]]:
    """The static output's MIME bundle and metadata: HTML, whose picture comes to life in a page with the runtime, and text.

    ``shown``: the groups in the picture and the text. ``name``: the live panel's, whose chart goes on in its place.
    """
    from cellmeter import picture

    seen = frame.only(shown)
    text = summary(seen, facts)
    if not len(frame.time):
        return {"text/plain": f"{text} · no samples"}, {}
    drawn = picture.draw(seen, facts.seconds) if seen.panels else None
    room = STILL_BYTES - 3 * len(json.dumps(text)) - (len(drawn.image) * 4 // 3 if drawn else 0)
    packed = base64.b64encode(pack(frame, facts, shown, room * 3 // 4)).decode()
    return {"text/plain": text, "text/html": _still_html(text, drawn, packed, name)}, {}


def _image_html(text: str, drawn: Any) -> str:
    return (
        f'<img alt="Charts of {html.escape(text)}" style="max-width:100%" width="{drawn.width}" '
        f'src="data:{drawn.type};base64,{base64.b64encode(drawn.image).decode()}">'
    )


def _still_html(text: str, drawn: Any, packed: str, name: str) -> str:
    image = _image_html(text, drawn) if drawn is not None else ""
    return (
        '<div class="cellmeter-still">'
        f'<div style="font-size:12px;padding:2px 0 6px;opacity:.8">{html.escape(text)}</div>{image}'
        f'<script>(globalThis[Symbol.for("cellmeter.stills")]??=[])'
        f'.push([document.currentScript,"{packed}","{name}"])</script></div>'
    )


def pack(frame: charts.Frame, facts: Facts, shown: Sequence[Group], room: int) -> bytes:
    """The static output's data, gzipped, in at most ``room`` bytes if fewer rows can make it so; for ``unpack`` in live.js.

    Length of the JSON, the JSON, then 16-bit levels, each as its difference from the one before, column after column: all low
    bytes, then all high bytes, for so they compress best.
    """
    page = {
        "panels": charts.spec_for_page(frame.panels),
        "shown": shown,
        "asked": True,
        "missing": frame.missing,
        "title": facts.title,
        **_ending(frame.only(shown), facts),
    }
    rows = STILL_ROWS
    while True:
        columns, bounds = _levels(*charts.decimate(frame.time, frame.values, rows))
        text = json.dumps(page | {"bounds": bounds}, separators=(",", ":"), allow_nan=False).encode()
        packed = gzip.compress(len(text).to_bytes(4, "little") + text + columns, 9, mtime=0)
        if len(packed) <= room or rows < LEAST_ROWS:
            return packed
        rows = rows * 3 // 4


def _levels(times: Floats, values: Floats) -> tuple[bytes, list[list[float]]]:
    """Packed columns, the time first, and what their lowest and highest level stand for."""
    import numpy as np

    columns, bounds = [], []
    for index, column in enumerate([times, *values.T]):
        known = column[~np.isnan(column)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        span, levels = (high - low) or 1.0, _LEVELS if index else 65535
        words = np.where(np.isnan(column), levels + 1, np.round((column - low) / span * levels)).astype(np.int64)
        columns.append(np.diff(words, prepend=0) & 0xFFFF)
        bounds.append([low, low + span])
    words = np.concatenate(columns)
    return (words & 0xFF).astype(np.uint8).tobytes() + (words >> 8).astype(np.uint8).tobytes(), bounds


def _ending(frame: charts.Frame, facts: Facts) -> dict[str, Any]:
    word = ENDINGS.get(facts.status, facts.status)
    return {"status": facts.status, "word": word, "end": facts.seconds, "notes": _numbers(frame, facts)}


def show_cell(run: Run, cell: Cell, groups: Sequence[Group] = charts.DEFAULT_GROUPS) -> None:
    """Draws a recorded cell again, as its static output."""
    from IPython.display import publish_display_data

    end = run.duration if cell.end is None else cell.end
    frame = charts.frame_of(run, cell.start, end + 0.5 / run.rate_hz, charts.GROUPS)
    frame = replace(frame, time=frame.time - cell.start)
    before, after = cell.rss_start_bytes, cell.rss_end_bytes
    growth = after - before if before is not None and after is not None else None
    facts = Facts(cell.title, cell.status, end - cell.start, cell.peak_rss_bytes, growth, cell.own_cpu_seconds)
    data, metadata = still(with_exact_peak(frame, facts), facts, groups)
    publish_display_data(data, metadata)  # type: ignore[no-untyped-call]
