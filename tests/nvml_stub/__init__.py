"""A scripted libnvidia-ml.so.1 for tests: see the top of ``stub.c`` for the trace language.

In another process (a kernel, a recorder)::

    machine = nvml_stub.machine("gpu\nat 0 gpu 0 util=97", tmp_path)
    subprocess.run([...], env={**os.environ, **machine.environ})

The script then plays in real time from now; ``steered=True`` stops its clock at 0 and ``machine.at(1.5)`` moves it, for all
processes at once. ``machine.calls()`` is what was asked of the library. In this process::

    with machine.loaded():
        opened = open_nvidia(...)
"""

import ctypes
import os
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

SONAME = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_name("stub.c")
_folder = tempfile.TemporaryDirectory(prefix="cellmeter-nvml-stub-")


class Call(NamedTuple):
    """One call of the library: which process, which function, which GPU (``0``, MIG ``0.1``, ``-`` for none)."""

    pid: int
    function: str
    gpu: str


class Machine(NamedTuple):
    """A machine whose GPUs follow a trace."""

    environ: dict[str, str]
    folder: Path

    def at(self, seconds: float) -> None:
        """Moves the clock of a steered machine."""
        # written in place: the library maps the file
        with (self.folder / "clock").open("r+b") as file:
            file.write(struct.pack("d", seconds))

    def calls(self) -> list[Call]:
        """All calls so far, by any process."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [Call(int(pid), function, gpu) for pid, function, gpu in map(str.split, lines)]

    def counts(self) -> Counter[str]:
        """How often each function was called so far."""
        return Counter(call.function for call in self.calls())

    def forget_calls(self) -> None:
        """Starts the call log anew."""
        # the library appends, so it goes on at the new end
        os.truncate(self.folder / "calls", 0)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Lets pynvml of this process find this machine; whoever calls nvmlInit inside must call nvmlShutdown inside."""
        _load_here()
        before = dict(os.environ)
        os.environ.update(self.environ)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@cache
def library_folder() -> Path:
    """Compiles the stub, once a session, and returns the folder for LD_LIBRARY_PATH. Raises if there is no C compiler."""
    folder = Path(_folder.name)
    command = [
        "cc",
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-fPIC",
        "-fvisibility=hidden",
        "-shared",
        f"-Wl,-soname,{SONAME}",
    ]
    subprocess.run([*command, "-o", str(folder / SONAME), str(SOURCE), "-lm"], check=True)
    return folder


def machine(trace: str, folder: Path, *, steered: bool = False) -> Machine:
    """A machine that plays ``trace``, with its files in ``folder``."""
    (folder / "trace").write_text(trace)
    environ = {
        "LD_LIBRARY_PATH": str(library_folder()),
        "NVML_STUB_TRACE": str(folder / "trace"),
        "NVML_STUB_LOG": str(folder / "calls"),
        "NVML_STUB_T0": repr(time.monotonic()),
    }
    if steered:
        (folder / "clock").write_bytes(struct.pack("d", 0.0))
        environ["NVML_STUB_CLOCK"] = str(folder / "clock")
    return Machine(environ, folder)


def environment(trace: str, folder: Path) -> dict[str, str]:
    """Variables for a real process that shall see the GPUs of ``trace``, in real time from now."""
    return machine(trace, folder).environ


def no_library(folder: Path) -> dict[str, str]:
    """Variables for a process that shall find no NVIDIA library, whatever this machine has installed."""
    # an empty file stops the search of the dynamic linker: it is found first and is no library
    (folder / SONAME).touch()
    return {"LD_LIBRARY_PATH": str(folder)}


@cache
def _load_here() -> ctypes.CDLL:
    """Loads the stub by its path; from then on dlopen answers its soname with it, also when pynvml asks."""
    return ctypes.CDLL(str(library_folder() / SONAME))
