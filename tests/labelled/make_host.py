"""Records real work with the real recorder. Run as root (control groups) on Linux, with pandas, matplotlib, scikit-learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from cellmeter.home import run_folders
from cellmeter.store import is_open, read_header
from labelled.keep import keep

SUBJECT = """
import json, sys, time
from cellmeter.recording import Recording
from cellmeter.settings import Settings
cells, rate = json.loads(sys.argv[1]), float(sys.argv[2])
recording = Recording.start(Settings(rate_hz=rate), None)
assert recording.recorder.ready(20)
time.sleep(1)
names = {}
for count, source in enumerate(cells, start=1):
    cell = recording.cell_started(source, execution_count=count)
    exec(source, names)
    recording.cell_ended(cell, "ok", count)
    time.sleep(0.3)
recording.stop()
"""
EIGHT_CORES = {"cpu_cores": [8.0, "cpuset"]}


@dataclass(frozen=True)
class Work:
    """Cells of real work. ``memory``, ``cores``, ``read_rate``: limits of control groups for it; ``limits``: see keep()."""

    cells: list[str]
    memory: int | None = None
    cores: float | None = None
    read_rate: int | None = None
    rate: float = 5.0
    limits: dict[str, list[object]] = field(default_factory=dict)
    first: bool = False
    """It comes before all else on the machine: what is shown needs cores that nobody else takes."""


MIB = 2**20
HOLD = "import numpy as np, time\ndef hold(mib):\n    return np.ones(mib << 17)\n"
LEAK = "kept = globals().setdefault('kept', [])\nkept.append(np.ones(60 << 17)); time.sleep(1)"
CACHE = "cache = globals().setdefault('cache', {})\ncache.setdefault('table', np.ones(120 << 17)); time.sleep(1)"
STEADY = "rows = []\nfor i in range({ticks}):\n    rows.append(np.ones(2 << 17)) if i < {grows} else None\n    time.sleep(0.25)"
SPIN = "import time\nuntil = time.monotonic() + {seconds}\nwhile time.monotonic() < until: sum(range(1000))"
TWO = (
    "import os, time\nchild = os.fork()\nuntil = time.monotonic() + {seconds}\n"
    "while time.monotonic() < until: sum(range(1000))\n"
    "os._exit(0) if child == 0 else os.waitpid(child, 0)"
)
FILE = (
    "import os, tempfile\nfd, path = tempfile.mkstemp(dir='/var/tmp')\n"
    "for _ in range({mib}): os.write(fd, os.urandom(1 << 20))\nos.fsync(fd); os.close(fd)"
)
READ = (
    "import time\nfor _ in range(3):\n    with open(path, 'rb') as file:\n        while file.read(1 << 20): pass\n"
    "time.sleep(2)"
)
COLD = "fd = os.open(path, os.O_RDONLY)\nos.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)"
SLOWLY = "with open(path, 'rb') as file:\n    while file.read(1 << 20): {other}\nos.unlink(path)"
PANDAS = [
    "import numpy as np, pandas as pd",
    "rng = np.random.default_rng(1)\n"
    "df = pd.DataFrame({'key': rng.integers(0, 500, 2_000_000), 'x': rng.random(2_000_000), 'y': rng.random(2_000_000)})",
    "df.describe()",
    "means = df.groupby('key').agg(['mean', 'std', 'count'])",
    "joined = df.merge(means['x'].reset_index(), on='key').sort_values('x')",
    "import time; time.sleep(3)",
    "for q in range(40):\n    df['z'] = np.sin(df.x * q) + df.y; df.z.rolling(50).mean().max()",
    "del joined",
]
PLOTTING = [
    "import matplotlib; matplotlib.use('agg')\nimport matplotlib.pyplot as plt, numpy as np, io",
    "x = np.linspace(0, 20, 200_000)\ny = np.sin(x) + np.random.default_rng(2).normal(0, 0.1, x.size)",
    *[
        "fig, ax = plt.subplots(2, 2, figsize=(10, 8))\nfor a in ax.flat: a.plot(x, y); a.hist(y, 80)\n"
        "fig.savefig(io.BytesIO(), dpi=150)"
    ]
    * 5,
    "import time; time.sleep(2)",
    "plt.scatter(x[::20], y[::20], s=3); plt.savefig(io.BytesIO()); plt.close('all')",
]
SKLEARN = [
    "from sklearn.datasets import make_classification\nX, y = make_classification(120_000, 40, random_state=0)",
    "from sklearn.preprocessing import StandardScaler\nX = StandardScaler().fit_transform(X)",
    "from sklearn.linear_model import LogisticRegression\nmodel = LogisticRegression(max_iter=200).fit(X, y)",
    "from sklearn.ensemble import RandomForestClassifier\n"
    "forest = RandomForestClassifier(20, max_depth=12, n_jobs=2, random_state=0).fit(X, y)",
    "from sklearn.model_selection import cross_val_score\ncross_val_score(model, X, y, cv=5)",
    "forest.predict(X).mean()",
]
INFERENCE = [
    "import numpy as np\nlayers = [np.random.default_rng(i).normal(0, 0.02, (2048, 2048)).astype('f4') for i in range(8)]",
    "def predict(batch):\n    for layer in layers: batch = np.maximum(batch @ layer, 0)\n    return batch.mean(1)",
    "answers = [predict(np.random.default_rng(i).random((64, 2048), 'f4')) for i in range(60)]",
    "import time\nfor i in range(20):\n    predict(np.random.default_rng(i).random((8, 2048), 'f4')); time.sleep(0.2)",
]
WEIGHTS = [
    "import numpy as np, os, tempfile\nfd, path = tempfile.mkstemp(dir='/var/tmp'); os.close(fd)\n"
    "weights = np.memmap(path, 'f4', 'w+', shape=(200, 1 << 20)); weights[:] = 0.5; weights.flush(); del weights",
    "weights = np.memmap(path, 'f4', 'r', shape=(200, 1 << 20))\ntotal = float(weights.sum(dtype='f8'))",
    "out = [float(row[:1000].sum()) for row in weights]\nimport time; time.sleep(2)",
    "del weights; os.unlink(path)",
]

WORK = {
    "spike": Work([HOLD, "hold(700).sum(); time.sleep(0.5)", "time.sleep(1)"]),
    "spike-small": Work([HOLD, "hold(200).sum(); time.sleep(0.5)", "time.sleep(1)"]),
    "spike-between-samples": Work([HOLD, "x = hold(500)[0]", "time.sleep(1)"], rate=1),
    "retained-over-half": Work([HOLD, "frame = hold(600); time.sleep(1)", "time.sleep(1)"], memory=1024 * MIB),
    "retained": Work([HOLD, "frame = hold(700); time.sleep(1)", "time.sleep(1)"]),
    "retained-small": Work([HOLD, "frame = hold(180); time.sleep(1)", "time.sleep(1)"]),
    "leak-repeated": Work([HOLD, *[LEAK] * 4], memory=2048 * MIB),
    "cache-repeated": Work([HOLD, *[CACHE] * 4], memory=2048 * MIB),
    "leak-steady": Work([HOLD, STEADY.format(ticks=260, grows=260)], memory=2048 * MIB, rate=2),
    "leak-levels-off": Work([HOLD, STEADY.format(ticks=280, grows=120)], memory=2048 * MIB, rate=2),
    "load-steady": Work(
        [HOLD, FILE.format(mib=300),
         COLD,
         "parts = []\nwith open(path, 'rb') as file:\n    while (part := file.read(1 << 20)):\n"
         "        parts.append(bytearray(part * 2)); time.sleep(0.21)\nos.unlink(path)"],
        memory=2048 * MIB, rate=2),
    "near-limit": Work([HOLD, "a = hold(550)", "b = hold(380); time.sleep(3)"], memory=1024 * MIB),
    "page-cache": Work([HOLD, "a = hold(120)", FILE.format(mib=810), READ, "os.unlink(path)"], memory=1024 * MIB),
    "out-of-memory": Work([HOLD, "blocks = []\nwhile True: blocks.append(hold(8)); time.sleep(0.02)"], memory=500 * MIB),
    "killed": Work([HOLD, "a = hold(100)", "import os; os.kill(os.getpid(), 9)"], memory=500 * MIB),
    "one-core": Work([SPIN.format(seconds=40), SPIN.format(seconds=25)], rate=2, limits=EIGHT_CORES, first=True),
    "one-core-short": Work([SPIN.format(seconds=50), "import time; time.sleep(15)"], rate=2, limits=EIGHT_CORES, first=True),
    "two-cores": Work([TWO.format(seconds=65)], rate=2, limits=EIGHT_CORES, first=True),
    "quota": Work([TWO.format(seconds=14)], cores=0.7, first=True),
    "quota-enough": Work([SPIN.format(seconds=14)], cores=1.5, first=True),
    "slow-disk": Work([FILE.format(mib=40), COLD, SLOWLY.format(other="pass")], read_rate=3 * MIB),
    "slow-disk-and-work": Work([FILE.format(mib=32), COLD, SLOWLY.format(other="sum(range(13_000_000))")], read_rate=3 * MIB),
    "pandas": Work(PANDAS),
    "plotting": Work(PLOTTING),
    "sklearn": Work(SKLEARN, limits=EIGHT_CORES),
    "inference-cpu": Work(INFERENCE),
    "mapped-weights": Work(WEIGHTS),
}  # fmt: skip


def _disk() -> str:
    """The disk below /var/tmp, as the kernel counts them."""
    device = Path("/var/tmp").stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


@contextmanager
def groups(work: Work) -> Iterator[list[Path]]:
    """Control groups (v1) with the limits of some work."""
    made = []
    for controller, files in (
        ("memory", {"memory.limit_in_bytes": work.memory} if work.memory else {}),
        ("blkio", {"blkio.throttle.read_bps_device": f"{_disk()} {work.read_rate}"} if work.read_rate else {}),
        (
            "cpu",
            {"cpu.cfs_quota_us": int(work.cores * 100_000) if work.cores else -1, "cpu.shares": 100_000}
            if work.first or work.cores
            else {},
        ),
    ):
        if files:
            folder = Path(f"/sys/fs/cgroup/{controller}/cellmeter-labelled-{os.getpid()}")
            folder.mkdir()
            made.append(folder)
            for name, value in files.items():
                (folder / name).write_text(str(value))
    try:
        yield made
    finally:
        for folder in made:
            while (folder / "cgroup.procs").read_text().strip():
                time.sleep(0.05)
            folder.rmdir()


def record(name: str, work: Work) -> Path:
    """Does the work under the recorder and keeps the run."""
    with TemporaryDirectory() as home, groups(work) as joined:
        environ = {
            **os.environ,
            "CELLMETER_HOME": home,
            "PYTHONPATH": os.pathsep.join(sys.path[:2]),
            "OMP_NUM_THREADS": "2",
        }

        def enter() -> None:
            for folder in joined:
                (folder / "cgroup.procs").write_text(str(os.getpid()))

        command = [sys.executable, "-c", SUBJECT, json.dumps(work.cells), str(work.rate)]
        subprocess.run(command, env=environ, cwd=home, preexec_fn=enter, check=False, timeout=200)
        (folder,) = run_folders(Path(home) / "runs")
        while is_open(read_header(folder)):
            time.sleep(0.05)
        return keep(folder, name, work.limits)


def main() -> None:
    for name in sys.argv[1:] or WORK:
        path = record(name, WORK[name])
        print(f"{path.name:32} {path.stat().st_size >> 10:5} KiB", flush=True)


if __name__ == "__main__":
    main()
