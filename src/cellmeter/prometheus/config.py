"""The files that a Prometheus server is set up with: scraping, alert rules, an Alertmanager, a Grafana dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellmeter.errors import BadUsage
from cellmeter.prometheus.dashboard import dashboard

SCRAPE, RULES, ALERTMANAGER, DASHBOARD = (
    "prometheus.yml",
    "cellmeter-rules.yml",
    "alertmanager.yml",
    "cellmeter-dashboard.json",
)
MINE = 'on (instance, run, uuid) (cellmeter_gpu_info{mine="yes"} or cellmeter_gpu_process_contexts > 0)'


@dataclass(frozen=True)
class Setup:
    """What differs from site to site. ``latency``, ``errors``, ``pipeline``: names of spans, of spans, and of step amounts."""

    target: str
    alertmanager: str
    webhook: str
    latency: Sequence[str] = ()
    errors: Sequence[str] = ()
    pipeline: Sequence[str] = ()


@dataclass(frozen=True)
class Alert:
    """One alert rule."""

    name: str
    expr: str
    holds_for: str
    severity: str
    summary: str
    advice: str


def alerts(setup: Setup) -> list[Alert]:
    """The alert rules; those of the user's own metrics for the names in the setup."""
    return [*GPU_ALERTS, *MEMORY_ALERTS, *_own_alerts(setup)]


GPU_ALERTS = (
    Alert(
        "LowGPUUtilization",
        f"avg_over_time(cellmeter_gpu_utilization_ratio[1m]) * 100 < 30 and {MINE}",
        "15m",
        "warning",
        '{{ $labels.gpu }} of {{ $labels.instance }} is held by a kernel and used at {{ printf "%.0f" $value }} %',
        "`cellmeter report` says which cell leaves it idle, and why. Shut the kernel down if nobody needs it.",
    ),
    Alert(
        "HighGPUUtilization",
        f"avg_over_time(cellmeter_gpu_utilization_ratio[1m]) * 100 > 90 and {MINE}",
        "5m",
        "info",
        '{{ $labels.gpu }} of {{ $labels.instance }} works at {{ printf "%.0f" $value }} %',
        "It is well used; further work on it would have to wait.",
    ),
    Alert(
        "GPUThrottled",
        "max without (reason) (avg_over_time(cellmeter_gpu_event_reason"
        '{reason=~"hardware_.*|software_thermal_slowdown"}[5m])) > 0.1',
        "5m",
        "warning",
        "Heat or the power supply holds the clock of {{ $labels.gpu }} of {{ $labels.instance }} down",
        "Cooling or power supply is at fault: the code cannot mend it.",
    ),
)
MEMORY_ALERTS = (
    Alert(
        "GPUMemoryNearLimit",
        f"cellmeter_gpu_memory_used_bytes / cellmeter_gpu_memory_total_bytes * 100 > 92 and {MINE}",
        "5m",
        "warning",
        'Memory of {{ $labels.gpu }} of {{ $labels.instance }} is {{ printf "%.0f" $value }} % full',
        "The next larger batch may fail. Some libraries take all of it at once, which is no harm.",
    ),
    Alert(
        "MemoryNearLimit",
        '(cellmeter_cgroup_memory_used_bytes / ignoring (from) cellmeter_memory_limit_bytes{from="cgroup"}'
        ' or cellmeter_host_memory_used_bytes / ignoring (from) cellmeter_memory_limit_bytes{from="host"}'
        " or cellmeter_process_tree_memory_rss_bytes / ignoring (from)"
        ' cellmeter_memory_limit_bytes{from=~"JupyterHub.*"}) * 100 > 90',
        "5m",
        "warning",
        'The kernel of {{ $labels.run }} has used {{ printf "%.0f" $value }} % of the memory there is for it',
        "It is killed when there is no more. `cellmeter report` names the cell that takes it.",
    ),
)


def _own_alerts(setup: Setup) -> list[Alert]:
    named = ((_latency, setup.latency), (_errors, setup.errors), (_pipeline, setup.pipeline))
    return [alert(selector(names)) for alert, names in named if names]


def _latency(wanted: str) -> Alert:
    return Alert(
        "HighInferenceLatency",
        "histogram_quantile(0.95, sum by (instance, run, name, le) "
        f"(rate(cellmeter_span_seconds_bucket{wanted}[5m]))) > 1",
        "5m",
        "warning",
        '95 % of {{ $labels.name }} take up to {{ printf "%.2f" $value }} s',
        "Below a second is expected: set the bound in the rule to what your users expect.",
    )


def _errors(wanted: str) -> Alert:
    return Alert(
        "HighPredictionErrorRate",
        f"rate(cellmeter_span_errors_total{wanted}[5m]) / rate(cellmeter_span_seconds_count{wanted}[5m]) * 100 > 1",
        "5m",
        "critical",
        '{{ printf "%.1f" $value }} % of {{ $labels.name }} fail',
        "The notebook's output has the exceptions.",
    )


def _pipeline(wanted: str) -> Alert:
    return Alert(
        "DataPipelineStalled",
        f"rate(cellmeter_steps_total{wanted}[5m]) == 0 and on (instance, run) cellmeter_cell_info",
        "5m",
        "critical",
        "No {{ $labels.name }} in five minutes, though a cell runs",
        "See what the cell waits for: %monitor show in the notebook, `cellmeter report`.",
    )


def selector(names: Sequence[str]) -> str:
    """What selects series by their names, which may hold anything."""
    if len(names) == 1:
        return "{name=" + _quoted(names[0]) + "}"
    return "{name=~" + _quoted("|".join(map(re.escape, names))) + "}"


def rules_yaml(rules: Sequence[Alert]) -> str:
    """The rule file. JSON's strings are YAML's too, whatever they hold."""
    lines = ["# Alert rules for kernels that cellmeter records.", "groups:", "  - name: cellmeter", "    rules:"]
    for rule in rules:
        lines += [
            f"      - alert: {rule.name}",
            f"        expr: {_quoted(rule.expr)}",
            f"        for: {rule.holds_for}",
            "        labels:",
            f"          severity: {rule.severity}",
            "        annotations:",
            f"          summary: {_quoted(rule.summary)}",
            f"          description: {_quoted(rule.advice)}",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def scrape_yaml(setup: Setup) -> str:
    """Prometheus' own configuration."""
    return f"""\
# prometheus --config.file={SCRAPE}, or its parts added to what you have.
global:
  scrape_interval: 15s
  evaluation_interval: 15s
rule_files:
  - {RULES}
alerting:
  alertmanagers:
    - static_configs:
        - targets: [{_quoted(setup.alertmanager)}]
scrape_configs:
  - job_name: cellmeter
    static_configs:
      - targets: [{_quoted(setup.target)}]
    # For an endpoint behind a token, and by TLS (`cellmeter serve --token-file … --certfile … --keyfile …`):
    # authorization: {{credentials_file: /etc/prometheus/cellmeter-token}}
    # scheme: https
    # tls_config: {{ca_file: /etc/prometheus/cellmeter.crt}}
"""


def alertmanager_yaml(setup: Setup) -> str:
    """An Alertmanager that sends everything to one place."""
    return f"""\
# alertmanager --config.file={ALERTMANAGER}
route:
  receiver: team
  group_by: [alertname, instance]
  group_wait: 30s
  group_interval: 5m
  repeat_interval: 4h
receivers:
  - name: team
    webhook_configs:
      - url: {_quoted(setup.webhook)}
        send_resolved: true
"""


def files(setup: Setup) -> Mapping[str, str]:
    """All files by their names."""
    return {
        SCRAPE: scrape_yaml(setup),
        RULES: rules_yaml(alerts(setup)),
        ALERTMANAGER: alertmanager_yaml(setup),
        DASHBOARD: json.dumps(dashboard(), indent=2) + "\n",
    }


def write(setup: Setup, folder: Path) -> list[Path]:
    """Writes the files; those there are stay as they are. Raises BadUsage."""
    texts = files(setup)
    if folder.exists() and not folder.is_dir():
        raise BadUsage(f"{folder} is a file: name a folder to write into")
    if there := [name for name in texts if (folder / name).exists()]:
        raise BadUsage(f"{folder / there[0]} is there already, perhaps with changes of yours: choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadUsage(f"{folder} cannot be written: {error.strerror}") from None
    return [folder / name for name in texts]
