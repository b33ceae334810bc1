"""The panel in a real JupyterLab, with a real kernel and recorder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import pytest

from browser.driver import ACTION_MS, Book, wait_until

SYNTHETIC = Path(__file__).with_name("synthetic.py")
EXAMPLE = Path(__file__).parents[1] / "plugin_example"
BUSY = """%%monitor training
import os, time
kept = []
while not os.path.exists('seen'):
    kept.append(bytearray(4_000_000))
    sum(range(200_000))
    del kept[700:]
"""
UPGRADED = ".cellmeter-still[data-upgraded=done]"


def points(book: Book) -> int:
    """Rows the chart has taken in."""
    return int(book.page.evaluate("() => document.querySelector('.cellmeter')?.dataset.points ?? 0"))


def wait_for_points(book: Book, more_than: int) -> None:
    book.page.wait_for_function(
        "(n) => +document.querySelector('.cellmeter[data-drawn]')?.dataset.points > n", arg=more_than, timeout=ACTION_MS
    )


def test_the_chart_grows_while_the_cell_runs_and_a_picture_stays(open_book: Callable[..., Book]) -> None:
    book = open_book("grows", ["%load_ext cellmeter", BUSY])
    seen = book.path.with_name("seen")
    seen.unlink(missing_ok=True)
    book.run(0)
    book.wait(0)
    book.run(1)
    wait_for_points(book, 5)
    grown = ".cellmeter[data-drawn][data-state=recording]"
    book.page.wait_for_function(f"(n) => +document.querySelector('{grown}')?.dataset.points > n", arg=points(book) + 10)
    book.screenshot("live-light-1300", 1)
    seen.touch()
    book.wait(1)
    book.page.wait_for_selector(UPGRADED, timeout=ACTION_MS)
    book.screenshot("upgraded-light-1300", 1)
    (output,) = book.outputs(1)
    assert set(output["data"]) == {"text/plain", "text/html"}
    assert re.match(r"training: done in [\d.]+ s · CPU ", output["data"]["text/plain"])

    book.restart()
    book.reload()
    book.page.wait_for_selector(".cellmeter-still img", timeout=ACTION_MS)
    assert book.page.evaluate("() => document.querySelector('.cellmeter-still img').naturalWidth") > 700
    book.screenshot("still-after-restart", 1)
    assert book.complaints() == []
    assert {urlparse(url).hostname for url in book.requests if url.startswith("http")} == {"127.0.0.1"}
    assert "BokehJS" not in book.path.read_text()
    assert len(json.dumps(output["data"])) < 20_000


RERUNS = 5
# of all there are in the page, also those that only a forgotten reference keeps
PANELS = "function () { return this.filter((element) => element.classList.contains('cellmeter')).length }"


def panels_kept(book: Book) -> int:
    """Panels that the page's memory still holds once the garbage has been collected."""
    tools = book.page.context.new_cdp_session(book.page)
    kind = tools.send("Runtime.evaluate", {"expression": "HTMLDivElement.prototype"})["result"]["objectId"]
    all_of_it = tools.send("Runtime.queryObjects", {"prototypeObjectId": kind})["objects"]["objectId"]
    asked = {"objectId": all_of_it, "functionDeclaration": PANELS, "returnByValue": True}
    count = tools.send("Runtime.callFunctionOn", asked)["result"]["value"]
    tools.detach()
    return int(count)


def test_a_panel_whose_cell_runs_again_leaves_the_pages_memory(open_book: Callable[..., Book]) -> None:
    book = open_book("again", ["%load_ext cellmeter", "%%monitor\nimport time\ntime.sleep(0.6)"])
    book.run(0)
    book.wait(0)
    for _ in range(RERUNS):
        book.run(1)
        book.wait(1)
        book.page.locator(UPGRADED).wait_for(timeout=ACTION_MS)  # what wait_for_selector gives back would keep it
    # V8 lets one old chart live, whose accessors the charts of today share
    wait_until(lambda: panels_kept(book) <= 2, "all panels but the last to be forgotten")
    assert book.complaints() == []


SAYS = """%%monitor training
import cellmeter, os, time
while not os.path.exists('said'):
    with cellmeter.span('batch'):
        time.sleep(0.05)
    cellmeter.log(loss=0.125)
    cellmeter.step(tokens=64)
"""


def test_the_panel_tells_what_the_code_says_and_what_it_is_told(open_book: Callable[..., Book]) -> None:
    book = open_book("says", ["%load_ext cellmeter", '%monitor alert "process.threads > 0 for 1s"', SAYS])
    told = book.path.with_name("said")
    told.unlink(missing_ok=True)
    for cell in (0, 1):
        book.run(cell)
        book.wait(cell)
    book.run(2)
    line = book.page.locator(".cellmeter .cm-own")
    for word in ("loss 0.125", "steps/s", "tokens/s", "batch ", "▲ process.threads > 0 for 1s (process)"):
        line.get_by_text(word).wait_for(timeout=ACTION_MS)
    book.screenshot("said", 2)
    told.touch()
    book.wait(2)
    assert "cellmeter: alert: process.threads > 0 for 1s (process is at " in json.dumps(book.outputs(2))
    assert book.complaints() == []


DRAWN = """%%monitor training
import cellmeter, math, os, time
step = 0
while step < 40 or not os.path.exists('drawn'):
    with cellmeter.span('load batch'):
        time.sleep(0.02)
    with cellmeter.span('infer'):
        time.sleep(0.1)
    step += 1
    cellmeter.log(loss=2 / step + 0.05 * math.sin(step), learning_rate=1e-3 / step, tokens=40_000 + step)
print('steps:', step)
"""


def test_gpus_of_others_are_grey_and_count_nowhere(open_book: Callable[..., Book]) -> None:
    """As soon as the process lists tell, and in what stays."""
    runs = [f"%run {SYNTHETIC} {which}" for which in ("3 2 gpu 1", "8 2 gpu 3", "1 2 gpu 0")]
    book = open_book("gpus-of-others", ["%load_ext cellmeter", *runs])
    go = book.path.with_name("go")
    book.run(0)
    book.wait(0)
    for cell, (gpus, used, note) in enumerate(
        ((3, 1, "GPU 65 % mean"), (8, 3, "GPU 63 % mean"), (1, 0, "GPU not used")), 1
    ):
        book.command("notebook:clear-all-cell-outputs")
        go.unlink(missing_ok=True)
        book.run(cell)
        wait_for_points(book, 599)
        others = book.page.locator("[data-panel=gpu] .cm-line[title='not used by this kernel']")
        if gpus <= 3:
            assert others.count() == gpus - used
        book.screenshot(f"live-of-others-{gpus}", cell)
        go.touch()
        book.wait(cell)
        book.page.wait_for_selector(UPGRADED, timeout=ACTION_MS)
        book.screenshot(f"upgraded-of-others-{gpus}", cell)
        assert note in book.page.locator(".cellmeter .cm-sum").inner_text()
        (output,) = book.outputs(cell)
        assert note in output["data"]["text/plain"]
    assert book.complaints() == []


def test_what_the_code_says_is_drawn_on_the_time_axis(open_book: Callable[..., Book]) -> None:
    book = open_book("drawn", ["%load_ext cellmeter", DRAWN])
    go = book.path.with_name("drawn")
    go.unlink(missing_ok=True)
    book.run(0)
    book.wait(0)
    book.run(1)
    mine = book.page.locator(".cellmeter section[data-panel=own]")
    lanes = mine.locator(".cm-lane")
    lanes.nth(2).get_by_text(re.compile(r"^40,0\d\d · 40,0\d\d to 40,0\d\d$")).wait_for(timeout=ACTION_MS)
    assert lanes.count() == 3
    wait_for_points(book, 60)
    mine.locator(".cm-fig").hover(position={"x": 120, "y": 25})
    mine.locator(".cm-tip").get_by_text(re.compile(r"^infer 1\d\d ms$")).wait_for(timeout=ACTION_MS)
    book.screenshot("own-live", 1)
    book.page.mouse.move(0, 0)
    book.page.locator(".cellmeter button", has_text="Charts").click()
    pick = book.page.locator(".cellmeter button[data-group=own]")
    pick.click()
    mine.wait_for(state="detached", timeout=ACTION_MS)
    pick.click()
    mine.wait_for(timeout=ACTION_MS)
    go.touch()
    book.wait(1)
    book.page.wait_for_selector(UPGRADED, timeout=ACTION_MS)
    (steps,) = (o["text"] for o in book.outputs(1) if o["output_type"] == "stream")
    last = 40_000 + int("".join(steps).split()[1])
    lanes.nth(2).get_by_text(f"{last:,} · 40,001 to {last:,}").wait_for(timeout=ACTION_MS)
    book.screenshot("own-upgraded", 1)
    assert book.complaints() == []


MEASURED = """%%monitor
import os, time
until = time.monotonic() + 60
while not os.path.exists('measured') and time.monotonic() < until:
    time.sleep(0.05)
"""


def test_what_a_plugin_measures_is_a_group_of_its_own(open_book: Callable[..., Book], tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path), str(EXAMPLE)], check=True, timeout=120)
    book = open_book("measured", [f"import sys; sys.path.append({str(tmp_path)!r})\n%load_ext cellmeter", MEASURED])
    go = book.path.with_name("measured")
    go.unlink(missing_ok=True)
    book.run(0)
    book.wait(0)
    book.run(1)
    wait_for_points(book, 20)
    mine = book.page.locator(".cellmeter section[data-panel=plugins]")
    assert mine.count() == 0  # until it is asked for
    book.page.locator(".cellmeter button", has_text="Charts").click()
    book.page.locator(".cellmeter button[data-group=plugins]").click(timeout=ACTION_MS)
    lanes = mine.locator(".cm-lane")
    lanes.nth(1).get_by_text(re.compile(r"^[\d,]+/s · [\d,]+/s to [\d,]+/s$")).wait_for(timeout=ACTION_MS)
    assert lanes.count() == 2
    wait_for_points(book, 60)
    mine.locator(".cm-fig").hover(position={"x": 20, "y": 50})
    mine.locator(".cm-tip").get_by_text("switches.rate").wait_for(timeout=ACTION_MS)
    book.screenshot("plugins-live", 1)
    go.touch()
    book.wait(1)
    book.page.wait_for_selector(UPGRADED, timeout=ACTION_MS)
    lanes.nth(1).get_by_text(re.compile(r"^[\d,]+/s")).wait_for(timeout=ACTION_MS)
    book.screenshot("plugins-upgraded", 1)
    assert book.complaints() == []


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (500, True)])
def test_any_number_of_gpus_at_any_width(open_book: Callable[..., Book], width: int, dark: bool) -> None:
    numbers, shade = (0, 1, 2, 8), "dark" if dark else "light"
    runs = [f"%run {SYNTHETIC} {gpus}" for gpus in numbers]
    book = open_book(f"gpus-{width}-{shade}", ["%load_ext cellmeter", *runs], width=width, dark=dark)
    book.command("application:toggle-left-area")
    go = book.path.with_name("go")
    book.run(0)
    book.wait(0)
    for cell, gpus in enumerate(numbers, 1):
        book.command("notebook:clear-all-cell-outputs")
        go.unlink(missing_ok=True)
        book.run(cell)
        wait_for_points(book, 599)
        book.screenshot(f"live-{gpus}gpu-{width}-{shade}", cell)
        go.touch()
        book.wait(cell)
        book.page.wait_for_selector(UPGRADED, timeout=ACTION_MS)
        book.screenshot(f"upgraded-{gpus}gpu-{width}-{shade}", cell)
        expected = ["cpu", "memory"] + (["gpu", "gpu-memory"] if gpus else [])
        found = book.page.eval_on_selector_all(".cellmeter section", "all => all.map((one) => one.dataset.panel)")
        assert found == expected
    assert book.complaints() == []
