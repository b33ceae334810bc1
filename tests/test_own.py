"""Own metrics: log, step and span from threads, tasks and worker processes, in real kernels and scripts."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import GpuWork, a_cell, a_device, a_run, bursts
from conftest import Kernel, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recorder import Subject

from cellmeter import own
from cellmeter.home import run_folders
from cellmeter.own import BURST_BYTES, BYTES_PER_SECOND, MOST_NAMES, NotKept, Own, number_of
from cellmeter.span_stats import Interval, stats_of, union
from cellmeter.spans import Span, SpanBatch, bucket_of, bucket_seconds, own_from
from cellmeter.store import read_run

Script = Callable[..., Any]


class Line:
    """A sink that keeps what it gets, as long as it has room, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self.full = False
        self.events: list[dict[str, Any]] = []
        self.own = Own(lambda: self.now)
        self.own.attach(self)

    def __call__(self, event: dict[str, Any]) -> int:
        if self.full:
            return 0
        self.events.append(json.loads(json.dumps(event, allow_nan=False)))
        return len(json.dumps(event))

    def span(self, name: str, seconds: float, status: str = "ok") -> None:
        self.own.span(name, self.now - round(seconds * 1e9), status, None, None)

    def read(self) -> Any:
        return own_from(self.events, 0)


@pytest.fixture
def line() -> Line:
    return Line()


# ── what is kept ──


def test_few_values_are_kept_one_by_one(line: Line) -> None:
    for i in range(50):
        line.now += 100_000_000
        line.own.log({"loss": 1 / (i + 1), "tokens": 4096})
    logged = line.read().logged
    assert logged["loss"].value.tolist() == [1 / (i + 1) for i in range(50)]
    assert logged["loss"].count.tolist() == [1] * 50
    assert logged["tokens"].time == pytest.approx(np.arange(1.1, 6.05, 0.1))


def test_a_million_values_are_summed_up_and_none_is_lost(line: Line) -> None:
    calls = 200_000  # 20 s at 100 us a call
    for i in range(calls):
        line.now += 100_000
        line.own.log({"i": i})
    line.own.flush()
    i = line.read().logged["i"]
    assert i.count.sum() == calls
    assert (i.mean * i.count).sum() == pytest.approx(calls * (calls - 1) / 2)
    assert (i.value[-1], i.low.min(), i.high.max()) == (calls - 1, 0, calls - 1)
    assert i.count[0] == 1
    written = sum(len(json.dumps(event)) for event in line.events)
    assert written <= BURST_BYTES + 20 * BYTES_PER_SECOND + 1000


def test_what_a_full_channel_refuses_waits_for_room(line: Line) -> None:
    line.full = True
    for i in range(10):
        line.own.log({"x": i})
        line.own.step({"tokens": 10})
        line.span("s", 0.01 * (i + 1), "error" if i == 3 else "ok")
    assert line.events == []
    line.full = False
    line.own.flush()
    own = line.read()
    assert own.logged["x"].count.tolist() == [10]
    assert own.steps["step"].amount.tolist() == [10]
    assert own.steps["tokens"].amount.tolist() == [100]
    (batch,) = own.batches
    assert (batch.count, batch.errors, batch.seconds) == (10, 1, pytest.approx(0.55))
    stats = stats_of("s", own.spans, own.batches)
    assert (stats.count, stats.exact) == (10, False)
    assert (stats.p50, stats.p90) == (pytest.approx(0.05, rel=0.011), pytest.approx(0.09, rel=0.011))


def test_not_a_number_and_infinity_are_values(line: Line) -> None:
    line.own.log({"a": math.nan, "b": math.inf, "c": -math.inf})
    line.full = True
    for value in (math.nan, 2.0, 5.0, math.nan):
        line.own.log({"d": value})
    line.full = False
    line.own.flush()
    logged = line.read().logged
    assert math.isnan(logged["a"].value[0])
    assert (logged["b"].value[0], logged["c"].value[0]) == (math.inf, -math.inf)
    assert (logged["d"].low[0], logged["d"].high[0]) == (2.0, 5.0)
    assert math.isnan(logged["d"].value[0])


class Tensor:
    """As torch's: its number is there for the asking on the CPU, and behind all pending work on a GPU."""

    def __init__(self, where: str, elements: int = 1) -> None:
        self.device = type("device", (), {"type": where, "__str__": lambda self: f"{where}:0"})()
        self.elements = elements

    def numel(self) -> int:
        return self.elements

    def item(self) -> float:
        assert self.device.type == "cpu", "this would wait for the GPU"
        return 0.5


Tensor.__module__ = "torch"


@pytest.mark.parametrize(
    "value", [1, 1.0, True, np.float32(1), np.int64(1), np.bool_(True), np.array(1), np.array([1.0])]
)
def test_numbers(value: Any) -> None:
    assert number_of(value) == 1.0


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("1", "str is no number"),
        (None, "NoneType is no number"),
        (1j, "complex is no number"),
        ([1.0], "list is no number"),
        (np.array([1.0, 2.0]), "ndarray is no number"),
        (Tensor("cpu", 2), "Tensor is no number"),
        (Tensor("cuda"), "on cuda:0, and reading it would wait"),
    ],
)
def test_no_numbers(value: Any, why: str) -> None:
    with pytest.raises(NotKept, match=why):
        number_of(value)
    assert number_of(Tensor("cpu")) == 0.5


def test_what_cannot_be_kept_is_said_once(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        line.own.log({"loss": "high", "": 1, "x" * 65: 1, "huge": 10**400, "fine": 2})
        line.own.step({"tokens": math.nan})
        line.own.span(3, 0, "ok", None, None)
        line.own.span("s", 0, "ok", None, "many")
    said = capsys.readouterr().err.splitlines()
    assert [text.partition(" is not kept: ")[0] for text in said] == [
        "cellmeter: log(loss=…)",
        "cellmeter: log(=…)",
        f"cellmeter: log({'x' * 65}=…)",
        "cellmeter: log(huge=…)",
        "cellmeter: step(tokens=…)",
        "cellmeter: span(3)",
        "cellmeter: span('s')",
    ]
    assert [e["text"] for e in line.events if e["event"] == "notice"] == [t.removeprefix("cellmeter: ") for t in said]
    assert line.read().logged["fine"].count.tolist() == [1, 1, 1]


def test_names_are_bounded(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(MOST_NAMES + 10):
        line.own.log({f"n{i}": i})
    line.own.flush()
    assert len(line.read().logged) == MOST_NAMES
    assert "there are 100 names already" in capsys.readouterr().err


def test_a_signal_handler_that_logs_within_a_log_does_no_harm(line: Line) -> None:
    def interrupted(event: dict[str, Any]) -> int:
        line.own.log({"within": 1})
        return line(event)

    line.own.attach(interrupted)
    line.own.log({"x": 1})
    line.own.log({"x": 2})
    assert line.read().logged["x"].value.tolist() == [1, 2]


# ── statistics ──


@given(st.floats(1e-9, 1e7))
def test_a_bucket_tells_a_duration_within_a_percent(seconds: float) -> None:
    assert bucket_seconds(bucket_of(seconds)) == pytest.approx(seconds, rel=0.0101)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60), st.data())
def test_quantiles_of_spans_kept_apart_and_summed_up(durations: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(durations)))
    apart = [Span("s", 0, seconds, "ok") for seconds in durations[:cut]]
    summed = []
    if rest := durations[cut:]:
        buckets = [bucket_of(seconds) for seconds in rest]
        histogram = {bucket: buckets.count(bucket) for bucket in buckets}
        summed = [SpanBatch("s", 0, max(rest), len(rest), 0, sum(rest), None, histogram)]
    stats = stats_of("s", apart, summed)
    for share, found in ((0.5, stats.p50), (0.9, stats.p90), (0.99, stats.p99)):
        assert found == pytest.approx(sorted(durations)[math.ceil(share * len(durations)) - 1], rel=0.0101)
    assert stats.count == len(durations)
    assert stats.open_seconds <= stats.busy_seconds + 1e-6


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=12), st.integers(0, 3))
def test_a_union_covers_what_its_parts_do(parts: list[tuple[int, int]], bridge: int) -> None:
    intervals = [Interval(start, start + length) for start, length in parts]
    merged = union(intervals, bridge)
    assert all(any(m.start <= i.start and i.end <= m.end for m in merged) for i in intervals)
    assert all(b.start - a.end > bridge for a, b in itertools.pairwise(merged))


def test_gpu_use_and_energy_while_a_span_is_open() -> None:
    """The GPU works the first two of every four seconds; one span is open while it does, another while it rests."""
    from dataclasses import replace

    work = GpuWork(bursts(4, 2, 80.0), power=bursts(4, 2, 300.0))
    run = a_run(a_cell(40, gpu={"gpu0": work}), devices=[a_device("gpu0")])
    spans = [
        Span(name, 2 + 4 * i + after + 0.1, 2 + 4 * i + after + 1.9, "ok", items=8.0)
        for i in range(10)
        for name, after in (("work", 0), ("rest", 2))
    ]
    run = replace(run, own=replace(run.own, spans=tuple(spans)))
    work_stats, rest = run.span_stats()
    assert (work_stats.name, work_stats.count, work_stats.p50) == ("work", 10, pytest.approx(1.8))
    assert work_stats.utilization_mean["gpu0"] == pytest.approx(80, abs=1)
    assert rest.utilization_mean["gpu0"] == pytest.approx(0, abs=1)
    assert work_stats.energy_joules["gpu0"] == pytest.approx(10 * 1.8 * 300, rel=0.05)
    assert work_stats.per_second == pytest.approx(10 / 18)
    assert work_stats.items_per_second == pytest.approx(80 / 18)
    (within,) = run.spans_in(2, 4)
    assert (within.name, within.count) == ("work", 1)
    short = replace(run, own=replace(run.own, spans=(Span("blink", 3, 3.05, "ok"),)))
    (blink,) = short.span_stats()
    assert blink.utilization_mean == blink.energy_joules == {"gpu0": None}
    assert blink.unknown["gpu.gpu0.energy_joules"] == "the spans are shorter than a reading"


# ── real kernels and scripts ──


def test_spans_logged_values_and_steps_of_a_cell(kernel: Kernel) -> None:
    reply = kernel.run(
        """
import cellmeter, time, threading, asyncio, contextlib
with cellmeter.span("outer"):
    for i in range(3):
        with cellmeter.span("inner") as s:
            time.sleep(0.01)
            s.items = 4
        cellmeter.log(loss=1 / (i + 1))
        cellmeter.step(tokens=100)
with contextlib.suppress(ZeroDivisionError), cellmeter.span("fails"):
    1 / 0
def work():
    with cellmeter.span("thread"):
        cellmeter.log(from_thread=1)
thread = threading.Thread(target=work); thread.start(); thread.join()
async def one(name):
    with cellmeter.span(name):
        with cellmeter.span("awaited"):
            await asyncio.sleep(0.02)
await asyncio.gather(one("a"), one("b"))
"""
    )
    assert (reply.status, reply.stderr) == ("ok", "")
    run = kernel.recorded_cells(1)
    found = [(span.name, span.parent, span.status) for span in run.spans]
    assert found[:6] == [
        ("inner", "outer", "ok"),
        ("inner", "outer", "ok"),
        ("inner", "outer", "ok"),
        ("outer", None, "ok"),
        ("fails", None, "error"),
        ("thread", None, "ok"),
    ]
    assert sorted(found[6:]) == [("a", None, "ok"), ("awaited", "a", "ok"), ("awaited", "b", "ok"), ("b", None, "ok")]
    cell = run.cells[-1]
    assert all(cell.start <= span.start <= span.end <= (cell.end or 0) for span in run.spans)
    inner = next(stats for stats in run.span_stats() if stats.name == "inner")
    assert (inner.count, inner.exact) == (3, True)
    assert inner.p50 >= 0.01
    assert inner.items_per_second == pytest.approx(12 / inner.open_seconds)
    assert run.logged["loss"].value.tolist() == [1, 1 / 2, 1 / 3]
    assert run.logged["from_thread"].pid.tolist() == [0]
    assert run.steps["step"].amount.sum() == 3
    assert run.steps["tokens"].per_second(cell.start, cell.end or 0) == pytest.approx(300 / (cell.seconds or 0))
    frame = run.logged_frame()
    assert frame[frame.name == "loss"].value.tolist() == [1, 1 / 2, 1 / 3]
    assert set(frame.cell) == {cell.seq}
    assert run.spans_frame().name.tolist() == [name for name, _, _ in found]


WORKERS = """
import cellmeter, multiprocessing, subprocess, sys, os
cellmeter.log(kernel=1)
before = dict(os.environ)
"""
WORKER_MODULE = """
import cellmeter
def work(i):
    with cellmeter.span("work"):
        cellmeter.log(worker=i)
    for j in range(20_000):
        cellmeter.log(burst=j)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_kind_are_heard(kernel: Kernel, home: Path, method: str) -> None:
    (home.parent / "workers.py").write_text(WORKER_MODULE)
    reply = kernel.run(
        WORKERS
        + f"""
import workers
context = multiprocessing.get_context({method!r})
processes = [context.Process(target=workers.work, args=(i,)) for i in range(2)]
for process in processes: process.start()
for process in processes: process.join()
assert all(process.exitcode == 0 for process in processes)
subprocess.run([sys.executable, "-c", "import workers; workers.work(2)"], check=True)
assert os.environ == before
"""
    )
    assert (reply.status, reply.stderr) == ("ok", "")
    run = kernel.recorded_cells(1)
    worker = run.logged["worker"]
    assert sorted(worker.value.tolist()) == [0, 1, 2]
    assert len(set(worker.pid.tolist()) - {0}) == 3
    assert {span.pid for span in run.spans} == set(worker.pid.tolist())
    assert run.logged["burst"].count.sum() == 3 * 20_000
    assert run.logged["kernel"].value.tolist() == [1]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in Path(run.path).iterdir())
    assert run.notices == ()


def test_a_plain_script(script: Script, home: Path) -> None:
    process = script(
        "import cellmeter\n"
        "cellmeter.start(rate_hz=20)\n"
        "with cellmeter.span('all'):\n"
        "    cellmeter.log(answer=42)\n"
        "cellmeter.stop()\n"
        "cellmeter.log(late=1)\n"
        "cellmeter.log(late=1)\n"
    )
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said == "cellmeter: nothing is being recorded, so log(), step() and span() keep nothing\n"
    (folder,) = run_folders(home / "runs")
    run = wait_until(lambda: (r := read_run(folder)).ending and r, "the end")
    assert run.logged["answer"].value.tolist() == [42]
    assert list(run.logged) == ["answer"]
    assert [span.name for span in run.spans] == ["all"]


def test_a_script_that_records_nothing_is_told_so_once(script: Script, home: Path) -> None:
    process = script(
        "import cellmeter, sys\n"
        "for i in range(1000):\n"
        "    cellmeter.log(x=i); cellmeter.step()\n"
        "    with cellmeter.span('s'): pass\n"
        "print('IPython' in sys.modules, 'numpy' in sys.modules)\n"
    )
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (0, "False False")
    assert said.count("\n") == 1
    assert "nothing is being recorded" in said


def test_a_loop_of_calls_neither_fills_the_disk_nor_stops_the_samples(script: Script, home: Path) -> None:
    subject = Subject(script)
    subject.do("import cellmeter; cell = recording.cell_started('loop')")
    subject.do("for i in range(100_000): cellmeter.log(i=i)")
    subject.do("exec('for i in range(100_000):\\n with cellmeter.span(\"s\"): pass')")
    subject.do("recording.cell_ended(cell, 'ok')")
    run = subject.ended(1)
    i = run.logged["i"]
    assert (i.count.sum(), i.value[-1]) == (100_000, 99_999)
    (stats,) = run.span_stats()
    assert stats.count == 100_000
    assert (
        sum(f.stat().st_size for f in subject.folder.glob("events*"))
        < 4 * BURST_BYTES + BYTES_PER_SECOND * run.duration
    )


def test_the_most_worker_files_are_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(own, "run_above", lambda: tmp_path)
    monkeypatch.setattr(own, "MOST_WORKER_FILES", 2)
    for pid in (1, 2):
        (tmp_path / f"events-{pid}.jsonl").touch()
    mine = Own()
    mine.log({"x": 1})
    assert "2 processes have said something" in capsys.readouterr().err
    assert not (tmp_path / f"events-{os.getpid()}.jsonl").exists()
    (tmp_path / f"events-{os.getpid()}.jsonl").touch()
    mine.forget()
    mine.log({"x": 1})
    assert (tmp_path / f"events-{os.getpid()}.jsonl").stat().st_size > 0


NUMBERS = st.floats() | st.integers(-(10**6), 10**6)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), NUMBERS, st.booleans()), max_size=30))
def test_whatever_is_logged_and_refused_comes_back(calls: list[tuple[str, float, bool]]) -> None:
    line = Line()
    for name, value, full in calls:
        line.full = full
        line.own.log({name: value})
    line.full = False
    line.own.flush()
    logged = line.read().logged
    for name in ("a", "b"):
        said = [float(value) for called, value, _ in calls if called == name]
        assert (int(logged[name].count.sum()) if name in logged else 0) == len(said)
        if said:
            assert logged[name].value[-1] == said[-1] or math.isnan(said[-1])
