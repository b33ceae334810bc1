"""Rules about how GPUs work and what they hold: found, left alone, or not to be told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import GIB, NAN, RESTING, CellPlan, GpuWork, a_cell, a_device, a_run, bursts, hump, without
from test_rules import findings, outcome, the_finding

from cellmeter.rules import judge
from cellmeter.rules.gpu import GpuUnderused
from cellmeter.run import Run
from cellmeter.spans import STEP, Own, Span, Steps

FULL = 80 * GIB


def alone(seconds: float = 60.0, **work: object) -> Run:
    """One cell on one GPU that this kernel holds."""
    return a_run(a_cell(seconds, gpu={"gpu0": GpuWork(**{"power": 600.0, **work})}), devices=[a_device()])  # type: ignore[arg-type]


def several(*uses: float, seconds: float = 30.0, **plan: object) -> Run:
    """One cell on several GPUs, each evenly used."""
    work = {f"gpu{n}": GpuWork(use, power=600.0) for n, use in enumerate(uses)}
    return a_run(a_cell(seconds, gpu=work, **plan), devices=[a_device(name) for name in work], rate_hz=4)


# ── evidence and causes of gpu-underused ──


def test_the_best_evidence_is_named() -> None:
    finding = the_finding(alone(utilization=40, active=12), "gpu-underused")
    assert (finding.evidence.metric, finding.evidence.value) == ("gpu.sm.active", pytest.approx(12))
    assert (finding.severity, "utilisation 40 %" in finding.fact) == ("warning", True)
    assert the_finding(alone(utilization=40), "gpu-underused").evidence.metric == "gpu.utilization"
    bound = the_finding(alone(utilization=40, active=12, dram=35), "gpu-underused")
    assert bound.evidence.metric == "gpu.utilization", "bandwidth is what it lives on"


def test_an_instance_without_utilization_is_judged_by_its_multiprocessors() -> None:
    def mig(active: float) -> Run:
        reason = "NVML measures no utilization where MIG is on"
        return without(alone(utilization=0, active=active), "gpu.utilization", "gpu0", reason)

    assert the_finding(mig(20), "gpu-underused").evidence.metric == "gpu.sm.active"
    assert outcome(mig(80), "gpu-underused").outcome == "clear"
    assert outcome(mig(0), "gpu-unused").outcome == "found"
    assert outcome(mig(20), "gpu-hollow").outcome == "unknown"


@pytest.mark.parametrize(
    ("plan", "work", "cause"),
    [
        ({}, {"pcie": bursts(4, 1, 0.0)}, "gaps"),
        ({}, {"pcie": lambda t: 0.0 if t % 4 < 1 else 9e9}, "transfer"),
        ({"blocked": lambda t: float(t % 4 >= 1)}, {}, "io"),
        ({"cores": 1.0, "throttled": 0.9}, {}, "input-bound"),
    ],
)
def test_the_cause_is_named(plan: dict[str, object], work: dict[str, object], cause: str) -> None:
    cell = a_cell(60, gpu={"gpu0": GpuWork(bursts(4, 1), **work)}, **plan)  # type: ignore[arg-type]
    finding = the_finding(a_run(cell, devices=[a_device()]), "gpu-underused")
    assert finding.cause == cause
    assert ("quota" in finding.fact) == ("throttled" in plan)


def inference(seconds: float, memory: float = 2 * GIB, **own: object) -> Run:
    """A GPU at 20 % for a minute in which spans of so many seconds follow each other."""
    run = a_run(a_cell(60, gpu={"gpu0": GpuWork(20, memory=memory)}), devices=[a_device()])
    start = run.cells[0].start
    spans = [Span("answer", start + n * seconds, start + (n + 1) * seconds, "ok") for n in range(int(60 / seconds))]
    return replace(run, own=Own(tuple(spans)) if not own else Own(**own))  # type: ignore[arg-type]


def steps(rate: float) -> dict[str, object]:
    times = np.arange(2.0, 62.0)
    return {"steps": {STEP: Steps(times, np.full(60, rate))}}


@pytest.mark.parametrize(
    ("run", "cause"),
    [
        pytest.param(inference(0.5), "small-work", id="slow spans"),
        pytest.param(inference(0.05), "unknown", id="quick spans"),
        pytest.param(inference(0.5, memory=60 * GIB), "unknown", id="no room for more"),
    ],
)
def test_small_work_needs_the_users_own_words(run: Run, cause: str) -> None:
    finding = the_finding(run, "gpu-underused")
    assert finding.cause == cause
    assert ("“answer” took 500 ms (median of 119)" in finding.fact) == (cause == "small-work")


@pytest.mark.parametrize(("rate", "cause"), [(4, "small-work"), (40, "unknown")])
def test_small_work_is_told_by_steps_too(rate: float, cause: str) -> None:
    assert the_finding(inference(0.5, **steps(rate)), "gpu-underused").cause == cause


def test_spans_that_fill_little_of_the_work_are_no_evidence() -> None:
    run = inference(0.5)
    few = replace(run, own=Own(run.spans[:20]))
    assert the_finding(few, "gpu-underused").cause == "unknown"


# ── gpu-hollow ──


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        pytest.param({"utilization": 95, "active": 49}, "found", id="half of the multiprocessors"),
        pytest.param({"utilization": 95, "active": 51}, "clear", id="just above"),
        pytest.param({"utilization": 69, "active": 20}, "not-applicable", id="does not even look busy"),
        pytest.param({"utilization": 95, "active": 20, "dram": 51}, "clear", id="bound by memory"),
        pytest.param({"utilization": 95, "power": 200}, "found", id="23 % of the power"),
        pytest.param({"utilization": 95, "power": 220}, "clear", id="26 % of the power"),
        pytest.param({"utilization": 95, "power": NAN}, "unknown", id="nothing to tell by"),
        pytest.param({"utilization": 95, "active": 20, "foreign": 1}, "unknown", id="shared"),
        pytest.param({"utilization": 95, "active": 20, "context": 0.0}, "not-applicable", id="another's work"),
    ],
)
def test_hollow(work: dict[str, float], expected: str) -> None:
    assert outcome(alone(**work), "gpu-hollow").outcome == expected


def test_activity_is_a_warning_with_its_waste_and_power_a_note_without() -> None:
    active, power = (the_finding(alone(utilization=95, **w), "gpu-hollow") for w in ({"active": 20}, {"power": 100}))
    assert (active.severity, active.evidence.metric) == ("warning", "gpu.sm.active")
    assert active.waste.gpu_seconds == pytest.approx(48, rel=0.02)
    assert (power.severity, power.evidence.metric, power.waste.gpu_seconds) == ("info", "gpu.power", 0)


def test_that_memory_is_the_bound_is_said() -> None:
    assert "bound by memory" in (outcome(alone(utilization=95, active=20, dram=60), "gpu-hollow").reason or "")


def test_power_says_nothing_where_the_limit_or_the_rest_is_unknown() -> None:
    run = alone(utilization=95, power=100)
    blind = replace(run, devices=(replace(run.devices[0], power_limit_watts=None),))
    assert outcome(blind, "gpu-hollow").outcome == "unknown"


# ── gpu-imbalance ──


def test_uneven_gpus_are_one_finding_that_names_the_lesser_ones() -> None:
    run = several(90, 50, 20, 85)
    finding = the_finding(run, "gpu-imbalance")
    assert (finding.subject, finding.also) == ("gpu2", ("gpu1",))
    assert finding.waste.gpu_seconds == pytest.approx((0.7 + 0.4) * 30, rel=0.02)
    assert findings(run, "gpu-underused") == []
    assert outcome(run, "gpu-underused").reason == "told by gpu-imbalance"


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(several(90, 61), "clear", id="29 points"),
        pytest.param(several(90, 59), "found", id="31 points"),
        pytest.param(several(90, 20, seconds=9), "not-applicable", id="a short cell"),
        pytest.param(alone(utilization=90), "not-applicable", id="one GPU"),
        pytest.param(
            a_run(a_cell(30, gpu={"gpu0": GpuWork(90), "gpu1": RESTING}), devices=[a_device(), a_device("gpu1")]),
            "not-applicable",
            id="the other is not held",
        ),
        pytest.param(
            a_run(
                a_cell(30, gpu={"gpu0": GpuWork(90), "gpu1": GpuWork(20, foreign=1)}),
                devices=[a_device(), a_device("gpu1")],
            ),
            "unknown",
            id="the other is shared",
        ),
    ],
)
def test_imbalance(run: Run, expected: str) -> None:
    assert outcome(run, "gpu-imbalance").outcome == expected


def test_a_gpu_that_never_works_is_unused_and_not_uneven() -> None:
    run = several(90, 0)
    assert [f.rule for f in judge(run).findings] == ["gpu-unused"]


# ── gpu-throttled ──


@pytest.mark.parametrize(
    ("work", "expected", "severity"),
    [
        pytest.param({"reasons": bursts(5, 1, 0x40)}, "found", "warning", id="heat in a fifth"),
        pytest.param({"reasons": bursts(20, 1, 0x40)}, "clear", None, id="heat in a twentieth"),
        pytest.param({"reasons": 0x80}, "found", "warning", id="the power brake"),
        pytest.param({"reasons": 0x04}, "found", "info", id="its own power cap at full use"),
        pytest.param({"reasons": 0x04, "utilization": 80}, "clear", None, id="the cap below full use"),
        pytest.param({"reasons": 0x01}, "clear", None, id="idle is no throttling"),
        pytest.param({"reasons": NAN}, "unknown", None, id="not told"),
        pytest.param({"reasons": 0x40, "foreign": 1.0}, "unknown", None, id="shared"),
    ],
)
def test_throttled(work: dict[str, object], expected: str, severity: str | None) -> None:
    run = alone(**{"utilization": 95, **work})
    assert outcome(run, "gpu-throttled").outcome == expected
    assert [f.severity for f in findings(run, "gpu-throttled")] == ([severity] if severity else [])


def test_what_the_clock_lost_is_waste() -> None:
    work = {
        "reasons": bursts(4, 2, 0x40),
        "clock": bursts(4, 2, 900) if False else lambda t: 900 if t % 4 < 2 else 1800,
    }
    finding = the_finding(alone(utilization=95, **work), "gpu-throttled")
    assert finding.waste.gpu_seconds == pytest.approx(0.5 * 60 * 0.5, rel=0.1)


def test_throttling_that_explains_low_use_is_told_with_it() -> None:
    run = alone(utilization=40, reasons=0x40)
    assert [(f.rule, f.cause) for f in judge(run).findings] == [("gpu-underused", "throttled")]
    assert outcome(run, "gpu-throttled").reason == "told by gpu-underused"


# ── gpu-memory-held ──


def rests(seconds: float, **work: object) -> Run:
    """Work for a minute, then rest in a cell, holding 2 GiB."""
    plan = a_cell(60 + seconds, gpu={"gpu0": GpuWork(hump(0, 90, 0, 60), **work)})  # type: ignore[arg-type]
    return a_run(plan, devices=[a_device()], rate_hz=0.5)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(rests(1830), "found", id="half an hour"),
        pytest.param(rests(1770), "clear", id="a little less"),
        pytest.param(rests(1830, context=0.9 * GIB), "not-applicable", id="under 1 GiB"),
        pytest.param(rests(1830, context=NAN), "unknown", id="how much is not known"),
        pytest.param(alone(utilization=0), "not-applicable", id="a short run"),
        pytest.param(rests(1830, context=lambda t: 2 * GIB if t < 200 else 0), "clear", id="given back"),
    ],
)
def test_memory_held(run: Run, expected: str) -> None:
    assert outcome(run, "gpu-memory-held").outcome == expected


def test_what_was_held_for_nothing_is_waste() -> None:
    finding = the_finding(rests(1900), "gpu-memory-held")
    assert (finding.cells, finding.waste.gpu_seconds) == ((1,), pytest.approx(1900, rel=0.01))


def test_others_at_work_on_the_gpu_end_its_rest() -> None:
    run = rests(1830, foreign=1.0)
    busy = a_cell(1890, gpu={"gpu0": GpuWork(bursts(600, 30), foreign=1.0)})
    assert outcome(a_run(busy, devices=[a_device()], rate_hz=0.5), "gpu-memory-held").outcome == "clear"
    assert outcome(run, "gpu-memory-held").outcome == "found", "nobody worked, so it was held for nothing"


def test_a_gpu_that_never_worked_is_unused_and_not_also_held() -> None:
    cell = a_cell(1900, gpu={"gpu0": GpuWork(0)})
    judgement = judge(a_run(cell, devices=[a_device()], rate_hz=0.5))
    assert [f.rule for f in judgement.findings] == ["gpu-unused"]


# ── gpu-memory-near-limit ──


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        pytest.param(lambda t: min(0.93, 0.5 + t / 50) * FULL, "found", id="rises to 93 %"),
        pytest.param(lambda t: min(0.91, 0.5 + t / 50) * FULL, "clear", id="rises to 91 %"),
        pytest.param(0.95 * FULL, "not-applicable", id="flat"),
        pytest.param(lambda t: (0.95 if t > 5 else 0.02) * FULL, "not-applicable", id="a pool taken at once"),
        pytest.param(
            lambda t: (0.02 + min(t, 20) / 50 if t < 30 else 0.93) * FULL, "not-applicable", id="weights, then a pool"
        ),
        pytest.param(lambda t: (0.93 if t > 5 else 0.90) * FULL, "not-applicable", id="hardly rises"),
        pytest.param(NAN, "unknown", id="not read"),
    ],
)
def test_device_memory_near_its_limit(memory: object, expected: str) -> None:
    assert outcome(alone(utilization=90, memory=memory), "gpu-memory-near-limit").outcome == expected


def test_a_cell_of_some_milliseconds_does_not_make_device_memory_unknown() -> None:
    run = a_run(a_cell(20, gpu={"gpu0": GpuWork(90)}), a_cell(1.0), devices=[a_device()])
    short = replace(run.cells[1], start=run.cells[1].start + 0.02, end=run.cells[1].start + 0.03)
    assert outcome(replace(run, cells=(run.cells[0], short)), "gpu-memory-near-limit").outcome == "clear"


def test_a_full_gpu_of_others_is_not_this_kernels() -> None:
    memory = lambda t: min(0.95, 0.5 + t / 50) * FULL  # noqa: E731
    assert outcome(alone(utilization=90, memory=memory, foreign=1), "gpu-memory-near-limit").outcome == "unknown"
    assert (
        outcome(alone(utilization=90, memory=memory, context=0.0), "gpu-memory-near-limit").outcome == "not-applicable"
    )


def test_a_spike_to_the_brim_is_one_finding() -> None:
    run = alone(utilization=90, memory=lambda t: (0.2 + (0.75 * min(t, 20) / 20 if t < 40 else 0)) * FULL)
    assert [f.rule for f in judge(run).findings] == ["memory-spike"]
    assert outcome(run, "gpu-memory-near-limit").reason == "told by memory-spike"


# ── whose it is ──


@pytest.mark.parametrize("rule", ["gpu-underused", "gpu-hollow", "gpu-throttled", "gpu-memory-near-limit"])
def test_no_rule_blames_the_kernel_for_a_gpu_that_others_use_too(rule: str) -> None:
    bad = {"utilization": 20, "reasons": 0x40, "memory": lambda t: min(0.95, 0.5 + t / 50) * FULL}
    assert outcome(alone(**bad, foreign=1), rule).outcome in ("unknown", "clear")
    assert findings(alone(**bad, foreign=1), rule) == findings(alone(**bad, context=0.0), rule) == []


def test_contexts_tell_where_their_memory_is_not_known() -> None:
    run = alone(utilization=20, context=NAN)
    assert outcome(run, "gpu-underused").outcome == "unknown"
    segments = []
    for segment in run.segments:
        names = [c._replace(metric="gpu.process.contexts") if c.metric.endswith("memory.used") and "process" in c.metric else c
                 for c in segment.columns]  # fmt: skip
        records = segment.records.copy()
        for index, column in enumerate(names):
            if column.metric == "gpu.process.contexts":
                records["v"][:, index] = 1
        segments.append(replace(segment, columns=tuple(names), records=records))
    assert outcome(replace(run, segments=tuple(segments)), "gpu-underused").outcome == "found"


@pytest.mark.parametrize("rule", ["gpu-underused", "gpu-hollow", "gpu-throttled"])
def test_a_gpu_that_came_late_is_judged_from_then_on(rule: str) -> None:
    """It came after 30 s of 60: what was before is no missing reading."""
    bad = {"gpu-underused": {"utilization": 20}, "gpu-hollow": {"utilization": 95, "active": 9}}
    work = bad.get(rule, {"utilization": 95, "reasons": 0x40})
    late = {name: lambda t, value=value: value if t > 30 else NAN for name, value in work.items()}
    run = alone(**late)
    assert outcome(run, rule).outcome == "unknown"
    since = replace(run, devices=(replace(run.devices[0], since=32.0),))
    assert outcome(since, rule).outcome == "found"
    assert outcome(replace(run, devices=(replace(run.devices[0], since=70.0),)), rule).outcome == "not-applicable"


# ── told once ──


def eight(cell: CellPlan, count: int = 1) -> Run:
    cells = [replace(cell, gpu={f"gpu{n}": GpuWork(20) for n in range(8)}) for _ in range(count)]
    return a_run(*cells, devices=[a_device(f"gpu{n}") for n in range(8)], rate_hz=2)


def test_eight_gpus_and_three_cells_with_one_problem_are_one_finding() -> None:
    run = eight(a_cell(20), 3)
    assert len(GpuUnderused().check(run).findings) == 24
    (finding,) = judge(run).findings
    assert sorted(finding.cells) == [1, 2, 3]
    assert len({finding.subject, *finding.also}) == 8
    assert finding.waste.gpu_seconds == pytest.approx(24 * 16, rel=0.05)
    assert "The same in In [2] and In [3] and on gpu1" in finding.fact
