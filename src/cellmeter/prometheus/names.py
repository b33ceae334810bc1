"""What metrics of the catalogue are called in Prometheus: ``cellmeter_``, their name, the base unit, ``_total`` for counters.

The names of other exporters, which the catalogue has too, are not taken: beside a node_exporter on the same machine all would
be counted twice. Those of dcgm-exporter come if they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cellmeter.metrics import CATALOGUE, Metric

PREFIX = "cellmeter_"
BASE_UNITS = {
    "1": ("", 1.0),
    "By": ("_bytes", 1.0),
    "By/s": ("_bytes_per_second", 1.0),
    "s": ("_seconds", 1.0),
    "%": ("_ratio", 0.01),
    "W": ("_watts", 1.0),
    "J": ("_joules", 1.0),
    "Cel": ("_celsius", 1.0),
    "MHz": ("_hertz", 1e6),
}
NOT_EXPOSED = {
    "process.children.cpu.time",  # part of process.cpu.time, and falls when a child ends
    "gpu.utilization.driver",  # many readings between two scrapes, of what gpu.utilization says
    "gpu.event_reasons",  # a bit mask: a series a reason instead
}
EVENT_REASONS = {
    0x04: "software_power_cap",
    0x08: "hardware_slowdown",
    0x20: "software_thermal_slowdown",
    0x40: "hardware_thermal_slowdown",
    0x80: "hardware_power_brake",
}


class Exposed(NamedTuple):
    """What a metric is called, and what its readings are multiplied by to be in the base unit."""

    name: str
    scale: float
    metric: Metric


def exposed(metric: Metric) -> Exposed:
    """A gauge or counter of the catalogue as Prometheus has it."""
    unit, scale = BASE_UNITS[metric.unit]
    name = metric.name.removesuffix(".time") if metric.unit == "s" else metric.name
    total = "_total" if metric.kind == "counter" else ""
    return Exposed(PREFIX + name.replace(".", "_") + unit + total, scale, metric)


EXPOSED: Mapping[str, Exposed] = {
    metric.name: exposed(metric)
    for metric in CATALOGUE
    if metric.kind != "rate" and metric.scope != "core" and metric.name not in NOT_EXPOSED
}
"""By the catalogue's name. Rates are Prometheus' own work, and hundreds of cores would be hundreds of series."""


class Dcgm(NamedTuple):
    """A metric of dcgm-exporter: its help text, what it is made of, and how."""

    text: str
    metric: str
    scale: float = 1.0
    less: str | None = None


MEBIBYTE = 2.0**-20
DCGM: Mapping[str, Dcgm] = {
    "DCGM_FI_DEV_GPU_UTIL": Dcgm("GPU utilization (in %).", "gpu.utilization"),
    "DCGM_FI_DEV_MEM_COPY_UTIL": Dcgm("Memory utilization (in %).", "gpu.memory.utilization"),
    "DCGM_FI_DEV_FB_USED": Dcgm("Framebuffer memory used (in MiB).", "gpu.memory.used", MEBIBYTE),
    "DCGM_FI_DEV_FB_FREE": Dcgm("Framebuffer memory free (in MiB).", "gpu.memory.total", MEBIBYTE, "gpu.memory.used"),
    "DCGM_FI_DEV_GPU_TEMP": Dcgm("GPU temperature (in C).", "gpu.temperature"),
    "DCGM_FI_DEV_POWER_USAGE": Dcgm("Power draw (in W).", "gpu.power"),
}
"""The metrics of dcgm-exporter that dashboards are made of, in its units."""
