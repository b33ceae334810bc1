"""When the kernel cannot speak: a cell that holds the GIL, a kernel that dies; with the server extension and without."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from browser.driver import ACTION_MS, FRONTS, LAB_OPTIONS, Book, Server, serving, wait_until
from browser.test_live import UPGRADED, wait_for_points

LIVE = ".cellmeter[data-drawn]"
HOLD_SECONDS = 5
# Once the panel has been seen, the GIL is held; it is let go for a moment before the end.
HOLDS = f"""%%monitor holds the GIL
import ctypes, os, time
while not os.path.exists("seen"): time.sleep(0.1)
ctypes.PyDLL(None).usleep({HOLD_SECONDS}_000_000)
time.sleep(1.5)
"""
DIES = """%%monitor dies
import ctypes, os, time
while not os.path.exists("seen"): time.sleep(0.1)
{how}
"""
WATCH = """() => {
    window.moments = [performance.now()];
    const panel = document.querySelector(".cellmeter[data-drawn]");
    let last = panel.dataset.points;
    new MutationObserver(() => {
        if (panel.dataset.points !== last) window.moments.push(performance.now());
        last = panel.dataset.points;
    }).observe(panel, { attributes: true });
}"""


def running(
    open_book: Callable[..., Book],
    name: str,
    code: str,
    *more: str,
    load: str = "%load_ext cellmeter",
    **options: object,
) -> Book:
    """A notebook whose second cell runs and shows its panel; it waits for the file ``seen``."""
    book = open_book(name, [load, code, *more], **options)
    book.path.with_name("seen").unlink(missing_ok=True)
    book.run(0)
    book.wait(0)
    book.run(1)
    wait_for_points(book, 5)
    return book


def longest_stall(book: Book) -> float:
    """Seconds between two updates of the panel, at most, while the cell of HOLDS runs on."""
    book.page.evaluate(WATCH)
    book.path.with_name("seen").touch()
    book.wait(1)
    moments = book.page.evaluate("() => window.moments")
    assert moments[-1] - moments[0] > HOLD_SECONDS * 1000
    return float(np.diff(moments).max()) / 1000


@pytest.mark.parametrize("front", FRONTS)
def test_the_chart_goes_on_while_the_gil_is_held(open_book: Callable[..., Book], front: str) -> None:
    book = running(open_book, f"holds-{front}", HOLDS, front=front)
    stall = longest_stall(book)
    print(f"longest stall: {stall:.2f} of {HOLD_SECONDS} s")  # with pytest -s
    assert stall < HOLD_SECONDS / 2
    assert any("cellmeter/v1/runs" in url for url in book.requests)
    assert book.complaints() == []


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("os.kill(os.getpid(), 9)", "Kernel died in this cell: killed (SIGKILL), memory at "),
        ("ctypes.string_at(0)", "Kernel died in this cell: crashed (SIGSEGV)"),
        ("os._exit(7)", "Kernel exited in this cell (exit code 7)"),
    ],
    ids=["killed", "crashed", "exited"],
)
def test_the_panel_says_how_the_kernel_died(open_book: Callable[..., Book], front: str, how: str, says: str) -> None:
    name = f"dies-{front}-{says.split()[-1].strip('()')}"
    book = running(open_book, name, DIES.format(how=how), front=front)
    book.path.with_name("seen").touch()
    book.page.wait_for_selector(".cellmeter[data-state=died]", timeout=ACTION_MS)
    assert book.page.text_content(".cellmeter .cm-state").startswith(says)
    book.screenshot(name)
    assert book.complaints() == []


MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 400 MiB, where the machine allows making one."""
    folder = MEMORY_CGROUP / f"cellmeter-browser-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(400 << 20))
    except OSError as error:
        pytest.skip(f"this machine allows no control group of our own ({error}); test_server has the faked one")
    yield folder
    wait_until(lambda: not (folder / "cgroup.procs").read_text().strip(), "the group to be empty")
    folder.rmdir()


def test_out_of_memory(open_book: Callable[..., Book], small_group: Path) -> None:
    enter = f"open('{small_group}/cgroup.procs', 'w').write('0')\n"
    eats = "kept = []\nwhile True: kept.append(bytearray(8 << 20)); time.sleep(0.05)"
    book = running(open_book, "memory", DIES.format(how=eats), load=f"{enter}%load_ext cellmeter")
    book.path.with_name("seen").touch()
    book.page.wait_for_selector(".cellmeter[data-state=died]", timeout=ACTION_MS)
    said = book.page.text_content(".cellmeter .cm-state")
    found = re.fullmatch(r"Kernel died in this cell: out of memory at (\d+) of 400 MiB", said)
    assert found is not None, said
    assert 300 < int(found[1]) <= 400
    book.screenshot("out-of-memory")


# ---- without the extension, and where it does not know the run -------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab with the extension switched off, as `jupyter server extension disable` does it."""
    base = tmp_path_factory.mktemp("bare")
    config = base / "config"
    config.mkdir()
    off = {"ServerApp": {"jpserver_extensions": {"cellmeter.server": False}}}
    (config / "jupyter_server_config.json").write_text(json.dumps(off))
    with serving(base, "jupyterlab", base / "home", LAB_OPTIONS) as server:
        yield server


def cellmeter_requests(book: Book) -> list[str]:
    return [url for url in book.requests if "/cellmeter/v1/" in url]


def test_without_the_extension_the_chart_stands_still_and_nothing_breaks(
    open_book: Callable[..., Book], bare: Server
) -> None:
    book = running(open_book, "bare", HOLDS, on=bare)
    assert longest_stall(book) > HOLD_SECONDS / 2
    book.page.wait_for_selector(UPGRADED, timeout=ACTION_MS)
    assert cellmeter_requests(book) == []
    assert book.complaints() == []


def test_without_the_extension_a_dead_kernel_is_gone(open_book: Callable[..., Book], bare: Server) -> None:
    book = running(open_book, "bare-dies", DIES.format(how="os._exit(7)"), on=bare)
    book.path.with_name("seen").touch()
    book.page.wait_for_selector(".cellmeter[data-state=gone]", timeout=ACTION_MS)
    assert cellmeter_requests(book) == []
    assert book.complaints() == []


def test_a_run_the_server_does_not_know_is_asked_for_no_more_than_twice(
    open_book: Callable[..., Book], tmp_path: Path
) -> None:
    elsewhere = f"import os; os.environ['CELLMETER_HOME'] = {str(tmp_path)!r}\n%load_ext cellmeter"
    briefly = HOLDS.replace(f"ctypes.PyDLL(None).usleep({HOLD_SECONDS}", "time.sleep(2)\nctypes.PyDLL(None).usleep(2")
    book = running(open_book, "elsewhere", HOLDS, briefly, briefly, load=elsewhere)
    assert longest_stall(book) > HOLD_SECONDS / 2
    book.page.wait_for_selector(UPGRADED, timeout=ACTION_MS)
    assert len(cellmeter_requests(book)) == 1
    for index in (2, 3):
        book.run(index)
        book.wait(index)
    assert len(cellmeter_requests(book)) <= 2
    assert len([line for line in book.console if "404" in line]) <= 2
    assert book.complaints() == []
