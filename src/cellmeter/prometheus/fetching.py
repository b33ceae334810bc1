"""Fetches what a Prometheus server tells of other machines into a run folder, as far as it is not there yet.

The file is written whole and put in place of the old one: whoever fetches at the same time, a reader finds one or the other.
What was fetched stays when a later part fails, and the next fetch goes on from there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter import form
from cellmeter.clock import monotonic, monotonic_ns, wall
from cellmeter.errors import BadUsage, CellmeterError, FetchFailed, RunUnreadable
from cellmeter.prometheus import asking
from cellmeter.prometheus.exporters import MATCHERS, Gathered, Places, Told, gathered
from cellmeter.prometheus.source import Source
from cellmeter.remote import FILE, SETTLE_SECONDS, USUAL_INTERVAL_SECONDS, RemoteDevice, RemoteMachine
from cellmeter.store import read_events, read_run, sealed
from cellmeter.words import counted, given_text

if TYPE_CHECKING:
    from cellmeter.run import Run

MOST_SERIES = 4000
MOST_SAMPLES = 2_000_000  # that are kept of a run: about 40 MB
CHUNK_SAMPLES = 150_000  # asked for at once, about 4 MB of JSON
LEAST_CHUNK_SECONDS, MOST_CHUNK_SECONDS = 60.0, 6 * 3600.0
LOOKBACK_SECONDS = 300.0  # a rate needs the scrape before it
LINE_SAMPLES = 1000  # in one line of the file: what a damaged line takes with it
NAMED = 4


@dataclass(frozen=True)
class Kept:
    """What the file holds. ``until``: as far as it has been fetched, in seconds since the epoch."""

    source: Source | None
    until: float | None
    told: Gathered


def kept_in(folder: Path) -> Kept:
    """What is there; nothing but the source where part of it is damaged, for then all is fetched anew."""
    nothing = Kept(None, None, Gathered({}, {}, {}))
    try:
        lines, damaged = read_events(folder / FILE)
        form.check_remote(lines)
    except (RunUnreadable, ValueError):
        return nothing
    by_kind = {kind: [line for line in lines if line["event"] == kind] for kind in form.REMOTE}
    if not by_kind["source"]:
        return nothing
    source = Source(by_kind["source"][0]["url"], by_kind["source"][0]["match"])
    readings = by_kind["readings"]
    counts = {(line["lines"], line["samples"]) for line in by_kind["fetched"]}
    if damaged or counts != {(len(readings), sum(len(line["t"]) for line in readings))}:
        return replace(nothing, source=source)
    told = Gathered(
        {line["id"]: RemoteMachine(*_fields(line, "id", "cpu_count", "memory_bytes")) for line in by_kind["machine"]},
        {
            line["id"]: RemoteDevice(*_fields(line, "id", "machine", "name", "uuid", "memory_bytes"))
            for line in by_kind["device"]
        },
        {},
    )
    for line in readings:
        _extend(told.readings, (line["metric"], line["subject"]), Told(line["t"], line["v"], line.get("d")))
    return Kept(source, by_kind["fetched"][0]["until"], told)


def _fields(line: Mapping[str, Any], *names: str) -> list[Any]:
    return [line[name] for name in names]


def keep(folder: Path, source: Source, told: Gathered | None = None, until: float = 0.0, asked: float = 0.0) -> None:
    """Writes the file. Without ``told`` it only says what to ask. Raises FetchFailed where it cannot be written."""
    lines: list[dict[str, Any]] = [{"event": "source", "url": source.url, "match": source.match}]
    if told is not None:
        lines += [{"event": "machine", **vars(machine)} for machine in told.machines.values()]
        lines += [{"event": "device", **vars(device)} for device in told.devices.values()]
        readings = list(_reading_lines(told))
        samples = sum(len(line["t"]) for line in readings)
        lines += readings
        lines.append({"event": "fetched", "asked": asked, "until": until, "lines": len(readings), "samples": samples})
    place = folder / f"{FILE}.{os.getpid()}-{monotonic_ns()}"
    try:
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.writelines(sealed(line) + b"\n" for line in lines)
        place.replace(folder / FILE)
    except OSError as error:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
        raise FetchFailed(f"{folder / FILE} cannot be written: {error.strerror}") from None


def _reading_lines(told: Gathered) -> Iterator[dict[str, Any]]:
    for (metric, subject), (t, v, d) in told.readings.items():
        for first in range(0, len(t), LINE_SAMPLES):
            part = slice(first, first + LINE_SAMPLES)
            line = {"event": "readings", "metric": metric, "subject": subject, "t": t[part], "v": v[part]}
            yield line if d is None else {**line, "d": d[part]}


@dataclass(frozen=True)
class Fetched:
    """What a fetch brought. ``new``: samples that were not there before."""

    run: Run
    new: int

    def __str__(self) -> str:
        remote = self.run.remote
        if remote is None or not remote.sample_count:
            return "Prometheus has no samples from the time of this run"
        of = f"{counted(len(remote.devices), 'GPU')} and {counted(len(remote.machines), 'machine')}"
        samples, interval = counted(remote.sample_count, "sample"), given_text(remote.interval_seconds, "s")
        return f"{samples} of {of}, one every {interval}, {self.new} of them new"


def fetch(folder: Path, source: Source | None, seconds: float) -> Fetched:
    """Fetches what is missing, for so long at the most; from another source than before, all of it.

    Raises BadUsage where no source is known, FetchFailed, RunUnreadable.
    """
    deadline = monotonic() + seconds
    kept = kept_in(folder)
    if source is None:
        source = kept.source
    if source is None:
        raise BadUsage(f"{folder.name} names no Prometheus: fetch it with --prometheus URL --match '{{…}}'")
    if source != kept.source:
        kept = Kept(source, None, Gathered({}, {}, {}))
    run = read_run(folder, newest=1)
    now = wall()
    end = min(run.epoch(run.duration), now) if run.ending is not None else now
    began = run.epoch(0.0)
    start = began if kept.until is None else min(kept.until, end) - SETTLE_SECONDS
    told, reached, problem = _gather(source, kept.told, (began, start, end), deadline)
    if problem is None or reached > start:
        keep(folder, source, told, max(reached, kept.until or reached), now)
    if problem is not None:
        raise problem
    return Fetched(read_run(folder), _count(told) - _count(kept.told))


def _gather(
    source: Source, told: Gathered, window: tuple[float, float, float], deadline: float
) -> tuple[Gathered, float, CellmeterError | None]:
    """More of it, chunk by chunk; how far that came, and what went wrong there.

    ``window``: when the run began, from when on and until when it is asked for, in seconds since the epoch.
    """
    began, reached, end = window
    try:
        # all series of the run, so that machines are called the same in each part
        places, chunk = _survey(source, began - LOOKBACK_SECONDS, end, deadline)
        while reached < end and chunk:
            to = min(reached + chunk, end)
            answers = [
                one
                for matcher in MATCHERS
                for one in asking.samples(source, matcher, reached - LOOKBACK_SECONDS, to, deadline)
            ]
            told = joined(told, gathered(answers, places))
            reached = to
            if _count(told) > MOST_SAMPLES:
                raise FetchFailed(
                    f"{source.match:.80} has more than {MOST_SAMPLES} samples of this run: narrow --match"
                )
    except (BadUsage, FetchFailed) as problem:
        return told, reached, problem
    return told, end, None


def _survey(source: Source, start: float, end: float, deadline: float) -> tuple[Places, float]:
    """Whose series there are, and how many seconds of them to ask for at once; 0 where there are none."""
    found = look(source, start, end, deadline)
    if not found:
        return Places(()), 0.0
    chunk = CHUNK_SAMPLES / len(found) * USUAL_INTERVAL_SECONDS
    return Places(found), min(max(chunk, LEAST_CHUNK_SECONDS), MOST_CHUNK_SECONDS)


def look(source: Source, start: float, end: float, deadline: float) -> list[dict[str, str]]:
    """The labels of all series there are to fetch. Raises BadUsage and FetchFailed, also where they are too many."""
    try:
        found = [labels for matcher in MATCHERS for labels in asking.series(source, matcher, start, end, deadline)]
    except asking.TooMuch:
        raise FetchFailed(f"{source.match:.80} matches far too many series: narrow --match") from None
    if len(found) > MOST_SERIES:
        machines = Places(found).machines
        named = ", ".join(machines[:NAMED]) + (" …" if len(machines) > NAMED else "")
        raise FetchFailed(
            f"{source.match:.80} matches {len(found)} series of {len(machines)} machines ({named}), "
            f"and {MOST_SERIES} is the most: narrow --match to the machines of this work"
        )
    return found


def joined(old: Gathered, new: Gathered) -> Gathered:
    """Both together: of a machine and a GPU what is known of either, of samples each once."""
    machines = {**old.machines, **{name: _more(old.machines.get(name), one) for name, one in new.machines.items()}}
    devices = {**old.devices, **{name: _more(old.devices.get(name), one) for name, one in new.devices.items()}}
    readings = dict(old.readings)
    for key, told in new.readings.items():
        _extend(readings, key, told)
    return Gathered(machines, devices, readings)


def _more(old: Any, new: Any) -> Any:
    return new if old is None else replace(new, **{k: v for k, v in vars(old).items() if not vars(new)[k]})


def _extend(readings: dict[tuple[str, str], Told], key: tuple[str, str], told: Told) -> None:
    """Of two samples of the same time the first stays: a rate looks back to the scrape before it, wherever it was asked for."""
    old = readings.get(key)
    if old is None:
        readings[key] = told
        return
    have = set(old.t)
    fresh = [place for place, t in enumerate(told.t) if t not in have]
    t, v = old.t + [told.t[place] for place in fresh], old.v + [told.v[place] for place in fresh]
    d = None if old.d is None or told.d is None else old.d + [told.d[place] for place in fresh]
    if fresh and old.t and told.t[fresh[0]] < old.t[-1]:  # it came late
        order = sorted(range(len(t)), key=t.__getitem__)
        t, v, d = [t[i] for i in order], [v[i] for i in order], d and [d[i] for i in order]
    readings[key] = Told(t, v, d)


def _count(told: Gathered) -> int:
    return sum(len(one.t) for one in told.readings.values())


def is_missing(run: Run) -> bool:
    """Whether a Prometheus was to be asked for a part of the run that is not there yet."""
    return run.remote is not None and (run.ending is None or not run.remote.is_whole(run.duration))


def brought(folder: Path, source: Source | None, seconds: float, say: Callable[[str], None]) -> Run:
    """For a reader: the run, with what was missing fetched, for so long at the most; says in one line what went wrong.

    ``source``: that of the run, if it is known how to be let in there. On a thread, as nobody can tell a look-up of a name to
    hurry. Raises RunUnreadable.
    """
    import threading

    run = read_run(folder)
    if not is_missing(run):
        return run
    problems: list[str] = []
    theirs = None if run.remote is None else Source(run.remote.url, run.remote.match)
    known = source if source == theirs else None

    def work() -> None:
        try:
            fetch(folder, known, seconds)
        except CellmeterError as error:
            problems.append(str(error))
        except Exception as error:  # a reader reads what there is
            problems.append(f"{type(error).__name__}: {error}".splitlines()[0])

    thread = threading.Thread(target=work, daemon=True, name="cellmeter-fetch")
    thread.start()
    thread.join(seconds + 0.5)
    if thread.is_alive():
        problems.append("Prometheus has not answered in time")
    if problems:
        say(f"{problems[0]}; what was fetched before is used, `cellmeter fetch {folder.name}` tries again")
    return read_run(folder)
