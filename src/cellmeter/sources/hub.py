"""The limits that JupyterHub tells a user's server of.

They are words: what holds a server to them, if anything, is a control group, which may lie where it cannot be seen from within.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cellmeter.run import Limit
from cellmeter.series import HUB

_VARIABLES = {"memory_bytes": "MEM_LIMIT", "cpu_cores": "CPU_LIMIT"}


def hub_limits(environ: Mapping[str, str]) -> dict[str, Limit]:
    """What JupyterHub says, as far as it is a number. Elsewhere variables of these names mean whatever somebody wants."""
    if not environ.get("JUPYTERHUB_USER"):
        return {}
    told = {name: Limit(_amount(environ.get(variable)), f"{HUB} ({variable})") for name, variable in _VARIABLES.items()}
    return {name: limit for name, limit in told.items() if 0 < limit.value < math.inf}


def _amount(text: str | None) -> float:
    """NaN for what is no number: the hub writes plain bytes and cores, whatever form they were configured in."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def limits_in_header(held: Mapping[str, Limit], environ: Mapping[str, str]) -> dict[str, Any]:
    """The part of ``run.json`` about limits: the least there are, and under ``held`` those instead of which the hub's are."""
    less = {name: told for name, told in hub_limits(environ).items() if told.value < held[name].value}
    return {"limits": {**held, **less}, "held": {name: held[name] for name in less}}
