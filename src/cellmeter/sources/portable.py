"""Systems without /proc, through psutil: the same columns as Linux, as far as the system has them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import psutil

from cellmeter.clock import monotonic
from cellmeter.metrics import SHARED_PAGES
from cellmeter.run import Column, Device, Host, Limit
from cellmeter.sources import Notice
from cellmeter.sources.tree_total import TreeTotal, Used

NAN = float("nan")
RESCAN_SECONDS = 1.0


class Portable:
    """The machine, the kernel's process tree and the recorder itself, in the main stream."""

    name = "main"
    interval = 0.0

    def __init__(self, pid: int, clock: Callable[[], float] = monotonic) -> None:
        self._process = psutil.Process(pid)
        self._clock = clock
        self._tree: list[psutil.Process] = []
        self._rescan_at = -1.0
        self._tree_time = TreeTotal(tolerated=0.03)
        self.notices: list[Notice] = []
        self.unavailable: dict[str, str] = {
            SHARED_PAGES: "pages that workers share count each time, so process.tree.memory.rss is an upper bound"
        }
        self._readings: list[tuple[tuple[Column, ...], Callable[[], list[float]]]] = [
            (_columns("host", ("host.cpu.time", "s")), _host_cpu),
            (_columns("host", ("host.memory.used", "By")), _host_memory),
            (_columns("host", ("host.disk.read", "By"), ("host.disk.written", "By")), _host_disk),
            (_columns("host", ("host.network.received", "By"), ("host.network.sent", "By")), _host_network),
            (_columns("process", ("process.cpu.time", "s"), ("process.children.cpu.time", "s")), self._cpu),
            (_columns("process", ("process.memory.rss", "By"), ("process.tree.memory.rss", "By")), self._memory),
            (_columns("process", ("process.threads", "1"), ("process.children", "1")), self._counts),
            (_columns("process", ("process.disk.read", "By"), ("process.disk.written", "By")), self._disk),
            (_columns("recorder", ("recorder.cpu.time", "s")), lambda: [time.process_time()]),
        ]
        self._readings = [reading for reading in self._readings if self._works(*reading)]
        self.columns = tuple(column for columns, _ in self._readings for column in columns)

    def _works(self, columns: tuple[Column, ...], read: Callable[[], list[float]]) -> bool:
        try:
            read()
        except (OSError, psutil.Error, AttributeError, RuntimeError) as error:
            self.unavailable.update({column.metric: f"this system does not tell: {error}" for column in columns})
            return False
        return True

    def read(self) -> list[float]:
        """One row; NaN where a reading fails."""
        row: list[float] = []
        for columns, read in self._readings:
            try:
                row += read()
            except (OSError, psutil.Error):
                row += [NAN] * len(columns)
        return row

    def pids(self) -> list[int]:
        """The kernel and its descendants as last seen."""
        return [self._process.pid, *(child.pid for child in self._tree)]

    def _children(self) -> list[psutil.Process]:
        if self._clock() >= self._rescan_at:
            self._rescan_at = self._clock() + RESCAN_SECONDS
            self._tree = self._process.children(recursive=True)
        return self._tree

    def _cpu(self) -> list[float]:
        tree = {self._process.pid: _used(self._process)}
        for child in self._children():
            try:
                tree[child.pid] = _used(child)
            except psutil.NoSuchProcess:
                continue
        children = sum(used.all for used in tree.values()) - tree[self._process.pid].all
        return [self._tree_time.add(tree), children]

    def _memory(self) -> list[float]:
        own = self._process.memory_info().rss
        tree = own
        for child in self._children():
            try:
                tree += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return [float(own), float(tree)]

    def _counts(self) -> list[float]:
        return [float(self._process.num_threads()), float(len(self._children()))]

    def _disk(self) -> list[float]:
        counters = self._process.io_counters()
        read, written = counters.read_bytes, counters.write_bytes
        for child in self._children():
            try:
                counters = child.io_counters()
            except psutil.NoSuchProcess:
                continue
            read += counters.read_bytes
            written += counters.write_bytes
        return [float(read), float(written)]

    def devices(self) -> list[Device]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to close."""


class PortableCores:
    """CPU time of each core, once a second."""

    name = "cores"
    interval = 1.0

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.columns = tuple(Column("core.cpu.time", f"cpu{i}", "s") for i in range(len(psutil.cpu_times(percpu=True))))

    def read(self) -> list[float]:
        """Busy seconds of each core."""
        busy = [_busy(times) for times in psutil.cpu_times(percpu=True)]
        return (busy + [NAN] * len(self.columns))[: len(self.columns)]

    def devices(self) -> list[Device]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to close."""


def portable_host() -> Host:
    """The machine as psutil and ``platform`` tell."""
    name = platform.uname()
    memory = psutil.virtual_memory().total
    return Host(
        name.node, name.system, name.release, name.machine, platform.python_version(), os.cpu_count() or 1, memory
    )


def portable_limits(host: Host) -> dict[str, Limit]:
    """The machine's own size: systems without control groups set no other."""
    return {
        "memory_bytes": Limit(float(host.memory_bytes), "host"),
        "cpu_cores": Limit(float(host.cpu_count), "host"),
    }


def _used(process: psutil.Process) -> Used:
    times = process.cpu_times()
    return Used(process.ppid(), times.user + times.system, times.children_user + times.children_system)


def _columns(subject: str, *metrics: tuple[str, str]) -> tuple[Column, ...]:
    return tuple(Column(metric, subject, unit) for metric, unit in metrics)


def _busy(times: object) -> float:
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))


def _host_cpu() -> list[float]:
    return [_busy(psutil.cpu_times())]


def _host_memory() -> list[float]:
    memory = psutil.virtual_memory()
    return [float(memory.total - memory.available)]


def _host_disk() -> list[float]:
    counters = psutil.disk_io_counters()
    if counters is None:
        raise OSError("no disk counters")
    return [float(counters.read_bytes), float(counters.write_bytes)]


def _host_network() -> list[float]:
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    real = [c for name, c in counters.items() if not name.startswith(("lo", "veth", "docker", "br-", "virbr"))]
    return [float(sum(c.bytes_recv for c in real)), float(sum(c.bytes_sent for c in real))]
