"""What the panel costs the page: live.js and BokehJS in a real Chromium, fed as the kernel feeds them, for a day."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.effort import Effort
from bench.processes import scratch
from bench.table import Line, Section, alone, percentile
from cellmeter import charts, layouts, live
from cellmeter.feed import Feed
from cellmeter.run import EDGE_START, Column
from cellmeter.store import Writer

GIB = 2**30
RATE_HZ = 10
MOST_UPDATE_BYTES = 1000.0
MOST_DAY_MIB = 60.0
ORIGIN = "http://panel.test/"
# As a front end does: installs the code, opens a panel, and hears what the kernel would send.
PAGE = """<!doctype html><meta charset="utf-8"><body style="width:1200px; background:#fff">
<div id="place"></div><script type="module">
const code = (await import("/live.js")).default;
code.install(new Uint8Array(await (await fetch("/bokeh.js.gz")).arrayBuffer()));
let hear;
const model = { get() {}, send() {}, off() {}, on(name, take) { if (name === "msg:custom") hear = take; } };
const panel = code.open(model, []);
const frame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
let next = 0, width = 0, cores = 0;
window.begin = async (layout) => {
  width = layout.panels.reduce((sum, one) => sum + one.lines.length, 0) + 1;
  cores = layout.cores.length;
  hear({ k: "open", layout }, []);
  await panel.show(document.querySelector("#place"), new AbortController().signal);
};
// Rows as a machine makes them: waves, jitter, now and then a spike. `spike`: the row with a reading far above all others.
window.feed = (count, rate, spike = -1) => {
  const rows = new Float64Array(width * count);
  for (let i = 0; i < count; i++) rows[i] = (next + i) / rate;
  for (let c = 1; c < width; c++) for (let i = 0; i < count; i++) {
    rows[c * count + i] = 40 + 30 * Math.sin((next + i) / 300 + c) + 10 * Math.random() + (next + i === spike ? 900 : 0);
  }
  hear({ k: "d", s: next }, [rows.buffer]);
  if (cores && Math.floor(next / rate) !== Math.floor((next + count) / rate)) {
    const [first, last] = [Math.floor(next / rate), Math.floor((next + count) / rate)];
    const loads = Uint8Array.from({ length: cores * (last - first) }, () => Math.random() * 250);
    hear({ k: "c", s: first }, [Float64Array.from({ length: last - first }, (_, i) => first + i + 1).buffer, loads.buffer]);
  }
  next += count;
};
window.feedAll = (count, rate, spike) => { for (; count > 0; count -= 3000) feed(Math.min(count, 3000), rate, spike); };
window.updates = async (count, rows, rate) => {
  for (let i = 0; i < count; i++) {
    feed(rows, rate);
    await frame();
    await frame();
  }
};
window.framesWhileFed = async (ms, rows, rate) => {
  const timer = setInterval(() => feed(rows, rate), 250);
  const times = [performance.now()];
  while (times.at(-1) < times[0] + ms) times.push(await new Promise(requestAnimationFrame));
  clearInterval(timer);
  return times.slice(2).map((time, i) => time - times[i + 1]);
};
window.ready = true;
</script>"""


@dataclass(frozen=True)
class Used:
    """Of the page, after a collection: JavaScript's heap and the buffers it holds, bytes."""

    heap: int
    buffers: int


class PanelPage:
    """One live panel alone in a page of a browser."""

    def __init__(self, browser: Any, gpus: int, cores: int = 0) -> None:
        self._context = browser.new_context(viewport={"width": 1280, "height": 1000})
        self.page = self._context.new_page()
        self.page.route("**/*", _serve)
        self.page.goto(ORIGIN)
        self.page.wait_for_function("() => window.ready")
        self._cdp = self._context.new_cdp_session(self.page)
        self._cdp.send("Performance.enable")
        self._cdp.send("HeapProfiler.enable")
        self.page.evaluate("(layout) => begin(layout)", layout_of(gpus, cores))

    def feed(self, seconds: float, spike: int = -1) -> None:
        """Readings of so many seconds at once."""
        rows = int(seconds * RATE_HZ)
        for done in range(0, rows, 72_000):
            self.page.evaluate(
                "([n, rate, spike]) => feedAll(n, rate, spike)", [min(72_000, rows - done), RATE_HZ, spike]
            )

    def drawn(self) -> None:
        """Waits until all is on the screen that has been fed."""
        self.page.wait_for_selector(".cellmeter[data-drawn]", timeout=60_000)
        self.page.evaluate("() => updates(2, 1, 10)")

    def busy_ms(self, updates: int) -> float:
        """CPU time of the page's main thread for an update with three rows, with all that is drawn."""
        before = metric(self._cdp, "ThreadTime")
        self.page.evaluate("([n]) => updates(n, 3, 10)", [updates])
        return (metric(self._cdp, "ThreadTime") - before) * 1000 / updates

    def used(self) -> Used:
        """Memory in use."""
        return used_of(self._cdp)

    def frames(self, seconds: float) -> Sequence[float]:
        """Milliseconds from each frame to the next, while updates with three rows come four a second."""
        intervals: list[float] = self.page.evaluate("([ms]) => framesWhileFed(ms, 3, 10)", [seconds * 1000])
        return intervals

    def close(self) -> None:
        """Closes the page."""
        self._context.close()


def used_of(session: Any) -> Used:
    """Memory of the page of a DevTools session, after a collection."""
    session.send("HeapProfiler.collectGarbage")
    usage = session.send("Runtime.getHeapUsage")
    return Used(int(metric(session, "JSHeapUsedSize")), int(usage.get("backingStorageSize", 0)))


def metric(session: Any, name: str) -> float:
    """One of the DevTools' own metrics."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == name))


def _serve(route: Any) -> None:
    path = route.request.url.removeprefix(ORIGIN)
    if path == "":
        route.fulfill(body=PAGE, content_type="text/html")
    elif path == "live.js":
        route.fulfill(body=live.script_path().read_bytes(), content_type="text/javascript")
    elif path == "bokeh.js.gz":
        route.fulfill(body=gzip.compress(layouts.bokeh_js().read_bytes(), 6), content_type="application/octet-stream")
    else:
        route.fulfill(status=404)


def layout_of(gpus: int, cores: int) -> dict[str, Any]:
    """The layout of a machine with so many GPUs, as the kernel sends it."""
    with scratch() as folder:
        _describe(folder, gpus, cores)
        feed = Feed(folder, 1, charts.DEFAULT_GROUPS)
        return {
            "panels": charts.spec_for_page(feed.panels),
            "shown": ["cpu", "memory", "gpu"],
            "asked": False,
            "missing": feed.missing,
            "cores": list(feed.loads.cores),
            "prefix": "cm0",
            "title": "train",
        }


def _describe(folder: Path, gpus: int, cores: int) -> tuple[Writer, int, int, int]:
    names = ["process.cpu.time", "process.memory.rss", "process.tree.memory.rss", "process.disk.read"]
    columns = [Column(name, "process", "") for name in [*names, "process.disk.written"]]
    names = ["host.cpu.time", "host.memory.used", "host.network.received", "host.network.sent"]
    columns += [Column(name, "host", "") for name in names]
    columns += [
        Column(m, f"gpu{i}", "") for i in range(gpus) for m in ("gpu.utilization", "gpu.memory.used", "gpu.power")
    ]
    device = {"name": "H100", "memory_bytes": 80 * GIB, "mine": True, "power_limit_watts": 700.0}
    devices = [{**device, "id": f"gpu{i}", "uuid": str(i)} for i in range(gpus)]
    limits = {"cpu_cores": [16.0, "cgroup"], "memory_bytes": [64.0 * GIB, "cgroup"]}
    writer = Writer(folder)
    writer.describe(host={"cpu_count": 192}, rate_hz=RATE_HZ, start_ns=0, limits=limits, devices=devices)
    main = writer.add_segment("main", columns)
    each = writer.add_segment("cores", [Column("core.cpu.time", f"cpu{i}", "s") for i in range(cores)])
    return writer, main, each, len(columns)


def update_bytes(gpus: int, cores: int, seconds: int) -> Sequence[int]:
    """What each update sends, content and buffers, four a second at 10 Hz; Jupyter's envelope is not counted."""
    sizes: list[int] = []

    class Page:
        def send(self, content: dict[str, Any], buffers: Sequence[bytes] = ()) -> None:
            sizes[-1] += len(json.dumps(content)) + sum(map(len, buffers))

    with scratch() as folder:
        writer, main, each, width = _describe(folder, gpus, cores)
        panel = live.Panel(_NoStage(), Feed(folder, 1, charts.DEFAULT_GROUPS), "train")  # type: ignore[arg-type]
        panel._widget = Page()
        for n in range(seconds * RATE_HZ):
            writer.sample(main, n * 10**9 // RATE_HZ, 1, EDGE_START if n == 0 else 0, [float(n)] * width)
            if n % RATE_HZ == 0:
                writer.sample(each, n * 10**9 // RATE_HZ, 1, 0, [n / 20] * cores)
            if n * 4 // RATE_HZ != (n - 1) * 4 // RATE_HZ:
                sizes.append(0)
                panel._update()
        writer.close()
    return sizes[1:]


class _NoStage:
    panels: set[Any] = set()  # noqa: RUF012


def run(effort: Effort) -> Iterator[Section]:
    """Bytes on the way, then the page after a minute and after a day."""
    seconds = effort.choose(short=3, usual=60, full=600)
    yield Section("bytes of an update (4 a second, 10 Hz, all groups)", tuple(_bytes(seconds)))
    from tests.browser.driver import browsing

    with browsing() as browser:
        yield _day(browser, effort)


def _bytes(seconds: int) -> Iterator[Line]:
    for gpus, cores in ((0, 8), (1, 8), (8, 192)):
        sizes = update_bytes(gpus, cores, seconds)
        most = MOST_UPDATE_BYTES if gpus == 1 else None
        yield alone(f"mean, {gpus} GPUs, {cores} cores", "B", [sum(sizes) / len(sizes)], most)


def _day(browser: Any, effort: Effort) -> Section:
    hours, updates = effort.choose(short=0.2, usual=24, full=24), effort.choose(short=3, usual=40, full=200)
    seconds = effort.choose(short=0.5, usual=10, full=30)
    page = PanelPage(browser, gpus=8, cores=192)
    page.feed(60)
    page.drawn()
    early, early_ms, early_frames = page.used(), page.busy_ms(updates), page.frames(seconds)
    page.feed(hours * 3600 - 60)
    page.drawn()
    late, late_ms, late_frames = page.used(), page.busy_ms(updates), page.frames(seconds)
    page.close()
    lines = (
        alone("heap and buffers after a minute", "MiB", [(early.heap + early.buffers) / 2**20]),
        alone(f"heap and buffers after {hours:g} h", "MiB", [(late.heap + late.buffers) / 2**20]),
        alone(
            "  of it more than after a minute",
            "MiB",
            [(late.heap + late.buffers - early.heap - early.buffers) / 2**20],
            MOST_DAY_MIB,
        ),
        alone("CPU per update, a minute in", "ms", [early_ms]),
        alone(f"CPU per update, {hours:g} h in", "ms", [late_ms]),
        alone("frame to frame, p95, a minute in", "ms", [percentile(early_frames, 95)]),
        alone(f"frame to frame, p95, {hours:g} h in", "ms", [percentile(late_frames, 95)]),
        alone(f"frame to frame, worst, {hours:g} h in", "ms", [max(late_frames)]),
    )
    notes = ("8 GPUs, 192 cores, 10 Hz, cpu, memory and gpu shown; Chromium without a GPU, 1280 px wide.",)
    return Section("the page after a day", lines, notes)
