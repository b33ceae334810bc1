"""The folder in which runs are kept: making, finding, listing and removing them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cellmeter.clock import monotonic, wall_ns
from cellmeter.errors import BadUsage, RunNotFound, RunUnreadable
from cellmeter.run import Run
from cellmeter.store import (
    HEADER,
    KERNEL,
    RECORDER_LOG,
    is_open,
    is_starting,
    is_young,
    kernel_of,
    process_identity,
    read_header,
    read_run,
)

READY_SECONDS = 5.0  # the longest a reader waits for a recorder that has just been started
MOST_KERNELS = 200  # recordings among which a process is looked for
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")


def runs_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where runs are kept: ``$CELLMETER_HOME/runs``, else the platform's user state directory."""
    if home := environ.get("CELLMETER_HOME"):
        return Path(os.path.expanduser(home)).absolute() / "runs"
    import platformdirs

    return Path(platformdirs.user_state_dir("cellmeter", appauthor=False)) / "runs"


def new_run_folder(home: Path) -> Path:
    """Makes ``<utc-time>-<6 hex>`` below ``home``, private to the user. Raises OSError where that cannot be.

    The first four hex digits are the fraction of the second, so that names sort by time; the last two are chance.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        seconds, ns = divmod(wall_ns(), 1_000_000_000)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))
        folder = home / f"{stamp}-{(ns << 16) // 1_000_000_000:04x}{os.urandom(1).hex()}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder


def recorded_in(home: Path, pid: int) -> tuple[str, str | None] | None:
    """The newest run of a process, and the notebook or script that it says it is of; None if it has none here."""
    identity = process_identity(pid)
    for folder in reversed(run_folders(home)[-MOST_KERNELS:]):
        if identity is not None and kernel_of(folder) == (pid, identity):
            try:
                return folder.name, read_header(folder).get("notebook")
            except RunUnreadable:  # it has just begun
                return folder.name, None
    return None


def previous_run(folder: Path, notebook: str) -> Path | None:
    """The newest run of the same notebook before this one, among the last 50."""
    earlier = [other for other in run_folders(folder.parent) if other.name < folder.name]
    for other in reversed(earlier[-50:]):
        try:
            if read_header(other).get("notebook") == notebook:
                return other
        except RunUnreadable:
            continue
    return None


class RunInfo(NamedTuple):
    """One line of a list of runs; ``problem`` says why it cannot be read."""

    id: str
    path: Path
    size_bytes: int
    run: Run | None
    problem: str | None


def run_folders(home: Path) -> list[Path]:
    """Run folders, oldest first."""
    try:
        names = [entry for entry in os.listdir(home) if RUN_ID.fullmatch(entry)]
    except OSError:
        return []
    return [home / name for name in sorted(names)]


def list_runs(home: Path) -> Iterator[RunInfo]:
    """All runs, newest first."""
    for folder in reversed(run_folders(home)):
        size = _size(folder)
        try:
            yield RunInfo(folder.name, folder, size, read_run(folder, newest=50), None)
        except RunUnreadable as error:
            yield RunInfo(folder.name, folder, size, None, str(error))


def find_run(reference: str | None, home: Path) -> Path:
    """The folder of a run id, an id's unique prefix, or a path; the newest run for None. Raises RunNotFound.

    What has a run's name and is none is passed over for the newest.
    """
    if reference == "":
        raise RunNotFound("no run has an empty name: `cellmeter runs` lists them")
    if reference is not None and (os.sep in reference or os.path.isdir(reference)):
        path = os.path.expanduser(reference)
        if os.path.isdir(path):
            return Path(path)
        raise RunNotFound(f"there is no folder {reference}")
    folders = run_folders(home)
    if reference is None:
        newest = next(filter(_is_run, reversed(folders)), None)
        if newest is None:
            raise RunNotFound(
                f"there are no runs yet in {home}: %load_ext cellmeter in a notebook makes one, `cellmeter demo` too"
            )
        return newest
    matches = [folder for folder in folders if folder.name.startswith(reference)]
    if not matches:
        raise RunNotFound(f"no run in {home} begins with {reference!r}: `cellmeter runs` lists them")
    if len(matches) > 1:
        raise RunNotFound(
            f"{len(matches)} runs begin with {reference!r}: add more of the id of {matches[0].name} or {matches[-1].name}"
        )
    return matches[0]


def _is_run(folder: Path) -> bool:
    """Whether it has anything that only a run has, be it damaged or the trace of a recorder that failed."""
    return any((folder / name).exists() for name in (HEADER, RECORDER_LOG, KERNEL))


def open_runs(home: Path) -> list[Path]:
    """The folders of the runs that are being recorded, newest first."""
    found = []
    for folder in reversed(run_folders(home)):
        try:
            if is_open(read_header(folder), folder):
                found.append(folder)
        except RunUnreadable:
            continue
    return found


def find_two(before: str, after: str | None, home: Path, newest: Path | None = None) -> tuple[Path, Path]:
    """The folders of two runs to be compared; ``newest`` instead of the newest run for None. Raises RunNotFound, BadUsage."""
    a = find_run(before, home)
    b = newest if after is None and newest is not None else find_run(after, home)
    if a.resolve() == b.resolve():
        other = "name the later one too" if after is None else "name another"
        raise BadUsage(f"{a.name} would be compared with itself: {other}")
    return a, b


def prune(home: Path, most_bytes: int, keep: Path) -> list[Path]:
    """Removes the oldest runs until all together fit; returns those removed. ``keep`` and runs still recorded stay."""
    sizes = {folder: _size(folder) for folder in run_folders(home)}
    total, removed = sum(sizes.values()), []
    for folder, size in sizes.items():
        if total <= most_bytes:
            break
        if folder != keep and not may_be_open(folder):
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
            total -= size
            removed.append(folder)
    return removed


def _size(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
    except OSError:  # another recorder removes it at this moment
        return 0


def may_be_open(folder: Path) -> bool:
    """Recorded now, or so young that its recorder has not written the header yet."""
    try:
        return is_open(read_header(folder), folder)
    except RunUnreadable:
        return is_young(folder)


def remove_run(folder: Path) -> None:
    """Removes a run, with the link if that is one, and what is empty or a link to nothing but has a run's name.

    Raises RunUnreadable if it is none of these, or if its recorder is at work.
    """
    target = folder.resolve()
    if RUN_ID.fullmatch(folder.name) and folder.is_symlink() and not target.exists():
        folder.unlink()
        return
    empty = target.is_dir() and not any(target.iterdir())
    if not RUN_ID.fullmatch(target.name) or not (empty or _is_run(target)):
        raise RunUnreadable(f"{folder} is no cellmeter run, so it is left alone")
    if _is_recorded(target):
        raise RunUnreadable(f"{folder.name} is still being recorded: stop its kernel first")
    if empty:
        target.rmdir()
    else:
        import shutil

        shutil.rmtree(target)
    if folder.is_symlink():
        folder.unlink()


def _is_recorded(folder: Path) -> bool:
    try:
        return is_open(read_header(folder), folder)
    except RunUnreadable:
        return not (folder / HEADER).exists() and is_starting(folder)


def open_run(reference: str | os.PathLike[str] | None = None) -> Run:
    """Opens a recorded run: an id, an id's unique prefix, or a path; without one, the newest.

    Waits a moment for one whose recorder has just been started. Raises RunNotFound and RunUnreadable.
    """
    folder = find_run(os.fspath(reference) if reference is not None else None, runs_home())
    until = monotonic() + READY_SECONDS
    while not (folder / HEADER).exists() and is_starting(folder) and monotonic() < until:
        time.sleep(0.005)
    return read_run(folder)
