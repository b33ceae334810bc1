"""The line under each cell in a real JupyterLab, on a light and on a dark page."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from browser.driver import Book

RUNS = """import time
kept, until = [], time.monotonic() + 2
while time.monotonic() < until:
    kept.append(bytearray(4_000_000))
    time.sleep(0.02)
'the result'"""


@pytest.mark.parametrize(
    ("width", "dark", "front"), [(1300, False, "lab"), (760, True, "lab"), (1300, False, "notebook")]
)
def test_the_line_under_a_cell(open_book: Callable[..., Book], width: int, dark: bool, front: str) -> None:
    look = f"strip-{front}-{width}-{'dark' if dark else 'light'}"
    cells = ["%load_ext cellmeter\n%monitor start --auto", RUNS, "1 + 1"]
    book = open_book(look, cells, width=width, dark=dark, front=front)
    for index in range(3):
        book.run(index)
        book.wait(index)
    result, line = book.outputs(1)
    assert result["output_type"] == "execute_result"
    assert set(line["data"]) == {"text/plain", "text/html"}
    assert len(json.dumps(line["data"])) < 1_500, "it is saved in the notebook"
    assert [output["output_type"] for output in book.outputs(2)] == ["execute_result"]
    shown = book.output(1).locator(".cellmeter-strip")
    assert "memory" in shown.inner_text()
    lines = shown.bounding_box()["height"] / 18
    assert lines < (1.5 if width > 1000 else 2.5), "one line where there is room for it"
    book.screenshot(look)
    assert book.complaints() == []
