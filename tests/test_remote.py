"""What a Prometheus server told of other machines: placed on the run's clock, joined to cells, kept in the folder, judged."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from builders import GIB, STARTED, a_cell, a_device, a_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmeter import export, judge
from cellmeter.errors import BadUsage
from cellmeter.export import report_json
from cellmeter.home import new_run_folder
from cellmeter.prometheus.exporters import Gathered, Places, Told, gathered
from cellmeter.prometheus.fetching import joined, keep, kept_in
from cellmeter.prometheus.source import LOGIN, TOKEN, Source, source_of
from cellmeter.remote import (
    FILE,
    Anchor,
    Readings,
    Remote,
    RemoteDevice,
    RemoteMachine,
    epochs,
    inside,
    remote_from,
    run_times,
    usage_between,
)
from cellmeter.rules import Checked, Finding, Judgement
from cellmeter.run import Run
from cellmeter.store import Writer, read_run
from cellmeter.words import given_text

WALL = STARTED.timestamp()
SOURCE = Source("http://prometheus:9090", '{instance="node7:9400"}')


def readings(times: Sequence[float], values: Sequence[float], seconds: float = 0.0) -> Readings:
    return Readings(np.array(times, float), np.array(values, float), np.full(len(times), seconds))


def elsewhere(use: dict[str, Any], every: float = 15.0, seconds: float = 600.0, **more: Any) -> Remote:
    """A machine ``node7`` whose GPUs were as busy as a function of the time says, scraped from 1 s on."""
    times = np.arange(1.0, seconds, every)
    told = {
        ("gpu.utilization", f"node7:{gpu}"): readings(times, [busy(t) if callable(busy) else busy for t in times])
        for gpu, busy in use.items()
    }
    told |= {("gpu.memory.used", f"node7:{gpu}"): readings(times, [2.0 * GIB] * len(times)) for gpu in use}
    devices = tuple(RemoteDevice(f"node7:{gpu}", "node7", "NVIDIA H100", f"GPU-{gpu}", 80 * GIB) for gpu in use)
    host = readings(times[1:], [12.0] * (len(times) - 1), every)
    told["host.cpu.usage", "node7:host"] = host
    fields = {
        "url": SOURCE.url,
        "match": SOURCE.match,
        "asked": seconds + 100,
        "until": seconds,
        "machines": (RemoteMachine("node7", 96, 512 * GIB),),
        "devices": devices,
        "readings": told,
    }
    return Remote(**{**fields, **more})


# ---- the clock -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-2e-4, 2e-4), min_size=1, max_size=30),
    st.lists(st.floats(0, 1), min_size=1, max_size=50),
)
def test_times_are_found_again_on_a_clock_that_is_slewed(drifts: list[float], shares: list[float]) -> None:
    """60 s between anchors; the wall clock runs up to 200 ppm fast or slow between them."""
    walls = WALL + np.concatenate([[0.0], np.cumsum([60 * (1 + drift) for drift in drifts])])
    anchors = [Anchor(60.0 * number, wall) for number, wall in enumerate(walls)]
    truth = np.sort(np.array(shares)) * 60.0 * len(drifts)
    at = np.interp(truth, [anchor.time for anchor in anchors], walls)
    assert run_times(at, anchors) == pytest.approx(truth, abs=0.05)


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(-1e5, 1e5)), max_size=8), st.lists(st.floats(0, 600), min_size=2))
def test_times_of_day_follow_the_clock_and_never_fall(leaps: list[tuple[float, float]], times: list[float]) -> None:
    at = np.cumsum([0.0, *(seconds for seconds, _ in leaps)])
    ahead = np.cumsum([0.0, *(leap for _, leap in leaps)])
    anchors = [Anchor(time, WALL + time + by) for time, by in zip(at.tolist(), ahead.tolist(), strict=True)]
    times.sort()
    told = epochs(np.array(times), anchors)
    assert (np.diff(told) >= 0).all()
    late = np.array(times) >= at[-1]
    assert told[late] == pytest.approx(WALL + np.array(times)[late] + ahead[-1], abs=1e-3)


@given(st.floats(1.0, 1e5), st.booleans(), st.floats(0.0, 59.0), st.lists(st.floats(0, 240), min_size=1, max_size=40))
def test_where_the_clock_leapt_nothing_is_placed_wrongly(
    leap: float, back: bool, at: float, moments: list[float]
) -> None:
    """Set by hand, or the machine slept: a sample lies where it was taken by one clock or the other, or nowhere."""
    leap = -leap if back else leap

    def wall(time: float) -> float:
        return WALL + time + (leap if time > 60 + at else 0.0)

    anchors = [Anchor(time, wall(time)) for time in (0.0, 60.0, 120.0, 180.0)]
    truth = sorted(moments)
    stamps = np.array(sorted(wall(time) for time in truth))
    placed = run_times(stamps, anchors)
    either = {round(w - WALL, 3) for w in stamps} | {round(w - WALL - leap, 3) for w in stamps}
    assert {round(t, 3) for t in placed[~np.isnan(placed)]} <= either
    assert not ((placed > 60.01) & (placed < 119.79)).any()  # when it leapt there is not known
    if not back:  # a suspend: all that is placed is where it was
        known = dict(zip((round(wall(time), 3) for time in truth), truth, strict=True))
        assert all(
            t == pytest.approx(known[round(w, 3)], abs=0.01) for w, t in zip(stamps, placed, strict=True) if t == t
        )


# ---- cells -----------------------------------------------------------------------------------------------------------


@given(
    st.floats(0.2, 60), st.floats(0, 1), st.floats(0, 500), st.floats(0, 200), st.lists(st.floats(0, 100), min_size=50)
)
def test_a_cell_has_the_samples_inside_it_and_no_others(
    every: float, phase: float, start: float, length: float, values: list[float]
) -> None:
    times = phase * every + every * np.arange(len(values))
    told = {("gpu.utilization", "n:gpu0"): readings(times, values)}
    told["host.cpu.usage", "n:host"] = readings(times[1:], values[1:], every)
    remote = Remote("u", "{}", 1e9, 1e9, (RemoteMachine("n"),), (RemoteDevice("n:gpu0", "n", "", ""),), told)
    usage = usage_between(remote, start, start + length)
    mine = [v for t, v in zip(times, values, strict=True) if start <= t <= start + length]
    gpu = usage.gpu["n:gpu0"]
    assert gpu.samples == len(mine)
    assert gpu.utilization_mean == (pytest.approx(sum(mine) / len(mine)) if mine else None)
    whole = [v for t, v in zip(times[1:], values[1:], strict=True) if start <= t - every and t <= start + length]
    cores = usage.machines["n"].cpu_cores_mean
    assert cores == (pytest.approx(sum(whole) / len(whole)) if whole else None)
    for key, value in (("gpu.n:gpu0.utilization_mean", gpu.utilization_mean), ("machines.n.cpu_cores_mean", cores)):
        assert (key in usage.unknown) == (value is None)
    if not mine and length < every:
        assert (
            usage.unknown["gpu.n:gpu0.utilization_mean"]
            == f"shorter than the scrape interval of {given_text(every, 's')}"
        )


def test_why_a_cell_is_unknown() -> None:
    remote = elsewhere({"gpu0": 50.0}, seconds=100)

    def why(start: float, end: float, remote: Remote = remote, key: str = "gpu.node7:gpu0.utilization_mean") -> str:
        return usage_between(remote, start, end).unknown[key]

    assert why(2, 14) == "shorter than the scrape interval of 15 s"
    assert why(2, 30, key="machines.node7.cpu_cores_mean") == "shorter than twice the scrape interval of 15 s"
    assert why(200, 300) == "not fetched from Prometheus yet"
    assert why(200, 300, replace(remote, until=1000.0)) == "Prometheus has no sample of it from this time"
    assert why(2, 30, key="gpu.node7:gpu0.power_mean_watts") == "Prometheus has no gpu.power of node7:gpu0"
    assert "damaged" in why(200, 300, replace(remote, damaged=True))


def test_a_rate_that_began_before_the_cell_is_not_the_cells() -> None:
    remote = elsewhere({"gpu0": 50.0})
    assert inside(remote, "host.cpu.usage", "node7:host", 2, 30).time.tolist() == []
    assert inside(remote, "host.cpu.usage", "node7:host", 1, 31).time.tolist() == [16, 31]


def test_readings_of_elsewhere_are_series_of_the_run_but_no_subjects_of_it() -> None:
    run = replace(a_run(a_cell(60), devices=[a_device()]), remote=elsewhere({"gpu0": 70.0}))
    series = run.series("gpu.utilization", "node7:gpu0")
    assert set(series.values) == {70.0}
    assert series.seq[(series.time > 2) & (series.time < 62)].tolist() == [1] * 4
    assert run.subjects("gpu.utilization") == ("gpu0",)
    assert run.series("gpu.utilization", "gpu0").values.max() == 0


# ---- what exporters tell ---------------------------------------------------------------------------------------------

Answer = tuple[dict[str, str], list[tuple[float, float]]]


def of_gpu(name: str, samples: list[tuple[float, float]], **labels: str) -> Answer:
    usual = {"instance": "node7:9400", "gpu": "0", "UUID": "GPU-a", "modelName": "H100", "Hostname": "node7"}
    return {"__name__": name, **usual, **labels}, samples


def of_node(name: str, samples: list[tuple[float, float]], **labels: str) -> Answer:
    return {"__name__": name, "instance": "node7:9100", **labels}, samples


def told(*answers: Answer) -> Gathered:
    return gathered(answers, Places([labels for labels, _ in answers]))


def test_gpus_by_old_and_new_spellings() -> None:
    new = told(of_gpu("DCGM_FI_DEV_GPU_UTIL", [(1.0, 60.0)]), of_gpu("DCGM_FI_DEV_FB_USED", [(1.0, 1024.0)]))
    old = told(
        (
            {"__name__": "DCGM_FI_DEV_GPU_UTIL", "instance": "node7:9400", "gpu": "0", "uuid": "GPU-a"},
            [(1.0, 60.0)],
        )
    )
    for found in (new, old):
        assert found.readings["gpu.utilization", "node7:gpu0"] == Told([1000], [60.0])
        assert found.devices["node7:gpu0"].uuid == "GPU-a"
    assert new.readings["gpu.memory.used", "node7:gpu0"].v == [GIB]
    assert (new.devices["node7:gpu0"].name, old.devices["node7:gpu0"].name) == ("H100", "GPU")


def test_profiling_ratios_become_percent_and_blank_values_are_dropped() -> None:
    found = told(
        of_gpu("DCGM_FI_PROF_SM_ACTIVE", [(1.0, 0.25), (2.0, 1.5)]),
        of_gpu("DCGM_FI_DEV_GPU_UTIL", [(1.0, 2147483632.0), (2.0, float("nan")), (3.0, 7.0)]),
        of_gpu("DCGM_FI_DEV_FB_USED", [(1.0, 2147483632.0), (1.5, 9.22e18), (2.0, 10.0)]),
        of_gpu("DCGM_FI_DEV_FB_FREE", [(1.0, 5.0), (2.0, 30.0)]),
        of_gpu("DCGM_FI_DEV_POWER_USAGE", [(1.0, -1.0)]),
    )
    assert found.readings["gpu.sm.active", "node7:gpu0"] == Told([1000], [25.0])
    assert found.readings["gpu.utilization", "node7:gpu0"] == Told([3000], [7.0])
    assert found.readings["gpu.memory.used", "node7:gpu0"] == Told([2000], [10 * 2.0**20])
    assert found.devices["node7:gpu0"].memory_bytes == 40 * 2**20
    assert ("gpu.power", "node7:gpu0") not in found.readings


def test_mig_instances_and_pods_that_come_and_go() -> None:
    found = told(
        of_gpu("DCGM_FI_PROF_SM_ACTIVE", [(1.0, 0.5)], GPU_I_ID="7"),
        of_gpu("DCGM_FI_DEV_GPU_UTIL", [(1.0, 10.0), (2.0, 20.0)], pod="a"),
        of_gpu("DCGM_FI_DEV_GPU_UTIL", [(3.0, 30.0)], pod="b"),
        of_gpu("DCGM_FI_DEV_GPU_UTIL", [(1.5, 99.0)], job="scraped twice"),
    )
    assert found.readings["gpu.utilization", "node7:gpu0"] == Told([1000, 2000, 3000], [10.0, 20.0, 30.0])
    assert found.readings["gpu.sm.active", "node7:gpu0.mig7"].v == [50.0]


def test_machines_are_told_apart() -> None:
    gpu, node = of_gpu("DCGM_FI_DEV_GPU_UTIL", []), of_node("node_memory_MemTotal_bytes", [])
    assert Places([gpu[0], node[0]]).machines == ["node7"]
    renamed = of_gpu("DCGM_FI_DEV_GPU_UTIL", [], Hostname="trainer")
    assert Places([renamed[0], node[0]]).machines == ["trainer"], "the same address is the same machine"
    twin = of_gpu("DCGM_FI_DEV_GPU_UTIL", [], instance="10.0.0.2:9400", UUID="GPU-b")
    assert Places([gpu[0], twin[0]]).machines == ["10.0.0.2:9400", "node7:9400"]
    bare = {"__name__": "node_memory_MemTotal_bytes"}
    assert Places([bare]).of(bare) == "remote"
    assert Places([{**bare, "instance": "[::1]:9100"}]).machines == ["::1"]


CORES = 3


def host_answers(first: float, last: float, every: float, busy: Sequence[float], reset: int = -1) -> list[Answer]:
    """Counters of three cores, two disks and an interface at each scrape from ``first`` to ``last``; what was busy at each."""
    steps = np.arange(len(busy))
    times = 1000.0 + every * steps
    idle = np.cumsum(every * (CORES - np.array(busy)) / CORES)
    if reset >= 0:
        idle[reset:] -= idle[reset]
    chosen = (times >= first) & (times <= last)

    def samples(values: Any) -> list[tuple[float, float]]:
        return list(zip(times[chosen].tolist(), np.asarray(values, float)[chosen].tolist(), strict=True))

    cores = [of_node("node_cpu_seconds_total", samples(idle), cpu=str(n), mode="idle") for n in range(CORES)]
    cores += [of_node("node_cpu_seconds_total", samples(0 * idle), cpu=str(n), mode="iowait") for n in range(CORES)]
    disks = [
        of_node("node_disk_read_bytes_total", samples(1e6 * steps), device=name) for name in ("sda", "sdb", "dm-0")
    ]
    return [*cores, *disks, of_node("node_network_receive_bytes_total", samples(1e3 * steps), device="lo")]


def test_counters_become_rates_between_two_scrapes() -> None:
    found = told(*host_answers(0, 1e9, 15.0, [0.0, 1.5, 3.0, 0.0]))
    busy = found.readings["host.cpu.usage", "node7:host"]
    assert busy.t == [1015000, 1030000, 1045000]
    assert busy.v == pytest.approx([1.5, 3.0, 0.0])
    assert busy.d == [15000] * 3
    assert found.readings["host.disk.read.rate", "node7:host"].v == pytest.approx([2e6 / 15] * 3)
    assert ("host.network.received.rate", "node7:host") not in found.readings
    assert found.machines["node7"].cpu_count == CORES


def test_a_machine_that_began_anew_is_unknown_for_that_scrape() -> None:
    found = told(*host_answers(0, 1e9, 15.0, [1.0, 1.0, 1.0, 1.0, 1.0], reset=3))
    assert found.readings["host.cpu.usage", "node7:host"].t == [1015000, 1030000, 1060000]


@given(
    st.lists(st.floats(0, CORES), min_size=3, max_size=40),
    st.lists(st.floats(0, 40 * 15), max_size=6),
    st.floats(1, 200),
)
def test_in_pieces_it_is_the_same_as_at_once(busy: list[float], cuts: list[float], extra: float) -> None:
    """However it is cut into requests, each of which looks back by a scrape or more."""
    every, end = 15.0, 1000.0 + 15.0 * len(busy)
    places = Places([labels for labels, _ in host_answers(0, end, every, busy)])
    whole = gathered(host_answers(0, end, every, busy), places)
    pieces, edges = Gathered({}, {}, {}), sorted([1000.0, *(1000 + cut for cut in cuts), end])
    for low, high in itertools.pairwise(edges):
        pieces = joined(pieces, gathered(host_answers(low - every - extra, high, every, busy), places))
    assert pieces.machines == whole.machines
    assert pieces.readings.keys() == whole.readings.keys()
    for key, once in whole.readings.items():
        assert (pieces.readings[key].t, pieces.readings[key].d) == (once.t, once.d)
        assert pieces.readings[key].v == pytest.approx(once.v, rel=1e-5, abs=1e-5)


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ended run of 100 s, at whose anchor wall and monotonic time are WALL and 0."""
    folder = new_run_folder(tmp_path / "runs")
    writer = Writer(folder)
    host = {"name": "b", "system": "", "release": "", "machine": "", "python": "", "cpu_count": 2, "memory_bytes": 1}
    limits = {"memory_bytes": [1, "host"], "cpu_cores": [2, "host"]}
    fields = {"id": folder.name, "start_ns": 0, "started": WALL, "rate_hz": 10, "host": host, "devices": []}
    writer.describe(**fields, limits=limits, recorder=None)
    writer.event({"event": "cell_start", "t": 10**10, "seq": 1})
    writer.event({"event": "cell_end", "t": 9 * 10**10, "seq": 1, "status": "ok"})
    writer.event({"event": "end", "t": 10**11, "ending": "stopped"})
    writer.close()
    return folder


def some_told() -> Gathered:
    stamps = [round((WALL + second) * 1000) for second in range(0, 100, 15)]
    return Gathered(
        {"node7": RemoteMachine("node7", 96, GIB)},
        {"node7:gpu0": RemoteDevice("node7:gpu0", "node7", "H100", "GPU-a", GIB)},
        {
            ("gpu.utilization", "node7:gpu0"): Told(stamps, [10.0 * n for n in range(len(stamps))]),
            ("host.cpu.usage", "node7:host"): Told(stamps[1:], [1.5] * (len(stamps) - 1), [15000] * (len(stamps) - 1)),
        },
    )


def test_what_is_kept_is_read(folder: Path) -> None:
    keep(folder, replace(SOURCE, login="ada:secret"), some_told(), WALL + 100, WALL + 200)
    assert "secret" not in (folder / FILE).read_text()
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    kept = kept_in(folder)
    assert (kept.source, kept.until, kept.told) == (SOURCE, WALL + 100, some_told())
    run = read_run(folder)
    assert run.notices == ()
    remote = run.remote
    assert remote is not None
    assert (remote.until, remote.asked, remote.is_whole(run.duration)) == (pytest.approx(100), pytest.approx(200), True)
    usage = run.remote_usage(run.cells[0])
    assert usage is not None
    assert usage.gpu["node7:gpu0"].utilization_mean == pytest.approx(35.0)  # 15, 30 … 90 s: 10 to 60 %
    assert (usage.gpu["node7:gpu0"].samples, usage.machines["node7"].cpu_cores_mean) == (6, 1.5)


def test_only_the_source_is_known_before_anything_is_fetched(folder: Path) -> None:
    keep(folder, SOURCE)
    remote = read_run(folder).remote
    assert remote is not None
    assert (remote.url, remote.match, remote.until, remote.is_whole(100)) == (SOURCE.url, SOURCE.match, None, False)
    assert "not asked yet" in export.render(read_run(folder), "md")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_damage_is_one_line_and_never_a_wrong_number(folder: Path, data: st.DataObject) -> None:
    keep(folder, SOURCE, some_told(), WALL + 100, WALL + 200)
    whole = read_run(folder)
    assert whole.remote is not None
    content = bytearray((folder / FILE).read_bytes())
    how = data.draw(st.sampled_from(["cut", "byte", "line"]))
    if how == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif how == "byte":
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        lines = content.splitlines(keepends=True)
        del lines[data.draw(st.integers(0, len(lines) - 1))]
        content = bytearray(b"".join(lines))
    (folder / FILE).write_bytes(content)
    run = read_run(folder)
    assert len(run.notices) <= 1
    if run.remote is None:
        assert not content or run.notices or b"\n" not in content
        return
    assert run.remote.damaged or run.remote.until is None or run.remote.readings.keys() == whole.remote.readings.keys()
    for key, part in run.remote.readings.items():
        truth = dict(zip(whole.remote.readings[key].time, whole.remote.readings[key].values, strict=True))
        assert all(truth[t] == value for t, value in zip(part.time, part.values, strict=True))
    if len(run.remote.readings) and sum(len(r.time) for r in run.remote.readings.values()) < whole.remote.sample_count:
        assert run.remote.damaged
        assert len(run.notices) == 1
    assert kept_in(folder).told.readings in ({}, some_told().readings), "what is damaged is fetched anew, all of it"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**400) | st.floats(-1e3, 1e3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_lines_of_any_content_leave_the_run_readable(folder: Path, data: st.DataObject) -> None:
    from cellmeter import form
    from cellmeter.store import sealed

    keep(folder, SOURCE, some_told(), WALL + 100, WALL + 200)
    kind = data.draw(st.sampled_from([*form.REMOTE, "?"]))
    keys = [key.removesuffix("?") for key in form.REMOTE.get(kind, {"t": int})]
    line = {"event": kind, **data.draw(st.fixed_dictionaries(dict.fromkeys(keys, JSON)))}
    with (folder / FILE).open("ab") as file:
        file.write(sealed(line) + b"\n")
    run = read_run(folder)
    assert len(run.notices) <= 1
    kept_in(folder)
    export.render(run, data.draw(st.sampled_from(["text", "json", "md"])))


# ---- what the user types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "match",
    [
        '{instance="node7"}',
        '{ instance = "node7:9400" , job=~"dcgm|node", }',
        "{Hostname!='a\\'b'}",
        "{a!~`.*`}",
        '{x="}{,"}',
        '{x="a \\"quoted\\" \\\\"}',
    ],
)
def test_selectors_that_are_taken(match: str) -> None:
    source = source_of("http://prometheus:9090/", match)
    assert source.selector('__name__="up"').startswith('{__name__="up",')
    assert source.selector('__name__="up"').count("{") - match.count("{") == 0


@pytest.mark.parametrize(
    "match",
    ["", "{}", "instance=node7", "{instance=node7}", 'up{instance="a"}', '{a="b"} or vector(1)', '{a="b"', '{a="b\n"}'],
)
def test_selectors_that_are_not(match: str) -> None:
    with pytest.raises(BadUsage, match="--match") as refused:
        source_of("http://prometheus:9090", match)
    assert "\n" not in str(refused.value).replace(match, "")


@pytest.mark.parametrize(
    ("typed", "url", "login"),
    [
        ("http://prometheus:9090", "http://prometheus:9090", None),
        ("https://ada:s%40cret@host/prom/", "https://host/prom", "ada:s@cret"),
        ("http://[::1]:9090/api/v1", "http://[::1]:9090", None),
        ("http://ada@host", "http://host", "ada:"),
    ],
)
def test_addresses_are_kept_without_what_is_secret(typed: str, url: str, login: str | None) -> None:
    source = source_of(typed, '{a="b"}')
    assert (source.url, source.login) == (url, login)
    assert login is None or login not in repr(source)


@pytest.mark.parametrize(
    "typed",
    [
        "prometheus:9090",
        "ftp://ada:secret@host",
        "http://",
        "http://ada:secret@host:port",
        "http://ada:secret@h ost",
        "",
        "http://ada:secret@host?x=1",
        "http://ada:secret@[host",
    ],
)
def test_bad_addresses_are_a_line_that_has_no_secret(typed: str) -> None:
    with pytest.raises(BadUsage, match="--prometheus") as refused:
        source_of(typed, '{a="b"}')
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_lets_us_in_comes_from_the_address_or_the_environment() -> None:
    plain, named = source_of("http://h", '{a="b"}'), source_of("http://ada:x@h", '{a="b"}')
    assert plain.headers({}) == {}
    assert plain.headers({TOKEN: "abc\n"}) == {"Authorization": "Bearer abc"}
    assert named.headers({TOKEN: "abc"}) == plain.headers({LOGIN: "ada:x"}) == {"Authorization": "Basic YWRhOng="}


# ---- reports ---------------------------------------------------------------------------------------------------------


def reported(remote: Remote, *cells: float) -> Run:
    return replace(idle_here(*cells), remote=remote)


@cache
def idle_here(*cells: float) -> Run:
    return a_run(*(a_cell(seconds) for seconds in cells))


def test_every_report_says_what_is_coarse() -> None:
    run = reported(elsewhere({"gpu0": 80.0, "gpu1": 20.0}), 100, 1.5)
    for format in ("text", "md", "html"):
        text = re.sub(r"\s+", " ", export.render(run, format).replace("\\", ""))
        assert "coarse: a sample every 15 s, from Prometheus" in text, format
        assert "50 % of 2" in text
        assert "1 cell without a sample: unknown" in text
        assert SOURCE.url in text
    assert "coarse" in export.inline_html(run)
    assert "Elsewhere" not in export.render(replace(run, remote=None), "text")


def test_the_json_report_keeps_it_apart() -> None:
    run = reported(elsewhere({"gpu0": 80.0}), 100, 1.5)
    fields = json.loads(export.render(run, "json"))
    jsonschema.Draft202012Validator(report_json.schema()).validate(fields)
    assert fields["devices"] == []
    assert [cell["gpu"] for cell in fields["cells"]] == [{}, {}]
    remote = fields["run"]["remote"]
    assert (remote["coarse"], remote["interval_seconds"], remote["complete"]) == (True, 15.0, True)
    first, second = (cell["remote"] for cell in fields["cells"])
    assert first["gpu"]["node7:gpu0"]["utilization_mean"] == 80.0
    assert first["gpu"]["node7:gpu0"]["samples"] == 6
    assert second["gpu"]["node7:gpu0"]["utilization_mean"] is None
    why = second["unknown"]["gpu.node7:gpu0.utilization_mean"]
    assert why == "shorter than the scrape interval of 15 s"
    assert json.loads(export.render(replace(run, remote=None), "json"))["cells"][0]["remote"] is None


# ---- rules -----------------------------------------------------------------------------------------------------------


def judged(run: Run, rule: str) -> tuple[Checked, list[Finding]]:
    judgement: Judgement = judge(run)
    (checked,) = (checked for checked in judgement.checked if checked.rule == rule)
    return checked, [finding for finding in judgement.findings if finding.rule == rule]


def test_gpus_elsewhere_that_never_worked() -> None:
    checked, (finding,) = judged(reported(elsewhere({"gpu0": 0.0, "gpu1": 0.0}), 500), "gpu-unused")
    assert (checked.outcome, finding.severity, finding.subject, finding.also) == (
        "found",
        "warning",
        "node7:gpu0",
        ("node7:gpu1",),
    )
    assert "coarse: 33 samples, one every 15 s, from Prometheus" in finding.fact
    assert 0 < finding.waste.gpu_seconds < 1000
    checked, (finding,) = judged(reported(elsewhere({"gpu0": 0.0, "gpu1": 60.0}), 500), "gpu-unused")
    assert (finding.severity, finding.subject, finding.waste.gpu_seconds) == ("info", "node7:gpu0", 0)


@pytest.mark.parametrize(
    ("remote", "seconds", "outcome"),
    [
        (elsewhere({"gpu0": lambda t: 5.0 if 200 < t < 215 else 0.0}), 500, "clear"),
        (elsewhere({"gpu0": 0.0}), 100, "not-applicable"),
        (elsewhere({"gpu0": 0.0}, every=60.0), 500, "unknown"),
        (elsewhere({"gpu0": 0.0}, seconds=200.0), 500, "unknown"),
        (elsewhere({"gpu0": 0.0}, readings={}), 500, "unknown"),
        (elsewhere({}), 500, "not-applicable"),
    ],
)
def test_gpus_elsewhere_that_are_not_called_unused(remote: Remote, seconds: float, outcome: str) -> None:
    checked, findings = judged(reported(remote, seconds), "gpu-unused")
    assert (checked.outcome, findings) == (outcome, [])


def test_a_gpu_elsewhere_that_waits() -> None:
    _, (finding,) = judged(reported(elsewhere({"gpu0": lambda t: 10.0 + 5 * (t % 2)}), 500), "gpu-underused")
    assert (finding.severity, finding.cells, finding.cause) == ("warning", (1,), None)
    assert "coarse" in finding.fact
    assert finding.evidence.value == pytest.approx(12.5, abs=0.5)
    _, (finding,) = judged(reported(elsewhere({"gpu0": lambda t: 38.0 + 5 * (t % 2)}), 500), "gpu-underused")
    assert finding.severity == "info"
    page = export.render(reported(elsewhere({"gpu0": 12.0}), 500), "html")
    assert re.search(r'<article class="finding warning".*?<svg.*?</article>', page, re.DOTALL), "its evidence is drawn"


@pytest.mark.parametrize(
    ("use", "seconds", "outcome"),
    [
        (80.0, 500, "clear"),
        (lambda t: 100.0 if int(t / 15) % 9 < 3 else 0.0, 400, "unknown"),  # 40 % by so few samples may be 60
        (10.0, 100, "not-applicable"),
        (0.0, 500, "not-applicable"),
    ],
)
def test_a_gpu_elsewhere_that_is_not_called_underused(use: Any, seconds: float, outcome: str) -> None:
    checked, findings = judged(reported(elsewhere({"gpu0": use}), seconds), "gpu-underused")
    assert (checked.outcome, findings) == (outcome, [])


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.5, 1.0))
def test_chance_alone_makes_no_finding(seed: int, busy: float) -> None:
    """A GPU that is busy half of the time or more, in bursts that scrapes hit by chance: a false alarm is rare."""
    chance = np.random.default_rng(seed)
    run = reported(elsewhere({"gpu0": lambda t: 100.0 * (chance.random() < busy)}), 500)
    assert [f for f in judged(run, "gpu-underused")[1] if f.severity != "info"] == []


def test_what_is_read_in_lines_is_not_mixed_up() -> None:
    lines = [
        {"event": "source", "url": "u", "match": "m"},
        {"event": "readings", "metric": "gpu.power", "subject": "n:gpu0", "t": [3000, 1000], "v": [30.0, 10.0]},
        {"event": "readings", "metric": "gpu.power", "subject": "n:gpu0", "t": [2000, 1000], "v": [20.0, 99.0]},
        {"event": "fetched", "asked": 9.0, "until": 9.0, "lines": 2, "samples": 4},
    ]
    remote = remote_from(lines, False, [Anchor(0.0, 0.0)])
    assert remote is not None
    assert remote.readings["gpu.power", "n:gpu0"].values.tolist() == [10.0, 20.0, 30.0]
