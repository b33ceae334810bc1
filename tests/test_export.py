"""Reports and tables: what is in them, and what a hostile notebook cannot put into them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from builders import GIB, MIB, GpuWork, a_cell, a_device, a_run, bursts, hump, own_words, with_workers, without
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmeter import export
from cellmeter.errors import BadUsage, MissingExtra
from cellmeter.export import markdown, report_json, table
from cellmeter.export.rows import cell_columns, cell_rows, notable, routine
from cellmeter.export.summary import facts, headline, last_kernel, plain, unavailable
from cellmeter.rules import Checked, Judgement, judge
from cellmeter.run import AlertFired, Gap, OverBudget, Run
from cellmeter.settings import Prices

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[2J\u202e|`@all`"


def busy_run() -> Run:
    """Every kind of finding, an error, a gap, and a GPU whose energy is unknown."""
    run = a_run(
        a_cell(20, label="load", rss=hump(GIB, 40 * GIB, 5, 8), first_line="df = pd.read_csv('a.csv')"),
        a_cell(40, gpu={"gpu0": GpuWork(bursts(4, 1)), "gpu1": GpuWork(0)}, cores=1.0, status="error"),
        a_cell(0.3, peak_unknown="clear_refs is not permitted"),
        devices=[a_device("gpu0", mine=True), a_device("gpu1", mine=True)],
        gaps=(Gap(30.0, 33.0, "suspended"),),
    )
    run = replace(
        run,
        own=own_words(60),
        alerts=(AlertFired("gpu.utilization < 30 for 5s", "gpu0", 2, 30.0, 12.5, 40.0),),
        over_budget=(OverBudget("0.5", "cgroup.memory.used", 1, 8.0, 40.0 * GIB, 32.0 * GIB, True),),
    )
    return without(run, "gpu.energy", "gpu1", "not supported on this GPU")


def hostile_run() -> Run:
    cell = a_cell(20, label=HOSTILE, first_line=HOSTILE, rss=hump(GIB, 40 * GIB, 5, 8))
    run = a_run(cell, a_cell(5, label="=cmd|'/c calc'!A1"), notebook=f"/tmp/{HOSTILE}.ipynb", host_name=HOSTILE)
    fired = AlertFired(HOSTILE, HOSTILE, 1, 3.0, 5.0)
    return replace(run, own=own_words(20, HOSTILE, HOSTILE), alerts=(fired,))


@pytest.fixture(scope="module")
def busy() -> Run:
    return busy_run()


@pytest.fixture(scope="module")
def page(busy: Run) -> str:
    return export.html_report(busy)


class Tags(HTMLParser):
    """The elements of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


# ── JSON ──


def strict(text: str) -> dict[str, object]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    fields: dict[str, object] = json.loads(text, parse_constant=refuse)
    return fields


def assert_valid(fields: object) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(report_json.schema(), format_checker=checker).validate(fields)


@pytest.mark.parametrize(
    "run", [busy_run(), hostile_run(), a_run(), replace(a_run(a_cell(3)), segments=(), ended=None, ending=None)]
)
def test_the_json_report_follows_its_schema(run: Run) -> None:
    fields = strict(export.render(run, "json"))
    assert_valid(fields)
    assert_valid(report_json.report(run, prices=Prices(2.5, 0.1, 0.05)))


def test_the_json_report_has_statistics_sizes_and_costs(busy: Run) -> None:
    fields = report_json.report(busy, prices=Prices(gpu_hour=2.5))
    use = fields["devices"][0]["statistics"]["gpu.utilization"]
    assert list(use) == ["unit", "samples", "mean", "max", "p99", "p95", "p50", "min", "unknown"]
    assert use["max"] == 95 >= use["p99"] >= use["p95"] >= use["p50"] >= use["min"] == 0
    seconds = fields["devices"][0]["utilization_histogram_seconds"]
    assert sum(seconds) == pytest.approx(60.3, abs=0.1)  # the time of its cells
    assert seconds[9] == pytest.approx(10, abs=0.5)
    assert [size["resource"] for size in fields["sizing"]["resources"]] == ["cpu", "memory", "gpu"]
    assert (fields["sizing"]["target"], fields["costs"]["items"][0]["price"]) == (0.7, 2.5)
    assert report_json.report(busy, prices=Prices())["costs"] is None


def test_the_schema_is_one_and_refuses_a_report_with_a_key_missing(busy: Run) -> None:
    jsonschema.Draft202012Validator.check_schema(report_json.schema())
    for part, key in [("cells", "peak_exact"), ("findings", "waste"), ("checked", "reason"), ("devices", "uuid")]:
        fields = report_json.report(busy)
        del fields[part][0][key]
        with pytest.raises(jsonschema.ValidationError, match=key):
            assert_valid(fields)


def test_the_json_report_has_the_documented_keys(busy: Run) -> None:
    fields = report_json.report(busy)
    cell = fields["cells"][0]
    assert list(fields["findings"][0]) == (
        [
            "rule",
            "severity",
            "cells",
            "subject",
            "cause",
            "start",
            "end",
            "fact",
            "consequence",
            "advice",
            "evidence",
            "waste",
            "also",
        ]
    )
    assert fields["run"]["limits"]["memory_bytes"] == {"value": 64 * GIB, "from": "cgroup"}
    assert fields["run"]["gaps"] == [{"start": 30.0, "end": 33.0, "reason": "suspended"}]
    assert (cell["peak_rss_bytes"], cell["peak_exact"], cell["label"]) == (40 * GIB, True, "load")
    assert fields["version"] == 1


def test_what_is_unknown_is_null_with_its_reason(busy: Run) -> None:
    cell = report_json.report(busy)["cells"][1]
    assert cell["gpu"]["gpu1"]["energy_joules"] is None
    assert cell["unknown"]["gpu.gpu1.energy_joules"] == "not supported on this GPU"
    assert cell["gpu"]["gpu0"]["energy_joules"] > 0


def test_a_limit_that_is_unknown_is_null() -> None:
    assert report_json.report(a_run(limit_bytes=None))["run"]["limits"]["memory_bytes"] == {"value": None, "from": None}
    assert report_json.report(a_run(limit_bytes=math.inf))["run"]["limits"]["memory_bytes"]["value"] is None


# ── text ──


def test_the_text_report_says_what_to_fix_first_and_fits_the_terminal(busy: Run) -> None:
    text = export.render(busy, "text")
    assert "Fix first: load needed 39.0 GiB" in text
    assert text.index("CRITICAL") < text.index("WARNING")
    assert "did not apply: the run is shorter than 30 min" in text
    assert "% of one core" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_text_report_says_what_was_not_judged_and_why() -> None:
    blind = without(a_run(a_cell(60), devices=[a_device(mine=True)]), "gpu.utilization", "gpu0", "MIG: not supported")
    text = export.render(blind, "text")
    assert re.search(r"gpu-underused, gpu-hollow, gpu-throttled\s+unknown: gpu0: MIG: not supported", text)
    assert re.search(r"gpu-unused +did not apply: less than 5 min of cells", text)


def test_no_more_than_ten_findings_are_shown_and_the_rest_is_counted() -> None:
    run = a_run(a_cell(6, rss=hump(GIB, 20 * GIB, 2, 4)))
    spikes = Judgement(judge(run).findings * 12, ())
    for format in ("text", "md"):
        assert "and 2 more" in export.render(run, format, spikes)


def test_a_clean_run_is_said_to_be_clean_as_far_as_could_be_seen() -> None:
    text = export.render(a_run(a_cell(5)), "text")
    assert "No warnings: 5 rules found nothing, 12 did not apply." in text
    assert "Not judged: 12 did not apply" in text
    assert "There was nothing to judge." in export.render(a_run(), "text")
    nothing = Judgement((), (Checked("memory-spike", "error", "ZeroDivisionError"),))
    assert "Nothing could be judged." in export.render(a_run(), "text", nothing)


def test_the_cells_table_is_aligned_whatever_the_label() -> None:
    run = a_run(a_cell(3, label="数据"), a_cell(90, label="x" * 80), a_cell(3, peak_unknown="no"))
    header, rule, wide, long, sampled = export.cells_table(run).splitlines()
    columns = rule.split("  ")
    assert header.startswith("Cell")
    assert len(columns) == 6  # without a GPU, none about GPUs
    assert len(long) == len(sampled)
    assert len(wide) == len(long) - 2  # two characters that a terminal draws two columns wide
    assert "≥ 1.00 GiB" in sampled
    assert "…" in long


def test_what_was_read_from_disk_gives_way_to_the_names_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "92")
    work = a_cell(20, label="-m torch.distributed.run", disk_read=lambda t: 10.0 * MIB)
    run = with_workers(a_run(work), 1, 3 * GIB)
    text = export.render(run, "text")
    assert "-m torch.distributed.run" in text
    assert "Read" not in text
    assert "Read" in export.render(a_run(replace(work, label="load")), "text")


@pytest.mark.parametrize(("columns", "least"), [(60, 55), (80, 70), (110, 90)])
def test_the_text_report_is_as_wide_as_the_terminal(
    busy: Run, columns: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = export.render(busy, "text").splitlines()
    assert least <= max(map(len, lines)) <= columns
    header = next(line for line in lines if line.startswith("  Cell "))
    assert ("Energy" in header) == (columns >= 80)  # shorter titles first, then fewer columns
    assert all(name in header for name in ("Duration", "Peak memory", "GPU", "Status"))


def test_reports_name_the_cells_that_matter_and_count_the_others() -> None:
    spike = a_cell(6, rss=hump(GIB, 20 * GIB, 2, 4), label="the spike")
    magic = a_cell(0.1, first_line="%load_ext cellmeter")
    run = a_run(magic, *[a_cell(0.2) for _ in range(60)], spike, a_cell(0.3, status="error"), pause=0.1)
    for format in ("text", "md"):
        text = export.render(run, format)
        assert "Left out: 22 shorter cells and 1 line magic." in text
        assert "the spike" in text.split("Cells")[1]
        assert "In [63]" in text.replace("\\", "").split("Cells")[1]
    assert "Left out" not in export.cells_table(run) + export.inline_cells(run)
    assert len(export.cells_table(run).splitlines()) == 2 + 63
    assert export.inline_cells(run).count("<tr>") == 1 + 63


def test_a_magic_that_took_long_or_failed_or_has_a_finding_is_no_routine() -> None:
    cells = [
        a_cell(0.1, first_line="%matplotlib inline"),
        a_cell(5.0, first_line="%run train.py"),
        a_cell(0.1, first_line="%run train.py", status="error"),
        a_cell(0.5, first_line="%%monitor"),
        a_cell(0.5, first_line="x = 1"),
    ]
    rows = cell_rows(a_run(*cells))
    assert routine(rows, ()) == {1}
    finding = judge(busy_run()).findings[0]
    assert routine(rows, [replace(finding, cells=(1,))]) == frozenset()


def test_money_is_only_spoken_of_where_prices_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: Run
) -> None:
    for format in ("text", "md", "html"):
        assert "unused)" not in export.render(busy, format)
        assert ">Cost<" not in export.render(busy, format)
    config = tmp_path / "config.toml"
    config.write_text("[prices]\ngpu_hour = 2.5\n")
    monkeypatch.setenv("CELLMETER_CONFIG", str(config))
    for format in ("text", "md", "html"):
        assert "$0.0" in export.render(busy, format)
    assert report_json.report(busy)["costs"]["total"] > report_json.report(busy)["costs"]["unused"] > 0


def test_a_run_without_cells_has_no_table() -> None:
    assert export.cells_table(a_run()) == "no cell has been run"
    assert "No cell has been run." in export.inline_cells(a_run())


def test_status_names_the_run_and_what_is_not_measured() -> None:
    text = export.status_text(a_run(a_cell(3), unavailable={"gpu": "no NVIDIA driver"}))
    assert "20260301T120000Z-0a1b2c" in text
    assert re.search(r"No gpu +no NVIDIA driver", text)


def test_how_much_disk_was_free_is_a_fact() -> None:
    run = a_run(a_cell(200, free=lambda t: (500.0 - t / 10) * GIB))
    told = dict(facts(run))["Free disk"]
    assert re.fullmatch(r"4\d\d GiB of 0.98 TiB in /home", told)
    for text in (
        export.render(run, "text"),
        export.render(run, "html"),
        export.render(run, "md"),
        export.status_text(run),
    ):
        assert told in " ".join(text.split())
    unknown = replace(run, segments=tuple(part for part in run.segments if part.stream != "filesystems"))
    assert "Free disk" not in dict(facts(unknown))
    assert "Free disk" not in export.status_text(unknown)


def test_what_gpus_lack_for_the_same_reason_is_one_line() -> None:
    gpus = [a_device(f"gpu{n}") for n in (0, 1, 2, 3, 9, 10)]
    lacking = {f"{metric}:{gpu.id}": "not supported" for gpu in gpus for metric in ("gpu.sm.active", "gpu.dram.active")}
    alone = {"gpu.power:gpu1": "not supported", "host.swap.used": "no swap"}
    run = a_run(a_cell(3), devices=gpus, unavailable={**lacking, **alone})
    assert unavailable(run) == [
        ("gpu0–gpu3, gpu9, gpu10", ["gpu.sm.active", "gpu.dram.active"], "not supported"),
        ("gpu1", ["gpu.power"], "not supported"),
        ("", ["host.swap.used"], "no swap"),
    ]
    text = re.sub(r"\s+", " ", export.status_text(run))
    assert "gpu0–gpu3, gpu9, gpu10 no gpu.sm.active, gpu.dram.active: not supported" in text
    assert "No host.swap.used no swap" in text
    assert "GPUs gpu0–gpu3, gpu9, gpu10 NVIDIA" in text


def test_one_that_left_with_an_error_code_in_a_cell_is_the_headline() -> None:
    run = a_run(a_cell(3), a_cell(5))
    died = replace(run.cells[1], status="died")
    left = replace(run, cells=(run.cells[0], died), ending="exited", exit_code=3)
    assert headline(left, judge(left)).startswith("The kernel died: exited (exit code 3) in In [2]")
    assert "exited (exit code 3) in In [2]" in (last_kernel(left) or "")
    for orderly in (replace(left, exit_code=0), replace(left, ending="restarted"), replace(left, cells=run.cells)):
        assert headline(orderly, judge(orderly)).startswith("No warnings")
        assert last_kernel(orderly) is None


def test_the_cell_that_asks_for_the_report_is_not_in_it() -> None:
    run = a_run(
        a_cell(5, first_line="train()"), a_cell(3, first_line="%monitor report"), a_cell(9, first_line="%run a")
    )
    asking, other = (replace(cell, end=None, status="running") for cell in run.cells[1:])
    for last, names in ((asking, ["In [1]"]), (other, ["In [1]", "In [3]"])):
        shown, _ = notable(cell_rows(replace(run, ending=None, cells=(run.cells[0], last))), ())
        assert [row.title for row in shown] == names


def test_what_capture_ran_is_the_same_cell_but_a_notebook_run_within_one_is_not() -> None:
    run = a_run(*(a_cell(4, first_line=line) for line in ("%%capture out", "work()", "%run a.ipynb", "x = 1", "y = 2")))
    first, body, whole, *parts = run.cells
    cells = (first, replace(body, parent=1, execution_count=None), whole, *(replace(p, parent=3) for p in parts))
    run = replace(run, cells=cells)
    assert [row.seq for row in cell_rows(run)] == [1, 3, 4, 5]
    assert "2 cells in" in export.render(run, "text").splitlines()[0]


def test_the_table_of_runs_has_a_row_each_and_says_what_cannot_be_read() -> None:
    row = {"id": "a", "started": "2026-03-01T12:00:00+00:00", "seconds": 65.0, "notebook": "n.ipynb", "cells": 3}
    good = {**row, "ending": None, "size_bytes": 3 * MIB, "problem": None, "host": "node7"}
    bad = {**dict.fromkeys(good), "id": "b", "size_bytes": 10, "problem": "run.json is damaged"}
    lines = export.runs_table([good, bad], "node7").splitlines()
    assert lines[2].split() == [
        "a",
        "2026-03-01",
        "12:00",
        "1",
        "min",
        "05",
        "s",
        "3",
        "running",
        "3.00",
        "MiB",
        "n.ipynb",
    ]
    assert lines[3].split() == ["b", "unreadable", "10", "B", "run.json", "is", "damaged"]
    elsewhere = export.runs_table([good, {**good, "host": "node8"}, bad], "node7").splitlines()
    assert [line.split()[-2:] for line in elsewhere[2:4]] == [["node7", "n.ipynb"], ["node8", "n.ipynb"]]
    assert elsewhere[4].split() == lines[3].split(), "whose host is not known"


def test_workers_disks_and_what_an_unlabelled_cell_holds_are_in_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    work = a_cell(20, rss=GIB, first_line="pool.map(work, parts)", disk_written=lambda t: 10.0 * MIB)
    run = with_workers(a_run(a_cell(5, label="load", first_line="x = 1"), work), 2, 3 * GIB)
    rows = cell_rows(run)
    assert [row.workers_bytes for row in rows] == [None, 4 * GIB]
    assert cell_columns(run, rows) == [
        "Cell",
        "Duration",
        "CPU",
        "Peak memory",
        "With workers",
        "Growth",
        "Written",
        "Status",
    ]
    text = export.cells_table(run)
    assert re.search(r"In \[2\]  pool.map\(work.* 1.00 GiB +4.00 GiB ", text)
    assert "x = 1" not in text  # a label tells more
    assert "In \\[2\\]  pool.map(work, parts) |" in export.render(run, "md")
    for page in (export.html_report(run), export.inline_html(run)):
        assert "With workers" in page
        assert "pool.map(work, parts)" in page
    fields = report_json.report(run)
    assert_valid(fields)
    records = [json.loads(line) for line in export.render(run, "jsonl").splitlines()]
    for cells in (fields["cells"], [record for record in records if record["type"] == "cell"]):
        assert [cell["tree_peak_rss_bytes"] for cell in cells] == [GIB, 4 * GIB]
    assert fields["run"]["written_bytes"] == pytest.approx(210 * MIB, rel=0.02)
    assert re.search(r"Disk +0 B read, \d+ MiB written", export.render(run, "text"))
    plain_run = a_run(a_cell(5))
    assert "With workers" not in export.cells_table(plain_run)


def test_all_that_speaks_of_memory_says_whose_it_is() -> None:
    run = with_workers(a_run(a_cell(70, rss=GIB), a_cell(20, rss=GIB)), 1, 3 * GIB)
    page = re.sub(r"<script>.*?</script>", "", export.html_report(run, prices=Prices()), flags=re.DOTALL)
    assert "4.00 GiB<small>of 64 GiB with workers; kernel alone 1.00 GiB</small>" in page
    assert ">with workers</span>" in page
    assert ">kernel</span>" in page
    assert "4.00 GiB at its peak, with workers" in export.render(run, "text")
    alone = re.sub(r"<script>.*?</script>", "", export.html_report(a_run(a_cell(20))), flags=re.DOTALL)
    assert ">kernel</span>" not in alone


def test_an_alarm_has_its_moment_and_its_reading() -> None:
    run = replace(
        a_run(a_cell(80)), alerts=(AlertFired("process.memory.rss > 500MiB for 0s", "process", 1, 75.0, 6e8),)
    )
    assert "at 0:01:15 of the run: process at 572 MiB" in " ".join(export.render(run, "text").split())


# ── hostile strings ──


def test_no_control_or_direction_character_reaches_a_terminal() -> None:
    text = export.render(hostile_run(), "text") + export.cells_table(hostile_run())
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize(
    ("make", "scripts"), [(export.html_report, 3), (export.inline_html, 0), (export.inline_cells, 0)]
)
def test_no_markup_of_the_notebook_reaches_a_page(make: Callable[[Run], str], scripts: int) -> None:
    tags = Tags(make(hostile_run()))
    assert all((image["src"] or "").startswith("data:image/") for image in tags.named("img"))
    assert len([script for script in tags.named("script") if script.get("type") != "application/json"]) == scripts
    assert [name for _, attributes in tags.found for name in attributes if name.startswith("on")] == []


def test_markdown_takes_no_label_for_markup_or_for_a_table_edge() -> None:
    text = export.render(hostile_run(), "md")
    assert "<img" not in text
    assert "@all" not in text
    rows = [line for line in text.splitlines() if line.startswith("| In")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [7, 7]


@settings(max_examples=200)
@given(st.text())
def test_escaped_markdown_has_no_bare_special_character(text: str) -> None:
    bare = re.sub(r"\\.", "", markdown.escaped(text))  # what a backslash stands before is text
    assert not re.search(r"[<>|`*_\[\]\\]", bare)


@settings(max_examples=200)
@given(st.text(st.characters(codec=None)))
def test_plain_text_is_printable_utf_8_on_one_line(text: str) -> None:
    shown = plain(text)
    assert len(shown) == len(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2028\u2029]", shown)
    shown.encode("utf-8")


# ── HTML ──


def test_the_page_is_one_file_that_asks_for_nothing(page: str) -> None:
    tags = Tags(page)
    policy = next(m["content"] for m in tags.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert tags.named("link") == tags.named("img") == tags.named("iframe") == []
    assert [script for script in tags.named("script") if "src" in script] == []
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    script_sources = policy.split("script-src ")[1].split()
    assert len(script_sources) == 3
    assert all(source.startswith("'sha256-") for source in script_sources)


def test_the_page_says_everything(page: str) -> None:
    shown = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    for part in (
        "Fix first",
        "■ Critical",
        "What to do",
        "Timeline",
        "Cells",
        "GPUs",
        "p95",
        "This recording",
        "suspended",
    ):
        assert part in shown


def test_a_run_without_samples_has_a_page_without_charts() -> None:
    bare = export.html_report(replace(a_run(a_cell(3)), segments=()))
    assert "Timeline" not in bare
    assert len(bare) < 50_000


def test_inline_html_has_no_script_and_the_colours_of_the_theme(busy: Run) -> None:
    text = export.inline_html(busy)
    assert "<script" not in text
    assert "var(--jp-ui-font-color1, #222)" in text
    selectors = re.findall(r"([^{}]+)\{", text.split("<style>")[1].split("</style>")[0])
    assert all(part.strip().startswith(".cellmeter-report") for s in selectors for part in s.split(","))


# ── tables ──


def rows_of(run: Run, tmp_path: Path) -> list[dict[str, str]]:
    text = export.write(run, tmp_path / "samples.csv").read_text("utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_a_reading_with_its_unit(tmp_path: Path) -> None:
    rows = rows_of(a_run(a_cell(1, rss=GIB, cores=1.0)), tmp_path)
    rss = [row for row in rows if row["metric"] == "process.memory.rss"]
    first = next(row for row in rss if row["cell"] == "1")
    assert list(first) == list(table.HEADERS)
    assert (first["time_s"], first["wall_time"], first["label"]) == ("2.0", "2026-03-01T12:00:02.000Z", "In [1]")
    assert (first["subject"], first["unit"], float(first["value"])) == ("process", "By", GIB)
    rates = [row["value"] for row in rows if row["metric"] == "process.cpu.usage" and row["cell"] == "1"]
    assert float(rates[-1]) == pytest.approx(1.0)


def test_an_unknown_value_is_empty_in_csv(tmp_path: Path) -> None:
    run = without(a_run(a_cell(1)), "process.children", "process", "hidepid")
    assert {row["value"] for row in rows_of(run, tmp_path) if row["metric"] == "process.children"} == {""}


def test_no_label_is_a_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    rows = rows_of(hostile_run(), tmp_path)
    labels = {row["label"] for row in rows}
    assert "'=cmd|'/c calc'!A1" in labels
    assert [label for label in labels if label.startswith(("=", "+", "-", "@"))] == []


@given(st.text())
def test_neutral_text_is_no_formula_and_keeps_its_words(text: str) -> None:
    made = table.neutral(text)
    assert not made.startswith(table.FORMULA_STARTS)
    assert made.removeprefix("'") == text.removeprefix("'")


def test_parquet_has_the_rows_of_csv_with_types_and_units(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run = without(hostile_run(), "process.children", "process", "hidepid")
    read = parquet.read_table(export.write(run, tmp_path / "samples.parquet"))
    assert tuple(read.column_names) == table.HEADERS
    assert read.num_rows == len(rows_of(run, tmp_path))
    assert read.schema.field("value").metadata[b"process.memory.rss:process"] == b"By"
    metrics, values = read["metric"].to_pylist(), read["value"].to_pylist()
    assert {value for metric, value in zip(metrics, values, strict=True) if metric == "process.children"} == {None}


def test_tables_are_cut_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = a_run(a_cell(3))
    whole = export.write(run, tmp_path / "whole.csv").read_bytes()
    monkeypatch.setattr(table, "ROWS_AT_ONCE", 7)
    assert export.write(run, tmp_path / "pieces.csv").read_bytes() == whole


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cellmeter\[parquet\]'"):
        export.write(a_run(a_cell(1)), tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


# ── a part of a run, and a row a cell ──


def three_cells() -> Run:
    device = a_device("gpu0")
    cells = [a_cell(10, rss=GIB, gpu={"gpu0": GpuWork(50)}) for _ in range(3)]
    return a_run(*cells, devices=[device])


def part(run: Run, cells: str | None = None, since: str | None = None) -> export.Part:
    return export.part_of(run, export.selection(cells, since))


def test_a_part_of_the_samples(tmp_path: Path) -> None:
    run = three_cells()
    whole = list(csv.DictReader(export.write(run, tmp_path / "x.csv").open()))
    path = export.write(run, tmp_path / "x.csv", part=part(run, "1,3-9"))
    some = list(csv.DictReader(path.open()))
    assert some == [row for row in whole if row["cell"] in ("1", "3")], "rates too are those of the whole run"
    late = list(csv.DictReader(export.write(run, tmp_path / "x.csv", part=part(run, since="5s")).open()))
    assert late == [row for row in whole if float(row["time_s"]) >= run.duration - 5]
    at = (run.started + timedelta(seconds=20)).isoformat()
    assert part(run, since=at) == (None, 20.0)
    assert part(run, since=at[:19]) == (None, 20.0), "a time without a zone is UTC"


def test_a_part_of_the_report_keeps_the_verdict_of_the_whole(tmp_path: Path) -> None:
    run = a_run(a_cell(20, rss=hump(GIB, 40 * GIB, 5, 8)), a_cell(5), a_cell(5))
    for cells, rules in (("1", ["memory-spike"]), ("2", [])):
        report = json.loads(export.write(run, tmp_path / "x.json", part=part(run, cells)).read_text())
        assert [cell["execution_count"] for cell in report["cells"]] == [int(cells)]
        assert [finding["rule"] for finding in report["findings"]] == rules
        jsonschema.validate(report, report_json.schema())


@pytest.mark.parametrize(
    ("cells", "since", "said"),
    [
        ("x", None, "'x' is no cell's number"),
        ("1-", None, "'1-' is no cell's number"),
        ("", None, "'' is no cell's number"),
        ("99", None, "none of these cells"),
        ("3-1", None, "3-1 runs backwards; write 1-3"),
        (None, "10 minutes", "write 90s, 10m, 2h or 1d"),
        (None, "2031-01-01", "nothing of run-1 is that late|nothing of .* is that late"),
    ],
)
def test_a_part_that_cannot_be_is_one_clear_line(cells: str | None, since: str | None, said: str) -> None:
    with pytest.raises(BadUsage, match=said) as error:
        part(three_cells(), cells, since)
    assert "\n" not in str(error.value)


def test_a_row_a_cell(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run = three_cells()
    rows = list(csv.DictReader(export.write(run, tmp_path / "x.csv", per_cell=True).open()))
    table = parquet.read_table(export.write(run, tmp_path / "x.parquet", per_cell=True))
    assert list(rows[0]) == table.column_names
    assert [row["seq"] for row in rows] == ["1", "2", "3"]
    assert [int(float(row["gpu0_utilization_mean_percent"])) for row in rows] == [50, 50, 50]
    assert table["peak_rss_bytes"].to_pylist() == [GIB] * 3
    assert table.schema.field("peak_rss_bytes").metadata == {b"unit": b"By"}
    assert table["timestamp"].to_pylist()[0].isoformat() == "2026-03-01T12:00:02+00:00"
    assert rows[0]["timestamp"] == "2026-03-01T12:00:02.000Z"
    assert rows[0]["parent"] == "", "what is not known is empty"


def test_a_row_a_cell_is_inert_and_of_a_run_without_cells_empty(tmp_path: Path) -> None:
    hostile = export.write(hostile_run(), tmp_path / "x.csv", per_cell=True)
    values = [value for row in csv.DictReader(hostile.open()) for value in row.values()]
    assert [value for value in values if value.startswith(("=", "+", "-", "@"))] == []
    for suffix in (".csv", ".parquet"):
        assert export.write(a_run(), tmp_path / f"none{suffix}", per_cell=True).stat().st_size > 10


def test_json_lines_are_flat_and_have_times() -> None:
    run = a_run(a_cell(20, rss=hump(GIB, 40 * GIB, 5, 8), label="a\nb"))
    documents = [json.loads(line) for line in export.render(run, "jsonl").splitlines()]
    assert [(d["type"], d["timestamp"]) for d in documents] == [
        ("cell", "2026-03-01T12:00:02.000Z"),
        ("finding", documents[1]["timestamp"]),
    ]
    assert documents[1]["rule"] == "memory-spike"
    assert documents[1]["timestamp"] >= "2026-03-01T12:00:02"
    flat = [value for d in documents for key, value in d.items() if key != "cells"]
    assert not any(isinstance(value, dict | list) for value in flat)


# ── files and formats ──


@pytest.mark.parametrize("suffix", export.SUFFIXES)
def test_every_suffix_is_written_whole_over_what_was_there(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix.upper()}"
    target.write_text("old")
    assert export.write(busy_run(), target) == target
    assert target.stat().st_size > 500
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("name", ["report", "report.pdf", ".html.gz"])
def test_an_unknown_suffix_names_those_that_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match=r"\.html, \.json, \.md, \.txt, \.jsonl, \.csv, \.parquet"):
        export.write(a_run(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_names_those_that_work() -> None:
    with pytest.raises(BadUsage, match="text, html, json, md, jsonl"):
        export.render(a_run(), "pdf")


def test_a_judgement_can_be_handed_in(busy: Run) -> None:
    nothing = Judgement((), judge(busy).checked)
    for format in export.FORMATS:
        assert "memory-spike" in export.render(busy, format)
        assert "39.0 GiB" not in re.sub(
            r"<script>.*?</script>", "", export.render(busy, format, nothing), flags=re.DOTALL
        )


# ── what the user's code said ──


def test_what_was_said_is_in_every_report(busy: Run) -> None:
    text = export.render(busy, "text")
    assert re.search(r"inference +59 \(1 failed\) +500 ms +500 ms +500 ms +16 items/s", text)
    assert re.search(r"tokenize +1,000 +≈ 493 µs +≈ 493 µs +≈ 2.6\d ms", text)
    assert "≈ summed up as they came too fast to be kept one by one, within 1 %" in text
    assert re.search(r"loss +236 +0.3333 +0.03279 +0.01475 +0.7333", text)
    assert re.search(r"tokens +241,664 +4,096/s", text)
    assert "memory budget 0.5 · load, at 0:00:08 of the run: 40.0 GiB in use of 32 GiB" in text
    assert "the cell was interrupted" not in text  # it had ended by then
    assert "gpu.utilization < 30 for 5s · In [2], at 0:00:30 of the run, until 0:00:40: gpu0 at 12.5 %" in " ".join(
        text.split()
    )
    marked = export.render(busy, "md")
    page = export.html_report(busy)
    inline = export.inline_html(busy)
    for word in ("Logged values", "inference", "16 items/s", "memory budget 0.5"):
        assert word in marked
        assert word in page
        assert word in inline


def test_what_was_said_is_in_the_json_report(busy: Run) -> None:
    fields = report_json.report(busy)
    inference, tokenize = sorted(fields["spans"], key=lambda s: s["name"])
    assert (inference["count"], inference["errors"], inference["exact"]) == (59, 1, True)
    assert inference["p99_seconds"] == pytest.approx(0.5)
    assert inference["unknown"]["gpu.gpu1.energy_joules"] == "not supported on this GPU"
    assert (tokenize["exact"], tokenize["count"]) == (False, 1000)
    assert fields["logged"][0]["workers"] == [77]
    assert [s["per_second"] for s in fields["steps"]] == [pytest.approx(1), pytest.approx(4096)]
    assert fields["alerts"][0]["cleared"] == 40.0
    assert fields["over_budget"][0]["interrupt"] is True


def test_what_was_said_is_in_the_tables(busy: Run, tmp_path: Path) -> None:
    rows = list(csv.DictReader(export.write(busy, tmp_path / "run.csv").open(encoding="utf-8")))
    said = [row for row in rows if row["metric"].startswith(("logged.", "step.", "span."))]
    assert {(row["metric"], row["subject"], row["unit"]) for row in said} == {
        ("logged.loss", "kernel", ""),
        ("logged.loss", "worker 77", ""),
        ("step.step", "run", ""),
        ("step.tokens", "run", ""),
        ("span.inference", "kernel", "s"),
    }
    first = next(row for row in said if row["metric"] == "span.inference")
    assert (float(first["time_s"]), float(first["value"]), first["label"]) == (3.0, 0.5, "load")


def test_a_part_of_what_was_said(busy: Run, tmp_path: Path) -> None:
    """Cells are from 2 s to 22 s, 24 s to 64 s and at 66 s; a span ends and a value comes each second from 3 s to 61 s."""
    report = json.loads(export.write(busy, tmp_path / "x.json", part=part(busy, "1")).read_text())
    assert [(s["name"], s["count"]) for s in report["spans"]] == [("inference", 20), ("tokenize", 1000)]
    assert (report["alerts"], len(report["over_budget"])) == ([], 1)
    report = json.loads(export.write(busy, tmp_path / "x.json", part=part(busy, "3")).read_text())
    assert [report[key] for key in ("spans", "logged", "steps", "alerts", "over_budget")] == [[]] * 5


def test_a_run_that_said_nothing_has_none_of_it() -> None:
    text = export.render(a_run(a_cell(3)), "text")
    assert not any(word in text for word in ("Spans", "Logged", "Steps", "Alerts"))
