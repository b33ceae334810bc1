"""Alerts and the memory budget: their expressions, when they go off, and what they do to real kernels."""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nvml_stub
import pytest
from conftest import Kernel, hold, let_go, wait_until
from hypothesis import given
from hypothesis import strategies as st

from cellmeter.alerts import (
    KERNEL,
    TREE,
    Alert,
    Board,
    Budget,
    Guard,
    Watch,
    guards_of,
    message_of,
    not_held,
    parse,
    parse_budget,
    watchable,
)
from cellmeter.errors import BadUsage
from cellmeter.lookout import Gate
from cellmeter.metrics import METRICS, RATE_OF
from cellmeter.run import Column
from cellmeter.words import given_text, value_text

MIB = 2**20


# ── expressions ──


def plainly(alert: Alert) -> Alert:
    """Without what it has from the catalogue."""
    return replace(alert, unit="1", counter=None)


@pytest.mark.parametrize(
    ("text", "alert"),
    [
        ("gpu.utilization < 30 for 60s", ("gpu.utilization", None, False, 30, 60)),
        ("gpu.utilization:gpu0<30% for 1m", ("gpu.utilization", "gpu0", False, 30, 60)),
        (" process.memory.rss  >  1.5 GiB for 500ms ", ("process.memory.rss", None, True, 1.5 * 2**30, 0.5)),
        ("process.memory.rss > 2GB for 0s", ("process.memory.rss", None, True, 2e9, 0)),
        ("process.disk.read.rate > 10MB/s for 2 min", ("process.disk.read.rate", None, True, 1e7, 120)),
        ("host.cpu.usage > 3.5 cores for 1h", ("host.cpu.usage", None, True, 3.5, 3600)),
        ("gpu.power > 300 W for 10s", ("gpu.power", None, True, 300, 10)),
        ("gpu.temperature > -1e1 °C for 10s", ("gpu.temperature", None, True, -10, 10)),
    ],
)
def test_what_an_expression_means(text: str, alert: tuple[object, ...]) -> None:
    assert plainly(parse(text)) == Alert(" ".join(text.split()), *alert)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "why", "under"),
    [
        ("", "here goes the name of a metric", ""),
        ("gpu.utilisation < 30 for 60s", "did you mean gpu.utilization?", "gpu.utilisation"),
        ("loss < 30 for 60s", "there is no metric 'loss': there are", "loss"),
        ("process.cpu > 80 for 2s", "did you mean process.cpu.usage?", "process.cpu"),
        ("process.cpu.cores > 1 for 2s", "did you mean process.cpu.usage?", "process.cpu.cores"),
        ("process.cpu.time > 8 for 2s", "process.cpu.time only ever grows: use process.cpu.usage", "process.cpu.time"),
        ("gpu.energy:gpu0 > 8 for 2s", "gpu.energy only ever grows: there are gpu.utilization, ", "gpu.energy"),
        ("cgroup.memory > 8 for 2s", "there are cgroup.memory.used, ", "cgroup.memory"),
        ("gpu.utilization.driver < 30 for 60s", "come too late to be watched", "gpu.utilization.driver"),
        ("gpu.utilization: < 30 for 60s", "after the colon goes a subject", "gpu.utilization:"),
        ("gpu.utilization <= 30 for 60s", "here goes < or >", "<="),
        ("gpu.utilization 30", "here goes < or >", "30"),
        ("gpu.utilization < low for 60s", "here goes a number", "low"),
        ("gpu.utilization < 1e999 for 60s", "that is too much", "1e999"),
        ("gpu.utilization < 30 GiB for 60s", "gpu.utilization has no unit 'GiB': use %", "GiB"),
        ("gpu.utilization < 30", 'here goes "for"', ""),
        ("gpu.utilization < 30 for", "here goes how long", ""),
        ("gpu.utilization < 30 for ever", "here goes how long", "ever"),
        ("gpu.utilization < 30 for 60", "a duration has a unit", ""),
        ("gpu.utilization < 30 for 60 parsecs", "there is no time 'parsecs'", "parsecs"),
        ("gpu.utilization < 30 for 25h", "that is more than a day", "25h"),
        ("gpu.utilization < 30 for 60s or so", "nothing may follow", "or"),
        ("温度 < 30 for 60s", "there is no metric '温度'", "温度"),
    ],
)
def test_a_caret_under_the_fault(text: str, why: str, under: str) -> None:
    with pytest.raises(BadUsage) as caught:
        parse(text)
    message, shown, carets = str(caught.value).split("\n")
    assert message.startswith("alert: ")
    assert why in message
    assert shown == f"  {text}"
    wide = 2 if "温" in under else 1
    at = len(text) if not under else text.rindex(under)
    assert carets == "  " + " " * at + "^" * max(1, wide * len(under))


NAMES = st.sampled_from([metric.name for metric in watchable()])


@given(st.text("abcdefgmoprstuy.", max_size=25) | st.sampled_from(sorted(METRICS)))
def test_what_cannot_be_watched_is_told_with_what_can(name: str) -> None:
    can = {metric.name for metric in watchable()}
    try:
        assert parse(f"{name} > 1 for 1s").metric in can
    except BadUsage as error:
        said = (
            str(error)
            .split("\n")[0]
            .removeprefix(f"alert: {name} ")
            .removeprefix(f"alert: there is no metric '{name}': ")
        )
        assert {word for word in re.split(r"[ ,?:]+", said) if word in METRICS} <= can


@given(
    NAMES,
    st.none() | st.sampled_from(["gpu0", "host", "cpu12"]),
    st.sampled_from("<>"),
    st.integers(-(10**9), 10**9) | st.floats(-1e12, 1e12).map(lambda x: round(x, 6)),
    st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]),
    st.integers(0, 24),
    st.sampled_from(["", " ", "  "]),
)
def test_every_metric_can_be_watched(
    metric: str, subject: str | None, sign: str, value: float, unit: tuple[str, float], number: int, gap: str
) -> None:
    named = metric if subject is None else f"{metric}:{subject}"
    alert = parse(f"{named}{gap}{sign}{gap}{value} for {number}{gap}{unit[0]}")
    assert (alert.unit, alert.counter) == (METRICS[metric].unit, RATE_OF.get(metric))
    assert plainly(alert) == Alert(alert.text, metric, subject, sign == ">", float(value), number * unit[1])
    assert parse(alert.text) == alert


WORDS = ["gpu.power", "<", ">", "=", "for", "3", "60s", "%:"]


@given(st.text(max_size=40) | st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
def test_any_text_is_an_alert_or_one_error(text: str) -> None:
    try:
        parse(text)
    except BadUsage as error:
        lines = str(error).split("\n")
        assert len(lines) == 3
        assert set(lines[2].strip()) == {"^"}
        assert lines[2].rstrip() == lines[2]


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.9", (0.9, None)),
        ("90%", (0.9, None)),
        ("1", (1.0, None)),
        (" 12GiB ", (None, 12 * 2**30)),
        (".5", (0.5, None)),
    ],
)
def test_budgets(text: str, budget: tuple[float | None, float | None]) -> None:
    assert parse_budget(text) == Budget(text.strip(), *budget, interrupt=False)


@pytest.mark.parametrize("text", ["", "0", "1.1", "12", "101%", "0GiB", "-1", "much", "12 GiB/s", "nan"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(BadUsage, match=r"a memory budget is a share of the limit \(0\.9, 90%\) or bytes \(12GiB\)"):
        parse_budget(text)


# ── when they go off ──


def states(alert: str, readings: list[float], step: float = 1.0) -> list[tuple[float, str]]:
    """When an alert changes, in seconds, for readings at even steps."""
    watch = Watch(parse(alert), "x")
    seen = ((i * step, watch.see(int((100 + i * step) * 1e9), reading)) for i, reading in enumerate(readings))
    return [(t, state) for t, state in seen if state is not None]


def test_it_goes_off_once_until_it_clears() -> None:
    low, high, unknown = [10.0], [90.0], [math.nan]
    text = "gpu.utilization < 30 for 3s"
    assert states(text, low * 10) == [(3, "fired")]
    assert states(text, low * 3 + high + low * 4) == [(7, "fired")]
    assert states(text, low * 5 + high + low * 9) == [(3, "fired")]  # not long enough to clear
    assert states(text, low * 5 + high * 5 + low * 5) == [(3, "fired"), (8, "cleared"), (13, "fired")]
    assert states(text, unknown * 20) == []
    assert states(text, (low * 3 + unknown) * 5) == []
    assert states(text, low * 4 + unknown * 9 + low * 9) == [(3, "fired")]
    assert states(text, low * 9, step=6.0) == []  # nobody knows what was between


def test_for_no_time_at_all_it_does_not_flutter() -> None:
    assert states("gpu.utilization < 30 for 0s", [10.0, 90.0] * 50, step=0.1) == [(0, "fired")]


def test_a_counter_is_watched_as_its_rate() -> None:
    assert states("process.cpu.usage > 1.5 for 2s", [0.0, 1, 2, 4, 6, 8, 10, 11]) == [(5, "fired")]
    assert states("process.cpu.usage > 1.5 for 2s", [0.0, 9, 0, 9, 0, 9, 0]) == []  # another process each time


@given(st.lists(st.floats(0, 100) | st.just(math.nan), max_size=60), st.integers(0, 5))
def test_what_goes_off_has_held(readings: list[float], seconds: int) -> None:
    changes = states(f"gpu.utilization < 50 for {seconds}s", readings)
    assert [state for _, state in changes] == ["fired", "cleared"][:1] * (len(changes) > 0) + [
        ("cleared", "fired")[i % 2] for i in range(len(changes) - 1)
    ]
    for t, state in changes:
        if state == "fired":
            assert all(r < 50 for r in readings[int(t) - seconds : int(t) + 1])


COLUMNS = [Column("gpu.utilization", "gpu0", "%"), Column("gpu.utilization", "gpu1", "%")]


def test_each_subject_is_on_its_own_and_cells_begin_anew() -> None:
    board = Board()
    board.set_alerts(message_of([parse("gpu.utilization < 30 for 2s")], None)["alerts"])
    rows = [[10.0, 90.0]] * 4
    seen = [
        board.see(0, COLUMNS, int(i * 1e9), seq, row) for i, (seq, row) in enumerate(zip([1] * 4, rows, strict=True))
    ]
    assert [(e["subject"], e["value"], e["seq"]) for events in seen for e in events] == [("gpu0", 10.0, 1)]
    assert board.see(0, COLUMNS, int(4e9), 0, rows[0]) == []
    later = [board.see(0, COLUMNS, int(i * 1e9), 2, [10.0, 10.0]) for i in (5, 6, 7)]
    assert [e["subject"] for e in later[2]] == ["gpu0", "gpu1"]
    board.set_alerts([])
    assert board.see(0, COLUMNS, int(9e9), 2, [10.0, 10.0]) == []


def test_a_gpu_that_is_not_ours_is_watched_only_where_it_is_named() -> None:
    idle = [[10.0, 10.0]] * 3
    for text, subjects in (("gpu.utilization", ["gpu0"]), ("gpu.utilization:gpu1", ["gpu1"])):
        board = Board()
        board.set_foreign(["gpu1"])
        board.set_alerts(message_of([parse(f"{text} < 30 for 2s")], None)["alerts"])
        seen = [event for i, row in enumerate(idle) for event in board.see(0, COLUMNS, int(i * 1e9), 1, row)]
        assert [event["subject"] for event in seen] == subjects


def test_a_gpu_that_is_hidden_from_the_kernel_sets_off_nothing(
    start_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    ours = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    kernel = start_kernel(env={**nvml_stub.environment("gpu\ngpu\ngpu", tmp_path), **ours})
    kernel.load()
    kernel.run('%monitor alert "gpu.utilization < 30 for 200ms"')
    said = kernel.run("import time; time.sleep(2)").stderr
    assert re.findall(r"gpu\d", said) == ["gpu1"], said


@pytest.mark.parametrize(
    ("mine", "contexts", "watched"),
    [
        (True, 0.0, True),
        (True, math.nan, True),
        (None, 1.0, True),
        (None, 0.0, False),
        (None, math.nan, True),
        (None, None, True),
        (False, 0.0, False),
        (False, math.nan, False),
        (False, 1.0, True),
    ],
)
def test_which_gpus_are_the_kernels(mine: bool | None, contexts: float | None, watched: bool) -> None:
    lists = {} if contexts is None else {"gpu0": contexts}
    assert not_held({"gpu0": mine}, lists) == ([] if watched else ["gpu0"])


def test_without_the_variable_only_gpus_that_the_kernel_holds_are_watched(
    start_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """By the driver's process lists, which are read every two seconds."""
    trace = f"gpu\ngpu\ngpu\nproc 0 - gpu 1 pid=@{tmp_path}/pid used=2g\nproc 0 - gpu 2 pid=1 used=9g"
    kernel = start_kernel(env=nvml_stub.environment(trace, tmp_path))
    kernel.load()
    kernel.run('%monitor alert "gpu.utilization < 30 for 200ms"\nimport os, time; time.sleep(2.5)')
    assert kernel.run("time.sleep(2.5)").stderr == "", "it holds none"
    kernel.run(f"open('{tmp_path}/pid', 'w').write(str(os.getpid()))")
    said = kernel.run("time.sleep(4.5)").stderr
    assert re.findall(r"gpu\d", said) == ["gpu1"], said


def test_it_is_news_again_once_it_has_cleared_in_or_between_cells() -> None:
    board = Board()
    board.set_alerts(message_of([parse("gpu.utilization > 30 for 0s")], None)["alerts"])
    high, low = [90.0, math.nan], [10.0, math.nan]

    def seen(start: float, *cells: tuple[int, list[float]]) -> list[tuple[int, bool]]:
        events = [board.see(0, COLUMNS, int((100 + start + i) * 1e9), *cell) for i, cell in enumerate(cells)]
        return [(e["seq"], e["again"]) for some in events for e in some if e["state"] == "fired"]

    assert seen(0, (1, high), (0, high), (2, high), (3, high)) == [(1, False), (2, True), (3, True)]
    assert seen(4, (0, low), (4, high)) == [(4, True)]  # not for a second
    assert seen(6, (0, low), (5, low), (0, high), (6, high)) == [(6, False)]
    assert seen(10, (6, low), (6, low), (6, high)) == [(6, False)]


def test_the_budget_lets_a_cell_clean_up() -> None:
    guard = Guard(parse_budget("1GB"), "process.memory.rss", "process", 1e9)
    cells = {1: [0.5e9, 0.9e9, 1.1e9, 1.2e9], 2: [1.2e9, 1.2e9, 0.8e9], 3: [1.2e9, 1.2e9, 1.3e9], 4: [math.nan, 0.1e9]}
    assert {seq: [guard.see(seq, value) for value in values] for seq, values in cells.items()} == {
        1: [False, False, True, False],
        2: [False, False, False],
        3: [False, False, True],
        4: [False, False],
    }


def test_a_budget_is_confirmed_in_words(kernel: Kernel) -> None:
    said = kernel.run("%monitor start --max-memory 50%").stdout.splitlines()[1]
    limit = kernel.recorded_cells(1).limits["memory_bytes"]
    half, whole = (given_text(size, "By") for size in (limit.value / 2, limit.value))
    assert re.fullmatch(
        rf"cellmeter: memory budget 50%: warns of a cell that goes beyond {half} in use by [a-z ]+, "
        rf"50 % of {whole} \({limit.source}\)",
        said,
    )
    said = kernel.run("%monitor start --max-memory 12GiB --interrupt").stdout.splitlines()[1]
    assert said.endswith(": interrupts a cell that goes beyond 12 GiB in use by the kernel and its workers")


def test_what_a_budget_is_about() -> None:
    columns = [Column(m, s, "By") for m, s in [("host.memory.used", "host"), ("cgroup.memory.used", "cgroup")]]
    own = [Column("process.memory.rss", "process", "By"), Column("process.tree.memory.rss", "process", "By")]

    def watched(text: str, source: str, columns: list[Column]) -> tuple[str, float] | None:
        guards = guards_of(parse_budget(text), columns, 100.0, source)
        assert len(guards) < 2
        return (guards[0].metric, guards[0].threshold) if guards else None

    assert watched("0.9", "cgroup", columns + own) == ("cgroup.memory.used", 90)
    assert watched("0.9", "host", columns + own) == ("host.memory.used", 90)
    assert watched("0.9", "rlimit", columns + own) == ("process.tree.memory.rss", 90)
    assert watched("64B", "cgroup", columns + own[:1]) == ("process.memory.rss", 64)
    assert watched("64B", "cgroup", columns) is None


def test_an_upper_bound_warns_and_what_the_kernel_has_itself_interrupts() -> None:
    columns = [Column(*TREE, "By"), Column(*KERNEL, "By")]
    board = Board()
    board.set_guards(guards_of(parse_budget("1GB", interrupt=True), columns, 0.0, "host", upper_bound=True))

    def seen(*rows: list[float]) -> list[tuple[str, bool, bool]]:
        events = [event for row in rows for event in board.see(0, columns, 1, len(rows), row)]
        return [(event["metric"], event["interrupt"], event["upper_bound"]) for event in events]

    beyond = [2.0e9, 1.5e9]
    assert seen([1e8, 1e8], [2e9, 1e8]) == [(TREE[0], False, True)]
    assert seen([1e8, 1e8], [2e9, 1e8], beyond) == [(TREE[0], False, True), (KERNEL[0], True, False)]
    assert seen([1e8, 1e8], beyond, beyond, beyond) == [(KERNEL[0], True, False)], "said once"
    board.set_guards(guards_of(parse_budget("1GB", interrupt=True), columns, 0.0, "host"))
    assert seen([1e8, 1e8], [2e9, 1e8]) == [(TREE[0], True, False)]


# ── the interrupt ──


def test_an_interrupt_hits_the_cell_it_is_meant_for_and_nothing_else() -> None:
    """A thread interrupts as fast as it can, while cells begin and end: between them no interrupt comes."""
    gate, stop, sent = Gate(), threading.Event(), [0]
    current = [0]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def interrupt() -> None:
        while not stop.is_set():
            sent[0] += gate.interrupt(current[0])

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        for seq in range(1, 10_000):
            if sent[0] >= 30:
                break
            current[0], status = seq, "ok"
            gate.open(seq)
            try:
                until = time.perf_counter() + seq % 4 * 1e-4
                while time.perf_counter() < until:
                    pass
            except KeyboardInterrupt:
                status = "interrupted"
            try:
                gate.close(status)  # type: ignore[arg-type]
            except KeyboardInterrupt:
                gate.close("interrupted")
            sum(range(300))  # between cells: a KeyboardInterrupt here ends the test
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert sent[0] >= 30
    assert not gate.interrupt(current[0])


def test_a_cell_on_another_thread_is_not_interrupted() -> None:
    gate = Gate()
    thread = threading.Thread(target=gate.open, args=(1,))
    thread.start()
    thread.join()
    assert not gate.interrupt(1)


# ── real kernels ──

GROW = """
blocks = []
for _ in range(200):
    blocks.append(b"x" * (4 << 20))
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("older", "grow"), [(False, GROW), (True, GROW), (False, GROW.replace("time.sleep", "await asyncio.sleep"))]
)
def test_a_cell_beyond_its_budget_is_interrupted_and_its_variables_live(
    start_kernel: Callable[..., Kernel], older: bool, grow: str
) -> None:
    kernel = start_kernel(older=older)
    kernel.load()
    resident = int(kernel.run("import asyncio, os, time, psutil; print(psutil.Process().memory_info().rss)").stdout)
    started = kernel.run(f"%monitor start --max-memory {resident + 300 * MIB}B --interrupt")
    assert started.status == "ok", started.traceback
    reply = kernel.run("before = 'here'\n" + grow)
    assert reply.error in ("KeyboardInterrupt", "CancelledError")
    assert f"cellmeter: memory budget {resident + 300 * MIB}B: " in reply.stderr
    assert "; the cell is interrupted" in reply.stderr
    after = kernel.run("print(before, 50 <= len(blocks) < 200)")
    assert (after.status, after.stdout, after.stderr) == ("ok", "here True\n", "")
    clean = kernel.run(
        "kept = len(blocks); time.sleep(0.3); del blocks; print(kept)"
    )  # still beyond it, but not growing
    assert (clean.status, clean.stderr) == ("ok", "")
    run = kernel.recorded_cells(5)
    (over,) = run.over_budget
    assert over.interrupt
    assert over.value_bytes > over.threshold_bytes == resident + 300 * MIB
    assert [cell.status for cell in run.cells if cell.seq == over.cell] == ["interrupted"]
    assert "is interrupted" not in kernel.run(GROW.replace("200", "5")).stderr


def test_workers_that_share_the_kernels_memory_stay_within_a_budget(start_kernel: Callable[..., Kernel]) -> None:
    """Four forked workers of a kernel with 300 MiB: as a sum 1.5 GiB, in truth 300 MiB, until they allocate."""
    kernel = start_kernel()
    kernel.load()
    made = kernel.run(
        "import multiprocessing, time, psutil\n"
        "block = bytearray(b'x') * (300 << 20)\n"
        "def trivial(n): time.sleep(2)\n"
        "def greedy(n):\n    mine = bytearray(b'x') * (200 << 20)\n    time.sleep(20)\n"
        "print(psutil.Process().memory_info().rss)"
    )
    budget = int(made.stdout) + 500 * MIB
    assert kernel.run(f"%monitor start --max-memory {budget}B --interrupt").status == "ok"
    pool = "with multiprocessing.get_context('fork').Pool(4) as pool: pool.map({}, range(4))"
    shared = kernel.run(pool.format("trivial"))
    assert (shared.status, shared.stderr) == ("ok", "")
    own = kernel.run(pool.format("greedy"))
    assert own.error == "KeyboardInterrupt"
    assert "; the cell is interrupted" in own.stderr


def test_without_interrupt_it_only_warns(kernel: Kernel) -> None:
    resident = int(kernel.run("import os, time, psutil; print(psutil.Process().memory_info().rss)").stdout)
    kernel.run(f"%monitor start --max-memory {resident + 100 * MIB}B")
    reply = kernel.run(GROW.replace("200", "60"))
    assert reply.status == "ok"
    assert reply.stderr.count("memory budget") == 1
    assert "interrupted" not in reply.stderr
    (over,) = kernel.recorded_cells(3).over_budget
    assert not over.interrupt
    for bad, why in [("--max-memory lots", "a memory budget is"), ("--interrupt", "--interrupt needs --max-memory")]:
        assert why in kernel.run(f"%monitor start {bad}").stderr


@pytest.mark.parametrize("older", [False, True])
def test_an_alert_is_a_line_a_callback_and_an_event(start_kernel: Callable[..., Kernel], older: bool) -> None:
    kernel = start_kernel(older=older)
    kernel.load()
    added = kernel.run('%monitor alert "process.memory.rss > 1MiB for 200ms"')
    assert added.stdout == "cellmeter: alert process.memory.rss > 1MiB for 200ms\n"
    bare = kernel.run('%monitor alert "process.cpu.usage > 50 for 1s"')
    assert bare.stdout == "cellmeter: alert process.cpu.usage > 50 for 1s, in cores\n", "who typed 50 may have meant %"
    removing = kernel.run("%monitor alert --remove 2")
    adding = kernel.run(
        "import cellmeter, time, threading\n"
        "seen, called = [], threading.Event()\n"
        "remove = cellmeter.alert('process.threads > 0 for 0s', lambda fired: (seen.append(fired), called.set()))"
    )
    reply = kernel.run("called.wait(60); print(seen[0].alert, seen[0].cell)\nwhile time.sleep(0.01): pass")
    assert "process.threads > 0 for 0s" in reply.stdout
    wait = "until = time.monotonic() + 1.2\nwhile time.monotonic() < until: time.sleep(0.05)"
    waits = [kernel.run(wait) for _ in range(2)]
    said = "".join(cell.stderr for cell in (added, bare, removing, adding, reply, *waits))  # any may have lasted 200 ms
    assert re.findall(r"cellmeter: alert: process.memory.rss > 1MiB for 200ms \(process is at [\d.]+ MiB\)", said)
    assert said.count("process.memory.rss") == said.count("process.threads") == 1, "it has not cleared since"
    listed = kernel.run("%monitor alert").stdout
    assert listed == "1  process.memory.rss > 1MiB for 200ms\n2  process.threads > 0 for 0s\n"
    kernel.run("remove()")
    assert kernel.run("%monitor alert --remove 1").stdout == "cellmeter: removed process.memory.rss > 1MiB for 200ms\n"
    assert kernel.run("%monitor alert").stdout == "no alerts\n"
    assert kernel.run(wait).stderr == ""
    run = kernel.recorded_cells(10)
    fired = [alert for alert in run.alerts if alert.alert.startswith("process.memory")]
    assert len({alert.cell for alert in fired}) >= 2, "the run has it of each cell"
    told = " ".join(kernel.run("%monitor report").displays[0]["data"]["text/plain"].split())
    assert f"process at {value_text(fired[-1].value, 'By')}" in told
    assert fired[-1].value > MIB
    cell = next(cell for cell in run.cells if cell.seq == fired[-1].cell)
    assert 0.2 <= fired[-1].time - cell.start <= 2
    assert kernel.run("print([t.name for t in threading.enumerate() if 'cellmeter-alerts' in t.name])").stdout == "[]\n"


def test_a_bad_alert_is_one_error_with_a_caret(kernel: Kernel) -> None:
    reply = kernel.run("%monitor alert gpu.utilisation < 30 for 60s")
    assert "did you mean gpu.utilization?\n  gpu.utilisation < 30 for 60s\n  ^^^^^^^^^^^^^^^\n" in reply.stderr
    assert "--remove" not in reply.stderr
    kernel.recorded_cells(1)
    wait_until(lambda: kernel.recorded().sample_count, "a sample")
    blind = kernel.run("%monitor alert process.cpu.usage:gpu7 > 3 for 1s").stdout
    assert blind.endswith(": this run has no process.cpu.usage:gpu7, so it cannot go off\n")
    kernel.run("%monitor start --max-memory 90%")
    status = kernel.run("%monitor").stdout
    assert "Watched for          1  process.cpu.usage:gpu7 > 3 for 1s\n" in status
    assert "Watched for          memory budget 90%: warns of a cell that goes beyond " in status
    metrics = kernel.run("%monitor alert --metrics").stdout
    assert re.search(r"^process\.cpu\.usage +cores +\w+", metrics, re.MULTILINE)
    assert re.search(r"^process\.memory\.rss +bytes +\w+", metrics, re.MULTILINE)
    assert "process.cpu.time" not in metrics
    assert "gpu." not in metrics, "there is none in this run"
    assert "there is no number 3" in kernel.run("%monitor alert --remove 3").stderr
    reply = kernel.run("import cellmeter; cellmeter.alert('gpu.power > 3')")
    assert reply.error == "BadUsage"


def test_a_callback_that_fails_is_one_line(kernel: Kernel) -> None:
    said: list[str] = []

    def run(cell: str) -> None:
        reply = kernel.run(cell)
        assert reply.status == "ok"
        said.append(reply.stderr)

    run("import cellmeter, time\nremove = cellmeter.alert('process.threads > 0 for 0s', lambda fired: 1 / 0)")
    wait_until(lambda: "callback" in "".join(said) or run("time.sleep(0.2)"), "word of the failure")
    run("remove()")
    line = "cellmeter: the callback of 'process.threads > 0 for 0s' failed: ZeroDivisionError: division by zero"
    assert [text for text in "".join(said).splitlines() if "callback" in text] == [line]


def test_it_is_seen_while_the_gil_is_held(kernel: Kernel, tmp_path: Path) -> None:
    """The event is in the run before the cell, which lets nothing else run in the kernel, has ended."""
    kernel.run('%monitor alert "process.memory.rss > 1MiB for 500ms"')
    kernel.recorded_cells(1)
    held = kernel.send(hold(tmp_path / "held"))
    fired = wait_until(
        lambda: [a for a in kernel.recorded().alerts if kernel.recorded().cells[-1].end is None], "the alert"
    )
    let_go(tmp_path / "held")
    reply = kernel.reply(held)
    assert fired[0].value > MIB
    assert "cellmeter: alert: process.memory.rss > 1MiB for 500ms" in reply.stderr


def test_gpus_are_watched_and_spans_tell_of_them(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """Two GPUs, one idle: the alert names that one, and a span has both their use."""
    trace = "gpu name=A mem=80g\ngpu name=B mem=80g\nat 0 gpu 0 util=90 power=300\nat 0 gpu 1 util=4 power=60\n"
    ours = {"CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    kernel = start_kernel(env={**nvml_stub.environment(trace, tmp_path), **ours})
    kernel.load()
    assert kernel.run('%monitor alert "gpu.utilization < 30 for 500ms"').stdout.endswith("for 500ms, in %\n")
    reply = kernel.run("import cellmeter, time\nwith cellmeter.span('infer'): time.sleep(1.5)")
    assert "cellmeter: alert: gpu.utilization < 30 for 500ms (gpu1 is at 4 %)" in reply.stderr
    assert "gpu0" not in reply.stderr
    kernel.recorded_cells(2)
    run = wait_until(
        lambda: (r := kernel.recorded()).usage(r.cells[-1]).gpu["gpu0"].energy_joules and r, "the last sample"
    )
    assert [fired.subject for fired in run.alerts] == ["gpu1"]
    (infer,) = run.span_stats()
    assert infer.utilization_mean == {"gpu0": pytest.approx(90), "gpu1": pytest.approx(4)}
    assert infer.energy_joules["gpu0"] == pytest.approx(300 * infer.p50, rel=0.1)
