"""Questions to a Prometheus server by its HTTP interface, each bounded in time and size."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from http.client import HTTPException
from typing import Any

from cellmeter import __version__
from cellmeter.clock import monotonic
from cellmeter.errors import BadUsage, FetchFailed
from cellmeter.prometheus.source import LOGIN, TOKEN, Source

MOST_BYTES = 64 << 20  # of an answer
PIECE = 1 << 16
SAID = 200  # characters of what the server says


class TooMuch(FetchFailed):
    """An answer is larger than :data:`MOST_BYTES`."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What lets us in must not go elsewhere."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Message, newurl: str) -> None:
        return None


def series(source: Source, matcher: str, start: float, end: float, deadline: float) -> list[dict[str, str]]:
    """The labels of all series that match and have samples between two times (seconds since the epoch).

    ``deadline``: until when an answer is waited for, by ``time.monotonic``. Raises BadUsage for a selector that the server
    does not take, FetchFailed.
    """
    wanted = {"match[]": source.selector(matcher), "start": f"{start:.3f}", "end": f"{end:.3f}"}
    found = _ask(source, "series", wanted, deadline)
    if not isinstance(found, list) or not all(_is_labels(labels) for labels in found):
        raise FetchFailed(f"{source.url} is no Prometheus: its answer is not in the form known")
    return found


Samples = list[tuple[float, float]]


def samples(
    source: Source, matcher: str, start: float, end: float, deadline: float
) -> list[tuple[dict[str, str], Samples]]:
    """Labels and raw samples, (seconds since the epoch, value), of all series that match, with the server's own times.

    Raises BadUsage and FetchFailed.
    """
    milliseconds = max(1, round((end - start) * 1000))
    query = f"{source.selector(matcher)}[{milliseconds}ms]"
    data = _ask(source, "query", {"query": query, "time": f"{end:.3f}"}, deadline)
    try:
        if data["resultType"] != "matrix":
            raise ValueError(data["resultType"])
        return [
            (_labels(one["metric"]), [(float(t), float(value)) for t, value in one.get("values", ())])
            for one in data["result"]
        ]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise FetchFailed(f"{source.url} is no Prometheus: its answer is not in the form known") from None


def _is_labels(labels: Any) -> bool:
    return isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values())


def _labels(labels: Any) -> dict[str, str]:
    if not _is_labels(labels):
        raise TypeError("labels")
    found: dict[str, str] = labels
    return found


def _ask(source: Source, what: str, parameters: dict[str, str], deadline: float) -> Any:
    """The ``data`` of an answer. A POST, as selectors may be long."""
    body = urllib.parse.urlencode(parameters).encode()
    headers = {"User-Agent": f"cellmeter/{__version__}", "Accept": "application/json", **source.headers()}
    try:
        request = urllib.request.Request(f"{source.url}/api/v1/{what}", body, headers, method="POST")
        left = max(0.01, deadline - monotonic())
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=left) as response:
            answer = _read(source, response, deadline)
    except urllib.error.HTTPError as error:
        raise _refused(source, error, deadline) from None
    except urllib.error.URLError as error:
        why = getattr(error.reason, "strerror", None) or str(error.reason)
        raise FetchFailed(f"{source.url} cannot be asked: {why}") from None
    except TimeoutError:
        raise _late(source) from None
    except (OSError, HTTPException, ValueError) as error:
        raise FetchFailed(f"{source.url} cannot be asked: {type(error).__name__}: {error}".rstrip(": ")) from None
    if not isinstance(answer, dict) or answer.get("status") != "success" or "data" not in answer:
        raise FetchFailed(f"{source.url} is no Prometheus: its answer is not in the form known")
    if answer.get("warnings"):
        raise FetchFailed(f"{source.url} told only part of it: {_shortened(answer['warnings'])}")
    return answer["data"]


def _read(source: Source, response: Any, deadline: float) -> Any:
    """JSON, a piece at a time: a server that dribbles is slow too."""
    pieces, size = [], 0
    while piece := response.read1(PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > MOST_BYTES:
            raise TooMuch(f"{source.url} has more to tell than {MOST_BYTES >> 20} MiB at once: narrow --match")
        if monotonic() > deadline:
            raise TimeoutError
    try:
        return json.loads(b"".join(pieces))
    except (ValueError, RecursionError):
        return None


def _late(source: Source) -> FetchFailed:
    return FetchFailed(f"{source.url} has not answered in time")


def _refused(source: Source, error: urllib.error.HTTPError, deadline: float) -> Exception:
    try:
        answer = _read(source, error, deadline) or {}
    except (OSError, HTTPException, FetchFailed):
        answer = {}
    said = _shortened(answer["error"]) if isinstance(answer, dict) and answer.get("error") else ""
    if error.code == 400 and said:
        return BadUsage(f"--match {source.match:.80}: {source.url} does not take it: {said}")
    if error.code in (401, 403):
        return FetchFailed(f"{source.url} lets us not in ({error.code}): set {TOKEN}, or {LOGIN} to user:password")
    if error.code in (301, 302, 303, 307, 308):
        where = _shortened(error.headers.get("Location", "elsewhere").partition("?")[0])
        return FetchFailed(f"{source.url} sends us on to {where}: give the address of the Prometheus itself")
    if error.code in (404, 405):
        return FetchFailed(f"{source.url} is no Prometheus: it has no /api/v1 (HTTP {error.code})")
    return FetchFailed(f"{source.url} failed: HTTP {error.code} {said or error.reason}".strip())


def _shortened(said: Any) -> str:
    from cellmeter.prometheus.source import without_login

    text = " ".join(str(said).split())
    return without_login(text if len(text) <= SAID else text[: SAID - 1] + "…")
