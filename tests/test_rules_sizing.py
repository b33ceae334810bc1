"""What a run would have needed at a target of 70 %, and what it cost."""

from __future__ import annotations

import pytest
from builders import GIB, GpuWork, a_cell, a_device, a_run, bursts, hump
from hypothesis import given
from hypothesis import strategies as st

from cellmeter.rules.sizing import costs, needs, units_needed
from cellmeter.settings import Prices


def test_the_example_holds() -> None:
    assert units_needed(150, 20, 0.7) == 11
    assert units_needed(7, 1, 0.7) == 10


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e3), st.floats(0.1, 1.0))
def test_what_is_needed_carries_the_demand_and_one_less_does_not(demand: float, each: float, target: float) -> None:
    needed = units_needed(demand, each, target)
    assert needed * each * target >= demand * (1 - 1e-6)
    assert (needed - 1) * each * target < demand * (1 + 1e-6)


@pytest.mark.parametrize(("each", "target"), [(0, 0.7), (20, 0), (20, 1.1)])
def test_a_unit_that_carries_nothing_is_an_error(each: float, target: float) -> None:
    with pytest.raises(ValueError, match="carries nothing"):
        units_needed(150, each, target)


def test_a_run_needs_its_sustained_peak_and_memory_its_highest() -> None:
    work = {"gpu0": GpuWork(60), "gpu1": GpuWork(30)}
    run = a_run(
        a_cell(40, cores=bursts(20, 2, 8.0), gpu=work),
        a_cell(30, cores=2.8, rss=hump(GIB, 14 * GIB, 3, 4)),
        devices=[a_device("gpu0"), a_device("gpu1")],
    )
    cores, memory, gpus = needs(run)
    assert (cores.needed, cores.had) == (4, 8), "2.8 of them for long; bursts of 8 last 2 s of 10"
    assert cores.peak == pytest.approx(2.8, rel=0.05)
    assert (memory.peak, memory.needed, memory.had) == (14, 20, 64)
    assert (gpus.peak, gpus.needed, gpus.had) == (pytest.approx(0.9), 2, 2)


def test_a_run_without_cells_needs_nothing() -> None:
    assert needs(a_run()) == []


def test_what_has_a_price_has_a_cost() -> None:
    run = a_run(a_cell(3596, gpu={"gpu0": GpuWork(60)}), devices=[a_device("gpu0")], rate_hz=0.5)
    gpus, memory = costs(run, Prices(gpu_hour=2.5, memory_gb_hour=0.05))
    assert (gpus.resource, gpus.amount, gpus.hours, gpus.cost) == ("gpus", 1, pytest.approx(1), pytest.approx(2.5))
    assert memory.cost == pytest.approx(64 * GIB / 1e9 * 0.05)
    assert costs(run, Prices()) == []
