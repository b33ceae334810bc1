"""The processes that held memory of GPUs, and how they are named: by user, name and id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cellmeter.words import bytes_text

NAMED = 3  # in a sentence

Whose = Literal["kernel", "other"]


class Amount(NamedTuple):
    """What a process held from a time on, in seconds since the run's start. None: the driver does not say; 0: nothing."""

    time: float
    used_bytes: float | None


@dataclass(frozen=True)
class Holder:
    """A process that held memory of one GPU. None: unknown, as a process of another container is, or one that /proc hides.

    ``pid`` is an id of the recorder's namespace; with ``host_pid`` it is the host's, which tells nothing in a container.
    ``start_ticks``: when the process began, in clock ticks since the machine did. ``run`` and ``notebook``: the recording of
    it that was in the same folder. ``amounts``: changes of less than a twentieth or 256 MiB are left out. ``end``: None if
    it was there to the last.
    """

    gpu: str
    pid: int
    host_pid: bool
    start_ticks: int | None
    user: str | None
    name: str | None
    whose: Whose | None
    run: str | None
    notebook: str | None
    end: float | None
    amounts: tuple[Amount, ...]

    @property
    def start(self) -> float:
        """When it was first seen."""
        return self.amounts[0].time

    @property
    def most_bytes(self) -> float | None:
        """The most it held; None if that is never known."""
        return max((used for _, used in self.amounts if used is not None), default=None) or None

    def between(self, start: float, end: float) -> Holder | None:
        """The same with what it held from one time to another; None if it was not there."""
        ends = [amount.time for amount in self.amounts[1:]] + [float("inf")]
        inside = tuple(
            amount
            for amount, until in zip(self.amounts, ends, strict=True)
            if amount.time <= end and until > start and amount.used_bytes != 0
        )
        return replace(self, amounts=inside) if inside else None

    @property
    def who(self) -> str:
        """``alice's python``, and of what it is the kernel if that is known."""
        if self.host_pid:
            return "a process here or in another container"
        user = f"user {self.user}" if self.user is not None and self.user.isdigit() else self.user
        if user is not None:
            process = f"{user}'s {self.name}" if self.name is not None else f"a process of {user}"
        else:
            process = self.name or "a process that cannot be seen"
        return process if self.recording is None else f"{self.recording} ({process})"

    @property
    def title(self) -> str:
        """``alice's python, pid 4711``."""
        return f"{self.who}, pid {self.pid}{' of the host' if self.host_pid else ''}"

    @property
    def recording(self) -> str | None:
        """What is recorded of it: its notebook's or script's file, else the run's id; None if nothing is."""
        return Path(self.notebook).name if self.notebook else self.run


class _Seen:
    """A process while events are read."""

    def __init__(self, gpu: str, host_pid: bool) -> None:
        self.gpu = gpu
        self.host_pid = host_pid
        self.fields: Mapping[str, Any] = {}
        self.is_kernels = False
        self.end: float | None = None
        self.amounts: list[Amount] = []

    def seen(self, fields: Mapping[str, Any], time: float) -> None:
        used = fields["used_bytes"]
        self.fields, self.end = fields, None
        self.is_kernels = self.is_kernels or fields["whose"] == "kernel"
        self._holds(Amount(time, None if used is None else float(used)))

    def gone(self, time: float) -> None:
        self.end = time
        self._holds(Amount(time, 0.0))

    def _holds(self, amount: Amount) -> None:
        if not self.amounts or self.amounts[-1].used_bytes != amount.used_bytes:
            self.amounts.append(amount)

    def holder(self) -> Holder:
        fields, whose = self.fields, self.fields["whose"]
        return Holder(
            gpu=self.gpu,
            pid=fields["pid"],
            host_pid=self.host_pid,
            start_ticks=fields["start"],
            user=fields["user"],
            name=fields["name"],
            whose="kernel" if self.is_kernels else "other" if whose == "other" else None,
            run=fields.get("run"),
            notebook=fields.get("notebook"),
            end=self.end,
            amounts=tuple(self.amounts),
        )


def holders_from(events: Iterable[Mapping[str, Any]], start_ns: int) -> tuple[Holder, ...]:
    """From the events of a run, each of which has all processes of one GPU; by the time they were first seen."""
    found: dict[tuple[Any, ...], _Seen] = {}
    there: dict[str, set[tuple[Any, ...]]] = {}
    for event in events:
        kind = event.get("event")
        if kind not in ("holders", "lost"):
            continue
        gpu, time = event["subject"], max(0.0, (event["t"] - start_ns) * 1e-9)
        host_pids = event.get("host_pids", False)
        now = {(gpu, host_pids, fields["pid"], fields["start"]): fields for fields in event.get("processes", ())}
        for key in there.get(gpu, set()) - now.keys():
            found[key].gone(time)
        for key, fields in now.items():
            found.setdefault(key, _Seen(gpu, host_pids)).seen(fields, time)
        there[gpu] = set(now)
    return tuple(one.holder() for one in found.values())


def others_on(
    holders: Iterable[Holder], gpu: str, start: float, end: float, *, within: float = 0.0
) -> tuple[Holder, ...]:
    """The processes of others on a GPU from ``start`` to ``end``, with what they held then, those that held most first.

    ``within``: how often they are looked for, in seconds; of a time that may lie between two looks, both of these count.
    """
    theirs = [one for one in holders if one.gpu == gpu and one.whose == "other"]
    found = [part for one in theirs if (part := one.between(start, end)) is not None]
    if not found and end - start < 2 * within:
        return others_on(theirs, gpu, start - within, end + within)
    return tuple(sorted(found, key=lambda one: -(one.most_bytes or 0.0)))


def others_now(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    """The processes of others that are still there, with what they hold, those that hold most first."""
    there = [replace(one, amounts=one.amounts[-1:]) for one in holders if one.end is None and one.whose == "other"]
    return tuple(sorted(there, key=lambda one: -(one.most_bytes or 0.0)))


def told(holder: Holder) -> str:
    """``alice's python, pid 4711, 60.0 GiB``; without the amount where it is unknown."""
    return holder.title if holder.most_bytes is None else f"{holder.title}, {bytes_text(holder.most_bytes)}"


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = len(names) - NAMED
    return "; ".join([*names[:NAMED], *([f"and {more} more"] if more > 0 else [])])
