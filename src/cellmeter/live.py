"""The live panel: a widget under the running cell, fed from the run folder, and what stays in its place afterwards.

Kernel and page share three things: ``Runtime``, a widget without a view that brings ``live.js`` and BokehJS into the page
once a kernel; a ``Stage`` for each cell, which streams rows; and the static output, which comes to life where the page has
the runtime. Code and rows travel as custom messages, never as widget state: JupyterLab and nbclient save state in notebooks.

Messages, kernel to page: ``code`` (buffers: gzipped live.js, gzipped BokehJS), ``open`` (layout), ``d`` (rows from ``s`` on),
``c`` (loads of the cores from ``s`` on), ``h`` (all there is, the next row being number ``n``, the next load ``c``), ``end``
(how the cell ended), ``panels`` (once it is known which GPUs it does not use), ``said`` (a line of own values and alerts),
``own`` (logged values and spans from number ``s`` on), ``plugins`` (the same of what plugins measure).
Page to kernel: ``here``, ``need``. Rows are float64 columns, the time first; loads are float64 times, and a byte a core and
time. The page gets the rows of all groups, so that what it shows is its own choice.
"""

from __future__ import annotations

import contextvars
import gzip
import html
import os
import sys
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter import charts, layouts, widget
from cellmeter.clock import monotonic
from cellmeter.errors import CellmeterError
from cellmeter.feed import Feed, column_major
from cellmeter.own_feed import OwnFeed
from cellmeter.plugin_feed import PluginFeed
from cellmeter.still import Facts, ending_of, facts_of, image_html, still, summary, with_exact_peak
from cellmeter.store import Tail
from cellmeter.ticker import Ticker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.metrics import Group

    Floats = NDArray[np.float64]
    Event = Mapping[str, Any]

UPDATE_SECONDS = 0.25
FIRST_SECONDS = 0.02  # between looks for a cell's first reading, which the recorder takes at once
IDLE_SECONDS = 2.0  # in this time a page with widgets says that it is there
PICTURE_SECONDS = 1.0  # between pictures for those without
MOST_OPEN = 40  # widgets of cells that have ended: the page keeps the readings of as many
LAST_SAMPLE_SECONDS = 0.06  # the longest a cell's end waits for its last sample
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
        self._ended: deque[Panel] = deque()
        self._panels_of_cells: dict[str, str] = {}
        self.widget: Any = None
        self._page_speaks = False
        self._idle_since = monotonic()
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
        thread = threading.Thread(target=lambda: context.run(self.guarded, work), name=name, daemon=True)
        # Thread.start waits without bound for a thread that, short of memory, may die before it says that it has started
        thread._started = started = _AtMostASecond()  # type: ignore[attr-defined]
        thread.start()
        if not started.is_set():
            raise CellmeterError("no thread could be started (is memory short?), so there is no live panel")
        return thread

    def guarded(self, work: Callable[[], None]) -> None:
        """What fails is said in one line, once."""
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
            self.guarded(self._send_code)

    @property
    def unanswered(self) -> bool:
        """Whether the front end seems to have no widgets: none has spoken, though the kernel had time to listen."""
        return self._was_idle and not self._page_speaks

    def answer_reloads(self, _result: Any = None) -> None:
        """At each cell's end, for the cell may have imported ipywidgets."""
        self._idle_since = monotonic()
        self.guarded(lambda: widget.answer_reloads(self._comms))

    def panel_widget(self, on_message: Callable[[Event], None]) -> widget.Widget:
        """A widget for one cell, which begins now."""
        self._was_idle |= monotonic() - self._idle_since > IDLE_SECONDS
        return widget.Widget(_STUB, {"code": self._key, "role": "panel"}, on_message)

    def take_place(self, cell_id: str, panel_id: str) -> str | None:
        """A panel for a cell that runs again; returns the one before, which the page may forget."""
        before, self._panels_of_cells[cell_id] = self._panels_of_cells.get(cell_id), panel_id
        return before

    def outlive(self, panel: Panel) -> None:
        """Keeps the widget of a cell that has ended, for a page that was loaded anew while the cell ran.

        JupyterLab restores widgets only when the kernel is idle, and such a page does not hear of the static output.
        """
        self._ended.append(panel)
        if len(self._ended) > MOST_OPEN:
            self._ended.popleft().abandon()

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


class Panel:
    """The live panel of one cell."""

    def __init__(self, stage: Stage, feed: Feed, title: str) -> None:
        self._stage = stage
        self._feed = feed
        self._events = Tail(feed.folder, newest=0)
        self._ticker = Ticker()
        self._own = OwnFeed()
        self._plugins = PluginFeed(feed.folder)
        self._title = title
        self._loads_sent = 0
        self._not_used: Collection[str] = frozenset()
        self._id = "cm" + os.urandom(6).hex()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._widget: Any = None
        self._thread: threading.Thread | None = None
        self._layout: dict[str, Any] | None = None
        self._instead: str | None = None
        self._bundle: dict[str, Any] = {}
        self._next_picture = PICTURE_SECONDS
        self._again = False
        stage.panels.add(self)

    @classmethod
    def open(
        cls,
        shell: Any,
        folder: Path,
        seq: int,
        title: str,
        groups: tuple[Group, ...],
        *,
        chart: bool = True,
        cell_id: str | None = None,
    ) -> Panel:
        """Shows the panel under the cell that has just begun; 4 updates a second from here on.

        Without ``chart`` nothing is shown until the cell ends, and a line of text then.
        Raises RunUnreadable if the run folder cannot be read, MissingExtra where the widgets' packages are not there.
        """
        prepare(shell)
        panel = cls(stage_of(shell), Feed(folder, seq, groups), title)
        if cell_id is not None:
            panel._instead = panel._stage.take_place(cell_id, panel._id)
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
            self._stage.guarded(self._tell_again)

    def _tell_again(self) -> None:
        """A cell that has ended, whose rows only the folder has."""
        self._feed.remember()
        self._update()
        self._feed.forget()

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
            "instead": self._instead,
            **self._whereabouts(),
        }
        self._widget.send({"k": "open", "layout": self._layout})
        while not self._stop.is_set():
            self._update()
            if feed.seq and self._stage.unanswered:
                self._show_picture()
            self._stop.wait(UPDATE_SECONDS if feed.next else FIRST_SECONDS)

    def _whereabouts(self) -> dict[str, Any]:
        """Of the layout: where a Jupyter server with cellmeter has the same rows."""
        return {"tail": f"runs/{self._feed.folder.name}/cells/{self._feed.seq}/tail"}

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
            image = image_html(text, picture.draw(frame, seconds)) if frame.panels else ""
            self._replace({**self._bundle, "text/plain": text, "text/html": image or html.escape(text)}, {})

    def _update(self) -> None:
        with self._lock:
            start = self._feed.next
            rows = self._feed.poll()
            anew, self._again = self._again, False
            if anew:
                rows, start, self._loads_sent = self._feed.rows(), -1, 0
            sent, self._loads_sent = self._loads_sent, self._feed.loads.next
            loads = self._feed.loads.since(sent)
            said = [*self._whose(), *self._said(anew)]
        self._send(rows, start, loads, sent)
        for message in said:
            self._widget.send(message)

    def _whose(self) -> list[dict[str, Any]]:
        """A message if it has become known that GPUs are used by others, or that they are not."""
        known = self._feed.holders.not_used
        if known == self._not_used or self._layout is None:
            return []
        self._not_used = known
        self._layout["panels"] = charts.spec_for_page(self._feed.panels)
        return [{"k": "panels", "panels": self._layout["panels"]}]

    def _said(self, anew: bool, rest: bool = False) -> list[dict[str, Any]]:
        """Messages of what the user's code says and is told: what is new, or ``anew`` all of it."""
        events = self._events.events()
        line = self._ticker.take(events)
        self._own.take(events)
        text = self._ticker.text if anew else line
        start_ns = self._feed.started_ns
        marks = [feed.message(start_ns, anew=anew, rest=rest) for feed in (self._own, self._plugins)]
        return [*([] if text is None else [{"k": "said", "text": text}]), *filter(None, marks)]

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

    def close(self, title: str, status: str, start: Event, end: Event) -> None:
        """Puts the static output in the panel's place. Waits up to 60 ms for the cell's last sample.

        ``start``, ``end``: the cell's edges as the kernel sent them, or their times alone: ``t`` in ns and ``seq``.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1)
        first, rows = self._feed.next, self._last_rows()
        frame = self._feed.frame(start["t"])
        cores, memory = self._feed.cores(start, end), self._feed.gpu_memory(start, end)
        facts = facts_of(title, status, start, end, cores, memory)
        frame = with_exact_peak(frame, facts)
        if self._widget is None:
            print(summary(frame.only(self._feed.shown), facts))
            return self.abandon()
        try:
            self._end(frame, facts, first, rows)
            self._replace(*still(frame, facts, self._feed.shown, self._id))
        finally:
            self._feed.forget()
            self._stage.outlive(self)

    def _last_rows(self) -> Floats:
        """The rows since the last update, the cell's last sample among them if it comes in time."""
        import numpy as np

        deadline = monotonic() + LAST_SAMPLE_SECONDS
        fresh = []
        while True:
            with self._lock:
                fresh.append(self._feed.poll())
            if self._feed.ended or monotonic() > deadline:
                return np.concatenate(fresh)
            time.sleep(0.004)

    def _end(self, frame: charts.Frame, facts: Facts, start: int, rows: Floats) -> None:
        """Tells the page how the cell ended, whose chart goes on in the static output."""
        if self._layout is None:
            return
        ending, specs = ending_of(frame.only(self._feed.shown), facts), charts.spec_for_page(frame.panels)
        self._layout |= {"panels": specs, **ending}
        self._send(rows, start, self._feed.loads.since(self._loads_sent), self._loads_sent)
        self._loads_sent = self._feed.loads.next
        for message in self._said(anew=False, rest=True):
            self._widget.send(message)
        self._widget.send({"k": "end", "panels": specs, "ending": ending})

    def abandon(self) -> None:
        """Ends the stream; what is shown stays."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1)
        if self._widget is not None:
            self._widget.close()
        self._stage.panels.discard(self)
