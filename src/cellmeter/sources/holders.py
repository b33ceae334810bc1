"""Who holds memory of GPUs, told when that changes: by name and user, never by command line, which may hold secrets."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

LEAST_CHANGE_BYTES = 256 << 20  # about a bare context's
CHANGE_SHARE = 0.05  # of what was last told of a process: what changes by less is not told again
MOST_TOLD = 32  # processes of one GPU, those that hold most
BURST = 120.0  # events of one GPU at once; of these, half are kept for processes that come and go
REFILL_SECONDS = 60.0  # until there may be one more: a day of processes that never rest is 1500 events
LOOKUP_SECONDS = 0.02  # what is known by then is told at once, the rest with a later reading
MOST_ASKED = 100

Recorded = tuple[str, str | None]
"""The run in which a process is recorded, and the notebook or script that runs in it."""
Event = dict[str, Any]


class Process:
    """What /proc tells of a process when it is first seen. What is hidden or gone is None."""

    def __init__(self, pid: int, proc: str) -> None:
        self.pid = pid
        self.name = _text(f"{proc}/{pid}/comm").rstrip("\n") or None
        self.start, self.parent = _start_and_parent(_text(f"{proc}/{pid}/stat"))
        try:
            self.uid: int | None = Path(proc, str(pid)).stat().st_uid
        except OSError:
            self.uid = None
        self.user: str | None = None
        self.recorded: Recorded | None = None


class Lookups:
    """Users by their names, and recorded processes: in a thread, as both may lie on a network that is slow to answer."""

    def __init__(self, recorded: Callable[[int], Recorded | None]) -> None:
        self._recorded = recorded
        self._names: dict[int, str] = {}
        self._asked: SimpleQueue[tuple[Sequence[Process], threading.Event]] = SimpleQueue()
        self._patience = LOOKUP_SECONDS
        threading.Thread(target=self._answer, daemon=True).start()

    def ask(self, processes: Sequence[Process]) -> None:
        """Waits for the answers, but a moment only; and not again, once they took longer."""
        answered = threading.Event()
        if self._asked.qsize() < MOST_ASKED:
            self._asked.put((processes, answered))
            if not answered.wait(self._patience):
                self._patience = 0.0

    def _answer(self) -> None:
        while True:
            processes, answered = self._asked.get()
            for process in processes:
                if process.uid is not None:
                    with suppress(Exception):  # the next is to be answered in any case
                        process.user = self._name(process.uid)
                        if process.uid == os.getuid():  # no other user's runs are here
                            process.recorded = self._recorded(process.pid)
            answered.set()

    def _name(self, uid: int) -> str:
        import pwd  # not on Windows

        if uid not in self._names:
            try:
                self._names[uid] = pwd.getpwuid(uid).pw_name
            except KeyError:
                self._names[uid] = str(uid)  # as ps has it
        return self._names[uid]


class Holders:
    """The processes of each GPU, and what is new about them since they were last told.

    A process is told again if what it holds has changed by a twentieth and 256 MiB.
    """

    def __init__(self, proc: str, interval: float, recorded: Callable[[int], Recorded | None]) -> None:
        """``interval``: seconds between two readings of a GPU. ``recorded``: who else is recorded here, by pid."""
        self._proc = proc
        self._refill = interval / REFILL_SECONDS
        self._recorded = recorded
        self._lookups: Lookups | None = None
        self._processes: dict[int, Process] = {}
        self._told: dict[str, _Told] = {}
        self._events: list[Event] = []
        self._said: set[str] = set()

    def see(self, gpu: str, held: Mapping[int, float], own: Collection[int] | None) -> None:
        """Bytes held (NaN: unknown) by process id, and which ids are the kernel's; None: all are the host's, not ours."""
        told = self._told.setdefault(gpu, _Told())
        told.pids = frozenset(() if own is None else held)
        inside = frozenset[int]().union(*(one.pids for one in self._told.values()))
        self._processes = {pid: known for pid, known in self._processes.items() if pid in inside}
        if own is not None:
            self._meet([Process(pid, self._proc) for pid in held if pid not in self._processes])
        every = [self._described(pid, used, own) for pid, used in held.items()]
        every.sort(key=lambda process: -(process["used_bytes"] or 0))
        shown = every[:MOST_TOLD]
        told.events_left = min(BURST, told.events_left + self._refill)
        if len(every) > len(shown):
            self._say(f"more than {MOST_TOLD} processes held {gpu} at once: those that held most are recorded")
        cost = told.news(shown)
        if cost is not None and told.events_left >= cost:
            self._events.append(told.tell(gpu, shown, own is None))
        elif cost is not None:
            self._say(f"who held how much of {gpu} changed too often: not all of it is recorded")

    def events(self) -> list[Event]:
        """What is to be told, each but once."""
        events, self._events = self._events, []
        return events

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._events.append({"event": "notice", "text": text})

    def _meet(self, processes: Sequence[Process]) -> None:
        if not processes:
            return
        self._processes.update((process.pid, process) for process in processes)
        if self._lookups is None:
            self._lookups = Lookups(self._recorded)
        self._lookups.ask(processes)

    def _described(self, pid: int, used: float, own: Collection[int] | None) -> Event:
        amount = None if math.isnan(used) else int(used)
        if own is None:
            return {"pid": pid, "start": None, "user": None, "name": None, "used_bytes": amount, "whose": None}
        process = self._processes[pid]
        mine = pid in own or process.parent in own  # a child so young that the tree has not been looked at since
        described = {
            "pid": pid,
            "start": process.start,
            "user": process.user,
            "name": process.name,
            "used_bytes": amount,
            "whose": "kernel" if mine else "other",
        }
        if process.recorded is not None and not mine:
            described["run"], described["notebook"] = process.recorded
        return described


class _Told:
    """What was last told of a GPU."""

    def __init__(self) -> None:
        self.pids: frozenset[int] = frozenset()
        self.events_left = BURST
        self._who: frozenset[tuple[Any, ...]] = frozenset()
        self._used: dict[int, int | None] = {}

    def news(self, processes: list[Event]) -> float | None:
        """How many events must be left for it to be told; None: there is nothing new."""
        if _who(processes) != self._who:
            return 1.0
        changed = any(_is_other(process["used_bytes"], self._used[process["pid"]]) for process in processes)
        return BURST / 2 if changed else None

    def tell(self, gpu: str, processes: list[Event], host_pids: bool) -> Event:
        self.events_left -= 1.0
        self._who = _who(processes)
        self._used = {process["pid"]: process["used_bytes"] for process in processes}
        return {"event": "holders", "subject": gpu, "processes": processes, "host_pids": host_pids}


def _who(processes: list[Event]) -> frozenset[tuple[Any, ...]]:
    return frozenset(tuple(v for key, v in process.items() if key != "used_bytes") for process in processes)


def _is_other(used: int | None, before: int | None) -> bool:
    if used is None or before is None:
        return used is not before
    return abs(used - before) >= max(LEAST_CHANGE_BYTES, CHANGE_SHARE * before)


def _start_and_parent(stat: str) -> tuple[int | None, int | None]:
    """When it began, in ticks since the machine did, which tells it from another that had its id before; and its parent."""
    try:
        words = stat.rpartition(")")[2].split()
        return int(words[19]), int(words[1])
    except (ValueError, IndexError):
        return None, None


def _text(path: str) -> str:
    """Empty where it may not be read. A name is cut at 15 bytes, be it within a character."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
