"""Keeps a recording as a small file that says nothing of the machine and the user it came from."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cellmeter.run import Run
from cellmeter.store import EVENTS, HEADER, read_run, sealed, unsealed

RUNS = Path(__file__).parents[1] / "data" / "runs"


def keep(folder: Path, name: str, limits: Mapping[str, Any] | None = None) -> Path:
    """Packs a run folder as ``NAME.tar.xz``. ``limits``: those of another machine, where this one has too few cores."""
    header = unsealed((folder / HEADER).read_bytes())
    assert header is not None, f"{folder} has no sound header"
    for key in ("kernel", "recorder"):
        header[key] = None
    header["host"] |= {"name": "labelled", "release": "", "python": ""}
    header["notebook"] = None
    header["limits"] |= limits or {}
    header["unavailable"] = {key: _without_paths(why) for key, why in header["unavailable"].items()}
    events = [_plain(event) for line in (folder / EVENTS).read_bytes().splitlines() if (event := unsealed(line))]
    contents = {HEADER: sealed(header), EVENTS: b"".join(sealed(event) + b"\n" for event in events)}
    contents |= {entry["file"]: (folder / entry["file"]).read_bytes() for entry in header["segments"]}
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"{name}.tar.xz"
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"{header['id']}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("crc", "environ")}


def _without_paths(reason: str) -> str:
    return json.loads(json.dumps(reason).replace("/sys/fs/cgroup/", ""))


@contextmanager
def unpacked(name: str) -> Iterator[Run]:
    """A labelled run, read from its file."""
    with TemporaryDirectory(prefix="cellmeter-labelled-") as folder:
        with tarfile.open(RUNS / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        (run_folder,) = Path(folder).iterdir()
        yield read_run(run_folder)
