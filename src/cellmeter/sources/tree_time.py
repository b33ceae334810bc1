"""CPU time of a tree of processes, kept from falling when one of them leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

TOLERATED_SECONDS = 0.03  # a parent counts a child's time in ticks of 10 ms, user and system apart


class Used(NamedTuple):
    """What a process has used since it began, in seconds: by itself, and by the children it has waited for."""

    parent: int
    own: float
    waited_for: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.own + self.waited_for


@dataclass
class Departed:
    """Time that was used by children who are gone, and is to be found with their parent once it has waited for them."""

    seconds: float
    since: float
    """What the parent had waited for before they were missed."""
    count: int = 1

    def missing(self, parent: Used) -> float:
        """How much of it is not found there."""
        missing = self.seconds - (parent.waited_for - self.since)
        return missing if missing > self.count * TOLERATED_SECONDS else 0.0


class TreeTime:
    """Adds up what the kernel and its descendants have used.

    The time of a child that is waited for moves to its parent; that of one that nobody waits for, or that leaves the tree, is
    kept here. Which of both it is shows by the second reading after: processes are read one by one, so that a parent may have
    been read before it waited and its child after. Until then the sum stands still, as it never falls.
    """

    def __init__(self) -> None:
        self._total = self._lost = 0.0
        self._last: Mapping[int, Used] = {}
        self._departed: dict[int, Departed] = {}

    def add(self, now: Mapping[int, Used]) -> float:
        """The new total in seconds. ``now``: all processes of the tree by pid, each read after its parent."""
        due, self._departed = self._departed, {}
        for pid in self._last.keys() - now.keys():
            self._miss(pid, now, due.pop(pid, None))
        for parent, departed in due.items():  # the second reading
            self._lost += departed.missing(now[parent])
        self._departed = {pid: gone for pid, gone in self._departed.items() if gone.missing(now[pid])}
        self._last = now
        self._total = max(self._total, self._lost + sum(used.seconds for used in now.values()))
        return self._total

    def _miss(self, pid: int, now: Mapping[int, Used], departed: Departed | None) -> None:
        """Looks for a process's time with its nearest ancestor that is left."""
        seconds = self._last[pid].seconds + (departed.missing(self._last[pid]) if departed else 0.0)
        parent = self._last[pid].parent
        while parent not in now and parent in self._last:
            parent = self._last[parent].parent
        if parent not in now:
            self._lost += seconds
        elif parent in self._departed:
            self._departed[parent].seconds += seconds
            self._departed[parent].count += 1
        else:
            self._departed[parent] = Departed(seconds, self._last.get(parent, now[parent]).waited_for)
