"""Exact peaks of what is not the kernel process itself: its workers, one by one, and its control group as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable

from cellmeter.sources.cgroup import find_group, read_text


class WorkerPeaks:
    """High-water marks (VmHWM) of the kernel's descendants over a cell.

    Workers that are there at its start have their mark reset; those born within it have had none before. One that ends within
    the cell takes its mark with it: its samples are what is left.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc

    def reset(self, pids: Iterable[int]) -> None:
        """Sets the marks to what is resident now; a worker that has just ended or may not be touched is left out."""
        for pid in pids:
            try:
                fd = os.open(f"{self._proc}/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                os.write(fd, b"5")
            except OSError:
                continue
            finally:
                os.close(fd)

    def read(self, pids: Iterable[int]) -> dict[int, int]:
        """The marks in bytes, by pid."""
        marks = {pid: _mark(read_text(f"{self._proc}/{pid}/status") or "") for pid in pids}
        return {pid: mark for pid, mark in marks.items() if mark is not None}


def _mark(status: str) -> int | None:
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else None


class GroupPeak:
    """cgroup v2's ``memory.peak``, which since Linux 6.12 can be reset for one descriptor and leaves others alone."""

    def __init__(self, pid: int, proc: str = "/proc") -> None:
        self.unknown: str | None = None
        self._fd = -1
        group = find_group(pid, "memory", proc)
        if group is None or group.version == 1:
            self.unknown = "the process is in no control group (v2) of its own"
            return
        try:
            self._fd = os.open(f"{group.folder}/memory.peak", os.O_RDWR | os.O_CLOEXEC)
            self.reset()
        except OSError as error:
            self.unknown = (
                f"memory.peak cannot be reset here ({error.strerror}): it needs Linux 6.12 and write permission"
            )

    def reset(self) -> None:
        """Sets the peak to what is used now. Raises OSError where it cannot."""
        os.pwrite(self._fd, b"1", 0)

    def read(self) -> int | None:
        """The peak in bytes; None where it could not be reset, and so is no cell's."""
        return None if self.unknown is not None else int(os.pread(self._fd, 64, 0))

    def close(self) -> None:
        """Closes the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)


class CellPeaks:
    """Both, for the outermost of the cells that run: one within another cannot have marks of its own."""

    def __init__(self, pid: int, pids: Callable[[], Collection[int]], proc: str = "/proc") -> None:
        self._pid = pid
        self._pids = pids
        self._workers = WorkerPeaks(proc)
        self.group = GroupPeak(pid, proc)
        self._seq: int | None = None

    def _worker_pids(self) -> list[int]:
        return [pid for pid in self._pids() if pid != self._pid]

    def started(self, seq: int) -> None:
        """A cell's start edge."""
        if self._seq is None:
            self._seq = seq
            self._workers.reset(self._worker_pids())
            if self.group.unknown is None:
                self.group.reset()

    def ended(self, seq: int) -> dict[str, int | None] | None:
        """The peaks of the cell that ends; None if it ran within another, or if there is nothing to tell."""
        if seq != self._seq:
            return None
        self._seq = None
        marks = self._workers.read(self._worker_pids())
        group = self.group.read()
        if not marks and group is None:
            return None
        return {"workers": len(marks), "workers_peak_bytes": sum(marks.values()), "cgroup_peak_bytes": group}
