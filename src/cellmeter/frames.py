"""A run as pandas DataFrames, for those who have pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellmeter.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd

    from cellmeter.run import Run


def _pandas(purpose: str) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra("pandas", "pandas", purpose) from error
    return pandas


def samples_frame(run: Run) -> pd.DataFrame:
    """See :meth:`Run.samples`."""
    pandas = _pandas("a DataFrame of the samples")
    columns: dict[str, Any] = {}
    units: dict[str, str] = {}
    index: Any = []
    main = [s for s in run.segments if s.stream == "main"]
    for column in dict.fromkeys(c for s in main for c in s.columns):
        for name in (column.metric, run.metrics[column.metric].rate if column.metric in run.metrics else None):
            if name is None:
                continue
            series = run.series(name, column.subject)
            columns[f"{name}:{column.subject}"] = pandas.Series(series.values, index=series.time)
            units[f"{name}:{column.subject}"] = run.metrics[name].unit
            if len(series.time) > len(index):
                index = series.time
                columns["cell"] = pandas.Series(series.seq, index=series.time)
    frame: pd.DataFrame = pandas.DataFrame(columns, index=pandas.Index(index, name="seconds"))
    if "cell" in frame:
        frame.insert(0, "cell", frame.pop("cell").astype("int64"))
    frame.attrs["units"] = units
    return frame


def cells_frame(run: Run) -> pd.DataFrame:
    """See :meth:`Run.cells_frame`."""
    pandas = _pandas("a DataFrame of the cells")
    rows = []
    for cell in run.cells:
        used = run.usage(cell)
        row = {name: getattr(cell, name) for name in ("seq", "title", "first_line", "status", "start", "seconds")}
        of_memory = ("peak_rss_bytes", "rss_start_bytes", "rss_end_bytes")
        row |= {name: getattr(used, name) for name in ("cpu_seconds", *of_memory, "read_bytes", "written_bytes")}
        for gpu, usage in used.gpu.items():
            names = ("utilization_mean", "memory_peak_bytes", "own_memory_peak_bytes", "energy_joules")
            row |= {f"{name}:{gpu}": getattr(usage, name) for name in names}
        rows.append(row)
    frame: pd.DataFrame = pandas.DataFrame(rows or {"seq": []})
    return frame.set_index("seq")


def logged_frame(run: Run) -> pd.DataFrame:
    """See :meth:`Run.logged_frame`."""
    pandas = _pandas("a DataFrame of the logged values")
    names = ["time", "name", "value", "low", "high", "mean", "count", "pid", "cell"]
    parts = [
        pandas.DataFrame(vars(logged) | {"name": name, "cell": run.cells_at(logged.time)})
        for name, logged in run.logged.items()
    ]
    frame: pd.DataFrame = pandas.concat(parts) if parts else pandas.DataFrame(columns=names)
    return frame[names].sort_values("time", kind="stable", ignore_index=True)


def spans_frame(run: Run) -> pd.DataFrame:
    """See :meth:`Run.spans_frame`."""
    pandas = _pandas("a DataFrame of the spans")
    names = ["name", "start", "end", "seconds", "status", "parent", "items", "pid", "cell"]
    frame: pd.DataFrame = pandas.DataFrame(
        [vars(span) | {"seconds": span.seconds} for span in run.spans], columns=names
    )
    frame["cell"] = run.cells_at(frame["end"].to_numpy(dtype=float))
    return frame
