"""Files that a command is asked to write: looked at before anything runs, lest hours of work end in a slip of the pen."""

from __future__ import annotations

import os
from pathlib import Path

from cellmeter import export
from cellmeter.errors import BadUsage

TABLES = (".csv", ".parquet")


def check_file(path: Path) -> None:
    """Raises BadUsage for a file that cannot be written, as far as that can be told without writing it."""
    place = path.expanduser()
    folder = place.absolute().parent
    if place.is_dir():
        raise BadUsage(f"{path} cannot be written: it is a folder")
    if folder.exists() and not folder.is_dir():
        raise BadUsage(f"{path} cannot be written: {folder} is no folder")
    if not folder.is_dir():
        raise BadUsage(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(place if place.exists() else folder, os.W_OK):
        raise BadUsage(f"{path} cannot be written: permission denied")


def check_report(path: Path) -> None:
    """The same, and for one whose suffix means no report."""
    suffix, known = path.suffix.lower(), [name for name in export.suffixes() if name not in TABLES]
    if suffix in TABLES:
        raise BadUsage(f"{path} would be no report but the samples: cellmeter export -o {path.name}")
    if suffix not in known:
        raise BadUsage(f"a report is written to {', '.join(known)}; {path} is none of these")
    check_file(path)
