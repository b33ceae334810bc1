"""Plain scripts: ``cellmeter record``, held against plain ``python``, and ``cellmeter.start()``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until

from cellmeter.home import run_folders
from cellmeter.run import Run
from cellmeter.store import read_run

RECORD = (sys.executable, "-m", "cellmeter", "record")


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in the test's folder."""

    def call(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            **{"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 90, "check": False, **options},
        )

    return call


Calls = Callable[..., "subprocess.CompletedProcess[str]"]


def the_run(home: Path) -> Run:
    (folder,) = run_folders(home / "runs")
    return read_run(folder)


def own(stderr: str) -> str:
    """What a script wrote to stderr, without the two lines of ours at the end."""
    lines = stderr.splitlines(keepends=True)
    assert [line.startswith("cellmeter: ") for line in lines[-2:]] == [True, True], stderr
    return "".join(lines[:-2])


SCRIPTS = {
    "arguments": (
        "import sys, os\n"
        "print(sys.argv, sys.path, __name__, __file__, __spec__, __package__, __doc__, type(__loader__).__name__)\n"
        "print(sorted(globals()), sys.modules['__main__'].__dict__ is globals(), __builtins__ is not None)\n"
        "print(sys.stdin.read().upper(), os.getcwd(), sys.flags)\n"
    ),
    "docstring": '"""Of the script."""\nfrom __future__ import annotations\nimport beside\nprint(__doc__, beside.X)\n',
    "failing": "def f():\n    return 1 / 0\n\nprint('out')\nf()\n",
    "syntax": "print('never'\n",
    "exit-3": "import sys; print('out'); sys.exit(3)",
    "exit-text": "raise SystemExit('why it ended')",
    "interrupted": "raise KeyboardInterrupt",
    "own-hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__, a[2].tb_lineno, a[2].tb_next)\n1 / 0\n",
    "at-exit": "import atexit, threading\natexit.register(print, 'last')\n"
    "main = threading.main_thread()\n"
    "threading.Thread(target=lambda: (main.join(), print('thread'))).start()\nprint('end of main')\n",
    "leaves": "import os; print('out', flush=True); os._exit(4)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "spawn": (
        "import multiprocessing as mp, os, sys\n"
        "print('module', __name__)\n"
        "def square(n):\n    return n * n, __name__, sys.argv\n"
        "if __name__ == '__main__':\n"
        "    with mp.get_context('spawn').Pool(1) as pool:\n        print(pool.map(square, [3]))\n"
    ),
    "forks": (
        "import os, sys\nprint('before', flush=True)\n"
        "if os.fork() == 0:\n    print('child', flush=True)\n    sys.exit(0)\n"
        "os.wait()\nprint('parent')\n"
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_as_with_plain_python(run: Calls, home: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "beside.py").write_text("X = 'from its own folder'")
    (tmp_path / "beside.py").write_text("X = 'from the working folder'")
    path = folder / f"{name}.py"
    path.write_text(SCRIPTS[name])
    arguments = ("scripts/" + path.name, "--report", "x", "-m", "--", "a b")
    plain = run(sys.executable, *arguments, input="typed")
    recorded = run(*RECORD, *arguments, input="typed")
    assert recorded.stdout == plain.stdout
    assert own(recorded.stderr) == plain.stderr
    assert recorded.returncode == plain.returncode
    result = the_run(home)
    (cell,) = result.cells
    assert (cell.label, result.notebook) == (path.name, str(path))
    assert f"cellmeter report {result.id} tells more" in recorded.stderr
    assert not list(tmp_path.glob("*.html"))
    code, number = (plain.returncode, None) if plain.returncode >= 0 else (None, -plain.returncode)
    assert (result.ending, result.exit_code, result.signal) == ("killed" if number else "exited", code, number)
    died = {"leaves": "died", "killed": "died", "interrupted": "interrupted"}
    assert cell.status == died.get(name, "error" if plain.returncode else "ok")


def test_a_module(run: Calls, home: Path, tmp_path: Path) -> None:
    package = tmp_path / "tool"
    package.mkdir()
    (package / "__init__.py").write_text("import sys; print(sys.argv, __name__)")
    (package / "part.py").write_text("X = 5")
    main = "import sys\nfrom .part import X\nprint(X, sys.argv, sys.path, __name__, __package__, __spec__.name, __file__)\n"
    (package / "__main__.py").write_text(main + "1 / 0\n")
    plain, recorded = (run(*command, "-m", "tool", "--x", "1") for command in ((sys.executable,), RECORD))
    assert recorded.stdout == plain.stdout
    frames = own(recorded.stderr).replace("Traceback (most recent call last):\n", "")
    assert plain.stderr.endswith(frames)
    assert recorded.returncode == plain.returncode == 1
    assert the_run(home).cells[0].label == "-m tool"
    the_first_id = the_run(home).id
    listed = json.loads(run(*RECORD[:-1], "runs", "--json").stdout)
    assert [(row["notebook"], row["script"]) for row in listed] == [(None, "-m tool")]
    assert "-m tool" in run(*RECORD[:-1], "runs").stdout
    for name in ("no_such_module", "no_such.module", "tool.nothing"):
        missing = run(*RECORD, "-m", name)
        assert (missing.returncode, own(missing.stderr)) == (1, run(sys.executable, "-m", name).stderr)
    assert re.search(r"Script +-m tool", run(*RECORD[:-1], "report", the_first_id).stdout)


def test_flags_of_the_interpreter_are_passed_on(run: Calls, home: Path, tmp_path: Path) -> None:
    (tmp_path / "asserts.py").write_text("assert False\nprint('optimised')")
    assert run(*RECORD, "asserts.py").returncode == 1
    assert run(sys.executable, "-O", *RECORD[1:], "asserts.py").stdout == "optimised\n"


def test_spans_and_samples_of_a_script_and_its_workers(run: Calls, home: Path, tmp_path: Path) -> None:
    """Its module runs again in each worker, whose ``start()`` must not begin another run."""
    (tmp_path / "train.py").write_text(
        "import cellmeter, multiprocessing as mp, time\n"
        "cellmeter.start()\n"
        "def work(n):\n"
        "    with cellmeter.span('batch', items=2):\n        time.sleep(0.05)\n"
        "if __name__ == '__main__':\n"
        "    with cellmeter.span('epoch'):\n"
        "        with mp.get_context('spawn').Pool(2) as pool:\n            pool.map(work, range(4))\n"
        "            pool.close()\n            pool.join()\n"
        "    cellmeter.log(loss=0.5)\n"
    )
    recorded = run(*RECORD, "--rate", "50", "--report", "out.json", "train.py")
    assert recorded.returncode == 0, recorded.stderr
    assert own(recorded.stderr) == ""
    result = the_run(home)
    assert result.rate_hz == 50
    assert result.usage(result.cells[0]).samples > 10
    assert {stats.name: stats.count for stats in result.span_stats()} == {"epoch": 1, "batch": 4}
    assert list(result.logged) == ["loss"]
    report = json.loads((tmp_path / "out.json").read_text())
    assert [cell["label"] for cell in report["cells"]] == ["train.py"]
    assert result.usage(result.cells[0]).peak_exact
    again = run(sys.executable, "train.py")  # workers import it while it has no parent, and run it having one
    assert (again.returncode, again.stderr) == (0, "")
    assert len(run_folders(home / "runs")) == 2
    assert read_run(run_folders(home / "runs")[-1]).ending == "stopped"


def test_what_a_launcher_starts_is_part_of_its_run(run: Calls, home: Path, tmp_path: Path) -> None:
    """As torchrun starts its ranks: each a process of another script, which may say ``start()`` itself."""
    (tmp_path / "rank.py").write_text(
        "import cellmeter, os\ncellmeter.start()\n"
        "with cellmeter.span('step'):\n    pass\n"
        "cellmeter.log(loss=float(os.environ['RANK']))\ncellmeter.stop()\n"
    )
    launch = (
        "import os, subprocess, sys\n"
        "for rank in '01':\n"
        "    subprocess.run([sys.executable, 'rank.py'], env={**os.environ, 'RANK': rank}, check=True)\n"
    )
    (tmp_path / "launch.py").write_text(launch)
    recorded = run(*RECORD, "launch.py")
    assert (recorded.returncode, own(recorded.stderr)) == (0, "")
    result = the_run(home)
    assert [cell.label for cell in result.cells] == ["launch.py"]
    assert {stats.name: stats.count for stats in result.span_stats()} == {"step": 2}
    assert sorted(result.logged["loss"].value) == [0, 1]
    alone = run(sys.executable, "launch.py")
    assert alone.returncode == 0
    assert len(run_folders(home / "runs")) == 3, "with no launcher recorded each has a run of its own"


def test_ranks_that_begin_at_once_have_a_run_each(home: Path, tmp_path: Path) -> None:
    """As ``srun cellmeter record`` does; each waits for the other, so that they are recorded at the same time."""
    path = tmp_path / "rank.py"
    path.write_text(
        "import os, pathlib, time\nranks = {'0', '1'}\nmine = os.environ['SLURM_PROCID']\npathlib.Path(mine).touch()\n"
        "while not ranks <= set(os.listdir()): time.sleep(0.01)\nraise SystemExit(int(mine))"
    )
    ranks = [
        subprocess.Popen(
            [*RECORD, path], cwd=tmp_path, env=os.environ | {"SLURM_PROCID": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    told = [rank.communicate(timeout=90)[1] for rank in ranks]
    runs = [read_run(folder) for folder in run_folders(home / "runs")]
    assert sorted(f"{run.exit_code}" for run in runs) == ["0", "1"]
    for run in runs:
        assert f"cellmeter report {run.id} tells more" in told[run.exit_code or 0]


def test_a_script_may_start_again_after_it_has_stopped(run: Calls, home: Path, tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(
        "import cellmeter\nfor _ in 'ab':\n    cellmeter.start()\n    cellmeter.stop()\n"
    )
    assert run(sys.executable, "twice.py").returncode == 0
    assert len(run_folders(home / "runs")) == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "died")])
def test_a_signal_reaches_the_script_once_and_ends_us_alike(
    run: Calls, home: Path, tmp_path: Path, number: signal.Signals, status: str
) -> None:
    (tmp_path / "waits.py").write_text(
        "import os\ntry:\n    open('there', 'w').close()\n    os.read(0, 1)\nfinally:\n    print('cleaned up', flush=True)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*RECORD, "waits.py"], cwd=tmp_path, text=True, start_new_session=True, **pipes) as process:
        wait_until((tmp_path / "there").exists, "the script to wait")
        process.send_signal(number)
        process.wait(60)  # before its standard input is closed, which would end the script too
        output, said = process.communicate()
    assert process.returncode == -number
    assert output.count("cleaned up") == (number == signal.SIGINT)
    assert own(said).count("KeyboardInterrupt") == (number == signal.SIGINT)
    result = the_run(home)
    assert (result.ending, result.signal, result.cells[0].status) == ("killed", number, status)


def test_what_cannot_be_run_or_recorded(run: Calls, home: Path, tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text("print('fine')")
    (tmp_path / "s.sh").write_text("ls -l")  # which is Python, too
    (tmp_path / "job").write_text("#!/bin/bash\nls -l")
    (tmp_path / "broken").write_text("for f in *; do echo $f; done")
    (tmp_path / "n.ipynb").write_text("{}")
    for arguments, says in (
        (["missing.py"], "there is no script missing.py"),
        (["--rate", "1000", "fine.py"], "a rate of 1000 Hz is not possible"),
        (["s.sh"], "s.sh is no Python script, and record runs Python scripts, and with -m modules"),
        (["./job"], "./job is no Python script"),
        (["broken"], "broken is no Python script"),
        (["bash", "s.sh"], "bash is a program, and record runs Python scripts, and with -m modules (-m torch"),
        (["python3", "fine.py"], "leave out python3"),
        (["n.ipynb"], "n.ipynb is a notebook: cellmeter run n.ipynb"),
    ):
        refused = run(*RECORD, *arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert says in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert run_folders(home / "runs") == []
    (tmp_path / "tool").write_text("#!/usr/bin/env python3\nprint('fine')")
    assert run(*RECORD, "tool").stdout == "fine\n", "python runs files of any name"
    (tmp_path / "faulty.py").write_text("for f in *")
    faulty = run(*RECORD, "faulty.py")
    assert (faulty.returncode, "SyntaxError" in faulty.stderr) == (1, True), "as python has it"
    unwritable = run(*RECORD, "fine.py", env={**os.environ, "CELLMETER_HOME": "/proc/nowhere"})
    assert (unwritable.returncode, unwritable.stdout) == (0, "fine\n")
    assert unwritable.stderr.count("\n") == 2
    assert unwritable.stderr.startswith("cellmeter: cannot record: /proc/nowhere/runs cannot be written")
    for path, why in (("/no/such/x.html", "there is no folder /no/such"), ("x.csv", "cellmeter export -o x.csv")):
        no_report = run(*RECORD, "--report", path, "fine.py")
        assert (no_report.returncode, no_report.stdout, no_report.stderr.count("\n")) == (2, "", 1)
        assert why in no_report.stderr
    no_settings = run(*RECORD, "fine.py", env={**os.environ, "CELLMETER_CONFIG": "/nope.toml"})
    assert (no_settings.returncode, no_settings.stdout) == (2, "")
    late = run(*RECORD, "--report", "/proc/x.html", "fine.py")  # only root gets so far as to try
    assert (late.returncode, late.stdout) in ((0, "fine\n"), (2, ""))
    if late.returncode == 0:
        assert "cannot be written: No such file or directory; the run is kept: cellmeter report 2" in late.stderr


def test_options_for_a_recording_that_goes_on(run: Calls, home: Path, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        "import cellmeter\ncellmeter.start(rate_hz=50)\n"
        "cellmeter.start(rate_hz=20, max_memory='1KiB')\nblock = bytearray(1 << 20)\n"
        "import time\nuntil = time.monotonic() + 60\nwhile not cellmeter.open_run().over_budget:\n"
        "    assert time.monotonic() < until\n    time.sleep(0.05)\n"
    )
    alone = run(sys.executable, "asks.py")
    assert alone.returncode == 0, alone.stderr
    kept = "cellmeter: recording goes on at {} Hz, not at {}, as a run keeps its rate: {}"
    assert alone.stderr.splitlines()[0] == kept.format(50, 20, "cellmeter.stop() first")
    assert "memory budget 1KiB" in alone.stderr
    recorded = run(*RECORD, "--rate", "20", "asks.py")
    assert recorded.stderr.splitlines()[0] == kept.format(20, 50, "cellmeter record --rate 50 sets it")


def test_settings_that_are_not_there_are_said_in_a_line(run: Calls, home: Path, tmp_path: Path) -> None:
    (tmp_path / "starts.py").write_text("import cellmeter\ncellmeter.start()")
    done = run(sys.executable, "starts.py", env={**os.environ, "CELLMETER_CONFIG": "/nope.toml"})
    assert done.returncode == 0
    said = "cellmeter: there is no file /nope.toml, which CELLMETER_CONFIG names: recording with the defaults\n"
    assert done.stderr == said
    assert the_run(home).rate_hz == 10


def test_start_in_a_script_tells_how_it_ended(run: Calls, home: Path, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("import cellmeter\ncellmeter.start()\n1 / 0")
    assert run(sys.executable, "fails.py").returncode == 1
    assert the_run(home).cells[0].status == "error"
