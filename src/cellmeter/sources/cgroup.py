"""Control groups, v1 and v2: where a process's own group lies, what it may use, what it uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from cellmeter.run import Column, Limit
from cellmeter.sources.proc_file import LONG, ProcFile

# cgroup v1 writes "no limit" as the largest page-aligned signed 64-bit number.
_UNLIMITED_BYTES = 1 << 60


class Group(NamedTuple):
    """A process's group for one controller: its folder, the folder of the mount above it, and the version."""

    folder: str
    top: str
    version: int

    def chain(self) -> Iterator[str]:
        """The group's folder and those above it, up to the mount: a limit anywhere on the way holds."""
        folder = self.folder
        yield folder
        while folder != self.top:
            folder = os.path.dirname(folder)
            yield folder


def read_text(path: str) -> str | None:
    """The content of a small file; None if it is not to be had."""
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def find_group(pid: int, controller: str, proc: str = "/proc") -> Group | None:
    """The group that ``controller`` (``memory``, ``cpu``, ``cpuacct``, ``cpuset``) keeps a process in.

    v2 wins where both are mounted and the controller is there. None for the machine's root group, which says nothing about
    the process, and where control groups are not visible.
    """
    paths = dict(_membership(pid, proc))
    for version, mount, root, options in _mounts(pid, proc):
        path = paths.get("" if version == 2 else controller)
        if path is None or (version == 1 and controller not in options):
            continue
        relative = path[len(root) :] if root != "/" and path.startswith(root) else path if root == "/" else ""
        folder = mount + relative.rstrip("/")
        if (folder == mount and root == "/" and not _namespaced(folder)) or not os.path.isdir(folder):
            continue
        if version == 2 and controller not in (read_text(f"{folder}/cgroup.controllers") or "").split():
            continue
        return Group(folder, mount, version)
    return None


def _namespaced(folder: str) -> bool:
    """Whether the top of what is visible is a container's group: the machine's own root has no ``cgroup.type``."""
    return os.path.exists(f"{folder}/cgroup.type")


def _membership(pid: int, proc: str) -> Iterator[tuple[str, str]]:
    for line in (read_text(f"{proc}/{pid}/cgroup") or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        for name in [""] if hierarchy == "0" else controllers.split(","):
            yield name, path


def _mounts(pid: int, proc: str) -> list[tuple[int, str, str, list[str]]]:
    found = []
    for line in (read_text(f"{proc}/{pid}/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind in ("cgroup", "cgroup2"):
            found.append((2 if kind == "cgroup2" else 1, mount, root, options.split(",")))
    return sorted(found, key=lambda entry: -entry[0])


def memory_limit(pid: int, proc: str = "/proc") -> float | None:
    """The least memory limit on the way up, in bytes; None where there is none."""
    group = find_group(pid, "memory", proc)
    if group is None:
        return None
    name = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
    texts = (read_text(f"{folder}/{name}") for folder in group.chain())
    numbers = [float(text) for text in texts if text and text.strip() != "max"]
    return min((n for n in numbers if n < _UNLIMITED_BYTES), default=None)


def cpu_quota(pid: int, proc: str = "/proc") -> float | None:
    """The least CPU quota on the way up, in cores; None where there is none."""
    group = find_group(pid, "cpu", proc)
    if group is None:
        return None
    quotas = []
    for folder in group.chain():
        if group.version == 2:
            quota, _, period = (read_text(f"{folder}/cpu.max") or "max 1").partition(" ")
        else:
            quota = (read_text(f"{folder}/cpu.cfs_quota_us") or "-1").strip()
            period = read_text(f"{folder}/cpu.cfs_period_us") or "100000"
        if quota not in ("max", "-1"):
            quotas.append(float(quota) / float(period))
    return min(quotas, default=None)


def limits(pid: int, cpu_count: int, memory_bytes: int, proc: str = "/proc") -> dict[str, Limit]:
    """What a process may really use, ``memory_bytes`` and ``cpu_cores``: the least of all limits, named by what sets it."""
    memory = {"host": float(memory_bytes), "cgroup": memory_limit(pid, proc), "rlimit": _address_space(pid, proc)}
    cores = {"host": float(cpu_count), "cgroup": cpu_quota(pid, proc), "cpuset": _affinity(pid)}
    return {"memory_bytes": _least(memory), "cpu_cores": _least(cores)}


def _least(candidates: dict[str, float | None]) -> Limit:
    value, name = min((value, name) for name, value in candidates.items() if value is not None)
    return Limit(value, "host" if value == candidates["host"] else name)


def _address_space(pid: int, proc: str) -> float | None:
    for line in (read_text(f"{proc}/{pid}/limits") or "").splitlines():
        if line.startswith("Max address space"):
            soft = line.split()[3]
            return None if soft == "unlimited" else float(soft)
    return None


def _affinity(pid: int) -> float | None:
    try:
        return float(len(os.sched_getaffinity(pid)))
    except (OSError, AttributeError):
        return None


class CgroupPart:
    """Memory and CPU time of the process's own control group."""

    def __init__(self, pid: int, proc: str = "/proc") -> None:
        self.columns: tuple[Column, ...] = ()
        self.unavailable: dict[str, str] = {}
        self._memory: tuple[ProcFile[int], ProcFile[tuple[int, int]]] | None = None
        self._cpu: ProcFile[float] | None = None
        memory, cpu = find_group(pid, "memory", proc), self._cpu_group(pid, proc)
        why = "the process is in no control group of its own"
        if memory is None:
            self.unavailable["cgroup.memory.used"] = self.unavailable["cgroup.memory.anon"] = why
        else:
            v2 = memory.version == 2
            self._memory = (
                ProcFile(f"{memory.folder}/{'memory.current' if v2 else 'memory.usage_in_bytes'}", int),
                ProcFile(f"{memory.folder}/memory.stat", _v2_memory if v2 else _v1_memory, LONG),
            )
            self.columns += (
                Column("cgroup.memory.used", "cgroup", "By"),
                Column("cgroup.memory.anon", "cgroup", "By"),
            )
        if cpu is None:
            self.unavailable["cgroup.cpu.time"] = why
        else:
            v2 = cpu.version == 2
            name, parse = ("cpu.stat", _v2_cpu) if v2 else ("cpuacct.usage", _v1_cpu)
            self._cpu = ProcFile(f"{cpu.folder}/{name}", parse)
            self.columns += (Column("cgroup.cpu.time", "cgroup", "s"),)

    @staticmethod
    def _cpu_group(pid: int, proc: str) -> Group | None:
        group = find_group(pid, "cpu", proc)
        return group if group is not None and group.version == 2 else find_group(pid, "cpuacct", proc)

    def read(self) -> list[float]:
        """One value a column."""
        row = []
        if self._memory is not None:
            usage, stat = self._memory
            inactive, anonymous = stat.read()
            row += [float(max(0, usage.read() - inactive)), float(anonymous)]
        if self._cpu is not None:
            row.append(self._cpu.read())
        return row

    def close(self) -> None:
        """Closes the descriptors."""
        for file in (*(self._memory or ()), self._cpu):
            if file is not None:
                file.close()


def _v2_memory(stat: bytes) -> tuple[int, int]:
    """Bytes of file cache that can go at once, and of memory that cannot."""
    stat = b"\n" + stat
    return _number(stat, b"\ninactive_file "), _number(stat, b"\nanon ") + _number(stat, b"\nshmem ")


def _v1_memory(stat: bytes) -> tuple[int, int]:
    stat = b"\n" + stat
    return (
        _number(stat, b"\ntotal_inactive_file "),
        _number(stat, b"\ntotal_rss ") + _number(stat, b"\ntotal_shmem "),
    )


def _number(stat: bytes, key: bytes) -> int:
    at = stat.find(key)
    return int(stat[at + len(key) :].split(None, 1)[0]) if at >= 0 else 0


def _v2_cpu(content: bytes) -> float:
    return int(content.split(None, 2)[1]) * 1e-6  # usage_usec comes first


def _v1_cpu(content: bytes) -> float:
    return int(content) * 1e-9
