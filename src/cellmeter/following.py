"""A run as it is now, out of its folder: the last two minutes, the cells that run and those that ended last, the findings."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter import charts
from cellmeter.assemble import cells_from
from cellmeter.clock import monotonic
from cellmeter.errors import CellmeterError
from cellmeter.export.rows import CellRow, cell_row
from cellmeter.export.summary import ending
from cellmeter.form import check_events
from cellmeter.holders import Holder, holders_from, others_now
from cellmeter.layouts import rates_of
from cellmeter.rules import Finding, judge
from cellmeter.run import Cell, Column, Device, Limit
from cellmeter.store import Tail, is_open, read_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cellmeter.metrics import Group

WINDOW_SECONDS = 120.0
GROUPS: tuple[Group, ...] = ("cpu", "memory", "gpu", "power")
LOOK_SECONDS = 1.0
CELLS_KEPT = 12
WHOLE_BYTES = 128 << 20  # a larger run is not read whole each time a cell ends
NEWEST_RECORDS = 20_000
REST = 10.0  # what is read at a cell's end takes at most a tenth of the time


@dataclass(frozen=True)
class Summary:
    """The cells that ended last, oldest first, and the findings, worst first; None if the run is too large for them."""

    rows: tuple[CellRow, ...] = ()
    findings: tuple[Finding, ...] | None = ()


class Followed:
    """A run folder that is followed; :meth:`poll` takes in what is new. Reads only, and only the folder.

    Raises RunUnreadable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._edges = Tail(folder)
        self.header: Mapping[str, Any] = self._edges.header()
        self._samples = Tail(folder, newest=int(WINDOW_SECONDS * self.header["rate_hz"]))
        self._columns: tuple[Column, ...] = ()
        self._records: NDArray[Any] | None = None
        self._open: dict[int, Mapping[str, Any]] = {}
        self._ended_cells = self._summed_up = 0
        self._holders: dict[str, Sequence[Holder]] = {}
        self._look_at = self._sum_up_at = 0.0
        self._thread: threading.Thread | None = None
        self._heard = monotonic()
        self.ended = False
        self.summary = Summary()

    def poll(self) -> None:
        """Takes in what has been written since the last time."""
        now = monotonic()
        gone = False
        if (
            now >= self._look_at
        ):  # looked at before the events are read: a recorder that ends meanwhile leaves its end there
            self._look_at = now + LOOK_SECONDS
            gone = not is_open(self.header, self.folder)
        self.header = self._edges.header()
        self._take_events()
        self._take_samples(now)
        self.ended = self.ended or gone
        if self._ended_cells > self._summed_up and now >= self._sum_up_at and not self._summing_up():
            self._thread = threading.Thread(target=self._sum_up, args=(self._ended_cells,), daemon=True)
            self._thread.start()

    def _take_events(self) -> None:
        for event in self._edges.events():
            kind = event.get("event")
            if kind == "cell_start":
                self._open[event["seq"]] = event
            elif kind == "cell_end":
                self._open.pop(event["seq"], None)
                self._ended_cells += 1
            elif kind == "end":
                self.ended = True
            elif kind == "holders":
                self._take_holders(event)

    def _take_holders(self, event: Mapping[str, Any]) -> None:
        with contextlib.suppress(ArithmeticError, ValueError):  # in the form of a cellmeter to come
            check_events([event])
            self._holders[event["subject"]] = holders_from([event], self.start_ns)

    def _take_samples(self, now: float) -> None:
        import numpy as np

        for columns, records in self._samples.samples():
            if self._records is None or columns != self._columns:
                self._columns, self._records = columns, records
            else:
                self._records = np.concatenate([self._records, records])
            if len(self._records):
                times = self._records["t"]
                self._records = self._records[times >= times[-1] - int(WINDOW_SECONDS * 1e9)]
            self._heard = now

    def _summing_up(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _sum_up(self, cells: int) -> None:
        started = monotonic()
        try:
            self.summary = summary_of(self.folder)
        except (CellmeterError, OSError):  # it may be replaced or removed at this moment; the next poll says so
            return
        self._summed_up = cells
        self._sum_up_at = monotonic() + REST * (monotonic() - started)

    def finish(self) -> str:
        """What is left to read of a run that has ended; returns how it ended, in words."""
        if self._thread is not None:
            self._thread.join()
        run = read_run(self.folder)
        self.summary = summary_of(self.folder)
        return ending(run)

    @property
    def start_ns(self) -> int:
        """The run's start, monotonic."""
        return int(self.header["start_ns"])

    @property
    def seconds(self) -> float:
        """Since the run's start, at the newest sample."""
        if self._records is None or not len(self._records):
            return 0.0
        return float(self._records["t"][-1] - self.start_ns) * 1e-9

    @property
    def silent_seconds(self) -> float:
        """Since a sample was last read."""
        return monotonic() - self._heard

    @property
    def running(self) -> Cell | None:
        """The cell that runs; the outermost where cells run others from within."""
        cells = cells_from(self._open.values(), self.start_ns, "running")
        top = [cell for cell in cells if cell.parent is None or cell.parent not in self._open]
        return top[-1] if top else None

    @property
    def others(self) -> Sequence[Holder]:
        """The processes of others on the GPUs now, those that hold most first."""
        return others_now(one for of_gpu in self._holders.values() for one in of_gpu)

    def frame(self) -> charts.Frame:
        """The last two minutes; times in seconds since the run's start."""
        import numpy as np

        limits = {name: Limit(*limit) for name, limit in self.header["limits"].items()}
        devices = [Device(**device) for device in self.header["devices"]]
        specs = charts.panels(self._columns, limits, devices, GROUPS)
        if self._records is None:
            return charts.Frame(specs, np.empty(0), np.empty((0, sum(len(spec.lines) for spec in specs))))
        seconds = (self._records["t"] - self.start_ns) * 1e-9
        values = charts.values_of(specs, self._columns, seconds, self._records["v"], rates_of(self.header))
        return charts.Frame(specs, seconds, values)


def summary_of(folder: Path) -> Summary:
    """The newest cells and the findings. Of a run too large to be read whole: cells all of whose samples were read."""
    whole = sum(path.stat().st_size for path in folder.glob("*.f64")) <= WHOLE_BYTES
    run = read_run(folder, newest=None if whole else NEWEST_RECORDS)
    first = [part.records["t"][0] for part in run.segments if part.stream == "main" and len(part.records)]
    since = -math.inf if whole or not first else float(first[-1] - run.start_ns) * 1e-9
    cells = [cell for cell in run.cells if cell.status != "running" and cell.start >= since]
    rows = tuple(cell_row(run, cell) for cell in cells[-CELLS_KEPT:])
    return Summary(rows, judge(run).findings if whole else None)
