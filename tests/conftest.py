"""Real kernels and recorders for the tests, and the check that nothing outlives a test."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from jupyter_client.manager import KernelManager

from cellmeter.home import run_folders
from cellmeter.run import Run
from cellmeter.store import HEADER, is_open, read_header, read_run

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as a shell starts what is to run in the background: so would all here
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["CELLMETER_CONFIG"] = os.devnull  # the settings of whoever runs the tests have no say in them
# Hundreds of processes import us and Jupyter. jsonschema does without its check of IRIs, which costs each a second of CPU.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parent / "slow_to_import"), os.environ.get("PYTHONPATH")))
)
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

REPOSITORY = Path(__file__).parents[1]
OLDER = REPOSITORY / ".venv" / "older"  # ipykernel 6 and IPython 8, put there by the Makefile
WAIT_SECONDS = 60.0  # a starved machine is slow; who waits in vain is wrong at any speed
BEGUN = "open('begun', 'w').close()"  # in a cell: its code runs, not only what comes before it
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """The first true result of a condition."""
    until = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.005)
    return result


def whole_line(path: Path, what: str) -> str:
    """What a file says, once it says something to the end of a line."""
    return wait_until(lambda: (text := path.read_text()).endswith("\n") and text, what)


def hold(pipe: Path) -> str:
    """A cell that holds the GIL until ``let_go``: it opens a pipe that nobody writes to yet."""
    os.mkfifo(pipe)
    return f"import ctypes; ctypes.PyDLL(None).open({os.fsencode(pipe)!r}, 0)"


def let_go(pipe: Path) -> None:
    """Lets the GIL go that a cell holds, or holds in a moment."""
    os.close(os.open(pipe, os.O_WRONLY))


def recorders_below(folder: Path) -> list[int]:
    """Pids of recorders whose run folder lies below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"cellmeter.child" in (entry / "cmdline").read_bytes() and (entry / "cwd").resolve().is_relative_to(
                    folder
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def has_begun(folder: Path) -> bool:
    """Whether a run's recorder takes samples: what comes before the first is tagged late."""
    return (folder / HEADER).exists() and bool(read_header(folder)["segments"])


def ended_cells(run: Run) -> int:
    """How many cells have ended, and have the sample that the recorder takes then."""
    sampled = run.series("process.memory.rss", "process").time[-1:]
    return sum(cell.end is not None and cell.end <= sampled.max(initial=0.0) for cell in run.cells)


def has_ended(folder: Path) -> bool:
    """Whether a run has begun and its recorder has ended."""
    return (folder / HEADER).exists() and not is_open(read_header(folder))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home for runs of this test alone; its recorders must be gone when the test is."""
    folder = tmp_path / "cellmeter-home"
    monkeypatch.setenv("CELLMETER_HOME", str(folder))
    yield folder
    wait_until(lambda: not recorders_below(tmp_path), "the recorders to end")


@dataclass
class Reply:
    """What came back from a cell."""

    status: str
    execution_count: int | None = None
    stdout: str = ""
    stderr: str = ""
    error: str = ""
    traceback: str = ""
    displays: list[dict[str, Any]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)


class Kernel:
    """A real ipykernel. ``older``: ipykernel 6 on IPython 8."""

    def __init__(
        self, home: Path, older: bool = False, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.home = home
        environ = {**os.environ, "CELLMETER_HOME": str(home), "PYDEVD_DISABLE_FILE_VALIDATION": "1", **(env or {})}
        if older:
            assert OLDER.is_dir(), f"{OLDER} is missing: make test installs it"
            environ["PYTHONPATH"] = str(OLDER)
        # Ports are chosen before the kernel takes them: another kernel that starts meanwhile may get the same one.
        self.sockets = tempfile.mkdtemp(prefix="k")
        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{self.sockets}/k")
        self.manager.start_kernel(env=environ, cwd=str(cwd or home.parent), stderr=subprocess.DEVNULL)
        self.client = self.manager.client()
        self.client.start_channels()
        try:
            wait_until(self._answers, "the kernel to answer")  # jupyter_client's own way waits 0.2 s more
        except AssertionError:
            self.close()
            raise
        self.pid: int = self.manager.provisioner.pid

    def _answers(self) -> bool:
        """Whether the kernel has answered on both channels: the one for outputs may be connected after the other."""
        asked = self.client.kernel_info()

        def answered() -> bool:
            assert self.manager.is_alive(), "the kernel died as it started"
            message = self._next(self.client.get_shell_msg)
            return message is not None and message["parent_header"].get("msg_id") == asked

        wait_until(answered, "the kernel to answer")
        while message := self._next(self.client.get_iopub_msg):
            if message["parent_header"].get("msg_id") == asked and _take(Reply("no reply"), message):
                return True
        return False

    def send(self, code: str, **options: Any) -> str:
        """Sends a cell and returns its message id."""
        return str(self.client.execute(code, **options))

    def begin(self, code: str) -> str:
        """Sends a cell with BEGUN in it; from then on an interrupt is its own."""
        mark = self.home.parent / "begun"
        mark.unlink(missing_ok=True)
        message_id = self.send(code)
        wait_until(mark.exists, "the cell's code to run")
        return message_id

    def reply(self, message_id: str, seconds: float = WAIT_SECONDS) -> Reply:
        """Waits for a cell's outputs and its reply."""
        reply = Reply("no reply")
        until = time.monotonic() + seconds
        idle = done = False
        while not (idle and done):
            assert time.monotonic() < until, f"no reply: {reply}"
            if not idle:
                message = self._next(self.client.get_iopub_msg)
                if message and message["parent_header"].get("msg_id") == message_id:
                    idle = _take(reply, message)
            if not done:
                message = self._next(self.client.get_shell_msg, 0.0 if not idle else 0.2)
                if message and message["parent_header"].get("msg_id") == message_id:
                    reply.status = message["content"]["status"]
                    reply.execution_count = message["content"].get("execution_count")
                    done = True
        return reply

    @staticmethod
    def _next(get: Callable[..., Any], seconds: float = 0.2) -> Any:
        try:
            return get(timeout=seconds)
        except queue.Empty:
            return None

    def run(self, code: str, **options: Any) -> Reply:
        """Runs a cell to its end."""
        return self.reply(self.send(code, **options))

    def load(self) -> Reply:
        """Loads the extension, and waits for the recorder that it starts."""
        reply = self.run("%load_ext cellmeter")
        wait_until(lambda: all(map(has_begun, run_folders(self.home / "runs"))), "the recorder to begin")
        return reply

    def recorded(self, number: int = -1) -> Run:
        """One of this kernel's runs, read as it is now."""
        return read_run(run_folders(self.home / "runs")[number])

    def recorded_cells(self, count: int) -> Run:
        """The run, once that many of its cells have ended."""
        wait_until(lambda: run_folders(self.home / "runs"), "a run folder")
        wait_until(lambda: (run_folders(self.home / "runs")[-1] / "run.json").exists(), "the run's header")
        wait_until(lambda: ended_cells(self.recorded()) >= count, f"{count} cells to have ended")
        return self.recorded()

    def close(self) -> None:
        """Ends the kernel."""
        self.client.stop_channels()
        if self.manager.has_kernel:
            process = self.manager.provisioner.process
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()  # jupyter_client would look every 0.1 s
            self.manager.shutdown_kernel(now=True)
        shutil.rmtree(self.sockets, ignore_errors=True)


def _take(reply: Reply, message: Any) -> bool:
    """Adds an output to a reply; True when the kernel has become idle."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        setattr(reply, content["name"], getattr(reply, content["name"]) + content["text"])
    elif kind == "error":
        reply.error = content["ename"]
        reply.traceback = "\n".join(content["traceback"])
    elif kind in ("display_data", "execute_result"):
        reply.displays.append(content)
    elif kind == "update_display_data":
        reply.updates.append(content)
    return bool(kind == "status" and content["execution_state"] == "idle")


@pytest.fixture
def start_kernel(home: Path) -> Iterator[Callable[..., Kernel]]:
    """Starts kernels that end with the test."""
    kernels: list[Kernel] = []

    def start(**options: Any) -> Kernel:
        kernels.append(Kernel(home, **options))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.close()


@pytest.fixture
def kernel(start_kernel: Callable[..., Kernel]) -> Kernel:
    """A kernel with the extension loaded."""
    kernel = start_kernel()
    assert kernel.load().status == "ok"
    return kernel


@pytest.fixture
def script(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Runs Python source in a process of its own, which is killed at the latest when the test ends."""
    processes: list[subprocess.Popen[str]] = []

    def run(source: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", source], **{**pipes, **options}))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start most browsers and recorders come first, so that the workers of xdist end together."""
    weight: Counter[Path] = Counter()
    for item in items:
        names = getattr(item, "fixturenames", ())
        weight[item.path] += 5 * ("chromium" in names) + ("home" in names)
    items.sort(key=lambda item: -weight[item.path])
