"""``%monitor dock``: the panel of the whole run, its cells as bands, beside the notebook or in the output of its cell.

Beside it by ``sidecar``, where that is installed; it goes on between cells until the recording stops.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from cellmeter import charts, live
from cellmeter.errors import BadUsage
from cellmeter.feed import WholeRun

TITLE = "The whole run"


class Dock(live.Panel):
    """The panel of a run, open until the recording stops."""

    _sidecar: Any = None
    _feed: WholeRun

    @classmethod
    def show(cls, shell: Any, folder: Path) -> Dock:
        """Opens it beside the notebook or in the output of the cell that runs. Raises BadUsage where no page is."""
        live.prepare(shell)
        dock = cls(live.stage_of(shell), WholeRun(folder, charts.DEFAULT_GROUPS), TITLE)
        if dock._stage.widget is None:
            raise BadUsage("%monitor dock needs a notebook's page; `cellmeter watch` shows the run in a terminal")
        if importlib.util.find_spec("sidecar") is not None and "__vsc_ipynb_file__" not in shell.user_ns:
            from sidecar import Sidecar

            dock._sidecar = Sidecar(title="cellmeter", anchor="split-right")
        dock._show()
        return dock

    def _whereabouts(self) -> dict[str, Any]:
        return {"tail": f"runs/{self._feed.folder.name}/tail", "beside": self._sidecar is not None}

    def _place(self, data: dict[str, Any]) -> None:
        """In the output too: its page draws it there if it has no place beside the notebook, as Notebook 7 has none."""
        super()._place(data)
        self._put_beside(data, {})

    def _replace(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        super()._replace(data, metadata)
        self._put_beside(data, metadata)

    def _put_beside(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        if self._sidecar is not None:
            self._sidecar.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)

    def _update(self) -> None:
        anew = self._again
        super()._update()
        if bands := self._feed.bands(anew):
            self._widget.send({"k": "cells", "cells": bands})

    def finish(self, ended_ns: int) -> None:
        """The recording has stopped: a picture takes the panel's place."""
        self._feed.ended = True
        self.close(TITLE, "ok", {"t": self._feed.run_ns}, {"t": ended_ns, "seq": self._feed.seq})

    def abandon(self) -> None:
        """Takes the panel away from beside the notebook; in an output, what is shown stays."""
        super().abandon()
        if self._sidecar is not None:
            self._sidecar.close()
