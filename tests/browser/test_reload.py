"""What a monitored cell shows after a reload, a restart, a stranger's visit: the picture or the chart, never an empty box."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from browser.driver import ACTION_MS, FRONTS, Book, wait_until
from browser.test_live import points
from browser.test_silence import DIES, running

SHORT = "%%monitor short\nimport time\ntime.sleep(1)\nkept = bytearray(50_000_000)\n"
# Runs until the file `seen` is there.
WAITS = "%%monitor waits\nimport os, time\nwhile not os.path.exists('seen'): time.sleep(0.1)\n"
NAP = "import time\ntime.sleep(0.5)"  # a cell without a sample has no picture
# Height of the tallest picture or chart of each cell.
DRAWN = """() => [...document.querySelectorAll(".jp-Notebook .jp-Cell")].map((cell) => Math.max(0,
    ...[...cell.querySelectorAll(".cellmeter-still img, .jp-RenderedImage img, .cellmeter[data-drawn]")]
        .map((one) => one.offsetHeight)))"""


def ended(
    open_book: Callable[..., Book], name: str, front: str, first: Callable[[Book], object] = lambda book: None
) -> Book:
    """A notebook with a monitored cell that has ended; saved. ``first``: what to do before it is run."""
    book = open_book(name, ["%load_ext cellmeter", SHORT], front=front)
    first(book)
    for index in (0, 1):
        book.run(index)
        book.wait(index)
    shown(book)
    book.command("docmanager:save")
    return book


def shown(book: Book, index: int = 1) -> None:
    """A cell shows its picture or its chart; and nobody misses a model."""

    wait_until(lambda: book.page.evaluate(DRAWN)[index:][:1] > [60], f"the picture or the chart: {book.console[-3:]}")
    assert "model not found" not in book.page.inner_text("body")
    assert "Loading widget" not in book.page.inner_text("body")


@pytest.mark.parametrize("front", FRONTS)
def test_an_ended_cell_outlives_reload_reopening_restart_and_shutdown(
    open_book: Callable[..., Book], front: str
) -> None:
    book = ended(open_book, f"outlives-{front}", front)
    book.reload()
    shown(book)
    book.open()
    shown(book)
    book.restart()
    shown(book)
    book.reload()
    shown(book)
    book.server.end_kernels()
    book.reload()
    shown(book)
    book.screenshot(f"outlives-{front}", 1)
    assert book.complaints() == []


def test_closed_and_opened_again_in_the_same_page(open_book: Callable[..., Book]) -> None:
    book = ended(open_book, "closed", "lab")
    book.command("application:close")
    book.page.wait_for_selector(".jp-Notebook", state="detached")
    book.command("docmanager:open", {"path": book.path.name})
    book.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=ACTION_MS)
    shown(book)
    assert book.complaints() == []


@pytest.mark.parametrize("front", FRONTS)
def test_a_page_loaded_anew_while_the_cell_runs_shows_it_in_the_end(open_book: Callable[..., Book], front: str) -> None:
    book = running(open_book, f"midway-{front}", WAITS, front=front)
    before = points(book)
    book.reload()
    book.path.with_name("seen").touch()
    book.page.wait_for_selector(".cellmeter[data-drawn][data-state=ok]", timeout=ACTION_MS)
    shown(book)
    assert points(book) > before
    book.screenshot(f"midway-{front}", 1)
    assert book.complaints() == []


def test_it_stays_there_while_other_cells_are_monitored(open_book: Callable[..., Book]) -> None:
    book = running(open_book, "midway-others", WAITS, *(f"%%monitor {name}\n{NAP}" for name in ("second", "third")))
    book.reload()
    book.path.with_name("seen").touch()
    first = book.output(1).locator(".cellmeter[data-drawn][data-state=ok]")
    first.wait_for(timeout=ACTION_MS)
    for index in (2, 3):
        book.run(index)
        book.wait(index)
        book.output(index).locator(".cellmeter-still").wait_for(timeout=ACTION_MS)
    assert first.count() == 1
    book.command("docmanager:save")
    book.reload()
    first.wait_for(timeout=ACTION_MS)
    assert int(first.get_attribute("data-points")) > 5, "all of it, read from the run folder again"
    assert book.complaints() == []


@pytest.mark.parametrize("saves", [True, False])
def test_saved_widget_state_or_none(open_book: Callable[..., Book], saves: bool) -> None:
    setting = "@jupyter-widgets/jupyterlab-manager:saveWidgetState"

    def choose(book: Book) -> None:
        if book.page.evaluate("(name) => window.jupyterapp.commands.isToggled(name)", setting) != saves:
            book.command(setting)

    book = ended(open_book, f"state-{saves}", "lab", choose)
    saved = json.loads(book.path.read_text())
    assert ("widgets" in saved["metadata"]) == saves
    assert len(json.dumps(saved["cells"][1]["outputs"])) < 20_000
    assert len(json.dumps(saved["metadata"])) < 12_000
    assert "BokehJS" not in json.dumps(saved)
    book.restart()
    book.reload()
    shown(book)
    assert book.complaints() == []


@pytest.mark.parametrize("front", FRONTS)
def test_a_strangers_notebook(open_book: Callable[..., Book], front: str) -> None:
    book = ended(open_book, f"mine-{front}", front)
    stranger = book.path.with_name(f"stranger-{front}.ipynb")
    stranger.write_text(book.path.read_text().replace("short", "other"))
    book.path = stranger
    book.open()
    shown(book)
    still = book.page.locator(".cellmeter-still")
    assert still.locator("script").count() == 0
    assert book.page.locator(".cellmeter").count() == 0
    assert still.locator("img").get_attribute("alt").startswith("Charts of other: done in ")
    assert still.locator("img").evaluate("(img) => img.naturalWidth") == 1140


def test_two_tabs_on_one_kernel(open_book: Callable[..., Book]) -> None:
    first = running(open_book, "tabs", WAITS)
    first.command("docmanager:save")
    second = first.beside()
    first.path.with_name("seen").touch()
    first.wait(1)
    shown(first)
    shown(second)
    assert first.complaints() == second.complaints() == []


def test_nbconvert_html_is_the_picture(open_book: Callable[..., Book]) -> None:
    book = ended(open_book, "converted", "lab")
    command = [sys.executable, "-m", "nbconvert", "--to", "html", str(book.path)]
    subprocess.run(command, check=True, capture_output=True)
    page = book.page.context.new_page()
    page.route("http*://**", lambda route: route.abort())
    page.goto(book.path.with_suffix(".html").as_uri())
    image = page.locator(".cellmeter-still img")
    image.wait_for(timeout=ACTION_MS)
    assert image.evaluate("(img) => img.complete && img.naturalWidth") > 700
    assert image.bounding_box()["height"] > 100


@pytest.mark.parametrize("front", FRONTS)
def test_the_cell_of_a_dead_kernel_is_drawn_again(open_book: Callable[..., Book], front: str) -> None:
    book = running(open_book, f"again-{front}", DIES.format(how="os._exit(7)"), front=front)
    book.path.with_name("seen").touch()
    book.page.wait_for_selector(".cellmeter[data-state=died]", timeout=ACTION_MS)
    book.command("docmanager:save")
    book.ready()
    book.reload()
    book.ready()
    book.page.evaluate(
        """() => { const { content } = window.jupyterapp.shell.currentWidget;
            content.widgets[1].model.sharedModel.setSource("%monitor show 2"); }"""
    )
    for index in (0, 1):
        book.run(index)
        book.wait(index)
    shown(book)
    (output,) = book.outputs(1)
    assert output["data"]["text/plain"].startswith("dies: kernel died after")


@pytest.mark.parametrize("front", FRONTS)
def test_a_page_with_widgets_says_that_it_is_there(open_book: Callable[..., Book], front: str) -> None:
    spoken = "from cellmeter import live\nprint(live._stages[get_ipython()]._page_speaks, end='')"
    book = open_book(f"speaks-{front}", ["%load_ext cellmeter", spoken], front=front)
    book.run(0)
    book.wait(0)

    def heard() -> bool:
        book.run(1)
        book.wait(1)
        return bool(book.outputs(1)[0]["text"] == "True")

    wait_until(heard, "the kernel to hear of the page")
