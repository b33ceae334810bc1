"""A peer at work in a process of its own: ``peer.py NAME HZ``, with the interpreter of ``.venv-peers``.

NAME: jumper-thread, jumper-subprocess_python, jumper-native_c, mlflow or nvitop. It answers each line on standard input with
a line of JSON: ``cost SLICES SECONDS`` with µs of CPU per sample of each slice, ``deliver LOAD SECONDS`` with the start and
the end of a load and the times of all samples (CLOCK_MONOTONIC, s), ``neighbours COUNT`` once these processes have started.
It imports nothing of cellmeter.

JUmPER's collectors renice every process of their user that they see: only ever start it in a PID namespace of its own and
without CAP_SYS_NICE, as ``bench.peers`` does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Peer:
    """A monitor that has been started: when it sampled, and who of it costs CPU: threads of ours and processes."""

    def __init__(self, start: Callable[[float, list[float]], list[int]], interval: float) -> None:
        self.times: list[float] = []
        before = {thread.native_id for thread in threading.enumerate()}
        self._pids = start(interval, self.times)
        self._threads = [t.native_id for t in threading.enumerate() if t.native_id not in before]

    def cpu_seconds(self) -> float:
        nanoseconds = 0
        for thread in self._threads:
            with contextlib.suppress(OSError):
                nanoseconds += int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0])
        return nanoseconds * 1e-9 + sum(time.clock_gettime((~pid << 3) | 2) for pid in self._pids)

    def cost(self, slices: str, seconds: str) -> list[float]:
        costs = []
        cpu, taken = self.cpu_seconds(), len(self.times)
        for _ in range(int(slices)):
            time.sleep(float(seconds))
            cpu_now, taken_now = self.cpu_seconds(), len(self.times)
            costs.append((cpu_now - cpu) / (taken_now - taken) * 1e6)
            cpu, taken = cpu_now, taken_now
        return costs

    def neighbours(self, count: str) -> int:
        """Starts other processes of this user that do nothing."""
        for _ in range(int(count)):
            subprocess.Popen(["sleep", "100000"], start_new_session=True)
        return int(count)

    def deliver(self, load: str, seconds: str) -> dict[str, object]:
        start = time.monotonic()
        LOADS[load](start + float(seconds))
        end = time.monotonic()
        time.sleep(1.5)  # what a collector has read is still on its way
        return {"start": start, "end": end, "times": [t for t in self.times if start <= t <= end]}


# The loads are those of subject.py, written again because this environment has no cellmeter.


def _idle(until: float) -> None:
    time.sleep(max(0.0, until - time.monotonic()))


def _python(until: float) -> None:
    total = 0
    while time.monotonic() < until:
        for i in range(20_000):
            total += i * i & 7


def _gil(until: float) -> None:
    hold = ctypes.PyDLL(None).usleep
    while (left := until - time.monotonic()) > 0:
        hold(int(min(2.0, left) * 1e6))


LOADS = {"idle": _idle, "python": _python, "gil": _gil}


# ---- the peers -------------------------------------------------------------------------------------------------------


def jumper(backend: str) -> Callable[[float, list[float]], list[int]]:
    """As its users start it, in an IPython shell."""

    def start(interval: float, times: list[float]) -> list[int]:
        import psutil
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        shell.run_cell("%load_ext jumper_extension")
        shell.run_cell(f"%perfmonitor_start {interval} --monitor {backend}")
        from jumper_extension.ipython import extension

        monitor = extension._perfmonitor_magics.magic_adapter.service.monitor
        kind = type(monitor).__module__.split(".")[-2]
        if kind != backend:  # it can fall back by itself
            raise RuntimeError(f"JUmPER runs {kind} instead of {backend}")
        add_sample = monitor.nodes.add_sample

        def noted(node: object, level: str, row: dict[str, float]) -> None:
            if level == "process":
                times.append(row["time"])  # perf_counter is CLOCK_MONOTONIC on Linux, in the collector too
            add_sample(node, level, row)

        monitor.nodes.add_sample = noted
        process = getattr(monitor, "_process", None)
        if process is None:
            return []
        top = psutil.Process(process.pid)
        return [top.pid, *(child.pid for child in top.children(recursive=True))]

    return start


def mlflow(interval: float, times: list[float]) -> list[int]:
    """The monitors that MLflow's SystemMetricsMonitor is made of, read and averaged at the rate asked for.

    Its own loop would also fetch the run from the tracking server for each sample and send the metrics there, which costs
    far more and depends on the server: left out, to its advantage.
    """
    with contextlib.suppress(ImportError):
        import pynvml  # noqa: F401 - its GPU monitor asks whether this has been imported
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):
        monitors.append(GPUMonitor())

    def loop() -> None:
        deadline = time.monotonic()
        while True:
            for monitor in monitors:
                monitor.collect_metrics()
                monitor.aggregate_metrics()
                monitor.clear_metrics()
            now = time.monotonic()
            times.append(now)
            deadline += interval * max(1, (now - deadline) // interval + 1)
            time.sleep(max(0.0, deadline - now))

    threading.Thread(target=loop, daemon=True).start()
    return []


def nvitop(interval: float, times: list[float]) -> list[int]:
    """ResourceMetricCollector with its own thread, on all GPUs there are."""
    from nvitop import Device, ResourceMetricCollector

    class Noted(ResourceMetricCollector):
        def take_snapshots(self) -> object:
            taken = super().take_snapshots()
            times.append(time.monotonic())
            return taken

    collector = Noted(Device.all(), interval=interval)
    collector.activate("bench")
    KEPT.append(collector)
    return []


KEPT: list[object] = []  # a collector ends when it is collected
PEERS: dict[str, Callable[[float, list[float]], list[int]]] = {
    **{f"jumper-{backend}": jumper(backend) for backend in ("thread", "subprocess_python", "native_c")},
    "mlflow": mlflow,
    "nvitop": nvitop,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # peers print on standard output
    peer = Peer(PEERS[sys.argv[1]], 1 / float(sys.argv[2]))
    until = time.monotonic() + 20
    while not peer.times:
        if time.monotonic() > until:
            raise RuntimeError(f"{sys.argv[1]} took no sample in 20 s")
        time.sleep(0.05)
    print(json.dumps({"samples": len(peer.times)}), file=answers, flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        print(json.dumps(getattr(peer, command)(*arguments)), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
