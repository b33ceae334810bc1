"""Records of a large run, which stay in their files, are what they are in memory; and a run takes little memory to judge."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from builders import GIB, GpuWork, a_cell, a_device, a_run, bursts
from hypothesis import given
from hypothesis import strategies as st

from bench.long_run import write_run
from cellmeter import columns, export, store
from cellmeter.records import StoredRecords, parse_records, record_size
from cellmeter.run import Run
from cellmeter.series import quantile
from cellmeter.store import read_run

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two GPUs with findings of several kinds."""
    work = {"gpu0": GpuWork(bursts(4, 1)), "gpu1": GpuWork(30, memory=lambda t: GIB * (2 + t / 20))}
    cells = [a_cell(20, rss=lambda t: GIB * (1 + t / 10), cores=1.0), a_cell(90, gpu=work, cores=1.0), a_cell(0.05)]
    return write_run(a_run(*cells, devices=[a_device("gpu0", True), a_device("gpu1", True)]), tmp_path)


def _from_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """With readings that stay in the file, and room for a few columns of them."""
    monkeypatch.setattr(store, "HELD_BYTES", 0)
    monkeypatch.setattr(columns, "KEPT_BYTES", 8 * 8 * 1200)
    monkeypatch.setattr(columns, "BATCH_BYTES", 3 * 8 * 1200)
    monkeypatch.setattr(columns, "LONG_BYTES", 8)
    run = read_run(folder)
    assert run.segments[0].in_file
    return run


def test_a_run_read_by_column_tells_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [export.render(read_run(folder), form) for form in ("json", "md", "text", "jsonl")]
    run = _from_file(folder, monkeypatch)
    assert [export.render(run, form) for form in ("json", "md", "text", "jsonl")] == held
    kept = sum(series.values.nbytes for series in run._columns._kept.values())
    assert kept <= max(columns.KEPT_BYTES, 2 * run._columns._subjects * 8 * run.sample_count)


def test_damaged_and_disordered_records_are_the_same_read_by_column(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "samples-000.f64"
    content, size = bytearray(path.read_bytes()), record_size(len(read_run(folder).segments[0].columns))
    content[3 * size : 5 * size] = content[4 * size : 5 * size] + content[3 * size : 4 * size]
    for place in (7 * size + 40, 9 * size - 1, 900 * size + 5):
        content[place] ^= 1
    path.write_bytes(content)
    held = read_run(folder)
    assert held.notices == ("3 damaged samples were left out",)
    report = export.render(held, "json")
    run = _from_file(folder, monkeypatch)
    assert run.notices == held.notices
    assert export.render(run, "json") == report
    for name in ("t", "seq", "v"):
        assert np.array_equal(run.segments[0].records[name], held.segments[0].records[name], equal_nan=True)


def test_a_file_that_is_removed_meanwhile_is_still_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _from_file(folder, monkeypatch)
    (folder / "samples-000.f64").unlink()
    assert len(run.series("process.memory.rss", "process").values) == run.sample_count


@given(st.lists(st.lists(st.floats(), min_size=3, max_size=3), min_size=1, max_size=40), st.data())
def test_each_damaged_record_is_found_whatever_surrounds_it(rows: list[list[float]], data: st.DataObject) -> None:
    records = np.zeros(len(rows), [("t", "<i8"), ("seq", "<u4"), ("flags", "<u4"), ("v", "<f8", (3,)), ("crc", "<u4")])
    records["v"] = rows
    size = record_size(3)
    content = bytearray(records.tobytes())
    for at in range(0, len(content), size):
        content[at + size - 4 : at + size] = zlib.crc32(content[at : at + size - 4]).to_bytes(4, "little")
    assert parse_records(bytes(content), 3)[1] == 0
    damaged = data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))
    for number in damaged:
        content[number * size + data.draw(st.integers(0, size - 1))] ^= data.draw(st.integers(1, 255))
    sound, lost = parse_records(bytes(content), 3)
    assert (lost, len(sound)) == (len(damaged), len(rows) - len(damaged))


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=60), st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0]))
def test_a_quantile_is_numpys(values: list[float], share: float) -> None:
    assert quantile(np.array(values), share) == np.quantile(np.array(values), share)


_JUDGED = """
import sys
from pathlib import Path
from cellmeter import export
from cellmeter.store import read_run
def most(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
export.render(read_run(Path(sys.argv[1])), "json")
before = most()
export.render(read_run(Path(sys.argv[2])), "json")
print(most() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM")
def test_judging_takes_memory_like_the_samples_and_not_many_times_that(tmp_path: Path) -> None:
    """A report of 6 h of eight GPUs, beside one of half a minute that loads what any report loads."""
    from bench.long_run import long_run

    small, large = (
        write_run(long_run(hours, 8, 40), tmp_path / name) for hours, name in ((0.01, "small"), (6.0, "large"))
    )
    samples = sum(path.stat().st_size for path in large.glob("*.f64"))
    done = subprocess.run(
        [sys.executable, "-c", _JUDGED, str(small), str(large)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2 * samples  # it was six times as much when all columns were held, with a time for each


def test_stored_records_are_closed(folder: Path) -> None:
    import os

    records = StoredRecords(folder / "samples-000.f64", len(read_run(folder).segments[0].columns))
    fd = records._fd
    os.fstat(fd)
    del records
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
