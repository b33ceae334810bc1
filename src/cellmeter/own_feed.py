"""What the user's code logs and spans, as the live panel's page takes it: numbered marks, a message of them an update."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

MOST_LOGGED = 6  # names of values that are drawn: the first ones, so that a lane stays what it is
MOST_SPANS = 4  # names of spans
MOST_KEPT = 4000  # marks, for a page that is loaded anew
MOST_BYTES = 2000  # of marks in one update

Event = Mapping[str, Any]
Mark = tuple[str, int, int | None, Any]
"""Of a value: name, time, None and the value; of a span or many: name, start, end and how many. Times in ns."""


class OwnFeed:
    """Marks out of a kernel's events. Not thread-safe."""

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque(maxlen=MOST_KEPT)
        self._taken = 0
        self._sent = 0
        self._logged: set[str] = set()
        self._spans: set[str] = set()
        self._others: set[str] = set()

    def take(self, events: Iterable[Event]) -> None:
        """Events in the order in which they were written."""
        for event in events:
            for mark in self._marks_of(event):
                self._marks.append(mark)
                self._taken += 1

    def message(self, start_ns: int | None, *, anew: bool = False, rest: bool = False) -> dict[str, Any] | None:
        """The next 2 kB of marks, all the ``rest``, or ``anew`` all that are kept.

        None: there are none, or ``start_ns`` is not known yet.

        ``marks`` from number ``s`` on: ``[name, time, value]`` or ``[name, start, end, count]``, in seconds since ``start_ns``;
        ``others``: how many names are not drawn.
        """
        if start_ns is None:
            return None
        first = self._taken - len(self._marks)
        begin = first if anew else max(first, self._sent)
        marks, size = [], 0
        for name, time, end, said in islice(self._marks, begin - first, None):
            seconds = [round((t - start_ns) * 1e-9, 6) for t in (time, end) if t is not None]
            mark = [name, *seconds, said]
            size += len(json.dumps(mark)) + 2
            if size > MOST_BYTES and not (anew or rest):
                break
            marks.append(mark)
        self._sent = begin + len(marks)
        return {"k": "own", "s": begin, "marks": marks, "others": len(self._others), "anew": anew} if marks else None

    def _marks_of(self, event: Event) -> Iterator[Mark]:
        kind = event.get("event")
        if kind == "logged":
            for name, said in event.get("values", {}).items():
                if self._drawn(name, self._logged, MOST_LOGGED):
                    last, low, high = said[1:4] if isinstance(said, list) else (said,) * 3
                    for value in (last,) if low == high else (low, high, last):
                        yield name, event["t"], None, value
        elif kind in ("span", "spans") and self._drawn(event["name"], self._spans, MOST_SPANS):
            yield event["name"], event["start"], event["t"], event.get("count", 1)

    def _drawn(self, name: str, names: set[str], most: int) -> bool:
        if len(names) < most:
            names.add(name)
        if name not in names:
            self._others.add(name)
        return name in names
