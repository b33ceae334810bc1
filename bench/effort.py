"""How much a bench does: a few seconds for the tests, a minute or two as usual, or everything."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class Effort(Enum):
    """``short`` figures mean nothing: they only show that the bench works."""

    SHORT = "short"
    USUAL = "usual"
    FULL = "full"

    def choose(self, *, short: T, usual: T, full: T) -> T:
        """The value for this effort."""
        return {Effort.SHORT: short, Effort.USUAL: usual, Effort.FULL: full}[self]
