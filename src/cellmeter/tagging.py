"""Follows IPython's cells: which one runs, how it ended, what its ``%%monitor`` line says.

IPython tells of a cell before (``pre_run_cell``) and after (``post_run_cell``), but not always of both, not for silent ones,
and cells can run within cells and on several threads at once (subshells). So there is a stack per thread, and the two are
matched by the ``ExecutionInfo`` they share.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import IPython
from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult, InteractiveShell

from cellmeter.failures import Failure, failure_of
from cellmeter.run import CellStatus

CELL_MAGIC = "%%monitor"
# Their bodies are code, so %%monitor may stand below them.
_CODE_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")
# IPython 9 counts up before it tells of the cell, IPython 8 after it.
_COUNT_AHEAD = 1 if IPython.version_info[0] >= 9 else 0


class Begun(NamedTuple):
    """A cell about to run. ``parent`` is what the callback gave back for the cell that runs it; None at the top."""

    source: str
    cell_id: str | None
    execution_count: int | None
    options: str | None
    """The rest of the ``%%monitor`` line; None if it has none."""
    parent: Any


class Finished(NamedTuple):
    """A cell that has run."""

    status: CellStatus
    execution_count: int | None
    failure: Failure | None = None


class _Entry(NamedTuple):
    info: ExecutionInfo
    token: Any


class Tagger:
    """Calls ``begun`` before each cell and ``finished`` after it with what ``begun`` gave back.

    Neither may raise: what they have to say is up to them.
    """

    def __init__(
        self, shell: InteractiveShell, begun: Callable[[Begun], Any], finished: Callable[[Any, Finished], None]
    ) -> None:
        self._shell = shell
        self._begun = begun
        self._finished = finished
        self._local = threading.local()

    def attach(self) -> None:
        """Registers with the shell."""
        self._shell.events.register("pre_run_cell", self._before)
        self._shell.events.register("post_run_cell", self._after)
        self._shell.input_transformers_cleanup.append(strip_magic_line)

    def detach(self) -> None:
        """Leaves the shell as it was."""
        self._shell.events.unregister("pre_run_cell", self._before)
        self._shell.events.unregister("post_run_cell", self._after)
        self._shell.input_transformers_cleanup.remove(strip_magic_line)

    @property
    def _stack(self) -> list[_Entry]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[_Entry] = self._local.stack
        return stack

    def _before(self, info: ExecutionInfo) -> None:
        stack = self._stack
        source = info.raw_cell if isinstance(info.raw_cell, str) else ""
        count = self._shell.execution_count - _COUNT_AHEAD if info.store_history else None
        parent = stack[-1].token if stack else None
        begun = Begun(source, getattr(info, "cell_id", None), count, magic_options(source), parent)
        stack.append(_Entry(info, self._begun(begun)))

    def _after(self, result: ExecutionResult) -> None:
        index = self._find(result.info)
        if index is None:
            return  # it was never begun: the cell that loaded us, or a blank one
        stack = self._stack
        for entry in reversed(stack[index + 1 :]):  # cells within it whose end was never told
            self._finished(entry.token, Finished("interrupted", None))
        token = stack[index].token
        del stack[index:]
        count = result.execution_count if result.info and result.info.store_history else None
        self._finished(token, Finished(status_of(result), count, failure_of(_error_of(result))))

    def _find(self, info: ExecutionInfo | None) -> int | None:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index].info is info:
                return index
        # When a runner raises, IPython makes a new info of the same cell.
        if stack and info is not None and stack[-1].info.raw_cell == info.raw_cell:
            return len(stack) - 1
        return None


def status_of(result: ExecutionResult) -> CellStatus:
    """How the cell ended, in one word."""
    # ipykernel interrupts an awaiting cell by cancelling its task
    if isinstance(_error_of(result), KeyboardInterrupt | asyncio.CancelledError):
        return "interrupted"
    return "ok" if result.success else "error"


def _error_of(result: ExecutionResult) -> BaseException | None:
    # IPython compiles statement by statement: what a user interrupts between two of them was "before execution"
    return result.error_before_exec or result.error_in_exec


def _magic_line(lines: list[str]) -> int | None:
    """Which of the cell magics at the top of a cell is ours."""
    for index, line in enumerate(lines):
        if line.startswith(CELL_MAGIC) and not line[len(CELL_MAGIC) : len(CELL_MAGIC) + 1].strip():
            return index
        if line.strip() and not line.startswith(_CODE_MAGICS):
            return None  # the body of another magic may be no code at all: %%writefile, %%bash
    return None


def magic_options(source: str) -> str | None:
    """What follows ``%%monitor`` at the top of a cell, alone or among other cell magics; None without it."""
    lines = source.splitlines()
    index = _magic_line(lines)
    return None if index is None else lines[index][len(CELL_MAGIC) :].strip()


def strip_magic_line(lines: list[str]) -> list[str]:
    """Input transformer: takes the ``%%monitor`` line away, so that the cell is compiled as it stands.

    Thus ``await`` works in it and tracebacks keep their line numbers. Another cell magic after it moves up to the first line.
    """
    index = _magic_line(lines)
    if index is None:
        return lines
    rest = lines[index + 1 :]
    if rest and rest[0].startswith("%%"):
        return lines[:index] + rest
    return [*lines[:index], "\n", *rest]


# IPython leaves such transformers out when it asks whether a cell is complete; a terminal would else run "%%monitor" alone.
strip_magic_line.has_side_effects = True  # type: ignore[attr-defined]
