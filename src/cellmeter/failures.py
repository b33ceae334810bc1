"""How a cell failed, as far as a run may keep it: the type of the exception and whether a GPU's memory ran out.

Never its message, which may hold what is secret, and never the exception itself, which holds the cell's variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

MOST_CHARACTERS = 200  # of a name: a type is called what its maker likes


class Failure(NamedTuple):
    """The qualified name of an exception's type, and whether it says that the memory of a GPU ran out."""

    error: str
    gpu_memory: bool = False


def failure_of(error: BaseException | None) -> Failure | None:
    """What is kept of an exception; None without one. Never raises, and runs no code of the exception's."""
    try:
        if error is None:
            return None
        names = [_name(kind) for kind in type.mro(type(error))]
        texts = [arg for arg in BaseException.args.__get__(error) if type(arg) is str]  # type: ignore[attr-defined]
        return Failure(names[0], any(says(texts) for name in names if (says := _OUT_OF_GPU_MEMORY.get(name))))
    except Exception:  # a metaclass may make anything of its classes
        return Failure("unknown")


def _name(kind: type) -> str:
    """As a traceback has it: without the module where it is Python's own."""
    module, name = kind.__module__, kind.__qualname__
    if type(module) is not str or type(name) is not str:
        return "unknown"
    return (name if module in ("builtins", "__main__") else f"{module}.{name}")[:MOST_CHARACTERS]


Says = Callable[[Sequence[str]], bool]


def _always(texts: Sequence[str]) -> bool:
    return True


def _begins(*words: str) -> Says:
    return lambda texts: any(text.startswith(words) for text in texts)


def _names(word: str) -> Says:
    return lambda texts: any(word in text for text in texts)


_OF_XLA = (  # it also runs out of shared memory, which is another thing
    "RESOURCE_EXHAUSTED: Out of memory",
    "RESOURCE_EXHAUSTED: Failed to allocate",
)

# By type, what says that it is a GPU's memory. Types for all kinds of errors tell by how their messages begin.
_OUT_OF_GPU_MEMORY: Mapping[str, Says] = {
    "torch.OutOfMemoryError": _always,
    "torch.cuda.OutOfMemoryError": _always,  # PyTorch before 2.5
    "RuntimeError": _begins(
        "CUDA out of memory", "CUDA error: out of memory"
    ),  # before 1.13, and by the driver's own word
    "cupy.cuda.memory.OutOfMemoryError": _always,
    "pycuda._driver.MemoryError": _always,
    "numba.cuda.cudadrv.driver.CudaAPIError": _names("CUDA_ERROR_OUT_OF_MEMORY"),
    "tensorflow.python.framework.errors_impl.ResourceExhaustedError": _names("GPU"),
    "jaxlib.xla_extension.XlaRuntimeError": _begins(*_OF_XLA),
    "jaxlib._jax.XlaRuntimeError": _begins(*_OF_XLA),
    "jax.errors.JaxRuntimeError": _begins(*_OF_XLA),
    "MemoryError": _begins("std::bad_alloc: out_of_memory: "),  # RAPIDS; that of the machine has no such word
}
