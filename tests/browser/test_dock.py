"""The panel of the whole run in a real JupyterLab: beside the notebook, and without sidecar in the output."""

from __future__ import annotations

import json
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
    (said,) = book.outputs(1)
    assert said["text"] == "cellmeter: the whole run is shown beside the notebook\n"
    book.page.wait_for_selector(BESIDE, timeout=ACTION_MS)
    for index in (2, 5):
        book.run(index)
        book.wait(index)
    book.page.wait_for_function(NAMED, arg=2, timeout=ACTION_MS)
    points = "() => +document.querySelector('.jupyterlab-sidecar .cellmeter').dataset.points"
    before = book.page.evaluate(points)
    book.page.wait_for_function(f"(n) => ({points})() > n", arg=before, timeout=ACTION_MS)  # it goes on between cells
    book.screenshot("dock-light")

    first = book.page.locator(".jupyterlab-sidecar .cm-band a", has_text="In [3]").first
    assert first.get_attribute("title").startswith("In [3] · ok, 2")
    assert book.page.locator(".jp-Notebook .jp-Cell").nth(2).bounding_box()["y"] < 0, "it is scrolled out of sight"
    first.click()
    book.page.wait_for_function(
        """() => { const box = document.querySelectorAll('.jp-Notebook .jp-Cell')[2].getBoundingClientRect();
                   return box.top >= 0 && box.top < 900; }""",
        timeout=ACTION_MS,
    )
    assert book.complaints() == []
    book.run(7)
    book.wait(7)
    book.page.wait_for_selector(".jupyterlab-sidecar .cellmeter-still", timeout=ACTION_MS)


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
        (output,) = book.outputs(0)
        assert set(output["data"]) == {"text/plain", "text/html"}
        assert output["data"]["text/plain"].startswith("The whole run: done in ")
        assert len(json.dumps(output["data"])) < 20_000
    assert book.complaints() == []
