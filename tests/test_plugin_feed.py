"""What the live panel's page gets of what plugins measure."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cellmeter import plugin_feed
from cellmeter.home import new_run_folder
from cellmeter.metrics import Metric
from cellmeter.own_feed import MOST_LOGGED
from cellmeter.plugin_feed import MOST_MARKS, PluginFeed
from cellmeter.run import Column
from cellmeter.store import Writer

SECOND = 1_000_000_000
METRICS = (
    Metric("load.one", "1", "gauge", "host", "cpu", "m", "s"),
    Metric("load.heat", "Cel", "gauge", "disk", "power", "m", "s"),
    Metric("load.turns", "1", "counter", "host", "cpu", "m", "s", rate="load.turns.rate"),
    Metric("load.turns.rate", "1/s", "rate", "host", "cpu", "m", "s"),
    Metric("alike.one", "rpm", "gauge", "host", "cpu", "m", "s"),
)


class Machine:
    """A run folder whose recorder is the test."""

    def __init__(self, home: Path) -> None:
        self.folder = new_run_folder(home)
        self.writer = Writer(self.folder)
        self.start_ns = time.monotonic_ns()
        self.writer.describe(id=self.folder.name, start_ns=self.start_ns, started=time.time(), rate_hz=10)
        self.writer.add_segment("main", [Column("process.memory.rss", "process", "By")])
        self.now = 0.0
        self.feed = PluginFeed(self.folder, lambda: self.now)

    def opens(self, name: str, *columns: tuple[str, str, str]) -> int:
        described = [metric._asdict() for metric in METRICS]
        self.writer.describe(metrics=described)
        return self.writer.add_segment(name, [Column(*column) for column in columns])

    def reads(self, segment: int, at: float, *values: float) -> None:
        self.writer.sample(segment, self.start_ns + round(at * SECOND), 1, 0, values)

    def message(self, **options: Any) -> dict[str, Any] | None:
        """A second later."""
        self.now += 1
        return self.feed.message(self.start_ns, **options)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(plugin_feed, "found", lambda group: ("one",))
    return Machine(tmp_path)


def test_gauges_and_rates_are_marks_with_their_units(machine: Machine) -> None:
    assert machine.message() is None
    columns = (("load.one", "host", "1"), ("load.heat", "nvme0", "Cel"), ("load.turns", "host", "1"))
    segment = machine.opens("load", *columns)
    for at, turns in ((1.0, 100), (1.1, 110), (2.0, 300), (3.0, 10), (4.0, 20)):
        machine.reads(segment, at, at / 2, 40, turns)
    message = machine.message()
    assert message is not None
    assert (message["k"], message["s"], message["others"], message["anew"]) == ("plugins", 0, 0, False)
    marks: dict[str, list[tuple[float, float]]] = {}
    for name, at, value in message["marks"]:
        marks.setdefault(name, []).append((at, value))
    assert marks["one"] == [(1.0, 0.5), (1.1, 0.55), (2.0, 1.0), (3.0, 1.5), (4.0, 2.0)]
    assert marks["heat nvme0"][0] == (1.0, 40)
    assert [(at, pytest.approx(rate)) for at, rate in marks["turns.rate"]] == [(2.0, 200), (4.0, 10)]  # it fell at 3 s
    assert message["units"] == {"heat nvme0": "Cel", "turns.rate": "/s"}


def test_another_plugins_metric_of_the_same_name_is_told_apart(machine: Machine) -> None:
    machine.reads(machine.opens("load", ("load.one", "host", "1")), 1.0, 1)
    machine.message()
    machine.reads(machine.opens("alike", ("alike.one", "host", "rpm")), 2.0, 2)
    message = machine.message()
    assert message is not None
    assert message["marks"] == [["alike.one", 2.0, 2]]
    assert message["units"] == {"alike.one": " rpm"}


def test_much_is_thinned_with_its_spikes_and_the_first_names_are_drawn(machine: Machine) -> None:
    disks = MOST_LOGGED + 2
    segment = machine.opens("load", *(("load.heat", f"nvme{n}", "Cel") for n in range(disks)))
    for n in range(1000):
        machine.reads(segment, 1 + n / 1000, *[99 if n == 777 else float("nan") if n == 5 else 40] * disks)
    message = machine.message(rest=True)
    assert message is not None
    of_first = [value for name, _, value in message["marks"] if name == "heat nvme0"]
    assert len(of_first) <= MOST_MARKS
    assert max(of_first) == 99
    assert message["others"] == 2
    assert json.loads(json.dumps(message, allow_nan=False)) == message


def test_it_is_looked_at_once_a_second_and_sent_anew_whole(machine: Machine) -> None:
    segment = machine.opens("load", ("load.one", "host", "1"))
    machine.reads(segment, 1.0, 1)
    assert machine.message() is not None
    machine.reads(segment, 1.5, 2)
    assert machine.feed.message(machine.start_ns) is None
    assert [mark[2] for mark in (machine.feed.message(machine.start_ns, rest=True) or {})["marks"]] == [2]
    again = machine.message(anew=True)
    assert again is not None
    assert [mark[2] for mark in again["marks"]] == [1, 2]


def test_without_a_plugin_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_feed, "found", lambda group: ())
    feed = PluginFeed(tmp_path / "nowhere")
    assert feed.message(0, rest=True) is None
