"""Processes of the benches, and what they cost: CPU time by their own clocks, in nanoseconds and not in ticks."""

from __future__ import annotations

import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cellmeter.store import read_header, record_size

REPOSITORY = Path(__file__).parents[1]
HERE = Path(__file__).parent
WAIT_SECONDS = 20.0


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads, from the clock that ``clock_getcpuclockid(3)`` names."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_kib(pid: int) -> dict[str, int]:
    """``Rss`` and ``Pss`` of a process in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {words[0].rstrip(":"): int(words[1]) for words in map(str.split, lines) if words[0] in ("Rss:", "Pss:")}


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Raises RuntimeError if the condition does not become true."""
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"waited {WAIT_SECONDS:g} s in vain for {what}")
        time.sleep(0.01)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for runs and files of one bench."""
    with tempfile.TemporaryDirectory(prefix="cellmeter-bench-") as folder:
        yield Path(folder)


class Subject:
    """A bare process that obeys, line by line: see ``bench/subject.py``."""

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from bench.subject import main; main()"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "CELLMETER_HOME": str(folder / "home"),
                "CELLMETER_CONFIG": os.devnull,
                **(environ or {}),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def do(self, call: str) -> Any:
        """Evaluates a call of one of the subject's functions; returns its result. Raises RuntimeError if it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(call + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the subject died of {call}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends it, and with it its workers and its recorder."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Recorder:
    """The recorder process of a subject, seen from outside."""

    def __init__(self, run_folder: str) -> None:
        self.folder = Path(run_folder)
        self.pid = int(read_header(self.folder)["recorder"]["pid"])
        wait_until(lambda: read_header(self.folder)["segments"], "the recorder's columns")
        self._record = record_size(len(read_header(self.folder)["segments"][0]["columns"]))

    def taken(self) -> int:
        """Samples written so far."""
        return (self.folder / "samples-000.f64").stat().st_size // self._record

    def cpu_seconds(self) -> float:
        """Its CPU time so far."""
        return cpu_seconds(self.pid)

    def files(self) -> list[str]:
        """What it keeps open below /proc and /sys: the same preads can be made of them."""
        links = [str(entry.readlink()) for entry in Path(f"/proc/{self.pid}/fd").iterdir()]
        return [link for link in links if link.startswith(("/proc/", "/sys/"))]


class Watcher:
    """A process that samples at a fixed rate and counts its samples in a mapped file, which costs it next to nothing."""

    def __init__(
        self, command: Sequence[str], before: int, folder: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        """``command`` gets the path of its counter at place ``before``."""
        descriptor, counter = tempfile.mkstemp(prefix="counter-", dir=folder)
        os.write(descriptor, bytes(8))
        self._counter = mmap.mmap(descriptor, 8)
        os.close(descriptor)
        self._process = subprocess.Popen(
            [*command[:before], counter, *command[before:]],
            cwd=REPOSITORY,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self.pid = self._process.pid
        wait_until(lambda: self.taken() > 0 or self._process.poll() is not None, f"{command[0]} to sample")
        if self._process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended with {self._process.returncode}")

    def taken(self) -> int:
        """Samples taken so far."""
        return int(struct.unpack("q", self._counter[:])[0])

    def cpu_seconds(self) -> float:
        """Its CPU time so far."""
        return cpu_seconds(self.pid)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def python_watcher(script: str, arguments: Sequence[str], folder: Path, environ: Mapping[str, str] | None) -> Watcher:
    """A script of this folder: ``SCRIPT COUNTER ARGUMENTS…``."""
    return Watcher([sys.executable, str(HERE / script), *arguments], 2, folder, environ)


def lower_bound(recorder: Recorder, subject: int, rate_hz: float, folder: Path) -> Watcher:
    """The C program on the files that the recorder keeps open."""
    often, rarely = often_and_rarely(recorder.files(), subject)
    return Watcher([str(_compiled()), f"{rate_hz:g}", *often, "--", *rarely], 2, folder)


def often_and_rarely(files: Sequence[str], subject: int) -> tuple[list[str], list[str]]:
    """Files read for each sample, and those read once a second: the workers' I/O counters, and /proc/stat for the cores."""
    seen: set[str] = set()
    often, rarely = [], []
    for path in sorted(files):
        worker_io = path.endswith("/io") and path != f"/proc/{subject}/io"
        (rarely if path in seen or worker_io else often).append(path)
        seen.add(path)
    return often, rarely


_built = tempfile.TemporaryDirectory(prefix="cellmeter-bench-")


@cache
def _compiled() -> Path:
    program = Path(_built.name) / "lower_bound"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(HERE / "lower_bound.c")], check=True)
    return program


def costs_side_by_side(
    sampled: Mapping[str, Recorder | Watcher], slices: int, slice_seconds: float
) -> dict[str, list[float]]:
    """µs of CPU per sample of each, in consecutive slices that all of them lived through together."""

    def now() -> dict[str, tuple[float, int]]:
        return {name: (one.cpu_seconds(), one.taken()) for name, one in sampled.items()}

    costs: dict[str, list[float]] = {name: [] for name in sampled}
    before = now()
    for _ in range(slices):
        time.sleep(slice_seconds)
        after = now()
        for name, (cpu, taken) in after.items():
            samples = taken - before[name][1]
            if not samples:
                raise RuntimeError(f"{name} took no sample in {slice_seconds:g} s")
            costs[name].append((cpu - before[name][0]) / samples * 1e6)
        before = after
    return costs
