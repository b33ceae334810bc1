"""The findings on recorded runs whose right answer is known: all that must be found, and no false alarm."""

from __future__ import annotations

import pytest

from bench.labelled import Labelled, labelled_runs, matrix, scores
from cellmeter.rules import RULES


@pytest.fixture(scope="module")
def runs() -> list[Labelled]:
    return list(labelled_runs())


def test_the_matrix(runs: list[Labelled], capsys: pytest.CaptureFixture[str]) -> None:
    rows = scores(runs)
    with capsys.disabled():
        print(f"\n{matrix(rows)}")
    missed = [
        (run.name, item) for run in runs for item in run.label.get("fires", ()) if not run.hit(item.split(":")[0])
    ]
    alarms = [(run.name, rule.id) for run in runs for rule in RULES if run.false_alarm(rule.id)]
    assert (missed, alarms) == ([], [])
    assert all(row.recall == row.precision == 100 for row in rows)


@pytest.mark.parametrize("rule", [rule.id for rule in RULES])
def test_each_rule_has_a_run_that_fires_and_one_that_comes_close(rule: str, runs: list[Labelled]) -> None:
    assert any(run.expects(rule) for run in runs)
    assert any(rule in run.label.get("near", ()) for run in runs)


def test_nothing_above_info_on_an_ordinary_notebook(runs: list[Labelled]) -> None:
    ordinary = [run for run in runs if run.label.get("ordinary")]
    assert len(ordinary) >= 6
    assert [
        (run.name, rule) for run in ordinary for rule, (_, severity) in run.found.items() if severity != "info"
    ] == []


def test_no_rule_fails_on_a_recorded_run(runs: list[Labelled]) -> None:
    assert [(run.name, run.broken) for run in runs if run.broken] == []


def test_every_run_has_a_label_and_every_label_a_run(runs: list[Labelled]) -> None:
    from labelled.keep import RUNS

    assert {path.name.removesuffix(".tar.xz") for path in RUNS.iterdir()} == {run.name for run in runs}
