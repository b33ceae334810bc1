"""docs/metrics.md is the catalogue's."""

from __future__ import annotations

import runpy
from collections import Counter

from conftest import REPOSITORY

from cellmeter.metrics import CATALOGUE
from cellmeter.prometheus.names import DCGM

PAGE = REPOSITORY / "docs" / "metrics.md"


def test_the_page_is_up_to_date() -> None:
    expected = runpy.run_path(str(REPOSITORY / "tools" / "metrics_table.py"))["page"]()
    assert PAGE.read_text() == expected, "run .venv/bin/python tools/metrics_table.py"


def test_every_metric_and_every_name_is_there() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert Counter(row.split("`")[1] for row in rows) == Counter(metric.name for metric in CATALOGUE)
    assert {row.count(" | ") for row in rows} <= {7}
    for name in (n for m in CATALOGUE for n in (m.otel, m.prometheus) if n):
        assert f"`{name}`" in PAGE.read_text()
    for name in DCGM:
        assert f"`{name}`" in PAGE.read_text()
