"""The run folder: one writer appends, many readers follow.

``run.json``          what the run is: host, devices, limits, rate, the columns of each sample file; replaced whole
``events.jsonl``      cell edges, gaps, anchors, notices and the ending; one JSON object a line
``kernel.json``       which process it is the run of, there before its recorder is: workers find it by that
``events-<pid>.jsonl``  what worker processes say of themselves (see ``own``)
``prometheus.jsonl``  what a Prometheus server told of other machines (see ``remote``); replaced whole, by any process
``samples-NNN.f64``   fixed-size records: monotonic ns (i8), cell (u4), flags (u4), float64 × columns, CRC-32 (u4)

Every record, line and header carries a CRC, so a reader drops what is torn or damaged and says so, instead of showing it.
A sample is one ``write`` to a file opened with O_APPEND: ``kill -9`` loses nothing that was written.
"""

from __future__ import annotations

import bisect
import json
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter.clock import wall, wall_ns
from cellmeter.errors import RunUnreadable
from cellmeter.records import StoredRecords, parse_records, record_size
from cellmeter.remote import FILE as REMOTE
from cellmeter.run import Column, Records, Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
STARTING_SECONDS = 60.0
FOREIGN_SECONDS = 30.0  # a recorder writes once a second; clocks of hosts may differ
HEADER = "run.json"
KERNEL = "kernel.json"
EVENTS = "events.jsonl"
MOST_WORKER_FILES = 256
HELD_BYTES = 32 << 20  # of sample files: of a larger run, readings are read from them as they are asked for
RECORDER_LOG = "recorder.log"
_CRC_FIELD = re.compile(rb',"crc":"([0-9a-f]{8})"\}$')


def name_kernel(folder: Path, pid: int, identity: str | None, script: bool = False) -> None:
    """Says in a new folder whose run it will be, and whether that is a plain script. Raises OSError."""
    fd = os.open(folder / KERNEL, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, sealed({"pid": pid, "identity": identity, "script": script}))
    finally:
        os.close(fd)


def kernel_of(folder: Path) -> tuple[int, str] | None:
    """Pid and identity of the process that is recorded; None if nobody says."""
    fields = _kernel(folder)
    pid, identity = fields.get("pid"), fields.get("identity")
    return (pid, identity) if isinstance(pid, int) and isinstance(identity, str) else None


def is_of_script(folder: Path) -> bool:
    """Whether it is a plain script that is recorded, and no notebook."""
    return _kernel(folder).get("script") is True


def _kernel(folder: Path) -> Mapping[str, Any]:
    try:
        return unsealed((folder / KERNEL).read_bytes()) or {}
    except OSError:
        return {}


def sealed(fields: Mapping[str, Any]) -> bytes:
    """JSON on one line whose last key is the CRC-32 of all before it."""
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode("ascii")
    return body[:-1] + b',"crc":"%08x"}' % zlib.crc32(body)


def unsealed(line: bytes) -> dict[str, Any] | None:
    """What :func:`sealed` was given; None if the line is torn or damaged."""
    line = line.rstrip(b"\n")
    match = _CRC_FIELD.search(line)
    if match is None:
        return None
    body = line[: match.start()] + b"}"
    if b"%08x" % zlib.crc32(body) != match[1]:
        return None
    try:
        fields = json.loads(body)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


class Writer:
    """Appends to a run folder. Raises OSError where the disk does; a failed write leaves the files as they were."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header: dict[str, Any] = {"version": VERSION, "segments": []}
        self._written: dict[int, tuple[int, int]] = {}
        """Bytes of each open file, and when the last of them were written, in ns since the epoch."""
        self._events = self._open(EVENTS)
        self._samples: dict[int, int] = {}
        self._formats: list[struct.Struct] = []

    def _open(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.folder / name, flags, 0o600)
        self._written[fd] = os.fstat(fd).st_size, wall_ns()
        return fd

    def _append(self, fd: int, record: bytes) -> None:
        """All of a record or nothing: a torn one would shift all that follow."""
        size, last_ns = self._written[fd]
        try:
            if os.write(fd, record) != len(record):
                raise OSError(28, "No space left on device")
        except OSError:
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
                os.utime(fd, ns=(last_ns, last_ns))  # it tells when something was last written
            raise
        self._written[fd] = size + len(record), wall_ns()

    def describe(self, **fields: Any) -> None:
        """Sets fields of ``run.json`` and replaces it whole."""
        header = {**self.header, **fields}
        temporary = self.folder / (HEADER + ".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            content = sealed(header)
            if os.write(fd, content) != len(content):
                raise OSError(28, "No space left on device")
        finally:
            os.close(fd)
        temporary.replace(self.folder / HEADER)
        self.header = header

    def add_segment(self, stream: str, columns: Sequence[Column]) -> int:
        """A new sample file for these columns; returns its number, for :meth:`sample`. The stream's last one is closed."""
        segments = self.header["segments"]
        number = len(segments)
        name = f"samples-{number:03d}.f64"
        fd = self._open(name)
        try:
            entry = {"file": name, "stream": stream, "columns": [list(column) for column in columns]}
            self.describe(segments=[*segments, entry])
        except BaseException:
            os.close(fd)
            raise
        for old, segment in enumerate(segments):
            if segment["stream"] == stream and old in self._samples:
                os.close(self._samples.pop(old))
        self._samples[number] = fd
        self._formats.append(struct.Struct(f"<qII{len(columns)}d"))
        return number

    def sample(self, segment: int, t_ns: int, seq: int, flags: int, values: Sequence[float]) -> None:
        """Appends one record."""
        record = self._formats[segment].pack(t_ns, seq, flags, *values)
        self._append(self._samples[segment], record + zlib.crc32(record).to_bytes(4, "little"))

    def event(self, fields: Mapping[str, Any]) -> None:
        """Appends one line. ``fields`` has ``event`` (its kind) and ``t`` (monotonic ns)."""
        self._append(self._events, sealed(fields) + b"\n")

    def close(self) -> None:
        """Closes the files."""
        for fd in (self._events, *self._samples.values()):
            os.close(fd)
        self._samples.clear()


class Tail:
    """Follows a run folder that is being written, or reads one that has ended; each call returns what is new.

    ``newest``: begin with that many samples before the end, and with the events still to come. ``since_ns``: begin with
    the samples taken from then on. ``most_bytes``: the most of a file that one call reads.
    """

    def __init__(
        self,
        folder: Path,
        stream: str = "main",
        newest: int | None = None,
        *,
        since_ns: int | None = None,
        most_bytes: int = -1,
    ) -> None:
        self.folder = folder
        self.stream = stream
        self._most_bytes = most_bytes
        self._offsets: dict[str, int] = {}
        self._events = EventTail(folder / EVENTS, 0 if newest is None else _file_size(folder / EVENTS))
        if since_ns is not None:
            for entry in self.header()["segments"]:
                size = record_size(len(entry["columns"]))
                self._offsets[entry["file"]] = _first_since(folder / entry["file"], size, since_ns) * size
        if newest is not None:
            for entry in self.header()["segments"]:
                size = record_size(len(entry["columns"]))
                behind = _file_size(folder / entry["file"]) // size - newest
                self._offsets[entry["file"]] = max(0, behind) * size

    def header(self) -> dict[str, Any]:
        """``run.json`` as it is now. Raises RunUnreadable."""
        return read_header(self.folder)

    @property
    def passed(self) -> int:
        """How many records of the stream lie before the next one."""
        entries = [entry for entry in self.header()["segments"] if entry["stream"] == self.stream]
        return sum(self._offsets.get(entry["file"], 0) // record_size(len(entry["columns"])) for entry in entries)

    def samples(self) -> list[tuple[tuple[Column, ...], NDArray[Any]]]:
        """New records of the stream, oldest first: columns and a structured array for each file that grew."""
        grown = []
        for entry in self.header()["segments"]:
            if entry["stream"] != self.stream:
                continue
            columns = tuple(Column(*column) for column in entry["columns"])
            size, done = record_size(len(columns)), self._offsets.get(entry["file"], 0)
            with open(self.folder / entry["file"], "rb") as file:
                file.seek(done)
                data = file.read(self._most_bytes)
            data = data[: len(data) // size * size]
            if data:
                self._offsets[entry["file"]] = done + len(data)
                grown.append((columns, parse_records(data, len(columns))[0]))
            if len(data) == self._most_bytes // size * size:
                break  # there may be more, and it comes before the next file's
        return grown

    def events(self) -> list[dict[str, Any]]:
        """New whole events, oldest first."""
        return self._events.events()


class EventTail:
    """Follows one file of events; each call returns what is new. ``offset``: where to begin."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset

    def events(self, most_bytes: int = -1, only: bytes = b"") -> list[dict[str, Any]]:
        """New whole events, oldest first; of so many bytes at the most, which must be more than a line has.

        ``only``: those with that in their line.
        """
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read(most_bytes)
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return [event for line in data.splitlines() if only in line and (event := unsealed(line)) is not None]


def _first_since(path: Path, size: int, t_ns: int) -> int:
    """Number of a file's first record taken at ``t_ns`` or later, by bisection: records are in the order of their time."""
    try:
        with open(path, "rb") as file:
            return bisect.bisect_left(
                range(os.fstat(file.fileno()).st_size // size),
                t_ns,
                key=lambda n: int.from_bytes(os.pread(file.fileno(), 8, n * size), "little", signed=True),
            )
    except OSError:
        return 0


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_header(folder: Path) -> dict[str, Any]:
    """``run.json``. Raises RunUnreadable if it is missing, damaged, or of a version this cellmeter does not know."""
    path = folder / HEADER
    try:
        header = unsealed(path.read_bytes())
    except FileNotFoundError:
        if is_starting(folder):
            raise RunUnreadable(f"{folder.name} is just starting: try again in a moment") from None
        raise RunUnreadable(f"{folder} is no cellmeter run: it has no {HEADER}") from None
    except OSError as error:
        raise RunUnreadable(f"{path} cannot be read: {error.strerror}") from None
    if header is None:
        raise RunUnreadable(f"{path} is damaged, so this run cannot be read")
    if header.get("version") != VERSION:
        found = header.get("version")
        raise RunUnreadable(
            f"{path} has format version {found}; this cellmeter reads version {VERSION}: upgrade cellmeter"
        )
    return header


def worker_file(folder: Path) -> Path:
    """Where this process writes what it says of itself, if it is not the kernel."""
    return folder / f"events-{os.getpid()}.jsonl"


def worker_events(folder: Path) -> list[Path]:
    """The files in which workers say something."""
    return sorted(folder.glob("events-*.jsonl"))


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All sound events of a file in the order they were written, and how many damaged lines were left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise RunUnreadable(f"{path} cannot be read: {error.strerror}") from None
    whole = data[: data.rfind(b"\n") + 1]
    events = [unsealed(line) for line in whole.splitlines()]
    return [event for event in events if event is not None], events.count(None)


def process_identity(pid: int) -> str | None:
    """Tells a process from another that gets the same pid later, or on another boot; None if there is none such."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *fields = stat[stat.rindex(b")") + 2 :].split()
        return None if state in (b"Z", b"X") else f"{boot}:{_pid_namespace()}:{int(fields[18])}"
    except (FileNotFoundError, ProcessLookupError):
        if os.path.isdir("/proc/self"):
            return None
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return "0"


def is_open(header: Mapping[str, Any], folder: Path | None = None) -> bool:
    """Whether the recorder of a run is still at work.

    On another host, or in another container, its process cannot be seen: there a run counts as open as long as its ``folder``
    is being written.
    """
    recorder = header.get("recorder") or {}
    identity, pid = recorder.get("identity"), recorder.get("pid")
    if not isinstance(identity, str) or not isinstance(pid, int):
        return False
    if folder is not None and _is_elsewhere(identity):
        return _written_of_late(folder)
    return process_identity(pid) == identity


def is_starting(folder: Path) -> bool:
    """Of a folder without a header: whether one is still to come, as its recorder has just been started.

    Its kernel lives, as far as can be seen from here, and the recorder has not said why it failed.
    """
    kernel = kernel_of(folder)
    if kernel is None or not is_young(folder) or _file_size(folder / RECORDER_LOG):
        return False
    pid, identity = kernel
    return _is_elsewhere(identity) or process_identity(pid) == identity


def _is_elsewhere(identity: str) -> bool:
    """Whether a process is of another host or container."""
    ours = process_identity(os.getpid()) or ""
    return identity.rpartition(":")[0] != ours.rpartition(":")[0]


def is_young(folder: Path) -> bool:
    """Whether it may have been made so lately that its recorder is not there yet."""
    try:
        return wall() - folder.stat().st_mtime < STARTING_SECONDS
    except OSError:
        return True


def _written_of_late(folder: Path) -> bool:
    try:
        # what is fetched later is no sign of life
        entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("prometheus."))
        return wall() - max(entry.stat().st_mtime for entry in entries) < FOREIGN_SECONDS
    except (OSError, ValueError):
        return False


def read_run(folder: Path, newest: int | None = None) -> Run:
    """Reads a run folder: whole, or all events and only the newest samples of each file, and nothing of other machines.

    Raises RunUnreadable.
    """
    header = read_header(folder)
    try:
        return _read_run(folder, header, newest)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # its checksums are right, so it is no damage: somebody else's format, or that of a cellmeter to come
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunUnreadable(f"{folder} is not in a form that this cellmeter knows ({why})") from None


def _read_run(folder: Path, header: Mapping[str, Any], newest: int | None) -> Run:
    from cellmeter import assemble, form

    form.check_header(header)
    # A running recorder is looked at first: were it the other way round, one that ends meanwhile would leave no end record.
    running = is_open(header, folder)
    events, damaged_lines = read_events(folder / EVENTS)
    form.check_events(events)
    paths = worker_events(folder)
    if len(paths) >= MOST_WORKER_FILES:
        text = f"{len(paths)} worker processes have said something; what further ones said was not kept"
        events.append({"event": "notice", "t": header["start_ns"], "text": text})
    for path in paths:
        said, damaged = read_events(path)
        said = [event for event in said if event.get("event") in form.OWN]
        form.check_events(said)
        events += said
        damaged_lines += damaged
    parts: list[assemble.Part] = []
    damaged_records = 0
    large = sum(_file_size(folder / entry["file"]) for entry in header["segments"]) > HELD_BYTES
    for entry in header["segments"]:
        columns = tuple(Column(*column) for column in entry["columns"])
        records, damaged = _read_records(folder / entry["file"], len(columns), newest, large)
        damaged_records += damaged
        parts.append((entry["stream"], columns, records))
    remote = read_events(folder / REMOTE) if newest is None else ([], 0)
    return assemble.run_from(folder, header, events, parts, running, damaged_lines, damaged_records, remote)


def _read_records(path: Path, columns: int, newest: int | None, large: bool) -> tuple[Records, int]:
    """The records of a file, or the newest of them, and how many were damaged. ``large``: their readings stay in the file."""
    size = record_size(columns)
    try:
        if large and newest is None:
            stored = StoredRecords(path, columns)
            return stored, stored.damaged
        with open(path, "rb") as file:
            if newest is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size // size - newest) * size)
            return parse_records(file.read(), columns)
    except OSError as error:
        raise RunUnreadable(f"{path} cannot be read: {error.strerror}") from None
