"""`cellmeter serve` and `%monitor serve`: what a scrape finds, and who may ask."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nvml_stub
import pytest
from conftest import BEGUN, Kernel, recorders_below, wait_until
from prometheus_client import generate_latest
from prometheus_client.registry import Collector
from prometheus_parts import TOKEN, TRACE, Scrape, a_certificate, a_token, get, promtool, served

from cellmeter.errors import BadUsage
from cellmeter.home import new_run_folder, run_folders
from cellmeter.metrics import METRICS, Metric
from cellmeter.prometheus.exposition import MOST_PLUGIN_SERIES, families
from cellmeter.prometheus.names import DCGM, EXPOSED, exposed_plugins
from cellmeter.prometheus.serving import read_token
from cellmeter.prometheus.totals import MOST_NAMES
from cellmeter.prometheus.watched import MOST_LABELS, OTHER, State, Watched
from cellmeter.run import Column
from cellmeter.store import Writer, read_header, read_run, sealed

HOST = {
    "name": "node7",
    "system": "Linux",
    "release": "6.1",
    "machine": "x86_64",
    "python": "3.11.7",
    "cpu_count": 4,
    "memory_bytes": 8 << 30,
}


@pytest.fixture
def gpu_kernel(start_kernel: Callable[..., Kernel], tmp_path: Path) -> Kernel:
    """A kernel to which the first of two GPUs is given."""
    kernel = start_kernel(env={**nvml_stub.environment(TRACE, tmp_path), "CUDA_VISIBLE_DEVICES": "0"})
    assert kernel.load().status == "ok"
    kernel.run("x = 1")
    kernel.recorded_cells(1)
    return kernel


def scrape(url: str, ready: Callable[[Scrape], Any] = lambda found: True) -> Scrape:
    """The first scrape that is ready."""
    found: list[Scrape] = []

    def look() -> bool:
        found.append(Scrape(get(url)))
        return bool(ready(found[-1]))

    wait_until(look, "what the endpoint should say")
    return found[-1]


def test_a_scrape_has_what_was_recorded(gpu_kernel: Kernel, home: Path, tmp_path: Path) -> None:
    with served(home=home, log=tmp_path / "log") as url:
        found = scrape(url, lambda s: s.all("cellmeter_gpu_power_watts"))
    run = gpu_kernel.recorded()
    ours = {"run": run.id, "kernel": str(gpu_kernel.pid)}
    first = {**ours, "gpu": "gpu0", "uuid": "GPU-aaaa"}
    assert found.one("cellmeter_gpu_utilization_ratio", **first) == pytest.approx(0.97)
    assert found.one("cellmeter_gpu_memory_utilization_ratio", **first) == pytest.approx(0.41)
    assert found.one("cellmeter_gpu_memory_used_bytes", **first) == 42 << 30
    assert found.one("cellmeter_gpu_memory_total_bytes", **first) == 80 << 30
    assert found.one("cellmeter_gpu_power_watts", **first) == 650
    assert found.one("cellmeter_gpu_power_limit_watts", **first) == 700
    assert found.one("cellmeter_gpu_temperature_celsius", **first) == 61
    assert found.one("cellmeter_gpu_clock_sm_hertz", **first) == pytest.approx(1755e6)
    assert found.one("cellmeter_gpu_info", name="NVIDIA H100", mine="yes", **first) == 1
    assert found.one("cellmeter_gpu_info", mine="no", uuid="GPU-bbbb") == 1
    held = {labels["reason"] for labels, value in found.all("cellmeter_gpu_event_reason", **first) if value}
    assert held == {"hardware_thermal_slowdown"}
    memory = run.series("process.memory.rss", "process").values
    assert found.one("cellmeter_process_memory_rss_bytes", **ours) in memory
    assert found.one("cellmeter_host_cpu_seconds_total", **ours) in run.series("host.cpu.time", "host").values
    assert found.one("cellmeter_memory_limit_bytes", **ours) == run.limits["memory_bytes"].value
    assert found.one("cellmeter_run_info", host=run.host.name, **ours) == 1
    assert found.one("cellmeter_last_sample_timestamp_seconds", **ours) == pytest.approx(time.time(), abs=30)
    assert found.one("cellmeter_cells_total", status="ok", **ours) == 1
    assert found.one("cellmeter_runs_unreadable") == 0
    assert not [name for name in found.names() if "DCGM" in name]
    checked = promtool("check", "metrics", text=found.text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_dcgm_names_in_both_spellings(gpu_kernel: Kernel, start_kernel: Any, home: Path, tmp_path: Path) -> None:
    """Dashboards made for dcgm-exporter find each GPU once, though two kernels see it."""
    second = start_kernel(env=nvml_stub.environment(TRACE, tmp_path))
    second.load()
    with served("--dcgm-names", home=home, log=tmp_path / "log") as url:
        found = scrape(url, lambda s: len(s.all("cellmeter_gpu_power_watts")) == 4)
    old = {"gpu": "0", "UUID": "GPU-aaaa", "device": "nvidia0"}
    new = {"uuid": "GPU-aaaa", "modelName": "NVIDIA H100", "Hostname": gpu_kernel.recorded().host.name}
    expected = {
        "DCGM_FI_DEV_GPU_UTIL": 97,
        "DCGM_FI_DEV_MEM_COPY_UTIL": 41,
        "DCGM_FI_DEV_FB_USED": 42 << 10,
        "DCGM_FI_DEV_FB_FREE": 38 << 10,
        "DCGM_FI_DEV_GPU_TEMP": 61,
        "DCGM_FI_DEV_POWER_USAGE": 650,
    }
    assert set(DCGM) == set(expected)
    for name, value in expected.items():
        assert found.one(name, **old, **new) == value
        assert len(found.all(name)) == 2


def test_the_cell_that_runs(kernel: Kernel, home: Path, tmp_path: Path) -> None:
    with served(home=home, log=tmp_path / "log") as url:
        running = kernel.begin(f"%%monitor train the model --no-chart\n{BEGUN}\nimport time\ntime.sleep(600)")
        found = scrape(url, lambda s: s.all("cellmeter_cell_info"))
        assert found.one("cellmeter_cell_info", cell="2", label="train the model", run=kernel.recorded().id) == 1
        started = found.one("cellmeter_cell_start_timestamp_seconds")
        assert started == pytest.approx(found.one("cellmeter_last_sample_timestamp_seconds"), abs=30)
        kernel.manager.interrupt_kernel()
        assert kernel.reply(running).status == "error"
        found = scrape(url, lambda s: not s.all("cellmeter_cell_info"))
        assert found.one("cellmeter_cells_total", status="interrupted") == 1


def test_a_kernel_that_dies_is_served_no_more(start_kernel: Any, home: Path, tmp_path: Path) -> None:
    kernels = [start_kernel(), start_kernel()]
    for kernel in kernels:
        kernel.load()
    with served(home=home, log=tmp_path / "log") as url:
        scrape(url, lambda s: len(s.all("cellmeter_process_threads")) == 2)
        kernels[0].client.stop_channels()
        kernels[0].manager.shutdown_kernel(now=True)
        found = scrape(url, lambda s: len(s.all("cellmeter_process_threads")) == 1)
        assert found.all("cellmeter_run_info")[0][0]["kernel"] == str(kernels[1].pid)


def test_monitor_serve_ends_with_its_run(gpu_kernel: Kernel, start_kernel: Any, home: Path, tmp_path: Path) -> None:
    start_kernel().load()
    said = gpu_kernel.run("%monitor serve --port 0 --dcgm-names")
    url = re.fullmatch(r"cellmeter: serving (http://127\.0\.0\.1:\d+/metrics)\n", said.stdout)
    assert url is not None, said
    found = scrape(url[1], lambda s: s.all("DCGM_FI_DEV_GPU_UTIL"))
    assert {labels["kernel"] for labels, _ in found.all("cellmeter_run_info")} == {str(gpu_kernel.pid)}
    taken = gpu_kernel.run(f"%monitor serve --port {url[1].rpartition(':')[2].removesuffix('/metrics')}")
    assert "Address already in use" in taken.stderr + taken.traceback
    gpu_kernel.run("%monitor stop")

    def gone() -> bool:
        try:
            get(url[1])
        except (urllib.error.URLError, OSError):
            return True
        return False

    wait_until(gone, "the endpoint to end")


def call(home: Path, *arguments: str | Path, code: str = "") -> tuple[int, str]:
    """Exit code and stderr of a ``cellmeter`` that comes to an end by itself."""
    command = [sys.executable, "-c", f"import sys\n{code}\nfrom cellmeter.cli import main\nsys.exit(main())"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "CELLMETER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_other_addresses_only_behind_a_token_or_tls(home: Path, tmp_path: Path) -> None:
    secret = a_token(tmp_path)
    code, said = call(home, "serve", "--address", "0.0.0.0")
    assert (code, said.count("\n")) == (2, 1)
    assert "give a token (--token-file) or TLS" in said
    with served("--address", "0.0.0.0", "--token-file", secret, home=home, log=tmp_path / "log") as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        for token in (None, "wrong", TOKEN + "0"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(url, token)
        assert "cellmeter_runs_unreadable 0" in get(url, TOKEN)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url.replace("/metrics", "/nothing"), TOKEN)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url.replace("/metrics", "/"))
        assert "<a href='/metrics'>" in get(url.replace("/metrics", "/"), TOKEN)


def test_tls(home: Path, tmp_path: Path) -> None:
    certificate, key = a_certificate(tmp_path)
    tls = ("--certfile", certificate, "--keyfile", key)
    with served(*tls, "--address", "0.0.0.0", home=home, log=tmp_path / "log") as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert url.startswith("https://")
        assert "cellmeter_" in get(url, context=ssl.create_default_context(cafile=str(certificate)))
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            get(url)


def test_a_client_that_says_nothing_holds_up_nobody(home: Path, tmp_path: Path) -> None:
    with served(home=home, log=tmp_path / "log") as url:
        port = int(url.rpartition(":")[2].removesuffix("/metrics"))
        with socket.create_connection(("127.0.0.1", port)) as silent:
            assert "cellmeter_" in get(url)
            silent.setblocking(False)
            with pytest.raises(BlockingIOError):  # it has not been hung up on to make room
                silent.recv(1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "99999"], "--port 99999: there is no such port; 0 to 65535"),
        (["--port", "-1"], "--port -1: there is no such port"),
        (["--address", "no.such.address.invalid"], "is no address of this machine"),
        (["--certfile", "x.crt"], "TLS needs both"),
        (["--certfile", "x.crt", "--keyfile", "x.key"], "are no certificate and its key"),
        (["--token-file", "nowhere"], "nowhere cannot be read: No such file or directory\n"),
        (["20200101"], "no run in"),
    ],
)
def test_bad_use_is_one_line(home: Path, arguments: list[str], said: str) -> None:
    code, line = call(home, "serve", *arguments)
    assert (code, line.count("\n")) == (2, 1)
    assert said in line


def test_a_taken_port_is_one_line(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, line = call(home, "serve", "--port", str(taken.getsockname()[1]))
    assert (code, line.count("\n")) == (2, 1)
    assert "--port chooses another" in line


def test_a_missing_extra_is_one_line(home: Path) -> None:
    code, line = call(home, "serve", code="sys.modules['prometheus_client'] = None")
    assert (code, line.count("\n")) == (2, 1)
    assert "pip install 'cellmeter[prometheus]'" in line


def test_only_what_goes_on_is_served(kernel: Kernel, home: Path) -> None:
    kernel.run("%monitor stop")
    wait_until(lambda: not recorders_below(home), "the recorder to end")
    code, line = call(home, "serve", kernel.recorded().id)
    assert (code, "is not being recorded" in line) == (2, True)


def test_tokens_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for content in ("short", "two words 0123456789", ""):
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(BadUsage, match="holds no token"):
            read_token(path)
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(BadUsage, match="can be read by others"):
        read_token(path)


def test_names_follow_the_convention() -> None:
    names = [exposed.name for exposed in EXPOSED.values()]
    assert len(set(names)) == len(names)
    for metric, exposed in EXPOSED.items():
        assert re.fullmatch(r"cellmeter_[a-z0-9_]+", exposed.name)
        assert exposed.name.endswith("_total") == (METRICS[metric].kind == "counter")
    assert EXPOSED["process.cpu.time"].name == "cellmeter_process_cpu_seconds_total"
    assert EXPOSED["gpu.clock.sm"].name == "cellmeter_gpu_clock_sm_hertz"


def plugin_metric(name: str, unit: str, kind: Any = "gauge") -> Metric:
    return Metric(name, unit, kind, "host", "cpu", "what it is", "somewhere")


@pytest.mark.parametrize(
    ("metric", "name", "scale"),
    [
        (plugin_metric("loadavg.one", "1"), "loadavg_one", 1),
        (plugin_metric("net.in", "By", "counter"), "net_in_bytes_total", 1),
        (plugin_metric("x.requests_total", "{req}", "counter"), "x_requests_total", 1),
        (plugin_metric("x.wait", "ms"), "x_wait_seconds", 0.001),
        (plugin_metric("x.use", "%"), "x_use_ratio", 0.01),
        (plugin_metric("x.fan speed-ü", "rpm"), "x_fan_speed___rpm", 1),
        (plugin_metric("x.per", "1/s"), "x_per_per_second", 1),
        (plugin_metric("x.temp_celsius", "Cel"), "x_temp_celsius", 1),
    ],
)
def test_names_of_plugins_follow_the_convention(metric: Metric, name: str, scale: float) -> None:
    exposed = exposed_plugins([metric, plugin_metric("x.rate", "1/s", "rate")])
    assert exposed == {metric.name: (f"cellmeter_plugin_{name}", scale, metric)}


def test_two_metrics_of_plugins_are_never_called_the_same() -> None:
    one, other = plugin_metric("x.a_b", "1"), plugin_metric("x.a.b", "1")
    assert list(exposed_plugins([one, other])) == ["x.a_b"]


class Served(Collector):
    """What the endpoint says of some runs, for ``generate_latest``."""

    def __init__(self, states: list[State]) -> None:
        self._states = states

    def collect(self) -> Iterator[Any]:
        return families(self._states, 0)


# ---- one run as it goes on -------------------------------------------------------------------------------------------


class Recorded:
    """A run folder that the test writes itself."""

    def __init__(self, home: Path) -> None:
        self.folder = new_run_folder(home)
        self.writer = Writer(self.folder)
        self.start_ns = time.monotonic_ns()
        limits = {"memory_bytes": [8 << 30, "host"], "cpu_cores": [4, "host"]}
        device = {"id": "gpu0", "name": "H100", "uuid": "GPU-0", "memory_bytes": 80 << 30}
        self.writer.describe(
            id=self.folder.name,
            start_ns=self.start_ns,
            started=time.time(),
            rate_hz=10,
            host=HOST,
            devices=[device],
            limits=limits,
        )
        columns = [Column("process.memory.rss", "process", "By"), Column("gpu.power", "gpu0", "W")]
        self.segment = self.writer.add_segment("main", columns)
        self.watched = Watched(self.folder)

    def sample(self, seconds: float, *values: float) -> None:
        self.writer.sample(self.segment, self.start_ns + round(seconds * 1e9), 0, 0, values)

    def event(self, kind: str, at: float = 0.0, /, **fields: Any) -> None:
        self.writer.event({"event": kind, "t": self.start_ns + round(at * 1e9), **fields})

    def span(self, name: str, seconds: float, status: str = "ok") -> None:
        self.event("span", seconds, name=name, start=self.start_ns, status=status)

    def look(self) -> State:
        return self.watched.look()


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


def test_what_is_unknown_is_not_there(recorded: Recorded) -> None:
    """A GPU that is read now and then keeps its last reading; one that is gone has none, and never 0."""
    recorded.sample(0.1, 1000, 300)
    recorded.sample(0.2, 1001, float("nan"))
    assert recorded.look().readings == {("process.memory.rss", "process"): 1001, ("gpu.power", "gpu0"): 300}
    for second in range(1, 8):
        recorded.sample(second, 1002, float("nan"))
    assert recorded.look().readings == {("process.memory.rss", "process"): 1002}


def test_readings_that_are_too_old_are_not_there(recorded: Recorded) -> None:
    recorded.sample(-120, 1000, 300)
    state = recorded.look()
    assert state.readings == {}
    assert state.sampled == pytest.approx(time.time() - 120, abs=30)


def test_what_is_read_once_a_minute_stays_until_it_should_have_come_again(recorded: Recorded) -> None:
    columns = [Column("host.filesystem.free", mount, "By") for mount in ("/", "/home")]
    segment = recorded.writer.add_segment("filesystems", columns)
    for minute in (-3, -2):
        recorded.writer.sample(segment, recorded.start_ns + minute * 60 * 10**9, 0, 0, (5.0 + minute, 7.0))
    recorded.sample(-65, 1000, 300)
    recorded.sample(-20, 1000, 300)
    found = Scrape(generate_latest(Served([recorded.look()])).decode())
    free = found.all("cellmeter_host_filesystem_free_bytes")
    assert [(labels["mountpoint"], value) for labels, value in free] == [("/", 3.0), ("/home", 7.0)]
    recorded.sample(150, 1000, 300)
    assert ("host.filesystem.free", "/") not in recorded.look().readings


def test_plugins_of_two_runs(tmp_path: Path) -> None:
    """Each with its subjects, no more than there may be; of two that mean different things by a name, the newest."""
    states = []
    for unit, subjects in (("ms", 3), ("s", MOST_PLUGIN_SERIES + 7), ("s", 2)):
        recorded = Recorded(tmp_path)
        metric = plugin_metric("x.wait", unit)
        recorded.writer.describe(metrics=[metric._asdict(), plugin_metric("x.rate", "1/s", "rate")._asdict()])
        columns = [Column("x.wait", f'dev "{n}"\n', unit) for n in range(subjects)]
        segment = recorded.writer.add_segment("x", columns)
        recorded.sample(0, 1000, 300)
        recorded.writer.sample(segment, recorded.start_ns, 0, 0, range(subjects))
        states.append(recorded.look())
    text = generate_latest(Served(states)).decode()
    found = Scrape(text)
    ours = [{"run": state.run} for state in states]
    assert len(found.all("cellmeter_plugin_x_wait_seconds", **ours[2])) == 2
    assert len(found.all("cellmeter_plugin_x_wait_seconds", **ours[1])) == MOST_PLUGIN_SERIES
    assert found.all("cellmeter_plugin_x_wait_seconds", **ours[0]) == []
    assert found.one("cellmeter_plugin_x_wait_seconds", subject='dev "1"\n', **ours[2]) == 1
    assert found.one("cellmeter_plugin_series_left_out", **ours[1]) == 7
    checked = promtool("check", "metrics", text=text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_labels_are_bounded(recorded: Recorded) -> None:
    seen = set()
    for seq in range(1, 3 * MOST_LABELS):
        recorded.event("cell_start", seq, seq=seq, execution_count=None, label=f"epoch {seq} {'x' * 500}")
        cell = recorded.look().cell
        assert cell is not None
        assert cell.number == f"#{seq}"
        seen.add(cell.label)
        recorded.event("cell_end", seq, seq=seq, status="ok")
    assert len(seen) == MOST_LABELS + 1
    assert OTHER in seen
    assert max(map(len, seen)) == 64
    assert recorded.look().ended == {"ok": 3 * MOST_LABELS - 1, "error": 0, "interrupted": 0}


def test_the_innermost_cell_is_the_current_one(recorded: Recorded) -> None:
    recorded.event("cell_start", seq=1, execution_count=7, label="outer")
    recorded.event("cell_start", seq=2, execution_count=None, label=None, parent=1)
    assert recorded.look().cell == ("#2", "", pytest.approx(time.time(), abs=30))
    recorded.event("cell_end", seq=2, status="ok")
    assert recorded.look().cell == ("7", "outer", pytest.approx(time.time(), abs=30))


def test_a_scrape_reads_what_is_new_and_not_the_whole_run(recorded: Recorded) -> None:
    for seq in range(1, 5001):
        recorded.event("cell_start", seq=seq, execution_count=seq, label=None)
        recorded.event("cell_end", seq=seq, status="ok")
        recorded.sample(seq * 1e-3, seq, 300)
    begun = time.process_time()
    assert recorded.look().ended["ok"] == 5000
    first, begun = time.process_time() - begun, time.process_time()
    assert recorded.look().ended["ok"] == 5000
    assert time.process_time() - begun < first / 4


def test_runs_of_other_machines_only_with_all(tmp_path: Path) -> None:
    """A home on a disk that machines share: of the others it is only seen that something is being written."""
    recorded = Recorded(tmp_path / "home" / "runs")
    recorded.writer.describe(recorder={"pid": 1, "identity": "another-boot:4026531836:77"})
    recorded.sample(0.1, 1000, 300)
    folder = tmp_path / "home"
    with served(home=folder, log=tmp_path / "log") as url:
        assert scrape(url).all("cellmeter_run_info") == []
    with served("--all", home=folder, log=tmp_path / "log") as url:
        assert scrape(url).one("cellmeter_gpu_power_watts", uuid="GPU-0") == 300


def test_own_metrics(recorded: Recorded) -> None:
    recorded.event("logged", values={"loss": 0.5, "lr": [3, 0.1, 0.1, 0.3, 0.6], "bad": "nan"}, steps={"step": 2.0})
    recorded.event("logged", values={"loss": 0.25}, steps={"step": 1.0, "tokens": 4096.0, "step back": -5.0})
    for seconds in (0.005, 0.01, 0.03, 0.7, 9.0):
        recorded.span("inference", seconds, "error" if seconds == 9.0 else "ok")
    batch = {"count": 4, "errors": 1, "seconds": 0.8, "items": 64.0, "histogram": {"-82": 3, "0": 1}}  # 0.2 s, 1 s
    recorded.event("spans", name="inference", start=0, **batch)
    own = recorded.look().own
    assert own.logged == {"loss": 0.25, "lr": 0.1, "bad": pytest.approx(float("nan"), nan_ok=True)}
    assert own.steps == {"step": 3, "tokens": 4096, "step back": 0}
    spans = own.spans["inference"]
    assert dict(spans.cumulated()) == {
        "0.01": 2,
        "0.025": 2,
        "0.05": 3,
        "0.1": 3,
        "0.25": 6,
        "0.5": 6,
        "1.0": 8,
        "2.5": 8,
        "+Inf": 9,
    }
    assert (spans.errors, spans.items, spans.seconds) == (2, 64, pytest.approx(0.745 + 9 + 0.8))


def test_own_metrics_of_workers_and_no_more_names_than_there_may_be(recorded: Recorded) -> None:
    recorded.span("predict", 0.02)
    recorded.look()
    event = {"event": "span", "t": 5, "start": 0, "name": "predict", "status": "ok", "pid": 7}
    with (recorded.folder / "events-7.jsonl").open("ab") as file:
        file.write(sealed(event) + b"\n")
    recorded.event("logged", values={f"value {n}": float(n) for n in range(3 * MOST_NAMES)})
    for look in range(2):  # nothing counts twice
        own = recorded.look().own
        assert own.spans["predict"].cumulated()[-1] == ("+Inf", 2), look
        assert len(own.logged) == MOST_NAMES


def test_own_metrics_are_served(kernel: Kernel, home: Path, tmp_path: Path) -> None:
    """Of the kernel and its workers, whether kept one by one or summed up."""
    reply = kernel.run(
        "import time, multiprocessing, cellmeter\n"
        "def work():\n"
        "    with cellmeter.span('a \"b\"', items=2): time.sleep(0.03)\n"
        "    cellmeter.step(tokens=10)\n"
        "worker = multiprocessing.get_context('fork').Process(target=work)\n"
        "worker.start(); worker.join(); work()\n"
        "for n in range(5000):\n"
        "    with cellmeter.span('fast'): cellmeter.log(loss=n)\n"
    )
    assert reply.status == "ok", reply
    with served(home=home, log=tmp_path / "log") as url:
        found = scrape(
            url, lambda s: [value for _, value in s.all("cellmeter_span_seconds_count", name="fast")] == [5000]
        )
    named = {"name": 'a "b"', "run": kernel.recorded().id}
    assert found.one("cellmeter_span_seconds_bucket", le="0.025", **named) == 0
    assert found.one("cellmeter_span_seconds_bucket", le="+Inf", **named) == 2
    assert found.one("cellmeter_span_seconds_sum", **named) >= 0.06
    assert found.one("cellmeter_span_errors_total", **named) == 0
    assert found.one("cellmeter_span_items_total", **named) == 4
    assert found.one("cellmeter_logged", name="loss") == 4999
    assert found.one("cellmeter_steps_total", name="step") == 2
    assert found.one("cellmeter_steps_total", name="tokens") == 20
    checked = promtool("check", "metrics", text=found.text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_damaged_run_is_counted_and_hides_no_other(kernel: Kernel, home: Path, tmp_path: Path) -> None:
    """A header in a form of another cellmeter, of a recorder that lives."""
    kernel.run("x = 1")
    kernel.recorded_cells(1)
    good = run_folders(home / "runs")[0]
    bad = new_run_folder(home / "runs")
    (bad / "run.json").write_bytes(sealed({**{k: v for k, v in read_header(good).items() if k != "crc"}, "host": 5}))
    try:
        with served(home=home, log=tmp_path / "log") as url:
            found = scrape(url, lambda s: s.all("cellmeter_process_threads"))
        assert found.one("cellmeter_runs_unreadable") == 1
        assert [labels["run"] for labels, _ in found.all("cellmeter_run_info")] == [read_run(good).id]
    finally:
        (bad / "run.json").unlink()
