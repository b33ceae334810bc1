"""The rules that judge a run, and :func:`judge`, which asks them all.

Thresholds and prices are the user's own (:mod:`cellmeter.settings`). A finding is a fact with its consequence and what to
change, and carries its evidence. A rule that cannot tell says *unknown* with the reason; one that has nothing to look at
says *not-applicable*; neither is ever *clear*.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from cellmeter.errors import BadUsage
from cellmeter.plugins import found
from cellmeter.rules.cpu import CpuOneCore, CpuOversubscribed
from cellmeter.rules.gpu import GpuUnderused, GpuUnused
from cellmeter.rules.gpu_load import GpuHollow, GpuImbalance, GpuThrottled
from cellmeter.rules.gpu_memory import GpuMemoryHeld, GpuMemoryNearLimit, GpuOutOfMemory
from cellmeter.rules.io import DiskFilling, IoBound
from cellmeter.rules.memory import MemoryRetained, MemorySpike, OutOfMemory
from cellmeter.rules.memory_limit import MemoryGrowth, MemoryNearLimit
from cellmeter.rules.notes import Note, notes
from cellmeter.rules.rule import DeviceRule, Evidence, Finding, Outcome, Rule, Severity, Verdict, Waste
from cellmeter.rules.scripts import for_script, is_script
from cellmeter.rules.together import explained_by, merged, of_cells, priced
from cellmeter.settings import Prices, load_settings
from cellmeter.usage import gpu_usages

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from cellmeter.run import Run

__all__ = [
    "RULES",
    "Checked",
    "Evidence",
    "Finding",
    "Judgement",
    "Note",
    "Outcome",
    "Rule",
    "Severity",
    "Verdict",
    "Waste",
    "all_rules",
    "configured",
    "judge",
]

RULES: tuple[Rule, ...] = (
    OutOfMemory(),
    MemoryNearLimit(),
    MemoryGrowth(),
    MemorySpike(),
    MemoryRetained(),
    GpuOutOfMemory(),
    GpuUnused(),
    GpuUnderused(),
    GpuHollow(),
    GpuImbalance(),
    GpuThrottled(),
    GpuMemoryHeld(),
    GpuMemoryNearLimit(),
    CpuOneCore(),
    CpuOversubscribed(),
    IoBound(),
    DiskFilling(),
)


@functools.cache
def all_rules() -> tuple[Rule, ...]:
    """The rules of cellmeter, then those that other packages add."""
    return (*RULES, *(added_rule(point) for point in found("cellmeter.rules")))


def added_rule(point: EntryPoint) -> Rule:
    """The rule of another package, or an :class:`Unloadable` in its place."""
    try:
        made = point.load()
        rule = made() if isinstance(made, type) else made
        if not isinstance(rule, Rule):
            raise TypeError(f"{point.value} is no cellmeter.rules.Rule")
        if not rule.id.startswith(f"{point.name}-") or any(rule.id == own.id for own in RULES):
            raise ValueError(f"its id {rule.id!r} must begin with {point.name}-")
    except (Exception, SystemExit) as error:
        return Unloadable(point.name, f"{type(error).__name__}: {error}".splitlines()[0])
    return rule


class Unloadable(Rule):
    """Stands for a rule that could not be loaded: its outcome is ``error``."""

    title = "A rule that could not be loaded"
    metrics = ()

    def __init__(self, name: str, reason: str) -> None:
        self.id = name  # type: ignore[misc]
        self.reason = reason

    def check(self, run: Run) -> Outcome:
        return Outcome("error", self.reason)


@dataclass(frozen=True)
class Checked:
    """What became of one rule.

    ``reason`` says why it is unknown or not applicable, how sure a clear one is, or which finding tells of what it found.
    """

    rule: str
    outcome: Verdict
    reason: str | None


@dataclass(frozen=True)
class Judgement:
    """What all rules say of a run: the findings, worst first, what became of each rule, and what else is worth knowing."""

    findings: tuple[Finding, ...]
    checked: tuple[Checked, ...]
    notes: tuple[Note, ...] = ()


def configured(thresholds: Mapping[str, Mapping[str, float]]) -> tuple[Rule, ...]:
    """The rules with other thresholds, by rule id and name: ``{"gpu-underused": {"mean_percent": 40}}``.

    Raises BadUsage for a rule or threshold that does not exist, and for a value that is no number.
    """
    known = {rule.id: rule for rule in all_rules()}
    for rule_id, values in thresholds.items():
        if rule_id not in known:
            raise BadUsage(f"there is no rule {rule_id!r}: the rules are {', '.join(known)}")
        known[rule_id] = _with_thresholds(known[rule_id], values)
    return tuple(known.values())


def _with_thresholds(rule: Rule, values: Mapping[str, float]) -> Rule:
    names = [field.name for field in fields(cast(Any, rule))]
    for name, value in values.items():
        if name not in names:
            raise BadUsage(f"rule {rule.id} has no threshold {name!r}: it has {', '.join(names)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadUsage(f"threshold {name} of rule {rule.id} must be a number, not {value!r}")
    return cast(Rule, replace(cast(Any, rule), **values))


def judge(run: Run, rules: Sequence[Rule] | None = None, prices: Prices | None = None) -> Judgement:
    """Asks every rule; by default with the thresholds and prices of the settings. Raises BadUsage if those cannot be used.

    A rule that fails has the outcome ``error``; the others are still asked.
    """
    if rules is None or prices is None:
        settings = load_settings()
        rules = configured(settings.rules) if rules is None else rules
        prices = settings.prices if prices is None else prices
    of_devices = _of_devices(run, [rule for rule in rules if isinstance(rule, DeviceRule)])
    outcomes = {rule.id: of_devices[rule.id] if rule.id in of_devices else _outcome(rule, run) for rule in rules}
    found = {rule: outcome.findings for rule, outcome in outcomes.items()}
    by_cell = {rule: of_cells(findings) for rule, findings in found.items()}
    told_by = {rule: [explained_by(finding, by_cell) for finding in findings] for rule, findings in found.items()}
    told = [f for rule in found for f, by in zip(found[rule], told_by[rule], strict=True) if by is None]
    findings = [priced(finding, prices) for finding in merged(run, told)]
    checked = [Checked(rule, outcome.outcome, _reason(outcome, told_by[rule])) for rule, outcome in outcomes.items()]
    judgement = Judgement(
        tuple(sorted(findings, key=lambda finding: finding.badness)), tuple(checked), notes(run, findings)
    )
    return _of_script(run, judgement) if is_script(run) else judgement


def _of_script(run: Run, judgement: Judgement) -> Judgement:
    """The same in words that fit a plain script."""

    def worded(text: str) -> str:
        return for_script(run, text)

    findings = (
        replace(one, fact=worded(one.fact), consequence=worded(one.consequence), advice=worded(one.advice))
        for one in judgement.findings
    )
    checked = (replace(one, reason=worded(one.reason) if one.reason else None) for one in judgement.checked)
    return replace(judgement, findings=tuple(findings), checked=tuple(checked))


def _reason(outcome: Outcome, told_by: Sequence[str | None]) -> str | None:
    """Where findings of other rules tell of all that a rule found, their names."""
    names = [name for name in dict.fromkeys(told_by) if name is not None]
    return outcome.reason if None in told_by or not names else f"told by {' and '.join(names)}"


def _of_devices(run: Run, rules: Sequence[DeviceRule]) -> dict[str, Outcome]:
    """What the rules say that look at GPUs, each of which is looked at by all of them before the next."""
    parts: dict[str, list[list[Outcome]]] = {rule.id: [] for rule in rules}
    failed: dict[str, Outcome] = {}
    for device in run.devices:
        gpu_usages(run, device)
        for rule in rules:
            if rule.id not in failed:
                try:
                    parts[rule.id].append(rule.of_device(run, device))
                except Exception as error:
                    failed[rule.id] = _error(error)
    run.usages()
    return failed | {rule.id: _outcome(rule, run, parts[rule.id]) for rule in rules if rule.id not in failed}


def _outcome(rule: Rule, run: Run, parts: Sequence[list[Outcome]] | None = None) -> Outcome:
    try:
        outcome = rule.together(run, parts) if isinstance(rule, DeviceRule) and parts is not None else rule.check(run)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"it says {outcome!r:.80} and no Outcome")
        return outcome
    except Exception as error:  # a report without one rule is worth more than none
        return _error(error)


def _error(error: Exception) -> Outcome:
    return Outcome("error", f"{type(error).__name__}: {error}")
