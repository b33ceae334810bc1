"""What the browser tests drive: a JupyterLab server and a notebook open in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import sync_playwright

TOKEN = "cellmeter-test"
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
SLOW_SECONDS = 60.0  # a starved machine's
ACTION_MS = 1000 * SLOW_SECONDS
FRONTS = ("lab", "notebook")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LAB_OPTIONS = (
    "--LabApp.expose_app_in_browser=True",
    "--JupyterNotebookApp.expose_app_in_browser=True",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)


def wait_until(probe: Callable[[], Any], what: str, seconds: float = SLOW_SECONDS) -> Any:
    """The first true answer of a probe."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := probe():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def left_running(home: Path) -> list[int]:
    """Processes that were started with this CELLMETER_HOME and still live."""
    mark = f"CELLMETER_HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@dataclass
class Server:
    """A Jupyter server, its address, and where its notebooks lie."""

    url: str
    root: Path
    home: Path

    def notebook(self, name: str, cells: list[str], kernel: str = "python3") -> Path:
        """Writes a notebook of code cells."""
        path = self.root / f"{name}.ipynb"
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        book.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
        nbformat.write(book, path)
        return path

    def request(self, method: str, path: str) -> Any:
        """Asks the server's REST interface."""
        request = urllib.request.Request(
            f"{self.url}{path}", method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=SLOW_SECONDS) as reply:
            body = reply.read()
        return json.loads(body) if body else None

    def end_kernels(self) -> None:
        """Ends all sessions; asks again where a kernel was just starting again, which Jupyter answers with a 500."""
        wait_until(self._no_session_is_left, "all sessions to end")

    def _no_session_is_left(self) -> bool:
        sessions = self.request("GET", "api/sessions")
        for session in sessions:
            with suppress(urllib.error.HTTPError):
                self.request("DELETE", f"api/sessions/{session['id']}")
        return not sessions


@contextmanager
def browsing() -> Iterator[Any]:
    """A headless Chromium: Debian's, where there is one, for Playwright's own download does not work everywhere."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def serving(base: Path, app: str, home: Path, options: Sequence[str] = ()) -> Iterator[Server]:
    """A Jupyter server of its own on loopback (``app``: jupyterlab or jupyter_server), which ends with all it started."""
    folders = {name: base / name for name in ("config", "data", "runtime", "ipython", "notebooks")}
    for folder in (*folders.values(), home):
        folder.mkdir(exist_ok=True)
    quiet = folders["config"] / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    environ = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folders["config"]),
        "JUPYTER_DATA_DIR": str(folders["data"]),
        "JUPYTER_RUNTIME_DIR": str(folders["runtime"]),
        "IPYTHONDIR": str(folders["ipython"]),
        "CELLMETER_HOME": str(home),
    }
    command = [
        *(sys.executable, "-m", app, "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={folders['notebooks']}",
        f"--IdentityProvider.token={TOKEN}",
        *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", *options),
    ]
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def address() -> str | None:
        assert process.poll() is None, (base / "server.log").read_text()
        for file in folders["runtime"].glob("jpserver-*.json"):
            with suppress(OSError, ValueError):  # the file may be half written, and nobody listen yet
                url = json.loads(file.read_text())["url"]
                with urllib.request.urlopen(f"{url}api", timeout=20):
                    return str(url)
        return None

    try:
        yield Server(wait_until(address, "the server to start"), folders["notebooks"], home)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        wait_until(lambda: not left_running(home), "server, kernels and recorders end")


def listen(page: Any, **listeners: Callable[[Any], object]) -> Callable[[], None]:
    """Calls back on a page's events, until what it returns is called."""
    for event, listener in listeners.items():
        page.on(event, listener)

    def deaf() -> None:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)

    return deaf


@dataclass
class Book:
    """A notebook open in JupyterLab (``front`` is lab) or in Notebook 7 (notebook)."""

    page: Any
    server: Server
    path: Path
    front: str = "lab"
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._deaf = listen(
            self.page,
            console=lambda m: self.console.append(m.text) if m.type in ("error", "warning") else None,
            pageerror=lambda error: self.console.append(f"pageerror: {error} {error.stack}"),
            request=lambda request: self.requests.append(request.url),
            dialog=lambda dialog: dialog.accept(),
        )

    def leave(self) -> None:
        """Leaves the page to another notebook: the only one of its context, with nothing stored and nobody listening."""
        for other in self.page.context.pages:
            if other is not self.page:
                other.close()
        self.page.goto(f"{self.server.url}api")  # of the same origin, whose store it is
        self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
        self._deaf()

    def open(self, query: str = "reset") -> None:
        """Opens the notebook on its page; another one that was there is closed."""
        place = {"lab": "lab/tree", "notebook": "notebooks"}[self.front]
        self.page.goto(f"{self.server.url}{place}/{self.path.name}?{query}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=ACTION_MS)

    def beside(self, path: Path | None = None) -> Book:
        """The same notebook, or another one, in a second tab of the browser."""
        other = Book(self.page.context.new_page(), self.server, path or self.path, self.front)
        other.open()
        return other

    def run(self, index: int) -> None:
        """Starts a cell, and does not wait for it."""
        self.page.evaluate(
            """(index) => { const notebook = window.jupyterapp.shell.currentWidget.content;
                const { node } = notebook.widgets[index];
                notebook.activeCellIndex = index; notebook.deselectAll();
                node.dataset.begun = "yes";  // its count and its prompt are those of its last run for a moment
                window.jupyterapp.commands.execute("notebook:run-cell").then(() => delete node.dataset.begun); }""",
            index,
        )

    def wait(self, index: int) -> None:
        """Waits for a cell's end, and for a recorder that it started."""
        self.page.wait_for_function(
            """(index) => { const cell = window.jupyterapp.shell.currentWidget.content.widgets[index];
                const prompt = cell.node.querySelector(".jp-InputPrompt").textContent;
                return cell.model.executionCount && !cell.node.dataset.begun && !prompt.includes("*"); }""",
            arg=index,
            timeout=ACTION_MS,
        )
        runs = self.server.home / "runs"
        wait_until(lambda: all((folder / "run.json").exists() for folder in runs.glob("*")), "the recorder to begin")

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """A cell's outputs as nbformat has them."""
        return self.page.evaluate(
            "(i) => window.jupyterapp.shell.currentWidget.content.widgets[i].model.outputs.toJSON()", index
        )

    def output(self, index: int) -> Any:
        """A locator of a cell's output area."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".jp-OutputArea")

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Executes one of JupyterLab's commands and waits for it."""
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => null)", [name, arguments or {}]
        )

    def restart(self) -> None:
        """Restarts the kernel, as the server does it; the page hears of it, if it was connected before."""
        self.ready()
        session = next(s for s in self.server.request("GET", "api/sessions") if s["path"] == self.path.name)
        self.server.request("POST", f"api/kernels/{session['kernel']['id']}/restart")
        self.ready()

    def ready(self) -> None:
        """Waits for an idle kernel."""
        self.page.wait_for_function(
            """() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === "idle" """,
            timeout=ACTION_MS,
        )

    def reload(self) -> None:
        """Saves and loads the page anew."""
        self.command("docmanager:save")
        self.page.reload()
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=ACTION_MS)

    def screenshot(self, name: str, index: int | None = None) -> None:
        """Into build/screenshots, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        target = self.page if index is None else self.output(index)
        target.screenshot(path=SCREENSHOTS / f"{name}.png")

    def seen(self) -> str:
        """What stands in its outputs, and what the console said last."""
        outputs = self.page.locator(".jp-Notebook .jp-OutputArea").all_inner_texts()
        states = self.page.locator(".cellmeter").evaluate_all("(all) => all.map((el) => JSON.stringify(el.dataset))")
        return "\n".join([f"{self.path.name}: {self.page.url}", *outputs, *states, *self.console[-20:]])

    def complaints(self) -> list[str]:
        """What the console says of us, but not how long a busy machine took to start JupyterLab's plugins."""
        ours = ("cellmeter", "okeh", "anywidget", "blob:")
        return [line for line in self.console if any(word in line for word in ours) and "ms to activate" not in line]
