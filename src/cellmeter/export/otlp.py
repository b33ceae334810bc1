"""A run to any OpenTelemetry collector, as OTLP over HTTP: metrics under semantic-convention names, cells and spans as spans.

Protobufs are made here and not by the SDK, whose instruments stamp what they are told with the time of telling. Times are
the samples' own, ids of spans are made of the run's: sent again, a run is the same data.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmeter import __version__
from cellmeter.errors import BadUsage, ExportFailed, MissingExtra
from cellmeter.export.own_values import SpanPoint, own_values, span_points
from cellmeter.export.readings import Choice, batched, chosen, is_chosen
from cellmeter.export.traces import NANOSECONDS, TraceSpan, at_ns, trace_spans
from cellmeter.metrics import Metric
from cellmeter.run import Series
from cellmeter.spans import BOUNDS

if TYPE_CHECKING:
    from email.message import Message

    from cellmeter.rules import Judgement
    from cellmeter.run import Run

MOST_POINTS = 5000  # of a request: some 0.6 MB, where collectors take 20
MOST_SPANS = 500
TIMEOUT_SECONDS = 10.0  # that of the specification

# What the conventions count up and down, and do not call a gauge.
_UP_AND_DOWN = {
    "container.memory.working_set",
    "hw.gpu.memory.limit",
    "hw.gpu.memory.usage",
    "process.memory.usage",
    "process.thread.count",
    "system.filesystem.limit",
    "system.filesystem.usage",
    "system.memory.usage",
    "system.paging.usage",
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_UNITS = {"process.thread.count": "{thread}", "process.paging.faults": "{fault}"}
_OF_CODE = {
    "logged": ("cellmeter.logged", "gauge", "What was logged"),
    "step": ("cellmeter.steps", "sum", "Steps done, and what was done in them"),
}
_ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "gpu.utilization": {"hw.gpu.task": "general"},
    "host.disk.read": {"disk.io.direction": "read"},
    "host.disk.written": {"disk.io.direction": "write"},
    "host.filesystem.free": {"system.filesystem.state": "free"},
    "host.memory.used": {"system.memory.state": "used"},
    "host.network.received": {"network.io.direction": "receive"},
    "host.network.sent": {"network.io.direction": "transmit"},
    "host.swap.used": {"system.paging.state": "used"},
    "process.disk.read": {"disk.io.direction": "read"},
    "process.disk.written": {"disk.io.direction": "write"},
    "process.page_faults.major": {"system.paging.fault.type": "major"},
    "process.page_faults.minor": {"system.paging.fault.type": "minor"},
}


class Sent(NamedTuple):
    """What has arrived."""

    points: int
    spans: int


class Stream(NamedTuple):
    """One series of one metric: its name and unit there, ``sum``, ``up-down``, ``gauge`` or ``histogram``, and its readings.

    ``since``: from when on a sum counts, in seconds since the run's start. A histogram's readings are the sums of what it
    counts, ``counts`` its buckets at each.
    """

    name: str
    unit: str
    kind: str
    meaning: str
    attributes: Mapping[str, str | int]
    series: Series
    since: float = 0.0
    counts: Sequence[tuple[int, ...]] = ()


def streams(run: Run, choice: Choice) -> Iterator[Stream]:
    """The chosen metrics. By default those that the conventions name, of plugins, and the user's own; no single cores."""
    added = {metric.name for metric in run.plugin_metrics if metric.kind != "rate"}
    for metric in run.metrics.values():
        by_default = metric.name in added or (metric.otel is not None and metric.scope != "core")
        if is_chosen(metric.name, choice.patterns, by_default):
            for subject in run.subjects(metric.name):
                series = chosen(run, metric, subject, choice.cut)
                if len(series.time):
                    yield _stream(run, metric, subject, series)
    yield from _streams_of_code(run, choice)


def _streams_of_code(run: Run, choice: Choice) -> Iterator[Stream]:
    """What the user's code said, as ``cellmeter serve`` has it: a collector that writes to Prometheus makes the same names."""
    for own in own_values(run):
        if own.kind == "span" or not is_chosen(own.metric, choice.patterns, by_default=True):
            continue
        time, values = own.every(choice.cut)
        name, kind, meaning = _OF_CODE[own.kind]
        yield Stream(name, "", kind, meaning, {"name": own.name}, _readings(time, values))
    for name, points in span_points(run, choice.interval_seconds):
        if is_chosen(f"span.{name}", choice.patterns, by_default=True):
            yield from _streams_of_spans(name, points)


def _streams_of_spans(name: str, points: Sequence[SpanPoint]) -> Iterator[Stream]:
    whose = {"name": name}
    time = [point.time for point in points]
    seconds = _readings(time, [point.seconds for point in points])
    counts = [point.counts for point in points]
    yield Stream("cellmeter.span", "s", "histogram", "Durations of spans", whose, seconds, counts=counts)
    errors = _readings(time, [point.errors for point in points])
    yield Stream("cellmeter.span.errors", "", "sum", "Spans that an exception left", whose, errors)
    if counted := [(point.time, point.items) for point in points if point.items is not None]:
        items = _readings(*zip(*counted, strict=True))
        yield Stream("cellmeter.span.items", "", "sum", "Items that spans handled", whose, items)


def _readings(time: Iterable[float], values: Iterable[float]) -> Series:
    import numpy as np

    times = np.array(tuple(time), dtype=float)
    return Series(times, np.array(tuple(values), dtype=float), np.zeros(len(times), np.int64))


def _stream(run: Run, metric: Metric, subject: str, series: Series) -> Stream:
    import numpy as np

    name = metric.otel or f"cellmeter.{metric.name}"
    unit, values = _UNITS.get(name, metric.unit), series.values
    if metric.otel and name.endswith(".utilization"):
        unit, values = "1", values / _whole(run, metric)
    if metric.kind == "counter":  # since the first reading, growing only
        values = np.diff(values, prepend=values[:1]).clip(0).cumsum()
    kind = "sum" if metric.kind == "counter" else "up-down" if name in _UP_AND_DOWN else "gauge"
    attributes = {**_ATTRIBUTES.get(metric.name, {}), **_whose(run, metric, subject)}
    return Stream(name, unit, kind, metric.meaning, attributes, series._replace(values=values), float(series.time[0]))


def _whole(run: Run, metric: Metric) -> float:
    """What a utilisation of 1 is."""
    if metric.unit == "%":
        return 100.0
    if metric.scope == "process" and "cpu_cores" in run.limits:
        return run.limits["cpu_cores"].value
    return 1.0 if metric.scope == "core" else run.host.cpu_count


def _whose(run: Run, metric: Metric, subject: str) -> dict[str, str | int]:
    if metric.scope == "core":
        return {"cpu.logical_number": int(subject.removeprefix("cpu"))}
    if metric.name.startswith("host.filesystem."):
        return {"system.filesystem.mountpoint": subject}
    for device in run.devices:
        if device.id == subject:
            return {"hw.type": "gpu", "hw.id": device.uuid, "hw.name": device.id, "hw.model": device.name}
    return {} if subject == metric.scope else {"cellmeter.subject": subject}


# ---- protobufs -------------------------------------------------------------------------------------------------------


class _Proto:
    """The generated classes, imported when they are first needed. Raises MissingExtra."""

    def __init__(self) -> None:
        try:
            from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
            from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
            from opentelemetry.proto.common.v1 import common_pb2
            from opentelemetry.proto.resource.v1 import resource_pb2
            from opentelemetry.proto.trace.v1 import trace_pb2
        except ImportError as error:
            raise MissingExtra("opentelemetry-proto", "otel", "an export as OTLP") from error
        self.metrics: Any = metrics_service_pb2
        self.traces: Any = trace_service_pb2
        self.common: Any = common_pb2
        self.resource: Any = resource_pb2
        self.trace: Any = trace_pb2

    def attributes(self, values: Mapping[str, str | int | float | bool]) -> list[Any]:
        return [self.common.KeyValue(key=key, value=self._value(value)) for key, value in values.items()]

    def _value(self, value: str | int | float | bool) -> Any:
        if isinstance(value, bool):
            return self.common.AnyValue(bool_value=value)
        if isinstance(value, int):
            return self.common.AnyValue(int_value=value)
        if isinstance(value, float):
            return self.common.AnyValue(double_value=value)
        return self.common.AnyValue(string_value=_text(value))

    def scope(self) -> Any:
        return self.common.InstrumentationScope(name="cellmeter", version=__version__)


def _text(value: str) -> str:
    """The same without halves of surrogate pairs, which no protobuf takes."""
    return value.encode("utf-8", "backslashreplace").decode()


def _resource(run: Run) -> dict[str, str | int | float | bool]:
    said = {
        "service.name": os.environ.get("OTEL_SERVICE_NAME") or "cellmeter",
        "service.instance.id": run.id,
        "host.name": run.host.name,
        "host.arch": _ARCHITECTURES.get(run.host.machine, run.host.machine),
        "os.type": run.host.system.lower(),
        "process.runtime.name": "python",
        "process.runtime.version": run.host.python,
        "cellmeter.run.id": run.id,
        "cellmeter.notebook": run.notebook or "",
    }
    return {key: value for key, value in said.items() if value}


class _Point(NamedTuple):
    stream: Stream
    number: int
    time_ns: int
    value: float


def _points(run: Run, choice: Choice) -> Iterator[_Point]:
    for stream in streams(run, choice):
        times = (run.epochs(stream.series.time) * NANOSECONDS).round().astype("int64")
        for number, (time, value) in enumerate(zip(times.tolist(), stream.series.values.tolist(), strict=True)):
            yield _Point(stream, number, time, value)


def _metrics_request(proto: _Proto, run: Run, batch: list[_Point]) -> Any:
    request = proto.metrics.ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(proto.attributes(_resource(run)))
    scope = resource.scope_metrics.add(scope=proto.scope())
    metrics: dict[str, Any] = {}
    shared: dict[int, list[Any]] = {}  # the attributes of a stream, made once
    for stream, number, time, value in batch:
        metric = metrics.get(stream.name)
        if metric is None:
            metric = metrics[stream.name] = scope.metrics.add(
                name=stream.name, unit=stream.unit, description=stream.meaning
            )
        point = _place(metric, stream).add(time_unix_nano=time)
        if stream.kind == "histogram":
            point.sum, point.count = value, sum(stream.counts[number])
            point.explicit_bounds.extend(BOUNDS)
            point.bucket_counts.extend(stream.counts[number])
        else:
            point.as_double = value
        if stream.kind != "gauge":
            point.start_time_unix_nano = at_ns(run, stream.since)
        if id(stream) not in shared:
            shared[id(stream)] = proto.attributes(stream.attributes)
        point.attributes.extend(shared[id(stream)])
    return request


def _place(metric: Any, stream: Stream) -> Any:
    """Where the points of a metric go."""
    if stream.kind == "gauge":
        return metric.gauge.data_points
    if stream.kind == "histogram":
        metric.histogram.aggregation_temporality = 2  # cumulative
        return metric.histogram.data_points
    metric.sum.aggregation_temporality = 2  # cumulative
    metric.sum.is_monotonic = stream.kind == "sum"
    return metric.sum.data_points


def _trace_request(proto: _Proto, run: Run, batch: list[TraceSpan]) -> Any:
    request = proto.traces.ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.extend(proto.attributes(_resource(run)))
    scope = resource.scope_spans.add(scope=proto.scope())
    for span in batch:
        made = scope.spans.add(
            trace_id=identity(16, run.id),
            span_id=identity(8, run.id, span.key),
            parent_span_id=identity(8, run.id, span.parent) if span.parent is not None else b"",
            name=_text(span.name),
            kind=proto.trace.Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
            attributes=proto.attributes(span.attributes),
        )
        made.status.code = proto.trace.Status.STATUS_CODE_ERROR if span.problem else proto.trace.Status.STATUS_CODE_OK
        made.status.message = span.problem or ""
        for event in span.events:
            made.events.add(
                name=event.name, time_unix_nano=event.time_ns, attributes=proto.attributes(event.attributes)
            )
    return request


def identity(size: int, *parts: str) -> bytes:
    """An id of that many bytes that is always the same for the same parts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()[:size]


# ---- over HTTP -------------------------------------------------------------------------------------------------------


def send(run: Run, judgement: Judgement, endpoint: str, choice: Choice) -> Sent:
    """Sends a run to ``ENDPOINT/v1/metrics`` and ``ENDPOINT/v1/traces``; headers from ``OTEL_EXPORTER_OTLP_HEADERS``.

    Raises BadUsage for an endpoint that is none, ExportFailed where it does not take all, MissingExtra.
    """
    if urllib.parse.urlsplit(endpoint).scheme not in ("http", "https"):
        raise BadUsage(f"--otlp {endpoint}: write an address as in http://localhost:4318")
    proto, headers = _Proto(), _headers()
    points = spans = 0
    try:
        for batch in batched(_points(run, choice), MOST_POINTS):
            answer = proto.metrics.ExportMetricsServiceResponse()
            _post(f"{endpoint.rstrip('/')}/v1/metrics", _metrics_request(proto, run, batch), headers, answer)
            _all_taken(answer.partial_success.rejected_data_points, answer.partial_success.error_message, "points")
            points += len(batch)
        for some in batched(trace_spans(run, judgement), MOST_SPANS):
            answer = proto.traces.ExportTraceServiceResponse()
            _post(f"{endpoint.rstrip('/')}/v1/traces", _trace_request(proto, run, some), headers, answer)
            _all_taken(answer.partial_success.rejected_spans, answer.partial_success.error_message, "spans")
            spans += len(some)
    except _NotTaken as problem:
        raise ExportFailed(
            f"{endpoint} took {points} points and {spans} spans and then failed: {problem} "
            "(nothing is lost: the same command sends the same data again)"
        ) from None
    return Sent(points, spans)


class _NotTaken(Exception):
    pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET, and look as if it had been taken."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Message, newurl: str) -> None:
        return None


def _post(url: str, message: Any, headers: Mapping[str, str], answer: Any) -> None:
    from google.protobuf.message import DecodeError

    try:
        request = urllib.request.Request(url, message.SerializeToString(), dict(headers), method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS) as response:
            answer.ParseFromString(response.read())
    except urllib.error.HTTPError as error:
        hint = "; a token goes into OTEL_EXPORTER_OTLP_HEADERS" if error.code in (401, 403) else ""
        raise _NotTaken(f"HTTP {error.code} {error.reason}{hint}") from None
    except urllib.error.URLError as error:
        raise _NotTaken(getattr(error.reason, "strerror", None) or str(error.reason)) from None
    except DecodeError:
        raise _NotTaken("its answer is no OTLP") from None
    except (OSError, HTTPException, ValueError) as error:
        raise _NotTaken(f"{type(error).__name__}: {error}".rstrip(": ")) from None


def _all_taken(rejected: int, message: str, what: str) -> None:
    if rejected:
        raise _NotTaken(f"it rejected {rejected} {what}: {' '.join(message.split())[:200] or 'no reason given'}")


def _headers() -> dict[str, str]:
    """``OTEL_EXPORTER_OTLP_HEADERS``: ``key=value`` pairs, values percent-encoded, joined by commas. Raises BadUsage."""
    headers = {"Content-Type": "application/x-protobuf", "User-Agent": f"cellmeter/{__version__}"}
    for pair in filter(None, os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadUsage("OTEL_EXPORTER_OTLP_HEADERS: write key=value,key=value")
        headers[key.strip()] = urllib.parse.unquote(value.strip())
    return headers
