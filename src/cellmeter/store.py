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
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter.clock import monotonic, wall, wall_ns
from cellmeter.errors import BadUsage, RunNotFound, RunUnreadable
from cellmeter.records import StoredRecords, parse_records, record_size
from cellmeter.remote import FILE as REMOTE
from cellmeter.run import Column, Records, Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1
STARTING_SECONDS = 60.0
READY_SECONDS = 5.0  # the longest a reader waits for a recorder that has just been started
FOREIGN_SECONDS = 30.0  # a recorder writes once a second; clocks of hosts may differ
HEADER = "run.json"
KERNEL = "kernel.json"
EVENTS = "events.jsonl"
MOST_WORKER_FILES = 256
MOST_KERNELS = 200  # recordings among which a process is looked for
HELD_BYTES = 32 << 20  # of sample files: of a larger run, readings are read from them as they are asked for
RECORDER_LOG = "recorder.log"
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
_CRC_FIELD = re.compile(rb',"crc":"([0-9a-f]{8})"\}$')


def runs_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where runs are kept: ``$CELLMETER_HOME/runs``, else the platform's user state directory."""
    if home := environ.get("CELLMETER_HOME"):
        return Path(os.path.expanduser(home)).absolute() / "runs"
    import platformdirs

    return Path(platformdirs.user_state_dir("cellmeter", appauthor=False)) / "runs"


def new_run_folder(home: Path) -> Path:
    """Makes ``<utc-time>-<6 hex>`` below ``home``, private to the user. Raises OSError where that cannot be.

    The first four hex digits are the fraction of the second, so that names sort by time; the last two are chance.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        seconds, ns = divmod(wall_ns(), 1_000_000_000)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))
        folder = home / f"{stamp}-{(ns << 16) // 1_000_000_000:04x}{os.urandom(1).hex()}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder


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


def recorded_in(home: Path, pid: int) -> tuple[str, str | None] | None:
    """The newest run of a process, and the notebook or script that it says it is of; None if it has none here."""
    identity = process_identity(pid)
    for folder in reversed(run_folders(home)[-MOST_KERNELS:]):
        if identity is not None and kernel_of(folder) == (pid, identity):
            try:
                return folder.name, read_header(folder).get("notebook")
            except RunUnreadable:  # it has just begun
                return folder.name, None
    return None


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
    if kernel is None or not _is_young(folder) or _file_size(folder / RECORDER_LOG):
        return False
    pid, identity = kernel
    return _is_elsewhere(identity) or process_identity(pid) == identity


def _is_elsewhere(identity: str) -> bool:
    """Whether a process is of another host or container."""
    ours = process_identity(os.getpid()) or ""
    return identity.rpartition(":")[0] != ours.rpartition(":")[0]


def _is_young(folder: Path) -> bool:
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


def previous_run(folder: Path, notebook: str) -> Path | None:
    """The newest run of the same notebook before this one, among the last 50."""
    earlier = [other for other in run_folders(folder.parent) if other.name < folder.name]
    for other in reversed(earlier[-50:]):
        try:
            if read_header(other).get("notebook") == notebook:
                return other
        except RunUnreadable:
            continue
    return None


class RunInfo(NamedTuple):
    """One line of a list of runs; ``problem`` says why it cannot be read."""

    id: str
    path: Path
    size_bytes: int
    run: Run | None
    problem: str | None


def run_folders(home: Path) -> list[Path]:
    """Run folders, oldest first."""
    try:
        names = [entry for entry in os.listdir(home) if RUN_ID.fullmatch(entry)]
    except OSError:
        return []
    return [home / name for name in sorted(names)]


def list_runs(home: Path) -> Iterator[RunInfo]:
    """All runs, newest first."""
    for folder in reversed(run_folders(home)):
        size = _size(folder)
        try:
            yield RunInfo(folder.name, folder, size, read_run(folder, newest=50), None)
        except RunUnreadable as error:
            yield RunInfo(folder.name, folder, size, None, str(error))


def find_run(reference: str | None, home: Path) -> Path:
    """The folder of a run id, an id's unique prefix, or a path; the newest run for None. Raises RunNotFound.

    What has a run's name and is none is passed over for the newest.
    """
    if reference == "":
        raise RunNotFound("no run has an empty name: `cellmeter runs` lists them")
    if reference is not None and (os.sep in reference or os.path.isdir(reference)):
        path = os.path.expanduser(reference)
        if os.path.isdir(path):
            return Path(path)
        raise RunNotFound(f"there is no folder {reference}")
    folders = run_folders(home)
    if reference is None:
        newest = next(filter(_is_run, reversed(folders)), None)
        if newest is None:
            raise RunNotFound(
                f"there are no runs yet in {home}: %load_ext cellmeter in a notebook makes one, `cellmeter demo` too"
            )
        return newest
    matches = [folder for folder in folders if folder.name.startswith(reference)]
    if not matches:
        raise RunNotFound(f"no run in {home} begins with {reference!r}: `cellmeter runs` lists them")
    if len(matches) > 1:
        raise RunNotFound(
            f"{len(matches)} runs begin with {reference!r}: add more of the id of {matches[0].name} or {matches[-1].name}"
        )
    return matches[0]


def _is_run(folder: Path) -> bool:
    """Whether it has anything that only a run has, be it damaged or the trace of a recorder that failed."""
    return any((folder / name).exists() for name in (HEADER, RECORDER_LOG, KERNEL))


def open_runs(home: Path) -> list[Path]:
    """The folders of the runs that are being recorded, newest first."""
    found = []
    for folder in reversed(run_folders(home)):
        try:
            if is_open(read_header(folder), folder):
                found.append(folder)
        except RunUnreadable:
            continue
    return found


def find_two(before: str, after: str | None, home: Path, newest: Path | None = None) -> tuple[Path, Path]:
    """The folders of two runs to be compared; ``newest`` instead of the newest run for None. Raises RunNotFound, BadUsage."""
    a = find_run(before, home)
    b = newest if after is None and newest is not None else find_run(after, home)
    if a.resolve() == b.resolve():
        other = "name the later one too" if after is None else "name another"
        raise BadUsage(f"{a.name} would be compared with itself: {other}")
    return a, b


def prune(home: Path, most_bytes: int, keep: Path) -> list[Path]:
    """Removes the oldest runs until all together fit; returns those removed. ``keep`` and runs still recorded stay."""
    sizes = {folder: _size(folder) for folder in run_folders(home)}
    total, removed = sum(sizes.values()), []
    for folder, size in sizes.items():
        if total <= most_bytes:
            break
        if folder != keep and not may_be_open(folder):
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
            total -= size
            removed.append(folder)
    return removed


def _size(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
    except OSError:  # another recorder removes it at this moment
        return 0


def may_be_open(folder: Path) -> bool:
    """Recorded now, or so young that its recorder has not written the header yet."""
    try:
        return is_open(read_header(folder), folder)
    except RunUnreadable:
        return _is_young(folder)


def remove_run(folder: Path) -> None:
    """Removes a run, with the link if that is one, and what is empty or a link to nothing but has a run's name.

    Raises RunUnreadable if it is none of these, or if its recorder is at work.
    """
    target = folder.resolve()
    if RUN_ID.fullmatch(folder.name) and folder.is_symlink() and not target.exists():
        folder.unlink()
        return
    empty = target.is_dir() and not any(target.iterdir())
    if not RUN_ID.fullmatch(target.name) or not (empty or _is_run(target)):
        raise RunUnreadable(f"{folder} is no cellmeter run, so it is left alone")
    if _is_recorded(target):
        raise RunUnreadable(f"{folder.name} is still being recorded: stop its kernel first")
    if empty:
        target.rmdir()
    else:
        import shutil

        shutil.rmtree(target)
    if folder.is_symlink():
        folder.unlink()


def _is_recorded(folder: Path) -> bool:
    try:
        return is_open(read_header(folder), folder)
    except RunUnreadable:
        return not (folder / HEADER).exists() and is_starting(folder)


def open_run(reference: str | os.PathLike[str] | None = None) -> Run:
    """Opens a recorded run: an id, an id's unique prefix, or a path; without one, the newest.

    Waits a moment for one whose recorder has just been started. Raises RunNotFound and RunUnreadable.
    """
    folder = find_run(os.fspath(reference) if reference is not None else None, runs_home())
    until = monotonic() + READY_SECONDS
    while not (folder / HEADER).exists() and is_starting(folder) and monotonic() < until:
        time.sleep(0.005)
    return read_run(folder)
