"""One problem is one finding: what another finding explains is left out, and the same advice is given once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.rules.observed import titles
from cellmeter.rules.rule import Finding, Waste
from cellmeter.words import gpu_seconds_text, money_text

if TYPE_CHECKING:
    from cellmeter.run import Run
    from cellmeter.settings import Prices


class Explains(NamedTuple):
    """A rule whose finding on the same cells makes another superfluous: of any cause or one, of the same thing or any."""

    rule: str
    cause: str | None = None
    anything: bool = False


# What is left out, and what tells of it instead. The cause goes before the symptom, the end before the way to it.
EXPLAINED_BY: Mapping[str, tuple[Explains, ...]] = {
    "memory-spike": (Explains("out-of-memory"), Explains("gpu-out-of-memory")),
    "memory-growth": (Explains("out-of-memory"),),
    "memory-near-limit": (Explains("out-of-memory"), Explains("memory-growth"), Explains("memory-spike")),
    "memory-retained": (Explains("out-of-memory"), Explains("memory-growth"), Explains("memory-near-limit")),
    "gpu-memory-near-limit": (Explains("gpu-out-of-memory"), Explains("memory-spike")),
    "gpu-memory-held": (Explains("gpu-unused"),),
    "gpu-imbalance": (Explains("gpu-unused"),),
    "gpu-underused": (Explains("gpu-imbalance"),),
    "gpu-throttled": (Explains("gpu-underused", "throttled"),),
    "io-bound": (Explains("gpu-underused", "io", anything=True),),
    "cpu-one-core": (Explains("gpu-underused", "input-bound", anything=True),),
    "cpu-oversubscribed": (Explains("gpu-underused", "input-bound", anything=True),),
}
MEMORY_SUBJECTS = frozenset({"process", "cgroup", "host"})  # three views of the same memory


ByCell = Mapping[int | None, Sequence[Finding]]


def of_cells(findings: Sequence[Finding]) -> ByCell:
    """A rule's findings by the cells that they are about, and all of them under None: a long run has thousands."""
    by_cell: dict[int | None, list[Finding]] = {None: list(findings)}
    for finding in findings:
        for seq in set(finding.cells):
            by_cell.setdefault(seq, []).append(finding)
    return by_cell


def explained_by(finding: Finding, by_rule: Mapping[str, ByCell]) -> str | None:
    """The rule that tells of the same problem, if its findings are about all of a finding's cells."""
    for explains in EXPLAINED_BY.get(finding.rule, ()):
        others = by_rule.get(explains.rule, {})
        if all(any(_tells(explains, o, finding) for o in others.get(seq, ())) for seq in finding.cells or (None,)):
            return explains.rule
    return None


def _tells(explains: Explains, other: Finding, finding: Finding) -> bool:
    if explains.cause not in (None, other.cause):
        return False
    return explains.anything or _things(finding) <= _things(other)


def _things(finding: Finding) -> set[str]:
    return {"memory" if s in MEMORY_SUBJECTS else s for s in (finding.subject, *finding.also)}


def merged(run: Run, findings: Sequence[Finding]) -> list[Finding]:
    """Findings of one rule and cause that advise the same, as one: the worst, which names the others."""
    groups: dict[tuple[str, str | None, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: finding.badness):
        groups.setdefault((finding.rule, finding.cause, finding.advice), []).append(finding)
    return [_one(run, group) for group in groups.values()]


def _one(run: Run, group: Sequence[Finding]) -> Finding:
    worst, *others = group
    if not others:
        return worst
    seqs = list(dict.fromkeys(seq for finding in group for seq in finding.cells))
    subjects = list(dict.fromkeys(s for finding in group for s in (finding.subject, *finding.also)))
    subjects[1:] = sorted(subjects[1:], key=lambda name: (len(name), name))  # gpu2 before gpu10
    cells = {cell.seq: cell for cell in run.cells}
    also_cells = sorted(seq for seq in seqs if seq not in worst.cells and seq in cells)
    also = [f"in {titles([cells[seq] for seq in also_cells])}"] if also_cells else []
    also += [f"on {', '.join(subjects[1:4])}{_more(subjects[4:])}"] if len(subjects) > 1 else []
    wasted = sum(finding.waste.gpu_seconds for finding in group)
    together = f" Together {gpu_seconds_text(wasted)}." if wasted > worst.waste.gpu_seconds else ""
    return replace(
        worst,
        cells=tuple(seqs),
        also=tuple(subjects[1:]),
        fact=f"{worst.fact} The same {' and '.join(also)}." if also else worst.fact,
        consequence=worst.consequence + together,
        waste=Waste(wasted),
    )


def _more(rest: Sequence[str]) -> str:
    return f" and {len(rest)} more" if rest else ""


def priced(finding: Finding, prices: Prices) -> Finding:
    """With what the waste cost, where an hour of a GPU has a price."""
    seconds = finding.waste.gpu_seconds
    if prices.gpu_hour is None or not seconds:
        return finding
    cost = seconds / 3600 * prices.gpu_hour
    money = f" That is {money_text(prices.currency, cost)}, at {money_text(prices.currency, prices.gpu_hour)} an hour."
    return replace(finding, consequence=finding.consequence + money, waste=replace(finding.waste, cost=cost))
