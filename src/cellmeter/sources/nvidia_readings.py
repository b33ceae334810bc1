"""What is read of every GPU with each sample.

What a GPU or a driver does not have is found out once, when it is opened, told with its reason, and never asked for again.
A GPU that is lost is unknown until it answers again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cellmeter.run import Column, Device
from cellmeter.sources import Notice
from cellmeter.sources.nvml import (
    GONE,
    NAN,
    PASSING,
    UNSUPPORTED,
    Link,
    Told,
    columns_of,
    first_working,
    or_else,
    reason,
)
from cellmeter.sources.visible import Gpu, owned

RETRY_SECONDS = 5.0

Call = Callable[[Any], tuple[float, ...]]

_EVENT_REASONS = (
    "idle",
    "application clocks",
    "software power cap",
    "hardware slowdown",
    "sync boost",
    "software thermal slowdown",
    "hardware thermal slowdown",
    "hardware power brake",
    "display clocks",
    "board limit",
    "reliability",
)


def event_reason_words(mask: int) -> list[str]:
    """What a ``gpu.event_reasons`` mask says, lowest bit first; empty: nothing holds the clock down."""
    words = [word for bit, word in enumerate(_EVENT_REASONS) if mask >> bit & 1]
    unnamed = mask >> len(_EVENT_REASONS) << len(_EVENT_REASONS)
    return [*words, f"reason {unnamed:#x}"] if unnamed else words


class _Quantity(NamedTuple):
    """Metrics that one call gives, and the calls that give them, best first. ``on_mig``: why MIG instances have none."""

    metrics: tuple[str, ...]
    calls: Sequence[Call]
    on_mig: str | None = "MIG instances share it: see the whole GPU"


def _quantities(nvml: Any) -> tuple[_Quantity, ...]:
    """Everything that is read of a GPU, with pynvml's functions bound once."""

    def number(name: str, *arguments: Any, scale: float = 1.0) -> list[Call]:
        function = getattr(nvml, name, None)  # older releases of nvidia-ml-py lack some
        return [] if function is None else [lambda handle: (function(handle, *arguments) * scale,)]

    rates, memory = nvml.nvmlDeviceGetUtilizationRates, nvml.nvmlDeviceGetMemoryInfo
    fields, version_2 = nvml.nvmlDeviceGetFieldValues, nvml.nvmlMemory_v2
    instant = [(nvml.NVML_FI_DEV_POWER_INSTANT, 0)]  # a plain id costs pynvml an exception in every call

    def utilization(handle: Any) -> tuple[float, ...]:
        found = rates(handle)
        return float(found.gpu), float(found.memory)

    def memory_without_reserved(handle: Any) -> tuple[float, ...]:
        found = memory(handle, version_2)
        return float(found.used), float(found.total)

    def memory_with_reserved(handle: Any) -> tuple[float, ...]:
        found = memory(handle)
        return float(found.used), float(found.total)

    def power_instant(handle: Any) -> tuple[float, ...]:
        (field,) = fields(handle, instant)
        if field.nvmlReturn:
            raise nvml.NVMLError(field.nvmlReturn)
        return (field.value.uiVal * 1e-3,)

    celsius, mhz = nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM
    return (
        _Quantity(
            ("gpu.utilization", "gpu.memory.utilization"),
            [utilization],
            on_mig="NVML measures no utilization where MIG is on",
        ),
        _Quantity(
            ("gpu.memory.used", "gpu.memory.total"), [memory_without_reserved, memory_with_reserved], on_mig=None
        ),
        # The power call is a mean over 1 s on Ampere and newer.
        _Quantity(("gpu.power",), [power_instant, *number("nvmlDeviceGetPowerUsage", scale=1e-3)]),
        _Quantity(
            ("gpu.temperature",),
            [*number("nvmlDeviceGetTemperatureV", celsius), *number("nvmlDeviceGetTemperature", celsius)],
        ),
        _Quantity(("gpu.clock.sm",), number("nvmlDeviceGetClockInfo", mhz)),
        _Quantity(
            ("gpu.event_reasons",),
            [
                *number("nvmlDeviceGetCurrentClocksEventReasons"),
                *number("nvmlDeviceGetCurrentClocksThrottleReasons"),
            ],
        ),
        _Quantity(("gpu.energy",), number("nvmlDeviceGetTotalEnergyConsumption", scale=1e-3)),
    )


class _Step(NamedTuple):
    """A call that works, and where its values go in the row."""

    start: int
    stop: int
    metrics: tuple[str, ...]
    call: Call


class _Reading:
    """What is read of one GPU: its part of the row, and the calls that work on it."""

    def __init__(self, link: Link, quantities: Sequence[_Quantity], start: int) -> None:
        self.link = link
        self.quantities = quantities
        self.start = start
        self.stop = start + sum(len(quantity.metrics) for quantity in quantities)
        self.plan: tuple[_Step, ...] = ()
        self.retry_at = 0.0


class Nvidia:
    """Utilization, memory, power, temperature, clock and energy of every GPU and MIG instance, in the main stream.

    Drivers before 510 count the memory they keep for themselves as used. ``gpus`` are all GPUs of the run, which may be more
    than are linked now; ``ordered``: in NVML's order.
    """

    name = "main"
    interval = 0.0

    def __init__(
        self,
        nvml: Any,
        links: Sequence[Link],
        gpus: Sequence[Gpu],
        ordered: bool,
        environ: Mapping[str, str],
        clock: Callable[[], float],
    ) -> None:
        self._nvml = nvml
        self._gpus = tuple(gpus)
        self._ordered = ordered
        self._environ = environ
        self._clock = clock
        self.notices: list[Notice] = []
        self._told = Told(self.notices)
        self._readings: list[_Reading] = []
        columns: list[Column] = []
        for link in links:
            quantities = self._quantities_of(link, _quantities(nvml))
            self._readings.append(_Reading(link, quantities, len(columns)))
            columns += columns_of((metric for quantity in quantities for metric in quantity.metrics), link)
        self.columns = tuple(columns)
        for reading in self._readings:
            self._start(reading)

    def _quantities_of(self, link: Link, quantities: Sequence[_Quantity]) -> list[_Quantity]:
        """What this GPU can have; a MIG instance gets no columns for what only whole GPUs have."""
        if link.parent is None:
            return list(quantities)
        for quantity in quantities:
            if quantity.on_mig:
                self._told.unavailable(quantity.metrics, link, quantity.on_mig)
        return [quantity for quantity in quantities if not quantity.on_mig]

    def _start(self, reading: _Reading) -> None:
        if reading.link.handle is None:
            reading.retry_at = self._clock() + RETRY_SECONDS
            return
        try:
            reading.plan = self._probe(reading, reading.link.handle)
        except self._nvml.NVMLError as error:
            self._lose(reading, error)

    def _probe(self, reading: _Reading, handle: Any) -> tuple[_Step, ...]:
        """Which calls work on a GPU; tells of those that do not. Raises NVMLError if the GPU is lost."""
        plan: list[_Step] = []
        failures: list[tuple[_Quantity, Any]] = []
        start = reading.start
        for quantity in reading.quantities:
            stop = start + len(quantity.metrics)
            try:
                call = first_working(self._nvml, quantity.calls, handle)
            except self._nvml.NVMLError as error:
                if error.value in GONE:
                    raise
                failures.append((quantity, error))
            else:
                plan.append(_Step(start, stop, quantity.metrics, call))
            start = stop
        broken = [failure for _, failure in failures if failure.value not in UNSUPPORTED]
        if broken and not plan:
            raise broken[0]
        for quantity, failure in failures:
            self._told.unavailable(quantity.metrics, reading.link, reason(failure))
        return tuple(plan)

    def read(self) -> list[float]:
        """One row."""
        row = [NAN] * len(self.columns)
        for reading in self._readings:
            if reading.link.handle is not None or self._returned(reading):
                self._fill(row, reading)
        return row

    def _fill(self, row: list[float], reading: _Reading) -> None:
        handle = reading.link.handle
        for step in reading.plan:
            try:
                row[step.start : step.stop] = step.call(handle)
            except self._nvml.NVMLError as error:
                if error.value in PASSING:
                    continue
                if error.value in UNSUPPORTED:
                    reading.plan = tuple(other for other in reading.plan if other is not step)
                    self._told.unavailable(step.metrics, reading.link, reason(error))
                    continue
                self._lose(reading, error)
                row[reading.start : reading.stop] = [NAN] * (reading.stop - reading.start)
                return

    def _lose(self, reading: _Reading, error: Any) -> None:
        reading.link.handle = None
        reading.retry_at = self._clock() + RETRY_SECONDS
        self.notices.append(Notice("lost", None, reading.link.gpu.id, reason(error)))

    def _returned(self, reading: _Reading) -> bool:
        """Looks for a lost GPU by its UUID, seldom: its old handle may be void, and it may have other abilities now."""
        now = self._clock()
        if now < reading.retry_at:
            return False
        reading.retry_at = now + RETRY_SECONDS
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(reading.link.gpu.uuid)
            reading.plan = self._probe(reading, handle)
        except self._nvml.NVMLError:
            return False
        reading.link.handle = handle
        self.notices.append(Notice("returned", None, reading.link.gpu.id, "the GPU answers again"))
        return True

    def devices(self) -> list[Device]:
        """All GPUs and MIG instances of the run; whose they are by what the environment says now."""
        mine = owned(self._gpus, self._environ, self._ordered)
        return [
            Device(gpu.id, gpu.name, gpu.uuid, gpu.memory_bytes, mine[gpu.id], gpu.power_limit_watts)
            for gpu in self._gpus
        ]

    def close(self) -> None:
        """Shuts NVML down, for the other sources too."""
        for reading in self._readings:
            reading.link.handle = None
            reading.retry_at = math.inf
        or_else(self._nvml, self._nvml.nvmlShutdown, None)
