"""What the NVIDIA sources share: the return codes of NVML, a GPU and its handle. ``nvml`` is the module pynvml."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, TypeVar

from cellmeter.metrics import METRICS
from cellmeter.run import Column
from cellmeter.sources import Notice
from cellmeter.sources.visible import Gpu

NAN = float("nan")

T = TypeVar("T")


class Status(IntEnum):
    """Return codes of nvml.h that are told apart."""

    UNINITIALIZED = 1
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    INSUFFICIENT_SIZE = 7
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    MEMORY = 20
    NO_DATA = 21
    INSUFFICIENT_RESOURCES = 23
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    NOT_READY = 27
    GPU_NOT_FOUND = 28


# It will not work later either.
UNSUPPORTED = {
    Status.NOT_SUPPORTED: "this GPU or its mode does not support it",
    Status.NO_PERMISSION: "no permission: the administrator has restricted it",
    Status.FUNCTION_NOT_FOUND: "the NVIDIA driver does not have it",
    Status.ARGUMENT_VERSION_MISMATCH: "the NVIDIA driver does not have it in this version",
    Status.DEPRECATED: "the NVIDIA driver no longer has it",
}
# It may work the next time.
PASSING = {
    Status.INSUFFICIENT_SIZE,
    Status.TIMEOUT,
    Status.IN_USE,
    Status.MEMORY,
    Status.NO_DATA,
    Status.INSUFFICIENT_RESOURCES,
    Status.NOT_READY,
}
# No other call would work on this GPU now. Any other code says so only of a call that has worked before.
GONE = {
    Status.UNINITIALIZED: "the driver's library was shut down",
    Status.GPU_IS_LOST: "the GPU has fallen off the bus or cannot be reached",
    Status.RESET_REQUIRED: "the GPU needs a reset",
    Status.GPU_NOT_FOUND: "the GPU is no longer there",
}


class Link:
    """A GPU and its NVML handle, which is None while the GPU is lost. All sources share it; ``Nvidia`` keeps it."""

    def __init__(self, gpu: Gpu, handle: Any, parent: Link | None = None) -> None:
        self.gpu = gpu
        self.handle = handle
        self.parent = parent


def or_else(nvml: Any, call: Callable[[], T], otherwise: T) -> T:
    """What a call gives; ``otherwise`` where NVML says no."""
    try:
        return call()
    except nvml.NVMLError:
        return otherwise


def reason(error: Any) -> str:
    """An NVMLError in plain words."""
    return UNSUPPORTED.get(error.value) or GONE.get(error.value) or f"the NVIDIA driver says: {error}"


def first_working(nvml: Any, calls: Sequence[Callable[[Any], T]], handle: Any) -> Callable[[Any], T]:
    """The first call that works on this GPU, or could later. Raises the NVMLError of the last, or that the GPU is gone."""
    failure = nvml.NVMLError(Status.FUNCTION_NOT_FOUND)
    for call in calls:
        try:
            call(handle)
        except nvml.NVMLError as error:
            if error.value in PASSING:
                return call
            failure = error
            if error.value in GONE:
                break
        else:
            return call
    raise failure


def columns_of(metrics: Iterable[str], link: Link) -> list[Column]:
    """Columns of these metrics for one GPU, with the catalogue's units."""
    return [Column(metric, link.gpu.id, METRICS[metric].unit) for metric in metrics]


class Told:
    """What is unavailable, told once each."""

    def __init__(self, notices: list[Notice]) -> None:
        self._notices = notices
        self._seen: set[tuple[str, str]] = set()

    def unavailable(self, metrics: Iterable[str], link: Link, why: str) -> None:
        """Adds a notice for each metric of a GPU that has none yet."""
        for metric in metrics:
            if (metric, link.gpu.id) not in self._seen:
                self._seen.add((metric, link.gpu.id))
                self._notices.append(Notice("unavailable", metric, link.gpu.id, why))
