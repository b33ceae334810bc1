"""What is worth knowing of a run and is no finding: nobody's code is at fault, or nothing needs to be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.rules.held import Held, holding
from cellmeter.rules.neighbours import crowd
from cellmeter.rules.observed import titles
from cellmeter.rules.scripts import is_script
from cellmeter.words import MIB, bytes_text, change_text, cores_text, percent_text

if TYPE_CHECKING:
    from cellmeter.rules.rule import Finding
    from cellmeter.run import Run

LEAST_GROWTH = 512 * MIB
LEAST_TIMES = 3.0  # what there was at first
LEAST_KEEPERS = 3  # one cell that keeps much is `memory-retained`
LEAST_KEPT = 32 * MIB  # allocators keep some MiB of whatever was there
SAME_RUNS = 3
TOLD_SHARE = 0.5  # of the growth by findings
TELLING = ("memory-growth", "memory-near-limit", "memory-retained", "out-of-memory")


class Note(NamedTuple):
    """``id`` says what it is about; ``figures`` are those of the text, for programs."""

    id: str
    text: str
    figures: Mapping[str, float | tuple[int, ...]]


def notes(run: Run, findings: Sequence[Finding]) -> tuple[Note, ...]:
    """What to know before reading the figures of a run first."""
    return (*_neighbours(run), *_growth(run, findings))


def _neighbours(run: Run) -> tuple[Note, ...]:
    full = crowd(run)
    if full is None:
        return ()
    ran, who, slowed = ("it", "the script", "it") if is_script(run) else ("cells", "this notebook", "cells")
    text = (
        f"Other processes used {cores_text(full.others)} of the {full.cores} cores on average while {ran} ran, and {who} "
        f"{cores_text(full.own)}. No core was free in {percent_text(100 * full.share)} of that time, so {slowed} may have "
        "been slowed: do not rely on durations and CPU use in this report."
    )
    figures = {
        "others_cores": full.others,
        "own_cores": full.own,
        "machine_cores": float(full.cores),
        "full_share": full.share,
        "seconds": full.seconds,
    }
    return (Note("cpu-taken-by-others", text, figures),)


def _growth(run: Run, findings: Sequence[Finding]) -> tuple[Note, ...]:
    """Many cells that each keep a little: none of them is to blame, and together they fill the memory."""
    holds = holding(run)
    keepers = sorted(
        (h for h in holds.cells if h.still >= LEAST_KEPT), key=lambda h: (-round(h.still / MIB), h.cell.start)
    )
    if is_script(run) or len(keepers) < LEAST_KEEPERS or holds.last is None:
        return ()
    first, last, total = holds.cells[0].start, holds.last[1], sum(held.still for held in keepers)
    if total < LEAST_GROWTH or last.own < LEAST_TIMES * first.own:
        return ()
    told = {seq for finding in findings if finding.rule in TELLING for seq in finding.cells}
    if sum(held.still for held in keepers if held.cell.seq in told) >= TOLD_SHARE * total:
        return ()
    most = ", ".join(f"{held.cell.title} ({change_text(held.still, 'By')})" for held in keepers[:3])
    text = (
        f"Memory grew from {bytes_text(first.resident)} to {bytes_text(last.resident)} over {len(run.cells)} cells and was "
        f"not given back; most was kept, mapped files aside, by {most}.{_same(keepers)}"
    )
    figures = {
        "start_bytes": first.resident,
        "end_bytes": last.resident,
        "kept_bytes": total,
        "cells": tuple(sorted(held.cell.seq for held in keepers)),
    }
    return (Note("memory-kept-by-many", text, figures),)


def _same(keepers: Sequence[Held]) -> str:
    """The cell that was run again and again and kept something each time."""
    runs: dict[str, list[Held]] = {}
    for held in sorted(keepers, key=lambda held: held.cell.start):
        if held.cell.source_hash:
            runs.setdefault(held.cell.source_hash, []).append(held)
    most = max(runs.values(), key=len, default=[])
    if len(most) < SAME_RUNS:
        return ""
    each = sum(held.still for held in most) / len(most)
    return f" {titles([held.cell for held in most])} are the same cell, which kept {bytes_text(each)} each time."
