"""The HTML report in a real browser: nothing is fetched, nothing runs that came from the notebook."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_cell, a_run
from test_export import HOSTILE, busy_run
from test_remote import elsewhere

from bench.long_run import long_run
from browser.driver import SCREENSHOTS, listen
from cellmeter.export.html import html_report
from cellmeter.export.rows import cell_rows
from cellmeter.remote import RemoteDevice
from cellmeter.rules import Judgement
from cellmeter.run import Run
from cellmeter.settings import Prices
from cellmeter.words import bytes_text

PRICES = Prices(2.5, 0.1, 0.05)


@dataclass
class Report:
    """A report open in the browser, and what went wrong in it."""

    view: Any
    address: str
    trouble: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._deaf = listen(
            self.view,
            console=lambda m: self.trouble.append(m.text) if m.type == "error" else None,
            pageerror=lambda error: self.trouble.append(str(error)),
            dialog=lambda dialog: self.trouble.append(dialog.message),
            request=lambda request: self.requests.append(request.url),
        )

    def leave(self) -> None:
        """Leaves the page to another report."""
        self.view.emulate_media(media="null")
        self.view.goto("about:blank")
        self._deaf()

    def column(self, number: int) -> list[str]:
        """What a column of the cells' table shows."""
        return list(self.view.locator(f"#cells tbody tr > :nth-child({number})").all_inner_texts())

    def heading(self, name: str) -> Any:
        """The button in a heading of the cells' table."""
        return self.view.locator("#cells thead").get_by_role("button", name=name)

    def fits(self) -> bool:
        """Whether the page needs no sideways scrolling."""
        return bool(self.view.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    def screenshot(self, name: str) -> None:
        """Into build/screenshots, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.view.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def open_report(tmp_path: Path, open_page: Callable[..., Any]) -> Iterator[Callable[..., Report]]:
    """Writes a run's report and opens it: ``open_report(run, width=1300, dark=False, judgement=None)``."""
    reports = []

    def opener(run: Run, *, width: int = 1300, dark: bool = False, judgement: Judgement | None = None) -> Report:
        path = tmp_path / "report.html"
        path.write_text(html_report(run, judgement, PRICES), "utf-8")
        report = Report(open_page(width, dark), path.as_uri())
        reports.append(report)
        report.view.goto(report.address)
        report.view.locator(".timeline canvas").first.wait_for(state="attached")
        return report

    yield opener
    for report in reports:
        report.leave()


def hostile_busy_run() -> Run:
    run = replace(busy_run(), notebook=f"/tmp/{HOSTILE}")
    cells = tuple(replace(cell, label=HOSTILE, first_line=HOSTILE) if cell.seq == 2 else cell for cell in run.cells)
    return replace(run, cells=cells)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [600, 1400])
def test_the_page_runs_offline_under_its_policy(open_report: Callable[..., Report], dark: bool, width: int) -> None:
    report = open_report(hostile_busy_run(), width=width, dark=dark)
    report.heading("Peak memory").click()
    assert report.column(4)[0].startswith("40.0 GiB")
    report.screenshot(f"report-{width}-{'dark' if dark else 'light'}")
    assert report.fits()
    assert report.trouble == []
    assert report.requests == [report.address]
    assert report.view.locator("main script[type='application/json']").count() == 1
    assert report.view.locator("main img").count() == 0


def test_the_cells_are_sorted_by_keyboard_and_what_is_unknown_stays_last(open_report: Callable[..., Report]) -> None:
    report = open_report(busy_run())
    before = report.column(1)
    heading = report.heading("Energy")
    heading.focus()
    report.view.keyboard.press("Enter")
    sort = report.view.locator("#cells th[aria-sort]")
    assert sort.get_attribute("aria-sort") == "descending"
    first = report.column(7)
    report.view.keyboard.press("Enter")
    assert sort.get_attribute("aria-sort") == "ascending"
    assert [first[-1], report.column(7)[-1]] == ["–", "–"]
    assert sorted(report.column(1)) == sorted(before)
    report.heading("Status").press("Space")
    assert report.column(8) == ["error", "ok", "ok"]
    report.heading("Cell").press("Space")
    assert report.column(1) == before
    assert report.trouble == []


def test_five_thousand_cells_come_a_page_at_a_time_and_are_sorted_together(open_report: Callable[..., Report]) -> None:
    run = long_run(0.5, 0, 5000)
    report = open_report(run, judgement=Judgement((), ()))
    page = report.view.locator("nav.pages")
    assert page.locator("output").inner_text() == "1–50 of 5000"
    assert report.view.locator("#cells tbody tr").count() == 50
    page.get_by_role("button", name="Next").press("Enter")
    assert report.column(1)[0].startswith("In [51]")
    report.heading("Peak memory").click()
    assert page.locator("output").inner_text() == "1–50 of 5000"
    most = sorted((row.peak_bytes or 0 for row in cell_rows(run)), reverse=True)
    assert report.column(4) == [bytes_text(peak) for peak in most[:50]]
    assert page.get_by_role("button", name="Previous").is_disabled()
    report.screenshot("report-5000-cells")
    assert report.trouble == []


def test_a_row_drawn_by_the_script_is_the_row_in_the_file(open_report: Callable[..., Report]) -> None:
    report = open_report(hostile_busy_run())
    body = report.view.locator("#cells tbody")

    def markup() -> str:
        found = body.evaluate("body => body.innerHTML").replace('<tr class="">', "<tr>")
        return re.sub(r"width: ?([\d.]+)%;?", lambda match: f"{float(match[1]):.1f}", found)

    before = markup()
    report.heading("Cell").click()
    assert markup() == before


NAMES = """() => Bokeh.documents.flatMap(d => d.roots()).flatMap(r => r.children).flatMap(fig =>
  fig.center.filter(one => one.name === "band").map(({ text, tags: [title, right], x }) => {
    const { start, end } = fig.x_range;
    return [title, text, (Math.min(right, end) - Math.max(x, start)) / (end - start) * fig.inner_width];
  }))"""


def test_the_names_of_bands_fit_them_at_any_width(open_report: Callable[..., Report]) -> None:
    cells = [a_cell(seconds, label="nearest pick-up, all at once") for seconds in (4, 60, 2, 14, 30)]
    shown = {}
    for width in (500, 1400):
        report = open_report(a_run(*cells), width=width)
        report.view.wait_for_function(f"({NAMES})().some(([, text]) => text)")
        names = report.view.evaluate(f"({NAMES})()")
        assert len(names) == 5
        assert all(len(text) * 5.8 <= room for _, text, room in names), names
        assert all(not text or title.startswith(text.rstrip("…")) for title, text, _ in names)
        shown[width] = [text for _, text, _ in names]
        assert report.trouble == []
    assert "nearest pick-up, all at once" in shown[1400]
    assert sum(map(len, shown[500])) < sum(map(len, shown[1400]))


def test_on_a_phone_no_column_is_cut_off(open_report: Callable[..., Report]) -> None:
    report = open_report(busy_run(), width=400)
    wide = "[...document.querySelectorAll('.wide')].filter(one => one.scrollWidth > one.clientWidth + 1).length"
    assert report.view.evaluate(wide) == 0
    assert report.view.locator("#cells tbody tr").first.locator("td[data-name='Growth']").is_visible()
    report.heading("Peak memory").click()
    assert report.column(4)[0].startswith("40.0 GiB")
    assert report.fits()
    report.screenshot("report-phone")


def test_print_is_black_on_white_with_what_was_folded_away(open_report: Callable[..., Report]) -> None:
    report = open_report(busy_run(), dark=True)
    assert report.view.locator("main details[open]").count() == 0
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    folded = "window.folded = document.querySelectorAll('details:not([open])').length"
    report.view.evaluate(f"addEventListener('beforeprint', () => {{ {folded} }})")
    report.view.pdf(path=SCREENSHOTS / "report.pdf", format="A4", print_background=True)
    assert report.view.evaluate("window.folded") == 0
    assert report.view.locator("main details[open]").count() == 0
    report.view.emulate_media(media="print")
    style = "getComputedStyle(document.body)"
    colours = report.view.evaluate(f"[{style}.color, {style}.backgroundColor]")
    assert colours == ["rgb(27, 31, 35)", "rgb(255, 255, 255)"]
    assert report.trouble == []


def test_a_run_without_cells_opens_without_complaint(open_report: Callable[..., Report]) -> None:
    report = open_report(a_run())
    assert report.trouble == []
    assert open_report(a_run(a_cell(3))).trouble == []


@pytest.mark.parametrize("dark", [False, True])
def test_machines_elsewhere_have_lanes_and_tables_whatever_they_are_called(
    open_report: Callable[..., Report], dark: bool
) -> None:
    plain = elsewhere({"gpu0": lambda t: 90.0 * (60 < t < 500), "gpu1": 12.0})
    other = RemoteDevice(f"{HOSTILE}:gpu0", "node7", HOSTILE, HOSTILE)
    readings = {**plain.readings, ("gpu.utilization", other.id): plain.readings["gpu.utilization", "node7:gpu0"]}
    remote = replace(plain, devices=(*plain.devices, other), readings=readings, match=HOSTILE)
    cells = (a_cell(60, label="load"), a_cell(500, label="submit and wait"))
    report = open_report(replace(a_run(*cells), remote=remote), dark=dark)
    assert report.view.get_by_text("Elsewhere, by cell", exact=False).count() >= 1
    names = report.view.evaluate("Bokeh.documents.flatMap(d => [...d._all_models.values()].map(m => m.name))")
    assert "elsewhere" in names
    report.screenshot(f"report-elsewhere-{'dark' if dark else 'light'}")
    assert report.fits()
    assert report.trouble == []
    assert report.requests == [report.address]
