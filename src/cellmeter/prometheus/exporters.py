"""What is read of dcgm-exporter and node_exporter, and what it is called here: a small fixed table, whatever else they export.

Gauges of GPUs and of memory are taken as they are. Counters (busy cores, disks, network) become rates between one scrape and
the next, summed over the devices of a machine, so that a machine of 192 cores is one series.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.metrics import CATALOGUE, METRICS
from cellmeter.prometheus.names import DCGM
from cellmeter.remote import RemoteDevice, RemoteMachine, host_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.prometheus.asking import Samples

    Floats = NDArray[np.float64]

Labels = Mapping[str, str]
Answers = Sequence[tuple[Labels, "Samples"]]

GPU: Mapping[str, tuple[str, float]] = {
    **{name: (dcgm.metric, 1 / dcgm.scale) for name, dcgm in DCGM.items() if dcgm.less is None},
    **{
        metric.prometheus: (metric.name, 100.0)
        for metric in CATALOGUE
        if metric.unit == "%" and metric.prometheus and metric.prometheus.startswith("DCGM_FI_PROF_")
    },
}
"""By the exporter's name: ours, and what its readings are multiplied by. Profiling metrics are ratios there, percent here."""
USED, FREE = "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"
TOTAL, AVAILABLE = "node_memory_MemTotal_bytes", "node_memory_MemAvailable_bytes"
CPU = "node_cpu_seconds_total"
TRAFFIC: Mapping[str, str] = {
    "node_disk_read_bytes_total": "host.disk.read.rate",
    "node_disk_written_bytes_total": "host.disk.written.rate",
    "node_network_receive_bytes_total": "host.network.received.rate",
    "node_network_transmit_bytes_total": "host.network.sent.rate",
}
NOT_COUNTED = re.compile(r"(lo|veth.*|docker.*|br-.*|virbr.*|cni.*|flannel.*|dm-.*|md\d.*|loop.*|ram.*|zram.*)")
"""Interfaces and disks whose bytes are counted at another one too, as the recorder leaves them out."""
MATCHERS = (
    f'__name__=~"{"|".join([*GPU, FREE, TOTAL, AVAILABLE, *TRAFFIC])}"',
    f'__name__="{CPU}",mode=~"idle|iowait"',
)
"""What to ask for, beside the user's own selector."""
MEBIBYTE = 2.0**20
BLANK = 2.0**31 - 16  # DCGM's codes for "no value" begin here; no reading in its units is so high
NAME_LENGTH = 60


class Told(NamedTuple):
    """Samples of one quantity: milliseconds of the epoch, values, and for rates how many milliseconds each is about."""

    t: list[int]
    v: list[float]
    d: list[int] | None = None


class Gathered(NamedTuple):
    """What answers amount to. ``readings``: by metric and subject."""

    machines: dict[str, RemoteMachine]
    devices: dict[str, RemoteDevice]
    readings: dict[tuple[str, str], Told]


class Places:
    """Which machine each series is of, by the labels of all of them.

    A machine is called by the ``Hostname`` that dcgm-exporter gives, else by its instance without the port; by its whole
    instance where two have the same name.
    """

    def __init__(self, series: Sequence[Labels]) -> None:
        self._known: dict[str, str] = {}
        said = {_instance(labels): _hostname(labels) for labels in series if _is_gpu(labels)}
        hosts = {_host(instance): name for instance, name in said.items() if name}
        owners: dict[tuple[str, str], set[str]] = defaultdict(set)
        for labels in series:
            instance = _instance(labels)
            name = said.get(instance) or hosts.get(_host(instance)) or _host(instance) or "remote"
            self._known[instance] = name
            thing = _gpu(labels) if _is_gpu(labels) else labels.get("__name__", "")
            owners[name, thing].add(_uuid(labels) if _is_gpu(labels) else instance)
        twice = {name for (name, _), those in owners.items() if len(those) > 1}
        for instance, name in self._known.items():
            if name in twice and instance:
                self._known[instance] = instance

    def of(self, labels: Labels) -> str:
        """The machine's name."""
        return self._known.get(_instance(labels), _host(_instance(labels)) or "remote")[:NAME_LENGTH]

    @property
    def machines(self) -> list[str]:
        """All names."""
        return sorted({name[:NAME_LENGTH] for name in self._known.values()})


def _is_gpu(labels: Labels) -> bool:
    return labels.get("__name__", "").startswith("DCGM_")


def _instance(labels: Labels) -> str:
    return labels.get("instance", "")


def _hostname(labels: Labels) -> str:
    return labels.get("Hostname") or labels.get("hostname") or ""


def _host(instance: str) -> str:
    """``node7:9400`` without the port, ``[::1]:9400`` too."""
    return re.sub(r":\d+$", "", instance).strip("[]")


def _uuid(labels: Labels) -> str:
    return labels.get("UUID") or labels.get("uuid") or ""


def _gpu(labels: Labels) -> str:
    """``gpu0``, or ``gpu0.mig7`` by the id of the MIG instance."""
    mig = labels.get("GPU_I_ID")
    return f"gpu{labels.get('gpu', '?')}{f'.mig{mig}' if mig else ''}"[:NAME_LENGTH]


def gathered(answers: Answers, places: Places) -> Gathered:
    """Readings under our names, with the machines and GPUs they are of."""
    found = Gathered({}, {}, {})
    of_gpus: dict[str, list[tuple[Labels, Samples]]] = defaultdict(list)
    of_hosts: dict[str, list[tuple[Labels, Samples]]] = defaultdict(list)
    for labels, samples in answers:
        if not samples or "__name__" not in labels:
            continue
        machine = places.of(labels)
        found.machines.setdefault(machine, RemoteMachine(machine))
        if _is_gpu(labels):
            of_gpus[f"{machine}:{_gpu(labels)}"].append((labels, samples))
        else:
            of_hosts[machine].append((labels, samples))
    for device, series in of_gpus.items():
        _take_gpu(found, places.of(series[0][0]), device, series)
    for machine, series in of_hosts.items():
        _take_host(found, machine, series)
    return found


def _take_gpu(found: Gathered, machine: str, device: str, series: Answers) -> None:
    by_name = _by(series, "__name__")
    for name, (metric, scale) in GPU.items():
        time, values = _merged(by_name.get(name, ()))
        top = 100.0 / scale if METRICS[metric].unit == "%" else BLANK
        sound = (values >= 0) & (values <= top) & (values < BLANK)
        if sound.any():
            found.readings[metric, device] = Told(_milliseconds(time[sound]), (values[sound] * scale).tolist())
    total = _at_same_times(_merged(by_name.get(USED, ())), _merged(by_name.get(FREE, ())))
    sums = [used + free for _, used, free in total if 0 <= used < BLANK and 0 <= free < BLANK]
    labels = max((labels for labels, _ in series), key=lambda labels: len(labels.get("modelName", "")))
    memory = int(max(sums) * MEBIBYTE) if sums else None
    name = labels.get("modelName") or labels.get("name") or "GPU"
    found.devices[device] = RemoteDevice(device, machine, name[:NAME_LENGTH], _uuid(labels)[:NAME_LENGTH], memory)


def _take_host(found: Gathered, machine: str, series: Answers) -> None:
    by_name, host = _by(series, "__name__"), host_of(machine)
    memory = _at_same_times(_merged(by_name.get(TOTAL, ())), _merged(by_name.get(AVAILABLE, ())))
    sound = [(t, total - free) for t, total, free in memory if 0 <= free <= total]
    if sound:
        times, values = zip(*sound, strict=True)
        found.readings["host.memory.used", host] = Told(_milliseconds(times), list(values))
    for name, metric in TRAFFIC.items():
        parts = _by(
            [one for one in by_name.get(name, ()) if not NOT_COUNTED.fullmatch(one[0].get("device", ""))], "device"
        )
        if rates := _summed([_merged(part) for part in parts.values()]):
            found.readings[metric, host] = rates
    cores = _by(by_name.get(CPU, ()), "cpu")
    if rates := _busy(cores.values()):
        found.readings["host.cpu.usage", host] = rates
    totals = [total for _, total, _ in memory]
    found.machines[machine] = RemoteMachine(machine, len(cores) or None, int(max(totals)) if totals else None)


def _by(series: Answers, label: str) -> dict[str, list[tuple[Labels, Samples]]]:
    parts: dict[str, list[tuple[Labels, Samples]]] = defaultdict(list)
    for labels, samples in series:
        parts[labels.get(label, "")].append((labels, samples))
    return parts


Line = tuple["Floats", "Floats"]


def _merged(series: Answers) -> Line:
    """One line out of several series of the same thing: a pod that was replaced goes on under other labels.

    Of those that overlap, as under two jobs, only the longest counts.
    """
    import numpy as np

    lines = [np.array(samples, float).T for _, samples in sorted(series, key=lambda one: -len(one[1])) if samples]
    kept: list[NDArray[np.float64]] = []
    for line in lines:
        if all(line[0, -1] < other[0, 0] or line[0, 0] > other[0, -1] for other in kept):
            kept.append(line)
    if not kept:
        return np.empty(0), np.empty(0)
    time, values = np.concatenate(sorted(kept, key=lambda line: float(line[0, 0])), axis=1)
    sound = np.isfinite(values)
    return time[sound], values[sound]


def _at_same_times(one: Line, other: Line) -> list[tuple[float, float, float]]:
    """Time and both values, wherever both have a sample of the same scrape."""
    import numpy as np

    times, first, second = np.intersect1d(one[0], other[0], return_indices=True)
    return list(zip(times.tolist(), one[1][first].tolist(), other[1][second].tolist(), strict=True))


def _increases(lines: Sequence[Line]) -> tuple[Floats, Floats]:
    """The times of all scrapes, and how much each counter grew up to each but the first: NaN where that is not known.

    Where one counter has begun anew, the machine has: then nothing is known of any.
    """
    import numpy as np

    times = np.unique(np.concatenate([line[0] for line in lines]))
    table = np.full((len(times), len(lines)), np.nan)
    for column, (time, values) in enumerate(lines):
        table[times.searchsorted(time), column] = values
    grown = np.diff(table, axis=0)
    with np.errstate(invalid="ignore"):
        grown[(grown < 0).any(axis=1)] = np.nan
    return times, grown


def _summed(lines: Sequence[Line]) -> Told | None:
    """Increase per second of all counters together, between each scrape and the next."""
    import numpy as np

    lines = [line for line in lines if len(line[0])]
    if not lines:
        return None
    times, grown = _increases(lines)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(grown).any(axis=1))
    return _rates(times, np.nansum(grown, axis=1), known)


def _busy(cores: Iterable[Answers]) -> Told | None:
    """Cores that did not idle: of each its time less what it idled or waited for disks, where all cores are known."""
    import numpy as np

    modes = [_by(core, "mode") for core in cores]
    lines = [_merged(mode.get("idle", ())) for mode in modes]
    if not lines or not all(len(time) for time, _ in lines):
        return None
    waits = [_merged(mode.get("iowait", ())) for mode in modes]
    times, idle = _increases(lines)
    waiting = np.zeros(len(idle))
    if all(len(time) for time, _ in waits):
        wait_times, waited = _increases(waits)
        if len(wait_times) == len(times) and (wait_times == times).all():
            waiting = np.nansum(
                waited, axis=1
            )  # Linux lets it fall now and then: what is not known of it counts as work
    seconds = np.diff(times)
    busy = len(lines) * seconds - idle.sum(axis=1) - waiting
    return _rates(times, busy.clip(0, None), np.isfinite(busy))


def _rates(times: Floats, grown: Floats, known: NDArray[np.bool_]) -> Told | None:
    import numpy as np

    if not known.any():
        return None
    seconds = np.diff(times)
    stamps = np.array(_milliseconds(times))
    return Told(stamps[1:][known].tolist(), (grown / seconds)[known].round(6).tolist(), np.diff(stamps)[known].tolist())


def _milliseconds(times: Iterable[float]) -> list[int]:
    return [round(time * 1000) for time in times]
