"""Right-sizing and costs: what the work needs, and what the rest of it was paid for."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import GIB, GpuWork, a_cell, a_device, a_run, bursts, hump, without
from hypothesis import given
from hypothesis import strategies as st

from cellmeter.costs import Cost, Costs, costs
from cellmeter.errors import BadUsage
from cellmeter.export.sized import costs_line, size_advice, size_line
from cellmeter.rules.observed import Observed
from cellmeter.run import Run
from cellmeter.settings import Prices, load_settings
from cellmeter.sizing import Size, needed, sizes, sustained

MINE = [a_device("gpu0", mine=True), a_device("gpu1", mine=True)]


def size_of(run: Run, resource: str) -> Size:
    return next(size for size in sizes(run) if size.resource == resource)


# ── how many ──


@pytest.mark.parametrize(
    ("peak", "capacity", "target", "units"),
    [
        (150, 20, 0.7, 11),
        (150, 20, 0.8, 10),
        (14, 20, 0.7, 1),
        (0, 20, 0.7, 0),
        (2.8, 1, 0.7, 4),
        (2.81, 1, 0.7, 5),
        (2.1, 1, 0.7, 3),
    ],
)
def test_needed_is_the_peak_over_the_target_rounded_up(peak: float, capacity: float, target: float, units: int) -> None:
    assert needed(peak, capacity, target) == units


@given(st.floats(0, 1e9, allow_subnormal=False), st.floats(1e-3, 1e6), st.floats(0.05, 1.0))
def test_needed_carries_the_peak_and_one_less_does_not(peak: float, capacity: float, target: float) -> None:
    units = needed(peak, capacity, target)
    assert units * capacity * target >= peak * (1 - 1e-9)
    assert (units - 1) * capacity * target < peak or units == 0


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_work_never_needs_less_and_a_higher_target_never_more(one: float, other: float) -> None:
    assert needed(min(one, other)) <= needed(max(one, other))
    assert needed(one, target=0.8) <= needed(one, target=0.7)


@pytest.mark.parametrize(
    "bad", [(-1.0, 1.0, 0.7), (math.nan, 1.0, 0.7), (math.inf, 1.0, 0.7), (1, 0, 0.7), (1, 1, 1.1)]
)
def test_what_cannot_be_is_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="no number of units"):
        needed(*bad)


# ── a sustained peak ──


def readings(values: list[float], step: float = 1.0) -> Observed:
    time = np.arange(1, len(values) + 1) * step
    return Observed(time, np.array(values, float), np.full(len(values), step), np.ones(len(values), np.int64))


def test_a_peak_is_sustained_over_a_minute_and_not_a_moment() -> None:
    assert sustained(readings([0.0] * 100 + [8.0] + [0.0] * 100), 60) == pytest.approx(8 / 60)
    assert sustained(readings([1.0] * 100 + [6.0] * 60 + [1.0] * 100), 60) == pytest.approx(6)
    assert sustained(readings([5.0] * 20), 60) is None
    assert sustained(readings([]), 60) is None


@given(st.lists(st.floats(0, 100), min_size=60, max_size=300))
def test_a_sustained_peak_lies_between_mean_and_maximum(values: list[float]) -> None:
    peak = sustained(readings(values), 60)
    assert peak is not None
    assert min(values) - 1e-6 <= peak <= max(values) + 1e-6


# ── a run ──


def test_a_machine_too_large_is_said_to_be() -> None:
    run = a_run(a_cell(120, cores=1.6, rss=hump(GIB, 5 * GIB, 10, 11)))
    cores, memory = size_of(run, "cpu"), size_of(run, "memory")
    assert (cores.available, cores.needed, cores.needed_at_least, cores.verdict) == (8, 3, 2, "smaller")
    assert (memory.peak, memory.needed, memory.verdict) == (5 * GIB, 8 * GIB, "smaller")
    assert size_advice(memory) == "8 GiB would do"


def test_a_machine_that_fits_and_one_that_is_tight() -> None:
    assert size_of(a_run(a_cell(120, cores=6.0)), "cpu").verdict == "right"
    tight = size_of(a_run(a_cell(120, rss=60 * GIB)), "memory")
    assert tight.verdict == "larger"
    assert size_advice(tight) == "tight: 86 GiB would leave room"
    assert "used all 8 cores" in size_of(a_run(a_cell(120, cores=8.0)), "cpu").basis


def test_gpus_are_counted_by_what_they_do_together() -> None:
    idle = {"gpu0": GpuWork(60), "gpu1": GpuWork(0.0)}
    gpus = size_of(a_run(a_cell(120, gpu=idle), devices=MINE), "gpu")
    assert (gpus.available, gpus.needed, gpus.verdict) == (2, 1, "smaller")
    assert gpus.peak == pytest.approx(0.6, abs=0.01)
    busy = {"gpu0": GpuWork(95), "gpu1": GpuWork(90)}
    assert size_of(a_run(a_cell(120, gpu=busy), devices=MINE), "gpu").needed == 3


def test_memory_can_be_why_a_gpu_is_needed() -> None:
    full = {"gpu0": GpuWork(30, memory=70.0 * GIB), "gpu1": GpuWork(20, memory=70.0 * GIB)}
    gpus = size_of(a_run(a_cell(120, gpu=full), devices=MINE), "gpu")
    assert (gpus.needed, gpus.verdict) == (2, "right")
    assert "their memory" in gpus.basis


def test_a_shared_gpu_and_a_short_run_are_unknown_with_the_reason() -> None:
    shared = {"gpu0": GpuWork(90, foreign=1.0), "gpu1": GpuWork(90)}
    gpus = size_of(a_run(a_cell(120, gpu=shared), devices=MINE), "gpu")
    assert gpus.verdict is None
    assert "shared" in (gpus.unknown or "")
    short = size_of(a_run(a_cell(5)), "cpu")
    assert short.verdict is None
    assert "only 5.00 s" in size_advice(short)


def test_no_gpu_of_ones_own_is_no_advice_about_gpus() -> None:
    run = a_run(a_cell(120), devices=[a_device(mine=False)])
    assert [size.resource for size in sizes(run)] == ["cpu", "memory"]


def test_a_peak_is_that_of_a_tenth_of_the_cells_time_and_the_highest_moment_stands_beside_it() -> None:
    burst = size_of(a_run(a_cell(120, cores=hump(0.4, 3.5, 40, 52))), "cpu")  # 12 of 120 s
    assert (burst.sustained_seconds, burst.needed) == (12, 5)
    assert burst.peak == pytest.approx(3.5, abs=0.05)
    assert burst.highest == pytest.approx(3.5, abs=0.05)
    assert size_of(a_run(a_cell(900, cores=1.0)), "cpu").sustained_seconds == 60
    moment = size_of(a_run(a_cell(120, cores=hump(0.4, 6.0, 40, 42))), "cpu")
    assert moment.highest == pytest.approx(6.0, abs=0.05)
    assert moment.peak == pytest.approx((2 * 6.0 + 10 * 0.4) / 12, abs=0.1)
    line = size_line(moment)
    assert re.search(
        r"8 there; used 1\.\d+ over the busiest 12 s, 6(\.0\d)? at the highest moment: 2 cores would do", line
    )


def test_a_burst_that_takes_all_cores_for_seconds_is_not_tight() -> None:
    burst = a_run(a_cell(120, cores=hump(0.5, 8.0, 40, 60)))
    assert size_of(burst, "cpu").verdict == "right"
    assert size_of(a_run(a_cell(120, cores=7.5)), "cpu").verdict == "larger"


def test_nobody_is_told_to_take_less_while_others_fill_the_machine() -> None:
    alone = a_run(a_cell(120, cores=1.6, machine=1.8))
    assert size_of(alone, "cpu").verdict == "smaller"
    crowded = a_run(a_cell(120, cores=1.6, machine=15.9, cpu_pressure=0.4))
    for resource in ("cpu", "memory"):
        assert size_of(crowded, resource).verdict is None
        assert "no advice, as other processes used 14.3 of the 16 cores meanwhile" in size_line(
            size_of(crowded, resource)
        )
    assert size_of(crowded, "cpu").needed == 3  # what it used stays said
    tight = a_run(a_cell(120, rss=60 * GIB, cores=1.6, machine=15.9, cpu_pressure=0.4))
    assert size_of(tight, "memory").verdict == "larger"


# ── costs ──

PRICES = Prices(gpu_hour=3.6, cpu_hour=0.36, memory_gb_hour=0.036)


def cost_of(run: Run, resource: str, prices: Prices = PRICES) -> Cost:
    spent = costs(run, prices)
    assert spent is not None
    return next(item for item in spent.items if item.resource == resource)


def test_no_price_no_money() -> None:
    assert costs(a_run(a_cell(60)), Prices()) is None
    assert costs(a_run(a_cell(60)), Prices(gpu_hour=2.5)) is None
    only = costs(a_run(a_cell(60)), Prices(cpu_hour=1.0))
    assert only is not None
    assert [item.resource for item in only.items] == ["cpu"]


def test_gpu_hours_are_used_and_unused_by_their_utilisation() -> None:
    run = a_run(a_cell(996, gpu={"gpu0": GpuWork(50), "gpu1": GpuWork(0)}), devices=MINE)
    gpu = cost_of(run, "gpu")
    assert gpu.held == pytest.approx(2 * 1000 / 3600)
    assert gpu.cost == pytest.approx(2.0)
    assert gpu.unused_cost == pytest.approx(1.5, abs=0.01)


def test_a_gpu_that_came_later_is_paid_from_then_on() -> None:
    late = [replace(a_device(mine=True), since=600.0)]
    run = a_run(a_cell(996, gpu={"gpu0": GpuWork(50)}), devices=late)
    assert cost_of(run, "gpu").held == pytest.approx(400 / 3600)


def test_cores_and_memory_are_held_to_their_limit() -> None:
    run = a_run(a_cell(996, cores=2.0, rss=16.0 * GIB))
    cpu, memory = cost_of(run, "cpu"), cost_of(run, "memory")
    assert cpu.cost == pytest.approx(0.8)
    assert cpu.used / cpu.held == pytest.approx(0.25, abs=0.01)
    assert memory.held == pytest.approx(64 * GIB / 1e9 * 1000 / 3600)
    assert memory.used / memory.held == pytest.approx(0.25, abs=0.01)


def test_what_others_used_meanwhile_did_not_lie_idle() -> None:
    crowded = a_run(a_cell(996, cores=2.0, rss=16.0 * GIB, machine=15.9, cpu_pressure=0.4))
    spent = costs(crowded, PRICES)
    assert spent is not None
    cpu = cost_of(crowded, "cpu")
    assert (cpu.unused, spent.unused) == (0, 0)
    assert cpu.unknown == pytest.approx(cpu.held - cpu.used)
    assert cpu.held > cpu.used
    assert "not counted: unused cores and memory: other processes used 13.9 of the 16" in costs_line(spent)


def test_what_was_not_read_is_unknown_and_neither_used_nor_unused() -> None:
    blind = without(
        a_run(a_cell(996, gpu={"gpu0": GpuWork(50)}), devices=[a_device(mine=True)]), "gpu.utilization", "gpu0", "MIG"
    )
    gpu = cost_of(blind, "gpu")
    assert (gpu.used, gpu.unused) == (0, 0)
    assert gpu.unknown == gpu.held > 0
    shared = a_run(a_cell(120, gpu={"gpu0": GpuWork(90, foreign=1.0)}), devices=[a_device(mine=True)])
    spent = costs(shared, Prices(gpu_hour=1.0))
    assert spent is not None
    assert (spent.items, "shared" in spent.unknown[0]) == ((), True)


def test_an_unknown_limit_is_not_counted_and_said() -> None:
    spent = costs(a_run(a_cell(60), limit_bytes=None), Prices(memory_gb_hour=1.0))
    assert spent == Costs("$", (), ("memory: how much the kernel could use is not known",))
    assert costs_line(spent) == "not counted: memory: how much the kernel could use is not known"


@given(st.floats(0, 8), st.floats(1, 60), st.floats(0, 100))
def test_used_unused_and_unknown_are_all_that_was_held(cores: float, gib: float, percent: float) -> None:
    run = a_run(a_cell(30, cores=cores, rss=gib * GIB, gpu={"gpu0": GpuWork(bursts(3, 1, percent))}), devices=MINE)
    spent = costs(run, PRICES)
    assert spent is not None
    for item in spent.items:
        assert item.used + item.unused + item.unknown == pytest.approx(item.held)
        assert min(item.used, item.unused, item.unknown) >= -1e-12
    assert 0 <= spent.unused <= spent.total


# ── settings ──


def test_prices_come_from_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[prices]\ngpu_hour = 2.5\ncpu_hour = 0.1\nmemory_gb_hour = 0.05\ncurrency = "EUR"\n')
    assert load_settings(path).prices == Prices(2.5, 0.1, 0.05, "EUR")
    assert load_settings(tmp_path / "none.toml").prices == Prices()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gpu_hour = -1", "prices.gpu_hour"),
        ('cpu_hour = "1"', "prices.cpu_hour"),
        ("tpu_hour = 1", "no price 'tpu_hour'"),
    ],
)
def test_a_bad_price_is_refused_by_name(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[prices]\n{line}\n")
    with pytest.raises(BadUsage, match=said):
        load_settings(path)
