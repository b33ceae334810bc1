"""``%monitor start --auto``: one quiet line under each cell, of text alone.

It is made when the cell has ended, so it must cost the user next to nothing: no thread, no numpy, no Bokeh. A cell under a
second costs two comparisons (5 µs); of a longer one the samples are read once, in pieces, by their fixed size, and only the
few columns that the line tells of: 1.4 ms for a cell of a second, 0.1 s for one of an hour with 8 GPUs.
"""

from __future__ import annotations

import html
import itertools
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import gt, mul
from pathlib import Path
from typing import Any, NamedTuple

from cellmeter import cell_cpu, charts, gpu_shares, layouts
from cellmeter.clock import monotonic
from cellmeter.edge_readings import Key, edge_readings, growth
from cellmeter.metrics import SHORT_FOR_ENERGY_SECONDS
from cellmeter.records import first_since, record_layout
from cellmeter.run import EDGE_END, LONGEST_READING_SECONDS, CellStatus, peak_of
from cellmeter.store import read_header
from cellmeter.usage import CONTEXT_BYTES, PROCESS_LIST_SECONDS, USED, own_part
from cellmeter.words import UNKNOWN, cell_cores_text, change_text, joules_text, seconds_text, value_text

LEAST_SECONDS = 1.0
LEAST_SPIKE_BYTES = 256 << 20  # the memory-spike rule, which has the last word, is not even asked below its own minimum
LAST_SAMPLE_SECONDS = 0.06  # the longest the line waits for the sample at the cell's end, which follows in a few ms
BARS = 12
MOST_RECORDS = 4096  # read at once: 2 MiB
BLOCKS = "▁▂▃▅▆▇"  # not ▄ and █: common fonts set these two on another line
_ENDED = {"ok": "", "error": "failed after ", "interrupted": "interrupted after "}

Event = Mapping[str, Any]
CPU: Key = ("process.cpu.time", "process")
RSS: Key = ("process.memory.rss", "process")
TREE: Key = ("process.tree.memory.rss", "process")
MAPPED: Key = ("process.memory.file", "process")


# ---- readings --------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A quantity over a part of a cell. Times in seconds since the cell's start."""

    end: float
    mean: float
    peak: float
    last: float


@dataclass
class Course:
    """What one quantity did over a cell; only readings that are known count."""

    pieces: list[Piece] = field(default_factory=list)
    first: float = math.nan
    total: float = 0.0
    weight: float = 0.0
    fell: bool = False
    """One reading is less than that before it."""
    complete: bool = False
    """The reading at the cell's end is among them."""

    def add(self, times: Sequence[float], weights: Sequence[float], values: Sequence[float]) -> None:
        """Takes in some more readings, with the time in seconds that each stands for."""
        if not all(map(math.isfinite, values)):
            known = [row for row in zip(times, weights, values, strict=True) if math.isfinite(row[2])]
            if not known:
                return
            times, weights, values = zip(*known, strict=True)
        if not self.pieces:
            self.first = values[0]
        elif values[0] < self.pieces[-1].last:
            self.fell = True
        self.fell = self.fell or any(map(gt, values, values[1:]))
        total, weight = sum(map(mul, weights, values)), sum(weights)
        self.total += total
        self.weight += weight
        mean = total / weight if weight > 0 else sum(values) / len(values)
        self.pieces.append(Piece(times[-1], mean, max(values), values[-1]))

    @property
    def peak(self) -> float | None:
        """The highest reading."""
        return max((piece.peak for piece in self.pieces), default=None)

    @property
    def mean(self) -> float | None:
        """Each reading stands for the time up to it."""
        if self.weight > 0:
            return self.total / self.weight
        return self.pieces[-1].last if self.pieces else None

    @property
    def growth(self) -> float | None:
        """From the first reading to the last."""
        return self.pieces[-1].last - self.first if self.pieces else None


def courses(
    folder: Path, header: Mapping[str, Any], keys: Sequence[Key], start: Event, end: Event, stream: str = "main"
) -> dict[Key, Course]:
    """The samples of a cell, from its edge ``start`` to ``end``, and the one taken at its end if it comes in time."""
    found = {key: Course() for key in keys}
    before, seconds = 0.0, (end["t"] - start["t"]) * 1e-9
    segments = [entry for entry in header["segments"] if entry["stream"] == stream]
    deadline = monotonic() + LAST_SAMPLE_SECONDS if stream == "main" else 0.0
    for entry in segments:
        at = {(metric, subject): n for n, (metric, subject, _) in enumerate(entry["columns"])}
        wanted = sorted((at[key], key) for key in keys if key in at)
        layout = record_layout(len(entry["columns"]), [n for n, _ in wanted])
        with open(folder / entry["file"], "rb") as file:
            last_segment = entry is segments[-1]
            for rows in _pieces(file.fileno(), layout, start, end, deadline if last_segment else 0.0):
                stamps, seqs, flags, *columns = zip(*rows, strict=True)
                times = [(stamp - start["t"]) * 1e-9 for stamp in stamps]
                since = [before, *times[:-1]]
                # the one at the end tells of what comes after it too, so it has no weight
                weights = [
                    min(max(b - a, 0.0), LONGEST_READING_SECONDS) if b <= seconds else 0.0
                    for a, b in zip(since, times, strict=True)
                ]
                before = times[-1]
                complete = bool(flags[-1] & EDGE_END and seqs[-1] == end["seq"])
                for course in found.values():
                    course.complete = complete
                for (_, key), values in zip(wanted, columns, strict=True):
                    found[key].add(times, weights, values)
    return found


def _pieces(fd: int, layout: struct.Struct, start: Event, end: Event, deadline: float) -> Iterator[list[Any]]:
    """The cell's records, in about ``BARS`` pieces; waits for the last one until the deadline."""
    size = layout.size
    while True:
        count = os.fstat(fd).st_size // size
        first, after = first_since(fd, size, count, start["t"]), first_since(fd, size, count, end["t"] + 1)
        tail = os.pread(fd, (count - after) * size, after * size) if count > after else b""
        last = [
            r for r in layout.iter_unpack(tail[: len(tail) // size * size]) if r[1] == end["seq"] and r[2] & EDGE_END
        ]
        if last or monotonic() >= deadline:
            break
        time.sleep(0.001)
    step = min(max(1, (after - first) // BARS), MOST_RECORDS)
    rows: list[Any] = []
    for at in range(first, after, step):
        rows = list(layout.iter_unpack(os.pread(fd, (min(at + step, after) - at) * size, at * size)))
        if at + step < after:
            yield rows
    if rows or last:
        yield rows + last


# ---- what it says ----------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A figure in words, with the little chart that goes before them; ``ink`` is the chart's colour."""

    name: str
    bars: str
    words: str
    ink: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in self if word and word != self.ink)


def show(folder: Path, edges: Mapping[str, Event]) -> None:
    """Shows the line of a cell that has ended, if it has one to show. Raises RunUnreadable, OSError."""
    start, end = edges.get("cell_start"), edges.get("cell_end")
    if start is None or end is None:
        return
    seconds = (end["t"] - start["t"]) * 1e-9
    if seconds < LEAST_SECONDS and _hump(start, end) < LEAST_SPIKE_BYTES:
        return
    found = parts(folder, start, end)
    if found:
        from IPython.display import publish_display_data

        publish_display_data({"text/plain": as_text(found), "text/html": as_html(found)})  # type: ignore[no-untyped-call]


def parts(folder: Path, start: Event, end: Event) -> list[Part]:
    """What the line says; nothing of a cell under a second that did not spike."""
    header = read_header(folder)
    seconds = (end["t"] - start["t"]) * 1e-9
    there = [device["id"] for device in header["devices"] if device.get("mine") is not False]
    others = _not_used(folder, header, start, end) if seconds >= LEAST_SECONDS else frozenset()
    gpus = [gpu for gpu in there if gpu not in others]
    wanted = [(metric, gpu) for gpu in gpus for metric in ("gpu.utilization", "gpu.energy")]
    found = courses(folder, header, [CPU, RSS, TREE, MAPPED, *wanted], start, end)
    if seconds < LEAST_SECONDS and not _spiked(header, start, end, found[RSS], found[MAPPED]):
        return []
    ended: CellStatus = end["status"]
    return [
        Part("", "", _ENDED.get(ended, f"{ended} ") + seconds_text(seconds)),
        _cpu(folder, header, start, end, found[CPU]),
        _memory(start, end, found[RSS], found[TREE]),
        *_gpus([found["gpu.utilization", gpu] for gpu in gpus], bool(there)),
        *_gpu_memory(folder, header, gpus, start, end),
        *_energy(folder, header, {gpu: found["gpu.energy", gpu] for gpu in gpus}, start, end),
    ]


def _hump(start: Event, end: Event) -> float:
    """Memory that was needed for a while only, as far as the kernel's own mark tells."""
    before, after, peak = start["rss_bytes"], end["rss_bytes"], end["peak_rss_bytes"]
    return 0.0 if None in (before, after, peak) else float(peak - max(before, after))


def _spiked(header: Mapping[str, Any], start: Event, end: Event, rss: Course, mapped: Course) -> bool:
    """What the rule ``memory-spike`` says of it."""
    from cellmeter.rules.memory import Hump, MemorySpike

    base = mapped.first if start["rss_bytes"] >= end["rss_bytes"] else mapped.first + (mapped.growth or 0.0)
    files = max(0.0, mapped.peak - base) if mapped.peak is not None else 0.0
    limit = header["limits"].get("memory_bytes", (None,))[0]
    peak = peak_of(end["peak_rss_bytes"], rss.peak) or 0
    hump = Hump(*RSS, peak, max(start["rss_bytes"], end["rss_bytes"]), limit, files)
    return hump.height >= MemorySpike().threshold(hump)


def _cpu(folder: Path, header: Mapping[str, Any], start: Event, end: Event, tree: Course) -> Part:
    cores, seconds = cell_cpu.mean_cores(folder, header, start, end), (end["t"] - start["t"]) * 1e-9
    limit = header["limits"].get("cpu_cores", (None,))[0]
    before = [Piece(0.0, 0.0, 0.0, tree.first), *tree.pieces]
    rates = [
        (b.last - a.last) / (b.end - a.end) if b.end > a.end else 0.0 for a, b in zip(before, tree.pieces, strict=False)
    ]
    return Part(
        "CPU",
        bars(rates, limit or max(rates, default=1.0)),
        cell_cores_text(cores, seconds, limit),
        charts.BLUE.light,
    )


def _memory(start: Event, end: Event, rss: Course, tree: Course) -> Part:
    """The peak, with workers where they matter, and how much more the kernel holds than before: as the panel says it."""
    before, after = start["rss_bytes"], end["rss_bytes"]
    exact = end["peak_rss_bytes"]
    own = peak_of(exact, rss.peak)
    workers = charts.notably_more(tree.peak, own)
    peak, drawn = (tree.peak, tree) if workers else (own, rss)
    at_least = "" if workers or exact is not None else "≥ "
    words = f"{at_least}{value_text(peak, 'By')}" if peak is not None else UNKNOWN
    if before is not None and after is not None:
        words += f" ({change_text(after - before, 'By')})"
    if workers:
        words += f", kernel alone {value_text(own, 'By')}"
    peaks = [piece.peak for piece in drawn.pieces]
    return Part("memory", bars(peaks, max([*peaks, peak or 1.0])), f"peak {words}", charts.GREEN.light)


def _not_used(folder: Path, header: Mapping[str, Any], start: Event, end: Event) -> frozenset[str]:
    """The GPUs that others may have used, but not this cell: as ``rules.ownership`` has it, by the process lists so far."""
    keys = [(layouts.CONTEXTS, gpu) for gpu in layouts.doubtful(header)]
    if not keys:
        return frozenset()
    since = start["t"] - int(PROCESS_LIST_SECONDS * 1e9)
    held = courses(folder, header, keys, {**start, "t": since}, end, layouts.PROCESSES)
    never = {gpu: seen.pieces[-1].end for (_, gpu), seen in held.items() if seen.pieces and not seen.peak}
    return frozenset(
        gpu
        for gpu, listed in never.items()
        if not _may_have_come(folder, header, gpu, {**start, "t": since + int(listed * 1e9)}, end)
    )


def _may_have_come(folder: Path, header: Mapping[str, Any], gpu: str, last_list: Event, end: Event) -> bool:
    """As ``rules.ownership`` has it: whether memory was taken of a GPU since the last process list."""
    used = courses(folder, header, [(USED, gpu)], last_list, end)[USED, gpu]
    return used.peak is not None and used.peak - used.first >= CONTEXT_BYTES


def _gpus(use: Sequence[Course], there: bool) -> list[Part]:
    if not use:
        return [Part("GPU", "", charts.NOT_USED)] if there else []
    name = "GPU" if len(use) == 1 else f"{len(use)} GPUs"
    known = [course for course in use if course.pieces]
    if not known:
        return [Part(name, "", UNKNOWN)]
    mean = sum(course.mean or 0.0 for course in known) / len(known)
    peak = max(course.peak or 0.0 for course in known)
    # pieces are cut at the same records for all; a GPU that was lost has fewer
    together = list(zip(*([piece.mean for piece in course.pieces] for course in known), strict=False))
    drawn = bars([sum(values) / len(values) for values in together], 100.0)
    words = f"{value_text(mean, '%')} mean, {value_text(peak, '%')} peak"
    return [Part(name, drawn, words, charts.VERMILLION.light)]


def _gpu_memory(folder: Path, header: Mapping[str, Any], gpus: Sequence[str], start: Event, end: Event) -> list[Part]:
    """Only where others hold memory of the GPU too: whose it is."""
    peaks = end.get("torch_peak_bytes", {})
    memory = gpu_shares.of_cell(folder, header, gpus, start["t"], end["t"], peaks)
    told = own_part(memory)
    if told is None:
        return []
    peak = courses(folder, header, [(USED, told)], start, end)[USED, told].peak
    size = next(device["memory_bytes"] for device in header["devices"] if device["id"] == told)
    return [Part("GPU memory", "", f"peak {gpu_shares.shares_text(memory[told], peak, size)}")]


def _energy(
    folder: Path, header: Mapping[str, Any], counters: Mapping[str, Course], start: Event, end: Event
) -> list[Part]:
    """Of all GPUs together; a sum without one of them would be too small."""
    joules = [_joules(folder, header, gpu, counter, start, end) for gpu, counter in counters.items()]
    known = [joule for joule in joules if joule is not None]
    if not known or len(known) < len(joules):
        return []
    at_least = "" if all(counter.complete for counter in counters.values()) else "≥ "
    return [Part("", "", at_least + joules_text(sum(known)))]


def _joules(
    folder: Path, header: Mapping[str, Any], gpu: str, counter: Course, start: Event, end: Event
) -> float | None:
    """As ``usage.cell_usage`` has it; up to the newest reading where that at the cell's end has not come."""
    if not counter.pieces or counter.fell or (end["t"] - start["t"]) * 1e-9 < SHORT_FOR_ENERGY_SECONDS:
        return None
    since = next(device.get("since", 0.0) for device in header["devices"] if device["id"] == gpu)
    start_ns, end_ns = max(start["t"], header["start_ns"] + round(since * 1e9)), end["t"]
    readings = edge_readings(folder, header, [("gpu.energy", gpu)], start_ns, end_ns)
    inside = [reading for reading in readings if start_ns <= reading.t <= end_ns and reading.known]
    if not inside:
        return None
    return growth(readings, start_ns, end_ns if counter.complete else inside[-1].t)


def bars(values: Sequence[float], top: float) -> str:
    """At most ``BARS`` blocks, the highest value of each part in time; ``top`` is the highest block."""
    count = min(BARS, len(values))
    cuts = [n * len(values) // count for n in range(count + 1)] if count else [0]
    highest = (max(values[a:b]) for a, b in itertools.pairwise(cuts))
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[min(steps, max(0, round(value / top * steps)))] for value in highest) if top > 0 else ""


def as_text(found: Sequence[Part]) -> str:
    """The line for a terminal."""
    return " · ".join(map(str, found))


# Colours pass the sanitizers of untrusted notebooks; variables do not, and then the page's own colour stays.
_GREY = "var(--jp-ui-font-color2,var(--vscode-descriptionForeground,#767c83))"
_LINE = f"font-size:12px;line-height:1.5;padding:1px 0 1px 8px;color:{_GREY}"


def as_html(found: Sequence[Part]) -> str:
    """The line for a page: in the colours of its theme, its parts kept whole where it wraps."""
    spans = []
    for part in found:
        drawn = (
            f'<span aria-hidden="true" style="color:{part.ink};font-size:10px">{part.bars}</span>' if part.bars else ""
        )
        words = " ".join(word for word in (html.escape(part.name), drawn, html.escape(part.words)) if word)
        spans.append(f'<span style="display:inline-block;margin-right:1.4em">{words}</span>')
    return f'<div class="cellmeter-strip" style="{_LINE}">{" ".join(spans)}</div>'
