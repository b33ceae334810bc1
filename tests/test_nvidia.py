"""The NVIDIA sources over a scripted driver library: the real pynvml, a stub below it, and a clock that the test steers."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

import nvml_stub
import pynvml
import pytest

import cellmeter
from cellmeter.metrics import METRICS
from cellmeter.sources import Notice, Source
from cellmeter.sources.nvidia import NvidiaDriver, open_nvidia
from cellmeter.sources.nvidia_readings import event_reason_words
from cellmeter.sources.visible import Gpu, owned

GIB = 2.0**30
FIRST_NAMESPACE = "pid:[4026531836]"


class Rig:
    """Sources over a machine, with one clock for both."""

    def __init__(self, machine: nvml_stub.Machine, environ: dict[str, str], pids: set[int], proc: Path) -> None:
        self.machine = machine
        self.now = 0.0
        self.proc = proc
        self.told: list[tuple[float, str, str | None, str, str]] = []
        self.opened: NvidiaDriver = open_nvidia(lambda: pids, environ, lambda: self.now, str(proc))

    @property
    def sources(self) -> dict[str, Source]:
        return {source.name: source for source in self.opened.sources}

    def at(self, seconds: float) -> None:
        self.now = seconds
        self.machine.at(seconds)

    def read(self, name: str = "main") -> dict[str, float]:
        source = self.sources[name]
        row = source.read()
        assert len(row) == len(source.columns)
        return {f"{column.metric}:{column.subject}": value for column, value in zip(source.columns, row, strict=True)}

    def notices(self, name: str = "main") -> list[Notice]:
        source = self.sources[name]
        drained = list(source.notices)
        source.notices.clear()
        return drained

    def insert(self, card: str) -> None:
        """What the kernel's driver lists, which no session of NVML needs to begin anew for."""
        (self.proc / "driver/nvidia/gpus" / card).mkdir(parents=True)

    def look_until(self, seconds: float) -> int:
        """Looks once a second, as the recorder does, and reads; how often all was opened anew."""
        reopened = 0
        while self.now < seconds:
            self.at(self.now + 1)
            reopened += self.opened.look()
            for name in self.sources:
                self.read(name)
            if self.sources:
                self.told += [(self.now, *notice) for notice in self.notices()]
        return reopened

    def close(self) -> None:
        self.opened.close()


Start = Callable[..., Rig]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Opens the sources over a trace; ``here`` are the processes that /proc shows in its pid ``namespace``."""
    with ExitStack() as stack:

        def start_rig(
            trace: str,
            environ: dict[str, str] | None = None,
            pids: Collection[int] = (),
            namespace: str | None = FIRST_NAMESPACE,
            here: Collection[int] = (),
        ) -> Rig:
            machine = nvml_stub.machine(trace, tmp_path, steered=True)
            stack.enter_context(machine.loaded())
            rig = Rig(machine, environ or {}, set(pids), fake_proc(tmp_path / "proc", namespace, here))
            stack.callback(rig.close)
            return rig

        yield start_rig


def fake_proc(proc: Path, namespace: str | None, here: Collection[int]) -> Path:
    (proc / "self/ns").mkdir(parents=True)
    if namespace:
        (proc / "self/ns/pid").symlink_to(namespace)
    for pid in here:
        (proc / str(pid)).mkdir()
    return proc


def gpus(count: int) -> str:
    return "gpu\n" * count


def known(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if not math.isnan(value)}


class TestReadings:
    def test_one_gpu(self, start):
        rig = start(
            """
            gpu mem=80g limit=700
            at 0 gpu 0 util=0 power=75
            at 1 gpu 0 util=96 memutil=41 power=640 temp=61 sm=1755 reasons=0x4 used=30g
            """
        )
        rig.at(2)
        assert rig.read() == {
            "gpu.utilization:gpu0": 96,
            "gpu.memory.utilization:gpu0": 41,
            "gpu.memory.used:gpu0": 30 * GIB,
            "gpu.memory.total:gpu0": 80 * GIB,
            "gpu.power:gpu0": 640,
            "gpu.temperature:gpu0": 61,
            "gpu.clock.sm:gpu0": 1755,
            "gpu.event_reasons:gpu0": 4,
            "gpu.energy:gpu0": 75 + 640,
        }
        assert rig.notices() == []
        assert rig.opened.unavailable == {}
        assert rig.opened.driver == "580.95.05"

    def test_power_is_the_instant_not_the_mean(self, start):
        rig = start("gpu\nat 0 gpu 0 power=100\nat 1 gpu 0 power=700")
        rig.at(1.1)
        assert rig.read()["gpu.power:gpu0"] == 700

    def test_eight_gpus_each_with_its_own_columns(self, start):
        rig = start(gpus(8) + "".join(f"at 0 gpu {i} util={i}\n" for i in range(8)))
        row = rig.read()
        assert [row[f"gpu.utilization:gpu{i}"] for i in range(8)] == list(range(8))
        assert [device.id for device in rig.sources["main"].devices()] == [f"gpu{i}" for i in range(8)]

    def test_columns_have_the_catalogues_units(self, start):
        rig = start("gpu gpm=1")
        for source in rig.opened.sources:
            assert [column.unit for column in source.columns] == [METRICS[c.metric].unit for c in source.columns]

    def test_devices(self, start):
        rig = start('gpu name="NVIDIA T4" uuid=GPU-1234 mem=16g limit=70', {"CUDA_VISIBLE_DEVICES": "GPU-12"})
        (device,) = rig.sources["main"].devices()
        assert (device.id, device.name, device.uuid) == ("gpu0", "NVIDIA T4", "GPU-1234")
        assert (device.memory_bytes, device.power_limit_watts, device.mine) == (16 * GIB, 70, True)

    def test_devices_follow_the_environment(self, start):
        environ = {"CUDA_VISIBLE_DEVICES": "0"}
        rig = start(gpus(2), environ)
        environ["CUDA_VISIBLE_DEVICES"] = "1"
        assert [device.mine for device in rig.sources["main"].devices()] == [False, True]


class TestWhatIsNotThere:
    def test_an_unsupported_metric_is_unknown_told_once_and_not_asked_for_again(self, start):
        rig = start("gpu\nerr 0 - gpu 0 nvmlDeviceGetUtilizationRates 3")
        rows = [rig.read() for _ in range(3)]
        assert all(math.isnan(row["gpu.utilization:gpu0"]) for row in rows)
        assert len(known(rows[-1])) == len(rows[-1]) - 2
        assert rig.notices() == [
            Notice("unavailable", metric, "gpu0", "this GPU or its mode does not support it")
            for metric in ("gpu.utilization", "gpu.memory.utilization")
        ]
        assert rig.machine.counts()["nvmlDeviceGetUtilizationRates"] == 1

    def test_an_unsupported_metric_of_one_gpu_leaves_the_others(self, start):
        rig = start(gpus(2) + "err 0 - gpu 1 nvmlDeviceGetClockInfo 4")
        row = rig.read()
        assert math.isnan(row["gpu.clock.sm:gpu1"])
        assert row["gpu.clock.sm:gpu0"] == 345
        (notice,) = rig.notices()
        assert notice[:3] == ("unavailable", "gpu.clock.sm", "gpu1")
        assert notice.reason.startswith("no permission")

    def test_an_unknown_error_of_one_call_at_the_start_does_not_lose_the_gpu(self, start):
        rig = start("gpu\nerr 0 - gpu 0 nvmlDeviceGetClockInfo 999")
        assert math.isnan(rig.read()["gpu.clock.sm:gpu0"])
        assert [notice.kind for notice in rig.notices()] == ["unavailable"]

    def test_support_that_ends_mid_run(self, start):
        rig = start("gpu\nerr 5 - gpu 0 nvmlDeviceGetUtilizationRates 3")
        assert rig.read()["gpu.utilization:gpu0"] == 0
        rig.at(5)
        rows = [rig.read(), rig.read()]
        assert all(math.isnan(row["gpu.utilization:gpu0"]) for row in rows)
        assert all(row["gpu.memory.total:gpu0"] == 80 * GIB for row in rows)
        assert [notice[:2] for notice in rig.notices()] == [
            ("unavailable", "gpu.utilization"),
            ("unavailable", "gpu.memory.utilization"),
        ]

    def test_a_passing_error_is_one_unknown_value(self, start):
        rig = start("gpu\nat 0 gpu 0 util=50\nerr 1 2 gpu 0 nvmlDeviceGetUtilizationRates 10")
        rig.at(1)
        assert math.isnan(rig.read()["gpu.utilization:gpu0"])
        rig.at(2)
        assert rig.read()["gpu.utilization:gpu0"] == 50
        assert rig.notices() == []

    def test_an_old_driver(self, start):
        rig = start(
            """
            driver 470.223.02
            missing nvmlDeviceGetTemperatureV nvmlDeviceGetMemoryInfo_v2 nvmlDeviceGetFieldValues
            missing nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetTotalEnergyConsumption
            missing nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetGraphicsRunningProcesses_v3
            missing nvmlDeviceGetMigMode nvmlGpmQueryDeviceSupport
            gpu
            at 0 gpu 0 power=100 temp=50 reasons=0x20 used=10g
            proc 0 - gpu 0 pid=42 used=1g
            """,
            pids={42},
        )
        rig.at(2)
        row = rig.read()
        assert row["gpu.temperature:gpu0"] == 50
        assert row["gpu.memory.used:gpu0"] == 10.5 * GIB  # version 1 cannot tell reserved memory from used
        assert row["gpu.power:gpu0"] == 100
        assert row["gpu.event_reasons:gpu0"] == 0x20
        assert math.isnan(row["gpu.energy:gpu0"])
        assert rig.notices() == [Notice("unavailable", "gpu.energy", "gpu0", "the NVIDIA driver does not have it")]
        assert rig.read("gpu-processes")["gpu.process.memory.used:gpu0"] == GIB

    def test_a_field_without_a_value_falls_back_to_the_mean_power(self, start):
        rig = start("gpu\nerr 0 - gpu 0 nvmlDeviceGetFieldValues 3\nat 0 gpu 0 power=250")
        rig.at(2)
        assert rig.read()["gpu.power:gpu0"] == 250
        assert rig.notices() == []


class TestLost:
    TRACE = gpus(2) + "at 0 gpu 1 util=80\nerr 10 22 gpu 1 * 15"

    def test_it_is_unknown_told_once_and_the_others_go_on(self, start):
        rig = start(self.TRACE)
        rig.at(10)
        for _ in range(3):
            row = rig.read()
            assert {key for key in row if math.isnan(row[key])} == {key for key in row if key.endswith(":gpu1")}
        assert rig.notices() == [
            Notice("lost", None, "gpu1", "the GPU has fallen off the bus or cannot be reached"),
        ]

    def test_it_is_tried_every_five_seconds_and_returns(self, start):
        rig = start(self.TRACE)
        rig.at(10)
        rig.read()
        rig.notices()
        rig.machine.forget_calls()
        for tenth in range(100, 251):
            rig.at(tenth / 10)
            row = rig.read()
        assert rig.machine.counts()["nvmlDeviceGetHandleByUUID"] == 3  # at 15, 20 and 25
        assert row["gpu.utilization:gpu1"] == 80
        assert rig.notices() == [Notice("returned", None, "gpu1", "the GPU answers again")]

    def test_after_a_reset_the_old_handle_is_void_and_a_new_one_is_taken(self, start):
        rig = start("gpu\nat 0 gpu 0 util=80\nreset 3 gpu 0")
        rig.at(3)
        assert known(rig.read()) == {}
        rig.at(8)
        assert rig.read()["gpu.utilization:gpu0"] == 80
        assert [notice.kind for notice in rig.notices()] == ["lost", "returned"]
        assert rig.read("gpu-processes")["gpu.process.contexts:gpu0"] == 0

    def test_an_unknown_error_of_a_call_that_had_worked(self, start):
        rig = start("gpu\nerr 1 2 gpu 0 nvmlDeviceGetClockInfo 999")
        rig.at(1)
        assert known(rig.read()) == {}
        assert rig.notices() == [Notice("lost", None, "gpu0", "the NVIDIA driver says: Unknown Error")]

    def test_lost_from_the_start(self, start):
        rig = start("gpu\nerr 0 4 gpu 0 nvmlDeviceGetUtilizationRates 15")
        assert known(rig.read()) == {}
        rig.at(5)
        assert len(known(rig.read())) == 9
        assert [notice.kind for notice in rig.notices()] == ["lost", "returned"]

    def test_the_other_sources_do_not_ask_a_lost_gpu(self, start):
        rig = start("gpu gpm=1\nat 0 gpu 0 gpm.2=10\nerr 1 - gpu 0 * 15")
        rig.at(1)
        rig.read()
        rig.machine.forget_calls()
        assert known(rig.read("gpu-processes")) == {}
        assert known(rig.read("gpm")) == {}
        assert rig.machine.calls() == []

    def test_a_process_list_that_finds_it_lost_first(self, start):
        rig = start("gpu\nerr 1 - gpu 0 * 15")
        rig.at(1)
        assert known(rig.read("gpu-processes")) == {}
        assert rig.notices("gpu-processes") == []  # the main source tells

    def test_closed_sources_read_nothing(self, start):
        rig = start("gpu gpm=1")
        rig.close()
        rig.at(1e6)
        assert [known(rig.read(name)) for name in rig.sources] == [{}, {}, {}]


class TestComing:
    """GPUs and MIG instances that come while the sources read."""

    def test_a_card_that_the_kernels_driver_lists_is_opened_in_a_new_session(self, start):
        rig = start("gpu\nat 0 gpu 0 util=10\ngpu from=7 mem=24g\nat 0 gpu 1 util=90 power=300")
        rig.insert("0000:01:00.0")
        rig.look_until(7)
        assert {column.subject for column in rig.sources["main"].columns} == {"gpu0"}
        rig.insert("0000:02:00.0")
        assert rig.look_until(12) == 1
        row = rig.read()
        assert (row["gpu.utilization:gpu0"], row["gpu.utilization:gpu1"]) == (10, 90)
        assert [(d.id, d.memory_bytes / GIB) for d in rig.sources["main"].devices()] == [("gpu0", 80), ("gpu1", 24)]
        assert [told[1:4] for told in rig.told] == [("added", None, "gpu1")]
        assert {column.subject for column in rig.sources["gpu-processes"].columns} == {"gpu0", "gpu1"}
        (backlog,) = rig.opened.backlogs
        assert [column.subject for column in backlog.columns] == ["gpu0", "gpu1"]

    def test_one_that_an_open_session_shows(self, start):
        rig = start("live\ngpu\ngpu from=7 gpm=1")
        assert rig.look_until(12) == 1
        assert set(rig.sources) == {"main", "gpu-processes", "gpm"}

    def test_a_look_that_finds_nothing_is_a_few_calls_every_five_seconds(self, start):
        rig = start(gpus(8))
        rig.machine.forget_calls()
        for tenth in range(300):
            rig.at(tenth / 10)
            assert not rig.opened.look()
        assert rig.machine.counts().total() == 5 * (1 + 8 * 3)  # count; handle, UUID and MIG mode

    def test_one_that_takes_anothers_place_is_told_apart_by_its_uuid(self, start):
        trace = "live\ngpu from=7\nat 0 gpu 0 util=90\ngpu\nat 0 gpu 1 util=10"
        rig = start(trace, {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
        before, *_ = rig.sources["main"].devices()
        assert before.mine
        rig.look_until(12)
        row = rig.read()
        assert (row["gpu.utilization:gpu0"], row["gpu.utilization:gpu1"]) == (10, 90)
        first, second = rig.sources["main"].devices()
        assert (first.id, first.uuid, second.id) == ("gpu0", before.uuid, "gpu1")
        assert (first.mine, second.mine) == (None, None), "CUDA may count in the new order or in the old"

    def test_the_drivers_samples_go_on_where_they_were(self, start):
        rig = start("live\ngpu\nat 0 gpu 0 util=10\ngpu from=4\nat 0 gpu 1 util=90")
        rig.at(2)
        assert rig.opened.backlogs[0].drain() == []
        rig.at(4.5)
        rig.opened.backlogs[0].drain()
        rig.look_until(6.0)
        rows = rig.opened.backlogs[0].drain()
        assert [row.values[0] for row in rows] == [10.0] * 20, "2 s since 4.5 s by the clock of whole seconds"
        assert all(math.isnan(row.values[1]) for row in rows), "what the new one did before is nobody's"
        rig.at(7.5)
        assert [row.values[1] for row in rig.opened.backlogs[0].drain()][-1:] == [90.0]

    def test_a_driver_that_is_loaded_later(self, start):
        rig = start("init 9 0 7\ngpu\nat 0 gpu 0 util=50")
        assert "not loaded" in rig.opened.unavailable["gpu"]
        rig.look_until(7)
        rig.insert("0000:01:00.0")
        assert rig.look_until(12) == 1
        assert rig.read()["gpu.utilization:gpu0"] == 50
        assert (rig.opened.unavailable, rig.opened.driver) == ({}, "580.95.05")

    def test_without_a_driver_nothing_is_asked_of_its_library(self, start):
        rig = start("driver-not-loaded")
        rig.look_until(60)
        assert rig.machine.calls() == []

    def test_a_driver_that_does_not_open_again_is_tried_ever_more_seldom(self, start):
        rig = start("live\ngpu\ngpu from=3\ninit 999 4 60\nat 0 gpu 0 util=70")
        rig.look_until(8)
        assert known(rig.read()) == {}
        assert [told[:4] for told in rig.told] == [(5, "lost", None, "gpu0")]
        assert "Unknown Error" in rig.told[0][4]
        assert rig.look_until(100) == 1
        assert rig.read()["gpu.utilization:gpu0"] == 70
        assert [told[1:4] for told in rig.told[1:]] == [("returned", None, "gpu0"), ("added", None, "gpu1")]

    @pytest.mark.parametrize(
        "fault",
        [
            "gpu - nvmlSystemGetDriverVersion 999",
            "gpu - nvmlDeviceGetCount_v2 999",
            "gpu * nvmlDeviceGetHandleByIndex_v2 15",
            "gpu * nvmlDeviceGetUUID 999",
            "gpu * nvmlDeviceGetName 10",
            "gpu * nvmlGpmSampleAlloc 20",
            "gpu - nvmlGpmSampleAlloc 20",
        ],
    )
    def test_a_driver_that_opens_again_by_half(self, start, fault):
        rig = start(f"gpu gpm=1\ngpu from=3\nat 0 gpu 0 util=70\nat 0 gpu 1 util=20\nerr 4 30 {fault}")
        rig.insert("0000:02:00.0")
        rig.look_until(200)
        row = rig.read()
        assert (row["gpu.utilization:gpu0"], row["gpu.utilization:gpu1"]) == (70, 20)

    def test_one_that_comes_and_goes_is_not_opened_anew_each_time(self, start):
        flaps = "\n".join(f"gone {at} {at + 4} gpu 1" for at in range(3, 480, 8))
        rig = start(f"live\ngpu\ngpu from=2\nat 0 gpu 0 util=10\nat 0 gpu 1 util=90\n{flaps}")
        assert rig.look_until(480) <= 7
        values = set()
        for tenth in range(4800, 5000):
            rig.at(tenth / 10)
            row = rig.read()
            assert row["gpu.utilization:gpu0"] == 10
            values.add(row.get("gpu.utilization:gpu1"))
        assert values <= {90.0} | {value for value in values if value != value}

    def test_reopenings_become_rare_where_instances_are_made_and_destroyed_all_day(self, start):
        flaps = "\n".join(f"gone {at} {at + 10} gpu 0.0" for at in range(10, 600, 20))
        rig = start(f"gpu\nmig 0 gi=1 from=3\n{flaps}")
        assert 5 <= rig.look_until(600) <= 8

    def test_one_that_went_as_another_came_is_told_of_as_lost(self, start):
        rig = start("gpu\ngpu\ngpu from=6\ngone 6 - gpu 1")
        rig.insert("0000:03:00.0")
        rig.at(6)
        assert rig.opened.look()
        told = {(notice.kind, notice.subject, notice.reason) for notice in rig.notices()}
        assert ("lost", "gpu1", "the driver no longer has it") in told
        assert {known for known, *_ in told} == {"lost", "added"}

    def test_a_card_that_was_away_and_one_session_does_not_find_again(self, start):
        rig = start("gpu\ngpu\nat 0 gpu 1 util=90\ngone 3 7 gpu 1")
        rig.insert("0000:01:00.0")
        rig.look_until(6)
        assert math.isnan(rig.read()["gpu.utilization:gpu1"])
        rig.insert("0000:02:00.0")
        rig.look_until(12)
        assert rig.read()["gpu.utilization:gpu1"] == 90
        assert [told[1:4:2] for told in rig.told] == [("lost", "gpu1"), ("returned", "gpu1")]
        assert len(rig.sources["main"].devices()) == 2

    def test_eight_that_are_opened_anew_keep_their_numbers(self, start):
        trace = "".join(f"gpu\nat 0 gpu {i} util={i + 1}\n" for i in range(8)) + "gpu from=3\nat 0 gpu 8 util=99\nlive"
        rig = start(trace + "\nerr 4 20 gpu 3 * 15")
        rig.look_until(30)
        row = rig.read()
        assert [row[f"gpu.utilization:gpu{i}"] for i in range(9)] == [1, 2, 3, 4, 5, 6, 7, 8, 99]
        assert [told[1:4:2] for told in rig.told] == [("lost", "gpu3"), ("added", "gpu8"), ("returned", "gpu3")]


class TestMig:
    TRACE = """
        gpu gpm=1
        gpu
        mig 0 gi=1 ci=0 uuid=MIG-aaaa mem=10g
        mig 0 gi=2 ci=0 uuid=MIG-bbbb mem=20g
        at 0 gpu 0 power=200
        at 0 gpu 0.1 gpm.2=55
        proc 0 - gpu 0.0 pid=42 used=1g
        proc 0 - gpu 0.1 pid=43 used=2g
        """

    def test_instances_are_devices_of_their_own(self, start):
        rig = start(self.TRACE)
        devices = rig.sources["main"].devices()
        assert [(device.id, device.memory_bytes / GIB) for device in devices] == [
            ("gpu0", 80),
            ("gpu0.mig0", 10),
            ("gpu0.mig1", 20),
            ("gpu1", 80),
        ]

    def test_what_belongs_to_the_whole_gpu_is_not_read_of_an_instance(self, start):
        rig = start(self.TRACE)
        row = rig.read()
        assert {key for key in row if ".mig" in key} == {
            f"gpu.memory.{what}:gpu0.mig{index}" for what in ("used", "total") for index in (0, 1)
        }
        assert row["gpu.memory.used:gpu0.mig1"] == 2 * GIB
        assert row["gpu.power:gpu0"] == 200
        told = {(notice.metric, notice.subject) for notice in rig.notices()}
        assert ("gpu.utilization", "gpu0") in told
        assert ("gpu.utilization", "gpu0.mig0") in told
        assert ("gpu.energy", "gpu0.mig1") in told
        assert {call.function for call in rig.machine.calls() if call.gpu == "0.0"}.isdisjoint(
            {"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo"}
        )

    def test_processes_by_instance(self, start):
        row = start(self.TRACE, pids={42}).read("gpu-processes")
        assert row["gpu.process.memory.used:gpu0.mig0"] == GIB
        assert row["gpu.process.memory.used:gpu0.mig1"] == 0
        assert row["gpu.foreign.processes:gpu0.mig1"] == 1
        assert row["gpu.process.memory.used:gpu0"] == GIB

    def test_gpm_by_instance(self, start):
        rig = start(self.TRACE)
        rig.read("gpm")
        rig.at(0.2)
        row = rig.read("gpm")
        assert row["gpu.sm.active:gpu0.mig1"] == 55
        assert math.isnan(row["gpu.sm.active:gpu0.mig0"])

    def test_no_gpm_of_an_instance_while_its_gpu_is_lost(self, start):
        rig = start(self.TRACE + "err 1 - gpu 0 * 15\n")
        rig.at(1)
        row = rig.read()
        assert row["gpu.memory.total:gpu0.mig0"] == 10 * GIB
        assert known(rig.read("gpm")) == {}

    def test_an_instance_returns_by_its_uuid(self, start):
        rig = start("gpu\nmig 0 gi=1\nat 0 gpu 0.0 used=3g\nreset 1 gpu 0.0")
        rig.at(1)
        assert math.isnan(rig.read()["gpu.memory.used:gpu0.mig0"])
        rig.at(6)
        assert rig.read()["gpu.memory.used:gpu0.mig0"] == 3 * GIB

    def test_mig_switched_on_and_off_while_recording(self, start):
        rig = start(
            "gpu\nat 0 gpu 0 util=60 power=200\nmig 0 gi=1 uuid=MIG-aaaa from=3\nmig 0 gi=2 uuid=MIG-bbbb from=3\n"
            "at 0 gpu 0.0 used=1g\nat 0 gpu 0.1 used=2g\ngone 20 - gpu 0.0\ngone 60 - gpu 0.1"
        )
        assert rig.read()["gpu.utilization:gpu0"] == 60
        rig.look_until(8)
        row = rig.read()
        assert math.isnan(row["gpu.utilization:gpu0"]), "NVML measures none where MIG is on"
        assert (row["gpu.power:gpu0"], row["gpu.memory.used:gpu0.mig1"]) == (200, 2 * GIB)
        rig.look_until(40)  # the second instance has the first one's place now
        row = rig.read()
        assert row["gpu.memory.used:gpu0.mig1"] == 2 * GIB
        assert "gpu.memory.used:gpu0.mig0" not in row
        rig.look_until(200)
        assert rig.read()["gpu.utilization:gpu0"] == 60
        assert [device.id for device in rig.sources["main"].devices()] == ["gpu0", "gpu0.mig0", "gpu0.mig1"]

    def test_an_instance_that_takes_anothers_place_gets_an_id_of_its_own(self, start):
        rig = start("gpu\nmig 0 gi=1 uuid=MIG-a\nmig 0 gi=1 uuid=MIG-b from=7\ngone 7 - gpu 0.0\nat 0 gpu 0.1 used=5g")
        rig.look_until(12)
        assert rig.read()["gpu.memory.used:gpu0.mig1"] == 5 * GIB


class TestProcesses:
    TRACE = """
        gpu
        proc 0 - gpu 0 pid=42 used=2g
        proc 0 - gpu 0 pid=43 used=1g type=C+G
        proc 0 - gpu 0 pid=44 used=5g
        proc 0 - gpu 0 pid=45 used=1g type=G
        """

    def test_own_memory_and_foreign_processes(self, start):
        rig = start(self.TRACE, pids={42, 43, 99})
        assert rig.read("gpu-processes") == {
            "gpu.process.memory.used:gpu0": 3 * GIB,
            "gpu.process.contexts:gpu0": 2,
            "gpu.foreign.processes:gpu0": 1,  # a desktop's graphics context is no competitor
        }

    def test_no_context(self, start):
        row = start(self.TRACE, pids={7}).read("gpu-processes")
        assert row["gpu.process.memory.used:gpu0"] == 0
        assert row["gpu.foreign.processes:gpu0"] == 3

    def test_own_graphics_context_counts(self, start):
        assert start(self.TRACE, pids={45}).read("gpu-processes")["gpu.process.memory.used:gpu0"] == GIB

    def test_processes_come_and_go(self, start):
        rig = start("gpu\nproc 2 4 gpu 0 pid=42 used=1g", pids={42})
        seen = []
        for second in (0, 2, 4):
            rig.at(second)
            seen.append(rig.read("gpu-processes")["gpu.process.memory.used:gpu0"])
        assert seen == [0, GIB, 0]

    def test_memory_that_the_driver_does_not_tell(self, start):
        rig = start("gpu\nproc 0 - gpu 0 pid=42 used=none", pids={42})
        row = rig.read("gpu-processes")
        assert math.isnan(row["gpu.process.memory.used:gpu0"])
        assert row["gpu.process.contexts:gpu0"] == 1
        rig.read("gpu-processes")
        assert [notice[:3] for notice in rig.notices("gpu-processes")] == [
            ("unavailable", "gpu.process.memory.used", "gpu0")
        ]

    @pytest.mark.parametrize("code", [3, 4])
    def test_lists_that_are_refused_are_not_asked_for_again(self, start, code):
        rig = start(
            f"""
            gpu
            err 0 - gpu 0 nvmlDeviceGetComputeRunningProcesses_v3 {code}
            err 0 - gpu 0 nvmlDeviceGetComputeRunningProcesses_v2 {code}
            """
        )
        assert known(rig.read("gpu-processes")) == {}
        rig.machine.forget_calls()
        assert known(rig.read("gpu-processes")) == {}
        assert rig.machine.calls() == []
        assert len(rig.notices("gpu-processes")) == 3

    def test_no_graphics_list(self, start):
        rig = start(
            """
            gpu
            missing nvmlDeviceGetGraphicsRunningProcesses_v3 nvmlDeviceGetGraphicsRunningProcesses_v2
            proc 0 - gpu 0 pid=42 used=1g
            """,
            pids={42},
        )
        assert rig.read("gpu-processes")["gpu.process.memory.used:gpu0"] == GIB


class TestHolders:
    def test_who_they_are_takes_no_further_call(self, start):
        rig = start("gpu\nproc 1 - gpu 0 pid=42 used=2g\nproc 1 - gpu 0 pid=43", here={42, 43}, pids={42})
        rig.read("gpu-processes")
        calls = []
        for seconds in (0.5, 1, 2):
            rig.machine.forget_calls()
            rig.at(seconds)
            rig.read("gpu-processes")
            calls.append(set(rig.machine.counts()))
        assert calls[0] == calls[1] == calls[2]
        (event,) = rig.opened.holders.events()
        assert {one["pid"]: one["whose"] for one in event["processes"]} == {42: "kernel", 43: "other"}

    def test_a_desktop_is_told_where_it_holds_much(self, start):
        rig = start(
            """
            gpu
            proc 0 - gpu 0 pid=42 used=200m type=G
            proc 0 - gpu 0 pid=43 used=2g type=G
            proc 0 - gpu 0 pid=44 used=none type=G
            proc 0 - gpu 0 pid=45 used=100m
            proc 0 - gpu 0 pid=46 used=100m type=G
            """,
            pids={46},
        )
        assert rig.read("gpu-processes")["gpu.foreign.processes:gpu0"] == 1
        (event,) = rig.opened.holders.events()
        assert {one["pid"] for one in event["processes"]} == {43, 45, 46}

    def test_what_was_told_is_not_told_again_when_all_is_opened_anew(self, start):
        rig = start("gpu\ngpu from=6\nproc 0 - gpu 0 pid=42 used=2g")
        rig.read("gpu-processes")
        assert len(rig.opened.holders.events()) == 1
        rig.insert("0000:01:00.0")
        assert rig.look_until(12) == 1
        assert rig.opened.holders.events() == []


class TestContainer:
    """A process in a container may see ids of its own namespace, the host's, or none."""

    TRACE = "gpu\nproc 1 - gpu 0 pid=42 used=2g\nproc 1 - gpu 0 pid=43 used=1g"
    NAMESPACE = "pid:[4026532745]"

    def test_ids_of_our_namespace(self, start):
        rig = start(self.TRACE, pids={42}, namespace=self.NAMESPACE, here={42, 43})
        rig.at(1)
        row = rig.read("gpu-processes")
        assert row["gpu.process.memory.used:gpu0"] == 2 * GIB
        assert math.isnan(row["gpu.foreign.processes:gpu0"])
        (notice,) = rig.notices("gpu-processes")
        assert notice.metric == "gpu.foreign.processes"
        assert "container" in notice.reason

    def test_ids_of_the_host(self, start):
        rig = start(self.TRACE, pids={7}, namespace=self.NAMESPACE, here={7})
        assert rig.read("gpu-processes")["gpu.process.memory.used:gpu0"] == 0  # nobody holds anything yet
        rig.at(1)
        assert known(rig.read("gpu-processes")) == {}
        reasons = {notice.metric: notice.reason for notice in rig.notices("gpu-processes")}
        assert "another namespace" in reasons["gpu.process.memory.used"]

    def test_who_holds_it_is_told_by_ids_of_the_host(self, start):
        rig = start(self.TRACE, pids={7}, namespace=self.NAMESPACE, here={7})
        rig.read("gpu-processes")
        assert rig.opened.holders.events() == []
        rig.at(1)
        rig.read("gpu-processes")
        (event,) = rig.opened.holders.events()
        assert event["host_pids"]
        assert [(one["pid"], one["used_bytes"], one["whose"]) for one in event["processes"]] == [
            (42, 2 * GIB, None),
            (43, GIB, None),
        ]

    def test_a_proc_that_hides_its_namespace_is_taken_for_a_container(self, start):
        rig = start(self.TRACE, pids={42}, namespace=None)
        assert [notice.metric for notice in rig.notices("gpu-processes")] == ["gpu.foreign.processes"]


class TestGpm:
    def test_means_since_the_last_read(self, start):
        first = "gpm.2=0 gpm.3=10 gpm.5=20 gpm.10=30 gpm.20=1 gpm.21=2 gpm.60=3 gpm.61=4"
        rig = start(f"gpu gpm=1\nat 0 gpu 0 {first}\nat 1.1 gpu 0 gpm.2=80")
        rig.at(1)
        assert known(rig.read("gpm")) == {}
        rig.at(1.2)
        assert rig.read("gpm") == pytest.approx(
            {
                "gpu.sm.active:gpu0": 40,
                "gpu.sm.occupancy:gpu0": 10,
                "gpu.tensor.active:gpu0": 20,
                "gpu.dram.active:gpu0": 30,
                "gpu.pcie.sent:gpu0": 1 << 20,
                "gpu.pcie.received:gpu0": 2 << 20,
                "gpu.nvlink.sent:gpu0": 4 << 20,
                "gpu.nvlink.received:gpu0": 3 << 20,
            }
        )
        rig.at(1.4)
        assert rig.read("gpm")["gpu.sm.active:gpu0"] == pytest.approx(80)

    def test_only_gpus_that_have_it(self, start):
        rig = start("gpu\ngpu gpm=1")
        assert {column.subject for column in rig.sources["gpm"].columns} == {"gpu1"}

    def test_no_source_where_no_gpu_has_it(self, start):
        assert "gpm" not in start(gpus(2)).sources

    def test_a_metric_it_lacks_is_told_once(self, start):
        rig = start("gpu gpm=1\nat 0 gpu 0 gpm.2=50 gpm.3=50 gpm.10=50 gpm.20=1 gpm.21=1 gpm.60=1 gpm.61=1")
        for second in range(4):
            rig.at(second)
            row = rig.read("gpm")
        assert math.isnan(row["gpu.tensor.active:gpu0"])
        assert [notice.metric for notice in rig.notices("gpm")] == ["gpu.tensor.active"]

    def test_two_reads_at_the_same_time_are_unknown(self, start):
        rig = start("gpu gpm=1\nat 0 gpu 0 gpm.2=50")
        rig.read("gpm")
        assert known(rig.read("gpm")) == {}


CALLS_OF_A_READ = {
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetTotalEnergyConsumption",
}


class TestCallBudget:
    def test_a_read_makes_seven_calls_a_gpu_and_lists_no_processes(self, start):
        rig = start(gpus(8) + "proc 0 - gpu 0 pid=42 used=1g")
        rig.machine.forget_calls()
        for _ in range(10):
            rig.read()
        assert rig.machine.counts() == {function: 80 for function in CALLS_OF_A_READ}

    def test_process_lists_are_a_source_of_their_own_at_most_every_two_seconds(self, start):
        rig = start("gpu\nproc 0 - gpu 0 pid=42 used=1g")
        assert rig.sources["gpu-processes"].interval >= 2
        rig.read("gpu-processes")
        rig.machine.forget_calls()
        rig.read("gpu-processes")
        assert set(rig.machine.counts()) == {
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetGraphicsRunningProcesses_v3",
        }
        assert rig.machine.counts().total() == 3  # pynvml asks for the length first

    def test_gpm_at_most_five_times_a_second(self, start):
        assert start("gpu gpm=1").sources["gpm"].interval >= 0.2

    def test_the_driver_is_closed(self, start):
        rig = start(gpus(1))
        rig.close()
        assert rig.machine.counts()["nvmlShutdown"] == 1


class TestOpening:
    @pytest.mark.parametrize(
        ("trace", "says"),
        [
            ("driver-not-loaded", "the NVIDIA driver is not loaded"),
            ("init 4", "no permission"),
            ("init 18", "was updated while loaded"),
            ("init 999", "Unknown Error"),
            ("", "the NVIDIA driver finds no GPU"),
            ("gpu\nerr 0 - gpu 0 nvmlDeviceGetHandleByIndex_v2 4", "gpu0: no permission"),
        ],
    )
    def test_no_sources_and_why(self, start, trace, says):
        opened = start(trace).opened
        assert opened.sources == []
        assert list(opened.unavailable) == ["gpu"]
        assert says in opened.unavailable["gpu"]

    def test_a_driver_without_gpus_still_has_a_version(self, start):
        assert start("driver 555.1").opened.driver == "555.1"

    def test_a_gpu_that_may_not_be_used_leaves_the_others(self, start):
        opened = start(gpus(2) + "err 0 - gpu 0 nvmlDeviceGetHandleByIndex_v2 4").opened
        assert [device.id for device in opened.sources[0].devices()] == ["gpu1"]
        assert opened.unavailable == {"gpu:gpu0": "no permission: the administrator has restricted it"}

    def test_an_unexpected_failure_is_no_exception(self, start, monkeypatch):
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1 / 0)
        rig = start("gpu")
        assert "ZeroDivisionError" in rig.opened.unavailable["gpu"]
        assert rig.machine.counts()["nvmlShutdown"] == 1

    def test_no_library_and_pynvml_is_not_even_imported(self, tmp_path):
        found = elsewhere(nvml_stub.no_library(tmp_path))
        assert found["unavailable"] == {"gpu": "no NVIDIA driver library (libnvidia-ml.so.1) on this machine"}
        assert not found["imported"]

    def test_no_pynvml(self, tmp_path):
        found = elsewhere(nvml_stub.environment("gpu", tmp_path), packages=False)
        assert "nvidia-ml-py is not installed" in found["unavailable"]["gpu"]

    def test_another_process_finds_the_stub_by_its_environment(self, tmp_path):
        machine = nvml_stub.machine("gpu\nproc 0 - gpu 0 pid=self used=1g", tmp_path)
        found = elsewhere(machine.environ)
        assert found == {"unavailable": {}, "sources": ["main", "gpu-processes"], "imported": True}
        assert machine.calls()[0].pid != os.getpid()

    def test_importing_the_module_does_not_import_pynvml(self):
        assert "pynvml" not in python("import sys, cellmeter.sources.nvidia; print(*sys.modules)", {}).split()


def elsewhere(environ: dict[str, str], *, packages: bool = True) -> dict:
    """Opens the sources in a fresh process: what a process has loaded once as libnvidia-ml stays."""
    code = """
import json, sys
from cellmeter.sources.nvidia import open_nvidia
opened = open_nvidia(lambda: [], {})
names = [source.name for source in opened.sources]
print(json.dumps({"unavailable": opened.unavailable, "sources": names, "imported": "pynvml" in sys.modules}))
"""
    return json.loads(python(code, environ, packages=packages))


def python(code: str, environ: dict[str, str], *, packages: bool = True) -> str:
    places = [Path(cellmeter.__file__).parent.parent, *([Path(pynvml.__file__).parent] if packages else [])]
    lead = f"import sys; sys.path[:0] = {[str(place) for place in places]!r}\n"
    command = [sys.executable, "-I", "-S", "-c", lead + code]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


A, B, C = (Gpu(f"gpu{i}", "NVIDIA H100", uuid) for i, uuid in enumerate(["GPU-8932f937", "GPU-8932aaaa", "GPU-77"]))
OTHER = Gpu("gpu2", "NVIDIA T4", "GPU-77")
MIG_0 = Gpu("gpu0.mig0", "NVIDIA H100 MIG 1g.10gb", "MIG-aa11", parent=A.uuid, gpu_instance=1, compute_instance=0)
MIG_1 = Gpu("gpu0.mig1", "NVIDIA H100 MIG 1g.10gb", "MIG-aa22", parent=A.uuid, gpu_instance=2, compute_instance=0)
ALIKE, MIXED, DIVIDED = [A, B, C], [A, B, OTHER], [A, MIG_0, MIG_1, B]
YES, NO, WHO = True, False, None


class TestOwned:
    @pytest.mark.parametrize(
        ("gpus", "visible", "mine"),
        [
            # ordinals
            (ALIKE, "0", [YES, NO, NO]),
            (ALIKE, "2,0", [YES, NO, YES]),
            (ALIKE, " 1 , 2 ", [NO, YES, YES]),
            (ALIKE, "", [NO, NO, NO]),
            (ALIKE, "-1", [NO, NO, NO]),
            (ALIKE, "NoDevFiles", [NO, NO, NO]),
            (ALIKE, "1,-1,0", [NO, YES, NO]),
            (ALIKE, "1,7,0", [NO, YES, NO]),
            (ALIKE, "7", [NO, NO, NO]),
            (ALIKE, "0,x,1", [YES, NO, NO]),
            (ALIKE, "0,GPU-77", [YES, NO, NO]),
            (ALIKE, "1,1", [NO, NO, NO]),
            (ALIKE, "1gpu", [NO, YES, NO]),
            # ordinals, where CUDA's order is not NVML's
            (MIXED, "0", [WHO, WHO, WHO]),
            (MIXED, "0,1,2", [YES, YES, YES]),
            (MIXED, "", [NO, NO, NO]),
            (MIXED, "-1", [NO, NO, NO]),
            (DIVIDED, "0", [WHO, WHO, WHO, WHO]),
            (DIVIDED, "", [NO, NO, NO, NO]),
            # UUIDs
            (ALIKE, "GPU-8932f937", [YES, NO, NO]),
            (ALIKE, "GPU-8932f", [YES, NO, NO]),
            (ALIKE, "GPU-8932", [NO, NO, NO]),
            (ALIKE, "GPU-77,GPU-8932a", [NO, YES, YES]),
            (ALIKE, "GPU-77,GPU-nope,GPU-8932f", [NO, NO, YES]),
            (ALIKE, "GPU-77,0", [NO, NO, YES]),
            (ALIKE, "GPU-77,GPU-7", [NO, NO, NO]),
            (MIXED, "GPU-77", [NO, NO, YES]),
            # MIG
            (DIVIDED, "MIG-aa11", [WHO, YES, NO, NO]),
            (DIVIDED, "MIG-aa11,MIG-aa22", [WHO, YES, YES, NO]),
            (DIVIDED, "MIG-GPU-8932f937/2/0", [WHO, NO, YES, NO]),
            (DIVIDED, "MIG-GPU-8932f937/3/0", [NO, NO, NO, NO]),
            (DIVIDED, "MIG-aa11,GPU-8932aaaa", [WHO, YES, NO, NO]),
            (DIVIDED, "GPU-8932f", [WHO, WHO, WHO, NO]),
            (DIVIDED, "GPU-8932a", [NO, NO, NO, YES]),
            # not set
            (ALIKE, None, [WHO, WHO, WHO]),
            ([A], None, [WHO]),
        ],
    )
    def test_cuda_visible_devices(self, gpus, visible, mine):
        environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        assert list(owned(gpus, environ).values()) == mine

    def test_ordinals_of_gpus_that_have_moved_are_unknown(self):
        assert list(owned(ALIKE, {"CUDA_VISIBLE_DEVICES": "0"}, ordered=False).values()) == [WHO, WHO, WHO]
        assert list(owned(ALIKE, {"CUDA_VISIBLE_DEVICES": "0,1,2"}, ordered=False).values()) == [YES, YES, YES]
        assert list(owned(ALIKE, {"CUDA_VISIBLE_DEVICES": "GPU-77"}, ordered=False).values()) == [NO, NO, YES]

    def test_pci_order_makes_ordinals_known(self):
        environ = {"CUDA_VISIBLE_DEVICES": "2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        assert owned(MIXED, environ) == {"gpu0": False, "gpu1": False, "gpu2": True}

    @pytest.mark.parametrize(
        ("given", "mine"), [("GPU-77", [WHO, WHO, YES]), ("all", [WHO] * 3), ("0", [WHO] * 3), ("void", [WHO] * 3)]
    )
    def test_a_pods_limit(self, given, mine):
        assert list(owned(ALIKE, {"NVIDIA_VISIBLE_DEVICES": given}).values()) == mine

    def test_cuda_visible_devices_wins_over_the_pods(self):
        environ = {"NVIDIA_VISIBLE_DEVICES": "GPU-77", "CUDA_VISIBLE_DEVICES": ""}
        assert list(owned(ALIKE, environ).values()) == [NO, NO, NO]


class TestEventReasons:
    @pytest.mark.parametrize(
        ("mask", "words"),
        [
            (0, []),
            (1, ["idle"]),
            (0x4, ["software power cap"]),
            (0x60, ["software thermal slowdown", "hardware thermal slowdown"]),
            (0x80, ["hardware power brake"]),
            (0x8000 | 0x4, ["software power cap", "reason 0x8000"]),
        ],
    )
    def test_words(self, mask, words):
        assert event_reason_words(mask) == words

    def test_the_words_follow_nvmls_bits(self):
        assert event_reason_words(pynvml.nvmlClocksEventReasonSwThermalSlowdown) == ["software thermal slowdown"]
        assert event_reason_words(pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown) == ["hardware power brake"]
        assert event_reason_words(pynvml.nvmlClocksEventReasonSyncBoost) == ["sync boost"]


class TestStub:
    """The stub keeps to what NVIDIA's library does, where the sources to come rely on it."""

    def test_driver_samples_are_stamped_with_the_time_of_day_in_microseconds(self, start):
        rig = start("gpu\nat 0 gpu 0 util=20\nat 1 gpu 0 util=60")
        rig.at(2)
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        _, samples = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, 0)
        assert [sample.sampleValue.uiVal for sample in samples] == [20] * 10 + [60] * 10
        assert samples[-1].timeStamp == 1_700_000_002_000_000
        newer = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, samples[-4].timeStamp)
        assert len(newer[1]) == 3

    def test_a_bad_trace_fails_loudly(self, tmp_path):
        environ = nvml_stub.environment("gpu\nat 0 gpu 0 nonsense=1", tmp_path)
        with pytest.raises(subprocess.CalledProcessError) as failed:
            elsewhere(environ)
        assert "bad trace: nonsense" in failed.value.stderr


def test_the_drivers_samples_are_drained_once_each_by_gpu(tmp_path: Path) -> None:
    trace = "gpu\ngpu\nat 0 gpu 0 util=10\nat 1 gpu 0 util=90\nat 0 gpu 1 util=55"
    machine = nvml_stub.machine(trace, tmp_path, steered=True)
    with machine.loaded():
        machine.at(0.5)
        opened = open_nvidia(lambda: [], {})
        (backlog,) = opened.backlogs
        assert [column.subject for column in backlog.columns] == ["gpu0", "gpu1"]
        assert backlog.drain() == [], "what was there before the recording is nobody's"
        machine.at(1.5)
        rows = backlog.drain()
        first = [row.values[0] for row in rows if row.values[0] == row.values[0]]
        second = [row.values[1] for row in rows if row.values[1] == row.values[1]]
        assert first == [10.0] * 5 + [90.0] * 5
        assert second == [55.0] * 10
        assert [row.epoch_us for row in rows] == sorted(row.epoch_us for row in rows)
        assert backlog.drain() == []
        opened.close()


def test_a_driver_without_samples_is_told_once(tmp_path: Path) -> None:
    machine = nvml_stub.machine("missing nvmlDeviceGetSamples\ngpu", tmp_path, steered=True)
    with machine.loaded():
        machine.at(0.5)
        opened = open_nvidia(lambda: [], {})
        (backlog,) = opened.backlogs
        assert backlog.drain() == backlog.drain() == []
        assert [(n.kind, n.metric, n.subject) for n in backlog.notices] == [
            ("unavailable", "gpu.utilization.driver", "gpu0")
        ]
        opened.close()
