"""The clocks of this machine, out of the reach of what the user's code makes of ``time`` (freezegun, a test's patch).

freezegun replaces the functions of ``time`` in every module that holds them by name. What is bound as a default it leaves
alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def monotonic_ns(_read: Callable[[], int] = time.monotonic_ns) -> int:
    """``CLOCK_MONOTONIC`` in ns, by which everything of a run is timed."""
    return _read()


def monotonic(_read: Callable[[], float] = time.monotonic) -> float:
    """The same in seconds."""
    return _read()


def wall_ns(_read: Callable[[], int] = time.time_ns) -> int:
    """The time of day, in ns since the epoch."""
    return _read()


def wall(_read: Callable[[], float] = time.time) -> float:
    """The same in seconds."""
    return _read()
