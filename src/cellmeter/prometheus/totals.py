"""What the user's code says of itself, summed up as it comes: the newest of each logged value, steps, durations of spans."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cellmeter.spans import BOUNDS, bucket_seconds

MOST_NAMES = 100  # of values, of amounts and of spans each: those said first


@dataclass
class SpanTotals:
    """Spans of one name. ``counts`` has one entry a bound, and one for what is above the last."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    errors: int = 0
    items: float | None = None

    def add(self, seconds: float, count: int = 1) -> None:
        """Some spans of one duration; their sum is the caller's affair."""
        self.counts[bisect_left(BOUNDS, seconds)] += count

    def cumulated(self) -> list[tuple[str, float]]:
        """As Prometheus has it: how many were no longer than each bound."""
        total, found = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class OwnTotals:
    """All that a run's processes said so far."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}
        self.steps: dict[str, float] = {}
        self.spans: dict[str, SpanTotals] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """One event."""
        kind = event.get("event")
        if kind == "logged":
            for name, said in _room(self.logged, event.get("values", {})):
                self.logged[name] = float(said[1] if isinstance(said, list) else said)
            for name, amount in _room(self.steps, event.get("steps", {})):
                self.steps[name] = self.steps.get(name, 0.0) + max(0.0, amount)  # a counter never falls
        elif kind in ("span", "spans"):
            for name, _ in _room(self.spans, {event["name"]: event}):
                spans = self.spans.setdefault(name, SpanTotals())
                (_take_span if kind == "span" else _take_batch)(spans, event)
                if (items := event.get("items")) is not None:
                    spans.items = (spans.items or 0.0) + max(0.0, items)


def _room(kept: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What has a name already, or can get one."""
    for name, value in said.items():
        if name in kept or len(kept) < MOST_NAMES:
            yield name, value


def _take_span(spans: SpanTotals, event: Mapping[str, Any]) -> None:
    seconds = (event["t"] - event["start"]) * 1e-9
    spans.add(seconds)
    spans.seconds += seconds
    spans.errors += event["status"] == "error"


def _take_batch(spans: SpanTotals, event: Mapping[str, Any]) -> None:
    for bucket, count in event["histogram"].items():
        spans.add(bucket_seconds(int(bucket)), count)
    spans.seconds += event["seconds"]
    spans.errors += event["errors"]
