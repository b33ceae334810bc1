"""NVIDIA GPUs through NVML. The only module that imports pynvml, and only when :func:`open_nvidia` is called.

NVML needs no CUDA context, so reading costs no device memory. A session of NVML lists the GPUs there were when it began, so
those that come later are looked for now and then, and all is opened anew for them. A GPU is the same if its UUID is: its index
may be another's by then, its id in the run never is.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from cellmeter.clock import monotonic
from cellmeter.sources import Backlog, Notice, Source
from cellmeter.sources.holders import Holders, Recorded
from cellmeter.sources.nvidia_gpm import NvidiaGpm, has_gpm
from cellmeter.sources.nvidia_processes import NvidiaProcesses
from cellmeter.sources.nvidia_readings import Nvidia
from cellmeter.sources.nvidia_samples import NvidiaSamples
from cellmeter.sources.nvml import Link, Status, or_else, reason
from cellmeter.sources.visible import Gpu

LIBRARY = "libnvidia-ml.so.1"
LOOK_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 600.0
"""After each reopening it is twice as long until the next may be: of a GPU that comes and goes not all can be recorded."""

_NO_START = {
    Status.DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded (nvidia-smi says more)",
    Status.NO_PERMISSION: "no permission to use the NVIDIA driver (/dev/nvidiactl)",
    Status.LIB_RM_VERSION_MISMATCH: "the NVIDIA driver was updated while loaded: its library has another version; reboot",
}

Cards = frozenset[tuple[str, int]]


def open_nvidia(
    pids: Callable[[], Collection[int]],
    environ: Mapping[str, str],
    clock: Callable[[], float] = monotonic,
    proc: str = "/proc",
    recorded: Callable[[int], Recorded | None] = lambda _: None,
) -> NvidiaDriver:
    """All sources for the GPUs of this machine. Never raises: why there are none is in ``unavailable["gpu"]``.

    ``pids`` gives the processes whose device memory counts as the kernel's. ``environ`` has the kernel's CUDA_VISIBLE_DEVICES,
    CUDA_DEVICE_ORDER and NVIDIA_VISIBLE_DEVICES; it is looked at on each ``devices()``. ``clock`` is in seconds.
    ``proc`` tells whether this process is in a container, which GPUs the driver has, and who holds them; ``recorded`` which
    of these are recorded too, by process id.
    """
    return NvidiaDriver(pids, environ, clock, proc, recorded)


class NvidiaDriver:
    """What reads the GPUs there are, why others are not read (by ``metric`` or ``metric:subject``), the driver's version."""

    def __init__(
        self,
        pids: Callable[[], Collection[int]],
        environ: Mapping[str, str],
        clock: Callable[[], float],
        proc: str,
        recorded: Callable[[int], Recorded | None],
    ) -> None:
        self.sources: list[Source] = []
        self.backlogs: list[Backlog] = []
        self.unavailable: dict[str, str] = {}
        self.driver: str | None = None
        self.holders = Holders(proc, NvidiaProcesses.interval, recorded)
        self._pids = pids
        self._environ = environ
        self._clock = clock
        self._proc = proc
        self._nvml: Any = None  # while a session is open
        self._links: list[Link] = []
        self._gpus: dict[str, Gpu] = {}  # all there ever were, by UUID
        self._shown: set[str] = set()  # those that NVML had when the session began
        self._ordered = True
        self._with_gpm: set[str] = set()
        self._newest_us: dict[str, int] = {}
        self._pause = LOOK_SECONDS
        self._look_at = clock() + LOOK_SECONDS
        self._cards = self._listed()
        if (why := self._open()) is not None:
            self.unavailable = {"gpu": why}

    # ---- GPUs that come later ----------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Looks for GPUs and MIG instances that have come; True: ``sources`` and all the rest are others now. Never raises.

        Cheap but for every few seconds; opening all anew may then take as long as the driver wants.
        """
        now = self._clock()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        before, self._cards = self._cards, self._listed()
        if not (self._cards - before or self._has_changed()):
            return False
        self._look_at = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return self._reopen()

    def _listed(self) -> Cards:
        """The GPUs that the kernel's driver has: a new one is not to be seen in an open session of NVML.

        One that was away for a moment has another inode. Empty where the driver does not tell, as in some containers.
        """
        try:
            with os.scandir(f"{self._proc}/driver/nvidia/gpus") as entries:
                return frozenset((entry.name, entry.inode()) for entry in entries)
        except OSError:
            return frozenset()

    def _has_changed(self) -> bool:
        """Whether NVML shows other GPUs or instances than are read. What it does not open now it may open later."""
        if self._nvml is None:
            return bool(self._cards or self._links)
        try:
            shown = {found.uuid for found in _found(self._nvml, {})}
        except Exception:  # it is told where they are read
            return False
        divided_otherwise = any(
            link.parent is not None and link.parent.gpu.uuid in shown and link.gpu.uuid not in shown
            for link in self._links
        )
        return divided_otherwise or bool(shown - {link.gpu.uuid for link in self._links})

    def _reopen(self) -> bool:
        readable = {link.gpu.uuid for link in self._links if link.handle is not None}
        known = set(self._gpus)
        before = self.sources[:1]
        self.close()
        if (why := self._open()) is not None:
            for source in before:
                source.notices += [Notice("lost", None, self._gpus[uuid].id, why) for uuid in readable]
            return False
        self.sources[0].notices[:0] = self._changes(readable, known)  # what it found out itself comes after
        return True

    def _changes(self, readable: set[str], known: set[str]) -> Iterator[Notice]:
        now_readable = {link.gpu.uuid for link in self._links if link.handle is not None}
        for uuid, gpu in self._gpus.items():
            if uuid not in known:
                yield Notice("added", None, gpu.id, f"{gpu.name} came while this was recorded")
            elif uuid in now_readable - readable:
                yield Notice("returned", None, gpu.id, "the GPU answers again")
            elif uuid in readable - self._shown:
                why = self.unavailable.get(f"gpu:{gpu.id}", "the driver no longer has it")
                yield Notice("lost", None, gpu.id, why)

    def close(self) -> None:
        """Ends the session; the sources there are read nothing from now on."""
        for source in reversed(self.sources):
            source.close()
        self._nvml = None

    # ---- a session ---------------------------------------------------------------------------------------------------

    def _open(self) -> str | None:
        """Opens a session and replaces all that reads; why that could not be, else."""
        try:
            return self._open_session()
        except Exception as error:  # a recording without its GPUs is better than none
            return f"the GPUs could not be opened: {type(error).__name__}: {error}"

    def _open_session(self) -> str | None:
        if not _has_library():
            return f"no NVIDIA driver library ({LIBRARY}) on this machine"
        try:
            import pynvml as nvml
        except ImportError:
            return "the Python package nvidia-ml-py is not installed: pip install nvidia-ml-py"
        try:
            # A machine whose driver is loaded but finds no GPU is no error.
            nvml.nvmlInitWithFlags(nvml.NVML_INIT_FLAG_NO_GPUS)
        except nvml.NVMLError as error:
            return _NO_START.get(error.value) or f"the NVIDIA driver could not be opened: {error}"
        try:
            why = self._fill(nvml)
        except BaseException:
            nvml.nvmlShutdown()
            raise
        if why is None:
            self._nvml = nvml
        else:
            nvml.nvmlShutdown()
        return why

    def _fill(self, nvml: Any) -> str | None:
        self.driver = nvml.nvmlSystemGetDriverVersion()
        unavailable: dict[str, str] = {}
        links = self._linked(nvml, unavailable)
        if not any(link.handle is not None for link in links):
            reasons = "; ".join(f"{key.partition(':')[2]}: {why}" for key, why in unavailable.items())
            return reasons or "the NVIDIA driver finds no GPU"
        main = Nvidia(nvml, links, list(self._gpus.values()), self._ordered, self._environ, self._clock)
        sources: list[Source] = [main, NvidiaProcesses(nvml, links, self._pids, self._proc, self.holders)]
        self._with_gpm |= {link.gpu.uuid for link in links if has_gpm(nvml, link)}
        if sampled := [link for link in links if link.gpu.uuid in self._with_gpm]:
            sources.append(NvidiaGpm(nvml, sampled))
        backlogs: list[Backlog] = [NvidiaSamples(nvml, links, self._newest_us)]
        self.sources, self.backlogs, self.unavailable, self._links = sources, backlogs, unavailable, links
        return None

    def _linked(self, nvml: Any, unavailable: dict[str, str]) -> list[Link]:
        """All GPUs, each followed by its MIG instances. A whole GPU that is gone stays, without a handle."""
        links: dict[str, Link] = {}
        for found in _found(nvml, unavailable):
            parent = links.get(found.parent) if found.parent else None
            if found.parent and parent is None:
                continue
            place = f"{parent.gpu.id}.mig{found.place}" if parent else f"gpu{found.place}"
            try:
                gpu = self._gpus.get(found.uuid) or _identity(nvml, self._free(place), found)
            except nvml.NVMLError as error:
                unavailable[f"gpu:{place}"] = reason(error)
                continue
            self._gpus[found.uuid] = gpu
            links[found.uuid] = Link(gpu, found.handle, parent)
        self._shown = set(links)
        whole = [uuid for uuid, gpu in self._gpus.items() if gpu.parent is None]
        shown = [uuid for uuid, link in links.items() if link.parent is None]
        self._ordered = self._ordered and shown == [uuid for uuid in whole if uuid in links]
        return [*links.values(), *(Link(self._gpus[uuid], None) for uuid in whole if uuid not in links)]

    def _free(self, place: str) -> str:
        """An id that no other GPU of this run has: that of its place, else with the next number that is free."""
        taken = {gpu.id for gpu in self._gpus.values()}
        head, number = re.fullmatch(r"(.*?)(\d+)", place).groups()  # type: ignore[union-attr]
        free = int(number)
        while f"{head}{free}" in taken:
            free += 1
        return f"{head}{free}"


def _has_library() -> bool:
    """Whether pynvml is worth its 20 ms and 5 MiB, which a machine without a driver should not pay."""
    if sys.platform == "win32":  # pynvml knows where to look
        return True
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


class _Found(NamedTuple):
    """A GPU or MIG instance that NVML shows, at its place among all or among its parent's; ``parent``: that one's UUID."""

    place: int
    uuid: str
    handle: Any
    parent: str | None = None


def _found(nvml: Any, unavailable: dict[str, str]) -> Iterator[_Found]:
    """All GPUs, each followed by its MIG instances; why others could not be opened goes to ``unavailable``."""
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            whole = _Found(index, nvml.nvmlDeviceGetUUID(handle), handle)
        except nvml.NVMLError as error:
            unavailable[f"gpu:gpu{index}"] = reason(error)
        else:
            yield whole
            yield from _instances(nvml, whole)


def _instances(nvml: Any, parent: _Found) -> Iterable[_Found]:
    """The MIG instances of a GPU; none where MIG is off or unheard of."""
    try:
        on, _pending = nvml.nvmlDeviceGetMigMode(parent.handle)
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(parent.handle) if on else 0
    except nvml.NVMLError:
        return
    for index in range(most):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent.handle, index)
            yield _Found(index, nvml.nvmlDeviceGetUUID(handle), handle, parent.uuid)
        except nvml.NVMLError:  # most places are empty
            continue


def _identity(nvml: Any, gpu_id: str, found: _Found) -> Gpu:
    """Raises NVMLError where the GPU cannot say who it is."""
    handle = found.handle
    gpu = Gpu(
        id=gpu_id,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=found.uuid,
        memory_bytes=or_else(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total), 0),
        power_limit_watts=or_else(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3, None),
    )
    if found.parent is None:
        return gpu
    return gpu._replace(
        parent=found.parent,
        gpu_instance=nvml.nvmlDeviceGetGpuInstanceId(handle),
        compute_instance=nvml.nvmlDeviceGetComputeInstanceId(handle),
    )
