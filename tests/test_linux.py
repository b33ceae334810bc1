"""The Linux source against psutil on this machine, and against /proc and cgroup trees made of files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st

from cellmeter.metrics import SHARED_PAGES
from cellmeter.run import Limit
from cellmeter.sources.cgroup import CgroupPart, cpu_quota, find_group, limits, memory_limit
from cellmeter.sources.death import is_exiting
from cellmeter.sources.filesystems import Filesystems, mounts, working_folders
from cellmeter.sources.hub import limits_in_header
from cellmeter.sources.linux import Cores, HostPart, host, open_linux, with_device
from cellmeter.sources.portable import Portable, PortableCores, portable_host
from cellmeter.sources.pressure import PressurePart
from cellmeter.sources.proc_file import ProcFile
from cellmeter.sources.process import RESCAN_SECONDS, ProcessPart, descendants
from cellmeter.sources.tree_total import TreeTotal, Used

BUSY_CHILD = """
import sys, time
until = time.process_time() + 0.2
while time.process_time() < until: pass
block = bytearray(64 << 20)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child() -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts children that burn 0.2 s of CPU, hold 64 MiB and end when their input is closed."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-S", "-c", BUSY_CHILD]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.communicate()


GROWS = """
import sys
blocks = []
for line in sys.stdin:
    blocks.append(bytearray(32 << 20))
    print("grown", flush=True)
"""


def test_a_process_that_has_not_run_is_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did is seen at once, what others did to it within the second."""
    now, read = 0.0, []
    real = ProcFile.read
    monkeypatch.setattr(ProcFile, "read", lambda file: read.append(file) or real(file))
    command = [sys.executable, "-S", "-c", GROWS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        still = psutil.Process(process.pid)

        def grow() -> None:
            print("more", file=process.stdin, flush=True)
            assert process.stdout.readline() == "grown\n"
            wait_until(lambda: still.status() == psutil.STATUS_SLEEPING, "the process to wait for more")

        grow()
        part = ProcessPart(process.pid, clock=lambda: now)
        first = named(part)
        read.clear()
        assert named(part) == first
        assert read == []
        grow()
        assert named(part)["process.memory.rss"] >= first["process.memory.rss"] + (31 << 20)
        read.clear()
        now += RESCAN_SECONDS
        named(part)
        assert len(read) >= 3
        part.close()
        process.stdin.close()


def named(source: ProcessPart | HostPart | Portable) -> dict[str, float]:
    return dict(zip((c.metric for c in source.columns), source.read(), strict=True))


# How far two readings taken one after the other may be apart.
TOLERANCE = {"s": 0.15, "By": 48 << 20, "1": 1}


def test_linux_and_psutil_agree(child: Callable[[], subprocess.Popen[str]]) -> None:
    child()
    linux, _, cores, _ = open_linux(os.getpid())
    portable = Portable(os.getpid())
    direct = dict(zip((c.metric for c in linux.columns), linux.read(), strict=True))
    theirs = named(portable)
    after = dict(zip((c.metric for c in linux.columns), linux.read(), strict=True))
    assert list(portable.unavailable) == [SHARED_PAGES]
    units = {c.metric: c.unit for c in portable.columns}
    for metric, value in theirs.items():
        if metric == "process.tree.memory.rss":  # psutil's is an upper bound: what is shared counts for each
            assert direct["process.memory.rss"] < direct[metric] <= value + TOLERANCE["By"]
        elif not metric.startswith("host.disk"):  # psutil counts whatever /sys/block has, loops and mapped devices too
            low, high = sorted((direct[metric], after[metric]))  # other programs go on meanwhile
            slack = max(0.02 * value, TOLERANCE[units[metric]])
            assert low - slack <= value <= high + slack, metric
    before, theirs_each, then = cores.read(), PortableCores().read(), cores.read()
    assert all(a - 0.2 <= b <= c + 0.2 for a, b, c in zip(before, theirs_each, then, strict=True))
    assert (host().memory_bytes, host().cpu_count) == (portable_host().memory_bytes, portable_host().cpu_count)


def test_children_count_while_they_live_and_after(child: Callable[[], subprocess.Popen[str]]) -> None:
    part = ProcessPart(os.getpid())
    before = named(part)
    process = child()
    living = named(part)
    assert living["process.children"] == before["process.children"] + 1
    assert living["process.children.cpu.time"] >= 0.18
    assert living["process.cpu.time"] - before["process.cpu.time"] >= 0.18
    assert living["process.tree.memory.rss"] - living["process.memory.rss"] >= 64 << 20
    assert process.pid in part.pids
    process.communicate()
    after = named(part)
    assert after["process.children"] == before["process.children"]
    assert after["process.cpu.time"] >= living["process.cpu.time"]
    part.close()


def test_the_trees_time_never_falls_and_counts_nothing_twice() -> None:
    tree, worker, other = TreeTotal(0.03), Used(1, 2.0, 0.0), Used(1, 4.0, 0.0)
    assert tree.add({1: Used(0, 1.0, 0.0)}) == 1.0
    assert tree.add({1: Used(0, 1.5, 0.0), 2: worker}) == pytest.approx(3.5)
    assert tree.add({1: Used(0, 1.6, 2.0)}) == pytest.approx(3.6), "the child was waited for: its 2 s moved"
    assert tree.add({1: Used(0, 1.6, 2.0), 3: other}) == pytest.approx(7.6)
    tree.add({1: Used(0, 1.7, 2.0)})
    assert tree.add({1: Used(0, 1.8, 2.0)}) == pytest.approx(7.8), "this one left the tree: what it did stays counted"
    assert tree.add({1: Used(0, 1.9, 2.0)}) == pytest.approx(7.9)


def test_a_child_that_is_waited_for_between_two_readings_counts_once() -> None:
    tree = TreeTotal(0.03)
    tree.add({1: Used(0, 1.0, 0.0), 2: Used(1, 0.5, 0.0), 3: Used(2, 9.0, 0.0), 4: Used(2, 8.0, 0.0)})
    between = tree.add({1: Used(0, 1.0, 0.0), 2: Used(1, 0.5, 0.0)})  # 2 was read before it waited, the others after
    assert between == pytest.approx(18.5)
    assert tree.add({1: Used(0, 1.0, 0.0), 2: Used(1, 0.6, 17.01)}) == pytest.approx(18.61)
    assert tree.add({1: Used(0, 1.1, 17.62)}) == pytest.approx(18.72), "and when that one is waited for, in its turn"


def test_a_parent_that_takes_the_lost_time_of_its_children_with_it() -> None:
    tree = TreeTotal(0.03)
    tree.add({1: Used(0, 1.0, 0.0), 2: Used(1, 0.5, 0.0), 3: Used(2, 9.0, 0.0)})
    tree.add({1: Used(0, 1.0, 0.0), 2: Used(1, 0.5, 0.0)})  # 3 is gone, and 2 never waits for it
    tree.add({1: Used(0, 1.1, 0.5)})  # but is waited for
    assert tree.add({1: Used(0, 1.2, 0.5)}) == pytest.approx(10.7)


@given(st.data())
def test_the_trees_time_is_no_more_than_its_processes_used(data: st.DataObject) -> None:
    """They are read one by one, the parents first, while they work, are born, are waited for, or go without it."""
    tree, alive, used, born = TreeTotal(0.03), {1: Used(0, 0.0, 0.0)}, 0, 1

    def something_happens() -> None:
        nonlocal used, born
        pid = data.draw(st.sampled_from(sorted(alive)))
        what = data.draw(st.sampled_from(["works", "forks", "is waited for", "goes"]))
        process = alive[pid]
        if what == "works":
            amount = data.draw(st.integers(1, 50))
            alive[pid], used = process._replace(own=process.own + amount), used + amount
        elif what == "forks":
            born += 1
            alive[born] = Used(pid, 0.0, 0.0)
        elif pid != 1 and all(other.parent != pid for other in alive.values()):
            del alive[pid]
            if what == "is waited for":
                parent = alive[process.parent]
                alive[process.parent] = parent._replace(waited_for=parent.waited_for + process.all)

    total = 0.0
    for _ in range(data.draw(st.integers(1, 8))):
        row = {}
        for pid in sorted(alive):
            if pid in alive:
                row[pid] = alive[pid]
            for _ in range(data.draw(st.integers(0, 2))):
                something_happens()
        before, total = total, tree.add(row)
        assert before <= total <= used


def test_a_grandchild_belongs_to_the_tree() -> None:
    source = "import subprocess,sys; subprocess.run([sys.executable,'-S','-c','print(1,flush=True); input()'])"
    process = subprocess.Popen([sys.executable, "-S", "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    found = set(descendants(os.getpid()))
    assert {child.pid for child in psutil.Process(process.pid).children()} < found
    assert process.pid in found
    process.communicate(b"\n")


def test_own_cpu_is_finer_than_a_tick() -> None:
    part = ProcessPart(os.getpid())
    readings = {named(part)["process.cpu.time"] for _ in range(50)}
    assert len(readings) > 10
    part.close()


def test_written_bytes_are_the_processes_own(tmp_path: Path) -> None:
    part = ProcessPart(os.getpid())
    before = named(part)["process.disk.written"]
    with open(tmp_path / "file", "wb") as file:
        file.write(os.urandom(4 << 20))
        file.flush()
        os.fsync(file.fileno())
    assert named(part)["process.disk.written"] - before >= 4 << 20
    part.close()


def test_a_process_that_has_gone_is_nan_and_no_fault(child: Callable[[], subprocess.Popen[str]]) -> None:
    process = child()
    linux, *_ = open_linux(process.pid)
    process.communicate()
    row = dict(zip((c.metric for c in linux.columns), linux.read(), strict=True))
    assert math.isnan(row["process.memory.rss"])
    assert row["host.memory.used"] > 0
    assert linux.notices == []
    linux.close()


def fake_proc(root: Path, stat: str = "cpu  100 0 50 1000 0 0 10 5 0 0\n") -> Path:
    proc = root / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "stat").write_text(stat + "cpu0 60 0 20 500 0 0 5 5 0 0\ncpu1 40 0 30 500 0 0 5 0 0 0\nintr 1\n")
    (proc / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nBuffers: 1 kB\nCached: 1 kB\n"
    )
    counters = (
        " 8 0 sda 10 0 100 5 20 0 200 7 0 1 1\n 8 1 sda1 9 0 90 5 9 0 90 7 0 1 1\n 7 0 loop0 1 0 8 1 0 0 0 0 0 0 0\n"
    )
    (proc / "diskstats").write_text(counters)
    header = "Inter-| Receive | Transmit\n face |bytes\n"
    lines = "    lo: 5 0 0 0 0 0 0 0 5 0\n  eth0: 100 0 0 0 0 0 0 0 300 0\nveth1: 100 0 0 0 0 0 0 0 9 0\n"
    (proc / "net" / "dev").write_text(header + lines)
    return proc


def test_the_host_from_files(tmp_path: Path) -> None:
    part = HostPart(str(fake_proc(tmp_path)), {b"sda"})
    assert named(part) == {
        "host.cpu.time": pytest.approx(1.65),
        "host.cpu.iowait.time": 0.0,
        "host.memory.used": 600 * 1024,
        "host.disk.read": 100 * 512,
        "host.disk.written": 200 * 512,
        "host.network.received": 100,
        "host.network.sent": 300,
    }
    assert Cores(str(tmp_path / "proc")).read() == pytest.approx([0.9, 0.75])


def test_a_bond_and_a_tunnel_count_no_byte_twice(tmp_path: Path) -> None:
    names = ("lo", "eno1", "eno2", "bond0", "wg0", "br0")
    lines = "".join(f"{name}: {100 if name.startswith('eno') else 200} {'0 ' * 7}1 {'0 ' * 7}\n" for name in names)
    proc = fake_proc(tmp_path)
    (proc / "net" / "dev").write_text(f"Inter-|\n face |\n{lines}")
    for name in names:
        folder = tmp_path / "net" / name
        (folder / "device" if name.startswith("eno") else folder).mkdir(parents=True)
    part = HostPart(str(proc), (), with_device(str(tmp_path / "net")))
    assert named(part)["host.network.received"] == 200


def test_strain_from_files(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2)
    tree.write(tree.folder, cgroup__controllers="cpu memory", memory__swap__current="77\n")
    tree.write(tree.folder, cpu__pressure="some avg10=0.00 avg60=0.00 avg300=0.00 total=4000000\nfull total=1\n")
    stat = "usage_usec 1\nuser_usec 1\nsystem_usec 1\nnr_periods 50\nnr_throttled 5\nthrottled_usec 2500000\n"
    tree.write(tree.folder, cpu__stat=stat)
    (tree.proc / "loadavg").write_text("0.1 0.2 0.3 7/300 12345\n")
    (tree.proc / "pressure").mkdir()
    (tree.proc / "pressure" / "io").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\n")
    part = PressurePart(7, str(tree.proc))
    assert dict(zip((c.metric for c in part.columns), part.read(), strict=True)) == {
        "host.pressure.io.time": 1.5,
        "host.tasks.runnable": 7,
        "cgroup.pressure.cpu.time": 4.0,
        "cgroup.swap.used": 77,
        "cgroup.cpu.throttled.time": 2.5,
        "cgroup.cpu.periods": 50,
        "cgroup.cpu.throttled.periods": 5,
    }
    assert "No such file" in part.unavailable["host.pressure.memory.time"]
    part.close()


def test_a_sandbox_that_counts_nothing_is_unknown_not_zero(tmp_path: Path) -> None:
    part = HostPart(str(fake_proc(tmp_path, stat="cpu  0 0 0 0 0 0 0 0 0 0\n")), ())
    assert "host.cpu.time" not in named(part)
    assert "all zeros" in part.unavailable["host.cpu.time"]
    assert part.unavailable["host.disk.read"] == "no disk is visible here"


class Tree:
    """A faked /proc/PID and cgroup mount."""

    def __init__(self, root: Path, version: int, path: str = "/user/job", mount_root: str = "/") -> None:
        self.root, self.mount = root, root / "cgroup"
        self.proc = root / "proc"
        kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,memory,cpu,cpuacct")
        lines = f"0::{path}\n" if version == 2 else f"3:memory,cpu,cpuacct:{path}\n"
        self.folder = self.mount / path.removeprefix(mount_root if mount_root != "/" else "").strip("/")
        self.folder.mkdir(parents=True)
        (self.proc / "7").mkdir(parents=True)
        (self.proc / "7" / "cgroup").write_text(lines)
        mount = f"30 20 0:26 {mount_root} {self.mount} rw - {kind} {kind} {options}\n"
        (self.proc / "7" / "mountinfo").write_text("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mount)
        (self.proc / "7" / "limits").write_text(
            "Limit  Soft Limit\nMax address space         unlimited  unlimited bytes\n"
        )

    def write(self, folder: Path, **files: str) -> None:
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content)


def test_cgroup_v2(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2)
    tree.write(tree.folder, cgroup__controllers="cpu memory", memory__max="max\n", cpu__max="max 100000\n")
    tree.write(
        tree.folder, memory__current="5000\n", memory__stat="anon 1100\nfile 2100\nshmem 30\ninactive_file 2000\n"
    )
    tree.write(tree.folder, cpu__stat="usage_usec 2500000\nuser_usec 1\n")
    tree.write(tree.folder.parent, memory__max="4096000\n", cpu__max="150000 100000\n")
    proc = str(tree.proc)
    assert memory_limit(7, proc) == 4096000
    assert cpu_quota(7, proc) == 1.5
    part = CgroupPart(7, proc)
    assert dict(zip((c.metric for c in part.columns), part.read(), strict=True)) == {
        "cgroup.memory.used": 3000.0,
        "cgroup.memory.anon": 1130.0,
        "cgroup.cpu.time": 2.5,
    }
    part.close()


def test_pressure_is_read_once_a_second_in_a_stream_of_its_own() -> None:
    linux = open_linux(os.getpid())
    strain = {"host.tasks.runnable", "host.pressure.cpu.time"}
    assert not strain & {column.metric for column in linux.main.columns}
    assert strain & {column.metric for column in linux.pressure.columns}
    assert (linux.pressure.name, linux.pressure.interval) == ("pressure", 1.0)
    assert len(linux.pressure.read()) == len(linux.pressure.columns)
    for source in (linux.main, linux.pressure, linux.cores):
        source.close()


def test_cgroup_v1_in_a_container(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 1, path="/docker/abc", mount_root="/docker/abc")
    tree.write(tree.mount, memory__limit_in_bytes="9223372036854771712\n", memory__usage_in_bytes="900\n")
    tree.write(
        tree.mount,
        memory__stat="cache 1\ntotal_rss 500\ntotal_shmem 20\ntotal_inactive_file 100\n",
        cpuacct__usage="3000000000\n",
    )
    tree.write(tree.mount, cpu__cfs_quota_us="200000\n", cpu__cfs_period_us="100000\n")
    proc = str(tree.proc)
    assert memory_limit(7, proc) is None
    assert cpu_quota(7, proc) == 2.0
    part = CgroupPart(7, proc)
    assert part.read() == [800.0, 520.0, 3.0]
    part.close()


def test_the_machines_root_group_says_nothing_of_the_process(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2, path="/")
    tree.write(tree.folder, cgroup__controllers="cpu memory")
    assert find_group(7, "memory", str(tree.proc)) is None
    part = CgroupPart(7, str(tree.proc))
    assert (part.columns, part.read()) == ((), [])
    assert "no control group of its own" in part.unavailable["cgroup.memory.used"]


def test_the_least_limit_is_named(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2)
    tree.write(tree.folder, cgroup__controllers="cpu memory", memory__max="1000\n", cpu__max="50000 100000\n")
    proc, pid_of_nobody = str(tree.proc), 7
    (tree.proc / "7" / "limits").write_text("Max address space         2000  unlimited bytes\n")
    found = limits(pid_of_nobody, 64, 5000, proc)
    assert found == {"memory_bytes": Limit(1000.0, "cgroup"), "cpu_cores": Limit(0.5, "cgroup")}
    (tree.proc / "7" / "limits").write_text("Max address space         500  unlimited bytes\n")
    assert limits(pid_of_nobody, 64, 5000, proc)["memory_bytes"] == Limit(500.0, "rlimit")
    assert limits(os.getpid(), 10_000, 1 << 62)["cpu_cores"].source == "cpuset"


@pytest.mark.parametrize("text", ["", "2G", "0", "-1", "nan", "inf", "4000"])
def test_a_hub_that_says_nothing_less_sets_no_limit(text: str) -> None:
    held = {"memory_bytes": Limit(4000.0, "cgroup"), "cpu_cores": Limit(2.0, "cpuset")}
    environ = {"JUPYTERHUB_USER": "me", "MEM_LIMIT": text, "CPU_LIMIT": text}
    assert limits_in_header(held, environ) == {"limits": held, "held": {}}


def test_a_hubs_limits_count_where_they_are_the_least_and_only_under_a_hub() -> None:
    held = {"memory_bytes": Limit(4000.0, "cgroup"), "cpu_cores": Limit(2.0, "cpuset")}
    environ = {"JUPYTERHUB_USER": "me", "MEM_LIMIT": "3000", "CPU_LIMIT": "0.5"}
    told = limits_in_header(held, environ)
    assert told["limits"] == {
        "memory_bytes": Limit(3000.0, "JupyterHub (MEM_LIMIT)"),
        "cpu_cores": Limit(0.5, "JupyterHub (CPU_LIMIT)"),
    }
    assert told["held"] == held
    assert limits_in_header(held, {**environ, "CPU_LIMIT": "3"})["limits"]["cpu_cores"].source == "cpuset"
    assert limits_in_header(held, {**environ, "JUPYTERHUB_USER": ""}) == {"limits": held, "held": {}}


def test_without_any_cgroup_the_host_is_the_limit(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    assert limits(7, 1, 5000, str(tmp_path))["memory_bytes"] == Limit(5000.0, "host")


def test_a_child_is_seen_by_the_next_reading(child: Callable[[], subprocess.Popen[str]]) -> None:
    part = ProcessPart(os.getpid(), clock=lambda: 0.0)  # the rescan by time never comes
    part.read()
    process = child()
    assert process.pid in (part.read(), part.pids)[1]
    process.communicate()
    wait_until(lambda: process.pid not in (part.read(), part.pids)[1], "the child to be forgotten", 2)
    part.close()


def test_file_systems_are_read_by_mount_point_and_each_once(tmp_path: Path) -> None:
    assert mounts(["/", "/usr", "/proc"]) == ["/"], "/proc has no size"
    source = Filesystems(["/"])
    assert [tuple(column[:2]) for column in source.columns] == [
        ("host.filesystem.free", "/"),
        ("host.filesystem.size", "/"),
    ]
    free, size = source.read()
    assert 0 < free < size == psutil.disk_usage("/").total
    assert working_folders(os.getpid(), str(tmp_path))[0::2] == [str(Path.cwd()), str(tmp_path)]


def test_a_grandchild_is_seen_at_once_when_told_to_look(child: Callable[[], subprocess.Popen[str]]) -> None:
    command = ["bash", "-c", "read go; sleep 60 & echo $!; wait"]
    shell = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    now = 0.0
    part = ProcessPart(os.getpid(), clock=lambda: now)
    assert shell.pid in (part.read() and part.pids)
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write("\n")
    shell.stdin.flush()
    grandchild = int(shell.stdout.readline())
    now = 0.1
    part.look_again()
    assert grandchild in (part.read() and part.pids)
    part.close()
    shell.kill()
    os.kill(grandchild, 9)
    shell.communicate()


def test_a_file_system_that_does_not_answer_is_unknown(tmp_path: Path) -> None:
    source = Filesystems(["/"])
    source._mounts = [str(tmp_path / "gone")]
    assert all(math.isnan(value) for value in source.read())


def test_a_file_system_whose_server_has_gone_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    comes_back, real = threading.Event(), os.statvfs
    source = Filesystems(["/"])
    source._mounts = ["/gone", "/"]

    def statvfs(path: str) -> os.statvfs_result:
        if path == "/gone":
            comes_back.wait()
        return real("/")

    monkeypatch.setattr(os, "statvfs", statvfs)
    for told in (0, 1, 1):
        free, _, other, _ = source.read()
        assert math.isnan(free)
        assert other > 0, "the others are read all the same"
        assert len(source.notices) == told
    assert source.notices[0][2:] == ("/gone", "it does not answer")
    (waiting,) = source._unanswered.values()
    comes_back.set()
    waiting.join()
    assert source.read()[0] > 0


def test_a_process_on_its_way_out_is_known(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    for flags, exiting in ((4194560, False), (4194560 | 4, True)):
        (tmp_path / "7" / "stat").write_text(f"7 (py thon) R 1 7 7 0 -1 {flags} 0 0 0 0\n")
        assert is_exiting(7, str(tmp_path)) is exiting
    assert is_exiting(8, str(tmp_path)) is False


def test_a_thread_that_waits_for_the_disk_is_seen(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    own = Path(f"/proc/{os.getpid()}")
    (proc / "7").mkdir(parents=True)
    for name in ("stat", "statm"):
        (proc / "7" / name).write_text((own / name).read_text())
    stat = (own / "stat").read_text()
    for state, blocked in (("R", 0.0), ("D", 1.0)):
        (proc / "7" / "stat").write_text(stat[: stat.rindex(")") + 2] + state + stat[stat.rindex(")") + 3 :])
        part = ProcessPart(7, str(proc))
        row = dict(zip((c.metric for c in part.columns), part.read(), strict=True))
        assert row["process.io.blocked"] == blocked
        part.close()
