"""Who else held memory of GPUs, before a report gives it a form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellmeter.export.said import Table
from cellmeter.export.summary import Fact, plain
from cellmeter.holders import listed, others_now, told
from cellmeter.rules.ownership import not_used
from cellmeter.words import bytes_text, moment_text

if TYPE_CHECKING:
    from cellmeter.holders import Holder
    from cellmeter.run import Run

SHOWN = 20


def tables(run: Run) -> list[Table]:
    """A row a process and GPU, those that held most first; of GPUs that the kernel may have used, and not its own."""
    idle = not_used(run, 0.0, run.duration)
    if any(cell.gpu_memory_ran_out for cell in run.cells):  # there may have been too little for a context even
        idle &= _hidden(run)
    others = [one for one in run.holders if one.whose != "kernel" and one.gpu not in idle]
    if not others:
        return []
    most = sorted(others, key=lambda one: -(one.most_bytes or 0.0))[:SHOWN]
    notes = []
    if any(one.host_pid for one in most):
        notes.append("process ids are the host's: this kernel may be among them")
    if len(others) > len(most):
        notes.append(f"{len(others) - len(most)} more in the JSON report")
    heads = ("Process", "PID", "GPU", "From", "Until", "At most")
    return [Table("Who else held GPU memory", "; ".join(notes), heads, tuple(_row(run, one) for one in most))]


def _row(run: Run, one: Holder) -> tuple[str, ...]:
    last = "now" if run.ending is None else "the end"
    return (
        plain(one.who),
        str(one.pid),
        plain(one.gpu),
        moment_text(one.start, run.duration),
        last if one.end is None else moment_text(one.end, run.duration),
        bytes_text(one.most_bytes),
    )


def _hidden(run: Run) -> frozenset[str]:
    """The GPUs that the kernel may not use."""
    return frozenset(device.id for device in run.devices if device.mine is False)


def fact(run: Run) -> list[Fact]:
    """Who is on the GPUs that the kernel may use, of a run that goes on."""
    hidden = _hidden(run)
    there = [one for one in others_now(run.holders) if one.gpu not in hidden] if run.ending is None else []
    return [Fact("Others on the GPUs", plain(listed([f"{one.gpu} {told(one)}" for one in there])))] if there else []


def fields(run: Run) -> list[dict[str, Any]]:
    """``gpu_holders`` of the JSON report: all processes, those of the kernel too."""
    return [
        {
            "gpu": one.gpu,
            "pid": one.pid,
            "host_pid": one.host_pid,
            "user": one.user,
            "name": one.name,
            "whose": one.whose,
            "run": one.run,
            "notebook": one.notebook,
            "start": one.start,
            "end": one.end,
            "most_bytes": one.most_bytes,
        }
        for one in run.holders
    ]
