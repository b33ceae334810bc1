"""What the user's code makes of ``time`` changes no figure, and nothing waits for a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Kernel

from cellmeter.run import Cell

# As freezegun does it: not only in time, but in every module that holds the functions by name.
FREEZE = """
import sys, time
from threading import Event
reals = {f: f() for f in (time.time, time.time_ns, time.monotonic, time.monotonic_ns, time.perf_counter)}
def freeze(years):
    for real, now in reals.items():
        seconds = int(years * 365 * 86400)
        put(real, lambda now=now, ns=real.__name__.endswith('_ns'): now + seconds * (10**9 if ns else 1))
held = []
def put(real, fake):
    for module in list(sys.modules.values()):
        if module.__name__ in ('__main__', 'threading'):
            continue
        for name, value in list(vars(module).items()):
            if value is real:
                held.append((module, name, real))
                setattr(module, name, fake)
def thaw():
    while held:
        setattr(*held.pop())
"""


def seconds(cell: Cell) -> float:
    assert cell.end is not None
    return cell.end - cell.start


@pytest.mark.parametrize("years", [-6, 6])
def test_a_clock_that_the_users_code_has_stopped(start_kernel: Callable[..., Kernel], years: int) -> None:
    kernel = start_kernel()
    kernel.load()
    kernel.run(FREEZE)
    assert kernel.run(f"freeze({years}); assert time.time not in reals\nEvent().wait(0.2)").status == "ok"
    assert "done in " in kernel.run("%%monitor --no-chart\nEvent().wait(0.3)").stdout
    assert kernel.run("%%monitor\nimport cellmeter\nwith cellmeter.span('load'): Event().wait(0.25)").status == "ok"
    said = kernel.run("%monitor")
    assert kernel.run("thaw(); assert time.time in reals\nEvent().wait(0.1)").status == "ok"
    assert said.status == "ok"
    assert "full" not in said.stdout + said.stderr + str(said.displays)
    run = kernel.recorded_cells(6)
    frozen, quiet, drawn, _, thawed = run.cells[1:6]
    for cell, least in ((frozen, 0.2), (quiet, 0.3), (drawn, 0.25), (thawed, 0.1)):
        assert least <= seconds(cell) < least + 20, cell
    (span,) = run.spans
    assert 0.25 <= span.seconds < 20
