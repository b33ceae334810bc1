"""A run sent to a real MLflow server with a SQLite backend, on a loopback port."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from builders import GIB, GpuWork, a_cell, a_device, a_run
from conftest import Kernel, wait_until, whole_line
from mlflow import MlflowClient
from web import Answer, Request, free_port, serving

from cellmeter import judge, sending
from cellmeter.cli import main
from cellmeter.errors import ExportFailed, MissingExtra
from cellmeter.export import mlflow
from cellmeter.export.readings import Choice, choice
from cellmeter.home import run_folders
from cellmeter.metrics import CATALOGUE
from cellmeter.run import Run
from cellmeter.spans import Logged, Own, Span, Steps

ALL = Choice()


def _is_up(address: str, server: subprocess.Popen[bytes], log: Path) -> bool:
    assert server.poll() is None, f"the server has ended: {log.read_text()[-2000:]}"
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking server, its database in SQLite and its artefacts in a folder; gives its address."""
    folder = tmp_path_factory.mktemp("mlflow")
    options = {
        "--backend-store-uri": "sqlite:///mlflow.db",
        "--artifacts-destination": "./artifacts",
        "--host": "127.0.0.1",
        "--port": (port := free_port()),
        "--workers": 1,
    }
    command = [sys.executable, "-m", "mlflow", "server", *(str(part) for pair in options.items() for part in pair)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **quiet}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_until(lambda: _is_up(address, process, log), "the MLflow server", seconds=110)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the server it started too
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an export sets in its own process does not stay in that of the tests."""
    for name, value in mlflow._PATIENCE.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(server: str) -> MlflowClient:
    return MlflowClient(tracking_uri=server)


@pytest.fixture
def run() -> Run:
    """40 s, with a spike of memory in the first cell; its id is no other test's."""
    spike = a_cell(5, rss=lambda t: 12 * GIB if 2 <= t < 3 else GIB)
    train = a_cell(30, label="train", received=2e6, gpu={"gpu0": GpuWork(90, power=350, memory=20 * GIB)})
    made = a_run(spike, train, devices=[a_device("gpu0", mine=True)])
    return replace(made, id=f"20260301T120000Z-{uuid4().hex[:6]}")


def send(run: Run, server: str, wanted: Choice = ALL, run_id: str | None = None) -> mlflow.Sent:
    return mlflow.send(run, judge(run), mlflow.Target(server, "Default", run_id), wanted)


def history(client: MlflowClient, sent: mlflow.Sent, key: str) -> list[Any]:
    return sorted(client.get_metric_history(sent.run_id, key), key=lambda metric: metric.step)


class TestMetrics:
    def test_they_are_mlflows_own_names_units_and_times(self, run, server, client):
        sent = send(run, server)
        arrived = client.get_run(sent.run_id)
        expected = {
            "system/system_memory_usage_megabytes": 20 * GIB / 1e6,
            "system/system_memory_usage_percentage": 100 * 20 / 128,
            "system/network_receive_megabytes": 2 * (30.9 - 9 + 1),  # 2 MB a second since the cell began at 9 s
            "system/gpu_0_utilization_percentage": 90,
            "system/gpu_0_memory_usage_megabytes": 20 * GIB / 1e6,
            "system/gpu_0_memory_usage_percentage": 25,
            "system/gpu_0_power_usage_watts": 350,
            "system/gpu_0_power_usage_percentage": 50,
        }
        assert set(arrived.data.metrics) == set(expected)
        assert sent.keys == set(expected)
        start = run.started.timestamp() * 1000
        for key, value in expected.items():
            points = history(client, sent, key)
            (point,) = [p for p in points if p.step == 30]
            assert point.value == pytest.approx(value, rel=1e-6)
            assert 30_000 <= point.timestamp - start < 31_000
            assert len(points) == len({p.step for p in points}) > 35

    def test_names_are_those_of_mlflows_own_monitor(self, run):
        """Its source, as it is installed: a name it gives up is told here."""
        import mlflow.system_metrics.metrics.cpu_monitor as cpu
        import mlflow.system_metrics.metrics.disk_monitor as disk
        import mlflow.system_metrics.metrics.gpu_monitor as gpu
        import mlflow.system_metrics.metrics.network_monitor as network

        from cellmeter.export.mlflow import SYSTEM_METRICS

        source = "".join(Path(module.__file__).read_text() for module in (cpu, disk, gpu, network))
        names = {system.name.replace("{index}", "{i}") for system in SYSTEM_METRICS}
        assert [name for name in names if f'"{name}"]' not in source] == []
        assert source.count('self._metrics[f"') + source.count('self._metrics["') == len(names)

    def test_the_catalogue_agrees(self):
        made = {(system.metric, system.name) for system in mlflow.SYSTEM_METRICS}
        named = {(m.name, m.mlflow) for m in CATALOGUE if m.mlflow}
        assert named <= made

    def test_interval_and_choice(self, run, server, client):
        sent = send(run, server, choice("gpu.utilization,process.memory.rss,host.filesystem.*", 5.0))
        arrived = client.get_run(sent.run_id)
        assert set(arrived.data.metrics) == {
            "system/gpu_0_utilization_percentage",
            "cellmeter/process.memory.rss",
            "cellmeter/host.filesystem.size/home",
        }
        assert [p.step for p in history(client, sent, "cellmeter/process.memory.rss")] == list(range(9))

    def test_more_than_a_batch_arrives_whole(self, server, client):
        long = replace(a_run(a_cell(900), rate_hz=2.0), id=f"20260301T120000Z-{uuid4().hex[:6]}")
        sent = send(long, server, choice("process.*", 0.5))
        assert sent.points > 3 * mlflow.MOST_METRICS
        assert len(history(client, sent, "cellmeter/process.memory.rss")) == pytest.approx(1800, abs=20)

    def test_a_long_run_is_thinned_unless_told(self):
        day = a_run(a_cell(86_400), rate_hz=0.1)
        assert {len(part.values) for part in mlflow.points(day, ALL)} <= set(range(2000, 3000))
        (rss,) = mlflow.points(day, choice("process.memory.rss", None))
        gaps = np.diff(rss.steps)
        assert gaps.max() == 128, "seconds, after a day"
        assert gaps[1:50].max() == 10, "each sample, at first"
        assert len(next(mlflow.points(day, choice("process.memory.rss", 10.0))).values) == pytest.approx(8640, abs=2)

    def test_what_is_unknown_is_not_sent(self, run):
        no_limit = replace(run.devices[0], power_limit_watts=None)
        keys = {part.key for part in mlflow.points(replace(run, devices=(no_limit,)), ALL)}
        assert "system/gpu_0_power_usage_watts" in keys
        assert "system/gpu_0_power_usage_percentage" not in keys


class TestOwnValues:
    """What the user's code said."""

    def own(self, run: Run, until: float = 40.0) -> Run:
        """A value logged before the first step, then one a step, the last is NaN; a name that says much; spans."""
        time = np.array([1.0, 10.0, 11.0, 12.25, 13.0])
        value = np.array([9.0, 3.0, 2.0, 1.0, math.nan])
        ones, zeros = np.ones(5, np.int64), np.zeros(5, np.int64)
        logged = {
            "loss": Logged(time, value, value, value, value, ones, zeros),
            "Genauigkeit (μ)": Logged(time, value, value, value, value, ones, zeros),
            "Genauigkeit [μ]": Logged(time, value, value, value, value, ones, zeros),
            "system/mine": Logged(time, value, value, value, value, ones, zeros),
        }
        steps = {"step": Steps(time[1:], np.ones(4)), "tokens": Steps(time[1:], 100 * np.ones(4))}
        spans = (Span("infer", 10.0, 10.5, "ok"), Span("infer", 11.0, 11.2, "error"))
        return replace(run, own=Own(spans, (), logged, steps).only(lambda times: times <= until))

    def test_in_a_run_of_our_own_they_have_their_own_names(self, run, server, client):
        run = self.own(run)
        sent = send(run, server)
        start = run.started.timestamp() * 1000
        loss = [(p.step, p.timestamp - start, p.value) for p in history(client, sent, "loss")]
        assert loss[:4] == [(0, 1000, 9.0), (1, 10000, 3.0), (2, 11000, 2.0), (3, 12250, 1.0)]
        assert (loss[4][:2], math.isnan(loss[4][2])) == ((4, 13000), True)
        assert [(p.step, p.value) for p in history(client, sent, "cellmeter/step.tokens")] == [
            (1, 100.0),
            (2, 200.0),
            (3, 300.0),
            (4, 400.0),
        ]
        assert [p.value for p in history(client, sent, "cellmeter/span.infer")] == pytest.approx([0.5, 0.2])
        theirs = {key for key in client.get_run(sent.run_id).data.metrics if not key.startswith("system/gpu")}
        assert {"Genauigkeit _μ_", "Genauigkeit _μ_-2", "cellmeter/logged.system/mine"} <= theirs
        assert "system/mine" not in theirs

    def test_sent_while_it_goes_on_and_again_they_are_there_once(self, run, server, client):
        run = self.own(run)
        send(replace(self.own(run, until=11.0), ending=None), server)
        sent = send(run, server)
        assert send(run, server) == sent
        for key in ("loss", "cellmeter/step.step", "cellmeter/span.infer"):
            (part,) = [part for part in mlflow.points(run, ALL) if part.key == key]
            assert [(p.timestamp, p.step) for p in history(client, sent, key)] == list(
                zip(part.milliseconds, part.steps, strict=True)
            )

    def test_in_a_run_of_the_users_they_leave_his_alone(self, run, server, client):
        run = self.own(run)
        mine = client.create_run("0", run_name="mine")
        client.log_metric(mine.info.run_id, "loss", 0.5, step=1)
        sent = send(run, server, run_id=mine.info.run_id)
        assert [p.value for p in history(client, sent, "loss")] == [0.5]
        assert [p.value for p in history(client, sent, "cellmeter/logged.loss")][:4] == [9.0, 3.0, 2.0, 1.0]
        # found again by its tag it is still his
        assert send(run, server) == sent
        assert client.get_run(mine.info.run_id).info.status == "RUNNING"
        assert [p.value for p in history(client, sent, "loss")] == [0.5]

    def test_choice_and_interval(self, run):
        run = self.own(run)
        sent = {part.key: part for part in mlflow.points(run, choice("logged.loss,step.*", 12.0))}
        assert set(sent) == {"loss", "cellmeter/step.step", "cellmeter/step.tokens"}
        assert sent["loss"].values[0] == pytest.approx(14 / 3)
        assert sent["cellmeter/step.tokens"].values == [200.0, 400.0]
        assert sent["cellmeter/step.tokens"].steps == [2, 4]

    def test_what_is_logged_often_is_thinned(self, run):
        time = np.arange(0, 30, 0.001)
        ones = np.ones(len(time))
        often = Logged(time, time, time, time, time, ones.astype(np.int64), ones.astype(np.int64))
        (part,) = [p for p in mlflow.points(replace(run, own=Own(logged={"often": often})), ALL) if p.key == "often"]
        assert len(part.values) == 30
        assert part.values[0] == pytest.approx(0.4995)
        assert part.steps[0] == 999


class TestRun:
    def test_it_says_what_it_is(self, run, server, client):
        sent = send(run, server)
        arrived = client.get_run(sent.run_id)
        start = int(run.started.timestamp() * 1000)
        assert (arrived.info.run_name, arrived.info.status) == ("train", "FINISHED")
        assert (arrived.info.start_time, arrived.info.end_time) == (start, start + int(run.duration * 1000))
        assert arrived.data.tags["cellmeter.run_id"] == run.id
        assert arrived.data.tags["cellmeter.findings"] == "memory-spike"
        assert "In [1]" in arrived.data.tags["cellmeter.finding.memory-spike"]

    def test_the_report_is_an_artefact(self, run, server, client, tmp_path):
        sent = send(run, server)
        assert {f.path for f in client.list_artifacts(sent.run_id, "cellmeter")} == {
            "cellmeter/report.html",
            "cellmeter/report.json",
        }
        report = json.loads(
            Path(client.download_artifacts(sent.run_id, "cellmeter/report.json", str(tmp_path))).read_text()
        )
        assert report["run"]["id"] == run.id

    def test_sent_again_it_is_there_once(self, run, server, client):
        first, second = send(run, server), send(run, server)
        assert first == second
        assert len(history(client, first, "system/gpu_0_utilization_percentage")) == len(
            next(p for p in mlflow.points(run, ALL) if p.key == "system/gpu_0_utilization_percentage").values
        )

    def test_into_a_run_there_is(self, run, server, client):
        (mine,) = [client.create_run("0", run_name="mine")]
        sent = send(run, server, run_id=mine.info.run_id)
        arrived = client.get_run(mine.info.run_id)
        assert sent.run_id == mine.info.run_id
        assert (arrived.info.run_name, arrived.info.status) == ("mine", "RUNNING")
        assert arrived.data.metrics["system/gpu_0_utilization_percentage"] is not None

    @pytest.mark.parametrize(
        ("ending", "status"),
        [("killed", "KILLED"), ("out-of-memory", "KILLED"), ("crashed", "FAILED"), (None, "RUNNING")],
    )
    def test_its_status_is_how_the_kernel_ended(self, run, server, client, ending, status):
        sent = send(replace(run, ending=ending), server, choice("gpu.power", None))
        assert client.get_run(sent.run_id).info.status == status


class TestFailures:
    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    @pytest.mark.parametrize(("status", "says"), [(500, "500"), (401, "401"), (403, "403")])
    def test_what_is_not_taken_is_said(self, run, status, says):
        with serving(lambda request: Answer(status, b"no")) as address, pytest.raises(ExportFailed) as failure:
            send(run, address)
        assert says in str(failure.value)
        assert "took 0 points and then failed" in str(failure.value)
        assert "\n" not in str(failure.value)

    def test_a_server_that_is_not_there(self, run):
        with serving(lambda request: Answer()) as address:
            pass
        with pytest.raises(ExportFailed, match="took 0 points"):
            send(run, address)

    def test_a_server_that_does_not_answer(self, run, monkeypatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        over = threading.Event()

        def never(request: Request) -> Answer:
            over.wait(20)
            return Answer()

        with serving(never) as address:
            try:
                with pytest.raises(ExportFailed, match="took 0 points"):
                    send(run, address)
            finally:
                over.set()

    def test_a_failure_half_way_loses_nothing(self, run, server, client, monkeypatch):
        real, calls = MlflowClient.log_batch, []

        def fails_the_second_time(self: MlflowClient, *arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise ConnectionError("the line went\ndead")
            return real(self, *arguments, **options)

        monkeypatch.setattr(mlflow, "MOST_METRICS", 100)
        monkeypatch.setattr(MlflowClient, "log_batch", fails_the_second_time)
        with pytest.raises(ExportFailed, match="took 100 points and then failed: the line went dead"):
            send(run, server)
        monkeypatch.undo()
        sent = send(run, server)
        for part in mlflow.points(run, ALL):
            assert [(p.timestamp, p.step, p.value) for p in history(client, sent, part.key)] == list(
                zip(part.milliseconds, part.steps, part.values, strict=True)
            )
        found = client.search_runs(["0"], f"tags.`cellmeter.run_id` = '{run.id}'")
        assert len(found) == 1

    def test_without_the_extra_it_says_which(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "mlflow", None)
        with pytest.raises(MissingExtra, match=re.escape("pip install 'cellmeter[mlflow]'")):
            send(run, "http://127.0.0.1:9")

    def test_a_run_that_is_not_there(self, run, server):
        with pytest.raises(ExportFailed, match="0123abcd"):
            send(run, server, run_id="0123abcd" * 4)


@pytest.mark.parametrize("wanted", [ALL, choice("process.memory.rss,host.network.*,logged.*", 0.7)])
@pytest.mark.parametrize("cuts", [(7.0, 8.0, 33.0), (1.0, 39.0), (20.0,)])
def test_what_is_sent_part_by_part_is_what_is_sent_at_once(run: Run, wanted: Choice, cuts: tuple[float, ...]) -> None:
    """Each part is of the run as it had become by then."""
    run = TestOwnValues().own(replace(run, duration=40.0))
    network = next(s for s in mlflow.SYSTEM_METRICS if "receive" in s.name)
    stretch, found = mlflow.Stretch(), dict[str, list[tuple[int, int, float]]]()
    for until in (*cuts, math.inf):
        so_far = replace(
            run,
            segments=tuple(
                replace(s, records=s.records[s.records["t"] < run.start_ns + until * 1e9]) for s in run.segments
            ),
            own=run.own.only(lambda times, until=until: times <= until),
            duration=min(until, run.duration),
        )
        end = mlflow.whole_until(so_far, wanted) if math.isfinite(until) else math.inf
        for part in mlflow.points(so_far, wanted, stretch=replace(stretch, until=end)):
            found.setdefault(part.key, []).extend(zip(part.milliseconds, part.steps, part.values, strict=True))
        stretch.since = max(stretch.since, end)
    at_once = {p.key: list(zip(p.milliseconds, p.steps, p.values, strict=True)) for p in mlflow.points(run, wanted)}
    assert repr(found) == repr({key: at_once[key] for key in found})
    assert found.keys() == at_once.keys()
    assert any(network.metric in key or "receive" in key for key in found)


def test_a_run_arrives_while_it_is_recorded(
    kernel: Kernel,
    server: str,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sending, "LIVE_SECONDS", 0.2)
    monkeypatch.setattr(sending, "REST", 0.0)
    kernel.run("import cellmeter\ncellmeter.log(loss=7.0)")
    experiment = f"live-{uuid4().hex[:6]}"
    command = ["export", "--mlflow", "--wait", "--tracking-uri", server, "--experiment", experiment]
    exits: list[int] = []
    thread = threading.Thread(target=lambda: exits.append(main(command)))
    thread.start()

    def arrived() -> Any:
        there = client.get_experiment_by_name(experiment)
        found = client.search_runs([there.experiment_id]) if there else []
        key = "system/system_memory_usage_megabytes"
        return found and len(client.get_metric_history(found[0].info.run_id, key)) > 2 and found[0]

    begun = wait_until(arrived, "points of a run that goes on")
    assert (begun.info.status, begun.data.metrics["loss"]) == ("RUNNING", 7.0)
    assert "cellmeter.ending" not in begun.data.tags
    kernel.run("cellmeter.log(loss=3.0)")
    kernel.run("%monitor stop")
    thread.join(60)
    assert exits == [0]
    ended = client.get_run(begun.info.run_id)
    assert (ended.info.status, ended.data.tags["cellmeter.ending"], ended.data.metrics["loss"]) == (
        "FINISHED",
        "stopped",
        3.0,
    )
    run = kernel.recorded()
    said = capsys.readouterr().err
    whole = {part.key: part for part in mlflow.points(run, ALL)}
    assert (
        f"sent {sum(len(part.values) for part in whole.values())} points of {len(whole)} metrics to MLflow run" in said
    )
    for key, part in whole.items():
        there = sorted(client.get_metric_history(begun.info.run_id, key), key=lambda metric: metric.timestamp)
        assert [(p.timestamp, p.step, p.value) for p in there] == list(
            zip(part.milliseconds, part.steps, part.values, strict=True)
        )


def test_a_server_that_is_down_meanwhile_is_asked_again(run: Run, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sending, "LIVE_SECONDS", 0.0)
    monkeypatch.setattr(sending, "read_run", lambda folder, newest: run)
    with serving(lambda request: Answer(503)) as address:
        live = sending.Live(tmp_path, mlflow.Target(address, "Default"), ALL)
        monkeypatch.setattr(sending, "REST", 0.0)
        live.look()
        live.look()
    assert capsys.readouterr().err.count("while it is recorded: MLflow at") == 1, "the same is said once"


def test_a_short_run_by_the_command_line(
    kernel: Kernel, server: str, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of a second or two has data; MLflow's own monitor records none of under ten."""
    kernel.run("import time\nuntil = time.monotonic() + 0.5\nwhile time.monotonic() < until:\n    pass")
    kernel.run("%monitor stop")
    assert kernel.recorded().duration < 10
    assert main(["export", "--mlflow", "--tracking-uri", server, "--experiment", "short"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    (found,) = client.search_runs([client.get_experiment_by_name("short").experiment_id])
    assert found.info.run_id in said.err
    system = {key for key in found.data.metrics if key.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= system
    assert abs(found.info.start_time / 1000 - time.time()) < 600


def test_a_failure_by_the_command_line(kernel: Kernel, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    kernel.run("%monitor stop")
    with serving(lambda request: Answer(503)) as address:
        assert main(["export", "--mlflow", "--tracking-uri", address]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"cellmeter: MLflow at {address} took 0 points and then failed: ")


class TestWhenOver:
    """``cellmeter.start(mlflow=True)``."""

    def log(self, kernel: Kernel) -> Path:
        return run_folders(kernel.home / "runs")[-1] / "mlflow.log"

    def said(self, kernel: Kernel) -> str:
        return whole_line(self.log(kernel), "the export to end")

    def test_into_the_run_that_is_active(self, start_kernel, server, client):
        kernel = start_kernel(env={"MLFLOW_DISABLE_TELEMETRY": "true"})
        begun = kernel.run(
            f"import mlflow, cellmeter\nmlflow.set_tracking_uri({server!r})\n"
            "active = mlflow.start_run()\ncellmeter.start(mlflow=True)\ncellmeter.start(mlflow=True)\nprint(active.info.run_id)"
        )
        assert begun.status == "ok"
        kernel.run("mlflow.log_metric('loss', 0.5)\ncellmeter.log(loss=7.0)")
        kernel.run("import time\nuntil = time.monotonic() + 0.5\nwhile time.monotonic() < until:\n    pass")
        assert self.log(kernel).read_text() == ""
        kernel.run("cellmeter.stop()")
        mine = begun.stdout.split()[0]
        assert f"to MLflow run {mine}" in self.said(kernel)
        arrived = client.get_run(mine)
        assert "system/system_memory_usage_megabytes" in arrived.data.metrics
        assert (arrived.info.status, arrived.data.tags["cellmeter.ending"]) == ("RUNNING", "stopped")
        assert (arrived.data.metrics["loss"], arrived.data.metrics["cellmeter/logged.loss"]) == (0.5, 7.0)

    def test_also_of_a_kernel_that_is_killed(self, start_kernel, server, client):
        kernel = start_kernel(env={"MLFLOW_TRACKING_URI": server})
        assert kernel.run("import cellmeter\ncellmeter.start(mlflow=True)").status == "ok"
        kernel.run("x = 1")
        kernel.recorded_cells(1)
        os.kill(kernel.pid, signal.SIGKILL)
        run_id = self.said(kernel).split()[-1]
        assert client.get_run(run_id).info.status == "KILLED"

    def test_a_server_that_is_not_there_is_one_line_in_the_log(self, start_kernel):
        with serving(lambda request: Answer()) as address:
            pass
        kernel = start_kernel(env={"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
        kernel.run("import cellmeter\ncellmeter.start(mlflow=True)")
        kernel.run("cellmeter.stop()")
        said = self.said(kernel)
        assert said.startswith(f"cellmeter: MLflow at {address} took 0 points and then failed: ")
        assert said.count("\n") == 1

    def test_without_a_server_it_says_so_at_once(self, start_kernel):
        kernel = start_kernel(env={"MLFLOW_TRACKING_URI": ""})
        failed = kernel.run("import cellmeter\ncellmeter.start(mlflow=True)")
        assert failed.error == "BadUsage"
        assert "MLFLOW_TRACKING_URI" in failed.traceback
