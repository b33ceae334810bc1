"""What can be measured on this machine, and what to do about the rest: a real recorder is started on ourselves and asked."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from cellmeter.errors import CellmeterError
from cellmeter.recorder import Config, Recorder
from cellmeter.recording import HighWaterMark
from cellmeter.run import Run
from cellmeter.store import process_identity, read_run, runs_home

State = Literal["ok", "limited", "missing", "broken"]
SAMPLES = 5
WAIT_SECONDS = 10.0
LOW_DISK_BYTES = 1 << 30
_SIGN: dict[State, str] = {"ok": "✓", "limited": "~", "missing": "–", "broken": "✗"}
SERVER_EXTENSION = "cellmeter.server"
_EXTRAS = {
    "pandas": ("pandas", "Run.samples(), csv export"),
    "pyarrow": ("parquet", "parquet export"),
    "nbclient": ("run", "cellmeter run, cellmeter demo"),
}


class Check(NamedTuple):
    """One thing looked at: how it stands, and what to do about it if that could be better."""

    name: str
    state: State
    says: str
    advice: str | None = None


def examine() -> list[Check]:
    """Looks at everything; takes about a second."""
    checks = [_home()]
    try:
        run = _trial_run()
    except CellmeterError as error:
        return [*checks, Check("recorder", "broken", str(error), "please report this with the line above")]
    return [*checks, *_recording(run), *_gpus(run), *_front_end(), _server_extension(), *_extras()]


def report_text(checks: list[Check]) -> str:
    """The checks as lines for a terminal."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f" {_SIGN[check.state]} {check.name:<{width}}  {check.says}")
        if check.advice:
            lines.append(f"   {'':<{width}}  → {check.advice}")
    return "\n".join(lines)


def _home() -> Check:
    home = runs_home()
    advice = "set CELLMETER_HOME to a folder that can be written"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=home):
            free = shutil.disk_usage(home).free
    except OSError as error:
        return Check("runs folder", "broken", f"{home} cannot be written: {error.strerror}", advice)
    says = f"{home}, {free / 2**30:.0f} GiB free"
    if free < LOW_DISK_BYTES:
        return Check("runs folder", "limited", says, "make room, or set CELLMETER_HOME to another disk")
    return Check("runs folder", "ok", says)


def _trial_run() -> Run:
    """Records ourselves for half a second."""
    pid = os.getpid()
    with tempfile.TemporaryDirectory(prefix="cellmeter-doctor-") as folder:
        config = Config(
            folder, pid, process_identity(pid), time.monotonic_ns(), 10.0, None, sys.maxsize, dict(os.environ)
        )
        recorder = Recorder.start(config)
        recorder.send({"event": "cell_start", "t": time.monotonic_ns(), "seq": 1})
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until and recorder.alive() and not _has_samples(recorder):
            time.sleep(0.02)
        recorder.stop()
        return read_run(Path(folder))


def _has_samples(recorder: Recorder) -> bool:
    return recorder.ready(0) and read_run(recorder.folder).sample_count >= SAMPLES


def _recording(run: Run) -> Iterator[Check]:
    cost = run.series("recorder.cpu.time", "recorder").values
    each = f", {(cost[-1] - cost[0]) / (len(cost) - 1) * 1e6:.0f} µs of CPU each" if len(cost) > 1 else ""
    if run.sample_count >= SAMPLES:
        yield Check("recorder", "ok", f"{run.sample_count} samples taken{each}")
    else:
        yield Check("recorder", "broken", f"only {run.sample_count} samples in {WAIT_SECONDS:.0f} s")
    yield _death()
    mark = HighWaterMark(exact=True)
    if mark.unknown is None:
        yield Check("peak memory", "ok", "exact per cell (VmHWM is reset at each cell's start)")
    else:
        yield Check("peak memory", "limited", f"sampled only: {mark.unknown}")
    memory, cores = run.limits["memory_bytes"], run.limits["cpu_cores"]
    says = f"{memory.value / 2**30:.1f} GiB ({memory.source}), {cores.value:g} cores ({cores.source})"
    yield Check("limits", "ok", says)
    for metric, why in sorted(run.unavailable.items()):
        if not metric.startswith("gpu"):
            yield Check(metric, "missing", why)


def _death() -> Check:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return Check("kernel's end", "limited", "seen within a second: no pidfd on this system")
    return Check("kernel's end", "ok", "seen at once (pidfd)")


def _gpus(run: Run) -> Iterator[Check]:
    for device in run.devices:
        whose = {True: "yours", False: "not yours (CUDA_VISIBLE_DEVICES)", None: "shared or unknown"}[device.mine]
        yield Check(device.id, "ok", f"{device.name}, {device.memory_bytes / 2**30:.0f} GiB, {whose}")
    for key, why in sorted(run.unavailable.items()):
        if key == "gpu":
            yield Check("gpu", "missing", why)
        elif key.startswith("gpu"):
            yield Check(key, "limited", why)


def _front_end() -> Iterator[Check]:
    for name in ("anywidget", "bokeh", "jupyterlab", "notebook"):
        version = _version(name)
        if version is not None:
            yield Check(name, "ok", version)
        elif name in ("anywidget", "bokeh"):
            yield Check(name, "broken", "not installed", f"pip install {name}")
    if _version("jupyterlab") is None and _version("notebook") is None:
        yield Check(
            "live panel",
            "limited",
            "neither JupyterLab nor Notebook is in this environment",
            "if the front end runs in another environment: pip install anywidget there",
        )


def _server_extension() -> Check:
    """Whether a Jupyter server of this environment serves the tail of runs; see ``server``, which is not imported for it."""
    name, serves = "server extension", "panels go on while a cell holds the GIL, and say how the kernel died"
    if _version("jupyter_server") is None:
        advice = "pip install cellmeter into the environment that the Jupyter server runs in"
        return Check(name, "missing", f"no Jupyter server in this environment; with it {serves}", advice)
    switched, where = _switched(SERVER_EXTENSION)
    if switched:
        return Check(name, "ok", f"enabled: {serves}")
    says = "not enabled: no Jupyter configuration names it" if switched is None else f"switched off in {where}"
    return Check(name, "limited", f"{says}; with it {serves}", f"jupyter server extension enable {SERVER_EXTENSION}")


def _switched(extension: str) -> tuple[bool | None, Path | None]:
    """What Jupyter's configuration says of a server extension, and where. As there, the first file that names it counts."""
    from jupyter_core.paths import jupyter_config_path

    folders = [Path(folder) for folder in jupyter_config_path()]
    parts = [part for folder in folders for part in sorted((folder / "jupyter_server_config.d").glob("*.json"))]
    for file in (*(folder / "jupyter_server_config.json" for folder in folders), *parts):
        try:
            switched = json.loads(file.read_bytes())["ServerApp"]["jpserver_extensions"][extension]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        return bool(switched), file
    return None, None


def _extras() -> Iterator[Check]:
    for name, (extra, purpose) in _EXTRAS.items():
        if _version(name) is None:
            yield Check(name, "missing", f"not installed: {purpose}", f"pip install 'cellmeter[{extra}]'")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
