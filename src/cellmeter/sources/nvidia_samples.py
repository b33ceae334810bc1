"""The driver's own samples of utilisation: taken about six times a second whoever asks, and kept for some 16 seconds.

They cover what the recorder's own samples do not: the cell that was shorter than its interval, and time in which the recorder
got no CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellmeter.run import Device
from cellmeter.sources import Notice, Stamped
from cellmeter.sources.nvml import NAN, UNSUPPORTED, Link, Told, columns_of, reason

METRIC = "gpu.utilization.driver"


class NvidiaSamples:
    """Drains the buffer of every whole GPU. MIG instances have none.

    ``newest_us`` has the time of the newest sample of each GPU, by UUID, that was drained before; it is kept up to date.
    """

    name = "gpu-driver"
    interval = 5.0

    def __init__(self, nvml: Any, links: Sequence[Link], newest_us: dict[str, int]) -> None:
        self._nvml = nvml
        self._links = list(enumerate(link for link in links if link.parent is None))
        self._newest_us = newest_us
        self.columns = tuple(column for _, link in self._links for column in columns_of([METRIC], link))
        self.notices: list[Notice] = []
        self._told = Told(self.notices)

    def drain(self) -> list[Stamped]:
        """What is new since the last time, oldest first, each sample in a row of its own; of a GPU at first nothing.

        What its buffer held before it was recorded belongs to nobody.
        """
        return sorted(row for place, link in list(self._links) for row in self._drained(place, link))

    def _drained(self, place: int, link: Link) -> list[Stamped]:
        if link.handle is None:
            return []
        fresh = link.gpu.uuid not in self._newest_us
        newest = self._newest_us.setdefault(link.gpu.uuid, 0)
        try:
            _, samples = self._nvml.nvmlDeviceGetSamples(link.handle, self._nvml.NVML_GPU_UTILIZATION_SAMPLES, newest)
        except self._nvml.NVMLError as error:
            if error.value in UNSUPPORTED:
                self._links.remove((place, link))
                self._told.unavailable([METRIC], link, reason(error))
            return []  # NOT_FOUND is what the driver says when there is nothing new; Nvidia tells of lost ones
        rows = []
        for sample in samples:
            if sample.timeStamp > newest:
                newest = sample.timeStamp
                values = [NAN] * len(self.columns)
                values[place] = float(sample.sampleValue.uiVal)
                rows.append(Stamped(sample.timeStamp, values))
        self._newest_us[link.gpu.uuid] = newest
        return [] if fresh else rows

    def devices(self) -> list[Device]:
        """None: ``Nvidia`` lists them."""
        return []

    def close(self) -> None:
        """Nothing to give back."""
