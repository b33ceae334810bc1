"""``cellmeter watch`` on real runs: in a real pseudo-terminal, and without one."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import nvml_stub
import pexpect
import pytest
from conftest import Kernel, wait_until
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cellmeter import following
from cellmeter.following import Followed, summary_of
from cellmeter.home import run_folders
from cellmeter.store import read_header
from cellmeter.watch import line, spark, view

COMMAND = [sys.executable, "-m", "cellmeter.cli", "watch"]
SLOW = "%%monitor slow --no-chart\nimport time\nwhile True: time.sleep(0.01)"
ON_SCREEN, OFF_SCREEN, CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


def settings_of_a_new_terminal() -> list[Any]:
    ours, theirs = os.openpty()
    try:
        return termios.tcgetattr(ours)
    finally:
        os.close(ours)
        os.close(theirs)


class Terminal:
    """``cellmeter watch`` in a pseudo-terminal."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        environ = {**os.environ, "TERM": "xterm-256color"}
        for fixed in ("COLUMNS", "LINES"):  # which pytest-xdist sets, would be another size than the terminal's
            environ.pop(fixed, None)
        self.child: Any = pexpect.spawn(
            COMMAND[0], COMMAND[1:], env=environ, dimensions=(rows, columns), encoding="utf-8", timeout=60
        )
        self.child.logfile_read = self.log = io.StringIO()
        self.before = settings_of_a_new_terminal()

    def ended(self) -> str:
        """Waits for its end in good order; returns all it has written."""
        self.child.expect(pexpect.EOF)
        settings = termios.tcgetattr(self.child.child_fd) if not self.child.closed else self.before
        self.child.close()
        assert self.child.exitstatus == 0
        assert settings == self.before
        written = self.log.getvalue()
        assert "Traceback" not in written
        return written


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(**size: int) -> Terminal:
        opened.append(Terminal(**size))
        return opened[-1]

    yield open_one
    for one in opened:
        one.child.close(force=True)


@pytest.fixture
def busy(kernel: Kernel) -> Kernel:
    """A kernel whose third cell goes on."""
    kernel.run("x = 1")
    kernel.send(SLOW)
    wait_until(lambda: any(cell.label == "slow" for cell in kernel.recorded_cells(1).cells), "the cell to run")
    return kernel


def left_in_order(written: str) -> str:
    """What is on the terminal after the screen was left."""
    assert ON_SCREEN in written
    assert CURSOR in written.rpartition(OFF_SCREEN)[0] + written.rpartition(OFF_SCREEN)[2]
    return written.rpartition(OFF_SCREEN)[2]


@pytest.mark.parametrize("how", ["q", "ctrl-c", "terminate"])
def test_a_running_cell_is_shown_until_the_user_leaves(
    busy: Kernel, terminal: Callable[..., Terminal], how: str
) -> None:
    watched = terminal()
    watched.child.expect("recording")
    watched.child.expect("▶ .*slow")
    watched.child.expect(r"Memory.*peak \S+ MiB")
    if how == "q":
        watched.child.send("q")
    elif how == "ctrl-c":
        watched.child.sendintr()
    else:
        watched.child.kill(signal.SIGTERM)
    after = left_in_order(watched.ended())
    assert "slow" not in after
    assert busy.manager.is_alive(), "the run goes on"


def test_it_follows_the_size_of_the_terminal(busy: Kernel, terminal: Callable[..., Terminal]) -> None:
    watched = terminal(columns=100)
    watched.child.expect(r"of \d+ cores")
    watched.child.setwinsize(20, 60)
    watched.child.expect(r"Memory\S* +[\d.]+ MiB {2}")
    watched.child.send("q")
    watched.ended()


def test_a_kernel_that_is_killed_meanwhile(busy: Kernel, terminal: Callable[..., Terminal]) -> None:
    watched = terminal()
    watched.child.expect("▶ .*slow")
    os.kill(busy.pid, signal.SIGKILL)
    after = left_in_order(watched.ended())
    assert re.search(r"ended: killed \(SIGKILL\) in In \[3\] slow, with", after.replace("\r\n", " "))
    assert "died" in after


def test_a_recorder_that_is_killed_meanwhile(busy: Kernel, home: Path, terminal: Callable[..., Terminal]) -> None:
    watched = terminal()
    watched.child.expect("▶ .*slow")
    (folder,) = run_folders(home / "runs")
    os.kill(read_header(folder)["recorder"]["pid"], signal.SIGKILL)
    assert "ended: unknown in " in left_in_order(watched.ended())


def test_a_run_that_has_ended_shows_its_end(kernel: Kernel) -> None:
    kernel.run("%%monitor the last --no-chart\nblock = bytearray(420 << 20)\ndel block")
    kernel.run("%monitor stop")
    shown = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.splitlines()[-1].endswith(" ended: stopped")
    assert "In [2] the last" in shown
    assert "● the last needed 4" in shown
    assert re.search(r"CPU +peak \d", shown)
    assert re.search(r"Memory +peak [\d.]+ MiB of [\d.]+ GiB +[▁▂▃▄▅▆▇█]", shown)
    assert re.search(r"−15 s +end *$", shown, re.MULTILINE)
    assert "now" not in shown
    assert "…" not in shown.split("Cell ")[0]
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_without_a_terminal_it_says_a_line_a_second(busy: Kernel, script: Callable[..., Any]) -> None:
    process = script("import sys; from cellmeter.cli import main; sys.exit(main(['watch']))")
    for _ in range(2):
        told = process.stdout.readline()
        assert re.match(r"\d\d:\d\d:\d\d · slow [\d.]+ m?s · CPU \S+( cores)? · Memory [\d.]+ MiB\n", told), told
    os.kill(busy.pid, signal.SIGKILL)
    rest, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    assert " ended: killed (SIGKILL) in In [3] slow, with " in rest.splitlines()[-1]


def test_of_several_runs_it_shows_the_newest_that_goes_on(
    busy: Kernel, start_kernel: Callable[..., Kernel], terminal: Callable[..., Terminal], home: Path
) -> None:
    ended = start_kernel()
    assert ended.load().status == "ok"
    ended.run("%monitor stop")
    first, _ = run_folders(home / "runs")
    alone = terminal()
    alone.child.expect("▶ .*slow")
    alone.child.expect("q leaves; the run goes on")
    alone.child.send("q")
    assert "cellmeter runs" not in alone.ended()

    other = start_kernel(env={"JPY_SESSION_NAME": "/somewhere/other.ipynb"})
    assert other.load().status == "ok"
    newest = run_folders(home / "runs")[-1]
    watched = terminal(columns=100)
    watched.child.expect("other.ipynb")
    watched.child.expect("1 other run too: cellmeter runs")
    watched.child.send("q")
    assert f"this is {newest.name}, the newest that goes on; so do {first.name}" in watched.ended()


def text_of(followed: Followed, width: int, height: int) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(view(followed, width, height))
    shown: str = console.file.getvalue()  # type: ignore[attr-defined]
    return shown


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_any_number_of_gpus_at_any_size(start_kernel: Callable[..., Kernel], tmp_path: Path, gpus: int) -> None:
    trace = "".join(f"gpu mem=80g\nat 0 gpu {n} util={10 * n + 5} used={n + 1}g power=300\n" for n in range(gpus))
    kernel = start_kernel(env=nvml_stub.environment(trace, tmp_path) if gpus else {})
    kernel.load()
    for _ in range(5):
        kernel.run("x = 1")
    kernel.recorded_cells(5)
    followed = Followed(run_folders(kernel.home / "runs")[0])
    followed.poll()
    wait_until(lambda: followed.summary.rows, "the table of cells")
    for width, height in ((60, 24), (80, 24), (120, 40)):
        shown = text_of(followed, width, height).splitlines()
        assert max(map(len, shown)) <= width
        assert len(shown) <= height
        for n in range(gpus):
            assert any(re.match(rf"gpu{n} +{10 * n + 5} % .* {n + 1}.00 (GiB|of 80 GiB)", row) for row in shown)
            assert any(f"peak {10 * n + 5} %  {n + 1}.00 of" in row for row in shown) == (width == 120)
        assert sum("x = 1" in row or re.match(r"In \[", row) is not None for row in shown) >= 3
    assert line(followed).count(" · ") == 3 + gpus


def test_a_run_that_has_only_begun(kernel: Kernel) -> None:
    kernel.recorded_cells(0)
    followed = Followed(run_folders(kernel.home / "runs")[0])
    assert "between cells" in text_of(followed, 80, 24)
    wait_until(lambda: followed.poll() or followed.seconds, "a sample")
    assert "CPU" in text_of(followed, 80, 24)


def test_a_run_too_large_to_be_read_whole_shows_only_cells_that_were(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.run("import time; time.sleep(0.6)")
    kernel.run("time.sleep(0.3)")
    kernel.run("%monitor stop")
    run = kernel.recorded_cells(3)
    folder = Path(run.path)
    assert [row.seq for row in summary_of(folder).rows] == [1, 2, 3]
    monkeypatch.setattr(following, "WHOLE_BYTES", 0)
    newest = run.series("host.cpu.time", "host").time >= run.cells[0].start + 0.3
    monkeypatch.setattr(following, "NEWEST_RECORDS", int(newest.sum()))
    large = summary_of(folder)
    assert ([row.seq for row in large.rows], large.findings) == ([2, 3], None)


def test_without_rich_one_line_names_what_is_missing(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('no rich here')")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert result.returncode == 2
    assert result.stderr == ("cellmeter: watch needs rich, which is not installed: pip install 'cellmeter[watch]'\n")


@given(
    st.lists(st.floats(0, 120), max_size=60).map(sorted),
    st.integers(1, 50),
    st.integers(1, 3),
    st.sampled_from([15.0, 120.0]),
)
def test_a_spark_has_its_size_and_shows_the_highest(times: list[float], width: int, height: int, window: float) -> None:
    values = np.zeros(len(times))
    values[-1:] = 1.0
    drawn = spark(np.array(times), values, 1.0, window, (width, height))
    assert [len(row) for row in drawn] == [width] * height
    assert ("█" in drawn[0]) == bool(times)


def test_what_is_unknown_is_blank_and_nothing_is_not() -> None:
    times = np.arange(0.5, 10.5)
    values = np.array([np.nan] * 5 + [0.0] * 5)
    assert spark(times, values, 1.0, 10.0, (10, 1)) == [" " * 5 + "▁" * 5]


def test_a_picture_only_moves_to_the_left_as_it_grows() -> None:
    times, values = np.arange(0.0, 100.0, 0.1), np.random.default_rng(1).random(1000)
    before, after = (spark(times[:n], values[:n], 1.0, 30.0, (60, 1))[0] for n in (700, 720))
    assert after[: 60 - 4 - 1] == before[4:-1]
