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


@pytest.fixture(scope="session")
def free_pages(chromium: Any) -> list[Any]:
    """Pages that no test has. A window costs a second, and where JupyterLab was before it loads in half the time."""
    return []


@pytest.fixture
def open_page(chromium: Any, free_pages: list[Any]) -> Iterator[Callable[..., Any]]:
    """Lends a page, which its test leaves as it was: ``open_page(width, dark)``."""
    lent = []

    def opener(width: int, dark: bool) -> Any:
        page = free_pages.pop() if free_pages else chromium.new_context().new_page()
        lent.append(page)
        page.context.set_default_timeout(ACTION_MS)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        return page

    yield opener
    free_pages.extend(lent)


@pytest.fixture
def open_book(server: Server, open_page: Callable[..., Any]) -> Iterator[Callable[..., Book]]:
    """Writes a notebook and opens it: ``open_book(name, cells, front="lab", width=1300, dark=False)``."""
    books = []

    def opener(
        name: str, cells: list[str], *, front: str = "lab", width: int = 1300, dark: bool = False, on: Server = server
    ) -> Book:
        book = Book(open_page(width, dark), on, on.notebook(name, cells), front)
        books.append(book)
        book.open(f"token={TOKEN}&reset")
        book.ready()
        book.command("apputils:change-theme", {"theme": f"JupyterLab {'Dark' if dark else 'Light'}"})
        return book

    yield opener
    for book in books:
        print(book.seen())  # pytest shows it of a test that failed
        book.leave()
    for used in {id(book.server): book.server for book in books}.values():
        used.end_kernels()
