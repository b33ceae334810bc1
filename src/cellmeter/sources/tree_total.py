"""What a tree of processes has done in all, kept from falling when one of them leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Used(NamedTuple):
    """What a process has used since it began: by itself, and by children it has waited for; all is the latter if untold."""

    parent: int
    own: float
    waited_for: float

    @property
    def all(self) -> float:
        """Both together."""
        return self.own + self.waited_for


@dataclass
class Departed:
    """What children used who are gone; it is to be found with their parent once it has waited for them."""

    used: float
    since: float
    """What the parent had waited for before they were missed."""
    tolerated: float

    def missing(self, parent: Used) -> float:
        """How much of it is not found there."""
        missing = self.used - (parent.waited_for - self.since)
        return missing if missing > self.tolerated else 0.0


class TreeTotal:
    """Adds up what the kernel and its descendants have used: CPU seconds, bytes.

    What a child has used moves to its parent when that waits for it; what one used that nobody waits for, or that leaves the
    tree, is kept here. Which of both it is shows by the second reading after: processes are read one by one, so that a parent
    may have been read before it waited and its child after. Until then the sum stands still, as it never falls.
    """

    def __init__(self, tolerated: float = 0.0) -> None:
        """``tolerated``: how much of a child may be missing with its parent, who counts more roughly."""
        self._tolerated = tolerated
        self._total = self._lost = 0.0
        self._last: Mapping[int, Used] = {}
        self._departed: dict[int, Departed] = {}

    def add(self, now: Mapping[int, Used]) -> float:
        """The new total. ``now``: all processes of the tree by pid, each read after its parent."""
        due, self._departed = self._departed, {}
        for pid in self._last.keys() - now.keys():
            self._miss(pid, now, due.pop(pid, None))
        for parent, departed in due.items():  # the second reading
            self._lost += departed.missing(now[parent])
        self._departed = {pid: gone for pid, gone in self._departed.items() if gone.missing(now[pid])}
        self._last = now
        self._total = max(self._total, self._lost + sum(used.all for used in now.values()))
        return self._total

    def _miss(self, pid: int, now: Mapping[int, Used], departed: Departed | None) -> None:
        """Looks for what a process used with its nearest ancestor that is left."""
        used = self._last[pid].all + (departed.missing(self._last[pid]) if departed else 0.0)
        parent = self._last[pid].parent
        while parent not in now and parent in self._last:
            parent = self._last[parent].parent
        if parent not in now:
            self._lost += used
        elif parent in self._departed:
            self._departed[parent].used += used
            self._departed[parent].tolerated += self._tolerated
        else:
            since = self._last.get(parent, now[parent]).waited_for
            self._departed[parent] = Departed(used, since, self._tolerated)
