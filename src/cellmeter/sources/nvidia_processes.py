"""Who holds a context on a GPU."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from cellmeter.run import Device
from cellmeter.sources import Notice
from cellmeter.sources.holders import LEAST_CHANGE_BYTES, Holders
from cellmeter.sources.nvml import NAN, UNSUPPORTED, Link, Told, columns_of, first_working, reason

CONTEXTS = "gpu.process.contexts"
_PROCESS_METRICS = ("gpu.process.memory.used", CONTEXTS, "gpu.foreign.processes")
_FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of Linux: the same on every machine

Held = Callable[[Any], dict[int, float]]


class NvidiaProcesses:
    """Who holds a context on each GPU: the kernel's tree, with how much memory, and how many others.

    Contexts for graphics count for the kernel but not as foreign: every desktop has some, and they compute nothing. Who they
    are is told where they hold as much as a context for computing does.

    In a container, newer drivers give process ids of the caller's namespace and leave out all others (gpuGetProcWithObject
    of NVIDIA's open kernel modules); older ones give the host's, which cannot be translated from inside: ``NSpid`` in /proc
    lists ids from the reader's namespace downwards only. So in a namespace that is not the first one the number of foreign
    processes is unknown always, and ids that are no processes here make the whole reading unknown.
    """

    name = "gpu-processes"
    interval = 2.0  # a process list can take 4.5 ms and hold the driver's lock meanwhile

    def __init__(
        self, nvml: Any, links: Sequence[Link], pids: Callable[[], Collection[int]], proc: str, holders: Holders
    ) -> None:
        self._nvml = nvml
        self._links = tuple(links)
        self._pids = pids
        self._proc = proc
        self._holding = holders
        self.columns = tuple(column for link in links for column in columns_of(_PROCESS_METRICS, link))
        self.notices: list[Notice] = []
        self._told = Told(self.notices)
        self._lists: dict[str, tuple[Held, ...]] = {}
        self._contained = _is_contained(proc)
        if self._contained:
            for link in links:
                self._told.unavailable(
                    ["gpu.foreign.processes"], link, "the processes of others cannot be seen from inside a container"
                )

    def read(self) -> list[float]:
        """One row."""
        own = frozenset(self._pids())
        row: list[float] = []
        for link in self._links:
            row += self._holders(link, own) or (NAN,) * len(_PROCESS_METRICS)
        return row

    def _holders(self, link: Link, own: Collection[int]) -> tuple[float, ...] | None:
        """Memory and contexts of ``own`` on a GPU, and contexts of others; None if unknown."""
        if link.handle is None:
            return None
        try:
            if link.gpu.id not in self._lists:
                self._lists[link.gpu.id] = self._probe(link)
            lists = [held(link.handle) for held in self._lists[link.gpu.id]]
        except self._nvml.NVMLError as error:  # a GPU that is lost is told by the main source
            if error.value in UNSUPPORTED:
                self._lists[link.gpu.id] = ()
                self._told.unavailable(_PROCESS_METRICS, link, reason(error))
            return None
        return self._count(link, lists, own) if lists else None

    def _probe(self, link: Link) -> tuple[Held, ...]:
        """The process lists this GPU has, compute first. Raises NVMLError where it has not even that."""
        compute = first_working(self._nvml, _process_lists(self._nvml, "Compute"), link.handle)
        try:
            graphics = first_working(self._nvml, _process_lists(self._nvml, "Graphics"), link.handle)
        except self._nvml.NVMLError as error:
            if error.value not in UNSUPPORTED:
                raise
            return (compute,)
        return compute, graphics

    def _count(self, link: Link, lists: Sequence[dict[int, float]], own: Collection[int]) -> tuple[float, ...] | None:
        # a process can be in both lists, each time with all it holds
        held = {pid: used for processes in reversed(lists) for pid, used in processes.items()}
        if self._contained and not all(os.path.exists(f"{self._proc}/{pid}") for pid in held):
            why = "the driver gives process ids of another namespace: this is a container"
            self._told.unavailable(_PROCESS_METRICS, link, why)
            self._holding.see(link.gpu.id, held, None)
            return None
        desktop = {
            pid for pid in held if pid not in own and pid not in lists[0] and not held[pid] >= LEAST_CHANGE_BYTES
        }
        self._holding.see(link.gpu.id, {pid: used for pid, used in held.items() if pid not in desktop}, own)
        mine = [used for pid, used in held.items() if pid in own]
        memory = float(sum(mine))
        if math.isnan(memory):
            self._told.unavailable(_PROCESS_METRICS[:1], link, "the driver does not say how much each process holds")
        foreign = NAN if self._contained else float(sum(pid not in own for pid in lists[0]))
        return memory, float(len(mine)), foreign

    def devices(self) -> list[Device]:
        """None: ``Nvidia`` lists them."""
        return []

    def close(self) -> None:
        """Nothing to give back."""


def _is_contained(proc: str) -> bool:
    """Whether this process has ids of its own, other than the driver's. Where that is hidden it is taken to be so."""
    if sys.platform != "linux":
        return False
    try:
        return str(Path(proc, "self/ns/pid").readlink()) != _FIRST_NAMESPACE
    except OSError:
        return True


def _process_lists(nvml: Any, kind: str) -> list[Held]:
    """Calls that give the bytes each process holds on a GPU, NaN where the driver does not say; newest first."""

    def held(name: str) -> Held:
        processes = getattr(nvml, name)
        return lambda handle: {
            process.pid: NAN if process.usedGpuMemory is None else float(process.usedGpuMemory)
            for process in processes(handle)
        }

    # pynvml's name without a version raises an error that is no NVMLError on older drivers
    return [held(f"nvmlDeviceGet{kind}RunningProcesses_v{version}") for version in (3, 2)]
