"""Readings about the edges of a cell, straight out of the run folder: without numpy, and few, however long it was."""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from cellmeter.records import first_since, record_layout
from cellmeter.series import MOST_UNREAD
from cellmeter.usage import LATE_EDGE_SECONDS

Key = tuple[str, str]  # metric, subject
_LATE_NS = int(LATE_EDGE_SECONDS * 1e9)
_TIME = attrgetter("t")


class Reading(NamedTuple):
    """Some quantities at a time (ns), and the cell it was taken in; NaN: unknown."""

    t: int
    seq: int
    values: tuple[float, ...]

    @property
    def known(self) -> bool:
        """Whether all of them are."""
        return all(map(math.isfinite, self.values))

    def of_cell(self, start_ns: int, end_ns: int, seq: int) -> bool:
        """Whether it was taken while a cell ran, or at its end, a little later."""
        return start_ns <= self.t <= end_ns or (self.seq == seq and end_ns < self.t <= end_ns + _LATE_NS)


def edge_readings(
    folder: Path, header: Mapping[str, Any], keys: Sequence[Key], start_ns: int, end_ns: int
) -> list[Reading]:
    """Some readings of the main stream, by time: those next to the edges of a cell on either side, and all soon after it.

    Within it they are known. There may be others between them, where the stream goes from file to file. Raises OSError.
    """
    found: list[Reading] = []
    for entry in header["segments"]:
        if entry["stream"] != "main":
            continue
        with open(folder / entry["file"], "rb") as file:
            records = _Records(file.fileno(), entry["columns"], keys)
            low, high = records.first_since(start_ns + 1), records.first_since(end_ns)
            late = records.first_since(end_ns + _LATE_NS + 1)
            before, after = range(max(0, low - 1), low), range(high, max(late, min(high + 1, len(records))))
            found += [records[number] for number in (*before, *records.ends(range(low, high)), *after)]
    return found


def growth(readings: Sequence[Reading], start_ns: int, end_ns: int) -> float | None:
    """Growth of a counter from one time to another, by the readings about them, as ``series.growth_within`` has it."""
    first = max(0, bisect_right(readings, start_ns, key=_TIME) - 1)
    around = readings[first : bisect_left(readings, end_ns, key=_TIME) + 1]
    counted = [(reading.t, reading.values[0]) for reading in around if reading.known]
    if len(counted) < 2 or any(b < a for (_, a), (_, b) in pairwise(counted)):
        return None
    unread = max(0, counted[0][0] - start_ns) + max(0, end_ns - counted[-1][0])
    if unread > MOST_UNREAD * (end_ns - start_ns):
        return None
    return _at(counted, end_ns) - _at(counted, start_ns)


def _at(counted: Sequence[tuple[int, float]], t_ns: int) -> float:
    """What a counter stood at; before the first reading and after the last as it was then."""
    number = bisect_left(counted, (t_ns,))
    if number in (0, len(counted)):
        return counted[max(0, number - 1)][1]
    (t0, before), (t1, after) = counted[number - 1 : number + 1]
    return before + (after - before) * (t_ns - t0) / (t1 - t0)


class _Records:
    """The records of an open file of samples, of which some columns are read; they are unknown if one of them is not there."""

    def __init__(self, fd: int, columns: Sequence[Sequence[str]], keys: Sequence[Key]) -> None:
        places = {(metric, subject): place for place, (metric, subject, _) in enumerate(columns)}
        wanted = [places[key] for key in keys if key in places]
        self._there = len(wanted) == len(keys)
        self._order = [sorted(wanted).index(place) for place in wanted] if self._there else []
        self._unknown = (math.nan,) * len(keys)
        self._layout = record_layout(len(columns), wanted)
        self._fd = fd
        self._count = os.fstat(fd).st_size // self._layout.size

    def __len__(self) -> int:
        return self._count

    def first_since(self, t_ns: int) -> int:
        return first_since(self._fd, self._layout.size, self._count, t_ns)

    def ends(self, numbers: range) -> list[int]:
        """The first and the last of some records that are known."""
        if not self._there:
            return []
        known = (next((n for n in some if self[n].known), None) for some in (numbers, reversed(numbers)))
        return sorted({number for number in known if number is not None})

    def __getitem__(self, number: int) -> Reading:
        data = os.pread(self._fd, self._layout.size, number * self._layout.size)
        t, seq, _, *values = self._layout.unpack(data)
        return Reading(t, seq, tuple(values[place] for place in self._order) if self._there else self._unknown)
