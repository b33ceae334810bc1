"""Runs a notebook without a browser and finds the run it recorded (``cellmeter run``, ``cellmeter demo``)."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from cellmeter.clock import monotonic
from cellmeter.errors import BadUsage, MissingExtra, RunUnreadable
from cellmeter.home import run_folders, runs_home
from cellmeter.store import is_open, kernel_of, process_identity, read_header

_LOADS_EXTENSION = re.compile(r"^\s*%(load_ext|reload_ext)\s+cellmeter\b", re.MULTILINE)
END_SECONDS = 5.0


class Progress(NamedTuple):
    """A code cell that starts (``seconds`` is None) or has ended."""

    number: int
    total: int
    first_line: str
    seconds: float | None
    failed: bool


@dataclass(frozen=True)
class Executed:
    """What came of a notebook. ``failure`` is None if all cells went well, else one line that says where it failed."""

    notebook: Any
    folder: Path | None
    failure: str | None
    signal: int | None = None
    """The signal that was sent to stop it."""
    unrecorded: str | None = None
    """Why there is no run, as far as the kernel has said."""
    lingered: bool = False
    """The kernel did not end when it was asked to, and was made to."""


def read_notebook(path: Path) -> Any:
    """Reads a notebook in any format that nbformat knows. Raises BadUsage and MissingExtra."""
    nbformat = _nbformat()
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise BadUsage(f"there is no notebook {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # nbformat raises many kinds for a file that is no notebook
        raise BadUsage(f"{path} is no notebook: {str(error).splitlines()[0]}") from None


def write_notebook(notebook: Any, path: Path) -> None:
    """Writes a notebook. Raises BadUsage."""
    try:
        _nbformat().write(notebook, path)
    except OSError as error:
        raise BadUsage(f"{path} cannot be written: {error.strerror}") from None


def _nbformat() -> Any:
    try:
        import nbformat
    except ImportError as error:
        raise MissingExtra("nbformat", "run", "running notebooks") from error
    return nbformat


def execute(notebook: Any, name: str, folder: Path, tell: Callable[[Progress], None]) -> Executed:
    """Executes a notebook in ``folder``; ``name`` is what the run will be called by. Raises BadUsage and MissingExtra."""
    try:
        from jupyter_client.kernelspec import NoSuchKernel
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, DeadKernelError
    except ImportError as error:
        raise MissingExtra("nbclient", "run", "running notebooks") from error

    follower = _Follower(notebook, tell)

    class Client(NotebookClient):
        async def async_start_new_kernel(self, **kwargs: Any) -> None:
            follower.listen()
            await super().async_start_new_kernel(**kwargs)
            follower.saw_kernel(self.km)

        @asynccontextmanager
        async def async_setup_kernel(self, **kwargs: Any) -> AsyncIterator[None]:
            async with super().async_setup_kernel(**kwargs):
                try:
                    yield
                except CellExecutionError:
                    follower.lingered = not await _bid_to_end(self.km)
                    raise
                follower.lingered = not await _bid_to_end(self.km)

    client: Any = Client(
        notebook,
        timeout=None,
        store_widget_state=False,  # BokehJS would be in every saved notebook
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=[] if _loads_extension(notebook) else ["--ext", "cellmeter"],
        on_cell_start=follower.started,
        on_cell_executed=follower.ended,
    )
    failure = None
    environ = {**os.environ, "JPY_SESSION_NAME": name, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as said:  # what kernels print of themselves is no news
        try:
            client.execute(env=environ, stderr=said)
        except NoSuchKernel as error:
            raise BadUsage(f"{name} wants the kernel {error.name!r}, which is not installed") from None
        except CellExecutionError as error:
            failure = ": ".join([f"{follower.where()} failed", error.ename, *error.evalue.splitlines()[:1]])
        except (DeadKernelError, asyncio.CancelledError):
            failure = f"the kernel died in {follower.where()}{_fatal_line(said)}"
        told = _of_ours(notebook, said)
    if follower.stopped is not None:
        failure = f"stopped by {signal.Signals(follower.stopped).name} in {follower.where()}"
    recorded = run_of_process(*follower.kernel) if follower.kernel else None
    if recorded is not None:
        wait_for_end(recorded)
    return Executed(
        notebook, recorded, failure, follower.stopped, told if recorded is None else None, follower.lingered
    )


async def _bid_to_end(manager: Any) -> bool:
    """Asks an idle kernel to shut down and waits for it; False if it goes on.

    jupyter_client would interrupt it before, by which one in a thousand misses the request: it is terminated 2.5 s later, and
    its run says so.
    """
    await manager.request_shutdown()
    until = monotonic() + END_SECONDS
    while await manager.is_alive():
        if monotonic() > until:
            return False
        await asyncio.sleep(0.01)
    return True


def _fatal_line(said: IO[str]) -> str:
    """What Python's fault handler said of a crash, if it did."""
    said.seek(0)
    fatal = [line.strip() for line in said if line.startswith("Fatal Python error")]
    return f": {fatal[-1]}" if fatal else ""


def _of_ours(notebook: Any, said: IO[str]) -> str | None:
    """What cellmeter had to say in the kernel: at its start in the log, later under a cell."""
    said.seek(0)
    lines = said.read().splitlines()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            lines += output.get("text", "").splitlines() if output.get("name") == "stderr" else []
    told = [line.rpartition("cellmeter: ")[2].strip() for line in lines if "cellmeter" in line]
    return told[-1] if told else None


def _loads_extension(notebook: Any) -> bool:
    return any(cell.cell_type == "code" and _LOADS_EXTENSION.search(cell.source) for cell in notebook.cells)


class _Follower:
    """Turns nbclient's hooks into :class:`Progress`."""

    def __init__(self, notebook: Any, tell: Callable[[Progress], None]) -> None:
        self._numbers = {
            i: n for n, i in enumerate((i for i, c in enumerate(notebook.cells) if c.cell_type == "code"), 1)
        }
        self._tell = tell
        self._started = monotonic()
        self._now: Progress | None = None
        self.kernel: tuple[int, str | None] | None = None
        self.stopped: int | None = None
        self.lingered = False
        self._work: asyncio.Task[Any] | None = None
        self._manager: Any = None

    def listen(self) -> None:
        """Takes signals in place of nbclient, whose handlers end the kernel twice and fail at that."""
        self._work = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)

    def saw_kernel(self, manager: Any) -> None:
        self._manager = manager
        pid = getattr(manager.provisioner, "pid", None)
        self.kernel = None if pid is None else (pid, process_identity(pid))
        if self.stopped is not None:
            self._interrupt()

    def _stop(self, number: int) -> None:
        if self.stopped is None:
            self.stopped = number
            if self._manager is not None:
                self._interrupt()

    def _interrupt(self) -> None:
        """Interrupts the cell, so that it can say what it has to and the kernel goodbye; one that does not end is left."""
        self._interrupted = asyncio.ensure_future(self._manager.interrupt_kernel())
        asyncio.get_running_loop().call_later(END_SECONDS, self._cancel)

    def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def started(self, cell: Any, cell_index: int) -> None:
        if cell_index not in self._numbers:
            return
        if self.stopped is not None:  # between two cells, or this notebook goes on after errors
            self._cancel()
        self._started = monotonic()
        lines = (line.strip() for line in cell.source.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        self._now = Progress(self._numbers[cell_index], len(self._numbers), first, None, False)
        self._tell(self._now)

    def ended(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        if self._now is not None and cell_index in self._numbers:
            failed = execute_reply["content"]["status"] != "ok"
            self._tell(self._now._replace(seconds=monotonic() - self._started, failed=failed))

    def where(self) -> str:
        if self._now is None:
            return "the first cell"
        return f"code cell {self._now.number} of {self._now.total} ({self._now.first_line[:60]})"


def run_of_process(pid: int, identity: str | None) -> Path | None:
    """The newest run of a process, whose :func:`~cellmeter.store.process_identity` that is; None if there is none."""
    folders = reversed(run_folders(runs_home()))
    return next((f for f in folders if identity is not None and kernel_of(f) == (pid, identity)), None)


def wait_for_end(folder: Path) -> None:
    """The recorder writes the end record just after the process has gone, and the header of a short run not before."""
    until = monotonic() + END_SECONDS
    while _goes_on(folder) and monotonic() < until:
        time.sleep(0.01)


def _goes_on(folder: Path) -> bool:
    try:
        return is_open(read_header(folder))
    except RunUnreadable:
        return True
