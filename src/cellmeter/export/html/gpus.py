"""GPU statistics: how busy each was for how long, and the spread of its readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellmeter.export.devices import BINS, QUANTILES, DeviceStatistics, Spread
from cellmeter.export.html.pieces import table, text
from cellmeter.words import BLANK, percent_text, seconds_text, value_text

if TYPE_CHECKING:
    from cellmeter.run import Run

HEADS = ("mean", *(name for name, _ in QUANTILES))
FIRST = ("gpu.utilization", "gpu.memory.used")


def gpus_section(run: Run, statistics: Sequence[DeviceStatistics]) -> str:
    """Utilisation and memory of each GPU with its histogram; all other readings folded away."""
    if not statistics:
        return ""
    names = {device.id: device.name for device in run.devices}
    first = [row for one in statistics for row in _rows(one, FIRST, names)]
    rest = [row for one in statistics for row in _rows(one, None, names)]
    heads = ("GPU", "Reading", *HEADS)
    more = ""
    if rest:
        folded = table("Other readings inside cells", heads, rest, left=2)
        more = f"<details><summary>Power, temperature and clocks</summary>{folded}</details>"
    return _histograms(run, statistics) + table("Readings inside cells", heads, first, left=2) + more


def _rows(one: DeviceStatistics, metrics: tuple[str, ...] | None, names: dict[str, str]) -> list[list[str]]:
    chosen = [s for s in one.spreads if (s.metric in FIRST if metrics else s.metric not in FIRST)]
    label = f'{text(one.device)} <span class="soft">{text(names.get(one.device, ""))}</span>'
    return [[label if number == 0 else text(one.device), *_row(spread)] for number, spread in enumerate(chosen)]


def _row(spread: Spread) -> list[str]:
    name = text(spread.metric.removeprefix("gpu.").replace(".", " "))
    if spread.unknown is not None:
        return [f'{name}: <span class="soft">unknown, {text(spread.unknown)}</span>', *[BLANK] * len(HEADS)]
    return [name, *(value_text(value, spread.unit, BLANK) for value in (spread.mean, *spread.quantiles.values()))]


def _histograms(run: Run, statistics: Sequence[DeviceStatistics]) -> str:
    drawn = "".join(_histogram(one) for one in statistics)
    return f'<div class="histograms">{drawn}</div>'


def _histogram(one: DeviceStatistics) -> str:
    name = text(one.device)
    if one.histogram_seconds is None:
        spread = one.of("gpu.utilization")
        why = spread.unknown if spread and spread.unknown else "no readings inside cells"
        unknown = f'<p class="none">Utilisation unknown: {text(why)}</p>'
        return f'<figure class="panel histogram"><figcaption>{name}</figcaption>{unknown}</figure>'
    total = sum(one.histogram_seconds) or 1.0
    most = max(one.histogram_seconds) or 1.0
    said = [
        f"{number * 100 // BINS} to {(number + 1) * 100 // BINS} %: {seconds_text(seconds)}"
        for number, seconds in enumerate(one.histogram_seconds)
    ]
    bars = "".join(
        f'<i style="height:{max(100 * seconds / most, 1 if seconds else 0):.1f}%" title="{words}"></i>'
        for seconds, words in zip(one.histogram_seconds, said, strict=True)
    )
    idle = 100 * one.histogram_seconds[0] / total
    return (
        f'<figure class="panel histogram"><figcaption><b>{name}</b> under 10 % busy for {percent_text(idle)} of the time'
        f'</figcaption><div class="bars" role="img" aria-label="Time of {name} by utilisation. {", ".join(said)}">{bars}</div>'
        "<p><span>0</span><span>50</span><span>100 % busy</span></p></figure>"
    )
