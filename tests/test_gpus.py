"""GPUs all the way: a scripted driver, the real recorder, the run folder, and what the rules make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jsonschema
import nvml_stub
import pytest
from conftest import WAIT_SECONDS, has_ended, recorders_below, wait_until

from cellmeter import judge
from cellmeter.export import render
from cellmeter.export.report_json import schema
from cellmeter.export.rows import cell_rows
from cellmeter.home import run_folders
from cellmeter.run import GpuUsage, Run
from cellmeter.store import read_run

PROCESS = """
import os, sys, time
from pathlib import Path
home = Path(os.environ["CELLMETER_HOME"])
home.mkdir(exist_ok=True)
(home / "pid").write_text(str(os.getpid()))
del os.environ["NVML_STUB_T0"]  # the trace begins when the recorder opens the driver, however long all took to start
from cellmeter.recording import Recording
from cellmeter.settings import Settings
recording = Recording.start(Settings(), None)
assert recording.recorder.ready(60)
while not any(file.stat().st_size for file in recording.folder.glob("samples-*")): time.sleep(0.01)
cell = recording.cell_started("train()")
time.sleep(float(sys.argv[1]))
assert recording.trouble() is None, recording.trouble()
recording.cell_ended(cell, "ok")
recording.stop()
"""


class Recording(NamedTuple):
    """One cell of so many seconds on a machine whose driver plays a trace; ``HOME`` in it is the run's home."""

    trace: str
    seconds: float = 1.0
    environ: dict[str, str] = {}  # noqa: RUF012
    code: str = PROCESS
    within: tuple[str, ...] = ()


OUR_GPU = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
RECORDINGS: dict[str, Recording] = {}
"""What the tests below look at. Nearly all of their time is waiting, so all are recorded at once."""


class Recorded:
    """A recording that goes on."""

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.home = folder / "home"
        folder.mkdir()
        self.machine = nvml_stub.machine(recording.trace.replace("HOME", str(self.home)), folder)
        environ = {**os.environ, **self.machine.environ, **recording.environ, "CELLMETER_HOME": str(self.home)}
        command = [*recording.within, sys.executable, "-c", recording.code, str(recording.seconds)]
        self.process = subprocess.Popen(command, env=environ)

    def run(self) -> Run:
        assert self.process.wait(2 * WAIT_SECONDS) == 0
        (folder,) = run_folders(self.home / "runs")
        wait_until(lambda: has_ended(folder), "the recorder to end")
        return read_run(folder)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Recorded]]:
    base = tmp_path_factory.mktemp("gpus")
    all_of_them = {name: Recorded(recording, base / name) for name, recording in RECORDINGS.items()}
    yield all_of_them
    for one in all_of_them.values():
        one.process.kill()
        one.process.wait()
    wait_until(lambda: not recorders_below(base), "the recorders to end")


RECORDINGS["one"] = Recording(
    'gpu name="NVIDIA H100" mem=80g limit=700\nat 0 gpu 0 util=97 used=42g power=650 temp=61 sm=1755 reasons=0x4'
)


def test_one_gpu(recorded: dict[str, Recorded]) -> None:
    run = recorded["one"].run()
    (device,) = run.devices
    assert (device.id, device.name, device.memory_bytes, device.power_limit_watts) == (
        "gpu0",
        "NVIDIA H100",
        80 << 30,
        700,
    )
    (cell,) = run.cells
    usage = run.usage(cell).gpu["gpu0"]
    assert usage.utilization_mean == pytest.approx(97)
    assert usage.memory_peak_bytes == 42 << 30
    assert usage.energy_joules == pytest.approx(650 * (cell.seconds or 0), rel=0.1)
    for metric, value in (
        ("gpu.power", 650),
        ("gpu.temperature", 61),
        ("gpu.clock.sm", 1755),
        ("gpu.event_reasons", 4),
    ):
        assert set(run.series(metric, "gpu0").values) == {value}
    jsonschema.validate(json.loads(render(run, "json")), schema())


RECORDINGS["eight"] = Recording(
    "\n".join(["gpu"] * 8 + [f"at 0 gpu {i} util={10 * i}" for i in range(8)] + ["err 3 4.2 gpu 3 * 15"]), 10.0
)


def test_eight_gpus_of_which_one_is_lost_and_comes_back(recorded: dict[str, Recorded]) -> None:
    run = recorded["eight"].run()
    assert [device.id for device in run.devices] == [f"gpu{i}" for i in range(8)]
    usage = run.usage(run.cells[0])
    means = [usage.gpu[f"gpu{i}"].utilization_mean for i in range(8)]
    assert means[3] is None, "it was lost for too long to tell"
    assert usage.unknown["gpu.gpu3.utilization_mean"] == "it was read for less than 80 % of the cell"
    assert means[:3] + means[4:] == pytest.approx([0, 10, 20, 40, 50, 60, 70])
    lost = run.series("gpu.utilization", "gpu3")
    assert any(value != value for value in lost.values), "NaN while it was lost"
    assert lost.values[-1] == 30
    assert [notice.split(":")[0] for notice in run.notices] == ["gpu3 lost", "gpu3 returned"]


RECORDINGS["no-energy"] = Recording("gpu\nat 0 gpu 0 util=50\nerr 0 - gpu 0 nvmlDeviceGetTotalEnergyConsumption 3")


def test_a_call_that_is_not_supported_is_unknown_with_its_reason(recorded: dict[str, Recorded]) -> None:
    run = recorded["no-energy"].run()
    usage = run.usage(run.cells[0])
    assert usage.gpu["gpu0"].energy_joules is None
    assert "not" in usage.unknown["gpu.gpu0.energy_joules"]
    assert usage.gpu["gpu0"].utilization_mean == pytest.approx(50)


RECORDINGS["short"] = Recording("gpu\nat 0 gpu 0 util=80", 0.15)


def test_a_cell_shorter_than_the_interval_has_the_drivers_samples(recorded: dict[str, Recorded]) -> None:
    run = recorded["short"].run()
    usage = run.usage(run.cells[0])
    assert usage.gpu["gpu0"].utilization_mean == pytest.approx(80, abs=1)
    drained = run.series("gpu.utilization.driver", "gpu0")
    assert (drained.time[1:] > drained.time[:-1]).all()
    assert abs(drained.time[-1] - (run.cells[0].end or 0)) < 0.5


RECORDINGS["none"] = Recording("driver 580.95.05")
RECORDINGS["no-driver"] = Recording("driver-not-loaded")


def test_no_gpu_and_no_driver_are_told_apart(recorded: dict[str, Recorded]) -> None:
    none, missing = recorded["none"].run(), recorded["no-driver"].run()
    assert none.devices == missing.devices == ()
    assert none.unavailable["gpu"] != missing.unavailable["gpu"]
    outcomes = {checked.rule: checked.outcome for checked in judge(missing).checked}
    assert outcomes["gpu-underused"] == outcomes["gpu-unused"] == "not-applicable"


BURSTS = [f"at {t} gpu 0 util={95 if t % 4 == 0 else 0}" for t in range(16)]
RECORDINGS["idle"] = Recording(
    "\n".join(["gpu mem=80g", "proc 0 - gpu 0 pid=@HOME/pid used=20g", *BURSTS]), 14.0, OUR_GPU
)


def test_an_idle_gpu_of_ones_own_is_found_underused(recorded: dict[str, Recorded]) -> None:
    """Bursts of 1 s in every 4 s, by a process of ours that holds a context."""
    run = recorded["idle"].run()
    findings = [finding for finding in judge(run).findings if finding.rule == "gpu-underused"]
    assert [(f.subject, f.cells, f.severity) for f in findings] == [("gpu0", (1,), "warning")]
    assert findings[0].waste.gpu_seconds > 5


RECORDINGS["busy"] = Recording("gpu\nat 0 gpu 0 util=96", 12.0, OUR_GPU)


def test_a_busy_gpu_is_clear(recorded: dict[str, Recorded]) -> None:
    run = recorded["busy"].run()
    assert [f.rule for f in judge(run).findings] == []
    assert {c.rule: c.outcome for c in judge(run).checked}["gpu-underused"] == "clear"


TAKES_A_FEW_SECONDS = 9.0  # the recorder looks for new GPUs every five


RECORDINGS["comes"] = Recording(
    """
        live
        gpu from=3
        at 0 gpu 0 util=90 used=30g power=600
        gpu uuid=GPU-first
        at 0 gpu 1 util=10 used=1g power=100
        proc 0 - gpu 1 pid=@HOME/pid used=1g
        proc 0 - gpu 0 pid=@HOME/pid used=20g
    """,
    TAKES_A_FEW_SECONDS,
)


def test_a_gpu_that_comes_while_a_cell_runs(recorded: dict[str, Recorded]) -> None:
    run = recorded["comes"].run()
    first, second = run.devices
    assert (first.id, first.uuid, first.since) == ("gpu0", "GPU-first", 0.0), "it was first, whatever NVML counts"
    (cell,) = run.cells
    assert second.id == "gpu1"
    assert cell.start + 4 < second.since < cell.start + 8
    assert [notice.split(":")[0] for notice in run.notices] == ["gpu1 added"]
    usage = run.usage(cell)
    assert usage.gpu["gpu0"].utilization_mean == pytest.approx(10)
    assert usage.gpu["gpu1"].utilization_mean == pytest.approx(90), "of the time it was there"
    assert usage.gpu["gpu1"].energy_joules == pytest.approx(600 * (run.duration - second.since), rel=0.2)
    late = run.series("gpu.utilization", "gpu1")
    before = late.between(0, second.since).values
    assert len(before) > 20
    assert all(value != value for value in before), "unknown, never 0"
    assert len(late.time) == len(run.series("process.cpu.time", "process").time)
    assert set(run.series("gpu.utilization", "gpu0").values) == {10}
    assert [s.stream for s in run.segments].count("main") == 2
    assert (
        run.series("process.cpu.time", "process").time[1:] > run.series("process.cpu.time", "process").time[:-1]
    ).all()
    assert run.samples().attrs["units"]["gpu.utilization:gpu1"] == "%"
    for kind in ("text", "html", "md", "json"):
        assert "gpu1" in render(run, kind)
    jsonschema.validate(json.loads(render(run, "json")), schema())
    assert {c.outcome for c in judge(run).checked}.isdisjoint({"error"})


COMES_AT_3 = "gpu\nat 0 gpu 0 util=10\ngpu from=3\nat 0 gpu 1 util=90"
START = 'cell = recording.cell_started("train()")\n'
EARLIER = 'recording.cell_ended(recording.cell_started("first()"), "ok")\ntime.sleep(7)\n'
RECORDINGS["before-and-after"] = Recording(
    f"live\n{COMES_AT_3}",
    environ={
        "CUDA_VISIBLE_DEVICES": "0,1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    },  # a GPU that nobody holds counts nowhere
    code=PROCESS.replace(START, EARLIER + START),
)


def test_cells_before_and_after_a_gpu_came(recorded: dict[str, Recorded]) -> None:
    run = recorded["before-and-after"].run()
    first, then = (run.usage(cell) for cell in run.cells)
    assert first.gpu["gpu1"] == GpuUsage(*[None] * 7)
    assert first.unknown["gpu.gpu1.utilization_mean"] == "gpu1 came after this cell"
    assert then.gpu["gpu1"].utilization_mean == pytest.approx(90)
    before, after = cell_rows(run)
    assert before.energy_joules is None or before.energy_joules >= 0
    assert after.gpu_percent == pytest.approx(50)


RECORDINGS["flapping"] = Recording(
    "\n".join(
        [
            "live",
            "gpu from=3 uuid=GPU-new gpm=1",
            *(f"gpu uuid=GPU-{i}" for i in range(8)),
            *(f"at 0 gpu {i} util={10 + i}" for i in range(9)),
            *(f"gone {at} {at + 1.5} gpu 2" for at in range(3, 30, 3)),
            *(f"gone {at} {at + 2} gpu 0" for at in range(4, 30, 4)),
            "mig 5 gi=1 uuid=MIG-a from=6",
            "at 0 gpu 5.0 used=5g",
            "err 5 6.5 gpu - nvmlDeviceGetCount_v2 999",
            "init 999 9 10.5",
            "err 12 14 gpu 7 * 15",
        ]
    ),
    18.0,
)


def test_gpus_that_come_and_go_all_the_time_never_swap_their_numbers(recorded: dict[str, Recorded]) -> None:
    """Nine GPUs, of which two flap and move the others about, MIG switched on, a driver that opens by half or not at all."""
    run = recorded["flapping"].run()
    assert (run.ending, run.ending_sure) == ("stopped", True)
    assert (Path(run.path) / "recorder.log").read_text() == ""
    expected = {"GPU-new": 10.0} | {f"GPU-{i}": 11.0 + i for i in range(8)}
    assert {device.uuid for device in run.devices} >= set(expected)
    for device in run.devices:
        if device.uuid in expected:
            values = run.series("gpu.utilization", device.id).values
            assert {value for value in values if value == value} <= {expected[device.uuid]}, device
    assert sum(len(s.records) for s in run.segments if s.stream == "main") > 0.8 * 180
    assert len(run.segments) < 40
    assert len(run.notices) < 60
    assert {c.outcome for c in judge(run).checked}.isdisjoint({"error"})
    jsonschema.validate(json.loads(render(run, "json")), schema())


IN_A_MOUNT_NAMESPACE = """
mount --make-rprivate /
mount -t tmpfs none /proc/driver
mkdir -p /proc/driver/nvidia/gpus/0000:01:00.0
( sleep 4; mkdir /proc/driver/nvidia/gpus/0000:02:00.0 ) &
exec "$@"
"""


def can_mount() -> bool:
    """Whether this user may lay a file system over /proc/driver in a namespace of its own."""
    test = ["unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs none /proc/driver"]
    try:
        return subprocess.run(test, capture_output=True).returncode == 0
    except OSError:
        return False


if CAN_MOUNT := can_mount():
    RECORDINGS["new-card"] = Recording(
        f"delay nvmlInitWithFlags 300000\n{COMES_AT_3}",
        TAKES_A_FEW_SECONDS,
        within=("unshare", "--mount", "sh", "-c", IN_A_MOUNT_NAMESPACE, "sh"),
    )


@pytest.mark.skipif(not CAN_MOUNT, reason="takes the right to mount in a namespace of one's own")
def test_a_card_that_the_kernels_driver_lists_needs_a_new_session(recorded: dict[str, Recorded]) -> None:
    run = recorded["new-card"].run()
    assert [device.id for device in run.devices] == ["gpu0", "gpu1"]
    assert run.series("gpu.utilization", "gpu1").values[-1] == 90
    assert recorded["new-card"].machine.counts()["nvmlInitWithFlags"] == 2
    assert "the NVIDIA driver was being opened anew" in {gap.reason for gap in run.gaps}
