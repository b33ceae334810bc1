"""The magics in real kernels: what they show, what they leave behind, and that no failure of ours reaches the user's cell."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import nvml_stub
import pytest
from conftest import Kernel, has_ended, wait_until
from PIL import Image

from cellmeter.home import run_folders
from cellmeter.magics import _line_parser
from cellmeter.store import read_header

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = """
import sys, threading, warnings, logging, signal, json, re
# What numpy and bokeh add when they are imported concerns their own warnings only.
def foreign(f):
    return not (f[2].__module__.split(".")[0] in ("numpy", "bokeh") or (f[1] and "numpy" in f[1].pattern))
ip = get_ipython()
print(json.dumps({
    "names": sorted(k for k in globals() if not re.fullmatch(r"_i*|_i?\\d+|_oh|_dh|Out|In", k)),
    "events": {k: len(v) for k, v in ip.events.callbacks.items()},
    "transformers": len(ip.input_transformers_cleanup),
    "magics": [sorted(ip.magics_manager.magics[k]) for k in ("line", "cell")],
    "registry": sorted(set(ip.magics_manager.registry) - {"ExtensionMagics"}),  # IPython's own, made when first used
    "filters": [str(f) for f in warnings.filters if foreign(f)],
    "handlers": len(logging.getLogger().handlers),
    "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "path": sys.path,
    "threads": sorted(t.name for t in threading.enumerate() if "cellmeter" in t.name),
}))
"""


def test_unloading_leaves_the_kernel_as_it_was(start_kernel: Callable[..., Kernel], home: Path) -> None:
    kernel = start_kernel()
    kernel.run(STATE)
    before = json.loads(kernel.run(STATE).stdout)
    kernel.load()
    loaded = json.loads(kernel.run(STATE).stdout)
    assert loaded["names"] == before["names"]
    assert {k: loaded[k] for k in ("filters", "handlers", "signals", "path")} == {
        k: before[k] for k in ("filters", "handlers", "signals", "path")
    }
    kernel.run("%%monitor\n1 + 1")
    kernel.run("%unload_ext cellmeter")
    assert json.loads(kernel.run(STATE).stdout) == before
    (folder,) = run_folders(home / "runs")
    wait_until(lambda: has_ended(folder), "the recorder to end")
    assert kernel.recorded().ending == "stopped"


def test_reloading_makes_a_new_run(kernel: Kernel, home: Path) -> None:
    kernel.run("one = 1")
    assert kernel.run("%reload_ext cellmeter").stderr == ""
    kernel.run("two = 2")
    assert [c.first_line for c in kernel.recorded_cells(1).cells] == ["two = 2"]
    assert kernel.recorded(0).ending == "stopped"
    assert len(run_folders(home / "runs")) == 2


def test_loading_twice_is_harmless(kernel: Kernel, home: Path) -> None:
    assert kernel.load().status == "ok"
    assert len(run_folders(home / "runs")) == 1


def test_start_and_stop(kernel: Kernel, home: Path) -> None:
    first = kernel.run("%monitor start")
    assert run_folders(home / "runs")[0].name in first.stdout, "a recording that runs goes on"
    assert kernel.run("%monitor stop").stdout.startswith("cellmeter: stopped 2")
    assert kernel.run("%monitor stop").stdout == "cellmeter: nothing was being recorded\n"
    assert "recording is off" in kernel.run("%%monitor\nprint(1)").stderr
    assert "at 25 Hz" in kernel.run("%monitor start --rate 25").stdout
    kernel.run("x = 1")
    run = kernel.recorded_cells(1)
    assert run.rate_hz == 25
    assert kernel.recorded(0).ending == "stopped"


def test_the_first_call_starts_at_the_rate_asked_for(start_kernel: Callable[..., Kernel], home: Path) -> None:
    kernel = start_kernel()
    refused = kernel.run(
        "import cellmeter\ntry: cellmeter.start(rate_hz=1000)\nexcept Exception as error: print(error)"
    )
    assert (refused.stdout, refused.stderr) == ("a rate of 1000 Hz is not possible: choose 0.1 to 100\n", "")
    assert run_folders(home / "runs") == []
    assert kernel.run("cellmeter.start(rate_hz=20)").stderr == ""
    assert re.search(r"Rate +20 a second", kernel.run("%monitor").stdout)
    assert kernel.run("cellmeter.start(rate_hz=20); cellmeter.start()").stderr == "", "it has that rate"


def test_a_run_can_be_opened_in_the_cell_that_starts_it(start_kernel: Callable[..., Kernel], home: Path) -> None:
    reply = start_kernel().run("import cellmeter\ncellmeter.start()\nprint(cellmeter.open_run().id)")
    assert (reply.stdout, reply.status) == (f"{run_folders(home / 'runs')[0].name}\n", "ok")


def test_a_recording_that_goes_on_says_that_it_keeps_its_rate(kernel: Kernel) -> None:
    for asks in ("%monitor start --rate 100", "import cellmeter; cellmeter.start(rate_hz=100)"):
        reply = kernel.run(asks)
        assert reply.stderr == (
            "cellmeter: recording goes on at 10 Hz, not at 100, as a run keeps its rate: "
            "%monitor stop first, or %%monitor --rate 100 for one cell\n"
        )
    assert "interrupt=True goes with max_memory" in kernel.run("cellmeter.start(interrupt=True)").traceback


def test_the_status_says_what_is_recorded_what_is_not_and_what_it_costs(kernel: Kernel, home: Path) -> None:
    status = kernel.run("%monitor").stdout
    for expected in (
        run_folders(home / "runs")[0].name,
        "10",
        "gpu",
        "no NVIDIA driver",
        "Free disk",
        "Recorder's own cost",
    ):
        assert expected in status


def test_cells_and_report(kernel: Kernel, tmp_path: Path) -> None:
    kernel.run("block = bytearray(400 << 20)\ndel block")
    kernel.recorded_cells(1)
    (table,) = kernel.run("%monitor cells").displays
    assert re.search(r"In \[2\].*ok", table["data"]["text/plain"])
    assert re.search(r"<td>In \[2\].*<td>ok</td>", table["data"]["text/html"])
    (shown,) = kernel.run("%monitor report").displays
    assert "In [2]" in shown["data"]["text/plain"]
    assert "<script" not in shown["data"]["text/html"]
    target = tmp_path / "out.json"
    assert kernel.run(f"%monitor report {target}").stdout == f"cellmeter: wrote {target}\n"
    report = json.loads(target.read_text())
    assert [f["rule"] for f in report["findings"]] == ["memory-spike"]


def test_a_mistake_is_one_line(kernel: Kernel) -> None:
    def mistaken(line: str, says: str) -> None:
        reply = kernel.run(line)
        assert says in reply.stderr
        assert (reply.stderr.count("\n"), reply.traceback) == (1, ""), line

    mistaken("%monitor report /no/such/folder/x.html", "cannot be written: No such file or directory")
    mistaken("%monitor report x.docx", ".docx")
    mistaken("%monitor show 99", "In [99] is not in")
    mistaken("%monitor report 'unclosed", "No closing quotation")
    kernel.run("%monitor stop")
    mistaken("%monitor start --rate 5000", "a rate of 5000 Hz is not possible: choose 0.1 to 100")
    mistaken("%monitor start --rate fast", "invalid float value: 'fast'")


def test_a_cell_can_be_had_as_a_picture(kernel: Kernel, tmp_path: Path) -> None:
    kernel.run("import time\nblock = bytearray(b'1') * (200 << 20)\ntime.sleep(0.5)")
    file = tmp_path / "of the cell.png"
    assert kernel.run(f"%monitor show 2 '{file}'").stdout == f"cellmeter: wrote {file}\n"
    with Image.open(file) as image:
        assert (image.format, image.width) == ("PNG", 2 * 780)
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert len(image.getcolors(1 << 24)) > 10, "something is drawn"
    last = kernel.run(f"%monitor show {tmp_path}/last.png")
    assert (last.displays, (tmp_path / "last.png").exists()) == ([], True)
    for line, says in (
        ("99 x.png", "In [99] is not in"),
        ("2 x.gif", "writes a FILE.png; x.gif is neither"),
        ("2 3", "name one cell"),
        ("2 /no/such/x.png", "/no/such/x.png cannot be written: No such file or directory"),
    ):
        assert says in kernel.run(f"%monitor show {line}").stderr


def test_what_there_is_is_listed_in_a_few_lines(kernel: Kernel) -> None:
    commands = next(a for a in _line_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    for ask in ("help", "--help", "-h"):
        asked = kernel.run(f"%monitor {ask}")
        listed = re.findall(r"^  %monitor (\w+) ", asked.stdout, re.MULTILINE)
        assert (sorted(listed), asked.stderr) == (sorted(commands), "")
        assert len(asked.stdout.splitlines()) < 15
    unknown = kernel.run("%monitor nonsense")
    assert unknown.stderr == f"UsageError: there is no %monitor nonsense\n{asked.stdout}"
    assert (unknown.traceback, unknown.stdout) == ("", "")


def test_a_mistake_in_a_cells_options_does_not_keep_it_from_running(kernel: Kernel) -> None:
    reply = kernel.run("%%monitor --no-chart --show cpu,nonsense\nprint('ran')")
    assert reply.stdout == "ran\n"
    assert "there is no group 'nonsense'" in reply.stderr
    assert reply.status == "ok"


def test_help_shows_the_options(kernel: Kernel) -> None:
    reply = kernel.client.execute_interactive("%monitor?", output_hook=lambda _: None, timeout=30)
    text = reply["content"]["payload"][0]["data"]["text/plain"]
    for expected in (
        "%%monitor [LABEL]",
        "--rate HZ",
        "%monitor cells",
        "%monitor report PATH",
        "%monitor start --auto",
        "%monitor dock",
    ):
        assert expected in text


def test_a_monitored_cell_waits_a_moment_for_a_recorder_that_is_slow(
    start_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    """A driver that keeps no GPU awake takes a second to open."""
    kernel = start_kernel(env=nvml_stub.environment("delay nvmlInitWithFlags 1000000\ngpu", tmp_path))
    kernel.run("%load_ext cellmeter")
    reply = kernel.run("%%monitor at once\n1")
    assert reply.stderr == ""
    assert "at once: done in " in reply.updates[-1]["data"]["text/plain"]


def test_a_driver_that_hangs_holds_up_one_monitored_cell_and_no_other(
    start_kernel: Callable[..., Kernel], tmp_path: Path
) -> None:
    kernel = start_kernel(env=nvml_stub.environment("delay nvmlInitWithFlags 8000000\ngpu", tmp_path))
    kernel.run("from cellmeter import recording\nrecording.SILENT_SECONDS, recording.LOOK_SECONDS = 60.0, 0.0")
    kernel.run("%load_ext cellmeter\nfrom cellmeter.recorder import Recorder\nwaited, ready = [], Recorder.ready")
    kernel.run("Recorder.ready = lambda self, seconds: waited.append(seconds) or ready(self, seconds)")
    assert "the recorder is not ready yet" in kernel.run("%%monitor\n1").stderr
    assert kernel.run("%%monitor\n2").stderr == ""
    assert kernel.run("print(waited)").stdout == "[2.0, 0.0]\n"
    assert "does a GPU's driver hang" in kernel.run("recording.SILENT_SECONDS = 0.0").stderr


def test_a_monitored_cell_ends_as_a_picture_without_a_widget(kernel: Kernel) -> None:
    reply = kernel.run("%%monitor my label\nimport time\ntime.sleep(0.5)\n'result'")
    shown, result = reply.displays
    assert WIDGET in shown["data"]
    assert result["data"]["text/plain"] == "'result'"
    (final,) = reply.updates
    assert final["transient"]["display_id"] == shown["transient"]["display_id"]
    assert WIDGET not in final["data"]
    assert {"text/html", "text/plain"} <= final["data"].keys()
    assert "<img" in final["data"]["text/html"]
    assert "my label" in final["data"]["text/plain"]


def test_the_panel_of_a_failed_cell_ends_too(kernel: Kernel) -> None:
    reply = kernel.run("%%monitor\n1 / 0")
    assert reply.error == "ZeroDivisionError"
    assert WIDGET not in reply.updates[-1]["data"]
    assert "failed" in reply.updates[-1]["data"]["text/plain"]


def test_show_draws_a_cell_again(kernel: Kernel) -> None:
    first = kernel.run("import time; time.sleep(0.3)")
    kernel.recorded_cells(1)
    (again,) = kernel.run(f"%monitor show {first.execution_count}").displays
    assert "<img" in again["data"]["text/html"]
    kernel.run("%monitor cells")
    (latest,) = kernel.run("%monitor show").displays
    assert latest["data"]["text/plain"] == again["data"]["text/plain"], "the last cell that did something"


def test_show_passes_over_a_report_that_took_a_while(kernel: Kernel) -> None:
    kernel.run(
        "import time\nfrom cellmeter import export\nwrite = export.write\n"
        "export.write = lambda *arguments: (time.sleep(1.1), write(*arguments))"
    )
    kernel.run("%%monitor the work --no-chart\nx = 1")
    assert "wrote" in kernel.run("%monitor report r.md").stdout
    kernel.run("%monitor cells\ny = 1")
    run = kernel.recorded_cells(4)
    assert ([cell.ours for cell in run.cells], (run.cells[2].seconds or 0) > 1) == ([False, False, True, False], True)
    (latest,) = kernel.run("%monitor show").displays
    assert f"In [{run.cells[3].execution_count}]" in latest["data"]["text/plain"], "it did more than to ask"
    kernel.run("%monitor report r.md")
    (still,) = kernel.run("%monitor show").displays
    assert still["data"]["text/plain"] == latest["data"]["text/plain"]


def test_the_cell_that_stops_the_recording_keeps_its_number(kernel: Kernel) -> None:
    reply = kernel.run("%monitor stop")
    assert kernel.recorded_cells(1).cells[-1].title == f"In [{reply.execution_count}]"


def test_a_run_is_not_compared_with_itself(kernel: Kernel) -> None:
    kernel.run("1")
    assert "would be compared with itself" in kernel.run(f"%monitor compare {kernel.recorded_cells(1).id}").stderr


def test_a_program_may_call_the_magic(kernel: Kernel) -> None:
    reply = kernel.run("get_ipython().run_cell_magic('monitor', '--no-chart', 'answer = 42\\nanswer')")
    assert [shown["data"]["text/plain"] for shown in reply.displays] == ["42"], "its value, once"
    reply = kernel.run("print(answer)")
    lines = reply.stdout.splitlines()
    assert (lines[-1], reply.status) == ("42", "ok")


def test_without_a_chart_there_is_a_line_at_the_end(kernel: Kernel) -> None:
    reply = kernel.run("%%monitor counting --no-chart\nprint('ran')")
    ran, said = reply.stdout.splitlines()
    assert ran == "ran"
    assert re.match(r"counting: done in [\d.]+ m?s · ", said)
    assert "memory peak" in said
    assert (reply.displays, reply.updates) == ([], [])


# --- a failure of ours is never the user's ------------------------------------------------------------------------------


def test_what_is_shown_waits_for_a_recorder_that_is_behind(kernel: Kernel, home: Path) -> None:
    (folder,) = run_folders(home / "runs")
    wait_until(lambda: (folder / "run.json").exists(), "the recorder")
    recorder = read_header(folder)["recorder"]["pid"]
    kernel.run("%monitor cells")  # all that it imports
    kernel.run(f"import os, threading\nos.kill({recorder}, {int(signal.SIGSTOP)})")
    kernel.run("behind = 1")
    goes_on = f"threading.Timer(0.3, os.kill, ({recorder}, {int(signal.SIGCONT)})).start()"
    table = kernel.run(f"{goes_on}\n%monitor cells").displays[-1]["data"]["text/plain"]
    assert re.search(r"behind = 1 .* ok\n", table), table
    assert re.search(r"threading\.Timer.* running", table), table


def test_a_recorder_killed_within_a_cell(kernel: Kernel, home: Path) -> None:
    (folder,) = run_folders(home / "runs")
    wait_until(lambda: (folder / "run.json").exists(), "the recorder")
    recorder = read_header(folder)["recorder"]["pid"]
    reply = kernel.run(
        f"%%monitor\nimport os, time\nos.kill({recorder}, {int(signal.SIGKILL)})\ntime.sleep(0.2)\n'result'"
    )
    assert reply.status == "ok"
    assert reply.displays[-1]["data"]["text/plain"] == "'result'"
    assert "the recorder has died" in reply.stderr
    assert "%monitor start" in reply.stderr
    assert reply.stderr.count("\n") == 1
    quiet = kernel.run("print('next')")
    assert (quiet.stdout, quiet.stderr) == ("next\n", "")
    assert kernel.run("%monitor start").status == "ok"
    kernel.run("again = 1")
    assert kernel.recorded_cells(1).cells[0].first_line == "again = 1"


def test_a_folder_that_cannot_be_written(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    kernel = start_kernel(env={"CELLMETER_HOME": str(in_the_way)})
    reply = kernel.load()
    assert reply.status == "ok"
    assert "cannot be written" in reply.stderr
    assert "CELLMETER_HOME" in reply.stderr
    assert reply.stderr.count("\n") == 1
    assert kernel.run("print(1 + 1)").stdout == "2\n"
    monitored = kernel.run("%%monitor\nprint(1 + 1)")
    assert monitored.stdout == "2\n"
    assert "recording is off" in monitored.stderr


def test_a_read_only_home(start_kernel: Callable[..., Kernel], home: Path) -> None:
    home.mkdir()
    home.chmod(0o500)
    # root writes everywhere, so a file system that nobody can write to stands in
    kernel = start_kernel(env={"CELLMETER_HOME": "/proc/cellmeter"} if os.access(home, os.W_OK) else {})
    reply = kernel.load()
    assert "cannot be written" in reply.stderr
    assert kernel.run("print(1 + 1)").stdout == "2\n"
    home.chmod(0o700)


def test_the_run_folder_removed_while_it_is_recorded(kernel: Kernel, home: Path) -> None:
    kernel.run("%%monitor\n1")
    kernel.run(f"import shutil; shutil.rmtree({str(home / 'runs')!r})")
    reply = kernel.run("%%monitor\nprint('fine')")
    assert (reply.stdout, reply.status) == ("fine\n", "ok")
    assert "Traceback" not in reply.stderr
    assert kernel.run("%monitor start").status == "ok"
    kernel.run("x = 2")
    assert kernel.recorded_cells(1).cells[-1].first_line == "x = 2", "a new run has begun"


def test_a_full_disk(kernel: Kernel, home: Path) -> None:
    """A limit on file sizes stands in for a full disk: the same calls fail in the same places, with another errno."""
    kernel.run("x = 1")
    recorder = kernel.recorded_cells(1) and read_header(run_folders(home / "runs")[0])["recorder"]["pid"]
    kernel.run("from cellmeter import recording; recording.SILENT_SECONDS, recording.LOOK_SECONDS = 1.5, 0.2")
    full = f"import resource, time\nresource.prlimit({recorder}, resource.RLIMIT_FSIZE, (1, 1))\ntime.sleep(2.2)"
    reply = kernel.run(f"%%monitor --rate 100\n{full}\nprint('fine')")
    assert (reply.stdout, reply.status) == ("fine\n", "ok")
    assert "is the disk full?" in reply.stderr
    assert reply.stderr.count("\n") == 1


def test_bokeh_missing(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "bokeh.py").write_text("raise ImportError('no bokeh here')")
    kernel = start_kernel(env={"PYTHONPATH": str(broken)})
    loaded = kernel.load()
    reply = kernel.run("%%monitor\nprint('fine')")
    assert (loaded.status, reply.stdout, reply.status) == ("ok", "fine\n", "ok")
    told = loaded.stderr + reply.stderr
    assert "bokeh" in told
    assert told.count("\n") == 1
    kernel.run("2")
    assert len(kernel.recorded_cells(2).cells) == 2, "recording goes on without charts"


def test_memory_so_short_that_no_thread_starts(start_kernel: Callable[..., Kernel]) -> None:
    kernel = start_kernel()
    kernel.load()
    kernel.run("%%monitor\n1")
    kernel.run("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29, -1))")
    reply = kernel.run("%%monitor\nprint('fine')")
    assert (reply.stdout, reply.status) == ("fine\n", "ok")


def test_broken_settings_are_told_and_recording_is_off(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("rate_hz = 'fast'\n")
    kernel = start_kernel(env={"CELLMETER_CONFIG": str(config)})
    assert kernel.load().stderr == f"cellmeter: {config}: rate_hz must be a number, not 'fast'\n"
    assert kernel.run("print(1)").stdout == "1\n"


def test_settings_are_followed(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("rate_hz = 20\nexact_peak = false\nkeep_source = true\n")
    kernel = start_kernel(env={"CELLMETER_CONFIG": str(config)})
    kernel.load()
    kernel.run("a = 1\nb = 2")
    run = kernel.recorded_cells(1)
    assert run.rate_hz == 20
    assert run.cells[0].source == "a = 1\nb = 2"
    assert run.usage(run.cells[0]).unknown["peak_exact"] == "exact peaks are switched off (exact_peak)"


@pytest.mark.parametrize("restart", [False, True])
def test_an_orderly_end_is_told_apart(kernel: Kernel, home: Path, restart: bool) -> None:
    kernel.run("x = 1")
    kernel.recorded_cells(1)
    (folder,) = run_folders(home / "runs")
    if restart:
        kernel.manager.restart_kernel()
    else:
        kernel.client.shutdown()
    wait_until(lambda: has_ended(folder), "the recorder to end")
    assert kernel.recorded(0).ending == ("restarted" if restart else "exited")


def test_the_next_kernel_says_how_the_last_one_died(start_kernel: Callable[..., Kernel], home: Path) -> None:
    notebook = {"JPY_SESSION_NAME": "/home/me/train.ipynb"}
    first = start_kernel(env=notebook)
    assert first.load().stdout.startswith("cellmeter: recording at 10 Hz; %%monitor ")
    first.run("x = 1")
    first.recorded_cells(1)
    first.send("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    (folder,) = run_folders(home / "runs")
    wait_until(lambda: has_ended(folder), "the recorder to end")
    told = start_kernel(env=notebook).load().stdout
    assert told.startswith("cellmeter: the last kernel of this notebook ended: killed (SIGKILL) in In [3], with ")
    assert folder.name in told
    assert told.count("\n") == 1
    other = start_kernel(env={"JPY_SESSION_NAME": "/home/me/other.ipynb"})
    assert "ended" not in other.load().stdout


@pytest.mark.parametrize("older", [False, True])
def test_loading_says_that_it_works_where_somebody_reads_it(start_kernel: Callable[..., Kernel], older: bool) -> None:
    """Nothing is put into notebooks that run without a browser, nor by the API."""
    greeting = start_kernel(older=older).load()
    assert re.fullmatch(r"cellmeter: recording at 10 Hz; %%monitor [^\n]+, %monitor report [^\n]+\n", greeting.stdout)
    assert start_kernel(older=older).run("%load_ext cellmeter", allow_stdin=False).stdout == ""
    assert start_kernel(older=older).run("import cellmeter; cellmeter.start()").stdout == ""


def test_settings_that_are_not_there_are_one_line_and_the_defaults(start_kernel: Callable[..., Kernel]) -> None:
    kernel = start_kernel(env={"CELLMETER_CONFIG": "/nope.toml"})
    loaded = kernel.load()
    assert loaded.stderr == (
        "cellmeter: there is no file /nope.toml, which CELLMETER_CONFIG names: recording with the defaults\n"
    )
    assert "recording at 10 Hz" in loaded.stdout
    kernel.run("x = 1")
    assert "In [2]" in kernel.run("%monitor report").displays[0]["data"]["text/plain"]


def test_gpus_chosen_in_a_cell_are_known(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    env = nvml_stub.environment("gpu\ngpu\nat 0 gpu 0 util=50\nat 0 gpu 1 util=0", tmp_path)
    kernel = start_kernel(env=env)
    kernel.load()
    kernel.run("x = 1")
    assert [device.mine for device in kernel.recorded_cells(1).devices] == [None, None]
    kernel.run("import os; os.environ['CUDA_VISIBLE_DEVICES'] = '1'")
    kernel.run("y = 2")
    assert [device.mine for device in kernel.recorded_cells(3).devices] == [False, True]


def test_terminal_ipython_shows_text(script: Callable[..., object], home: Path) -> None:
    source = """
from IPython.terminal.interactiveshell import TerminalInteractiveShell
shell = TerminalInteractiveShell.instance()
shell.run_cell('%load_ext cellmeter')
shell.run_cell('%%monitor\\nprint(6 * 7)')
print(shell.input_transformer_manager.check_complete('%%monitor\\n')[0])
"""
    process = script(source)
    out, err = process.communicate(timeout=60)  # type: ignore[attr-defined]
    assert "42" in out
    assert "memory peak" in out
    assert "Widget" not in out
    assert "Traceback" not in err


def test_a_closed_stderr_keeps_no_cell_from_running_or_being_recorded(kernel: Kernel) -> None:
    kernel.run("import io, sys; kept, sys.stderr = sys.stderr, io.StringIO(); sys.stderr.close()")
    reply = kernel.run("%%monitor --rate 7777 --no-chart\nx = 6\nprint(x)")
    assert (reply.stdout.splitlines()[0], reply.status) == ("6", "ok")
    kernel.run("sys.stderr = kept")
    assert [c.status for c in kernel.recorded_cells(3).cells] == ["ok"] * 3


def test_a_monitor_line_of_any_length_is_quick(kernel: Kernel) -> None:
    reply = kernel.run(f"%%monitor {'x' * 3_000_000}\nprint('fine')")
    assert (reply.stdout, reply.status) == ("fine\n", "ok")
    assert "more than 2000 characters" in reply.stderr


def test_a_size_that_would_remove_all_is_refused(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    kernel = start_kernel(env={"CELLMETER_CONFIG": str(config)})
    for value in ("-1", "0", "nan", "inf"):
        config.write_text(f"max_total_gib = {value}")
        assert "max_total_gib must be at least 0.01" in kernel.run("%reload_ext cellmeter").stderr
