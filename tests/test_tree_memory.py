"""What workers add to the kernel's memory: real processes against the sum of their proportional memory, which is exact."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import wait_until

from cellmeter.metrics import SHARED_PAGES
from cellmeter.sources.process import ProcessPart
from cellmeter.sources.tree_memory import SPARED, Reading, Share, TreeMemory, share_of

MIB = 1 << 20
TREE = "process.tree.memory.rss"

# A kernel with an array of so many MiB and so many workers. It answers each line it gets when all workers have done it.
KERNEL = """
import multiprocessing, os, signal, sys, mmap
from multiprocessing import shared_memory

def touched(mib):
    block = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    write(block, 0, mib)
    return block

def write(block, first, last):
    for at in range(first << 20, last << 20, 4096):
        block[at] = 1

def work(orders, done):
    done.put(1)
    for order in iter(orders.get, None):
        exec(order, globals())
        done.put(1)

if __name__ == "__main__":
    how, count, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    block = touched(mib)
    shared = shared_memory.SharedMemory(create=True, size=64 << 20) if how == "shared" else None
    context = multiprocessing.get_context("fork" if how == "shared" else how)
    queues = [context.SimpleQueue() for _ in range(count)]
    done = context.SimpleQueue()
    workers = [context.Process(target=work, args=(q, done), daemon=True) for q in queues]
    for worker in workers:
        worker.start()
    order = "start"
    while order:
        for _ in range(0 if order.startswith("here ") else count):
            done.get()
        print("done", flush=True)
        order = sys.stdin.readline().strip()
        if order.startswith("here "):
            exec(order[5:])
        else:
            for q in queues:
                q.put(order or None)
    if shared:
        shared.unlink()
"""


class Kernel:
    """The process above, and what the recorder would read of it."""

    def __init__(self, script: Path, how: str, workers: int, mib: int) -> None:
        command = [sys.executable, str(script), how, str(workers), str(mib)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.now = 0.0
        self.part = ProcessPart(self.process.pid, clock=lambda: self.now)
        self.readings = [self.read()]

    def do(self, order: str) -> None:
        """Has all workers do something, or the kernel itself (``here``)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def read(self) -> dict[str, float]:
        """A sample, a minute after the last one: everything is due by then."""
        self.now += 60.0
        row = dict(zip((column.metric for column in self.part.columns), self.part.read(), strict=True))
        self.readings = [*getattr(self, "readings", ()), row]
        return row

    @property
    def pss(self) -> float:
        return float(sum(psutil.Process(pid).memory_full_info().pss for pid in self.part.pids))

    def agrees(self, within: float = 24 * MIB) -> bool:
        """Whether a sample says what all processes have together: libraries that others map too make PSS a little less."""
        return -4 * MIB <= self.read()[TREE] - self.pss <= within

    def close(self) -> None:
        self.part.close()
        self.process.communicate("\n", timeout=20)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    script = tmp_path / "kernel.py"
    script.write_text(KERNEL)
    kernels: list[Kernel] = []

    def make(how: str, workers: int = 4, mib: int = 256) -> Kernel:
        kernels.append(Kernel(script, how, workers, mib))
        return kernels[-1]

    yield make
    for kernel in kernels:
        kernel.close()


def test_what_a_fork_pool_has_of_its_parent_counts_once(start: Callable[..., Kernel]) -> None:
    kernel = start("fork")
    resident = sum(psutil.Process(pid).memory_info().rss for pid in kernel.part.pids)
    assert resident > 5 * 256 * MIB, "as a sum it would be five times as much"
    assert kernel.readings[0][TREE] < 256 * MIB + 64 * MIB, "not even before anything is known of the workers"
    wait_until(kernel.agrees, "tree = PSS of all")
    kernel.do("here del block; block = None")
    kernel.do("os.getpid()")
    wait_until(lambda: kernel.read()["process.memory.rss"] < 128 * MIB, "the kernel to have given its array back")
    wait_until(kernel.agrees, "what only the workers have of it now counts once")
    assert max(row[TREE] for row in kernel.readings) < 256 * MIB + 96 * MIB


def test_what_workers_write_and_allocate_is_their_own(start: Callable[..., Kernel]) -> None:
    kernel = start("fork", mib=128)
    wait_until(kernel.agrees, "tree = PSS of all")
    for half in (0, 64):
        before = kernel.read()[TREE]
        kernel.do(f"write(block, {half}, {half + 64})")
        wait_until(kernel.agrees, "what they overwrite of the kernel's becomes theirs")
        assert kernel.read()[TREE] - before == pytest.approx(4 * 64 * MIB, rel=0.1)
    before = kernel.read()[TREE]
    kernel.do("mine = touched(32)")
    assert kernel.read()[TREE] - before == pytest.approx(4 * 32 * MIB, rel=0.1), "what they allocate at once"


def test_what_a_worker_has_allocated_before_it_is_first_seen_is_its_own(start: Callable[..., Kernel]) -> None:
    """Until it has been read it shares what the kernel has, and no more."""
    kernel = start("fork", workers=2, mib=64)
    kernel.do("mine = touched(128)")
    kernel.part.close()
    kernel.part = ProcessPart(kernel.process.pid, clock=lambda: kernel.now)
    first = kernel.read()
    assert not any(worker.known for worker in kernel.part._tree_memory._workers.values())
    assert first[TREE] >= kernel.pss - 16 * MIB
    assert first[TREE] <= kernel.pss + 24 * MIB


def test_spawned_workers_have_libraries_together_and_memory_of_their_own(start: Callable[..., Kernel]) -> None:
    kernel = start("spawn", mib=32)
    kernel.do("mine = touched(64)")
    assert kernel.read()[TREE] < kernel.pss + 24 * MIB
    wait_until(kernel.agrees, "tree = PSS of all")
    assert kernel.read()[TREE] > (32 + 4 * 64) * MIB


def test_shared_memory_that_all_touch_counts_once(start: Callable[..., Kernel]) -> None:
    kernel = start("shared", mib=32)
    kernel.do("write(shared.buf, 0, 64)")
    wait_until(kernel.agrees, "tree = PSS of all")
    assert kernel.read()["process.memory.rss"] < 96 * MIB, "the kernel has not touched it"
    kernel.do("here write(shared.buf, 0, 64)")
    wait_until(kernel.agrees, "nor does it count again when the kernel has it too")


def test_another_program_has_its_own_memory_and_workers_come_and_go(start: Callable[..., Kernel]) -> None:
    kernel = start("fork", workers=0, mib=128)
    command = f"[{sys.executable!r}, '-S', '-c', 'block = bytearray(96 << 20); print(flush=True); input()']"
    kernel.do(
        "here import subprocess; other = subprocess.Popen("
        f"{command}, stdin=subprocess.PIPE, stdout=subprocess.PIPE); other.stdout.readline()"
    )
    kernel.do("here old, new = other, None")
    assert kernel.read()[TREE] - kernel.read()["process.memory.rss"] == pytest.approx(100 * MIB, rel=0.15)
    wait_until(kernel.agrees, "tree = PSS of all")
    kernel.do("here old.communicate(b'')")
    kernel.do(f"here subprocess.run({command}, input=b'', stdout=subprocess.DEVNULL)")
    row = kernel.read()
    assert (row[TREE], row["process.children"]) == (row["process.memory.rss"], 0)


def test_workers_that_have_ended_count_no_longer(start: Callable[..., Kernel]) -> None:
    kernel = start("fork", mib=128)
    wait_until(kernel.agrees, "tree = PSS of all")
    kernel.do("here for q in queues: q.put(None)")
    workers = [psutil.Process(pid) for pid in kernel.part.pids[1:]]
    wait_until(lambda: {worker.status() for worker in workers} == {psutil.STATUS_ZOMBIE}, "all workers to have ended")
    kernel.do("here del block")
    row = kernel.read()
    assert row["process.memory.rss"] < 64 * MIB
    assert row[TREE] < 64 * MIB, "not even while nobody has waited for them"
    kernel.do("here for worker in workers: worker.join()")
    row = kernel.read()
    assert (row[TREE], row["process.children"]) == (row["process.memory.rss"], 0)


# ── the budget ──


class Scene:
    """Workers that are there and cost so much to read, on a clock of ours."""

    def __init__(self, workers: int, cost: float) -> None:
        self.now, self.read = 100.0, list[int]()
        self.cost = cost
        self.pids = list(range(2_000_000_000, 2_000_000_000 + workers))  # no process has such a number
        self.memory = TreeMemory(os.getpid(), clock=lambda: self.now, roll_up=self.roll_up)
        self.read.clear()

    def roll_up(self, path: str) -> Reading:
        self.read.append(int(path.split("/")[2]) if path.split("/")[2].isdigit() else 0)
        return Reading(Share(50 * MIB, 0, 0), self.cost)

    def pass_(self, seconds: int, faults: int = 0) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.memory.follow(self.pids, (b"", b""), 100 * MIB)
            wait_until(lambda: self.memory._round is None or not self.memory._round.is_alive(), "the round")
            self.memory.added([(pid, 60 * MIB, int(self.now) * faults) for pid in self.pids], 100 * MIB, 0)


@pytest.mark.parametrize(("cost", "workers"), [(0.0002, 32), (0.02, 32), (2.0, 4)])
def test_readings_take_a_thousandth_of_a_core(cost: float, workers: int) -> None:
    scene = Scene(workers, cost)
    scene.pass_(200, faults=1000)
    spent = len(scene.read) * cost
    assert spent <= 0.05 + 200 / SPARED + cost, "50 ms at once, 1 ms a second, and none is broken off"
    assert scene.read, "the first is read however much it costs"
    assert len(set(scene.read[:workers])) == len(scene.read[:workers]), "those that are not known first"
    assert set(scene.read) == set(scene.pids) or spent >= 0.2


def test_workers_that_touch_nothing_are_left_alone() -> None:
    scene = Scene(8, 0.0001)
    scene.pass_(50)
    assert sorted(scene.read) == scene.pids
    scene.pass_(50, faults=1000)
    assert len(scene.read) > 8 * 10


def test_whoever_waits_for_a_reading_has_what_its_siblings_have() -> None:
    scene = Scene(4, 1000.0)
    scene.pass_(3)
    assert len(scene.read) == 1
    added = scene.memory.added([(pid, 60 * MIB, 0) for pid in scene.pids], 100 * MIB, 0)
    assert added >= 10 * MIB, "10 MiB of the one that was read are its own"


# ── where it cannot be told ──


def test_without_rollups_the_sum_is_an_upper_bound(
    start: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = start("fork", mib=64)
    monkeypatch.setattr("cellmeter.sources.tree_memory.read_share", lambda path: Reading(None, 0.0))
    part = ProcessPart(kernel.process.pid)
    row = dict(zip((column.metric for column in part.columns), part.read(), strict=True))
    assert "upper bound" in part.unavailable[SHARED_PAGES]
    assert SHARED_PAGES not in kernel.part.unavailable
    resident = sum(psutil.Process(pid).memory_info().rss for pid in part.pids)
    assert row[TREE] == pytest.approx(resident, rel=0.02)
    monkeypatch.setattr(TreeMemory, "_taken_bytes", lambda self: 100 * MIB)
    assert part.read()[[c.metric for c in part.columns].index(TREE)] == max(100 * MIB, row["process.memory.rss"])
    part.close()


ROLLUP = """00400000-7ffd ---p 00000000 00:00 0    [rollup]
Rss:                1000 kB
Pss:                 400 kB
Pss_Anon:            300 kB
Pss_File:             50 kB
Pss_Shmem:            50 kB
Shared_Clean:        100 kB
Shared_Dirty:        500 kB
Private_Clean:        40 kB
Private_Dirty:       360 kB
Anonymous:           780 kB
"""


def test_a_rollup_tells_what_is_shared() -> None:
    share = share_of(ROLLUP.encode())
    assert share == Share(anonymous=420 << 10, file=180 << 10, own_file=40 << 10)
    older = "".join(line for line in ROLLUP.splitlines(True) if not line.startswith("Pss_"))
    assert share_of(older.encode()) == share
    with pytest.raises(ValueError, match="Anonymous"):
        share_of(ROLLUP.replace("Anonymous", "Other").encode())
