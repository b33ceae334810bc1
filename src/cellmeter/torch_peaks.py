"""PyTorch's own record of device memory, where the user has imported it: peaks between two samples of the driver's."""

from __future__ import annotations

import sys
from typing import Any

WORTH_SECONDS = 0.1  # asking costs 0.1 ms a GPU, so very short cells are not asked about


class TorchPeaks:
    """The most that PyTorch's allocator held on each GPU within a cell.

    Its mark (``torch.cuda.max_memory_allocated``) is the user's and is never reset. Where it grew in a cell, it is the cell's
    peak; else the cell stayed below an earlier one, and its own peak is unknown.
    """

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def grown(self) -> dict[str, int]:
        """Marks in bytes that grew since the last call, by the GPU's UUID as NVML writes it. Never raises.

        Nothing is imported and no CUDA context is made: without either there are none.
        """
        cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
        try:
            if cuda is None or not cuda.is_initialized():
                return {}
            marks = {_uuid(cuda, n): int(cuda.max_memory_allocated(n)) for n in range(cuda.device_count())}
        except Exception:  # whatever a half-imported or foreign torch does, it is the user's
            return {}
        grown = {uuid: mark for uuid, mark in marks.items() if uuid and mark > self._before.get(uuid, 0)}
        self._before = marks
        return grown


def _uuid(cuda: Any, ordinal: int) -> str:
    uuid = getattr(cuda.get_device_properties(ordinal), "uuid", None)  # since PyTorch 2.4
    return f"GPU-{uuid}" if uuid else ""
