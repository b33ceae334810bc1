"""GPM, the profiling counters of Hopper GPUs and newer that need no profiler."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from cellmeter.run import Device
from cellmeter.sources import Notice
from cellmeter.sources.nvml import NAN, UNSUPPORTED, Link, Told, columns_of, or_else, reason

MIB = 2.0**20
# NVML gives these in MiB a second; GPM's counters cost nothing more, where nvmlDeviceGetPcieThroughput waits for 20 ms.
IN_MIB = frozenset({"gpu.pcie.sent", "gpu.pcie.received", "gpu.nvlink.sent", "gpu.nvlink.received"})


def has_gpm(nvml: Any, link: Link) -> bool:
    """Whether a GPU, or the one that a MIG instance is part of, has these counters."""
    whole = link.parent or link
    return or_else(nvml, lambda: bool(nvml.nvmlGpmQueryDeviceSupport(whole.handle).isSupportedDevice), False)


class _Sampled:
    """A GPU and its two GPM samples, none once closed; ``primed``: the first of them holds the last reading."""

    def __init__(self, link: Link, samples: list[Any]) -> None:
        self.link = link
        self.samples = samples
        self.primed = False


class NvidiaGpm:
    """How busy the multiprocessors, the tensor cores and the memory were since the last read: Hopper and newer.

    The only evidence of use on MIG instances, and the only one that tells a busy GPU from one that merely has work.
    """

    name = "gpm"
    interval = 0.2

    def __init__(self, nvml: Any, links: Sequence[Link]) -> None:
        self._nvml = nvml
        self._ids = {
            "gpu.sm.active": nvml.NVML_GPM_METRIC_SM_UTIL,
            "gpu.sm.occupancy": nvml.NVML_GPM_METRIC_SM_OCCUPANCY,
            "gpu.tensor.active": nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
            "gpu.dram.active": nvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
            "gpu.pcie.sent": nvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC,
            "gpu.pcie.received": nvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC,
            "gpu.nvlink.sent": nvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC,
            "gpu.nvlink.received": nvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC,
        }
        self.columns = tuple(column for link in links for column in columns_of(self._ids, link))
        self.notices: list[Notice] = []
        self._told = Told(self.notices)
        self._sampled = [_Sampled(link, [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]) for link in links]
        self._request = nvml.c_nvmlGpmMetricsGet_t()  # 19 kB: made once
        self._request.version = nvml.NVML_GPM_METRICS_GET_VERSION
        self._request.numMetrics = len(self._ids)
        for place, metric_id in enumerate(self._ids.values()):
            self._request.metrics[place].metricId = metric_id

    def read(self) -> list[float]:
        """One row of means since the last read, so the first is unknown."""
        row: list[float] = []
        for sampled in self._sampled:
            row += self._means(sampled) or [NAN] * len(self._ids)
        return row

    def _means(self, sampled: _Sampled) -> list[float] | None:
        if not sampled.samples:
            return None
        before, after = sampled.samples
        primed, sampled.primed = sampled.primed, False
        if not self._take(sampled.link, after):
            return None
        sampled.primed = True
        sampled.samples.reverse()
        if not primed:
            return None
        self._request.sample1, self._request.sample2 = before, after
        try:
            self._nvml.nvmlGpmMetricsGet(self._request)
        except self._nvml.NVMLError:
            return None
        return [self._value(sampled.link, place, metric) for place, metric in enumerate(self._ids)]

    def _take(self, link: Link, sample: Any) -> bool:
        whole = link.parent or link
        if link.handle is None or whole.handle is None:
            return False
        try:
            if whole is link:
                self._nvml.nvmlGpmSampleGet(whole.handle, sample)
            else:
                self._nvml.nvmlGpmMigSampleGet(whole.handle, link.gpu.gpu_instance, sample)
        except self._nvml.NVMLError as error:
            if error.value in UNSUPPORTED:
                self._told.unavailable(self._ids, link, reason(error))
            return False
        return True

    def _value(self, link: Link, place: int, metric: str) -> float:
        found = self._request.metrics[place]
        if found.nvmlReturn:
            self._told.unavailable([metric], link, reason(self._nvml.NVMLError(found.nvmlReturn)))
            return NAN
        return float(found.value) * (MIB if metric in IN_MIB else 1.0)

    def devices(self) -> list[Device]:
        """None: ``Nvidia`` lists them."""
        return []

    def close(self) -> None:
        """Gives the samples back."""
        for sampled in self._sampled:
            for sample in sampled.samples:
                or_else(self._nvml, partial(self._nvml.nvmlGpmSampleFree, sample), None)
            sampled.samples = []
