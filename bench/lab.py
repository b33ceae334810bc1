"""Live plots in a real JupyterLab in headless Chromium: ours and those of peers, watched until they are on the screen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.page import Used, used_of
from bench.peers import _ALONE, PYTHON, VENV
from cellmeter import charts
from cellmeter.feed import Feed
from cellmeter.store import Tail, read_run
from tests.browser.driver import ACTION_MS, LAB_OPTIONS, TOKEN, Book, Server, serving

PLOTLY = VENV / "lib"
CLOCK_READINGS = 30
# What a page has drawn, and when: pairs of the newest reading in a frame and the end of that frame, in milliseconds.
WATCH = """(() => {
  const bench = (window.bench = { newest: null, drawn: [], begun: 0, cell: null, length: 0, longest: 0 });
  let last = 0;
  const seen = () => {
    const value = bench.cell && bench.newest ? bench.newest(bench.cell()) : 0;
    if (!value || value === last) return false;
    last = value;
    return true;
  };
  const after = () => { const value = last; setTimeout(() => bench.drawn.push([value, performance.now()])); };
  bench.canvas = false;
  // A canvas that is painted now is on the screen with the next frame; an SVG that is there at a frame's begin, with that one.
  const pen = CanvasRenderingContext2D.prototype;
  const { stroke, beginPath, lineTo } = pen;
  pen.beginPath = function () { bench.length = 0; return beginPath.call(this); };
  pen.lineTo = function (x, y) { bench.length++; return lineTo.call(this, x, y); };
  pen.stroke = function (...a) {
    if (bench.length > bench.longest) bench.longest = bench.length;
    if (bench.canvas && seen()) requestAnimationFrame(after);
    return stroke.apply(this, a);
  };
  const look = () => { if (!bench.canvas && seen()) after(); requestAnimationFrame(look); };
  requestAnimationFrame(look);
  bench.start = (index, newest, canvas) => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    last = bench.longest = 0;
    Object.assign(bench, { newest, canvas, drawn: [], cell: () => notebook.widgets[index].node, begun: performance.now() });
    notebook.activeCellIndex = index;
    notebook.deselectAll();
    window.jupyterapp.commands.execute("notebook:run-cell");
  };
})()"""
FRAMES = """(ms) => new Promise((resolve) => {
  const [times, end] = [[], performance.now() + ms];
  const look = (now) => {
    times.push(now);
    now < end ? requestAnimationFrame(look) : resolve(times.slice(1).map((time, i) => time - times[i]));
  };
  requestAnimationFrame(look); })"""
IDLE = "import time; time.sleep({seconds})"
LOOP = "import time; _until = time.monotonic() + {seconds}\nwhile time.monotonic() < _until: sum(range(20_000))"


@dataclass(frozen=True)
class Plot:
    """A live plot: how it is set up, shown by a cell, and asked for the times of its samples afterwards."""

    name: str
    kernel: str
    load: str
    cell: str
    newest: str
    """JavaScript: of a cell's node, a number that grows with each reading that is drawn; 0: none yet."""
    canvas: bool
    times: str = ""
    """Prints the readings' monotonic times as JSON, where they are not in a run folder."""


OURS = Plot(
    "cellmeter",
    "python3",
    "%load_ext cellmeter",
    "%%monitor\n{work}",
    "(cell) => +(cell.querySelector('.cellmeter[data-drawn]')?.dataset.points ?? 0)",
    True,
)
JUMPER = Plot(
    "JUmPER",
    "peers",
    "%load_ext jumper_extension\n%perfmonitor_start 0.1 --monitor thread",
    "%perfmonitor_plot --live 0.25\n{work}",
    "(cell) => cell.querySelector('.js-plotly-plot')?.calcdata?.[0]?.at(-1)?.x ?? 0",
    False,
    "import json\nfrom jumper_extension.ipython import extension as _e\n"
    "_m = _e._perfmonitor_magics.magic_adapter.service.monitor\n"
    "print(json.dumps({'start': _m.start_time, 'times': list(_m.nodes.view(level='process')['time'])}))",
)
_BY_HAND = """
import threading, time, psutil
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure
from jupyter_bokeh import BokehModel
from bokeh.layouts import row
_source = ColumnDataSource({"t": [], "cpu": [], "rss": []})
_plots = []
for _column in ("cpu", "rss"):
    _plot = figure(height=180, width=480, toolbar_location=None)
    _plot.line("t", _column, source=_source)
    _plots.append(_plot)
_times, _stop = [], threading.Event()
def _follow(source=_source, times=_times, stop=_stop):
    me, began, fresh = psutil.Process(), time.monotonic(), []
    me.cpu_percent()
    while not stop.wait(0.1):
        now = time.monotonic()
        times.append(now)
        fresh.append((now - began, me.cpu_percent(), me.memory_info().rss))
        if len(fresh) >= 2:
            t, cpu, rss = zip(*fresh)
            source.stream({"t": t, "cpu": cpu, "rss": rss})
            fresh.clear()
"""
JUPYTER_BOKEH = Plot(
    "jupyter_bokeh",
    "peers",
    "from bokeh.io import output_notebook\nfrom bokeh.resources import INLINE\noutput_notebook(INLINE)\n"
    "import bokeh.plotting, jupyter_bokeh, psutil, threading",
    _BY_HAND
    + "display(BokehModel(row(_plots)))\nthreading.Thread(target=_follow, daemon=True).start()\n{work}\n_stop.set()",
    "() => window.bench.longest >= 4 ? window.bench.longest + 1 : 0",
    True,
    "import json\nprint(json.dumps({'times': _times}))",
)


@contextmanager
def lab(folder: Path) -> Iterator[Server]:
    """A JupyterLab with the peers' kernel and front end beside ours."""
    spec = folder / "data" / "kernels" / "peers"
    spec.mkdir(parents=True)
    # JUmPER renices processes, so it sees none but its own.
    argv = [*_ALONE, str(PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.joinpath("kernel.json").write_text(json.dumps({"argv": argv, "display_name": "peers", "language": "python"}))
    extensions = VENV / "share" / "jupyter" / "labextensions"
    options = [*LAB_OPTIONS, f"--LabApp.extra_labextensions_path={extensions}"]
    with serving(folder, "jupyterlab", folder / "home", options) as server:
        yield server


@dataclass
class Watched:
    """A notebook whose page tells what it has drawn, and how much it was sent."""

    book: Book
    plot: Plot
    received: list[int] = field(default_factory=list)
    """Bytes of each message of a widget."""

    def run(self, index: int) -> None:
        """Starts a cell and watches what it shows."""
        self.book.page.evaluate(
            f"(index) => bench.start(index, {self.plot.newest}, {json.dumps(self.plot.canvas)})", index
        )

    def first_ms(self) -> float:
        """From the start of the cell that runs to the frame with its first reading. Raises RuntimeError: none was drawn."""
        try:
            self.book.page.wait_for_function("() => bench.drawn.length", timeout=ACTION_MS / 2)
        except Exception as error:
            raise RuntimeError(f"{self.plot.name} drew nothing: {self.book.console[-2:]}") from error
        return float(self.book.page.evaluate("() => bench.drawn[0][1] - bench.begun"))

    def drawn(self) -> list[tuple[float, float]]:
        """What was the newest reading in each frame that brought one, and that frame's end on the monotonic clock."""
        offset = self._clock()
        return [(value, offset + ms / 1000) for value, ms in self.book.page.evaluate("() => bench.drawn")]

    def _clock(self) -> float:
        """The monotonic clock when the page's was 0: off by half of the quickest of many questions, under a millisecond."""
        readings = []
        for _ in range(CLOCK_READINGS):
            before = time.monotonic()
            page = float(self.book.page.evaluate("() => performance.now()")) / 1000
            after = time.monotonic()
            readings.append((after - before, (before + after) / 2 - page))
        return min(readings)[1]

    def printed(self, index: int) -> Any:
        """What a cell has printed as JSON, in its last line."""
        text = "".join(o.get("text", "") for o in self.book.outputs(index) if o["output_type"] == "stream")
        return json.loads(text.strip().splitlines()[-1])

    def sample_times(self, asked: int) -> list[tuple[float, float]]:
        """The monotonic time of each reading, and what is drawn once it is; cell ``asked`` has printed the peers'."""
        if not self.plot.times:
            return _recorded_times(self.book.server.home)
        told = self.printed(asked)
        if "start" in told:
            return [(at, at - told["start"]) for at in told["times"]]
        return [(at, number + 1.0) for number, at in enumerate(told["times"])]

    def used(self) -> Used:
        """Memory of the page, after a collection."""
        session = self.book.page.context.new_cdp_session(self.book.page)
        session.send("Performance.enable")
        session.send("HeapProfiler.enable")
        return used_of(session)

    def saved_bytes(self) -> int:
        """Size of the saved notebook."""
        self.book.command("docmanager:save")
        return self.book.path.stat().st_size


def _recorded_times(home: Path) -> list[tuple[float, float]]:
    """Of the newest run's last cell."""
    folder = max((home / "runs").iterdir())  # names begin with the time
    feed = Feed(folder, read_run(folder).cells[-1].seq, charts.DEFAULT_GROUPS, Tail(folder))
    feed.poll()
    assert feed.started_ns is not None
    return [(feed.started_ns * 1e-9 + float(row[0]), number + 1.0) for number, row in enumerate(feed.rows())]


@contextmanager
def watched(browser: Any, server: Server, plot: Plot, name: str, cells: Sequence[str]) -> Iterator[Watched]:
    """A notebook open in a page of its own, with its kernel idle; its first cell is still to run."""
    path = server.notebook(name, list(cells), plot.kernel)
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.add_init_script(WATCH)
    context.route("https://cdn.plot.ly/**", lambda route: route.fulfill(path=_plotly(), content_type="text/javascript"))
    try:
        one = Watched(Book(context.new_page(), server, path), plot)
        one.book.page.on("websocket", lambda socket: socket.on("framereceived", lambda data: _count(one, data)))
        one.book.open(f"token={TOKEN}&reset")
        one.book.ready()
        yield one
    finally:
        context.close()
        server.end_kernels()


def _count(one: Watched, data: str | bytes) -> None:
    content = data if isinstance(data, bytes) else data.encode()
    if b'"comm_msg"' in content:
        one.received.append(len(content))


def _plotly() -> Path:
    """Its page asks a CDN, which a bench does not; the package brings the same file."""
    return next(PLOTLY.glob("python*/site-packages/plotly/package_data/plotly.min.js"))
