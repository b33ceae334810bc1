"""Samples delivered and the worst gap under load: the recorder, and beside it a psutil thread in the recorded process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, NamedTuple

from bench.effort import Effort
from bench.processes import Recorder, Subject, scratch, wait_until
from bench.table import Figure, Line, Section
from cellmeter.run import EDGE_END, EDGE_START, Run
from cellmeter.store import read_run

LEAST_PERCENT = 99.0
LEAST_SATURATED_PERCENT = 95.0
TARGET_HZ = 50.0
RATES = (10.0, 50.0, 100.0)
LOADS = {"idle": "idle", "python": "Python loop", "gil": "GIL held", "blas": "BLAS"}


_NOTES = ("BLAS: numpy on all cores. Workers wait; busy ones compute. The peer: a psutil thread in the same process.",)

Delivery = tuple[float, float, list[float]]
"""Start and end of a cell, and when samples were taken: seconds of CLOCK_MONOTONIC."""


class Case(NamedTuple):
    """A load in the cell, and worker processes beside it."""

    rate_hz: float
    load: str
    workers: int = 0
    busy: bool = False

    @property
    def title(self) -> str:
        """What the table calls it; the rate is in the section's title."""
        if self.busy:
            return f"{self.workers} busy workers"
        return LOADS[self.load] + (f", {self.workers} workers" if self.workers else "")

    @property
    def target(self) -> float | None:
        """% that must be delivered; the issue sets it at 50 Hz."""
        if self.rate_hz != TARGET_HZ:
            return None
        return LEAST_SATURATED_PERCENT if self.load == "blas" or self.busy else LEAST_PERCENT


def cases(effort: Effort) -> list[Case]:
    """All combinations; as usual all loads at all rates, and workers at 50 Hz."""
    if effort is Effort.SHORT:
        return [Case(TARGET_HZ, "idle"), Case(TARGET_HZ, "gil", 4)]
    alone = [Case(rate, load) for rate in RATES for load in LOADS]
    rates = effort.choose(short=(), usual=(TARGET_HZ,), full=RATES)
    counts = effort.choose(short=(), usual=(32,), full=(4, 32))
    with_workers = [Case(rate, load, count) for rate in rates for load in LOADS for count in counts]
    busy = [Case(rate, "idle", count, True) for rate in rates for count in counts]
    return [*alone, *with_workers, *busy]


def run(effort: Effort) -> Iterator[Section]:
    """One section a rate."""
    seconds = effort.choose(short=0.6, usual=4.0, full=10.0)
    chosen = cases(effort)
    for rate in RATES:
        lines = [line for case in chosen if case.rate_hz == rate for line in _case(case, seconds)]
        if lines:
            yield Section(f"delivery: {rate:g} Hz, cells of {seconds:g} s", tuple(lines), _NOTES)


def _case(case: Case, seconds: float) -> Iterator[Line]:
    with scratch() as folder, ExitStack() as stack:
        subject = stack.enter_context(Subject(folder))
        subject.do(f"workers({case.workers}, {case.busy})")
        recorder = Recorder(subject.do(f"record({case.rate_hz})"))
        cell = subject.do(f"deliver({case.load!r}, {seconds}, {case.rate_hz})")
        wait_until(lambda: any(c.end is not None for c in read_run(recorder.folder).cells), "the cell's end")
        recorded = read_run(recorder.folder)
    start, end = cell["started_ns"] * 1e-9, cell["ended_ns"] * 1e-9
    ours, thread = (start, end, sample_times(recorded, cell)), (start, end, cell["thread"])
    yield from delivery_lines(case.title, ours, "thread", thread, case.rate_hz, case.target)


def sample_times(recorded: Run, cell: dict[str, Any]) -> list[float]:
    """When the cell's samples were taken, without the two at its edges; CLOCK_MONOTONIC seconds."""
    times: list[float] = []
    for segment in recorded.segments:
        if segment.stream == "main":
            records = segment.records
            mask = (records["seq"] == cell["seq"]) & ((records["flags"] & (EDGE_START | EDGE_END)) == 0)
            times += (records["t"][mask] * 1e-9).tolist()
    return times


def delivery_lines(
    title: str, ours: Delivery, peer_name: str, peer: Delivery, rate_hz: float, least_percent: float | None
) -> Iterator[Line]:
    """Delivered % and the worst gap of both."""
    percent, gap = delivered(ours, rate_hz)
    peer_percent, peer_gap = delivered(peer, rate_hz)
    yield Line(
        f"{title}: delivered",
        "%",
        Figure(percent),
        peer_name,
        Figure(peer_percent),
        Figure(percent / peer_percent) if peer_percent else None,
        None if least_percent is None else f"≥ {least_percent:g} %",
        None if least_percent is None else percent >= least_percent,
    )
    yield Line(
        f"{title}: worst gap", "ms", Figure(gap * 1e3), peer_name, Figure(peer_gap * 1e3), Figure(gap / peer_gap)
    )


def delivered(delivery: Delivery, rate_hz: float) -> tuple[float, float]:
    """% of the slots of a cell that have a sample, and the longest time without one in s, from and to the cell's edges.

    A slot that falls on the cell's very end does not count.
    """
    start, end, times = delivery
    inside = sorted(t for t in times if start <= t <= end)
    slots = max(1, int((end - start) * rate_hz - 0.5))
    edges = [start, *inside, end]
    gap = max(after - before for before, after in pairwise(edges))
    return min(100.0, 100.0 * len(inside) / slots), gap
