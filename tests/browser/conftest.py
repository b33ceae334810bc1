"""A real JupyterLab on loopback, driven in headless Chromium. Everything it starts ends with its fixture."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from browser.driver import ACTION_MS, TOKEN, Book, Server, left_running, wait_until

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("jupyter")
    folders = {name: base / name for name in ("config", "data", "runtime", "ipython", "home", "notebooks")}
    for folder in folders.values():
        folder.mkdir()
    quiet = folders["config"] / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    environ = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folders["config"]),
        "JUPYTER_DATA_DIR": str(folders["data"]),
        "JUPYTER_RUNTIME_DIR": str(folders["runtime"]),
        "IPYTHONDIR": str(folders["ipython"]),
        "CELLMETER_HOME": str(folders["home"]),
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={folders['notebooks']}",
        f"--IdentityProvider.token={TOKEN}",
        *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--LabApp.expose_app_in_browser=True"),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def address() -> str | None:
        assert process.poll() is None, (base / "server.log").read_text()
        for file in folders["runtime"].glob("jpserver-*.json"):
            return str(json.loads(file.read_text())["url"])
        return None

    try:
        yield Server(wait_until(address, "JupyterLab starts"), folders["notebooks"], folders["home"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        wait_until(lambda: not left_running(folders["home"]), "server, kernels and recorders end", 30)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    # Debian's, where there is one: Playwright's own download does not work everywhere.
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_book(server: Server, chromium: Any) -> Iterator[Callable[..., Book]]:
    """Writes a notebook and opens it: ``open_book(name, cells, width=1300, dark=False)``."""
    contexts = []

    def opener(name: str, cells: list[str], *, width: int = 1300, dark: bool = False) -> Book:
        path = server.notebook(name, cells)
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        book = Book(page, server, path)
        page.on("console", lambda m: book.console.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: book.console.append(f"pageerror: cellmeter? {error}"))
        page.on("request", lambda request: book.requests.append(request.url))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(f"{server.url}lab/tree/{path.name}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=ACTION_MS)
        book.ready()
        book.command("apputils:change-theme", {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"})
        return book

    yield opener
    for context in contexts:
        context.close()
    for session in server.request("GET", "api/sessions"):
        server.request("DELETE", f"api/sessions/{session['id']}")
