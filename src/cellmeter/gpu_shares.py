"""Whose the memory of GPUs was while a cell ran, straight out of the run folder: without numpy, and cheap for long cells."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellmeter.records import first_since, record_layout
from cellmeter.usage import FOREIGN, HELD, PROCESSES, USED, GpuMemory, ProcessList
from cellmeter.words import of_text, value_text

MOST_COMPARED = 32  # process lists that are held against the memory in use at their time, each by a search in the file

Key = tuple[str, str]  # metric, subject
Row = tuple[int, Mapping[Key, float]]


def shares_text(memory: GpuMemory, peak: float | None, size: float | None, whose: str = "yours") -> str:
    """Whose the memory of a shared GPU was at its peak: ``≥ 6.00 GiB yours, 66.0 of 80 GiB in all``."""
    at_least = "" if memory.own_exact else "≥ "
    return f"{at_least}{value_text(memory.own, 'By')} {whose}, {of_text(peak, size, 'By')} in all"


def of_cell(
    folder: Path, header: Mapping[str, Any], gpus: Sequence[str], start_ns: int, end_ns: int, torch: Mapping[str, int]
) -> dict[str, GpuMemory]:
    """By the process lists that were read from ``start_ns`` to ``end_ns``; the GPUs' own peaks are not looked for.

    ``torch``: PyTorch's marks by the GPU's UUID. As :class:`cellmeter.run.GpuUsage` has it. Raises OSError.
    """
    keys = [(metric, gpu) for gpu in gpus for metric in (HELD, FOREIGN)]
    lists = list(_rows(folder, header, PROCESSES, keys, start_ns, end_ns))
    uuids = {device["id"]: device["uuid"] for device in header["devices"]}
    used = _used_then(folder, header, gpus, lists)
    return {
        gpu: GpuMemory.of(
            [
                ProcessList(
                    row.get((HELD, gpu), math.nan), row.get((FOREIGN, gpu), math.nan), used.get((at, gpu), math.nan)
                )
                for at, row in lists
            ],
            None,
            torch.get(uuids.get(gpu, "")),
        )
        for gpu in gpus
    }


def _used_then(
    folder: Path, header: Mapping[str, Any], gpus: Sequence[str], lists: Sequence[Row]
) -> dict[tuple[int, str], float]:
    """The memory in use on GPUs that others may hold too, at the times of some of the lists."""
    shared = [gpu for gpu in gpus if any(row.get((FOREIGN, gpu)) != 0 for _, row in lists)]
    step = math.ceil(len(lists) / MOST_COMPARED) or 1
    keys = [(USED, gpu) for gpu in shared]
    found: dict[tuple[int, str], float] = {}
    for at, _ in lists[::-step] if keys else ():
        for _, row in _rows(folder, header, "main", keys, at, at):
            found.update({(at, gpu): value for (_, gpu), value in row.items()})
    return found


def _rows(
    folder: Path, header: Mapping[str, Any], stream: str, keys: Sequence[Key], first_ns: int, last_ns: int
) -> Iterator[Row]:
    """The readings of a stream from one time to another."""
    for entry in header["segments"]:
        at = {(metric, subject): n for n, (metric, subject, _) in enumerate(entry["columns"])}
        wanted = sorted((at[key], key) for key in keys if key in at)
        if entry["stream"] != stream or not wanted:
            continue
        layout = record_layout(len(entry["columns"]), [n for n, _ in wanted])
        with open(folder / entry["file"], "rb") as file:
            fd, size = file.fileno(), layout.size
            count = os.fstat(fd).st_size // size
            low, high = first_since(fd, size, count, first_ns), first_since(fd, size, count, last_ns + 1)
            data = os.pread(fd, (high - low) * size, low * size)
        for time, _, _, *values in layout.iter_unpack(data):
            yield time, {key: value for (_, key), value in zip(wanted, values, strict=True)}
