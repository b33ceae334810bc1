"""What make says on a machine that lacks something. The machine is a PATH of fakes; .venv is never touched."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = "awk bash cat chmod cut dirname env grep head id make mkdir mktemp rm sed sh sleep sort tail tee touch tr uname"
TOO_OLD = '#!/bin/sh\ncase "$1" in --version) echo "Python 3.9.2" ;; *) exit 1 ;; esac\n'
# Debian's python3 without python3-venv: the interpreter is new enough, `import ensurepip` fails.
WITHOUT_VENV = """#!/bin/sh
case "$*" in
    *ensurepip*) echo "No module named 'ensurepip'" >&2; exit 1 ;;
    *print*) echo python3.11-venv ;;
    --version) echo "Python 3.11.2" ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """Runs make on a machine that has a shell's tools and nothing else."""
    return Machine(tmp_path)


class Machine:
    def __init__(self, folder):
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.venv = folder / "venv"
        for name in TOOLS.split():
            found = next(path for path in (Path("/usr/bin", name), Path("/bin", name)) if path.exists())
            (self.bin / name).symlink_to(found)

    def add(self, name, script):
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def run(self, *command, **environ):
        environ = {"PATH": str(self.bin), "HOME": os.devnull, "LC_ALL": "C.UTF-8"} | environ
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def make(self, *arguments, **environ):
        return self.run("make", f"VENV={self.venv}", *arguments, **environ)


def said_in_one_line(done):
    """The message, without make's own closing line."""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    return line


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_too_old_python(machine, target):
    machine.add("python3", TOO_OLD)
    done = machine.make(target)
    assert done.returncode != 0
    assert said_in_one_line(done).startswith("cellmeter: needs Python >= 3.11, found Python 3.9.2: install python3.11")
    assert not machine.venv.exists()


def test_no_python(machine):
    done = machine.make("demo")
    assert done.returncode != 0
    assert "needs Python >= 3.11, found none" in said_in_one_line(done)


def test_a_newer_python_beside_an_old_python3(machine):
    machine.add("python3", TOO_OLD)
    machine.add("python3.12", WITHOUT_VENV)  # looked at, since what is missing now is another thing
    assert "venv" in said_in_one_line(machine.make("demo"))


def test_python_without_venv(machine):
    machine.add("python3", WITHOUT_VENV)
    done = machine.make("demo")
    assert done.returncode != 0
    assert said_in_one_line(done) == (
        "cellmeter: missing on this machine: python3.11-venv (Debian, Ubuntu: sudo apt-get install python3.11-venv)"
    )
    assert not machine.venv.exists()


def test_what_is_missing_is_named_where_it_cannot_be_installed(machine):
    machine.add("id", "#!/bin/sh\necho 1000\n")
    machine.add("apt-get", "#!/bin/sh\nexit 99\n")
    done = machine.run("tools/need", "sh:dash", "chromium|google-chrome:chromium", "cc:gcc")
    assert done.returncode == 1
    assert said_in_one_line(done) == (
        "cellmeter: missing on this machine: chromium gcc (Debian, Ubuntu: sudo apt-get install chromium gcc)"
    )


def test_root_installs_what_is_missing_at_the_second_try(machine, tmp_path):
    calls = tmp_path / "calls"
    machine.add("id", "#!/bin/sh\necho 0\n")
    machine.add("sleep", "#!/bin/sh\n")
    # The mirror fails the first update; then the package brings its command.
    machine.add(
        "apt-get",
        f"""#!/bin/sh
echo "$DEBIAN_FRONTEND $*" >>{calls}
[ "$(cat {calls} | grep -c update)" = 2 ] || exit 1
case "$*" in *install*) printf '#!/bin/sh\\n' >{machine.bin}/node && chmod +x {machine.bin}/node ;; esac
""",
    )
    done = machine.run("tools/need", "node:nodejs")
    assert done.returncode == 0, done.stderr
    assert calls.read_text().splitlines() == [
        "noninteractive update",
        "noninteractive update",
        "noninteractive install -y --no-install-recommends nodejs",
    ]


def test_an_install_that_fails_is_an_error(machine):
    machine.add("id", "#!/bin/sh\necho 0\n")
    machine.add("sleep", "#!/bin/sh\n")
    machine.add("apt-get", "#!/bin/sh\necho E: no such package\nexit 100\n")
    done = machine.run("tools/need", "node:nodejs")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "cellmeter: apt-get could not install: nodejs"


@pytest.mark.parametrize(
    ("system", "said"), [("ubuntu", "-m playwright install"), ("debian", "apt-get install chromium")]
)
def test_a_browser_is_found_the_way_the_system_has_one(machine, tmp_path, system, said):
    (tmp_path / "os-release").write_text(f"ID={system}\n")
    machine.add("python", '#!/bin/sh\necho "$*"\n')
    missing = machine.run("tools/need-browser", "python", OS_RELEASE=str(tmp_path / "os-release"))
    assert said in missing.stdout + missing.stderr
    machine.add("google-chrome", "#!/bin/sh\n")
    found = machine.run("tools/need-browser", "python", OS_RELEASE=str(tmp_path / "os-release"))
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("printed", "returncode"),
    [
        ("✔ merges two windows (0.4ms)\\n✔ live.test.mjs (90ms)", 0),
        ("    ok 1 - merges two windows\\nok 1 - live.test.mjs", 0),
        ("ℹ tests 0", 1),
        ("✔ live.test.mjs (90ms)\\nℹ tests 1", 1),
        ("ok 1 - /x/live.test.mjs", 1),
        ("﹣ merges two windows (0.1ms) # SKIP", 1),
    ],
)
def test_zero_javascript_tests_fail(machine, printed, returncode):
    machine.add("npm", f"#!/bin/bash\nprintf '{printed}\\n'\n")
    done = machine.run("tools/js-test")
    assert done.returncode == returncode, done.stdout + done.stderr


def test_a_failing_javascript_test_fails(machine):
    machine.add("npm", "#!/bin/bash\necho '✔ one (1ms)'\nexit 1\n")
    assert machine.run("tools/js-test").returncode == 1


def test_help_names_every_target(machine):
    done = machine.run("make")
    named = {line.split()[1] for line in done.stdout.splitlines()}
    assert named == {"help", "demo", "lab", "test", "test-gpu", "check", "bench", "clean"}


def test_ci_stops_at_the_first_failure(machine):
    machine.add("make", '#!/bin/bash\necho "make $*"\n[ "$1" != check ]\n')
    done = machine.run(".ci/run")
    assert done.returncode != 0
    assert done.stdout == "make check\n"


@pytest.mark.parametrize(
    ("last", "status", "returncode"),
    [
        ("==== 3 passed, 1 skipped in 2.10s ====", 0, 0),
        ("==== 1 failed, 3 passed in 2.10s ====", 1, 1),
        ("==== no tests ran in 0.01s ====", 0, 1),
        ("==== 4 deselected in 0.01s ====", 0, 1),
    ],
)
def test_ci_believes_no_run_without_a_passed_test(machine, last, status, returncode):
    machine.add("make", f'#!/bin/bash\n[ "$1" = check ] && exit 0\necho "{last}"\nexit {status}\n')
    done = machine.run(".ci/run")
    assert (done.returncode != 0) == (returncode != 0)
    if returncode == 0:
        assert done.stdout.splitlines()[-1] == f"pytest: {last}"
