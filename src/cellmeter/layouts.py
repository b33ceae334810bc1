"""Bokeh documents for the live panel, built once a machine and kept beside the runs.

Building one imports bokeh: half a second of CPU and 20 MiB, which must not be the user's cell's. So a process apart builds it,
and the kernel reads the file when it is there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import time
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cellmeter import charts, detached
from cellmeter.errors import CellmeterError, MissingExtra
from cellmeter.run import Column, Device, Limit
from cellmeter.store import read_header, runs_home

if TYPE_CHECKING:
    from cellmeter.metrics import Group

# What bokeh.models and bokeh.plotting import, wherever each is installed.
_LIBRARIES = ("bokeh", "numpy", "jinja2", "tornado", "yaml", "PIL", "contourpy", "packaging", "narwhals", "xyzservices")


def bokeh_js() -> Path:
    """BokehJS in the installed wheel. Raises MissingExtra."""
    spec = importlib.util.find_spec("bokeh")  # finds, does not import
    if spec is None or spec.origin is None:
        raise MissingExtra("bokeh", "all", "the live panel")
    return Path(spec.origin).parent / "server" / "static" / "js" / "bokeh.min.js"


def panels_of(folder: Path, groups: Sequence[Group]) -> tuple[charts.PanelSpec, ...]:
    """The panels that a run's main stream can fill. Raises RunUnreadable."""
    header = read_header(folder)
    columns = [Column(*c) for s in header["segments"] if s["stream"] == "main" for c in s["columns"]]
    limits = {name: Limit(*limit) for name, limit in header["limits"].items()}
    return charts.panels(columns, limits, [Device(**d) for d in header["devices"]], groups)


def kept(specs: Sequence[charts.PanelSpec], prefix: str) -> str | None:
    """The document for these panels, with model ids that begin with ``prefix``; None if it has not been built yet."""
    template = _kept(_path(charts.plain(specs)))
    return None if template is None else charts.relabelled(template, prefix)


def build_apart(folder: Path, groups: Sequence[Group]) -> None:
    """Has the document for a run's panels built by a process apart, unless it is there. Raises CellmeterError, OSError."""
    if _kept(_path(charts.plain(panels_of(folder, groups)))) is None:
        home = str(runs_home().parent)
        arguments = [str(folder), ",".join(groups), home]
        detached.start("cellmeter.layouts", arguments, _LIBRARIES, log=None, channel=False)


def wait_for(specs: Sequence[charts.PanelSpec], prefix: str, seconds: float) -> str:
    """The document, once it is there; after ``seconds`` it is built here."""
    until = time.monotonic() + seconds
    while (found := kept(specs, prefix)) is None and time.monotonic() < until:
        time.sleep(0.02)
    if found is None:
        template = charts.layout_template(charts.plain(specs))
        _keep(_path(charts.plain(specs)), template)
        found = charts.relabelled(template, prefix)
    return found


def main() -> None:
    """Entry of the process apart: run folder, groups, home."""
    folder, groups, home = sys.argv[1:4]
    os.environ["CELLMETER_HOME"] = home
    try:
        specs = charts.plain(panels_of(Path(folder), cast("list[Group]", groups.split(","))))
        _keep(_path(specs), charts.layout_template(specs))
    except (CellmeterError, ImportError, OSError):
        return  # the kernel builds it, and says what is wrong


def _path(specs: tuple[charts.PanelSpec, ...]) -> Path:
    stat = bokeh_js().stat()
    made_of = f"{stat.st_size} {stat.st_mtime} {zlib.crc32(Path(charts.__file__).read_bytes())} {specs!r}"
    return runs_home().parent / "layouts" / f"{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.json"


@lru_cache(maxsize=16)
def _read(path: Path) -> str:
    return path.read_text(encoding="ascii")


def _kept(path: Path) -> str | None:
    try:
        return _read(path)
    except (OSError, UnicodeDecodeError):
        return None


def _keep(path: Path, template: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(template, encoding="ascii")
        unfinished.replace(path)
    except OSError:
        return  # a full disk: the next kernel builds it anew
