"""The readings of a cell, or of a whole run, out of the tail of its folder: as live panel and server send them to a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter import cell_cpu, charts, gpu_shares, layouts
from cellmeter.assemble import cells_from
from cellmeter.errors import RunUnreadable
from cellmeter.run import EDGE_END, Column
from cellmeter.store import Tail, read_header
from cellmeter.usage import GpuMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.metrics import Group

    Floats = NDArray[np.float64]
    Event = Mapping[str, Any]

MOST_ROWS = 36_000  # kept in the kernel: an hour at 10 Hz; older ones are thinned out, spikes stay
MOST_CORE_ROWS = 3_600  # an hour of the cores' loads: what a page that is loaded anew gets of a longer cell
KEPT_FOR_RATES = 32  # records: half an interval and more at any rate
CHUNK_BYTES = 8 << 20  # read at once of a long cell


class Feed:
    """A cell's rows out of a run folder's tail: of all groups, whichever are ``shown`` first. Not thread-safe.

    ``tail``: by default that of a cell which is yet to start; ``since_ns``: when it did, if it has.
    """

    def __init__(
        self, folder: Path, seq: int, shown: Sequence[Group], tail: Tail | None = None, since_ns: int | None = None
    ) -> None:
        import numpy as np

        self.seq = seq
        self.folder = folder
        self.shown = tuple(shown)
        self._tail = tail or Tail(folder, newest=0)
        self.rates = layouts.rates_of(self._tail.header())
        self._panels = layouts.panels_of(folder)
        self.missing = layouts.missing_in(folder, self._panels)
        self.holders = Holders(folder, self._tail.header(), since_ns)
        self.loads = CoreLoads(folder)
        self._width = 1 + sum(len(spec.lines) for spec in self._panels)
        self._rows = np.empty((256, self._width))
        self._count = 0
        self._seconds = 0.5  # in which two of the older rows are left
        self._before: tuple[tuple[Column, ...], NDArray[Any]] | None = None
        self._events: list[Event] = []
        self.started_ns: int | None = None
        self.next = 0
        """Number of the next row; earlier ones may have been thinned out."""
        self._intact_from = 0
        self.ended = False

    @property
    def panels(self) -> tuple[charts.PanelSpec, ...]:
        """What its rows fill, as far as it is known by now which GPUs the kernel does not use."""
        return charts.without(self._panels, self.holders.not_used)

    def poll(self) -> Floats:
        """Takes in what is new and returns it: rows × (time, lines), seconds since the cell's first sample."""
        import numpy as np

        fresh = [np.empty((0, self._width))]
        for columns, records in self._tail.samples():
            if not self.ended:
                fresh.append(self._taken(columns, records))
        rows = np.concatenate(fresh)
        self._keep(rows)
        self.holders.poll(self.ended)
        if self.started_ns is not None:
            self.loads.poll(self.started_ns, self.ended)
        return rows

    def _taken(self, columns: tuple[Column, ...], records: NDArray[Any]) -> Floats:
        """Rows of the records that belong to the cell; the newest are kept for the next rates.

        A rate that looks back to before the cell would be its predecessor's, so the first one is unknown.
        """
        import numpy as np

        known = self._before[1] if self._before is not None and self._before[0] == columns else records[:0]
        together = np.concatenate([known, records])
        first = len(known)
        mine = np.flatnonzero(together["seq"] == self.seq)
        if self.started_ns is None:
            if not len(mine):
                return np.empty((0, self._width))
            self.started_ns, first = int(together["t"][mine[0]]), 0
            together, mine = together[mine[0] :], mine - mine[0]
        self._before = (columns, together[-KEPT_FOR_RATES:])
        last = len(together)
        ends = mine[(together["flags"][mine] & EDGE_END) != 0]
        if len(ends):
            self.ended, last = True, int(ends[-1]) + 1
        seconds = (together["t"] - self.started_ns) * 1e-9
        values = charts.values_of(self._panels, columns, seconds, together["v"], self.rates)
        return np.column_stack([seconds, values])[first:last]

    def _keep(self, rows: Floats) -> None:
        import numpy as np

        needed = self._count + len(rows)
        if needed > len(self._rows):
            self._rows = np.concatenate([self._rows[: self._count], np.empty((max(needed, self._count), self._width))])
        self._rows[self._count : needed] = rows
        self._count = needed
        self.next += len(rows)
        if self._count > MOST_ROWS:
            self._thin()

    def _thin(self) -> None:
        """The newer half stays, of the rest as many rows as make a quarter at most, all of it alike."""
        import numpy as np

        newer = MOST_ROWS // 2
        older = self._rows[: self._count - newer]
        few = charts.thinned(older[:, 0], older[:, 1:], self._seconds)
        while len(few[0]) > max(2, newer // 2):
            self._seconds *= 2
            few = charts.thinned(older[:, 0], older[:, 1:], self._seconds)
        thinned = np.concatenate([np.column_stack(few), self._rows[self._count - newer : self._count]])
        self._intact_from = self.next - newer
        self._rows, self._count = thinned, len(thinned)

    def since(self, number: int) -> Floats | None:
        """The rows from a number on; None where they have been thinned out, or are none of this cell's."""
        if not self._intact_from <= number <= self.next:
            return None
        return self._rows[self._count - (self.next - number) : self._count]

    def forget(self) -> None:
        """Keeps no rows any longer: the folder has them."""
        import numpy as np

        self._rows, self._count = np.empty((0, self._width)), 0
        self.loads.finish()

    def remember(self) -> None:
        """Reads the rows again, from the first to the last of the cell."""
        self._begin_again()
        while len(self.poll()):
            pass

    def _begin_again(self) -> None:
        self._tail = Tail(self.folder, since_ns=self.started_ns, most_bytes=CHUNK_BYTES)
        self._count, self._seconds, self._before = 0, 0.5, None
        self.started_ns, self.ended = None, False
        self.next = self._intact_from = 0

    def rows(self) -> Floats:
        """All rows that are kept: rows × (time, lines)."""
        return self._rows[: self._count]

    def frame(self, started_ns: int) -> charts.Frame:
        """The rows, with times since ``started_ns``."""
        rows = self.rows()
        shift = ((self.started_ns or started_ns) - started_ns) * 1e-9
        return charts.Frame(self.panels, rows[:, 0] + shift, rows[:, 1:], self.missing)

    def cores(self, start: Event, end: Event) -> float | None:
        """What the cell with these edges used on the average; None where the folder has gone."""
        try:
            return cell_cpu.mean_cores(self.folder, self._tail.header(), start, end)
        except (OSError, RunUnreadable):
            return None

    def gpu_memory(self, start: Event, end: Event) -> dict[str, GpuMemory]:
        """Whose the memory of each GPU was, by its id; nothing where the folder has gone."""
        start_ns, end_ns, peaks = start["t"], end["t"], end.get("torch_peak_bytes", {})
        gpus = [line.subject for spec in self._panels if spec.key == "gpu-memory" for line in spec.lines]
        try:
            return gpu_shares.of_cell(self.folder, self._tail.header(), gpus, start_ns, end_ns, peaks) if gpus else {}
        except (OSError, RunUnreadable):
            return {}

    def edges(self) -> dict[str, Event]:
        """The cell's edges as the kernel sent them, ``cell_start`` and ``cell_end``, as far as they have been written."""
        self._events += [e for e in self._tail.events() if e.get("seq") == self.seq]
        return {event["event"]: event for event in self._events}


class WholeRun(Feed):
    """All rows of a run, between cells too; of a long one those of the last hour at first. Not thread-safe."""

    def __init__(self, folder: Path, groups: Sequence[Group]) -> None:
        started_ns = int(read_header(folder)["start_ns"])
        super().__init__(folder, 0, groups, Tail(folder, newest=MOST_ROWS), started_ns)
        self.next = self._intact_from = self._tail.passed  # so that all who follow a run number its rows alike
        self._edges = Tail(folder)
        self._starts: dict[int, Event] = {}
        self._bands: dict[int, dict[str, Any]] = {}
        self.started_ns = self.run_ns = started_ns

    def _begin_again(self) -> None:
        super()._begin_again()
        self._tail = Tail(self.folder, newest=MOST_ROWS)
        self.next = self._intact_from = self._tail.passed
        self.started_ns = self.run_ns

    def _taken(self, columns: tuple[Column, ...], records: NDArray[Any]) -> NDArray[np.float64]:
        import numpy as np

        known = self._before[1] if self._before is not None and self._before[0] == columns else records[:0]
        together = np.concatenate([known, records])
        self._before = (columns, together[-KEPT_FOR_RATES:])
        seconds = (together["t"] - self.run_ns) * 1e-9
        values = charts.values_of(self._panels, columns, seconds, together["v"], self.rates)
        return np.column_stack([seconds, values])[len(known) :]

    def bands(self, anew: bool) -> list[dict[str, Any]]:
        """The cells that began or ended since the last call, or all of them; those that others ran from within left out."""
        changed = {}
        for event in self._edges.events():
            if event.get("event") not in ("cell_start", "cell_end"):
                continue
            seq = event["seq"]
            start = self._starts.setdefault(seq, event)
            if start["event"] != "cell_start" or start.get("parent") is not None:
                continue
            edges = [start, event] if event is not start else [start]
            (cell,) = cells_from(edges, self.run_ns, "running")
            told = {"seq": seq, "title": cell.title, "line": cell.first_line, "id": cell.cell_id, "status": cell.status}
            changed[seq] = {**told, "start": cell.start, "end": cell.end}
        self._bands |= changed
        return list(self._bands.values() if anew else changed.values())


class Holders:
    """Which GPUs the kernel has not used since a cell began, by the driver's process lists. Not thread-safe.

    A list that was read before the kernel came to hold a GPU says nothing against it, so one reading is not enough.
    ``since_ns``: when the cell began, if it has already.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], since_ns: int | None) -> None:
        self._seen = {gpu: (0, 0.0) for gpu in layouts.doubtful(header)}  # how many readings, and the highest
        self._tail = Tail(folder, layouts.PROCESSES, newest=0 if since_ns is None else None, since_ns=since_ns)
        self._ended = False
        self.not_used: frozenset[str] = frozenset()
        """Their ids."""

    def poll(self, ended: bool) -> None:
        """Takes in what is new, and nothing after the poll that saw the cell's end."""
        import numpy as np

        if self._ended or not self._seen:
            return
        self._ended = ended
        for columns, records in self._tail.samples():
            for index, column in enumerate(columns):
                if column.metric == layouts.CONTEXTS and column.subject in self._seen:
                    known = records["v"][:, index][~np.isnan(records["v"][:, index])]
                    count, most = self._seen[column.subject]
                    self._seen[column.subject] = count + len(known), float(known.max(initial=most))
        self.not_used = frozenset(gpu for gpu, seen in self._seen.items() if layouts.never_held(*seen))


class CoreLoads:
    """How busy each core was while a cell ran, once a second. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.cores = layouts.cores_of(folder)
        self._tail = Tail(folder, layouts.CORES, newest=0)
        self._before: tuple[float, Floats] | None = None
        self._ended = False
        self._times: Floats = np.empty(0)
        self._loads: NDArray[np.uint8] = np.empty((0, len(self.cores)), np.uint8)
        self.next = 0
        """Number of the next row."""

    def finish(self) -> None:
        """Takes in nothing more."""
        self._ended = True

    def poll(self, started_ns: int, ended: bool) -> None:
        """Takes in what the cell's time has brought: from ``started_ns`` on, and nothing after the poll that saw its end."""
        import numpy as np

        if self._ended or not self.cores:
            return
        self._ended = ended
        for _, records in self._tail.samples():
            for at, busy in zip((records["t"] - started_ns) * 1e-9, records["v"], strict=True):
                if self._before is not None and at > self._before[0] and busy.shape == self._before[1].shape:
                    share = (busy - self._before[1]) / (at - self._before[0])
                    load = np.where(np.isnan(share), 255, np.round(np.clip(share, 0, 1) * 250)).astype(np.uint8)
                    self._times = np.append(self._times[-MOST_CORE_ROWS:], at)
                    self._loads = np.vstack([self._loads[-MOST_CORE_ROWS:], load])
                    self.next += 1
                if at >= 0:  # what came before is the cell before
                    self._before = at, busy

    def since(self, number: int) -> list[bytes]:
        """The rows from a number on, as buffers: float64 times, and a byte a core and row (0 to 250, 255 unknown)."""
        count = min(self.next - number, len(self._times))
        if count <= 0:
            return [b"", b""]
        return [self._times[-count:].tobytes(), self._loads[-count:].tobytes()]


def column_major(rows: Floats) -> bytes:
    """Float64 columns one after the other, as ``Samples.put`` in live.js takes them."""
    return rows.T.tobytes()
