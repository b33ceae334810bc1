"""The recorder beside other monitors for notebooks and training: CPU per sample, samples delivered, worst gap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench.delivery import LOADS, delivery_lines, sample_times
from bench.effort import Effort
from bench.processes import HERE, REPOSITORY, Recorder, Subject, costs_side_by_side, scratch, wait_until
from bench.recorder import gpu_environ
from bench.table import Line, Section, compare
from cellmeter.store import read_run

VENV = REPOSITORY / ".venv-peers"
PYTHON = VENV / "bin" / "python"
RATE_HZ = 10.0
SLICE_SECONDS = 2.0
_LOADS = ("idle", "python", "gil")


class Rival(NamedTuple):
    """A peer: its name for ``peer.py`` and for the table, the ratio that is asked for, and what it reads."""

    name: str
    short: str
    most_ratio: float | None
    notes: tuple[str, ...]
    gpus: int = 0
    alone: bool = False
    """Must not see the processes of this machine."""


_JUMPER = (
    "It reads host, cores, disk, the process tree, and each process of the user: alone with it, then among 20 others."
)
_NATIVE = "As the others of JUmPER, by a C program; the CPU of the kernel's thread that parses its JSON is counted too."
_MLFLOW = "It reads CPU %, memory, disk space and network; no process, no tree, no cores. What it sends is left out."
_NVITOP = (
    "It reads CPU %, memory, swap and load, and some 40 properties of the GPU (stub); no tree, no disk, no network."
)
RIVALS = (
    Rival("jumper-thread", "thread", 1 / 4, (_JUMPER,), alone=True),
    Rival("jumper-subprocess_python", "subprocess", 1 / 4, (_JUMPER,), alone=True),
    Rival("jumper-native_c", "native_c", 1.0, (_JUMPER, _NATIVE), alone=True),
    Rival("mlflow", "mlflow", None, (_MLFLOW,)),
    Rival("mlflow", "mlflow", None, (_MLFLOW, "Of the GPU (stub): memory, utilisation, power and its limit."), gpus=1),
    Rival("nvitop", "nvitop", None, (_NVITOP,), gpus=1),
)
NEIGHBOURS = 20


def run(effort: Effort) -> Iterator[Section]:
    """One section a peer."""
    install()
    slices = effort.choose(short=1, usual=5, full=15)
    slice_seconds = effort.choose(short=0.5, usual=SLICE_SECONDS, full=SLICE_SECONDS)
    seconds = effort.choose(short=0.5, usual=4.0, full=10.0)
    for rival in effort.choose(short=RIVALS[2:5:2], usual=RIVALS, full=RIVALS):
        title = f"peers: {rival.name}{', 1 GPU' if rival.gpus else ''}, {RATE_HZ:g} Hz"
        problem = cannot_run(rival)
        if problem:
            yield Section(title, (), (f"not run: {problem}",))
            continue
        with scratch() as folder:
            yield Section(title, tuple(_lines(rival, folder, slices, slice_seconds, seconds)), rival.notes)


_BUILD_NATIVE_C = """
from jumper_extension.monitor.backends.native_c.build import build_collector
raise SystemExit(not build_collector())
"""


def install() -> None:
    """The peers of pyproject.toml's group ``bench``, in an environment of their own: they bring a hundred packages."""
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]
    requirements = "\n".join(groups["bench"])
    installed = VENV / "installed.txt"
    if installed.exists() and installed.read_text() == requirements:
        return
    print(f"==> Installing the peers into {VENV.name} (a minute or two the first time)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*pip, *groups["bench"]], check=True)
    subprocess.run([str(PYTHON), "-c", _BUILD_NATIVE_C], check=True, stdout=sys.stderr)
    installed.write_text(requirements)


_ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "setpriv", "--bounding-set=-sys_nice"]


def cannot_run(rival: Rival) -> str | None:
    """Why it may not be started here; None if it may."""
    if not rival.alone:
        return None
    try:
        done = subprocess.run([*_ALONE, "true"], capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"{error.filename} is not installed"
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no PID namespace"]
        return f"it renices processes, so it needs a PID namespace of its own: {reason[0]}"
    return None


class Opponent:
    """``peer.py`` at work."""

    def __init__(self, rival: Rival, folder: Path, environ: Mapping[str, str]) -> None:
        command = [str(PYTHON), str(HERE / "peer.py"), rival.name, f"{RATE_HZ:g}"]
        self._log = open(folder / "peer.log", "w+b")  # noqa: SIM115 - closed with the peer
        self._process = subprocess.Popen(
            [*_ALONE, *command] if rival.alone else command,
            env={**os.environ, **environ, "JUMPER_LOG_DIR": str(folder)},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.answer()

    def ask(self, question: str) -> None:
        """Puts a question; the answer may take its time."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Raises RuntimeError with the peer's last words if it died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            words = self._log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError("the peer died: " + " / ".join(words[-3:]))
        return json.loads(line)

    def close(self) -> None:
        """Ends it, with all that it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Opponent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lines(rival: Rival, folder: Path, slices: int, slice_seconds: float, seconds: float) -> Iterator[Line]:
    environ = gpu_environ(rival.gpus, folder)
    with ExitStack() as stack:
        subject = stack.enter_context(Subject(folder, environ))
        recorder = Recorder(subject.do(f"record({RATE_HZ})"))
        subject.do("open_cell()")
        opponent = stack.enter_context(Opponent(rival, folder, environ))
        time.sleep(min(2.0, slice_seconds))
        for metric, neighbours in (("CPU per sample", 0), (f"CPU per sample, {NEIGHBOURS} others", NEIGHBOURS)):
            if neighbours:
                if not rival.alone:
                    break  # sees no other processes anyway, or this machine's
                opponent.ask(f"neighbours {neighbours}")
                opponent.answer()
            opponent.ask(f"cost {slices} {slice_seconds}")
            ours = costs_side_by_side({"cellmeter": recorder}, slices, slice_seconds)["cellmeter"]
            yield compare(metric, "µs", ours, rival.short, opponent.answer(), rival.most_ratio)
        subject.do("stop()")
        for load in _LOADS:
            opponent.ask(f"deliver {load} {seconds}")
            theirs = opponent.answer()
            yield from _delivery(rival, load, subject, seconds, theirs)


def _delivery(rival: Rival, load: str, subject: Subject, seconds: float, theirs: dict[str, Any]) -> Iterator[Line]:
    """Ours under the same load right after the peer's: both at once would be two loads."""
    recorder = Recorder(subject.do(f"record({RATE_HZ})"))
    cell = subject.do(f"deliver({load!r}, {seconds}, {RATE_HZ}, False)")
    wait_until(lambda: any(c.end is not None for c in read_run(recorder.folder).cells), "the cell's end")
    times = sample_times(read_run(recorder.folder), cell)
    subject.do("stop()")
    yield from delivery_lines(
        LOADS[load],
        (cell["started_ns"] * 1e-9, cell["ended_ns"] * 1e-9, times),
        rival.short,
        (theirs["start"], theirs["end"], theirs["times"]),
        RATE_HZ,
        None,
    )
