"""Whose a GPU is, by the variables that hand GPUs out. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Gpu(NamedTuple):
    """Who a GPU or MIG instance is; ``memory_bytes`` is 0 where it has none of its own.

    ``parent`` is the UUID of the GPU that a MIG instance is part of, None for a GPU.
    """

    id: str
    name: str
    uuid: str
    memory_bytes: int = 0
    power_limit_watts: float | None = None
    parent: str | None = None
    gpu_instance: int = -1
    compute_instance: int = -1


def owned(gpus: Sequence[Gpu], environ: Mapping[str, str], ordered: bool = True) -> dict[str, bool | None]:
    """Which GPUs, by id, a process with these variables was given: True, False, or None where that cannot be told.

    ``gpus`` are all that NVML shows, in its order. CUDA_VISIBLE_DEVICES decides where it is set, read as CUDA does: it stops
    at the first entry that is none, and a repeated entry leaves no GPU at all. Ordinals count in NVML's order only with
    CUDA_DEVICE_ORDER=PCI_BUS_ID or GPUs of one kind. Where it is not set, a GPU is given by a NVIDIA_VISIBLE_DEVICES that
    lists its UUID, as in a pod with a GPU limit; merely being there proves nothing, not even of the only one.
    ``ordered`` False: a GPU that came later has moved the others, so ``gpus`` is not in an order that ordinals count in.
    """
    value = environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        given = environ.get("NVIDIA_VISIBLE_DEVICES", "").split(",")
        return {gpu.id: gpu.uuid in given or None for gpu in gpus}
    tokens = [token.strip() for token in value.split(",")]
    if tokens[0].startswith(("GPU-", "MIG-")):
        return _owned_by_uuid(gpus, tokens)
    return _owned_by_ordinal(gpus, tokens, environ.get("CUDA_DEVICE_ORDER"), ordered)


def _owned_by_uuid(gpus: Sequence[Gpu], tokens: Sequence[str]) -> dict[str, bool | None]:
    listed: list[Gpu] = []
    for token in tokens:
        named = [gpu for gpu in gpus if _names(token, gpu)]
        if len(named) != 1 or token[:4] != tokens[0][:4]:
            break
        listed += named
    if len(set(listed)) != len(listed):
        listed = []
    # Of a GPU that MIG divides, CUDA takes one instance: which, and who has the rest, cannot be told.
    divided = {gpu.parent for gpu in gpus if gpu.parent}
    touched = divided & {gpu.parent or gpu.uuid for gpu in listed}
    whole = {gpu.uuid for gpu in listed if gpu.uuid in divided}
    unclear = {gpu for gpu in gpus if gpu.uuid in touched or gpu.parent in whole}
    return {gpu.id: None if gpu in unclear else gpu in listed for gpu in gpus}


def _names(token: str, gpu: Gpu) -> bool:
    """Whether an entry means a GPU: a UUID, possibly cut short, or the older form of a MIG instance's name."""
    return gpu.uuid.startswith(token) or token == f"MIG-{gpu.parent}/{gpu.gpu_instance}/{gpu.compute_instance}"


def _owned_by_ordinal(
    gpus: Sequence[Gpu], tokens: Sequence[str], order: str | None, ordered: bool
) -> dict[str, bool | None]:
    whole = [gpu for gpu in gpus if gpu.parent is None]
    ordinals = _ordinals(tokens, len(whole))
    if not ordinals:
        return {gpu.id: False for gpu in gpus}
    if len(whole) < len(gpus):  # CUDA counts MIG instances in a way of its own
        return {gpu.id: None for gpu in gpus}
    same_order = ordered and (order == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) == 1)
    if not same_order and len(ordinals) < len(gpus):
        return {gpu.id: None for gpu in gpus}
    return {gpu.id: place in ordinals for place, gpu in enumerate(gpus)}


def _ordinals(tokens: Sequence[str], count: int) -> list[int]:
    """The entries up to the first that is no ordinal below ``count``; none if one is repeated."""
    ordinals: list[int] = []
    for token in tokens:
        number = re.match(r"\+?\d+", token)
        if number is None or int(number[0]) >= count:
            break
        ordinals.append(int(number[0]))
    return ordinals if len(set(ordinals)) == len(ordinals) else []
