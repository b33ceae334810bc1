"""What the report costs: to judge, to write, to hold and to open, for an hour and for a day on a machine with eight GPUs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.effort import Effort
from bench.long_run import long_run, write_run
from bench.processes import REPOSITORY, scratch
from bench.table import Line, Section, alone, figure

MOST_JUDGE_SECONDS = 1.0  # for an hour
MOST_MEGABYTES = 3.0
MOST_OPEN_SECONDS = 2.0
CELLS_AN_HOUR = 40
GPUS = 8
# In a process of its own, so that its peak memory is that of this report and of nothing before it.
_MEASURED = """
import json, resource, sys, time
from pathlib import Path
from bench.long_run import long_run
from cellmeter.export import inline_html, render
from cellmeter.rules import judge
def mib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
hours, target = float(sys.argv[1]), Path(sys.argv[2])
run = long_run(hours, {gpus}, max(4, round(hours * {cells})))
before, start, cpu = mib(), time.perf_counter(), time.process_time()
judgement = judge(run)
judged = time.process_time() - cpu
page = render(run, "html", judgement)
written = time.process_time() - cpu - judged
target.write_text(page, "utf-8")
print(json.dumps({{"judge": judged, "write": written, "wall": time.perf_counter() - start, "more_mib": mib() - before,
                   "megabytes": target.stat().st_size / 1e6, "inline": len(inline_html(run, judgement)) / 1e3}}))
"""
# From the folder, as the command does it: what a report takes on a machine that the kernel needs too.
_FROM_FOLDER = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
from cellmeter.cli import main
assert main(["report", sys.argv[1], "-o", sys.argv[2]]) == 0
most = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"cpu": time.process_time(), "wall": time.perf_counter() - start, "mib": most / 1024}))
"""
MOST_FOLDER_MIB = 400.0
MOST_FOLDER_SECONDS = 3.0


class Opened(NamedTuple):
    """How long a page took to open: until its charts were drawn, and the CPU time of its main thread for that."""

    wall_seconds: float
    cpu_seconds: float


def run(effort: Effort) -> Iterator[Section]:
    """Two sections a length."""
    for hours in effort.choose(short=(0.02,), usual=(1.0, 24.0), full=(1.0, 24.0)):
        with scratch() as folder:
            yield _report(hours, folder, effort.choose(short=1, usual=3, full=7))
            yield _from_folder(hours, folder, effort.choose(short=1, usual=3, full=7))


def _report(hours: float, folder: Path, times: int) -> Section:
    page = folder / "report.html"
    script = _MEASURED.format(gpus=GPUS, cells=CELLS_AN_HOUR)
    measured = [_measure(script, hours, page) for _ in range(times)]
    opened = _open(page, times)
    lines = [
        alone("judge, CPU", "s", [one["judge"] for one in measured], MOST_JUDGE_SECONDS if hours <= 1 else None),
        alone("write the page, CPU", "s", [one["write"] for one in measured]),
        alone("peak memory beside the run's", "MiB", [one["more_mib"] for one in measured]),
        alone("the file", "MB", [one["megabytes"] for one in measured], MOST_MEGABYTES),
        alone("in the notebook instead", "kB", [one["inline"] for one in measured]),
    ]
    if opened:
        lines.append(
            alone("open in Chromium, until drawn", "s", [one.wall_seconds for one in opened], MOST_OPEN_SECONDS)
        )
        lines.append(Line("its main thread, CPU", "s", figure([one.cpu_seconds for one in opened])))
    notes = [
        "A run made up in memory: 10 Hz, 74 columns, 40 cells an hour. What other processes take is in wall times only."
    ]
    if not opened:
        notes.append("There is no Chromium here, or no Playwright to drive it.")
    return Section(f"report: {hours:g} h at 10 Hz, {GPUS} GPUs", tuple(lines), tuple(notes))


def _from_folder(hours: float, folder: Path, times: int) -> Section:
    run = write_run(long_run(hours, GPUS, max(4, round(hours * CELLS_AN_HOUR))), folder)
    samples = sum(path.stat().st_size for path in run.glob("*.f64")) / 1e6
    lines = [alone("the sample files", "MB", [samples])]
    for form in ("json", "html"):
        measured = [_measure(_FROM_FOLDER, run, folder / f"report.{form}") for _ in range(times)]
        lines += [
            alone(f"{form}: peak memory", "MiB", [one["mib"] for one in measured], MOST_FOLDER_MIB),
            alone(f"{form}: CPU", "s", [one["cpu"] for one in measured], MOST_FOLDER_SECONDS),
            alone(f"{form}: wall", "s", [one["wall"] for one in measured]),
        ]
    note = "`cellmeter report RUN -o FILE` in a fresh process; its imports are in the figures."
    return Section(f"report from the folder: {hours:g} h, {GPUS} GPUs", tuple(lines), (note,))


def _measure(script: str, of: float | Path, page: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", script, str(of), str(page)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    fields: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return fields


def _open(page: Path, times: int) -> list[Opened]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return []
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        return []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        opened = [_opened(browser, page) for _ in range(times)]
        browser.close()
    return opened


def _opened(browser: Any, page: Path) -> Opened:
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    view = context.new_page()
    session = context.new_cdp_session(view)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    start = time.perf_counter()
    view.goto(page.as_uri())
    view.wait_for_function("window.Bokeh?.documents?.length && Bokeh.documents.every((one) => one.is_idle)")
    view.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    wall = time.perf_counter() - start
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    context.close()
    return Opened(wall, metrics["TaskDuration"])
