"""Reads the load average and the machine's context switches; imported by the recorder, so it imports little."""

import os

from cellmeter.metrics import Metric
from cellmeter.run import Column

ONE = Metric("loadavg.one", "1", "gauge", "host", "cpu", "Runnable tasks, over the last minute", "os.getloadavg")
SWITCHES = Metric(
    "loadavg.switches", "1", "counter", "host", "cpu", "Context switches", "/proc/stat", rate="loadavg.switches.rate"
)
RATE = Metric("loadavg.switches.rate", "1/s", "rate", "host", "cpu", "Context switches", "derived")


class LoadAverage:
    """A source: what it measures, how often it may be read, and a row of values."""

    metrics = (ONE, SWITCHES, RATE)
    columns = (Column("loadavg.one", "host", "1"), Column("loadavg.switches", "host", "1"))
    interval = 0.1

    def __init__(self, pid: int) -> None:
        self._stat = os.open("/proc/stat", os.O_RDONLY)

    def read(self) -> list[float]:
        switches = os.pread(self._stat, 1 << 20, 0).partition(b"\nctxt ")[2].split(None, 1)[0]
        return [os.getloadavg()[0], float(switches)]
