"""What changes no verdict: another speed, idle around the work, the order of the GPUs, noise below the thresholds.

Each rule has one plan that it finds and one that it leaves alone, both a little off its thresholds. Least durations are
absolute, so time is only stretched, never shortened; and where a rule is about a speed (bytes a second towards a limit), time
is not stretched at all: half as fast is another verdict.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
from builders import GIB, MIB, CellPlan, GpuWork, Signal, a_cell, a_device, a_run, bursts, hump
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmeter.failures import Failure
from cellmeter.rules import RULES, judge
from cellmeter.run import Run
from cellmeter.settings import Prices

NOISE = 0.01
WITHOUT_NOISE = {"reasons", "context", "foreign", "children", "blocked", "free", "throttled"}
quick = settings(max_examples=6)


@dataclass(frozen=True)
class Case:
    """Cells, and what of the machine matters to their verdict. ``speed``: the rule is about a speed."""

    rule: str
    found: bool
    cells: tuple[CellPlan, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    mine: bool | None = None
    speed: bool = False
    idle: bool = True

    @property
    def name(self) -> str:
        return f"{self.rule} {'found' if self.found else 'left alone'}"

    @property
    def gpus(self) -> list[str]:
        return sorted({gpu for cell in self.cells for gpu in cell.gpu}) or (["gpu0"] if "gpu" in self.rule else [])


def at(signal: Signal, t: float) -> float:
    return float(signal(t) if callable(signal) else signal)


def changed(signal: Signal, factor: float, noise: Callable[[float], float]) -> Signal:
    return lambda t: at(signal, t / factor) * (1 + NOISE * noise(t))


def remade(case: Case, factor: float = 1.0, seed: int | None = None) -> tuple[CellPlan, ...]:
    """The cells, slower by a factor, with noise that a seed sets."""

    def silent(t: float) -> float:
        return 0.0

    def noisy(t: float) -> float:
        return math.sin(12.9898 * t + 78.233 * (seed or 0))

    def part(name: str, value: Any) -> Any:
        if not isinstance(value, float | int) and not callable(value):
            return value
        return changed(value, factor, silent if seed is None or name in WITHOUT_NOISE else noisy)

    def work(one: GpuWork) -> GpuWork:
        return GpuWork(**{f.name: part(f.name, getattr(one, f.name)) for f in fields(one)})

    def cell(one: CellPlan) -> CellPlan:
        kept = {"seconds", "gpu", "peak", "peak_unknown", "label", "first_line", "status", "failure", "hash"}
        signals = {f.name: part(f.name, getattr(one, f.name)) for f in fields(one) if f.name not in kept}
        gpu = {name: work(on) for name, on in one.gpu.items()}
        return replace(one, seconds=one.seconds * factor, gpu=gpu, **signals)

    return tuple(map(cell, case.cells))


def run_of(case: Case, cells: tuple[CellPlan, ...], gpus: list[str] | None = None, pause: float = 2.0) -> Run:
    devices = [a_device(gpu, mine=case.mine) for gpu in (case.gpus if gpus is None else gpus)]
    return a_run(*cells, devices=devices, **{"rate_hz": 4.0, "pause": pause, **case.options})


def verdict(case: Case, run: Run) -> bool:
    judgement = judge(run, RULES, Prices())
    (checked,) = [checked for checked in judgement.checked if checked.rule == case.rule]
    assert checked.outcome != "error", checked
    return checked.outcome == "found"


def on_gpu(seconds: float, utilization: Signal, **more: Any) -> tuple[CellPlan, ...]:
    return (a_cell(seconds, gpu={"gpu0": GpuWork(utilization, **{"power": 600.0, **more})}),)


def on_two(one: float, other: float) -> tuple[CellPlan, ...]:
    return (a_cell(20, gpu={"gpu0": GpuWork(one, power=600.0), "gpu1": GpuWork(other, power=600.0)}),)


def kept(*levels: float) -> tuple[CellPlan, ...]:
    return tuple(
        a_cell(4, hash="same", rss=hump(low * GIB, high * GIB, 1, 1e9)) for low, high in itertools.pairwise(levels)
    )


def filled(start: float, end: float) -> Signal:
    return lambda t: (start + (end - start) * min(1.0, t / 18)) * 80 * GIB


def failed(error: str, gpu_memory: bool) -> tuple[CellPlan, ...]:
    (cell,) = on_gpu(20, 90.0, memory=filled(0.4, 0.9))
    return (replace(cell, failure=Failure(error, gpu_memory)),)


CASES = [
    Case("gpu-out-of-memory", True, failed("torch.OutOfMemoryError", gpu_memory=True)),
    Case("gpu-out-of-memory", False, failed("ValueError", gpu_memory=False)),
    Case("out-of-memory", False, (a_cell(5, rss=63 * GIB),)),
    Case("memory-near-limit", True, (a_cell(5, rss=59.5 * GIB),)),
    Case("memory-near-limit", False, (a_cell(5, rss=56 * GIB),)),
    Case("memory-growth", True, kept(1, 2, 3, 4)),
    Case("memory-growth", False, kept(4, 4.4, 4.8, 5.2)),
    Case("memory-growth", True, (a_cell(70, rss=lambda t: GIB + t * 40 * MIB),), speed=True),
    Case("memory-growth", False, (a_cell(70, rss=lambda t: GIB + min(t, 30) * 40 * MIB),), speed=True),
    Case("memory-spike", True, (a_cell(8, rss=hump(GIB, 9 * GIB, 2, 4)),)),
    Case("memory-spike", False, (a_cell(8, rss=hump(10 * GIB, 14 * GIB, 2, 4)),)),
    Case("memory-retained", True, (a_cell(8, rss=hump(GIB, 9 * GIB, 4, 1e9)), a_cell(2, rss=9 * GIB))),
    Case("memory-retained", False, (a_cell(8, rss=hump(10 * GIB, 14 * GIB, 4, 1e9)), a_cell(2, rss=14 * GIB))),
    Case("gpu-unused", True, on_gpu(12, 0.0)),
    Case("gpu-unused", False, on_gpu(12, hump(0, 60, 8, 1e9))),
    Case("gpu-underused", True, on_gpu(20, 47.0)),
    Case("gpu-underused", False, on_gpu(20, 53.0)),
    Case("gpu-hollow", True, on_gpu(20, 95.0, active=47.0, dram=47.0)),
    Case("gpu-hollow", False, on_gpu(20, 95.0, active=47.0, dram=53.0)),
    Case("gpu-imbalance", True, on_two(90, 57)),
    Case("gpu-imbalance", False, on_two(90, 63)),
    Case("gpu-throttled", True, on_gpu(40, 90.0, reasons=bursts(4, 0.6, 0x40))),
    Case("gpu-throttled", False, on_gpu(40, 88.0, reasons=bursts(20, 1, 0x40))),
    Case("gpu-memory-held", True, on_gpu(1900, hump(0, 80, 0, 60)), {"rate_hz": 0.5}),
    Case("gpu-memory-held", False, on_gpu(1900, bursts(900, 30, 80)), {"rate_hz": 0.5}, speed=True),
    Case("gpu-memory-near-limit", True, on_gpu(20, 90.0, memory=filled(0.4, 0.945))),
    Case("gpu-memory-near-limit", False, on_gpu(20, 90.0, memory=filled(0.4, 0.9))),
    Case("cpu-one-core", True, (a_cell(70, cores=0.95),)),
    Case("cpu-one-core", False, (a_cell(70, cores=1.15),)),
    Case("cpu-oversubscribed", True, (a_cell(20, throttled=0.13, cores=7.0),)),
    Case("cpu-oversubscribed", False, (a_cell(20, throttled=0.07, cores=7.0),)),
    Case("io-bound", True, (a_cell(40, blocked=bursts(10, 6, 1.0)),)),
    Case("io-bound", False, (a_cell(40, blocked=bursts(10, 4, 1.0)),)),
    Case(
        "disk-filling",
        True,
        (a_cell(1000, free=lambda t: (100 - t / 30) * GIB),),
        {"rate_hz": 0.5, "pause": 0.0},
        speed=True,
        idle=False,  # it is judged as it stands at the end: idle after it means that it stopped
    ),
    Case(
        "disk-filling",
        False,
        (a_cell(1000, free=hump(100 * GIB, 30 * GIB, 500, 1e9)),),
        {"rate_hz": 0.5, "pause": 0.0},
        idle=False,
    ),
]  # fmt: skip
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_every_rule_has_both() -> None:
    assert {case.rule for case in CASES if not case.found} == {rule.id for rule in RULES}
    assert {case.rule for case in CASES if case.found} == {rule.id for rule in RULES} - {"out-of-memory"}


@by_name
def test_the_plain_verdict(case: Case) -> None:
    assert verdict(case, run_of(case, case.cells)) is case.found


@pytest.mark.parametrize("case", [case for case in CASES if not case.speed], ids=lambda case: case.name)
@quick
@given(factor=st.floats(1.0, 2.5))
def test_slower_is_the_same(case: Case, factor: float) -> None:
    assert verdict(case, run_of(case, remade(case, factor))) is case.found


@pytest.mark.parametrize("case", [case for case in CASES if case.idle], ids=lambda case: case.name)
@quick
@given(pause=st.floats(1.0, 20.0), before=st.booleans(), after=st.booleans())
def test_idle_around_it_is_the_same(case: Case, pause: float, before: bool, after: bool) -> None:
    last = case.cells[-1]
    kept = a_cell(3, hash="rest", rss=at(last.rss, last.seconds))  # idle gives nothing back
    cells = (*([a_cell(3, hash="rest")] * before), *case.cells, *([kept] * after))
    assert verdict(case, run_of(case, cells, pause=pause)) is case.found


@by_name
@quick
@given(seed=st.integers(0, 1000))
def test_noise_below_the_threshold_is_the_same(case: Case, seed: int) -> None:
    assert verdict(case, run_of(case, remade(case, seed=seed))) is case.found


@pytest.mark.parametrize("case", [case for case in CASES if case.gpus], ids=lambda case: case.name)
@quick
@given(names=st.permutations(["gpu0", "gpu1", "gpu2"]), listed=st.permutations(["gpu0", "gpu1", "gpu2"]))
def test_which_gpu_it_is_makes_no_difference(case: Case, names: list[str], listed: list[str]) -> None:
    moved = dict(zip(case.gpus, names, strict=False))
    cells = tuple(replace(cell, gpu={moved[gpu]: work for gpu, work in cell.gpu.items()}) for cell in case.cells)
    run = run_of(case, cells, listed)
    assert verdict(case, run) is case.found
    if case.found:
        subjects = {
            s for f in judge(run, RULES, Prices()).findings if f.rule == case.rule for s in (f.subject, *f.also)
        }
        assert subjects <= set(moved.values())
