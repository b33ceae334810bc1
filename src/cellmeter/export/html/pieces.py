"""Small pieces of markup that the sections of the page share. All text from a notebook goes through :func:`text`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from cellmeter.export.summary import plain

if TYPE_CHECKING:
    from cellmeter.rules import Severity
    from cellmeter.run import Run

SEVERITY_WORDS: dict[Severity, str] = {"critical": "■ Critical", "warning": "▲ Warning", "info": "● Note"}


def text(words: str) -> str:
    """Words as markup: escaped, and without characters that hide or turn others."""
    return escape(plain(words))


def section(title: str, content: str, note: str = "") -> str:
    """A part of the page with its heading; nothing where there is no content."""
    small = f" <small>{text(note)}</small>" if note else ""
    key = "about-" + title.lower().replace(" ", "-")
    return (
        f'<section aria-labelledby="{key}"><h2 id="{key}">{title}{small}</h2>{content}</section>\n' if content else ""
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names with what there is to say of them."""
    lines = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
    return f'<dl class="panel facts">{lines}</dl>' if lines else ""


def table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> str:
    """A table of ready markup, one string a row's cell; the first ``left`` columns are names, all else is numbers."""
    names = list(heads)
    head = "".join(f"<th scope=col{_left(i < left)}>{name}</th>" for i, name in enumerate(names))
    body = "".join(f"<tr>{_row(names, row, left)}</tr>" for row in rows)
    words = text(caption)
    return scrollable(
        caption, f"<table><caption>{words}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def scrollable(name: str, table: str) -> str:
    """A table in a panel that scrolls sideways where it is too wide, by keyboard too; on a phone each row is a block."""
    return f'<div class="panel wide" tabindex="0" role="region" aria-label="{text(name)}">{table}</div>'


def _row(names: Sequence[str], cells: Iterable[str], left: int) -> str:
    """The columns' names are with the cells too: on a phone there are no columns."""
    return "".join(
        f"<th scope=row{_left(True)}>{cell}</th>"
        if i == 0
        else f'<td{_left(i < left)} data-name="{text(name)}">{cell}</td>'
        for i, (name, cell) in enumerate(zip(names, cells, strict=True))
    )


def _left(yes: bool) -> str:
    return " class=left" if yes else ""


def meter(words: str, share: float | None, kind: str = "") -> str:
    """A number over a bar that shows it as a share, 0 to 1."""
    width = 0.0 if share is None or math.isnan(share) else 100 * min(max(share, 0.0), 1.0)
    return f'<span class="meter {kind}">{words}<i style="width:{width:.1f}%"></i></span>'


def name_of(run: Run) -> str:
    """What people call the run: its notebook's file, else its id."""
    return Path(run.notebook).name if run.notebook else run.id


def packaged(name: str) -> str:
    """A file that lies beside the exports."""
    return resources.files("cellmeter.export").joinpath(name).read_text("utf-8")
