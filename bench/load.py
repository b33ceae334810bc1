"""What a user waits for: ``%load_ext cellmeter`` in a fresh kernel, and what cells cost more than without it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

from bench.effort import Effort
from bench.processes import REPOSITORY, scratch
from bench.table import Line, Section, alone, compare, figure

MOST_LOAD_MS = 100.0
MOST_CELL_MS = 60.0
BACKGROUND_SECONDS = 2.0
PEER_PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
# In the kernel: wall and CPU time of all threads around the magic itself, as %time would take them.
_TIMED = """
import json as _json, sys as _sys, time as _time
_wall, _cpu = _time.perf_counter(), _time.process_time()
for _line in {lines!r}:
    get_ipython().run_line_magic(*_line.split(" ", 1))
print(_json.dumps({{"wall": _time.perf_counter() - _wall, "cpu": _time.process_time() - _cpu,
                   "bokeh": "bokeh.plotting" in _sys.modules}}))
"""
_LATER = """
print(_json.dumps({"cpu": _time.process_time() - _cpu, "bokeh": "bokeh.plotting" in _sys.modules}))
"""
PEER_LINES = ("load_ext jumper_extension", "perfmonitor_start 0.1 --monitor thread")


class Kernel:
    """A real ipykernel, of this environment or of the peers'."""

    def __init__(self, folder: Path, python: Path | None = None) -> None:
        environ = {
            **os.environ,
            "CELLMETER_HOME": str(folder / "home"),
            "CELLMETER_CONFIG": os.devnull,
            "JUMPER_LOG_DIR": str(folder),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        self._manager = KernelManager(kernel_name="python3")
        if python is not None:
            spec = self._manager.kernel_spec
            assert spec is not None
            spec.argv = [str(python), *spec.argv[1:]]
        self._manager.start_kernel(env=environ, cwd=str(folder), stderr=subprocess.DEVNULL)
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)

    def run(self, code: str) -> str:
        """Runs a cell; returns what it printed. Raises RuntimeError if it failed."""
        printed: list[str] = []
        reply = self._client.execute_interactive(code, timeout=60, output_hook=lambda m: _gather(printed, m))
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{code!r} failed: {reply['content'].get('evalue')}")
        return "".join(printed)

    def seconds(self, code: str) -> float:
        """From the request until the kernel has replied and is idle, as a front end sees it."""
        start = time.perf_counter()
        self.run(code)
        return time.perf_counter() - start

    def close(self) -> None:
        """Ends it."""
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _gather(printed: list[str], message: dict[str, Any]) -> None:
    if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
        printed.append(message["content"]["text"])


def run(effort: Effort) -> Iterator[Section]:
    """Loading, then cells."""
    kernels = effort.choose(short=1, usual=5, full=15)
    cells = effort.choose(short=2, usual=25, full=100)
    with scratch() as folder:
        yield _loading(folder, kernels)
    with scratch() as folder:
        yield _cells(folder, cells)


def _loading(folder: Path, kernels: int) -> Section:
    ours: list[dict[str, Any]] = []
    later: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    for _ in range(kernels):
        with Kernel(folder) as kernel:
            ours.append(_last_json(kernel.run(_TIMED.format(lines=("load_ext cellmeter",)))))
            time.sleep(BACKGROUND_SECONDS)
            later.append(_last_json(kernel.run(_LATER)))
        if PEER_PYTHON.exists():
            with Kernel(folder, PEER_PYTHON) as kernel:
                peers.append(_last_json(kernel.run(_TIMED.format(lines=PEER_LINES))))
    lines = []
    for key, what, most in (("wall", "%load_ext, wall time", MOST_LOAD_MS), ("cpu", "%load_ext, CPU time", None)):
        line = alone(what, "ms", [one[key] * 1e3 for one in ours], most)
        lines.append(_beside(line, [one[key] * 1e3 for one in ours], "JUmPER", [one[key] * 1e3 for one in peers]))
    lines.append(
        alone(
            f"CPU after it, {BACKGROUND_SECONDS:g} s",
            "ms",
            [(b["cpu"] - a["cpu"]) * 1e3 for a, b in zip(ours, later, strict=True)],
        )
    )
    count = sum(one["bokeh"] for one in later)
    notes = [
        f"bokeh.plotting was imported in the kernel {BACKGROUND_SECONDS:g} s later in {count} of {kernels} kernels."
    ]
    if peers:
        notes.append("JUmPER: %load_ext and %perfmonitor_start 0.1 --monitor thread, so that both are recording then.")
    else:
        notes.append("JUmPER is not installed: `python -m bench peers` does that.")
    return Section(f"load: a fresh ipykernel, {kernels} times", tuple(lines), tuple(notes))


def _last_json(printed: str) -> dict[str, Any]:
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def _beside(line: Line, ours: list[float], peer_name: str, peer: list[float]) -> Line:
    if not peer:
        return line
    compared = compare(line.metric, line.unit, ours, peer_name, peer, None)
    return Line(line.metric, line.unit, line.ours, peer_name, compared.peer, compared.ratio, line.target, line.met)


def _cells(folder: Path, rounds: int) -> Section:
    """Two kernels, one with the extension; three kinds of empty cell in turn, after a first of each."""
    with ExitStack() as stack:
        loaded, bare = (stack.enter_context(Kernel(folder)) for _ in range(2))
        loaded.run("%load_ext cellmeter")
        time.sleep(BACKGROUND_SECONDS)
        first = loaded.seconds("%%monitor\npass")
        kinds = {"bare": (bare, "pass"), "recorded": (loaded, "pass"), "monitored": (loaded, "%%monitor\npass")}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for round_number in range(-1, rounds):
            for name, (kernel, code) in kinds.items():
                seconds = kernel.seconds(code)
                if round_number >= 0:
                    times[name].append(seconds * 1e3)
    more = {name: [a - b for a, b in zip(times[name], times["bare"], strict=True)] for name in times}
    panel = [a - b for a, b in zip(times["monitored"], times["recorded"], strict=True)]
    lines = (
        Line("empty cell in a bare kernel", "ms", figure(times["bare"])),
        Line("recorded: more than that", "ms", figure(more["recorded"])),
        alone("%%monitor: more than recorded", "ms", panel, MOST_CELL_MS),
        Line("the first %%monitor, whole", "ms", figure([first * 1e3])),
    )
    return Section(
        f"load: empty cells, {rounds} rounds", lines, ("From the request to the reply, in turn in two kernels.",)
    )
