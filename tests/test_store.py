from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from cellmeter import form
from cellmeter.cli import main
from cellmeter.errors import RunNotFound, RunUnreadable
from cellmeter.export.records import cell_records
from cellmeter.export.selection import Part
from cellmeter.export.table import write_csv
from cellmeter.export.traces import trace_spans
from cellmeter.following import Followed
from cellmeter.home import find_run, list_runs, new_run_folder, open_run, previous_run, prune, remove_run, run_folders
from cellmeter.rules import judge
from cellmeter.run import EDGE_END, Column, Gap, Limit
from cellmeter.store import Tail, Writer, process_identity, read_header, read_run, record_size, sealed, unsealed
from cellmeter.watch import view

START_NS = 1_000_000_000_000
COLUMNS = [Column("process.memory.rss", "process", "By"), Column("process.cpu.time", "process", "s")]
HOST = {
    "name": "box",
    "system": "Linux",
    "release": "6.1",
    "machine": "x86_64",
    "python": "3.11.7",
    "cpu_count": 4,
    "memory_bytes": 8 << 30,
}


def at(seconds: float) -> int:
    return START_NS + round(seconds * 1e9)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., tuple[Path, Writer]]:
    """A run with one cell from 1 s to 2 s, sampled at 10 Hz from 0 s to 3 s; memory is 1 MB a sample."""

    def write(**header: Any) -> tuple[Path, Writer]:
        folder = new_run_folder(tmp_path / "runs")
        writer = Writer(folder)
        fields = {"id": folder.name, "start_ns": START_NS, "started": 1.7e9, "rate_hz": 10, "host": HOST, "devices": []}
        limits = {"memory_bytes": [8 << 30, "host"], "cpu_cores": [4, "host"]}
        writer.describe(**{**fields, "limits": limits, "recorder": None, **header})
        segment = writer.add_segment("main", COLUMNS)
        writer.event({"event": "cell_start", "t": at(1), "seq": 1, "execution_count": 5, "cpu_ns": 0})
        for i in range(31):
            writer.sample(segment, at(i / 10), 0, 0, [i * 1e6, i / 10])
        writer.event({"event": "cell_end", "t": at(2), "seq": 1, "execution_count": 5, "status": "ok", "cpu_ns": 10**9})
        return folder, writer

    return write


def test_what_is_written_is_read(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, writer = write_run(notebook="a.ipynb")
    writer.event({"event": "gap", "t": at(3), "start": at(2.5), "end": at(3), "reason": "asleep"})
    writer.event({"event": "end", "t": at(3.5), "ending": "stopped", "signal": None, "exit_code": None})
    run = read_run(folder)
    assert (run.id, run.ending, run.notebook, run.duration) == (folder.name, "stopped", "a.ipynb", pytest.approx(3.5))
    assert run.gaps == (Gap(pytest.approx(2.5), pytest.approx(3.0), "asleep"),)
    assert run.sample_count == 31
    (cell,) = run.cells
    assert (cell.title, cell.status, cell.own_cpu.seconds) == ("In [5]", "ok", 1.0)
    usage = run.usage(cell)
    assert (usage.samples, usage.rss_start_bytes, usage.rss_end_bytes) == (11, 10_000_000, 20_000_000)
    assert run.series("process.cpu.usage", "process").values[3:] == pytest.approx([1.0] * 28)
    frame = run.samples()
    assert frame["process.memory.rss:process"].iloc[-1] == 30e6
    assert frame["cell"].tolist() == [0] * 10 + [1] * 11 + [0] * 10
    assert frame.attrs["units"]["process.cpu.usage:process"] == "{cpu}"


def test_the_time_of_day_after_a_suspend(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    """An hour's sleep between 0.95 s and 1.0 s: the samples' clock stood still, that on the wall did not."""
    folder, writer = write_run()
    writer.event({"event": "anchor", "t": at(0.95), "wall": 1.7e9 + 0.95})
    writer.event({"event": "anchor", "t": at(1.0), "wall": 1.7e9 + 3601.0})
    writer.event({"event": "end", "t": at(3.5), "ending": "stopped", "signal": None, "exit_code": None})
    run = read_run(folder)
    assert (run.started.timestamp(), run.ended and run.ended.timestamp()) == (1.7e9, 1.7e9 + 3603.5)
    (record,) = cell_records(run)
    assert record["timestamp"] == "2023-11-14T23:13:21.000Z"
    file = io.BytesIO()
    write_csv(run, file, Part(None, 0.0))
    rows = list(csv.DictReader(file.getvalue().decode().splitlines()))
    told = {float(row["time_s"]): row["wall_time"] for row in rows}
    assert (told[0.9], told[1.0]) == ("2023-11-14T22:13:20.900Z", "2023-11-14T23:13:21.000Z")
    assert [span.start_ns for span in trace_spans(run, judge(run))] == [1_700_000_000 * 10**9, 1_700_003_601 * 10**9]
    assert [run.since(1.7e9 + late) for late in (-5, 0.5, 60, 3602)] == pytest.approx([0, 0.5, 1, 2], abs=1e-6)


def test_a_run_and_what_it_holds_are_said_shortly(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    """In a notebook the last line of a cell is shown by its repr."""
    folder, writer = write_run(notebook="a.ipynb")
    writer.event({"event": "end", "t": at(3.5), "ending": "stopped", "signal": None, "exit_code": None})
    run = read_run(folder)
    assert repr(run) == f"<Run {folder.name}: 1 cell in 3.50 s, stopped>"
    assert repr(run.cells) == "(<Cell 1: In [5], ok 1.00 s, ''>,)"
    frame = run.cells_frame()
    assert frame.index.tolist() == [1]
    (row,) = frame.to_dict("records")
    assert (row["title"], row["status"], row["seconds"], row["cpu_seconds"]) == ("In [5]", "ok", pytest.approx(1), 1)
    assert (row["rss_start_bytes"], row["rss_end_bytes"]) == (10_000_000, 20_000_000)
    assert replace(run, cells=()).cells_frame().empty


def test_samples_are_tagged_by_the_kernels_own_times(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    """The records say cell 0 throughout, as if the edges had come late; the end sample keeps its tag though it is late."""
    folder, writer = write_run()
    writer.sample(0, at(3.1), 1, EDGE_END, [1.0, 1.0])
    series = read_run(folder).series("process.memory.rss", "process")
    assert series.time[series.seq == 1].tolist() == pytest.approx([1 + i / 10 for i in range(11)] + [3.1])


def test_a_torn_record_and_a_torn_line_are_dropped(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, _ = write_run()
    with open(folder / "samples-000.f64", "ab") as file:
        file.write(b"\1" * (record_size(2) - 1))
    with open(folder / "events.jsonl", "ab") as file:
        file.write(b'{"event":"cell_start","t":1')
    run = read_run(folder)
    assert run.sample_count == 31
    assert len(run.cells) == 1
    assert run.notices == ()


def test_a_damaged_record_is_left_out_and_told_of(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, _ = write_run()
    path = folder / "samples-000.f64"
    data = bytearray(path.read_bytes())
    data[record_size(2) * 3 + 20] ^= 1
    path.write_bytes(data)
    run = read_run(folder)
    assert run.sample_count == 30
    assert run.notices == ("1 damaged samples were left out",)


@given(
    st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False), min_size=1)
)
def test_sealed_lines_come_back(fields: dict[str, Any]) -> None:
    line = sealed(fields)
    assert b"\n" not in line
    assert json.loads(line).keys() >= fields.keys() - {"crc"}
    assert unsealed(line) == fields


@given(st.data())
def test_a_flipped_bit_is_noticed(data: st.DataObject) -> None:
    line = bytearray(sealed({"event": "cell_end", "seq": 12, "status": "ok"}))
    bit = data.draw(st.integers(0, len(line) * 8 - 1))
    line[bit // 8] ^= 1 << bit % 8
    assert unsealed(bytes(line)) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_damage_gives_the_truth_or_a_clear_error(
    data: st.DataObject, write_run: Callable[..., tuple[Path, Writer]]
) -> None:
    folder, writer = write_run()
    writer.close()
    truth = read_run(folder).series("process.memory.rss", "process").values.tolist()
    path = folder / data.draw(st.sampled_from(["run.json", "events.jsonl", "samples-000.f64"]))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        run = read_run(folder)
    except RunUnreadable as error:
        assert "\n" not in str(error)
        return
    assert set(run.series("process.memory.rss", "process").values.tolist()) <= set(truth)
    assert all(cell.execution_count == 5 for cell in run.cells)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-1e3, 1e3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_a_foreign_header_or_event_is_one_line(
    data: st.DataObject, write_run: Callable[..., tuple[Path, Writer]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Sound by its checksum, but with any content: the command says so in one line, or makes a report of it."""
    folder, writer = write_run()
    key = data.draw(st.sampled_from([*writer.header, "events"]))
    if key == "events":
        kind = data.draw(st.sampled_from([*form.EVENTS, "?"]))
        keys = [key.removesuffix("?") for key in form.EVENTS.get(kind, {"t": int})]
        writer.event({"event": kind, **data.draw(st.dictionaries(st.sampled_from(keys), JSON))})
    elif data.draw(st.booleans()):
        writer.describe(**{key: data.draw(JSON)})
    else:
        del writer.header[key]
        writer.describe()
    writer.close()
    code = main(["report", str(folder), "--format", data.draw(st.sampled_from(["text", "json"]))])
    said = capsys.readouterr()
    assert code in (0, 2)
    if code == 2:
        assert said.err.startswith("cellmeter: ")
        assert said.err.count("\n") == 1
    shutil.rmtree(folder)


HOLDERS = st.fixed_dictionaries(
    {
        "pid": st.integers(),
        "start": st.none() | st.integers(),
        "user": st.none() | st.text(max_size=3),
        "name": st.none() | st.text(max_size=3),
        "used_bytes": st.none() | st.integers(-3, 2**70),
        "whose": st.sampled_from(["kernel", "other", "?", None]),
    },
    optional={"run": JSON, "notebook": st.none() | st.text(max_size=3)},
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    told=st.lists(
        st.tuples(st.sampled_from(["gpu0", "gpu1"]), st.floats(-5, 5), st.lists(HOLDERS, max_size=3), JSON), max_size=4
    ),
    format=st.sampled_from(["text", "json", "md", "html"]),
)
def test_whoever_is_said_to_hold_a_gpu_is_reported_or_refused_in_one_line(
    told: list[Any], format: str, write_run: Callable[..., tuple[Path, Writer]], capsys: pytest.CaptureFixture[str]
) -> None:
    device = {"id": "gpu0", "name": "H100", "uuid": "GPU-0", "memory_bytes": 80 << 30, "mine": True}
    folder, writer = write_run(devices=[device])
    for gpu, time, processes, host in told:
        event = {"t": at(time), "subject": gpu, "processes": processes}
        writer.event({"event": "holders", **event, "host_pids": host if host in (1, None, "") else False})
    writer.close()
    followed = Followed(folder)
    followed.poll()
    Console(file=io.StringIO()).print(view(followed, 80, 24))
    code = main(["report", str(folder), "--format", format])
    said = capsys.readouterr()
    assert code in (0, 2)
    assert said.err.count("\n") == (code == 2)
    assert "Traceback" not in said.err
    shutil.rmtree(folder)


@pytest.mark.parametrize("fields", [{}, {"subject": 1}, {"subject": "gpu0", "processes": [1], "host_pids": False}])
def test_whoever_follows_a_run_passes_over_holders_of_another_form(
    fields: dict[str, Any], write_run: Callable[..., tuple[Path, Writer]]
) -> None:
    folder, writer = write_run()
    writer.event({"event": "holders", "t": at(2.5), **fields})
    followed = Followed(folder)
    followed.poll()
    assert followed.others == ()
    with pytest.raises(RunUnreadable, match="holders"):
        read_run(folder)


VALUES = (
    st.integers(-3, 3)
    | st.floats(-1e3, 1e3)
    | st.sampled_from(["nan", "inf", "-inf", "x"])
    | st.lists(JSON, max_size=5)
)
SAID = {
    "logged": {"values": st.dictionaries(st.text(max_size=3), VALUES, max_size=2), "steps": st.just({"step": 1.0})},
    "span": {"start": st.integers(), "name": st.text(max_size=3), "status": st.sampled_from(["ok", "error", "?"])},
    "spans": {
        "start": st.integers(),
        "name": st.text(max_size=3),
        "count": st.integers(-1, 3),
        "errors": st.integers(),
        "seconds": st.floats(-1e3, 1e3),
        "histogram": st.dictionaries(st.integers().map(str) | st.text(max_size=2), st.integers(-1, 3), max_size=2),
    },
    "alert": {
        "seq": st.integers(),
        "state": st.just("fired"),
        "alert": st.text(),
        "subject": st.text(),
        "value": VALUES,
    },
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_anything_said_in_the_right_form_makes_a_report_or_is_one_line(
    data: st.DataObject, write_run: Callable[..., tuple[Path, Writer]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, writer = write_run()
    for kind in data.draw(st.lists(st.sampled_from(sorted(SAID)), max_size=4)):
        said = {
            "event": kind,
            "t": data.draw(st.integers()),
            **{key: data.draw(values) for key, values in SAID[kind].items()},
        }
        if kind == "alert" or data.draw(st.booleans()):
            writer.event(said)
        else:
            with (folder / "events-7.jsonl").open("ab") as file:
                file.write(sealed(said) + b"\n")
    writer.close()
    code = main(["report", str(folder), "--format", data.draw(st.sampled_from(["text", "json", "md"]))])
    said_err = capsys.readouterr().err
    assert code in (0, 2)
    assert said_err.count("\n") == (code == 2)
    shutil.rmtree(folder)


def test_a_worker_says_nothing_but_its_own(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, _ = write_run()
    lines = [
        {"event": "end", "t": at(9), "ending": "killed"},
        {"event": "logged", "t": at(1), "values": {"x": 1}, "pid": 7},
    ]
    (folder / "events-7.jsonl").write_bytes(b"\n".join([*map(sealed, lines), b'{"event":"logged","t', b""]))
    run = read_run(folder)
    assert run.ending == "unknown"
    assert run.logged["x"].pid.tolist() == [7]
    assert run.notices == ("1 damaged event lines were left out: cells or gaps may be missing",)


def test_a_failed_write_leaves_the_file_as_it_was(
    write_run: Callable[..., tuple[Path, Writer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, writer = write_run()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    with pytest.raises(OSError, match="No space left"):
        writer.sample(0, at(3.2), 0, 0, [1.0, 2.0])
    with pytest.raises(OSError, match="No space left"):
        writer.event({"event": "gap", "t": 1})
    monkeypatch.undo()
    writer.sample(0, at(3.3), 0, 0, [3.0, 4.0])
    run = read_run(folder)
    assert run.sample_count == 32
    assert run.notices == ()


def test_the_folder_is_private(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, _ = write_run()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


def test_a_tail_brings_each_sample_and_event_once(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, writer = write_run()
    tail = Tail(folder)
    ((columns, records),) = tail.samples()
    assert columns == tuple(COLUMNS)
    assert len(records) == 31
    assert [e["event"] for e in tail.events()] == ["cell_start", "cell_end"]
    assert tail.samples() == tail.events() == []
    writer.sample(0, at(4), 0, 0, [7.0, 8.0])
    wider = writer.add_segment("main", [*COLUMNS, Column("gpu.power", "gpu0", "W")])
    writer.sample(wider, at(5), 0, 0, [9.0, 10.0, 11.0])
    assert [records["v"].tolist() for _, records in tail.samples()] == [[[7.0, 8.0]], [[9.0, 10.0, 11.0]]]
    assert read_run(folder).subjects("gpu.power") == ("gpu0",)
    assert read_run(folder).series("process.memory.rss", "process").values[-2:].tolist() == [7.0, 9.0]


def test_a_tail_may_begin_near_the_end(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, writer = write_run()
    tail = Tail(folder, newest=2)
    ((_, records),) = tail.samples()
    assert records["v"][:, 0].tolist() == [29e6, 30e6]
    assert tail.events() == []
    writer.sample(0, at(4), 0, 0, [7.0, 8.0])
    writer.event({"event": "gap", "t": at(4)})
    ((_, records),) = tail.samples()
    assert records["v"][:, 0].tolist() == [7.0]
    assert len(tail.events()) == 1


def test_a_run_without_end_died_unless_its_recorder_lives(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, writer = write_run()
    writer.event({"event": "cell_start", "t": at(2.5), "seq": 2, "cpu_ns": 0})
    assert (read_run(folder).ending, read_run(folder).cells[1].status) == ("unknown", "died")
    pid = os.getpid()
    writer.describe(recorder={"pid": pid, "identity": process_identity(pid)})
    assert (read_run(folder).ending, read_run(folder).cells[1].status) == (None, "running")
    boot = (process_identity(pid) or "").rpartition(":")[0]
    writer.describe(recorder={"pid": pid, "identity": f"{boot}:1"})
    assert read_run(folder).ending == "unknown"


def test_a_run_of_another_host_is_open_while_it_is_written(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, writer = write_run()
    writer.describe(recorder={"pid": 1, "identity": "another boot:4026531836:1"})
    assert read_run(folder).ending is None
    with pytest.raises(RunUnreadable, match="still being recorded"):
        remove_run(folder)
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    assert read_run(folder).ending == "unknown"


def test_only_what_is_a_run_is_removed_whatever_its_name(tmp_path: Path) -> None:
    thesis = tmp_path / "20260101T000001Z-abcdef"
    thesis.mkdir()
    (thesis / "thesis.txt").touch()
    with pytest.raises(RunUnreadable, match="is left alone"):
        remove_run(thesis)
    assert (thesis / "thesis.txt").exists()


def test_infinite_readings_are_unknown(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, writer = write_run()
    writer.sample(0, at(3.1), 0, 0, [float("inf"), float("-inf")])
    values = read_run(folder).series("process.memory.rss", "process").values
    assert values[-1] != values[-1]


def test_folders_that_are_no_runs(tmp_path: Path, write_run: Callable[..., tuple[Path, Writer]]) -> None:
    with pytest.raises(RunUnreadable, match=r"is no cellmeter run: it has no run\.json"):
        read_run(tmp_path)
    folder, writer = write_run()
    (folder / "samples-000.f64").unlink()
    with pytest.raises(RunUnreadable, match="samples-000.f64 cannot be read: No such file"):
        read_run(folder)
    writer.describe(version=99)
    with pytest.raises(RunUnreadable, match="format version 99.*upgrade cellmeter"):
        read_run(folder)
    (folder / "run.json").write_bytes(struct.pack("<Q", 1))
    with pytest.raises(RunUnreadable, match="damaged"):
        read_run(folder)
    (info,) = list_runs(tmp_path / "runs")
    assert info.run is None
    assert "damaged" in (info.problem or "")


def test_runs_are_found_by_id_prefix_path_or_being_the_newest(
    tmp_path: Path, write_run: Callable[..., tuple[Path, Writer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "runs"
    with pytest.raises(RunNotFound, match="there are no runs yet"):
        find_run(None, home)
    folder, _ = write_run()
    for name in ("20200101T000000Z-aaaaaa", "20200101T000000Z-aabbbb", "notes"):
        (home / name).mkdir()
    assert run_folders(home)[0].name == "20200101T000000Z-aaaaaa"
    assert len(run_folders(home)) == 3
    assert find_run(None, home) == folder
    assert find_run(folder.name, home) == find_run(folder.name[:20], home) == find_run(str(folder), home) == folder
    with pytest.raises(RunNotFound, match="2 runs begin with '20200101'"):
        find_run("20200101", home)
    with pytest.raises(RunNotFound, match="no run in .* begins with 'zzz'"):
        find_run("zzz", home)
    with pytest.raises(RunNotFound, match="there is no folder ./nowhere"):
        find_run("./nowhere", home)
    monkeypatch.setenv("CELLMETER_HOME", str(tmp_path))
    assert open_run().id == folder.name


def test_runs_of_one_second_sort_by_time(tmp_path: Path) -> None:
    made = [new_run_folder(tmp_path) for _ in range(50)]
    assert [folder.name[:-2] for folder in run_folders(tmp_path)] == [folder.name[:-2] for folder in made]


def test_only_ended_runs_are_removed(tmp_path: Path, write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, writer = write_run()
    pid = os.getpid()
    writer.describe(recorder={"pid": pid, "identity": process_identity(pid)})
    with pytest.raises(RunUnreadable, match="still being recorded"):
        remove_run(folder)
    with pytest.raises(RunUnreadable, match="is left alone"):
        remove_run(tmp_path)
    writer.describe(recorder=None)
    remove_run(folder)
    assert not folder.exists()


def test_old_runs_make_room_but_open_and_young_ones_stay(
    tmp_path: Path, write_run: Callable[..., tuple[Path, Writer]]
) -> None:
    pid = os.getpid()
    old, opened, young, mine = (write_run()[0] for _ in range(4))
    Writer(opened).describe(**{**read_header(opened), "recorder": {"pid": pid, "identity": process_identity(pid)}})
    (young / "run.json").unlink()
    size = sum(file.stat().st_size for file in mine.iterdir())
    home = tmp_path / "runs"
    assert prune(home, 10 * size, mine) == []
    assert prune(home, size, mine) == [old]
    assert run_folders(home) == [opened, young, mine]
    os.utime(young, (0, 0))
    assert prune(home, size, mine) == [young]


def test_a_record_that_breaks_off_with_memory_full_is_probably_out_of_memory(
    write_run: Callable[..., tuple[Path, Writer]],
) -> None:
    folder, writer = write_run()
    segment = writer.add_segment("main", [Column("cgroup.memory.used", "cgroup", "By")])
    writer.sample(segment, at(3.1), 1, 0, [7.9 * 2**30])
    run = read_run(folder)
    assert (run.ending, run.ending_sure) == ("out-of-memory", False)
    writer.sample(segment, at(3.2), 1, 0, [5.0 * 2**30])
    assert (read_run(folder).ending, read_run(folder).ending_sure) == ("unknown", True)


def test_what_a_hub_says_of_memory_makes_nobody_out_of_memory(
    write_run: Callable[..., tuple[Path, Writer]],
) -> None:
    told = {"memory_bytes": [4 << 30, "JupyterHub (MEM_LIMIT)"], "cpu_cores": [4, "host"]}
    for held, ending in ((8 << 30, "unknown"), (5 << 30, "out-of-memory")):
        folder, writer = write_run(limits=told, held={"memory_bytes": [held, "cgroup"]})
        segment = writer.add_segment("main", [Column("cgroup.memory.used", "cgroup", "By")])
        writer.sample(segment, at(3.1), 1, 0, [4.9 * 2**30])
        run = read_run(folder)
        assert run.ending == ending
        assert run.limits["memory_bytes"] == Limit(4 << 30, "JupyterHub (MEM_LIMIT)")


def test_the_previous_run_of_a_notebook(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    one, other, last = (write_run(notebook=name)[0] for name in ("a.ipynb", "b.ipynb", "a.ipynb"))
    assert previous_run(last, "a.ipynb") == one
    assert previous_run(other, "b.ipynb") is None


def test_only_the_newest_samples(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, _ = write_run()
    run = read_run(folder, newest=3)
    assert run.series("process.memory.rss", "process").values.tolist() == [28e6, 29e6, 30e6]
    assert len(run.cells) == 1


GPU_COLUMNS = [*COLUMNS, Column("gpu.energy", "gpu1", "J")]


def test_a_device_that_comes_and_goes_is_unknown_while_it_is_away(
    write_run: Callable[..., tuple[Path, Writer]],
) -> None:
    folder, writer = write_run()
    with_gpu = writer.add_segment("main", GPU_COLUMNS)
    for i in range(31, 41):
        writer.sample(with_gpu, at(i / 10), 0, 0, [i * 1e6, i / 10, 7.0 * i])
    without = writer.add_segment("main", COLUMNS)
    for i in range(41, 51):
        writer.sample(without, at(i / 10), 0, 0, [i * 1e6, i / 10])
    run = read_run(folder)
    energy, memory = run.series("gpu.energy", "gpu1"), run.series("process.memory.rss", "process")
    assert energy.time.tolist() == memory.time.tolist() == pytest.approx([i / 10 for i in range(51)])
    assert memory.values.tolist() == [i * 1e6 for i in range(51)]
    assert np.isnan(energy.values).tolist() == [True] * 31 + [False] * 10 + [True] * 10
    assert len(run.samples()) == 51


def test_a_stream_has_one_file_open_however_often_its_columns_change(
    write_run: Callable[..., tuple[Path, Writer]],
) -> None:
    folder, writer = write_run()
    cores = writer.add_segment("cores", COLUMNS)
    for _ in range(1100):
        segment = writer.add_segment("main", COLUMNS)
    opened = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert sum(str(folder) in name and name.endswith(".f64") for name in opened) == 2
    writer.sample(segment, at(4), 0, 0, [4.0, 4.0])
    writer.sample(cores, at(4), 0, 0, [5.0, 5.0])
    assert read_run(folder).series("process.memory.rss", "process").values[-1] in (4.0, 5.0)


def test_a_segment_that_cannot_be_written_leaves_the_run_as_it_was(
    write_run: Callable[..., tuple[Path, Writer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, writer = write_run()
    before = writer.header["segments"]
    with monkeypatch.context() as full:
        full.setattr(Writer, "describe", lambda *_, **__: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        with pytest.raises(OSError, match="No space"):
            writer.add_segment("main", GPU_COLUMNS)
    assert writer.header["segments"] == before
    writer.sample(0, at(3.1), 0, 0, [1.0, 2.0])
    writer.sample(writer.add_segment("main", GPU_COLUMNS), at(3.2), 0, 0, [1.0, 2.0, 3.0])
    assert read_run(folder).series("gpu.energy", "gpu1").values[-1] == 3.0


def test_a_counter_that_began_anew_within_a_cell_is_no_energy(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    gpu = {"id": "gpu1", "name": "T4", "uuid": "GPU-1", "memory_bytes": 0}
    folder, writer = write_run(devices=[gpu])
    segment = writer.add_segment("main", GPU_COLUMNS)
    for seq, counts in ((2, (100, 200, 300)), (3, (100, 200, 5, 400))):
        writer.event({"event": "cell_start", "t": at(10 * seq), "seq": seq})
        for i, joules in enumerate(counts):
            writer.sample(segment, at(10 * seq + i), seq, 0, [1.0, 1.0, joules])
        writer.event({"event": "cell_end", "t": at(10 * seq + i), "seq": seq, "status": "ok"})
    run = read_run(folder)
    whole, reset = (run.usage(cell) for cell in run.cells[1:])
    assert whole.gpu["gpu1"].energy_joules == 200
    assert reset.gpu["gpu1"].energy_joules is None
    assert "reset" in reset.unknown["gpu.gpu1.energy_joules"]


def test_notices_that_repeat_are_counted(write_run: Callable[..., tuple[Path, Writer]]) -> None:
    folder, writer = write_run()
    for second in range(100):
        for kind in ("lost", "returned"):
            writer.event({"event": kind, "t": at(second), "subject": "gpu1", "reason": "why"})
    assert read_run(folder).notices == ("gpu1 lost: why (100 times)", "gpu1 returned: why (100 times)")
