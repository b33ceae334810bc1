"""What a cell used, from its edges and its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.metrics import (
    LONGEST_READING_SECONDS,
    SHORT_FOR_CPU_SECONDS,
    SHORT_FOR_ENERGY_SECONDS,
    SHORT_FOR_UTILIZATION_SECONDS,
)
from cellmeter.series import (
    MOST_UNREAD,
    Interval,
    Series,
    began_anew,
    growth_within,
    known,
    last_known,
    quantile,
    readings_around,
    seconds_since,
    time_weighted_mean,
)
from cellmeter.words import given_text

if TYPE_CHECKING:
    from cellmeter.run import Cell, Device, OwnCpu, Run

DRIVER_SAMPLE_SECONDS = 1 / 6
BORN_SINCE_SECONDS = 0.02  # of CPU time: clocks and ticks are no finer to tell whether a worker was there before a cell
ENOUGH = 0.8  # of an interval must have been observed to judge it
MOSTLY_UNREAD = f"it was read for less than {given_text(100 * ENOUGH, '%')} of the cell"
LATE_EDGE_SECONDS = 2.0  # the recorder takes a cell's last sample when the edge reaches it: late on a starved machine
NO_LIST = "the driver's process lists are read every 2 s, and none was while this cell ran"
LEAST_UNSEEN = 2**30  # beyond the kernel's own memory on a GPU: drivers keep up to 0.6 GiB for themselves
PROCESSES = "gpu-processes"  # the stream of who holds a context on each GPU
PROCESS_LIST_SECONDS = 2.0  # NVML's process lists are read this often: one call can hold the driver's lock for 4.5 ms
HELD, FOREIGN, USED = "gpu.process.memory.used", "gpu.foreign.processes", "gpu.memory.used"
CONTEXT_BYTES = 64 << 20  # a CUDA context takes no less of a GPU's memory; most take some 400 MB


class ProcessList(NamedTuple):
    """What the driver's list of processes says of a GPU, and the memory in use on it at that moment. NaN: unknown."""

    held: float
    """Bytes of the kernel and its descendants."""
    foreign: float
    """Processes of others."""
    used: float
    """Bytes of all."""


class GpuMemory(NamedTuple):
    """Device memory of one GPU over a cell, in bytes. None: unknown.

    ``peak``: of all who use it; ``own``: of the kernel and its descendants, by the process lists, one every two seconds, and no
    less than ``torch``, PyTorch's own mark; ``others``: the most that others held at one of these lists.
    """

    peak: int | None
    own: int | None
    others: int | None
    torch: int | None

    @classmethod
    def of(cls, lists: Sequence[ProcessList], peak: float | None, torch: int | None) -> GpuMemory:
        """From the process lists of a cell, the GPU's own peak and PyTorch's."""
        held = [one.held for one in lists if one.held == one.held]
        own = peak_of(torch, max(held)) if held else None
        return cls(None if peak is None else int(peak), own, _others(lists), torch)

    @property
    def shared(self) -> bool:
        """Whether others held some of it, and it is known how much was the kernel's."""
        return bool(self.others) and self.own is not None

    @property
    def own_exact(self) -> bool:
        """Whether ``own`` knows of what was held between two lists."""
        return self.torch is not None


def _others(lists: Sequence[ProcessList]) -> int | None:
    """Where nobody else can be seen, as in a container, it is what is always there beyond the kernel's own, if it is much."""
    beyond = [
        (one.foreign, max(0.0, one.used - one.held)) for one in lists if one.used - one.held == one.used - one.held
    ]
    known = [(foreign, rest) for foreign, rest in beyond if foreign == foreign]
    if known:
        return int(max(rest if foreign else 0.0 for foreign, rest in known))
    least = min((rest for _, rest in beyond), default=0.0)
    return int(max(rest for _, rest in beyond)) if least >= LEAST_UNSEEN else None


def own_part(memory: Mapping[str, GpuMemory]) -> str | None:
    """Of which of a cell's GPUs it is to be said how much of its memory was the kernel's: that of which it held most.

    None where nobody else held any, or some of it is not known.
    """
    own = {gpu: part.own for gpu, part in memory.items() if part.own is not None}
    if len(own) < len(memory) or not any(part.shared for part in memory.values()):
        return None
    return max(own, key=lambda gpu: own[gpu])


@dataclass(frozen=True)
class GpuUsage:
    """What one cell did to one GPU. None: unknown."""

    utilization_mean: float | None
    utilization_p95: float | None
    memory_peak_bytes: int | None
    energy_joules: float | None
    torch_peak_bytes: int | None
    own_memory_peak_bytes: int | None
    others_memory_peak_bytes: int | None

    @property
    def memory(self) -> GpuMemory:
        """Whose its memory was."""
        return GpuMemory(
            self.memory_peak_bytes, self.own_memory_peak_bytes, self.others_memory_peak_bytes, self.torch_peak_bytes
        )


@dataclass(frozen=True)
class CellUsage:
    """What one cell used; ``cores`` on the average. ``unknown`` says why a number is None, by its dotted key."""

    samples: int
    cpu_seconds: float | None
    cores: float | None
    peak_rss_bytes: int | None
    peak_exact: bool
    rss_start_bytes: int | None
    rss_end_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None
    gpu: Mapping[str, GpuUsage]
    unknown: Mapping[str, str]


def usages(run: Run) -> tuple[CellUsage, ...]:
    """What each of a run's cells used: GPU by GPU, and not cell by cell, as their readings are read column by column."""
    gpus = [gpu_usages(run, device) for device in run.devices]
    return tuple(_usage(run, cell, [of_cells[n] for of_cells in gpus]) for n, cell in enumerate(run.cells))


def gpu_usages(run: Run, device: Device) -> Sequence[tuple[GpuUsage, Mapping[str, str]]]:
    """What each of a run's cells did to one GPU, and why some of it is not known."""
    key = ("gpu-usages", device.id)
    if key not in run.memo:
        run.memo[key] = [_gpu_usage(run, device, cell, _end(run, cell)) for cell in run.cells]
    found: Sequence[tuple[GpuUsage, Mapping[str, str]]] = run.memo[key]
    return found


def cell_usage(run: Run, cell: Cell) -> CellUsage:
    """What a cell used; see :class:`CellUsage`."""
    return _usage(run, cell, [_gpu_usage(run, device, cell, _end(run, cell)) for device in run.devices])


def _end(run: Run, cell: Cell) -> float:
    return run.duration if cell.end is None else cell.end


def _usage(run: Run, cell: Cell, gpus: Sequence[tuple[GpuUsage, Mapping[str, str]]]) -> CellUsage:
    end = _end(run, cell)
    unknown: dict[str, str] = {}
    rss = _tagged(run.series("process.memory.rss", "process"), cell, end)
    sampled = known(rss.values)
    exact = cell.peak_rss_bytes is not None
    peak = peak_of(cell.peak_rss_bytes, float(sampled.max()) if len(sampled) else None)
    if not exact:
        unknown["peak_exact"] = cell.peak_unknown or "the cell has no end record"
    first, last = cell.rss_start_bytes, cell.rss_end_bytes
    if first is None and len(sampled):
        first = int(sampled[0])
    if last is None and len(sampled) > 1:
        last = int(sampled[-1])
    why = run.unavailable.get("process.memory.rss:process", "too few samples in this cell")
    for key, value in (("peak_rss_bytes", peak), ("rss_start_bytes", first), ("rss_end_bytes", last)):
        if value is None:
            unknown[key] = why
    for _, reasons in gpus:
        unknown |= reasons
    gpu = {device.id: used for device, (used, _) in zip(run.devices, gpus, strict=True)}
    cpu = _cell_cpu(run, cell, end, unknown)
    read, written = (
        _disk_bytes(run, cell, end, metric, own, unknown)
        for metric, own in (("read", cell.own_read_bytes), ("written", cell.own_written_bytes))
    )
    cores = run.rates.mean_cores(cpu, end - cell.start)
    if cores is None:
        unknown["cores"] = unknown.get("cpu_seconds", f"cell shorter than {SHORT_FOR_CPU_SECONDS:g} s")
    return CellUsage(len(rss.time), cpu, cores, peak, exact, first, last, read, written, gpu, unknown)


def peak_of(mark: int | None, sampled: float | None) -> int | None:
    """Peak memory of a cell, by the kernel's mark and by its samples.

    Linux counts both apart, and per processor: a reading may stand some pages above the mark, which misses no moment.
    """
    return max((int(value) for value in (mark, sampled) if value is not None), default=None)


def _disk_bytes(run: Run, cell: Cell, end: float, name: str, own: int | None, unknown: dict[str, str]) -> int | None:
    """The kernel's own count at the edges is exact, and all there is without workers; else the samples know of these too.

    Then it is the more of both; but if a worker ended that was there before, the kernel's own count has all that it ever did.
    """
    sampled = _growth(run.series(f"process.disk.{name}", "process"), cell, end)
    before, least, most = _workers(run, cell, end)
    if own is not None and most == 0:  # the samples begin and end a little later than the cell
        return own
    if sampled is not None and least < before:
        own = None
    found = [int(value) for value in (own, sampled) if value is not None]
    if not found:
        unknown[f"{name}_bytes"] = run.unavailable.get(f"process.disk.{name}", "too few samples in this cell")
    return max(found, default=None)


def _workers(run: Run, cell: Cell, end: float) -> tuple[float, float, float]:
    """How many there were at a cell's start, and the least and the most of them since; NaN if that is unknown."""
    workers = run.series("process.children", "process")
    inside = known(_tagged(workers, cell, end).values)
    if not len(inside):
        return math.nan, math.nan, math.nan
    before = last_known(workers, cell.start)
    if before is None:  # the recorder was only starting: any that it found then may have been there
        before = float(inside[0])
    return before, float(inside.min()), max(before, float(inside.max()))


def _tagged(series: Series, cell: Cell, end: float) -> Series:
    """The samples taken while a cell ran, whatever ran within it, and the one taken at its end."""
    part = series.between(cell.start, end + LATE_EDGE_SECONDS)
    mine = ((part.time <= end) & (part.seq > 0)) | (part.seq == cell.seq)
    return Series(part.time[mine], part.values[mine], part.seq[mine])


def last_sample(run: Run, cell: Cell) -> float:
    """When the sample at a cell's end was taken, a little after that: what comes next is another cell's."""
    end = _end(run, cell)
    taken = _tagged(run.series("process.memory.rss", "process"), cell, end).time
    return max(end, float(taken[-1])) if len(taken) else end


def _cell_cpu(run: Run, cell: Cell, end: float, unknown: dict[str, str]) -> float | None:
    """See :func:`cpu_seconds`."""
    total = _growth(run.series("process.cpu.time", "process"), cell, end)
    of_workers = run.series("process.children.cpu.time", "process")
    time, values, _ = _tagged(of_workers, cell, end)
    workers = None
    if len(known(values)):
        before = last_known(of_workers, cell.start) or 0.0
        workers = WorkersCpu(before, float(known(values)[0]), float(known(values)[-1]), float(time[0]) - cell.start)
    used = cpu_seconds(cell.own_cpu, total, workers, run.rates.own_cores)
    if used is None:
        unknown["cpu_seconds"] = "too few samples in this cell"
    return used


class WorkersCpu(NamedTuple):
    """CPU seconds of living workers: at the last sample before a cell, at its first, ``late`` seconds on, and at its last."""

    before: float
    first: float
    last: float
    late: float

    def there_before(self, cores: float) -> bool:
        """Whether some were there when the cell started: they have used more than those that were born since can have."""
        return self.before > BORN_SINCE_SECONDS or self.first > BORN_SINCE_SECONDS + cores * self.late


def cpu_seconds(own: OwnCpu, total: float | None, workers: WorkersCpu | None, cores: float) -> float | None:
    """CPU time of a cell that could run on so many cores.

    ``own``: by the kernel's clocks at its edges; ``total``: by the samples, from the first to the last. The kernel's own clocks
    are exact, but count a worker when it is waited for, whenever it worked. So they serve where no worker was there at the
    start; what those born since did is added. Else the samples tell, which begin and end a little later than the cell: what the
    kernel process did alone it did in any case.
    """
    if own.seconds is None or (total is not None and workers is not None and workers.there_before(cores)):
        return total if total is None or own.alone is None else max(total, own.alone)
    return own.seconds if total is None or workers is None else max(own.seconds + workers.last, total)


def _growth(counter: Series, cell: Cell, end: float) -> float | None:
    values = known(_tagged(counter, cell, end).values)
    return float(values[-1] - values[0]) if len(values) > 1 else None


def _gpu_usage(run: Run, device: Device, cell: Cell, end: float) -> tuple[GpuUsage, Mapping[str, str]]:
    """And why some of it is not known."""
    gpu, unknown = device.id, dict[str, str]()
    prefix, seconds = f"gpu.{gpu}.", end - cell.start
    utilization = run.series("gpu.utilization", gpu)
    if seconds < SHORT_FOR_UTILIZATION_SECONDS:
        # too short for readings of ours; a sample of the driver's stands for the sixth of a second before it
        own = run.series("gpu.utilization.driver", gpu).between(cell.start, end + DRIVER_SAMPLE_SECONDS)
        if len(known(own.values)):
            utilization, end = own, end + DRIVER_SAMPLE_SECONDS
    utilization = utilization.between(cell.start, end)
    inside = known(utilization.values)
    mean = time_weighted_mean(utilization, cell.start, end)
    p95 = quantile(inside, 0.95) if len(inside) else None
    if mean is None or _mostly_unread(run, utilization, max(cell.start, device.since), end):
        why = _gpu_unknown(run, "gpu.utilization", device, end) if mean is None else MOSTLY_UNREAD
        mean = p95 = None
        unknown[prefix + "utilization_mean"] = unknown[prefix + "utilization_p95"] = why
    energy = _energy(run, device, Interval(cell.start, cell.start + seconds), unknown)
    memory = _gpu_memory(run, device, cell, cell.start + seconds, unknown)
    return GpuUsage(mean, p95, memory.peak, energy, memory.torch, memory.own, memory.others), unknown


def _energy(run: Run, device: Device, ran: Interval, unknown: dict[str, str]) -> float | None:
    """Joules of a GPU while a cell ran, or since the GPU came."""
    counter, there = run.series("gpu.energy", device.id), Interval(max(ran.start, device.since), ran.end)
    if not len(known(counter.between(*there).values)):
        why = _gpu_unknown(run, "gpu.energy", device, ran.end)
    elif ran.end - ran.start < SHORT_FOR_ENERGY_SECONDS:
        why = "cell shorter than the counter's period"
    elif (energy := growth_within(counter, [there])) is not None:
        return energy
    elif began_anew(readings_around(counter, there)[1]):
        why = "the GPU's counter began anew within the cell: it was reset"
    else:
        why = f"it was read for less than {given_text(100 * (1 - MOST_UNREAD), '%')} of the cell"
    unknown[f"gpu.{device.id}.energy_joules"] = why
    return None


def _gpu_memory(run: Run, device: Device, cell: Cell, end: float, unknown: dict[str, str]) -> GpuMemory:
    prefix, torch = f"gpu.{device.id}.", cell.torch_peak_bytes.get(device.uuid)
    if torch is None:
        unknown[prefix + "torch_peak_bytes"] = "PyTorch was not in use, or the cell stayed below an earlier peak"
    used = known(_tagged(run.series(USED, device.id), cell, end).values)
    if not len(used):
        unknown[prefix + "memory_peak_bytes"] = _gpu_unknown(run, USED, device, end)
    lists = process_lists(run, device, cell.start, end)
    memory = GpuMemory.of(lists, float(used.max()) if len(used) else None, torch)
    if memory.own is None:
        unknown[prefix + "own_memory_peak_bytes"] = _gpu_unknown(run, HELD, device, end, NO_LIST)
    if memory.others is None:
        why = _gpu_unknown(run, FOREIGN, device, end, NO_LIST)
        unknown[prefix + "others_memory_peak_bytes"] = unknown.get(prefix + "own_memory_peak_bytes", why)
    return memory


def process_lists(run: Run, device: Device, start: float, end: float) -> list[ProcessList]:
    """The process lists of a GPU that were read from ``start`` to ``end``, each with the memory in use at that moment.

    That is read right before them, and has their time.
    """
    import numpy as np

    held, foreign = (run.series(metric, device.id).between(start, end) for metric in (HELD, FOREIGN))
    used = run.series(USED, device.id).between(start, end)
    then = np.full(len(held.time), np.nan)
    at = used.time.searchsorted(held.time)
    there = np.flatnonzero(at < len(used.time))
    there = there[used.time[at[there]] == held.time[there]]
    then[there] = used.values[at[there]]
    return list(map(ProcessList, held.values.tolist(), foreign.values.tolist(), then.tolist()))


def _mostly_unread(run: Run, series: Series, start: float, end: float) -> bool:
    """Whether too much of an interval is without a reading for those there are to speak for it."""
    import numpy as np

    part = series.between(start, end)
    each = seconds_since(part.time, start, max(LONGEST_READING_SECONDS, 2.5 / run.rate_hz))
    unread = end - start - float(each[~np.isnan(part.values)].sum())
    return unread > max((1 - ENOUGH) * (end - start), LONGEST_READING_SECONDS)


def _gpu_unknown(
    run: Run, metric: str, device: Device, end: float, otherwise: str = "too few samples in this cell"
) -> str:
    if end <= device.since:
        return f"{device.id} came after this cell"
    return run.unavailable.get(f"{metric}:{device.id}", otherwise)
