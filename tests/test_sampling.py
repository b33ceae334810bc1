"""The loop, with a clock that is steered and sources that are played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cellmeter.run import EDGE_END, EDGE_START, Column, Device
from cellmeter.sampling import Sampler
from cellmeter.sources import Notice, Stamped

MS = 1_000_000


class FakeClock:
    def __init__(self) -> None:
        self.now = 10**12
        self.asleep = 0
        self.set_by = 0

    def monotonic_ns(self) -> int:
        return self.now

    def boottime_ns(self) -> int:
        return self.now + self.asleep

    def wall(self) -> float:
        return 1.7e9 + (self.boottime_ns() + self.set_by) * 1e-9


class FakeSource:
    def __init__(self, name: str = "main", interval: float = 0.0, subject: str = "host") -> None:
        self.name = name
        self.interval = interval
        self.columns = (Column(f"{name}.x", subject, "1"),)
        self.notices: list[Notice] = []
        self.reads = 0

    def read(self) -> list[float]:
        self.reads += 1
        return [float(self.reads)]

    def devices(self) -> list[Device]:
        return []

    def close(self) -> None:
        pass


class FakeSink:
    def __init__(self) -> None:
        self.segments: list[str] = []
        self.samples: list[tuple[str, int, int, int]] = []
        self.events: list[Mapping[str, Any]] = []
        self.full = False

    def add_segment(self, stream: str, columns: Sequence[Column]) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        self.segments.append(stream)
        return len(self.segments) - 1

    def sample(self, segment: int, t_ns: int, seq: int, flags: int, values: Sequence[float]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.samples.append((self.segments[segment], t_ns, seq, flags))

    def event(self, fields: Mapping[str, Any]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.events.append(fields)

    def gaps(self) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["event"] == "gap"]


class Stage:
    """A sampler at 10 Hz with one main source, run forward by its deadlines."""

    def __init__(self, *others: FakeSource) -> None:
        self.clock, self.sink, self.source = FakeClock(), FakeSink(), FakeSource()
        self.start = self.clock.now
        self.sampler = Sampler([self.source, *others], self.sink, self.clock, 10.0)

    def run_for(self, seconds: float) -> None:
        until = self.clock.now + round(seconds * 1e9)
        while self.sampler.deadline_ns <= until:
            self.clock.now = max(self.clock.now, self.sampler.deadline_ns)
            self.sampler.on_time()
        self.clock.now = until

    def begin(self, seq: int, **fields: Any) -> None:
        self.sampler.cell_started({"event": "cell_start", "t": self.clock.now, "seq": seq, **fields})

    def end(self, seq: int) -> None:
        self.sampler.cell_ended({"event": "cell_end", "t": self.clock.now, "seq": seq})

    def times(self, stream: str = "main") -> list[float]:
        return [(t - self.start) / 1e9 for name, t, _, _ in self.sink.samples if name == stream]

    def walls(self) -> list[float]:
        """What the anchors say, as seconds since the start."""
        wall = 1.7e9 + self.start * 1e-9
        return [e["wall"] - wall for e in self.sink.events if e["event"] == "anchor"]

    def tags(self) -> list[int]:
        return [seq for name, _, seq, _ in self.sink.samples if name == "main"]


def test_once_a_second_between_cells_and_at_the_rate_within() -> None:
    stage = Stage()
    stage.run_for(2.5)
    stage.begin(1)
    stage.run_for(0.35)
    stage.end(1)
    stage.run_for(2.0)
    assert stage.times() == pytest.approx([0, 1, 2, 2.5, 2.6, 2.7, 2.8, 2.85, 3.85, 4.85])
    assert stage.tags() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert [flags for _, _, _, flags in stage.sink.samples][3:8] == [EDGE_START, 0, 0, 0, EDGE_END]


def test_a_cell_of_no_length_has_samples() -> None:
    stage = Stage()
    stage.begin(1)
    stage.end(1)
    assert stage.tags() == [1, 1]


def test_cells_within_cells() -> None:
    stage = Stage()
    stage.begin(1)
    stage.begin(2)
    stage.run_for(0.1)
    stage.end(2)
    stage.run_for(0.1)
    stage.end(1)
    assert stage.tags() == [1, 2, 2, 2, 1, 1]


def test_a_cell_may_have_a_rate_of_its_own() -> None:
    stage = Stage()
    stage.begin(1, rate_hz=100)
    stage.run_for(0.1)
    stage.end(1)
    assert len(stage.times()) == 1 + 10 + 1
    stage.begin(2)
    stage.run_for(0.1)
    assert len(stage.times()) == 12 + 2


def test_missed_slots_are_a_gap_and_the_grid_stays() -> None:
    stage = Stage()
    stage.begin(1)
    stage.run_for(0.3)
    stage.clock.now += 450 * MS
    stage.sampler.on_time()
    stage.run_for(0.1)
    assert stage.times() == pytest.approx([0, 0.1, 0.2, 0.3, 0.75, 0.8])
    (gap,) = stage.sink.gaps()
    assert ((gap["start"] - stage.start) / 1e9, (gap["end"] - stage.start) / 1e9) == pytest.approx((0.3, 0.75))
    assert "got no CPU time" in gap["reason"]


def test_a_little_late_is_no_gap() -> None:
    stage = Stage()
    stage.begin(1)
    stage.clock.now += 190 * MS
    stage.sampler.on_time()
    assert stage.sink.gaps() == []


def test_a_suspend_is_a_gap_of_its_own_kind() -> None:
    stage = Stage()
    stage.run_for(1)
    stage.clock.asleep += 3600 * 1000 * MS
    stage.run_for(1)
    (gap,) = stage.sink.gaps()
    assert gap["reason"] == "the machine was suspended for 1 h 00 min"
    assert stage.walls() == pytest.approx([0, 1, 3602]), "and what the wall clock was before and after is told"


def test_a_clock_that_is_set_is_told_at_once() -> None:
    stage = Stage()
    stage.run_for(1)
    stage.clock.set_by = -7200 * 1000 * MS
    stage.run_for(1)
    assert stage.walls() == pytest.approx([0, 1, 2 - 7200])
    assert stage.sink.gaps() == []


def test_slow_sources_have_a_stream_of_their_own() -> None:
    cores = FakeSource("cores", 1.0)
    stage = Stage(cores)
    stage.begin(1)
    stage.run_for(2.05)
    assert stage.sink.segments == ["main", "cores"]
    assert stage.times("cores") == pytest.approx([0, 1, 2])
    assert len(stage.times()) == 21


class FakeBacklog(FakeSource):
    """A driver that samples every 250 ms of the clock's time of day."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__("driver", 5.0)
        self.clock = clock
        self.newest = 0

    def drain(self) -> list[Stamped]:
        now = int(self.clock.wall() * 1e6) // 250_000
        slots = range(self.newest + 1, now + 1) if self.newest else ()
        self.newest = now
        return [Stamped(slot * 250_000, [float(slot)]) for slot in slots]


def test_a_drivers_own_samples_are_put_on_our_clock() -> None:
    stage = Stage()
    stage.clock.wall = lambda: 1.7e9 + (stage.clock.now - 10**12) / 1e9  # type: ignore[method-assign]
    stage.sampler = Sampler([stage.source], stage.sink, stage.clock, 10.0, [FakeBacklog(stage.clock)])
    stage.run_for(7)
    assert stage.times("driver") == [], "between cells they are dropped"
    stage.begin(1)
    stage.run_for(0.6)
    stage.end(1)
    assert stage.times("driver")[-3:] == pytest.approx([7.0, 7.25, 7.5], abs=1e-3)
    stage.run_for(6)
    assert stage.times("driver")[-1] > 10, "the last of them come after the cell"
    written = len(stage.times("driver"))
    stage.run_for(60)
    assert len(stage.times("driver")) <= written + 24


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_drivers_samples_from_before_the_clock_was_set_are_in_no_other_cell(hours: int) -> None:
    stage = Stage()
    backlog = FakeBacklog(stage.clock)
    stage.sampler = Sampler([stage.source], stage.sink, stage.clock, 10.0, [backlog])
    stage.begin(1)
    stage.run_for(6.5)
    before = stage.times("driver")
    kept = backlog.drain()
    assert kept, "taken, and not asked for yet"
    backlog.drain = lambda: kept  # type: ignore[method-assign]
    stage.clock.set_by = hours * 3600 * 1000 * MS
    stage.end(1)
    assert stage.times("driver") == before


def test_a_full_disk_loses_samples_but_no_edge_and_says_so() -> None:
    stage = Stage()
    stage.run_for(0.5)
    stage.sink.full = True
    stage.begin(1)
    stage.run_for(0.25)
    stage.end(1)
    stage.sink.full = False
    stage.run_for(1)
    assert [e["event"] for e in stage.sink.events] == ["anchor", "cell_start", "cell_end", "gap"]
    assert stage.sink.gaps()[0]["reason"] == "4 samples could not be written: No space left on device"
    assert stage.times() == pytest.approx([0, 1.75])


def test_notices_of_sources_become_events() -> None:
    stage = Stage()
    stage.source.notices.append(Notice("lost", None, "gpu1", "it fell off the bus"))
    stage.run_for(0)
    (event,) = [e for e in stage.sink.events if e["event"] == "lost"]
    assert (event["subject"], event["reason"]) == ("gpu1", "it fell off the bus")
    assert stage.source.notices == []


def test_the_wall_clock_is_noted_once_a_minute() -> None:
    stage = Stage()
    stage.run_for(150)
    anchors = [(e["t"] - stage.start) / 1e9 for e in stage.sink.events if e["event"] == "anchor"]
    assert anchors == pytest.approx([0, 60, 120])


def test_other_columns_get_a_segment_of_their_own_and_the_rest_goes_on() -> None:
    cores = FakeSource("cores", 1.0)
    stage = Stage(cores)
    stage.begin(1)
    stage.run_for(0.45)
    stage.sampler.change([stage.source, FakeSource(subject="gpu1"), cores], [])
    stage.run_for(0.2)
    assert stage.sink.segments == ["main", "cores", "main"]
    assert stage.times() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert stage.times("cores") == [0], "no sooner than it was due"
    assert stage.tags() == [1] * 7
    assert stage.sink.gaps() == []


def test_the_same_columns_from_other_sources_go_on_in_their_segment() -> None:
    stage = Stage()
    stage.run_for(1)
    stage.sampler.change([FakeSource()], [])
    stage.run_for(1)
    assert stage.sink.segments == ["main"]
    assert stage.times() == pytest.approx([0, 1, 2])


def test_other_columns_on_a_full_disk_begin_when_it_has_room() -> None:
    stage = Stage()
    stage.begin(1)
    stage.sink.full = True
    stage.sampler.change([stage.source, FakeSource(subject="gpu1")], [])
    stage.run_for(0.35)
    assert stage.sink.segments == ["main"]
    stage.sink.full = False
    stage.run_for(0.3)
    assert stage.sink.segments == ["main", "main"]
    assert stage.sink.gaps()[0]["reason"] == "3 samples could not be written: No space left on device"


def test_time_that_a_driver_took_is_a_gap_with_that_reason_once() -> None:
    stage = Stage()
    stage.begin(1)
    for late in (450, 50, 450):
        if late == 450 and not stage.sink.gaps():
            stage.sampler.busy_with("the NVIDIA driver was being opened anew")
        stage.clock.now += late * MS
        stage.run_for(0.1)
    reasons = [gap["reason"] for gap in stage.sink.gaps()]
    assert reasons == ["the NVIDIA driver was being opened anew", "the recorder was stopped or got no CPU time"]
