"""How a process ended: what its exit status and the machine's out-of-memory counters say."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from cellmeter.run import Ending
from cellmeter.sources.cgroup import find_group, read_text

# <linux/pidfd.h>, Linux 6.15: _IOWR(0xFF, 11, struct pidfd_info), 64 bytes; exit_code is its last field.
_PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3
_PF_EXITING = 0x4  # <linux/sched.h>
_SIGKILL = 9
_SIGTERM = 15
_SIGHUP_INT_QUIT = (1, 2, 3)


class Verdict(NamedTuple):
    """How a run ended, with the signal or exit code where one is known."""

    ending: Ending
    signal: int | None
    exit_code: int | None


def is_exiting(pid: int, proc: str = "/proc") -> bool:
    """Whether a process is on its way out: it still has a pid, and gives its memory back."""
    stat = read_text(f"{proc}/{pid}/stat")
    return stat is not None and bool(int(stat[stat.rindex(")") + 2 :].split()[6]) & _PF_EXITING)


def wait_status(pid: int, pidfd: int | None, proc: str = "/proc") -> int | None:
    """The wait status of a process that has ended: from its zombie, else from its pidfd; None if neither tells."""
    stat = read_text(f"{proc}/{pid}/stat")
    if stat:
        fields = stat[stat.rindex(")") + 2 :].split()
        if fields[0] in "ZX":
            return int(fields[49])
    return _status_by_pidfd(pidfd) if pidfd is not None else None


def _status_by_pidfd(pidfd: int) -> int | None:
    import fcntl

    buffer = bytearray(64)
    struct.pack_into("=Q", buffer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    (mask,) = struct.unpack_from("=Q", buffer, 0)
    return int(struct.unpack_from("=i", buffer, 60)[0]) if mask & _PIDFD_INFO_EXIT else None


class OutOfMemoryKills:
    """Counts the kernel's out-of-memory kills in the process's control group, or on the machine where it has none."""

    def __init__(self, pid: int, proc: str = "/proc") -> None:
        group = find_group(pid, "memory", proc)
        if group is None:
            self._path, self._key = f"{proc}/vmstat", "oom_kill"
        elif group.version == 2:
            self._path, self._key = f"{group.folder}/memory.events", "oom_kill"
        else:
            self._path, self._key = f"{group.folder}/memory.oom_control", "oom_kill"

    def count(self) -> int | None:
        """Kills so far; None where the counter is missing."""
        for line in (read_text(self._path) or "").splitlines():
            name, _, value = line.partition(" ")
            if name == self._key:
                return int(value)
        return None


def judge_death(status: int | None, goodbye: str | None, out_of_memory: bool) -> Verdict:
    """Turns what is known of a death into an ending. ``goodbye``: ``exit`` or ``restart`` if the kernel said so before."""
    if status is None:
        return Verdict(_ENDING_OF_GOODBYE.get(goodbye or "", "unknown"), None, None)
    number = status & 0x7F
    if number == 0:
        ending: Ending = "restarted" if goodbye == "restart" else "exited"
        return Verdict(ending, None, os.waitstatus_to_exitcode(status))
    if number == _SIGKILL and out_of_memory:
        return Verdict("out-of-memory", number, None)
    if goodbye == "restart":
        return Verdict("restarted", number, None)
    if number in (_SIGKILL, _SIGTERM, *_SIGHUP_INT_QUIT):
        return Verdict("killed", number, None)
    return Verdict("crashed", number, None)


_ENDING_OF_GOODBYE: dict[str, Ending] = {"exit": "exited", "restart": "restarted"}
