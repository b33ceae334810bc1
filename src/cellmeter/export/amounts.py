"""What a cell and a run come to: memory with and without workers, that of GPUs which others hold too, bytes of disks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cellmeter.charts import notably_more
from cellmeter.rules.memory import RSS, TREE
from cellmeter.rules.observed import readings_of, top_cells
from cellmeter.rules.ownership import not_used
from cellmeter.run import known
from cellmeter.usage import GpuMemory
from cellmeter.words import MIB, bytes_text, of_text

if TYPE_CHECKING:
    from cellmeter.run import Cell, Device, Run

NOTABLE_DISK = 10 * MIB


def tree_peak(run: Run, cell: Cell) -> float | None:
    """The peak of the kernel and its workers together as the samples saw it, and no less than the kernel's own."""
    sampled = readings_of(run, TREE, "process", cell)
    own = run.usage(cell).peak_rss_bytes
    seen = [float(sampled.max())] if len(sampled) else []
    return max([*seen, float(own)] if own is not None else seen, default=None)


class Peaks(NamedTuple):
    """The highest memory of a run: of the kernel alone, exact where its cells' marks are, and with its workers."""

    kernel: float | None
    tree: float | None

    @property
    def most(self) -> float | None:
        """The greater of both."""
        return max((peak for peak in self if peak is not None), default=None)

    @property
    def workers_tell(self) -> bool:
        """Whether workers add so much that both are to be said."""
        return notably_more(self.tree, self.kernel)


def memory_peaks(run: Run) -> Peaks:
    """Of all moments, in cells and between them."""

    def highest(metric: str) -> list[float]:
        values = known(run.series(metric, "process").values)
        return [float(values.max())] if len(values) else []

    marks = [float(cell.peak_rss_bytes) for cell in run.cells if cell.peak_rss_bytes is not None]
    kernel = max([*marks, *highest(RSS)], default=None)
    return Peaks(kernel, max([*marks, *highest(TREE), *highest(RSS)], default=None))


def shared_gpus(run: Run) -> dict[str, GpuMemory]:
    """Whose the memory of the kernel's GPUs was over all cells, of those of which others held some in a cell."""
    others = not_used(run, 0.0, run.duration)
    of_gpus = {device.id: _over_cells(run, device) for device in run.devices if device.id not in others}
    return {gpu: memory for gpu, memory in of_gpus.items() if memory is not None}


def _over_cells(run: Run, device: Device) -> GpuMemory | None:
    cells = [used.gpu[device.id].memory for used in run.usages()]
    if not any(memory.shared for memory in cells):
        return None
    most = max((memory for memory in cells if memory.own is not None), key=lambda memory: memory.own or 0)
    return most._replace(peak=max((memory.peak for memory in cells if memory.peak is not None), default=None))


def disk(run: Run) -> str:
    """What the run made the disks read and write in all."""
    amounts = {name: disk_bytes(run, name) for name in ("read", "written")}
    return ", ".join(f"{bytes_text(count)} {name}" for name, count in amounts.items() if count is not None) or "unknown"


def free_disk(run: Run) -> str:
    """What is free where the run works, by its last reading: ``12.3 GiB of 100 GiB in /``; empty where nobody knows."""
    parts = []
    for mount in run.subjects("host.filesystem.free"):
        free, size = (known(run.series(f"host.filesystem.{what}", mount).values) for what in ("free", "size"))
        if len(free) and len(size):
            parts.append(f"{of_text(float(free[-1]), float(size[-1]), 'By')} in {mount}")
    return ", ".join(parts)


def disk_bytes(run: Run, name: str) -> float | None:
    """Bytes ``read`` or ``written`` by the kernel and its workers; None if there are too few samples.

    From the first sample to the last, and what a cell had done before the first: the kernel runs while its recorder starts.
    """
    counter = run.series(f"process.disk.{name}", "process")
    counted_bytes = known(counter.values)
    if len(counted_bytes) < 2:
        return None
    missed = 0.0
    for cell in (cell for cell in top_cells(run) if cell.start < counter.time[0]):
        sampled = readings_of(run, f"process.disk.{name}", "process", cell)
        own = (cell.own_read_bytes if name == "read" else cell.own_written_bytes) or 0
        missed += max(0.0, own - (float(sampled[-1] - sampled[0]) if len(sampled) else 0.0))
    return float(counted_bytes[-1] - counted_bytes[0]) + missed
