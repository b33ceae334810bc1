"""What is worth knowing of a run and is no finding: neighbours that took the cores, memory that many cells keep; scripts."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from builders import GIB, CellPlan, GpuWork, a_cell, a_device, a_run, bursts, hump, without
from labelled.keep import unpacked
from test_export import assert_valid, busy_run
from test_rules_machine import level, rise

from cellmeter import export, timeline
from cellmeter.export import report_json
from cellmeter.rules import Note, judge
from cellmeter.rules.scripts import for_script, is_script
from cellmeter.run import Run


def notes(run: Run) -> dict[str, Note]:
    return {note.id: note for note in judge(run).notes}


# ── other processes ──


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        pytest.param(a_cell(20, cores=0.6, machine=15.8), True, id="others fill the machine"),
        pytest.param(a_cell(20, cores=0.6, machine=bursts(10, 6, 15.8)), True, id="for more than a third of the time"),
        pytest.param(a_cell(20, cores=0.6, machine=bursts(10, 2, 15.8)), False, id="for less"),
        pytest.param(a_cell(20, cores=0.6, machine=13.0), False, id="cores are free"),
        pytest.param(a_cell(20, cores=14.0, machine=15.8), False, id="it fills the machine itself"),
        pytest.param(a_cell(20, cores=0.01, machine=15.8), False, id="a cell that sleeps is slowed by nobody"),
        pytest.param(a_cell(3, cores=0.6, machine=15.8), False, id="for seconds only"),
        pytest.param(a_cell(20, cores=0.6, machine=0.0), False, id="a machine that does not tell"),
    ],
)
def test_neighbours_that_take_the_cores(cell: CellPlan, said: bool) -> None:
    plan = replace(cell, cpu_pressure=0.4)
    assert ("cpu-taken-by-others" in notes(a_run(plan, cores=16.0))) is said


def test_nobody_is_slowed_who_did_not_wait() -> None:
    crowded = a_cell(20, cores=0.6, machine=15.8)
    assert "cpu-taken-by-others" not in notes(a_run(crowded))  # its control group waited for no core
    blind = without(a_run(crowded), "cgroup.pressure.cpu.time", "cgroup", "no pressure stall information")
    assert "cpu-taken-by-others" in notes(blind)


def test_the_note_has_its_figures_in_every_format_and_changes_no_finding() -> None:
    run = a_run(a_cell(20, cores=0.6, machine=15.8, cpu_pressure=0.4))
    assert judge(run).findings == ()
    words = "Other processes used 15.2 of the 16 cores on average while cells ran, and this notebook 0.60."
    for format in ("text", "md", "html"):
        page = re.sub(r"\s+", " ", export.render(run, format))
        assert words in page
        assert "No warnings, 1 note" in page
    assert words in export.inline_html(run)
    fields = report_json.report(run)
    assert_valid(fields)
    (note,) = fields["run"]["notes"]
    assert note["figures"]["others_cores"] == pytest.approx(15.2)
    assert note["figures"]["full_share"] == pytest.approx(1.0)


# ── memory that many cells keep ──


def climb(*levels: float, hash: str = "") -> list[CellPlan]:
    pairs = itertools.pairwise(levels)
    return [replace(rise(low, high), hash=hash or f"h{index}") for index, (low, high) in enumerate(pairs)]


def test_memory_that_many_cells_keep_is_a_note() -> None:
    run = a_run(*climb(0.14, 0.36, 0.58, 0.80, 1.02), level(1.02))
    assert judge(run).findings == ()
    note = notes(run)["memory-kept-by-many"]
    assert note.text.startswith(
        "Memory grew from 143 MiB to 1.02 GiB over 5 cells and was not given back; most was kept"
    )
    assert note.figures["cells"] == (1, 2, 3, 4)
    same = notes(a_run(*climb(0.14, 0.36, 0.58, 0.80, 1.02, hash="same"), level(1.02)))["memory-kept-by-many"]
    assert "In [1], In [2], In [3] and 1 more are the same cell, which kept 225 MiB each time." in same.text


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param([*climb(0.14, 0.3, 0.45, 0.6), level(0.6)], id="less than 512 MiB"),
        pytest.param([*climb(1, 1.22, 1.44, 1.66, 1.88), level(1.88)], id="less than three times what was there"),
        pytest.param([*climb(0.14, 0.5, 0.9), level(0.9)], id="two cells"),
        pytest.param([*climb(0.14, 0.36, 0.58, 0.80, 1.02), rise(1.02, 0.2), level(0.2)], id="given back"),
        pytest.param([*climb(0.14, 2.0, 2.2, 2.4), level(2.4)], id="a finding tells of most of it"),
        pytest.param([*climb(0.5, 1.5, 2.5, 3.5, hash="same"), level(3.5)], id="a finding tells of all of it"),
    ],
)
def test_these_need_no_note(cells: list[CellPlan]) -> None:
    assert "memory-kept-by-many" not in notes(a_run(*cells))


# ── the verdict ──


def test_a_note_is_no_verdict() -> None:
    run = a_run(rise(1, 3), level(3))
    assert [finding.severity for finding in judge(run).findings] == ["info"]
    text = export.render(run, "text")
    assert "No warnings, 1 note." in text
    assert "Fix first" not in text
    assert '<p class="verdict">Verdict</p><h1>No warnings, 1 note.</h1>' in export.html_report(run)
    warned = a_run(rise(1, 40), level(40))
    assert "Fix first: In [1] kept 39.0 GiB" in export.render(warned, "text")


# ── scripts ──


def as_script(run: Run, name: str = "kernel of cells.py") -> Run:
    """The same as ``cellmeter record`` would have it: its first cell alone, with no count and no source."""
    cell = replace(
        run.cells[0], label=name, execution_count=None, cell_id=None, source_hash="e3b0c44298fc1c14", first_line=""
    )
    return replace(run, cells=(cell,), notebook=f"/home/ada/{name}")


def scripted() -> list[Run]:
    gpu = GpuWork(bursts(4, 1))
    mine = [a_device("gpu0", mine=True), a_device("gpu1", mine=True)]
    return [
        a_run(a_cell(5)),
        a_run(a_cell(90, rss=hump(GIB, 60 * GIB, 5, 80), blocked=1.0), devices=mine),
        a_run(a_cell(90, rss=lambda t: GIB + 0.6 * GIB * t, cores=1.0)),
        a_run(a_cell(400, gpu={"gpu0": gpu, "gpu1": GpuWork(0.0)}, throttled=0.5), devices=mine),
        a_run(a_cell(90, gpu={"gpu0": gpu}, free=GIB), devices=[a_device("gpu0", mine=False)]),
        replace(a_run(a_cell(20, rss=63 * GIB)), ending="out-of-memory"),
        busy_run(),
    ]


@pytest.mark.parametrize("run", scripted(), ids=str)
def test_a_script_has_no_cells_no_kernel_and_no_out(run: Run) -> None:
    script = as_script(run)
    assert is_script(script)
    assert not is_script(run)
    judgement = judge(script)
    said = [text for one in judgement.findings for text in (one.fact, one.consequence, one.advice)]
    said += [checked.reason or "" for checked in judgement.checked] + [note.text for note in judgement.notes]
    text = " ".join(said).replace("kernel of cells.py", "")
    assert not re.search(r"\b[Cc]ells?\b|\bkernel\b|notebook|Out\[|\0", text), text


def test_a_script_retains_nothing_and_its_report_speaks_of_it() -> None:
    script = as_script(a_run(rise(0.1, 5)), "s.py")
    assert judge(script).findings == ()
    text = export.render(script, "text")
    assert text.startswith("cellmeter report · s.py in 9.00 s\n")
    assert "a script gives all back at its end" in re.sub(r"\s+", " ", text)
    assert "Script               /home/ada/s.py" in text
    page = re.sub(r"<script>.*?</script>", "", export.html_report(script), flags=re.DOTALL)
    for told in (text, export.render(script, "md"), page, export.inline_html(script)):
        words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", told, flags=re.DOTALL)
        assert not re.search(r"\b[Cc]ells?\b|\b[Kk]ernel\b|[Nn]otebook", words)
    labels = [
        x.label["value"] for fig in timeline.run_figures(script).children for legend in fig.legend for x in legend.items
    ]
    assert "script" in labels
    assert "kernel" not in labels
    assert (
        for_script(script, "no cell of 10 s; no cell held two GPUs")
        == "it ran for less than 10 s; it did not hold two GPUs"
    )


# ── recorded runs ──


@pytest.mark.parametrize(
    ("name", "said"), [("inference-cpu", True), ("pandas", True), ("two-cores", False), ("slow-disk", False)]
)
def test_neighbours_on_recorded_machines(name: str, said: bool) -> None:
    with unpacked(name) as run:
        assert ("cpu-taken-by-others" in notes(run)) is said
