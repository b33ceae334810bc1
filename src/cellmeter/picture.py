"""A cell's charts as a picture: what stays in the notebook where no script runs.

Palette colours with an alpha of their own, so that it can be read on white and on dark ground. A line is drawn as the band
between its least and its greatest reading in each step of a few pixels: every spike is there, and what is jittery compresses.
It is WebP, which every browser shows, at up to 1.5 times the size it is shown in, and less where much is drawn.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter.charts import (
    BESIDE,
    Frame,
    Line,
    PanelSpec,
    axis_of,
    caption,
    hidden_peak,
    lane_values,
    scale_top,
    time_ticks,
    worth_drawing,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

WIDTH = 760  # CSS pixels
# Image pixels per CSS pixel, and in a step of a line: the first at which the picture is no larger than it may be.
FINENESS = ((1.5, 3), (1.25, 3), (1.0, 4), (1.0, 6))
MOST_BYTES = 7_500
FILE_SCALE, FILE_COLUMNS = 2.0, 120
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 54, 8, 20, 18, 10
_TEXT_LEVELS = 3
_TEXT = (118, 124, 131)  # 4:1 on white and on JupyterLab's dark ground
_FILE_TEXT = (51, 56, 62)
_GRID = (128, 128, 128)


class Picture(NamedTuple):
    """The picture and the size it is shown in, CSS pixels. WebP, or PNG where Pillow was built without it."""

    image: bytes
    type: str
    width: int
    height: int


def draw(frame: Frame, seconds: float) -> Picture:
    """Draws the panels of a cell that ran for ``seconds``; ``frame.time`` begins with the cell."""
    likely = 0 if sum(len(spec.lines) for spec in frame.panels) < 12 else 1
    for scale, step in FINENESS[likely:]:
        drawn = _draw(frame, seconds, scale, step)
        if len(drawn.image) <= MOST_BYTES:
            break
    return drawn


def as_png(frame: Frame, seconds: float, text: str) -> bytes:
    """The panels as a file for other documents: on white, two image pixels a CSS pixel, with ``text`` above them."""
    from PIL import Image, ImageDraw

    drawn = Image.open(io.BytesIO(_draw(frame, seconds, FILE_SCALE, 2).image)).convert("RGBA")
    lines, margin = textwrap.wrap(text, FILE_COLUMNS), int(FILE_SCALE * _BETWEEN)
    top = margin + int(FILE_SCALE * 16) * len(lines)
    page = Image.new("RGB", (drawn.width + 2 * margin, top + drawn.height + 2 * margin), "white")
    ImageDraw.Draw(page).multiline_text((margin, margin), "\n".join(lines), fill=_FILE_TEXT, font=_font(FILE_SCALE))
    page.paste(drawn, (margin, top + margin), drawn)
    file = io.BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw(frame: Frame, seconds: float, scale: float, step: int) -> Picture:
    per_row = max(1, len(frame.panels)) if len(frame.panels) <= 3 else 2
    rows = [frame.panels[at : at + per_row] for at in range(0, len(frame.panels), per_row)]
    heights = [max(spec.height for spec in row) + _TOP - 4 for row in rows]
    height = sum(heights) + _BETWEEN * (len(rows) - 1) if rows else 1
    canvas = Canvas(WIDTH, height, scale, step)
    y = 0.0
    for row, row_height in zip(rows, heights, strict=True):
        width = (WIDTH - _BETWEEN * (per_row - 1)) / per_row
        for index, spec in enumerate(row):
            _panel(canvas, frame, spec, seconds, (index * (width + _BETWEEN), y, width, row_height))
        y += row_height + _BETWEEN
    return canvas.picture()


def _panel(
    canvas: Canvas, frame: Frame, spec: PanelSpec, seconds: float, box: tuple[float, float, float, float]
) -> None:
    import numpy as np

    x, y, width, height = box
    time, values = frame.time, frame.of(spec)
    peaks = [float(p) for p in np.fmax.reduce(values)] if len(values) else [math.nan] * len(spec.lines)
    top = scale_top(spec, peaks)
    plot = _Plot(x + _LEFT, y + _TOP, width - _LEFT - _RIGHT, height - _TOP - _BOTTOM, max(seconds, 1e-3), top)
    _axes(canvas, plot, spec, top)
    canvas.text(x + 4, y + 2, spec.title, bold=True)
    said = caption(spec, peaks)
    canvas.text(x + width - _RIGHT, y + 2, said, anchor="ra")
    shown = worth_drawing(spec, peaks, top)
    right = x + width - _RIGHT - canvas.text_width(said)
    _legend(canvas, x + 14 + canvas.text_width(spec.title), right, y + 2, spec, shown)
    drawn = lane_values(spec, values) if spec.lanes else values
    mains = sum(line.role == "main" for line in spec.lines)
    steps = {i: canvas.steps(plot.x_at(time), plot.y_at(drawn[:, i])) for i in range(len(spec.lines)) if shown[i]}
    for index in steps:  # before all lines, as nothing shows through what is filled
        line, floor = spec.lines[index], len(spec.lines) - 1 - index if spec.lanes else 0
        if line.role == "main" and (spec.lanes or mains == 1):
            canvas.area(steps[index], float(plot.y_at(floor)), line)
    for index in reversed(steps):
        canvas.line(steps[index], spec.lines[index])
    if spec.limit and not spec.lanes and spec.unit != "%" and spec.limit <= top:
        canvas.dashes(plot.left, float(plot.y_at(spec.limit)), plot.left + plot.width)
    if exact := hidden_peak(spec, peaks):
        canvas.dashes(plot.left, float(plot.y_at(exact)), plot.left + plot.width, spec.lines[0])


def _axes(canvas: Canvas, plot: _Plot, spec: PanelSpec, top: float) -> None:
    for tick, label in zip(*axis_of(spec, top), strict=True):
        if not spec.lanes:
            canvas.rule(plot.left, float(plot.y_at(tick)), plot.left + plot.width)
        canvas.text(plot.left - 6, float(plot.y_at(tick)), label, anchor="rm")
    most = max(2, int(plot.width // 60))
    for tick, label in time_ticks(0, plot.seconds, most):
        x = plot.left + plot.width * tick / plot.seconds
        room = canvas.text_width(label) / 2
        x = min(max(x, plot.left), plot.left + plot.width + _RIGHT - room)
        canvas.text(x, plot.top + plot.height + 4, label, anchor="ma")


def _legend(canvas: Canvas, x: float, right: float, y: float, spec: PanelSpec, shown: Sequence[bool]) -> None:
    """What the colours mean, as far as there is room."""
    lines = [line for line, there in zip(spec.lines, shown, strict=True) if there]
    if len(lines) < 2 or spec.lanes:
        return
    for line in lines:
        end = x + 23 + canvas.text_width(line.label)
        if end > right:
            return
        canvas.swatch(x, y + 7, line)
        canvas.text(x + 13, y, line.label)
        x = end


class _Plot(NamedTuple):
    left: float
    top: float
    width: float
    height: float
    seconds: float
    scale: float

    def x_at(self, time: Floats) -> Floats:
        across: Floats = self.left + self.width * (time / self.seconds).clip(0, 1)
        return across

    def y_at(self, value: Any) -> Any:
        import numpy as np

        return self.top + self.height * (1 - np.minimum(value / self.scale, 1.0))


class Step(NamedTuple):
    """What a line does within a few pixels' width. Image pixels, all edges included."""

    left: int
    high: int
    right: int
    low: int


class Canvas:
    """A palette image drawn in CSS pixels. Colours are entered as they come: 16 of them make 4 bits a pixel."""

    def __init__(self, width: int, height: int, scale: float, step: int) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height, self._scale, self._step = width, height, scale, step
        self._image = Image.new("P", (int(width * scale), int(height * scale)), 0)
        self._draw = ImageDraw.Draw(self._image)
        self._letters = Image.new("L", self._image.size, 0)
        self._pen = ImageDraw.Draw(self._letters)
        self._colours: dict[tuple[int, int, int, int], int] = {(0, 0, 0, 0): 0}
        for level in range(1, _TEXT_LEVELS + 1):
            self._colour((*_TEXT, 255 * level // _TEXT_LEVELS))

    def _colour(self, rgba: tuple[int, int, int, int]) -> int:
        return self._colours.setdefault(rgba, len(self._colours))

    def _ink(self, line: Line, alpha: int) -> int:
        """Between the inks for light and dark ground, as it stands on either."""
        pairs = zip(_rgb(line.ink.light), _rgb(line.ink.dark), strict=True)
        red, green, blue = (int(0.55 * light + 0.45 * dark) for light, dark in pairs)
        return self._colour((red, green, blue, alpha))

    def _scaled(self, x: float, y: float) -> tuple[int, int]:
        return round(x * self._scale), round(y * self._scale)

    def steps(self, x: Floats, y: Floats) -> list[Step]:
        """The steps of a line through points (CSS pixels, left to right). Neighbours touch, but not across a gap (NaN)."""
        import numpy as np

        x, y = self._on_the_way(x, y)
        there = ~np.isnan(y)
        if not there.any():
            return []
        column = (np.round(x * self._scale) // self._step).astype(np.int64)
        gaps = np.cumsum(~there)[there]
        column, down = column[there], np.round(y[there] * self._scale).astype(np.int64)
        starts = np.flatnonzero(np.diff(column, prepend=-1) | np.diff(gaps, prepend=-1))
        least, most = np.minimum.reduceat(down, starts), np.maximum.reduceat(down, starts)
        joined = np.diff(gaps[starts], prepend=-1) == 0
        high = np.where(joined, np.minimum(least, np.roll(most, 1)), least)
        low = np.where(joined, np.maximum(most, np.roll(least, 1)), most)
        left = column[starts] * self._step
        after = np.append(left[1:], left[-1] + self._step)
        right = np.where(np.append(joined[1:], False), np.maximum(after, left + 1), left + self._step) - 1
        return [Step(*step) for step in np.column_stack([left, high, right, low]).tolist()]

    def _on_the_way(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """With a point in each step that has none: few readings make a line from one to the next, and not stairs."""
        import numpy as np

        if len(x) < 2:
            return x, y
        width = self._step / self._scale
        columns = np.arange(np.ceil(x[0] / width), np.floor(x[-1] / width) + 1)
        columns = columns[~np.isin(columns, np.round(x * self._scale) // self._step)]
        between = columns * width
        passed = np.interp(between, x, y)  # NaN beside a NaN
        known = ~np.isnan(passed)
        together, heights = np.append(x, between[known]), np.append(y, passed[known])
        order = together.argsort(kind="stable")
        return together[order], heights[order]

    def area(self, steps: Sequence[Step], floor: float, line: Line) -> None:
        """Fills between a line and a floor."""
        bottom, ink = self._scaled(0, floor)[1], self._ink(line, 44)
        for left, high, right, _ in steps:
            if high <= bottom:
                self._draw.rectangle((left, high, right, bottom), fill=ink)

    def line(self, steps: Sequence[Step], line: Line) -> None:
        """Draws a line."""
        ink, more = self._ink(line, 255), 0 if line.role in BESIDE else 1
        for left, high, right, low in steps:
            self._draw.rectangle((left, high - more, right, low), fill=ink)

    def rule(self, left: float, y: float, right: float) -> None:
        """A grid line."""
        ends = [self._scaled(left, y), self._scaled(right, y)]
        self._draw.line(ends, fill=self._colour((*_GRID, 64)))

    def dashes(self, left: float, y: float, right: float, line: Line | None = None) -> None:
        """A limit, or what a line reached between two readings."""
        colour = self._ink(line, 255) if line else self._colour((*_rgb("#D9622B"), 255))
        for at in range(int(left), int(right), 6):
            ends = [self._scaled(at, y), self._scaled(min(at + 3, right), y)]
            self._draw.line(ends, fill=colour, width=2)

    def swatch(self, x: float, y: float, line: Line) -> None:
        """A legend's dash of colour."""
        self._draw.rectangle((*self._scaled(x, y - 1), *self._scaled(x + 9, y + 1)), fill=self._ink(line, 255))

    def text(self, x: float, y: float, text: str, *, anchor: str = "la", bold: bool = False) -> None:
        """Grey text; ``anchor`` as in Pillow."""
        stroke = 0.6 if bold else 0
        font = _font(self._scale)
        self._pen.text(self._scaled(x, y), text, fill=255, font=font, anchor=anchor, stroke_width=stroke)

    def text_width(self, text: str) -> float:
        """How wide a text is."""
        return float(_font(self._scale).getlength(text)) / self._scale

    def picture(self) -> Picture:
        """What was drawn, encoded."""
        import numpy as np
        from PIL import Image, features

        levels = (np.asarray(self._letters, np.uint16) * (_TEXT_LEVELS + 1) // 256).astype(np.uint8)
        image = Image.fromarray(np.where(levels > 0, levels, np.asarray(self._image)))
        image.putpalette([channel for rgba in self._colours for channel in rgba[:3]])
        image.info["transparency"] = bytes(rgba[3] for rgba in self._colours)
        file = io.BytesIO()
        if features.check("webp"):
            image.convert("RGBA").save(file, "WEBP", lossless=True, method=2, quality=50)
            return Picture(file.getvalue(), "image/webp", self.width, self.height)
        image.save(file, "PNG", bits=4 if len(self._colours) <= 16 else 8)
        return Picture(file.getvalue(), "image/png", self.width, self.height)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@lru_cache(maxsize=len(FINENESS))
def _font(scale: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(11 * scale)
