"""CPU time of a tree of processes, kept from falling when one of them leaves it."""

from __future__ import annotations


class TreeTime:
    """Adds up what the kernel and its living descendants used since the last reading.

    When the kernel waits for a child, the child's time moves from the descendants' to the kernel's own, and the sum stays. One
    that nobody waits for takes its time away with it: then only what the kernel itself did since is added.
    """

    def __init__(self) -> None:
        self._total = self._own = self._children = 0.0
        self._begun = False

    def add(self, own: float, children: float) -> float:
        """The new total in seconds. ``own``: the kernel with those it has waited for; ``children``: living descendants."""
        if not self._begun:
            self._begun, self._total = True, own + children
        else:
            step = own - self._own + children - self._children
            self._total += step if step >= 0 else max(0.0, own - self._own)
        self._own, self._children = own, children
        return self._total
