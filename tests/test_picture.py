from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from builders import GIB, NAN, GpuWork, a_cell, a_device, a_run
from PIL import Image

from cellmeter import charts, picture


def a_frame(gpus: int = 1, seconds: float = 60) -> charts.Frame:
    rng = np.random.default_rng(1)
    work = GpuWork(lambda t: 60 + 30 * float(np.sin(t)) + rng.normal(0, 5))
    devices = [a_device(f"gpu{i}") for i in range(gpus)]
    cell = a_cell(seconds, rss=lambda t: (1 + t / 30) * GIB, cores=0.8, gpu={d.id: work for d in devices})
    return charts.frame_of(a_run(cell, devices=devices), 0, seconds)


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_the_picture_is_small_and_as_large_as_it_says(gpus: int) -> None:
    drawn = picture.draw(a_frame(gpus), 60)
    image = Image.open(io.BytesIO(drawn.image))
    assert drawn.type == "image/webp"
    assert image.width / drawn.width == image.height / drawn.height
    assert image.width / drawn.width in {scale for scale, _ in picture.FINENESS}
    assert len(drawn.image) <= picture.MOST_BYTES


def test_no_spike_is_lost_between_two_steps() -> None:
    frame = a_frame(0)
    steady, spiked = frame.values * 0 + 1.0, frame.values * 0 + 1.0
    steady[:, 0], spiked[301, 0] = 4.0, 8.0
    one, other = (picture.draw(replace(frame, values=values), 60).image for values in (spiked, steady))
    pictures = [np.asarray(Image.open(io.BytesIO(image)).convert("RGBA")) for image in (one, other)]
    tops = [np.flatnonzero((image[:, 200:540, 2] > 150) & (image[:, 200:540, 3] == 255)).min() for image in pictures]
    assert tops[0] < tops[1]


def test_few_readings_make_a_line_and_no_stairs() -> None:
    memory = a_frame(0).panels[1]
    ramp = np.repeat(np.linspace(0.1, 2.0, 11)[:, None] * GIB, len(memory.lines), axis=1)
    drawn = picture.draw(charts.Frame((memory,), np.linspace(0, 1, 11), ramp), 1.0)
    image = np.asarray(Image.open(io.BytesIO(drawn.image)).convert("RGBA"))[30:, 90:-20]
    green = (image[..., 1] > image[..., 0] + 60) & (image[..., 3] == 255)
    assert green.any(0).mean() > 0.95
    assert green.sum(0).max() < 8, "not as high as the rise from one reading to the next"


def test_a_peak_that_no_sample_has_seen_is_drawn() -> None:
    frame = a_frame(0)
    memory = replace(frame.panels[1], exact_peak=9.0 * GIB)
    with_peak = replace(frame, panels=(frame.panels[0], memory))
    assert dashes(with_peak) > dashes(frame) + 20


def dashes(frame: charts.Frame) -> int:
    """Pixels of the memory chart's colour in the upper fifth of its plot."""
    image = np.asarray(Image.open(io.BytesIO(picture.draw(frame, 60).image)).convert("RGBA"))
    upper = image[35:60, image.shape[1] // 2 + 90 :]
    green = (upper[..., 1] > upper[..., 0] + 60) & (upper[..., 3] == 255)
    return int(green.sum())


def test_it_can_be_read_on_white_and_on_dark_ground() -> None:
    image = Image.open(io.BytesIO(picture.draw(a_frame(), 60).image)).convert("RGBA")
    colours = {rgba[:3] for _, rgba in image.getcolors(4096) or [] if rgba[3] == 255}
    assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]
    for ground in ((255, 255, 255), (17, 17, 17)):
        assert all(contrast(colour, ground) >= 2.6 for colour in colours), ground


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """WCAG's contrast ratio."""

    def luminance(colour: tuple[int, ...]) -> float:
        parts = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_nothing_known_and_a_single_reading_can_be_drawn() -> None:
    frame = a_frame(1, 5)
    unknown = charts.Frame(frame.panels, frame.time, np.full_like(frame.values, NAN))
    picture.draw(unknown, 5)
    picture.draw(charts.Frame(frame.panels, frame.time[:1], frame.values[:1]), 0.0)
    assert picture.draw(charts.Frame((), np.empty(0), np.empty((0, 0))), 1.0).image
