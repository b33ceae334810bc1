"""How quickly a reading is on the screen, and what 30 panels cost: a real JupyterLab in Chromium, beside other live plots."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from bench.effort import Effort
from bench.lab import FRAMES, IDLE, JUMPER, JUPYTER_BOKEH, LOOP, OURS, Plot, Watched, lab, watched
from bench.peers import RIVALS, cannot_run, install
from bench.processes import scratch
from bench.table import Figure, Line, Section, alone, figure, percentile
from tests.browser.driver import Server, browsing

MOST_LATENCY_MS = 400.0
MOST_FIRST_MS = 1000.0
MOST_LATER_MS = 200.0
MOST_CELLS_MIB = 60.0
MOST_SAVED_BYTES = 15_000.0
SETTLE_SECONDS = 2.0
KINDS = {"idle": IDLE, "Python loop": LOOP}
_JUMPER_NOTE = (
    "JUmPER: %perfmonitor_plot --live 0.25, samples by its thread at 10 Hz. Its page loads plotly.js from a CDN; here it "
    "gets the file of its Python package at once. Each live plot goes on until its monitor stops: later cells have several."
)
_BOKEH_NOTE = (
    "jupyter_bokeh: two lines of Bokeh, and a thread that reads CPU and memory by psutil at 10 Hz and streams them to the "
    "page by twos, five times a second, as one would write it; BokehJS by output_notebook(INLINE)."
)
_CLOCK_NOTE = (
    "From a reading's own monotonic time until the end of the frame that has it, readings before the first frame left out; "
    "a frame's end is known to some 20 ms at most, on the late side."
)


@dataclass
class Seen:
    """What a page has shown of one live plot; milliseconds and bytes."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    latency: dict[str, list[float]] = field(default_factory=dict)
    message: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)


def run(effort: Effort) -> Iterator[Section]:
    """Latency, first charts, bytes; then thirty panels in one notebook."""
    plots, notes = _plots(effort)
    with scratch() as folder, lab(folder) as server, browsing() as browser:
        seen: dict[str, Seen] = {}
        for plot in plots:
            try:
                seen[plot.name] = _see(browser, server, plot, effort)
            except RuntimeError as error:
                if plot is OURS:
                    raise
                notes.append(f"{plot.name} is not in the table: {error}")
        yield from _sections(seen, tuple(notes))
        yield _many(browser, server, effort.choose(short=1, usual=30, full=30), effort)


def _plots(effort: Effort) -> tuple[list[Plot], list[str]]:
    if effort is Effort.SHORT:
        return [OURS], []
    install()
    problem = cannot_run(RIVALS[0])
    if problem:
        return [OURS], [f"JUmPER and jupyter_bokeh were not run: {problem}"]
    return [OURS, JUMPER, JUPYTER_BOKEH], [_JUMPER_NOTE, _BOKEH_NOTE]


def _see(browser: Any, server: Server, plot: Plot, effort: Effort) -> Seen:
    seen = Seen()
    pages, later = effort.choose(short=1, usual=2, full=7), effort.choose(short=1, usual=3, full=5)
    short = plot.cell.replace("{work}", IDLE.format(seconds=1.5))
    for number in range(pages):
        with watched(browser, server, plot, f"first-{plot.name}-{number}", [plot.load, *[short] * (later + 1)]) as one:
            _load(one, effort)
            for index in range(1, later + 2):
                _scroll_to(one, index)  # what is not on the screen is not drawn
                one.run(index)
                (seen.first if index == 1 else seen.later).append(one.first_ms())
                one.book.wait(index)
    seconds = effort.choose(short=2.0, usual=15.0, full=60.0)
    for kind, work in list(KINDS.items())[: effort.choose(short=1, usual=2, full=2)]:
        _follow(browser, server, plot, kind, work.format(seconds=seconds), seen, effort)
    return seen


def _load(one: Watched, effort: Effort) -> None:
    one.book.run(0)
    one.book.wait(0)
    time.sleep(effort.choose(short=0.0, usual=SETTLE_SECONDS, full=SETTLE_SECONDS))


def _follow(browser: Any, server: Server, plot: Plot, kind: str, work: str, seen: Seen, effort: Effort) -> None:
    """A long cell in a fresh kernel and page."""
    cells = [plot.load, plot.cell.replace("{work}", work), plot.times]
    with watched(browser, server, plot, f"{kind.split()[-1]}-{plot.name}", cells) as one:
        _load(one, effort)
        before = one.saved_bytes()
        one.received.clear()
        began = time.monotonic()
        one.run(1)
        seen.first.append(one.first_ms())
        one.book.wait(1)
        seconds, received, drawn = time.monotonic() - began, list(one.received), one.drawn()
        if plot.times:
            one.book.run(2)
            one.book.wait(2)
        times = one.sample_times(2)
        one.book.page.wait_for_timeout(500)
        seen.latency[kind] = latencies(times, drawn)
        seen.per_second.append(sum(received) / seconds)
        seen.message.append(sum(received) / len(received))
        seen.saved.append(one.saved_bytes() - before)


def latencies(readings: Sequence[tuple[float, float]], drawn: Sequence[tuple[float, float]]) -> list[float]:
    """Milliseconds from each reading (its time, its number) to the first frame (newest number, its time) that has it.

    Readings from before the first frame, and those that no frame has, are left out. Raises RuntimeError: there is none else.
    """
    newest = list(accumulate((value for value, _ in drawn), max))
    found, frame = [], 0
    for taken, number in readings:
        while frame < len(drawn) and newest[frame] < number - 1e-6:
            frame += 1
        if frame == len(drawn):
            break
        if taken > drawn[0][1]:
            found.append((drawn[frame][1] - taken) * 1000)
    if not found:
        raise RuntimeError("no reading was drawn after the first frame")
    return found


def _sections(seen: dict[str, Seen], notes: tuple[str, ...]) -> Iterator[Section]:
    ours = seen[OURS.name]
    peers = {name: one for name, one in seen.items() if name != OURS.name}
    lines: list[Line] = []
    for kind, values in ours.latency.items():
        for percent in (50, 95, 100):
            name = "worst" if percent == 100 else f"p{percent}"
            theirs = {peer: percentile(one.latency[kind], percent) for peer, one in peers.items()}
            most = MOST_LATENCY_MS if percent == 95 else None
            lines += _beside(f"{kind}: {name}", "ms", figure([percentile(values, percent)]), theirs, most)
    yield Section("live: from a reading to the screen, 10 Hz", tuple(lines), (_CLOCK_NOTE, *notes))
    lines = []
    for name, most in (("first", MOST_FIRST_MS), ("later", MOST_LATER_MS)):
        theirs = {peer: figure(getattr(one, name)).value for peer, one in peers.items()}
        lines += _beside(f"{name} cell: its chart is there", "ms", figure(getattr(ours, name)), theirs, most)
    for what, unit, key, most in (
        ("bytes of a message of the widget", "B", "message", None),
        ("bytes a second", "B", "per_second", None),
        ("a cell in the saved notebook", "B", "saved", MOST_SAVED_BYTES),
    ):
        theirs = {peer: figure(getattr(one, key)).value for peer, one in peers.items()}
        lines += _beside(what, unit, figure(getattr(ours, key)), theirs, most)
    yield Section(
        "live: first charts, and what is sent and kept",
        tuple(lines),
        (
            "From the page's order to run the cell until the end of the first frame with a reading; `first`: of a fresh "
            "kernel in a fresh page.",
            "Bytes of widgets' messages as the page's websocket gets them, with Jupyter's envelope.",
        ),
    )


def _beside(metric: str, unit: str, ours: Figure, theirs: dict[str, float], most: float | None) -> Iterator[Line]:
    """A line for each peer, the target in the first; one without a peer where there is none."""
    target = None if most is None else f"≤ {most:g} {unit}"
    met = None if most is None else ours.value <= most
    if not theirs:
        yield Line(metric, unit, ours, target=target, met=met)
    for number, (peer, value) in enumerate(theirs.items()):
        own = (None, None) if number else (target, met)
        yield Line(metric, unit, ours, peer, Figure(value), Figure(ours.value / value), *own)


def _many(browser: Any, server: Server, cells: int, effort: Effort) -> Section:
    """The page of a notebook with many panels, beside one whose cells are not monitored."""
    frames_ms = effort.choose(short=500, usual=8000, full=20_000)
    used: dict[str, float] = {}
    frames: dict[str, list[float]] = {}
    seconds = [frames_ms / 1000 + 3, *[0.6] * (cells - 1), 3600]
    for name, cell in (("panels", OURS.cell), ("none", "{work}")):
        sources = [cell.replace("{work}", IDLE.format(seconds=each)) for each in seconds]
        with watched(browser, server, OURS, f"many-{name}", [OURS.load, *sources]) as one:
            _load(one, effort)
            before = one.used()
            for index in range(1, cells + 2):
                _scroll_to(one, index)
                one.run(index)
                if name == "panels":
                    one.first_ms()
                if index in (1, cells + 1):
                    frames[f"{name} {index}"] = one.book.page.evaluate(FRAMES, frames_ms)
                if index <= cells:
                    one.book.wait(index)
            after = one.used()
            used[name] = (after.heap + after.buffers - before.heap - before.buffers) / 2**20
            one.book.command("notebook:interrupt-kernel")
            one.book.wait(cells + 1)
    lines = [
        Line("heap and buffers: more than before", "MiB", Figure(used["panels"]), "no panels", Figure(used["none"])),
        alone("  of it by panels", "MiB", [used["panels"] - used["none"]], MOST_CELLS_MIB),
    ]
    for what, index in (("the first panel live", 1), (f"after {cells}, one live", cells + 1)):
        for percent in (50, 95):
            ours, plain = (percentile(frames[f"{name} {index}"], percent) for name in ("panels", "none"))
            lines.append(Line(f"frame, {what}: p{percent}", "ms", Figure(ours), "no panels", Figure(plain)))
    note = "Each cell was scrolled to and its chart drawn; frame: from one to the next. Chromium without a GPU."
    return Section(f"live: a notebook with {cells} panels", tuple(lines), (note,))


def _scroll_to(one: Watched, index: int) -> None:
    one.book.page.evaluate(
        "(index) => window.jupyterapp.shell.currentWidget.content.scrollToItem(index, 'center').then(() => null)", index
    )
