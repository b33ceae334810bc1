"""The panel of the whole run in a real JupyterLab: beside the notebook, and without sidecar in the output."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable

import pytest

from browser.driver import ACTION_MS, Book

WORK = "import time; kept = bytearray({} << 20)\nuntil = time.monotonic() + {}\nwhile time.monotonic() < until: sum(range(999))"
TALL = "\n".join(["# a long cell"] * 60)
BESIDE = ".jupyterlab-sidecar .cellmeter[data-drawn]"
NAMED = "(n) => document.querySelectorAll('.cm-panel:first-child .cm-band').length >= n"


def test_the_whole_run_beside_the_notebook(open_book: Callable[..., Book]) -> None:
    sources = [
        "%load_ext cellmeter",
        "%monitor dock",
        WORK.format(100, 2),
        TALL,
        TALL,
        WORK.format(300, 3),
        "1 / 0",
        "%monitor stop",
    ]
    book = open_book("dock", sources, width=1500)
    for index in (0, 1):
        book.run(index)
        book.wait(index)
    book.page.wait_for_selector(BESIDE, timeout=ACTION_MS)
    book.output(1).get_by_text("The whole run is shown beside the notebook").wait_for(timeout=ACTION_MS)
    assert book.output(1).locator(".cellmeter").count() == 0, "once is enough"
    for index in (2, 5):
        book.run(index)
        book.wait(index)
    book.page.wait_for_function(NAMED, arg=2, timeout=ACTION_MS)
    points = "() => +document.querySelector('.jupyterlab-sidecar .cellmeter').dataset.points"
    before = book.page.evaluate(points)
    book.page.wait_for_function(f"(n) => ({points})() > n", arg=before, timeout=ACTION_MS)  # it goes on between cells
    book.screenshot("dock-light")

    first = book.page.locator(".jupyterlab-sidecar .cm-band a", has_text="In [3]").first
    assert re.match(r"In \[3\] · ok, [\d.]+ s\n", first.get_attribute("title"))
    place = "document.querySelectorAll('.jp-Notebook .jp-Cell')[2].getBoundingClientRect()"
    book.page.wait_for_function(f"() => {place}.top < 0", timeout=ACTION_MS)  # it is scrolled out of sight
    first.click()
    book.page.wait_for_function(
        f"() => {{ const box = {place}; return box.top >= 0 && box.top < 900; }}", timeout=ACTION_MS
    )
    assert book.complaints() == []
    book.run(7)
    book.wait(7)
    book.page.wait_for_selector(".jupyterlab-sidecar .cellmeter-still", timeout=ACTION_MS)


def test_where_there_is_no_place_beside_the_notebook_it_stands_in_the_output(open_book: Callable[..., Book]) -> None:
    """Sidecar is installed, and Notebook 7 has no place for it."""
    sources = ["%load_ext cellmeter\n%monitor dock", WORK.format(100, 1), "%monitor stop"]
    book = open_book("dock-in-notebook", sources, width=1000, front="notebook")
    for index in (0, 1):
        book.run(index)
        book.wait(index)
    book.output(0).locator(".cellmeter[data-drawn]").wait_for(timeout=ACTION_MS)
    book.page.wait_for_function(NAMED, arg=1, timeout=ACTION_MS)
    book.run(2)
    book.wait(2)
    book.output(0).locator(".cellmeter-still").wait_for(timeout=ACTION_MS)


def test_after_a_reload_it_is_beside_the_notebook_again(open_book: Callable[..., Book]) -> None:
    book = open_book("dock-reloaded", ["%load_ext cellmeter\n%monitor dock", "1"], width=1500)
    book.run(0)
    book.wait(0)
    book.page.wait_for_selector(BESIDE, timeout=ACTION_MS)
    book.reload()
    book.page.wait_for_selector(BESIDE, timeout=ACTION_MS)
    book.output(0).get_by_text("The whole run is shown beside the notebook").wait_for(timeout=ACTION_MS)


def test_it_goes_on_while_the_gil_is_held_and_says_how_the_kernel_died(open_book: Callable[..., Book]) -> None:
    holds = "import ctypes; ctypes.PyDLL(None).usleep(600_000_000)"
    book = open_book(
        "dock-silent", ["%load_ext cellmeter\n%monitor dock", "import os; print(os.getpid())", holds], width=1500
    )
    for index in (0, 1):
        book.run(index)
        book.wait(index)
    book.page.wait_for_selector(BESIDE, timeout=ACTION_MS)
    book.run(2)
    title = ".jupyterlab-sidecar .cm-band a"
    book.page.locator(title, has_text="In [3]").first.wait_for(state="attached", timeout=ACTION_MS)
    points = "() => +document.querySelector('.jupyterlab-sidecar .cellmeter').dataset.points"
    before = book.page.evaluate(points)
    book.page.wait_for_function(f"(n) => ({points})() > n + 20", arg=before, timeout=ACTION_MS)
    os.kill(int(book.outputs(1)[0]["text"]), signal.SIGKILL)
    state = book.page.locator(".jupyterlab-sidecar .cm-state", has_text="Killed (SIGKILL) in In [3]")
    state.wait_for(timeout=ACTION_MS)
    book.screenshot("dock-killed-light")


@pytest.mark.parametrize(("reloaded", "front"), [(False, "lab"), (True, "lab"), (False, "notebook")])
def test_without_sidecar_it_stands_in_the_output(open_book: Callable[..., Book], reloaded: bool, front: str) -> None:
    hidden = "import sys; sys.modules['sidecar'] = None\n%load_ext cellmeter\n%monitor dock"
    sources = [hidden, WORK.format(100, 1), "%monitor stop"]
    book = open_book(f"dock-inside-{reloaded}-{front}", sources, width=1000, dark=True, front=front)
    for index in (0, 1):
        book.run(index)
        book.wait(index)
    book.page.wait_for_function(NAMED, arg=1, timeout=ACTION_MS)
    book.screenshot(f"dock-inside-dark-{front}")
    if reloaded:
        book.reload()
        book.page.wait_for_function(NAMED, arg=1, timeout=ACTION_MS)
    book.run(2)
    book.wait(2)
    if reloaded:
        book.page.wait_for_selector(".cellmeter[data-state=ok]", timeout=ACTION_MS)
    else:
        book.page.wait_for_selector(".cellmeter-still", timeout=ACTION_MS)
        said, output = book.outputs(0)
        assert "".join(said["text"]).startswith("cellmeter: recording at 10 Hz; ")
        assert set(output["data"]) == {"text/plain", "text/html"}
        assert output["data"]["text/plain"].startswith("The whole run: done in ")
        assert len(json.dumps(output["data"])) < 20_000
    assert book.complaints() == []
