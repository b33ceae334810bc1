"""Records GPUs that play a script: NVML's stub under the real sources, sampler and writer, with a clock that is steered.

What the kernel does meanwhile (CPU, disk, memory) is scripted too, as real processes do not run on a steered clock.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import nvml_stub

from cellmeter.failures import Failure
from cellmeter.home import new_run_folder
from cellmeter.run import Column, Device
from cellmeter.sampling import Sampler
from cellmeter.sources import Notice
from cellmeter.sources.filesystems import Filesystems
from cellmeter.sources.nvidia import open_nvidia
from cellmeter.store import Writer
from labelled.keep import keep

MIB, GIB = 2**20, 2**30
Signal = float | Callable[[float], float]
MINE = {"CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
SPIKY = random.Random(20261121)  # the same runs each time


class Clock:
    """A clock that stands still until it is moved."""

    now = 10**12

    def monotonic_ns(self) -> int:
        return self.now

    def boottime_ns(self) -> int:
        return self.now

    def wall(self) -> float:
        return 1.7e9 + (self.now - 10**12) * 1e-9

    @property
    def seconds(self) -> float:
        return (self.now - 10**12) * 1e-9


COUNTERS = frozenset({"process.cpu.time", "process.disk.read", "host.disk.read", "recorder.cpu.time"})


class Played:
    """The kernel and the machine by a script: values by time, rates for counters."""

    name = "main"
    interval = 0.0

    def __init__(self, clock: Clock, signals: Mapping[str, tuple[str, str, Signal]]) -> None:
        self.notices: list[Notice] = []
        self._clock, self._signals = clock, signals
        self.columns = tuple(Column(metric, subject, unit) for metric, (subject, unit, _) in signals.items())
        self._totals = dict.fromkeys(signals, 0.0)
        self._last = clock.seconds

    def read(self) -> list[float]:
        now, row = self._clock.seconds, []
        for metric, (_, _, signal) in self._signals.items():
            read = value(signal, now)
            if metric in COUNTERS:
                self._totals[metric] += read * (now - self._last)
                read = self._totals[metric]
            row.append(read)
        self._last = now
        return row

    def devices(self) -> list[Device]:
        return []

    def close(self) -> None:
        pass


def value(signal: Signal, t: float) -> float:
    return float(signal(t) if callable(signal) else signal)


def bursts(period: float, busy: float, high: float, low: float = 0.0) -> Callable[[float], float]:
    """``high`` for the first ``busy`` seconds of each period, ``low`` for the rest."""
    return lambda t: high if t % period < busy else low


def during(start: float, end: float, high: float, low: float = 0.0) -> Callable[[float], float]:
    """``high`` from ``start`` to ``end``, else ``low``."""
    return lambda t: high if start <= t < end else low


@dataclass(frozen=True)
class Gpu:
    """What one GPU does, by seconds since the run's start. ``gpm``: SM activity, DRAM and PCIe by the GPM ids of NVML."""

    use: Signal = 0.0
    used: Signal = 20.0  # GiB
    power: Signal | None = None
    reasons: Signal = 0
    clock: Signal = 1755
    gpm: Mapping[int, Signal] = field(default_factory=dict)
    mine: tuple[float, float] | None = (0.0, 1e6)  # when the kernel holds a context
    foreign: bool = False
    context: float = 20.0  # GiB


SM, DRAM, PCIE_SENT, PCIE_RECEIVED = 2, 10, 20, 21


@dataclass(frozen=True)
class Scene:
    """Cells, as (start, end, source), and what happens meanwhile."""

    cells: list[tuple[float, float, str]]
    gpus: list[Gpu]
    environ: Mapping[str, str] = field(default_factory=lambda: MINE)
    rate: float = 4.0
    after: float = 3.0
    cores: Signal = 0.2
    children: Signal = 0
    read: Signal = 0.0
    failures: Mapping[int, Failure] = field(default_factory=dict)
    """How cells failed, by their number."""


def trace_of(scene: Scene, seconds: float, step: float) -> str:
    """The scene in the stub's trace language, with a little noise on what drivers measure."""
    name = 'gpu name="NVIDIA H100 80GB HBM3" mem=80g limit=700'
    lines = [name + " gpm=1" * bool(gpu.gpm) for gpu in scene.gpus]
    for index, gpu in enumerate(scene.gpus):
        if gpu.mine:
            lines.append(f"proc {gpu.mine[0]} {gpu.mine[1]} gpu {index} pid=self used={int(gpu.context * 1024)}m")
        if gpu.foreign:
            lines.append(f"proc 0 - gpu {index} pid=1 used=9g")
        before = ""
        for t in (n * step for n in range(int(seconds / step) + 1)):
            keys = _readings(gpu, t)
            if keys != before:
                lines.append(f"at {t:g} gpu {index} {keys}")
                before = keys
    return "\n".join(lines)


def _readings(gpu: Gpu, t: float) -> str:
    use = value(gpu.use, t)
    if 5 < use < 97:
        use += SPIKY.randint(-3, 3)
    power = 75 + 5.6 * use if gpu.power is None else value(gpu.power, t)
    keys = (
        f"util={use:.0f} used={int(value(gpu.used, t) * 1024)}m power={power:.0f} temp=60 sm={value(gpu.clock, t):.0f}"
    )
    keys += f" reasons={int(value(gpu.reasons, t)):#x}"
    return keys + "".join(f" gpm.{metric}={value(signal, t):g}" for metric, signal in gpu.gpm.items())


def record(name: str, scene: Scene) -> Path:
    """Plays a scene and keeps the run."""
    clock, step = Clock(), 1 / scene.rate
    end = max(stop for _, stop, _ in scene.cells) + scene.after
    with TemporaryDirectory() as scratch:
        proc = Path(scratch, "proc/self/ns")
        proc.mkdir(parents=True)
        (proc / "pid").symlink_to("pid:[4026531836]")
        machine = nvml_stub.machine(trace_of(scene, end, step), Path(scratch), steered=True)
        folder = new_run_folder(Path(scratch, "runs"))
        with machine.loaded():
            opened = open_nvidia(
                lambda: [os.getpid()], scene.environ, lambda: clock.seconds, str(Path(scratch, "proc"))
            )
            played = Played(clock, _host(scene))
            writer = Writer(folder)
            writer.describe(**_header(folder, scene, opened.unavailable))
            writer.describe(devices=[vars(device) for device in opened.sources[0].devices()])
            sampler = Sampler([played, *opened.sources], writer, clock, scene.rate)
            play(sampler, clock, scene.cells, end, machine.at, scene.failures)
            writer.close()
            opened.sources[0].close()
        return keep(folder, name)


def play(
    sampler: Sampler,
    clock: Clock,
    cells: list[tuple[float, float, str]],
    end: float,
    at: Callable[[float], None],
    failures: Mapping[int, Failure] | None = None,
) -> None:
    """Runs the sampler by its deadlines through all edges to the end."""
    edges = [(start, 1, seq, source) for seq, (start, _, source) in enumerate(cells, 1)]
    edges += [(stop, 0, seq, source) for seq, (_, stop, source) in enumerate(cells, 1)]
    for time, begins, seq, source in [*sorted(edges), (end, -1, 0, "")]:
        target = 10**12 + round(time * 1e9)
        while sampler.deadline_ns < target:
            clock.now = max(clock.now, sampler.deadline_ns)
            at(clock.seconds)
            sampler.on_time()
        clock.now = target
        at(clock.seconds)
        edge = {"t": clock.now, "seq": seq, "execution_count": seq, "cpu_ns": 0, "rss_bytes": GIB}
        if begins == 1:
            sampler.cell_started({"event": "cell_start", "hash": source, "first_line": source[:80], **edge})
        elif begins == 0:
            if (failure := (failures or {}).get(seq)) is not None:
                edge |= {"error": failure.error, "gpu_memory_ran_out": failure.gpu_memory}
            status = "ok" if failure is None else "error"
            sampler.cell_ended({"event": "cell_end", "status": status, "peak_rss_bytes": GIB, **edge})
    sampler.event({"event": "end", "t": clock.now, "ending": "stopped", "signal": None, "exit_code": None})


def _host(scene: Scene) -> dict[str, tuple[str, str, Signal]]:
    return {
        "process.cpu.time": ("process", "s", scene.cores),
        "process.children": ("process", "1", scene.children),
        "process.memory.rss": ("process", "By", GIB),
        "process.memory.file": ("process", "By", 100 * MIB),
        "process.tree.memory.rss": ("process", "By", GIB),
        "process.io.blocked": ("process", "1", 0),
        "process.disk.read": ("process", "By", scene.read),
        "host.disk.read": ("host", "By", scene.read),
        "host.memory.used": ("host", "By", 20 * GIB),
        "recorder.cpu.time": ("recorder", "s", 0.004),
    }


def _header(folder: Path, scene: Scene, unavailable: Mapping[str, str]) -> dict[str, object]:
    memory, cores = 256 * GIB, 16
    return {
        "id": folder.name,
        "start_ns": 10**12,
        "started": 1.7e9,
        "rate_hz": scene.rate,
        "host": {
            "name": "labelled",
            "system": "Linux",
            "release": "",
            "machine": "x86_64",
            "python": "",
            "cpu_count": cores,
            "memory_bytes": memory,
        },
        "limits": {"memory_bytes": [float(memory), "host"], "cpu_cores": [float(cores), "host"]},
        "unavailable": dict(unavailable),
        "devices": [],
    }


TRAIN = "train(model, loader)"
LOADER = "for images, labels in DataLoader(images): step()"
IMPORT = "import torch"
SHARED: Mapping[str, str] = {}


def train(seconds: float, source: str = TRAIN) -> list[tuple[float, float, str]]:
    return [(3.0, 3.0 + seconds, source)]


def one(use: Signal, **more: object) -> list[Gpu]:
    return [Gpu(use, **more)]  # type: ignore[arg-type]


WAITS = bursts(4, 1, 95)
EIGHT = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
ONE = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

SCENES = {
    "allocated-unused": Scene(train(320, "import pandas"), one(0, mine=None, used=0), ONE, 1),
    "allocated-briefly": Scene(train(250, "import pandas"), one(0, mine=None, used=0), ONE, 1),
    "context-unused": Scene(train(20), one(0)),
    "context-used-late": Scene(train(20), one(during(16, 20, 90))),
    "input-bound": Scene(train(60, LOADER), one(WAITS), cores=bursts(4, 1, 0.4, 1.0), children=2),
    "reads-slowly": Scene(train(60), one(WAITS), cores=0.2, read=bursts(4, 1, 0, 400e6)),
    "gaps": Scene(train(60), one(WAITS)),
    "copies": Scene(
        train(60), one(WAITS, gpm={SM: bursts(4, 1, 80), DRAM: bursts(4, 1, 40), PCIE_RECEIVED: bursts(4, 1, 100, 9000)})
    ),
    "hot-and-low": Scene(train(60), one(40, reasons=0x40, clock=900)),
    "one-long-rest": Scene(train(70), one(lambda t: 95 if t < 15 or t > 55 else 0)),
    "evenly-low": Scene(train(60), one(22)),
    "short-work": Scene(train(60), one(during(20, 28, 20))),
    "busy": Scene(train(60), one(93, gpm={SM: 82, DRAM: 45})),
    "bursts-well-used": Scene(train(60), one(bursts(2, 1.25, 97))),
    "hollow": Scene(train(40), one(98, gpm={SM: 11, DRAM: 6})),
    "memory-bound": Scene(train(40), one(99, gpm={SM: 38, DRAM: 78})),
    "hollow-by-power": Scene(train(40), one(lambda t: 96 if 3 < t < 43 else 0, power=lambda t: 150 if 3 < t < 43 else 72)),
    "full-by-power": Scene(train(40), one(lambda t: 96 if 3 < t < 43 else 0, power=lambda t: 430 if 3 < t < 43 else 72)),
    "uneven": Scene(train(50), [Gpu(91), Gpu(34)]),
    "nearly-even": Scene(train(50), [Gpu(91), Gpu(66)]),
    "held-idle": Scene(train(40), one(during(3, 43, 92)), ONE, 0.2, after=1850),
    "held-not-long": Scene(train(40), one(during(3, 43, 92)), ONE, 0.2, after=1700),
    "freed": Scene(
        train(40), one(during(3, 43, 92), mine=(0, 60), used=during(0, 60, 20, 0.3)), ONE, 0.2, after=1850
    ),
    "memory-fills": Scene(train(40), one(92, used=lambda t: min(76.5, 20 + t * 1.6))),
    "memory-pool": Scene(train(40), one(92, used=lambda t: 16 if t < 12 else 75.5)),
    "memory-roomy": Scene(train(40), one(92, used=lambda t: min(70, 20 + t * 1.6))),
    "too-hot": Scene(train(40), one(96, reasons=bursts(4, 1.5, 0x40), clock=bursts(4, 1.5, 1200, 1755))),
    "hot-once": Scene(train(60), one(96, reasons=during(20, 23, 0x40))),
    "power-cap": Scene(train(40), one(97, reasons=0x4)),
    "power-brake": Scene(train(40), one(95, reasons=during(10, 30, 0x80), clock=during(10, 30, 600, 1755))),
    "eight-uneven": Scene(train(40), [Gpu(95), *[Gpu(41)] * 7], EIGHT),
    "eight-waiting": Scene(train(40, LOADER), [Gpu(WAITS)] * 8, EIGHT, cores=bursts(4, 1, 0.5, 8.0), children=8),
    "eight-at-work": Scene(train(40), [Gpu(88 + n) for n in range(8)], EIGHT),
    "held-between-cells": Scene(
        [(3, 43, TRAIN), (1900, 1905, "print(history)")], one(during(3, 43, 92)), ONE, 0.2, after=60
    ),
    "small-kernels": Scene(train(40), one(86, gpm={SM: bursts(3, 1, 55, 30), DRAM: 22})),
    "loads-and-serves": Scene(
        [(3, 30, "llm = LLM(model)"), (33, 80, "llm.generate(prompts)")],
        one(during(34, 79, 90), used=lambda t: min(16, t) if t < 24 else 74.5, gpm={SM: during(34, 79, 60), DRAM: 70}),
    ),
    "validates-in-between": Scene(train(60), one(lambda t: 0 if t % 20 > 13 else 94)),
    "batch-too-large": Scene(train(40), one(92, used=during(20, 26, 70, 14))),
    "cuda-out-of-memory": Scene(
        [(3, 20, "model = load()"), (23, 35, TRAIN)],
        one(during(24, 35, 93), used=lambda t: min(79.3, 20 + max(0, t - 23) * 7), context=78.9),
        failures={2: Failure("torch.OutOfMemoryError", gpu_memory=True)},
    ),
    "cuda-out-of-memory-shared": Scene(
        train(20), [Gpu(60, used=79.5, context=11, foreign=True), Gpu(0, used=0, mine=None)], SHARED,
        failures={1: Failure("torch.cuda.OutOfMemoryError", gpu_memory=True)},
    ),
    "fails-nearly-full": Scene(
        train(40), one(93, used=lambda t: min(72.5, 20 + t * 2), context=72), failures={1: Failure("ValueError")}
    ),
    "shared-server-pandas": Scene(
        [(3, 60, "import pandas as pd"), (63, 380, "df.groupby('key').mean()")],
        [Gpu(bursts(7, 4, 88), mine=None, foreign=True), Gpu(0, mine=None, used=0)],
        SHARED,
        1,
    ),
    "shared-gpu": Scene(train(60), one(20, foreign=True), SHARED),
    "notebook-server-plotting": Scene(
        [(3, 200, "import matplotlib"), (210, 420, "plt.plot(x, y)")],
        one(0, mine=None, used=0),
        SHARED,
        1,
    ),
    "inference": Scene(
        [(3, 20, "import torch"), (25, 65, "answers = model.generate(prompts)"), (70, 78, "print(answers)")],
        one(lambda t: 72 if 26 < t < 64 else 0, gpm={SM: lambda t: 55 if 26 < t < 64 else 0,
                                                      DRAM: lambda t: 66 if 26 < t < 64 else 0}),
    ),
    "trial-steps": Scene(
        [(3, 9, IMPORT), (12, 19, "model(batch)"), (25, 33, "model(batch)"), (60, 100, "df = frame(results)")],
        one(lambda t: 60 if 13 < t < 18 or 26 < t < 32 else 0),
    ),
}  # fmt: skip


class Filling:
    """A file system that is written to as the clock goes: real files on a real, small file system."""

    def __init__(self, folder: Path, mib: Callable[[float], float]) -> None:
        self._folder, self._mib, self._written = folder, mib, 0

    def __call__(self, seconds: float) -> None:
        while self._written < self._mib(seconds):
            (self._folder / f"checkpoint-{self._written}").write_bytes(bytes(MIB))
            self._written += 1


DISKS = {
    "disk-fills": (1200.0, lambda t: t / 60 * 20),
    "one-checkpoint": (1200.0, lambda t: 300 if t > 600 else 0),
    "disk-nearly-full": (120.0, lambda t: 985),
    "disk-roomy": (120.0, lambda t: 900),
}


def record_disk(name: str, seconds: float, mib: Callable[[float], float]) -> Path:
    """Fills a real file system of 1 GiB (needs root, for the mount)."""
    import subprocess

    clock = Clock()
    with TemporaryDirectory() as scratch:
        disk = Path(scratch, "disk")
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "labelled", str(disk)], check=True)
        try:
            folder = new_run_folder(Path(scratch, "runs"))
            scene = Scene([], [], rate=0.2)
            writer = Writer(folder)
            writer.describe(**_header(folder, scene, {"gpu": "no NVIDIA driver library"}))
            filling = Filling(disk, mib)
            written = {"process.disk.written": ("process", "By", lambda t: mib(t) * MIB)}
            sources = [Played(clock, {**_host(scene), **written}), Filesystems([str(disk)])]
            for source in sources:
                source.columns = tuple(
                    c._replace(subject="/data") if c.subject == str(disk) else c for c in source.columns
                )
            play(Sampler(sources, writer, clock, 0.2), clock, [(3, 3 + seconds, TRAIN)], seconds + 6, filling)
            writer.close()
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        return keep(folder, name)


def main() -> None:
    for name in sys.argv[1:] or [*SCENES, *DISKS]:
        path = record(name, SCENES[name]) if name in SCENES else record_disk(name, *DISKS[name])
        print(f"{path.name:32} {path.stat().st_size >> 10:5} KiB", flush=True)


if __name__ == "__main__":
    main()
