"""The recorder process: one poll loop on the channel, the kernel's pidfd and the next deadline.

It imports as little as it can (see ``make bench`` for its resident memory) and writes nothing but its run folder.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter import __version__
from cellmeter.alerts import Board, Budget, Guard, guards_of, not_held
from cellmeter.clock import monotonic, monotonic_ns
from cellmeter.home import prune, recorded_in
from cellmeter.metrics import SHARED_PAGES
from cellmeter.nearly_full import NearlyFull
from cellmeter.recorder import Config
from cellmeter.sampling import Sampler, Stream, SystemClock
from cellmeter.sources import Source
from cellmeter.sources.death import OutOfMemoryKills, Verdict, is_exiting, judge_death, wait_status
from cellmeter.sources.filesystems import Filesystems, working_folders
from cellmeter.sources.hub import limits_in_header
from cellmeter.sources.nvidia import open_nvidia
from cellmeter.sources.nvidia_processes import CONTEXTS, NvidiaProcesses
from cellmeter.sources.peaks import CellPeaks
from cellmeter.store import Writer, process_identity

if TYPE_CHECKING:
    from cellmeter.sources.plugin import PluginSource

LINE_LIMIT = 1 << 20  # a line that never ends is dropped, not gathered for ever
LOOK_SECONDS = 1.0
SLOW_NS = 5_000_000
KILL_LOOKS = 3  # a kill is counted before the process gets to die of it: on a busy machine, a look or two before
PRUNE_SECONDS = 600.0
REAPED_SECONDS = 0.5  # how long to wait for an exit status that only shows once the parent has reaped


def main() -> None:
    """Entry of the child process, which has detached already."""
    # SIGINT is the user's interrupt of a cell; SIGTERM and SIGHUP go to whole sessions when a machine or login ends, and the
    # recorder stays until the kernel has gone, to say how.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(sys.stdin.fileno())
    messages: list[dict[str, Any]] = []
    while not messages:
        messages = channel.receive()
        if not channel.open:
            return
    config, *early = messages
    Child(Config(**config), channel).run(early)


class Channel:
    """Reads JSON lines from a descriptor without ever waiting for the rest of one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.open = True
        self._rest = b""

    def receive(self) -> list[dict[str, Any]]:
        """Whole messages that one read brings; ``open`` turns False when the other side has closed."""
        data = os.read(self.fd, 65536)
        if not data:
            self.open = False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LIMIT:
            self._rest = b""
        return [message for line in lines if isinstance(message := _parsed(line), dict)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


class Child:
    """The recorder at work."""

    def __init__(self, config: Config, channel: Channel) -> None:
        self._config = config
        self._channel = channel
        self._environ = dict(config.environ)
        self._goodbye: str | None = None
        self._stopped_ns: int | None = None
        self._pidfd = _open_pidfd(config.pid)
        self._poll = select.poll()
        self._poll.register(channel.fd, select.POLLIN)
        if self._pidfd is not None:
            self._poll.register(self._pidfd, select.POLLIN)
        self._kills = OutOfMemoryKills(config.pid)
        self._kills_seen = deque([self._kills.count()], KILL_LOOKS)
        self._board = Board()
        self._contexts: dict[str, float] = {}
        self._look_at = self._prune_at = 0.0
        self._died = False
        self._header_is_old = False
        self._opening: list[PluginSource] = []

    def run(self, early: Sequence[Mapping[str, Any]]) -> None:
        """Records until the kernel dies or says stop. ``early``: messages that have come already."""
        self._writer = Writer(Path(self._config.folder))
        clock = SystemClock()
        self._machine_sources, machine, self._tree = _open_machine(self._config.pid)
        self._machine_sources.append(Filesystems(working_folders(self._config.pid, self._config.folder)))
        home = Path(self._config.folder).parent
        self._gpus = open_nvidia(self._tree.pids, self._environ, recorded=lambda pid: recorded_in(home, pid))
        self._peaks = CellPeaks(self._config.pid, self._tree.pids)
        self._unavailable: dict[str, str] = machine.pop("unavailable")
        if self._peaks.group.unknown is not None:
            self._unavailable["cgroup.memory.peak"] = self._peaks.group.unknown
        limit_bytes, limit_from = machine["limits"]["memory_bytes"]
        self._full = NearlyFull(limit_bytes, limit_from, SHARED_PAGES in self._unavailable)
        header = _header(self._config, clock)
        self._start_ns: int = header["start_ns"]
        self._since: dict[str, float] = {}
        self._writer.describe(**header, **machine, **self._gpu_header(0.0))
        self._tell_whose_gpus()
        sources = [*self._machine_sources, *self._gpus.sources]
        self._sampler = Sampler(sources, self._writer, clock, self._config.rate_hz, self._gpus.backlogs)
        self._sampler.observer = self._observe
        for message in early:
            self._handle(message)
        self._died = not self._kernel_lives()
        while not self._died and self._stopped_ns is None:
            self._wait()
            self._sampler.on_time()
            self._look_around()
        if self._died:
            self._hear_last_words()
        if self._stopped_ns is not None:
            self._end(Verdict("stopped", None, None), self._stopped_ns)
        else:
            self._end(self._death(), monotonic_ns())

    def _kernel_lives(self) -> bool:
        return process_identity(self._config.pid) == self._config.identity

    def _wait(self) -> None:
        """Waits for whatever comes first."""
        timeout = max(0.0, (self._sampler.deadline_ns - monotonic_ns()) * 1e-6)
        ready = {fd for fd, _ in self._poll.poll(timeout)}
        if self._channel.fd in ready:
            self._receive()
        self._died = self._died or self._pidfd in ready

    def _hear_last_words(self) -> None:
        """What the kernel said before it died is read to the end."""
        os.set_blocking(self._channel.fd, False)
        try:
            while self._channel.open:
                self._receive()
        except BlockingIOError:  # a forked worker holds the other side
            return

    def _receive(self) -> None:
        for message in self._channel.receive():
            self._handle(message)
        if not self._channel.open:  # a forked worker may still hold the other side, so this alone is no death
            self._poll.unregister(self._channel.fd)

    def _handle(self, message: Mapping[str, Any]) -> None:
        kind = message.get("event")
        if kind == "cell_start":
            if "environ" in message:
                self._follow_environ(message["environ"])
            self._tree.look_again()  # who works in the cell, and who did before
            self._sampler.cell_started(message)
            self._peaks.started(message["seq"])
        elif kind == "cell_end":
            self._tree.look_again()
            self._sampler.cell_ended(message)
            if (peaks := self._peaks.ended(message["seq"])) is not None:
                self._sampler.event({"event": "peaks", "t": message["t"], "seq": message["seq"], **peaks})
        elif kind == "goodbye":
            self._goodbye = message["how"]
        elif kind == "stop":
            self._stopped_ns = message["t"]
        elif kind == "watch":
            self._watch(message)
        elif kind == "plugins":
            self._open_plugins(message["sources"])
        else:
            self._sampler.event(message)

    def _watch(self, message: Mapping[str, Any]) -> None:
        """What to watch for from here on."""
        self._board.set_alerts(message["alerts"])
        guards: tuple[Guard, ...] = ()
        if message["budget"] is not None:
            budget = Budget(**message["budget"])
            limit_bytes, limit_from = self._writer.header["limits"]["memory_bytes"]
            upper_bound = SHARED_PAGES in self._unavailable
            guards = guards_of(budget, self._sampler.columns, limit_bytes, limit_from, upper_bound)
            if not guards:
                text = f"the memory budget of {budget.text} is not watched: its limit or the use is not known here"
                self._sampler.event({"event": "notice", "t": monotonic_ns(), "text": text})
        self._full.silent = bool(guards)  # who has set a bound wants to hear of that one
        self._board.set_guards(guards)

    def _observe(self, stream: Stream, now: int, seq: int, row: Sequence[float]) -> None:
        if stream.name == NvidiaProcesses.name:
            self._note_contexts(stream, row)
        if stream.segment < 0:
            return  # a full disk has no file for these columns yet, nor for an event
        if stream.name == "main" and (event := self._full.see(stream.columns, now, seq, row)) is not None:
            self._sampler.event(event)
        for event in self._gpus.holders.events():
            self._sampler.event({"t": now, **event})
        for event in self._board.see(stream.segment, stream.columns, now, seq, row):
            self._sampler.event(event)

    def _note_contexts(self, stream: Stream, row: Sequence[float]) -> None:
        """An alert that names no GPU is about those that the kernel holds, which may change in a cell."""
        pairs = zip(stream.columns, row, strict=True)
        self._contexts = {column.subject: value for column, value in pairs if column.metric == CONTEXTS}
        self._tell_whose_gpus()

    def _follow_environ(self, environ: Mapping[str, str]) -> None:
        """The cell chose other GPUs: what is "mine" is judged anew."""
        self._environ.clear()
        self._environ.update(environ)
        self._describe_gpus()

    def _look_for_gpus(self) -> None:
        """Those that have come since are recorded from now on."""
        before_ns = monotonic_ns()
        changed = self._gpus.look()
        if monotonic_ns() - before_ns > SLOW_NS:
            self._sampler.busy_with("the NVIDIA driver was being opened anew")
        if changed:
            self._sampler.change([*self._machine_sources, *self._gpus.sources], self._gpus.backlogs)
            self._describe_gpus()

    def _open_plugins(self, points: Sequence[Mapping[str, str]]) -> None:
        from cellmeter.sources.plugin import PluginSource  # threads and queues: only where there are plugins

        self._opening += [PluginSource(point, self._config.pid) for point in points]

    def _look_for_plugins(self) -> None:
        """Sources of other packages are read from when they have been opened."""
        for source in list(self._opening):
            failure = source.take_failure()
            if failure is None and not source.ready():
                continue
            self._opening.remove(source)
            if failure is None:
                try:
                    self._add_metrics(source)
                except OSError as error:
                    failure = f"run.json cannot be written: {error.strerror}"
            if failure is not None:
                text = f"the source {source.name} is not recorded: {failure}"
                self._sampler.event({"event": "notice", "t": monotonic_ns(), "text": text})

    def _add_metrics(self, source: PluginSource) -> None:
        known = self._writer.header.get("metrics", [])
        self._writer.describe(metrics=[*known, *(metric._asdict() for metric in source.metrics)])
        self._machine_sources.append(source)
        self._sampler.change([*self._machine_sources, *self._gpus.sources], self._gpus.backlogs)

    def _tell_whose_gpus(self) -> None:
        devices = [device for source in self._gpus.sources for device in source.devices()]
        self._board.set_foreign(not_held({device.id: device.mine for device in devices}, self._contexts))

    def _describe_gpus(self) -> None:
        """Puts into the header what is known of GPUs now; tried again each second until the disk takes it."""
        self._tell_whose_gpus()
        try:
            self._writer.describe(**self._gpu_header((monotonic_ns() - self._start_ns) * 1e-9))
        except OSError as error:
            if not self._header_is_old:
                text = f"which GPUs there are, and which are the cell's own, could not be written: {error.strerror}"
                self._sampler.event({"event": "notice", "t": monotonic_ns(), "text": text})
            self._header_is_old = True
        else:
            self._header_is_old = False

    def _gpu_header(self, now: float) -> dict[str, Any]:
        """The part of ``run.json`` that changes with the GPUs; ``now`` is in seconds since the run's start."""
        devices = [device for source in self._gpus.sources for device in source.devices()]
        return {
            "devices": [{**vars(device), "since": self._since.setdefault(device.id, now)} for device in devices],
            "unavailable": {**self._unavailable, **self._gpus.unavailable},
            "driver": self._gpus.driver,
        }

    def _look_around(self) -> None:
        """Once a second: the kill counter, new GPUs, the kernel where no pidfd tells of its death. Now and then: old runs."""
        now = monotonic()
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_SECONDS
            folder = Path(self._config.folder)
            for removed in prune(folder.parent, self._config.max_total_bytes, folder):
                text = (
                    f"{removed.name} was removed: all runs together may take {self._config.max_total_bytes >> 20} MiB"
                )
                self._sampler.event({"event": "notice", "t": monotonic_ns(), "text": text})
        if now >= self._look_at and not self._died:
            self._look_at = now + LOOK_SECONDS
            if not is_exiting(self._config.pid):  # a large process takes seconds to go, its kill being counted already
                self._kills_seen.append(self._kills.count())
            self._look_for_gpus()
            self._look_for_plugins()
            if self._header_is_old:
                self._describe_gpus()
            self._died = self._pidfd is None and not self._kernel_lives()

    def _death(self) -> Verdict:
        until = monotonic() + REAPED_SECONDS
        status = wait_status(self._config.pid, self._pidfd)
        while status is None and monotonic() < until:
            time.sleep(0.005)
            status = wait_status(self._config.pid, self._pidfd)
        kills, before = self._kills.count(), self._kills_seen[0]
        out_of_memory = kills is not None and before is not None and kills > before
        return judge_death(status, self._goodbye, out_of_memory)

    def _end(self, verdict: Verdict, t_ns: int) -> None:
        self._sampler.event({"event": "end", "t": t_ns, **verdict._asdict()})


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None


def _header(config: Config, clock: SystemClock) -> dict[str, Any]:
    return {
        "id": Path(config.folder).name,
        "cellmeter": __version__,
        "start_ns": config.start_ns,
        "started": clock.wall() - (clock.monotonic_ns() - config.start_ns) * 1e-9,
        "rate_hz": config.rate_hz,
        "notebook": config.notebook,
        "kernel": {"pid": config.pid, "identity": config.identity},
        "recorder": {"pid": os.getpid(), "identity": process_identity(os.getpid())},
    }


class Tree(NamedTuple):
    """The kernel and its descendants: who they were when last looked for, and that the next reading is to look again."""

    pids: Callable[[], Collection[int]]
    look_again: Callable[[], None]


def _open_machine(pid: int) -> tuple[list[Source], dict[str, Any], Tree]:
    """The machine's own sources, their part of the header, and the kernel's tree."""
    if os.path.exists(f"/proc/{pid}/statm"):
        from cellmeter.sources.cgroup import limits
        from cellmeter.sources.linux import host, open_linux

        linux = open_linux(pid)
        machine = host()
        allowed = limits(pid, machine.cpu_count, machine.memory_bytes)
        header = {
            "host": vars(machine),
            **limits_in_header(allowed, os.environ),
            "unavailable": {**linux.main.unavailable, **linux.pressure.unavailable},
        }
        slow = [linux.pressure] if linux.pressure.columns else []
        return [linux.main, *slow, linux.cores], header, Tree(lambda: linux.process.pids, linux.process.look_again)
    from cellmeter.sources.portable import Portable, PortableCores, portable_host, portable_limits

    portable = Portable(pid)
    machine = portable_host()
    allowed = limits_in_header(portable_limits(machine), os.environ)
    header = {"host": vars(machine), **allowed, "unavailable": portable.unavailable}
    return [portable, PortableCores()], header, Tree(portable.pids, lambda: None)
