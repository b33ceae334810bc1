"""The Jupyter server's side: a run's tail for a panel whose kernel cannot speak, as its cell holds the GIL or has killed it.

Loaded by a Jupyter server in whose environment cellmeter is installed, and by nothing else. Read only: it serves the runs
below the server's own CELLMETER_HOME that belong to the user it runs as, to those whom the server has let in::

    GET cellmeter/v1/runs/<id>/cells/<seq>/tail?from=<row>
    GET cellmeter/v1/runs/<id>/tail?from=<row>

answers with JSON: ``rows`` (base64 of float64 columns, the time first, as the kernel sends them), ``width`` (columns), ``s``
(number of the first row; null: these are all rows, thinned out), ``n`` (number of the next one), and once the cell has
or run has ended ``ending``: ``status``, ``seconds`` and what to say of it (``says``). Of a whole run also ``cells``: those that
began last, as the dock shows them. 404: no such cell or run here.
"""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from cellmeter import __version__, charts
from cellmeter.errors import RunUnreadable
from cellmeter.export.summary import death
from cellmeter.export.summary import ending as ended
from cellmeter.feed import CHUNK_BYTES, Feed, WholeRun, column_major
from cellmeter.home import RUN_ID, runs_home
from cellmeter.still import ENDINGS
from cellmeter.store import EVENTS, HEADER, Tail, is_open, read_events, read_header, read_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REPLY_BYTES = 1 << 20  # of rows in one reply
MOST_FEEDS = 8
MOST_BANDS = 50  # in one reply; of those before, the page heard from the kernel
_UNREADABLE = (RunUnreadable, OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def own_folder(run_id: str) -> Path | None:
    """The run's folder, if it is a plain folder of this user with nothing but plain files of this user; else None."""
    folder = runs_home() / run_id
    try:
        if not RUN_ID.fullmatch(run_id) or not _is_own(folder, stat.S_ISDIR):
            return None
        names = {name for name in os.listdir(folder) if _is_own(folder / name, stat.S_ISREG)}
        if not names >= {HEADER, EVENTS}:
            return None
        samples = {entry["file"] for entry in read_header(folder)["segments"]}
    except _UNREADABLE:
        return None
    return folder if names >= samples else None


def _is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # run.json.new comes and goes
        return False
    return is_kind(found.st_mode) and found.st_uid == os.getuid()


class Cells:
    """The cells that pages ask for, each followed from where it was left. For one thread."""

    def __init__(self) -> None:
        self._feeds: OrderedDict[tuple[str, int], Feed] = OrderedDict()

    def tail(self, run_id: str, seq: int, number: int) -> dict[str, Any] | None:
        """The reply of the module's docstring, ``seq`` 0 being the whole run; None if it is not there, or not this user's."""
        folder = own_folder(run_id)
        if folder is None:
            return None
        try:
            feed = self._feed(folder, seq)
            return None if feed is None else _reply(feed, number)
        except _UNREADABLE:
            return None

    def _feed(self, folder: Path, seq: int) -> Feed | None:
        key = folder.name, seq
        if key in self._feeds:
            self._feeds.move_to_end(key)
            return self._feeds[key]
        feed = _cell_feed(folder, seq) if seq else WholeRun(folder, charts.DEFAULT_GROUPS)
        if feed is None:
            return None
        self._feeds[key] = feed
        if len(self._feeds) > MOST_FEEDS:
            self._feeds.popitem(last=False)
        return feed


def _cell_feed(folder: Path, seq: int) -> Feed | None:
    began = [e["t"] for e in read_events(folder / EVENTS)[0] if e.get("event") == "cell_start" and e.get("seq") == seq]
    if not began:
        return None
    return Feed(folder, seq, charts.DEFAULT_GROUPS, Tail(folder, since_ns=began[0], most_bytes=CHUNK_BYTES), began[0])


def _reply(feed: Feed, number: int) -> dict[str, Any]:
    running = is_open(read_header(feed.folder), feed.folder)  # before the rows: what is written last is not missed
    while len(feed.poll()):
        pass
    rows = feed.since(number)
    first: int | None = number
    width = feed.rows().shape[1]
    most = REPLY_BYTES // (8 * width)
    if rows is None or len(rows) > most:
        rows, first = _thinned(feed.rows(), most), None
    return {
        "rows": base64.b64encode(column_major(rows)).decode("ascii"),
        "width": width,
        "s": first,
        "n": feed.next,
        "ending": _ending(feed, running),
        **({"cells": feed.bands(True)[-MOST_BANDS:]} if isinstance(feed, WholeRun) else {}),
    }


def _thinned(rows: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    import numpy as np

    times, values = charts.decimate(rows[:, 0], rows[:, 1:], most)
    return np.column_stack([times, values])


def _ending(feed: Feed, running: bool) -> dict[str, Any] | None:
    edges = feed.edges()
    if "cell_end" in edges:
        seconds = (edges["cell_end"]["t"] - edges["cell_start"]["t"]) * 1e-9
        status = edges["cell_end"]["status"]
        return {"status": status, "seconds": seconds, "says": ENDINGS[status]}
    if running:
        return None
    run = read_run(feed.folder, newest=50)
    if not feed.seq:
        return {"status": "stopped" if run.ending == "stopped" else "died", "seconds": run.duration, "says": ended(run)}
    cell = next(cell for cell in run.cells if cell.seq == feed.seq)
    status = "stopped" if run.ending == "stopped" else "died"
    return {"status": status, "seconds": run.duration - cell.start, "says": death(run) or ENDINGS["died"]}


class TailHandler(APIHandler):
    """Answers from a thread, so that a slow disk holds up no one but who asks."""

    auth_resource = "cellmeter"
    _track_activity = False  # a panel that looks is no user at work: idle servers are to be culled as ever

    def initialize(self, cells: Cells, thread: ThreadPoolExecutor) -> None:
        """Tornado's constructor."""
        self._cells, self._thread = cells, thread

    @web.authenticated
    @authorized
    async def get(self, run_id: str, seq: str | None) -> None:
        """One reply; see the module."""
        number = self.get_query_argument("from", "0")
        if not (number.isascii() and number.isdigit() and len(number) < 16):
            raise web.HTTPError(400, "from is the number of a row")
        work = asyncio.get_running_loop().run_in_executor
        reply = await work(self._thread, self._cells.tail, run_id, int(seq or 0), int(number))
        if reply is None:
            raise web.HTTPError(404, "this server knows no such cell or run")
        self.finish(reply)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "cellmeter.server"}]


def _load_jupyter_server_extension(app: Any) -> None:
    """Adds the handler, and tells pages in their configuration that they may ask."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="cellmeter")
    path = url_path_join(
        app.web_app.settings["base_url"], rf"/cellmeter/v1/runs/({RUN_ID.pattern})(?:/cells/([1-9]\d{{0,8}}))?/tail"
    )
    app.web_app.add_handlers(".*$", [(path, TailHandler, {"cells": Cells(), "thread": thread})])
    app.web_app.settings.setdefault("page_config_data", {})["cellmeter"] = __version__
