"""What a rule is and what it says: :class:`Rule`, :class:`Outcome`, :class:`Finding`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from cellmeter.run import Device, Run

Severity = Literal["critical", "warning", "info"]
Verdict = Literal["found", "clear", "not-applicable", "unknown", "error"]

SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
REASONS_NAMED = 3  # a run has hundreds of cells, the reader wants a line


@dataclass(frozen=True)
class Evidence:
    """The number a finding rests on and the threshold it passed, in the UCUM unit of the metric."""

    metric: str
    value: float
    threshold: float
    unit: str


@dataclass(frozen=True)
class Waste:
    """What was paid for and not used: seconds of a whole GPU, and what they cost where a price is set."""

    gpu_seconds: float = 0.0
    cost: float | None = None


@dataclass(frozen=True)
class Finding:
    """Something worth changing: fact, consequence and advice for people, the rest for programs.

    ``cells`` are sequence numbers, that of the evidence first; ``start`` and ``end`` are seconds since the run's start
    and bound the evidence; ``subject`` is a device id, ``process``, ``cgroup``, ``host`` or a mount point, and ``also``
    are others of which the same is true.
    """

    rule: str
    severity: Severity
    cells: tuple[int, ...]
    subject: str
    cause: str | None
    start: float
    end: float
    fact: str
    consequence: str
    advice: str
    evidence: Evidence
    waste: Waste = Waste()
    also: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Finding {self.rule}, {self.severity}, cells {list(self.cells)}: {self.fact}>"

    @property
    def badness(self) -> tuple[int, float, float, float]:
        """Sorts the worst first: by severity, by what was wasted, by how far the threshold was missed, then by time."""
        value, threshold = self.evidence.value, self.evidence.threshold
        beyond = max(value / threshold, threshold / value) if value > 0 and threshold > 0 else math.inf
        return SEVERITIES.index(self.severity), -self.waste.gpu_seconds, -beyond, self.start


@dataclass(frozen=True)
class Outcome:
    """What a rule says of a run, or of a part of it. ``reason`` says why it could not be judged, or how well it was."""

    outcome: Verdict
    reason: str | None = None
    findings: tuple[Finding, ...] = ()


CLEAR = Outcome("clear")


def found(finding: Finding) -> Outcome:
    """One finding."""
    return Outcome("found", findings=(finding,))


def not_applicable(reason: str) -> Outcome:
    """The rule has nothing to say here, and this is no praise."""
    return Outcome("not-applicable", reason)


def unknown(reason: str) -> Outcome:
    """The rule would have something to say, had the numbers been there."""
    return Outcome("unknown", reason)


class Rule(ABC):
    """One thing that can be wrong with a run.

    Subclasses are frozen dataclasses; their fields are the thresholds, with defaults.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """The metrics it rests on, for documentation and for ``doctor``."""

    @abstractmethod
    def check(self, run: Run) -> Outcome:
        """Judges a run. May raise: :func:`cellmeter.rules.judge` reports that as the outcome ``error``."""


class DeviceRule(Rule):
    """A rule that looks at one GPU after the other.

    So that all such rules can look at one before the next: the readings of all GPUs together may be too many to hold.
    """

    @abstractmethod
    def of_device(self, run: Run, device: Device) -> list[Outcome]:
        """The outcomes of its parts on one GPU."""

    @abstractmethod
    def together(self, run: Run, parts: Sequence[list[Outcome]]) -> Outcome:
        """The outcome of the run from those of its GPUs."""

    def check(self, run: Run) -> Outcome:
        """All GPUs."""
        return self.together(run, [self.of_device(run, device) for device in run.devices])


def combined(parts: Iterable[Outcome], nothing: str) -> Outcome:
    """The outcome of a run from those of its parts (cells, devices). ``nothing``: the reason if there are no parts.

    One part that could not be judged makes the whole unknown unless another was found: "clear" is a promise.
    """
    outcomes = list(parts)
    findings = tuple(finding for part in outcomes for finding in part.findings)
    unknowns = _reasons(outcomes, "unknown")
    if findings:
        return Outcome("found", f"not all could be judged: {unknowns}" if unknowns else None, findings)
    if unknowns:
        return unknown(unknowns)
    if any(part.outcome == "clear" for part in outcomes):
        return Outcome("clear", _reasons(outcomes, "clear"))
    return not_applicable(_reasons(outcomes, "not-applicable") or nothing)


def _reasons(outcomes: Iterable[Outcome], verdict: Verdict) -> str | None:
    distinct = list(dict.fromkeys(part.reason for part in outcomes if part.outcome == verdict and part.reason))
    named = "; ".join(distinct[:REASONS_NAMED])
    more = len(distinct) - REASONS_NAMED
    return (f"{named}; and {more} more" if more > 0 else named) or None
