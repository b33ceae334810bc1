"""A run sent as OTLP to a receiver that parses the protobufs."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from builders import GIB, GpuWork, a_cell, a_device, a_run, own_words
from conftest import Kernel
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from web import Answer, Request, serving

from cellmeter import judge
from cellmeter.cli import main
from cellmeter.errors import BadUsage, ExportFailed, MissingExtra
from cellmeter.export import otlp
from cellmeter.export.readings import Choice, check_names, choice, every, thinned
from cellmeter.metrics import METRICS
from cellmeter.prometheus.totals import OwnTotals
from cellmeter.run import Run, Series
from cellmeter.spans import BOUNDS, Logged, Own, Span

ALL = Choice()


@dataclass
class Receiver:
    """What an OTLP receiver has been told, and how it answers."""

    address: str = ""
    answer: Answer = field(default_factory=Answer)
    requests: list[Request] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)
    traces: list[ExportTraceServiceRequest] = field(default_factory=list)

    def take(self, request: Request) -> Answer:
        self.requests.append(request)
        if self.answer.status == 200:
            kind, kept = {
                "/v1/metrics": (ExportMetricsServiceRequest, self.metrics),
                "/v1/traces": (ExportTraceServiceRequest, self.traces),
            }[request.path]
            kept.append(kind.FromString(request.body))
        return self.answer

    def points(self) -> dict[tuple[str, str], list[Any]]:
        """Points by the metric's name and one attribute that tells them apart."""
        found: dict[tuple[str, str], list[Any]] = {}
        for metric in self.each_metric():
            for point in getattr(metric, metric.WhichOneof("data")).data_points:
                found.setdefault((metric.name, _telling(point)), []).append(point)
        return found

    def each_metric(self) -> Iterator[Any]:
        for request in self.metrics:
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    yield from scope.metrics

    def metric(self, name: str) -> Any:
        return next(metric for metric in self.each_metric() if metric.name == name)

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def _telling(point: Any) -> str:
    said = values(point.attributes)
    keys = ("hw.name", "disk.io.direction", "network.io.direction", "cpu.logical_number", "cellmeter.subject")
    return next((str(said[key]) for key in keys if key in said), "")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with serving(receiver.take) as receiver.address:
        yield receiver


@pytest.fixture
def run() -> Run:
    train = a_cell(30, label="train", cores=2.0, disk_read=1e6, gpu={"gpu0": GpuWork(90, power=400)})
    made = a_run(a_cell(5, rss=GIB), train, a_cell(3, status="error"), devices=[a_device("gpu0", mine=True)])
    return replace(made, own=own_words(20))


def send(run: Run, receiver: Receiver, wanted: Choice = ALL) -> otlp.Sent:
    return otlp.send(run, judge(run), receiver.address, wanted)


class TestMetrics:
    def test_names_units_and_kinds_are_those_of_the_conventions(self, run, receiver):
        send(run, receiver)
        found = {m.name: (m.unit, m.WhichOneof("data")) for m in receiver.each_metric()}
        assert found["process.cpu.time"] == ("s", "sum")
        assert found["process.cpu.utilization"] == ("1", "gauge")
        assert found["process.memory.usage"] == ("By", "sum")
        assert found["hw.gpu.utilization"] == ("1", "gauge")
        assert found["hw.gpu.memory.usage"] == ("By", "sum")
        assert found["hw.energy"] == ("J", "sum")
        assert found["system.disk.io"] == ("By", "sum")
        assert receiver.metric("process.cpu.time").sum.is_monotonic
        assert not receiver.metric("process.memory.usage").sum.is_monotonic
        assert receiver.metric("process.memory.usage").sum.aggregation_temporality == 2

    def test_every_reading_arrives_with_its_own_time(self, run, receiver):
        sent = send(run, receiver)
        series = run.series("gpu.utilization", "gpu0")
        points = receiver.points()["hw.gpu.utilization", "gpu0"]
        start = round(run.started.timestamp() * 1e9)
        assert [p.as_double for p in points] == (series.values / 100).tolist()
        assert np.allclose([p.time_unix_nano - start for p in points], series.time * 1e9, atol=1)
        assert sent.points == sum(map(len, receiver.points().values()))
        assert {"hw.type": "gpu", "hw.id": "GPU-gpu0", "hw.gpu.task": "general"}.items() <= values(
            points[0].attributes
        ).items()

    def test_utilisation_is_a_share_of_what_there_is(self, run, receiver):
        """2 of the 8 cores that the control group may use."""
        send(run, receiver)
        assert max(p.as_double for p in receiver.points()["process.cpu.utilization", ""]) == pytest.approx(0.25)

    def test_counters_count_from_their_first_reading(self, run, receiver):
        send(run, receiver)
        points = receiver.points()["system.disk.io", "read"]
        readings = run.series("host.disk.read", "host").values
        assert points[0].as_double == 0
        assert points[-1].as_double == pytest.approx(readings[-1] - readings[0])
        assert points[-1].as_double > 30e6
        assert points[0].start_time_unix_nano == points[0].time_unix_nano
        assert {p.start_time_unix_nano for p in points} == {points[0].time_unix_nano}

    def test_a_counter_that_was_reset_does_not_fall(self, run, receiver):
        (segment, *others) = run.segments
        records = segment.records.copy()
        place = [c.metric for c in segment.columns].index("process.cpu.time")
        records["v"][100:, place] -= records["v"][100, place]
        send(replace(run, segments=(replace(segment, records=records), *others)), receiver)
        counted = [p.as_double for p in receiver.points()["process.cpu.time", ""]]
        assert counted == sorted(counted)

    def test_requests_are_bounded_and_say_whose_they_are(self, run, receiver, monkeypatch):
        monkeypatch.setattr(otlp, "MOST_POINTS", 700)
        send(run, receiver)
        counts = []
        for request in receiver.metrics:
            (resource,) = request.resource_metrics
            counts.append(
                sum(
                    len(getattr(m, m.WhichOneof("data")).data_points) for s in resource.scope_metrics for m in s.metrics
                )
            )
            said = values(resource.resource.attributes)
            assert (said["service.name"], said["service.instance.id"]) == ("cellmeter", run.id)
            assert (said["host.name"], said["host.arch"], said["os.type"]) == ("node7", "amd64", "linux")
        assert len(counts) > 3
        assert set(counts[:-1]) == {700}

    def test_choice_and_interval(self, run, receiver):
        send(run, receiver, choice("gpu.*,process.children", 5.0))
        names = {m.name for m in receiver.each_metric()}
        assert {"hw.gpu.utilization", "cellmeter.gpu.clock.sm", "cellmeter.process.children"} <= names
        assert not any(name.startswith(("system.", "process.")) for name in names)
        points = receiver.points()["hw.gpu.utilization", "gpu0"]
        assert len(points) == np.ceil(run.duration / 5)
        assert points[3].as_double == pytest.approx(0.9)

    def test_an_interval_has_the_mean_of_its_readings_and_the_last_of_a_counter(self):
        times, values = np.array([0.2, 0.9, 1.0, 3.1, 3.9]), np.array([1.0, 3.0, 5.0, 7.0, 8.0])
        series = Series(times, values, np.zeros(5, np.int64))
        mean, last = thinned(series, every(1.0), last=False), thinned(series, every(1.0), last=True)
        assert mean.time.tolist() == last.time.tolist() == [0.9, 1.0, 3.9]
        assert mean.values.tolist() == [2.0, 5.0, 7.5]
        assert last.values.tolist() == [3.0, 5.0, 8.0]

    def test_no_two_metrics_become_one(self):
        """What shares a name is told apart by an attribute."""
        shared: dict[tuple[str, ...], str] = {}
        for metric in METRICS.values():
            if metric.otel and metric.scope != "core":
                key = (metric.otel, *sorted(otlp._ATTRIBUTES.get(metric.name, {}).values()))
                assert shared.setdefault(key, metric.name) == metric.name


class TestOwnValues:
    """What the user's code said, with the names that ``cellmeter serve`` gives it, as a collector writes them."""

    def named(self, receiver: Receiver, metric: str, name: str) -> list[Any]:
        return [
            point
            for m in receiver.each_metric()
            if m.name == metric
            for point in getattr(m, m.WhichOneof("data")).data_points
            if values(point.attributes) == {"name": name}
        ]

    def test_names_units_and_kinds(self, run, receiver):
        send(run, receiver)
        found = {m.name: (m.unit, m.WhichOneof("data")) for m in receiver.each_metric()}
        assert found["cellmeter.logged"] == ("", "gauge")
        assert found["cellmeter.steps"] == ("", "sum")
        assert found["cellmeter.span"] == ("s", "histogram")
        assert found["cellmeter.span.errors"] == found["cellmeter.span.items"] == ("", "sum")
        for name in ("cellmeter.steps", "cellmeter.span.errors", "cellmeter.span.items"):
            counted = receiver.metric(name).sum
            assert (counted.is_monotonic, counted.aggregation_temporality) == (True, 2)
        assert receiver.metric("cellmeter.span").histogram.aggregation_temporality == 2

    def test_values_and_steps_with_their_times(self, run, receiver):
        send(run, receiver)
        start = round(run.started.timestamp() * 1e9)
        loss = run.logged["loss"]
        points = self.named(receiver, "cellmeter.logged", "loss")
        assert sorted(p.as_double for p in points) == sorted(loss.value.tolist())
        assert sorted(p.time_unix_nano - start for p in points) == sorted((loss.time * 1e9).astype(int).tolist())
        steps = self.named(receiver, "cellmeter.steps", "tokens")
        assert [p.as_double for p in steps] == (4096.0 * np.arange(1, len(steps) + 1)).tolist()
        assert {p.start_time_unix_nano for p in steps} == {start}

    def test_spans_are_the_histogram_that_prometheus_gets(self, run, receiver):
        send(run, receiver)
        events = [
            {"event": "span", "t": round(s.end * 1e9), "start": round(s.start * 1e9), **vars(s)}
            | {"t": round(s.end * 1e9), "start": round(s.start * 1e9)}
            for s in run.spans
        ]
        (batch,) = run.own.batches
        totals = OwnTotals()
        for event in (*events, {"event": "spans", **vars(batch)}):
            totals.take(event)
        for name in ("inference", "tokenize"):
            points = self.named(receiver, "cellmeter.span", name)
            last, spans = points[-1], totals.spans[name]
            assert list(last.explicit_bounds) == list(BOUNDS)
            assert list(last.bucket_counts) == spans.counts
            assert last.count == sum(spans.counts)
            assert last.sum == pytest.approx(spans.seconds)
            assert [p.count for p in points] == sorted(p.count for p in points)
        assert self.named(receiver, "cellmeter.span.errors", "inference")[-1].as_double == 1
        assert self.named(receiver, "cellmeter.span.items", "inference")[-1].as_double == 8 * len(run.spans)
        assert not self.named(receiver, "cellmeter.span.items", "tokenize")

    def test_choice_and_interval(self, run, receiver):
        send(run, receiver, choice("logged.*,span.inf*", 10.0))
        assert {m.name for m in receiver.each_metric()} == {
            "cellmeter.logged",
            "cellmeter.span",
            "cellmeter.span.errors",
            "cellmeter.span.items",
        }
        first, *_ = self.named(receiver, "cellmeter.logged", "loss")
        loss = run.logged["loss"]
        early = loss.time < 10
        assert first.as_double == pytest.approx(np.average(loss.mean[early], weights=loss.count[early]))
        assert len(self.named(receiver, "cellmeter.span", "inference")) == 3
        assert not self.named(receiver, "cellmeter.span", "tokenize")

    def test_what_is_no_number_arrives_as_it_was_said(self, run, receiver):
        nan = np.array([math.nan, math.inf])
        ones = np.ones(2, np.int64)
        logged = {"loss \ud83d": Logged(np.array([1.0, 2.0]), nan, nan, nan, nan, ones, ones)}
        send(replace(run, own=Own(logged=logged)), receiver)
        one, two = receiver.metric("cellmeter.logged").gauge.data_points
        assert math.isnan(one.as_double)
        assert two.as_double == math.inf


class TestTraces:
    def test_the_run_its_cells_and_spans(self, run, receiver):
        sent = send(run, receiver)
        spans = receiver.spans()
        assert sent.spans == len(spans) == 1 + 3 + len(run.spans) + 1
        root, first, train, failed = spans[:4]
        assert (root.name, first.name, train.name, failed.name) == ("train.ipynb", "In [1]", "train", "In [3]")
        assert not root.parent_span_id
        assert {s.parent_span_id for s in (first, train, failed)} == {root.span_id}
        assert {s.trace_id for s in spans} == {root.trace_id}
        assert len({s.span_id for s in spans}) == len(spans)
        start = round(run.started.timestamp() * 1e9)
        cell = run.cells[1]
        assert (train.start_time_unix_nano - start, train.end_time_unix_nano - start) == (
            round(cell.start * 1e9),
            round(cell.end * 1e9),
        )
        said = values(train.attributes)
        assert said["cellmeter.cell.gpu0.utilization_mean_percent"] == pytest.approx(90, abs=1)
        assert (said["cellmeter.cell.seq"], said["cellmeter.cell.status"]) == (2, "ok")
        assert (train.status.code, failed.status.code, failed.status.message) == (1, 2, "error")

    def test_spans_lie_in_the_span_or_cell_around_them(self, run, receiver):
        own = Own(
            (
                Span("step", 11.0, 12.0, "ok", parent="epoch"),
                Span("step", 13.0, 14.0, "error", parent="epoch"),
                Span("epoch", 10.5, 12.5, "ok"),
                Span("epoch", 12.5, 14.5, "ok"),
                Span("alone \ud83d", 8.5, 8.6, "ok", parent="never kept"),
                Span("step", 11.0, 12.0, "ok", parent="epoch", pid=77),
                Span("epoch", 10.8, 10.9, "ok"),
            )
        )
        send(replace(run, own=own), receiver)
        root, _, train, _, one, two, first, second, alone, worker, _ = receiver.spans()
        assert (one.parent_span_id, two.parent_span_id) == (first.span_id, second.span_id)
        assert {s.parent_span_id for s in (first, second, worker)} == {train.span_id}
        assert alone.parent_span_id == root.span_id
        assert (one.status.code, two.status.code) == (1, 2)
        assert values(worker.attributes)["cellmeter.worker.pid"] == 77

    def test_findings_are_events_of_the_run(self, receiver):
        unused = a_run(a_cell(600, gpu={"gpu0": GpuWork(0)}), devices=[a_device("gpu0", mine=True)], rate_hz=1.0)
        findings = judge(unused).findings
        assert findings
        send(unused, receiver)
        events = receiver.spans()[0].events
        assert [values(e.attributes)["cellmeter.finding.rule"] for e in events] == [f.rule for f in findings]

    def test_of_a_run_that_goes_on_only_what_has_ended(self, run, receiver):
        *before, last = run.cells
        running = replace(run, ending=None, ended=None, cells=(*before, replace(last, end=None, status="running")))
        send(running, receiver)
        assert [s.name for s in receiver.spans()[:2]] == ["In [1]", "train"]
        assert "In [3]" not in {s.name for s in receiver.spans()}

    def test_sent_again_it_is_the_same_data(self, run, receiver):
        send(run, receiver)
        before = [request.body for request in receiver.requests]
        receiver.requests.clear()
        send(run, receiver)
        assert [request.body for request in receiver.requests] == before


class TestFailures:
    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (Answer(401), "HTTP 401 Unauthorized; a token goes into OTEL_EXPORTER_OTLP_HEADERS"),
            (Answer(500), "HTTP 500"),
            (Answer(302, b"", {"Location": "http://127.0.0.1:9/"}), "HTTP 302"),
            (Answer(200, b"<html>hello</html>"), "no OTLP"),
        ],
    )
    def test_what_is_not_taken_is_said(self, run, receiver, answer, says):
        receiver.answer = answer
        with pytest.raises(ExportFailed, match="took 0 points and 0 spans and then failed") as failure:
            send(run, receiver)
        assert says in str(failure.value)
        assert len(receiver.requests) == 1

    def test_what_is_rejected_is_said(self, run, receiver):
        answer = ExportMetricsServiceResponse()
        answer.partial_success.rejected_data_points = 7
        answer.partial_success.error_message = "too\nold"
        receiver.answer = Answer(200, answer.SerializeToString())
        with pytest.raises(ExportFailed, match="it rejected 7 points: too old"):
            send(run, receiver)

    def test_a_server_that_does_not_answer(self, run, monkeypatch):
        monkeypatch.setattr(otlp, "TIMEOUT_SECONDS", 0.2)
        over = threading.Event()

        def never(request: Request) -> Answer:
            over.wait(20)
            return Answer()

        with serving(never) as address:
            try:
                with pytest.raises(ExportFailed, match="timed out"):
                    otlp.send(run, judge(run), address, ALL)
            finally:
                over.set()

    def test_a_server_that_is_not_there(self, run):
        with serving(lambda request: Answer()) as address:
            pass
        with pytest.raises(ExportFailed, match="refused"):
            otlp.send(run, judge(run), address, ALL)

    @pytest.mark.parametrize("endpoint", ["localhost:4318", "file:///etc/passwd", ""])
    def test_an_address_that_is_none(self, run, endpoint):
        with pytest.raises(BadUsage, match="write an address"):
            otlp.send(run, judge(run), endpoint, ALL)

    def test_without_the_extra_it_says_which(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "opentelemetry.proto.trace.v1", None)
        with pytest.raises(MissingExtra, match=re.escape("pip install 'cellmeter[otel]'")):
            otlp.send(run, judge(run), "http://127.0.0.1:9", ALL)

    def test_headers_come_from_the_environment(self, run, receiver, monkeypatch):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20secret, X-Scope = a")
        send(run, receiver)
        said = receiver.requests[0].headers
        assert (said["Authorization"], said["X-Scope"]) == ("Bearer secret", "a")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "nonsense")
        with pytest.raises(BadUsage, match="write key=value"):
            send(run, receiver)


def test_by_the_command_line(kernel: Kernel, receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    kernel.run("import cellmeter\nwith cellmeter.span('work'):\n    sum(range(10**6))")
    kernel.run("cellmeter.log(loss=0.5)")
    kernel.run("%monitor stop")
    assert main(["export", "--otlp", receiver.address, "--metrics", "nothing.*"]) == 2
    assert "no metric is called 'nothing.*'" in capsys.readouterr().err
    assert main(["export", "--otlp", receiver.address]) == 0
    said = capsys.readouterr()
    assert f"spans to {receiver.address}" in said.err
    assert "work" in {span.name for span in receiver.spans()}
    assert {"process.memory.usage", "system.memory.usage", "system.cpu.time", "cellmeter.logged", "cellmeter.span"} <= {
        m.name for m in receiver.each_metric()
    }
    receiver.answer = Answer(503)
    assert main(["export", "--otlp", receiver.address]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "HTTP 503" in said.err


def test_a_metric_that_no_run_can_have(run: Run) -> None:
    check_names(choice("gpu.*,logged.los,span.*", None), run)
    with pytest.raises(BadUsage, match=re.escape("no metric is called 'gpu_*'")):
        check_names(choice("host.cpu.time,gpu_*", None), run)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--otlp", "http://x", "--mlflow"], "one at a time"),
        (["--otlp", "http://x", "-o", "x.csv"], "--output is for exports to a file"),
        (["--otlp", "http://x", "--since", "1h"], "--since is for exports to a file"),
        (["--otlp", "http://x", "--experiment", "e"], "--experiment goes with --mlflow"),
        (["-o", "x.csv", "--metrics", "gpu.*"], "--metrics goes with --mlflow or --otlp"),
        (["--otlp", "http://x", "--interval", "0"], "above 0"),
        (["--mlflow"], "name the server by --tracking-uri"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["export", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_what_is_not_used_is_not_imported() -> None:
    """The command and the magics load neither client."""
    look = "import sys, cellmeter.cli, cellmeter.magics, cellmeter.export; print(sorted(sys.modules))"
    names = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    assert "'cellmeter.sending'" in names
    assert "'mlflow'" not in names
    assert "'opentelemetry" not in names
