"""Does recording slow a cell? A pure Python cell of fixed work, with the recorder and without it, alternated."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from bench.effort import Effort
from bench.processes import Recorder, Subject, scratch, wait_until
from bench.table import Figure, Line, Section, figure, paired_ratio

RATES = (10.0, 100.0)
LOOPS = 3_000_000  # about 0.3 s
SETTLED_SECONDS = 0.1
WIDEST = 0.04  # an interval wider than this would contain 1.000 whatever the recorder did
_NOTES = (
    "Pairs of neighbours in random order. The peer is a psutil thread in the process, at the same rate.",
    f"The ratio is the recorder's on / off, and not ours to the peer's. An interval wider than {WIDEST:g} decides nothing: ?",
)


def run(effort: Effort) -> Iterator[Section]:
    """One section a rate."""
    rounds = effort.choose(short=2, usual=30, full=200)
    loops = effort.choose(short=LOOPS // 20, usual=LOOPS, full=LOOPS)
    for rate in RATES:
        with scratch() as folder, Subject(folder) as subject:
            subject.do(f"compute({loops})")
            yield Section(
                f"slowdown: a pure Python cell, {rate:g} Hz, {rounds} rounds",
                tuple(_lines(subject, rate, rounds, loops)),
                _NOTES,
            )


def _lines(subject: Subject, rate_hz: float, rounds: int, loops: int) -> Iterator[Line]:
    order = random.Random(7)
    times: dict[str, list[tuple[float, float]]] = {"off": [], "on": [], "off again": [], "thread": []}
    for _ in range(rounds):
        for pair in (["off", "on"], ["off again", "thread"]):
            order.shuffle(pair)
            for name in pair:
                times[name].append(_once(subject, name, rate_hz, loops))
    for index, what in enumerate(("wall time", "CPU time of its thread")):
        by_name = {name: [one[index] for one in both] for name, both in times.items()}
        ours = paired_ratio(by_name["on"], by_name["off"])
        peer = paired_ratio(by_name["thread"], by_name["off again"])
        assert ours is not None
        assert peer is not None
        yield Line(
            f"{what}, on / off",
            "×",
            ours,
            "thread",
            peer,
            ours,
            "has 1.000",
            contains_one(ours),
        )
    yield Line("the cell alone, wall time", "ms", figure([wall * 1e3 for wall, _ in times["off"]]))


def contains_one(ratio: Figure) -> bool | None:
    """Whether the interval contains 1.000; one below it would be a fault of the measurement. None: too wide to tell."""
    if ratio.low is None or ratio.high is None:
        return None
    if not ratio.low <= 1.0 <= ratio.high:
        return False
    return True if ratio.high - ratio.low <= WIDEST else None


def _once(subject: Subject, name: str, rate_hz: float, loops: int) -> tuple[float, float]:
    """One cell. A recorder is started each time, and stopped again where there shall be none: the same past for all."""
    recorder = Recorder(subject.do(f"record({rate_hz})"))
    subject.do("open_cell()")
    wait_until(lambda: recorder.taken() >= 2, "the first samples")
    if name != "on":
        subject.do("stop()")
    time.sleep(SETTLED_SECONDS)
    call = f"compute_under_thread({loops}, {rate_hz})" if name == "thread" else f"compute({loops})"
    wall, cpu = subject.do(call)
    if name == "on":
        subject.do("stop()")
    return wall, cpu
