"""Each trap of IPython's hooks, with real kernels: ipykernel 7 on IPython 9 and ipykernel 6 on IPython 8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BEGUN, Kernel, wait_until

from cellmeter.run import Cell, Run
from cellmeter.tagging import magic_options, strip_magic_line


@pytest.fixture(params=["newer", "older"])
def loaded(request: pytest.FixtureRequest, start_kernel: Callable[..., Kernel]) -> Kernel:
    kernel = start_kernel(older=request.param == "older")
    assert kernel.load().status == "ok"
    return kernel


def cells(run: Run) -> list[Cell]:
    return list(run.cells)


def test_every_cell_after_the_load_has_its_count_status_and_first_line(loaded: Kernel) -> None:
    loaded.run("a = 1\nb = 2")
    loaded.run("# a comment\n1 / 0")
    loaded.run("x = = 1")
    loaded.run("raise KeyboardInterrupt")
    loaded.run("import sys\nsys.exit(3)")
    found = cells(loaded.recorded_cells(5))
    assert [c.status for c in found] == ["ok", "error", "error", "interrupted", "error"]
    assert [c.execution_count for c in found] == [2, 3, 4, 5, 6]
    assert [c.first_line for c in found] == ["a = 1", "1 / 0", "x = = 1", "raise KeyboardInterrupt", "import sys"]
    assert all(c.source is None and len(c.source_hash) == 16 for c in found)
    assert all(c.end is not None and c.end >= c.start for c in found)


def test_the_count_of_a_running_cell_is_known(loaded: Kernel) -> None:
    first = loaded.run("import time; time.sleep(0)")
    message = loaded.begin(f"{BEGUN}\nwhile True: time.sleep(0.01)")
    wait_until(lambda: len(loaded.recorded_cells(1).cells) == 2, "the second cell to start")
    assert loaded.recorded().cells[1].execution_count == (first.execution_count or 0) + 1
    assert loaded.recorded().cells[1].status == "running"
    loaded.manager.interrupt_kernel()
    loaded.reply(message)
    assert loaded.recorded_cells(2).cells[1].status == "interrupted"


def test_an_interrupt_between_two_statements_of_a_cell_is_one_too(loaded: Kernel) -> None:
    loaded.run(
        """
        compiler = get_ipython().compile
        class Interrupted(type(compiler)):
            def __call__(self, *args):  # IPython compiles a cell statement by statement, as it comes to them
                self.__class__ = Interrupted.__base__
                raise KeyboardInterrupt
        compiler.__class__ = Interrupted
        """
    )
    assert loaded.run("a = 1").error == "KeyboardInterrupt"
    assert [cell.status for cell in loaded.recorded_cells(2).cells] == ["ok", "interrupted"]


def test_cells_outside_the_history_blank_ones_and_silent_ones(loaded: Kernel) -> None:
    loaded.run("1 + 1", store_history=False)
    loaded.run("   \n")
    loaded.run("")
    loaded.run("2 + 2", silent=True, store_history=False)
    loaded.run("'last'")
    found = cells(loaded.recorded_cells(2))
    assert [(c.execution_count, c.first_line) for c in found] == [(None, "1 + 1"), (2, "'last'")]


def test_an_async_cell_and_an_interrupted_one(loaded: Kernel) -> None:
    loaded.run("import asyncio\nawait asyncio.sleep(0.05)\nawait asyncio.sleep(0.05)")
    loaded.begin(f"{BEGUN}\nawait asyncio.sleep(60)")
    wait_until(lambda: len(loaded.recorded_cells(1).cells) == 2, "the second cell to start")
    loaded.manager.interrupt_kernel()
    loaded.send("nudge = 1")  # ipykernel tells of an interrupted await only with the next message
    one, two = cells(loaded.recorded_cells(2))
    assert one.status == "ok"
    assert one.seconds is not None
    assert one.seconds >= 0.1
    assert two.status == "interrupted"


def test_a_cell_within_a_cell_knows_its_parent(loaded: Kernel) -> None:
    loaded.run("get_ipython().run_cell('inner = 1')\nouter = 2")
    loaded.run("after = 3")
    found = cells(loaded.recorded_cells(3))
    assert [c.parent for c in found] == [None, found[0].seq, None]
    assert found[0].start <= found[1].start <= (found[1].end or 0) <= (found[0].end or 0)


def test_queued_cells_that_are_aborted_are_never_attributed(loaded: Kernel) -> None:
    messages = [loaded.send("import time; time.sleep(0.2); 1 / 0"), loaded.send("never = 1"), loaded.send("never = 2")]
    assert [loaded.reply(m).status for m in messages[:1]] == ["error"]
    loaded.run("here = 1")
    found = cells(loaded.recorded_cells(2))
    assert [c.first_line for c in found] == ["import time; time.sleep(0.2); 1 / 0", "here = 1"]


def test_the_cell_id_of_the_front_end_is_kept(loaded: Kernel) -> None:
    message = loaded.client.session.msg(
        "execute_request",
        {"code": "x = 1", "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False},
        metadata={"cellId": "the-cell"},
    )
    loaded.client.shell_channel.send(message)
    loaded.reply(message["header"]["msg_id"])
    assert loaded.recorded_cells(1).cells[0].cell_id == "the-cell"


def test_a_subshell_overlaps_the_main_cell_without_crossing_tags(kernel: Kernel) -> None:
    created = kernel.client.session.msg("create_subshell_request", {})
    kernel.client.control_channel.send(created)
    subshell = kernel.client.get_control_msg(timeout=20)["content"]["subshell_id"]
    kernel.run("import os, time")
    outer = kernel.begin(f"{BEGUN}\nwhile not os.path.exists('go'): time.sleep(0.01)")
    content = {"code": "x = 1", "silent": False, "store_history": True}
    message = kernel.client.session.msg("execute_request", {**content, "user_expressions": {}, "allow_stdin": False})
    message["header"]["subshell_id"] = subshell
    kernel.client.shell_channel.send(message)
    kernel.recorded_cells(2)
    (kernel.home.parent / "go").touch()
    kernel.reply(outer)
    _, main, sub = cells(kernel.recorded_cells(3))
    assert (main.status, sub.status, sub.parent) == ("ok", "ok", None)
    assert main.start < sub.start < (sub.end or 0) < (main.end or 0)


def test_the_monitor_line_keeps_await_line_numbers_and_other_magics(loaded: Kernel) -> None:
    loaded.run("import asyncio")
    assert loaded.run("%%monitor --no-chart\nawait asyncio.sleep(0)").status == "ok"
    failed = loaded.run("%%monitor my label --no-chart\n\n1 / 0")
    assert (
        "----> 3" in failed.traceback.replace("\x1b[0;32m", "").replace("\x1b[32m", "") or "line 3" in failed.traceback
    )
    timed = loaded.run("%%monitor --no-chart\n%%time\nx = 5")
    assert "Wall time" in timed.stdout
    under = loaded.run("%%time\n%%monitor under --no-chart\ny = 6")
    assert "Wall time" in under.stdout
    assert loaded.run("print(x, y)").stdout == "5 6\n"
    found = cells(loaded.recorded_cells(6))
    assert [c.label for c in found] == [None, None, "my label", None, "under", None]
    assert [c.status for c in found] == ["ok", "ok", "error", "ok", "ok", "ok"]


def _last_sampled(kernel: Kernel, seq: int) -> bool:
    run = kernel.recorded_cells(seq)
    series = run.series("process.memory.rss", "process")
    return bool(((series.seq == seq) & (series.time >= (run.cells[seq - 1].end or 0))).any())


def test_samples_carry_the_cell(loaded: Kernel) -> None:
    loaded.run("import time")
    # a recorder that has just begun is late
    wait_until(lambda: _last_sampled(loaded, 1), "the first cell's last sample")
    loaded.run("time.sleep(0.5)")
    run = loaded.recorded_cells(2)
    series = run.series("process.memory.rss", "process")
    tagged = series.time[series.seq == 2]
    cell = run.cells[1]
    due = 10 * (cell.seconds or 0) + 2  # one at each edge
    gaps = [gap for gap in run.gaps if cell.start < gap.end and gap.start < (cell.end or 0)]  # of a starved recorder
    assert due - 1.5 - sum(10 * (gap.end - gap.start) for gap in gaps) <= len(tagged) <= due + 1.5
    assert set(series.seq[(series.time > cell.start + 0.1) & (series.time < (cell.end or 0))]) == {2}
    assert run.usage(run.cells[1]).samples == len(tagged)
    assert set(series.seq[series.time > (run.cells[1].end or 0) + 0.1]) <= {0}


def test_the_notebooks_path_comes_from_the_front_end(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    kernel = start_kernel(env={"JPY_SESSION_NAME": str(tmp_path / "my notebook.ipynb")})
    kernel.load()
    kernel.run("1")
    assert kernel.recorded_cells(1).notebook == str(tmp_path / "my notebook.ipynb")


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("%%monitor\nx", ""),
        ("%%monitor train --rate 5\nx", "train --rate 5"),
        ("%%time\n%%monitor a\nx", "a"),
        ("%%monitoring\nx", None),
        ("x = 1\n%%monitor", None),
        ("%%writefile f\n%%monitor inside", None),
        ("%%bash\n%%monitor inside", None),
        ("%%capture out\n%%time\n%%monitor a", "a"),
        ("", None),
    ],
)
def test_magic_options(source: str, options: str | None) -> None:
    assert magic_options(source) == options


def test_stripping_keeps_the_number_of_lines() -> None:
    assert strip_magic_line(["%%monitor x\n", "a\n"]) == ["\n", "a\n"]
    assert strip_magic_line(["%%monitor\n", "%%time\n", "a\n"]) == ["%%time\n", "a\n"]
    assert strip_magic_line(["a\n"]) == ["a\n"]
