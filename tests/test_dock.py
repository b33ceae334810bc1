"""``%monitor dock`` in real kernels, spoken to as a page does, and its feed of a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Kernel, wait_until
from test_live import Written, written
from test_widget import answer, roles, tell

from cellmeter.charts import DEFAULT_GROUPS
from cellmeter.feed import WholeRun

WIDGET = "application/vnd.jupyter.widget-view+json"
__all__ = ["written"]
HIDE_SIDECAR = "import sys; sys.modules['sidecar'] = None"


@pytest.fixture
def inside(kernel: Kernel) -> Kernel:
    """A kernel without sidecar."""
    kernel.run(HIDE_SIDECAR)
    return kernel


def test_a_feed_of_the_whole_run_has_all_rows_and_cells(kernel: Kernel) -> None:
    kernel.run("import time; time.sleep(0.3)")
    kernel.run("get_ipython().run_cell('time.sleep(0.2)')")
    folder = Path(kernel.recorded_cells(3).path)
    feed = WholeRun(folder, DEFAULT_GROUPS)
    feed.poll()
    first = feed.bands(False)
    assert [(band["seq"], band["status"]) for band in first] == [(1, "ok"), (2, "ok")], (
        "no band for a cell within a cell"
    )
    assert (first[0]["title"], first[0]["line"]) == ("In [2]", "import time; time.sleep(0.3)")
    assert feed.bands(False) == []
    kernel.run("time.sleep(0.2)")
    kernel.recorded_cells(4)
    assert [band["seq"] for band in feed.bands(False)] == [4]
    assert [band["seq"] for band in feed.bands(True)] == [1, 2, 4]
    kernel.run("%monitor stop")
    feed.poll()
    run = kernel.recorded()
    times = run.series("process.memory.rss", "process").time
    assert np.allclose(feed.rows()[:, 0], times)
    for band, cell in zip(feed.bands(True), [c for c in run.cells if c.parent is None], strict=True):
        assert (band["start"], band["end"]) == (cell.start, cell.end)


def test_without_sidecar_it_is_under_its_cell_until_the_recording_stops(inside: Kernel) -> None:
    opened = inside.run("%monitor dock")
    (shown,) = opened.displays
    assert WIDGET in shown["data"]
    assert opened.stdout == ""
    comm_id = shown["data"][WIDGET]["model_id"]
    told: list[Any] = []

    def bands_told() -> list[Any]:
        told.extend(answer(inside, comm_id, "custom")["content"].get("cells", []))
        return [cell for cell in told if cell["title"] == "In [4]" and cell["status"] == "ok"]

    inside.send("x = 1")
    wait_until(bands_told, "the band of a cell that ran after it was opened")
    tell(inside, "comm_msg", {"comm_id": comm_id, "data": {"method": "custom", "content": {"k": "need"}}})
    told.clear()
    wait_until(lambda: bands_told() and told[0]["seq"] == 1, "all of them, for a page loaded anew")
    stopped = inside.run("%monitor stop")
    (final,) = stopped.updates
    assert final["transient"]["display_id"] == shown["transient"]["display_id"]
    assert final["data"]["text/plain"].startswith("The whole run: done in ")
    assert WIDGET not in final["data"]


def test_rows_of_a_long_run_have_the_same_numbers_whoever_follows_it(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellmeter.feed.MOST_ROWS", 1000)
    early = WholeRun(written.writer.folder, DEFAULT_GROUPS)
    for number in range(1020):
        written.row(number / 10, 1)
    early.poll()
    late = WholeRun(written.writer.folder, DEFAULT_GROUPS)
    assert late.next == 20, "it begins with the newest"
    late.poll()
    assert late.next == early.next == 1020
    newest = early.since(1015)
    assert newest is not None
    assert np.array_equal(newest, late.since(1015))
    assert late.since(19) is None, "rows it never had"


def test_beside_the_notebook_it_has_a_panel_in_its_output_too(kernel: Kernel) -> None:
    """For a page that has no place beside the notebook."""
    opened = kernel.run("%monitor dock")
    (shown,) = opened.displays
    assert WIDGET in shown["data"]
    assert roles(kernel) == ["LayoutModel", "SidecarModel", "panel", "runtime"]
    kernel.run("%monitor dock")
    assert "SidecarModel" in roles(kernel)
    assert roles(kernel).count("panel") == 1, "the one before has gone"


def test_nothing_is_left_of_it_when_the_extension_goes(inside: Kernel) -> None:
    inside.run("%monitor dock")
    inside.run("%unload_ext cellmeter")
    ours = "import threading\nprint([t.name for t in threading.enumerate() if 'cellmeter' in t.name])"
    wait_until(lambda: inside.run(ours).stdout == "[]\n", "the threads to end")


def test_without_a_recording_or_a_page_it_says_so(kernel: Kernel, script: Callable[..., Any]) -> None:
    kernel.run("%monitor stop")
    off = kernel.run("%monitor dock")
    assert "recording is off: %monitor start" in off.stderr
    assert off.traceback == ""
    process = script(
        "from IPython.terminal.interactiveshell import TerminalInteractiveShell\n"
        "shell = TerminalInteractiveShell.instance()\n"
        "shell.run_cell('%load_ext cellmeter')\nshell.run_cell('%monitor dock')"
    )
    out, err = process.communicate(timeout=60)
    assert "`cellmeter watch` shows the run in a terminal" in out + err
    assert "Traceback" not in out + err
