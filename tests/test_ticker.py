"""The line of own values in the live panel."""

from __future__ import annotations

from pathlib import Path

from cellmeter.store import Tail, Writer
from cellmeter.ticker import MOST_PARTS, Ticker

SECOND = 1_000_000_000


def test_the_line_has_the_newest_of_each(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.describe()
    ticker, tail = Ticker(), Tail(tmp_path, newest=0)

    def told() -> str | None:
        return ticker.take(tail.events())

    assert told() is None
    for i in range(1, 31):
        writer.event(
            {"event": "logged", "t": i * SECOND, "values": {"loss": 1 / i}, "steps": {"step": 2, "tokens": 100}}
        )
    writer.event(
        {"event": "logged", "t": 30 * SECOND, "values": {"loss": [5, "nan", 0.1, 0.4, 1.0], "many": [2, 7, 1, 7, 8]}}
    )
    writer.event({"event": "span", "t": SECOND, "start": SECOND - 4_210_000, "name": "infer", "status": "ok"})
    writer.event({"event": "spans", "t": 1, "start": 0, "name": "fast", "count": 4, "errors": 0, "seconds": 2e-5})
    assert told() == "2 steps/s · 100 tokens/s · loss nan · many 7 · infer 4.21 ms · fast 5.00 µs"
    assert told() is None
    alert = {"event": "alert", "t": 9, "seq": 1, "alert": "gpu.power < 3 for 1s", "subject": "gpu0", "value": 1.0}
    writer.event({**alert, "state": "fired"})
    assert (told() or "").startswith("▲ gpu.power < 3 for 1s (gpu0) · 2 steps/s")
    writer.event({**alert, "state": "cleared"})
    assert (told() or "").startswith("2 steps/s")
    writer.event(
        {"event": "budget", "t": 9, "seq": 1, "budget": "0.5", "metric": "m", "value": 2.0**31, "threshold": 1.0}
    )
    assert (told() or "").startswith("▲ 2.00 GiB in use, budget 0.5")
    full = {"event": "nearly_full", "t": 9, "seq": 1, "value": 14.5 * 2**30, "own": 2.0**33, "limit": 2.0**34}
    writer.event({**full, "from": "cgroup"})
    assert (told() or "").startswith("▲ memory: 14.5 of 16 GiB (cgroup): 91 %, the kernel may be killed · 2 steps/s")
    writer.event({"event": "cell_end", "t": 10, "seq": 1, "status": "ok"})
    assert (told() or "").startswith("2 steps/s")


def test_the_line_is_bounded() -> None:
    line = Ticker().take([{"event": "logged", "t": 1, "values": {f"n{i}": i for i in range(50)}}])
    assert line == " · ".join(f"n{i} {i}" for i in range(MOST_PARTS))
