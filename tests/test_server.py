"""The server extension: a real Jupyter server beside real kernels, and what it refuses."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from browser.driver import TOKEN, Server, serving
from conftest import Kernel, wait_until
from test_live import COLUMNS, SECOND, Written

from cellmeter import server
from cellmeter.feed import Feed
from cellmeter.run import EDGE_END, EDGE_START, Column
from cellmeter.store import Tail, process_identity

GROUPS = ("cpu", "memory", "gpu")
RUN = "20260301T120000Z-0a1b2c"
HOLDS_THE_GIL = "import ctypes; ctypes.PyDLL(None).sleep(600)"


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("jupyter")
    with serving(base, "jupyter_server", base / "home") as running:
        yield running


@pytest.fixture
def beside(jupyter: Server) -> Iterator[Kernel]:
    """A kernel with the extension loaded, whose runs the server has too."""
    kernel = Kernel(jupyter.home)
    try:
        assert kernel.load().status == "ok"
        yield kernel
    finally:
        kernel.close()


def asked(jupyter: Server, path: str) -> tuple[int, Any]:
    """Status and reply to a request that is let in."""
    request = urllib.request.Request(f"{jupyter.url}cellmeter/v1/{path}", headers={"Authorization": f"token {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, None


def rows_of(reply: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(reply["rows"])).reshape(reply["width"], -1).T


def test_the_tail_goes_on_while_the_cell_holds_the_gil_and_tells_how_the_kernel_died(
    jupyter: Server, beside: Kernel
) -> None:
    beside.send(HOLDS_THE_GIL)
    path = f"runs/{beside.recorded().id}/cells/1/tail?from="

    def reply_from(number: int) -> Any:
        status, reply = asked(jupyter, f"{path}{number}")
        return reply if status == 200 and len(rows_of(reply)) else None

    first = wait_until(lambda: reply_from(0), "rows")
    second = wait_until(lambda: reply_from(first["n"]), "more rows while the GIL is held")
    assert (first["s"], second["s"], first["ending"]) == (0, first["n"], None)
    assert rows_of(first)[0, 0] == 0
    assert rows_of(second)[0, 0] > rows_of(first)[-1, 0]
    os.kill(beside.pid, signal.SIGKILL)
    last = wait_until(lambda: (r := asked(jupyter, f"{path}0")[1])["ending"] and r, "the ending")
    assert last["ending"]["status"] == "died"
    assert last["ending"]["says"].startswith("kernel died in this cell: killed (SIGKILL), memory at ")
    assert last["ending"]["seconds"] >= rows_of(last)[-1, 0]


def test_the_tail_of_the_whole_run_has_its_cells_and_tells_how_it_ended(jupyter: Server, beside: Kernel) -> None:
    beside.run("x = 1")
    beside.send(HOLDS_THE_GIL)
    path = f"runs/{beside.recorded_cells(1).id}/tail?from="

    def reply_from(number: int) -> Any:
        status, reply = asked(jupyter, f"{path}{number}")
        return reply if status == 200 and len(rows_of(reply)) and len(reply["cells"]) == 2 else None

    first = wait_until(lambda: reply_from(0), "rows and both cells")
    second = wait_until(lambda: reply_from(first["n"]), "more rows while the GIL is held")
    assert (first["s"], second["s"], first["ending"]) == (0, first["n"], None)
    assert [(cell["title"], cell["status"]) for cell in first["cells"]] == [("In [2]", "ok"), ("In [3]", "running")]
    os.kill(beside.pid, signal.SIGKILL)
    last = wait_until(lambda: (r := asked(jupyter, f"{path}0")[1])["ending"] and r, "the ending")
    assert last["ending"]["status"] == "died"
    assert last["ending"]["says"].startswith("killed (SIGKILL) in In [3]")
    assert last["ending"]["seconds"] >= rows_of(last)[-1, 0]


def test_who_is_not_let_in_gets_nothing(jupyter: Server, beside: Kernel) -> None:
    beside.run("x = 1")
    path = f"/cellmeter/v1/runs/{beside.recorded_cells(1).id}/cells/1/tail"
    assert asked(jupyter, path.removeprefix("/cellmeter/v1/"))[0] == 200
    client = http.client.HTTPConnection("127.0.0.1", urlparse(jupyter.url).port or 0, timeout=20)
    for method, headers, refused in (
        ("GET", {}, 403),
        ("GET", {"Authorization": "token wrong"}, 403),
        ("GET", {"Authorization": f"token {TOKEN}", "Host": "attacker.example"}, 403),
        ("POST", {"Authorization": f"token {TOKEN}"}, 405),
        ("DELETE", {"Authorization": f"token {TOKEN}"}, 405),
    ):
        client.request(method, path, headers=headers)
        reply = client.getresponse()
        reply.read()
        assert reply.status == refused, (method, headers)
    client.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"runs/{RUN}/cells/1/tail", 404),
        (f"runs/{RUN}/cells/0/tail", 404),
        (f"runs/{RUN}/tail", 404),
        (f"runs/{RUN}/tail?from=-1", 400),
        ("runs/../cells/1/tail", 404),
        (f"runs/..%2Fruns%2F{RUN}/cells/1/tail", 404),
        (f"runs/{RUN}%00/cells/1/tail", 404),
        (f"runs/{RUN}/cells/-1/tail", 404),
        (f"runs/{RUN}/cells/{'9' * 400}/tail", 404),
        (f"runs/{RUN}/cells/1/tail?from=-1", 400),
        (f"runs/{RUN}/cells/1/tail?from=%D9%A1", 400),
        (f"runs/{RUN}/cells/1/tail?from={'9' * 5000}", 400),
        ("runs", 404),
    ],
)
def test_bad_requests(jupyter: Server, path: str, status: int) -> None:
    assert asked(jupyter, path)[0] == status


# ---- without a server: whose folders, which rows ---------------------------------------------------------------------


@pytest.fixture
def written(home: Path) -> Written:
    """A run below CELLMETER_HOME with the edges of cell 1."""
    folder = home / "runs" / RUN
    folder.mkdir(parents=True, mode=0o700)
    made = Written(folder)
    made.writer.describe(recorder={"pid": os.getpid(), "identity": process_identity(os.getpid())})  # at work
    made.writer.event({"event": "cell_start", "t": 10 * SECOND, "seq": 1})
    return made


def reply_to(cells: server.Cells, number: int = 0, seq: int = 1) -> dict[str, Any]:
    reply = cells.tail(RUN, seq, number)
    assert reply is not None
    return reply


def test_only_plain_folders_and_files_of_this_user(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written.writer.folder
    written.row(10, 1, EDGE_START)
    assert server.own_folder(RUN) == folder
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert server.own_folder(RUN) is None, "somebody else's"
    monkeypatch.undo()
    monkeypatch.setenv("CELLMETER_HOME", str(folder.parents[1]))
    for name in ("run.json", "events.jsonl", "samples-000.f64"):
        kept = (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(kept)
        assert server.own_folder(RUN) is None, f"{name} leads out"
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert server.own_folder(RUN) is None, f"{name} would never end"
        (folder / name).unlink()
        kept.rename(folder / name)
    written.writer.describe(
        segments=[{"file": "../../secret", "stream": "main", "columns": [list(c) for c in COLUMNS]}]
    )
    assert server.own_folder(RUN) is None, "a file elsewhere"
    moved = folder.rename(tmp_path / RUN)
    folder.symlink_to(moved)
    assert server.own_folder(RUN) is None, "a folder elsewhere"


def test_rows_are_numbered_as_the_kernel_numbers_them(written: Written) -> None:
    for n in range(30):
        written.row(7 + n / 10, 0)
    feed = Feed(written.writer.folder, 1, GROUPS)
    for n in range(20):
        written.row(10 + n / 10, 1, EDGE_START if n == 0 else 0)
    cells = server.Cells()
    reply = reply_to(cells)
    assert (reply["s"], reply["n"]) == (0, 20)
    np.testing.assert_array_equal(rows_of(reply), feed.poll())
    written.row(12, 1)
    np.testing.assert_array_equal(rows_of(reply_to(cells, 20)), feed.poll())
    assert len(rows_of(reply_to(cells, 21))) == 0
    assert reply_to(cells, 22)["s"] is None, "a page that knows more than there is gets all there is"


def test_a_long_cell_is_read_in_pieces_and_answered_in_bounds(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(server, "REPLY_BYTES", 8 * 3 * 400)
    for n in range(3000):
        written.row(10 + n / 10, 1, EDGE_START if n == 0 else 0, rss=9e9 if n == 77 else 1e9)
    columns = (*COLUMNS, Column("host.memory.used", "host", "By"))
    second = written.writer.add_segment("main", columns)
    for n in range(3000, 3100):
        written.writer.sample(second, int((10 + n / 10) * SECOND), 1, 0, [10 + n / 10, 1e9, 0.0, 2e9])
    cells = server.Cells()
    everything = reply_to(cells)
    assert (everything["s"], everything["n"]) == (None, 3100)
    assert len(rows_of(everything)) <= 400
    assert rows_of(everything)[:, 2].max() == 9e9
    assert (np.diff(rows_of(everything)[:, 0]) >= 0).all()
    few = reply_to(cells, 3090)
    assert (few["s"], len(rows_of(few))) == (3090, 10)


def test_a_cell_that_has_ended(written: Written) -> None:
    written.row(10, 1, EDGE_START)
    written.row(11, 1, EDGE_END)
    written.writer.event({"event": "cell_end", "t": 11 * SECOND, "seq": 1, "status": "error"})
    assert reply_to(server.Cells())["ending"] == {"status": "error", "seconds": 1.0, "says": "failed"}


def test_a_damaged_or_foreign_run_is_not_found(written: Written) -> None:
    cells = server.Cells()
    assert cells.tail(RUN, 2, 0) is None
    assert cells.tail("x" * 23, 1, 0) is None
    (written.writer.folder / "run.json").write_text("{}")
    assert cells.tail(RUN, 1, 0) is None


def test_a_tail_begins_at_a_time(written: Written) -> None:
    for n in range(100):
        written.row(n / 10, 1)
    tail = Tail(written.writer.folder, since_ns=int(6.05 * SECOND))
    ((_, records),) = tail.samples()
    assert records["t"].tolist() == [int(n / 10 * SECOND) for n in range(61, 100)]


def test_a_kernel_does_not_load_what_the_server_needs(home: Path) -> None:
    program = "import cellmeter, cellmeter.live, cellmeter.magics, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"cellmeter.server", "jupyter_server", "tornado"} & set(done.stdout.split())
