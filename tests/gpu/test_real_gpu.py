"""On a machine with an NVIDIA GPU, nvidia-smi and torch: ``make test-gpu``. The numbers are held against the driver's own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import wait_until

from cellmeter.home import run_folders
from cellmeter.run import Run, known, time_weighted_mean
from cellmeter.store import is_open, read_header, read_run

pytestmark = pytest.mark.gpu

WORK = """
import sys, time
import torch
import cellmeter
from cellmeter.recording import Recording
from cellmeter.settings import Settings
device = torch.device("cuda:0")
big = torch.rand(8192, 8192, device=device, dtype=torch.bfloat16)
small = torch.rand(8, 8, device=device)
torch.cuda.synchronize()
recording = Recording.start(Settings(), None)
assert recording.recorder.ready(30)
time.sleep(1.5)

def busy():
    big @ big

def hollow():  # always a kernel on the GPU, but on one of its many multiprocessors
    for _ in range(200):
        small @ small

for name, work in (("idle", lambda: time.sleep(0.05)), ("busy", busy), ("hollow", hollow)):
    cell = recording.cell_started(name, label=name)
    until = time.monotonic() + 12
    while time.monotonic() < until:
        work()
        if name != "idle":
            torch.cuda.synchronize()
    recording.cell_ended(cell, "ok")
    time.sleep(2)
recording.stop()
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three cells of 12 s: idle, busy and hollow."""
    home = tmp_path_factory.mktemp("home")
    environ = {**os.environ, "CELLMETER_HOME": str(home), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    subprocess.run([sys.executable, "-c", WORK], env=environ, check=True, timeout=180)
    (folder,) = run_folders(home / "runs")
    wait_until(lambda: not is_open(read_header(folder)), "the recorder to end")
    return read_run(folder)


def smi(query: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "--id=0"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    return [part.strip() for part in text.strip().split(",")]


def mean(run: Run, metric: str, label: str) -> float:
    (cell,) = [cell for cell in run.cells if cell.label == label]
    found = time_weighted_mean(run.series(metric, "gpu0"), cell.start + 2, cell.end or 0)
    return math.nan if found is None else found


def test_the_device_is_the_one_nvidia_smi_names(recorded: Run) -> None:
    name, uuid, total_mib = smi("name,uuid,memory.total")
    device = recorded.devices[0]
    assert (device.name, device.uuid) == (name, uuid)
    assert device.memory_bytes == pytest.approx(float(total_mib) * 2**20, rel=0.02)


def test_now_and_here_both_say_the_same(home: Path, script: Callable[..., subprocess.Popen[str]]) -> None:
    """One recorder and nvidia-smi, asked at the same time on whatever the GPU does."""
    process = script("import cellmeter, time; cellmeter.start(rate_hz=10); input(); cellmeter.stop()")
    folder = wait_until(lambda: (found := run_folders(home / "runs")) and found[0], "the run")
    wait_until(lambda: (folder / "run.json").exists() and read_run(folder).sample_count >= 3, "samples")
    memory, power, temperature = map(float, smi("memory.used,power.draw,temperature.gpu"))
    run = read_run(folder)
    assert known(run.series("gpu.memory.used", "gpu0").values)[-1] == pytest.approx(
        memory * 2**20, rel=0.05, abs=64 << 20
    )
    assert known(run.series("gpu.power", "gpu0").values)[-1] == pytest.approx(power, rel=0.3)
    assert known(run.series("gpu.temperature", "gpu0").values)[-1] == pytest.approx(temperature, abs=5)
    process.communicate("\n", timeout=20)


def test_energy_is_power_over_time(recorded: Run) -> None:
    (cell,) = [cell for cell in recorded.cells if cell.label == "busy"]
    energy = recorded.usage(cell).gpu["gpu0"].energy_joules
    watts = time_weighted_mean(recorded.series("gpu.power", "gpu0"), cell.start, cell.end or 0)
    assert energy is not None
    assert watts is not None
    assert energy == pytest.approx(watts * (cell.seconds or 0), rel=0.15)


def test_utilisation_alone_cannot_tell_busy_from_hollow_but_more_can(recorded: Run) -> None:
    assert mean(recorded, "gpu.utilization", "idle") < 10
    assert mean(recorded, "gpu.utilization", "busy") > 80
    assert mean(recorded, "gpu.utilization", "hollow") > 50
    assert mean(recorded, "gpu.power", "busy") > 1.5 * mean(recorded, "gpu.power", "hollow")
    if recorded.subjects("gpu.sm.active"):
        assert mean(recorded, "gpu.sm.active", "busy") > 70
        assert mean(recorded, "gpu.sm.active", "hollow") < 30


def test_every_column_has_readings(recorded: Run) -> None:
    for segment in recorded.segments:
        for column in segment.columns:
            if column.subject == "gpu0" and f"{column.metric}:{column.subject}" not in recorded.unavailable:
                assert len(known(recorded.series(column.metric, column.subject).values)), column


def test_the_context_is_seen(recorded: Run) -> None:
    held = known(recorded.series("gpu.process.memory.used", "gpu0").values)
    contexts = known(recorded.series("gpu.process.contexts", "gpu0").values)
    if not len(contexts):
        pytest.skip(f"process ids cannot be matched here: {recorded.unavailable}")
    assert contexts.max() >= 1
    assert not len(held) or held.max() > 100 << 20
