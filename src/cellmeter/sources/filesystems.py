"""Free space on the file systems a run works on: where the kernel stands, where temporary files go, where runs are kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from cellmeter.run import Column, Device
from cellmeter.sources import Notice

NAN = float("nan")
WAIT_SECONDS = 0.005
UNKNOWN = [NAN, NAN]


class Question(threading.Thread):
    """Asks a file system for its free space and size, in bytes; one whose server has gone may never answer."""

    def __init__(self, mount: str) -> None:
        super().__init__(daemon=True)
        self._mount = mount
        self.answer: list[float] | None = None
        self.start()

    def run(self) -> None:
        """See :meth:`threading.Thread.run`."""
        try:
            found = os.statvfs(self._mount)
        except OSError:
            self.answer = UNKNOWN
        else:
            self.answer = [float(found.f_bavail * found.f_frsize), float(found.f_blocks * found.f_frsize)]


class Filesystems:
    """Free space and size of each, once a minute: disks fill slowly, and a call to a network file system may take long."""

    name = "filesystems"
    interval = 60.0

    def __init__(self, folders: Iterable[str]) -> None:
        self.notices: list[Notice] = []
        self._mounts = mounts(folders)
        self._unanswered: dict[str, Question] = {}
        self._told: set[str] = set()
        self.columns = tuple(
            Column(metric, mount, "By")
            for mount in self._mounts
            for metric in ("host.filesystem.free", "host.filesystem.size")
        )

    def read(self) -> list[float]:
        """One row; NaN for one that does not answer at once. What it answers later is in the next row."""
        return [value for mount in self._mounts for value in self._read(mount)]

    def _read(self, mount: str) -> list[float]:
        late = self._unanswered.pop(mount, None)
        question = late or Question(mount)
        question.join(0 if late else WAIT_SECONDS)
        if question.is_alive():
            self._unanswered[mount] = question
            if late and mount not in self._told:
                self._told.add(mount)
                self.notices.append(Notice("unavailable", "host.filesystem.free", mount, "it does not answer"))
        return question.answer or UNKNOWN

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
