"""How real kernels end, and what forks and crowds of them do to the record."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Kernel, has_ended, recorders_below, wait_until

from cellmeter.home import run_folders
from cellmeter.run import Run
from cellmeter.store import EVENTS, read_events, read_run


def ended(home: Path, number: int = -1) -> Run:
    """A run, once its recorder has ended."""
    folder = run_folders(home / "runs")[number]
    wait_until(lambda: has_ended(folder), "the recorder to end")
    return read_run(folder)


@pytest.mark.parametrize(
    ("code", "ending", "number"),
    [
        ("import ctypes; ctypes.string_at(0)", "crashed", signal.SIGSEGV),
        ("import os; os.abort()", "crashed", signal.SIGABRT),
        ("import os; os._exit(7)", "exited", None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "killed", signal.SIGTERM),
    ],
)
def test_a_cell_that_ends_the_kernel(kernel: Kernel, home: Path, code: str, ending: str, number: int | None) -> None:
    kernel.run("x = 1")
    kernel.send(code)
    run = ended(home)
    assert (run.ending, run.signal) == (ending, number)
    assert [(cell.execution_count, cell.status) for cell in run.cells] == [(2, "ok"), (3, "died")]
    assert run.exit_code == (7 if ending == "exited" else None)


def test_a_forced_restart_while_a_cell_runs(kernel: Kernel, home: Path) -> None:
    kernel.send("while True: pass")
    wait_until(lambda: (kernel.home / "runs").is_dir() and kernel.recorded_cells(0).cells, "the cell to start")
    kernel.manager.restart_kernel(now=True)
    run = ended(home, 0)
    assert (run.ending, run.cells[0].status) == ("killed", "died")


def test_a_stopped_kernel_is_sampled_on(kernel: Kernel) -> None:
    kernel.run("x = 1")
    os.kill(kernel.pid, signal.SIGSTOP)
    before = kernel.recorded_cells(1).sample_count
    wait_until(lambda: kernel.recorded().sample_count >= before + 2, "samples of the stopped kernel")
    os.kill(kernel.pid, signal.SIGCONT)
    assert kernel.run("y = 2").status == "ok"


MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 300 MiB, where the machine allows making one."""
    folder = MEMORY_CGROUP / f"cellmeter-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(300 << 20))
    except OSError as error:
        pytest.skip(f"this machine allows no control group of our own ({error}); test_store has the faked one")
    yield folder
    wait_until(lambda: not (folder / "cgroup.procs").read_text().strip(), "the group to be empty")
    folder.rmdir()


def test_out_of_memory_in_a_control_group(start_kernel: Callable[..., Kernel], home: Path, small_group: Path) -> None:
    kernel = start_kernel()
    (small_group / "cgroup.procs").write_text(str(kernel.pid))
    kernel.load()
    # the recorder is started from within the group: it must outlive the kernel to say what happened
    kernel.run("x = 1")
    assert kernel.recorded_cells(1).limits["memory_bytes"] == (300 << 20, "cgroup")
    kernel.send("blocks = []\nwhile True: blocks.append(bytearray(8 << 20))")
    run = ended(home)
    assert (run.ending, run.signal, run.cells[-1].status) == ("out-of-memory", signal.SIGKILL, "died")
    (finding,) = [finding for finding in run.findings() if finding.rule == "out-of-memory"]
    assert "In [3]" in finding.fact
    assert "of 300 MiB (cgroup)" in finding.fact


def under_a_hub(memory_bytes: int) -> dict[str, str]:
    return {"JUPYTERHUB_USER": "somebody", "MEM_LIMIT": str(memory_bytes), "CPU_LIMIT": "0.5"}


def test_a_hubs_limit_is_named_and_no_kernel_dies_of_it(start_kernel: Callable[..., Kernel], home: Path) -> None:
    kernel = start_kernel(env=under_a_hub(100 << 20))
    kernel.load()
    kernel.run("import time\nblock = bytearray(b'1') * (200 << 20)\ntime.sleep(0.3)")
    kernel.send("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    run = ended(home)
    assert run.limits["memory_bytes"] == (100 << 20, "JupyterHub (MEM_LIMIT)")
    assert run.limits["cpu_cores"] == (0.5, "JupyterHub (CPU_LIMIT)")
    assert run.ending == "killed"
    (near,) = [finding for finding in run.findings() if finding.rule == "memory-near-limit"]
    assert "of 100 MiB (JupyterHub (MEM_LIMIT))" in near.fact
    assert "the kernel may be killed" in near.consequence


def test_a_group_that_is_nearly_full_is_told_once_and_not_for_what_it_has_cached(
    start_kernel: Callable[..., Kernel], home: Path, small_group: Path, tmp_path: Path
) -> None:
    kernel = start_kernel()
    (small_group / "cgroup.procs").write_text(str(kernel.pid))
    kernel.load()
    cached = kernel.run(
        f"import time\nwith open({str(tmp_path / 'file')!r}, 'wb') as file:\n"
        "    for _ in range(40): file.write(bytes(8 << 20))\n"
        f"with open({str(tmp_path / 'file')!r}, 'rb') as file:\n    while file.read(1 << 20): pass\ntime.sleep(1.5)"
    )
    assert (cached.status, cached.stderr) == ("ok", "")
    fill = "used = int(open('/sys/fs/cgroup/memory/{0}/memory.stat').read().split('total_rss ')[1].split()[0])\n"
    fill = fill.format(small_group.name) + "block = bytearray(b'1') * ((280 << 20) - used)\ntime.sleep(2.5)"
    said = kernel.run(fill).stderr
    assert re.fullmatch(r"cellmeter: memory: 2[78]\d of 300 MiB \(cgroup\): 9\d %, the kernel may be killed\n", said), (
        said
    )
    assert kernel.run("time.sleep(1.5)").stderr == "", "it stays so"
    kernel.run("del block")
    assert kernel.run(fill).stderr == "", "once a run"
    assert [e["event"] for e in read_events(run_folders(home / "runs")[-1] / EVENTS)[0]].count("nearly_full") == 1
    kernel.close()


def test_out_of_memory_under_a_hub_is_of_the_control_group(
    start_kernel: Callable[..., Kernel], home: Path, small_group: Path
) -> None:
    kernel = start_kernel(env=under_a_hub(100 << 20))
    (small_group / "cgroup.procs").write_text(str(kernel.pid))
    kernel.load()
    kernel.send("blocks = []\nwhile True: blocks.append(bytearray(8 << 20))")
    run = ended(home)
    assert run.ending == "out-of-memory"
    (finding,) = [finding for finding in run.findings() if finding.rule == "out-of-memory"]
    assert "of 300 MiB (cgroup)" in finding.fact


WORKERS = """
import multiprocessing, time
def work(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until: pass
    return 1
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_count_and_send_nothing(kernel: Kernel, tmp_path: Path, method: str) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    kernel.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import workers, multiprocessing")
    kernel.run(
        f"with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "    assert pool.map(workers.work, [0.4, 0.4]) == [1, 1]"
    )
    run = kernel.recorded_cells(2)
    assert (run.usage(run.cells[1]).cpu_seconds or 0) >= 0.75
    assert run.series("process.children", "process").values.max() >= 2
    assert len(run.cells) == 2, "no worker sent an edge of its own"


def test_the_users_signal_handlers_and_fork_hooks_stay(kernel: Kernel) -> None:
    kernel.run(
        "import os, signal, threading\ncalls = []\nsignal.signal(signal.SIGCHLD, lambda *a: calls.append('child'))\n"
        "os.register_at_fork(before=lambda: calls.append('before'))"
    )
    kernel.run("pid = os.fork()\nif pid == 0: os._exit(0)\nassert os.wait() == (pid, 0)")
    assert kernel.run("print(calls)").stdout == "['before', 'child']\n"


def test_eight_kernels_at_once_do_not_cross(start_kernel: Callable[..., Kernel], home: Path) -> None:
    kernels = [start_kernel() for _ in range(8)]
    for number, kernel in enumerate(kernels):
        kernel.load()
        kernel.run(f"number = {number}")
    for kernel in kernels:
        kernel.run("import time; time.sleep(0.2)")
    folders = run_folders(home / "runs")
    assert len(folders) == len(recorders_below(home)) == 8
    for folder in folders:
        wait_until(lambda f=folder: sum(c.end is not None for c in read_run(f).cells) == 2, "its two cells")
    first_lines = sorted(read_run(folder).cells[0].first_line for folder in folders)
    assert first_lines == [f"number = {number}" for number in range(8)]
    for kernel in kernels:
        kernel.close()
    wait_until(lambda: not recorders_below(home), "all recorders to end")


def test_a_subprocess_of_the_cell_does_not_hold_the_channel(kernel: Kernel, home: Path) -> None:
    kernel.run("import subprocess; sleeper = subprocess.Popen(['sleep', '600'], close_fds=False); print(sleeper.pid)")
    sleeper = int(kernel.run("print(sleeper.pid)").stdout)
    try:
        os.kill(kernel.pid, signal.SIGKILL)
        assert ended(home).ending == "killed"
    finally:
        subprocess.run(["kill", "-9", str(sleeper)], check=False)
