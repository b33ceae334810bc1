"""Sources, rules and exports of other packages: the example package, built and installed, and packages that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Kernel, recorders_below, wait_until
from prometheus_parts import Scrape, get, served

from cellmeter.export import mlflow, otlp
from cellmeter.export.readings import Choice
from cellmeter.rules import RULES
from cellmeter.run import Run
from cellmeter.sources.plugin import checked_metrics

EXAMPLE = Path(__file__).parent / "plugin_example"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder the example package is installed in."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(EXAMPLE)], check=True, timeout=120)
    assert (folder / "cellmeter_loadavg-1.0.dist-info" / "entry_points.txt").exists()
    return folder


def package(folder: Path, entry_points: str, source: str, name: str = "faulty") -> Path:
    """A package that is installed in a folder, as far as Python can tell."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / f"{name}.py").write_text(source)
    return folder


Start = Callable[..., Kernel]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cellmeter(home: Path, tmp_path: Path) -> Command:
    def call(site: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cellmeter", *arguments]
        env = {**os.environ, "PYTHONPATH": str(site), **environ}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False, env=env)

    return call


def with_samples_of(kernel: Kernel, metric: str) -> Run:
    def there() -> Run | None:
        run = kernel.recorded()
        return run if len(run.series(metric, "host").values) > 3 else None

    kernel.recorded_cells(1)
    wait_until(lambda: metric in kernel.recorded().metrics, f"{metric} in the run's catalogue")
    message = kernel.send("import time\nwhile not stop.exists(): time.sleep(0.01)")
    try:
        return wait_until(there, f"samples of {metric}")
    finally:
        (kernel.home.parent / "stop").touch()
        kernel.reply(message)


def test_the_example_package(start_kernel: Start, example: Path, cellmeter: Command, tmp_path: Path) -> None:
    kernel = start_kernel(env={"PYTHONPATH": str(example)})
    assert kernel.load().stderr == ""
    kernel.run(f"from pathlib import Path; stop = Path({str(tmp_path / 'stop')!r})")
    run = with_samples_of(kernel, "loadavg.one")
    assert (run.series("loadavg.one", "host").values >= 0).all()
    assert (run.series("loadavg.switches.rate", "host").values[1:] > 0).any()
    assert "Plugins              loadavg (3 metrics)" in kernel.run("%monitor").stdout
    with served(home=kernel.home, log=tmp_path / "log") as url:
        found = wait_until(
            lambda: (s := Scrape(get(url))).all("cellmeter_plugin_loadavg_one") and s, "the plugin's series"
        )
    whose = {"run": run.id, "kernel": str(kernel.pid), "subject": "host"}
    assert found.one("cellmeter_plugin_loadavg_one", **whose) >= 0
    assert found.one("cellmeter_plugin_loadavg_switches_total", **whose) > 0
    assert not [name for name in found.names() if "rate" in name and "plugin" in name]
    sent = {stream.name: (stream.kind, stream.attributes) for stream in otlp.streams(kernel.recorded(), Choice())}
    assert sent["cellmeter.loadavg.one"] == ("gauge", {})
    assert sent["cellmeter.loadavg.switches"] == ("sum", {})
    chosen = {part.key for part in mlflow.points(kernel.recorded(), Choice(("loadavg.*",)))}
    assert {"cellmeter/loadavg.one", "cellmeter/loadavg.switches.rate"} <= chosen
    kernel.run("%monitor stop")
    name = kernel.recorded().id

    low = tmp_path / "low.toml"
    low.write_text("[rules.loadavg-high]\nper_core = -1.0\n")
    found = json.loads(cellmeter(example, "report", "--format", "json", CELLMETER_CONFIG=str(low)).stdout)
    assert [f["rule"] for f in found["findings"]] == ["loadavg-high"]
    assert cellmeter(example, "report", "--fail-on", "info", CELLMETER_CONFIG=str(low)).returncode == 3
    assert cellmeter(example, "export", name, "-o", "cells.tsv").returncode == 0
    lines = (tmp_path / "cells.tsv").read_text().splitlines()
    assert lines[0] == "cell\tstatus\tfindings"
    assert len(lines) == 1 + len(kernel.recorded().cells)

    # without the package the run is as readable, and nobody asks the rule
    nowhere = tmp_path / "nowhere"
    assert cellmeter(nowhere, "export", name, "-o", "samples.csv").returncode == 0
    assert set(pd.read_csv(tmp_path / "samples.csv")["metric"]) >= {"loadavg.one", "loadavg.switches.rate"}
    checked = json.loads(cellmeter(nowhere, "report", "--format", "json").stdout)["checked"]
    assert "loadavg-high" not in [rule["rule"] for rule in checked]
    refused = cellmeter(nowhere, "export", "-o", "cells.tsv")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["logged", "step", "span"])
def test_no_source_has_the_name_of_what_the_code_says(name: str) -> None:
    with pytest.raises(ValueError, match=f"no source can be called '{name}'"):
        checked_metrics(name, [(f"{name}.x", "1", "gauge", "host", "cpu", "m", "s")])


def test_the_page_has_the_whole_example() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "plugins.md").read_text()
    files = [path for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml") and path.name != "__init__.py"]
    assert len(files) == 4
    for path in files:
        assert f"```{'toml' if path.suffix == '.toml' else 'python'}\n{path.read_text().rstrip()}\n```" in page, path


FAULTS = {
    "import": ("raise RuntimeError('no such device')", "RuntimeError: no such device"),
    "leaves": ("import sys; sys.exit(1)", "SystemExit: 1"),
    "no-name": ("", "AttributeError: module 'faulty' has no attribute 'Source'"),
    "opening": ("class Source:\n    def __init__(self, pid): 1 / 0", "ZeroDivisionError: division by zero"),
    "foreign-name": (
        "class Source:\n    def __init__(self, pid): pass\n    interval = 0\n    columns = ()\n"
        "    metrics = [('host.cpu.time', 's', 'gauge', 'host', 'cpu', 'm', 's')]",
        "ValueError: its metric 'host.cpu.time' must be named faulty.…",
    ),
    "odd-rate": (
        "class Source:\n    def __init__(self, pid): pass\n    interval = 0\n    columns = ()\n"
        "    metrics = [('faulty.x', 's', 'counter', 'host', 'cpu', 'm', 's', 5)]",
        "ValueError: its metric 'faulty.x' is not well described: Metric(name='faulty.x', unit='s', kind='counter', "
        "scope='host', group='cpu', meaning='m', source='s', rate=5, otel=None,",
    ),
    "too-wide": (
        "class Source:\n    def __init__(self, pid): pass\n    interval = 0\n"
        "    metrics = [('faulty.x', 's', 'gauge', 'host', 'cpu', 'm', 's')]\n"
        "    columns = [('faulty.x', str(n), 's') for n in range(1001)]",
        "ValueError: it has 1001 columns; at most 1000 are possible",
    ),
    "odd-name": (
        "class Source:\n    def __init__(self, pid): pass\n    interval = 0\n    columns = ()\n"
        "    metrics = [('faulty.x > 1', 's', 'gauge', 'host', 'cpu', 'm', 's')]",
        "ValueError: its metric 'faulty.x > 1' has other signs than letters, digits, '.', '_' and '-'",
    ),
}
READS = (
    "class Source:\n    interval = 0\n    metrics = [('faulty.x', '1', 'gauge', 'host', 'cpu', 'm', 's')]\n"
    "    columns = [('faulty.x', 'host', '1')]\n    def __init__(self, pid): pass\n    def read(self):\n        "
)
READING = {
    "reading": (READS + "raise OSError('gone')", "OSError: gone"),
    "columns": (READS + "return [1, 2]", "ValueError: a reading of 2 values for 1 columns"),
    "hangs": (READS + "import time; time.sleep(1000)", "it has not answered for 5 s"),
}


@pytest.mark.parametrize("fault", ["each cannot be opened", *READING])
def test_a_source_that_fails_is_one_line_and_the_recording_goes_on(
    start_kernel: Start, tmp_path: Path, fault: str
) -> None:
    expected, site = set(), tmp_path / "site"
    for number, (source, says) in enumerate([READING[fault]] if fault in READING else FAULTS.values()):
        name = f"fault{number}"
        package(site, f"[cellmeter.sources]\n{name} = {name}:Source\n", source.replace("faulty", name), name)
        lost = f"source {name} lost" if fault in READING else f"the source {name} is not recorded"
        expected.add(f"{lost}: {says.replace('faulty', name)}")
    kernel = start_kernel(env={"PYTHONPATH": str(site)})
    assert kernel.load().stderr == ""
    kernel.run("x = 1")
    notices = wait_until(
        lambda: len(found := kernel.recorded_cells(1).notices) >= len(expected) and found, "the notices"
    )
    assert sorted(notices) == sorted(expected)
    samples = kernel.recorded().sample_count
    kernel.run("y = 2")
    run = kernel.recorded_cells(2)
    assert run.sample_count > samples
    assert len(recorders_below(tmp_path)) == 1
    starved = [gap for gap in run.gaps if gap.reason == "the recorder was stopped or got no CPU time"]
    assert len(starved) == len(run.gaps) or fault == "hangs"
    assert kernel.run("%monitor report").status == "ok"


def test_alerts_on_what_a_plugin_measures(start_kernel: Start, example: Path, tmp_path: Path) -> None:
    kernel = start_kernel(env={"PYTHONPATH": str(example)})
    kernel.load()
    added = [
        kernel.run(f'%monitor alert "{text} for 0s"') for text in ("loadavg.one > -1", "loadavg.switches.rate:host > 0")
    ]
    assert [reply.status for reply in added] == ["ok", "ok"]
    assert added[0].stdout == "cellmeter: alert loadavg.one > -1 for 0s\n"
    wrong = kernel.run('%monitor alert "loadavg.on > 0 for 0s"')
    assert "did you mean loadavg.one?" in wrong.stderr
    made = kernel.run(f"from pathlib import Path; stop = Path({str(tmp_path / 'stop')!r})")
    message = kernel.send("import time\nwhile not stop.exists(): time.sleep(0.01)")
    wait_until(lambda: len({fired.alert for fired in kernel.recorded().alerts}) == 2, "both alerts")
    (tmp_path / "stop").touch()
    said = "".join(
        reply.stderr for reply in (*added, wrong, made, kernel.reply(message))
    )  # whichever cell saw it first
    assert "cellmeter: alert: loadavg.one > -1 for 0s (host is at " in said
    fired = {alert.alert: alert for alert in kernel.recorded().alerts}
    assert fired["loadavg.switches.rate:host > 0 for 0s"].value > 0
    kernel.run("%monitor stop")
    said = kernel.run('%monitor alert "loadavg.one > 1 for 0s"').stderr
    assert "what loadavg measures is known once it is recorded: %monitor start" in said


def test_an_alert_on_a_plugin_that_does_not_work(start_kernel: Start, tmp_path: Path) -> None:
    site = package(tmp_path / "site", "[cellmeter.sources]\nfaulty = faulty:Source\n", "1 / 0")
    kernel = start_kernel(env={"PYTHONPATH": str(site)})
    kernel.load()
    said = kernel.run('%monitor alert "faulty.x > 1 for 0s"').stderr
    assert "the source faulty is not recorded: %monitor says why, or cellmeter doctor" in said


def test_doctor_lists_plugins_and_tries_them(example: Path, cellmeter: Command, tmp_path: Path) -> None:
    said = cellmeter(example, "doctor")
    assert said.returncode == 0
    checks = {" ".join(line.split()) for line in said.stdout.splitlines()}
    names = "loadavg.one, loadavg.switches, loadavg.switches.rate"
    assert f"✓ source loadavg records {names} (cellmeter-loadavg 1.0)" in checks
    assert "✓ rule loadavg asked as loadavg-high (cellmeter-loadavg 1.0)" in checks
    assert "✓ export tsv writes .tsv (cellmeter-loadavg 1.0)" in checks
    assert "✓ plugins none installed" in {
        " ".join(line.split()) for line in cellmeter(tmp_path / "nowhere", "doctor").stdout.splitlines()
    }


def test_doctor_says_why_a_plugin_does_not_work(cellmeter: Command, tmp_path: Path) -> None:
    groups = (
        "[cellmeter.sources]\nfaulty = faulty:Source\ngone = not_there:Source\nopens = faulty:Opens\n"
        "[cellmeter.rules]\nodd = faulty:odd\n"
        "[cellmeter.exports]\nleaves = faulty_leaves:x\nhtml = faulty:html\nnone = faulty:odd\n"
    )
    source = READS + "raise OSError('gone')\nclass Opens:\n    def __init__(self, pid): 1 / 0\nodd = 5\n"
    site = package(tmp_path / "site", groups, source)
    (site / "faulty_leaves.py").write_text("import sys; sys.exit('not here')")
    said = cellmeter(site, "doctor")
    assert said.returncode == 2
    checks = {" ".join(line.split()) for line in said.stdout.splitlines()}
    assert checks >= {
        "✗ source faulty OSError: gone",
        "✗ source gone there is no module 'not_there'",
        "✗ source opens ZeroDivisionError: division by zero",
        "✗ rule odd TypeError: faulty:odd is no cellmeter.rules.Rule",
        "✗ export leaves SystemExit: not here",
        "✗ export html cellmeter writes .html itself, so it is not asked",
        "✗ export none it cannot be called",
        "→ update or uninstall faulty 1.0: faulty:Source",
    }
    assert said.stderr == ""


def test_rules_and_exports_that_fail(kernel: Kernel, cellmeter: Command, tmp_path: Path) -> None:
    kernel.run("x = 1")
    kernel.run("%monitor stop")
    rules = "[cellmeter.rules]\nfaulty = faulty:Rule\nodd = faulty:odd\nnone = faulty:none\nmemory = faulty:Taken\n"
    exports = "[cellmeter.exports]\nbroken = faulty:broken\nwrong = faulty:wrong\n"
    source = (
        "from cellmeter.rules import Rule as Base\n"
        "class Rule(Base):\n    id, title, metrics = 'faulty-x', 'x', ()\n    def check(self, run): return 'fine'\n"
        "class Taken(Rule): id = 'memory-spike'\n"
        "odd = 5\ndef broken(run, judgement): raise ValueError('no paper')\ndef wrong(run, judgement): return 5\n"
    )
    site = package(tmp_path / "site", rules + exports, source)
    report = json.loads(cellmeter(site, "report", "--format", "json").stdout)
    errors = {rule["rule"]: rule["reason"] for rule in report["checked"] if rule["outcome"] == "error"}
    assert errors == {
        "faulty-x": "TypeError: it says 'fine' and no Outcome",
        "odd": "TypeError: faulty:odd is no cellmeter.rules.Rule",
        "none": "AttributeError: module 'faulty' has no attribute 'none'",
        "memory": "ValueError: its id 'memory-spike' must begin with memory-",
    }
    assert len(report["checked"]) == len(RULES) + 4
    for name, says in (("broken", "ValueError: no paper"), ("wrong", "TypeError: it made int, not str or bytes")):
        refused = cellmeter(site, "export", "-o", f"x.{name}")
        assert (refused.returncode, refused.stderr) == (
            2,
            f"cellmeter: the export {name} (faulty:{name}) failed: {says}\n",
        )
        assert not (tmp_path / f"x.{name}").exists()
