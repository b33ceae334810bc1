"""The line in the live panel of what the user's code says and is told: last values, steps per second, spans, alerts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from cellmeter import nearly_full
from cellmeter.spans import STEP
from cellmeter.words import bytes_text, count_text, of_text, percent_text, seconds_text, value_text

MOST_PARTS = 6  # of each kind
RATE_SECONDS = 10.0

Event = Mapping[str, Any]


class Ticker:
    """The line out of a kernel's events. What workers say is in the report."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._spans: dict[str, str] = {}
        self._alerts: dict[str, str] = {}
        self._steps: dict[str, deque[tuple[int, float]]] = {}
        self.text = ""

    def take(self, events: Iterable[Event]) -> str | None:
        """The line, if there is another than before."""
        for event in events:
            self._take(event)
        parts = [*self._alerts.values(), *self._rates(), *self._values.values(), *self._spans.values()]
        before, self.text = self.text, " · ".join(parts)
        return self.text if self.text != before else None

    def _take(self, event: Event) -> None:
        kind = event.get("event")
        if kind == "logged":
            for name, said in event.get("values", {}).items():
                last = said[1] if isinstance(said, list) else said
                _put(self._values, name, f"{name} {last if isinstance(last, str) else count_text(last)}")
            for name, amount in event.get("steps", {}).items():
                self._steps.setdefault(name, deque()).append((event["t"], amount))
        elif kind == "span":
            _put(self._spans, event["name"], f"{event['name']} {seconds_text((event['t'] - event['start']) * 1e-9)}")
        elif kind == "spans":
            mean = event["seconds"] / event["count"]
            _put(self._spans, event["name"], f"{event['name']} {seconds_text(mean)}")
        elif kind == "cell_end":
            self._alerts.clear()
        else:
            self._take_warning(event)

    def _take_warning(self, event: Event) -> None:
        kind = event.get("event")
        if kind == "alert":
            key = f"{event['alert']} {event['subject']}"
            self._alerts.pop(key, None)
            if event["state"] == "fired":
                _put(self._alerts, key, f"▲ {event['alert']} ({event['subject']})")
        elif kind == "budget":
            most = "at most " if event.get("upper_bound") else ""
            _put(self._alerts, "", f"▲ {most}{bytes_text(event['value'])} in use, budget {event['budget']}")
        elif kind == nearly_full.EVENT:
            _put(self._alerts, "", f"▲ {nearly_full_text(event)}")

    def _rates(self) -> list[str]:
        """Over the last ten seconds in which steps were told of."""
        found = []
        for name, done in self._steps.items():
            while done[-1][0] - done[0][0] > RATE_SECONDS * 1e9:
                done.popleft()
            if (elapsed := (done[-1][0] - done[0][0]) * 1e-9) > 0:
                rate = sum(amount for _, amount in list(done)[1:]) / elapsed
                found.append(f"{count_text(rate)} {'steps' if name == STEP else name}/s")
        return found[:MOST_PARTS]


def nearly_full_text(event: Event) -> str:
    """``memory: 14.5 of 16 GiB (cgroup): 91 %, the kernel may be killed``, and whose it is where others fill it."""
    used, limit, own = event["value"], event["limit"], event["own"]
    others = own is not None and own < nearly_full.OWN_SHARE * limit
    whose = f", {value_text(own, 'By')} of it this kernel's" if others else ""
    then = "allocations may fail" if event["from"] == "rlimit" else "the kernel may be killed"
    return f"memory: {of_text(used, limit, 'By')} ({event['from']}): {percent_text(100 * used / limit)}{whose}, {then}"


def _put(parts: dict[str, str], key: str, text: str) -> None:
    if key in parts or len(parts) < MOST_PARTS:
        parts[key] = text
