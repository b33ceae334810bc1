"""GPU statistics: how busy each was for how long, and the spread of its readings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from cellmeter.export.amounts import shared_gpus
from cellmeter.export.devices import BINS, QUANTILES, DeviceStatistics, Spread
from cellmeter.export.html.pieces import table, text
from cellmeter.export.summary import process_of
from cellmeter.rules.ownership import not_used
from cellmeter.usage import HELD
from cellmeter.words import BLANK, percent_text, seconds_text, value_text

if TYPE_CHECKING:
    from cellmeter.run import Run

HEADS = ("mean", *(name for name, _ in QUANTILES))
FIRST = ("gpu.utilization", "gpu.memory.used", HELD)


def gpus_section(run: Run, statistics: Sequence[DeviceStatistics]) -> str:
    """Utilisation and memory of each GPU with its histogram; all other readings folded away."""
    if not statistics:
        return ""
    others, shared = not_used(run, 0.0, run.duration), shared_gpus(run)
    notes = {device.id: [device.name] for device in run.devices}
    for gpu in others:
        notes[gpu].append(f"not used by this {process_of(run)}")
    first, rest = [], []
    for one in statistics:
        told = [spread for spread in one.spreads if spread.metric != HELD or one.device in shared]
        first += _rows(run, one.device, notes, [spread for spread in told if spread.metric in FIRST])
        rest += _rows(run, one.device, notes, [spread for spread in told if spread.metric not in FIRST])
    heads = ("GPU", "Reading", *HEADS)
    more = ""
    if rest:
        folded = table("Other readings inside cells", heads, rest, left=2)
        more = f"<details><summary>Power, temperature and clocks</summary>{folded}</details>"
    return _histograms(run, statistics, others) + table("Readings inside cells", heads, first, left=2) + more


def _rows(run: Run, gpu: str, notes: dict[str, list[str]], spreads: Sequence[Spread]) -> list[list[str]]:
    label = f'{text(gpu)} <span class="soft">{text(", ".join(notes[gpu]))}</span>'
    return [[label if number == 0 else text(gpu), *_row(run, spread)] for number, spread in enumerate(spreads)]


def _row(run: Run, spread: Spread) -> list[str]:
    name = text(spread.metric.removeprefix("gpu.").replace(".", " "))
    if spread.metric == HELD:
        name = text(f"of it this {process_of(run)}'s")
    if spread.unknown is not None:
        return [f'{name}: <span class="soft">unknown, {text(spread.unknown)}</span>', *[BLANK] * len(HEADS)]
    return [name, *(value_text(value, spread.unit, BLANK) for value in (spread.mean, *spread.quantiles.values()))]


def _histograms(run: Run, statistics: Sequence[DeviceStatistics], others: Collection[str]) -> str:
    drawn = "".join(_histogram(one, process_of(run) if one.device in others else None) for one in statistics)
    return f'<div class="histograms">{drawn}</div>'


def _histogram(one: DeviceStatistics, unused_by: str | None) -> str:
    """``unused_by``: who did not use it, if that is so."""
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
    idle = percent_text(100 * one.histogram_seconds[0] / total)
    what = f"not used by this {unused_by}" if unused_by else f"under 10 % busy for {idle} of the time"
    unused = " unused" if unused_by else ""
    return (
        f'<figure class="panel histogram{unused}"><figcaption><b>{name}</b> {what}'
        f'</figcaption><div class="bars" role="img" aria-label="Time of {name} by utilisation. {", ".join(said)}">{bars}</div>'
        "<p><span>0</span><span>50</span><span>100 % busy</span></p></figure>"
    )
