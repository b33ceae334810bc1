"""What other machines did while a run was recorded, as a Prometheus server told it afterwards. No I/O.

Its readings are *coarse*: one each scrape, every 15 seconds or so, each with the server's own time of it. They lie in the run
folder in ``prometheus.jsonl``, are mapped onto the run's clock by its anchors, and joined to cells by what lies inside them.
A gauge counts for the cell in which it was read, a rate only for a cell that holds all of its time.

Subjects are ``node7:gpu0`` and ``node7:host``: no subject of the run's own has such a name. Times are seconds since the run's
start, those in the file milliseconds of the epoch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter.words import given_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Line = Mapping[str, Any]

FILE = "prometheus.jsonl"
USUAL_INTERVAL_SECONDS = 15.0  # where there are too few samples to tell
SETTLE_SECONDS = 30.0  # a sample may come so late: until then the end is asked for once more
SAME_SECONDS = 0.01  # a time that has been to the epoch and back is off by some 100 ns
BEFORE_SECONDS = 600.0  # how long before the first anchor the clock is trusted
SLEW_SECONDS = 0.2  # what the clock may be corrected by between two anchors

UTILIZATION, MEMORY_USED, POWER = "gpu.utilization", "gpu.memory.used", "gpu.power"
CPU, HOST_MEMORY = "host.cpu.usage", "host.memory.used"


@dataclass(frozen=True)
class RemoteMachine:
    """A machine of which there are readings. None: node_exporter did not tell."""

    id: str
    cpu_count: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class RemoteDevice:
    """A GPU of such a machine."""

    id: str
    machine: str
    name: str
    uuid: str
    memory_bytes: int | None = None


class Readings(NamedTuple):
    """Samples of one quantity in the order of time. ``seconds``: how long before its time each began; 0 for a gauge."""

    time: Floats
    values: Floats
    seconds: Floats


class Anchor(NamedTuple):
    """A moment on both clocks: seconds since the run's start, and since the epoch."""

    time: float
    wall: float


@dataclass(frozen=True)
class Remote:
    """What a Prometheus server was asked for, and what it has told so far."""

    url: str
    match: str
    asked: float | None = None
    """When it last answered; None: never yet."""
    until: float | None = None
    """As far as it has been asked for."""
    machines: tuple[RemoteMachine, ...] = ()
    devices: tuple[RemoteDevice, ...] = ()
    readings: Mapping[tuple[str, str], Readings] = field(repr=False, default_factory=dict)
    damaged: bool = False
    """Part of what was fetched cannot be read any more."""
    misplaced: int = 0
    """Samples from when the machine's clock was set: where in the run they belong cannot be told."""

    @property
    def sample_count(self) -> int:
        """All readings together."""
        return sum(len(readings.time) for readings in self.readings.values())

    def interval(self, subject: str) -> float:
        """Seconds between two samples of a subject, as they mostly are."""
        import numpy as np

        times = [readings.time for (_, of), readings in self.readings.items() if of == subject]
        longest = max(times, key=len, default=np.empty(0))
        return float(np.median(np.diff(longest))) if len(longest) > 1 else USUAL_INTERVAL_SECONDS

    @property
    def interval_seconds(self) -> float:
        """The longest interval of all subjects."""
        return max((self.interval(subject) for _, subject in self.readings), default=USUAL_INTERVAL_SECONDS)

    def is_whole(self, duration: float) -> bool:
        """Whether a run that ended after so long has been fetched to its end."""
        if self.asked is None or self.until is None or self.damaged:
            return False
        return self.until >= duration - SAME_SECONDS and self.asked >= duration + SETTLE_SECONDS


# ---- joined to cells -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoteGpuUsage:
    """What a GPU elsewhere did during a cell, by the samples inside it. None: unknown. A peak is the highest of them."""

    samples: int
    utilization_mean: float | None
    memory_peak_bytes: int | None
    power_mean_watts: float | None


@dataclass(frozen=True)
class RemoteMachineUsage:
    """What a machine elsewhere did during a cell, all its processes together."""

    samples: int
    cpu_cores_mean: float | None
    memory_peak_bytes: int | None
    disk_read_bytes_per_second: float | None
    disk_written_bytes_per_second: float | None
    network_received_bytes_per_second: float | None
    network_sent_bytes_per_second: float | None


@dataclass(frozen=True)
class RemoteUsage:
    """One cell's. ``unknown`` says why a number is None, by its dotted key."""

    gpu: Mapping[str, RemoteGpuUsage]
    machines: Mapping[str, RemoteMachineUsage]
    unknown: Mapping[str, str]


_RATES = {
    "cpu_cores_mean": CPU,
    "disk_read_bytes_per_second": "host.disk.read.rate",
    "disk_written_bytes_per_second": "host.disk.written.rate",
    "network_received_bytes_per_second": "host.network.received.rate",
    "network_sent_bytes_per_second": "host.network.sent.rate",
}


def usage_between(remote: Remote, start: float, end: float) -> RemoteUsage:
    """What everything elsewhere did from ``start`` to ``end``, both included."""
    unknown: dict[str, str] = {}

    def known(key: str, metric: str, subject: str, *, highest: bool = False) -> float | None:
        part = inside(remote, metric, subject, start, end)
        if not len(part.time):
            unknown[key] = why_unknown(remote, metric, subject, start, end)
            return None
        return float(part.values.max()) if highest else mean(part)

    def whole(value: float | None) -> int | None:
        return None if value is None else int(value)

    gpu = {
        device.id: RemoteGpuUsage(
            _samples(remote, device.id, start, end),
            known(f"gpu.{device.id}.utilization_mean", UTILIZATION, device.id),
            whole(known(f"gpu.{device.id}.memory_peak_bytes", MEMORY_USED, device.id, highest=True)),
            known(f"gpu.{device.id}.power_mean_watts", POWER, device.id),
        )
        for device in remote.devices
    }
    machines = {}
    for machine in remote.machines:
        host, prefix = host_of(machine.id), f"machines.{machine.id}."
        rates = {name: known(prefix + name, metric, host) for name, metric in _RATES.items()}
        peak = whole(known(f"{prefix}memory_peak_bytes", HOST_MEMORY, host, highest=True))
        samples = _samples(remote, host, start, end)
        machines[machine.id] = RemoteMachineUsage(samples=samples, memory_peak_bytes=peak, **rates)
    return RemoteUsage(gpu, machines, unknown)


def host_of(machine: str) -> str:
    """The subject that stands for a whole machine."""
    return f"{machine}:host"


def inside(remote: Remote, metric: str, subject: str, start: float, end: float) -> Readings:
    """The samples whose time, all of it, lies in an interval."""
    import numpy as np

    none = np.empty(0)
    time, values, seconds = remote.readings.get((metric, subject), Readings(none, none, none))
    chosen = (time - seconds >= start) & (time <= end)
    return Readings(time[chosen], values[chosen], seconds[chosen])


def mean(part: Readings) -> float:
    """Of rates by the time each is about, of gauges the plain one."""
    import numpy as np

    return float(np.average(part.values, weights=part.seconds) if part.seconds.all() else part.values.mean())


def _samples(remote: Remote, subject: str, start: float, end: float) -> int:
    """The most samples that any quantity of a subject has there."""
    counts = (
        int(((readings.time >= start) & (readings.time <= end)).sum())
        for (_, of), readings in remote.readings.items()
        if of == subject
    )
    return max(counts, default=0)


def why_unknown(remote: Remote, metric: str, subject: str, start: float, end: float) -> str:
    """Why there is no sample of a metric between two times."""
    if remote.damaged:
        return "part of what was fetched from Prometheus is damaged: cellmeter fetch brings it again"
    if remote.until is None or start > remote.until:
        return "not fetched from Prometheus yet"
    readings = remote.readings.get((metric, subject))
    if readings is None or not len(readings.time):
        return f"Prometheus has no {metric} of {subject}"
    interval = remote.interval(subject)
    needed = interval + float(readings.seconds.max())  # a rate needs the scrape before it too
    if end - start < needed:
        twice = "twice " if readings.seconds.any() and end - start >= interval else ""
        return f"shorter than {twice}the scrape interval of {given_text(interval, 's')}"
    return "Prometheus has no sample of it from this time"


# ---- out of the file -------------------------------------------------------------------------------------------------


def remote_from(lines: Sequence[Line], damaged: bool, anchors: Sequence[Anchor]) -> Remote | None:
    """What the lines of the file tell, which have their form; None if they name no source."""
    source = next((line for line in lines if line["event"] == "source"), None)
    if source is None:
        return None
    fetched = next((line for line in lines if line["event"] == "fetched"), None)
    told = [line for line in lines if line["event"] == "readings"]
    lost = damaged or (fetched is None and len(lines) > 1)
    if fetched is not None:
        lost = lost or (fetched["lines"], fetched["samples"]) != (len(told), sum(len(line["t"]) for line in told))
    readings, misplaced = _readings(told, anchors)
    return Remote(
        url=source["url"],
        match=source["match"],
        asked=None if fetched is None else _placed(fetched["asked"], anchors),
        until=None if fetched is None else _placed(fetched["until"], anchors),
        machines=tuple(
            RemoteMachine(line["id"], line["cpu_count"], line["memory_bytes"])
            for line in lines
            if line["event"] == "machine"
        ),
        devices=tuple(
            RemoteDevice(line["id"], line["machine"], line["name"], line["uuid"], line["memory_bytes"])
            for line in lines
            if line["event"] == "device"
        ),
        readings=readings,
        damaged=lost,
        misplaced=misplaced,
    )


def _placed(wall: float, anchors: Sequence[Anchor]) -> float:
    """A time that need not lie in the run, by the anchor nearest to it."""
    near = min(anchors, key=lambda anchor: abs(anchor.wall - wall))
    return near.time + wall - near.wall


def _readings(lines: Iterable[Line], anchors: Sequence[Anchor]) -> tuple[dict[tuple[str, str], Readings], int]:
    import numpy as np

    parts: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        if len(line["t"]) != len(line["v"]) or len(line.get("d", line["t"])) != len(line["t"]):
            raise ValueError(f"readings of {line['subject']!r:.40} are not as many as their times")
        parts[line["metric"], line["subject"]].append(line)
    stamps = np.unique(np.array([t for some in parts.values() for line in some for t in line["t"]], float))
    placed = run_times(stamps * 1e-3, anchors)  # once for all: the series of a target have the same times
    found, misplaced = {}, 0
    for key, some in parts.items():
        times = placed[stamps.searchsorted(_joined(some, "t"))]
        sure = ~np.isnan(times)
        misplaced += int((~sure).sum())
        values, seconds = _joined(some, "v")[sure], _joined(some, "d")[sure] * 1e-3
        order = np.unique(times[sure], return_index=True)[1]
        found[key] = Readings(times[sure][order], values[order], seconds[order])
    return found, misplaced


def _joined(lines: Iterable[Line], key: str) -> Floats:
    import numpy as np

    return np.concatenate([np.array(line.get(key, [0] * len(line["t"])), float) for line in lines])


def epochs(times: Floats, anchors: Sequence[Anchor]) -> Floats:
    """Seconds since the epoch at times of a run, by the last anchor before each: in a suspend the two clocks drift apart.

    A clock that was set back went wrong before, so that times never fall.
    """
    import numpy as np

    at, walls = np.array(anchors, float).T
    less = np.minimum.accumulate((walls - at)[::-1])[::-1]
    told: Floats = times + less[np.maximum(at.searchsorted(times, "right") - 1, 0)]
    return told


def run_times(walls: Floats, anchors: Sequence[Anchor]) -> Floats:
    """Seconds since the run's start of times since the epoch, which are in order; NaN where that cannot be told.

    Each anchor speaks for the time up to the next one, unless the clock leapt on the way there, by a suspend or by being set:
    when is not known, so nothing is in that stretch. Nor is what two stretches claim for different times.
    """
    import numpy as np

    low, high = np.full(len(walls), np.inf), np.full(len(walls), -np.inf)
    for number, anchor in enumerate(anchors):
        length = np.inf
        if number + 1 < len(anchors):
            after = anchors[number + 1]
            length = after.time - anchor.time
            if abs(after.wall - anchor.wall - length) > SLEW_SECONDS:
                continue
        first = anchor.wall - (SLEW_SECONDS if number else BEFORE_SECONDS)
        chosen = slice(walls.searchsorted(first, "left"), walls.searchsorted(anchor.wall + length, "right"))
        times = anchor.time + walls[chosen] - anchor.wall
        low[chosen] = np.minimum(low[chosen], times)
        high[chosen] = np.maximum(high[chosen], times)
    with np.errstate(invalid="ignore"):
        return np.where(high - low <= SLEW_SECONDS, (low + high) / 2, np.nan)
