"""What each rule must find, and what it must leave alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from builders import GIB, MIB, NAN, CellPlan, GpuWork, a_cell, a_device, a_run, bursts, come_late, hump, without
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cellmeter
from cellmeter.errors import BadUsage
from cellmeter.rules import RULES, Checked, Finding, Outcome, Rule, configured, judge
from cellmeter.rules.gpu import GpuUnderused
from cellmeter.rules.together import EXPLAINED_BY
from cellmeter.run import Run


def outcome(run: Run, rule: str) -> Checked:
    return next(checked for checked in judge(run).checked if checked.rule == rule)


def findings(run: Run, rule: str) -> list[Finding]:
    return [finding for finding in judge(run).findings if finding.rule == rule]


def the_finding(run: Run, rule: str) -> Finding:
    (finding,) = findings(run, rule)
    return finding


def training(utilization: object, seconds: float = 60.0, **plan: object) -> CellPlan:
    return a_cell(seconds, gpu={"gpu0": GpuWork(utilization)}, **plan)  # type: ignore[arg-type]


# ── memory-spike ──


def spike(height: float, base: float = GIB) -> CellPlan:
    return a_cell(20, rss=hump(base, base + height, 5, 8))


@pytest.mark.parametrize(
    ("height", "limit", "severity"),
    [
        (2 * GIB, 64 * GIB, "info"),
        (7 * GIB, 64 * GIB, "warning"),
        (33 * GIB, 64 * GIB, "critical"),
        (33 * GIB, None, "info"),
    ],
)
def test_a_spike_is_as_bad_as_its_share_of_the_limit(height: float, limit: float | None, severity: str) -> None:
    finding = the_finding(a_run(spike(height), limit_bytes=limit), "memory-spike")
    assert finding.severity == severity
    assert finding.evidence.value == height
    assert finding.evidence.unit == "By"
    assert finding.cells == (1,)
    assert finding.subject == "process"


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(spike(255 * MIB, base=300 * MIB), id="under the least height"),
        pytest.param(spike(6 * GIB, base=20 * GIB), id="small beside what is there and beside the limit"),
        pytest.param(a_cell(20, rss=lambda t: GIB + 30 * GIB * (t > 5)), id="what stays is no spike"),
        pytest.param(a_cell(20, rss=lambda t: 31 * GIB - 30 * GIB * (t > 5)), id="what was there before is no spike"),
        pytest.param(
            a_cell(20, rss=hump(GIB, 9 * GIB, 5, 8), mapped=hump(0, 8 * GIB, 5, 8)), id="a memory-mapped file is read"
        ),
        pytest.param(
            a_cell(20, rss=lambda t: GIB * (1 + t / 20), mapped=lambda t: GIB * t / 20), id="a mapped file stays mapped"
        ),
    ],
)
def test_these_are_no_spikes(cell: CellPlan) -> None:
    assert outcome(a_run(cell), "memory-spike").outcome == "clear"


def test_a_spike_between_two_samples_is_found_by_the_exact_peak() -> None:
    finding = the_finding(a_run(a_cell(5, rss=GIB, peak=4 * GIB)), "memory-spike")
    assert finding.evidence.value == 3 * GIB
    assert "no less than" not in finding.fact


def test_a_sampled_peak_is_said_to_be_a_lower_bound() -> None:
    plan = replace(spike(8 * GIB), peak_unknown="clear_refs is not permitted")
    assert "no less than" in the_finding(a_run(plan), "memory-spike").fact
    assert "not exact" in (outcome(a_run(replace(plan, rss=GIB)), "memory-spike").reason or "")


def test_only_the_part_of_a_spike_that_no_mapped_file_explains_counts() -> None:
    run = a_run(a_cell(20, rss=hump(GIB, 9 * GIB, 5, 8), mapped=hump(0, 3 * GIB, 5, 8)))
    assert the_finding(run, "memory-spike").evidence.value == 5 * GIB


def test_without_the_mapped_part_a_spike_is_never_more_than_info() -> None:
    run = without(a_run(spike(40 * GIB)), "process.memory.file", "process", "not on this system")
    finding = the_finding(run, "memory-spike")
    assert finding.severity == "info"
    assert "Mapped files" in finding.fact


def test_a_spike_of_device_memory_is_found_on_the_gpu_that_is_mine() -> None:
    memory = hump(2 * GIB, 70 * GIB, 5, 8)
    mine = a_cell(20, gpu={"gpu0": GpuWork(90, memory=memory)})
    finding = the_finding(a_run(mine, devices=[a_device()]), "memory-spike")
    assert (finding.subject, finding.severity) == ("gpu0", "critical")
    shared = a_cell(20, gpu={"gpu0": GpuWork(90, memory=memory, foreign=1)})
    assert findings(a_run(shared, devices=[a_device()]), "memory-spike") == []


def test_a_cell_without_samples_cannot_be_judged() -> None:
    run = a_run(spike(8 * GIB))
    bare = replace(run, segments=(), cells=tuple(replace(cell, peak_rss_bytes=None) for cell in run.cells))
    assert outcome(bare, "memory-spike") == Checked("memory-spike", "unknown", "too few samples in this cell")


def test_a_run_without_cells_is_not_applicable() -> None:
    assert {checked.outcome for checked in judge(a_run()).checked} == {"not-applicable"}


# ── gpu-unused ──


def test_a_gpu_allocated_to_me_and_never_used_is_a_warning() -> None:
    finding = the_finding(a_run(a_cell(200), a_cell(150), devices=[a_device(mine=True)]), "gpu-unused")
    assert finding.severity == "warning"
    assert finding.cells == (1, 2)
    assert finding.waste.gpu_seconds == pytest.approx(350, rel=0.01)


def test_a_context_without_work_in_one_cell_is_a_warning_at_once() -> None:
    finding = the_finding(a_run(a_cell(5), training(0, 12), devices=[a_device()]), "gpu-unused")
    assert (finding.severity, finding.cells) == ("warning", (2,))


def test_a_gpu_merely_visible_is_an_info_and_only_if_a_framework_was_imported() -> None:
    server = [a_device(mine=None)]
    assert outcome(a_run(a_cell(400), devices=server), "gpu-unused").outcome == "not-applicable"
    torch = a_cell(400, first_line="import torch")
    assert the_finding(a_run(torch, devices=server), "gpu-unused").severity == "info"


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(a_run(a_cell(400)), "not-applicable", id="no GPU"),
        pytest.param(a_run(a_cell(290), devices=[a_device(mine=True)]), "not-applicable", id="under five minutes"),
        pytest.param(a_run(training(0, 9), devices=[a_device()]), "not-applicable", id="context for nine seconds"),
        pytest.param(a_run(a_cell(400), devices=[a_device(mine=False)]), "not-applicable", id="not mine"),
        pytest.param(a_run(training(90), a_cell(300), devices=[a_device(mine=True)]), "clear", id="used in one cell"),
        pytest.param(
            a_run(training(90), a_cell(60, gpu={"gpu0": GpuWork(0)}), devices=[a_device()]),
            "clear",
            id="rests after work",
        ),
        pytest.param(
            a_run(a_cell(400, gpu={"gpu0": GpuWork(0, foreign=1)}), devices=[a_device(mine=True)]),
            "unknown",
            id="shared",
        ),
        pytest.param(
            a_run(a_cell(400, gpu={"gpu0": GpuWork(0, context=NAN, foreign=NAN)}), devices=[a_device()]),
            "unknown",
            id="whose it is cannot be told",
        ),
    ],
)
def test_a_gpu_that_is_not_called_unused(run: Run, expected: str) -> None:
    assert outcome(run, "gpu-unused").outcome == expected


@pytest.mark.parametrize("rule", ["gpu-unused", "gpu-underused"])
def test_unsupported_utilization_is_unknown_with_its_reason_and_never_zero(rule: str) -> None:
    run = a_run(training(0, 400), devices=[a_device(mine=True)])
    blind = without(run, "gpu.utilization", "gpu0", "MIG: utilization is not supported")
    assert outcome(blind, rule) == Checked(rule, "unknown", "gpu0: MIG: utilization is not supported")


# ── a GPU that came while the run was recorded ──


def test_what_a_late_gpu_did_not_do_before_it_came_is_not_held_against_it() -> None:
    run = a_run(training(0, 400), training(95, 120), devices=[a_device(mine=True)])
    late = come_late(run, "gpu0", 404.0)
    assert findings(late, "gpu-unused") == findings(late, "gpu-underused") == []
    assert outcome(late, "gpu-underused").outcome == "clear"


def test_a_late_gpu_is_judged_by_the_time_it_was_there() -> None:
    run = a_run(training(bursts(10, 2), 400), devices=[a_device(mine=True)])
    finding = the_finding(come_late(run, "gpu0", 102.0), "gpu-underused")
    assert finding.start >= 102
    assert finding.waste.gpu_seconds == pytest.approx(300 * 0.81, rel=0.05)
    unused = the_finding(come_late(a_run(training(0, 700), devices=[a_device(mine=True)]), "gpu0", 302.0), "gpu-unused")
    assert unused.waste.gpu_seconds == pytest.approx(400, abs=3)


def test_a_gpu_that_came_after_all_cells_was_not_unused() -> None:
    run = come_late(a_run(training(0, 400), devices=[a_device(mine=True)]), "gpu0", 403.0)
    assert outcome(run, "gpu-unused").outcome == outcome(run, "gpu-underused").outcome == "not-applicable"


# ── gpu-underused ──


@pytest.mark.parametrize(
    ("percent", "seconds", "severity", "threshold"),
    [(40, 60, "info", 50), (25, 60, "warning", 30), (10, 60, "warning", 30), (10, 310, "critical", 15)],
)
def test_a_gpu_that_waits_is_found(percent: float, seconds: float, severity: str, threshold: float) -> None:
    run = a_run(training(percent, seconds), devices=[a_device()])
    finding = the_finding(run, "gpu-underused")
    assert (finding.severity, finding.evidence.threshold) == (severity, threshold)
    assert finding.evidence.value == pytest.approx(percent)
    assert finding.waste.gpu_seconds == pytest.approx(seconds * (1 - percent / 100), rel=0.02)
    assert "In [1]" in finding.fact


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        pytest.param(training(51), "clear", id="mean just above"),
        pytest.param(training(bursts(1, 0.6, 98)), "clear", id="bursts, mean above, p95 high"),
        pytest.param(training(20, 9), "not-applicable", id="a short cell"),
        pytest.param(training(hump(0, 60, 20, 29)), "not-applicable", id="GPU work of nine seconds in a minute"),
        pytest.param(training(hump(0, 90, 45, 59)), "clear", id="idle before the first work does not count"),
        pytest.param(training(0), "not-applicable", id="no work at all is another rule's"),
        pytest.param(a_cell(60), "not-applicable", id="pandas"),
        pytest.param(
            a_cell(60, gpu={"gpu0": GpuWork(20, context=0, foreign=2)}),
            "not-applicable",
            id="pandas on a shared server",
        ),
        pytest.param(a_cell(60, gpu={"gpu0": GpuWork(20, foreign=1)}), "unknown", id="two at work"),
        pytest.param(
            a_cell(60, gpu={"gpu0": GpuWork(20, context=NAN, foreign=NAN)}), "unknown", id="pids do not match"
        ),
        pytest.param(training(lambda t: 20 if t < 30 else NAN), "unknown", id="half of it was not read"),
    ],
)
def test_a_gpu_that_is_not_called_underused(cell: CellPlan, expected: str) -> None:
    assert outcome(a_run(cell, devices=[a_device()]), "gpu-underused").outcome == expected


@pytest.mark.parametrize(
    ("cell", "cause"),
    [
        pytest.param(training(bursts(4, 1), cores=1.0), "input-bound", id="a core is busy while it waits"),
        pytest.param(training(bursts(4, 1), cores=0.1, disk_read=400e6), "io", id="the disk is busy while it waits"),
        pytest.param(training(bursts(4, 1), cores=0.1), "gaps", id="nothing is busy"),
        pytest.param(
            training(lambda t: 95 if t < 10 or t > 50 else 0), "partly-idle cell", id="one long phase of rest"
        ),
        pytest.param(
            a_cell(60, gpu={"gpu0": GpuWork(40, reasons=0x40)}), "throttled", id="too hot, and nothing else to see"
        ),
        pytest.param(training(20), "unknown", id="evenly low"),
        pytest.param(training(20, cores=1.0), "unknown", id="a busy core alone proves nothing"),
        pytest.param(
            a_cell(60, gpu={"gpu0": GpuWork(20, reasons=0x04)}), "unknown", id="the software power cap is no throttling"
        ),
    ],
)
def test_the_cause_is_named(cell: CellPlan, cause: str) -> None:
    assert the_finding(a_run(cell, devices=[a_device()]), "gpu-underused").cause == cause


def test_num_workers_is_named_only_where_there_are_workers_or_a_loader() -> None:
    def advice(**plan: object) -> str:
        run = a_run(training(bursts(4, 1), cores=1.0, **plan), devices=[a_device()])
        return the_finding(run, "gpu-underused").advice

    assert "num_workers" not in advice()
    assert "num_workers" in advice(children=4)
    assert "num_workers" in advice(first_line="loader = DataLoader(images)")


def test_work_that_goes_on_after_the_cell_is_said() -> None:
    run = a_run(training(20), training(20), devices=[a_device()], pause=0.0)
    parts = GpuUnderused().check(run).findings
    assert ["went on" in finding.fact for finding in parts] == [True, False]


def test_a_hole_in_the_record_is_not_counted_as_idle() -> None:
    run = a_run(training(90, 200), devices=[a_device()])
    main, *others = run.segments
    seconds = (main.records["t"] - run.start_ns) * 1e-9
    kept = main.records[(seconds < 100) | (seconds > 180)]
    holed = replace(run, segments=(replace(main, records=kept), *others))
    assert outcome(holed, "gpu-underused").outcome == "unknown"


def test_a_cell_run_from_within_another_is_not_judged_twice() -> None:
    run = a_run(training(20), training(20), devices=[a_device()])
    outer, inner = run.cells
    nested = replace(run, cells=(replace(outer, end=inner.end), replace(inner, parent=outer.seq)))
    assert the_finding(nested, "gpu-underused").cells == (outer.seq,)


# ── the frame ──


@dataclass(frozen=True)
class Broken(Rule):
    id: ClassVar[str] = "broken"

    def check(self, run: Run) -> Outcome:
        raise ZeroDivisionError("no samples")


def test_a_rule_that_raises_is_an_error_and_the_others_are_asked() -> None:
    judgement = judge(a_run(spike(8 * GIB)), [Broken(), *RULES])
    assert judgement.checked[0] == Checked("broken", "error", "ZeroDivisionError: no samples")
    assert [finding.rule for finding in judgement.findings] == ["memory-spike"]


def test_the_worst_comes_first() -> None:
    device = [a_device()]
    run = a_run(training(40), training(10, 400), training(10, 30), spike(40 * GIB), devices=device)
    ranks = [(finding.severity, finding.cells) for finding in judge(run).findings]
    assert ranks == [("critical", (2, 3, 1)), ("critical", (4,))], "and the same advice is given once"


def test_thresholds_can_be_set() -> None:
    run = a_run(training(51), devices=[a_device()])
    strict = judge(run, configured({"gpu-underused": {"mean_percent": 60}}))
    assert [finding.rule for finding in strict.findings] == ["gpu-underused"]


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"gpu-idle": {}}, "there is no rule 'gpu-idle'"),
        ({"gpu-underused": {"mean": 1}}, "no threshold 'mean': it has busy_seconds"),
        ({"gpu-underused": {"mean_percent": "high"}}, "must be a number, not 'high'"),
        ({"gpu-underused": {"mean_percent": True}}, "must be a number"),
    ],
)
def test_a_threshold_that_does_not_exist_is_bad_use(
    thresholds: Mapping[str, Mapping[str, float]], message: str
) -> None:
    with pytest.raises(BadUsage, match=message):
        configured(thresholds)


def configured_by(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text(text)
    monkeypatch.setenv("CELLMETER_CONFIG", str(tmp_path / "config.toml"))


def test_thresholds_and_prices_come_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(training(51), devices=[a_device()])
    assert judge(run).findings == ()
    configured_by("[prices]\ngpu_hour = 2.5\n[rules.gpu-underused]\nmean_percent = 60", tmp_path, monkeypatch)
    finding = the_finding(run, "gpu-underused")
    assert finding.waste.cost == pytest.approx(60 * 0.49 / 3600 * 2.5, rel=0.02)
    assert finding.consequence.endswith("That is $0.02, at $2.50 an hour.")


def test_without_a_price_no_finding_speaks_of_money() -> None:
    finding = the_finding(a_run(training(20), devices=[a_device()]), "gpu-underused")
    assert finding.waste.cost is None
    assert "$" not in finding.consequence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules = 3", "rules must be a table"),
        ("[rules]\ngpu-unused = 3", "rules.gpu-unused must be a table"),
        ("[rules.gpu-idle]\na = 1", "there is no rule 'gpu-idle'"),
        ("[prices]\ngpu_minute = 1", "there is no price 'gpu_minute'"),
        ("[prices]\ngpu_hour = -1", "prices.gpu_hour must be a number of at least 0"),
        ("[prices]\ngpu_hour = true", "prices.gpu_hour must be a number"),
        ("[prices]\ncurrency = 3", "prices.currency must be a text"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured_by(text, tmp_path, monkeypatch)
    with pytest.raises(BadUsage, match=re.escape(message)):
        judge(a_run())


# ── one problem, one finding ──


def test_the_same_advice_is_given_once_by_the_worst() -> None:
    run = a_run(*[spike(height * GIB) for height in (2, 40, 8)])
    finding = the_finding(run, "memory-spike")
    assert (finding.cells, finding.severity) == ((2, 3, 1), "critical")
    assert finding.fact.endswith("The same in In [1] and In [3].")
    assert (finding.start, finding.end) == (run.cells[1].start, run.cells[1].end)


def test_what_another_finding_explains_is_told_by_that_one() -> None:
    run = a_run(a_cell(20, rss=hump(GIB, 60 * GIB, 5, 8)))
    judgement = judge(run)
    assert [finding.rule for finding in judgement.findings] == ["memory-spike"]
    assert outcome(run, "memory-near-limit") == Checked("memory-near-limit", "found", "told by memory-spike")


def test_a_finding_on_more_cells_than_the_other_explains_stays() -> None:
    run = a_run(a_cell(20, rss=hump(58 * GIB, 63.9 * GIB, 5, 8)), a_cell(5, rss=59 * GIB))
    assert "memory-near-limit" in [finding.rule for finding in judge(run).findings]


def test_explanations_name_rules_that_exist() -> None:
    named = {*EXPLAINED_BY, *(explains.rule for by in EXPLAINED_BY.values() for explains in by)}
    assert named <= {rule.id for rule in RULES}


def test_a_run_knows_its_findings() -> None:
    run = a_run(spike(8 * GIB))
    assert run.findings() == list(cellmeter.judge(run).findings)
    (first, *_) = run.findings()
    assert repr(first) == f"<Finding {first.rule}, {first.severity}, cells [1]: {first.fact}>"


def test_the_documentation_has_every_rule_and_every_threshold_as_it_is() -> None:
    text = (Path(__file__).parents[1] / "docs" / "rules.md").read_text()
    for rule in RULES:
        assert f"| `{rule.id}` | " in text
        for threshold in fields(cast(Any, rule)):
            default = f"{threshold.default:{'.0f' if threshold.name.endswith('_bytes') else 'g'}}"
            assert f"`{threshold.name}` {default}" in text, rule.id


def test_rules_declare_metrics_of_the_catalogue() -> None:
    from cellmeter.metrics import METRICS

    assert [metric for rule in RULES for metric in rule.metrics if metric not in METRICS] == []


# ── properties ──

levels = st.lists(st.integers(1, 100), min_size=12, max_size=12)
quick = settings(max_examples=25)


def stepwise(percents: list[int], step: float) -> CellPlan:
    return training(lambda t: float(percents[min(int(t / step), len(percents) - 1)]), step * len(percents))


@quick
@given(levels, st.sampled_from([1.5, 3.0]))
def test_the_verdict_on_steady_use_does_not_depend_on_the_clock(percents: list[int], step: float) -> None:
    once = a_run(stepwise(percents, step), devices=[a_device()], rate_hz=4)
    twice = a_run(stepwise(percents, 2 * step), devices=[a_device()], rate_hz=2)
    assert outcome(once, "gpu-underused").outcome == outcome(twice, "gpu-underused").outcome


@quick
@given(st.permutations([5.0, 25.0, 45.0, 90.0]))
def test_the_order_of_gpus_changes_no_verdict(percents: list[float]) -> None:
    names = [f"gpu{n}" for n in range(4)]
    cell = a_cell(30, gpu={name: GpuWork(p) for name, p in zip(names, percents, strict=True)})
    run = a_run(cell, devices=[a_device(name) for name in names], rate_hz=2)
    means = {f.subject: round(f.evidence.value) for f in GpuUnderused().check(run).findings}
    assert means == {name: p for name, p in zip(names, percents, strict=True) if p < 50}


@quick
@given(levels, st.floats(1, 30))
def test_idle_around_the_work_changes_no_verdict(percents: list[int], idle: float) -> None:
    def late(t: float) -> float:
        return 0.0 if t < idle or t >= idle + 12 else float(percents[int(t - idle)])

    bare = a_run(stepwise(percents, 1.0), devices=[a_device()])
    padded = a_run(training(late, 12 + 2 * idle), devices=[a_device()])
    mean = sum(percents) / len(percents)
    if abs(mean - 50) > 2:
        assert outcome(bare, "gpu-underused").outcome == outcome(padded, "gpu-underused").outcome


@quick
@given(st.integers(0, 64), st.integers(0, 64), st.integers(0, 64), st.floats(1.5, 9))
def test_a_spike_is_one_at_any_speed(before: int, peak: int, after: int, factor: float) -> None:
    def at(scale: float) -> Run:
        def rss(t: float) -> float:
            phase = t / scale
            return GIB * float(before if phase < 2 else peak if phase < 4 else after)

        return a_run(a_cell(6 * scale, rss=rss), rate_hz=5)

    slow, fast = findings(at(factor), "memory-spike"), findings(at(1), "memory-spike")
    assert [(f.severity, f.evidence) for f in slow] == [(f.severity, f.evidence) for f in fast]


@quick
@given(st.lists(st.sampled_from([0.0, 50.0, 100.0, math.nan]), min_size=20, max_size=20))
@example([0.0] * 4 + [50.0] * 16)
def test_unknown_readings_never_make_a_gpu_look_idle(percents: list[float]) -> None:
    """A GPU at 50 or more in all that was read is never called underused or unused, whatever was not read."""
    known_busy = [percent if percent >= 50 else math.nan for percent in percents]
    cell = training(lambda t: known_busy[min(int(t), 19)], 20)
    called = {finding.rule for finding in judge(a_run(cell, devices=[a_device()])).findings}
    assert not called & {"gpu-underused", "gpu-unused"}


def died(**changes: Any) -> Run:
    run = a_run(a_cell(5), a_cell(20, rss=30 * GIB))
    last = replace(run.cells[-1], end=None, status="died", peak_rss_bytes=None)
    return replace(run, cells=(*run.cells[:-1], last), ending="out-of-memory", signal=9, **changes)


def test_out_of_memory_names_the_cell_and_the_limit() -> None:
    (finding,) = [f for f in judge(died()).findings if f.rule == "out-of-memory"]
    assert (finding.severity, finding.cells) == ("critical", (2,))
    assert "In [2]" in finding.fact
    assert "30.0 GiB" in finding.fact or "30 GiB" in finding.fact
    assert "probably" not in finding.fact


def test_a_record_that_breaks_off_is_only_probably_out_of_memory() -> None:
    (finding,) = [f for f in judge(died(ending_sure=False)).findings if f.rule == "out-of-memory"]
    assert "probably ran out of memory" in finding.fact


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        ("killed", "clear"),
        ("restarted", "clear"),
        ("crashed", "clear"),
        ("unknown", "unknown"),
        (None, "not-applicable"),
    ],
)
def test_other_endings_are_no_lack_of_memory(ending: Any, outcome: str) -> None:
    checked = judge(replace(died(), ending=ending)).checked
    assert [c.outcome for c in checked if c.rule == "out-of-memory"] == [outcome]
