"""A process that reads by psutil what the recorder reads: ``psutil_loop.py COUNTER PID HZ SCHEDULE [GPUS]``.

SCHEDULE ``each``: everything for each sample, as one writes it. ``lean``: as the recorder does: cores, the search for
children and their I/O once a second. With GPUS, the same NVML calls as the recorder, through plain pynvml.
Run as a script, so that nothing but psutil is imported. It keeps what it has read in a list and writes nothing.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil


class Reader:
    def __init__(self, pid: int, each: bool, rate_hz: float, gpus: int) -> None:
        self._process = psutil.Process(pid)
        self._children: list[psutil.Process] = []
        self._each = each
        self._every = max(1, round(rate_hz))
        self._number = 0
        self._gpus = open_gpus(gpus) if gpus else []

    def read(self) -> list[Any]:
        rarely = self._each or self._number % self._every == 0
        self._number += 1
        row: list[Any] = [psutil.cpu_times(percpu=True) if rarely else psutil.cpu_times(), psutil.virtual_memory()]
        # nowrap=True, the default, would cost more: it watches for counters that have gone round.
        row += [psutil.disk_io_counters(nowrap=False), psutil.net_io_counters(nowrap=False)]
        if rarely:
            self._children = self._process.children(recursive=True)
        with self._process.oneshot():
            row += [self._process.cpu_times(), self._process.memory_info(), self._process.num_threads()]
            row.append(self._process.io_counters())
        for child in self._children:
            with child.oneshot():
                row += [child.cpu_times(), child.memory_info()]
                if rarely:
                    row.append(child.io_counters())
        row += [call() for call in self._gpus]
        return row


def open_gpus(count: int) -> list[Callable[[], Any]]:
    import pynvml as nvml

    nvml.nvmlInit()
    calls: list[Callable[[], Any]] = []
    for index in range(count):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        calls += [
            lambda h=handle: nvml.nvmlDeviceGetUtilizationRates(h).gpu,
            lambda h=handle: nvml.nvmlDeviceGetMemoryInfo(h, nvml.nvmlMemory_v2).used,
            lambda h=handle: nvml.nvmlDeviceGetFieldValues(h, [(nvml.NVML_FI_DEV_POWER_INSTANT, 0)])[0].value.uiVal,
            lambda h=handle: nvml.nvmlDeviceGetTemperatureV(h, nvml.NVML_TEMPERATURE_GPU),
            lambda h=handle: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM),
            lambda h=handle: nvml.nvmlDeviceGetCurrentClocksEventReasons(h),
            lambda h=handle: nvml.nvmlDeviceGetTotalEnergyConsumption(h),
        ]
    return calls


def main() -> None:
    counter, pid, rate_hz, schedule, gpus = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:6]
    with open(counter, "r+b") as file:
        taken = mmap.mmap(file.fileno(), 8)
    reader = Reader(pid, schedule == "each", rate_hz, int(gpus))
    step = 1 / rate_hz
    deadline, number = time.monotonic(), 0
    while True:
        reader.read()
        number += 1
        taken[:] = struct.pack("q", number)
        now = time.monotonic()
        deadline += step * max(1, (now - deadline) // step + 1)
        time.sleep(max(0.0, deadline - now))


if __name__ == "__main__":
    main()
