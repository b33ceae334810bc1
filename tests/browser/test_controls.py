"""The panel's controls in a real JupyterLab: they need no kernel, which is busy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser.driver import ACTION_MS, FRONTS, Book, wait_until

SYNTHETIC = Path(__file__).with_name("synthetic.py")
LOAD = "%load_ext cellmeter"
# Runs until there is a file `go`, then on for as long as the test holds it.
UNTIL_GO = """%%monitor {options}
import os, time
while not os.path.exists("go"):
    sum(range(50_000)); time.sleep(0.02)
os.remove("go")
"""
# The same, but then the cell holds the GIL for as long as nobody writes to the pipe: the kernel can send nothing.
HOLDING = """%%monitor holding
import ctypes, os, time
while not os.path.exists("go"):
    sum(range(50_000)); time.sleep(0.02)
os.mkfifo("held")
ctypes.PyDLL(None).open(b"held", os.O_RDONLY)
"""
SECTIONS = ".cellmeter section"


def pressed(book: Book, name: str) -> str | None:
    return book.page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed")


def press(book: Book, name: str) -> None:
    book.page.get_by_role("button", name=name, exact=True).click()


def charts(book: Book) -> list[str]:
    found: list[str] = book.page.eval_on_selector_all(SECTIONS, "all => all.map((one) => one.dataset.panel)")
    return found


def wait_for(book: Book, condition: str, arg: Any = None) -> None:
    """Waits for a condition on the panel's element ``el``."""
    probe = f"(arg) => {{ const el = document.querySelector('.cellmeter'); return el && ({condition}); }}"
    book.page.wait_for_function(probe, arg=arg, timeout=ACTION_MS)


def points(book: Book) -> int:
    return int(book.page.evaluate("() => document.querySelector('.cellmeter').dataset.points"))


def span(book: Book) -> tuple[float, float]:
    start, end = book.page.evaluate("() => document.querySelector('.cellmeter').dataset.span").split()
    return float(start), float(end)


DRAWN = """() => {
    const canvases = (node) => [...node.querySelectorAll("*")].flatMap((x) =>
        x.matches("canvas") ? [x] : x.shadowRoot ? canvases(x.shadowRoot) : []);
    const inked = (el) => el.width &&
        new Uint32Array(el.getContext("2d").getImageData(0, 0, el.width, el.height).data.buffer).some(Boolean);
    const panel = document.querySelector(".cellmeter [data-panel=KEY]");
    return panel && canvases(panel).some(inked); }"""


def drawn_with(book: Book, key: str) -> None:
    """Waits until a chart has its canvas, and something on it."""
    book.page.wait_for_function(DRAWN.replace("KEY", key), timeout=ACTION_MS)


@pytest.fixture
def running(open_book: Callable[..., Book]) -> Callable[..., Book]:
    """A notebook whose second cell runs until ``finish``."""

    def start(name: str, options: str = "training", cell: str = UNTIL_GO, **look: Any) -> Book:
        book = open_book(name, [LOAD, cell.replace("{options}", options), cell.replace("{options}", "next")], **look)
        for file in ("go", "held"):
            book.path.with_name(file).unlink(missing_ok=True)
        book.run(0)
        book.wait(0)
        book.run(1)
        wait_for(book, "el.dataset.drawn && +el.dataset.points > 3")
        return book

    return start


def finish(book: Book, cell: int = 1) -> None:
    book.path.with_name("go").touch()
    book.wait(cell)
    book.page.wait_for_selector(".cellmeter-still[data-upgraded=done]", timeout=ACTION_MS)


# Names of those in the panel's head that lie over each other, or stick out of it.
IN_THE_WAY = """() => {
    const head = document.querySelector(".cm-head"), room = head.getBoundingClientRect();
    const all = [...head.querySelectorAll(".cm-state, .cm-title, .cm-time, button")].filter((el) => el.offsetWidth);
    const boxes = all.map((el) => ({ name: el.className + el.textContent, box: el.getBoundingClientRect() }));
    const over = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
    const out = boxes.filter(({ box }) => box.left < room.left - 1 || box.right > room.right + 1);
    return [...out, ...boxes.filter((a) => boxes.some((b) => a !== b && over(a.box, b.box)))].map(({ name }) => name); }"""


WIDTHS = (600, 700, 760, 1000)  # the file browser leaves 230 to 630 of it


def in_the_way(book: Book, width: int) -> list[str]:
    """At that width of the page, once the panel has taken it up."""
    panel = "document.querySelector('.cellmeter').offsetWidth"
    other = book.page.viewport_size["width"] != width and book.page.evaluate(f"() => {panel}")
    book.page.set_viewport_size({"width": width, "height": 900})
    wait_for(book, "el.offsetWidth !== arg", other)
    found: list[str] = book.page.evaluate(IN_THE_WAY)
    return found


def test_nothing_lies_over_anything_in_the_head_of_a_narrow_panel(running: Callable[..., Book]) -> None:
    book = running("narrow", options="a rather long label", width=WIDTHS[0])
    for width in WIDTHS:
        assert in_the_way(book, width) == []
        book.screenshot(f"narrow-{width}", 1)
    finish(book)
    for width in WIDTHS:
        assert in_the_way(book, width) == []


@pytest.mark.parametrize("front", FRONTS)
def test_all_controls_work_while_the_cell_holds_the_gil(running: Callable[..., Book], front: str) -> None:
    book = running(f"holding-{front}", cell=HOLDING, front=front)
    held = book.path.with_name("held")
    book.path.with_name("go").touch()
    wait_until(held.exists, "the cell to hold the GIL")
    press(book, "Charts")
    press(book, "Disk")
    press(book, "Cores")
    press(book, "Memory")
    press(book, "30 s")
    press(book, "Pause the view")
    drawn_with(book, "io")
    drawn_with(book, "cores")
    state, shown = book.page.locator(".cm-state").inner_text(), charts(book)
    assert shown == ["cpu", "cores", "io"]
    assert state.endswith(", view paused")
    assert span(book) == (0, 30)
    book.screenshot(f"controls-gil-held-{front}", 1)
    os.close(os.open(held, os.O_WRONLY))  # lets it go
    book.wait(1)
    assert book.complaints() == []


INKS = """() => [...document.querySelectorAll(".cellmeter .cm-line:not([hidden])")]
    .map((one) => one.style.getPropertyValue("--ink"))"""


@pytest.mark.parametrize("front", FRONTS)
def test_the_chart_and_its_legend_follow_the_theme_while_the_cell_runs(
    running: Callable[..., Book], front: str
) -> None:
    book = running(f"theme-{front}", front=front)
    light = book.page.evaluate(INKS)
    assert book.page.locator(".cellmeter").get_attribute("data-theme") == "false"
    before = book.page.locator("[data-panel=cpu]").screenshot()
    book.command("apputils:change-theme", {"theme": "JupyterLab Dark"})
    wait_for(book, "el.dataset.theme === 'true'")
    dark = book.page.evaluate(INKS)
    assert len(light) == len(dark) > 1
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert book.page.locator("[data-panel=cpu]").screenshot() != before
    book.screenshot(f"theme-{front}")
    finish(book)
    assert book.complaints() == []


def test_a_paused_view_stands_still_and_recording_goes_on(running: Callable[..., Book]) -> None:
    book = running("paused")
    press(book, "Pause the view")
    assert pressed(book, "Resume the view") == "true"
    still = points(book)
    for _ in range(2):
        time = book.page.locator(".cm-time").inner_text()
        wait_for(book, "el.querySelector('.cm-time').textContent !== arg", time)
    assert points(book) == still, "of two and more updates none was drawn"
    press(book, "Resume the view")
    wait_for(book, "+el.dataset.points > arg + 10", still)
    assert book.page.locator(".cm-state").inner_text() == "Recording"
    finish(book)


def test_the_keyboard_reaches_every_button(running: Callable[..., Book]) -> None:
    book = running("keyboard")
    book.page.get_by_role("button", name="Pause the view").focus()
    book.page.keyboard.press("Space")
    assert pressed(book, "Resume the view") == "true"
    for name in ("30 s", "5 min", "All", "Charts"):
        book.page.keyboard.press("Tab")
        focused = book.page.evaluate("() => document.activeElement.textContent")
        assert focused == name
    outline = book.page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    book.page.keyboard.press("Enter")
    book.page.keyboard.press("Tab")
    book.page.keyboard.press("Space")
    assert charts(book) == ["memory"]
    assert book.page.evaluate("() => document.activeElement.dataset.group") == "cpu", "focus stays"
    assert outline == "solid"
    assert book.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.mode") == "command"
    finish(book)


def test_the_choice_lasts_for_the_next_panel_but_show_goes_before_it(running: Callable[..., Book]) -> None:
    book = running("remembered")
    press(book, "Charts")
    press(book, "Network")
    press(book, "30 s")
    finish(book)
    assert charts(book) == ["cpu", "memory", "net"]
    book.command("notebook:clear-all-cell-outputs")
    book.run(2)
    wait_for(book, "el.dataset.drawn && el.querySelector('section')")
    assert charts(book) == ["cpu", "memory", "net"]
    assert span(book)[1] - span(book)[0] == 30
    finish(book, 2)
    book.page.evaluate(
        "(source) => window.jupyterapp.shell.currentWidget.content.widgets[2].model.sharedModel.setSource(source)",
        UNTIL_GO.replace("{options}", "asked --show io"),
    )
    book.command("notebook:clear-all-cell-outputs")
    book.run(2)
    wait_for(book, "el.dataset.drawn && el.querySelector('section')")
    assert charts(book) == ["io"]
    finish(book, 2)
    assert book.complaints() == []


def test_the_chart_goes_on_in_the_static_output_with_all_it_has(running: Callable[..., Book]) -> None:
    book = running("goes-on")
    wait_for(book, "+el.dataset.points > 25")
    book.page.evaluate("() => { document.querySelector('.cellmeter').dataset.mark = 'same'; }")
    # Whatever the page paints between the live chart and the one that stays would show up here.
    book.page.evaluate("""() => { window.gaps = []; const look = () => {
        const el = document.querySelector('.cellmeter[data-mark]');
        const picture = document.querySelector('.cellmeter-still img');
        if (!el?.offsetHeight || picture?.offsetHeight) window.gaps.push(performance.now());
        window.looking = requestAnimationFrame(look); }; look(); }""")
    finish(book)
    assert book.page.evaluate("() => { cancelAnimationFrame(window.looking); return window.gaps.length; }") == 0
    assert book.page.locator(".cellmeter-still .cellmeter").get_attribute("data-mark") == "same"
    assert book.page.locator(".cm-state").inner_text() == "Done"
    press(book, "Charts")
    press(book, "Cores")
    press(book, "Disk")
    drawn_with(book, "io")
    drawn_with(book, "cores")
    assert charts(book) == ["cpu", "cores", "memory", "io"]

    book.reload()
    book.page.wait_for_selector(".cellmeter-still[data-upgraded=done]", timeout=ACTION_MS)
    drawn_with(book, "cpu")
    assert charts(book) == ["cpu", "memory"]
    press(book, "Charts")
    press(book, "Network")
    drawn_with(book, "net")
    cores = book.page.get_by_role("button", name="Cores", exact=True)
    assert cores.is_disabled()
    assert "not kept" in cores.get_attribute("title")
    assert book.page.get_by_role("button", name="Disk", exact=True).is_enabled()
    assert book.complaints() == []


def test_a_drag_zooms_all_charts_and_a_button_goes_back(running: Callable[..., Book]) -> None:
    book = running("zoom")
    finish(book)
    whole = span(book)
    box = book.page.locator("[data-panel=cpu] .cm-fig").bounding_box()
    book.page.mouse.move(box["x"] + 100, box["y"] + 40)
    other = book.page.locator("[data-panel=memory] .cm-cursor")
    other.wait_for(state="attached")
    book.page.mouse.down()
    book.page.mouse.move(box["x"] + 200, box["y"] + 40, steps=5)
    book.page.mouse.up()
    wait_for(book, "el.dataset.span !== arg", " ".join(f"{x:g}" for x in whole))
    start, end = span(book)
    assert whole[0] < start < end < whole[1]
    labels = book.page.locator("[data-panel=memory] .cm-fig").get_attribute("aria-label")
    assert labels.startswith("Memory over time: now ")
    press(book, "Reset zoom")
    assert span(book) == whole
    assert not book.page.get_by_role("button", name="Reset zoom").is_visible()
    assert book.complaints() == []


def test_gpus_that_are_asked_for_and_not_there_are_said_to_be_missing(running: Callable[..., Book]) -> None:
    book = running("no-gpu", options="training --show gpu")
    assert book.page.locator(".cm-missing").inner_text() == "GPU: no GPU on this machine"
    book.screenshot("no-gpu", 1)
    finish(book)
    assert book.outputs(1)[0]["data"]["text/plain"].endswith("GPU: no GPU on this machine")
    press(book, "Charts")
    gpu = book.page.get_by_role("button", name="GPU", exact=True)
    assert gpu.is_disabled()


def test_cores_can_be_read_at_2_and_at_192(open_book: Callable[..., Book]) -> None:
    book = open_book("cores", [LOAD, *(f"%run {SYNTHETIC} 1 {cores}" for cores in (2, 192))], width=1400)
    book.command("application:toggle-left-area")
    book.run(0)
    book.wait(0)
    for cell, cores in enumerate((2, 192), 1):
        book.path.with_name("go").unlink(missing_ok=True)
        book.command("notebook:clear-all-cell-outputs")
        book.run(cell)
        wait_for(book, "+el.dataset.points > 599")
        if cell == 1:  # the next panel has them, too
            press(book, "Charts")
            press(book, "Cores")
            press(book, "Power")
        for width, dark in ((1400, False), (1400, True), (500, False)):
            book.page.set_viewport_size({"width": width, "height": 900})
            book.command("apputils:change-theme", {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"})
            wait_for(book, "el.dataset.theme === arg", str(dark).lower())
            drawn_with(book, "cores")
            drawn_with(book, "power")
            figure = book.page.locator("[data-panel=cores] .cm-fig")
            figure.hover(position={"x": 120, "y": 20})
            said = book.page.locator("[data-panel=cores] .cm-peak")
            said.get_by_text(f"of {cores} more than half busy").wait_for()
            assert said.inner_text().startswith("cpu")
            assert 40 < figure.bounding_box()["height"] < 240
            book.screenshot(f"cores-{cores}-{width}-{'dark' if dark else 'light'}", cell)
            book.page.mouse.move(0, 0)
        finish(book, cell)
    assert book.complaints() == []


def test_an_ended_panel_has_one_peak(running: Callable[..., Book]) -> None:
    """The exact one, which no sample has seen: in the header, over the chart, and in what was kept."""
    book = running("one-peak", cell=UNTIL_GO + 'spike = len(b"x" * (300 << 20))\n')
    finish(book)
    caption = book.page.locator(".cellmeter [data-panel=memory] .cm-peak").inner_text()
    header = book.page.locator(".cellmeter .cm-sum").inner_text()
    kept = book.page.locator(".cellmeter-still > div").first.text_content() or ""
    assert f"memory {caption} (" in header.replace("\n", " ")
    assert f"memory {caption} (" in kept
    label = book.page.locator(".cellmeter [data-panel=memory] .cm-fig").get_attribute("aria-label") or ""
    assert caption in label
