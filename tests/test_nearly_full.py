"""The warning that memory is nearly full: when the recorder sees it, and when and where the kernel says it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import Kernel, wait_until

from cellmeter import memory_watch
from cellmeter.nearly_full import EVENT, NearlyFull
from cellmeter.run import Column
from cellmeter.store import EVENTS, sealed
from cellmeter.ticker import nearly_full_text

GIB = 2.0**30
TREE = Column("process.tree.memory.rss", "process", "By")
RSS = Column("process.memory.rss", "process", "By")
HOST = Column("host.memory.used", "host", "By")
USED = Column("cgroup.memory.used", "cgroup", "By")
ANON = Column("cgroup.memory.anon", "cgroup", "By")
COLUMNS = (RSS, TREE, HOST, USED, ANON)


def events(watch: NearlyFull, *rows: dict[Column, float], seq: int = 1) -> list[dict[str, Any]]:
    """What it tells of rows, in GiB; of a column that is not given 1."""
    seen = [watch.see(COLUMNS, n, seq, [GIB * row.get(c, 1.0) for c in COLUMNS]) for n, row in enumerate(rows)]
    return [event for event in seen if event is not None]


@pytest.mark.parametrize(
    ("source", "row", "told"),
    [
        ("cgroup", {ANON: 14.5, USED: 14.6, TREE: 14.0}, 14.5),
        ("cgroup", {ANON: 14.3, USED: 15.9, TREE: 14.0}, None),  # caches
        ("cgroup", {ANON: 14.5, TREE: 3.9}, None),  # others in the group
        ("cgroup", {ANON: 15.6, TREE: 0.1}, 15.6),  # and little left
        ("host", {HOST: 14.5, TREE: 4.1}, 14.5),
        ("host", {HOST: 14.5, TREE: 3.9}, None),  # a neighbour
        ("host", {HOST: 15.6, TREE: math.nan}, 15.6),
        ("host", {HOST: 14.5, TREE: math.nan}, None),
        ("host", {HOST: math.nan, TREE: 15.9}, None),
        ("rlimit", {RSS: 14.5, TREE: 14.5, HOST: 60.0}, 14.5),
        ("rlimit", {RSS: 4.0, TREE: 15.9}, None),  # each worker has the limit for itself
        ("JupyterHub (MEM_LIMIT)", {TREE: 14.5, HOST: 60.0}, 14.5),
        ("JupyterHub (MEM_LIMIT)", {TREE: 14.3, ANON: 15.9}, None),
    ],
)
def test_what_is_nearly_full(source: str, row: dict[Column, float], told: float | None) -> None:
    found = events(NearlyFull(16 * GIB, source), row, row)
    assert [event["value"] / GIB for event in found] == ([] if told is None else [told]), "once at the most"
    assert events(NearlyFull(16 * GIB, source), row, seq=0) == [], "not between cells"


def test_an_upper_bound_is_not_what_is_used() -> None:
    watch = NearlyFull(16 * GIB, "JupyterHub (MEM_LIMIT)", upper_bound=True)
    assert events(watch, {TREE: 20.0, RSS: 10.0}) == []
    assert len(events(watch, {TREE: 20.0, RSS: 14.5})) == 1


def test_it_looks_again_where_columns_change_and_is_silent_beside_a_budget() -> None:
    watch, full = NearlyFull(16 * GIB, "cgroup"), {ANON: 15.0, TREE: 15.0}
    assert watch.see((RSS,), 0, 1, [15 * GIB]) is not None, "there is nothing else to go by"
    watch = NearlyFull(16 * GIB, "cgroup")
    assert watch.see((HOST,), 0, 1, [15 * GIB]) is None
    watch.silent = True
    assert events(watch, full) == []
    watch.silent = False
    assert len(events(watch, full)) == 1


@pytest.mark.parametrize("limit", [0.0, math.inf, math.nan])
def test_without_a_limit_nothing_is_full(limit: float) -> None:
    assert events(NearlyFull(limit, "host"), {HOST: 1e6, TREE: 1e6}) == []


def test_it_is_said_whose_memory_it_is_where_others_fill_it() -> None:
    event = {"value": 62.1 * GIB, "own": 2 * GIB, "limit": 64 * GIB, "from": "host"}
    assert nearly_full_text(event) == "memory: 62.1 of 64 GiB (host): 97 %, 2.00 GiB of it this kernel's, " + (
        "the kernel may be killed"
    )
    assert nearly_full_text({**event, "own": 60 * GIB, "from": "rlimit"}) == (
        "memory: 62.1 of 64 GiB (rlimit): 97 %, allocations may fail"
    )


def test_a_cell_that_replaces_open_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory_watch, "LOOK_SECONDS", 0.01)
    watch = memory_watch.MemoryWatch(tmp_path)
    watch.cell_began()
    with mock.patch("builtins.open", mock.mock_open(read_data="d")) as opened:
        wait_until(lambda: opened.call_count >= 2, "another look")
    full = {"event": EVENT, "t": 1, "seq": 1, "value": 62.1 * GIB, "own": GIB, "limit": 64 * GIB, "from": "host"}
    (tmp_path / EVENTS).write_bytes(sealed(full) + b"\n")
    said = wait_until(lambda: capfd.readouterr().err, "it to be said")
    watch.close()
    assert said.startswith("cellmeter: memory: 62.1 of 64 GiB")


@pytest.mark.parametrize("older", [False, True])
def test_a_kernel_says_it_once_in_the_cell_that_runs(start_kernel: Callable[..., Kernel], older: bool) -> None:
    kernel = start_kernel(older=older, env={"JUPYTERHUB_USER": "somebody", "MEM_LIMIT": str(500 << 20)})
    kernel.load()
    assert kernel.run("import time; time.sleep(1.2)").stderr == ""
    said = kernel.run(
        "block = bytearray(b'1') * (480 << 20)\nuntil = time.monotonic() + 4\n"
        "while time.monotonic() < until: time.sleep(0.01)"
    ).stderr
    assert re.fullmatch(
        r"cellmeter: memory: \d{3}( MiB at a limit)? of 500 MiB \(JupyterHub \(MEM_LIMIT\)\): \d+ %, "
        r"the kernel may be killed\n",
        said,
    ), said
    assert kernel.run("time.sleep(1.2)").stderr == ""
    threads = "import threading; print([t.name for t in threading.enumerate() if t.name == 'cellmeter-memory'])"
    assert kernel.run(threads).stdout == "[]\n", "there is nothing left to look for"


def test_who_has_set_a_budget_hears_of_that_alone(start_kernel: Callable[..., Kernel]) -> None:
    kernel = start_kernel(env={"JUPYTERHUB_USER": "somebody", "MEM_LIMIT": str(500 << 20)})
    kernel.load()
    kernel.run("%monitor start --max-memory 300MiB")
    said = kernel.run("import time\nblock = bytearray(b'1') * (480 << 20)\ntime.sleep(1.5)").stderr
    assert said.startswith("cellmeter: memory budget 300MiB: ")
    assert said.count("\n") == 1
