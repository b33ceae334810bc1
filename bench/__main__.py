"""``python -m bench [NAMES…] [--full | --short] [--json PATH]``: measures and prints a table."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
from pathlib import Path

from bench.effort import Effort
from bench.table import Section, as_json, heading, render

NAMES = ("recorder", "load", "page", "live", "delivery", "slowdown", "labelled", "report", "peers")


def main() -> int:
    """Returns 1 if a target was missed."""
    options = _options()
    names = options.names or NAMES
    effort = Effort.FULL if options.full else Effort.SHORT if options.short else Effort.USUAL
    sections: list[Section] = []
    print(f"{_machine()}\n\n{heading()}", flush=True)
    for name in names:
        for section in importlib.import_module(f"bench.{name}").run(effort):
            sections.append(section)
            print(f"\n{render(section)}", flush=True)
    lines = [line for section in sections for line in section.lines if line.target]
    missed = sum(line.met is False for line in lines)
    undecided = sum(line.met is None for line in lines)
    if effort is Effort.SHORT:
        print("\n--short shows that the benches work; its figures mean nothing.")
    else:
        print(f"\n{len(lines)} targets: {len(lines) - missed - undecided} met, {missed} missed, {undecided} undecided")
    if options.json:
        content = {"machine": _machine(), "effort": effort.value, "sections": as_json(sections)}
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 1 if missed and effort is not Effort.SHORT else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="What cellmeter costs and misses, beside its peers"
    )
    parser.add_argument(
        "names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=", ".join(NAMES) + "; default: all"
    )
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--full", action="store_true", help="every combination, longer")
    much.add_argument("--short", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures as JSON")
    return parser.parse_args()


def _machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    today = datetime.date.today().isoformat()
    return f"{today}, {os.cpu_count()} × {model}, Linux {platform.release()}, Python {platform.python_version()}, load {load}"


if __name__ == "__main__":
    sys.exit(main())
