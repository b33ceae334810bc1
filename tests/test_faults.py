"""Kills at random moments. What was written before is never lost, nothing is corrupt, and the right cell is named."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Kernel, has_ended, wait_until

from cellmeter.home import run_folders
from cellmeter.run import Run
from cellmeter.store import read_header, read_run, record_size

KILLS = 200
BATCH = 25
KERNEL_KILLS = 20

# Runs short cells one after the other and says of each edge that it was sent, so that the test knows what must be there.
VICTIM = """
import os, sys, time
from cellmeter.recording import Recording
from cellmeter.settings import Settings
recording = Recording.start(Settings(rate_hz=100.0), None)
assert recording.recorder.ready(60)
os.write(1, f"{recording.folder}\\n".encode())
while True:
    cell = recording.cell_started("work()")
    os.write(1, b"+")
    time.sleep(0.004)
    recording.cell_ended(cell, "ok")
    os.write(1, b"-")
"""


def kill_at_random(script: Callable[..., subprocess.Popen[bytes]], dice: random.Random) -> tuple[Run, bytes, str, int]:
    """Lets a victim run for up to 0.12 s and kills it, or its recorder. Returns the run, the edges sent, who, samples."""
    process = script(VICTIM, text=False, bufsize=0)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip().decode())
    recorder = int(read_header(folder)["recorder"]["pid"])
    whom = "recorder" if dice.random() < 0.3 else "kernel"
    time.sleep(dice.random() * 0.12)  # the moment is what is random; nothing is waited for
    file = folder / "samples-000.f64"
    samples = file.stat().st_size if file.exists() else 0
    if whom == "recorder":
        os.kill(recorder, signal.SIGKILL)
        wait_until(lambda: has_ended(folder), "the recorder to be gone")
    process.kill()
    said = process.stdout.read()
    wait_until(lambda: has_ended(folder), "the recorder to end")
    segments = read_header(folder)["segments"]  # none if it was killed before the first
    columns = len(segments[0]["columns"]) if segments else 0
    return read_run(folder), said, whom, samples // record_size(columns)


@pytest.mark.parametrize("batch", range(KILLS // BATCH))
def test_kills_of_a_bare_process(script: Callable[..., subprocess.Popen[bytes]], batch: int) -> None:
    dice = random.Random(batch)
    for _ in range(BATCH):
        run, said, whom, samples_before = kill_at_random(script, dice)
        started, ended = said.count(b"+"), said.count(b"-")
        assert run.notices == (), "nothing is damaged"
        assert run.sample_count >= samples_before
        assert [cell.seq for cell in run.cells] == list(range(1, len(run.cells) + 1))
        if whom == "recorder":
            assert (run.ending, run.cells[-1].status if run.cells else "died") in (
                ("unknown", "died"),
                ("unknown", "ok"),
            )
            continue
        assert (run.ending, run.signal) == ("killed", signal.SIGKILL)
        # what the victim said is there; of the edge it was about to tell of, it may be
        assert started <= len(run.cells) <= started + 1
        assert ended <= sum(cell.status == "ok" for cell in run.cells) <= ended + 1
        open_cells = [cell.seq for cell in run.cells if cell.status == "died"]
        assert open_cells in ([], [len(run.cells)])
        assert all(run.usage(cell).samples >= 1 for cell in run.cells)


def test_kills_of_a_real_kernel(start_kernel: Callable[..., Kernel], home: Path) -> None:
    dice = random.Random(7)
    for _ in range(KERNEL_KILLS):
        kernel = start_kernel()
        kernel.load()
        kernel.run("x = 1")
        kernel.send("import time\nwhile True: time.sleep(0.001)")
        wait_until(lambda k=kernel: len(k.recorded_cells(1).cells) == 2, "the second cell to start")
        time.sleep(dice.random() * 0.2)
        os.kill(kernel.pid, signal.SIGKILL)
        folder = run_folders(home / "runs")[-1]
        wait_until(lambda f=folder: has_ended(f), "the recorder to end")
        run = read_run(folder)
        assert (run.ending, run.signal, run.notices) == ("killed", signal.SIGKILL, ())
        assert [(cell.execution_count, cell.status) for cell in run.cells] == [(2, "ok"), (3, "died")]
        kernel.close()
