"""The files of `cellmeter prometheus-config` with a real Prometheus, Alertmanager and promtool, from scrape to webhook."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nvml_stub
import pytest
from conftest import Kernel, wait_until
from prometheus_parts import (
    SLOW_SECONDS,
    Prometheus,
    a_certificate,
    a_token,
    alertmanager,
    program,
    prometheus,
    promtool,
    served,
)
from prometheus_parts import webhook as a_webhook
from web import free_port

from cellmeter.prometheus.config import ALERTMANAGER, DASHBOARD, RULES, SCRAPE
from cellmeter.run import Run

TRACE = """gpu name="NVIDIA H100" uuid=GPU-aaaa mem=80g limit=700
at 0 gpu 0 util=12 memutil=9 used=42g power=150 temp=61 sm=1755 reasons=0x40"""
AWKWARD = 'a "b" \\ {{c}}: #d'
WORK = """%%monitor train --no-chart
import time, cellmeter
number = 0
while True:
    number += 1
    try:
        with cellmeter.span("inference", items=8):
            time.sleep(0.06)
            1 / (number % 10)
    except ZeroDivisionError:
        pass
    cellmeter.step(rows=64)
    cellmeter.log(loss=1 / number)
"""


def configure(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cellmeter.cli", "prometheus-config", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_files_are_what_their_programs_want(tmp_path: Path) -> None:
    folder = tmp_path / "config"
    names = ("--latency", AWKWARD, "--errors", AWKWARD, "--pipeline", AWKWARD, "--pipeline", "rows")
    assert configure(folder, "--target", "node7:9767", *names).returncode == 0
    checked = promtool("check", "config", "--lint-fatal", folder / SCRAPE)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = promtool("check", "rules", "--lint-fatal", folder / RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "8 rules found" in checked.stdout
    checked = subprocess.run(
        [program("amtool"), "check-config", folder / ALERTMANAGER], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    panels = json.loads((folder / DASHBOARD).read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_nobodys_changes_are_written_over(tmp_path: Path) -> None:
    (tmp_path / RULES).write_text("mine")
    refused = configure(tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "is there already" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [RULES]
    assert configure(tmp_path / RULES / "below").returncode == 2


# ---- the rules over a long time, as promtool plays it ----------------------------------------------------------------

OF_RUN = 'run="r", instance="node7:9767"'
OF_GPU = f'{OF_RUN}, gpu="gpu0", uuid="GPU-0"'
MINE = (f'cellmeter_gpu_info{{{OF_GPU}, mine="yes", name="H100"}}', "1x60")


def gpu(metric: str, values: str, **labels: str) -> tuple[str, str]:
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return f"cellmeter_gpu_{metric}{{{OF_GPU}{more}}}", values


def of_run(metric: str, values: str, labels: str = "") -> tuple[str, str]:
    return f"cellmeter_{metric}{{{OF_RUN}{labels}}}", values


NAMED = ', name="inference"'
CELL = of_run("cell_info", "1x60", ', cell="1"')
PLAYED: dict[str, tuple[str, list[tuple[str, str]], str, bool]] = {
    # what it is: the alert, series by the minute, when it is looked at, whether it fires
    "low": ("LowGPUUtilization", [MINE, gpu("utilization_ratio", "0.29x60")], "17m", True),
    "low, not yet": ("LowGPUUtilization", [MINE, gpu("utilization_ratio", "0.29x60")], "14m", False),
    "not so low": ("LowGPUUtilization", [MINE, gpu("utilization_ratio", "0.31x60")], "60m", False),
    "low, another's": ("LowGPUUtilization", [gpu("utilization_ratio", "0.01x60")], "60m", False),
    "low, of a context": (
        "LowGPUUtilization",
        [gpu("process_contexts", "1x60"), gpu("utilization_ratio", "0.01x60")],
        "17m",
        True,
    ),
    "high": ("HighGPUUtilization", [MINE, gpu("utilization_ratio", "0.91x60")], "6m", True),
    "high, not yet": ("HighGPUUtilization", [MINE, gpu("utilization_ratio", "0.91x60")], "4m", False),
    "not so high": ("HighGPUUtilization", [MINE, gpu("utilization_ratio", "0.89x60")], "60m", False),
    "throttled": ("GPUThrottled", [gpu("event_reason", "1x60", reason="hardware_power_brake")], "7m", True),
    "capped": ("GPUThrottled", [gpu("event_reason", "1x60", reason="software_power_cap")], "60m", False),
    "now and then": (
        "GPUThrottled",
        [gpu("event_reason", "1 0x19 1 0x19 1", reason="hardware_slowdown")],
        "41m",
        False,
    ),
    "GPU full": (
        "GPUMemoryNearLimit",
        [MINE, gpu("memory_used_bytes", "93x60"), gpu("memory_total_bytes", "100x60")],
        "6m",
        True,
    ),
    "memory full": (
        "MemoryNearLimit",
        [of_run("cgroup_memory_used_bytes", "91x60"), of_run("memory_limit_bytes", "100x60", ', from="cgroup"')],
        "6m",
        True,
    ),
    "host full": (
        "MemoryNearLimit",
        [of_run("host_memory_used_bytes", "91x60"), of_run("memory_limit_bytes", "100x60", ', from="host"')],
        "6m",
        True,
    ),
    "all that a hub gives": (
        "MemoryNearLimit",
        [
            of_run("process_tree_memory_rss_bytes", "91x60"),
            of_run("memory_limit_bytes", "100x60", ', from="JupyterHub (MEM_LIMIT)"'),
        ],
        "6m",
        True,
    ),
    "host full of others": (
        "MemoryNearLimit",
        [of_run("host_memory_used_bytes", "91x60"), of_run("memory_limit_bytes", "50x60", ', from="cgroup"')],
        "60m",
        False,
    ),
    "slow": (
        "HighInferenceLatency",
        [of_run("span_seconds_bucket", v, f'{NAMED}, le="{le}"') for le, v in (("1.0", "0+9x60"), ("+Inf", "0+10x60"))],
        "8m",
        False,  # quantiles above the last bound are that bound: here 1 s
    ),
    "slower": (
        "HighInferenceLatency",
        [
            of_run("span_seconds_bucket", v, f'{NAMED}, le="{le}"')
            for le, v in (("1.0", "0+9x60"), ("2.5", "0+10x60"), ("+Inf", "0+10x60"))
        ],
        "8m",
        True,
    ),
    "errors": (
        "HighPredictionErrorRate",
        [of_run("span_errors_total", "0+2x60", NAMED), of_run("span_seconds_count", "0+100x60", NAMED)],
        "8m",
        True,
    ),
    "few errors": (
        "HighPredictionErrorRate",
        [of_run("span_errors_total", "0+1x60", NAMED), of_run("span_seconds_count", "0+100x60", NAMED)],
        "60m",
        False,
    ),
    "stalled": ("DataPipelineStalled", [CELL, of_run("steps_total", "7x60", ', name="rows"')], "8m", True),
    "stalled, no cell": ("DataPipelineStalled", [of_run("steps_total", "7x60", ', name="rows"')], "60m", False),
    "at work": ("DataPipelineStalled", [CELL, of_run("steps_total", "0+1x60", ', name="rows"')], "60m", False),
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    named = ("--latency", "inference", "--errors", "inference", "--pipeline", "rows", "--pipeline", AWKWARD)
    assert configure(folder, *named).returncode == 0
    return folder / RULES


@pytest.mark.parametrize("what", PLAYED)
def test_an_alert_over_time(rules: Path, tmp_path: Path, what: str) -> None:
    alert, series, when, fires = PLAYED[what]
    ask = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    played = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "promql_expr_test": [
                    {"expr": ask, "eval_time": when, "exp_samples": [{"labels": "{}", "value": int(fires)}]}
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(played))  # which is YAML too
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- all together ----------------------------------------------------------------------------------------------------


@pytest.fixture
def working_kernel(start_kernel: Callable[..., Kernel], tmp_path: Path) -> Kernel:
    """A kernel at work, with a GPU of its own that it does not use well."""
    kernel = start_kernel(env={**nvml_stub.environment(TRACE, tmp_path), "CUDA_VISIBLE_DEVICES": "0"})
    kernel.load()
    kernel.run("x = 1")
    kernel.send(WORK)
    return kernel


@pytest.fixture
def stack(
    working_kernel: Kernel, home: Path, tmp_path: Path
) -> Iterator[tuple[Prometheus, list[Any], Callable[[], Run], Path]]:
    """Kernel, guarded endpoint, Prometheus, Alertmanager and a webhook; of the generated files all waiting times are cut."""
    folder, port = tmp_path / "config", free_port()
    secret, certificate, key = a_token(tmp_path), *a_certificate(tmp_path)
    guard = ("--token-file", secret, "--certfile", certificate, "--keyfile", key)
    with served(*guard, home=home, log=tmp_path / "serve.log") as url, a_webhook() as (hook, posted):
        target = url.removeprefix("https://").removesuffix("/metrics")
        where = ("--target", target, "--alertmanager", f"127.0.0.1:{port}", "--webhook", hook)
        assert configure(folder, *where, "--errors", "inference", "--latency", "inference").returncode == 0
        scraping = re.sub(r"# (authorization|scheme|tls_config):", r"\1:", (folder / SCRAPE).read_text())
        scraping = scraping.replace("/etc/prometheus/cellmeter-token", str(secret))
        (folder / SCRAPE).write_text(scraping.replace("/etc/prometheus/cellmeter.crt", str(certificate)))
        for name in (SCRAPE, RULES, ALERTMANAGER):
            text = (folder / name).read_text()
            text = re.sub(r"\b(for|group_wait|group_interval|\w+_interval): \w+", r"\1: 1s", text)
            (folder / name).write_text(text)
        with alertmanager(folder / ALERTMANAGER, port), prometheus(folder / SCRAPE) as server:
            yield server, posted, working_kernel.recorded, folder


@pytest.mark.timeout(400)
def test_from_the_kernel_to_the_webhook(
    stack: tuple[Prometheus, list[Any], Callable[[], Run], Path],
) -> None:
    server, posted, recorded, folder = stack
    wait_until(lambda: server.query("cellmeter_cell_info"), "the first scrape", SLOW_SECONDS)
    run = recorded()
    of_run = f'{{run="{run.id}"}}'
    # PromQL gives what was recorded
    assert server.value(f"cellmeter_gpu_power_watts{of_run}") == 150
    assert server.value(f"cellmeter_gpu_utilization_ratio{of_run}") == pytest.approx(0.12)
    memory = server.query(f"cellmeter_process_memory_rss_bytes{of_run}[1m]")[0]["values"]
    assert {float(value) for _, value in memory} <= set(recorded().series("process.memory.rss", "process").values)
    (joined,) = server.query(
        f"cellmeter_gpu_power_watts * on (run) group_left (cell, label) cellmeter_cell_info{of_run}"
    )
    assert (joined["metric"]["cell"], joined["metric"]["label"], joined["metric"]["uuid"]) == ("3", "train", "GPU-aaaa")
    # each query of the dashboard has an answer
    for expr in queries(folder / DASHBOARD):
        wait_until(lambda expr=expr: server.query(expr), expr, SLOW_SECONDS)
    p50 = server.value('histogram_quantile(0.5, rate(cellmeter_span_seconds_bucket{name="inference"}[1m]))')
    assert p50 is not None
    assert 0.05 <= p50 <= 0.5  # 60 ms, and what a busy machine adds
    # an alert goes all the way
    expected = {"LowGPUUtilization", "GPUThrottled", "HighPredictionErrorRate"}

    def told() -> bool:
        alerts = [alert for post in posted for alert in post["alerts"] if alert["status"] == "firing"]
        return expected <= {alert["labels"]["alertname"] for alert in alerts}

    wait_until(told, f"{expected} at the webhook", SLOW_SECONDS)
    assert "HighInferenceLatency" not in server.alerts()
    assert "HighGPUUtilization" not in server.alerts()
    told_of = {alert["labels"]["alertname"]: alert for post in posted for alert in post["alerts"]}
    assert "gpu0 of 127.0.0.1" in told_of["LowGPUUtilization"]["annotations"]["summary"]
    assert "used at 12 %" in told_of["LowGPUUtilization"]["annotations"]["summary"]


def queries(dashboard: Path) -> list[str]:
    """All of a dashboard's queries, with what Grafana puts in for its variables."""
    found = [
        target["expr"] for panel in json.loads(dashboard.read_text())["panels"] for target in panel.get("targets", ())
    ]
    assert len(found) > 20
    values = {"$run": ".*", "$__rate_interval": "1m", "$__range": "5m"}
    for name, value in values.items():
        found = [expr.replace(name, value) for expr in found]
    assert not [expr for expr in found if "$" in expr]
    return found
