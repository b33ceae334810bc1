"""Says in the cell that runs, once a run, that memory is nearly full, as the recorder saw it (see ``nearly_full``).

A thread that sleeps: while a cell runs it looks once a second whether the events of the run have grown by that one, and it
ends when that was said.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
from pathlib import Path

from cellmeter.clock import monotonic
from cellmeter.nearly_full import EVENT
from cellmeter.store import EVENTS, EventTail
from cellmeter.ticker import nearly_full_text

LOOK_SECONDS = 1.0
CLOSE_SECONDS = 1.0
_MARK = f'"event":"{EVENT}"'.encode()


class MemoryWatch:
    """The one of a recording; begins at once."""

    def __init__(self, folder: Path) -> None:
        self._tail = EventTail(folder / EVENTS)
        self._lock = threading.Lock()
        self._cell: contextvars.Context | None = None
        self._looked = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cellmeter-memory", daemon=True)
        self._thread.start()

    def cell_began(self) -> None:
        """What is said from here on is said in this cell."""
        self._looked = monotonic()
        self._cell = contextvars.copy_context()

    def cell_ended(self) -> None:
        """The last look of a cell that was not over in a moment."""
        self._cell = None
        if not self._done.is_set() and monotonic() - self._looked > LOOK_SECONDS / 2:
            self._look()

    def close(self) -> None:
        """Nothing is said any more."""
        self._done.set()
        self._thread.join(CLOSE_SECONDS)

    def _follow(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            cell = self._cell
            if cell is not None:
                cell.copy().run(self._look)

    def _look(self) -> None:
        self._looked = monotonic()
        # stderr may be closed, a disk gone, open() be the cell's own: it looks again
        with contextlib.suppress(Exception):
            with self._lock:
                found = [] if self._done.is_set() else self._tail.events(only=_MARK)
                if found:
                    self._done.set()
            if found:
                print(f"cellmeter: {nearly_full_text(found[0])}", file=sys.stderr, flush=True)
