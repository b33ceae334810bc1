"""The timeline of the report: Bokeh figures of a whole run, thinned so that nothing is missed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import GIB, GpuWork, a_cell, a_device, a_run, hump
from hypothesis import given
from hypothesis import strategies as st

from cellmeter import timeline
from cellmeter.run import Run


def columns_of(run: Run, name: str) -> dict[str, np.ndarray]:
    fig = next(fig for fig in timeline.run_figures(run).children if fig.name == name)
    return dict(next(r for r in fig.renderers if r.name == "c0").data_source.data)


def test_a_runs_figures_are_banded_by_its_cells_and_bounded() -> None:
    from bokeh.models import ColumnDataSource
    from bokeh.models.annotations import Label

    run = a_run(a_cell(400, label="load", gpu={"gpu0": GpuWork(90)}), a_cell(400, label="train"), devices=[a_device()])
    layout = timeline.run_figures(run)
    assert [fig.name for fig in layout.children] == ["cpu", "memory", "gpu", "gpu-memory"]
    strips = [r for fig in layout.children for r in fig.renderers if type(r.glyph).__name__ == "VStrip"]
    assert [len(r.data_source.data["left"]) for r in strips] == [2] * 4
    assert len({r.data_source.id for r in strips}) == 1
    assert {label.text for label in layout.select({"type": Label})} == {"load", "train"}
    assert all(len(s.data.get("t", ())) <= timeline.MOST_POINTS for s in layout.select({"type": ColumnDataSource}))
    assert len({fig.x_range.id for fig in layout.children}) == 1


def test_a_run_without_samples_has_no_figures() -> None:
    assert timeline.run_figures(replace(a_run(), segments=())).children == []


def test_the_title_has_the_exact_peak_that_the_samples_missed() -> None:
    layout = timeline.run_figures(a_run(a_cell(30, rss=GIB, peak=9 * GIB)))
    memory = next(fig for fig in layout.children if fig.name == "memory")
    assert memory.title.text == "Memory with workers · peak 9.00 of 64 GiB"


def test_a_spike_of_one_sample_in_hours_is_drawn() -> None:
    run = a_run(a_cell(5000, rss=hump(GIB, 8 * GIB, 3000, 3000.1)), rate_hz=5.0)
    columns = columns_of(run, "memory")
    assert len(columns["t"]) <= timeline.MOST_STEPS
    assert columns["c0"].max() == 8 * GIB
    use = a_run(
        a_cell(5000, gpu={"gpu0": GpuWork(hump(0, 100, 3000, 3000.1))}), devices=[a_device(mine=True)], rate_hz=5.0
    )
    columns = columns_of(use, "gpu")
    assert columns["c0"].max() < 50  # the mean of its step
    assert columns["c0h"].max() == 100


def test_readings_that_fill_the_page_stay_as_they_are() -> None:
    columns = columns_of(a_run(a_cell(60, rss=hump(GIB, 8 * GIB, 30, 30.1))), "memory")
    assert columns["c0"].max() == 8 * GIB
    assert "c0h" not in columns


def test_a_page_holds_single_precision_and_areas_only_where_there_are_gaps() -> None:
    run = a_run(a_cell(60))
    assert columns_of(run, "memory")["c0"].dtype == np.float32
    assert "c0a" not in columns_of(run, "memory")
    assert "c0a" in columns_of(run, "cpu")  # the first reading of a rate is unknown


def test_lanes_tell_what_was_read() -> None:
    devices = [a_device(f"gpu{i}", mine=True) for i in range(5)]
    run = a_run(a_cell(20, gpu={device.id: GpuWork(60) for device in devices}), devices=devices)
    columns = columns_of(run, "gpu")
    assert columns["c0r"].max() == 60
    assert columns["c0"].max() > 4  # in the topmost lane


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=300),
    st.integers(100, 140),
    st.booleans(),
)
def test_thinning_keeps_the_extremes(few: list[float], times: int, by_peaks: bool) -> None:
    values = np.tile(few, times)[:, None]
    time = np.arange(len(values), dtype=float)
    thin = timeline.thinned(time, values, by_peaks=by_peaks)
    assert len(thin.time) <= max(timeline.MOST_POINTS, timeline.MOST_STEPS)
    assert (np.diff(thin.time) > 0).all() or len(thin.time) < 2 or thin.low is None
    highest = np.fmax.reduce(values)[0]
    assert thin.peaks()[0] == pytest.approx(highest, nan_ok=True)
    if thin.low is not None:
        assert np.fmin.reduce(thin.low)[0] == pytest.approx(np.fmin.reduce(values)[0], nan_ok=True)
