"""Runs a plain script in a Python of its own and finds the run it recorded (``cellmeter record``).

The script's process is another than ours, so that a report can be had also of one that was killed or has crashed.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from cellmeter.errors import BadUsage
from cellmeter.headless import run_of_process, wait_for_end
from cellmeter.script import BOOTSTRAP
from cellmeter.settings import checked_rate, load_settings
from cellmeter.store import process_identity

SHELLS = (".sh", ".bash", ".zsh")
_RUNS = "record runs Python scripts, and with -m modules (-m torch.distributed.run instead of torchrun)"
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Recorded(NamedTuple):
    """What came of a script: the run folder, None if nothing was recorded; its exit code, or less than 0 a signal."""

    folder: Path | None
    code: int


def record(target: str, arguments: Sequence[str], *, module: bool, rate_hz: float | None) -> Recorded:
    """Runs a script, or with ``module`` a module, to its end, as plain ``python`` would. Raises BadUsage."""
    if rate_hz is not None:
        checked_rate(rate_hz)
    load_settings()  # a mistake in them is told before anything runs
    if not module and (trouble := _no_script(target)) is not None:
        raise BadUsage(f"record: {trouble}")
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # -O, -X, -W … are the script's too
    rate = "" if rate_hz is None else repr(rate_hz)
    command = [sys.executable, *flags, "-c", BOOTSTRAP, rate, "-m" if module else "", target, *arguments]
    child = subprocess.Popen(command, close_fds=False)
    identity = process_identity(child.pid)
    with _passing_signals_to(child):
        if hasattr(os, "waitid"):  # its exit status must be there until the recorder has read it
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        else:
            child.wait()
    folder = run_of_process(child.pid, identity)
    if folder is not None:
        wait_for_end(folder)
    return Recorded(folder, child.wait())


def _no_script(target: str) -> str | None:
    """Why a target is nothing to record, before anything runs; None where python would run it, be it only to fail."""
    path = Path(target)
    if not path.is_file():
        if re.fullmatch(r"python[0-9.]*", path.name):
            return f"leave out {target}: a script is run with the Python that cellmeter is installed for"
        if shutil.which(target) is None:
            return f"there is no script {target}"
        return f"{target} is a program, and {_RUNS}"
    if path.suffix == ".ipynb":
        return f"{target} is a notebook: cellmeter run {target}"
    if path.suffix in (".py", ".pyw"):
        return None
    return None if _is_python(path) else f"{target} is no Python script, and {_RUNS}"


def _is_python(path: Path) -> bool:
    """Whether a file of any name may be meant for python: much of what a shell reads would even compile."""
    try:
        code = path.read_bytes()
    except OSError:
        return True  # python says why
    first = code.partition(b"\n")[0]
    if path.suffix in SHELLS or (first.startswith(b"#!") and b"python" not in first):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(code, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _passing_signals_to(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """What is sent to us is meant for the script. Ctrl-C in a terminal has reached it already."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number not in (signal.SIGINT, signal.SIGQUIT) or not _in_front_of_a_terminal():
            child.send_signal(number)

    before = {number: signal.getsignal(number) for number in _PASSED_ON}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_front_of_a_terminal() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def leave_as(code: int) -> int:
    """The exit code, where the script had one; where a signal ended it, it ends us too, without another core file."""
    if code >= 0:
        return code
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return 128 - code
