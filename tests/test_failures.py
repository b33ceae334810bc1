"""What is kept of an exception, and that it costs the user nothing: no message, no reference, no code of theirs is run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Kernel, has_ended, wait_until

from cellmeter.failures import MOST_CHARACTERS, Failure, failure_of
from cellmeter.home import run_folders
from cellmeter.store import EVENTS, read_run

SECRET = "hunter2"


def an_error(name: str, *args: Any, base: type[BaseException] = Exception) -> BaseException:
    """An exception of a library that is not installed here."""
    module, _, kind = name.rpartition(".")
    made: BaseException = type(kind, (base,), {"__module__": module})(*args)
    return made


XLA, TENSORFLOW = (
    "jaxlib.xla_extension.XlaRuntimeError",
    "tensorflow.python.framework.errors_impl.ResourceExhaustedError",
)


@pytest.mark.parametrize(
    ("error", "gpu_memory"),
    [
        (an_error("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB.", base=RuntimeError), True),
        (an_error("torch.cuda.OutOfMemoryError", base=RuntimeError), True),
        (an_error("torch.AcceleratorError", "CUDA error: out of memory\nCUDA kernel errors", base=RuntimeError), True),
        (an_error("torch.AcceleratorError", "CUDA error: device-side assert triggered", base=RuntimeError), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 8 GiB total capacity"), True),
        (RuntimeError("the queue is out of memory"), False),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory: quota of somebody's service"), False),
        (an_error("cupy.cuda.memory.OutOfMemoryError", base=MemoryError), True),
        (an_error(XLA, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7 bytes.", base=RuntimeError), True),
        (an_error(XLA, "RESOURCE_EXHAUSTED: Shared memory size limit exceeded", base=RuntimeError), False),
        (an_error(XLA, "INVALID_ARGUMENT: RESOURCE_EXHAUSTED: Out of memory", base=RuntimeError), False),
        (an_error("jax.errors.JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes."), True),
        (an_error(TENSORFLOW, None, None, "OOM when allocating on device:GPU:0 by allocator GPU_0_bfc", {}), True),
        (an_error(TENSORFLOW, None, None, "OOM when allocating by allocator cpu", {}), False),
        (an_error("numba.cuda.cudadrv.driver.CudaAPIError", 2, "[2] CUDA_ERROR_OUT_OF_MEMORY"), True),
        (an_error("numba.cuda.cudadrv.driver.CudaAPIError", 1, "[1] CUDA_ERROR_INVALID_VALUE"), False),
        (MemoryError("std::bad_alloc: out_of_memory: CUDA error at: rmm/mr/device/cuda_memory_resource.hpp"), True),
        (MemoryError("std::bad_alloc"), False),
        (MemoryError(), False),
        (an_error("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 7 TiB", base=MemoryError), False),
        (KeyError("CUDA out of memory"), False),
    ],
)
def test_which_say_that_the_memory_of_a_gpu_ran_out(error: BaseException, gpu_memory: bool) -> None:
    found = failure_of(error)
    assert found is not None
    assert found.gpu_memory is gpu_memory
    kind = type(error)
    assert found.error == (kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}")


def test_a_type_of_the_users_that_is_made_from_one_counts() -> None:
    torch = type(an_error("torch.OutOfMemoryError", base=RuntimeError))
    assert failure_of(type("Ours", (torch,), {"__module__": "train"})()) == Failure("train.Ours", gpu_memory=True)


class Meta(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise OSError(SECRET)


class Nasty(RuntimeError, metaclass=Meta):
    """Fails whatever is asked of it."""

    @property
    def args(self) -> Any:
        raise AssertionError("nobody is to ask")

    def __str__(self) -> str:
        raise AssertionError("nobody is to ask")

    __repr__ = __str__

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("nobody is to ask")


class Quiet(RuntimeError):
    args = __str__ = __repr__ = Nasty.__str__  # type: ignore[assignment]


def test_it_never_fails_and_runs_nothing_of_the_exceptions() -> None:
    assert failure_of(None) is None
    assert failure_of(Nasty(SECRET)) == Failure("unknown")
    assert failure_of(Quiet("CUDA out of memory")) == Failure("test_failures.Quiet", gpu_memory=True)
    long = failure_of(an_error("x." + "y" * 999))
    assert long is not None
    assert len(long.error) == MOST_CHARACTERS


TORCH = "OutOfMemoryError = type('OutOfMemoryError', (RuntimeError,), {'__module__': 'torch'})"
FAIL = f"raise OutOfMemoryError('CUDA out of memory. {SECRET}')"


@pytest.mark.parametrize("older", [False, True])
def test_cells_of_real_kernels(older: bool, start_kernel: Callable[..., Kernel]) -> None:
    kernel = start_kernel(older=older)
    kernel.load()
    kernel.run(TORCH)
    for before in ("pass", "%%monitor\npass", "import asyncio; await asyncio.sleep(0)"):
        kernel.run(f"{before}\n{FAIL}")  # a cell's first line is kept
    for source in ("1 / 0", "x = = 1"):
        kernel.run(source)
    kernel.run(f"try:\n    {FAIL}\nexcept RuntimeError:\n    pass")
    nasty = "class Nasty(Exception):\n    def __str__(self): return 'said'\n    args = property(lambda self: 1 / 0)\n"
    assert kernel.run(f"{nasty}raise Nasty()").error == "Nasty"
    run = kernel.recorded_cells(8)
    oom = ("error", "torch.OutOfMemoryError", True)
    assert [(cell.status, cell.error, cell.gpu_memory_ran_out) for cell in run.cells] == [
        ("ok", None, False),
        oom,
        oom,
        oom,
        ("error", "ZeroDivisionError", False),
        ("error", "SyntaxError", False),
        ("ok", None, False),
        ("error", "Nasty", False),
    ]
    events = (Path(run.path) / EVENTS).read_text()
    assert SECRET not in events
    assert "CUDA out" not in events


def test_nobody_holds_the_exception(kernel: Kernel) -> None:
    """The cell's variables are held by it: a tensor would stay on the GPU."""
    kernel.run("import gc, sys, weakref\nclass Tensor: pass\nclass Oops(Exception): pass")
    kernel.run(
        "def step():\n    global seen\n    tensor = Tensor()\n    seen = weakref.ref(tensor)\n    raise Oops()\nstep()"
    )
    clean = "sys.last_type = sys.last_value = sys.last_traceback = sys.last_exc = None\n"
    clean += (
        "get_ipython().InteractiveTB.tb = get_ipython()._last_traceback = None; get_ipython().custom_exceptions = ()\n"
    )
    kernel.run(clean + "for name in ('etype', 'value', 'evalue'): get_ipython().InteractiveTB.__dict__.pop(name, None)")
    held = kernel.run("gc.collect(); print([type(x) for x in gc.get_referrers(seen())] if seen() else 'free')").stdout
    assert held == "free\n"


@pytest.mark.parametrize("started", [False, True])
def test_a_plain_script(started: bool, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(f"{'import cellmeter; cellmeter.start()' if started else ''}\n{TORCH}\n{FAIL}\n")
    command = [sys.executable, *([] if started else ["-m", "cellmeter", "record"]), str(path)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
    (folder,) = run_folders(home / "runs")
    wait_until(lambda: has_ended(folder), "its end")
    (cell,) = read_run(folder).cells
    assert (cell.status, cell.error, cell.gpu_memory_ran_out) == ("error", "torch.OutOfMemoryError", True)
