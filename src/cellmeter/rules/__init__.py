"""The rules that judge a run, and :func:`judge`, which asks them all.

A finding is a fact with its consequence and what to change, and carries its evidence. A rule that cannot tell says
*unknown* with the reason; one that has nothing to look at says *not-applicable*; neither is ever *clear*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from cellmeter.errors import BadUsage
from cellmeter.rules.gpu import GpuUnderused, GpuUnused
from cellmeter.rules.memory import MemorySpike, OutOfMemory
from cellmeter.rules.rule import Evidence, Finding, Outcome, Rule, Severity, Verdict, Waste

if TYPE_CHECKING:
    from cellmeter.run import Run

__all__ = [
    "RULES",
    "Checked",
    "Evidence",
    "Finding",
    "Judgement",
    "Outcome",
    "Rule",
    "Severity",
    "Verdict",
    "Waste",
    "configured",
    "judge",
]

RULES: tuple[Rule, ...] = (OutOfMemory(), MemorySpike(), GpuUnused(), GpuUnderused())


@dataclass(frozen=True)
class Checked:
    """What became of one rule; ``reason`` says why it is unknown or not applicable, or how sure a clear one is."""

    rule: str
    outcome: Verdict
    reason: str | None


@dataclass(frozen=True)
class Judgement:
    """What all rules say of a run: the findings, worst first, and what became of each rule."""

    findings: tuple[Finding, ...]
    checked: tuple[Checked, ...]


def configured(thresholds: Mapping[str, Mapping[str, float]]) -> tuple[Rule, ...]:
    """The rules with other thresholds, by rule id and name: ``{"gpu-underused": {"mean_percent": 40}}``.

    Raises BadUsage for a rule or threshold that does not exist, and for a value that is no number.
    """
    known = {rule.id: rule for rule in RULES}
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


def judge(run: Run, rules: Sequence[Rule] = RULES) -> Judgement:
    """Asks every rule. Never raises: a rule that does has the outcome ``error``; the others are still asked."""
    findings: list[Finding] = []
    checked: list[Checked] = []
    for rule in rules:
        outcome = _outcome(rule, run)
        findings.extend(outcome.findings)
        checked.append(Checked(rule.id, outcome.outcome, outcome.reason))
    return Judgement(tuple(sorted(findings, key=lambda finding: finding.badness)), tuple(checked))


def _outcome(rule: Rule, run: Run) -> Outcome:
    try:
        return rule.check(run)
    except Exception as error:  # a report without one rule is worth more than none
        return Outcome("error", f"{type(error).__name__}: {error}")
