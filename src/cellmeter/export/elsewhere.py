"""What machines elsewhere did, as a Prometheus server told it, before a report gives it a form. Coarse, and said to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cellmeter.export.said import Table
from cellmeter.export.summary import Fact, plain
from cellmeter.remote import MEMORY_USED, POWER, UTILIZATION, host_of
from cellmeter.words import (
    BLANK,
    bytes_text,
    cores_text,
    counted,
    given_text,
    of_text,
    percent_text,
    seconds_text,
    value_text,
)

if TYPE_CHECKING:
    from cellmeter.remote import Readings, Remote, RemoteMachine, RemoteUsage
    from cellmeter.run import Cell, Run

CELLS_SHOWN = 40
GPUS_SHOWN = 64


def interval_words(remote: Remote) -> str:
    """``coarse: a sample every 15 s, from Prometheus``."""
    return f"coarse: a sample every {given_text(remote.interval_seconds, 's')}, from Prometheus"


def fact(run: Run) -> list[Fact]:
    """What was asked for, and what came."""
    remote = run.remote
    if remote is None:
        return []
    asked = plain(f"{remote.url} {remote.match}")
    if remote.asked is None or remote.until is None:
        return [Fact("Prometheus", f"{asked}: not asked yet, it is when the run is over")]
    upto = "" if remote.is_whole(run.duration) else f", up to {seconds_text(max(0.0, min(remote.until, run.duration)))}"
    if not remote.sample_count:
        return [Fact("Prometheus", f"{asked}: it has no samples from the time of this run{upto}")]
    of = f"{counted(len(remote.devices), 'GPU')} and {counted(len(remote.machines), 'machine')}"
    return [
        Fact("Prometheus", f"{asked}: {counted(remote.sample_count, 'sample')} of {of}{upto}; {interval_words(remote)}")
    ]


def tables(run: Run) -> list[Table]:
    """A row a cell and machine, and a row a GPU; the cells too short to hold a sample are counted, not shown."""
    remote = run.remote
    if remote is None or not remote.sample_count:
        return []
    return [table for table in (_cells(run, remote), _gpus(remote)) if table.rows]


def _cells(run: Run, remote: Remote) -> Table:
    usages = [(cell, run.remote_usage(cell)) for cell in run.cells]
    held = [(cell, usage) for cell, usage in usages if usage is not None and _samples(usage)]
    longest = sorted(held, key=lambda pair: -_seconds(run, pair[0]))[:CELLS_SHOWN]
    shown = [pair for pair in held if pair in longest]
    without = len(usages) - len(held)
    notes = [interval_words(remote)]
    if without:
        notes.append(f"{counted(without, 'cell')} without a sample: unknown")
    if len(held) > len(shown):
        notes.append(f"{counted(len(held) - len(shown), 'shorter cell')} left out")
    rows = [
        (f"{plain(cell.title)} · {plain(machine.id)}", *_row(remote, machine, usage))
        for cell, usage in shown
        for machine in remote.machines
    ]
    heads = ("Cell · machine", "Samples", "GPU", "GPU memory", "Power", "CPU", "Memory")
    return Table("Elsewhere, by cell", "; ".join(notes), heads, tuple(rows))


def _seconds(run: Run, cell: Cell) -> float:
    return (run.duration if cell.end is None else cell.end) - cell.start


def _samples(usage: RemoteUsage) -> int:
    gpus, machines = (one.samples for one in usage.gpu.values()), (one.samples for one in usage.machines.values())
    return max((*gpus, *machines), default=0)


def _row(remote: Remote, machine: RemoteMachine, usage: RemoteUsage) -> tuple[str, ...]:
    gpus = [usage.gpu[device.id] for device in remote.devices if device.machine == machine.id]
    host = usage.machines[machine.id]
    use = _all([gpu.utilization_mean for gpu in gpus])
    memory = _all([gpu.memory_peak_bytes for gpu in gpus])
    power = _all([gpu.power_mean_watts for gpu in gpus])
    of = f" of {len(gpus)}" if len(gpus) > 1 else ""
    cores = f" of {machine.cpu_count}" if machine.cpu_count and host.cpu_cores_mean is not None else ""
    return (
        str(max([host.samples, *(gpu.samples for gpu in gpus)])),
        BLANK if use is None else percent_text(sum(use) / len(use)) + of,
        BLANK if memory is None else bytes_text(sum(memory)),
        value_text(None if power is None else sum(power), "W", BLANK),
        cores_text(host.cpu_cores_mean) + cores,
        bytes_text(host.memory_peak_bytes),
    )


def _all(values: Sequence[float | None]) -> list[float] | None:
    """None unless all are known: a sum without one of them would be too small."""
    known = [value for value in values if value is not None]
    return known if known and len(known) == len(values) else None


def _gpus(remote: Remote) -> Table:
    rows = []
    for device in remote.devices[:GPUS_SHOWN]:
        use, memory, power = (_values(remote, metric, device.id) for metric in (UTILIZATION, MEMORY_USED, POWER))
        rows.append(
            (
                f"{plain(device.id)} {plain(device.name)}",
                str(len(use) if use is not None else 0),
                percent_text(None if use is None else float(use.mean())),
                percent_text(None if use is None else float(use.max())),
                BLANK if memory is None else of_text(float(memory.max()), device.memory_bytes, "By"),
                value_text(None if power is None else float(power.mean()), "W", BLANK),
            )
        )
    left = len(remote.devices) - len(rows)
    note = interval_words(remote) + (f"; {left} more GPUs are in the JSON report" if left else "")
    heads = ("GPU", "Samples", "Mean", "Highest", "Memory, highest", "Power, mean")
    return Table("GPUs elsewhere, over the run", note, heads, tuple(rows))


def _values(remote: Remote, metric: str, subject: str) -> Any:
    """Values from the run's start on; what came before only served the rates."""
    found: Readings | None = remote.readings.get((metric, subject))
    values = None if found is None else found.values[found.time >= 0]
    return values if values is not None and len(values) else None


# ---- for programs ----------------------------------------------------------------------------------------------------


def run_fields(run: Run) -> dict[str, Any] | None:
    """``run.remote`` of the JSON report."""
    remote = run.remote
    if remote is None:
        return None
    return {
        "source": "prometheus",
        "url": remote.url,
        "match": remote.match,
        "coarse": True,
        "interval_seconds": remote.interval_seconds if remote.sample_count else None,
        "samples": remote.sample_count,
        "fetched_until": remote.until,
        "complete": remote.is_whole(run.duration),
        "machines": [
            asdict(machine) | {"interval_seconds": _interval(remote, host_of(machine.id))}
            for machine in remote.machines
        ],
        "devices": [asdict(device) | {"interval_seconds": _interval(remote, device.id)} for device in remote.devices],
    }


def _interval(remote: Remote, subject: str) -> float | None:
    return remote.interval(subject) if any(of == subject for _, of in remote.readings) else None


def cell_fields(run: Run, cell: Cell) -> dict[str, Any] | None:
    """``remote`` of a cell: by GPU and by machine, and why what is null is."""
    usage = run.remote_usage(cell)
    return None if usage is None else {"coarse": True, **asdict(usage)}
