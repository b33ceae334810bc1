"""Numbers as people read them: ``3.4 GiB``, ``2 min 5 s``, ``12 %``."""

from __future__ import annotations

import math

UNKNOWN = "–"
MIB = 2**20


def bytes_text(count: float | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1; three digits."""
    if count is None or not math.isfinite(count):
        return UNKNOWN
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 999.5 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{_three_digits(size) if units[0] != 'B' else round(size)} {units[0]}"


def seconds_text(seconds: float | None) -> str:
    """Seconds as ``40 ms``, ``3.2 s``, ``2 min 5 s`` or ``1 h 12 min``."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def moment_text(seconds: float, whole: float) -> str:
    """A moment of a run that takes ``whole`` seconds: ``12.5 s`` in one of less than a minute, else ``0:01:15``."""
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def count_text(value: float) -> str:
    """A number of the user's for people: ``4,085,918``, ``0.0312``; very large and very small ones with a power of ten."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def short_text(value: float) -> str:
    """A round number beside an axis: ``500k``, ``1.5M``."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e15:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def latency_text(seconds: float) -> str:
    """A duration down to microseconds, three digits: ``4.21 ms``."""
    if seconds >= 1:
        return seconds_text(seconds) if seconds >= 9.95 else f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def percent_text(percent: float | None) -> str:
    """A share with the digits that matter: ``0.4 %``, ``12 %``."""
    if percent is None or not math.isfinite(percent):
        return UNKNOWN
    return f"{percent:.1f} %" if 0 < percent < 0.95 else f"{percent:.0f} %"


def cores_text(cores: float | None) -> str:
    """CPU use in cores."""
    return UNKNOWN if cores is None or not math.isfinite(cores) else f"{cores:.2f}" if cores < 10 else f"{cores:.0f}"


def joules_text(joules: float | None) -> str:
    """Energy in J, kJ or Wh, as electricity bills have it from 10 Wh on."""
    if joules is None or not math.isfinite(joules):
        return UNKNOWN
    if joules >= 36_000:
        return f"{_three_digits(joules / 3600)} Wh"
    return f"{_three_digits(joules / 1000)} kJ" if joules >= 999.5 else f"{joules:.0f} J"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}"
