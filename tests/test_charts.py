from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import GIB, NAN, GpuWork, a_cell, a_device, a_run, hump, own_words

from cellmeter import charts, timeline
from cellmeter.charts import BLUE, Frame, Line, PanelSpec
from cellmeter.run import Column, Limit, Rates

CASES = json.loads((Path(__file__).parents[1] / "js" / "format_cases.json").read_text())
RATES = Rates(10.0, 4.0, 4.0)
BASE = [
    Column("process.cpu.time", "process", "s"),
    Column("host.cpu.time", "host", "s"),
    Column("process.memory.rss", "process", "By"),
    Column("process.disk.read", "process", "By"),
]


def spec_of(
    unit: str, limit: float | None = None, roles: tuple[str, ...] = ("main",), lanes: bool = False
) -> PanelSpec:
    lines = tuple(Line("x", str(i), str(i), role, BLUE) for i, role in enumerate(roles))  # type: ignore[arg-type]
    return PanelSpec("x", "X", unit, lines, limit, lanes)


def test_axes_are_scaled_as_the_page_does() -> None:
    for top, unit, ticks in CASES["ticks"]:
        assert charts.value_ticks(top, unit) == ticks
    for start, end, labels in CASES["time"]:
        assert [label for _, label in charts.time_ticks(start, end)] == labels
    for panel, peaks, top in CASES["top"]:
        spec = spec_of(panel["unit"], panel["limit"], tuple(panel["roles"]), panel["lanes"])
        spec = replace(spec, exact_peak=panel.get("exact"))
        assert charts.scale_top(spec, peaks) == pytest.approx(top)


def test_panels_are_those_that_can_be_filled() -> None:
    limits = {"cpu_cores": Limit(2.0, "cpuset"), "memory_bytes": Limit(8.0 * GIB, "cgroup")}
    cpu, memory = charts.panels(BASE, limits, [], charts.DEFAULT_GROUPS)
    assert [line.metric for line in cpu.lines] == ["process.cpu.usage", "host.cpu.usage"]
    assert (cpu.limit, memory.limit) == (2.0, 8.0 * GIB)
    assert [spec.key for spec in charts.panels(BASE, limits, [], ("io", "net", "power"))] == ["io"]


def test_what_the_kernel_does_not_tell_is_taken_from_the_machine() -> None:
    (cpu,) = charts.panels(BASE[1:2], {}, [], ("cpu",))
    assert [(line.subject, line.role) for line in cpu.lines] == [("host", "main")]


@pytest.mark.parametrize(("count", "lanes"), [(1, False), (3, False), (4, True), (8, True)])
def test_many_gpus_get_a_lane_each(count: int, lanes: bool) -> None:
    devices = [a_device(f"gpu{i}") for i in range(count)]
    columns = [Column("gpu.utilization", d.id, "%") for d in devices]
    (panel,) = charts.panels(columns, {}, devices, ("gpu",))
    assert panel.lanes is lanes
    assert len(panel.lines) == count


def test_gpus_of_others_are_left_out() -> None:
    devices = [a_device("gpu0", mine=False), a_device("gpu1", mine=True), a_device("gpu2", mine=None)]
    columns = [Column("gpu.utilization", d.id, "%") for d in devices]
    (panel,) = charts.panels(columns, {}, devices, ("gpu",))
    assert [line.subject for line in panel.lines] == ["gpu1", "gpu2"]


def test_decimation_keeps_spikes_in_their_order_and_gaps() -> None:
    values = np.ones((10_000, 2))
    values[5001, 0], values[5003, 0] = 100, -100
    values[6000:7000, 1] = NAN
    time, few = charts.decimate(np.arange(10_000.0), values, 200)
    assert few.shape == (200, 2)
    assert (time[0], time[-1]) == (0, 9999)
    assert (np.diff(time) >= 0).all()
    assert list(few[:, 0]).index(-100) == list(few[:, 0]).index(100) + 1
    assert np.isnan(few[:, 1]).sum() == 20


def test_few_rows_are_left_alone() -> None:
    time, values = np.arange(10.0), np.ones((10, 1))
    assert charts.decimate(time, values, 10)[1] is values


def test_rates_are_made_of_counters_and_the_rest_is_taken_as_it_is() -> None:
    specs = charts.panels(BASE, {}, [], ("cpu", "memory", "io"))
    time = np.arange(5) * 0.1
    stored = np.column_stack([time * 2, time * 3, np.full(5, 7.0), time * 100])
    values = charts.values_of(specs, BASE, time, stored, RATES)
    assert np.isnan(values[0, [0, 1, 3]]).all()
    assert values[1, 3] == pytest.approx(100)
    assert np.isnan(values[2, :2]).all(), "ticks of 10 ms tell nothing of a tenth of a second"
    assert values[3] == pytest.approx([2, 3, 7, 100])


@pytest.mark.parametrize("rate_hz", [10.0, 100.0])
def test_no_rate_is_more_than_the_machine_can_do(rate_hz: float) -> None:
    """Counters that tick in 10 ms, of a machine of two cores that is half busy, and of one that is full."""
    specs = charts.panels(BASE, {}, [], ("cpu",))
    time = np.arange(0, 10, 1 / rate_hz)
    late = time + 0.003 * np.sin(np.arange(len(time)))  # read a little later than they are stamped
    for cores in (1.0, 2.0):
        stored = np.column_stack([np.floor(late * cores * 100) / 100] * 2 + [time, time])
        rates = charts.values_of(specs, BASE, time, stored, Rates.on(rate_hz, 2, {}))[30:]
        assert rates.max() <= 2
        assert rates.min() >= 0.9 * cores
        assert abs(rates.mean() - cores) < 0.02 * cores


def test_what_limits_cores_bounds_what_they_do_but_a_quota_does_not() -> None:
    assert Rates.on(10.0, 8, {}) == (10.0, 8, 8)
    assert Rates.on(10.0, 8, {"cpu_cores": Limit(2.0, "cpuset")}) == (10.0, 8, 2)
    assert Rates.on(10.0, 8, {"cpu_cores": Limit(2.0, "cgroup")}) == (10.0, 8, 8)


def test_cores_of_a_cell() -> None:
    rates = Rates.on(10.0, 2, {})
    assert rates.mean_cores(0.0026, 0.001) is None
    assert rates.mean_cores(None, 10) is None
    assert rates.mean_cores(15.0, 10) == 1.5
    assert rates.mean_cores(20.4, 10) == 2


def test_a_column_that_has_gone_is_unknown_not_zero() -> None:
    specs = charts.panels(BASE, {}, [], ("memory",))
    values = charts.values_of(specs, BASE[:1], np.arange(3.0), np.ones((3, 1)), RATES)
    assert np.isnan(values).all()


def test_a_frame_of_a_run_has_every_panels_values() -> None:
    run = a_run(a_cell(20, rss=hump(GIB, 3 * GIB, 5, 6), gpu={"gpu0": GpuWork(90)}), devices=[a_device()])
    frame = charts.frame_of(run, 0, run.duration)
    keys = [spec.key for spec in frame.panels]
    assert keys == ["cpu", "memory", "gpu", "gpu-memory"]
    assert np.nanmax(frame.of(frame.panels[1])[:, 0]) == 3 * GIB
    assert np.nanmax(frame.of(frame.panels[2])) == 90


def test_lanes_are_stacked_from_the_top() -> None:
    lines = tuple(Line("gpu.utilization", f"gpu{i}", f"gpu{i}", "main", BLUE, 100.0) for i in range(4))
    spec = PanelSpec("gpu", "GPU", "%", lines, 100.0, lanes=True)
    drawn = charts.lane_values(spec, np.array([[100.0, 50.0, 0.0, NAN]]))
    assert drawn[0, :3] == pytest.approx([3.84, 2.42, 1.0])
    assert np.isnan(drawn[0, 3])


def test_thinning_again_changes_nothing_and_a_spike_stays_near() -> None:
    time, values = np.arange(10_000) / 10, np.ones((10_000, 2))
    values[5004, 0], values[7000:7800, 1] = 9, NAN
    few = charts.thinned(time, values, 8)
    again = charts.thinned(*few, 8)
    assert len(few[0]) == 250
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(few, again, strict=True))
    wider = charts.thinned(*charts.thinned(*few, 16), 32)
    assert abs(wider[0][wider[1][:, 0].argmax()] - 500.4) < 32
    assert np.isnan(few[1][:, 1]).sum() == 18, "two in each of the nine parts that it fills"


def test_a_peak_that_no_sample_has_seen_is_within_the_scale() -> None:
    spec = replace(spec_of("By", roles=("main", "faint")), key="memory", exact_peak=4.0 * GIB)
    assert charts.scale_top(spec, [1.0 * GIB, 1.0 * GIB]) == pytest.approx(4.4 * GIB)
    assert charts.hidden_peak(spec, [1.0 * GIB, NAN]) == 4 * GIB
    assert charts.hidden_peak(spec, [3.95 * GIB, NAN]) is None
    assert charts.hidden_peak(spec, [NAN, NAN]) is None


def test_a_run_without_samples_has_no_panels() -> None:
    assert charts.frame_of(replace(a_run(), segments=()), 0, 1).panels == ()


def test_the_panels_need_neither_bokeh_nor_numpy() -> None:
    code = (
        "import sys; from cellmeter import charts, words; charts.panels([], {}, [], ('cpu',)); words.value_text(1, 'By');"
        "sys.exit(' '.join({'bokeh', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr.strip() == b""


def test_a_frame_knows_which_columns_are_whose() -> None:
    one, two = spec_of("W"), spec_of("By", roles=("main", "faint"))
    two = PanelSpec("y", two.title, two.unit, two.lines)
    frame = Frame((one, two), np.zeros(1), np.array([[1.0, 2.0, 3.0]]))
    assert frame.of(two).tolist() == [[2.0, 3.0]]


def test_what_the_code_said_is_drawn_below_on_the_same_axis() -> None:
    silent = a_run(a_cell(30))
    said = replace(silent, own=own_words(30))
    few, more = timeline.run_figures(silent).children, timeline.run_figures(said).children
    own = more[len(few) :]
    titles = [fig.title.text for fig in own]
    assert titles[0] == "Spans"
    assert titles[1].startswith("Steps/s · peak ")
    assert titles[2].startswith("tokens/s · peak ")
    assert titles[3].startswith("loss · last ")
    assert all(fig.x_range is more[0].x_range for fig in own)
    bars = own[0].renderers[0].data_source.data
    assert len(bars["row"]) == 29 + 1
    assert (min(bars["left"]), max(bars["right"])) == (2.5, 31.0)
