"""The endpoint that a Prometheus server asks: ``/metrics`` on this machine, elsewhere only behind a token or TLS."""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

from cellmeter.errors import BadUsage

MOST_PORT = 65_535
LEAST_TOKEN = 16
LOOK_SECONDS = 1.0
SLOW_SECONDS = 10.0  # a client that says nothing for so long is hung up on

_INDEX = b"<!doctype html><title>cellmeter</title><h1>cellmeter</h1><p><a href='/metrics'>Metrics</a></p>\n"

App = Callable[[Mapping[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class Endpoint:
    """Where to listen and who may ask."""

    port: int
    address: str = "127.0.0.1"
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None


class _Handler(WSGIRequestHandler):
    """Says nothing of requests, and waits for no slow client for ever."""

    timeout = SLOW_SECONDS

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


class Server(ThreadingMixIn, WSGIServer):
    """Answers each request in a thread of its own."""

    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def server_bind(self) -> None:
        """Without the look-up of its own name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]
        self.setup_environ()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the request's thread: a handshake that takes its time holds up nobody else."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(SLOW_SECONDS)
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away or speaks no TLS is no news."""

    @property
    def url(self) -> str:
        """What to ask."""
        host, port = self.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"{'https' if self.tls else 'http'}://{shown}:{port}/metrics"


def open_server(collector: Collector, endpoint: Endpoint) -> Server:
    """Listens; :func:`serve` answers. Raises BadUsage for an address that cannot be had, or is open to all."""
    family, address = _resolved(endpoint)
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback and not (endpoint.token or endpoint.certificate):
        raise BadUsage(
            f"{endpoint.address} can be reached from elsewhere: give a token (--token-file) or TLS (--certfile, --keyfile)"
        )
    tls = _tls(endpoint)
    registry = CollectorRegistry()
    registry.register(collector)
    app = guarded(make_wsgi_app(registry), endpoint.token)
    if not 0 <= endpoint.port <= MOST_PORT:
        raise BadUsage(f"--port {endpoint.port}: there is no such port; 0 to {MOST_PORT}")
    kind = type("Server", (Server,), {"address_family": family, "tls": tls})
    try:
        server: Server = kind((address, endpoint.port), _Handler)
    except OSError as error:
        why = error.strerror or str(error)
        raise BadUsage(
            f"cannot listen on {endpoint.address} port {endpoint.port}: {why}; --port chooses another"
        ) from None
    server.set_app(app)
    return server


def serve(server: Server, ended: Callable[[], bool]) -> None:
    """Answers until it has ended, or the user interrupts."""
    server.timeout = LOOK_SECONDS
    with server:
        while not ended():
            server.handle_request()


def _resolved(endpoint: Endpoint) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(endpoint.address, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise BadUsage(f"{endpoint.address!r} is no address of this machine") from None
    return found[0][0], str(found[0][4][0])


def _tls(endpoint: Endpoint) -> ssl.SSLContext | None:
    if (endpoint.certificate is None) != (endpoint.key is None):
        raise BadUsage("TLS needs both --certfile and --keyfile")
    if endpoint.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(endpoint.certificate, endpoint.key)
    except (OSError, ValueError) as error:
        raise BadUsage(f"{endpoint.certificate} and {endpoint.key} are no certificate and its key: {error}") from None
    return context


def guarded(app: App, token: str | None) -> App:
    """The same below ``/metrics`` only, to which ``/`` leads, and for those only who bring the token, if there is one."""

    def answer(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def refuse(status: str, *headers: tuple[str, str]) -> Iterable[bytes]:
            start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
            return [f"{status}\n".encode()]

        said = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        if token is not None and not hmac.compare_digest(said, b"Bearer " + token.encode()):
            return refuse("401 Unauthorized", ("WWW-Authenticate", "Bearer"))
        if environ["PATH_INFO"] == "/":
            start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [_INDEX]
        if environ["PATH_INFO"] != "/metrics":
            return refuse("404 Not Found")
        return app(environ, start_response)

    return answer


def read_token(path: Path) -> str:
    """The token that a file holds. Raises BadUsage if there is none, or if others may read it."""
    try:
        token = path.read_text(encoding="ascii").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(token) < LEAST_TOKEN or not token.isprintable() or " " in token:
        raise BadUsage(f"{path} holds no token: {LEAST_TOKEN} characters or more on one line (openssl rand -hex 32)")
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise BadUsage(f"{path} can be read by others: chmod 600 {path}")
    return token
