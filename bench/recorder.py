"""What the recorder costs: CPU per sample and memory of the real process, beside psutil and the least that C needs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.effort import Effort
from bench.processes import (
    Recorder,
    Subject,
    costs_side_by_side,
    lower_bound,
    memory_kib,
    python_watcher,
    scratch,
)
from bench.table import Line, Section, alone, compare
from cellmeter.run import Column
from cellmeter.sources.linux import Cores, HostPart
from cellmeter.store import Writer

RATE_HZ = 10.0
MOST_SHARE = 1.0  # % of a core
MOST_GPU_SHARE = 0.3  # % of a core, on top, for each GPU
MOST_RSS_MIB = 20.0
MOST_TO_C = 3.0
MOST_TO_PSUTIL = 1 / 3
WARM_SECONDS = 3.0
SLICE_SECONDS = 2.0  # a multiple of the second that cores, tree and kill counter are looked at
FORKED_MIB = 1024
CORES = 192
DISKS = 8
INTERFACES = 16


class Scene(NamedTuple):
    """A subject to be recorded."""

    name: str
    children: int = 0
    gpus: int = 0
    forks: int = 0


SCENES = (
    Scene("idle process"),
    Scene("32 children", children=32),
    Scene("32 forks of 1 GiB", forks=32),
    Scene("1 GPU", gpus=1),
    Scene("8 GPUs", gpus=8),
)


def run(effort: Effort) -> Iterator[Section]:
    """One section a scene, then the big machine."""
    slices = effort.choose(short=1, usual=10, full=30)
    warm = effort.choose(short=0.2, usual=WARM_SECONDS, full=WARM_SECONDS)
    slice_seconds = effort.choose(short=0.5, usual=SLICE_SECONDS, full=SLICE_SECONDS)
    for scene in SCENES:
        with scratch() as folder:
            yield Section(
                f"recorder: {scene.name}, {RATE_HZ:g} Hz, {slices * slice_seconds:g} s",
                tuple(_scene(scene, folder, slices, slice_seconds, warm)),
                _GPU_NOTES if scene.gpus else (),
            )
    with scratch() as folder:
        yield Section(
            f"recorder: a faked /proc of {CORES} cores, {DISKS} disks, {INTERFACES} interfaces",
            tuple(_big_machine(folder, effort.choose(short=3, usual=40, full=200))),
            ("In this process, from plain files: without what the system needs to make up a real /proc/stat.",),
        )


_GPU_NOTES = ("GPUs are the NVML stub of the tests, which answers at once: a driver's own time comes on top.",)


def gpu_environ(gpus: int, folder: Path) -> dict[str, str]:
    """Variables for processes that shall see that many GPUs of the stub, without its call log, which would cost too."""
    if not gpus:
        return {}
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import nvml_stub

    trace = "gpu\n" * gpus + "".join(f"at 0 gpu {n} util=50 power=300 temp=60 sm=1500\n" for n in range(gpus))
    environ = dict(nvml_stub.machine(trace, folder).environ)
    del environ["NVML_STUB_LOG"]
    return environ


def _scene(scene: Scene, folder: Path, slices: int, slice_seconds: float, warm: float) -> Iterator[Line]:
    environ = gpu_environ(scene.gpus, folder)
    with ExitStack() as stack:
        subject = stack.enter_context(Subject(folder, environ))
        subject.do(f"workers({scene.children})" if not scene.forks else f"forks({scene.forks}, {FORKED_MIB})")
        recorder = Recorder(subject.do(f"record({RATE_HZ})"))
        subject.do("open_cell()")
        time.sleep(
            max(warm, 1.5 if scene.children or scene.forks else 0.0)
        )  # the children are in the recorder's tree by then
        watchers = {
            name: stack.enter_context(
                python_watcher(
                    "psutil_loop.py", [str(subject.pid), f"{RATE_HZ:g}", schedule, str(scene.gpus)], folder, environ
                )
            )
            for name, schedule in (("psutil", "each"), ("psutil, lean", "lean"))
        }
        if not scene.gpus:
            watchers["C"] = stack.enter_context(lower_bound(recorder, subject.pid, RATE_HZ, folder))
        time.sleep(warm)
        costs = costs_side_by_side({"cellmeter": recorder, **watchers}, slices, slice_seconds)
        memory = memory_kib(recorder.pid), memory_kib(watchers["psutil"].pid)
    yield from _cost_lines(costs, scene.gpus)
    for key, label, most in (("Rss", "resident memory", MOST_RSS_MIB), ("Pss", "proportional memory (PSS)", None)):
        ours, peers = memory[0][key] / 1024, memory[1][key] / 1024
        line = compare(label, "MiB", [ours], "psutil", [peers], None)
        yield line if most is None else replace(line, target=f"≤ {most:g} MiB", met=ours <= most)


def _cost_lines(costs: dict[str, list[float]], gpus: int) -> Iterator[Line]:
    ours = costs["cellmeter"]
    most_share = MOST_SHARE + MOST_GPU_SHARE * gpus
    yield alone("CPU at 10 Hz, share of a core", "%", [cost * RATE_HZ * 1e-4 for cost in ours], most_share)
    yield compare("CPU per sample", "µs", ours, "psutil", costs["psutil"], MOST_TO_PSUTIL)
    yield compare("CPU per sample", "µs", ours, "psutil, lean", costs["psutil, lean"], None)
    if "C" in costs:
        yield compare("CPU per sample", "µs", ours, "C", costs["C"], MOST_TO_C)


# ---- a machine that is not here --------------------------------------------------------------------------------------


def _big_machine(folder: Path, rounds: int) -> Iterator[Line]:
    proc = folder / "proc"
    disks = fake_proc(proc)
    host, cores = HostPart(str(proc), disks), Cores(str(proc))
    writer = Writer(folder)
    main = writer.add_segment("main", host.columns)
    each_core = writer.add_segment("cores", [Column(*column) for column in cores.columns])
    rate = round(RATE_HZ)

    def ours() -> None:
        for number in range(rate):
            writer.sample(main, 0, 1, 0, host.read())
            if not number:
                writer.sample(each_core, 0, 1, 0, cores.read())

    def peer(each: bool) -> None:
        for number in range(rate):
            psutil.cpu_times(percpu=each or not number)
            psutil.virtual_memory()
            psutil.disk_io_counters(nowrap=False)
            psutil.net_io_counters(nowrap=False)

    before, psutil.PROCFS_PATH = psutil.PROCFS_PATH, str(proc)
    try:
        calls = {"ours": ours, "each": lambda: peer(True), "lean": lambda: peer(False)}
        costs = _alternated(calls, rounds, rate)
    finally:
        psutil.PROCFS_PATH = before
        host.close()
        cores.close()
        writer.close()
    yield compare("CPU per sample, host and cores", "µs", costs["ours"], "psutil", costs["each"], MOST_TO_PSUTIL)
    yield compare("CPU per sample, host and cores", "µs", costs["ours"], "psutil, lean", costs["lean"], None)


def _alternated(calls: dict[str, Callable[[], None]], rounds: int, samples: int) -> dict[str, list[float]]:
    costs: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time_ns()
            call()
            costs[name].append((time.process_time_ns() - start) * 1e-3 / samples)
    return costs


def fake_proc(proc: Path) -> frozenset[bytes]:
    """Writes the files of a big machine's /proc that the host part reads; returns its disks."""
    (proc / "net").mkdir(parents=True)
    ticks = "91823745 1234 8374651 9182736450 91827 0 73645 0 0 0"
    stat = [f"cpu  {ticks}", *(f"cpu{n} {ticks}" for n in range(CORES))]
    stat += ["intr 918273645" + " 81726" * 2000, "ctxt 9182736455", "btime 1790000000", "processes 98172", "softirq 1"]
    (proc / "stat").write_text("\n".join(stat) + "\n")
    names = (
        "MemTotal",
        "MemFree",
        "MemAvailable",
        "Buffers",
        "Cached",
        "SwapCached",
        "Active",
        "Inactive",
        "Shmem",
        "Slab",
    )
    (proc / "meminfo").write_text("".join(f"{name}: {1 << 30} kB\n" for name in names))
    disks = [f"nvme{n}n1" for n in range(DISKS)]
    parts = [name + part for name in disks for part in ("", "p1", "p2")]
    counters = "817263 1 81726354 1 918273 1 8172635 1 0 81726 91827 0 0 0 0 0 0"
    (proc / "diskstats").write_text("".join(f" 259 {n} {name} {counters}\n" for n, name in enumerate(parts)))
    interfaces = "".join(f"  eth{n}: 91827364 81726 0 0 0 0 0 0 81726354 7162 0 0 0 0 0 0\n" for n in range(INTERFACES))
    (proc / "net" / "dev").write_text("Inter-| Receive\n face |bytes\n" + interfaces)
    return frozenset(name.encode() for name in disks)
