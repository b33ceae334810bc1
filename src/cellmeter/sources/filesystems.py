"""Free space on the file systems a run works on: where the kernel stands, where temporary files go, where runs are kept."""

from __future__ import annotations

import os
from collections.abc import Iterable

from cellmeter.run import Column, Device
from cellmeter.sources import Notice

NAN = float("nan")


class Filesystems:
    """Free space and size of each, once a minute: disks fill slowly, and a call to a network file system may take long."""

    name = "filesystems"
    interval = 60.0

    def __init__(self, folders: Iterable[str]) -> None:
        self.notices: list[Notice] = []
        self._mounts = mounts(folders)
        self.columns = tuple(
            Column(metric, mount, "By")
            for mount in self._mounts
            for metric in ("host.filesystem.free", "host.filesystem.size")
        )

    def read(self) -> list[float]:
        """One row; NaN for one that does not answer."""
        row: list[float] = []
        for mount in self._mounts:
            try:
                found = os.statvfs(mount)
            except OSError:
                row += [NAN, NAN]
            else:
                row += [float(found.f_bavail * found.f_frsize), float(found.f_blocks * found.f_frsize)]
        return row

    def devices(self) -> list[Device]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to close."""


def working_folders(pid: int, run_folder: str, proc: str = "/proc") -> list[str]:
    """Where a process stands and where temporary files go, as far as that can be seen, and the run's own folder."""
    try:
        here = [os.readlink(f"{proc}/{pid}/cwd")]
    except OSError:
        here = []
    return [*here, os.environ.get("TMPDIR", "/tmp"), run_folder]


def mounts(folders: Iterable[str]) -> list[str]:
    """The mount points of folders, each once; those without a size (/proc and the like) are left out."""
    found: dict[str, None] = {}
    for folder in folders:
        path = os.path.realpath(folder)
        while not os.path.ismount(path):
            path = os.path.dirname(path)
        try:
            if os.statvfs(path).f_blocks:
                found[path] = None
        except OSError:
            continue
    return list(found)
