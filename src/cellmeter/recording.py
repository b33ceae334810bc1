"""A recording as the process being recorded sees it: starts the recorder, numbers the cells, sends their edges.

What only this process can measure exactly goes with the edges: its CPU time in ns, and its own high-water mark of memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cellmeter import own
from cellmeter.clock import monotonic, monotonic_ns, wall
from cellmeter.errors import RecorderUnavailable
from cellmeter.failures import Failure
from cellmeter.home import new_run_folder, runs_home
from cellmeter.recorder import Config, Recorder, wait_for
from cellmeter.run import CellStatus, is_ours
from cellmeter.settings import Settings
from cellmeter.store import EVENTS, EventTail, name_kernel, process_identity
from cellmeter.torch_peaks import WORTH_SECONDS, TorchPeaks

FIRST_LINE_LENGTH = 80
LABEL_LENGTH = 200
MOST_SOURCE = 200_000  # characters of a cell's source that are kept
LOOK_SECONDS = 1.0
SILENT_SECONDS = 3.0
_LOGIN = re.compile(r"(?<=://)[^/\s@\"']+@")  # user and password in an address: no run folder is to have them
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")


@dataclass
class OpenCell:
    """A cell that runs."""

    seq: int
    started_ns: int = 0
    peak_bytes: int = 0
    edges: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was sent of it so far: ``cell_start``, ``cell_end``."""


class Recording:
    """One run of this process, from its start to its stop. Thread-safe."""

    def __init__(self, recorder: Recorder, settings: Settings) -> None:
        self.recorder = recorder
        self.folder = recorder.folder
        self.rate_hz = recorder.config.rate_hz
        self._settings = settings
        self._mark = HighWaterMark(settings.exact_peak)
        self._torch = TorchPeaks()
        self._environ = recorder.config.environ
        self._lock = threading.Lock()
        self._started = wall()
        self._look_at = 0.0
        self._last_seq = 0
        self._started_seq = 0
        self._open: dict[int, OpenCell] = {}

    @classmethod
    def start(cls, settings: Settings, notebook: str | None, script: bool = False) -> Recording:
        """Makes the run folder and starts the recorder; ``script``: of no notebook. Raises RecorderUnavailable."""
        home, start_ns = runs_home(), monotonic_ns()
        pid = os.getpid()
        identity = process_identity(pid)
        try:
            folder = new_run_folder(home)
            name_kernel(folder, pid, identity, script)
        except OSError as error:
            raise RecorderUnavailable(
                f"cannot record: {home} cannot be written ({error.strerror}); set CELLMETER_HOME to a folder that can"
            ) from error
        environ = _gpu_environ()
        most = int(min(settings.max_total_gib, 1e9) * 2**30)
        config = Config(str(folder), pid, identity, start_ns, settings.rate_hz, notebook, most, environ)
        recording = cls(Recorder.start(config), settings)
        own.attach(recording.offer)
        threading.Thread(target=recording._tell_of_plugins, daemon=True, name="cellmeter-plugins").start()
        return recording

    def _tell_of_plugins(self) -> None:
        """On a thread, as looking reads a file of every package that is installed."""
        from cellmeter.plugins import sources_found

        try:
            if sources := sources_found():
                self.say({"event": "plugins", "sources": sources})
        except Exception as error:  # a broken installation is no reason not to record
            with contextlib.suppress(RecorderUnavailable):
                text = f"sources of plugins could not be looked for: {type(error).__name__}: {error}".splitlines()[0]
                self.say({"event": "notice", "t": monotonic_ns(), "text": text})

    def keeps_rate(self, rate_hz: float | None) -> str | None:
        """What to say to who asks this recording for another rate; None if it has that one, or any will do."""
        if rate_hz is None or rate_hz == self.rate_hz:
            return None
        return f"recording goes on at {self.rate_hz:g} Hz, not at {rate_hz:g}, as a run keeps its rate"

    def next_cell(self) -> OpenCell:
        """Gives a cell its sequence; it has not started yet."""
        with self._lock:
            self._last_seq += 1
            return OpenCell(self._last_seq)

    def cell_started(
        self,
        source: str,
        cell: OpenCell | None = None,
        *,
        cell_id: str | None = None,
        label: str | None = None,
        parent: int | None = None,
        execution_count: int | None = None,
        rate_hz: float | None = None,
    ) -> OpenCell:
        """Sends a start edge, of a cell from :meth:`next_cell` or a new one. Raises RecorderUnavailable."""
        cell = cell or self.next_cell()
        with self._lock:
            resident = self._fold_peak()
            self._open[cell.seq] = cell
            self._mark.reset()
            cell.started_ns = monotonic_ns()
            edge = {
                "event": "cell_start",
                "t": cell.started_ns,
                "seq": cell.seq,
                "cell_id": cell_id,
                "label": label[:LABEL_LENGTH] if label else None,
                "parent": parent,
                "execution_count": execution_count,
                "rate_hz": rate_hz,
                **_cpu_ns(),
                "io_bytes": disk_bytes(),
                "rss_bytes": resident,
                **self._changed_environ(),
                **self._describe(source),
                **({"ours": True} if is_ours(source) else {}),
            }
            cell.edges["cell_start"] = edge
            self.recorder.send(edge)
            self._started_seq = cell.seq
            if self._settings.keep_source:  # after the edge, which must not wait for a pipe that a long source fills
                self.recorder.send(
                    {
                        "event": "source",
                        "t": cell.started_ns,
                        "seq": cell.seq,
                        "source": _LOGIN.sub("", source)[:MOST_SOURCE],
                    }
                )
        return cell

    def _changed_environ(self) -> dict[str, Any]:
        """A cell may choose its GPUs; ``/proc/PID/environ`` only tells what the kernel was started with."""
        environ = _gpu_environ()
        if environ == self._environ:
            return {}
        self._environ = environ
        return {"environ": environ}

    def _describe(self, source: str) -> dict[str, str]:
        encoded = source.encode("utf-8", "surrogatepass")
        lines = (line.strip() for line in source.splitlines())
        code = next((line for line in lines if line and not line.startswith(("%%monitor", "#"))), "")
        return {
            "hash": hashlib.sha256(encoded).hexdigest()[:16],
            "first_line": _LOGIN.sub("", code)[:FIRST_LINE_LENGTH],
        }

    def cell_ended(
        self, cell: OpenCell, status: CellStatus, execution_count: int | None = None, failure: Failure | None = None
    ) -> int:
        """Sends an end edge and returns its time in ns. Raises RecorderUnavailable."""
        ended_ns = monotonic_ns()
        own.flush()
        with self._lock:
            resident = self._fold_peak()
            self._open.pop(cell.seq, None)
            edge: dict[str, Any] = {
                "event": "cell_end",
                "t": ended_ns,
                "seq": cell.seq,
                "status": status,
                "execution_count": execution_count,
                **_cpu_ns(),
                "io_bytes": disk_bytes(),
                "rss_bytes": resident,
                "peak_rss_bytes": cell.peak_bytes or None,
                "peak_unknown": self._mark.unknown,
            }
            if ended_ns - cell.started_ns > WORTH_SECONDS * 1e9 and (peaks := self._torch.grown()):
                edge["torch_peak_bytes"] = peaks
            if failure is not None:
                edge |= {"error": failure.error, "gpu_memory_ran_out": failure.gpu_memory}
            cell.edges["cell_end"] = edge
            self.recorder.send(edge)
        return ended_ns

    def _fold_peak(self) -> int | None:
        """Notes the mark for all open cells, as one that runs within another resets it for both; returns what is resident."""
        peak, resident = self._mark.read()
        for cell in self._open.values():
            cell.peak_bytes = max(cell.peak_bytes, peak or 0)
        return resident

    def trouble(self) -> str | None:
        """Why nothing has been written of late, in one line; None if all is well. Looks once a second."""
        now = monotonic()
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_SECONDS
        if not self.recorder.alive():
            return f"the recorder has died{self._last_words()}"
        if not self.folder.is_dir():
            return f"the run folder {self.folder} has been removed; %monitor stop and %monitor start make a new one"
        try:
            written = max(entry.stat().st_mtime for entry in os.scandir(self.folder) if entry.name.endswith(".f64"))
        except (OSError, ValueError):
            written = None
        if wall() - (written or self._started) <= SILENT_SECONDS:
            return None
        if written is None:
            why = "does a GPU's driver hang, or is the disk full?"
            return f"the recorder is not ready yet, after more than {SILENT_SECONDS:g} s: {why}"
        return f"nothing has been written to {self.folder} for more than {SILENT_SECONDS:g} s: is the disk full?"

    def catch_up(self, seconds: float) -> None:
        """Waits until the folder tells of every cell that has started, or the recorder is gone, but no longer than that."""
        newest, events = self._started_seq, EventTail(self.folder / EVENTS)

        def written() -> bool:
            starts = events.events(only=b'"cell_start"')
            return newest == 0 or any(event.get("seq") == newest for event in starts)

        wait_for(lambda: written() or not self.recorder.alive(), seconds)

    def _last_words(self) -> str:
        try:
            lines = (self.folder / "recorder.log").read_text(errors="replace").split("\n")
        except OSError:
            return ""
        words = [line for line in lines if line.strip()]
        return f": {words[-1].strip()}" if words else ""

    def say(self, message: Mapping[str, Any]) -> None:
        """Sends any other event."""
        with self._lock:
            self.recorder.send(message)

    def offer(self, event: Mapping[str, Any]) -> int:
        """Sends an event that may come later; see :data:`cellmeter.own.Sink`.

        Waits neither for the pipe nor for the lock: a signal handler that logs may have come upon us while we hold it.
        """
        if not self._lock.acquire(blocking=False):
            return 0
        try:
            return self.recorder.offer(event)
        except RecorderUnavailable:
            return 0
        finally:
            self._lock.release()

    def stop(self) -> None:
        """Ends the run; cells that are open end with it, as they went well so far."""
        for cell in list(self._open.values()):
            try:
                self.cell_ended(cell, "ok")
            except RecorderUnavailable:
                break
        own.flush()
        own.detach()
        self.recorder.stop()


def _gpu_environ() -> dict[str, str]:
    return {name: os.environ[name] for name in _GPU_VARIABLES if name in os.environ}


def _cpu_ns() -> dict[str, int]:
    """CPU time of this process, alone and with children it has waited for: exact where ``/proc`` counts in ticks of 10 ms."""
    import resource

    alone, children = time.process_time_ns(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_ns": alone + int((children.ru_utime + children.ru_stime) * 1e9), "alone_cpu_ns": alone}


# The three below open their files anew each time (5 µs): a descriptor kept in the user's process may be closed by a cell that
# closes all, and its number be given to a file of the user's.


def disk_bytes() -> tuple[int, int] | None:
    """Bytes this process made the disks read and write since it started; None where the system does not tell."""
    content = _content("/proc/self/io")
    read, written = (_number(content, key) for key in (b"\nread_bytes:", b"\nwrite_bytes:"))
    return None if read is None or written is None else (read, written)


def _content(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _number(content: bytes, key: bytes) -> int | None:
    at = content.find(key)
    return int(content[at + len(key) :].split(None, 1)[0]) if at >= 0 else None


class Resident(NamedTuple):
    """Bytes of resident memory: the most since the mark was reset, and now. None: unknown."""

    peak: int | None
    resident: int | None


class HighWaterMark:
    """The kernel's own record of this process's peak memory (VmHWM), which can be set back to what is resident now.

    A side effect is that ``resource.getrusage().ru_maxrss`` falls as well: ``highest_bytes`` keeps what it would have been.
    """

    def __init__(self, exact: bool) -> None:
        self.unknown = None if exact else "exact peaks are switched off (exact_peak)"
        self.highest_bytes = 0
        if exact:
            self.reset()

    def read(self) -> Resident:
        """The mark, and what is resident now; costs 30 µs."""
        content = _content("/proc/self/status")
        peak, resident = (_number(content, key) for key in (b"VmHWM:", b"VmRSS:"))
        self.highest_bytes = max(self.highest_bytes, (peak or 0) * 1024)
        return Resident(
            None if self.unknown or peak is None else peak * 1024, None if resident is None else resident * 1024
        )

    def reset(self) -> None:
        """Sets the mark to what is resident now, at any size; read it before."""
        if self.unknown:
            return
        try:
            fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"5")
            finally:
                os.close(fd)
        except OSError as error:
            self.unknown = f"this system cannot reset the high-water mark ({error.strerror})"
