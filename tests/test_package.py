import json
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as it would be published: built from the source archive, so that both hold what is needed."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_every_module(wheel):
    source = ROOT / "src"
    modules = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    assert "cellmeter/run.py" in modules
    assert modules <= set(wheel.namelist())


def test_wheel_holds_what_is_not_python(wheel):
    names = set(wheel.namelist())
    assert {"cellmeter/py.typed", "cellmeter/static/live.js", "cellmeter/static/demo.ipynb"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert wheel.read("cellmeter/static/live.js") == (ROOT / "js/live.js").read_bytes()
    assert wheel.read("cellmeter/static/demo.ipynb") == (ROOT / "notebooks/demo.ipynb").read_bytes()


def test_wheel_holds_nothing_else(wheel):
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"cellmeter"}
    (shared,) = [name for name in wheel.namelist() if ".data/" in name]
    assert shared.endswith(".data/data/etc/jupyter/jupyter_server_config.d/cellmeter.json")
    assert json.loads(wheel.read(shared)) == {"ServerApp": {"jpserver_extensions": {"cellmeter.server": True}}}
    assert not [name for name in wheel.namelist() if "node_modules" in name or "/tests/" in name]


def test_the_heavy_packages_are_extras(wheel):
    required = metadata(wheel).get_all("Requires-Dist")
    core = [line for line in required if "extra ==" not in line]
    assert any(line.startswith("anywidget") for line in core)
    for package in ("pandas", "pyarrow", "nbclient", "nbformat", "ipykernel"):
        assert not [line for line in core if line.startswith(package)]
        assert [line for line in required if line.startswith(package)]


def test_wheel_names_its_command_and_its_python(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "cellmeter = cellmeter.cli:main" in wheel.read(name).decode()
    assert metadata(wheel)["Requires-Python"] == ">=3.11"


def test_importing_cellmeter_imports_nothing_heavy():
    heavy = ["IPython", "anywidget", "bokeh", "ipywidgets", "numpy", "pandas", "PIL", "psutil", "pynvml"]
    program = f"import cellmeter, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_demo_notebook_is_valid_and_clean():
    path = ROOT / "notebooks/demo.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0].source == "%load_ext cellmeter"
    assert [cell.source for cell in cells[-2:]] == ["%monitor cells", "%monitor report"]
    assert not [cell.id for cell in cells if cell.outputs or cell.execution_count]
    assert json.loads(path.read_text())["nbformat_minor"] >= 5
