"""What lies in a run folder, put together to a :class:`Run`. Pure: bytes are read in ``store``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cellmeter import form
from cellmeter.holders import holders_from
from cellmeter.metrics import Metric
from cellmeter.records import StoredRecords
from cellmeter.remote import Anchor, Remote, epochs, remote_from
from cellmeter.run import (
    EDGE_END,
    EDGE_START,
    AlertFired,
    Cell,
    CellStatus,
    Column,
    Device,
    Ending,
    Gap,
    Host,
    Limit,
    OverBudget,
    OwnCpu,
    Records,
    Run,
    Segment,
)
from cellmeter.spans import own_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

Part = tuple[str, tuple[Column, ...], Records]
Event = Mapping[str, Any]
NEARLY_FULL = 0.95


def run_from(
    folder: Path,
    header: Mapping[str, Any],
    events: Sequence[Event],
    parts: Sequence[Part],
    running: bool,
    damaged_lines: int,
    damaged_records: int,
    remote_lines: tuple[Sequence[Event], int] = ((), 0),
) -> Run:
    """Builds the Run. ``running``: its recorder is at work, so that what has no end yet goes on.

    ``remote_lines``: what ``prometheus.jsonl`` has, and how many of its lines are damaged.
    """
    import numpy as np

    start_ns = int(header["start_ns"])
    end = next((e for e in reversed(events) if e.get("event") == "end"), None)
    last_ns = max(
        [
            start_ns,
            *(e["t"] for e in events if isinstance(e.get("t"), int)),
            *(int(p[2]["t"][-1]) for p in parts if len(p[2])),
        ]
    )
    duration = ((end["t"] if end else last_ns) - start_ns) * 1e-9
    limits = {name: Limit(*limit) for name, limit in header["limits"].items()}
    held = {name: Limit(*limit) for name, limit in header.get("held", {}).items()}
    ending: Ending | None = (
        end["ending"] if end else (None if running else _probable_ending(parts, header, {**limits, **held}))
    )
    cells = cells_from(events, start_ns, "running" if running else "died")
    moments = ((e["t"], e["wall"]) for e in events if e.get("event") == "anchor")
    anchors = (Anchor(0.0, header["started"]), *(Anchor((t - start_ns) * 1e-9, wall) for t, wall in moments))
    remote, trouble = _remote(*remote_lines, anchors)
    started, ended = (datetime.fromtimestamp(wall, UTC) for wall in epochs(np.array([0.0, duration]), anchors))
    return Run(
        id=header["id"],
        path=str(folder),
        started=started,
        ended=None if running and not end else ended,
        ending=ending,
        ending_sure=end is not None or ending in (None, "unknown"),
        signal=end.get("signal") if end else None,
        exit_code=end.get("exit_code") if end else None,
        notebook=header.get("notebook"),
        host=Host(**header["host"]),
        devices=tuple(Device(**device) for device in header["devices"]),
        limits=limits,
        held=held,
        rate_hz=header["rate_hz"],
        cells=cells,
        gaps=_gaps(events, start_ns),
        unavailable=_unavailable(header, events),
        start_ns=start_ns,
        duration=duration,
        segments=_segments(parts, cells, start_ns),
        notices=(*_notices(events, damaged_lines, damaged_records), *trouble),
        alerts=_alerts(events, start_ns),
        over_budget=_over_budget(events, start_ns),
        holders=holders_from(events, start_ns),
        plugin_metrics=tuple(Metric(**metric) for metric in header.get("metrics", ())),
        own=own_from(events, start_ns),
        anchors=anchors,
        remote=remote,
    )


def _remote(lines: Sequence[Event], damaged: int, anchors: Sequence[Anchor]) -> tuple[Remote | None, tuple[str, ...]]:
    """What was fetched from Prometheus, and what is to be said of it. The run itself is read whatever that file holds."""
    if not lines and not damaged:
        return None, ()
    again = "`cellmeter fetch` brings it again"
    try:
        form.check_remote(lines)
        remote = remote_from(lines, damaged > 0, anchors)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return None, (
            f"what was fetched from Prometheus is not in a form that this cellmeter knows ({error}); {again}",
        )
    said = [f"part of what was fetched from Prometheus is damaged; {again}"] if remote is None or remote.damaged else []
    if remote is not None and remote.misplaced:
        said.append(f"{remote.misplaced} samples from Prometheus are left out: the clock was set, or the machine slept")
    return remote, tuple(said)


def _probable_ending(parts: Sequence[Part], header: Mapping[str, Any], limits: Mapping[str, Limit]) -> Ending:
    """Without an end record the recorder died too: with memory nearly full, as part of the control group that was killed."""
    bounds = {"cgroup.memory.used": limits["memory_bytes"].value, "host.memory.used": header["host"]["memory_bytes"]}
    for stream, columns, records in reversed(parts):
        if stream == "main" and len(records):
            values = records.last() if isinstance(records, StoredRecords) else records["v"][-1]
            last = {column.metric: value for column, value in zip(columns, values, strict=True)}
            full = any(last.get(metric, 0.0) >= NEARLY_FULL * bound > 0 for metric, bound in bounds.items())
            return "out-of-memory" if full else "unknown"
    return "unknown"


def cells_from(events: Iterable[Event], start_ns: int, open_status: CellStatus) -> tuple[Cell, ...]:
    """Pairs the edges. A cell without an end has ``open_status``."""
    starts, ends, peaks, sources = {}, {}, {}, {}
    for event in events:
        if event.get("event") == "cell_start":
            starts[event["seq"]] = event
        elif event.get("event") == "cell_end":
            ends[event["seq"]] = event
        elif event.get("event") == "peaks":
            peaks[event["seq"]] = event
        elif event.get("event") == "source":
            sources[event["seq"]] = event["source"]
    cells = (_cell(starts[s], ends.get(s), peaks.get(s, {}), start_ns, open_status) for s in sorted(starts))
    return tuple(replace(cell, source=sources.get(cell.seq)) for cell in cells)


def _cell(start: Event, end: Event | None, peaks: Event, start_ns: int, open_status: CellStatus) -> Cell:
    read = written = None
    if end is not None and end.get("io_bytes") and start.get("io_bytes"):
        read, written = (after - before for before, after in zip(start["io_bytes"], end["io_bytes"], strict=True))
    return Cell(
        seq=start["seq"],
        start=(start["t"] - start_ns) * 1e-9,
        end=(end["t"] - start_ns) * 1e-9 if end else None,
        status=end["status"] if end else open_status,
        # the end knows it for sure, but not that of the cell that stops the recording
        execution_count=(end or {}).get("execution_count") or start.get("execution_count"),
        cell_id=start.get("cell_id"),
        label=start.get("label"),
        parent=start.get("parent"),
        source_hash=start.get("hash", ""),
        first_line=start.get("first_line", ""),
        ours=start.get("ours", False),
        own_cpu=OwnCpu.between(start, end or {}),
        own_read_bytes=read,
        own_written_bytes=written,
        rss_start_bytes=start.get("rss_bytes"),
        rss_end_bytes=end.get("rss_bytes") if end else None,
        peak_rss_bytes=end.get("peak_rss_bytes") if end else None,
        workers_peak_bytes=peaks.get("workers_peak_bytes"),
        cgroup_peak_bytes=peaks.get("cgroup_peak_bytes"),
        torch_peak_bytes=dict(end.get("torch_peak_bytes", {})) if end else {},
        peak_unknown=end.get("peak_unknown") if end else None,
        error=end.get("error") if end else None,
        gpu_memory_ran_out=end.get("gpu_memory_ran_out", False) if end else False,
    )


def _gaps(events: Iterable[Event], start_ns: int) -> tuple[Gap, ...]:
    found = (e for e in events if e.get("event") == "gap")
    return tuple(Gap((e["start"] - start_ns) * 1e-9, (e["end"] - start_ns) * 1e-9, e["reason"]) for e in found)


def _alerts(events: Iterable[Event], start_ns: int) -> tuple[AlertFired, ...]:
    """Pairs what went off with what cleared it, which may never have come."""
    found: list[AlertFired] = []
    for event in events:
        if event.get("event") != "alert":
            continue
        time, key = (event["t"] - start_ns) * 1e-9, (event["alert"], event["subject"], event["seq"])
        if event["state"] == "fired":
            found.append(AlertFired(*key, time, event["value"]))
        else:
            same = [i for i, f in enumerate(found) if (f.alert, f.subject, f.cell) == key and f.cleared is None]
            if same:
                found[same[-1]] = replace(found[same[-1]], cleared=time)
    return tuple(found)


def _over_budget(events: Iterable[Event], start_ns: int) -> tuple[OverBudget, ...]:
    return tuple(
        OverBudget(
            budget=event["budget"],
            metric=event["metric"],
            cell=event["seq"],
            time=(event["t"] - start_ns) * 1e-9,
            value_bytes=event["value"],
            threshold_bytes=event["threshold"],
            interrupt=event["interrupt"],
            upper_bound=event.get("upper_bound", False),
        )
        for event in events
        if event.get("event") == "budget"
    )


def _unavailable(header: Mapping[str, Any], events: Iterable[Event]) -> dict[str, str]:
    reasons = dict(header.get("unavailable", {}))
    for event in events:
        if event.get("event") == "unavailable":
            key = f"{event['metric']}:{event['subject']}" if event["metric"] else event["subject"]
            reasons[key] = event["reason"]
    return reasons


def _segments(parts: Sequence[Part], cells: Sequence[Cell], start_ns: int) -> tuple[Segment, ...]:
    return tuple(
        Segment(stream, columns, _tagged(_in_order(records), cells, start_ns)) for stream, columns, records in parts
    )


def _tagged(records: Records, cells: Sequence[Cell], start_ns: int) -> Records:
    """Samples tagged anew by the kernel's own timestamps: an edge that reached the recorder late is no error here.

    Samples taken for a cell's edges come a little after them and keep the tag they have: of a short cell, both after its end.
    """
    import numpy as np

    if not len(records):
        return records
    seconds = (records["t"] - start_ns) * 1e-9
    tags = np.zeros(len(records), np.uint32)
    for cell in cells:
        low = seconds.searchsorted(cell.start, "left")
        high = len(seconds) if cell.end is None else seconds.searchsorted(cell.end, "right")
        tags[low:high] = cell.seq
    keep = (records["flags"] & (EDGE_START | EDGE_END)) != 0
    tags[keep] = records["seq"][keep]
    if isinstance(records, StoredRecords):
        return records.tagged(tags)
    held = cast("NDArray[Any]", records)
    if not held.flags.writeable:
        held = held.copy()
    held["seq"] = tags
    return held


def _in_order(records: Records) -> Records:
    """By time: what a driver kept is written when it was asked for, GPU by GPU."""
    import numpy as np

    if isinstance(records, StoredRecords):
        return records.in_order()
    held, times = cast("NDArray[Any]", records), records["t"]
    return held if (times[1:] >= times[:-1]).all() else held[np.argsort(times, kind="stable")]


def _notices(events: Iterable[Event], damaged_lines: int, damaged_records: int) -> Iterable[str]:
    for text, count in Counter(_told(events)).items():  # a GPU may come and go all day
        yield text if count == 1 else f"{text} ({count} times)"
    if damaged_records:
        yield f"{damaged_records} damaged samples were left out"
    if damaged_lines:
        yield f"{damaged_lines} damaged event lines were left out: cells or gaps may be missing"


def _told(events: Iterable[Event]) -> Iterable[str]:
    for event in events:
        if event.get("event") in ("added", "lost", "returned"):
            yield f"{event['subject']} {event['event']}: {event['reason']}"
        elif event.get("event") == "notice":
            yield event["text"]
