"""GPUs of other machines, judged by the coarse samples a Prometheus server has of them, where these are enough to tell.

A sample is one reading of a moment, every 15 seconds or so: ten zeros in a row may be a GPU that works for three seconds of
ten. So each judgement takes a number of samples, allows for chance, and says how coarse it is. Nothing here is ever critical.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cellmeter.remote import UTILIZATION, inside
from cellmeter.rules.observed import ENOUGH, cell_end, cell_seconds, top_cells
from cellmeter.rules.rule import CLEAR, Evidence, Finding, Outcome, Waste, found, not_applicable, unknown
from cellmeter.words import given_text, gpu_seconds_text, percent_text, seconds_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.remote import Readings, Remote, RemoteDevice
    from cellmeter.run import Cell, Run

LEAST_SAMPLES = 20  # of nothing but zeros: with 95 % it was idle for 86 % of the time or more
LEAST_IN_CELL = 10
NINETY_FIVE = 1.96  # standard errors around a mean
RULE_OF_THREE = 3.0  # of n samples without an event: up to 3/n of the time with one, with 95 %


def coarse(remote: Remote, device: RemoteDevice, samples: int) -> str:
    """What a reader must know of a figure."""
    return f"(coarse: {samples} samples, one every {given_text(remote.interval(device.id), 's')}, from Prometheus)"


def unused(run: Run, least_seconds: float, rule: str) -> Iterator[Outcome]:
    """One outcome a GPU elsewhere: whether it did no work in the cells of the run."""
    remote = run.remote
    if remote is None:
        return
    use = {device.id: _in_cells(run, remote, device) for device in remote.devices}
    idle = {name for name, values in use.items() if len(values) and not values.any()}
    for device in remote.devices:
        values, seconds = use[device.id], cell_seconds(run)
        if seconds < least_seconds:
            yield not_applicable(f"less than {given_text(least_seconds, 's')} of cells")
        elif len(values) and values.any():
            yield CLEAR
        elif len(values) < max(LEAST_SAMPLES, ENOUGH * seconds / remote.interval(device.id)):
            few = "are too few to tell" if len(values) else "tell nothing"
            yield unknown(
                f"{device.id}: {len(values)} samples from Prometheus in {seconds_text(seconds)} of cells {few}"
            )
        else:
            yield found(_unused(run, remote, device, len(values), seconds, rule, all_idle=len(idle) == len(use)))


def _in_cells(run: Run, remote: Remote, device: RemoteDevice) -> NDArray[np.float64]:
    series = run.series(UTILIZATION, device.id)
    values: NDArray[np.float64] = series.values[series.seq > 0]
    return values


def _unused(
    run: Run, remote: Remote, device: RemoteDevice, samples: int, seconds: float, rule: str, *, all_idle: bool
) -> Finding:
    """That others of the machines matched did work makes it likely that this one was never meant to."""
    cells = top_cells(run)
    at_most = RULE_OF_THREE / samples
    return Finding(
        rule=rule,
        severity="warning" if all_idle else "info",
        cells=tuple(cell.seq for cell in cells),
        subject=device.id,
        cause=None,
        start=cells[0].start,
        end=cell_end(run, cells[-1]),
        fact=f"{device.id} ({device.name}) did no work that a sample has seen in {seconds_text(seconds)} of cells "
        f"{coarse(remote, device, samples)}.",
        consequence=f"It was idle for all of {gpu_seconds_text(seconds * (1 - at_most))} or more; work between the samples "
        f"can have been {percent_text(100 * at_most)} of the time at most.",
        advice="If the work was meant for it, check there that the framework sees this GPU and that model and data are moved "
        "to it; if not, leave it to others, and out of --match.",
        evidence=Evidence(UTILIZATION, 0.0, 0.0, "%"),
        waste=Waste(seconds * (1 - at_most) if all_idle else 0.0),
    )


def underused(run: Run, mean_percent: float, warning_percent: float, rule: str) -> Iterator[Outcome]:
    """One outcome a cell and GPU elsewhere: whether it waited more than it worked, between its first and last work."""
    remote = run.remote
    if remote is None:
        return
    for device in remote.devices:
        for cell in top_cells(run):
            yield _underused(run, remote, device, cell, (mean_percent, warning_percent), rule)


def _underused(
    run: Run, remote: Remote, device: RemoteDevice, cell: Cell, percents: tuple[float, float], rule: str
) -> Outcome:
    import numpy as np

    busy = _busy(inside(remote, UTILIZATION, device.id, cell.start, cell_end(run, cell)))
    samples = len(busy.values)
    if samples < LEAST_IN_CELL:
        interval = remote.interval(device.id)
        return not_applicable(
            f"no cell with {LEAST_IN_CELL} samples of GPU work elsewhere, one every {given_text(interval, 's')}"
        )
    mean_percent, warning_percent = percents
    mean = float(busy.values.mean())
    if mean >= mean_percent:
        return CLEAR
    highest = mean + NINETY_FIVE * float(np.std(busy.values, ddof=1)) / math.sqrt(samples)
    if highest >= mean_percent:
        about = f"{cell.title} kept {device.id} at {percent_text(mean)}"
        return unknown(
            f"{about} {coarse(remote, device, samples)}: too few to tell whether that is under the threshold"
        )
    warned = highest < warning_percent
    start, end = float(busy.time[0]), float(busy.time[-1])
    seconds = min(end - start, samples * remote.interval(device.id))  # what was not scraped is not known to be unused
    return found(
        Finding(
            rule=rule,
            severity="warning" if warned else "info",
            cells=(cell.seq,),
            subject=device.id,
            cause=None,
            start=start,
            end=end,
            fact=f"{cell.title} kept {device.id} at {percent_text(mean)} on average over {seconds_text(seconds)}, "
            f"{percent_text(highest)} at most {coarse(remote, device, samples)}.",
            consequence=f"{gpu_seconds_text(seconds * (1 - highest / 100))} or more were unused.",
            advice="Samples so far apart do not show why: record on that machine (`cellmeter record` of the script that works "
            "there, or %load_ext in its notebook), and the report names the cause.",
            evidence=Evidence(UTILIZATION, mean, warning_percent if warned else mean_percent, "%"),
            waste=Waste(seconds * (1 - highest / 100)),
        )
    )


def _busy(readings: Readings) -> Readings:
    """From the first to the last sample of work."""
    import numpy as np

    working = np.flatnonzero(readings.values > 0)
    part = slice(working[0], working[-1] + 1) if len(working) else slice(0, 0)
    return type(readings)(*(column[part] for column in readings))
