"""Reading from a real Prometheus, which scrapes the real node_exporter and a stub DCGM exporter; and from servers that fail."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from conftest import Kernel, Reply, has_ended, wait_until, whole_line
from prometheus_parts import (
    SLOW_SECONDS,
    Dcgm,
    Prometheus,
    dcgm_exporter,
    node_exporter,
    prometheus,
)
from web import Answer, Request, free_port, serving

from cellmeter.cli import main
from cellmeter.errors import BadUsage, FetchFailed
from cellmeter.home import run_folders
from cellmeter.prometheus import asking, fetching, reading
from cellmeter.prometheus.source import LOGIN, TOKEN, source_of
from cellmeter.remote import FILE
from cellmeter.run import Run
from cellmeter.store import read_run

EVERY = 0.25  # seconds between scrapes
MATCH = '{job=~"dcgm|node"}'
WAIT_FOR = "import os\nwhile not os.path.exists({!r}):\n    pass"


def fetchers_below(folder: Path) -> list[int]:
    """Pids of processes that fetch for a run below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"\0fetch\0" in words and os.fsencode(folder) in words:
                found.append(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def _nothing_fetches_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Who waits for a server that never comes leaves when the run's folder has gone."""
    for name in (TOKEN, LOGIN, "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    shutil.rmtree(tmp_path / "cellmeter-home", ignore_errors=True)
    wait_until(lambda: not fetchers_below(tmp_path), "the fetching processes to end")


@dataclass
class Site:
    """A Prometheus and what it scrapes."""

    gpus: Dcgm
    server: Prometheus
    config: Path

    @contextmanager
    def steady(self, gpu: int, use: float, samples: int) -> Iterator[None]:
        """What is done within sees a GPU at that use from its start; it is over so many scrapes after it is done."""
        self.gpus.use[gpu] = use
        wait_until(lambda: self.server.query(f'DCGM_FI_DEV_GPU_UTIL{{gpu="{gpu}"}} == {use}'), "a scrape", SLOW_SECONDS)
        yield
        done = self.gpus.scrapes + samples
        wait_until(
            lambda: self.gpus.scrapes > done, f"{samples} scrapes", SLOW_SECONDS
        )  # the one before is in the server


def write_config(path: Path, dcgm: str, node: str) -> Path:
    jobs = [{"job_name": name, "static_configs": [{"targets": [at]}]} for name, at in (("dcgm", dcgm), ("node", node))]
    path.write_text(json.dumps({"global": {"scrape_interval": f"{EVERY * 1000:.0f}ms"}, "scrape_configs": jobs}))
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("prometheus")
    with dcgm_exporter(Dcgm()) as gpus, node_exporter(folder) as node:
        config = write_config(folder / "prometheus.yml", gpus.address, node)
        with prometheus(config) as server:
            wait_until(lambda: server.query("rate(node_cpu_seconds_total[1m])"), "the first scrapes", SLOW_SECONDS)
            wait_until(lambda: server.query("DCGM_FI_DEV_GPU_UTIL"), "the first scrapes", SLOW_SECONDS)
            yield Site(gpus, server, config)


def fetched(folder: Path) -> Run:
    """The run, once somebody has fetched for it."""

    def look() -> Run | None:
        run = read_run(folder)
        return run if run.remote is not None and run.remote.until is not None else None

    return wait_until(look, "the fetch", SLOW_SECONDS)


def stopped(kernel: Kernel) -> Path:
    """The folder of the only run, which is over."""
    assert kernel.run("%monitor stop").status == "ok"
    (folder,) = run_folders(kernel.home / "runs")
    wait_until(lambda: has_ended(folder), "the recorder to end", SLOW_SECONDS)
    return folder


def cell_of(run: Run, text: str) -> Any:
    """What was elsewhere while the cell ran whose label this is."""
    (cell,) = (cell for cell in run.cells if cell.label == text)
    return run.remote_usage(cell)


# ---- a real kernel ---------------------------------------------------------------------------------------------------


def test_a_kernel_whose_gpus_are_elsewhere(kernel: Kernel, site: Site, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with site.steady(0, 90.0, 1):
        started = kernel.run(f"%monitor start --prometheus {site.server.url} --match '{MATCH}'")
    assert (started.status, started.stderr) == ("ok", ""), "Prometheus is there, and has what is asked for"
    with site.steady(0, 91.0, 8):
        sent = kernel.send("%%monitor train --no-chart\n" + WAIT_FOR.format(str(go)))
        wait_until(lambda: any(cell.label == "train" for cell in kernel.recorded().cells), "the cell to run")
    go.touch()
    assert kernel.reply(sent).status == "ok"
    kernel.run("%%monitor short --no-chart\n1")
    status = kernel.run("%monitor").stdout
    assert f"Prometheus           {site.server.url} {MATCH}" in status
    told = kernel.run("%monitor report")
    assert "node7:gpu0 " in told.displays[0]["data"]["text/plain"], "before the run is over, too"
    assert told.stderr == ""
    folder = stopped(kernel)
    log = whole_line(folder / reading.LOG, "the fetch at the end")
    assert "of 2 GPUs and 1 machine" in log
    run = fetched(folder)
    remote = run.remote
    assert remote is not None
    assert remote.interval("node7:gpu0") == pytest.approx(EVERY, rel=0.2)
    train, short = cell_of(run, "train"), cell_of(run, "short")
    gpu0, gpu1 = train.gpu["node7:gpu0"], train.gpu["node7:gpu1"]
    assert (gpu0.utilization_mean, gpu0.power_mean_watts) == (91.0, 70 + 5 * 91)
    assert gpu0.samples >= 7
    assert (gpu1.utilization_mean, gpu1.memory_peak_bytes) == (0.0, 1024 * 2**20)
    assert 0 < train.machines["node7"].cpu_cores_mean <= (os.cpu_count() or 1) * 1.05, (
        "it kept a core of this machine busy"
    )
    assert 0 < train.machines["node7"].memory_peak_bytes < remote.machines[0].memory_bytes
    assert remote.machines[0].cpu_count == os.cpu_count()
    assert short.machines["node7"].cpu_cores_mean is None
    assert "scrape interval" in short.unknown["machines.node7.cpu_cores_mean"]
    # what is in the file is what Prometheus has, with its own times
    (vector,) = site.server.query('DCGM_FI_DEV_GPU_UTIL{gpu="0"}[1h]')
    truth = {round(t - run.epoch(0.0), 3): float(value) for t, value in vector["values"]}
    series = run.series("gpu.utilization", "node7:gpu0")
    times = [round(t, 3) for t in series.time]
    assert len(times) > 8
    assert all(min(abs(t - other) for other in truth) < 0.1 for t in times)
    assert set(series.values) <= set(truth.values())


def test_it_goes_on_where_it_left_off(kernel: Kernel, site: Site, home: Path) -> None:
    """Asked again, only what is missing is fetched, and nothing is there twice."""
    kernel.run(f"%monitor start --prometheus {site.server.url} --match '{MATCH}'")
    kernel.recorded_cells(1)
    (folder,) = run_folders(home / "runs")
    first = fetching.fetch(folder, None, 60).run.remote
    with site.steady(0, 77.0, 4):
        pass
    second = fetching.fetch(folder, None, 60).run.remote
    assert first is not None and second is not None  # noqa: PT018
    assert second.sample_count > first.sample_count
    for key, readings in first.readings.items():
        both = dict(zip(second.readings[key].time, second.readings[key].values, strict=True))
        assert all(abs(both[t] - v) < 1e-6 for t, v in zip(readings.time, readings.values, strict=True))
        assert (second.readings[key].time[1:] > second.readings[key].time[:-1]).all()
    kernel.run("%monitor stop")
    fetched(folder)


def test_a_run_that_was_not_started_with_it_is_joined_later(
    kernel: Kernel, site: Site, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with site.steady(1, 33.0, 5):
        kernel.run("%%monitor later --no-chart\nimport time\ntime.sleep(1.2)")
    folder = stopped(kernel)
    assert read_run(folder).remote is None
    assert main(["fetch", str(folder)]) == 2
    assert "names no Prometheus" in capfd.readouterr().err
    assert main(["fetch", str(folder), "--prometheus", site.server.url, "--match", MATCH]) == 0
    assert "of 2 GPUs and 1 machine" in capfd.readouterr().err
    assert cell_of(read_run(folder), "later").gpu["node7:gpu1"].utilization_mean == 33.0
    # another selector takes the place of the first, all of it
    assert main(["fetch", str(folder), "--prometheus", site.server.url, "--match", '{job="node"}']) == 0
    run = read_run(folder)
    assert run.remote is not None
    assert (run.remote.devices, run.remote.match) == ((), '{job="node"}')
    assert [machine.id for machine in run.remote.machines] == ["127.0.0.1"]


def test_a_script_and_its_cell(script: Callable[..., subprocess.Popen[str]], site: Site, home: Path) -> None:
    code = f"import cellmeter\ncellmeter.start(prometheus={site.server.url!r}, match={MATCH!r})\nprint('on', flush=1)\ninput()"
    with site.steady(0, 64.0, 1):
        process = script(code)
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
    with site.steady(0, 65.0, 5):
        pass
    _, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, errors) == (0, "")
    run = fetched(run_folders(home / "runs")[0])
    usage = run.remote_usage(run.cells[0])
    assert usage is not None
    assert 64.0 <= (usage.gpu["node7:gpu0"].utilization_mean or 0) <= 65.0


def test_a_prometheus_that_was_down_at_the_end(
    kernel: Kernel, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It goes and comes again in the middle and is down at the end; nothing that it has seen is lost."""
    port = free_port()
    (tmp_path / "p").mkdir()
    with dcgm_exporter(Dcgm()) as gpus:
        config = write_config(tmp_path / "p" / "prometheus.yml", gpus.address, f"127.0.0.1:{free_port()}")
        site = Site(gpus, Prometheus(f"http://127.0.0.1:{port}"), config)
        with prometheus(config, port) as server:
            with site.steady(0, 10.0, 1):
                assert kernel.run(f"%monitor start --prometheus {server.url} --match '{{job=\"dcgm\"}}'").stderr == ""
            with site.steady(0, 20.0, 4):
                kernel.run("%%monitor before --no-chart\nimport time\ntime.sleep(1)")
        with prometheus(config, port), site.steady(0, 30.0, 4):
            kernel.run("%%monitor after --no-chart\ntime.sleep(1)")
        folder = stopped(kernel)
        log = whole_line(folder / reading.LOG, "word of the failure")
        assert "cannot be asked" in log
        assert main(["report", str(folder)]) == 0, "the report is made of what there is"
        said = capfd.readouterr()
        assert said.err.count("\n") == 1
        assert "cannot be asked: Connection refused" in said.err
        assert "cellmeter report" in said.out
        with prometheus(config, port):
            assert main(["report", str(folder)]) == 0
            said = capfd.readouterr()
            assert said.err == ""
            assert "node7:gpu0" in said.out
        run = fetched(folder)
        assert cell_of(run, "before").gpu["node7:gpu0"].utilization_mean == 20.0
        assert cell_of(run, "after").gpu["node7:gpu0"].utilization_mean == 30.0


# ---- servers that fail -----------------------------------------------------------------------------------------------


def start_with(kernel: Kernel, url: str, match: str = MATCH) -> tuple[Reply, Reply]:
    """What starting said, and the next cell."""
    told = kernel.run(f"%monitor start --prometheus {url} --match '{match}'")
    return told, kernel.run("print('the cell ran')")


def answered(data: Any) -> Answer:
    return Answer(200, json.dumps({"status": "success", "data": data}).encode())


def error(code: int, text: str) -> Answer:
    return Answer(code, json.dumps({"status": "error", "errorType": "x", "error": text}).encode())


FAILURES: dict[str, tuple[Answer, str]] = {
    "500": (error(500, "disk on fire"), "failed: HTTP 500 disk on fire"),
    "500 of a proxy": (Answer(502, b"<html>Bad gateway"), "failed: HTTP 502 Bad Gateway"),
    "wrong token": (Answer(401, b"no"), f"lets us not in (401): set {TOKEN}"),
    "a web site": (Answer(200, b"<html>welcome"), "is no Prometheus"),
    "another site": (Answer(404, b"gone"), "is no Prometheus: it has no /api/v1"),
    "other JSON": (Answer(200, b'{"status":"success","data":{"a":[1]}}'), "is no Prometheus"),
    "redirect": (Answer(302, b"", {"Location": "https://u:secret@login/?t=secret"}), "sends us on to https://login/"),
    "part of it": (
        Answer(200, b'{"status":"success","data":[],"warnings":["store 2 is away"]}'),
        "told only part of it: ['store 2 is away']",
    ),
    "nothing": (answered([]), "knows now of no dcgm-exporter or node_exporter"),
    "too many": (
        answered(
            [{"__name__": "DCGM_FI_DEV_GPU_UTIL", "instance": f"n{i % 300}:1", "gpu": str(i)} for i in range(5000)]
        ),
        "10000 series of 300 machines (n0, n1, n10, n100 …)",
    ),
}


def test_a_server_that_fails_is_one_line(kernel: Kernel, home: Path) -> None:
    for what, (answer, line) in FAILURES.items():
        print(what)  # shown if it fails
        kernel.run("%monitor stop")
        starts_with_a_server_that_fails(kernel, answer, line, noted=what == "nothing")


def starts_with_a_server_that_fails(kernel: Kernel, answer: Answer, line: str, *, noted: bool) -> None:
    with serving(lambda request: answer) as url:
        told, after = start_with(kernel, url)
        assert (told.status, after.status, after.stdout) == ("ok", "ok", "the cell ran\n")
        assert "recording" in told.stdout
        assert line in told.stderr
        assert told.stderr.count("\n") == 1
        assert "secret" not in told.stderr
        assert after.stderr == ""
        report = kernel.run("%monitor report")
        assert "cellmeter report" in report.displays[0]["data"]["text/plain"]
        assert report.stderr.count("\n") == (not noted)
        assert "secret" not in report.stderr


def test_a_server_that_is_down_is_one_line(kernel: Kernel) -> None:
    told, after = start_with(kernel, f"http://127.0.0.1:{free_port()}")
    assert (told.status, after.stdout) == ("ok", "the cell ran\n")
    assert told.stderr.count("\n") == 1
    assert "cannot be asked: Connection refused; it is asked again when the run is over" in told.stderr
    report = [kernel.run("%monitor report").stderr for _ in range(2)]
    assert [line.count("cannot be asked") for line in report] == [1, 1], "each time, as it is asked each time"


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_says_nothing_holds_nobody_up(kernel: Kernel, silent: str) -> None:
    told, after = start_with(kernel, silent)
    assert (told.status, after.stdout) == ("ok", "the cell ran\n")
    assert told.stderr.count("\n") == 1
    assert "has not answered" in told.stderr
    run = kernel.recorded_cells(2)
    (start,) = (cell for cell in run.cells if cell.first_line.startswith("%monitor start"))
    assert start.seconds is not None
    assert start.seconds < 2 * reading.PROBE_SECONDS + 1


def test_a_server_that_dribbles_is_slow_too() -> None:
    """Each piece comes in time, the whole never does."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def dribble() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not over.wait(0.02):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=dribble)
        thread.start()
        source = source_of(f"http://127.0.0.1:{listening.getsockname()[1]}", MATCH)
        try:
            with pytest.raises(FetchFailed, match="has not answered in time"):
                asking.series(source, 'a="b"', 0, 1, time.monotonic() + 0.3)
        finally:
            over.set()
            thread.join()


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MOST_BYTES", 1000)
    with (
        serving(lambda request: Answer(200, b" " * 200_000)) as url,
        pytest.raises(asking.TooMuch, match="narrow --match"),
    ):
        asking.series(source_of(url, MATCH), 'a="b"', 0, 1, time.monotonic() + 10)


def test_what_the_server_does_not_take_is_bad_use(kernel: Kernel, site: Site, home: Path) -> None:
    told, after = start_with(kernel, site.server.url, '{job=~"["}')
    assert told.status == "error"
    assert "does not take it" in told.stderr
    assert told.stderr.count("\n") == 1
    assert after.stdout == "the cell ran\n"
    typed = kernel.run("%monitor start --prometheus ftp://ada:secret@host --match '{a=\"b\"}'")
    assert "no address of a server" in typed.stderr
    assert "secret" not in typed.stderr
    assert "goes with --prometheus" in kernel.run("%monitor start --match '{a=\"b\"}'").stderr
    assert "say which machines" in kernel.run(f"%monitor start --prometheus {site.server.url}").stderr
    assert len(run_folders(home / "runs")) == 1, "and recording goes on"
    assert not (run_folders(home / "runs")[0] / FILE).exists()


def test_a_fetch_that_breaks_off_goes_on_there(
    kernel: Kernel, site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before the server failed is kept; the next fetch asks for the rest alone."""
    monkeypatch.setattr(fetching, "LEAST_CHUNK_SECONDS", 0.5)
    monkeypatch.setattr(fetching, "MOST_CHUNK_SECONDS", 0.5)
    with site.steady(0, 55.0, 8):
        kernel.run("import time\ntime.sleep(2)")
    folder = stopped(kernel)
    ask, asked = asking.samples, []

    def failing(source: Any, matcher: str, start: float, end: float, deadline: float) -> Any:
        asked.append(end)
        if len(asked) == 4:
            raise FetchFailed("it broke off")
        return ask(source, matcher, start, end, deadline)

    monkeypatch.setattr(asking, "samples", failing)
    with pytest.raises(FetchFailed, match="it broke off"):
        fetching.fetch(folder, source_of(site.server.url, MATCH), 60)
    part = read_run(folder)
    assert part.remote is not None
    assert part.remote.until == pytest.approx(0.5, abs=0.1)
    assert not part.remote.is_whole(part.duration)
    whole = fetching.fetch(folder, None, 60).run
    assert whole.remote is not None
    assert whole.remote.until == pytest.approx(whole.duration, abs=0.1)
    assert whole.remote.sample_count > part.remote.sample_count > 0
    once = fetching.fetch(folder, source_of(site.server.url, '{job=~"node|dcgm"}'), 60).run.remote
    assert once is not None
    for key, readings in once.readings.items():
        assert whole.remote.readings[key].time == pytest.approx(readings.time[: len(whole.remote.readings[key].time)])


def test_damage_is_mended_by_the_next_reader(
    kernel: Kernel, site: Site, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel.run("import time\ntime.sleep(1)")
    folder = stopped(kernel)
    fetching.fetch(folder, source_of(site.server.url, MATCH), 60)
    content = bytearray((folder / FILE).read_bytes())
    content[content.index(b'"readings"') + 60] ^= 1
    (folder / FILE).write_bytes(content)
    assert any("damaged" in notice for notice in read_run(folder).notices)
    assert main(["report", str(folder)]) == 0
    assert capfd.readouterr().err == ""
    mended = read_run(folder)
    assert mended.notices == ()
    assert mended.remote is not None
    assert not mended.remote.damaged


# ---- what is secret --------------------------------------------------------------------------------------------------


def test_no_secret_is_written_anywhere(start_kernel: Callable[..., Kernel], home: Path) -> None:
    """The server gets it, nobody else: not the run folder, the log, the report, a command line or what is printed."""
    seen: list[Request] = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        return answered([] if request.path.endswith("series") else {"resultType": "matrix", "result": []})

    with serving(answer) as url:
        kernel = start_kernel()
        kernel.load()
        address = url.replace("http://", "http://ada:sesame@")
        told = kernel.run(f"%monitor start --prometheus {address} --match '{MATCH}'")
        script = kernel.run(f"import cellmeter\ncellmeter.start(prometheus={address!r}, match={MATCH!r})")
        report = kernel.run("%monitor report")
        (folder,) = run_folders(home / "runs")
        lines = [(Path("/proc") / str(pid) / "cmdline").read_bytes() for pid in fetchers_below(home)]
        assert lines
        kernel.run("%monitor stop")
        whole_line(folder / reading.LOG, "the fetch at the end")
        fetched(folder)
    assert {request.headers.get("Authorization") for request in seen} == {"Basic YWRhOnNlc2FtZQ=="}
    said = json.dumps([vars(reply) for reply in (told, script, report)])
    assert "sesame" not in said
    assert not [line for line in lines if b"sesame" in line]
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [name for name, content in kept.items() if b"sesame" in content or b"YWRhOnNlc2FtZQ" in content] == []
    assert b"%monitor start --prometheus http://127.0.0.1" in kept["events.jsonl"], "its first line is there without it"


def test_a_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Request) -> Answer:
        return answered([]) if request.headers.get("Authorization") == "Bearer abc" else Answer(401)

    with serving(answer) as url:
        source = source_of(url, MATCH)
        with pytest.raises(FetchFailed, match=TOKEN):
            asking.series(source, 'a="b"', 0, 1, time.monotonic() + 10)
        monkeypatch.setenv(TOKEN, "abc")
        assert asking.series(source, 'a="b"', 0, 1, time.monotonic() + 10) == []


def test_what_is_asked_is_the_users_selector_with_our_names(site: Site) -> None:
    asked: list[str] = []

    def answer(request: Request) -> Answer:
        asked.extend(parse_qs(request.body.decode()).get("match[]", []))
        return answered([])

    with serving(answer) as url:
        fetching.look(source_of(url, '{ job="a", }'), 0, 1, time.monotonic() + 10)
    assert asked == [f'{{{matcher},job="a"}}' for matcher in fetching.MATCHERS]
    for query in asked:
        assert site.server.query(query) == [], "PromQL takes it"
    with pytest.raises(BadUsage, match="does not take it"):
        asking.series(source_of(site.server.url, '{a=~"("}'), 'b="c"', 0, 1, time.monotonic() + 10)


def test_the_command_says_what_it_wants(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    assert "--match SELECTOR" in capfd.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "cellmeter.cli", "fetch", "--match", "{}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "cellmeter: --match goes with --prometheus URL\n")
