"""Whose GPU it is. A kernel must not be blamed for another's idleness, nor praised for another's work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from cellmeter.holders import listed, others_on
from cellmeter.rules.observed import ENOUGH
from cellmeter.rules.rule import Outcome, not_applicable, unknown
from cellmeter.series import known
from cellmeter.usage import CONTEXT_BYTES, HELD, PROCESS_LIST_SECONDS, USED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.run import Device, Run

Whose = Literal["mine", "not-mine", "shared", "unknown"]


class Ownership(NamedTuple):
    """Whose a GPU was over an interval. ``context``: the kernel or a descendant held one; None if that is unknown."""

    whose: Whose
    context: bool | None
    reason: str

    def obstacle(self) -> Outcome | None:
        """The outcome of a rule about the kernel's own GPUs, where this is none; None if it may be judged."""
        if self.whose == "mine":
            return None
        return not_applicable(self.reason) if self.whose == "not-mine" else unknown(self.reason)


def ownership(run: Run, device: Device, start: float, end: float) -> Ownership:
    """Whose GPU ``device`` was from ``start`` to ``end``. Several rules ask for it."""
    key = ("ownership", device, start, end)
    if key not in run.memo:
        run.memo[key] = _ownership(run, device, start, end)
    found: Ownership = run.memo[key]
    return found


def _ownership(run: Run, device: Device, start: float, end: float) -> Ownership:
    context = _held(_readings(run, "gpu.process.memory.used", device.id, start, end))
    if context is None:  # some drivers tell who holds a context, but not how much
        context = _held(_readings(run, "gpu.process.contexts", device.id, start, end))
    foreign = bool((_readings(run, "gpu.foreign.processes", device.id, start, end) > 0).any())
    if device.mine is False and not context:
        return Ownership("not-mine", context, f"{device.id} is not visible to this kernel")
    if foreign and (device.mine or context is not False):
        named = listed(
            [one.title for one in others_on(run.holders, device.id, start, end, within=PROCESS_LIST_SECONDS)]
        )
        who = f" ({named})" if named else ""
        reason = f"shared: another process held {device.id} too{who}, and only the use of the whole GPU is known"
        return Ownership("shared", context, reason)
    if context or device.mine:
        return Ownership("mine", context, "")
    if context is None:
        why = reason_for(run, "gpu.process.memory.used", device.id)
        return Ownership("unknown", None, f"whose work {device.id} did cannot be told: {why}")
    return Ownership("not-mine", False, f"this kernel did not use {device.id}")


def not_used(run: Run, start: float, end: float) -> frozenset[str]:
    """Ids of the GPUs that did nothing for the kernel from ``start`` to ``end``, as far as that is known.

    In so short a time that no process list may have been read since the kernel came to hold a GPU, the next one counts too:
    it goes on holding it. And whose GPU it is stays open where a context may have come after the last list.
    """
    until = end if end - start >= 2 * PROCESS_LIST_SECONDS else end + PROCESS_LIST_SECONDS
    return frozenset(
        device.id
        for device in run.devices
        if ownership(run, device, start, until).whose == "not-mine" and not _may_have_come(run, device, start, until)
    )


def _may_have_come(run: Run, device: Device, start: float, end: float) -> bool:
    """Whether memory was taken of a GPU since the last process list."""
    lists = run.series(HELD, device.id).between(start, end).time
    if device.mine is False or not len(lists):
        return False
    used = known(run.series(USED, device.id).between(float(lists[-1]), end).values)
    return bool(len(used) and used.max() - used[0] >= CONTEXT_BYTES)


def reason_for(run: Run, metric: str, subject: str) -> str:
    """Why a metric of a subject has no readings."""
    for key in (f"{metric}:{subject}", metric):
        if key in run.unavailable:
            return run.unavailable[key]
    return f"{metric} has no readings"


def _held(readings: NDArray[np.float64]) -> bool | None:
    """One reading above 0 proves a context; that there was none takes most of them."""
    import numpy as np

    if (readings > 0).any():
        return True
    return False if len(readings) and (~np.isnan(readings)).mean() >= ENOUGH else None


def _readings(run: Run, metric: str, subject: str, start: float, end: float) -> NDArray[np.float64]:
    """Readings of a process list, from the last before ``start`` on: it is read less often than the rest."""
    return run.series(metric, subject).between(start - PROCESS_LIST_SECONDS, end).values
