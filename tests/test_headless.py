"""Notebooks run without a browser by the tools people use, figures in their metadata, and the CI example."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from conftest import REPOSITORY, wait_until

from cellmeter.home import run_folders
from cellmeter.store import kernel_of, read_run

BIN = Path(sys.executable).parent
CELLMETER = (sys.executable, "-m", "cellmeter")
SPIKE = "block = bytearray(450 << 20); del block"
RUNNERS = {
    "nbclient": [sys.executable, "-c", "import nbformat, nbclient\nbook = nbformat.read('in.ipynb', 4)\n"
                 "nbclient.NotebookClient(book).execute()\nnbformat.write(book, 'out.ipynb')"],
    "jupyter execute": [BIN / "jupyter", "execute", "in.ipynb", "--output", "out.ipynb"],
    "nbconvert": [BIN / "jupyter", "nbconvert", "--to", "notebook", "--execute", "in.ipynb", "--output", "out.ipynb"],
    "papermill": [BIN / "papermill", "in.ipynb", "out.ipynb", "-p", "rows", "7"],
}  # fmt: skip


def notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_markdown_cell("# A notebook"), *map(nbformat.v4.new_code_cell, sources)]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


Calls = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    monkeypatch.setenv("PATH", str(BIN), prepend=":")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")

    def call(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        pipes = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 100, "check": False}
        return subprocess.run([str(part) for part in command], **{**pipes, **options})

    return call


@pytest.mark.parametrize("runner", RUNNERS)
def test_notebook_runners(run: Calls, home: Path, tmp_path: Path, runner: str) -> None:
    notebook(
        tmp_path / "in.ipynb", "%load_ext cellmeter", "%%monitor nap\nimport time; time.sleep(0.3)", SPIKE, "1 + 1"
    )
    done = run(*RUNNERS[runner])
    assert done.returncode == 0, done.stderr
    folder = wait_until(lambda: run_folders(home / "runs"), "the run")[0]
    wait_until(lambda: read_run(folder).ending, "the run's end")
    into = run(*CELLMETER, "export", "--into", "out.ipynb")
    assert into.returncode == 0, into.stderr
    book = nbformat.read(tmp_path / "out.ipynb", 4)
    nbformat.validate(book)
    assert (tmp_path / "out.ipynb").stat().st_size < 60_000
    measured = {cell.source[:12]: cell.metadata["cellmeter"] for cell in book.cells if "cellmeter" in cell.metadata}
    assert list(measured)[-3:] == ["%%monitor na", SPIKE[:12], "1 + 1"]
    assert "%load_ext ce" not in measured
    assert measured["%%monitor na"]["duration_seconds"] >= 0.3
    assert measured[SPIKE[:12]]["findings"] == ["memory-spike"]
    assert measured[SPIKE[:12]]["peak_rss_bytes"] > 450 << 20
    assert measured["1 + 1"] | {"status": "ok", "findings": [], "run_id": folder.name} == measured["1 + 1"]
    recorded, said = read_run(folder), book.metadata["cellmeter"]
    # jupyter_client interrupts a kernel before it bids it to end; about one in a thousand misses that and is terminated
    assert (recorded.ending, recorded.signal) in (("exited", None), ("killed", signal.SIGTERM))
    assert (said["run_id"], said["ending"]) == (folder.name, recorded.ending)
    assert [f["rule"] for f in said["findings"]] == ["memory-spike"]


def test_run_writes_metadata_when_asked(run: Calls, tmp_path: Path) -> None:
    notebook(tmp_path / "in.ipynb", "x = 1", "1 / 0", "never = 1")
    assert run(*CELLMETER, "run", "in.ipynb", "-o", "plain.ipynb").returncode == 1
    assert "cellmeter" not in nbformat.read(tmp_path / "plain.ipynb", 4).cells[1].metadata
    assert run(*CELLMETER, "run", "in.ipynb", "-o", "out.ipynb", "--metadata").returncode == 1
    book = nbformat.read(tmp_path / "out.ipynb", 4)
    nbformat.validate(book)
    assert [cell.metadata.get("cellmeter", {}).get("status") for cell in book.cells] == [None, "ok", "error", None]
    assert book.metadata["cellmeter"]["version"] == 1


def test_metadata_of_no_notebook_or_of_another(run: Calls, tmp_path: Path) -> None:
    notebook(tmp_path / "in.ipynb", "x = 1")
    assert run(*CELLMETER, "run", "in.ipynb").returncode == 0
    for arguments, says in (
        (("run", "in.ipynb", "--metadata"), "name it with -o OUT.ipynb"),
        (("export", "--into", "in.ipynb"), "no cell of in.ipynb is in run"),
        (("export", "--into", "none.ipynb"), "there is no notebook none.ipynb"),
        (("export", "--into", "in.ipynb", "--jsonl"), "--into takes no other option"),
    ):
        refused = run(*CELLMETER, *arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert says in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_ends_its_kernel_and_reports(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    path = notebook(tmp_path / "in.ipynb", "x = 1", "open('there', 'w').close(); import time; time.sleep(600)")
    command = [*CELLMETER, "run", path.name, "-o", "out.ipynb"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        wait_until((tmp_path / "there").exists, "the cell to run")
        (folder,) = run_folders(home / "runs")
        pid, _ = kernel_of(folder) or (0, "")
        # an interrupt may come to nothing before that: Python drops it in a destructor
        wait_until(lambda: Path(f"/proc/{pid}/wchan").read_text() in ("hrtimer_nanosleep", "0"), "the cell to sleep")
        process.send_signal(number)
        output, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"cellmeter: stopped by {number.name} in code cell 2 of 2 (open('there'")
    assert "cellmeter report" in output
    stopped = read_run(folder)
    assert (stopped.ending, [cell.status for cell in stopped.cells]) == ("exited", ["ok", "interrupted"])
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[2].outputs[0]["ename"] == "KeyboardInterrupt"


LISTENS = """
import os, signal
heard = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended"}  # ipykernel terminates its children as it ends
for number, name in heard.items():
    signal.signal(number, lambda _, __, name=name: open(name, "w").close())
open("listens", "w").close()
while not os.path.exists("ended"):
    signal.pause()
"""


@pytest.mark.parametrize("last", ["x = 1", "1 / 0"])
def test_a_kernel_that_has_done_its_work_is_not_interrupted(run: Calls, tmp_path: Path, last: str) -> None:
    """An interrupt would go to the workers that it has started, too, and now and then makes it miss that it is to end."""
    (tmp_path / "listens.py").write_text(LISTENS)
    start = "import subprocess, sys, os\nworker = subprocess.Popen([sys.executable, 'listens.py'])\n"
    notebook(tmp_path / "in.ipynb", f"{start}while not os.path.exists('listens'): pass", last)
    assert run(*CELLMETER, "run", "in.ipynb").returncode == (last == "1 / 0")
    assert (tmp_path / "ended").exists()
    assert not (tmp_path / "interrupted").exists()


@pytest.mark.parametrize("holds", [True, False])
def test_a_kernel_that_does_not_end_is_said(run: Calls, tmp_path: Path, holds: bool) -> None:
    """Its run ends with SIGTERM, which is nobody's failure."""
    waits = f"threading.Thread(target=threading.Event().wait, daemon={not holds}).start()"
    notebook(tmp_path / "in.ipynb", f"import threading\n{waits}")
    done = run(*CELLMETER, "run", "in.ipynb")
    assert done.returncode == 0
    assert ("so it was made to: a thread or an exit handler" in done.stderr) == holds
    assert ("killed (SIGTERM)" in done.stdout) == holds


@pytest.mark.parametrize(("source", "code"), [("x = 1", 0), (SPIKE, 3)])
def test_the_ci_example(run: Calls, tmp_path: Path, source: str, code: int) -> None:
    """Its commands do what it says; 450 MiB are a warning under a limit of 4 GiB."""
    workflow = yaml.safe_load((REPOSITORY / "docs/examples/notebook-report.yml").read_text())
    assert workflow[True] == ["pull_request"]  # YAML 1.1 reads "on" so
    steps = workflow["jobs"]["notebook"]["steps"]
    install, execute, report = (step["run"] for step in steps if "run" in step)
    extra = install.removeprefix("pip install 'cellmeter[").removesuffix("]'")
    assert extra in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    notebook(tmp_path / "analysis.ipynb", source)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cellmeter").write_text(f'#!/bin/sh\nexec {sys.executable} -m cellmeter "$@"\n')
    (tmp_path / "bin" / "cellmeter").chmod(0o755)

    def step(command: str) -> int:
        script = f'export PATH="{tmp_path}/bin:$PATH" GITHUB_STEP_SUMMARY=summary.md\n{command}'
        limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))}
        return run("bash", "-e", "-o", "pipefail", "-c", script, **limited).returncode

    assert step(execute) == 0
    assert step(report) == code
    assert (tmp_path / "summary.md").read_text().startswith("#")
    for path in steps[-1]["with"]["path"].split():
        assert (tmp_path / path).exists()
