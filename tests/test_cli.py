"""The command line, as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import nbformat
import nvml_stub
import pandas as pd
import pytest
from conftest import BEGUN, Kernel, wait_until

from cellmeter.export.report_json import schema
from cellmeter.home import new_run_folder, run_folders
from cellmeter.now import now_of
from cellmeter.store import name_kernel, process_identity

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cellmeter(home: Path, tmp_path: Path) -> Call:
    def call(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cellmeter.cli", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False, **options
        )

    return call


@pytest.fixture(scope="module")
def spike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a spike of 400 MiB in its first cell."""
    kernel = Kernel(tmp_path_factory.mktemp("spike") / "home")
    try:
        assert kernel.load().status == "ok"
        kernel.run("%%monitor the <b>spike</b> --no-chart\nblock = bytearray(400 << 20)\ndel block")
        kernel.run("x = 1")
        kernel.run("%monitor stop")
    finally:
        kernel.close()
    return Path(kernel.recorded().path)


@pytest.fixture
def recorded(spike: Path, home: Path) -> str:
    """The id of that run, of which this test has a copy."""
    shutil.copytree(spike, home / "runs" / spike.name)
    return spike.name


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells.insert(0, nbformat.v4.new_markdown_cell("# A notebook"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_runs_lists_and_removes(cellmeter: Call, recorded: str, home: Path) -> None:
    assert recorded in cellmeter("runs").stdout
    (row,) = json.loads(cellmeter("runs", "--json").stdout)
    assert (row["notebook"], row["script"]) == (None, None)
    assert (row["id"], row["ending"], row["cells"], row["problem"]) == (recorded, "stopped", 3, None)
    assert cellmeter("runs", "rm").returncode == 2
    removed = cellmeter("runs", "rm", recorded[:18])
    assert (removed.returncode, removed.stdout) == (0, f"removed {recorded}\n")
    assert run_folders(home / "runs") == []
    assert "no runs yet" in cellmeter("runs").stdout
    assert cellmeter("runs", "--json").stdout.strip() == "[]"


def test_a_run_that_is_recorded_is_not_removed(cellmeter: Call, kernel: Kernel) -> None:
    kernel.run("x = 1")
    name = kernel.recorded_cells(1).id
    refused = cellmeter("runs", "rm", name)
    assert refused.returncode == 2
    assert "still being recorded" in refused.stderr
    kept = f"kept: {name} is still being recorded: stop its kernel first\n"
    assert cellmeter("runs", "rm", "--all").stdout == kept


def test_what_is_no_run_is_passed_over_and_removed_if_there_is_nothing_in_it(
    cellmeter: Call, recorded: str, home: Path, tmp_path: Path
) -> None:
    runs = home / "runs"
    empty, dangling, thesis = (runs / f"29990101T00000{n}Z-abcdef" for n in range(3))
    empty.mkdir()
    dangling.symlink_to(tmp_path / "nowhere")
    thesis.mkdir()
    (thesis / "thesis.txt").touch()
    assert recorded in cellmeter("report").stdout, "the newest that is one"
    removed = cellmeter("runs", "rm", "--all")
    assert (removed.returncode, removed.stdout.splitlines()) == (
        0,
        [
            f"removed {recorded}",
            f"removed {empty.name}",
            f"removed {dangling.name}",
            f"kept: {thesis} is no cellmeter run, so it is left alone",
        ],
    )
    assert [entry.name for entry in runs.iterdir()] == [thesis.name]
    (thesis / "thesis.txt").unlink()
    assert cellmeter("runs", "rm", thesis.name).stdout == f"removed {thesis.name}\n"
    assert cellmeter("runs", "rm", "--all").stdout == f"there are no runs in {runs}\n"


@pytest.mark.parametrize("command", [["report"], ["runs", "rm"], ["watch"], ["export", "--jsonl"]])
def test_an_empty_name_is_no_run(cellmeter: Call, recorded: str, home: Path, command: list[str]) -> None:
    refused = cellmeter(*command, "")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "cellmeter: no run has an empty name: `cellmeter runs` lists them\n"
    assert [folder.name for folder in run_folders(home / "runs")] == [recorded]


def test_a_run_that_is_just_starting_is_said_to_be(cellmeter: Call, home: Path) -> None:
    folder = new_run_folder(home / "runs")
    name_kernel(folder, os.getpid(), process_identity(os.getpid()))
    (folder / "recorder.log").touch()
    for command in (["report"], ["report", folder.name]):
        refused = cellmeter(*command)
        assert (refused.returncode, refused.stderr) == (
            2,
            f"cellmeter: {folder.name} is just starting: try again in a moment\n",
        )
    assert cellmeter("runs", "rm", "--all").stdout.startswith(f"kept: {folder.name} is still being recorded")
    (folder / "recorder.log").write_text("MemoryError\n")
    assert "is no cellmeter run: it has no run.json" in cellmeter("report").stderr, "it has failed"
    assert cellmeter("runs", "rm", folder.name).stdout == f"removed {folder.name}\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_tracebacks(recorded: str, home: Path, tmp_path: Path, closed: str) -> None:
    (tmp_path / "three.py").write_text("import sys\nprint('out', sys.stdout is None)\nsys.exit(3)")
    said, python = tmp_path / "said", f"exec {sys.executable} -m cellmeter"
    for command, code in (("runs", 0), ("report -o x.json", 0), ("report zzz", 2), ("record three.py", 3)):
        with said.open("w") as file:
            shell = ["bash", "-c", f"{python} {command} {closed}"]
            done = subprocess.run(shell, cwd=tmp_path, stdout=file, stderr=file, timeout=120, check=False)
        assert done.returncode == code, command
        assert "Error" not in said.read_text()
    assert json.loads((tmp_path / "x.json").read_text())["run"]["id"] == recorded


def test_runs_says_what_each_running_kernel_takes_now(
    cellmeter: Call, start_kernel: Callable[..., Kernel], recorded: str, tmp_path: Path
) -> None:
    machine = nvml_stub.machine(f"gpu mem=80g\nproc 0 - gpu 0 pid=@{tmp_path}/pid used=20g", tmp_path)
    heavy = start_kernel(env={**machine.environ, "JPY_SESSION_NAME": "/home/somebody/projects/of/theirs/heavy.ipynb"})
    (tmp_path / "pid").write_text(str(heavy.pid))
    assert heavy.load().status == "ok"
    light = start_kernel()
    assert light.load().status == "ok"
    heavy.begin(f"{BEGUN}\nblock = bytearray(b'1') * (500 << 20)\nwhile True: pass")

    def now(kernel: Kernel) -> dict[str, Any]:
        rows = {row["pid"]: row for row in json.loads(cellmeter("runs", "--json").stdout)}
        assert [row["now"] for row in rows.values() if row["id"] == recorded] == [None], "it has ended"
        told: dict[str, Any] = rows[kernel.pid]["now"]
        return told

    def takes(kernel: Kernel, memory: int, cores: float) -> bool:
        told = now(kernel)
        return (told["memory_bytes"] or 0) > memory and (told["cpu_cores"] or 0) > cores

    wait_until(lambda: takes(heavy, 500 << 20, 0.01), "a heavy kernel")
    wait_until(lambda: now(heavy)["gpu_memory_bytes"] == 20 << 30, "the GPU memory that it holds")
    assert now(heavy)["memory_limit"]["value"] > 500 << 20
    assert takes(light, 20 << 20, -1)
    assert now(light)["memory_bytes"] < 400 << 20
    table, running = cellmeter("runs").stdout.split("\n\nRunning now\n")
    assert [line.split()[-1] for line in table.splitlines()[2:]], "the list is as it always was"
    first, second = running.splitlines()[2:]
    assert first.split()[0] == str(heavy.pid)
    assert "theirs/heavy.ipynb" in first, "the end of its path tells a notebook from another"
    assert "20.0 GiB" in first
    assert second.split()[0] == str(light.pid)
    os.kill(heavy.pid, signal.SIGKILL)


def test_runs_that_nobody_records_have_no_now(cellmeter: Call, recorded: str) -> None:
    assert "Running now" not in cellmeter("runs").stdout


def test_what_a_run_takes_now_is_unknown_where_its_recorder_hangs(kernel: Kernel) -> None:
    kernel.run("x = 1")
    run = kernel.recorded_cells(1)
    fresh, stale = (now_of(run, run.epoch(run.duration) + seconds) for seconds in (1.0, 100.0))
    assert fresh is not None
    assert stale is not None
    assert fresh["memory_bytes"] > 0
    assert (stale["memory_bytes"], stale["cpu_cores"], stale["gpu_memory_bytes"]) == (None, None, None)


def test_report_in_each_format(cellmeter: Call, recorded: str, tmp_path: Path) -> None:
    text = cellmeter("report")
    assert text.returncode == 0
    assert "the <b>spike</b>" in text.stdout
    report = json.loads(cellmeter("report", recorded, "--format", "json").stdout)
    jsonschema.validate(report, schema())
    assert [f["rule"] for f in report["findings"]] == ["memory-spike"]
    assert cellmeter("report", "--format", "md").stdout.startswith("#")
    assert cellmeter("report", "-o", "out.html").returncode == 0
    page = (tmp_path / "out.html").read_text()
    assert "the &lt;b&gt;spike&lt;/b&gt;" in page
    assert "the <b>spike</b>" not in page


@pytest.mark.parametrize(("severity", "code"), [("info", 3), ("warning", 0), ("critical", 0)])
def test_fail_on(cellmeter: Call, recorded: str, severity: str, code: int) -> None:
    """400 MiB is a spike, but no tenth of this machine's memory."""
    assert cellmeter("report", "--fail-on", severity, "-o", "report.json").returncode == code


def test_export(cellmeter: Call, recorded: str, tmp_path: Path) -> None:
    for name in ("x.csv", "x.parquet", "x.json"):
        assert cellmeter("export", recorded, "-o", name).returncode == 0
    frames = [pd.read_csv(tmp_path / "x.csv"), pd.read_parquet(tmp_path / "x.parquet")]
    for frame in frames:
        assert {"metric", "subject", "unit", "value"} <= set(frame.columns)
        assert "process.memory.rss" in set(frame["metric"])
    assert len(frames[0]) == len(frames[1])


def test_export_of_a_part(cellmeter: Call, recorded: str, tmp_path: Path) -> None:
    assert cellmeter("export", "-o", "cells.csv", "--per-cell").returncode == 0
    assert pd.read_csv(tmp_path / "cells.csv")["execution_count"].tolist() == [2, 3, 4]
    assert cellmeter("export", "-o", "one.csv", "--cells", "3").returncode == 0
    assert set(pd.read_csv(tmp_path / "one.csv")["cell"]) == {2}
    lines = cellmeter("export", "--jsonl", "--cells", "2").stdout.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["cell", "finding"]
    assert cellmeter("export", "-o", "x.jsonl", "--since", "1h").returncode == 0
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "nothing"], "no run in"),
        (["report", "./here"], "there is no folder ./here"),
        (["report", "/"], "is no cellmeter run"),
        (["export", "-o", "x.docx"], "export writes .html, .json, .md"),
        (["export"], "name a file with -o PATH"),
        (["export", "-o", "x.csv", "--cells", "one"], "'one' is no cell's number"),
        (["export", "--jsonl", "--since", "ever"], "write 90s, 10m, 2h or 1d"),
        (["export", "-o", "x.csv", "--cells", "5-3"], "5-3 runs backwards; write 3-5"),
        (["export", "-o", "/etc/hostname/x.csv"], "cannot be written: /etc/hostname is no folder"),
        (["prometheus-config", "/etc/hostname"], "/etc/hostname is a file: name a folder to write into"),
        (["run", "."], "cellmeter: . cannot be read: Is a directory\n"),
        (["compare", "nothing"], "no run in"),
        (["compare", "2"], "would be compared with itself: name the later one too"),
        (["compare", "2", "2"], "would be compared with itself: name another"),
        (["run", "missing.ipynb"], "there is no notebook missing.ipynb"),
        (["run", "/etc/hostname"], "is no notebook"),
        (["report", "-o", "/no/such/x.html"], "/no/such/x.html cannot be written: there is no folder /no/such"),
        (["report", "-o", "."], "a report is written to .html"),
        (["report", "-o", "x.csv"], "would be no report but the samples: cellmeter export -o x.csv"),
        (["report", "--format", "md", "-o", "/proc"], "it is a folder"),
        (["export", "-o", "/no/such/x.csv"], "there is no folder"),
        (["export", "-o", "c.json", "--per-cell"], "--per-cell goes with -o X.csv or X.parquet"),
        (["export", "--jsonl", "--per-cell"], "--per-cell goes with"),
        (["compare", "nothing", "-o", "/no/such/x.html"], "there is no folder"),
        (["runs", "--json", "rm", "x"], "--json is for the list"),
        (["report", "~nobody-such/x"], "there is no folder"),
        (["report", "x" * 300], "no run in"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(cellmeter: Call, recorded: str, arguments: list[str], says: str) -> None:
    result = cellmeter(*arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_bad_use_shows_the_usage(cellmeter: Call) -> None:
    for arguments in ([], ["nonsense"], ["report", "--format", "pdf"]):
        result = cellmeter(*arguments)
        assert result.returncode == 2
        assert "usage: cellmeter" in result.stderr


def test_the_usage_of_runs_can_be_typed(cellmeter: Call) -> None:
    usage = "usage: cellmeter runs [-h] [--json]\n       cellmeter runs rm [-h] [--all] [RUN ...]\n"
    assert cellmeter("runs", "--help").stdout.startswith(usage)
    assert cellmeter("runs", "rm", "--help").stdout.startswith("usage: cellmeter runs rm [-h] [--all] [RUN ...]\n")


def test_every_command_has_help(cellmeter: Call) -> None:
    top = cellmeter("--help").stdout
    for command in ("runs", "report", "compare", "export", "run", "record", "watch", "doctor", "demo"):
        assert f"\n    {command} " in top
        assert "usage: cellmeter" in cellmeter(command, "--help").stdout


def test_a_notebook_headless(cellmeter: Call, home: Path, tmp_path: Path) -> None:
    path = notebook(tmp_path / "good.ipynb", "import time", "%%monitor nap\ntime.sleep(0.3)", "print('done')")
    result = cellmeter("run", path, "-o", "out.ipynb")
    assert result.returncode == 0, result.stderr
    assert [line[:6] for line in result.stderr.splitlines()[:3]] == ["[ 1/3]", "[ 2/3]", "[ 3/3]"]
    assert "nap" in result.stdout
    assert "<title>" in (tmp_path / "good-report.html").read_text()
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert executed.cells[3].outputs[0]["text"] == "done\n"
    assert "<img" in executed.cells[2].outputs[0]["data"]["text/html"]
    assert "widgets" not in executed.metadata
    assert len((tmp_path / "out.ipynb").read_text()) < 40_000
    (folder,) = run_folders(home / "runs")
    report = json.loads(cellmeter("report", "--format", "json").stdout)
    assert report["run"]["notebook"] == str(path)
    assert report["run"]["ending"] == "exited"
    assert [cell["status"] for cell in report["cells"]] == ["ok", "ok", "ok"]
    assert folder.name == report["run"]["id"]


def test_a_notebook_that_loads_the_extension_itself(cellmeter: Call, tmp_path: Path) -> None:
    path = notebook(tmp_path / "own.ipynb", "%load_ext cellmeter", "x = 1")
    result = cellmeter("run", path, "-o", "out.ipynb")
    assert result.returncode == 0
    assert "already loaded" not in (tmp_path / "out.ipynb").read_text()
    assert len(json.loads(cellmeter("report", "--format", "json").stdout)["cells"]) == 1


def test_a_notebook_that_fails_is_exit_1_and_leaves_a_report(cellmeter: Call, tmp_path: Path) -> None:
    path = notebook(tmp_path / "bad.ipynb", "x = 1", "1 / 0", "never = 1")
    result = cellmeter("run", path, "-o", "out.ipynb", "--report", "bad.md")
    assert result.returncode == 1
    assert "code cell 2 of 3 (1 / 0) failed: ZeroDivisionError: division by zero" in result.stderr
    assert (tmp_path / "bad.md").exists()
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[2].outputs[0]["ename"] == "ZeroDivisionError"


def test_a_failure_without_a_message_is_said_by_its_name(cellmeter: Call, tmp_path: Path) -> None:
    said = cellmeter("run", notebook(tmp_path / "bad.ipynb", "raise KeyboardInterrupt")).stderr
    assert said.splitlines()[-1].endswith("(raise KeyboardInterrupt) failed: KeyboardInterrupt")


def test_a_kernel_that_dies_is_exit_1_and_leaves_a_report(cellmeter: Call, tmp_path: Path) -> None:
    path = notebook(tmp_path / "dies.ipynb", "x = 1", "import os; os.kill(os.getpid(), 9)")
    result = cellmeter("run", path)
    assert result.returncode == 1
    assert "the kernel died in code cell 2 of 2" in result.stderr
    report = json.loads(cellmeter("report", "--format", "json").stdout)
    assert (report["run"]["ending"], report["run"]["signal"]) == ("killed", 9)
    assert report["cells"][-1]["status"] == "died"
    assert (tmp_path / "dies-report.html").exists()


def test_a_kernel_that_leaves_in_the_midst_of_a_cell_is_the_headline(cellmeter: Call, tmp_path: Path) -> None:
    path = notebook(tmp_path / "leaves.ipynb", "x = 1", "import os; os._exit(3)", "never = 1")
    result = cellmeter("run", path)
    assert result.returncode == 1
    assert "The kernel died: exited (exit code 3) in In [2]" in result.stdout
    assert "No warnings" not in result.stdout


def test_an_unknown_kernel(cellmeter: Call, tmp_path: Path) -> None:
    path = notebook(tmp_path / "julia.ipynb", "1")
    book = nbformat.read(path, as_version=4)
    book.metadata["kernelspec"] = {"name": "julia-9.9", "display_name": "Julia", "language": "julia"}
    nbformat.write(book, path)
    result = cellmeter("run", path)
    assert result.returncode == 2
    assert "wants the kernel 'julia-9.9', which is not installed" in result.stderr


def ran(path: Path) -> bool:
    return (path.parent / "ran").exists()


@pytest.fixture
def leaves_a_file(tmp_path: Path) -> Path:
    """A notebook that leaves a file when it runs."""
    return notebook(tmp_path / "runs.ipynb", "open('ran', 'w').close()")


@pytest.mark.parametrize(
    ("config", "says"), [("rate_hz = = 3", "is no valid TOML"), (None, "which CELLMETER_CONFIG names")]
)
def test_settings_that_cannot_be_used_are_told_before_a_notebook_runs(
    cellmeter: Call, tmp_path: Path, leaves_a_file: Path, config: str | None, says: str
) -> None:
    path = tmp_path / "config.toml"
    if config is not None:
        path.write_text(config)
    result = cellmeter("run", leaves_a_file, env={**os.environ, "CELLMETER_CONFIG": str(path)})
    assert (result.returncode, result.stderr.count("\n"), ran(leaves_a_file)) == (2, 1, False)
    assert f"{path}" in result.stderr
    assert says in result.stderr
    if config is None:
        assert cellmeter("runs", env={**os.environ, "CELLMETER_CONFIG": str(path)}).returncode == 2


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["run", "runs.ipynb", "--report", "/no/such/r.html"], "there is no folder /no/such"),
        (["run", "runs.ipynb", "--report", "r.csv"], "cellmeter export -o r.csv"),
        (["run", "runs.ipynb", "-o", "/no/such/out.ipynb"], "there is no folder /no/such"),
        (["demo", "-o", "/no/such/out.ipynb"], "there is no folder /no/such"),
    ],
)
def test_where_the_files_go_is_looked_at_before_a_notebook_runs(
    cellmeter: Call, leaves_a_file: Path, command: list[str], says: str
) -> None:
    result = cellmeter(*command)
    assert (result.returncode, result.stderr.count("\n"), ran(leaves_a_file)) == (2, 1, False)
    assert says in result.stderr


def test_a_report_that_cannot_be_written_after_all_leaves_the_run(cellmeter: Call, leaves_a_file: Path) -> None:
    """In /proc nobody can make files, but the permissions do not say so to root."""
    result = cellmeter("run", leaves_a_file, "--report", "/proc/r.html")
    assert result.returncode == 2
    if ran(leaves_a_file):
        name = json.loads(cellmeter("runs", "--json").stdout)[0]["id"]
        assert "/proc/r.html cannot be written: No such file or directory; the run is kept: " in result.stderr
        assert f"cellmeter report {name} -o PATH" in result.stderr
        assert "cellmeter report · 1 cell" in result.stdout


@pytest.mark.parametrize("first", ["x = 1", "%load_ext cellmeter"])
def test_a_notebook_of_which_nothing_was_recorded_says_why(cellmeter: Call, tmp_path: Path, first: str) -> None:
    path = notebook(tmp_path / "b.ipynb", first)
    result = cellmeter("run", path, env={**os.environ, "CELLMETER_HOME": "/proc/nowhere"})
    assert result.returncode == 0
    assert "so there is no report: cannot record: /proc/nowhere/runs cannot be written (" in result.stderr


def test_doctor_says_what_can_be_measured(cellmeter: Call) -> None:
    result = cellmeter("doctor")
    assert result.returncode == 0, result.stdout
    for expected in ("runs folder", "recorder", "samples taken", "peak memory", "limits", "gpu"):
        assert expected in result.stdout
    broken = cellmeter("doctor", env={**os.environ, "CELLMETER_HOME": "/proc/nowhere"})
    assert broken.returncode == 2
    assert "✗ runs folder" in broken.stdout


def test_doctor_names_pandas_for_what_needs_it(recorded: str, tmp_path: Path) -> None:
    lean = "import sys; sys.modules['pandas'] = None; from cellmeter.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", lean]
    written = subprocess.run([*command, "export", "-o", tmp_path / "x.csv"], timeout=120, check=False)
    assert (written.returncode, (tmp_path / "x.csv").stat().st_size > 0) == (0, True), "without pandas"
    said = subprocess.run([*command, "doctor"], capture_output=True, text=True, timeout=120, check=False).stdout
    assert [line.split() for line in said.splitlines() if "Run.samples()" in line] == [
        ["–", "pandas", "not", "installed:", "Run.samples()"]
    ]
    assert "csv" not in said


def test_doctor_names_what_a_hub_allows(cellmeter: Call) -> None:
    hub = {"JUPYTERHUB_USER": "somebody", "MEM_LIMIT": str(512 << 20), "CPU_LIMIT": "0.5"}
    said = cellmeter("doctor", env={**os.environ, **hub}).stdout
    assert "512 MiB (JupyterHub (MEM_LIMIT)), 0.5 cores (JupyterHub (CPU_LIMIT))" in said


def test_doctor_says_of_eight_gpus_what_they_share_but_once(cellmeter: Call, tmp_path: Path) -> None:
    trace = 'gpu name="NVIDIA A100" mem=40g gpm=1\n' * 8 + "".join(f"at 0 gpu {n} util=50\n" for n in range(8))
    said = cellmeter("doctor", env={**os.environ, **nvml_stub.environment(trace, tmp_path)}).stdout
    assert "gpu0–gpu7" in said
    assert said.count("NVIDIA A100, 40 GiB") == said.count("gpu.sm.active") == 1
    assert len([line for line in said.splitlines() if " gpu0" in line]) < 5


def test_doctor_says_whether_the_server_extension_is_on(cellmeter: Call, tmp_path: Path) -> None:
    assert "✓ server extension" in cellmeter("doctor").stdout
    config = tmp_path / "jupyter_server_config.json"
    config.write_text(json.dumps({"ServerApp": {"jpserver_extensions": {"cellmeter.server": False}}}))
    off = cellmeter("doctor", env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path)}).stdout
    assert f"~ server extension      switched off in {config}" in off
    assert "→ jupyter server extension enable cellmeter.server" in off
    none = cellmeter("doctor", env={**os.environ, "JUPYTER_NO_CONFIG": "1", "JUPYTER_CONFIG_DIR": "/nowhere"}).stdout
    assert "~ server extension      not enabled" in none


@pytest.mark.parametrize("command", ["report --format html", "watch", "run long.ipynb 2>&1"])
@pytest.mark.parametrize("reader", ["head -c 10", "true"])
def test_a_reader_that_goes_away_is_no_error(recorded: str, tmp_path: Path, command: str, reader: str) -> None:
    notebook(tmp_path / "long.ipynb", *["import time; time.sleep(0.1)"] * 9)
    command = f"{sys.executable} -m cellmeter.cli {command} | {reader}; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True
    )
    assert result.stderr == ""
    assert result.stdout.endswith("0\n")


def test_a_full_device_and_a_poor_terminal_are_no_tracebacks(cellmeter: Call, recorded: str, tmp_path: Path) -> None:
    poor = cellmeter("report", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (poor.returncode, poor.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cellmeter.cli", "report"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr == "cellmeter: OSError: [Errno 28] No space left on device\n"
