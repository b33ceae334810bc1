"""The kernel's process and its descendants, by /proc: CPU time, memory, threads, disk bytes."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import NamedTuple, Protocol

from cellmeter.clock import monotonic
from cellmeter.metrics import SHARED_PAGES
from cellmeter.run import Column
from cellmeter.sources.cgroup import read_text
from cellmeter.sources.proc_file import LONG, ProcFile, opened
from cellmeter.sources.tree_memory import PAGE, Family, TreeMemory
from cellmeter.sources.tree_total import TreeTotal, Used

RESCAN_SECONDS = 1.0
FRESH_SECONDS = 0.05  # cells may follow each other quickly
TICK = 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


class Stat(NamedTuple):
    """What ``/proc/PID/stat`` tells of a process. CPU time in seconds, memory in bytes."""

    state: bytes
    parent: int
    minor_faults: int
    major_faults: int
    cpu: float
    waited_for: float
    threads: int
    rss: int
    family: Family
    io_wait: float


def parse_stat(content: bytes) -> Stat:
    """Raises ValueError, IndexError."""
    words = content[content.rindex(b")") + 2 :].split(None, 40)
    return Stat(
        state=words[0],
        parent=int(words[1]),
        minor_faults=int(words[7]),
        major_faults=int(words[9]),
        cpu=(int(words[11]) + int(words[12])) * TICK,
        waited_for=(int(words[13]) + int(words[14])) * TICK,
        threads=int(words[17]),
        rss=int(words[21]) * PAGE,
        family=(words[23], words[25]),
        io_wait=int(words[39]) * TICK,
    )


Counts = tuple[int, int]  # bytes read from disks and written to them


class Watched:
    """A process through open descriptors. One whose CPU clock stands still has not run, and its files are not read again."""

    def __init__(self, pid: int, proc: str, *, clocked: bool, io: bool) -> None:
        """``clocked``: it has a CPU clock that may be read; ``io``: so may its disk bytes. Raises OSError if it is gone."""
        self._pid = pid
        self._clocked = clocked
        self._stat = ProcFile(f"{proc}/{pid}/stat", parse_stat)
        self._io = open_io(pid, proc) if io else None
        self._clock: float | None = None
        self.stat: Stat
        self.io: Counts | None = None

    def look(self) -> bool:
        """Whether it has run since the last look, so that it was read again. Raises OSError if it is gone."""
        clock = self._cpu_clock()  # before the files: what it does meanwhile shows at the next look
        if clock is not None and clock == self._clock:
            return False
        self.stat = self._stat.read()
        self._clock = clock
        if self._io is not None:
            with suppress(OSError, ValueError, IndexError):  # it has ended; what it did so far is kept
                self.io = self._io.read()
        return True

    def doubt(self) -> None:
        """Others may have changed it: taken its memory, say. It is read with the next look."""
        self._clock = None

    def used(self) -> Used:
        """Its CPU time. By its clock, in ns: ticks would hide most of what many workers do in a short cell."""
        return Used(self.stat.parent, self.stat.cpu if self._clock is None else self._clock, self.stat.waited_for)

    def _cpu_clock(self) -> float | None:
        if self._clocked:
            with suppress(OSError):  # it has ended, and nobody has waited for it yet
                return time.clock_gettime(clock_of(self._pid))
        return None

    def close(self) -> None:
        """Closes the descriptors."""
        self._stat.close()
        if self._io is not None:
            self._io.close()


class ProcessPart:
    """The kernel and its descendants.

    The tree is looked for anew once a second, when told to, and when the children of the kernel's main thread change; in
    between, known descendants are read through open descriptors.
    """

    unavailable: dict[str, str]

    def __init__(self, pid: int, proc: str = "/proc", clock: Clock = monotonic) -> None:
        self.pid = pid
        self._proc = proc
        self._clock = clock
        self._clocked = proc == "/proc" and _has_clock(pid)
        self._kernel = Watched(pid, proc, clocked=self._clocked, io=True)
        self._kernel.look()
        self._statm = ProcFile(f"{proc}/{pid}/statm", _resident)
        self._memory = self._statm.read()
        self._first_children = opened(f"{proc}/{pid}/task/{pid}/children", bytes, LONG)
        self._known: dict[int, Watched] = {}  # each after its parent
        self._tree_io = TreeTotal(), TreeTotal()
        self._children_text = b""
        self._rescan_at = self._scanned_at = -1.0
        self._tree_time = TreeTotal(tolerated=3 * TICK)  # a parent counts in ticks, user and system apart
        self._tree_memory = TreeMemory(pid, proc, clock)
        self.unavailable = {}
        if self._tree_memory.upper_bound is not None:
            self.unavailable[SHARED_PAGES] = self._tree_memory.upper_bound
        self.columns = tuple(
            Column(metric, "process", unit)
            for metric, unit in (
                ("process.cpu.time", "s"),
                ("process.children.cpu.time", "s"),
                ("process.memory.rss", "By"),
                ("process.memory.file", "By"),
                ("process.tree.memory.rss", "By"),
                ("process.threads", "1"),
                ("process.children", "1"),
                ("process.page_faults.minor", "1"),
                ("process.page_faults.major", "1"),
                ("process.io.blocked", "1"),
            )
        )
        # The switch is of Linux 5.14; before, delay accounting was on.
        self._counts_delays = (read_text(f"{proc}/sys/kernel/task_delayacct") or "1").strip() == "1"
        if self._counts_delays:
            self.columns += (Column("process.io.wait.time", "process", "s"),)
        else:
            self.unavailable["process.io.wait.time"] = "delay accounting is off (sysctl kernel.task_delayacct=1)"
        if self._kernel.io is not None:
            self.columns += (
                Column("process.disk.read", "process", "By"),
                Column("process.disk.written", "process", "By"),
            )
        else:
            why = "/proc/PID/io may not be read here"
            self.unavailable["process.disk.read"] = self.unavailable["process.disk.written"] = why

    @property
    def pids(self) -> list[int]:
        """The kernel and its descendants as last seen."""
        return [self.pid, *self._known]

    def read(self) -> list[float]:
        """One value a column."""
        now = self._clock()
        if now >= self._rescan_at:
            for process in (self._kernel, *self._known.values()):
                process.doubt()
        ran = self._kernel.look()
        if ran:
            self._memory = self._statm.read()
        stat, (rss, file) = self._kernel.stat, self._memory
        # a zombie's memory reads 0, and that of one that is about to be: unknown
        if stat.state in (b"Z", b"X") or not rss:
            raise ProcessLookupError(errno.ESRCH, "the process has ended")
        if ran:
            self._follow_tree(now, stat.family, rss - file)
        self._look_at_children()
        used = {pid: child.used() for pid, child in self._known.items()}
        sizes = [(pid, child.stat.rss, child.stat.minor_faults) for pid, child in self._known.items()]
        row = [
            self._tree_time.add({self.pid: self._kernel.used()._replace(parent=0), **used}),
            sum(one.all for one in used.values()) if used else 0.0,
            float(rss),
            float(file),
            float(rss + self._tree_memory.added(sizes, rss, file)),
            float(stat.threads),
            float(len(self._known)),
            float(stat.minor_faults),
            float(stat.major_faults),
            1.0 if stat.state == b"D" else 0.0,
        ]
        if self._counts_delays:
            row.append(stat.io_wait)
        if self._kernel.io is not None:
            row += self._disk_bytes(self._kernel.io)
        return row

    def look_again(self) -> None:
        """The next reading looks for descendants, unless one did just now."""
        self._rescan_at = min(self._rescan_at, self._scanned_at + FRESH_SECONDS)

    def _follow_tree(self, now: float, family: Family, anonymous: int) -> None:
        text = self._first_children.read() if self._first_children is not None else b""
        if now < self._rescan_at and text == self._children_text:
            return
        self._scanned_at, self._rescan_at, self._children_text = now, now + RESCAN_SECONDS, text
        seen = dict.fromkeys(descendants(self.pid, self._proc))
        for pid in [pid for pid in self._known if pid not in seen]:
            self._known.pop(pid).close()
        for pid in seen:
            if pid not in self._known:
                with suppress(OSError):
                    self._known[pid] = Watched(pid, self._proc, clocked=self._clocked, io=self._kernel.io is not None)
        self._tree_memory.follow(seen, family, anonymous)

    def _look_at_children(self) -> None:
        for pid, child in list(self._known.items()):
            try:
                child.look()
            except OSError:
                self._known.pop(pid).close()

    def _disk_bytes(self, own: Counts) -> list[float]:
        """Read and written."""
        told = [(self.pid, 0, own)]
        told += [(pid, child.stat.parent, child.io) for pid, child in self._known.items() if child.io is not None]
        return [
            total.add({pid: Used(parent, 0.0, counts[place]) for pid, parent, counts in told})
            for place, total in enumerate(self._tree_io)
        ]

    def close(self) -> None:
        """Closes the descriptors."""
        for process in (self._kernel, *self._known.values()):
            process.close()
        self._known.clear()
        self._statm.close()
        if self._first_children is not None:
            self._first_children.close()


class Clock(Protocol):
    """Seconds on a clock that only goes forward."""

    def __call__(self) -> float:
        """Now."""


def clock_of(pid: int) -> int:
    """The CPU clock of another process, as ``clock_getcpuclockid(3)`` makes it."""
    return (~pid << 3) | 2


def _has_clock(pid: int) -> bool:
    try:
        time.clock_gettime(clock_of(pid))
    except (OSError, AttributeError):
        return False
    return True


def open_io(pid: int, proc: str) -> ProcFile[Counts] | None:
    """What a process made the disks do; None where that may not be read."""
    file = opened(f"{proc}/{pid}/io", _io_bytes)
    if file is not None:
        try:
            file.read()
        except (OSError, ValueError, IndexError):
            file.close()
            file = None
    return file


def _resident(content: bytes) -> tuple[int, int]:
    """Bytes of memory, and of it files and shared memory, by ``/proc/PID/statm``."""
    words = content.split(None, 3)
    return int(words[1]) * PAGE, int(words[2]) * PAGE


def _io_bytes(content: bytes) -> Counts:
    words = content.split()
    return int(words[words.index(b"read_bytes:") + 1]), int(words[words.index(b"write_bytes:") + 1])


def descendants(pid: int, proc: str = "/proc") -> list[int]:
    """All living descendants, each after its parent: by the ``children`` files, or by everybody's parent without them."""
    found: dict[int, None] = {}
    todo = [pid]
    if not os.path.exists(f"{proc}/{pid}/task/{pid}/children"):
        return _descendants_by_parent(pid, proc)
    while todo:
        folder = f"{proc}/{todo.pop()}/task"
        try:
            threads = os.listdir(folder)
        except OSError:
            continue
        for thread in threads:
            for child in map(int, (read_text(f"{folder}/{thread}/children") or "").split()):
                if child not in found:
                    found[child] = None
                    todo.append(child)
    return list(found)


def _descendants_by_parent(pid: int, proc: str) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir(proc)):
        stat = read_text(f"{proc}/{name}/stat")
        if stat:
            children.setdefault(int(stat[stat.rindex(")") + 2 :].split(None, 2)[1]), []).append(int(name))
    found: dict[int, None] = {}
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found[child] = None
                todo.append(child)
    return list(found)
