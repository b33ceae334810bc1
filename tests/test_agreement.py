"""The same quantity is the same number wherever it is shown, parts never exceed their whole, and the unknown is no 0."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from builders import GIB, MIB, CellPlan, GpuWork, a_cell, a_device, a_run, without
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmeter import charts, still
from cellmeter.costs import costs
from cellmeter.export import render
from cellmeter.export.amounts import disk_bytes, memory_peaks, tree_peak
from cellmeter.export.devices import DeviceStatistics, device_statistics
from cellmeter.export.html import inline_html
from cellmeter.export.html.page import html_report
from cellmeter.export.records import cell_records
from cellmeter.export.report_json import report
from cellmeter.export.rows import cell_rows
from cellmeter.export.selection import Part
from cellmeter.export.table import write_csv
from cellmeter.export.text import cells_table
from cellmeter.export.traces import trace_spans
from cellmeter.rules import judge
from cellmeter.rules.observed import cell_seconds
from cellmeter.rules.ownership import not_used
from cellmeter.run import Column, Run
from cellmeter.settings import Prices
from cellmeter.sizing import sizes

GPU = a_device("gpu0", mine=True)
PRICES = Prices(gpu_hour=2.5, cpu_hour=0.1, memory_gb_hour=0.05)


def of_the_gpu(run: Run) -> DeviceStatistics:
    return next(one for one in device_statistics(run) if one.device == "gpu0")


def course(most: float) -> st.SearchStrategy[Callable[[float], float]]:
    """A signal that jumps every second between levels up to ``most``."""
    levels = st.lists(st.floats(0, most), min_size=1, max_size=4)
    return levels.map(lambda found: lambda t: found[int(t) % len(found)])


def plans() -> st.SearchStrategy[CellPlan]:
    work = st.builds(
        GpuWork, utilization=course(100), memory=course(70 * GIB), power=st.floats(30, 700), active=course(100)
    )
    return st.builds(
        CellPlan,
        seconds=st.floats(0.02, 15),
        rss=course(20 * GIB),
        cores=course(8),
        disk_read=course(1e9),
        disk_written=course(1e9),
        gpu=work.map(lambda gpu: {"gpu0": gpu}),
    )


runs = st.builds(
    lambda cells, pause: a_run(*cells, devices=[GPU], pause=pause),
    st.lists(plans(), min_size=1, max_size=6),
    st.floats(0.5, 5),
)


def inside(run: Run, metric: str, subject: str, seq: int) -> np.ndarray:
    series = run.series(metric, subject)
    return series.values[(series.seq == seq) & ~np.isnan(series.values)]


def grown(run: Run, metric: str, subject: str) -> float:
    values = run.series(metric, subject).values
    return float(values[-1] - values[0])


def at_most(part: float | None, whole: float | None) -> bool:
    return part is None or whole is None or part <= whole * (1 + 1e-9) + 1e-6


@settings(max_examples=30)
@given(runs)
def test_no_part_is_more_than_its_whole(run: Run) -> None:
    used = [run.usage(cell) for cell in run.cells]
    assert at_most(sum(one.cpu_seconds or 0 for one in used), grown(run, "process.cpu.time", "process"))
    assert at_most(sum(one.read_bytes or 0 for one in used), disk_bytes(run, "read"))
    assert at_most(sum(one.written_bytes or 0 for one in used), disk_bytes(run, "written"))
    assert at_most(sum(one.gpu["gpu0"].energy_joules or 0 for one in used), grown(run, "gpu.energy", "gpu0"))
    assert at_most(sum(cell.seconds or 0 for cell in run.cells), run.duration)
    assert at_most(sum(of_the_gpu(run).histogram_seconds or ()), cell_seconds(run))
    for size in sizes(run):
        assert at_most(size.peak, size.highest)
        assert at_most(size.needed_at_least, size.needed)
    spent = costs(run, PRICES)
    assert spent is not None
    for item in spent.items:
        assert item.used + item.unused + item.unknown == pytest.approx(item.held)
        assert min(item.used, item.unused, item.unknown) >= 0
    assert all(at_most(finding.waste.gpu_seconds, run.duration) for finding in judge(run).findings)


@settings(max_examples=30)
@given(runs)
def test_no_mean_is_above_its_peak_and_no_reading_either(run: Run) -> None:
    peaks = memory_peaks(run)
    for cell in run.cells:
        used, gpu = run.usage(cell), run.usage(cell).gpu["gpu0"]
        assert used.peak_rss_bytes is not None
        assert math.floor(inside(run, "process.memory.rss", "process", cell.seq).max()) <= used.peak_rss_bytes
        assert used.peak_rss_bytes <= (tree_peak(run, cell) or 0) <= (peaks.tree or 0)
        utilization = inside(run, "gpu.utilization", "gpu0", cell.seq)
        assert at_most(gpu.utilization_mean, utilization.max())
        assert at_most(gpu.utilization_p95, utilization.max())
        assert at_most(utilization.min(), gpu.utilization_mean)
        assert at_most(used.cores, 8)
    for spread in of_the_gpu(run).spreads:
        ordered = [spread.quantiles[name] for name in ("min", "p50", "p95", "p99", "max")]
        assert all(at_most(low, high) for low, high in pairwise(ordered))
        assert at_most(ordered[0], spread.mean)
        assert at_most(spread.mean, ordered[-1])


SAME = ("cpu_seconds", "peak_rss_bytes", "rss_start_bytes", "rss_end_bytes", "read_bytes", "written_bytes")

FLAT = {"utilization_mean": "utilization_mean_percent"} | {n: n for n in ("memory_peak_bytes", "energy_joules")}


def agree(one: Any, other: Any) -> bool:
    missing = [value is None or (isinstance(value, float) and math.isnan(value)) for value in (one, other)]
    return all(missing) if any(missing) else bool(one == pytest.approx(other, abs=1e-6))


@settings(max_examples=30)
@given(
    runs, st.sampled_from([None, ("gpu.utilization", "gpu0"), ("gpu.energy", "gpu0"), ("process.cpu.time", "process")])
)
def test_all_formats_have_the_same_figures_of_a_cell(run: Run, lost: tuple[str, str] | None) -> None:
    run = run if lost is None else without(run, *lost, "not here")
    told = json.loads(render(run, "json"))["cells"]
    frame = run.cells_frame().to_dict("index")
    rows = cell_rows(run)
    spans = {span.name: span.attributes for span in trace_spans(run, judge(run))}
    shown = cells_table(run).splitlines()
    for cell, record, row in zip(told, cell_records(run), rows, strict=True):
        framed = frame[cell["seq"]]
        assert all(agree(cell[name], record[name]) and agree(cell[name], framed[name]) for name in SAME)
        assert agree(cell["end"] - cell["start"], record["duration_seconds"])
        assert (row.cpu_seconds, row.cores, row.peak_bytes) == (
            cell["cpu_seconds"],
            cell["cores"],
            cell["peak_rss_bytes"],
        )
        gpu = cell["gpu"]["gpu0"]
        for name, flat in (
            ("utilization_mean", "utilization_mean_percent"),
            ("memory_peak_bytes",) * 2,
            ("energy_joules",) * 2,
        ):
            assert agree(gpu[name], record[f"gpu0_{flat}"])
            assert agree(gpu[name], framed[f"{name}:gpu0"])
            assert agree(gpu[name], spans[row.title].get(f"cellmeter.cell.gpu0.{flat}"))
        assert agree(row.gpu_percent, gpu["utilization_mean"])
        assert agree(row.energy_joules, gpu["energy_joules"])
        assert any(all(text in line for text in row.texts()) for line in shown)
        for name in ("utilization_mean", "energy_joules"):
            assert (gpu[name] is None) == (f"gpu.gpu0.{name}" in cell["unknown"]), "what is unknown has a reason"
        if lost is not None:
            gone = {"gpu.utilization": gpu["utilization_mean"], "gpu.energy": gpu["energy_joules"]}
            assert gone.get(lost[0], cell["cpu_seconds"]) is None


@settings(max_examples=30)
@given(runs)
def test_samples_in_a_file_are_those_of_the_run(run: Run) -> None:
    file = io.BytesIO()
    write_csv(run, file, Part(None, 0.0))
    rows: dict[tuple[str, str], list[float]] = {}
    for row in csv.DictReader(file.getvalue().decode().splitlines()):
        rows.setdefault((row["metric"], row["subject"]), []).append(float(row["value"] or "nan"))
    for key in (("process.cpu.usage", "process"), ("gpu.utilization", "gpu0"), ("process.memory.rss", "process")):
        np.testing.assert_allclose(rows[key], run.series(*key).values)


def test_many_short_cells_and_the_pauses_between_them_weigh_no_more_than_they_last() -> None:
    idle = [a_cell(0.05, cores=0.0) for _ in range(40)]
    run = a_run(a_cell(18, cores=4.0, gpu={"gpu0": GpuWork(100.0)}), *idle, devices=[GPU])
    (utilization, *_) = of_the_gpu(run).spreads
    assert utilization.mean == pytest.approx(90, abs=1)
    assert utilization.quantiles["p50"] == 100
    page = html_report(run)
    assert ">90 %<" in page.split("GPU use in cells")[1][:60]
    assert ">3.6" in page.split("CPU use in cells")[1][:60]


@pytest.mark.parametrize(("lost_at", "mean"), [(18.0, 70), (9.0, None)])
def test_a_gpu_that_was_lost_for_most_of_a_cell_has_no_mean_of_it(lost_at: float, mean: float | None) -> None:
    work = GpuWork(lambda t: 70 if t < lost_at else math.nan)
    run = a_run(a_cell(20, gpu={"gpu0": work}), devices=[GPU])
    cell = report(run)["cells"][0]
    assert cell["gpu"]["gpu0"]["utilization_mean"] == (None if mean is None else pytest.approx(mean))
    assert cell["unknown"].get("gpu.gpu0.utilization_mean") == (
        None if mean else "it was read for less than 80 % of the cell"
    )


def test_a_reading_above_the_mark_is_the_peak_wherever_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts both apart: the panel said 373 MiB, the report 372."""
    run = a_run(a_cell(10, rss=lambda t: 373 * MIB if 5 <= t < 6 else 300 * MIB))
    run = replace(run, cells=(replace(run.cells[0], peak_rss_bytes=372 * MIB + MIB // 4),))
    panel: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, metadata: panel.append(data))
    still.show_cell(run, run.cells[0])
    for text in (panel[0]["text/plain"], cells_table(run), html_report(run)):
        assert "373 MiB" in text
        assert "372 MiB" not in text
    assert report(run)["cells"][0]["peak_rss_bytes"] == 373 * MIB
    assert report(run)["cells"][0]["peak_exact"]


def test_gpus_that_only_others_use_are_in_no_figure_of_the_runs() -> None:
    """A shared machine, on which CUDA_VISIBLE_DEVICES does not say whose they are."""
    busy = GpuWork(100, context=0.0, foreign=1, power=700.0)
    mine = {"gpu0": GpuWork(40, power=200.0), "gpu1": busy, "gpu2": busy}
    run = a_run(
        a_cell(20, gpu=mine),
        a_cell(20, gpu={"gpu1": busy, "gpu2": busy}),
        devices=[a_device(f"gpu{n}") for n in range(3)],
        pause=5.0,
    )
    first, second = cell_rows(run)
    assert (first.gpu_percent, second.gpu_percent, second.energy_joules) == (40, 0, 0)
    assert first.energy_joules == pytest.approx(20 * 200, rel=0.05)
    page = html_report(run)
    assert "mean of 1 GPU<" in page
    assert "<dd>4.00 kJ<" in page
    idle = a_run(a_cell(20, gpu={"gpu0": busy}), devices=[a_device()])
    assert "1 GPU, not used by this kernel" in html_report(idle)
    panels = charts.without(
        charts.panels([Column("gpu.utilization", f"gpu{n}", "%") for n in range(3)], {}, run.devices, ("gpu",)),
        not_used(run, 0.0, 20.0),
    )
    assert [line.role for line in panels[0].lines] == ["main", "other", "other"]


def test_a_gpu_may_have_come_to_be_used_after_the_last_process_list() -> None:
    """``model.cuda()`` at the end of a long cell: the lists are of before, but the GPU's memory has grown."""
    late = GpuWork(lambda t: 80 if t > 9 else 0, context=0.0, memory=lambda t: 3 * GIB if t > 9 else float(MIB))
    early = replace(late, memory=lambda t: 3 * GIB if t > 5 else float(MIB))  # another's: a list came after it
    run = a_run(a_cell(9.9, gpu={"gpu0": late, "gpu1": early}), devices=[a_device("gpu0"), a_device("gpu1")])
    assert not_used(run, run.cells[0].start, run.cells[0].end or 0.0) == {"gpu1"}
    (row,) = cell_rows(run)
    assert row.gpu_percent is not None
    assert row.gpu_percent > 5


def test_a_cell_reads_the_same_wherever_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 1.46 GiB were 1.5 in the report, its 4.02 s were 4.0, its 10.4 cores 10, and what it freed had a hyphen."""
    rise = a_cell(
        4, rss=lambda t: GIB if t < 2 else 1.6 * GIB, peak=int(12.46 * GIB), cores=10.4, gpu={"gpu0": GpuWork(61)}
    )
    fall = a_cell(75, rss=lambda t: 1.6 * GIB if t < 2 else 1.2 * GIB, cores=1.016)
    run = a_run(rise, fall, devices=[GPU], cores=16.0)
    held = ((GIB, int(1.6 * GIB)), (int(1.6 * GIB), int(1.2 * GIB)))  # as the kernel says it at a cell's edges
    edges = zip(run.cells, held, strict=True)
    run = replace(run, cells=tuple(replace(c, rss_start_bytes=a, rss_end_bytes=b) for c, (a, b) in edges))
    panel: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, metadata: panel.append(data))
    reports = [cells_table(run), *(render(run, format) for format in ("text", "md", "html")), inline_html(run)]
    for cell, row in zip(run.cells, cell_rows(run), strict=True):
        panel.clear()
        still.show_cell(run, cell)
        title, seconds, cores, peak, growth, use, joules, _ = row.texts()
        said = panel[0]["text/plain"]
        number = peak.removesuffix(" GiB")
        assert f"{title}: done in {seconds} · CPU {cores} of 16 cores · " in said
        assert f" · memory peak {number} of 64 GiB ({growth}) · " in said
        for text in reports:
            assert all(words in text for words in (seconds, cores, peak, growth, use, joules))
    spike = next(finding for finding in judge(run).findings if finding.rule == "memory-spike")
    assert f"memory peaked at {cell_rows(run)[0].texts()[3]}," in spike.fact
    assert "% of the limit, 64 GiB;" in spike.consequence
    assert "of 64 GiB<" in html_report(run)
    assert "memory 64 GiB (" in " ".join(render(run, "text").split())


def test_the_sample_after_a_cells_end_is_in_no_mean_of_it() -> None:
    """Nor is it in the table's, and of a short cell it is much."""
    specs = charts.panels([Column("gpu.utilization", "gpu0", "%")], {}, [GPU], ("gpu",))
    frame = charts.Frame(specs, np.array([0.0, 0.1, 0.2, 0.3001]), np.array([[60.0], [60.0], [60.0], [0.0]]))
    assert "GPU 60 % mean" in still.summary(frame, still.Facts("x", "ok", 0.3))
    assert "GPU 40 % mean" in still.summary(
        replace(frame, time=frame.time + 1, values=frame.values * 0 + 40), still.Facts("x", "ok", 0.3)
    )


def test_what_the_first_cell_did_before_the_first_sample_is_in_the_runs_total() -> None:
    """The kernel runs on while its recorder starts: such a cell has its bytes by its own edges alone."""
    run = a_run(a_cell(2, disk_written=MIB), a_cell(2, disk_written=MIB))
    first = replace(run.cells[0], start=-0.5, own_written_bytes=100 * MIB)
    run = replace(run, cells=(first, run.cells[1]))
    cells = sum(run.usage(cell).written_bytes or 0 for cell in run.cells)
    assert cells >= 102 * MIB
    assert cells <= (disk_bytes(run, "written") or 0) <= cells + 4 * MIB


def test_a_cell_has_what_ran_within_it() -> None:
    """By ``get_ipython().run_cell``."""
    run = a_run(a_cell(10, rss=GIB), a_cell(10, rss=3 * GIB, cores=1.0), a_cell(10, rss=GIB), devices=[GPU], pause=0.0)
    whole = replace(run.cells[0], end=run.cells[2].end, peak_rss_bytes=None)
    nested = [replace(cell, parent=1) for cell in run.cells[1:]]
    run = replace(run, cells=(whole, *nested))
    usage = run.usage(run.cells[0])
    assert usage.peak_rss_bytes == 3 * GIB
    assert tree_peak(run, run.cells[0]) == 3 * GIB
    assert usage.cpu_seconds == pytest.approx(12, rel=0.05)
    joules = report(run)["cells"][0]["gpu"]["gpu0"]["energy_joules"]
    assert joules == pytest.approx(1500, rel=0.02)
    assert "<dd>1.50 kJ<" in html_report(run), "and what a nested cell used counts once"
