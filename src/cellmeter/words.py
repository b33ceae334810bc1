"""Numbers as people read them: one rule a kind, so that a value reads the same in the panel, tables, findings and a terminal.

What is measured has three significant digits, trailing zeros too (``3.21 GiB``, ``1.00 cores``, ``12.4 s``): what a peak needs
to be held against a limit, and as wide at every update. Percent, W, °C and MHz are whole, for their sources tell no more; a
share below one keeps a digit, so that a little is not shown as nothing. What is set (:func:`given_text`) is as round as it was
set. Units are the UCUM codes of ``metrics``. ``js/live.js`` has its own copy; ``js/format_cases.json`` holds both to the same
answers.
"""

from __future__ import annotations

import math

from cellmeter.metrics import SHORT_FOR_CPU_SECONDS

UNKNOWN = "unknown"
BLANK = "–"  # the same where there is no room for the word: in tables
MIB, GIB = 2**20, 2**30

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SUFFIX = {"{cpu}": "cores", "%": "%", "W": "W", "Cel": "°C", "MHz": "MHz"}
_WHOLE = ("%", "W", "Cel", "MHz")
_WH = 3600.0  # joules
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
KNOWN_UNITS = ("By", "By/s", "s", "J", *_SUFFIX)


# ---- with their units -------------------------------------------------------------------------------------------------


def value_text(value: float | None, unit: str, unknown: str = UNKNOWN) -> str:
    """A reading with its unit, which may be none of cellmeter's own; ``unknown`` for None and what is not finite."""
    if value is None or not math.isfinite(value):
        return unknown
    if value < 0:
        return f"−{value_text(-value, unit)}"
    if unit in ("By", "By/s"):
        size, name = binary(value)
        return f"{_digits(size) if name != 'B' else _rounded(size, 0)} {name}{unit[2:]}"
    if unit == "s":
        return _duration(value)
    if unit == "J":
        return _energy(value)
    if unit == "%":
        return f"{_rounded(value, 1 if 0 < value < 0.95 else 0)} %"
    if unit in _SUFFIX:
        return f"{_rounded(value, 0) if unit in _WHOLE else _digits(value)} {_SUFFIX[unit]}"
    return count_text(value) + unit_text(unit)


def given_text(value: float, unit: str) -> str:
    """What somebody has set or built (a limit, a threshold, a machine's size): without trailing zeros, which would be false.

    ``16 GiB``, ``1.5 cores``, ``5 min``, ``0.5 %``.
    """
    text = held_text(value, unit).removesuffix(" 00 s").removesuffix(" 00 min")
    number, space, suffix = text.partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + suffix


def held_text(value: float, unit: str) -> str:
    """A reading that is held against a threshold: not rounded to whole numbers, lest 29.6 % be called 30."""
    return f"{count_text(value)} {_SUFFIX[unit]}" if unit in _WHOLE else value_text(value, unit)


def of_text(value: float | None, limit: float | None, unit: str) -> str:
    """``3.21 of 16 GiB``; the value alone where there is no limit.

    More is no part of it: ``610 MiB at a limit of 600 MiB``, as memory may be resident that a control group does not count.
    """
    text = value_text(value, unit)
    if not limit:
        return text
    most = given_text(limit, unit)
    if value is not None and value > limit:
        return f"{text} at a limit of {most}"
    number, _, suffix = text.partition(" ")
    return f"{number if most.endswith(f' {suffix}') else text} of {most}"


def peak_text(peak: float | None, limit: float | None, unit: str) -> str:
    """``peak 3.21 of 16 GiB``; without the limit where there is none, or where it is 100 %."""
    return f"peak {of_text(peak, None if unit == '%' else limit, unit)}"


def change_text(change: float | None, unit: str, unknown: str = UNKNOWN) -> str:
    """``+1.20 GiB``, ``−3.00 MiB``, ``±0 B``."""
    text = value_text(change, unit, unknown)
    return text if change is None or not math.isfinite(change) or change < 0 else f"{'+' if change else '±'}{text}"


def cell_cores_text(cores: float | None, seconds: float, limit: float | None) -> str:
    """What a cell of some seconds used on the average: ``1.02 of 2 cores``."""
    if cores is None:
        return UNKNOWN if seconds >= SHORT_FOR_CPU_SECONDS else "use: too short to tell"
    return of_text(cores, limit, "{cpu}")


# ---- in tables and sentences: "–" where nothing is known ---------------------------------------------------------------


def bytes_text(count: float | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1: ``3.21 GiB``."""
    return value_text(count, "By", BLANK)


def seconds_text(seconds: float | None) -> str:
    """``412 ms``, ``3.21 s``, ``2 min 05 s``, ``1 h 12 min``."""
    return value_text(seconds, "s", BLANK)


def percent_text(percent: float | None) -> str:
    """A share: ``0.4 %``, ``12 %``."""
    return value_text(percent, "%", BLANK)


def cores_text(cores: float | None) -> str:
    """CPU use in cores, where a column's head or the words around it say so: ``1.02``."""
    return value_text(cores, "{cpu}", BLANK).removesuffix(" cores")


def joules_text(joules: float | None) -> str:
    """Energy in J, kJ or, as electricity bills have it, from 10 Wh on in Wh and kWh."""
    return value_text(joules, "J", BLANK)


def gpu_seconds_text(seconds: float) -> str:
    """Time of GPUs, of several at once too: not minutes and hours, which would be those of a clock."""
    return f"{_rounded(seconds, 0)} GPU-seconds"


def about_text(seconds: float) -> str:
    """A time that is still to come, by a slope: whole seconds or minutes, for more is not known of it."""
    step = 1 if seconds < 60 else 60
    return given_text(half_up(seconds / step) * step, "s")


def moment_text(seconds: float, whole: float) -> str:
    """A moment of a run that takes ``whole`` seconds: ``12.5 s`` in one of less than a minute, else ``0:01:15``.

    As the axes of a report's figures have it: of moments all have the same decimals, which are subtracted from each other.
    """
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# ---- counts and money --------------------------------------------------------------------------------------------------


def count_text(value: float) -> str:
    """A number of the user's: ``4,085,918``, ``0.0312``; very large and very small ones with a power of ten.

    Four digits, as of a loss or a rate the fourth is what moves.
    """
    if value < 0:
        return f"−{count_text(-value)}"
    return _rounded(value, 0) if 999.95 <= value < 1e9 else f"{value:.4g}"


def counted(number: int, noun: str) -> str:
    """``1 rule``, ``2 rules``, ``12,000 samples``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def money_text(currency: str, value: float) -> str:
    """``$2.50``; small sums with the digits that matter, and ISO codes apart from the number."""
    number = f"{value:,.2f}" if value == 0 or abs(value) >= 0.095 else f"{value:.2g}" if abs(value) >= 1e-4 else "0.00"
    return f"{currency} {number}" if currency[-1:].isalpha() else f"{currency}{number}"


def unit_text(unit: str) -> str:
    """What stands behind a number: `` rpm``, ``/s``."""
    words = unit.replace("{", "").replace("}", "").removeprefix("1")
    return words if words.startswith("/") else f" {words}".rstrip()


# ---- beside axes: round numbers ----------------------------------------------------------------------------------------


def axis_text(value: float, unit: str) -> str:
    """A round value beside an axis: ``0``, ``500 MiB``, ``1.5``."""
    if value == 0:
        return "0"
    if unit in ("By", "By/s"):
        size, name = binary(value)
        return f"{size:g} {name}{unit[2:]}"
    return f"{value:g}" if unit in ("{cpu}", "1") else f"{value:g} {_SUFFIX.get(unit, unit)}"


def short_text(value: float) -> str:
    """A round number of the user's beside an axis: ``500k``, ``1.5M``."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e15:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


# ---- digits ------------------------------------------------------------------------------------------------------------


def binary(value: float) -> tuple[float, str]:
    """Bytes in their unit, and its name."""
    power = 0
    while abs(value) >= 999.5 and power < len(_BINARY) - 1:
        value /= 1024
        power += 1
    return value, _BINARY[power]


def half_up(value: float) -> int:
    """As JavaScript's ``Math.round``."""
    return math.floor(value + 0.5)


def _rounded(value: float, places: int) -> str:
    return f"{half_up(value * 10**places) / 10**places:,.{places}f}"


def _digits(value: float) -> str:
    return _rounded(value, 2 if value < 9.995 else 1 if value < 99.95 else 0)


def _duration(seconds: float) -> str:
    if seconds == 0:
        return "0 s"
    if seconds < 59.95:
        size, unit = next((one for one in _SECONDS if seconds >= 0.9995 * one[0]), _SECONDS[-1])
        return f"{_digits(seconds / size)} {unit}"
    whole = half_up(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def _energy(joules: float) -> str:
    if joules >= 10 * _WH:
        return f"{_digits(joules / _WH)} Wh" if joules < 999.5 * _WH else f"{_digits(joules / _WH / 1000)} kWh"
    return f"{_digits(joules)} J" if joules < 999.5 else f"{_digits(joules / 1000)} kJ"
