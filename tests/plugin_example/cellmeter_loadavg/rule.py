"""Fires where more tasks wanted to run than there are cores."""

from dataclasses import dataclass
from typing import ClassVar

from cellmeter.rules.rule import CLEAR, Evidence, Finding, Outcome, Rule, found, not_applicable
from cellmeter.run import Run


@dataclass(frozen=True)
class LoadHigh(Rule):
    """Its fields are its thresholds: ``[rules.loadavg-high]`` in the settings."""

    id: ClassVar[str] = "loadavg-high"
    title: ClassVar[str] = "The machine has more to run than it has cores"
    metrics: ClassVar[tuple[str, ...]] = ("loadavg.one",)

    per_core: float = 2.0

    def check(self, run: Run) -> Outcome:
        if not run.subjects("loadavg.one"):
            return not_applicable("the load average was not recorded")
        series = run.series("loadavg.one", "host")
        most, limit = float(series.values.max()), self.per_core * run.host.cpu_count
        if most <= limit:
            return CLEAR
        at = series.time[series.values.argmax()]
        cell = int(series.seq[series.values.argmax()])
        return found(
            Finding(
                rule=self.id,
                severity="info",
                cells=(cell,) if cell else (),
                subject="host",
                cause=None,
                start=float(at),
                end=float(at),
                fact=f"The load average was {most:.1f} on {run.host.cpu_count} cores.",
                consequence="Everything on this machine takes longer.",
                advice="Run fewer things at once.",
                evidence=Evidence("loadavg.one", most, limit, "1"),
            )
        )
