"""Does it rise, and steadily? Robust slopes of noisy readings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmeter.rules.observed import Observed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_POINTS = 120  # 7140 pairs: enough for a slope, and quick


def slope(time: Floats, values: Floats) -> float:
    """Theil–Sen: the median slope of all pairs, which up to 29 % of outliers do not move. Per second; 0 for one point."""
    import numpy as np

    if len(time) < 2:
        return 0.0
    low, high = np.triu_indices(len(time), 1)
    elapsed = time[high] - time[low]
    apart = elapsed > 0
    return float(np.median((values[high] - values[low])[apart] / elapsed[apart])) if apart.any() else 0.0


def thinned(readings: Observed) -> tuple[Floats, Floats]:
    """At most ``MOST_POINTS`` times and values: the least of each stretch, since what is freed again is no growth."""
    import numpy as np

    parts = min(MOST_POINTS, len(readings.time))
    if not parts:
        return readings.time, readings.values
    time = np.array([part[0] for part in np.array_split(readings.time, parts)])
    return time, np.array([part.min() for part in np.array_split(readings.values, parts)])


def steady_slope(time: Floats, values: Floats, least_share: float = 0.5) -> float | None:
    """The slope, if each third of the time has at least ``least_share`` of it; None if it is uneven or levels off."""
    import numpy as np

    whole = slope(time, values)
    thirds = zip(np.array_split(time, 3), np.array_split(values, 3), strict=True)
    return whole if whole != 0 and all(slope(t, v) / whole >= least_share for t, v in thirds) else None
