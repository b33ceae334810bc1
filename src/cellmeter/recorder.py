"""The kernel's handle on the recorder process (``child``).

The child is started by exec, never by fork alone: a fork of an 8 GiB kernel takes 100 ms and is unsafe once CUDA is up. It
detaches through an intermediate that exits, so that it is no child of the kernel (whose ``os.wait()`` would hang on it) and
not in its process group (where Jupyter's interrupt goes). It lives on until the kernel has died, to say how.

The channel is the child's standard input: one JSON object a line. The first is the :class:`Config`; then come cell edges
with the kernel's own timestamps, ``goodbye`` before an orderly end, and ``stop``.
"""

from __future__ import annotations

import json
import os
import select
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellmeter import detached
from cellmeter.clock import monotonic, monotonic_ns
from cellmeter.errors import RecorderUnavailable
from cellmeter.store import HEADER, RECORDER_LOG


@dataclass(frozen=True)
class Config:
    """What the recorder needs to know; all of it is plain JSON."""

    folder: str
    pid: int
    identity: str | None
    start_ns: int
    """When the recording was asked for, monotonic: cells begin before the recorder is there."""
    rate_hz: float
    notebook: str | None
    max_total_bytes: int
    """Older runs are removed until all together are no more than this."""
    environ: Mapping[str, str]
    """The part of the kernel's environment that says which GPUs are its own."""


class Recorder:
    """Starts the child and sends it messages. Sending never blocks: what the pipe does not take waits for the next one."""

    def __init__(self, config: Config, channel: int) -> None:
        self.config = config
        self.folder = Path(config.folder)
        self._channel: int | None = channel
        self._identity = _identity(channel)
        self._unsent: deque[bytes] = deque()
        _HANDLES.add(self)

    @classmethod
    def start(cls, config: Config) -> Recorder:
        """Starts the child and returns at once; the run folder must exist. Raises RecorderUnavailable."""
        try:
            log = Path(config.folder) / RECORDER_LOG
            channel = detached.start("cellmeter.child", [], ("pynvml", "psutil"), log, channel=True)
        except OSError as error:
            raise RecorderUnavailable(f"cannot record: the recorder did not start: {error}") from error
        assert channel is not None
        recorder = cls(config, channel)
        recorder.send(asdict(config))
        return recorder

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message, or keeps it in order until the pipe takes it. Raises RecorderUnavailable if the child is gone."""
        self._unsent.append(_line(message))
        self._push()

    def offer(self, message: Mapping[str, Any]) -> int:
        """Sends a message that may wait for another time: 0 if the pipe is full, else its length. Raises as :meth:`send`."""
        self._push()
        if self._unsent:
            return 0
        self._unsent.append(line := _line(message))
        self._push()
        return len(line)

    def _push(self) -> None:
        if self._channel is None:
            raise RecorderUnavailable("the recorder has been stopped")
        if _identity(self._channel) != self._identity:
            self._channel = None  # a cell has closed it, and its number may be a file of the user's by now
            raise RecorderUnavailable("the recorder's channel was closed from outside")
        try:
            while self._unsent:
                line = self._unsent.popleft()
                written = 0
                try:
                    written = os.write(self._channel, line)
                finally:
                    if written < len(line):
                        self._unsent.appendleft(line[written:])
        except BlockingIOError:
            return
        except OSError as error:
            raise RecorderUnavailable("the recorder has died") from error

    def alive(self) -> bool:
        """Whether the child still reads its channel."""
        if self._channel is None or _identity(self._channel) != self._identity:
            return False
        poll = select.poll()
        poll.register(self._channel, 0)
        return not any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))

    def ready(self, seconds: float) -> bool:
        """Waits until the child has written its header; False if it has not by then."""
        return wait_for(lambda: (self.folder / HEADER).exists(), seconds)

    def stop(self, seconds: float = 2.0) -> None:
        """Asks the child to write its end record and waits for that; does nothing if it is gone already."""
        if self._channel is None:
            return
        try:
            self.send({"event": "stop", "t": monotonic_ns()})
        except RecorderUnavailable:
            self.close()
            return
        wait_for(lambda: not self.alive(), seconds)
        self.close()

    def close(self) -> None:
        """Lets go of the channel; the child stays until the kernel's death."""
        if self._channel is not None:
            if _identity(self._channel) == self._identity:
                os.close(self._channel)
            self._channel = None
        _HANDLES.discard(self)


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def _identity(fd: int) -> tuple[int, int] | None:
    """What a descriptor stands for; None if it is closed."""
    try:
        stat = os.fstat(fd)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


_HANDLES: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    """A forked worker must not hold, let alone write to, the kernel's channel."""
    for recorder in list(_HANDLES):
        recorder.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_forked_child)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits until a condition holds; False if it does not by then."""
    until = monotonic() + seconds
    while not condition():
        if monotonic() > until:
            return False
        time.sleep(0.002)
    return True
