"""What the browser tests drive: a JupyterLab server and a notebook open in it."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

TOKEN = "cellmeter-test"
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
ACTION_MS = 60_000


def wait_until(probe: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
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
    """JupyterLab, its address, and where its notebooks lie."""

    url: str
    root: Path
    home: Path

    def notebook(self, name: str, cells: list[str]) -> Path:
        """Writes a notebook of code cells."""
        path = self.root / f"{name}.ipynb"
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, path)
        return path

    def request(self, method: str, path: str) -> Any:
        """Asks the server's REST interface."""
        request = urllib.request.Request(
            f"{self.url}{path}", method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            body = reply.read()
        return json.loads(body) if body else None


@dataclass
class Book:
    """A notebook open in JupyterLab."""

    page: Any
    server: Server
    path: Path
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def run(self, index: int) -> None:
        """Starts a cell, and does not wait for it."""
        self.page.evaluate(
            """(index) => { const notebook = window.jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = index; notebook.deselectAll();
                window.jupyterapp.commands.execute("notebook:run-cell"); }""",
            index,
        )

    def wait(self, index: int) -> None:
        """Waits for a cell's end."""
        self.page.wait_for_function(
            """(index) => { const cell = window.jupyterapp.shell.currentWidget.content.widgets[index];
                return cell.model.executionCount && !cell.node.querySelector(".jp-InputPrompt").textContent.includes("*"); }""",
            arg=index,
            timeout=ACTION_MS,
        )

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
        """Restarts the kernel, as the server does it; the page hears of it."""
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

    def complaints(self) -> list[str]:
        """What the console says of us."""
        return [
            line for line in self.console if any(word in line for word in ("cellmeter", "okeh", "anywidget", "blob:"))
        ]
