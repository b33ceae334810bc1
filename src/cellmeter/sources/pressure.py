"""Strain on the machine and on the process's own control group: stall times (PSI), swap, CPU throttling, runnable tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cellmeter.run import Column
from cellmeter.sources.cgroup import find_group

RESOURCES = ("cpu", "memory", "io")
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


class Reading(NamedTuple):
    """An open file, the columns it gives, and how its content is read."""

    fd: int
    columns: tuple[Column, ...]
    parse: Callable[[bytes], list[float]]


class PressurePart:
    """One small file a reading; what the system does not have is unavailable, with the reason."""

    def __init__(self, pid: int, proc: str = "/proc") -> None:
        self.unavailable: dict[str, str] = {}
        self._readings = [reading for reading in self._find(pid, proc) if reading is not None]
        self.columns = tuple(column for reading in self._readings for column in reading.columns)

    def _find(self, pid: int, proc: str) -> Iterator[Reading | None]:
        columns: tuple[Column, ...]
        for resource in RESOURCES:
            columns = (Column(f"host.pressure.{resource}.time", "host", "s"),)
            yield self._open(f"{proc}/pressure/{resource}", columns, stalled_seconds)
        yield self._open(f"{proc}/loadavg", (Column("host.tasks.runnable", "host", "1"),), _runnable)
        group = find_group(pid, "memory", proc)
        if group is not None and group.version == 2:
            for resource in RESOURCES:
                columns = (Column(f"cgroup.pressure.{resource}.time", "cgroup", "s"),)
                yield self._open(f"{group.folder}/{resource}.pressure", columns, stalled_seconds)
            swap = (Column("cgroup.swap.used", "cgroup", "By"),)
            yield self._open(f"{group.folder}/memory.swap.current", swap, lambda content: [float(content)])
        cpu = find_group(pid, "cpu", proc)
        if cpu is not None:
            names = ("cgroup.cpu.throttled.time", "cgroup.cpu.periods", "cgroup.cpu.throttled.periods")
            columns = tuple(Column(n, "cgroup", u) for n, u in zip(names, ("s", "1", "1"), strict=True))
            yield self._open(f"{cpu.folder}/cpu.stat", columns, _v2_throttling if cpu.version == 2 else _v1_throttling)

    def _open(self, path: str, columns: tuple[Column, ...], parse: Callable[[bytes], list[float]]) -> Reading | None:
        try:
            fd = os.open(path, _FLAGS)
        except OSError as error:
            self._miss(columns, path, error)
            return None
        try:
            parse(os.pread(fd, 1024, 0))
        except (OSError, ValueError, IndexError) as error:  # a kernel with PSI switched off has the files all the same
            os.close(fd)
            self._miss(columns, path, error)
            return None
        return Reading(fd, columns, parse)

    def _miss(self, columns: tuple[Column, ...], path: str, error: Exception) -> None:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "not in the form known"
        self.unavailable.update({column.metric: f"{path} cannot be read: {why}" for column in columns})

    def read(self) -> list[float]:
        """One value a column."""
        return [value for reading in self._readings for value in reading.parse(os.pread(reading.fd, 1024, 0))]

    def close(self) -> None:
        """Closes the descriptors."""
        for reading in self._readings:
            os.close(reading.fd)


def stalled_seconds(content: bytes) -> list[float]:
    """``some … total=N``: microseconds in which at least one task waited for the resource."""
    at = content.index(b"total=") + 6
    return [int(content[at:].split(None, 1)[0]) * 1e-6]


def _runnable(content: bytes) -> list[float]:
    return [float(content.split()[3].partition(b"/")[0])]


def _fields(content: bytes) -> dict[bytes, int]:
    words = content.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def _v2_throttling(content: bytes) -> list[float]:
    fields = _fields(content)
    return [fields[b"throttled_usec"] * 1e-6, float(fields[b"nr_periods"]), float(fields[b"nr_throttled"])]


def _v1_throttling(content: bytes) -> list[float]:
    fields = _fields(content)
    return [fields[b"throttled_time"] * 1e-9, float(fields[b"nr_periods"]), float(fields[b"nr_throttled"])]
