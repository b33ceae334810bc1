"""The samples in long form, one row a reading: as CSV for any tool, as Parquet for those that keep types and units.

A day at 10 Hz with 80 columns is 69 million rows: they are written in pieces, column by column, as a run reads them.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from cellmeter.errors import MissingExtra
from cellmeter.run import Series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.export.selection import Part
    from cellmeter.run import Run

ROWS_AT_ONCE = 65_536
HEADERS = ("time_s", "wall_time", "cell", "label", "metric", "subject", "unit", "value")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class Piece(NamedTuple):
    """Some readings of one quantity. ``wall`` is UTC."""

    metric: str
    subject: str
    unit: str
    time: NDArray[np.float64]
    wall: NDArray[np.datetime64]
    cell: NDArray[np.int64]
    values: NDArray[np.float64]


def write_csv(run: Run, file: BinaryIO, part: Part) -> None:
    """Readings as UTF-8 CSV with a header; an unknown value is empty. Between cells, ``cell`` is 0."""
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    rows = csv.writer(text)
    rows.writerow(HEADERS)
    labels = {seq: neutral(label) for seq, label in _labels(run).items()}
    for piece in _pieces(run, part):
        rows.writerows(_rows(piece, labels))
    text.flush()
    text.detach()


def write_parquet(run: Run, file: BinaryIO, part: Part) -> None:
    """Readings as Parquet; units also in the metadata of the column ``value``. Raises MissingExtra without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", "a Parquet file") from error
    labels = _labels(run)
    schema = _parquet_schema(pa, run)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for piece in _pieces(run, part):
            writer.write_table(_parquet_table(pa, schema, piece, labels))


def neutral(text: str) -> str:
    """A string that no spreadsheet takes for a formula."""
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def _labels(run: Run) -> dict[int, str]:
    return {cell.seq: cell.title for cell in run.cells} | {0: ""}


def _quantities(run: Run) -> dict[tuple[str, str], str]:
    """Metric and subject of all that can be read, the rates of counters too, with their unit."""
    found = {(metric, subject): unit for metric, subject, unit in _said(run)}
    for column in (column for segment in run.segments for column in segment.columns):
        found.setdefault((column.metric, column.subject), column.unit)
        rate = run.metrics[column.metric].rate if column.metric in run.metrics else None
        if rate is not None:
            found.setdefault((rate, column.subject), run.metrics[rate].unit)
    return found


def _pieces(run: Run, part: Part) -> Iterator[Piece]:
    for (metric, subject), unit in _quantities(run).items():
        if metric in run.metrics:
            series = _selected(run.series(metric, subject), part)
            yield from _cut(run, metric, subject, unit, series)
    for key, said in _said(run).items():
        yield from _cut(run, *key, _selected(said, part))


def _selected(series: Series, part: Part) -> Series:
    import numpy as np

    wanted = series.time >= part.start
    if part.cells is not None:
        wanted &= np.isin(series.seq, list(part.cells))
    return series if wanted.all() else Series(series.time[wanted], series.values[wanted], series.seq[wanted])


def _said(run: Run) -> dict[tuple[str, str, str], Series]:
    """What the user's code said: ``logged.loss``, ``step.tokens`` and ``span.inference``, whose value is its duration."""
    import numpy as np

    rows: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for name, logged in run.logged.items():
        for time, value, pid in zip(logged.time, logged.value, logged.pid, strict=True):
            rows[f"logged.{name}", _who(int(pid)), ""].append((time, value))
    for name, steps in run.steps.items():
        rows[f"step.{name}", "run", ""] += zip(steps.time, steps.amount, strict=True)
    for span in run.spans:
        rows[f"span.{span.name}", _who(span.pid), "s"].append((span.end, span.seconds))
    columns = {key: np.array(table).T for key, table in rows.items()}
    return {key: Series(time, values, run.cells_at(time)) for key, (time, values) in columns.items()}


def _who(pid: int) -> str:
    return f"worker {pid}" if pid else "kernel"


def _cut(run: Run, metric: str, subject: str, unit: str, series: Series) -> Iterator[Piece]:
    import numpy as np

    for low in range(0, len(series.time), ROWS_AT_ONCE):
        part = slice(low, low + ROWS_AT_ONCE)
        time = series.time[part]
        wall = np.round(run.epochs(time) * 1000).astype("datetime64[ms]")
        yield Piece(metric, subject, unit, time, wall, series.seq[part], series.values[part])


def _rows(piece: Piece, labels: dict[int, str]) -> Iterator[tuple[Any, ...]]:
    import numpy as np

    fixed = (neutral(piece.metric), neutral(piece.subject), neutral(piece.unit))
    walls = np.datetime_as_string(piece.wall, unit="ms")
    columns = zip(piece.time.round(6).tolist(), walls.tolist(), piece.cell.tolist(), piece.values.tolist(), strict=True)
    for time, wall, seq, value in columns:
        yield (time, wall + "Z", seq, labels.get(seq, ""), *fixed, value if np.isfinite(value) else "")


def _parquet_schema(pa: Any, run: Run) -> Any:
    word = pa.dictionary(pa.int32(), pa.string())
    units = {f"{metric}:{subject}": unit for (metric, subject), unit in _quantities(run).items()}
    return pa.schema(
        [
            pa.field("time_s", pa.float64(), metadata={"unit": "s"}),
            pa.field("wall_time", pa.timestamp("ms", tz="UTC")),
            pa.field("cell", pa.int64()),
            pa.field("label", word),
            pa.field("metric", word),
            pa.field("subject", word),
            pa.field("unit", word),
            pa.field("value", pa.float64(), metadata=units),
        ],
        metadata={"cellmeter_run": run.id},
    )


def _parquet_table(pa: Any, schema: Any, piece: Piece, labels: dict[int, str]) -> Any:
    import numpy as np

    seqs, index = np.unique(piece.cell, return_inverse=True)
    texts = [labels.get(int(seq), "").encode("utf-8", "backslashreplace").decode() for seq in seqs]
    zeros = np.zeros(len(piece.time), np.int32)
    constants = (pa.DictionaryArray.from_arrays(zeros, [text]) for text in (piece.metric, piece.subject, piece.unit))
    columns = [
        pa.array(piece.time),
        pa.array(piece.wall).cast(pa.timestamp("ms", tz="UTC")),
        pa.array(piece.cell),
        pa.DictionaryArray.from_arrays(index.astype(np.int32), texts),
        *constants,
        pa.array(piece.values, from_pandas=True),
    ]
    return pa.table(columns, schema=schema)
