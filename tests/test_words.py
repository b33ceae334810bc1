"""Numbers have one form a kind, wherever they are shown; ``js/format_cases.json`` holds the page to the same answers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmeter import words

CASES = json.loads((Path(__file__).parents[1] / "js" / "format_cases.json").read_text())
SIZES = {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40, "PiB": 2.0**50, "cores": 1.0}
SIZES |= {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "J": 1.0, "kJ": 1e3, "Wh": 3600.0, "kWh": 3.6e6}
GIB = 2**30


@pytest.mark.parametrize(("value", "unit", "text"), CASES["value"])
def test_a_value_is_formatted_as_the_page_does(value: float | None, unit: str, text: str) -> None:
    assert words.value_text(value, unit) == text


@pytest.mark.parametrize(("seconds", "text"), CASES["duration"])
def test_a_duration_is_formatted_as_the_page_does(seconds: float | None, text: str) -> None:
    assert words.value_text(seconds, "s") == text


@pytest.mark.parametrize(("peak", "unit", "limit", "text"), CASES["peak"])
def test_a_peak_is_formatted_as_the_page_does(peak: float | None, unit: str, limit: float | None, text: str) -> None:
    assert words.peak_text(peak, limit, unit) == text


@pytest.mark.parametrize(("value", "text"), CASES["own"])
def test_a_number_of_the_users_is_formatted_as_the_page_does(value: float, text: str) -> None:
    assert words.count_text(value) == text


@pytest.mark.parametrize(("value", "unit", "text"), CASES["label"])
def test_an_axis_is_labelled_as_the_page_does(value: float, unit: str, text: str) -> None:
    assert words.axis_text(value, unit) == text


@given(
    st.one_of(
        st.tuples(st.floats(1, 9e17), st.just("By")),
        st.tuples(st.floats(1e-4, 59), st.just("s")),
        st.tuples(st.floats(0.1, 1e12), st.just("J")),
        st.tuples(st.floats(0.1, 1e4), st.just("{cpu}")),
    )
)
def test_what_is_measured_has_three_digits_in_a_unit_that_leaves_at_least_one(reading: tuple[float, str]) -> None:
    value, unit = reading
    text = words.value_text(value, unit)
    number, suffix = text.split(" ")
    digits = number.replace(",", "")
    assert float(digits) * SIZES[suffix] == pytest.approx(value, rel=0.005, abs=0.5 if suffix == "B" else 0.0051)
    assert suffix == "B" or 3 <= len(digits.replace(".", "")) <= max(4, len(str(round(value))))
    assert words.value_text(-value, unit) == f"−{text}"


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
@pytest.mark.parametrize("unit", ["By", "s", "%", "{cpu}", "J", "W", "1"])
def test_the_unknown_is_no_number(unknown: float | None, unit: str) -> None:
    assert words.value_text(unknown, unit) == words.change_text(unknown, unit) == "unknown"
    assert words.value_text(unknown, unit, words.BLANK) == words.change_text(unknown, unit, words.BLANK) == "–"


@pytest.mark.parametrize("value", [0, 0.0004, 0.4, 1.5, 16, 99.97, 3600, 12345.6, 3.2 * GIB])
def test_a_column_reads_as_the_panel_does(value: float) -> None:
    assert words.bytes_text(value) == words.value_text(value, "By")
    assert words.seconds_text(value) == words.value_text(value, "s")
    assert words.percent_text(value) == words.value_text(value, "%")
    assert words.joules_text(value) == words.value_text(value, "J")
    assert f"{words.cores_text(value)} cores" == words.value_text(value, "{cpu}")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (16 * GIB, "By", "16 GiB"),
        (1.5 * GIB, "By", "1.5 GiB"),
        (79.65 * GIB, "By", "79.7 GiB"),
        (100 * 2**20, "By", "100 MiB"),
        (2, "{cpu}", "2 cores"),
        (0.5, "{cpu}", "0.5 cores"),
        (120, "{cpu}", "120 cores"),
        (30, "%", "30 %"),
        (0.5, "%", "0.5 %"),
        (700, "W", "700 W"),
        (0.5, "s", "500 ms"),
        (10, "s", "10 s"),
        (90, "s", "1 min 30 s"),
        (1800, "s", "30 min"),
        (7200, "s", "2 h"),
    ],
)
def test_what_is_set_is_as_round_as_it_was_set(value: float, unit: str, text: str) -> None:
    assert words.given_text(value, unit) == text


@given(st.floats(0, 100), st.integers(1, 100))
def test_a_reading_below_its_threshold_is_not_written_as_the_threshold(reading: float, threshold: int) -> None:
    differs = words.held_text(reading, "%") != words.given_text(threshold, "%")
    assert differs or reading == pytest.approx(threshold, rel=6e-4)


def test_changes_have_their_sign() -> None:
    changes = (1.2 * GIB, -3 * 2**20, 0)
    assert [words.change_text(change, "By") for change in changes] == ["+1.20 GiB", "−3.00 MiB", "±0 B"]
    assert words.change_text(0.4, "%") == "+0.4 %"


@pytest.mark.parametrize(("seconds", "text"), [(41.7, "42 s"), (59.6, "1 min"), (425, "7 min"), (7530, "2 h 06 min")])
def test_what_is_reckoned_from_a_slope_is_rounded(seconds: float, text: str) -> None:
    assert words.about_text(seconds) == text


def test_time_of_gpus_is_in_seconds_of_a_gpu() -> None:
    assert [words.gpu_seconds_text(s) for s in (312.4, 86400)] == ["312 GPU-seconds", "86,400 GPU-seconds"]


@pytest.mark.parametrize(
    ("cores", "seconds", "text"),
    [(None, 0.054, "use: too short to tell"), (None, 10, "unknown"), (1.016, 10, "1.02 of 2 cores")],
)
def test_what_a_cell_used_of_the_cores(cores: float | None, seconds: float, text: str) -> None:
    assert words.cell_cores_text(cores, seconds, 2) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "$0.00"), (1234.5, "$1,234.50"), (0.0021, "$0.0021"), (0.5, "$0.50"), (1e-7, "$0.00")]
)
def test_money_shows_the_digits_that_matter(value: float, text: str) -> None:
    assert words.money_text("$", value) == text
    assert words.money_text("EUR", 2) == "EUR 2.00"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.357, "1", "0.357"),
        (5997.4, "1/s", "5,997/s"),
        (3.0, "{req}", "3 req"),
        (1200.0, "rpm", "1,200 rpm"),
        (2**30, "By", "1.00 GiB"),
        (41.2, "Cel", "41 °C"),
    ],
)
def test_a_unit_of_a_plugin_stands_behind_its_number(value: float, unit: str, text: str) -> None:
    assert words.value_text(value, unit) == text


def test_counts_and_moments_have_one_form() -> None:
    assert [words.short_text(x) for x in (0, 500, 5e3, 1.5e6, -2e9)] == ["0", "500", "5k", "1.5M", "-2G"]
    assert [words.moment_text(x, 80) for x in (0.6, 75, 3725)] == ["0:00:01", "0:01:15", "1:02:05"]
    assert words.moment_text(5.83, 59) == "5.8 s"
    assert [words.counted(n, "cell") for n in (0, 1, 12000)] == ["0 cells", "1 cell", "12,000 cells"]


def test_no_other_module_rounds_bytes_or_seconds_for_people() -> None:
    """Whoever writes ``{size / 2**30:.1f} GiB`` gives the same value a second form."""
    by_hand = re.compile(
        r"\{[^{}]*:[,.0-9]*[fg]\} ([KMGT]iB|%|cores|W|k?J|ms|µs|GPU-seconds)(?!\w)|\{[^{}]*:\.\d[fg]\} s\b"
    )
    source = Path(words.__file__).parent
    found = {
        f"{path.relative_to(source)}: {hit[0]}"
        for path in source.rglob("*.py")
        if path.name != "words.py"
        for hit in by_hand.finditer(path.read_text())
    }
    axes = {"charts.py: {seconds:.1f} s", "export/html/plot.py: {at:.0f} s"}
    assert found == axes, "whose ticks are round"
