"""What metrics of the catalogue are called in Prometheus: ``cellmeter_``, their name, the base unit, ``_total`` for counters.

Those of plugins begin with ``cellmeter_plugin_``, so that they can take the name of none of ours.

The names of other exporters, which the catalogue has too, are not taken: beside a node_exporter on the same machine all would
be counted twice. Those of dcgm-exporter come if they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cellmeter.metrics import CATALOGUE, Metric

PREFIX = "cellmeter_"
PLUGIN_PREFIX = PREFIX + "plugin_"
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
OTHER_UNITS = {
    "ms": ("_seconds", 1e-3),
    "us": ("_seconds", 1e-6),
    "kBy": ("_bytes", 1e3),
    "MBy": ("_bytes", 1e6),
    "GBy": ("_bytes", 1e9),
    "KiBy": ("_bytes", 2.0**10),
    "MiBy": ("_bytes", 2.0**20),
    "GiBy": ("_bytes", 2.0**30),
    "Hz": ("_hertz", 1.0),
    "GHz": ("_hertz", 1e9),
    "mW": ("_watts", 1e-3),
    "kW": ("_watts", 1e3),
    "V": ("_volts", 1.0),
    "mV": ("_volts", 1e-3),
    "A": ("_amperes", 1.0),
    "mA": ("_amperes", 1e-3),
}
"""Units that metrics of plugins may have."""
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


def exposed_plugins(metrics: Iterable[Metric]) -> dict[str, Exposed]:
    """The gauges and counters of plugins, by their names; of two that would be called the same, the first.

    A unit that is none of ours is spelled out: ``rpm`` becomes ``_rpm``, ``1/s`` ``_per_second``, ``{req}`` nothing.
    """
    found: dict[str, Exposed] = {}
    for metric in metrics:
        if metric.kind == "rate":
            continue
        unit, scale = BASE_UNITS.get(metric.unit) or OTHER_UNITS.get(metric.unit) or (_spelled(metric.unit), 1.0)
        name = re.sub(r"\W", "_", metric.name, flags=re.ASCII).removesuffix("_total").removesuffix(unit)
        total = "_total" if metric.kind == "counter" else ""
        found.setdefault(
            PLUGIN_PREFIX + name + unit + total, Exposed(PLUGIN_PREFIX + name + unit + total, scale, metric)
        )
    return {exposed.metric.name: exposed for exposed in found.values()}


def _spelled(unit: str) -> str:
    """A unit as the end of a name."""
    above, slash, below = re.sub(r"\{.*?\}", "", unit).partition("/")
    words = [above if above != "1" else "", *(["per", "second" if below == "s" else below] if slash else [])]
    text = re.sub(r"[^a-z0-9]+", "_", "_".join(filter(None, words)).lower()).strip("_")
    return f"_{text}" if text else ""


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
