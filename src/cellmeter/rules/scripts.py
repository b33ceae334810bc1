"""A plain script is one cell of a run that has no kernel and no notebook: what the rules say of it, in words that fit it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellmeter.run import Run

NO_SOURCE = ("", "e3b0c44298fc1c14")  # of nothing: a script's cell has no source of its own

# Rules are written for cells. What stands first is put first, the plain words come last.
WORDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r", and mind that Out\[n\] and _ keep results", ""),
        (r", or Out\[n\] and _", ""),
        (r" What its variables and its traceback hold stays on the GPU\.", ""),
        (r"nothing ran after the cell that took much memory", "a script gives all back at its end"),
        (r"no cell has ended", "it goes on"),
        (r"no cell was run", "it has not begun"),
        (r"no cell held two GPUs", "it did not hold two GPUs"),
        (r"no cell kept a GPU", "it kept no GPU"),
        (r"no cell with (.+? of (?:GPU )?work)", r"it did less than \1"),
        (r"no cell ran \S+ times or for (.+)", r"it ran for less than \1"),
        (r"no cell of ([^;]+? (?:ms|s|min|h)\b)", r"it ran for less than \1"),
        (r"less than ([^;,]+) of cells, and no cell of (.+?) held it", r"it ran for less than \1, and did not hold it for \2"),
        (r"less than ([^;,]+) of cells", r"it ran for less than \1"),
        (r"( in [\w. ]+?) of cells\b", r"\1"),
        (r"too few samples in this cell", "too few samples"),
        (r"came after all cells", "came after it"),
        (r"; del what an earlier cell left there", ""),
        (r"results and the notebook itself", "and results"),
        (r"between cells", "outside of it"),
        (r"\b([Tt])he (?:cell|kernel)\b", r"\1he script"),
        (r"\b([Tt])his (?:cell|kernel)\b", r"\1his script"),
        (r"\bcell\b", "script"),
        (r"\bcells\b", "scripts"),
    )
)  # fmt: skip


def is_script(run: Run) -> bool:
    """Whether a run is that of a plain script, by ``cellmeter record`` or ``cellmeter.start()``."""
    return bool(run.cells) and all(
        cell.execution_count is None and cell.cell_id is None and cell.source_hash in NO_SOURCE for cell in run.cells
    )


def for_script(run: Run, text: str) -> str:
    """A sentence about cells and a kernel, about the script; its name stays what it is."""
    names = sorted({cell.title for cell in run.cells}, key=len, reverse=True)
    for index, name in enumerate(names):
        text = text.replace(name, f"\0{index}\0")
    for pattern, words in WORDS:
        text = pattern.sub(words, text)
    for index, name in enumerate(names):
        text = text.replace(f"\0{index}\0", name)
    return text
