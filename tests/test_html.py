"""The page of the report: what its sections say and draw, and that it stays small."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from builders import GIB, GpuWork, a_cell, a_device, a_run, bursts, hump, without
from test_export import HOSTILE, Tags, busy_run, hostile_run

from bench.long_run import long_run
from cellmeter.export.html import html_report, inline_cells, inline_html
from cellmeter.export.html.cells import PAGE
from cellmeter.export.html.findings import LISTED, SHOWN, evidence
from cellmeter.rules import Evidence, Finding, Judgement, judge
from cellmeter.run import Run
from cellmeter.settings import Prices

MIB = 2**20
NOTHING = Judgement((), ())
VOID = {"meta", "br", "img", "input", "hr", "link"}


def a_finding(**fields: object) -> Finding:
    parts = {
        "rule": "gpu-underused",
        "severity": "warning",
        "cells": (1,),
        "subject": "gpu0",
        "cause": None,
        "start": 2.0,
        "end": 62.0,
        "fact": "In [1] kept gpu0 at 20 %.",
        "consequence": "48 GPU-seconds were unused.",
        "advice": "Do more.",
        "evidence": Evidence("gpu.utilization", 20.0, 50.0, "%"),
    }
    return Finding(**(parts | fields))  # type: ignore[arg-type]


def waiting() -> Run:
    return a_run(a_cell(60, gpu={"gpu0": GpuWork(bursts(5, 1))}), devices=[a_device(mine=True)])


def page_of(run: Run, judgement: Judgement | None = None, prices: Prices | None = None) -> str:
    """The page without its scripts, but with its data."""
    whole = html_report(run, judgement, prices or Prices())
    return re.sub(r"<script>.*?</script>", "", whole, flags=re.DOTALL)


def section_of(page: str, title: str) -> str:
    found = re.search(rf"<section [^>]*><h2[^>]*>{title}\b.*?</section>", page, re.DOTALL)
    assert found, f"no section {title}"
    return found[0]


def data_of(page: str) -> dict[str, list[list[object]]]:
    found = re.search(r'<script type="application/json" id="cells-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


class Balance(HTMLParser):
    """Fails on an element that is closed by another's end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# ── the whole ──


@pytest.mark.parametrize(
    "make", [busy_run, hostile_run, a_run, waiting, lambda: replace(a_run(a_cell(3)), segments=())]
)
def test_the_markup_is_well_formed(make: object) -> None:
    run = make()  # type: ignore[operator]
    Balance(html_report(run, prices=Prices(1, 1, 1)))
    Balance(inline_html(run, prices=Prices(1, 1, 1)))
    Balance(inline_cells(run))


def test_a_name_is_given_once() -> None:
    tags = Tags(html_report(busy_run()))
    names = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(names) == len(set(names))


def test_sections_stand_in_the_order_people_read_them() -> None:
    page = page_of(busy_run(), prices=Prices(2.5))
    titles = re.findall(r"<h2[^>]*>([^<]+?) ?<", page)
    own = ["Spans", "Logged values", "Steps", "Alerts"]
    first, last = (
        ["Findings", "Timeline", "Cells"],
        ["Memory", "GPUs", "Right size", "Cost", "Not judged", "This recording"],
    )
    assert titles == [*first, *own, *last]


def test_an_empty_run_has_a_page_that_says_so() -> None:
    page = page_of(a_run())
    assert "There was nothing to judge." in page
    assert "No cell was run." in page
    assert "Right size" not in page


# ── findings ──


def test_a_finding_has_a_chart_of_its_evidence_with_the_threshold() -> None:
    figure = evidence(waiting(), a_finding())
    assert "threshold 50 %" in figure
    assert 'aria-label="Share of time' in figure
    assert figure.count('class="line gpu"') == 1
    assert 'class="window"' in figure


def test_the_chart_is_of_the_evidence_and_a_little_around_it() -> None:
    run = a_run(a_cell(500, gpu={"gpu0": GpuWork(50)}), devices=[a_device(mine=True)])
    figure = evidence(run, a_finding(start=200.0, end=300.0))
    assert "from 0:03:08 to 0:05:12 of the run" in figure


def test_a_peak_between_two_samples_is_drawn_and_named() -> None:
    run = a_run(a_cell(20, rss=GIB, peak=9 * GIB))
    spike = a_finding(
        rule="memory-spike", subject="process", evidence=Evidence("process.memory.rss", 8.0 * GIB, GIB, "By")
    )
    figure = evidence(run, spike)
    assert "exact peak 9.00 GiB, between two samples" in figure
    assert "threshold" not in figure  # it is one of the height of the spike, not of the memory
    sampled = evidence(a_run(a_cell(60, rss=hump(GIB, 9 * GIB, 5, 9))), spike)
    assert "peak 9.00 GiB" in sampled
    assert "between" not in sampled


def test_the_chart_shows_another_gpu_of_which_the_same_is_true() -> None:
    work = GpuWork(bursts(5, 1))
    run = a_run(
        a_cell(60, gpu={"gpu0": work, "gpu1": work}), devices=[a_device(mine=True), a_device("gpu1", mine=True)]
    )
    figure = evidence(run, a_finding(also=("gpu1",)))
    assert figure.count('<path class="line') == 2
    assert ">gpu1</span>" in figure


def test_what_has_no_readings_has_no_chart() -> None:
    blind = without(waiting(), "gpu.utilization", "gpu0", "MIG")
    assert evidence(blind, a_finding()) == ""
    assert evidence(waiting(), a_finding(evidence=Evidence("of.another.version", 1, 1, "%"))) == ""
    assert evidence(waiting(), a_finding(subject="gpu7")) == ""


def test_time_without_samples_is_a_break_in_the_line() -> None:
    run = waiting()
    kept = [segment.records[(segment.records["t"] - run.start_ns) // 10**9 // 10 != 3] for segment in run.segments]
    gap = replace(run, segments=tuple(replace(s, records=r) for s, r in zip(run.segments, kept, strict=True)))
    assert "M" in (line := re.findall(r'class="line gpu" d="([^"]+)"', evidence(run, a_finding()))[0])
    broken = re.findall(r'class="line gpu" d="([^"]+)"', evidence(gap, a_finding()))[0]
    assert (line.count("M"), broken.count("M")) == (1, 2)


def test_a_thousand_findings_are_a_page_of_them_a_list_and_a_number() -> None:
    findings = tuple(a_finding(fact=f"fact {n}.") for n in range(1000))
    page = page_of(waiting(), Judgement(findings, ()))
    assert page.count("<article") == SHOWN
    assert page.count("<li id=") == LISTED
    assert f"and {1000 - SHOWN - LISTED} more" in page


# ── cells ──


def test_the_table_has_a_page_and_the_data_of_all_cells() -> None:
    page = page_of(a_run(*[a_cell(0.2) for _ in range(PAGE + 5)], pause=0.1), NOTHING)
    body = section_of(page, "Cells").split("<tbody>")[1].split("</tbody>")[0]
    assert body.count("<tr") == PAGE
    assert len(data_of(page)["rows"]) == PAGE + 5
    assert f"1–{PAGE} of {PAGE + 5}" in page
    assert 'class="pages" aria-label="Pages of the table of cells">' in page


def test_the_data_of_the_cells_ends_at_its_end_and_nowhere_else() -> None:
    page = page_of(hostile_run())
    (first, *_) = data_of(page)["rows"]
    assert HOSTILE.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd") == first[0]
    raw = page.split('id="cells-data">')[1].split("</script>")[0]
    assert "<" not in raw


def test_cells_that_are_only_magics_are_dimmed_and_said_to_be() -> None:
    section = section_of(page_of(a_run(a_cell(0.1, first_line="%load_ext cellmeter"), a_cell(3))), "Cells")
    assert section.count("<tr class=quiet>") == 1
    assert "Dimmed: 1 short cell " in section


def test_without_a_gpu_nothing_is_said_of_gpus() -> None:
    page = page_of(a_run(a_cell(90)))
    assert '<h2 id="about-gpus"' not in page
    assert ">GPU<" not in page


def test_every_table_has_a_caption_and_heads_with_a_scope() -> None:
    tags = Tags(html_report(busy_run(), prices=Prices(2.5, 0.1, 0.05)))
    assert len(tags.named("table")) == len(tags.named("caption")) > 4
    assert {head.get("scope") for head in tags.named("th")} == {"col", "row"}


# ── memory and GPUs ──


def test_memory_names_its_peaks_and_who_kept_what() -> None:
    grown = a_cell(30, label="load", rss=lambda t: GIB + t * 100 * MIB)
    spiked = a_cell(60, label="merge", rss=hump(4 * GIB, 20 * GIB, 5, 9))
    section = section_of(page_of(a_run(grown, spiked)), "Memory")
    assert "merge 20.0 GiB" in section
    rows = section.split("<tbody>")[1]
    assert "load" in rows
    assert "+2.93 GiB" in rows
    assert "merge" not in rows  # it gave back what it took


def test_each_gpu_has_its_spread_and_its_histogram() -> None:
    section = section_of(page_of(busy_run()), "GPUs")
    assert section.count('class="panel histogram"') == 2
    assert "90 to 100 %: 10.0 s" in section
    heads = re.findall(r"<th scope=col[^>]*>([^<]+)<", section)
    assert heads[:8] == ["GPU", "Reading", "mean", "max", "p99", "p95", "p50", "min"]


def test_a_gpu_that_could_not_be_read_says_why() -> None:
    section = section_of(page_of(without(waiting(), "gpu.utilization", "gpu0", "MIG: not supported")), "GPUs")
    assert "Utilisation unknown: MIG: not supported" in section
    assert "unknown, MIG: not supported" in section


def test_the_cost_table_says_what_the_unused_part_cost() -> None:
    run = a_run(a_cell(716, gpu={"gpu0": GpuWork(50)}), devices=[a_device(mine=True)])
    section = section_of(page_of(run, NOTHING, Prices(gpu_hour=10.0)), "Cost")
    assert "$2.00" in section
    assert "$1.00" in section


# ── size ──


@pytest.fixture(scope="module")
def large() -> Run:
    return long_run(0.6, 8, 5000)


def test_eight_gpus_and_thousands_of_cells_are_a_file_of_three_megabytes_at_most(large: Run) -> None:
    # An hour draws as many points as a day: both have more readings than the page has pixels.
    findings = tuple(a_finding(start=600.0, end=1200.0) for _ in range(300))
    page = html_report(large, Judgement(findings, ()))
    assert len(page.encode()) < 3_000_000


def test_the_inline_report_of_thousands_of_cells_is_small(large: Run) -> None:
    findings = tuple(a_finding(start=600.0, end=1200.0) for _ in range(300))
    text = inline_html(large, Judgement(findings, ()))
    assert len(text) < 60_000
    assert text.count("<tr>") <= 41
    assert "4,960 shorter cells" in text
    assert 1 <= text.count("<img") <= 3


def test_the_inline_report_has_pictures_advice_and_no_script() -> None:
    text = inline_html(busy_run(), judge(busy_run()), Prices(2.5))
    assert "data:image/" in text
    assert "Right size and cost" in text
    assert "<script" not in text
    assert "<svg" not in text
