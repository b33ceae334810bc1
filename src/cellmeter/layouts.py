"""What the page needs to draw a run's panels: what they are, and BokehJS."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter import charts
from cellmeter.errors import MissingExtra
from cellmeter.run import Column, Device, Limit, Rates
from cellmeter.store import read_header
from cellmeter.usage import PROCESSES as PROCESSES

if TYPE_CHECKING:
    from cellmeter.metrics import Group


CORES = "cores"  # the stream of every core's CPU time
CONTEXTS = "gpu.process.contexts"
LEAST_READINGS = 2


def bokeh_js() -> Path:
    """BokehJS in the installed wheel. Raises MissingExtra."""
    spec = importlib.util.find_spec("bokeh")  # finds, does not import
    if spec is None or spec.origin is None:
        raise MissingExtra("bokeh", "all", "the live panel")
    return Path(spec.origin).parent / "server" / "static" / "js" / "bokeh.min.js"


def panels_of(folder: Path, groups: Sequence[Group] = charts.GROUPS) -> tuple[charts.PanelSpec, ...]:
    """The panels that a run's main stream can fill. Raises RunUnreadable."""
    header = read_header(folder)
    columns = [Column(*c) for s in header["segments"] if s["stream"] == "main" for c in s["columns"]]
    limits = {name: Limit(*limit) for name, limit in header["limits"].items()}
    return charts.panels(columns, limits, [Device(**d) for d in header["devices"]], groups)


def rates_of(header: Mapping[str, Any]) -> Rates:
    """How rates are made of counters in a run with this header."""
    limits = {name: Limit(*limit) for name, limit in header["limits"].items()}
    return Rates.on(float(header["rate_hz"]), header["host"]["cpu_count"], limits)


def missing_in(folder: Path, specs: Sequence[charts.PanelSpec]) -> dict[Group, str]:
    """Why a group has no panel, for each that has none. Raises RunUnreadable."""
    return charts.missing(specs, [Device(**d) for d in read_header(folder)["devices"]])


def doubtful(header: Mapping[str, Any]) -> list[str]:
    """The GPUs whose owner neither ``CUDA_VISIBLE_DEVICES`` nor an allocation tells: only the process list does."""
    return [device["id"] for device in header["devices"] if device.get("mine") is None]


def never_held(readings: int, most: float) -> bool:
    """Whether a GPU was not used, by so many readings of how many contexts the kernel held on it, and the highest of them.

    One is not enough: the kernel may have come to hold it after that, and there is one in two seconds.
    """
    return readings >= LEAST_READINGS and most == 0


def cores_of(folder: Path) -> tuple[str, ...]:
    """The cores whose load is recorded; none where it is not. Raises RunUnreadable."""
    return tuple(c[1] for s in read_header(folder)["segments"] if s["stream"] == CORES for c in s["columns"])
