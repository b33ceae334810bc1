"""What sources of other packages measured, in every report of a run; how it is measured is in test_plugins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from builders import a_cell, a_run, with_plugin

from cellmeter import timeline
from cellmeter.export import render, write
from cellmeter.export.html import inline_html
from cellmeter.export.html.findings import evidence
from cellmeter.export.plugged import MOST_PER_CELL, ROWS_SHOWN, tables
from cellmeter.export.records import cell_records
from cellmeter.export.report_json import report, schema
from cellmeter.export.text import status_text
from cellmeter.metrics import Metric
from cellmeter.plugin_charts import INKS, MOST_CHARTS
from cellmeter.rules.rule import Evidence, Finding
from cellmeter.run import Column, Run, Segment
from cellmeter.words import value_text


@pytest.fixture
def run() -> Run:
    return with_plugin(a_run(a_cell(5), a_cell(30, label="train"), a_cell(0.2)))


def test_the_table_has_each_gauge_and_rate_and_the_cell_of_its_peak(run: Run) -> None:
    (table,) = tables(run)
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["load.one", "load.switches.rate", "load.heat nvme0", "load.heat nvme1"]
    assert rows["load.switches.rate"][:3] == ("100/s", "100/s", "100/s")
    assert rows["load.heat nvme1"][:3] == ("−5 °C", "−5 °C", "−5 °C")
    series = run.series("load.one", "host")
    assert rows["load.one"][2] == value_text(float(series.values[-1]), "1")
    assert rows["load.one"][3] == {0: "between cells", 3: "In [3]"}[int(series.seq[-1])]
    for format in ("text", "md"):
        assert "load.heat nvme0" in render(run, format)
    assert "load.heat nvme0" in inline_html(run)
    assert "load (4 metrics)" in status_text(run)


def test_without_plugins_nothing_is_said_of_them() -> None:
    plain = a_run(a_cell(5))
    assert tables(plain) == []
    assert "Plugins" not in render(plain, "text") + render(plain, "html") + status_text(plain)
    assert (report(plain)["plugins"], report(plain)["cells"][0]["plugins"]) == ([], {})


def test_the_json_report_has_means_and_peaks_of_the_run_and_of_each_cell(run: Run) -> None:
    fields = report(run)
    jsonschema.validate(fields, schema())
    one, rate, heat = fields["plugins"]
    assert (one["metric"], one["unit"], one["kind"]) == ("load.one", "1", "gauge")
    assert one["subjects"]["host"]["high"] == pytest.approx(run.series("load.one", "host").values.max())
    assert (rate["metric"], rate["kind"]) == ("load.switches.rate", "rate")
    assert heat["subjects"] == {
        "nvme0": {"mean": 40, "low": 40, "high": 40},
        "nvme1": {"mean": -5, "low": -5, "high": -5},
    }
    train = run.cells[1]
    told = fields["cells"][1]["plugins"]["load.one"]["host"]
    assert told["mean"] == pytest.approx((train.start + train.end) / 2, abs=0.6)
    assert told["max"] == pytest.approx(train.end, abs=0.5)


def test_a_row_a_cell_has_them_too(run: Run, tmp_path: Path) -> None:
    record = cell_records(run)[1]
    heat = {key: value for key, value in record.items() if key.startswith("plugin_load_heat")}
    assert heat == {f"plugin_load_heat_nvme{n}_{name}": t for n, t in ((0, 40), (1, -5)) for name in ("mean", "max")}
    written = write(run, tmp_path / "cells.parquet", per_cell=True)
    table = pyarrow.parquet.read_table(written)
    assert table["plugin_load_one_host_max"].to_pylist()[1] == pytest.approx(record["plugin_load_one_host_max"])
    assert pd.read_csv(write(run, tmp_path / "cells.csv", per_cell=True))["plugin_load_heat_nvme1_mean"][1] == -5


def test_a_cell_without_a_reading_is_unknown_with_its_reason() -> None:
    late = with_plugin(a_run(a_cell(5), a_cell(5)), start=10.0)
    fields = report(late)
    jsonschema.validate(fields, schema())
    first = fields["cells"][0]
    assert first["plugins"]["load.one"] == {"host": {"mean": None, "max": None}}
    assert first["unknown"]["plugins.load.one.host"] == "no reading in this cell"
    never = with_plugin(a_run(a_cell(5)), start=100.0)
    assert report(never)["plugins"][0]["subjects"] == {"host": None}
    assert tables(never)[0].rows[0] == ("load.one", "–", "–", "–", "–")
    assert "load.one" in render(never, "html")


def test_the_timeline_has_a_chart_a_metric_on_the_same_time_axis(run: Run) -> None:
    layout = timeline.run_figures(run)
    drawn = [fig for fig in layout.children if fig.name == "plugin"]
    assert [fig.title.text for fig in drawn] == [
        f"load.one · peak {value_text(float(run.series('load.one', 'host').values.max()), '1')}",
        "load.switches.rate · peak 100/s",
        "load.heat · peak 40 °C",
    ]
    assert {fig.x_range for fig in layout.children} == {layout.children[0].x_range}
    one, _, heat = drawn
    assert one.y_range.start == 0
    assert heat.y_range.start != 0  # one disk is below
    (line, *_) = [r for r in one.renderers if "value" in r.data_source.data]
    assert np.array_equal(line.data_source.data["value"], run.series("load.one", "host").values)
    assert [item.label["value"] for fig in drawn for legend in fig.legend for item in legend.items] == [
        "nvme0",
        "nvme1",
    ]


def many(run: Run) -> Run:
    """A plugin that measures much, of much."""
    metrics = [Metric(f"much.m{n}", "{req}", "gauge", "host", "cpu", "<b>&", "s") for n in range(MOST_CHARTS + 2)]
    columns = tuple(Column(metric.name, f"<i>{n}", "{req}") for metric in metrics for n in range(len(INKS) + 2))
    records = run.segments[-1].records
    wide = np.zeros(len(records), [*records.dtype.descr[:3], ("v", "<f8", (len(columns),))])
    for name in ("t", "seq"):
        wide[name] = records[name]
    return replace(run, segments=(*run.segments, Segment("much", columns, wide)), plugin_metrics=tuple(metrics))


def test_much_is_bounded_and_says_what_is_left_out(run: Run) -> None:
    run = many(run)
    (table,) = tables(run)
    assert len(table.rows) == ROWS_SHOWN
    assert table.note == f"{(MOST_CHARTS + 2) * (len(INKS) + 2) - ROWS_SHOWN} more in an export to .csv"
    drawn = [fig for fig in timeline.run_figures(run).children if fig.name == "plugin"]
    assert len(drawn) == MOST_CHARTS
    assert drawn[0].title.text == "much.m0 · peak 0 req · 2 more not drawn"
    told = report(run)["cells"][0]["plugins"]
    assert sum(map(len, told.values())) == MOST_PER_CELL
    page = render(run, "html")
    assert "<i>0" not in page.partition("<script>")[0]


@pytest.mark.parametrize("metric", ["load.one", "load.switches.rate"])
def test_a_finding_of_a_plugin_has_its_chart(run: Run, metric: str) -> None:
    told: Any = Evidence(metric, 3.0, 1.0, "1")
    texts = {"fact": "f", "consequence": "c", "advice": "a"}
    finding = Finding("load-high", "info", (1,), "host", None, 1.0, 20.0, evidence=told, **texts)
    assert "<svg" in evidence(run, finding)
