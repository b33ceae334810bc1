"""Rules about memory, cores and disks: found, left alone, or not to be told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from builders import GIB, MIB, CellPlan, GpuWork, a_cell, a_device, a_run, bursts, hump, with_workers, without
from test_rules import findings, outcome, the_finding

from cellmeter.rules import judge
from cellmeter.rules.held import holding
from cellmeter.run import Run


def steps(*levels: float) -> list[CellPlan]:
    """The same cell again and again; each time memory goes from one level to the next (GiB)."""
    return [
        a_cell(2, hash="same", rss=lambda t, low=low, high=high: (low if t < 1 else high) * GIB)
        for low, high in pairwise(levels)
    ]


# ── memory-retained ──


def rise(low: float, high: float, mapped: float = 0.0) -> CellPlan:
    """A cell in which memory goes from one level to another (GiB), some of it by mapping files."""
    return a_cell(5, rss=lambda t: (low if t < 2 else high) * GIB, mapped=lambda t: (0 if t < 2 else mapped) * GIB)


def level(gib: float, mapped: float = 0.0) -> CellPlan:
    return a_cell(2, rss=gib * GIB, mapped=mapped * GIB)


@pytest.mark.parametrize(
    ("cells", "severity"),
    [
        pytest.param((rise(1, 3), level(3)), "info", id="kept 2 GiB"),
        pytest.param((rise(1, 40), level(40)), "warning", id="over half of the limit"),
        pytest.param((rise(1, 40), rise(40, 20), level(20)), "info", id="over half of it for a time"),
        pytest.param((rise(0.3, 0.54), level(0.54)), None, id="under 256 MiB"),
        pytest.param((rise(10, 14), level(14)), None, id="small beside what is there"),
        pytest.param((rise(1, 9, mapped=8), level(9, mapped=8)), None, id="a mapped file"),
        pytest.param((rise(9, 1), level(1)), None, id="given back at once"),
        pytest.param((rise(1, 3), rise(3, 1), level(1)), None, id="given back by a later cell"),
        pytest.param((rise(1, 3), level(1)), None, id="given back between the cells"),
        pytest.param(
            (rise(1, 3), rise(3, 1), rise(1, 1.2), level(1.2)), None, id="given back, and a little taken anew"
        ),
        pytest.param((rise(1, 3),), None, id="nothing ran after it"),
    ],
)
def test_retained(cells: tuple[CellPlan, ...], severity: str | None) -> None:
    assert [f.severity for f in findings(a_run(*cells), "memory-retained")] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("cells", "still"),
    [
        pytest.param((rise(1, 4), rise(4, 6), rise(6, 3)), (0, 2), id="from the cell that kept as much"),
        pytest.param((rise(1, 4), rise(4, 6), rise(6, 5)), (3, 1), id="else from the newest"),
        pytest.param((rise(1, 4), rise(4, 6), rise(6, 2)), (1, 0), id="and from those before it"),
        pytest.param((rise(1, 4), rise(2, 5)), (1, 3), id="between two cells too"),
        pytest.param((rise(1, 4), rise(4, 6, mapped=2)), (3,), id="mapped files count for nothing"),
    ],
)
def test_what_is_still_held(cells: tuple[CellPlan, ...], still: tuple[float, ...]) -> None:
    held = [round(one.still / GIB, 3) for one in holding(a_run(*cells)).cells]
    assert tuple(held) == still


def test_a_retained_finding_speaks_of_one_measure() -> None:
    finding = the_finding(a_run(rise(1, 3.5, mapped=0.5), level(4, mapped=0.5)), "memory-retained")
    assert finding.evidence.value == 2 * GIB
    assert finding.fact == (
        "In [1] kept 2.00 GiB: the kernel had 1.00 GiB before it and 3.50 GiB after it, "
        "with 512 MiB more in mapped files, which do not count."
    )
    assert (
        finding.consequence == "No later cell gave that back: the kernel had 4.00 GiB after In [2], 6 % of the limit."
    )
    part = the_finding(a_run(rise(1, 11), rise(11, 9), level(9)), "memory-retained")
    assert part.fact.startswith("In [1] kept 8.00 GiB")
    assert part.fact.endswith("It gave the rest of 10.0 GiB back later.")


def test_a_cell_that_grew_last_cannot_be_said_to_retain() -> None:
    checked = outcome(a_run(rise(1, 3)), "memory-retained")
    assert checked.outcome == "not-applicable"
    assert checked.reason == "nothing ran after the cell that took much memory"
    running = a_run(rise(1, 3), level(3))
    running = replace(running, ending=None, cells=(running.cells[0], replace(running.cells[1], end=None)))
    assert "3.00 GiB in In [2]" in the_finding(running, "memory-retained").consequence


# ── memory-growth, again and again ──


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        pytest.param((1, 2, 3, 4), "found", id="1 GiB each of three times"),
        pytest.param((1, 2, 3), "not-applicable", id="twice is no habit"),
        pytest.param((1, 1.6, 2.2, 2.8), "clear", id="under 1 % of the limit each"),
        pytest.param((1, 2, 3, 4, 4), "clear", id="levels off"),
        pytest.param((1, 1, 2, 3, 4), "found", id="after a first that kept nothing"),
    ],
)
def test_growth_by_repetition(levels: tuple[float, ...], expected: str) -> None:
    assert outcome(a_run(*steps(*levels)), "memory-growth").outcome == expected


def test_what_another_cell_gives_back_in_between_has_not_grown() -> None:
    run = a_run(*[cell for pair in zip(steps(1, 2, 2, 2, 2)[:1] * 4, [a_cell(1)] * 4, strict=True) for cell in pair])
    assert outcome(run, "memory-growth").outcome == "clear"


def test_what_a_later_cell_gave_back_is_no_leak() -> None:
    assert outcome(a_run(*steps(1, 2, 3, 4), level(4)), "memory-growth").outcome == "found"
    assert outcome(a_run(*steps(1, 2, 3, 4), rise(4, 1), level(1)), "memory-growth").outcome == "clear"


def test_different_cells_that_each_keep_something_are_no_leak() -> None:
    cells = [replace(cell, hash=f"cell {n}") for n, cell in enumerate(steps(1, 2, 3, 4))]
    assert outcome(a_run(*cells), "memory-growth").outcome == "not-applicable"


def test_growth_tells_of_what_was_kept_too() -> None:
    judgement = judge(a_run(*steps(1, 3, 9, 27)))
    assert [(f.rule, f.cause, f.cells) for f in judgement.findings] == [("memory-growth", "repeated", (1, 2, 3))]
    assert "After 4 more runs" in judgement.findings[0].consequence


# ── memory-growth, within a cell ──


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param({"rss": lambda t: GIB + t * 30 * MIB}, "found", id="30 MiB each second"),
        pytest.param({"rss": lambda t: GIB + t * 30 * MIB + (t % 5) * 200 * MIB}, "found", id="with a sawtooth on it"),
        pytest.param({"rss": lambda t: GIB + t * 12 * MIB}, "clear", id="89 minutes away from the limit"),
        pytest.param({"rss": lambda t: GIB + min(t, 40) * 30 * MIB}, "clear", id="levels off"),
        pytest.param({"rss": lambda t: GIB * (1 if t < 30 else 20)}, "clear", id="one step"),
        pytest.param(
            {"rss": lambda t: GIB + t * 30 * MIB, "mapped": lambda t: t * 30 * MIB}, "clear", id="a mapped file is read"
        ),
        pytest.param({"rss": lambda t: GIB + t * 30 * MIB, "disk_read": 10 * MIB}, "clear", id="it loads from disk"),
        pytest.param({"rss": lambda t: GIB + t * 30 * MIB, "received": 30e6}, "clear", id="it loads from the network"),
        pytest.param({"rss": lambda t: GIB + t * 30 * MIB, "seconds": 55}, "not-applicable", id="a short cell"),
    ],
)
def test_growth_within_a_cell(plan: dict[str, object], expected: str) -> None:
    run = a_run(a_cell(**{"seconds": 90, **plan}), rate_hz=2)  # type: ignore[arg-type]
    assert outcome(run, "memory-growth").outcome == expected


def test_without_a_limit_growth_cannot_be_judged() -> None:
    assert outcome(a_run(*steps(1, 2, 3, 4), limit_bytes=None), "memory-growth").outcome == "unknown"


# ── memory-near-limit ──


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param({"rss": 58 * GIB}, "found", id="90.6 %"),
        pytest.param({"rss": 57 * GIB}, "clear", id="89 %"),
        pytest.param({"rss": 2 * GIB, "group": 60 * GIB}, "not-applicable", id="others in the group fill it"),
        pytest.param({"rss": 30 * GIB, "group": 60 * GIB}, "found", id="with others, but much of it is ours"),
        pytest.param({"rss": 2 * GIB, "host_memory": 127 * GIB}, "clear", id="a neighbour fills the machine"),
    ],
)
def test_near_the_limit(plan: dict[str, object], expected: str) -> None:
    assert outcome(a_run(a_cell(5, **plan)), "memory-near-limit").outcome == expected


@pytest.mark.parametrize(("own", "expected"), [(50 * GIB, "found"), (2 * GIB, "not-applicable")])
def test_a_full_machine_counts_where_the_machine_is_the_limit(own: float, expected: str) -> None:
    run = a_run(a_cell(5, rss=own, host_memory=120 * GIB), limit_bytes=128 * GIB, limit_source="host")
    assert outcome(run, "memory-near-limit").outcome == expected


def test_a_spike_to_the_brim_is_one_finding() -> None:
    judgement = judge(a_run(a_cell(20, rss=hump(GIB, 60 * GIB, 5, 8))))
    assert [(f.rule, f.severity) for f in judgement.findings] == [("memory-spike", "critical")]


def test_who_kept_the_memory_is_named_and_not_found_again() -> None:
    run = a_run(
        a_cell(5, rss=lambda t: (1 if t < 2 else 45) * GIB), a_cell(5, rss=lambda t: (45 if t < 2 else 60) * GIB)
    )
    (finding,) = judge(run).findings
    assert (finding.rule, finding.cells) == ("memory-near-limit", (2, 1))
    assert "In [1] (44.0 GiB)" in finding.fact


def test_an_address_space_limit_is_each_processs_own() -> None:
    """Four workers of 2 GiB each, under `ulimit -v` of 8 GiB, are far from it."""
    run = with_workers(a_run(a_cell(20, rss=GIB), limit_bytes=8 * GIB, limit_source="rlimit"), 1, 7 * GIB)
    assert outcome(run, "memory-near-limit").outcome == "clear"
    full = a_run(a_cell(20, rss=7.5 * GIB), limit_bytes=8 * GIB, limit_source="rlimit")
    assert "MemoryError" in the_finding(full, "memory-near-limit").consequence, "and nobody is killed for it"


def test_a_slope_of_a_run_that_is_over_is_told_in_the_past() -> None:
    run = a_run(a_cell(90, rss=lambda t: GIB + t * 300 * MIB))
    for status, word in (("running", "It is"), ("died", "It was"), ("interrupted", "It was")):
        cell = replace(run.cells[0], status=status, end=None if status != "interrupted" else run.cells[0].end)
        assert the_finding(replace(run, cells=(cell,)), "memory-growth").consequence.startswith(word)


# ── cpu-one-core ──


def spins(cores: object = 1.0, seconds: float = 70, limit: float = 8, **plan: object) -> Run:
    return a_run(a_cell(seconds, cores=cores, **plan), cores=limit, rate_hz=4)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(spins(), "found", id="one of eight"),
        pytest.param(spins(limit=2), "not-applicable", id="of two"),
        pytest.param(spins(seconds=50), "not-applicable", id="not long enough"),
        pytest.param(spins(bursts(10, 7, 1.0), seconds=80), "clear", id="56 s of 80"),
        pytest.param(spins(1.2), "clear", id="more than one core"),
        pytest.param(spins(0.7), "clear", id="less than one core"),
        pytest.param(spins(lambda t: (t % 8) / 2), "clear", id="passing through"),
        pytest.param(spins(machine=15.5), "clear", id="others keep the rest busy"),
        pytest.param(spins(machine=8.0), "found", id="others keep half of it busy"),
    ],
)  # fmt: skip
def test_one_core(run: Run, expected: str) -> None:
    assert outcome(run, "cpu-one-core").outcome == expected


def test_one_core_is_said_once_and_names_the_worst_cells_first() -> None:
    run = a_run(a_cell(30, cores=1.0), a_cell(50, cores=1.0), a_cell(40, cores=3.0), rate_hz=4)
    finding = the_finding(run, "cpu-one-core")
    assert (finding.cells, finding.severity) == ((2, 1), "info")


@pytest.mark.parametrize(
    ("work", "mine", "expected"),
    [
        (GpuWork(80), None, "clear"),
        (GpuWork(0), None, "found"),
        (GpuWork(80, context=0.0, foreign=1), None, "found"),
        (GpuWork(float("nan")), True, "clear"),
    ],
)
def test_a_gpu_at_work_is_what_one_core_is_for(work: GpuWork, mine: bool | None, expected: str) -> None:
    run = a_run(a_cell(70, cores=1.0, gpu={"gpu0": work}), devices=[a_device(mine=mine)], rate_hz=4)
    assert outcome(run, "cpu-one-core").outcome == expected


# ── cpu-oversubscribed ──


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param({"throttled": 0.2, "cores": 7.8}, "found", id="a fifth of the periods"),
        pytest.param({"throttled": 0.05, "cores": 7.8}, "clear", id="a twentieth"),
        pytest.param({"throttled": 0.9, "cores": 0.2}, "clear", id="another kernel of the container used it up"),
        pytest.param(
            {"runnable": 40, "cpu_pressure": 0.5, "cores": 7.8}, "found", id="2.5 tasks a core, and they wait"
        ),
        pytest.param({"runnable": 40, "cpu_pressure": 0.1, "cores": 7.8}, "clear", id="its own tasks need not wait"),
        pytest.param({"runnable": 24, "cpu_pressure": 0.5, "cores": 7.8}, "clear", id="1.5 tasks a core"),
        pytest.param({"runnable": 40, "cpu_pressure": 0.5, "cores": 1.0}, "clear", id="others' tasks"),
        pytest.param({"throttled": 0.9, "seconds": 8}, "not-applicable", id="a short cell"),
    ],
)
def test_oversubscribed(plan: dict[str, object], expected: str) -> None:
    assert outcome(a_run(a_cell(**{"seconds": 20, **plan})), "cpu-oversubscribed").outcome == expected  # type: ignore[arg-type]


def test_tasks_are_those_of_the_whole_machine_and_so_are_the_cores_they_are_for() -> None:
    """2 of 16 cores are allowed, and others run on the rest."""
    busy = a_cell(20, runnable=20, cpu_pressure=0.3, cores=1.9)
    assert outcome(a_run(busy, cores=2), "cpu-oversubscribed").outcome == "clear"
    crowded = replace(busy, runnable=40)
    fact = the_finding(a_run(crowded, cores=2), "cpu-oversubscribed").fact
    assert "40 tasks for the 16 cores of the machine" in fact


def test_without_a_quota_and_without_its_own_pressure_it_is_unknown() -> None:
    run = a_run(a_cell(20, runnable=99))
    for metric in ("cgroup.cpu.periods", "cgroup.cpu.throttled.periods", "cgroup.pressure.cpu.time"):
        run = without(run, metric, "cgroup", "no control group")
    assert outcome(run, "cpu-oversubscribed").outcome == "unknown"


# ── io-bound ──


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param({"blocked": bursts(10, 6, 1.0)}, "found", id="60 % of the time"),
        pytest.param({"blocked": bursts(10, 4, 1.0)}, "clear", id="40 % of the time"),
        pytest.param({"blocked": 1.0, "cores": 0.8}, "clear", id="it computes too"),
        pytest.param({"blocked": 1.0, "seconds": 8}, "not-applicable", id="a short cell"),
        pytest.param({"blocked": float("nan")}, "unknown", id="not told"),
        pytest.param({"io_pressure": 0.8, "disk_read": 4 * MIB}, "found", id="its threads wait, by its control group"),
        pytest.param({"io_pressure": 0.8}, "clear", id="another kernel of the container waits"),
    ],
)
def test_io_bound(plan: dict[str, object], expected: str) -> None:
    assert outcome(a_run(a_cell(**{"seconds": 30, **plan})), "io-bound").outcome == expected  # type: ignore[arg-type]


def test_a_gpu_that_waits_for_the_disk_is_one_finding() -> None:
    cell = a_cell(60, blocked=lambda t: float(t % 8 >= 1), cores=0.1, gpu={"gpu0": GpuWork(bursts(8, 0.5, 90))})
    judgement = judge(a_run(cell, devices=[a_device()]))
    assert [(f.rule, f.cause) for f in judgement.findings] == [("gpu-underused", "io")]


# ── disk-filling ──


def disk(free: object, seconds: float = 1500) -> Run:
    return a_run(a_cell(seconds, free=free, disk_written=MIB), rate_hz=0.5, pause=0.0)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(disk(lambda t: (100 - t / 30) * GIB), "found", id="25 minutes left"),
        pytest.param(disk(lambda t: (200 - t / 60) * GIB), "clear", id="three hours left"),
        pytest.param(disk(lambda t: (100 if t < 700 else 30) * GIB), "clear", id="one checkpoint"),
        pytest.param(disk(lambda t: (100 - min(t, 800) / 30) * GIB), "clear", id="it stopped"),
        pytest.param(disk(lambda t: (100 + t / 30) * GIB), "clear", id="space is freed"),
        pytest.param(disk(lambda t: (100 - t / 30) * GIB, seconds=500), "clear", id="too short for a slope"),
        pytest.param(disk(4.9 * GIB, 60), "found", id="4.9 GiB of 1000"),
        pytest.param(disk(5.1 * GIB, 60), "clear", id="5.1 GiB are enough for a while"),
    ],
)
def test_disk_filling(run: Run, expected: str) -> None:
    assert outcome(run, "disk-filling").outcome == expected


def test_who_fills_the_disk_is_told() -> None:
    def fact(written: float) -> str:
        cell = a_cell(1500, free=lambda t: (100 - t / 30) * GIB, disk_written=written)
        return the_finding(a_run(cell, rate_hz=0.5, pause=0.0), "disk-filling").fact

    assert "written by In [1]" in fact(30 * MIB)
    assert "Little of it was written by this kernel" in fact(0.0)
