"""The flight recorder for Jupyter notebooks: ``%load_ext cellmeter``, ``%%monitor``, ``%monitor report``.

Names are loaded when they are first used: the recorder process imports this package too, and must stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellmeter.home import open_run
    from cellmeter.magics import alert, load_ipython_extension, start, stop, unload_ipython_extension
    from cellmeter.own import log, span, step
    from cellmeter.rules import judge
    from cellmeter.run import Cell, Run

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "Run",
    "alert",
    "judge",
    "load_ipython_extension",
    "log",
    "open_run",
    "span",
    "start",
    "step",
    "stop",
    "unload_ipython_extension",
]

_HOME = {
    "Cell": "cellmeter.run",
    "Run": "cellmeter.run",
    "alert": "cellmeter.magics",
    "judge": "cellmeter.rules",
    "load_ipython_extension": "cellmeter.magics",
    "log": "cellmeter.own",
    "open_run": "cellmeter.home",
    "span": "cellmeter.own",
    "start": "cellmeter.magics",
    "step": "cellmeter.own",
    "stop": "cellmeter.magics",
    "unload_ipython_extension": "cellmeter.magics",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'cellmeter' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
