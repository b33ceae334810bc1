"""What a run that is being recorded takes now, out of the newest readings that its list has read anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellmeter.holders import others_now
from cellmeter.run import known, time_weighted_mean

if TYPE_CHECKING:
    from cellmeter.run import Run

TREE, RSS = "process.tree.memory.rss", "process.memory.rss"
GPU = "gpu.process.memory.used"
CPU_SECONDS = 2.0  # CPU use of a quarter of a second jumps about
FRESH_SECONDS = 10.0  # a reading older than that beside the newest is of a source that tells no more
STALE_SECONDS = 60.0  # no sample for so long: the recorder hangs, or the disk is full


def now_of(run: Run, epoch: float) -> dict[str, Any] | None:
    """Of a run that goes on, at a moment in seconds since the epoch: the value of ``now`` in ``cellmeter runs --json``.

    What is unknown is None. ``memory_bytes`` counts workers; ``memory_limit`` is the least there is, and what sets it.
    """
    if run.ending is not None:
        return None
    limit = run.limits.get("memory_bytes")
    return {
        "cpu_cores": _cores(run, epoch),
        "memory_bytes": _newest(run, TREE if run.subjects(TREE) else RSS, "process", epoch),
        "memory_limit": {"value": limit.value if limit else None, "from": limit.source if limit else None},
        "gpu_memory_bytes": _gpu_memory(run, epoch),
        "gpu_others": _others(run, epoch),
    }


def _others(run: Run, epoch: float) -> list[dict[str, Any]]:
    """The processes of others on the GPUs that the kernel holds."""
    gpus = {one.gpu for one in run.holders if one.whose == "kernel" and one.end is None and _is_told(run, epoch)}
    return [
        {"gpu": one.gpu, "pid": one.pid, "user": one.user, "name": one.name, "used_bytes": one.most_bytes}
        for one in others_now(run.holders)
        if one.gpu in gpus
    ]


def _is_told(run: Run, epoch: float) -> bool:
    """Whether the run's samples are of now."""
    return epoch - run.epoch(run.duration) < STALE_SECONDS


def _newest(run: Run, metric: str, subject: str, epoch: float) -> float | None:
    values = known(run.series(metric, subject).between(run.duration - FRESH_SECONDS, run.duration).values)
    return float(values[-1]) if len(values) and _is_told(run, epoch) else None


def _cores(run: Run, epoch: float) -> float | None:
    use = run.series("process.cpu.usage", "process")
    return time_weighted_mean(use, run.duration - CPU_SECONDS, run.duration) if _is_told(run, epoch) else None


def _gpu_memory(run: Run, epoch: float) -> float | None:
    """Of the kernel and its workers, on all GPUs whose driver tells; None where none does."""
    held = (_newest(run, GPU, gpu, epoch) for gpu in run.subjects(GPU))
    told = [amount for amount in held if amount is not None]
    return sum(told) if told else None
