"""The recorder with real processes: it misses nothing, outlives what it watches, and is nobody's child."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import WAIT_SECONDS, ended_cells, recorders_below, wait_until

from cellmeter import cell_cpu
from cellmeter.home import run_folders
from cellmeter.run import Run
from cellmeter.sources.death import judge_death
from cellmeter.store import EVENTS, is_open, read_events, read_header, read_run, record_size

Script = Callable[..., "subprocess.Popen[str]"]

# A bare process with a recording. It says the run folder, then does what it is told on its standard input, line by line.
SUBJECT = """
import os, signal, sys, time
from cellmeter.recording import Recording
from cellmeter.settings import Settings
recording = Recording.start(Settings(rate_hz={rate}), None)
assert recording.recorder.ready(60)
print(recording.folder, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Subject:
    """A process that is recorded and obeys."""

    def __init__(self, script: Script, rate: float = 10.0, **options: object) -> None:
        self.process = script(SUBJECT.format(rate=rate), **options)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.folder = Path(self.stdout.readline().strip())
        self.recorder = int(read_header(self.folder)["recorder"]["pid"])

    def tell(self, line: str) -> None:
        self.stdin.write(line + "\n")
        self.stdin.flush()

    def do(self, line: str) -> None:
        self.tell(line)
        assert self.stdout.readline() == "done\n", self.process.stderr and self.process.stderr.read()

    def end(self) -> Run:
        """Waits for the process and then for its recorder."""
        self.process.wait(WAIT_SECONDS)
        wait_until(lambda: not is_open(read_header(self.folder)), "the recorder to end")
        return read_run(self.folder)

    def ended(self, count: int) -> Run:
        """The run, once that many of its cells have ended."""
        wait_until(lambda: ended_cells(read_run(self.folder)) >= count, f"{count} ends")
        return read_run(self.folder)


@pytest.fixture
def subject(script: Script) -> Subject:
    return Subject(script)


@pytest.mark.parametrize(
    ("action", "ending", "number", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed", signal.SIGKILL, None),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed", signal.SIGTERM, None),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed", signal.SIGSEGV, None),
        ("os.abort()", "crashed", signal.SIGABRT, None),
        ("os._exit(3)", "exited", None, 3),
        ("sys.exit(0)", "exited", None, 0),
        ("recording.stop(); os._exit(0)", "stopped", None, None),
    ],
)
def test_how_it_ended_and_in_which_cell(
    subject: Subject, action: str, ending: str, number: int | None, code: int | None
) -> None:
    subject.do("recording.cell_started('one = 1')")
    subject.tell(action)
    run = subject.end()
    assert (run.ending, run.signal, run.exit_code) == (ending, number, code)
    assert [cell.status for cell in run.cells] == ["ok" if ending == "stopped" else "died"]
    assert run.cells[0].first_line == "one = 1"
    assert run.usage(run.cells[0]).samples >= 1


@pytest.mark.parametrize(
    ("status", "goodbye", "out_of_memory", "ending"),
    [
        (signal.SIGKILL, None, True, "out-of-memory"),
        (signal.SIGKILL, "restart", False, "restarted"),
        (0, "restart", False, "restarted"),
        (0, "exit", False, "exited"),
        (None, "exit", False, "exited"),
        (None, None, False, "unknown"),
        (signal.SIGBUS | 0x80, None, True, "crashed"),
    ],
)
def test_what_a_death_means(status: int | None, goodbye: str | None, out_of_memory: bool, ending: str) -> None:
    assert judge_death(status, goodbye, out_of_memory).ending == ending


def test_it_is_in_no_group_of_the_kernel_and_no_child_of_it(subject: Subject) -> None:
    assert os.getpgid(subject.recorder) == os.getsid(subject.recorder) != os.getpgid(subject.process.pid)
    assert psutil.Process(subject.process.pid).children() == []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(subject.recorder, number)
    subject.do("recording.cell_started('x')")
    wait_until(lambda: read_run(subject.folder).sample_count >= 3, "samples after the signals")


def test_the_users_wait_finds_no_child_of_ours(subject: Subject) -> None:
    subject.tell("os.wait()")
    subject.process.wait(WAIT_SECONDS)
    assert subject.process.stderr is not None
    assert "ChildProcessError" in subject.process.stderr.read()
    subject.end()


def test_a_forked_worker_neither_keeps_the_recorder_nor_reaches_its_channel(subject: Subject) -> None:
    subject.do("recording.cell_started('fork')")
    subject.do("worker = os.fork() or (signal.pause(), os._exit(0))")
    (worker,) = psutil.Process(subject.process.pid).children()
    try:
        channel = str(Path(f"/proc/{subject.recorder}/fd/0").readlink())
        wait_until(lambda: channel not in open_files(worker.pid), "the worker to close the channel")
        subject.process.kill()
        assert subject.end().ending == "killed"
    finally:
        worker.kill()


def open_files(pid: int) -> list[str]:
    """What a process has open, less what it closes just now."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found


@pytest.mark.parametrize("rate", [10.0, 50.0])
def test_nothing_is_missed_while_the_cell_holds_the_gil(script: Script, rate: float) -> None:
    """In the first cell during which the machine had time for the recorder: else there is a gap that says so."""
    subject = Subject(script, rate=rate)
    held, tries = 20 / rate, int(2 * rate)  # 20 samples, in 40 s at most
    subject.do("import ctypes; hold = ctypes.PyDLL(None).usleep")
    for number in range(1, tries + 1):
        subject.do(f"cell = recording.cell_started('hold'); hold({int(held * 1e6)}); recording.cell_ended(cell, 'ok')")
        run = subject.ended(number)
        cell = run.cells[-1]
        taken = run.series("process.memory.rss", "process")
        late = taken.time[taken.seq == cell.seq][0] - cell.start  # its message came, and nobody was there to read it
        if late < 1 / rate and not any(cell.start < gap.end and gap.start < (cell.end or 0) for gap in run.gaps):
            break
    else:
        raise AssertionError(f"a gap in each of {number} cells: {run.gaps}, or it began {late:.3f} s late")
    tagged = run.usage(cell).samples - 2  # without the samples at the edges
    assert tagged >= 0.95 * int(rate * (cell.seconds or 0))


def test_a_stopped_recorder_leaves_a_gap_and_its_cells_keep_their_times(script: Script) -> None:
    subject = Subject(script)
    wait_until(lambda: len(read_run(subject.folder).series("process.memory.rss", "process").time), "a sample")
    os.kill(subject.recorder, signal.SIGSTOP)
    before = time.monotonic()
    subject.do("cell = recording.cell_started('unseen'); time.sleep(1.3); recording.cell_ended(cell, 'ok')")
    took = time.monotonic() - before
    wait_until(lambda: time.monotonic() - before > took + 0.5, "a time that is no part of the cell")
    os.kill(subject.recorder, signal.SIGCONT)
    run = subject.ended(1)
    assert 1.3 <= (run.cells[0].seconds or 0) <= took
    wait_until(lambda: read_run(subject.folder).gaps, "the gap")
    (gap,) = read_run(subject.folder).gaps
    assert gap.end - gap.start >= 1.3
    assert "stopped or got no CPU time" in gap.reason


def test_edges_that_the_pipe_does_not_take_are_sent_later(script: Script) -> None:
    subject = Subject(script)
    os.kill(subject.recorder, signal.SIGSTOP)
    subject.do("cells = [recording.cell_started('x' * 70 + str(i)) for i in range(1000)]")
    os.kill(subject.recorder, signal.SIGCONT)
    wait_until(lambda: len(read_run(subject.folder).cells) > 100, "the first edges")
    subject.do("[recording.cell_ended(cell, 'ok') for cell in cells]")
    subject.do("recording.say({'event': 'notice', 't': time.monotonic_ns(), 'text': 'last'})")
    cells = wait_until(lambda: (c := read_run(subject.folder).cells)[-1].seq == 1000 and c, "all edges")
    assert [cell.seq for cell in cells] == list(range(1, 1001))


def test_a_full_disk_is_told_of_when_it_has_room_again(script: Script) -> None:
    limit = (16_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    subject = Subject(script, rate=100.0, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    subject.do("cell = recording.cell_started('fill')")
    samples = subject.folder / "samples-000.f64"
    (segment,) = wait_until(lambda: read_header(subject.folder)["segments"][:1], "the first sample")
    record = record_size(len(segment["columns"]))
    wait_until(lambda: samples.stat().st_size + record > limit[0], "the file to be full")
    full = read_run(subject.folder).sample_count
    rested = psutil.Process(subject.recorder).num_ctx_switches
    until = rested().voluntary + 5  # it rests once between two samples
    wait_until(lambda: rested().voluntary > until, "samples that find no room")
    resource.prlimit(subject.recorder, resource.RLIMIT_FSIZE, (limit[1], limit[1]))
    lost = "samples could not be written: "
    wait_until(lambda: any(lost in gap.reason for gap in read_run(subject.folder).gaps), "the gap")
    run = wait_until(lambda: (now := read_run(subject.folder)).sample_count > full and now, "samples after the gap")
    assert run.notices == ()


def test_exact_peak_of_a_spike_that_no_sample_sees(subject: Subject) -> None:
    code = "cell = recording.cell_started('spike'); b = bytearray(128 << 20); del b; recording.cell_ended(cell, 'ok')"
    for _ in range(40):
        subject.do(code)
    run = subject.ended(40)
    for cell in run.cells:
        usage = run.usage(cell)
        assert usage.peak_exact
        assert (usage.peak_rss_bytes or 0) - (usage.rss_start_bytes or 0) > 120 << 20


def test_the_peaks_of_workers(subject: Subject) -> None:
    """A worker's spike within the cell counts, one from before it does not."""
    worker = "import sys\nfor line in sys.stdin:\n b = bytearray(int(line) << 20); del b; print('done', flush=True)"
    subject.do("import subprocess")
    subject.do(
        f"w = subprocess.Popen([sys.executable, '-S', '-c', {worker!r}], stdin=-1, stdout=-1, text=True, bufsize=1)"
    )
    spike = "w.stdin.write('{}\\n'); w.stdout.readline()"

    def sampled(number: int) -> bool:
        run = read_run(subject.folder)
        return len(run.cells) == number and run.usage(run.cells[-1]).samples >= 2  # the first is of the edge

    for number, megabytes in enumerate((300, 100), 1):
        subject.do("c = recording.cell_started('work')")
        wait_until(lambda n=number: sampled(n), "a sample of the cell, before which its marks are set")
        subject.do(spike.format(megabytes))
        subject.do("recording.cell_ended(c, 'ok')")
    peaks = wait_until(
        lambda: all(p := [c.workers_peak_bytes for c in subject.ended(2).cells]) and p, "the peaks of both cells"
    )
    assert 300 << 20 < peaks[0] < 350 << 20
    assert 100 << 20 < peaks[1] < 150 << 20
    subject.do("w.stdin.close(); w.wait()")


def test_a_peak_within_a_peak_counts_for_both(subject: Subject) -> None:
    subject.do("outer = recording.cell_started('outer'); b = bytearray(200 << 20); del b")
    subject.do("inner = recording.cell_started('inner'); recording.cell_ended(inner, 'ok')")
    subject.do("recording.cell_ended(outer, 'ok')")
    run = subject.ended(2)
    outer, inner = (run.usage(cell).peak_rss_bytes or 0 for cell in run.cells)
    assert outer - inner > 190 << 20


TORCH = """
import types
class Cuda:
    mark = 0
    is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    max_memory_allocated = staticmethod(lambda n: Cuda.mark)
    get_device_properties = staticmethod(lambda n: types.SimpleNamespace(uuid='abc'))
sys.modules['torch'] = types.SimpleNamespace(cuda=Cuda)
"""


def test_torchs_own_peaks_are_asked_only_where_torch_is_there(subject: Subject) -> None:
    cell = "c = recording.cell_started('x'); {}; time.sleep(0.11); recording.cell_ended(c, 'ok')"
    subject.do(cell.format("pass"))
    subject.do(f"exec({TORCH!r})")
    for action in ("Cuda.mark = 5", "pass", "Cuda.mark = 9", "Cuda.is_initialized = None"):
        subject.do(cell.format(action))
    peaks = [dict(c.torch_peak_bytes) for c in subject.ended(5).cells]
    assert peaks == [{}, {"GPU-abc": 5}, {}, {"GPU-abc": 9}, {}]


def test_short_cells_have_their_true_cpu_time(subject: Subject) -> None:
    subject.do("now = time.process_time")
    subject.do("c = recording.cell_started('4 ms'); u = now() + 0.004; exec('while now() < u: pass')")
    subject.do("recording.cell_ended(c, 'ok')")
    run = subject.ended(1)
    assert 0.004 <= (run.usage(run.cells[0]).cpu_seconds or 0) < 0.1


def test_short_cells_beside_an_idle_worker_have_their_true_cpu_time(subject: Subject) -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); input()"
    subject.do(f"import subprocess; p = subprocess.Popen([sys.executable, '-S', '-c', {burn!r}], stdin=-1, stdout=-1)")
    subject.do("p.stdout.readline(); now = time.process_time")
    for _ in range(10):
        subject.do("c = recording.cell_started('4 ms'); u = now() + 0.004; exec('while now() < u: pass')")
        subject.do("recording.cell_ended(c, 'ok')")
    subject.do("p.communicate(b'\\n')")
    run = subject.ended(10)
    assert all(0.004 <= (run.usage(cell).cpu_seconds or 0) < 0.15 for cell in run.cells)


def test_a_cell_that_waits_for_an_old_worker_has_not_done_its_work(subject: Subject) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    for _ in range(3):
        subject.do(
            f"import subprocess; p = subprocess.Popen([sys.executable, '-S', '-c', {burn!r}], stdin=-1, stdout=-1)"
        )
        subject.do("p.stdout.readline()")
        wait_until(lambda: _children_cpu(subject)[-1:] >= [0.3], "a sample between cells")
        subject.do("c = recording.cell_started('wait'); p.kill(); p.communicate(); recording.cell_ended(c, 'ok')")
    run = subject.ended(3)
    assert all((run.usage(cell).cpu_seconds or 0) < 0.2 for cell in run.cells)


def _children_cpu(subject: Subject) -> list[float]:
    return list(read_run(subject.folder).series("process.children.cpu.time", "process").values)


def test_waited_for_children_count(subject: Subject) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subject.do(
        f"import subprocess; c = recording.cell_started('child'); subprocess.run([sys.executable, '-S', '-c', {burn!r}])"
    )
    subject.do("recording.cell_ended(c, 'ok')")
    run = subject.ended(1)
    assert (run.usage(run.cells[0]).cpu_seconds or 0) >= 0.3


def test_a_script_may_start_and_stop(script: Script, home: Path) -> None:
    process = script("import cellmeter; cellmeter.start(rate_hz=50); cellmeter.stop(); cellmeter.stop(); print('fine')")
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert (out, err) == ("fine\n", "")
    (folder,) = run_folders(home / "runs")
    assert (read_run(folder).ending, read_run(folder).rate_hz) == ("stopped", 50)


def test_two_processes_at_once_do_not_cross(script: Script) -> None:
    one, two = Subject(script), Subject(script)
    one.do("recording.cell_started('one')")
    two.do("recording.cell_started('two')")
    for subject, first_line in ((one, "one"), (two, "two")):
        run = wait_until(lambda s=subject: (r := read_run(s.folder)).cells and r, "the cell")
        assert [cell.first_line for cell in run.cells] == [first_line]
    assert len(recorders_below(one.folder.parent)) == 2


def test_a_cell_that_closes_all_descriptors_loses_the_recording_but_no_file_of_its_own(
    subject: Subject, tmp_path: Path
) -> None:
    mine = [tmp_path / f"mine-{n}" for n in range(8)]
    subject.do("os.closerange(3, 4096)")
    subject.do(f"files = [open(name, 'w') for name in {[str(path) for path in mine]!r}]")
    subject.do("failed = []")
    subject.do(
        "exec('try:\\n recording.cell_started(1 * \"x\")\\nexcept Exception as e: failed.append(type(e).__name__)')"
    )
    subject.do("recording.stop()")
    subject.do("[file.write('mine') for file in files]; [file.close() for file in files]")
    assert [path.read_text() for path in mine] == ["mine"] * 8
    subject.do("assert failed == ['RecorderUnavailable'], failed")
    subject.process.kill()
    subject.end()


def test_any_text_can_be_a_cell_and_a_long_one_is_kept_in_part(script: Script, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("keep_source = true")
    source = "from cellmeter.settings import *\nfrom pathlib import Path\n" + SUBJECT.replace(
        "Settings(rate_hz={rate})", f"load_settings(Path({str(config)!r}))"
    )
    subject = Subject.__new__(Subject)
    subject.process = script(source)
    assert subject.process.stdin is not None
    assert subject.process.stdout is not None
    subject.stdin, subject.stdout = subject.process.stdin, subject.process.stdout
    subject.folder = Path(subject.stdout.readline().strip())
    subject.do(
        "c = recording.cell_started('s = \"\\ud800\"', label='\\ud800' + 'l' * 10**6); recording.cell_ended(c, 'ok')"
    )
    subject.do("c = recording.cell_started('x' * 3 * 10**6); recording.cell_ended(c, 'ok')")
    subject.do("c = recording.cell_started('small'); recording.cell_ended(c, 'ok')")
    subject.do("time.sleep(0.3); recording.say({'event': 'notice', 't': 1, 'text': 'flush'})")
    subject.do("time.sleep(0.3); recording.say({'event': 'notice', 't': 1, 'text': 'flush'})")
    subject.do("time.sleep(0.3); recording.say({'event': 'notice', 't': 1, 'text': 'flush'})")
    run = subject.ended(3)
    assert [len(cell.label or "") for cell in run.cells] == [200, 0, 0]
    wait_until(lambda: read_run(subject.folder).cells[2].source == "small", "the last source")
    assert len(read_run(subject.folder).cells[1].source or "") == 200_000


def test_a_worker_that_leaves_the_tree_takes_nothing_from_the_next_cell(subject: Subject) -> None:
    burn = "import time\nwhile time.process_time() < 1: pass\ntime.sleep(60)"
    shell = f'{sys.executable} -S -c "{burn}" & echo $!; wait'
    subject.do("import subprocess; c = recording.cell_started('one')")
    subject.do(
        f"p = subprocess.Popen(['bash', '-c', {shell!r}], stdout=-1, text=True); orphan = int(p.stdout.readline())"
    )
    wait_until(
        lambda: (
            (values := read_run(subject.folder).series("process.children.cpu.time", "process").values).size
            and values[-1] >= 0.9
        ),
        "the child's CPU time",
    )
    subject.do("recording.cell_ended(c, 'ok'); c = recording.cell_started('two')")
    subject.do("p.kill(); p.wait(); u = time.process_time() + 0.5")
    subject.do("exec('while time.process_time() < u: pass')")
    subject.do("recording.cell_ended(c, 'ok'); os.kill(orphan, 9)")
    run = subject.ended(2)
    assert 0.45 <= (run.usage(run.cells[1]).cpu_seconds or 0) < 1.0
    for cell in run.cells:
        assert _told_at_once(subject, cell.seq) == pytest.approx(run.usage(cell).cores)


def _told_at_once(subject: Subject, seq: int) -> float | None:
    """The cores that a cell used as the line and the panel under it say."""
    start, end = (
        event
        for event in read_events(subject.folder / EVENTS)[0]
        if event["event"] in ("cell_start", "cell_end") and event["seq"] == seq
    )
    return cell_cpu.mean_cores(subject.folder, read_header(subject.folder), start, end)


def test_what_a_child_writes_counts_once(subject: Subject, tmp_path: Path) -> None:
    write = (
        f"import os\nf = open({str(tmp_path / 'file')!r}, 'wb')\n"
        "for i in range(8): f.write(os.urandom(4 << 20)); f.flush(); os.fsync(f.fileno())\n"
        "input()"
    )

    def written() -> list[float]:
        return list(read_run(subject.folder).series("process.disk.written", "process").values)

    wait_until(written, "the first sample")
    subject.do("import subprocess; c = recording.cell_started('child')")
    subject.do(f"p = subprocess.Popen([sys.executable, '-S', '-c', {write!r}], stdin=-1)")
    wait_until(lambda: written()[-1] - written()[0] >= 32 << 20, "a sample with all of it, of a child that lives")
    subject.do("p.communicate(b''); recording.cell_ended(c, 'ok')")
    run = subject.ended(1)
    assert 32 << 20 <= (run.usage(run.cells[0]).written_bytes or 0) < 40 << 20


def test_what_a_child_wrote_before_a_cell_is_not_written_when_it_is_waited_for(
    subject: Subject, tmp_path: Path
) -> None:
    write = f"input(); open({str(tmp_path / 'file')!r}, 'wb').write(bytes(32 << 20)); print(flush=True); input()"
    subject.do(f"import subprocess; p = subprocess.Popen([sys.executable, '-S', '-c', {write!r}], stdin=-1, stdout=-1)")

    def written() -> list[float]:
        return list(read_run(subject.folder).series("process.disk.written", "process").values)

    wait_until(written, "the first sample")
    subject.do("p.stdin.write(b'\\n'); p.stdin.flush(); p.stdout.readline()")
    wait_until(lambda: written()[-1] - written()[0] >= 32 << 20, "a sample between cells")
    subject.do("c = recording.cell_started('wait'); p.communicate(b'\\n'); recording.cell_ended(c, 'ok')")
    run = subject.ended(1)
    assert (run.usage(run.cells[0]).written_bytes or 0) < 1 << 20
    subject.do("c = recording.cell_started('next'); time.sleep(2.5); recording.cell_ended(c, 'ok')")
    assert 32 << 20 <= written()[-1] - written()[0] < 33 << 20, "and once in the whole run"
    assert len(subject.ended(2).cells) == 2


def test_what_a_child_does_before_the_cells_first_sample_counts(subject: Subject, tmp_path: Path) -> None:
    """The recorder takes a cell's first sample when the edge reaches it: here it is held up meanwhile."""
    work = (
        f"import os, time; f = open({str(tmp_path / 'file')!r}, 'wb'); f.write(bytes(32 << 20)); os.fsync(f.fileno())\n"
        "while time.process_time() < 0.3: pass\n"
        "print(flush=True); input()"
    )
    wait_until(lambda: _children_cpu(subject), "the first sample")
    os.kill(subject.recorder, signal.SIGSTOP)
    subject.do("import subprocess; c = recording.cell_started('child')")
    subject.do(
        f"p = subprocess.Popen([sys.executable, '-S', '-c', {work!r}], stdin=-1, stdout=-1); p.stdout.readline()"
    )
    os.kill(subject.recorder, signal.SIGCONT)
    wait_until(lambda: _children_cpu(subject)[-1] >= 0.3, "the first sample, in which the child has done all it does")
    subject.do("p.communicate(b'\\n'); recording.cell_ended(c, 'ok')")
    run = subject.ended(1)
    usage = run.usage(run.cells[0])
    assert 32 << 20 <= (usage.written_bytes or 0) < 40 << 20
    assert (usage.cpu_seconds or 0) >= 0.3
    assert _told_at_once(subject, 1) == pytest.approx(usage.cores)


def test_what_the_kernel_writes_after_a_cell_is_not_the_cells(subject: Subject, tmp_path: Path) -> None:
    """The cell's last sample is taken when its end has reached the recorder: here it is held up meanwhile."""
    write = f"open({str(tmp_path / 'file')!r}, 'wb').write(bytes(16 << 20))"
    subject.do("c = recording.cell_started('idle'); time.sleep(0.3)")
    os.kill(subject.recorder, signal.SIGSTOP)
    subject.do(f"recording.cell_ended(c, 'ok'); {write}")
    os.kill(subject.recorder, signal.SIGCONT)
    run = subject.ended(1)
    assert (run.usage(run.cells[0]).written_bytes or 0) < 1 << 20


def test_a_script_is_one_cell_at_the_full_rate(script: Script, home: Path) -> None:
    source = "import cellmeter, time; cellmeter.start(rate_hz=50); time.sleep(2); cellmeter.stop()"
    _, err = script(source).communicate(timeout=WAIT_SECONDS)
    assert err == ""
    run = read_run(run_folders(home / "runs")[-1])
    assert run.sample_count >= 20
    assert [cell.status for cell in run.cells] == ["ok"]


def test_a_relative_home(script: Script, tmp_path: Path) -> None:
    env = {**os.environ, "CELLMETER_HOME": "relative"}
    process = script(
        "import cellmeter, time; cellmeter.start(); time.sleep(0.3); cellmeter.stop()", env=env, cwd=tmp_path
    )
    assert process.communicate(timeout=WAIT_SECONDS) == ("", "")
    (folder,) = run_folders(tmp_path / "relative" / "runs")
    assert read_run(folder).ending == "stopped"
