"""What worker processes add to the kernel's memory, with pages that they share counted once.

A forked worker shows all of its parent's memory as its own, and spawned ones the same libraries each. What of it is shared
only ``smaps_rollup`` tells, and that walks all page tables: 20 ms for a GiB of small pages, 3 ms for one of huge pages. So it
is read of workers only, never of the kernel, on a thread of its own, and within a thousandth of a core. In between, what a
worker holds of its own is its resident memory now less what it shared then: memory it allocates is seen at once, what it
overwrites of its parent's by the next reading.

No figure is more than what is there: of what processes share with each other, but not with the kernel, the most that one of
them shares is counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from cellmeter.clock import monotonic
from cellmeter.sources.cgroup import read_text

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
SPARED = 1000  # times what a reading took is the time until the next: 0.1 % of a core
SAVED_SECONDS = 50.0  # at most, for when many workers start at once: 50 ms of readings
SETTLED_SECONDS = 0.5  # a child younger than that may be about to exec, and still have the kernel's page tables
IDLE_SECONDS = 60.0
FEW_FAULTS = 64  # a worker that has touched fewer new pages since its last reading shares what it did then
GROWN_BYTES = 4 << 20  # by which resident memory changes before it is asked again how much of it is mapped files

Family = tuple[bytes, bytes]
"""Where a process's code and stack begin: random for each program started, and the same for all that are forked from it."""


class Share(NamedTuple):
    """What a process shares. Bytes."""

    anonymous: int = 0
    """Memory of its own that processes forked from it have too, or that it has from its parent."""
    file: int = 0
    """Files and shared memory that others map as well."""
    own_file: int = 0
    """Files and shared memory that it alone maps."""


NOTHING = Share()


class Reading(NamedTuple):
    """A share, None where it could not be read, and the CPU time it took."""

    share: Share | None
    seconds: float


@dataclass(slots=True)
class Worker:
    """A descendant of the kernel. ``rss`` and ``file``: bytes when they were last looked at."""

    family: Family
    parent: int
    next_at: float
    rss: int = 0
    file: int = 0
    share: Share = NOTHING
    known: bool = False
    """The share was read; else it is a guess."""
    faults: int = 0
    faults_then: int = 0


class TreeMemory:
    """The memory of the kernel's descendants."""

    def __init__(
        self,
        pid: int,
        proc: str = "/proc",
        clock: Callable[[], float] = monotonic,
        roll_up: Callable[[str], Reading] | None = None,
    ) -> None:
        self._pid = pid
        self._proc = proc
        self._clock = clock
        self._roll_up = roll_up or read_share
        self._workers: dict[int, Worker] = {}
        self._round: Round | None = None
        self._free_at = clock() - SAVED_SECONDS
        self._family: Family = (b"", b"")
        self._kernels = 0
        """The most anonymous memory that the kernel had since its descendants were last looked for."""
        self.upper_bound = self._why_upper_bound()
        """Why only the sum of all can be told; None where it is known what is shared."""

    def _why_upper_bound(self) -> str | None:
        try:
            if self._roll_up(f"{self._proc}/self/smaps_rollup").share is not None:
                os.close(os.open(f"{self._proc}/{self._pid}/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC))
                return None
        except OSError:
            pass
        return (
            "/proc/PID/smaps_rollup may not be read here: pages that workers share count each time, "
            "so process.tree.memory.rss is an upper bound"
        )

    def follow(self, pids: Collection[int], family: Family, anonymous: int) -> None:
        """The kernel's descendants now, its own family and anonymous memory. Begins to read what is due."""
        if self.upper_bound is not None:
            return
        self._family = family
        self._kernels = max(self._kernels, anonymous)
        for pid in [pid for pid in self._workers if pid not in pids]:
            del self._workers[pid]
        for pid in pids:
            worker = self._workers.get(pid)
            if worker is None:
                self._meet(pid)
            elif not worker.known:
                self._look(pid, worker)
        self._kernels = anonymous
        self._take()
        self._begin()

    def added(self, seen: Iterable[tuple[int, int, int]], rss: int, file: int) -> int:
        """Bytes that the descendants add to the kernel's ``rss``, of which ``file`` are mapped files and shared memory.

        ``seen``: pid, resident bytes and minor page faults of each.
        """
        if self.upper_bound is not None:
            return max(0, min(sum(resident for _, resident, _ in seen), self._taken_bytes() - rss))
        self._kernels = max(self._kernels, rss - file)
        self._take()
        shared: dict[Family, int] = {}
        shared_file = added = 0
        for pid, resident, faults in seen:
            worker = self._workers.get(pid)
            if worker is None:
                continue
            worker.faults = faults
            if abs(resident - worker.rss) > GROWN_BYTES:
                self._look(pid, worker)
            anonymous, share = max(0, resident - worker.file), worker.share
            added += max(0, anonymous - share.anonymous) + min(share.own_file, worker.file)
            if worker.known:
                shared[worker.family] = max(shared.get(worker.family, 0), min(share.anonymous, anonymous))
                shared_file = max(shared_file, min(share.file, worker.file))
        for family, most in shared.items():
            added += max(0, most - (rss - file)) if family == self._family else most
        return added + max(0, shared_file - file)

    def _taken_bytes(self) -> int:
        """All memory of the machine that is not free: more than that no sum can be."""
        words = (read_text(f"{self._proc}/meminfo") or "MemTotal: 0 kB MemFree: 0").split(None, 5)
        return (int(words[1]) - int(words[4])) * 1024

    # ---- what is known of a worker without a reading ----

    def _parentage(self, pid: int) -> tuple[int, Family]:
        stat = read_text(f"{self._proc}/{pid}/stat") or ""
        words = stat[stat.rfind(")") + 2 :].split(None, 26)
        return (int(words[1]), (words[23].encode(), words[25].encode())) if len(words) > 25 else (0, (b"", b""))

    def _meet(self, pid: int) -> None:
        parent, family = self._parentage(pid)
        worker = self._workers[pid] = Worker(family, parent, self._clock() + SETTLED_SECONDS)
        self._look(pid, worker)
        self._guess(worker)

    def _look(self, pid: int, worker: Worker) -> None:
        """How much of its resident memory is mapped files; and, as long as that is a guess, which program it runs."""
        words = (read_text(f"{self._proc}/{pid}/statm") or "").split(None, 3)
        if len(words) > 2:
            worker.rss, worker.file = int(words[1]) * PAGE, int(words[2]) * PAGE
        if not worker.known and (parentage := self._parentage(pid)) != (worker.parent, worker.family) and parentage[0]:
            worker.parent, worker.family = parentage
            self._guess(worker)

    def _guess(self, worker: Worker) -> None:
        """A program of its own shares nothing but files. What was forked has all from its parent that this had to give."""
        parent = self._workers.get(worker.parent)
        forked = worker.family == (parent.family if parent else self._family)
        most = parent.rss - parent.file if parent else self._kernels
        worker.share = Share(min(worker.rss - worker.file, most)) if forked else NOTHING

    # ---- readings ----

    def _begin(self) -> None:
        now = self._clock()
        if self._round is not None or self._free_at > now:
            return
        due = [pid for pid, worker in self._workers.items() if _is_due(worker, now)]
        if due:
            due.sort(key=lambda pid: (self._workers[pid].known, self._workers[pid].next_at))
            for pid in due:
                self._workers[pid].faults_then = self._workers[pid].faults
            paths = {pid: f"{self._proc}/{pid}/smaps_rollup" for pid in due}
            self._round = Round(paths, self._roll_up, max(self._free_at, now - SAVED_SECONDS), now)

    def _take(self) -> None:
        """Puts to use what a round has read, when it is through."""
        if self._round is None or self._round.is_alive():
            return
        finished, self._round = self._round, None
        self._free_at = finished.free_at
        for pid, reading in finished.readings.items():
            worker = self._workers.get(pid)
            if worker is None:
                continue
            worker.next_at = finished.now + max(reading.seconds * SPARED, 0.0 if reading.share else IDLE_SECONDS)
            if reading.share is not None:
                worker.parent, worker.family = self._parentage(pid)
                worker.share, worker.known = reading.share, True
                self._look(pid, worker)
        self._liken()

    def _liken(self) -> None:
        """Whoever waits for its reading has what its siblings have, until then."""
        born_alike: dict[tuple[int, Family], int] = {}
        for worker in self._workers.values():
            if worker.known:
                key = worker.parent, worker.family
                born_alike[key] = max(born_alike.get(key, 0), worker.share.anonymous)
        for worker in self._workers.values():
            if not worker.known and (most := born_alike.get((worker.parent, worker.family))) is not None:
                worker.share = Share(min(worker.share.anonymous, most))


def _is_due(worker: Worker, now: float) -> bool:
    touched = not worker.known or worker.faults - worker.faults_then >= FEW_FAULTS
    return now >= worker.next_at + (0.0 if touched else IDLE_SECONDS)


class Round(threading.Thread):
    """Reads the shares of some workers, in their order, as far as there is time for."""

    def __init__(self, paths: dict[int, str], roll_up: Callable[[str], Reading], free_at: float, now: float) -> None:
        super().__init__(daemon=True)
        self._paths = paths
        self._roll_up = roll_up
        self.free_at = free_at
        self.now = now
        self.readings: dict[int, Reading] = {}
        self.start()

    def run(self) -> None:
        """See :meth:`threading.Thread.run`."""
        for pid, path in self._paths.items():
            if self.free_at > self.now:
                break
            self.readings[pid] = reading = self._roll_up(path)
            self.free_at += reading.seconds * SPARED


def read_share(path: str) -> Reading:
    """The share that a ``smaps_rollup`` tells of."""
    before = time.thread_time()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            share = share_of(os.read(fd, 4096))
        finally:
            os.close(fd)
    except (OSError, ValueError):
        share = None
    return Reading(share, time.thread_time() - before)


def share_of(rollup: bytes) -> Share:
    """What a ``smaps_rollup`` says is shared. Raises ValueError if it does not.

    It has no line for files that are shared. What is mapped clean and by this process alone is a file; and of what k processes
    map its PSS has the k-th part, so that at most twice the rest is shared. Where that is too little, it is anonymous.
    """
    lines = (line.split(None, 2) for line in rollup.splitlines()[1:])
    size = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
    try:
        files = size[b"Rss:"] - size[b"Anonymous:"]
        shared = size[b"Shared_Clean:"] + size[b"Shared_Dirty:"]
        shared_file = min(shared, max(0, files - size[b"Private_Clean:"]))
    except KeyError as error:
        raise ValueError(f"no {error} in smaps_rollup") from error
    if b"Pss_File:" in size:
        shared_file = min(shared_file, max(0, 2 * (files - size[b"Pss_File:"] - size[b"Pss_Shmem:"])))
    return Share(shared - shared_file, shared_file, max(0, files - shared_file))
