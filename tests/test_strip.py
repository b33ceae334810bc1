"""The line under each cell, in real kernels and on recorded runs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nvml_stub
import pytest
from conftest import Kernel, Reply, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmeter import strip
from cellmeter.export.rows import cell_row, cell_rows
from cellmeter.home import run_folders
from cellmeter.run import EDGE_END, Cell, Column, Run
from cellmeter.store import EVENTS, Writer, read_events, read_run
from cellmeter.words import joules_text

WORK = "import time\nuntil = time.monotonic() + {}\nwhile time.monotonic() < until: pass"
LINE = re.compile(
    r"[\d.]+ s · CPU [▁▂▃▅▆▇]+ [\d.]+ of \d+ cores · memory [▁▂▃▅▆▇]+ peak [\d.]+ \w+ \([+−±][\d.]+ \w+\)"
)


def lines(reply: Reply) -> list[str]:
    """The strips among a cell's outputs, as text."""
    return [d["data"]["text/plain"] for d in reply.displays if "cellmeter-strip" in d["data"].get("text/html", "")]


def edges(run: Run, cell: Cell) -> list[Any]:
    found = [e for e in read_events(Path(run.path) / EVENTS)[0] if e.get("seq") == cell.seq]
    return [next(e for e in found if e["event"] == kind) for kind in ("cell_start", "cell_end")]


@pytest.fixture
def auto(kernel: Kernel) -> Kernel:
    """A kernel that shows the line."""
    started = kernel.run("%monitor start --auto")
    assert started.stdout.endswith("with a line under each cell of a second or more\n")
    assert lines(started) == []
    return kernel


def test_a_cell_of_a_second_gets_one_line_and_a_short_one_none(auto: Kernel) -> None:
    reply = auto.run(WORK.format(1.3) + "\n'result'")
    (line,) = lines(reply)
    assert LINE.fullmatch(line), line
    assert reply.displays[0]["data"]["text/plain"] == "'result'", "the cell's own outputs come first"
    quick = auto.run("print(1)")
    assert (quick.stdout, quick.displays) == ("1\n", [])


def test_a_short_cell_that_spiked_gets_the_line(auto: Kernel) -> None:
    (line,) = lines(auto.run("block = bytearray(400 << 20)\ndel block"))
    assert re.search(r"peak [45]\d\d MiB", line), line


def test_mapped_files_and_what_stays_are_no_spike(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the rule has it: the high-water mark counts them, but they cost nothing."""
    kernel.run(
        "import mmap, os, time\nfile = os.memfd_create('big')\nos.truncate(file, 300 << 20)\n"
        "with mmap.mmap(file, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ):\n    time.sleep(0.25)"
    )
    kernel.run("block = bytearray(300 << 20)\ndel block\ntime.sleep(0.25)")
    kernel.run("kept = bytearray(300 << 20)")
    run = kernel.recorded_cells(3)
    monkeypatch.setattr(strip, "LEAST_SECONDS", 1000.0)  # on a busy machine they may take more than one
    for cell, shown in zip(run.cells, (False, True, False), strict=True):
        start, end = edges(run, cell)
        assert end["peak_rss_bytes"] - start["rss_bytes"] > strip.LEAST_SPIKE_BYTES
        assert bool(strip.parts(Path(run.path), start, end)) == shown


def test_it_is_switched_on_and_off_while_recording_goes_on(kernel: Kernel, home: Path) -> None:
    nap = "import time; time.sleep(1.05)"
    assert lines(kernel.run(nap)) == []
    kernel.run("%monitor start --auto")
    assert len(lines(kernel.run(nap))) == 1
    kernel.run("%monitor start")
    assert lines(kernel.run(nap)) == []
    assert len(run_folders(home / "runs")) == 1
    kernel.run("%monitor start --auto\n%monitor stop\n%monitor start")
    assert lines(kernel.run(nap)) == []


def test_the_cell_that_switches_it_on_or_stops_the_recording_breaks_nothing(kernel: Kernel) -> None:
    assert len(lines(kernel.run("%monitor start --auto\nimport time; time.sleep(1.05)"))) == 1
    stopped = kernel.run("time.sleep(1.05)\n%monitor stop")
    assert (lines(stopped), stopped.stderr, stopped.status) == ([], "", "ok")


def test_a_monitored_cell_says_it_once(auto: Kernel) -> None:
    reply = auto.run("%%monitor\nimport time; time.sleep(1.05)")
    assert (lines(reply), len(reply.displays), len(reply.updates)) == ([], 1, 1)
    reply = auto.run("%%monitor --no-chart\ntime.sleep(1.05)")
    assert (lines(reply), reply.stdout.count("done in")) == ([], 1)


def test_our_own_lines_have_none(auto: Kernel, tmp_path: Path) -> None:
    slow = (
        f"import time, cellmeter.export as e; e.write = lambda *a: time.sleep(1.1)\n%monitor report {tmp_path}/x.html"
    )
    assert len(lines(auto.run(slow))) == 1
    ours = auto.run(f"# to a file\n\n%monitor report {tmp_path}/x.html\n%monitor")
    assert (ours.status, lines(ours)) == ("ok", [])


def test_a_cell_within_a_cell_has_no_line_of_its_own(auto: Kernel) -> None:
    assert len(lines(auto.run("get_ipython().run_cell('import time; time.sleep(1.05)')"))) == 1


def test_failed_and_awaiting_cells(auto: Kernel) -> None:
    failed = auto.run("import time; time.sleep(1.05)\n1 / 0")
    assert failed.error == "ZeroDivisionError"
    assert lines(failed)[0].startswith("failed after 1.")
    awaited = auto.run("import asyncio\nawait asyncio.sleep(1.05)")
    assert LINE.fullmatch(lines(awaited)[0])


def test_nothing_heavy_is_imported_for_it(auto: Kernel) -> None:
    assert len(lines(auto.run(WORK.format(1.1)))) == 1
    assert auto.run("import sys; print('numpy' in sys.modules, 'bokeh' in sys.modules)").stdout == "False False\n"


def test_a_run_folder_that_went_away_leaves_the_cell_alone(auto: Kernel, home: Path) -> None:
    reply = auto.run(f"import shutil, time; shutil.rmtree({str(home / 'runs')!r}); time.sleep(1.05); print('fine')")
    assert (reply.status, reply.stdout, lines(reply)) == ("ok", "fine\n", [])
    assert "Traceback" not in reply.stderr


def test_it_says_what_the_report_says(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    trace = "gpu\ngpu\n" + "".join(
        f"at {t / 2} gpu {g} util={(t * 37 + g * 50) % 100} power={10 + t % 5} used={t % 7}g\n"
        for t in range(120)
        for g in (0, 1)
    )
    kernel = start_kernel(env=nvml_stub.environment(trace, tmp_path))
    kernel.load()
    kernel.run("%monitor start --auto --rate 50")
    reply = kernel.run("kept = bytearray(300 << 20)\n" + WORK.format(2.5))
    run = kernel.recorded_cells(2)
    cell = run.cells[1]
    usage = run.usage(cell)
    assert cell.seconds is not None
    assert usage.cpu_seconds is not None
    start, end = edges(run, cell)
    found = strip.parts(Path(run.path), start, end)
    (line,) = lines(reply)
    said, known = (re.sub(r"[▁▂▃▅▆▇]+ ", "", text) for text in (line, strip.as_text(found)))
    sure = said.partition(" · 2 GPUs")[0] if "≥" in said else said  # a busy machine may have the last sample too late
    assert sure in known
    words = {part.name: part.words for part in found}
    means = [gpu.utilization_mean or 0.0 for gpu in usage.gpu.values()]
    assert int(words["2 GPUs"].split()[0]) == pytest.approx(sum(means) / 2, abs=1.5)
    joules = sum(gpu.energy_joules or 0.0 for gpu in usage.gpu.values())
    assert found[-1].words == joules_text(joules)
    _, seconds, cores, peak, growth, *_ = cell_row(run, cell).texts()
    assert found[0].words == seconds
    assert words["CPU"].startswith(f"{cores} of ")
    assert words["memory"] == f"peak {peak} ({growth})"


START, END, WATTS, NAN = (
    10.0,
    11.14297,
    650.0,
    float("nan"),
)  # a cell, in seconds of its run: no figure is a tie in rounding


def counted(folder: Path, joules: Mapping[float, float], came: float | None = None) -> Run:
    """A run of one cell, by what the counter of its GPU stood at, the last at the cell's end. ``came``: when the GPU did."""
    start_ns = 10**12
    host = {"name": "box", "system": "Linux", "release": "6.1", "machine": "x86_64", "python": "3.11.7"}
    gpu = {"id": "gpu0", "name": "T4", "uuid": "GPU-0", "memory_bytes": 0, "mine": True, "since": came or 0.0}
    fields = {"id": folder.name, "start_ns": start_ns, "started": 1.7e9, "rate_hz": 10, "recorder": None}
    limits = {"memory_bytes": [8 << 30, "host"], "cpu_cores": [4, "host"]}
    writer = Writer(folder)
    writer.describe(**fields, limits=limits, host={**host, "cpu_count": 4, "memory_bytes": 8 << 30}, devices=[gpu])
    edge = {"seq": 1, "rss_bytes": 1, "peak_rss_bytes": 1, "status": "ok"}
    rss, energy = Column("process.memory.rss", "process", "By"), Column("gpu.energy", "gpu0", "J")
    columns: list[Column] = []
    for at, value in joules.items():
        if columns != (wanted := [rss] if came is not None and at < came else [rss, energy]):
            columns, segment = wanted, writer.add_segment("main", wanted)
        tag, flags = (1, EDGE_END) if at == max(joules) else (int(START <= at <= END), 0)
        writer.sample(segment, start_ns + round(at * 1e9), tag, flags, [1.0, value][: len(columns)])
    for kind, at in (("cell_start", START), ("cell_end", END)):
        writer.event({**edge, "event": kind, "t": start_ns + round(at * 1e9)})
    writer.event({"event": "end", "t": start_ns + 10**11, "ending": "stopped", "signal": None, "exit_code": None})
    return read_run(folder)


def said_energy(run: Run) -> float | None:
    """What the table has, which is what the line says."""
    (cell,) = run.cells
    usage = run.usage(cell)
    joules = usage.gpu["gpu0"].energy_joules
    words = [part.words for part in strip.parts(Path(run.path), *edges(run, cell)) if part.words.endswith("J")]
    assert words == ([] if joules is None else [joules_text(joules)])
    assert ("gpu.gpu0.energy_joules" in usage.unknown) == (joules is None)
    return joules


def steady(*times: float) -> dict[float, float]:
    return {at: WATTS * at for at in times}


WITHIN = [10.2 + n / 10 for n in range(10)]


@pytest.mark.parametrize(
    ("times", "came"),
    [
        ((9.4, 10.15, *WITHIN, 11.145), None),  # its first sample comes late
        ((10.003, *WITHIN, 11.5), None),  # its last
        ((9.4, 10.15, *WITHIN[:-3], 11.5), None),  # both
        ((9.4, 10.15, *WITHIN, 11.145), 10.15),
    ],
)
def test_the_energy_of_a_cell_is_that_of_its_time_however_late_its_samples(
    tmp_path: Path, times: Sequence[float], came: float | None
) -> None:
    seconds = END - max(START, came or 0.0)
    exact = pytest.approx(WATTS * seconds, rel=1e-9) if times[0] < START else pytest.approx(WATTS * seconds, rel=0.003)
    assert said_energy(counted(tmp_path, steady(*times), came)) == exact


@pytest.mark.parametrize(
    ("joules", "why"),
    [
        (steady(10.15, *WITHIN, 11.145), "it was read for less than 95 % of the cell"),
        (
            {**steady(9.4, 10.003, *WITHIN), 11.145: NAN, **dict.fromkeys(WITHIN[5:], NAN)},
            "it was read for less than 95 %",
        ),
        ({**steady(9.4, 10.003, *WITHIN, 11.145), 10.2: 3.0}, "it was reset"),
        ({9.4: 6000.0, 10.003: 3.0, 10.5: 200.0, 11.145: 700.0}, "it was reset"),
        ({**dict.fromkeys(WITHIN, NAN), **steady(9.4, 11.145)}, "too few samples"),
    ],
)
def test_the_energy_of_a_cell_that_is_not_known_has_a_reason(
    tmp_path: Path, joules: dict[float, float], why: str
) -> None:
    run = counted(tmp_path, dict(sorted(joules.items())))
    assert said_energy(run) is None
    assert why in run.usage(run.cells[0]).unknown["gpu.gpu0.energy_joules"]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(80, 111), st.sampled_from([0.0, 5.0, 70.0, 70.0, NAN]), max_size=20),
    st.integers(112, 119),
    st.sampled_from([0, 0, 0, -1, 50]),
)
def test_line_and_table_have_the_same_energy(steps: dict[int, float], last: int, more: float) -> None:
    """Whatever came late, was lost or began anew."""
    total, joules = 0.0, {}
    for at, step in sorted({**steps, last: more}.items()):
        total += 0.0 if step != step else step
        joules[at / 10] = NAN if step != step else total
    with tempfile.TemporaryDirectory() as folder:
        said_energy(counted(Path(folder), joules))


def test_gpus_that_only_others_use_count_nowhere(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """On a shared machine without CUDA_VISIBLE_DEVICES: the driver's process lists tell."""
    trace = (
        "gpu\ngpu\nat 0 gpu 0 util=90 power=100\nat 0 gpu 1 util=50 power=700\n"
        f"proc 0 - gpu 0 pid=@{tmp_path}/pid used=2g\nproc 0 - gpu 1 pid=1 used=60g"
    )
    kernel = start_kernel(env=nvml_stub.environment(trace, tmp_path))
    kernel.load()
    kernel.run("%monitor start --auto")
    (line,) = lines(kernel.run("import os, time; time.sleep(4.5)"))
    assert line.endswith("GPU not used")
    (short,) = lines(kernel.run("time.sleep(1.2)"))
    assert short.endswith("GPU not used"), "the list before the cell tells, as no memory was taken since"
    kernel.run(f"open('{tmp_path}/pid', 'w').write(str(os.getpid()))")
    (line,) = lines(kernel.run("time.sleep(4.5)"))
    assert re.search(r"· GPU [▆▇]+ 90 % mean, 90 % peak ·", line)
    joules = re.search(r"(\d+) J$", line)
    assert joules
    assert float(joules[1]) == pytest.approx(450, rel=0.1)
    panel = kernel.run("%%monitor\ntime.sleep(4.5)").updates[-1]["data"]["text/plain"]
    assert "GPU 90 % mean, 90 % peak" in panel
    again = kernel.run("%monitor show").displays[-1]["data"]["text/plain"]
    assert "GPU 90 % mean, 90 % peak" in again
    _, unused, _, _, used, *_ = cell_rows(kernel.recorded_cells(7))
    assert (used.gpu_percent, unused.gpu_percent, unused.energy_joules) == (pytest.approx(90), 0, 0)


def test_a_gpu_of_which_memory_was_taken_at_the_end_may_be_the_cells(
    start_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """``model.cuda()`` after long preparations: the driver's process lists are of before."""
    trace = "gpu\nat 0 gpu 0 used=1g\nat 1 gpu 0 used=4g util=80\nproc 0 - gpu 0 pid=1 used=1g"
    kernel = start_kernel(env=nvml_stub.machine(trace, tmp_path, steered=True).environ)
    kernel.load()
    kernel.run("%monitor start --auto")
    kernel.run(
        "import pathlib, struct, time\n"
        "def wait(function, calls):\n"
        f"    log = pathlib.Path({str(tmp_path / 'calls')!r})\n"
        "    calls += log.read_text().count(function)\n"
        "    while log.read_text().count(function) < calls: time.sleep(0.02)\n"
        "def use_gpu():\n"
        f"    pathlib.Path({str(tmp_path / 'clock')!r}).open('r+b').write(struct.pack('d', 1.0))\n"
        "    wait('nvmlDeviceGetMemoryInfo', 2)"
    )
    cell = "wait('nvmlDeviceGetComputeRunningProcesses', 3)"
    (before,) = lines(kernel.run(cell))
    (line,) = lines(kernel.run(f"{cell}\nuse_gpu()"))
    (after,) = lines(kernel.run(cell))
    assert before.endswith("GPU not used")
    assert "80 % peak" in line
    assert after.endswith("GPU not used"), "the list after it told that another has taken it"
    shares = [row.gpu_percent for row in cell_rows(kernel.recorded_cells(5))[2:]]
    assert shares == [0, pytest.approx(5, abs=4.9), 0]


def test_with_workers_it_says_the_words_of_the_panel(auto: Kernel) -> None:
    """The peak with them, and the kernel's alone: they may be all that worked."""
    holds = "import sys, time; block = bytearray(300 << 20); print(1, flush=True); time.sleep(30)"
    auto.run(
        "import subprocess, sys\n"
        f"worker = subprocess.Popen([sys.executable, '-c', {holds!r}], stdout=subprocess.PIPE)\nworker.stdout.read(1)"
    )
    (line,) = lines(auto.run("import time; time.sleep(2.5)"))
    panel = auto.run("%monitor show").displays[-1]["data"]["text/plain"]
    auto.run("worker.kill(); worker.wait(); worker.stdout.close()")
    found = re.search(r"peak (\d{3}) MiB \(.*\), kernel alone ([\d.]+) MiB", line)
    assert found, line
    assert float(found[1]) > float(found[2]) + 250
    shown = re.search(r"memory peak (\d{3}) MiB of .*, kernel alone ([\d.]+) MiB", panel)
    assert shown, panel
    run = auto.recorded_cells(4)
    whole = next(part for part in strip.parts(Path(run.path), *edges(run, run.cells[2])) if part.name == "memory").words
    assert re.search(rf"peak {shown[1]} MiB \(.*\), kernel alone {shown[2]} MiB", whole)
    # on a busy machine the line may have been made before the sample at the cell's end was there
    assert [float(x) for x in found.groups()] == pytest.approx([float(x) for x in shown.groups()], abs=3)


def test_pieces_of_any_size_say_the_same(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at once is a matter of memory alone."""
    kernel.run(WORK.format(1.2))
    run = wait_until(lambda: kernel.recorded_cells(1), "the run")
    start, end = edges(run, run.cells[0])
    whole = strip.parts(Path(run.path), start, end)
    monkeypatch.setattr(strip, "MOST_RECORDS", 1)
    for a, b in zip(whole, strip.parts(Path(run.path), start, end), strict=True):
        assert (a.name, a.words, len(a.bars)) == (b.name, b.words, len(b.bars))


def test_nothing_is_read_of_a_short_cell_without_a_spike() -> None:
    start = {"event": "cell_start", "t": 0, "seq": 1, "rss_bytes": 1 << 30}
    end = {"event": "cell_end", "t": 10**8, "seq": 1, "rss_bytes": 1 << 30, "peak_rss_bytes": (1 << 30) + (200 << 20)}
    strip.show(Path("/nowhere"), {"cell_start": start, "cell_end": end})


def test_unknown_readings_count_for_nothing() -> None:
    nan = float("nan")
    course = strip.Course()
    course.add([0.0, 0.1, 0.2], [0.0, 0.1, 0.1], [nan, 4.0, 8.0])
    course.add([0.3], [0.1], [nan])
    assert (course.first, course.peak, course.growth) == (4.0, 8.0, 4.0)
    assert course.mean == pytest.approx(6.0)
    assert strip.Course().mean is None


@pytest.mark.parametrize(
    ("values", "top", "drawn"), [([], 1.0, ""), ([0.0, 0.5, 1.0, 9.0], 1.0, "▁▃▇▇"), ([1.0], 0.0, "")]
)
def test_bars(values: list[float], top: float, drawn: str) -> None:
    assert strip.bars(values, top) == drawn


def test_a_spike_between_low_values_is_drawn() -> None:
    assert strip.bars([0.0] * 500 + [1.0] + [0.0] * 499, 1.0).count("▇") == 1
