"""A real JupyterLab on loopback, driven in headless Chromium. Everything it starts ends with its fixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.driver import ACTION_MS, LAB_OPTIONS, TOKEN, Book, Server, browsing, serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("jupyter")
    with serving(base, "jupyterlab", base / "home", LAB_OPTIONS) as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def open_book(server: Server, chromium: Any) -> Iterator[Callable[..., Book]]:
    """Writes a notebook and opens it: ``open_book(name, cells, front="lab", width=1300, dark=False)``."""
    contexts = []

    def opener(
        name: str, cells: list[str], *, front: str = "lab", width: int = 1300, dark: bool = False, on: Server = server
    ) -> Book:
        path = on.notebook(name, cells)
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(ACTION_MS)
        contexts.append((context, on))
        book = Book(context.new_page(), on, path, front)
        book.open(f"token={TOKEN}&reset")
        book.ready()
        book.command("apputils:change-theme", {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"})
        return book

    yield opener
    for context, _ in contexts:
        context.close()
    for used in {id(on): on for _, on in contexts}.values():
        used.end_kernels()
