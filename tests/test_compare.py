"""Two runs side by side: which cells are the same, and what counts as a difference."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from builders import GIB, NAN, GpuWork, a_cell, a_device, a_run, hump
from conftest import Kernel

from cellmeter import export
from cellmeter.errors import BadUsage
from cellmeter.export.compared import (
    comparison_html,
    comparison_json,
    comparison_markdown,
    comparison_schema,
    comparison_text,
    shown,
    verdict,
)
from cellmeter.export.comparison import Comparison, Matched, compare
from cellmeter.run import Cell, Run


def named(run: Run, *names: tuple[str | None, str]) -> Run:
    """The run with ids and source hashes given to its cells."""
    cells = [replace(c, cell_id=i, source_hash=h, label=None) for c, (i, h) in zip(run.cells, names, strict=True)]
    return replace(run, cells=tuple(cells))


def a_pair(before: float = 10, after: float = 10, **plan: object) -> Comparison:
    a, b = (a_run(a_cell(seconds, **plan)) for seconds in (before, after))
    return compare(named(a, ("x", "1")), named(b, ("x", "1")))


def verdicts(cell: Matched) -> dict[str, str]:
    return {d.quantity.key: d.verdict for d in cell.differences}


def test_a_cell_is_the_same_by_its_id_even_when_edited() -> None:
    a = named(a_run(a_cell(1), a_cell(2)), ("x", "1"), ("y", "2"))
    b = named(a_run(a_cell(2), a_cell(1)), ("y", "new"), ("x", "1"))
    found = compare(a, b)
    assert [(cell.a, cell.b, cell.edited) for cell in found.cells] == [((2,), (1,), True), ((1,), (2,), False)]
    assert found.only_in_a == found.only_in_b == ()


def test_without_ids_a_cell_is_the_same_by_its_source() -> None:
    a = named(a_run(a_cell(1), a_cell(2)), (None, "1"), ("gone", "2"))
    b = named(a_run(a_cell(2), a_cell(1)), ("other", "2"), ("new", "3"))
    found = compare(a, b)
    assert [(cell.a, cell.b) for cell in found.cells] == [((2,), (1,))]
    assert found.only_in_a == ("In [1] work()",)
    assert found.only_in_b == ("In [2] work()",)


def test_cells_within_cells_are_their_parents() -> None:
    a = named(a_run(a_cell(2), a_cell(1)), ("x", "1"), ("x", "1"))
    a = replace(a, cells=(a.cells[0], replace(a.cells[1], parent=1)))
    assert [cell.a for cell in compare(a, a).cells] == [(1,)]


@pytest.mark.parametrize(("after", "expected"), [(10.5, "same"), (9.5, "same"), (20, "more"), (5, "less")])
def test_a_difference_counts_from_the_floor_on(after: float, expected: str) -> None:
    (cell,) = a_pair(10, after).cells
    assert verdicts(cell)["seconds"] == expected


def test_a_short_cells_jitter_is_noise() -> None:
    (cell,) = a_pair(0.02, 0.1).cells
    assert verdicts(cell)["seconds"] == "same"


def test_memory_and_gpu_are_compared_too() -> None:
    device = a_device("gpu0")
    a = a_run(a_cell(20, rss=hump(GIB, 2 * GIB, 5, 9), gpu={"gpu0": GpuWork(20)}), devices=[device])
    b = a_run(a_cell(20, rss=hump(GIB, 4 * GIB, 5, 9), gpu={"gpu0": GpuWork(80)}), devices=[device])
    (cell,) = compare(named(a, ("x", "1")), named(b, ("x", "1"))).cells
    assert verdicts(cell)["peak_rss_bytes"] == verdicts(cell)["peak_over_start_bytes"] == "more"
    assert [d.quantity.key for d in shown(cell)][:2] == ["seconds", "peak_over_start_bytes"]
    assert verdicts(cell)["gpu_utilization_percent"] == "more"
    assert verdicts(cell)["seconds"] == "same"


def test_what_earlier_cells_have_left_is_none_of_a_cells_memory() -> None:
    """The second cell only begins with more; the third needs as much more as it began with less."""
    a, b = (
        named(
            a_run(a_cell(9, rss=lambda t, r=rest: r * t / 9 + GIB), a_cell(9, rss=rest + GIB), a_cell(9, rss=third)),
            ("x", "1"),
            ("y", "2"),
            ("z", "3"),
        )
        for rest, third in ((0, GIB), (9 * GIB, hump(GIB, 3 * GIB, 2, 5)))
    )
    first, second, third = (verdicts(cell) for cell in compare(a, b).cells)
    assert (first["peak_rss_bytes"], first["peak_over_start_bytes"]) == ("more", "more")
    assert (second["peak_rss_bytes"], second["peak_over_start_bytes"]) == ("same", "same")
    assert third["peak_over_start_bytes"] == "more"


def test_where_nothing_else_is_in_both_a_cell_is_the_same_by_label_or_place() -> None:
    a = named(a_run(*[a_cell(1)] * 4), ("a", "1"), ("b", "same"), ("c", "3"), ("d", "4"))
    b = named(a_run(*[a_cell(1)] * 4), ("e", "5"), ("f", "same"), ("g", "7"), ("h", "8"))
    found = compare(a, b)
    assert [(cell.a, cell.b, cell.matched_by) for cell in found.cells] == [
        ((1,), (1,), "place"),
        ((2,), (2,), "source"),
        ((3,), (3,), "place"),
        ((4,), (4,), "place"),
    ]
    assert "matched by its place alone" in comparison_text(
        compare(a, replace(b, cells=(replace(b.cells[0], status="error"), *b.cells[1:])))
    )
    shorter = replace(b, cells=(*b.cells[:2], b.cells[3]))  # Nobody knows which one went: In [4] is In [4].
    assert [cell.a for cell in compare(a, shorter).cells] == [(1,), (2,), (4,)]
    assert compare(a, shorter).only_in_a == ("In [3] work()",)
    labelled = replace(b, cells=tuple(replace(c, label=f"l{c.seq}") for c in reversed(b.cells)))
    same = compare(replace(a, cells=tuple(replace(c, label=f"l{c.seq}") for c in a.cells)), labelled)
    assert {(cell.a, cell.b) for cell in same.cells} == {((n,), (n,)) for n in (1, 2, 3, 4)}


def test_how_far_a_cells_own_executions_lie_apart_is_noise() -> None:
    ids = [("x", "1")] * 3
    a = named(a_run(a_cell(10), a_cell(20), a_cell(12)), *ids)
    b = named(a_run(a_cell(18), a_cell(18), a_cell(18)), *ids)
    (cell,) = compare(a, b).cells
    seconds = cell.differences[0]
    assert (seconds.a, seconds.b) == (pytest.approx(12, abs=0.1), pytest.approx(18, abs=0.1))
    assert seconds.noise == pytest.approx(10, abs=0.2)
    assert seconds.verdict == "same"
    steady = named(a_run(a_cell(11), a_cell(11), a_cell(11)), *ids)
    assert compare(steady, b).cells[0].differences[0].verdict == "more"


def test_time_spent_waiting_for_a_busy_machine_is_noise() -> None:
    before = named(a_run(a_cell(10)), ("x", "1"))
    for pressure, expected in ((0.9, "same"), (0.1, "more")):
        after = named(a_run(a_cell(20, cpu_pressure=pressure)), ("x", "1"))
        assert verdicts(compare(before, after).cells[0])["seconds"] == expected


def test_a_failed_execution_says_nothing_of_what_a_cell_takes() -> None:
    a = named(a_run(a_cell(10), a_cell(1, status="error")), ("x", "1"), ("x", "1"))
    b = named(a_run(a_cell(10)), ("x", "1"))
    (cell,) = compare(a, b).cells
    assert cell.status_a == "ok"
    assert cell.differences[0].a == pytest.approx(10, abs=0.1)
    failed = named(a_run(a_cell(1, status="error")), ("x", "1"))
    assert "1 of 1 cell differs" in verdict(compare(b, failed))
    assert "(ok before, error after)" in comparison_text(compare(b, failed))


def test_what_one_run_does_not_know_is_unknown() -> None:
    a = a_run(a_cell(10, rss=NAN, peak_unknown="no clear_refs"))
    b = a_run(a_cell(10))
    (cell,) = compare(named(a, ("x", "1")), named(b, ("x", "1"))).cells
    memory = next(d for d in cell.differences if d.quantity.key == "peak_rss_bytes")
    assert (memory.a, memory.verdict) == (None, "unknown")


def test_the_text_tells_what_changed() -> None:
    text = comparison_text(a_pair(10, 20))
    assert "1 of 1 cell differs; all in all it is slower: 10.0 s before, 20.0 s after." in text
    assert [line.split() for line in text.splitlines() if line.startswith("  time")] == [
        ["time", "10.0", "s", "20.0", "s", "+100", "%", "more"]
    ] * 2
    assert "/home/ada/train.ipynb, node7" in text
    assert ", 1 cell in 14.0 s, " in text
    assert max(map(len, text.splitlines())) <= 92
    assert "Nothing differs by more than noise in the 1 cell" in comparison_text(a_pair(10, 10))
    other = named(a_run(a_cell(1), a_cell(2)), ("y", "2"), ("z", "3"))
    other = replace(other, cells=tuple(replace(cell, execution_count=cell.seq + 7) for cell in other.cells))
    nothing = comparison_text(compare(named(a_run(a_cell(1)), ("x", "1")), other))
    assert "no cell in common; all in all it is slower: 1.00 s before, 3.00 s after." in nothing
    assert "Only before: In [1] work()" in nothing


def test_the_markdown_tells_the_same() -> None:
    text = comparison_markdown(a_pair(10, 20))
    assert text.startswith("## 1 of 1 cell differs; all in all it is slower: 10.0 s before, 20.0 s after.\n")
    assert text.count("| time | 10.0 s | 20.0 s | +100 % | more |") == 2
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {6}


def test_the_json_has_the_form_of_its_schema() -> None:
    fields = json.loads(comparison_json(a_pair(10, 20)))
    jsonschema.validate(fields, comparison_schema())
    seconds = fields["cells"][0]["differences"]["seconds"]
    assert (seconds["verdict"], seconds["relative"]) == ("more", pytest.approx(1, abs=0.02))
    assert fields["total"]["seconds"] == fields["whole"]["seconds"]
    assert fields["total"]["seconds"]["b"] == pytest.approx(20, abs=0.1)


def test_the_page_is_inert_and_asks_for_nothing() -> None:
    def hostile(cell: Cell) -> Cell:
        return replace(cell, label="</script><img src=x onerror=alert(1)>")

    a, b = (named(a_run(a_cell(s)), ("x", "1")) for s in (10, 20))
    page = comparison_html(compare(a, replace(b, cells=tuple(map(hostile, b.cells)))))
    assert "<img" not in page
    assert "&lt;img" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_a_format_that_is_not_there_is_named() -> None:
    run = a_run(a_cell(1))
    with pytest.raises(BadUsage, match="the formats are text, html, json, md"):
        export.render_comparison(run, run, "pdf")


def test_from_the_command_line_and_from_the_notebook(kernel: Kernel, tmp_path: Path) -> None:
    cell = "import time\nuntil = time.monotonic() + {}\nwhile time.monotonic() < until: pass"
    for seconds in (0.2, 3):
        kernel.run(f"seconds = {seconds}")
        kernel.run(cell.format("seconds"))
        if seconds == 0.2:
            kernel.run("%monitor stop")
            before = kernel.recorded().id
            kernel.run("%monitor start")
    said = kernel.run(f"%monitor compare {before}").stdout
    assert said.startswith(f"before  {before}")
    assert "All cells" in said
    wrong = kernel.run("%monitor compare nonsense")
    assert wrong.status == "error"
    assert wrong.stderr.startswith("UsageError: no run in")

    def cellmeter(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cellmeter.cli", "compare", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    cells = json.loads(cellmeter(before, "--format", "json").stdout)["cells"]
    (busy,) = [cell["differences"] for cell in cells if cell["first_line"] == "import time"]
    assert busy["seconds"]["a"] < 2.9 < busy["seconds"]["b"]
    assert cellmeter(before, "-o", str(tmp_path / "c.html")).returncode == 0
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")
    assert cellmeter(before, "-o", str(tmp_path / "c.md")).returncode == 0
    assert (tmp_path / "c.md").read_text().startswith("## ")
    bad = cellmeter(before, "-o", str(tmp_path / "c.pdf"))
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
