from __future__ import annotations

import base64
import gzip
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from builders import GIB, NAN, GpuWork, a_cell, a_device, a_run, come_late, hump
from conftest import Kernel
from nbclient import NotebookClient

from cellmeter import charts, live, still
from cellmeter.feed import Feed
from cellmeter.run import EDGE_END, EDGE_START, Column
from cellmeter.store import Tail, Writer

COLUMNS = (
    Column("process.cpu.time", "process", "s"),
    Column("process.memory.rss", "process", "By"),
    Column("process.children.cpu.time", "process", "s"),
)
SECOND = 10**9
MEMORY = 2  # column of a row: the time, CPU, memory


class Written:
    """A run folder that a test writes row by row."""

    def __init__(self, folder: Path) -> None:
        self.writer = Writer(folder)
        limits = {"memory_bytes": [8 * GIB, "cgroup"], "cpu_cores": [2, "cpuset"]}
        self.writer.describe(host={"cpu_count": 2}, devices=[], rate_hz=10.0, start_ns=0, limits=limits)
        self.segment = self.writer.add_segment("main", COLUMNS)

    def row(self, at: float, seq: int, flags: int = 0, *, cpu: float | None = None, rss: float = GIB) -> None:
        values = [at if cpu is None else cpu, rss, 0.0]
        self.writer.sample(self.segment, int(at * SECOND), seq, flags, values)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def feed_of(written: Written, seq: int = 1) -> Feed:
    return Feed(written.writer.folder, seq, charts.DEFAULT_GROUPS)


def test_rows_begin_with_the_cell_and_end_with_it(written: Written) -> None:
    feed = feed_of(written)
    written.row(9, 0)
    assert len(feed.poll()) == 0
    for n in range(5):
        written.row(10 + n / 10, 1, EDGE_START if n == 0 else 0)
    rows = feed.poll()
    assert rows[:, 0] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert np.isnan(rows[0, 1]), "a rate that looked back to before the cell would be its predecessor's"
    assert np.isnan(rows[1:3, 1]).all(), "too short a time for a counter of ticks"
    assert rows[3:, 1] == pytest.approx([1.0] * 2)
    written.row(10.5, 1, EDGE_END)
    written.row(11.5, 0)
    assert len(feed.poll()) == 1
    assert feed.ended
    written.row(12.5, 0)
    assert len(feed.poll()) == 0
    assert feed.next == 6


def test_a_cell_within_a_cell_belongs_to_both(written: Written) -> None:
    feed = feed_of(written)
    for n, (seq, flags) in enumerate([(1, EDGE_START), (2, EDGE_START), (2, 0), (2, EDGE_END), (1, EDGE_END)]):
        written.row(n / 10, seq, flags)
    feed.poll()
    assert feed.next == 5


def test_rows_in_the_kernel_are_bounded_and_no_peak_is_lost(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellmeter.feed.MOST_ROWS", 1000)
    feed = feed_of(written)
    for n in range(5000):
        written.row(n / 10, 1, EDGE_START if n == 0 else 0, rss=3 * GIB if n == 77 else GIB)
        if n % 100 == 99:
            feed.poll()
    assert feed.next == 5000
    assert len(feed.rows()) <= 1000
    memory = feed.rows()[:, MEMORY]
    assert memory.max() == 3 * GIB
    assert feed.rows()[memory.argmax(), 0] == pytest.approx(7.7, abs=5), "it stands where it was"
    assert (np.diff(feed.rows()[:, 0]) >= 0).all()


def test_the_page_gets_all_groups_whatever_is_shown(written: Written) -> None:
    feed = Feed(written.writer.folder, 1, ("gpu",))
    assert [spec.key for spec in feed.panels] == ["cpu", "memory"]
    assert feed.missing == {
        "gpu": "no GPU on this machine",
        "io": "not measured here",
        "net": "not measured here",
        "power": "no GPU on this machine",
    }


def test_loads_of_cores_are_those_of_the_cells_own_time(written: Written) -> None:
    cores = written.writer.add_segment("cores", [Column("core.cpu.time", f"cpu{i}", "s") for i in range(3)])
    feed = feed_of(written)
    assert feed.loads.cores == ("cpu0", "cpu1", "cpu2")
    for at, busy in ((8.0, 1.0), (9.0, 2.0), (10.5, 2.2), (11.5, 2.7), (12.5, 3.7)):
        written.writer.sample(cores, int(at * SECOND), 1, 0, [busy, 0.0, NAN])
    written.row(10, 1, EDGE_START)
    feed.poll()
    times, loads = feed.loads.since(0)
    assert np.frombuffer(times) == pytest.approx([1.5, 2.5])
    assert np.frombuffer(loads, np.uint8).reshape(2, 3).tolist() == [[125, 0, 255], [250, 0, 255]]
    assert [len(part) for part in feed.loads.since(1)] == [8, 3]
    assert feed.loads.since(2) == [b"", b""]
    written.row(12.6, 1, EDGE_END)
    feed.poll()
    written.writer.sample(cores, int(13.5 * SECOND), 0, 0, [4.7, 0.0, NAN])
    feed.poll()
    assert feed.loads.next == 2


def test_a_gpu_that_the_kernel_never_held_is_known_as_such_after_two_readings(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    devices = [asdict(a_device("gpu0", mine=None)), asdict(a_device("gpu1", mine=True))]
    writer.describe(host={"cpu_count": 2}, rate_hz=10.0, start_ns=0, limits={}, devices=devices)
    main = writer.add_segment("main", [Column("gpu.utilization", f"gpu{n}", "%") for n in (0, 1)])
    lists = writer.add_segment("gpu-processes", [Column("gpu.process.contexts", f"gpu{n}", "1") for n in (0, 1)])
    writer.sample(lists, SECOND, 0, 0, [0.0, 0.0])
    feed = Feed(tmp_path, 1, ("gpu",))

    def roles() -> list[str]:
        return [line.role for line in feed.panels[0].lines]

    def reading(at: float, contexts: float) -> list[str]:
        writer.sample(lists, int(at * SECOND), 1, 0, [contexts, contexts])
        feed.poll()
        return roles()

    writer.sample(main, 10 * SECOND, 1, EDGE_START, [97.0, 97.0])
    assert reading(10.5, 0) == ["main", "main"], (
        "one list may come before the kernel holds it; the one before is not its own"
    )
    assert reading(12.5, NAN) == ["main", "main"]
    assert reading(14.5, 0) == ["other", "main"], "one that is allocated to it is its own, idle or not"
    later = Feed(tmp_path, 1, ("gpu",), Tail(tmp_path, since_ns=10 * SECOND), 10 * SECOND)
    later.poll()
    assert later.panels == feed.panels, "as one that is told of only now has it, too"
    assert reading(16.5, 1) == ["main", "main"]
    assert reading(18.5, 0) == ["main", "main"], "it has used it"


def test_loads_of_cores_are_bounded(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellmeter.feed.MOST_CORE_ROWS", 20)
    cores = written.writer.add_segment("cores", [Column("core.cpu.time", "cpu0", "s")])
    feed = feed_of(written)
    written.row(10, 1, EDGE_START)
    for n in range(100):
        written.writer.sample(cores, (10 + n) * SECOND, 1, 0, [n / 2])
    feed.poll()
    assert feed.loads.next == 99
    times = np.frombuffer(feed.loads.since(0)[0])
    assert len(times) == 21
    assert times[-1] == 99


def a_frame(gpus: int = 0, seconds: float = 60) -> charts.Frame:
    devices = [a_device(f"gpu{i}") for i in range(gpus)]
    cell = a_cell(seconds, rss=lambda t: (1 + t / 60) * GIB, gpu={d.id: GpuWork(50) for d in devices})
    return charts.frame_of(a_run(cell, devices=devices), 0, seconds, charts.GROUPS)


def shown(frame: charts.Frame) -> charts.Frame:
    return frame.only(charts.DEFAULT_GROUPS)


def test_the_summary_says_what_a_cell_took() -> None:
    facts = still.Facts("train", "ok", 60.0, int(2.5 * GIB))
    text = still.summary(shown(still.with_exact_peak(a_frame(1), facts)), facts)
    assert text.startswith("train: done in 1 min 00 s · CPU ")
    assert "memory peak 2.50 " in text
    assert re.search(r"\(\+(988 MiB|1\.00 GiB)\)", text)
    assert re.search(r"GPU (49|50) % mean, 50 % peak", text)


def test_what_is_not_known_is_called_unknown() -> None:
    frame = a_frame()
    frame = charts.Frame(frame.panels, frame.time, np.full_like(frame.values, NAN))
    text = still.summary(frame, still.Facts("x", "error", 1.0, None))
    assert "failed after 1.00 s" in text
    assert "CPU unknown" in text
    assert "memory unknown" in text


def test_a_cell_without_a_sample_has_the_peak_that_the_kernel_knows() -> None:
    frame = a_frame()
    frame = charts.Frame(frame.panels, frame.time[:0], frame.values[:0])
    facts = still.Facts("x", "ok", 0.001, GIB, 1 << 20)
    data, _ = still.still(still.with_exact_peak(frame, facts), facts)
    assert data["text/plain"].endswith("memory peak 1.00 of 64 GiB (+1.00 MiB) · no samples")
    unknown = still.Facts("x", "ok", 0.001)
    assert "memory unknown" in still.still(still.with_exact_peak(frame, unknown), unknown)[0]["text/plain"]


def test_memory_counts_workers_as_cpu_does() -> None:
    columns = [Column(f"process.{name}memory.rss", "process", "By") for name in ("", "tree.")]
    specs = charts.panels(columns, {}, [], ("memory",))
    frame = charts.Frame(specs, np.arange(2.0), np.array([[2.0, 1.0], [6.0, 3.0]]) * GIB)
    facts = still.Facts("x", "ok", 1.0, int(4.5 * GIB), GIB)
    assert "memory peak 6.00 GiB (+1.00 GiB), kernel alone 4.50 GiB" in still.summary(
        still.with_exact_peak(frame, facts), facts
    )
    alone = charts.Frame(specs, frame.time, frame.values[:, [1, 1]])
    text = still.summary(still.with_exact_peak(alone, facts), facts)
    assert text.endswith("memory peak 4.50 GiB (+1.00 GiB)"), "the exact peak is above all samples"


def test_what_is_asked_for_and_not_there_is_said_to_be_missing() -> None:
    frame = a_frame()
    facts = still.Facts("x", "ok", 60.0)
    assert still.summary(frame.only(("gpu",)), facts) == "x: done in 1 min 00 s · GPU: no GPU on this machine"
    assert "no GPU" not in still.summary(shown(frame), facts), "nobody asked for it"
    data, _ = still.still(frame, facts, ("gpu",))
    assert "<img" not in data["text/html"]


def test_the_static_output_is_escaped() -> None:
    data, _ = still.still(a_frame(1), still.Facts("</script><b>", "ok", 60.0, None))
    assert set(data) == {"text/plain", "text/html"}
    assert "</script><b>" not in data["text/html"]
    assert "alt=" in data["text/html"]


def jitter(size: float) -> Callable[[Callable[[float], float]], Callable[[float], float]]:
    random = np.random.default_rng(1)
    return lambda signal: lambda t: max(0.0, signal(t) * (1 + size * random.normal()))


@pytest.mark.parametrize("groups", [charts.DEFAULT_GROUPS, charts.GROUPS])
@pytest.mark.parametrize("size", [0.03, 0.3])
@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_a_monitored_cell_adds_at_most_15_kb_to_the_notebook(gpus: int, size: float, groups: Any) -> None:
    noisy = jitter(size)
    work = {
        f"gpu{i}": GpuWork(
            noisy(lambda t, i=i: 55 + 40 * math.sin(t / 3 + i)),
            memory=lambda t, i=i: (20 + i + t / 9) * GIB,
            power=noisy(lambda t: 400 + 200 * math.sin(t / 3)),
        )
        for i in range(gpus)
    }
    plan = a_cell(300, rss=noisy(lambda t: (1 + t / 60) * GIB), cores=noisy(lambda t: 4 + 3 * math.sin(t)), gpu=work)
    run = a_run(replace(plan, disk_read=noisy(lambda t: 1e8)), devices=[a_device(name) for name in work])
    frame = charts.frame_of(run, 2, 302, charts.GROUPS)
    facts = still.Facts("train the model", "ok", 300.0, 7 * GIB)
    data, metadata = still.still(frame, facts, groups, "cm0123456789ab")
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    assert len(json.dumps(output, indent=1)) <= 15_000
    layout, columns = unpacked(data["text/html"])
    assert len(columns[0]) >= 16, "readings are left to draw"
    assert len(layout["panels"]) == len(frame.panels)


def unpacked(text: str) -> tuple[dict[str, Any], Any]:
    """Layout and columns of a static output, as ``unpack`` in live.js reads them."""
    packed = re.search(r'currentScript,"([^"]+)"', text)
    assert packed is not None
    content = gzip.decompress(base64.b64decode(packed[1]))
    length = int.from_bytes(content[:4], "little")
    layout = json.loads(content[4 : 4 + length])
    low, high = np.frombuffer(content[4 + length :], np.uint8).astype(int).reshape(2, len(layout["bounds"]), -1)
    levels = np.cumsum(low + 256 * high, axis=1) & 0xFFFF
    return layout, levels


def test_the_static_output_holds_its_readings() -> None:
    frame = a_frame()
    layout, levels = unpacked(still.still(frame, still.Facts("x", "ok", 60.0, None))[0]["text/html"])
    memory = 1 + len(frame.panels[0].lines)
    low, high = layout["bounds"][memory]
    readings = low + (high - low) * levels[memory] / 1022
    assert readings.max() == pytest.approx(frame.of(frame.panels[1])[:, 0].max(), rel=1e-6)
    assert (np.diff(levels[0]) >= 0).all()
    assert layout["word"] == "done"


def test_a_cell_without_samples_says_so() -> None:
    frame = a_frame()
    empty = charts.Frame(frame.panels, frame.time[:0], frame.values[:0])
    data, _ = still.still(empty, still.Facts("x", "ok", 0.001, None))
    assert data == {"text/plain": "x: done in 1.00 ms · CPU use: too short to tell · memory unknown · no samples"}


class Terminal:
    """A shell without a kernel."""


def test_a_terminal_gets_a_line_of_text(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Terminal()
    written.row(10, 1, EDGE_START)
    panel = live.Panel.open(shell, written.writer.folder, 1, "In [1]", charts.DEFAULT_GROUPS)
    written.row(10.1, 1, rss=2 * GIB)
    written.row(10.2, 1, EDGE_END)
    panel.close("In [1]", "ok", {"t": 10 * SECOND}, {"t": int(10.2 * SECOND), "seq": 1})
    assert capsys.readouterr().out.startswith(
        "In [1]: done in 200 ms · CPU 1.00 of 2 cores · memory peak 2.00 of 8 GiB"
    )
    live.forget(shell)
    assert shell not in live._stages


def test_the_end_waits_no_longer_than_it_may(written: Written) -> None:
    shell = Terminal()
    written.row(10, 1, EDGE_START)
    panel = live.Panel.open(shell, written.writer.folder, 1, "In [1]", charts.DEFAULT_GROUPS)
    began = time.monotonic()
    panel.close("In [1]", "ok", {"t": 10 * SECOND}, {"t": 11 * SECOND, "seq": 1})
    assert 0.05 < time.monotonic() - began < 0.5


class Page:
    """A widget that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any], buffers: object = None) -> None:
        self.sent.append(message)

    def close(self) -> None:
        pass


def test_the_page_gets_what_the_code_says_once_and_all_of_it_when_it_asks(written: Written) -> None:
    shell = Terminal()
    panel = live.Panel.open(shell, written.writer.folder, 1, "In [1]", charts.DEFAULT_GROUPS)
    page = panel._widget = Page()

    def own() -> list[dict[str, Any]]:
        page.sent.clear()
        panel._update()
        return [message for message in page.sent if message["k"] == "own"]

    for tenth in range(300):
        written.writer.event({"event": "logged", "t": 10 * SECOND + tenth, "values": {"loss": tenth}, "steps": {}})
    assert own() == []  # no sample tells yet when the cell began
    written.row(10, 1, EDGE_START)
    (first,) = own()
    assert first["s"] == 0
    assert len(json.dumps(first)) < 2200
    (second,) = own()
    assert second["s"] == len(first["marks"])
    panel._asked({"k": "need"})
    (whole,) = own()
    assert whole["anew"]
    assert [value for _, _, value in whole["marks"]] == list(range(300))
    assert own() == []
    panel.abandon()
    live.forget(shell)


def test_a_page_that_comes_after_the_end_gets_all_rows_from_the_folder(written: Written) -> None:
    """The kernel keeps none of a cell that has ended."""
    feed = feed_of(written)
    for number in range(20):
        written.row(10 + number / 10, 1, EDGE_START if number == 0 else EDGE_END if number == 19 else 0)
    feed.poll()
    rows = feed.rows().copy()
    feed.forget()
    assert len(feed.rows()) == 0
    for number in range(30):
        written.row(12 + number / 10, 2)
    for _ in range(2):
        feed.remember()
        assert np.array_equal(feed.rows(), rows, equal_nan=True), "and none of the cells after it"
        assert feed.next == len(rows)


def test_the_page_is_told_which_panel_a_cell_had_before(written: Written) -> None:
    shell = Terminal()

    def opened(cell_id: str | None) -> live.Panel:
        return live.Panel.open(shell, written.writer.folder, 1, "In [1]", charts.DEFAULT_GROUPS, cell_id=cell_id)

    first, other, again, unnamed = opened("a"), opened("b"), opened("a"), opened(None)
    assert [panel._instead for panel in (first, other, again, unnamed)] == [None, None, first._id, None]
    live.forget(shell)


def test_only_so_many_panels_stay_open(written: Written) -> None:
    shell = Terminal()
    stage = live.Stage(shell)
    panels = [live.Panel(stage, feed_of(written, seq), f"In [{seq}]") for seq in range(1, live.MOST_OPEN + 3)]
    for panel in panels:
        panel._widget = Page()
        stage.outlive(panel)
    assert [panel in stage.panels for panel in panels] == [False] * 2 + [True] * live.MOST_OPEN


def test_code_is_no_widget_state() -> None:
    assert len(live._STUB) < 2500
    key = live._code_key()
    assert live.script_path().read_bytes().startswith(b"// @ts-check")
    assert len(key) < 40


@pytest.fixture
def executed(home: Path) -> Any:
    """A notebook run without a browser, by a client that saves widget state."""
    cells = [
        "%load_ext cellmeter",
        "%%monitor load\nkept = bytearray(300_000_000)\nfor _ in range(30): sum(range(10**6))",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(book, timeout=60, kernel_name="python3", store_widget_state=True).execute()
    return book


def test_a_client_without_a_browser_gets_the_picture_and_no_code(executed: Any) -> None:
    (output,) = executed.cells[1].outputs
    assert set(output.data) == {"text/plain", "text/html"}
    assert len(json.dumps(output, indent=1)) <= 15_000
    assert output.data["text/plain"].startswith("load: done in")
    state = json.dumps(executed.metadata.get("widgets", {}))
    assert len(state) < 12_000
    assert "BokehJS" not in nbformat.writes(executed)
    assert executed.cells[0].outputs == []
    nbformat.validate(executed)


def test_a_cell_during_which_a_gpu_comes_is_drawn_on(written: Written) -> None:
    feed = feed_of(written)
    written.row(0.0, 1, EDGE_START, cpu=0.0)
    written.row(0.1, 1, cpu=0.1)
    feed.poll()
    gpu = {"id": "gpu0", "name": "T4", "uuid": "GPU-1", "memory_bytes": GIB, "since": 0.15}
    written.writer.describe(devices=[gpu])
    segment = written.writer.add_segment("main", [*COLUMNS, Column("gpu.utilization", "gpu0", "%")])
    for tenth, flags in ((2, 0), (3, EDGE_END)):
        written.writer.sample(segment, tenth * SECOND // 10, 1, flags, [tenth / 10, 2 * GIB, 0.0, 50.0])
    feed.poll()
    assert feed.ended
    assert feed.rows()[:, 0] == pytest.approx([0, 0.1, 0.2, 0.3])
    memory = next(spec for spec in feed.panels if spec.key == "memory")
    assert feed.frame(0).of(memory)[:, 0].tolist() == [GIB, GIB, 2 * GIB, 2 * GIB]
    assert any(spec.key == "gpu" for spec in feed_of(written, 2).panels), "from the next cell on"


def test_the_mean_of_a_gpu_that_came_late_is_of_the_time_it_was_there() -> None:
    plan = a_cell(30, gpu={"gpu0": GpuWork(hump(0, 90, 15, 30))})
    run = come_late(a_run(plan, devices=[a_device()]), "gpu0", 2 + 10.0)
    (cell,) = run.cells
    frame = charts.frame_of(run, cell.start, cell.start + 29.95)
    facts = still.Facts("In [1]", "ok", 30.0)
    said = still.summary(charts.Frame(frame.panels, frame.time - cell.start, frame.values), facts)
    assert "GPU 68 % mean, 90 % peak" in said  # 5 s of nothing, 15 s of 90 %


PICTURED = (
    "%%monitor train\nimport time\nuntil = time.monotonic() + 2\nwhile time.monotonic() < until: sum(range(10**5))"
)
WIDGET = "application/vnd.jupyter.widget-view+json"


def test_a_client_that_ignores_widgets_gets_pictures_while_the_cell_runs(kernel: Kernel) -> None:
    kernel.run("from cellmeter import live; live.IDLE_SECONDS, live.PICTURE_SECONDS = 3600, 0.3")
    assert len(kernel.run(PICTURED).updates) == 1, "a kernel that was never idle cannot know"
    kernel.run("live.IDLE_SECONDS = 0")
    *pictures, final = kernel.run(PICTURED).updates
    assert len(pictures) >= 2
    for one in pictures:
        assert set(one["data"]) == {WIDGET, "text/plain", "text/html"}
        assert one["data"]["text/html"].startswith('<img alt="Charts of train: recording for ')
        assert one["data"]["text/plain"].startswith("train: recording for ")
    assert WIDGET not in final["data"]


def test_a_page_that_has_spoken_gets_no_pictures(kernel: Kernel) -> None:
    kernel.run("from cellmeter import live; live.IDLE_SECONDS, live.PICTURE_SECONDS = 0, 0.3")
    comm = kernel.run("print(live._stages[get_ipython()].widget.model_id, end='')").stdout
    said = {"comm_id": comm, "data": {"method": "custom", "content": {"k": "here"}}}
    kernel.client.shell_channel.send(kernel.client.session.msg("comm_msg", said))
    assert len(kernel.run(PICTURED).updates) == 1


BUSY = """
import multiprocessing, time
def spin(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until: pass
    return 1
pool = multiprocessing.get_context("fork").Pool(2)
"""


def test_panel_table_and_picture_say_the_same_of_cpu(kernel: Kernel) -> None:
    """Two workers that were there before the cell: only samples tell of them. And no figure is beyond the machine's cores."""
    kernel.run(BUSY)
    said = [kernel.run("%%monitor busy\nsum(pool.map(spin, [1.2, 1.2]))"), kernel.run("%%monitor short\npass")]
    run = kernel.recorded_cells(3)
    shown = kernel.run("%monitor show 3").displays[-1]["data"]["text/plain"]
    table = kernel.run("%monitor cells").displays[-1]["data"]["text/plain"]
    kernel.run("pool.terminate(); pool.join()")
    busy, short = (reply.updates[-1]["data"]["text/plain"] for reply in said)
    cell, brief = (next(c for c in run.cells if c.label == label) for label in ("busy", "short"))
    cores = run.usage(cell).cores
    assert cores is not None
    assert cores <= run.host.cpu_count

    def figure(text: str) -> float:
        return float(re.findall(r"CPU ([\d.]+) of", text)[0])

    assert figure(busy) == pytest.approx(cores, abs=0.06), "the last sample may be late"
    assert figure(shown) == pytest.approx(cores, abs=0.006)
    row = next(line for line in table.splitlines() if "busy" in line)
    assert f"{cores:.2f}" in row
    assert "CPU use: too short to tell" in short
    usage = run.usage(brief)
    assert usage.cores is None
    assert usage.unknown["cores"] == "cell shorter than 0.1 s"
    assert usage.cpu_seconds is not None
    for metric, subject in (("host.cpu.usage", "host"), ("process.cpu.usage", "process")):
        assert np.nanmax(run.series(metric, subject).values) <= run.host.cpu_count
