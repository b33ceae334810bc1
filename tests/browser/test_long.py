"""A panel that has been open for a day: live.js alone in a page, fed as the kernel feeds it."""

from __future__ import annotations

from typing import Any

from bench.page import PanelPage

DAY = 24 * 3600.0
MIB = 2**20
# Where a chart's line is at its highest, in the pixels of its canvas: the share of the plot's width.
HIGHEST = """(key) => {
    const canvases = (node) => [...node.querySelectorAll("*")].flatMap((x) =>
        x.matches("canvas") ? [x] : x.shadowRoot ? canvases(x.shadowRoot) : []);
    const canvas = canvases(document.querySelector(`[data-panel=${key}]`))[0];
    const { width, height } = canvas, ratio = width / canvas.clientWidth;
    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    const [left, right] = [60 * ratio, width - 11 * ratio];
    for (let y = Math.round(5 * ratio); y < height; y++) for (let x = Math.round(left); x < right; x++) {
        const [r, g, b, a] = pixels.slice(4 * (y * width + x), 4 * (y * width + x) + 4);
        if (a > 128 && b > r + 60) return (x - left) / (right - left);
    }
    return null; }"""


def test_a_day_with_8_gpus_stays_small_and_quick_and_its_spike_visible(chromium: Any) -> None:
    page = PanelPage(chromium, gpus=8, cores=192)
    spike = int(0.4 * DAY * 10)
    page.feed(3600)
    page.drawn()
    early, early_ms = page.used(), page.busy_ms(10)
    page.feed(DAY - 3600, spike)
    page.drawn()
    late, late_ms = page.used(), page.busy_ms(10)
    where = page.page.evaluate(HIGHEST, "cpu")
    caption = page.page.locator("[data-panel=cpu] .cm-peak").inner_text()
    page.page.screenshot(path="build/screenshots/long-24h.png")
    page.close()
    assert late.heap + late.buffers - early.heap - early.buffers < 20 * MIB
    print(f"work an update: {early_ms:.0f} ms after an hour, {late_ms:.0f} after a day")  # with pytest -s
    assert late_ms < 2 * early_ms, "in one run, on one machine"
    assert caption.startswith("peak 9"), caption
    assert where is not None
    shown = 24.5 / 24  # the axis ends at the next half hour
    assert abs(where * shown - 0.4) < 0.01, "drawn where it was, to a few pixels"
