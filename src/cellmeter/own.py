"""What the user's own code says of itself: ``cellmeter.log``, ``cellmeter.step``, ``cellmeter.span``. From any thread.

The kernel hands it to its recorder; other processes below it (forked, spawned, started by hand) append to a file of their own
in the run folder, ``events-<pid>.jsonl``. Such a process finds the run by its ancestors: the newest open run whose kernel is
one of them. So nothing need be put into the user's environment.

Whatever a loop does, a process writes 2 kB/s and a burst of 32 kB at the most. Within that every call is kept for itself;
beyond it, and while the recorder's pipe is full, values and spans are summed up until there is room. A call costs a few
microseconds and never waits. Nothing here raises: what cannot be kept is said once.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any

from cellmeter.clock import monotonic_ns
from cellmeter.home import may_be_open, run_folders, runs_home
from cellmeter.spans import STEP, bucket_of
from cellmeter.store import MOST_WORKER_FILES, kernel_of, process_identity, sealed, worker_events, worker_file

BYTES_PER_SECOND = 2_000
BURST_BYTES = 32_000
MOST_NAMES = 100  # of values, of amounts and of spans each
NAME_LENGTH = 64
RUNS_LOOKED_AT = 200  # the newest
LOOK_AGAIN_SECONDS = 10.0  # a worker looks whether its run goes on
SEARCH_SECONDS = (1.0, 60.0)  # without a run, it looks for one after that long; the pause doubles up to the second

Event = dict[str, Any]
Sink = Callable[[Event], int]
"""Takes an event and tells how many bytes that made; 0: no room now."""

_inside: ContextVar[str | None] = ContextVar("cellmeter_span", default=None)


class NotKept(Exception):
    """A value or a name that cannot be kept; the message says why."""


def number_of(value: Any) -> float:
    """A number as a float. Raises NotKept for what is none, and for what is still being computed on another device."""
    kind = type(value)
    if kind is float or kind is int or isinstance(value, Real):
        return float(value)
    package = kind.__module__.partition(".")[0]
    if package == "numpy" and value.size == 1:
        return float(value.item())
    if package == "torch" and value.numel() == 1:
        if value.device.type == "cpu":
            return float(value.item())
        raise NotKept(f"it is on {value.device}, and reading it would wait for all work there: log its .item()")
    raise NotKept(f"{kind.__name__} is no number")


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name or len(name) > NAME_LENGTH:
        raise NotKept(f"a name is a text of 1 to {NAME_LENGTH} characters, not {name!r:.80}")
    return name


@dataclass
class _Values:
    """Values of one name since they were last written."""

    last: float
    low: float
    high: float
    total: float
    count: int = 1

    def add(self, value: float) -> None:
        self.last = value
        if not self.low <= value:  # the first may be NaN
            self.low = value if value == value else self.low
        if not self.high >= value:
            self.high = value if value == value else self.high
        self.total += value
        self.count += 1

    def said(self) -> Any:
        if self.count == 1:
            return _json_number(self.last)
        return [self.count, *map(_json_number, (self.last, self.low, self.high, self.total))]


@dataclass
class _Spans:
    """Spans of one name that ended since they were last written. ``only``: the event of the first, as long as it is alone."""

    start: int
    end: int
    only: Event
    count: int = 0
    errors: int = 0
    seconds: float = 0.0
    items: float | None = None
    histogram: dict[int, int] = field(default_factory=dict)

    def add(self, start: int, end: int, status: str, items: float | None) -> None:
        self.start, self.end = min(self.start, start), max(self.end, end)
        self.count += 1
        self.errors += status == "error"
        seconds = (end - start) * 1e-9
        self.seconds += seconds
        if items is not None:
            self.items = (self.items or 0.0) + items
        bucket = bucket_of(seconds)
        self.histogram[bucket] = self.histogram.get(bucket, 0) + 1

    def event(self, name: str) -> Event:
        if self.count == 1:
            return self.only
        return {
            "event": "spans",
            "t": self.end,
            "start": self.start,
            "name": name,
            "count": self.count,
            "errors": self.errors,
            "seconds": self.seconds,
            "items": self.items,
            "histogram": {str(bucket): count for bucket, count in self.histogram.items()},
        }


class Own:
    """What this process has said and not yet written."""

    def __init__(self, clock: Callable[[], int] = monotonic_ns) -> None:
        self._clock = clock
        self._told: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """As in a new process: what a forked child has of this is its parent's."""
        self._lock = threading.RLock()
        self._busy = False
        self._sink: Sink | None = None
        self._worker: WorkerFile | None = None
        self._exit_known = False
        self._look_ns = 0
        self._pause_seconds = SEARCH_SECONDS[0]
        self._values: dict[str, _Values] = {}
        self._steps: dict[str, float] = {}
        self._spans: dict[str, _Spans] = {}
        self._names: dict[str, set[str]] = {"value": set(), "amount": set(), "span": set()}
        self._room = float(BURST_BYTES)
        self._filled_ns = 0

    def attach(self, sink: Sink) -> None:
        """From here on what is said goes there."""
        with self._lock:
            self.forget()
            self._sink = sink

    def detach(self) -> None:
        """The recording has ended."""
        with self._lock:
            self.forget()

    # ---- what is said ----

    def log(self, values: Mapping[str, Any]) -> None:
        """Notes values."""
        with self._lock:
            now = self._clock()
            if self._off(now):
                return
            for name, value in values.items():
                try:
                    number = number_of(value)
                    if (pending := self._values.get(name)) is not None:
                        pending.add(number)
                    else:
                        self._counted("value", name)
                        self._values[name] = _Values(number, number, number, number)
                except Exception as error:
                    self._tell(f"log({name!s:.80}=…) is not kept: {error}")
            self._write(now)

    def step(self, amounts: Mapping[str, Any]) -> None:
        """Counts a step, and what was done in it."""
        with self._lock:
            now = self._clock()
            if self._off(now):
                return
            for name, amount in ((STEP, 1.0), *amounts.items()):
                try:
                    number = number_of(amount)
                    if not math.isfinite(number):
                        raise NotKept(f"{number} is no amount")
                    self._counted("amount", name)
                    self._steps[name] = self._steps.get(name, 0.0) + number
                except Exception as error:
                    self._tell(f"step({name!s:.80}=…) is not kept: {error}")
            self._write(now)

    def span(self, name: Any, start: int, status: str, parent: str | None, items: Any) -> None:
        """Notes a span that ends now."""
        with self._lock:
            now = self._clock()
            if self._off(now):
                return
            try:
                self._counted("span", name)
                done = None if items is None else number_of(items)
                if done is not None and not math.isfinite(done):
                    raise NotKept(f"its items are {done}")
            except Exception as error:
                self._tell(f"span({name!r:.80}) is not kept: {error}")
                return
            if (pending := self._spans.get(name)) is None:
                event = {"event": "span", "t": now, "start": start, "name": name, "status": status}
                event |= {key: value for key, value in (("parent", parent), ("items", done)) if value is not None}
                pending = self._spans[name] = _Spans(start, now, event)
            pending.add(start, now, status, done)
            self._write(now)

    def _counted(self, kind: str, name: Any) -> None:
        names = self._names[kind]
        if name not in names:
            if len(names) >= MOST_NAMES:
                raise NotKept(f"there are {MOST_NAMES} names already")
            names.add(_checked_name(name))

    def _tell(self, text: str) -> None:
        """Once on stderr, and among the run's notices."""
        text = text.splitlines()[0]
        if text in self._told or len(self._told) > MOST_NAMES:
            return
        self._told.add(text)
        with contextlib.suppress(Exception):  # the user may have closed or replaced stderr
            print(f"cellmeter: {text}", file=sys.stderr)
        if self._sink is not None:
            self._sink({"event": "notice", "t": self._clock(), "text": text})

    # ---- where it goes ----

    def _off(self, now: int) -> bool:
        """Whether nothing can be kept: no run, or a signal handler that has come upon us at work in its own thread."""
        if self._busy:
            return True
        if now >= self._look_ns and (self._sink is None or self._worker is not None):
            self._look(now)
        return self._sink is None

    def _look(self, now: int) -> None:
        """Finds the run of a process above this one, or sees whether it still goes on."""
        if self._worker is not None and self._worker.goes_on():
            self._look_ns = now + int(LOOK_AGAIN_SECONDS * 1e9)
            return
        self._sink = self._worker = None
        folder = run_above()
        if folder is not None and (len(worker_events(folder)) < MOST_WORKER_FILES or worker_file(folder).exists()):
            self._sink = self._worker = WorkerFile(folder)
            self._look_ns = now + int(LOOK_AGAIN_SECONDS * 1e9)
            self._flush_at_exit()
            return
        self._look_ns = now + int(self._pause_seconds * 1e9)
        self._pause_seconds = min(2 * self._pause_seconds, SEARCH_SECONDS[1])
        why = "nothing is being recorded" if folder is None else f"{MOST_WORKER_FILES} processes have said something"
        self._tell(f"{why}, so log(), step() and span() keep nothing")

    def _flush_at_exit(self) -> None:
        """A worker has no cell whose end would do it. Those of multiprocessing leave by another door than atexit."""
        if self._exit_known:
            return
        self._exit_known = True
        atexit.register(self.flush)
        if (util := sys.modules.get("multiprocessing.util")) is not None:
            util.Finalize(None, self.flush, exitpriority=0)

    def flush(self) -> None:
        """Writes what there is, if there is a place for it."""
        with self._lock:
            self._write(self._clock(), at_once=True)

    def _write(self, now: int, at_once: bool = False) -> None:
        self._room = min(BURST_BYTES, self._room + (now - self._filled_ns) * 1e-9 * BYTES_PER_SECOND)
        self._filled_ns = now
        if self._sink is None or self._busy or (self._room < 0 and not at_once):
            return
        self._busy = True
        try:
            self._write_all(now, self._sink)
        finally:
            self._busy = False

    def _write_all(self, now: int, sink: Sink) -> None:
        if self._values or self._steps:
            event: Event = {"event": "logged", "t": now}
            if self._values:
                event["values"] = {name: values.said() for name, values in self._values.items()}
            if self._steps:
                event["steps"] = dict(self._steps)
            if not self._took(sink, event):
                return
            self._values.clear()
            self._steps.clear()
        for name in list(self._spans):
            if not self._took(sink, self._spans[name].event(name)):
                return
            del self._spans[name]

    def _took(self, sink: Sink, event: Event) -> bool:
        written = sink(event)
        self._room -= written
        return written > 0


class WorkerFile:
    """Where a process that is not the kernel writes.

    The file is opened anew each time: a kept descriptor may be closed by the user's code, its number be a file of the user's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = worker_file(folder)
        self._pid = os.getpid()

    def goes_on(self) -> bool:
        """Whether the run is still being recorded."""
        return may_be_open(self._folder)

    def __call__(self, event: Event) -> int:
        """See :data:`Sink`. One ``write``, so that a line is whole; a full disk has no room."""
        line = sealed({**event, "pid": self._pid}) + b"\n"
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return 0
        try:
            return len(line) if os.write(fd, line) == len(line) else 0
        except OSError:
            return 0
        finally:
            os.close(fd)


def run_above() -> Path | None:
    """The newest open run whose kernel is this process or one above it."""
    import psutil

    try:
        above = [os.getpid(), *(process.pid for process in psutil.Process().parents())]
    except psutil.Error:
        return None
    kernels = {(pid, process_identity(pid)) for pid in above}
    for folder in reversed(run_folders(runs_home())[-RUNS_LOOKED_AT:]):
        if kernel_of(folder) in kernels and may_be_open(folder):
            return folder
    return None


# ---- the public names ------------------------------------------------------------------------------------------------

_own = Own()
attach, detach, flush = _own.attach, _own.detach, _own.flush

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own.forget)


def log(**values: float) -> None:
    """Keeps values of your own, beside the samples: ``cellmeter.log(loss=loss.item(), tokens=n)``.

    Numbers, numpy's and CPU tensors of one element; NaN and infinity too. A tensor on a GPU is not read, as that would wait
    for the GPU: log its ``.item()`` where you can afford that. Values that come faster than about twenty calls a second, after
    a burst of some hundred, are summed up to last, lowest, highest, mean and count. Raises nothing.
    """
    _guarded(_own.log, values)


def step(**amounts: float) -> None:
    """Counts one step, for steps/s; with ``step(tokens=4096)`` also what was done in it, for tokens/s. Raises nothing."""
    _guarded(_own.step, amounts)


class span:
    """Measures a ``with`` block: ``with cellmeter.span("inference", items=len(batch)):``.

    ``items``: how many things it handled, for items/s; may be set within the block (``s.items = n``). The report has count,
    median, p90 and p99 of the durations, throughput, and what the GPUs did meanwhile. Durations are this process's: CUDA work
    that the block only started, and does not wait for, is not in them. Spans nest, also in threads and async tasks.
    An exception passes, and the span's status is ``error``.
    """

    __slots__ = ("_entered", "items", "name")

    def __init__(self, name: str, items: float | None = None) -> None:
        self.name = name
        self.items = items
        self._entered: list[tuple[Token[str | None], int]] = []

    def __enter__(self) -> span:
        name = self.name if isinstance(self.name, str) else None
        self._entered.append((_inside.set(name), monotonic_ns()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _guarded(self._ended, "ok" if kind is None else "error")

    def _ended(self, status: str) -> None:
        token, start = self._entered.pop()
        with contextlib.suppress(ValueError):  # an async generator may be closed in another context
            _inside.reset(token)
        parent = token.old_value if isinstance(token.old_value, str) else None
        _own.span(self.name, start, status, parent, self.items)


_failed = False


def _guarded(action: Callable[..., None], *arguments: Any) -> None:
    """The user's code is sacred: a failure of ours is said once and goes no further."""
    global _failed
    try:
        action(*arguments)
    except Exception as error:
        if not _failed:
            _failed = True
            with contextlib.suppress(Exception):
                print(f"cellmeter: log, step or span failed: {type(error).__name__}: {error}", file=sys.stderr)
