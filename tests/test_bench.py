"""The benches work and print their table; no figure is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.delivery import cases, delivered
from bench.effort import Effort
from bench.live import latencies
from bench.load import PEER_PYTHON
from bench.processes import often_and_rarely
from bench.slowdown import contains_one
from bench.table import LONGEST_METRIC, WIDTH, Figure, Line, Section, compare, heading, render
from cellmeter.rules import RULES

REPOSITORY = Path(__file__).parents[1]


def _bench(name: str, tmp_path: Path) -> dict[str, list[dict[str, object]]]:
    """Runs a bench, looks at its table and returns what it wrote as JSON: the lines of each section."""
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", name, "--short", "--json", str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")
    assert "metric" in done.stdout
    assert all(len(row) <= WIDTH for row in done.stdout.splitlines()[2:]), done.stdout
    sections = {section["title"]: section["lines"] for section in json.loads(path.read_text())["sections"]}
    assert all(title in done.stdout for title in sections)
    assert all(len(line["metric"]) <= LONGEST_METRIC for lines in sections.values() for line in lines)
    return sections


def test_recorder(tmp_path: Path) -> None:
    sections = _bench("recorder", tmp_path)
    assert len(sections) == 6
    assert all(line["ours"]["value"] > 0 for lines in sections.values() for line in lines)
    peers = {line["peer_name"] for lines in sections.values() for line in lines}
    assert {"psutil", "psutil, lean", "C"} <= peers


def test_delivery(tmp_path: Path) -> None:
    (lines,) = _bench("delivery", tmp_path).values()
    assert [line["unit"] for line in lines] == ["%", "ms"] * 2


def test_page(tmp_path: Path) -> None:
    sent, day = _bench("page", tmp_path).values()
    assert all(line["ours"]["value"] > 100 for line in sent)
    assert day[-1]["unit"] == "ms"


def test_live(tmp_path: Path) -> None:
    latency, first, many = _bench("live", tmp_path).values()
    assert [line["metric"] for line in latency] == ["idle: p50", "idle: p95", "idle: worst"]
    assert all(line["ours"]["value"] > 0 for line in [*latency, *first])
    assert many[-1]["unit"] == "ms"


def test_latency_is_that_of_the_first_frame_with_the_reading() -> None:
    readings = [(1.0, 1.0), (1.2, 2.0), (1.3, 3.0), (1.4, 4.0), (1.5, 5.0)]
    drawn = [(1.0, 1.1), (3.0, 1.35), (2.0, 1.4), (4.0, 1.6)]
    assert latencies(readings, drawn) == pytest.approx([150, 50, 200]), "none before the first frame, none never drawn"
    with pytest.raises(RuntimeError):
        latencies(readings, [(5.0, 2.0)])


def test_slowdown(tmp_path: Path) -> None:
    assert len(_bench("slowdown", tmp_path)) == 2


def test_labelled(tmp_path: Path) -> None:
    (lines,) = _bench("labelled", tmp_path).values()
    assert len(lines) == 2 * len(RULES)
    assert all(line["met"] for line in lines)


def test_load(tmp_path: Path) -> None:
    loading, cells = _bench("load", tmp_path).values()
    assert loading[0]["metric"] == "%load_ext, wall time"
    assert cells[0]["ours"]["value"] > 0


@pytest.mark.skipif(not PEER_PYTHON.exists(), reason="the peers are only installed by `python -m bench peers`")
@pytest.mark.skipif(os.geteuid() != 0, reason="JUmPER needs a PID namespace of its own")
def test_peers(tmp_path: Path) -> None:
    sections = _bench("peers", tmp_path)
    assert len(sections) == 2
    assert all(lines for lines in sections.values())


def test_the_ratio_is_of_pairs_and_the_target_is_held_against_it() -> None:
    line = compare("CPU", "µs", [100.0, 200.0, 300.0], "peer", [400.0, 800.0, 1200.0], 1 / 3)
    assert line.ratio == Figure(0.25, 0.25, 0.25, 3)
    assert line.met is True
    assert compare("CPU", "µs", [100.0], "peer", [200.0], 1 / 3).met is False
    assert compare("CPU", "µs", [100.0], "peer", [0.0], 1 / 3).met is None


@pytest.mark.parametrize(
    ("low", "high", "met"), [(0.99, 1.01, True), (1.001, 1.02, False), (0.98, 0.999, False), (0.9, 1.1, None)]
)
def test_a_slowdown_is_undecided_where_the_interval_is_wide(low: float, high: float, met: bool | None) -> None:
    assert contains_one(Figure(1.0, low, high)) is met


def test_a_missed_target_is_seen_in_a_row_that_fits() -> None:
    line = Line(
        "x" * LONGEST_METRIC,
        "µs",
        Figure(12345.6),
        "psutil, lean",
        Figure(98765.4),
        Figure(0.12, 0.1, 0.2),
        "≤ 0.333 ×",
        False,
    )
    _, row, *notes = render(Section("title", (line,), ("long " * 60,))).splitlines()
    assert row.endswith("NO")
    assert max(map(len, [row, heading().splitlines()[0], *notes])) <= WIDTH
    assert len(notes) > 1


def test_delivered_counts_slots_and_the_gap_reaches_the_edges() -> None:
    times = [0.1 * n for n in range(1, 10)]
    assert delivered((0.0, 1.0, times), 10) == (100.0, pytest.approx(0.1))
    percent, gap = delivered((0.0, 1.0, [0.1, 0.2, 0.3]), 10)
    assert (percent, gap) == (pytest.approx(100 / 3), pytest.approx(0.7))
    assert delivered((0.0, 2.0, [5.0]), 10) == (0.0, 2.0)


def test_the_full_grid_is_all_of_the_issue_and_the_usual_one_a_part() -> None:
    full = cases(Effort.FULL)
    assert max(len(f"{case.title}: delivered") for case in full) <= LONGEST_METRIC
    assert set(cases(Effort.USUAL)) < set(full)
    assert {(c.rate_hz, c.load, c.workers) for c in full} >= {
        (rate, load, workers)
        for rate in (10.0, 50.0, 100.0)
        for load in ("idle", "python", "gil", "blas")
        for workers in (0, 4, 32)
    }


def test_the_bound_reads_once_a_second_what_the_recorder_does() -> None:
    files = ["/proc/stat", "/proc/7/io", "/proc/8/io", "/proc/8/stat", "/proc/stat"]
    often, rarely = often_and_rarely(files, 7)
    assert often == ["/proc/7/io", "/proc/8/stat", "/proc/stat"]
    assert rarely == ["/proc/8/io", "/proc/stat"]
