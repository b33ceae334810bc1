"""``%monitor dock``: the panel of the whole run, its cells as bands, beside the notebook or in the output of its cell.

Beside it by ``sidecar``, where that is installed; it goes on between cells until the recording stops.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmeter import charts, feed, live
from cellmeter.assemble import cells_from
from cellmeter.errors import BadUsage
from cellmeter.store import Tail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cellmeter.metrics import Group
    from cellmeter.run import Column

TITLE = "The whole run"


class WholeRun(feed.Feed):
    """All rows of a run, between cells too; of a long one those of the last hour at first. Not thread-safe."""

    def __init__(self, folder: Path, groups: Sequence[Group]) -> None:
        super().__init__(folder, 0, groups)
        self._tail = Tail(folder, newest=feed.MOST_ROWS)
        self._edges = Tail(folder)
        self._starts: dict[int, Mapping[str, Any]] = {}
        self._bands: dict[int, dict[str, Any]] = {}
        self.run_ns = int(self._tail.header()["start_ns"])
        self.started_ns = self.run_ns

    def _taken(self, columns: tuple[Column, ...], records: NDArray[Any]) -> NDArray[np.float64]:
        import numpy as np

        known = self._before[1] if self._before is not None and self._before[0] == columns else records[:0]
        together = np.concatenate([known, records])
        self._before = (columns, together[-feed.KEPT_FOR_RATES :])
        seconds = (together["t"] - self.run_ns) * 1e-9
        values = charts.values_of(self.panels, columns, seconds, together["v"], self._rate_hz)
        return np.column_stack([seconds, values])[len(known) :]

    def bands(self, anew: bool) -> list[dict[str, Any]]:
        """The cells that began or ended since the last call, or all of them; those that others ran from within left out."""
        changed = {}
        for event in self._edges.events():
            if event.get("event") not in ("cell_start", "cell_end"):
                continue
            seq = event["seq"]
            start = self._starts.setdefault(seq, event)
            if start["event"] != "cell_start" or start.get("parent") is not None:
                continue
            edges = [start, event] if event is not start else [start]
            (cell,) = cells_from(edges, self.run_ns, "running")
            told = {"seq": seq, "title": cell.title, "line": cell.first_line, "id": cell.cell_id, "status": cell.status}
            changed[seq] = {**told, "start": cell.start, "end": cell.end}
        self._bands |= changed
        return list(self._bands.values() if anew else changed.values())


class Dock(live.Panel):
    """The panel of a run, open until the recording stops."""

    _sidecar: Any = None
    _feed: WholeRun

    @classmethod
    def show(cls, shell: Any, folder: Path) -> Dock:
        """Opens it beside the notebook, or in the output of the cell that runs. Raises BadUsage where no page is."""
        live.prepare(shell)
        dock = cls(live.stage_of(shell), WholeRun(folder, charts.DEFAULT_GROUPS), TITLE)
        if dock._stage.widget is None:
            raise BadUsage("%monitor dock needs a notebook's page; `cellmeter watch` shows the run in a terminal")
        if importlib.util.find_spec("sidecar") is not None and "__vsc_ipynb_file__" not in shell.user_ns:
            from sidecar import Sidecar

            dock._sidecar = Sidecar(title="cellmeter", anchor="split-right")
        dock._show()
        return dock

    @property
    def beside(self) -> bool:
        """Whether it stands beside the notebook."""
        return self._sidecar is not None

    def _place(self, data: dict[str, Any]) -> None:
        if self._sidecar is None:
            super()._place(data)
        else:
            self._sidecar.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)

    def _replace(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        if self._sidecar is None:
            super()._replace(data, metadata)
        else:
            self._sidecar.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)

    def _update(self) -> None:
        anew = self._again
        super()._update()
        if bands := self._feed.bands(anew):
            self._widget.send({"k": "cells", "cells": bands})

    def finish(self, ended_ns: int) -> None:
        """The recording has stopped: a picture takes the panel's place."""
        self._feed.ended = True
        self.close(TITLE, "ok", self._feed.run_ns, ended_ns)

    def abandon(self) -> None:
        """Takes the panel away from beside the notebook; in an output, what is shown stays."""
        super().abandon()
        if self._sidecar is not None:
            self._sidecar.close()
