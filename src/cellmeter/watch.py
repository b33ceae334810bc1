"""``cellmeter watch``: a run live in a terminal, for those who come by ssh; without a terminal, a line a second."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellmeter import charts
from cellmeter.clock import monotonic
from cellmeter.errors import MissingExtra, RunUnreadable
from cellmeter.export.rows import CELL_HEADERS
from cellmeter.export.summary import SENTENCE_END, plain
from cellmeter.following import WINDOW_SECONDS, Followed
from cellmeter.holders import listed, told
from cellmeter.run import LONGEST_READING_SECONDS
from cellmeter.store import read_header
from cellmeter.words import counted, given_text, of_text, seconds_text, value_text

try:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise MissingExtra("rich", "watch", "watch") from error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.export.rows import CellRow

    Floats = NDArray[np.float64]

UPDATE_SECONDS = 0.25
LINE_SECONDS = 1.0
SILENT_SECONDS = 5.0
NARROW = 76  # columns; below, a line keeps what matters most
WIDE = 96  # columns; from here on, all is said
PLAIN_WIDTH = 100  # of the last view where there is no terminal
MOST_FINDINGS = 3
MOST_OTHERS = 3
MOST_LINES = 3  # of a chart
MOST_HIGH_GPUS = 2
WINDOWS = (15.0, 30.0, 60.0, WINDOW_SECONDS)
BLOCKS = " ▁▂▃▄▅▆▇█"
_STYLES = {"cpu": "cyan", "memory": "green", "gpu": "magenta"}
_SIGNS = {"critical": ("■", "red"), "warning": ("▲", "yellow"), "info": ("●", "blue")}


def watch(folder: Path, others: Sequence[Path] = ()) -> None:
    """Shows a run until it ends or the user has seen enough, and then how it ended. Raises RunUnreadable.

    ``others``: runs that go on as well, which is said.
    """
    followed = Followed(folder)
    followed.poll()
    console = _Console() if sys.stdout.isatty() else _Console(width=PLAIN_WIDTH, no_color=True)
    if others:
        told = ", ".join(map(_named, others[:MOST_OTHERS]))
        more = f" and {len(others) - MOST_OTHERS} more: cellmeter runs" if len(others) > MOST_OTHERS else ""
        print(f"cellmeter: this is {folder.name}, the newest that goes on; so do {told}{more}", file=sys.stderr)
    with _ended_by_signals():
        if not followed.ended and console.is_terminal:
            _on_a_screen(followed, console, len(others))
        elif not followed.ended:
            _line_by_line(followed)
    if followed.ended:
        how = followed.finish()
        console.print(view(followed, console.width, 24, ended=how))
        console.print(Text(f"{folder.name} ended: {how}"), soft_wrap=True)


def _named(folder: Path) -> str:
    try:
        notebook = read_header(folder).get("notebook")
    except RunUnreadable:
        return folder.name
    return f"{folder.name} ({plain(Path(notebook).name)})" if notebook else folder.name


class _Console(Console):
    """Rich ends the process with 1, which means that a notebook failed; the command line knows better."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C and a request to terminate are how one leaves: in good order, with the terminal as it was."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _on_a_screen(followed: Followed, console: Console, others: int) -> None:
    more = f" · {counted(others, 'other run')} too: cellmeter runs" if others else ""
    last = Text(f"q leaves; the run goes on{more}", "dim", no_wrap=True, overflow="ellipsis")
    with _keys() as quit_within, Live(console=console, screen=True, auto_refresh=False) as live:
        while not followed.ended:
            shown = view(followed, console.width, console.height - 2)
            live.update(Group(shown, Text(), last), refresh=True)
            if quit_within(UPDATE_SECONDS):
                return
            followed.poll()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Waits so many seconds at most, and says whether the user wants to leave: ``q`` was typed, or the terminal is gone."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    if not os.isatty(fd):  # standard input is something else: Ctrl-C is left
        yield lambda seconds: bool(select.select([], [], [], seconds)[0])
        return
    before = termios.tcgetattr(fd)

    def quit_within(seconds: float) -> bool:
        if not select.select([fd], [], [], seconds)[0]:
            return False
        typed = os.read(fd, 64)
        return not typed or b"q" in typed.lower()

    try:
        tty.setcbreak(fd)
        yield quit_within
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _line_by_line(followed: Followed) -> None:
    while not followed.ended:
        print(line(followed), flush=True)
        until = monotonic() + LINE_SECONDS
        while not followed.ended and monotonic() < until:
            time.sleep(UPDATE_SECONDS)
            followed.poll()


# ---- one line --------------------------------------------------------------------------------------------------------


def line(followed: Followed) -> str:
    """The run now, in one line without colours."""
    frame = followed.frame()
    parts = [time.strftime("%H:%M:%S"), _doing(followed)]
    gpus: dict[str, list[str]] = {}
    for spec in frame.panels:
        now = [value_text(x, spec.unit) for x in _last(frame.of(spec))]
        if spec.key in ("cpu", "memory"):
            parts.append(f"{spec.title} {now[0]}")
        elif spec.key != "power":
            for one, text in zip(spec.lines, now, strict=True):
                gpus.setdefault(one.subject, [one.subject]).append(text)
    return " · ".join([*parts, *map(" ".join, gpus.values())])


def _doing(followed: Followed) -> str:
    cell = followed.running
    if cell is None:
        return "between cells"
    return f"{plain(cell.title)} {seconds_text(max(0.0, followed.seconds - cell.start))}"


# ---- the whole screen ------------------------------------------------------------------------------------------------


def view(followed: Followed, width: int, height: int, ended: str | None = None) -> RenderableType:
    """All there is to see in so many columns and rows. ``ended``: how, of a run that has."""
    frame = followed.frame()
    narrow = width < NARROW
    gpus = [one.subject for spec in frame.panels if spec.key == "gpu" for one in spec.lines]
    findings = _findings(followed, width)
    rows = followed.summary.rows
    least = 4 + (2 + len(gpus)) + (len(findings) + 1 if findings else 0) + (2 + min(3, len(rows)) if rows else 0)
    others = _others(followed, width) if ended is None else []
    least += len(others)
    high = 2 + (len(gpus) if len(gpus) <= MOST_HIGH_GPUS else 0)  # charts that take more lines where there is room
    tall = max(1, min(MOST_LINES, 1 + (height - least) // high))
    left = height - least - (tall - 1) * high - 1
    parts: list[RenderableType] = [
        *_header(followed, width, ended),
        Text(),
        _charts(followed, frame, gpus, (width, tall), ended is not None),
        *others,
    ]
    if rows:
        most = max(3, 3 + left)
        parts += [Text(), _cells(rows[-most:], bool(gpus), narrow)]
    if findings:
        parts += [Text(), *findings]
    return Group(*parts)


def _header(followed: Followed, width: int, ended: str | None) -> list[Text]:
    seconds = seconds_text(followed.seconds)
    notebook = plain(Path(followed.header.get("notebook") or "").name)
    if ended is not None:
        state = ("ended", "bold")
    elif followed.silent_seconds > SILENT_SECONDS:
        state = (f"no sample for {seconds_text(followed.silent_seconds)}", "bold yellow")
    else:
        state = ("recording", "bold green")
    first = Text.assemble(("cellmeter ", "bold"), state, f" {seconds}  ", (notebook, ""))
    identity = followed.folder.name
    if len(first) + len(identity) + 2 <= width:
        first.append(" " * (width - len(first) - len(identity)) + identity, "dim")
    first.truncate(width, overflow="ellipsis")
    cell = followed.running
    if ended is not None:
        second = Text(ended)
    elif cell is None:
        second = Text("between cells", "dim")
    else:
        second = Text.assemble(("▶ ", "green"), (_doing(followed), "bold"), "  ", (plain(cell.first_line), "dim"))
    second.truncate(width, overflow="ellipsis")
    return [first, second]


def _others(followed: Followed, width: int) -> list[Text]:
    """Who else is on the GPUs, in one line."""
    names = [plain(f"{one.gpu} {told(one)}") for one in followed.others]
    line = Text.assemble(("Others  ", "bold"), (listed(names), "dim"))
    line.truncate(width, overflow="ellipsis")
    return [line] if names else []


class _Row(NamedTuple):
    """A quantity: its name, what it is now, what else there is to say, and how it is drawn."""

    name: str
    now: str
    note: str
    style: str
    values: Floats
    top: float


def _charts(followed: Followed, frame: charts.Frame, gpus: list[str], size: tuple[int, int], ended: bool) -> Table:
    """CPU, memory and each GPU: its name, now, the last two minutes, and what else there is to say.

    Of a run that has ended there is no now: the highest of that time stands for it.
    """
    width, tall = size
    narrow = width < NARROW
    rows = [_cpu_or_memory(frame, key, narrow, ended) for key in ("cpu", "memory")]
    rows += [_gpu(frame, gpu, width, ended) for gpu in gpus]
    known = [row for row in rows if row is not None]
    taken = [max(1, *map(len, texts)) for texts in zip(*((row.name, row.now, row.note) for row in known), strict=True)]
    room = max(4, width - sum(taken) - 6)
    window = next((span for span in WINDOWS if span >= followed.seconds), WINDOWS[-1])
    table = Table.grid(padding=(0, 2), expand=False)
    for name, now, note, style, values, top in known:
        lines = 1 if name in gpus and len(gpus) > MOST_HIGH_GPUS else tall
        drawn = "\n".join(spark(frame.time, values, top, window, (room, lines)))
        table.add_row(Text(name, "bold"), Text(now), Text(drawn, style, no_wrap=True), Text(note, "dim"))
    begin, end = f"−{given_text(window, 's')}", "end" if ended else "now"
    if known and room > len(begin) + len(end):
        table.add_row("", "", Text(begin + " " * (room - len(begin) - len(end)) + end, "dim"), "")
    return table


def _cpu_or_memory(frame: charts.Frame, key: str, narrow: bool, ended: bool) -> _Row | None:
    spec = next((spec for spec in frame.panels if spec.key == key), None)
    if spec is None:
        return None
    import numpy as np

    values = frame.of(spec)
    peaks = [float(x) for x in np.fmax.reduce(values)] if len(values) else [math.nan] * len(spec.lines)
    now = of_text((peaks if ended else _last(values))[0], None if narrow else spec.limit, spec.unit)
    # the first line is the kernel's own; a spike of the machine's does not stretch its scale here, where it is not drawn
    top = charts.scale_top(spec, [peaks[0], *[math.nan] * (len(peaks) - 1)])
    if ended:
        return _Row(spec.title, f"peak {now}", "", _STYLES[key], values[:, 0], top)
    note = f"peak {value_text(peaks[0], spec.unit)}"
    children = [x for one, x in zip(spec.lines, _last(values), strict=True) if one.role == "second"]
    if key == "memory" and children and children[0] > 1.01 * _last(values)[0] and not narrow:
        note += f", {value_text(children[0], 'By')} with children"
    return _Row(spec.title, now, note, _STYLES[key], values[:, 0], top)


def _gpu(frame: charts.Frame, gpu: str, width: int, ended: bool) -> _Row:
    import numpy as np

    found = {spec.key: (spec, n) for spec in frame.panels for n, one in enumerate(spec.lines) if one.subject == gpu}
    values = {key: frame.of(spec)[:, n] for key, (spec, n) in found.items()}
    peaks = {key: float(np.fmax.reduce(column, initial=math.nan)) for key, column in values.items()}
    newest = peaks if ended else {key: _last(column[:, None])[0] for key, column in values.items()}
    now = {key: value_text(value, found[key][0].unit) for key, value in newest.items()}
    note = now.get("gpu-memory", "")
    if width >= NARROW:
        if "gpu-memory" in found:
            spec, n = found["gpu-memory"]
            note = of_text(newest["gpu-memory"], spec.limit or spec.lines[n].top, "By")
        note += f"  {now['power']:>5}" if "power" in now else ""
    if width >= WIDE and not ended:
        note = f"peak {value_text(peaks['gpu'], '%')}  {note}"
    return _Row(gpu, f"peak {now['gpu']}" if ended else now["gpu"], note, _STYLES["gpu"], values["gpu"], 100.0)


def _last(values: Floats) -> list[float]:
    """The newest reading of each column; NaN where it is unknown."""
    return [float(x) for x in values[-1]] if len(values) else [math.nan] * values.shape[1]


def spark(times: Floats, values: Floats, top: float, window: float, size: tuple[int, int]) -> list[str]:
    """The last ``window`` seconds in blocks, as many characters and lines as ``size`` says; what is unknown is blank.

    A character stands for the highest reading of its time. Time is cut at round numbers, so that a picture only ever moves to
    the left as it grows.
    """
    import numpy as np

    width, height = size
    step = window / width
    last = math.ceil(float(times[-1]) / step) if len(times) else 0
    edges = times.searchsorted((np.arange(last - width, last + 1) * step), "right")
    edges[-1] = len(times)  # whatever is lost in rounding
    levels = []
    for bucket, (low, high) in enumerate(itertools.pairwise(edges)):
        if low == high < len(times) and times[high] - (last - width + bucket) * step <= LONGEST_READING_SECONDS:
            high = low + 1  # a reading stands for the time before it
        known = values[low:high][~np.isnan(values[low:high])]
        level = float(known.max()) / top * height * 8 if len(known) and top > 0 else math.nan
        levels.append(0 if math.isnan(level) else min(height * 8, max(1, round(level))))
    return ["".join(BLOCKS[min(8, max(0, level - 8 * row))] for level in levels) for row in range(height - 1, -1, -1)]


def _cells(rows: tuple[CellRow, ...], gpus: bool, narrow: bool) -> Table:
    shown = [n for n, header in enumerate(CELL_HEADERS) if gpus or header not in ("GPU", "Energy")]
    if narrow:
        shown = [n for n in shown if CELL_HEADERS[n] not in ("Growth", "Energy")]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for n in shown:
        right = n not in (0, len(CELL_HEADERS) - 1)
        table.add_column(CELL_HEADERS[n], justify="right" if right else "left", no_wrap=True, max_width=26)
    if not narrow:
        table.add_column("", style="dim")  # the only one that gives way
    for row in rows:
        texts = row.texts()
        styles = ["" if row.status == "ok" or n != len(texts) - 1 else "red" for n in shown]
        cells = [Text(texts[n], style, overflow="ellipsis") for n, style in zip(shown, styles, strict=True)]
        table.add_row(*cells, *([] if narrow else [Text(row.first_line, no_wrap=True, overflow="ellipsis")]))
    return table


def _findings(followed: Followed, width: int) -> list[Text]:
    lines = []
    for finding in (followed.summary.findings or ())[:MOST_FINDINGS]:
        sign, style = _SIGNS[finding.severity]
        told = Text.assemble((f"{sign} ", style), SENTENCE_END.split(plain(finding.fact))[0])
        told.truncate(width, overflow="ellipsis")
        lines.append(told)
    return lines
