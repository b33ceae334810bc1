"""What can be measured on this machine, and what to do about the rest: a real recorder is started on ourselves and asked."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal, NamedTuple

from cellmeter.clock import monotonic, monotonic_ns
from cellmeter.errors import CellmeterError
from cellmeter.export import SUFFIXES
from cellmeter.export.summary import ranges, unavailable
from cellmeter.home import runs_home
from cellmeter.plugins import Group, found, package_of, sources_found
from cellmeter.recorder import Config, Recorder
from cellmeter.recording import HighWaterMark
from cellmeter.rules import Unloadable, added_rule
from cellmeter.run import Run, known
from cellmeter.store import process_identity, read_run
from cellmeter.words import bytes_text, given_text, seconds_text

State = Literal["ok", "limited", "missing", "broken"]
SAMPLES = 5
WAIT_SECONDS = 10.0
LOW_DISK_BYTES = 1 << 30
_SIGN: dict[State, str] = {"ok": "✓", "limited": "~", "missing": "–", "broken": "✗"}
SERVER_EXTENSION = "cellmeter.server"
_EXTRAS = {
    "pandas": ("pandas", "Run.samples()"),
    "pyarrow": ("parquet", "parquet export"),
    "nbclient": ("run", "cellmeter run, cellmeter demo"),
    "rich": ("watch", "cellmeter watch"),
    "sidecar": ("dock", "%monitor dock beside the notebook; without it in its cell's output"),
    "prometheus_client": ("prometheus", "cellmeter serve, %monitor serve"),
    "mlflow": ("mlflow", "cellmeter export --mlflow, start(mlflow=True)"),
    "opentelemetry.proto": ("otel", "cellmeter export --otlp"),
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
    return [*checks, *_recording(run), *_gpus(run), *_plugins(run), *_front_end(), _server_extension(), *_extras()]


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
    says = f"{home}, {bytes_text(free)} free"
    if free < LOW_DISK_BYTES:
        return Check("runs folder", "limited", says, "make room, or set CELLMETER_HOME to another disk")
    return Check("runs folder", "ok", says)


def _trial_run() -> Run:
    """Records ourselves for half a second; with sources of other packages until each has been read or has failed."""
    pid, sources = os.getpid(), sources_found()
    with tempfile.TemporaryDirectory(prefix="cellmeter-doctor-") as folder:
        config = Config(folder, pid, process_identity(pid), monotonic_ns(), 10.0, None, sys.maxsize, dict(os.environ))
        recorder = Recorder.start(config)
        recorder.send({"event": "cell_start", "t": monotonic_ns(), "seq": 1})
        if sources:
            recorder.send({"event": "plugins", "sources": sources})
        until = monotonic() + WAIT_SECONDS
        while monotonic() < until and recorder.alive() and not _is_done(recorder, sources):
            time.sleep(0.02)
        recorder.stop()
        return read_run(Path(folder))


def _is_done(recorder: Recorder, sources: Sequence[Mapping[str, str]]) -> bool:
    if not recorder.ready(0):
        return False
    run = read_run(recorder.folder)
    return run.sample_count >= SAMPLES and all(_heard_of(run, source["name"]) for source in sources)


def _heard_of(run: Run, source: str) -> bool:
    return _failure_of(run, source) is not None or _is_read(run, source)


def _failure_of(run: Run, source: str) -> str | None:
    """What the run says of a source that could not be opened, or was lost."""
    starts = (f"the source {source} is not recorded: ", f"source {source} lost: ")
    return next((n.removeprefix(start) for n in run.notices for start in starts if n.startswith(start)), None)


def _is_read(run: Run, source: str) -> bool:
    """Whether it has told a number."""
    columns = {c for segment in run.segments for c in segment.columns if c.metric.startswith(f"{source}.")}
    return any(len(known(run.series(column.metric, column.subject).values)) for column in columns)


def _recording(run: Run) -> Iterator[Check]:
    cost = run.series("recorder.cpu.time", "recorder").values
    each = f", {seconds_text((cost[-1] - cost[0]) / (len(cost) - 1))} of CPU each" if len(cost) > 1 else ""
    if run.sample_count >= SAMPLES:
        yield Check("recorder", "ok", f"{run.sample_count} samples taken{each}")
    else:
        yield Check("recorder", "broken", f"only {run.sample_count} samples in {given_text(WAIT_SECONDS, 's')}")
    yield _death()
    mark = HighWaterMark(exact=True)
    if mark.unknown is None:
        yield Check("peak memory", "ok", "exact per cell (VmHWM is reset at each cell's start)")
    else:
        yield Check("peak memory", "limited", f"sampled only: {mark.unknown}")
    memory, cores = run.limits["memory_bytes"], run.limits["cpu_cores"]
    says = f"{given_text(memory.value, 'By')} ({memory.source}), {given_text(cores.value, '{cpu}')} ({cores.source})"
    yield Check("limits", "ok", says)
    for whose, metrics, why in unavailable(run):
        if not metrics[0].startswith("gpu"):
            yield Check(whose or metrics[0], "missing", f"no {', '.join(metrics)}: {why}" if whose else why)


def _death() -> Check:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return Check("kernel's end", "limited", "seen within a second: no pidfd on this system")
    return Check("kernel's end", "ok", "seen at once (pidfd)")


def _gpus(run: Run) -> Iterator[Check]:
    alike: dict[str, list[str]] = {}
    for device in run.devices:
        owner = {True: "yours", False: "not yours (CUDA_VISIBLE_DEVICES)", None: "shared or unknown"}[device.mine]
        alike.setdefault(f"{device.name}, {given_text(device.memory_bytes, 'By')}, {owner}", []).append(device.id)
    for says, ids in alike.items():
        yield Check(ranges(ids), "ok", says)
    for whose, metrics, why in unavailable(run):
        if whose and metrics[0].startswith("gpu"):
            yield Check(whose, "limited", f"no {', '.join(metrics)}: {why}")
        elif metrics[0].startswith("gpu"):
            yield Check(metrics[0], "missing" if metrics == ["gpu"] else "limited", why)


def _plugins(run: Run) -> Iterator[Check]:
    """What other packages add, and whether it works: each is imported, sources are opened and read as in a recording."""
    kinds: dict[Group, Callable[[EntryPoint], str]] = {
        "cellmeter.sources": lambda point: _source(run, point),
        "cellmeter.rules": _rule,
        "cellmeter.exports": _export,
    }
    none = True
    for group, look in kinds.items():
        kind = group.removeprefix("cellmeter.").removesuffix("s")
        for point in found(group):
            none = False
            name, whose = f"{kind} {point.name}", package_of(point)
            try:
                yield Check(name, "ok", f"{look(point)} ({whose})")
            except (Exception, SystemExit) as error:  # theirs: any of them fails in its own way
                why = str(error) if isinstance(error, _Fails) else f"{type(error).__name__}: {error}"
                state = error.state if isinstance(error, _Fails) else "broken"
                yield Check(name, state, " ".join(why.split())[:300], f"update or uninstall {whose}: {point.value}")
    if none:
        yield Check("plugins", "ok", "none installed")


class _Fails(Exception):
    """What is wrong with a plugin."""

    def __init__(self, why: str, state: State = "broken") -> None:
        super().__init__(why)
        self.state = state


def _source(run: Run, point: EntryPoint) -> str:
    if all(source["name"] != point.name for source in sources_found()):
        raise _Fails(f"there is no module {point.module.partition('.')[0]!r}")
    if (failure := _failure_of(run, point.name)) is not None:
        raise _Fails(failure)
    names = [metric.name for metric in run.plugin_metrics if metric.name.startswith(f"{point.name}.")]
    if not _is_read(run, point.name):
        opened = "has told no number" if names else "has not been opened"
        raise _Fails(f"it {opened} within {given_text(WAIT_SECONDS, 's')}", "limited")
    return f"records {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _rule(point: EntryPoint) -> str:
    rule = added_rule(point)
    if isinstance(rule, Unloadable):
        raise _Fails(rule.reason)
    return f"asked as {rule.id}"


def _export(point: EntryPoint) -> str:
    if f".{point.name}" in SUFFIXES:
        raise _Fails(f"cellmeter writes .{point.name} itself, so it is not asked")
    if not callable(point.load()):
        raise _Fails("it cannot be called")
    return f"writes .{point.name}"


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
        if not _is_importable(name):
            yield Check(name, "missing", f"not installed: {purpose}", f"pip install 'cellmeter[{extra}]'")


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of the package it lies in
        return False


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
