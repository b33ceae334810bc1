"""Sources read the machine. The sampler asks each for its columns once and then for one row at a time."""

from typing import NamedTuple, Protocol

from cellmeter.run import Column, Device


class Notice(NamedTuple):
    """Something a source found out while reading: ``unavailable``, ``lost`` or ``returned``, of what, and why."""

    kind: str
    metric: str | None
    subject: str
    reason: str


class Stamped(NamedTuple):
    """A row that was read by somebody else, at a time of day: microseconds since the epoch, and one float a column."""

    epoch_us: int
    values: list[float]


class Source(Protocol):
    """Reads one part of the machine.

    ``columns`` is fixed for the life of the source. ``interval`` is the least time between two reads in seconds; 0 means every
    sample, in the main stream; others are written to a stream called ``name``. ``read`` returns one float a column, NaN
    for what is unknown just now, and never raises: trouble goes into ``notices``, which the sampler drains after each read.
    """

    name: str
    interval: float
    columns: tuple[Column, ...]
    notices: list[Notice]

    def read(self) -> list[float]:
        """One row."""

    def devices(self) -> list[Device]:
        """The GPUs this source reads; empty for the others."""

    def close(self) -> None:
        """Gives back descriptors and library handles."""


class Backlog(Protocol):
    """A source of readings that were taken by others and carry their own times, such as a driver's buffer.

    It is drained every ``interval`` seconds and at the end of each cell, into a stream called ``name``.
    """

    name: str
    interval: float
    columns: tuple[Column, ...]
    notices: list[Notice]

    def drain(self) -> list[Stamped]:
        """What is new, oldest first. Never raises."""

    def devices(self) -> list[Device]:
        """None."""

    def close(self) -> None:
        """Gives back descriptors and library handles."""
