"""The records of a sample file: their form, whether they are sound, and how those of a large file are read by column.

A record is monotonic ns (i8), cell (u4), flags (u4), float64 × columns, CRC-32 (u4), little-endian.
"""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter.errors import RunUnreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CHUNK_BYTES = 1 << 20  # read at once: it and what is taken out of it stay in the processor's cache


def record_size(columns: int) -> int:
    """Bytes of one sample record."""
    return 20 + 8 * columns


def record_layout(columns: int, wanted: Sequence[int]) -> struct.Struct:
    """A record of so many columns, of which only the time, the cell, the flags and the wanted ones are unpacked."""
    fields = "".join("d" if n in wanted else "8x" for n in range(columns))
    return struct.Struct(f"<qII{fields}4x")


def first_since(fd: int, size: int, count: int, t_ns: int) -> int:
    """Number of the first of so many records of that size at or after a time, by bisection."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if struct.unpack("<q", os.pread(fd, 8, middle * size))[0] < t_ns:
            low = middle + 1
        else:
            high = middle
    return low


def _record_dtype(columns: int) -> np.dtype[Any]:
    import numpy as np

    return np.dtype([("t", "<i8"), ("seq", "<u4"), ("flags", "<u4"), ("v", "<f8", (columns,)), ("crc", "<u4")])


def parse_records(data: bytes | memoryview, columns: int) -> tuple[NDArray[Any], int]:
    """Whole, sound records as a structured array, and how many damaged ones were left out."""
    import numpy as np

    size = record_size(columns)
    whole = len(data) // size * size
    sound = _sound(memoryview(data)[:whole], size)
    records = np.frombuffer(data, _record_dtype(columns), count=whole // size)
    return (records, 0) if sound is None else (records[sound], int((~sound).sum()))


def _sound(data: memoryview, size: int) -> NDArray[np.bool_] | None:
    """Which records are sound; None: all of them.

    The CRC of records that follow each other depends on their number alone if each ends with its own CRC. A damaged one changes
    it for certain, and several cancel each other out once in 2^32. So it is looked at one by one only where there is damage.
    """
    count = len(data) // size
    if not count or zlib.crc32(data) == _crc_of_sound(size, count):
        return None
    import numpy as np

    at = range(0, len(data), size)
    crc = zlib.crc32
    return np.array(
        [crc(data[i : i + size - 4]) == int.from_bytes(data[i + size - 4 : i + size], "little") for i in at]
    )


@lru_cache(maxsize=64)
def _crc_of_sound(size: int, count: int) -> int:
    """Of so many sound records back to back, whatever is in them."""
    crc, blank = 0, bytes(size - 4)
    one = blank + zlib.crc32(blank).to_bytes(4, "little")
    for _ in range(count):
        crc = zlib.crc32(one, crc)
    return crc


class StoredRecords:
    """The records of a sample file, checked one and all: times, cells and flags are held, readings stay in the file.

    As a structured array it has ``t``, ``seq``, ``flags`` and ``v`` by name; the last is all there is, read at that moment.
    """

    def __init__(self, path: Path, columns: int) -> None:
        """Opens and checks a file. Raises OSError."""
        import numpy as np

        self._columns = columns
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)  # it may be removed, or replaced, while it is read
        self._count = os.fstat(self._fd).st_size // record_size(columns)
        self._heads = {
            name: np.empty(self._count, dtype) for name, dtype in (("t", "<i8"), ("seq", "<u4"), ("flags", "<u4"))
        }
        self._rows: NDArray[np.int64] | None = None
        """Which of the file's records these are, and in which order; None: all of them, as they are."""
        unsound = []
        for first, records, sound in self._chunks(check=True):
            for name, held in self._heads.items():
                held[first : first + len(records)] = records[name]
            if sound is not None:
                unsound.append(first + np.flatnonzero(~sound))
        self.damaged = sum(map(len, unsound))
        if unsound:
            self._choose(np.delete(np.arange(self._count), np.concatenate(unsound)))

    def __len__(self) -> int:
        return len(self._heads["t"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name == "v":
            import numpy as np

            return np.column_stack(self.read_columns(range(self._columns)))
        return self._heads[name]

    def in_order(self) -> StoredRecords:
        """By time."""
        times = self._heads["t"]
        if not (times[1:] >= times[:-1]).all():
            self._choose(times.argsort(kind="stable"))
        return self

    def tagged(self, tags: NDArray[np.uint32]) -> StoredRecords:
        """With other cells."""
        self._heads["seq"] = tags
        return self

    def last(self) -> Floats:
        """The readings of the last one."""
        row = self._count - 1 if self._rows is None else int(self._rows[-1])
        size = record_size(self._columns)
        records, _ = parse_records(os.pread(self._fd, size, row * size), self._columns)
        values: Floats = records["v"][-1]
        return values

    def read_columns(self, places: Sequence[int]) -> list[Floats]:
        """Readings of some columns, in one pass through the file."""
        import numpy as np

        read = [np.empty(self._count) for _ in places]
        for first, records, _ in self._chunks(check=False):
            values = records["v"]
            for column, place in zip(read, places, strict=True):
                column[first : first + len(records)] = values[:, place]
        return read if self._rows is None else [column[self._rows] for column in read]

    def _choose(self, rows: NDArray[np.int64]) -> None:
        self._heads = {name: held[rows] for name, held in self._heads.items()}
        self._rows = rows if self._rows is None else self._rows[rows]

    def _chunks(self, *, check: bool) -> Iterator[tuple[int, NDArray[Any], NDArray[np.bool_] | None]]:
        """First number, records and which are sound (None: all, or not looked at), in a buffer that is used again."""
        import numpy as np

        size = record_size(self._columns)
        step = max(1, CHUNK_BYTES // size)
        buffer = memoryview(bytearray(step * size))
        for first in range(0, self._count, step):
            count = min(step, self._count - first)
            part = buffer[: count * size]
            if os.preadv(self._fd, [part], first * size) != len(part):
                raise RunUnreadable(f"{self._path} has become shorter while it was read")
            records = np.frombuffer(part, _record_dtype(self._columns))
            yield first, records, _sound(part, size) if check else None
