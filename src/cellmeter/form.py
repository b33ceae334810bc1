"""The form that the header and the events of a run folder must have, so that what reads them need not doubt.

A form is a type, a tuple of types, a list with one form (of all items), or a mapping: by key, where ``?`` at the end of a key
says that it may be missing, or with the one key ``*`` for all keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NUMBER = (int, float)
TEXT_OR_NONE = (str, type(None))
INT_OR_NONE = (int, type(None))
NUMBER_OR_NONE = (int, float, type(None))

HEADER: Mapping[str, Any] = {
    "id": str,
    "started": NUMBER,
    "start_ns": int,
    "rate_hz": NUMBER,
    "notebook?": TEXT_OR_NONE,
    "kernel?": (dict, type(None)),
    "recorder?": (dict, type(None)),
    "unavailable?": {"*": str},
    "metrics?": [
        {
            "name": str,
            "unit": str,
            "kind": str,
            "scope": str,
            "group": str,
            "meaning": str,
            "source": str,
            "rate?": TEXT_OR_NONE,
            "otel?": TEXT_OR_NONE,
            "prometheus?": TEXT_OR_NONE,
            "mlflow?": TEXT_OR_NONE,
        }
    ],
    "limits": {"memory_bytes": list, "cpu_cores": list},
    "held?": {"*": list},
    "segments": [{"file": str, "stream": str, "columns": [[str]]}],
    "host": {
        "name": str,
        "system": str,
        "release": str,
        "machine": str,
        "python": str,
        "cpu_count": int,
        "memory_bytes": int,
    },
    "devices": [
        {
            "id": str,
            "name": str,
            "uuid": str,
            "memory_bytes": int,
            "mine?": (bool, type(None)),
            "power_limit_watts?": NUMBER_OR_NONE,
            "since?": NUMBER,
        }
    ],
}
EVENTS: Mapping[str, Mapping[str, Any]] = {
    "cell_start": {
        "t": int,
        "seq": int,
        "cpu_ns?": int,
        "alone_cpu_ns?": int,
        "execution_count?": INT_OR_NONE,
        "cell_id?": TEXT_OR_NONE,
        "label?": TEXT_OR_NONE,
        "parent?": INT_OR_NONE,
        "hash?": str,
        "first_line?": str,
        "ours?": bool,
        "io_bytes?": (list, type(None)),
        "rss_bytes?": INT_OR_NONE,
    },
    "cell_end": {
        "t": int,
        "seq": int,
        "status": str,
        "cpu_ns?": int,
        "alone_cpu_ns?": int,
        "execution_count?": INT_OR_NONE,
        "io_bytes?": (list, type(None)),
        "rss_bytes?": INT_OR_NONE,
        "peak_rss_bytes?": INT_OR_NONE,
        "peak_unknown?": TEXT_OR_NONE,
        "torch_peak_bytes?": {"*": int},
        "error?": str,
        "gpu_memory_ran_out?": bool,
    },
    "peaks": {"t": int, "seq": int, "workers_peak_bytes": INT_OR_NONE, "cgroup_peak_bytes": INT_OR_NONE},
    "source": {"t": int, "seq": int, "source": str},
    "gap": {"t": int, "start": int, "end": int, "reason": str},
    "unavailable": {"t": int, "metric": TEXT_OR_NONE, "subject": str, "reason": str},
    "added": {"t": int, "subject": str, "reason": str},
    "lost": {"t": int, "subject": str, "reason": str},
    "returned": {"t": int, "subject": str, "reason": str},
    "notice": {"t": int, "text": str},
    "anchor": {"t": int, "wall": NUMBER},
    "alert": {
        "t": int,
        "seq": int,
        "state": str,
        "again?": bool,
        "alert": str,
        "subject": str,
        "value": NUMBER,
    },
    "budget": {
        "t": int,
        "seq": int,
        "budget": str,
        "metric": str,
        "value": NUMBER,
        "threshold": NUMBER,
        "interrupt": bool,
        "upper_bound?": bool,
    },
    "nearly_full": {"t": int, "seq": int, "value": NUMBER, "own": NUMBER_OR_NONE, "limit": NUMBER, "from": str},
    "holders": {
        "t": int,
        "subject": str,
        "host_pids": bool,
        "processes": [
            {
                "pid": int,
                "start": INT_OR_NONE,
                "user": TEXT_OR_NONE,
                "name": TEXT_OR_NONE,
                "used_bytes": INT_OR_NONE,
                "whose": TEXT_OR_NONE,
                "run?": TEXT_OR_NONE,
                "notebook?": TEXT_OR_NONE,
            }
        ],
    },
    "logged": {"t": int, "pid?": int, "values?": {"*": (int, float, str, list)}, "steps?": {"*": NUMBER}},
    "span": {
        "t": int,
        "start": int,
        "name": str,
        "status": str,
        "parent?": TEXT_OR_NONE,
        "items?": NUMBER_OR_NONE,
        "pid?": int,
    },
    "spans": {
        "t": int,
        "start": int,
        "name": str,
        "count": int,
        "errors": int,
        "seconds": NUMBER,
        "items?": NUMBER_OR_NONE,
        "histogram": {"*": int},
        "pid?": int,
    },
    "end": {"t": int, "ending": str, "signal?": INT_OR_NONE, "exit_code?": INT_OR_NONE},
}
REMOTE: Mapping[str, Mapping[str, Any]] = {
    "source": {"url": str, "match": str},
    "machine": {"id": str, "cpu_count": INT_OR_NONE, "memory_bytes": INT_OR_NONE},
    "device": {"id": str, "machine": str, "name": str, "uuid": str, "memory_bytes": INT_OR_NONE},
    "readings": {"metric": str, "subject": str, "t": list, "v": list, "d?": list},
    "fetched": {"asked": NUMBER, "until": NUMBER, "lines": int, "samples": int},
}
OWN = ("logged", "span", "spans", "notice")  # the kinds that workers write


def check(value: Any, form: Any, where: str) -> None:
    """Raises ValueError, saying where, if a value has not the form."""
    if isinstance(form, type):
        form = (form,)
    if isinstance(form, tuple):
        kind = type(value)  # bool is no int here, and NaN no number
        if kind not in form or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{where} is {value!r:.40}")
    elif isinstance(form, list):
        check(value, list, where)
        for number, item in enumerate(value):
            check(item, form[0], f"{where}[{number}]")
    else:
        check(value, dict, where)
        _check_keys(value, form, where)


def _check_keys(value: Mapping[str, Any], form: Mapping[str, Any], where: str) -> None:
    if "*" in form:
        form = dict.fromkeys(value, form["*"])
    for key, inner in form.items():
        name = key.removesuffix("?")
        if name in value:
            check(value[name], inner, f"{where}.{name}")
        elif name == key:
            raise ValueError(f"{where} has no {name}")


def check_header(header: Mapping[str, Any]) -> None:
    """Raises ValueError if ``run.json`` is not in the form known."""
    check(header, HEADER, "run.json")
    if header["rate_hz"] <= 0:
        raise ValueError(f"run.json.rate_hz is {header['rate_hz']}")
    for name, limit in (*header["limits"].items(), *header.get("held", {}).items()):
        if len(limit) != 2 or type(limit[0]) not in NUMBER or not isinstance(limit[1], str):
            raise ValueError(f"run.json.limits.{name} is {limit!r:.40}")
    for segment in header["segments"]:
        if any(len(column) != 3 for column in segment["columns"]) or "/" in segment["file"]:
            raise ValueError(f"run.json.segments has {segment!r:.60}")


def check_remote(lines: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError if a line of ``prometheus.jsonl`` is not in the form known."""
    for number, line in enumerate(lines, 1):
        kind = line.get("event")
        if not isinstance(kind, str) or kind not in REMOTE:
            raise ValueError(f"line {number} is {kind!r:.40}")
        check(line, REMOTE[kind], f"line {number} ({kind})")
        for key in ("t", "v", "d"):
            numbers = line.get(key, ())
            if not set(map(type, numbers)) <= {int, float} or not all(map(math.isfinite, numbers)):
                raise ValueError(f"line {number} ({kind}) has in {key} what is no number")


def check_events(events: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError if an event of a known kind is not in the form known; other kinds are somebody else's."""
    for number, event in enumerate(events, 1):
        kind = event.get("event")
        if isinstance(kind, str) and kind in EVENTS:
            check(event, EVENTS[kind], f"event {number} ({kind})")
