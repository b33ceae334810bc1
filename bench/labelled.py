"""How right the findings are: precision and recall of each rule on the labelled runs of ``tests/data/runs``."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.effort import Effort
from bench.table import Figure, Line, Section

TESTS = Path(__file__).parents[1] / "tests"
LABELS = TESTS / "labelled" / "labels.toml"


@dataclass(frozen=True)
class Labelled:
    """A run, what must be found in it, what may, and what was. Items are ``rule`` or ``rule:cause``."""

    name: str
    label: Mapping[str, Any]
    found: Mapping[str, tuple[str | None, str]]
    """By rule: its cause and severity."""
    broken: tuple[str, ...]
    """Rules with the outcome ``error``."""

    def expects(self, rule: str) -> bool:
        """Whether a rule must be found here."""
        return any(item.partition(":")[0] == rule for item in self.label.get("fires", ()))

    def hit(self, rule: str) -> bool:
        """Whether it was, with the cause that the label names."""
        causes = {item.partition(":")[0]: item.partition(":")[2] for item in self.label.get("fires", ())}
        return rule in self.found and causes.get(rule, "") in ("", self.found[rule][0])

    def false_alarm(self, rule: str) -> bool:
        """Whether it fired where it must not; on ordinary notebooks and as a note only severities above info count."""
        if rule not in self.found or self.expects(rule):
            return False
        return not (rule in self.label.get("notes", ()) and self.found[rule][1] == "info")


@dataclass(frozen=True)
class Score:
    """A row of the confusion matrix."""

    rule: str
    hits: int
    misses: int
    false_alarms: int
    quiet: int
    near_misses: int
    """Of those that were rightly quiet, the runs that came close."""

    @property
    def recall(self) -> float:
        """Share of what must be found that was, in percent."""
        return 100 * self.hits / (self.hits + self.misses)

    @property
    def precision(self) -> float:
        """Share of what was found that is right, in percent; 100 if nothing was."""
        fired = self.hits + self.false_alarms
        return 100 * self.hits / fired if fired else 100.0


def labelled_runs() -> Iterator[Labelled]:
    """All labelled runs, judged with the thresholds as they come."""
    sys.path[:0] = [] if str(TESTS) in sys.path else [str(TESTS)]
    from labelled.keep import unpacked

    from cellmeter.rules import RULES, judge
    from cellmeter.settings import Prices

    for name, label in tomllib.loads(LABELS.read_text()).items():
        with unpacked(name) as run:
            judgement = judge(run, RULES, Prices())
        found = {finding.rule: (finding.cause, finding.severity) for finding in reversed(judgement.findings)}
        broken = tuple(checked.rule for checked in judgement.checked if checked.outcome == "error")
        yield Labelled(name, label, found, broken)


def scores(runs: list[Labelled]) -> list[Score]:
    """One row a rule, in the order of the catalogue."""
    from cellmeter.rules import RULES

    return [_score(rule.id, runs) for rule in RULES]


def _score(rule: str, runs: list[Labelled]) -> Score:
    expected = [run for run in runs if run.expects(rule)]
    others = [run for run in runs if not run.expects(rule)]
    hits = sum(run.hit(rule) for run in expected)
    alarms = [run for run in others if run.false_alarm(rule)]
    near = [run for run in others if rule in run.label.get("near", ()) and run not in alarms]
    return Score(rule, hits, len(expected) - hits, len(alarms), len(others) - len(alarms), len(near))


def matrix(rows: list[Score]) -> str:
    """The confusion matrix as a table: what must fire and what must not, against what did."""
    head = f"{'rule':<24}{'must: fired':>12}{'quiet':>7}{'must not: fired':>17}{'quiet':>7}{'of these near':>15}"
    lines = [f"{r.rule:<24}{r.hits:>12}{r.misses:>7}{r.false_alarms:>17}{r.quiet:>7}{r.near_misses:>15}" for r in rows]
    return "\n".join([head, *lines])


def run(effort: Effort) -> Iterator[Section]:
    """One section, two lines a rule. The effort changes nothing: it takes seconds."""
    runs = list(labelled_runs())
    rows = scores(runs)
    lines = [line for row in rows for line in _lines(row)]
    ordinary = sum(bool(one.label.get("ordinary")) for one in runs)
    notes = (
        f"{len(runs)} recorded runs, {ordinary} of them ordinary notebooks. Precision counts every finding that no label asks "
        "for; a note (info) that the label allows is none.",
    )
    yield Section("labelled: findings on recorded runs", tuple(lines), notes)


def _lines(row: Score) -> Iterator[Line]:
    recall = Figure(row.recall, count=row.hits + row.misses)
    precision = Figure(row.precision, count=row.hits + row.false_alarms)
    yield Line(f"{row.rule}, recall", "%", recall, target="100 %", met=row.recall == 100)
    yield Line(f"{row.rule}, precision", "%", precision, target="100 %", met=row.precision == 100)
