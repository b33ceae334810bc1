"""The kernel's process and its descendants, by /proc: CPU time, memory, threads, disk bytes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from typing import Protocol

from cellmeter.metrics import SHARED_PAGES
from cellmeter.run import Column
from cellmeter.sources.cgroup import read_text
from cellmeter.sources.tree_memory import PAGE, Family, TreeMemory
from cellmeter.sources.tree_total import TreeTotal, Used

RESCAN_SECONDS = 1.0
FRESH_SECONDS = 0.05  # cells may follow each other quickly
FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
TICK = 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


def open_if_there(path: str) -> int:
    """A descriptor for reading; -1 if there is no such file, or none for us."""
    try:
        return os.open(path, FLAGS)
    except OSError:
        return -1


class ProcessPart:
    """The kernel and its descendants.

    The tree is looked for anew once a second, when told to, and when the children of the kernel's main thread change; in
    between, known descendants are read through open descriptors.
    """

    unavailable: dict[str, str]

    def __init__(self, pid: int, proc: str = "/proc", clock: Clock = time.monotonic) -> None:
        self.pid = pid
        self._proc = proc
        self._clock = clock
        self._stat = os.open(f"{proc}/{pid}/stat", FLAGS)
        self._statm = os.open(f"{proc}/{pid}/statm", FLAGS)
        self._io = open_if_there(f"{proc}/{pid}/io")
        self._first_children = open_if_there(f"{proc}/{pid}/task/{pid}/children")
        self._cpu_clock = _process_clock(pid) if proc == "/proc" else None
        self._known: dict[int, tuple[int, int]] = {}  # each after its parent
        self._io_of: dict[int, tuple[int, int]] = {}
        self._io_when: dict[int, Used] = {}  # what they had used when that was read
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
        if self._can_read_io():
            self.columns += (
                Column("process.disk.read", "process", "By"),
                Column("process.disk.written", "process", "By"),
            )
        else:
            why = "/proc/PID/io may not be read here"
            self.unavailable["process.disk.read"] = self.unavailable["process.disk.written"] = why

    def _can_read_io(self) -> bool:
        if self._io < 0:
            return False
        try:
            _io_bytes(os.pread(self._io, 512, 0))
        except (OSError, ValueError, IndexError):
            os.close(self._io)
            self._io = -1
        return self._io >= 0

    @property
    def pids(self) -> list[int]:
        """The kernel and its descendants as last seen."""
        return [self.pid, *self._known]

    def read(self) -> list[float]:
        """One value a column."""
        stat = os.pread(self._stat, 1024, 0)
        words = stat[stat.rindex(b")") + 2 :].split(None, 40)
        memory = os.pread(self._statm, 128, 0).split(None, 3)
        rss = int(memory[1]) * PAGE
        if (
            words[0] in (b"Z", b"X") or not rss
        ):  # a zombie's memory reads 0, and that of one that is about to be: unknown
            raise ProcessLookupError(errno.ESRCH, "the process has ended")
        file = int(memory[2]) * PAGE
        self._follow_tree((words[23], words[25]))
        used, sizes = self._read_children()
        children_cpu = sum(one.all for one in used.values())
        own = Used(0, self._own_cpu(words), (int(words[13]) + int(words[14])) * TICK)
        row = [
            self._tree_time.add({self.pid: own, **used}),
            children_cpu,
            float(rss),
            float(file),
            float(rss + self._tree_memory.added(sizes, rss, file)),
            float(int(words[17])),
            float(len(self._known)),
            float(int(words[7])),
            float(int(words[9])),
            1.0 if words[0] == b"D" else 0.0,
        ]
        if self._counts_delays:
            row.append(int(words[39]) * TICK)
        if self._io >= 0:
            row += self._disk_bytes(used)
        return row

    def _own_cpu(self, words: list[bytes]) -> float:
        """By the process's own CPU clock where there is one: nanoseconds instead of the 10 ms ticks of stat."""
        if self._cpu_clock is not None:
            try:
                return time.clock_gettime(self._cpu_clock)
            except OSError:
                self._cpu_clock = None
        return (int(words[11]) + int(words[12])) * TICK

    def look_again(self) -> None:
        """The next reading looks for descendants, unless one did just now."""
        self._rescan_at = min(self._rescan_at, self._scanned_at + FRESH_SECONDS)

    def _follow_tree(self, family: Family) -> None:
        now = self._clock()
        text = os.pread(self._first_children, 65536, 0) if self._first_children >= 0 else b""
        if now < self._rescan_at and text == self._children_text:
            return
        self._scanned_at, self._rescan_at, self._children_text = now, now + RESCAN_SECONDS, text
        seen = dict.fromkeys(descendants(self.pid, self._proc))
        for pid in [pid for pid in self._known if pid not in seen]:
            self._forget(pid)
        for pid in seen:
            if pid not in self._known and (fd := open_if_there(f"{self._proc}/{pid}/stat")) >= 0:
                self._known[pid] = (fd, open_if_there(f"{self._proc}/{pid}/io") if self._io >= 0 else -1)
        self._tree_memory.follow(seen, family)

    def _forget(self, pid: int) -> None:
        for fd in self._known.pop(pid):
            if fd >= 0:
                os.close(fd)
        self._io_of.pop(pid, None)
        self._io_when.pop(pid, None)

    def _read_children(self) -> tuple[dict[int, Used], list[tuple[int, int, int]]]:
        """Their CPU time by pid; pid, resident bytes and minor page faults of each."""
        used, sizes = {}, []
        for pid, (fd, _) in list(self._known.items()):
            try:
                stat = os.pread(fd, 1024, 0)
            except OSError:
                self._forget(pid)
                continue
            words = stat[stat.rindex(b")") + 2 :].split(None, 22)
            waited_for = (int(words[13]) + int(words[14])) * TICK
            used[pid] = Used(int(words[1]), self._exact_cpu(pid, words), waited_for)
            sizes.append((pid, int(words[21]) * PAGE, int(words[7])))
        return used, sizes

    def _exact_cpu(self, pid: int, words: list[bytes]) -> float:
        """Ticks would hide most of what many workers do in a short cell."""
        if self._cpu_clock is not None:
            try:
                return time.clock_gettime(_clock_of(pid))
            except OSError:  # it has ended, and nobody has waited for it yet
                pass
        return (int(words[11]) + int(words[12])) * TICK

    def _disk_bytes(self, used: Mapping[int, Used]) -> list[float]:
        """Read and written; ``used`` tells who is there, whose child it is, and who did nothing since: no file is read then."""
        self._io_of[self.pid] = _io_bytes(os.pread(self._io, 512, 0))
        for pid, one in used.items():
            fd = self._known[pid][1]
            if fd >= 0 and self._io_when.get(pid) != one:
                self._io_when[pid] = one
                try:
                    self._io_of[pid] = _io_bytes(os.pread(fd, 512, 0))
                except (OSError, ValueError, IndexError):
                    continue  # it has ended; what it did so far is kept
        parents = {self.pid: 0, **{pid: one.parent for pid, one in used.items() if pid in self._io_of}}
        return [
            total.add({pid: Used(parent, 0.0, self._io_of[pid][place]) for pid, parent in parents.items()})
            for place, total in enumerate(self._tree_io)
        ]

    def close(self) -> None:
        """Closes the descriptors."""
        for pid in list(self._known):
            self._forget(pid)
        for fd in (self._stat, self._statm, self._io, self._first_children):
            if fd >= 0:
                os.close(fd)


class Clock(Protocol):
    """Seconds on a clock that only goes forward."""

    def __call__(self) -> float:
        """Now."""


def _clock_of(pid: int) -> int:
    """The CPU clock of another process, as ``clock_getcpuclockid(3)`` makes it."""
    return (~pid << 3) | 2


def _process_clock(pid: int) -> int | None:
    """Its CPU clock; None where it cannot be read."""
    clock = _clock_of(pid)
    try:
        time.clock_gettime(clock)
    except (OSError, AttributeError):
        return None
    return clock


def _io_bytes(content: bytes) -> tuple[int, int]:
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
