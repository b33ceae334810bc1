"""The readings of a run, column by column: read when they are asked for, and let go again where all would be too much.

A day of eight GPUs is 500 MB of numbers. Most that looks at a run goes through a column or two at a time, or through one of
each device: so no more than some of them are held, those that were asked for last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cellmeter.series import Series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

KEPT_BYTES = 192 << 20  # of readings, their times not counted
BATCH_BYTES = KEPT_BYTES // 3  # read at once, for a pass costs the same for one column as for ten; the rest stays
LONG_BYTES = 1 << 20  # of a column: a shorter one is kept
SWEEP_METRICS = 2  # of all subjects: there is room for them however long the run is, else each look would be a pass

Key = tuple[str, str]


class Column(NamedTuple):
    """One stored quantity of one subject (``host``, ``process``, ``cpu3``, ``gpu0``)."""

    metric: str
    subject: str
    unit: str


class Records(Protocol):
    """Samples that share their columns: a structured array, or what stands for one whose readings are still in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, name: str, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Segment:
    """Samples that share their columns: records ``t`` (ns), ``seq``, ``flags``, ``v`` (n × columns)."""

    stream: str
    columns: tuple[Column, ...]
    records: Records

    @property
    def in_file(self) -> bool:
        """Whether its readings are still to be read."""
        return hasattr(self.records, "read_columns")

    def read(self, places: Sequence[int]) -> list[Floats]:
        """The readings of some of the columns, each an array of its own."""
        if self.in_file:
            columns: list[Floats] = self.records.read_columns(places)  # type: ignore[attr-defined]
            return columns
        values = self.records["v"]
        return [values[:, place].copy() for place in places]


class Columns:
    """All readings that a run has stored, by metric and subject, and what was made of them."""

    def __init__(self, segments: Sequence[Segment], start_ns: int) -> None:
        self._segments = segments
        self._start_ns = start_ns
        self._places = [_places(segment) for segment in segments]
        self._moments: dict[tuple[int, ...], tuple[Floats, NDArray[np.int64]]] = {}
        self._kept: OrderedDict[Key, Series] = OrderedDict()
        self._bytes = 0
        self._missed = ""
        self._subjects = len({subject for places in self._places for _, subject in places})

    def stored(self, metric: str, subject: str) -> Series:
        """The readings as they were stored; empty if there are none."""
        import numpy as np

        key = (metric, subject)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        parts = self._parts(key)
        if not parts:
            return Series(np.empty(0), np.empty(0), np.empty(0, np.int64))
        self._read(parts, [*self._companions(key, parts), key])
        return self._kept[key]

    def times(self, metric: str, subject: str) -> Floats:
        """When it was read, or was to be."""
        import numpy as np

        parts = self._parts((metric, subject))
        return self._moments_of(parts)[0] if parts else np.empty(0)

    def made(self, key: Key, make: Callable[[], Series]) -> Series:
        """What is made of stored readings, as a rate of its counter."""
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self._keep(key, make())
        return self._kept[key]

    def _parts(self, key: Key) -> tuple[int, ...]:
        """The segments of the streams that have a column, also those without it: there it is unknown."""
        streams = {s.stream for s, places in zip(self._segments, self._places, strict=True) if key in places}
        return tuple(number for number, segment in enumerate(self._segments) if segment.stream in streams)

    def _companions(self, key: Key, parts: tuple[int, ...]) -> list[Key]:
        """What else to read in the same pass.

        Who asks for the same of one subject after the other gets it of all. Who does not gets all else of the subject, and of
        those behind it in the file as far as there is room: a run is judged device by device.
        """
        if not any(self._segments[number].in_file for number in parts):
            return []
        every = list(dict.fromkeys(other for number in parts for other in self._places[number]))
        there = [other for other in every if other not in self._kept and other != key and self._parts(other) == parts]
        before, self._missed = self._missed, key[0]
        if before == key[0]:
            return [other for other in there if other[0] == key[0]]
        most = BATCH_BYTES // (8 * max(1, self._rows(parts))) - 1
        same = [other for other in there if other[1] == key[1]]
        behind = [other for other in there if other[1] != key[1] and every.index(other) > every.index(key)]
        return [*same, *behind][: max(0, most)]

    def _rows(self, parts: Iterable[int]) -> int:
        return sum(len(self._segments[number].records) for number in parts)

    def _read(self, parts: tuple[int, ...], keys: Sequence[Key]) -> None:
        """Reads columns into what is kept, the last of them as that which was asked for last."""
        import numpy as np

        time, seq = self._moments_of(parts)
        self._make_room(len(keys) * time.nbytes, time.nbytes)
        pieces: dict[Key, list[Floats]] = {key: [] for key in keys}
        for number in parts:
            segment, places = self._segments[number], self._places[number]
            there = [key for key in keys if key in places]
            read = dict(zip(there, segment.read([places[key] for key in there]), strict=True))
            for key in keys:  # a device that came later, or went: unknown while the stream went on without it
                piece = read.get(key)
                pieces[key].append(np.full(len(segment.records), np.nan) if piece is None else piece)
        for key in keys:
            values = np.concatenate(pieces[key]) if len(parts) > 1 else pieces[key][0]
            pieces[key].clear()
            values[np.isinf(values)] = np.nan
            self._keep(key, Series(time, values, seq))

    def _moments_of(self, parts: tuple[int, ...]) -> tuple[Floats, NDArray[np.int64]]:
        """Times and cells, which all columns of a stream share."""
        import numpy as np

        if parts not in self._moments:
            records = [self._segments[number].records for number in parts]
            time = (np.concatenate([one["t"] for one in records]) - self._start_ns) * 1e-9
            self._moments[parts] = time, np.concatenate([one["seq"] for one in records]).astype(np.int64)
        return self._moments[parts]

    def _keep(self, key: Key, series: Series) -> None:
        self._make_room(series.values.nbytes, series.values.nbytes)
        self._kept[key] = series
        self._bytes += series.values.nbytes

    def _make_room(self, wanted: int, column: int) -> None:
        """Lets go of what was asked for longest ago, short streams aside.

        There is room for all subjects of the metrics that one look at a run goes through.
        """
        most = max(KEPT_BYTES, SWEEP_METRICS * self._subjects * column)
        long = [key for key, series in self._kept.items() if series.values.nbytes >= LONG_BYTES]
        for key in long:
            if self._bytes + wanted <= most:
                break
            self._bytes -= self._kept.pop(key).values.nbytes


def _places(segment: Segment) -> dict[Key, int]:
    """Where a segment has its columns, in their order; the first where two are the same."""
    places: dict[Key, int] = {}
    for place, column in enumerate(segment.columns):
        places.setdefault((column.metric, column.subject), place)
    return places
