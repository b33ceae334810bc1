"""The process that is recorded: it evaluates the lines it gets on standard input and answers each with JSON.

Run as ``python -c 'from bench.subject import main; main()'`` by :class:`bench.processes.Subject`.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cellmeter.recording import Recording
from cellmeter.settings import Settings

_recording: list[Recording] = []
_workers: list[subprocess.Popen[bytes]] = []
_kept: list[mmap.mmap] = []

_IDLE_WORKER = "import sys; sys.stdin.read()"
# Busy until its standard input closes, that is, until the subject is gone.
_BUSY_WORKER = """
import sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0)), daemon=True).start()
while True:
    sum(range(1000))
"""


# ---- recording -------------------------------------------------------------------------------------------------------


def record(rate_hz: float) -> str:
    """Starts a run; returns its folder once the recorder has written its header."""
    recording = Recording.start(Settings(rate_hz=rate_hz), None)
    if not recording.recorder.ready(20):
        raise RuntimeError("the recorder did not get ready")
    _recording.append(recording)
    return str(recording.folder)


def open_cell() -> None:
    """A cell that stays open: samples come at the full rate."""
    _recording[-1].cell_started("bench")


def stop() -> None:
    """Ends the run."""
    _recording.pop().stop()


def workers(count: int, busy: bool = False) -> int:
    """Child processes that wait for the end of their standard input, or that compute until then."""
    code = _BUSY_WORKER if busy else _IDLE_WORKER
    command = [sys.executable, "-I", "-S", "-c", code]
    _workers.extend(subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(count))
    return len(_workers)


def forks(count: int, mib: int) -> int:
    """Forked workers of a process with so much memory, in small pages. They touch a MiB of new memory twice a second."""
    block = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, mib << 20, 4096):
        block[at] = 1
    _kept.append(block)
    for _ in range(count):
        if not os.fork():
            _touch(os.getppid())
    return count


def _touch(parent: int) -> None:
    while os.getppid() == parent:
        fresh = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(0, 1 << 20, 4096):
            fresh[at] = 1
        fresh.close()
        time.sleep(0.5)
    os._exit(0)


# ---- loads -----------------------------------------------------------------------------------------------------------


def _idle(until: float) -> None:
    time.sleep(max(0.0, until - time.monotonic()))


def _python(until: float) -> None:
    total = 0
    while time.monotonic() < until:
        for i in range(20_000):
            total += i * i & 7


def _gil(until: float) -> None:
    hold = ctypes.PyDLL(None).usleep  # a PyDLL keeps the GIL while it calls
    while (left := until - time.monotonic()) > 0:
        hold(int(min(2.0, left) * 1e6))


def _blas(until: float) -> None:
    import numpy as np

    matrix = np.random.default_rng(1).random((600, 600))
    product = matrix
    while time.monotonic() < until:
        product = product @ matrix / 300


LOADS: dict[str, Callable[[float], None]] = {"idle": _idle, "python": _python, "gil": _gil, "blas": _blas}


class ThreadSampler:
    """The peer in the same process: a thread that reads by psutil, as monitors that live in the kernel do.

    It reads the machine and this process only, no children: what is looked at here is when it gets to run.
    """

    def __init__(self, rate_hz: float) -> None:
        import psutil

        self._psutil, self._process = psutil, psutil.Process()
        self._step = 1 / rate_hz
        self.times: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ThreadSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        deadline = time.monotonic()
        while not self._ended.is_set():
            self._psutil.cpu_times()
            self._psutil.virtual_memory()
            with self._process.oneshot():
                self._process.cpu_times()
                self._process.memory_info()
            self.times.append(time.monotonic())
            now = time.monotonic()
            deadline += self._step * max(1, (now - deadline) // self._step + 1)
            time.sleep(max(0.0, deadline - now))


def deliver(load: str, seconds: float, rate_hz: float, beside: bool = True) -> dict[str, Any]:
    """Runs a load as a cell, ``beside`` a sampling thread; returns the cell and when the thread sampled."""
    with ExitStack() as stack:
        thread = stack.enter_context(ThreadSampler(rate_hz)) if beside else None
        time.sleep(0.2)
        cell = _recording[-1].cell_started("bench")
        LOADS[load](cell.started_ns * 1e-9 + seconds)
        ended_ns = _recording[-1].cell_ended(cell, "ok")
    times = thread.times if thread else []
    return {"seq": cell.seq, "started_ns": cell.started_ns, "ended_ns": ended_ns, "thread": times}


def compute(loops: int) -> tuple[float, float]:
    """A pure Python cell of fixed work: its wall and its CPU time in seconds, after a tenth of it to get warm."""
    _work(loops // 10)
    wall, cpu = time.perf_counter(), time.thread_time()
    _work(loops)
    return time.perf_counter() - wall, time.thread_time() - cpu


def _work(loops: int) -> None:
    total, counts = 0, {}
    for i in range(loops):
        total += i * i & 7
        counts[i & 1023] = total


def compute_under_thread(loops: int, rate_hz: float) -> tuple[float, float]:
    """The same beside a sampling thread."""
    with ThreadSampler(rate_hz):
        time.sleep(0.05)
        return compute(loops)


def main() -> None:
    """Obeys until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(eval(line)), flush=True)  # only the benches write here
    for worker in _workers:
        worker.kill()
    os._exit(0)
