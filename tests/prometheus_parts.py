"""A kernel with a GPU, `cellmeter serve` beside it, and the real servers of the Prometheus project, all on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from conftest import wait_until
from prometheus_client.parser import text_string_to_metric_families
from web import LoopbackServer, free_port

TRACE = """gpu name="NVIDIA H100" uuid=GPU-aaaa mem=80g limit=700
at 0 gpu 0 util=97 memutil=41 used=42g power=650 temp=61 sm=1755 reasons=0x40
gpu name="NVIDIA H100" uuid=GPU-bbbb mem=80g limit=700
at 0 gpu 1 util=0 memutil=0 used=1g power=70 temp=31 sm=345 reasons=0x1"""
TOKEN = "0123456789abcdef0123456789abcdef"
SLOW_SECONDS = 60.0  # real servers on a busy machine


class Scrape:
    """What an endpoint said."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def all(self, name: str, /, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Series of a name with at least these labels."""
        wanted = labels.items()
        return [(s.labels, s.value) for s in self.samples if s.name == name and wanted <= s.labels.items()]

    def one(self, name: str, /, **labels: str) -> float:
        """The value of the only such series."""
        ((_, value),) = self.all(name, **labels)
        return value

    def names(self) -> set[str]:
        return {s.name for s in self.samples}


def get(url: str, token: str | None = None, **options: Any) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=30, **options) as answer:
        return str(answer.read().decode())


def a_token(folder: Path) -> Path:
    """A file with a token that only its owner can read."""
    path = folder / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def a_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    certificate, key = folder / "it.crt", folder / "it.key"
    files = ["-keyout", key, "-out", certificate]
    subject = ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended by its own id."""
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def served(*arguments: str | Path, home: Path, log: Path) -> Iterator[str]:
    """The URL of a ``cellmeter serve``."""
    command = [sys.executable, "-m", "cellmeter.cli", "serve", "--port", "0", *map(str, arguments)]
    environ = {**os.environ, "CELLMETER_HOME": str(home)}
    with running(command, log, env=environ) as process:

        def url() -> str | None:
            assert process.poll() is None, log.read_text()
            found = re.search(r"serving (\S+)\n", log.read_text())
            return found and found[1]

        yield wait_until(url, "the endpoint", SLOW_SECONDS)


def program(name: str) -> str:
    """One of Debian's packages, which `make test` installs."""
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: make test installs it"
    return found


def answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            get(url)
        except (urllib.error.URLError, OSError):
            return False
        return True

    return ready


class Prometheus:
    """A real server's query interface."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str) -> list[dict[str, Any]]:
        answer = json.loads(get(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expr})))
        assert answer["status"] == "success"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expr: str) -> float | None:
        """The value of the only series, once there is one."""
        found = self.query(expr)
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else None

    def alerts(self) -> dict[str, str]:
        """The state of each alert that is not inactive."""
        found = json.loads(get(f"{self.url}/api/v1/alerts"))["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert["state"] for alert in found}


@contextmanager
def prometheus(config: Path, port: int | None = None, *options: str) -> Iterator[Prometheus]:
    port = port or free_port()
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={config.parent / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        *options,
    ]
    url = f"http://127.0.0.1:{port}"
    with running(command, config.parent / "prometheus.log"):
        wait_until(answers(f"{url}/-/ready"), "Prometheus", SLOW_SECONDS)
        yield Prometheus(url)


@contextmanager
def alertmanager(config: Path, port: int) -> Iterator[None]:
    command = [
        program("prometheus-alertmanager"),
        f"--config.file={config}",
        f"--storage.path={config.parent / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with running(command, config.parent / "alertmanager.log"):
        wait_until(answers(f"http://127.0.0.1:{port}/-/ready"), "the Alertmanager", SLOW_SECONDS)
        yield


@contextmanager
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """A URL, and what has been posted to it."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with LoopbackServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", posted
        finally:
            server.shutdown()
            thread.join()


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool"), *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def node_exporter(folder: Path) -> Iterator[str]:
    """The real one, of this machine; gives ``host:port``."""
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus-node-exporter"), f"--web.listen-address={address}"]
    with running(command, folder / "node_exporter.log"):
        wait_until(answers(f"http://{address}/metrics"), "node_exporter", SLOW_SECONDS)
        yield address


class Dcgm:
    """A stub of dcgm-exporter: the same names and labels, and what the test says is what it measures.

    ``old``: the spelling of its labels before release 2.2.
    """

    def __init__(self, gpus: int = 2, hostname: str = "node7", old: bool = False) -> None:
        self.gpus, self.hostname, self.old = gpus, hostname, old
        self.use: dict[int, float] = dict.fromkeys(range(gpus), 0.0)
        self.memory_mib: dict[int, float] = dict.fromkeys(range(gpus), 1024.0)
        self.scrapes = 0
        self.address = ""

    def text(self) -> str:
        lines = []
        for gpu in range(self.gpus):
            readings = {
                "DCGM_FI_DEV_GPU_UTIL": self.use[gpu],
                "DCGM_FI_DEV_MEM_COPY_UTIL": self.use[gpu] / 2,
                "DCGM_FI_DEV_FB_USED": self.memory_mib[gpu],
                "DCGM_FI_DEV_FB_FREE": 81920 - self.memory_mib[gpu],
                "DCGM_FI_DEV_GPU_TEMP": 40 + self.use[gpu] / 4,
                "DCGM_FI_DEV_POWER_USAGE": 70 + 5 * self.use[gpu],
                "DCGM_FI_PROF_SM_ACTIVE": self.use[gpu] / 200,
                "DCGM_FI_DEV_SM_CLOCK": 1755,  # of no interest here
            }
            uuid, host = ("uuid", "hostname") if self.old else ("UUID", "Hostname")
            labels = f'gpu="{gpu}",{uuid}="GPU-{self.hostname}-{gpu}",device="nvidia{gpu}",{host}="{self.hostname}"'
            labels += "" if self.old else ',modelName="NVIDIA H100"'
            lines += [f"{name}{{{labels}}} {value}" for name, value in readings.items()]
        return "\n".join(lines) + "\n"


@contextmanager
def dcgm_exporter(stub: Dcgm) -> Iterator[Dcgm]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stub.scrapes += 1
            body = stub.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with LoopbackServer(("127.0.0.1", 0), Handler) as server:
        stub.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
