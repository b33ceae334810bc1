"""A cell's charts as a picture: what stays in the notebook where no script runs.

Palette colours with an alpha of their own, so that it can be read on white and on dark ground, at 1.5 times the size it is
shown in. Four panels of jittery data: 16 ms and 10 kB as PNG, another 17 ms and 7 kB as WebP, which every browser shows.
Quantising a true-colour image would take 60 ms.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter.charts import (
    Frame,
    Line,
    PanelSpec,
    axis_of,
    decimate,
    format_peak,
    highest,
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
SCALE = 1.5  # image pixels per CSS pixel
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 54, 8, 20, 18, 10
_TEXT_LEVELS = 3
_ROWS = 220  # of a line: more makes a noisy one a solid band, and the file twice as large
_TEXT = (118, 124, 131)  # 4:1 on white and on JupyterLab's dark ground
_GRID = (128, 128, 128)


class Picture(NamedTuple):
    """The picture twice, and the size it is shown in, CSS pixels. ``web``: WebP, or PNG where Pillow was built without it."""

    png: bytes
    web: bytes
    web_type: str
    width: int
    height: int


def draw(frame: Frame, seconds: float) -> Picture:
    """Draws the panels of a cell that ran for ``seconds``; ``frame.time`` begins with the cell."""
    per_row = max(1, len(frame.panels)) if len(frame.panels) <= 3 else 2
    rows = [frame.panels[at : at + per_row] for at in range(0, len(frame.panels), per_row)]
    heights = [max(spec.height for spec in row) + _TOP - 4 for row in rows]
    height = sum(heights) + _BETWEEN * (len(rows) - 1) if rows else 1
    canvas = Canvas(WIDTH, height)
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
    time, values = decimate(frame.time, frame.of(spec), _ROWS)
    peaks = [float(p) for p in np.fmax.reduce(values)] if len(values) else [math.nan] * len(spec.lines)
    top = scale_top(spec, peaks)
    plot = _Plot(x + _LEFT, y + _TOP, width - _LEFT - _RIGHT, height - _TOP - _BOTTOM, max(seconds, 1e-3), top)
    _axes(canvas, plot, spec, top)
    canvas.text(x + 4, y + 2, spec.title, bold=True)
    caption = format_peak(highest(spec, peaks), spec)
    canvas.text(x + width - _RIGHT, y + 2, caption, anchor="ra")
    shown = worth_drawing(spec, peaks, top)
    right = x + width - _RIGHT - canvas.text_width(caption)
    _legend(canvas, x + 14 + canvas.text_width(spec.title), right, y + 2, spec, shown)
    drawn = lane_values(spec, values) if spec.lanes else values
    mains = sum(line.role == "main" for line in spec.lines)
    for index, line in reversed(list(enumerate(spec.lines))):
        if not shown[index]:
            continue
        floor = len(spec.lines) - 1 - index if spec.lanes else 0
        points = plot.points(time, drawn[:, index])
        if line.role == "main" and (spec.lanes or mains == 1):
            canvas.area(points, plot.y_at(floor), line)
        canvas.line(points, line)
    if spec.limit and not spec.lanes and spec.unit != "%" and spec.limit <= top:
        canvas.dashes(plot.left, plot.y_at(spec.limit), plot.left + plot.width)


def _axes(canvas: Canvas, plot: _Plot, spec: PanelSpec, top: float) -> None:
    for tick, label in zip(*axis_of(spec, top), strict=True):
        if not spec.lanes:
            canvas.rule(plot.left, plot.y_at(tick), plot.left + plot.width)
        canvas.text(plot.left - 6, plot.y_at(tick), label, anchor="rm")
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

    def y_at(self, value: float) -> float:
        return self.top + self.height * (1 - min(value / self.scale, 1.0))

    def points(self, time: Floats, values: Floats) -> list[list[tuple[float, float]]]:
        """Runs of points without a gap, in CSS pixels."""
        import numpy as np

        x = self.left + self.width * np.clip(time / self.seconds, 0, 1)
        y = self.top + self.height * (1 - np.minimum(values / self.scale, 1.0))
        there = ~np.isnan(y)
        cuts = np.flatnonzero(np.diff(there.astype(np.int8))) + 1
        parts = zip(np.split(x, cuts), np.split(y, cuts), strict=True)
        return [
            list(zip(px.tolist(), py.tolist(), strict=True)) for px, py in parts if len(py) and not math.isnan(py[0])
        ]


class Canvas:
    """A palette image drawn in CSS pixels. Colours are entered as they come: 16 of them make 4 bits a pixel."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("P", (int(width * SCALE), int(height * SCALE)), 0)
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

    def area(self, runs: Sequence[Sequence[tuple[float, float]]], floor: float, line: Line) -> None:
        """Fills between runs of points and a floor."""
        for run in runs:
            outline = [(run[0][0], floor), *run, (run[-1][0], floor)]
            self._draw.polygon([_scaled(p) for p in outline], fill=self._ink(line, 44))

    def line(self, runs: Sequence[Sequence[tuple[float, float]]], line: Line) -> None:
        """Draws runs of points; one that stands alone is a dot."""
        wide = 2 if line.role == "faint" else 3
        for run in runs:
            if len(run) == 1:
                x, y = _scaled(run[0])
                self._draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=self._ink(line, 255))
            else:
                self._draw.line([_scaled(p) for p in run], fill=self._ink(line, 255), width=wide)

    def rule(self, left: float, y: float, right: float) -> None:
        """A grid line."""
        self._draw.line([_scaled((left, y)), _scaled((right, y))], fill=self._colour((*_GRID, 64)))

    def dashes(self, left: float, y: float, right: float) -> None:
        """The line of a limit."""
        colour = self._colour((*_rgb("#D9622B"), 255))
        for at in range(int(left), int(right), 6):
            self._draw.line([_scaled((at, y)), _scaled((min(at + 3, right), y))], fill=colour, width=2)

    def swatch(self, x: float, y: float, line: Line) -> None:
        """A legend's dash of colour."""
        self._draw.rectangle((*_scaled((x, y - 1)), *_scaled((x + 9, y + 1))), fill=self._ink(line, 255))

    def text(self, x: float, y: float, text: str, *, anchor: str = "la", bold: bool = False) -> None:
        """Grey text; ``anchor`` as in Pillow."""
        stroke = 0.6 if bold else 0
        self._pen.text(_scaled((x, y)), text, fill=255, font=_font(), anchor=anchor, stroke_width=stroke)

    def text_width(self, text: str) -> float:
        """How wide a text is."""
        return float(_font().getlength(text)) / SCALE

    def picture(self) -> Picture:
        """What was drawn, encoded."""
        import numpy as np
        from PIL import Image, features

        levels = (np.asarray(self._letters, np.uint16) * (_TEXT_LEVELS + 1) // 256).astype(np.uint8)
        image = Image.fromarray(np.where(levels > 0, levels, np.asarray(self._image)))
        image.putpalette([channel for rgba in self._colours for channel in rgba[:3]])
        image.info["transparency"] = bytes(rgba[3] for rgba in self._colours)
        png, web = io.BytesIO(), io.BytesIO()
        image.save(png, "PNG", bits=4 if len(self._colours) <= 16 else 8)
        if not features.check("webp"):
            return Picture(png.getvalue(), png.getvalue(), "image/png", self.width, self.height)
        image.convert("RGBA").save(web, "WEBP", lossless=True, method=2, quality=50)
        return Picture(png.getvalue(), web.getvalue(), "image/webp", self.width, self.height)


def _scaled(point: tuple[float, float]) -> tuple[int, int]:
    return round(point[0] * SCALE), round(point[1] * SCALE)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@lru_cache(maxsize=1)
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(11 * SCALE)
