"""The pure loop: clock + sources → samples. It knows no process, no signal and no file; ``recorder`` drives it.

Samples are taken at absolute deadlines, at the run's rate inside cells and once a second between them, and once more at
each edge of a cell, so that no cell has none. A slot that was missed is a gap with a reason, never a value made up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from cellmeter.clock import monotonic_ns, wall
from cellmeter.run import EDGE_END, EDGE_START, Column
from cellmeter.sources import Backlog, Notice, Source
from cellmeter.words import seconds_text

IDLE_SECONDS = 1.0
ANCHOR_SECONDS = 60.0
SUSPENDED_SECONDS = 0.5  # BOOTTIME moves on in a suspend while MONOTONIC stands still
LEAP_SECONDS = 0.5  # of the wall clock against MONOTONIC: it was set, or the machine suspended
_NS = 1_000_000_000
BACKLOG_SLACK_NS = 2 * _NS  # a driver tells of what it read a little later


class Clock(Protocol):
    """The clocks the loop lives by."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC in ns: the time of every sample."""

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME in ns, which also counts suspends."""

    def wall(self) -> float:
        """Seconds since the epoch."""


class SystemClock:
    """The machine's own clocks."""

    _boottime = getattr(time, "CLOCK_BOOTTIME", None)

    def monotonic_ns(self) -> int:
        """See :class:`Clock`."""
        return monotonic_ns()

    def boottime_ns(self) -> int:
        """See :class:`Clock`; without CLOCK_BOOTTIME a suspend shows as a late sample only."""
        return monotonic_ns() if self._boottime is None else time.clock_gettime_ns(self._boottime)

    def wall(self) -> float:
        """See :class:`Clock`."""
        return wall()


class Sink(Protocol):
    """Where samples and events go (:class:`cellmeter.store.Writer`). Each method may raise OSError."""

    def add_segment(self, stream: str, columns: Sequence[Column]) -> int:
        """A new file for these columns, in place of the stream's last one."""

    def sample(self, segment: int, t_ns: int, seq: int, flags: int, values: Sequence[float]) -> None:
        """One record."""

    def event(self, fields: Mapping[str, Any]) -> None:
        """One event."""


class Stream:
    """Sources that are read together and written to one segment."""

    def __init__(self, name: str, sources: Sequence[Source]) -> None:
        self.name = name
        self.sources = tuple(sources)
        self.interval_ns = int(max(source.interval for source in sources) * _NS)
        self.columns = tuple(column for source in sources for column in source.columns)
        self.segment = -1
        self.due_ns = 0

    def read(self) -> list[float]:
        """One row."""
        if len(self.sources) == 1:
            return self.sources[0].read()
        return [value for source in self.sources for value in source.read()]


class LateStream:
    """A backlog and the segment it is written to."""

    def __init__(self, backlog: Backlog) -> None:
        self.name = backlog.name
        self.backlog = backlog
        self.columns = backlog.columns
        self.interval_ns = int(backlog.interval * _NS)
        self.segment = -1
        self.due_ns = 0
        self.drained_ns = 0


def streams_of(sources: Iterable[Source]) -> list[Stream]:
    """The main stream of all sources without an interval first, then one for each of the others."""
    sources = list(sources)
    main = Stream("main", [source for source in sources if source.interval == 0])
    return [main, *(Stream(source.name, [source]) for source in sources if source.interval > 0)]


Observer = Callable[[Stream, int, int, Sequence[float]], None]
"""Is shown each row that was read: its stream, the time in ns, and the cell it is tagged with."""


class Sampler:
    """Decides when to sample and writes what was read. All times are ns of ``Clock.monotonic_ns``."""

    def __init__(
        self, sources: Iterable[Source], sink: Sink, clock: Clock, rate_hz: float, backlogs: Iterable[Backlog] = ()
    ) -> None:
        self._main, *self._others = streams_of(sources)
        self._late = [LateStream(backlog) for backlog in backlogs]
        self._sink = sink
        self._clock = clock
        self._run_interval_ns = self._interval_ns = int(_NS / rate_hz)
        self._idle_ns = max(int(IDLE_SECONDS * _NS), self._interval_ns)
        self._open: list[int] = []
        self._cell_ended_ns = 0
        self._last_ns = clock.monotonic_ns()
        self._asleep_ns = clock.boottime_ns() - self._last_ns
        self._anchor_ns = 0
        self._wall_less_ns = 0  # the wall clock in ns less MONOTONIC, as last told
        self._unwritten: deque[Mapping[str, Any]] = deque()
        self._lost_from_ns: int | None = None
        self._lost = 0
        self._lost_why = ""
        self._busy_with: str | None = None
        for stream in self._streams():
            stream.segment = sink.add_segment(stream.name, stream.columns)
        self.deadline_ns = self._last_ns
        self.observer: Observer | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the main stream reads."""
        return self._main.columns

    def _streams(self) -> list[Stream | LateStream]:
        return [self._main, *self._others, *self._late]

    def change(self, sources: Iterable[Source], backlogs: Iterable[Backlog]) -> None:
        """Goes on with other sources. A stream whose columns are others now gets a new segment with its next sample."""
        before = {stream.name: stream for stream in self._streams()}
        self._main, *self._others = streams_of(sources)
        self._late = [LateStream(backlog) for backlog in backlogs]
        for stream in self._streams():
            old = before.get(stream.name)
            if old is not None and old.columns == stream.columns:
                stream.segment, stream.due_ns = old.segment, old.due_ns

    def busy_with(self, what: str) -> None:
        """Why the next sample comes late, if it does."""
        self._busy_with = what

    @property
    def cell(self) -> int:
        """The sequence of the innermost cell that runs; 0 between cells."""
        return self._open[-1] if self._open else 0

    def on_time(self) -> None:
        """Takes the sample that is due, if one is."""
        now = self._clock.monotonic_ns()
        if now < self.deadline_ns:
            return
        self.sample(0)
        step = self._interval_ns if self._open else self._idle_ns
        self.deadline_ns += step * ((now - self.deadline_ns) // step + 1)

    def _note_gap(self, now: int) -> None:
        asleep = self._clock.boottime_ns() - now
        slept = asleep - self._asleep_ns
        self._asleep_ns = asleep
        step = self._interval_ns if self._open else self._idle_ns
        if slept > SUSPENDED_SECONDS * _NS:
            self._gap(self._last_ns, now, f"the machine was suspended for {seconds_text(slept / _NS)}")
        elif now - self.deadline_ns >= step:
            self._gap(self._last_ns, now, self._busy_with or "the recorder was stopped or got no CPU time")
        self._busy_with = None

    def _gap(self, start: int, end: int, reason: str) -> None:
        self.event({"event": "gap", "t": end, "start": start, "end": end, "reason": reason})

    def cell_started(self, edge: Mapping[str, Any]) -> None:
        """A cell's start edge: from here on samples carry its sequence."""
        self._open.append(edge["seq"])
        if edge.get("rate_hz"):
            self._interval_ns = int(_NS / edge["rate_hz"])
        self.event(edge)
        self.sample(EDGE_START)
        if len(self._open) == 1:
            self.deadline_ns = self._last_ns + self._interval_ns

    def cell_ended(self, edge: Mapping[str, Any]) -> None:
        """A cell's end edge: one more sample for it, then the one around it goes on."""
        seq = edge["seq"]
        self.event(edge)
        self.sample(EDGE_END, seq)
        self._cell_ended_ns = self._last_ns
        if seq in self._open:
            self._open.remove(seq)
        if not self._open:
            self._interval_ns = self._run_interval_ns
            self.deadline_ns = self._last_ns + self._idle_ns

    def sample(self, flags: int, seq: int | None = None) -> None:
        """Reads the main stream, and others that are due, and writes them."""
        now = self._clock.monotonic_ns()
        self._note_gap(now)
        tag = self.cell if seq is None else seq
        self._write(self._main, now, tag, flags)
        for stream in self._others:
            if now >= stream.due_ns:
                stream.due_ns = now + stream.interval_ns
                self._write(stream, now, tag, 0)
        for late in self._late:
            if now >= late.due_ns or flags & EDGE_END:
                late.due_ns = now + late.interval_ns
                self._catch_up(late, now)
        before, self._last_ns = self._last_ns, now
        self._tell_the_time(before, now)

    def _tell_the_time(self, before: int, now: int) -> None:
        """Once a minute, and at once when the wall clock has leapt: what it was until then, and what it is now."""
        wall_less_ns = int(self._clock.wall() * _NS) - now
        leapt = self._anchor_ns > 0 and abs(wall_less_ns - self._wall_less_ns) > LEAP_SECONDS * _NS
        if leapt:
            self._anchor(before, self._wall_less_ns)
        if leapt or now >= self._anchor_ns:
            self._anchor_ns = now + int(ANCHOR_SECONDS * _NS)
            self._anchor(now, wall_less_ns)
            self._wall_less_ns = wall_less_ns

    def _anchor(self, t_ns: int, wall_less_ns: int) -> None:
        self.event({"event": "anchor", "t": t_ns, "wall": (t_ns + wall_less_ns) / _NS})

    def _write(self, stream: Stream, now: int, seq: int, flags: int) -> None:
        row = stream.read()
        try:
            self._record(stream, now, seq, flags, row)
        except OSError as error:
            self._lose(now, error)
        else:
            if self._lost_from_ns is not None or self._unwritten:
                self._resume(now)
        if self.observer is not None:
            self.observer(stream, now, seq, row)
        for source in stream.sources:
            self._tell(source.notices, now)

    def _record(self, stream: Stream | LateStream, t_ns: int, seq: int, flags: int, row: Sequence[float]) -> None:
        """Raises OSError; a new segment is tried again with the next sample."""
        if stream.segment < 0:
            stream.segment = self._sink.add_segment(stream.name, stream.columns)
        self._sink.sample(stream.segment, t_ns, seq, flags, row)

    def _catch_up(self, late: LateStream, now: int) -> None:
        """Readings of others, put on our clock by the time of day; those from long after a cell are of no use.

        When that was set meanwhile, they seem to be of a time when they were not taken, and are left out.
        """
        epoch_ns = now - int(self._clock.wall() * _NS)
        rows = [(row.epoch_us * 1000 + epoch_ns, row.values) for row in late.backlog.drain()]
        wanted = self._open or now - self._cell_ended_ns < 2 * late.interval_ns
        first, last = late.drained_ns - BACKLOG_SLACK_NS, now + BACKLOG_SLACK_NS
        late.drained_ns = now
        for t_ns, values in rows if wanted else ():
            if not first <= t_ns <= last:
                continue
            try:
                self._record(late, t_ns, 0, 0, values)
            except OSError as error:
                self._lose(now, error)
        self._tell(late.backlog.notices, now)

    def _tell(self, notices: list[Notice], now: int) -> None:
        while notices:
            notice = notices.pop(0)
            self.event({"event": notice.kind, "t": now, **notice._asdict()})

    def _lose(self, now: int, error: OSError) -> None:
        if self._lost_from_ns is None:
            self._lost_from_ns = self._last_ns
            self._lost_why = error.strerror or str(error)
        self._lost += 1

    def _resume(self, now: int) -> None:
        """What could not be written is told of, and events that were kept are written after all."""
        if self._lost_from_ns is not None:
            start, self._lost_from_ns = self._lost_from_ns, None
            self._gap(start, now, f"{self._lost} samples could not be written: {self._lost_why}")
            self._lost = 0
        else:
            self._flush()

    def event(self, fields: Mapping[str, Any]) -> None:
        """Writes an event, or keeps it until the disk takes it: a cell edge is never lost."""
        self._unwritten.append(fields)
        self._flush()

    def _flush(self) -> None:
        while self._unwritten:
            try:
                self._sink.event(self._unwritten[0])
            except OSError:
                return
            self._unwritten.popleft()
