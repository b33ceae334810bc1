"""Who holds memory of a GPU: what the recorder tells of processes, and where people read it."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import nvml_stub
import pytest
from builders import GIB, GpuWork, a_cell, a_device, a_run, without
from conftest import Kernel, wait_until

from cellmeter.cli import main
from cellmeter.export import render, status_text
from cellmeter.export.report_json import schema
from cellmeter.export.selection import Part, narrowed
from cellmeter.failures import Failure
from cellmeter.following import Followed
from cellmeter.holders import Amount, holders_from, others_on, told
from cellmeter.home import open_run, run_folders
from cellmeter.rules import Finding, judge
from cellmeter.run import Run
from cellmeter.sources.holders import BURST, MOST_TOLD, Holders
from cellmeter.store import process_identity
from cellmeter.watch import view

USER = getpass.getuser()
MIB = 2**20
SECOND = 1_000_000_000


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A real process that nothing here has started recording: not ours, by the tree of whoever asks."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def watching(recorded: Callable[[int], Any] = lambda _: None, proc: str = "/proc") -> Holders:
    return Holders(proc, 2.0, recorded)


def a_process(proc: Path, pid: int, name: str = "python", start: int = 100, parent: int = 1) -> None:
    (proc / str(pid)).mkdir(parents=True, exist_ok=True)
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    stat = f"{pid} ({name}) S {parent} " + "0 " * 17 + f"{start} 0"
    (proc / str(pid) / "stat").write_text(stat)


class TestTheRecorder:
    def test_a_process_by_its_user_name_and_start_until_it_goes(self, sleeper: subprocess.Popen[bytes]) -> None:
        wait_until(lambda: Path(f"/proc/{sleeper.pid}/comm").read_text() == "sleep\n", "exec")
        who = watching()
        who.see("gpu0", {sleeper.pid: 60.0 * GIB}, {os.getppid()})
        (event,) = who.events()
        start = int((process_identity(sleeper.pid) or "").rpartition(":")[2])
        assert event == {
            "event": "holders",
            "subject": "gpu0",
            "processes": [
                {
                    "pid": sleeper.pid,
                    "start": start,
                    "user": USER,
                    "name": "sleep",
                    "used_bytes": 60 * GIB,
                    "whose": "other",
                }
            ],
            "host_pids": False,
        }
        who.see("gpu0", {sleeper.pid: 60.0 * GIB}, {os.getppid()})
        assert who.events() == [], "nothing has changed"
        who.see("gpu0", {}, {os.getppid()})
        assert [event["processes"] for event in who.events()] == [[]]

    def test_the_kernels_own_and_a_child_that_it_has_just_begun(self, sleeper: subprocess.Popen[bytes]) -> None:
        who = watching()
        who.see("gpu0", {os.getpid(): 1.0 * GIB, sleeper.pid: 2.0 * GIB}, {os.getpid()})
        (event,) = who.events()
        assert [process["whose"] for process in event["processes"]] == ["kernel", "kernel"]
        assert [process["pid"] for process in event["processes"]] == [sleeper.pid, os.getpid()], "the most first"

    @pytest.mark.parametrize(
        ("before", "after", "news"),
        [
            (10 * GIB, 10.4 * GIB, False),
            (10 * GIB, 10.6 * GIB, True),
            (10 * GIB, 9.4 * GIB, True),
            (500 * MIB, 600 * MIB, False),
            (500 * MIB, 800 * MIB, True),
            (float("nan"), float("nan"), False),
            (float("nan"), 1 * GIB, True),
            (1 * GIB, float("nan"), True),
        ],
    )
    def test_memory_is_told_again_if_it_has_changed_much(self, before: float, after: float, news: bool) -> None:
        who = watching()
        for used in (before, after):
            who.see("gpu0", {os.getpid(): float(used)}, ())
        assert len(who.events()) == 1 + news

    def test_slow_growth_is_told_too(self) -> None:
        who = watching()
        for used in range(0, 40 * GIB, 100 * MIB):
            who.see("gpu0", {os.getpid(): float(used)}, ())
        last = who.events()[-1]["processes"][0]["used_bytes"]
        assert last > 40 * GIB / 1.06

    def test_an_id_that_is_used_again_is_another_process(self, tmp_path: Path) -> None:
        who = watching(proc=str(tmp_path))
        a_process(tmp_path, 42, "python", start=100)
        who.see("gpu0", {42: 1.0 * GIB}, ())
        who.see("gpu0", {}, ())
        a_process(tmp_path, 42, "blender", start=200)
        who.see("gpu0", {42: 1.0 * GIB}, ())
        found = holders_from([{"t": n * SECOND, **event} for n, event in enumerate(who.events())], 0)
        assert [(one.name, one.start_ticks, one.start, one.end) for one in found] == [
            ("python", 100, 0.0, 1.0),
            ("blender", 200, 2.0, None),
        ]

    def test_a_process_is_read_once_for_all_gpus(self, tmp_path: Path) -> None:
        who = watching(proc=str(tmp_path))
        a_process(tmp_path, 42)
        who.see("gpu0", {42: 1.0 * GIB}, ())
        a_process(tmp_path, 42, "renamed")
        who.see("gpu1", {42: 1.0 * GIB}, ())
        who.see("gpu0", {}, ())
        who.see("gpu1", {42: 2.0 * GIB}, ())
        assert {process["name"] for event in who.events() for process in event["processes"]} == {"python"}

    def test_what_proc_hides_is_unknown(self, tmp_path: Path) -> None:
        who = watching(proc=str(tmp_path))
        (tmp_path / "43").mkdir()  # hidepid=1: the owner may be seen, nothing else
        who.see("gpu0", {42: 2.0 * GIB, 43: 1.0 * GIB}, ())
        (event,) = who.events()
        hidden, owned = event["processes"]
        assert (hidden["user"], hidden["name"], hidden["start"], hidden["whose"]) == (None, None, None, "other")
        assert (owned["user"], owned["name"]) == (USER, None)

    def test_a_name_that_is_cut_within_a_character(self, tmp_path: Path) -> None:
        who = watching(proc=str(tmp_path))
        a_process(tmp_path, 42)
        (tmp_path / "42/comm").write_bytes("数据数据数据".encode()[:-1] + b"\n")
        who.see("gpu0", {42: 1.0 * GIB}, ())
        assert who.events()[0]["processes"][0]["name"].startswith("数据数据数")

    def test_ids_of_the_host_are_not_looked_up_here(self, tmp_path: Path) -> None:
        asked: list[int] = []
        who = watching(asked.append)
        who.see("gpu0", {os.getpid(): 1.0 * GIB}, None)
        (event,) = who.events()
        assert event["host_pids"]
        (process,) = event["processes"]
        assert [process[key] for key in ("user", "name", "start", "whose")] == [None] * 4
        assert asked == []

    def test_a_directory_of_users_that_does_not_answer_holds_up_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = threading.Event()
        real = pwd.getpwuid

        def slow(uid: int) -> pwd.struct_passwd:
            answers.wait()
            return real(uid)

        monkeypatch.setattr(pwd, "getpwuid", slow)
        who = watching()
        who.see("gpu0", {os.getpid(): 1.0 * GIB}, ())
        assert [event["processes"][0]["user"] for event in who.events()] == [None]
        answers.set()

        def told_again() -> list[dict[str, Any]]:
            who.see("gpu0", {os.getpid(): 1.0 * GIB}, ())
            return who.events()

        (event,) = wait_until(told_again, "the user's name")
        assert event["processes"][0]["user"] == USER

    def test_a_user_without_a_name_is_told_by_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nobody(uid: int) -> pwd.struct_passwd:
            raise KeyError(uid)

        monkeypatch.setattr(pwd, "getpwuid", nobody)
        who = watching()
        who.see("gpu0", {os.getpid(): 1.0 * GIB}, ())
        assert who.events()[0]["processes"][0]["user"] == str(os.getuid())

    def test_a_day_of_processes_that_never_rest_stays_small(self, tmp_path: Path) -> None:
        who = watching(proc=str(tmp_path))
        for n in range(43_200):
            who.see("gpu0", {10 + n % 2: 1.0 * GIB}, ())
        events = who.events()
        notices = [event["text"] for event in events if event["event"] == "notice"]
        assert notices == ["who held how much of gpu0 changed too often: not all of it is recorded"]
        assert BURST < len(events) <= BURST + 1440 + 1
        assert sum(len(json.dumps(event)) for event in events) < 500_000

    def test_memory_that_never_rests_leaves_room_for_who_comes(self) -> None:
        who = watching()
        for n in range(10_000):
            who.see("gpu0", {os.getpid(): (10.0 + 10 * (n % 2)) * GIB}, ())
        assert "who held how much of gpu0 changed too often" in str([event.get("text") for event in who.events()])
        for n in range(int(BURST / 2) - 1):
            who.see("gpu0", {os.getpid(): 1.0 * GIB, **({os.getppid(): 1.0 * GIB} if n % 2 else {})}, ())
        kinds = [event["event"] for event in who.events()]
        assert len(kinds) >= BURST / 2 - 2
        assert set(kinds) == {"holders"}

    def test_of_very_many_those_that_hold_most_are_told(self, tmp_path: Path) -> None:
        who = watching(proc=str(tmp_path))
        who.see("gpu0", {pid: pid * 1.0 * MIB for pid in range(1000, 1100)}, ())
        notice, event = who.events()
        assert f"more than {MOST_TOLD} processes held gpu0" in notice["text"]
        assert [process["pid"] for process in event["processes"]] == list(range(1099, 1099 - MOST_TOLD, -1))


A, B = 4711, 4712


def an_event(t: float, *processes: tuple[int, int | None], gpu: str = "gpu0", **fields: Any) -> dict[str, Any]:
    known = {"start": 5, "user": "alice", "name": "python", "whose": "other", **fields}
    told = [{"pid": pid, "used_bytes": used, **known} for pid, used in processes]
    return {"event": "holders", "t": int(t * SECOND), "subject": gpu, "host_pids": False, "processes": told}


class TestARun:
    def test_processes_from_their_first_to_their_last(self) -> None:
        events = [
            an_event(1, (A, 10)),
            an_event(1, (A, 7), gpu="gpu1"),
            {"event": "gap", "t": 2 * SECOND},
            an_event(3, (A, 30), (B, None)),
            an_event(4, (B, None)),
            an_event(6, (A, 20), (B, None)),
            {"event": "lost", "t": 8 * SECOND, "subject": "gpu0", "reason": "it fell off the bus"},
        ]
        first, elsewhere, second = holders_from(events, 0)
        assert (first.pid, first.start, first.end, first.most_bytes) == (A, 1.0, 8.0, 30.0)
        assert first.amounts == (Amount(1, 10), Amount(3, 30), Amount(4, 0), Amount(6, 20), Amount(8, 0))
        assert (elsewhere.gpu, elsewhere.end) == ("gpu1", None)
        assert (second.pid, second.end, second.most_bytes) == (B, 8.0, None), "how much is unknown"
        assert [(one.pid, one.most_bytes) for one in others_on((first, second), "gpu0", 4.5, 5.0)] == [(B, None)]
        assert [(one.pid, one.most_bytes) for one in others_on((first, second), "gpu0", 2, 5)] == [(A, 30), (B, None)]
        assert others_on((first, second), "gpu0", 8.5, 9) == ()
        assert [one.pid for one in others_on((first, second), "gpu0", 8.5, 9, within=2)] == [A, B]

    def test_whoever_is_known_to_be_the_kernels_stays_so(self) -> None:
        events = [an_event(1, (A, 10)), an_event(2, (A, 10), whose="kernel"), an_event(3, (A, 10))]
        (one,) = holders_from(events, 0)
        assert one.whose == "kernel"
        assert others_on((one,), "gpu0", 0, 9) == ()

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({}, "alice's python, pid 4711, 60.0 GiB"),
            ({"used_bytes": None}, "alice's python, pid 4711"),
            ({"user": "100071"}, "user 100071's python, pid 4711, 60.0 GiB"),
            ({"name": None}, "a process of alice, pid 4711, 60.0 GiB"),
            ({"user": None, "name": None}, "a process that cannot be seen, pid 4711, 60.0 GiB"),
            ({"run": "20260301T120000Z-abcdef"}, "20260301T120000Z-abcdef (alice's python), pid 4711, 60.0 GiB"),
            ({"run": "r", "notebook": "/home/alice/zombie.ipynb"}, "zombie.ipynb (alice's python), pid 4711, 60.0 GiB"),
        ],
    )
    def test_how_a_process_is_called(self, fields: dict[str, Any], words: str) -> None:
        used = fields.pop("used_bytes", 60 * GIB)
        (one,) = holders_from([an_event(1, (A, used), **fields)], 0)
        assert told(one) == words

    def test_an_id_of_the_host_is_said_to_be_one(self) -> None:
        event = an_event(1, (A, 60 * GIB), user=None, name=None, whose=None, start=None)
        (one,) = holders_from([event | {"host_pids": True}], 0)
        assert told(one) == "a process here or in another container, pid 4711 of the host, 60.0 GiB"
        assert others_on((one,), "gpu0", 0, 9) == (), "it may be the kernel itself"


OOM = Failure("torch.OutOfMemoryError", gpu_memory=True)


def held_by(run: Run, *events: dict[str, Any]) -> Run:
    return replace(run, holders=holders_from([{**event, "t": event["t"]} for event in events], 0))


def shared(*, failure: Failure | None = OOM, **work: Any) -> Run:
    gpu = {"gpu0": GpuWork(90, **{"context": 9 * GIB, "memory": 79 * GIB, "foreign": 1, **work})}
    return a_run(a_cell(20, gpu=gpu, failure=failure), devices=[a_device("gpu0"), a_device("gpu1")])


def finding(run: Run, rule: str) -> Finding:
    (one,) = (one for one in judge(run).findings if one.rule == rule)
    return one


class TestFindings:
    def test_out_of_gpu_memory_names_who_held_it(self) -> None:
        many = [(pid, 2 * GIB) for pid in range(1, 5)]
        one = finding(held_by(shared(), an_event(1, (A, 60 * GIB), *many)), "gpu-out-of-memory")
        assert (
            "others 70.0 GiB of its 80 GiB (alice's python, pid 4711, 60.0 GiB; alice's python, pid 1, 2.00 GiB; "
            "alice's python, pid 2, 2.00 GiB; and 2 more)."
        ) in one.fact
        assert "or ask those who run them; else" in one.advice
        gone = held_by(shared(), an_event(0, (A, 60 * GIB)), an_event(0.5))
        assert "of its 80 GiB." in finding(gone, "gpu-out-of-memory").fact, "it had gone before the cell began"

    def test_another_kernel_of_the_same_user_is_to_be_shut_down(self) -> None:
        zombie = an_event(1, (A, 60 * GIB), run="20260301T120000Z-abcdef", notebook="/home/alice/zombie.ipynb")
        one = finding(held_by(shared(), zombie), "gpu-out-of-memory")
        assert "(zombie.ipynb (alice's python), pid 4711, 60.0 GiB)" in one.fact
        assert "shut down what is no longer needed of your own: zombie.ipynb (pid 4711), or choose" in one.advice

    def test_in_a_container_it_is_said_that_others_cannot_be_seen(self) -> None:
        why = "the processes of others cannot be seen from inside a container"
        run = without(shared(), "gpu.foreign.processes", "gpu0", why)
        assert f"others 70.0 GiB of its 80 GiB ({why})." in finding(run, "gpu-out-of-memory").fact

    def test_nearly_full_names_them_too(self) -> None:
        filling = shared(failure=None, foreign=0, memory=lambda t: min(0.99, 0.4 + t / 20) * 80 * GIB)
        desktop = an_event(1, (A, 4 * GIB), name="blender", run="r", notebook="scene.py")
        one = finding(held_by(filling, desktop), "gpu-memory-near-limit")
        assert "of 80 GiB; others held memory there too: scene.py (alice's blender), pid 4711, 4.00 GiB." in one.fact
        assert one.advice.endswith("; shut down what is no longer needed of your own: scene.py (pid 4711).")
        alone = finding(filling, "gpu-memory-near-limit")
        assert alone.fact.endswith("of 80 GiB.")
        assert alone.advice.endswith("left there.")

    def test_what_cannot_be_judged_for_others_names_them(self) -> None:
        run = held_by(shared(failure=None), an_event(1, (A, 60 * GIB)))
        reasons = [checked.reason or "" for checked in judge(run).checked if checked.outcome == "unknown"]
        words = "shared: another process held gpu0 too (alice's python, pid 4711), and only the use of the whole GPU"
        assert any(words in reason for reason in reasons)


class TestReports:
    def test_every_format_has_who_when_and_how_much(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        own = an_event(1, (9, 9 * GIB), whose="kernel")
        bob = an_event(4, (A, 60 * GIB), name="<b>python|", user="bob")
        bob["processes"] += own["processes"]
        run = held_by(shared(failure=None), own, bob, own | {"t": 14 * SECOND})
        row = r"bob's <b>python\| +4711 +gpu0 +4\.0 s +14\.0 s +60\.0 GiB"
        text = render(run, "text")
        assert re.search(row, text)
        assert "Who else held GPU memory\n" in text
        assert "| bob's &lt;b&gt;python\\| | 4711 | gpu0 | 4.0 s | 14.0 s | 60.0 GiB |" in render(run, "md")
        page = render(run, "html")
        assert "bob&#x27;s &lt;b&gt;python|" in page
        assert "<b>python" not in page
        report = json.loads(render(run, "json"))
        jsonschema.validate(report, schema())
        kernel, other = report["gpu_holders"]
        assert (kernel["whose"], kernel["pid"], kernel["end"]) == ("kernel", 9, None)
        assert other == {
            "gpu": "gpu0",
            "pid": A,
            "host_pid": False,
            "user": "bob",
            "name": "<b>python|",
            "whose": "other",
            "run": None,
            "notebook": None,
            "start": 4.0,
            "end": 14.0,
            "most_bytes": 60.0 * GIB,
        }
        later, _ = narrowed(run, judge(run), Part(None, 15.0))
        assert [one.pid for one in later.holders] == [9]

    def test_nothing_is_said_where_there_is_nobody(self) -> None:
        only_own = held_by(shared(failure=None, foreign=0), an_event(1, (A, GIB), whose="kernel"))
        on_another = held_by(shared(failure=None), an_event(1, (A, GIB), gpu="gpu1"))
        for run in (only_own, on_another):
            for kind in ("text", "md", "html"):
                assert "Who else held" not in render(run, kind)

    def test_a_gpu_that_was_full_before_the_kernel_could_use_it(self) -> None:
        alice = an_event(1, (A, 79 * GIB))
        for failure, mine, shown in ((OOM, None, True), (OOM, False, False), (None, None, False)):
            gpu = {"gpu0": GpuWork(90, context=0, memory=79 * GIB, foreign=1)}
            run = a_run(a_cell(20, gpu=gpu, failure=failure), devices=[a_device("gpu0", mine)])
            assert ("Who else held GPU memory" in render(held_by(run, alice), "text")) == shown

    def test_ids_of_the_host_are_listed_with_what_is_not_known(self) -> None:
        event = an_event(1, (A, 60 * GIB), user=None, name=None, whose=None, start=None) | {"host_pids": True}
        text = render(
            held_by(without(shared(context=float("nan")), "gpu.process.memory.used", "gpu0", "x"), event), "text"
        )
        assert "ids are the host's: this kernel may be among them" in " ".join(text.split())
        assert re.search(r"a process here or in another container +4711 +gpu0", text)

    def test_of_very_many_the_report_shows_those_that_held_most(self) -> None:
        run = held_by(shared(failure=None), an_event(1, *((pid, pid * GIB) for pid in range(1, 31))))
        text = render(run, "text")
        assert len(re.findall(r"alice's python +\d+ +gpu0", text)) == 20
        assert "10 more in the JSON report" in text
        assert re.search(r"alice's python +30 +gpu0", text)

    def test_the_status_says_who_is_there_now(self) -> None:
        run = held_by(shared(failure=None), an_event(1, (A, 60 * GIB), (B, GIB)), an_event(4, (A, 50 * GIB)))
        going = replace(run, ending=None)
        assert "Others on the GPUs   gpu0 alice's python, pid 4711, 50.0 GiB\n" in status_text(going)
        assert "Others on the GPUs" not in status_text(run), "it has ended"


def test_a_real_kernel_names_them_everywhere(
    start_kernel: Callable[..., Kernel],
    sleeper: subprocess.Popen[bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace = (
        f"gpu mem=80g\nat 0 gpu 0 util=90 used=79g\nproc 0 - gpu 0 pid=@{tmp_path}/pid used=6g\n"
        f"proc 0 - gpu 0 pid={sleeper.pid} used=50g\nproc 0 - gpu 0 pid=@{tmp_path}/zombie used=20g"
    )
    machine = nvml_stub.machine(trace, tmp_path)
    zombie = start_kernel(env={**machine.environ, "JPY_SESSION_NAME": "/home/somebody/zombie.ipynb"})
    zombie.load()
    zombie.recorded_cells(0)
    (tmp_path / "zombie").write_text(str(zombie.pid))
    kernel = start_kernel(env=machine.environ)
    (tmp_path / "pid").write_text(str(kernel.pid))
    kernel.load()
    kernel.run("OutOfMemoryError = type('OutOfMemoryError', (RuntimeError,), {'__module__': 'torch'})\nimport time")
    folder = Path(kernel.recorded_cells(1).path)

    def seen() -> set[tuple[int, str | None]]:
        return {(one.pid, one.whose) for one in open_run(folder).holders}

    everyone = {(kernel.pid, "kernel"), (sleeper.pid, "other"), (zombie.pid, "other")}
    wait_until(lambda: seen() == everyone, "all three processes")
    kernel.run("time.sleep(2.2)\nraise OutOfMemoryError('CUDA out of memory')")
    run = kernel.recorded_cells(2)
    sleep = f"{USER}'s sleep, pid {sleeper.pid}, 50.0 GiB"
    assert f"({sleep}; zombie.ipynb ({USER}'s " in finding(run, "gpu-out-of-memory").fact
    assert f"of your own: zombie.ipynb (pid {zombie.pid})" in finding(run, "gpu-out-of-memory").advice
    assert sleep in " ".join(kernel.run("%monitor").stdout.split())
    followed = Followed(folder)
    followed.poll()
    assert f"gpu0 {sleep}" in shown(followed, 120)
    assert len(shown(followed, 60).splitlines()[-1]) <= 60
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    rows = {row["pid"]: row for row in json.loads(capsys.readouterr().out)}
    assert [(one["pid"], one["used_bytes"]) for one in rows[kernel.pid]["now"]["gpu_others"]] == [
        (sleeper.pid, 50 * GIB),
        (zombie.pid, 20 * GIB),
    ]
    assert main(["runs"]) == 0
    assert "6.00 GiB (others 70.0 GiB)" in capsys.readouterr().out
    sleeper.kill()
    sleeper.wait()
    for file in folder.glob("*.jsonl"):
        assert "600" not in re.findall(r'"holders".*', file.read_text()), "no command line"
    kernel.close()
    wait_until(lambda: open_run(folder).ending, "the end of the recording")
    ended = open_run(folder)
    report = json.loads(render(ended, "json"))
    jsonschema.validate(report, schema())
    told_of = {one["pid"]: one for one in report["gpu_holders"]}
    assert told_of[sleeper.pid]["name"] == "sleep"
    assert told_of[sleeper.pid]["most_bytes"] == 50 * GIB
    assert told_of[zombie.pid]["notebook"] == "/home/somebody/zombie.ipynb"
    assert told_of[zombie.pid]["run"] in {folder.name for folder in run_folders(folder.parent)}
    assert re.search(rf"{USER}'s sleep +{sleeper.pid} +gpu0 .* 50\.0 GiB", render(ended, "text"))


def shown(followed: Followed, width: int) -> str:
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, height=40, color_system=None).print(view(followed, width, 40))
    return out.getvalue()
