"""Memory that is nearly full, told once a run while there is time to do something. Pure; the recorder drives it.

What it looks at is what the rule ``memory-near-limit`` judges: no cache of files, which goes when memory is wanted, and nothing
that others fill, unless so little is left that it is everybody's concern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

EVENT = "nearly_full"
FULL_SHARE = 0.9  # of the limit
OWN_SHARE = 0.25  # of the limit: the kernel with its workers has that much of it, or ...
LITTLE_LEFT_SHARE = 0.97  # ... it is that full, whoever fills it
TREE, KERNEL = ("process.tree.memory.rss", "process"), ("process.memory.rss", "process")
_OF = {
    "cgroup": [("cgroup.memory.anon", "cgroup"), ("cgroup.memory.used", "cgroup")],
    "host": [("host.memory.used", "host")],
    "rlimit": [KERNEL],  # each process has that limit for itself
}


class _Column(Protocol):
    @property
    def metric(self) -> str: ...
    @property
    def subject(self) -> str: ...


class NearlyFull:
    """Sees each row of the main stream; costs two comparisons, and nothing once it has spoken.

    ``upper_bound``: what the workers use is not known better than that, so the kernel's own memory alone counts.
    """

    def __init__(self, limit_bytes: float, limit_from: str, upper_bound: bool = False) -> None:
        self._limit = limit_bytes
        self._from = limit_from
        self._own = [KERNEL] if upper_bound else [TREE, KERNEL]
        self._columns: Sequence[_Column] | None = None
        self._at: tuple[int, int] | None = None
        self._said = not 0 < limit_bytes < math.inf
        self.silent = False
        """Another watches over the memory."""

    def see(self, columns: Sequence[_Column], now: int, seq: int, row: Sequence[float]) -> dict[str, Any] | None:
        """The event, at the first reading within a cell that is beyond; ``seq`` is the cell, 0 between them."""
        if self._said or self.silent or not seq:
            return None
        if columns is not self._columns:
            self._columns, self._at = columns, self._place(columns)
        if self._at is None or not (used := row[self._at[0]]) >= FULL_SHARE * self._limit:
            return None
        own = row[self._at[1]]
        if not own >= OWN_SHARE * self._limit and used < LITTLE_LEFT_SHARE * self._limit:
            return None
        self._said = True
        bytes_of = {"value": used, "own": own if math.isfinite(own) else None, "limit": self._limit}
        return {"event": EVENT, "t": now, "seq": seq, **bytes_of, "from": self._from}

    def _place(self, columns: Sequence[_Column]) -> tuple[int, int] | None:
        """Where in a row that is which tells how full memory is, and where the kernel's part of it."""
        at = {(column.metric, column.subject): index for index, column in enumerate(columns)}
        own = next((at[key] for key in self._own if key in at), None)
        used = next((at[key] for key in [*_OF.get(self._from, ()), *self._own] if key in at), None)
        return None if used is None or own is None else (used, own)
