"""Run in a kernel with ``%run synthetic.py GPUS [CORES [GROUPS [USED]]]``: a panel of a machine that the tests' machine is not.

Writes the record of a cell of a minute and holds the panel open until there is a file ``go`` in the working directory.
``USED``: how many of the GPUs the kernel uses, as only the driver's process lists tell.
"""

from __future__ import annotations

import math
import sys
import tempfile
import threading
import time
from pathlib import Path

from IPython.core.getipython import get_ipython

from cellmeter import live
from cellmeter.run import EDGE_END, EDGE_START, Column
from cellmeter.store import Writer

GIB = 2**30
SECONDS = 60
ROWS = SECONDS * 10


def recorded(
    folder: Path,
    gpus: int,
    cores: int,
    used: int | None,
    began_ns: int,
    described: threading.Event,
    opened: threading.Event,
) -> None:
    """Describes the run, and writes all its rows once the panel is open; the last one a little later."""
    columns = [
        Column("process.cpu.time", "process", "s"),
        Column("host.cpu.time", "host", "s"),
        Column("process.memory.rss", "process", "By"),
        Column("process.tree.memory.rss", "process", "By"),
        Column("host.memory.used", "host", "By"),
        Column("process.disk.read", "process", "By"),
        Column("process.disk.written", "process", "By"),
        Column("host.network.received", "host", "By"),
        Column("host.network.sent", "host", "By"),
    ]
    for i in range(gpus):
        columns += [Column("gpu.utilization", f"gpu{i}", "%"), Column("gpu.memory.used", f"gpu{i}", "By")]
        columns += [Column("gpu.power", f"gpu{i}", "W")]
    device = {"name": "H100", "memory_bytes": 80 * GIB, "mine": used is None or None, "power_limit_watts": 700.0}
    devices = [{**device, "id": f"gpu{i}", "uuid": str(i)} for i in range(gpus)]
    limits = {"cpu_cores": [16.0, "cgroup"], "memory_bytes": [64 * GIB, "cgroup"]}
    writer = Writer(folder)
    writer.describe(host={"cpu_count": 16}, rate_hz=10.0, start_ns=0, limits=limits, devices=devices)
    main = writer.add_segment("main", columns)
    each = writer.add_segment("cores", [Column("core.cpu.time", f"cpu{i}", "s") for i in range(cores)])
    holders = writer.add_segment("gpu-processes", [Column("gpu.process.contexts", f"gpu{i}", "1") for i in range(gpus)])
    described.set()
    opened.wait()
    cpu, busy_cores = 0.0, [0.0] * cores
    for n in range(ROWS):
        at, part = n / 10, n / ROWS
        cpu += 0.1 * (6 + 5 * math.sin(at))
        spike = 9 * GIB if n in (250, 251, 252) else 0
        row = [cpu, cpu * 1.1 + at, (3 + 40 * part) * GIB + spike, (5 + 44 * part) * GIB + spike, (9 + 43 * part) * GIB]
        row += [n * 3e7 * (n % 70 < 30), n * 4e6, n * 2e5, n * 1e5]
        for i in range(gpus):
            busy = 96 - 4 * math.sin(n) if math.sin(at / 2 + i) > -0.4 else 8 + 4 * math.sin(n * 3)
            row += [math.nan if i == 1 and 0.4 < part < 0.6 else busy, (20 + i * 5 + 20 * part) * GIB]
            row += [90 + 5.5 * row[-2]]
        flags = EDGE_START if n == 0 else EDGE_END if n == ROWS - 1 else 0
        writer.sample(main, began_ns + int(at * 1e9), 1, flags, row)
        if n % 10 == 0:
            busy_cores = [
                x + (0.5 + 0.5 * math.sin(at / 5 + i / 3)) * (i < 0.75 * cores) for i, x in enumerate(busy_cores)
            ]
            writer.sample(each, began_ns + int(at * 1e9), 1, 0, busy_cores)
        if n % 20 == 0 and used is not None:
            writer.sample(holders, began_ns + int(at * 1e9), 1, 0, [float(i < used) for i in range(gpus)])
        if n == ROWS - 2:
            time.sleep(1)
    writer.close()


def show(gpus: int, cores: int = 2, groups: str = "cpu,memory,gpu", used: int | None = None) -> None:
    """Opens the panel and closes it when the test says so."""
    with tempfile.TemporaryDirectory() as name:
        folder, described, opened, began_ns = Path(name), threading.Event(), threading.Event(), time.monotonic_ns()
        thread = threading.Thread(target=recorded, args=(folder, gpus, cores, used, began_ns, described, opened))
        thread.start()
        described.wait()
        panel = live.Panel.open(get_ipython(), folder, 1, "train step", tuple(groups.split(",")))
        opened.set()
        thread.join()
        while not Path("go").exists():
            time.sleep(0.05)
        panel.close("train step", "ok", {"t": began_ns}, {"t": began_ns + SECONDS * 10**9, "seq": 1})


show(int(sys.argv[1]), *(int(x) for x in sys.argv[2:3]), *sys.argv[3:4], *(int(x) for x in sys.argv[4:5]))
