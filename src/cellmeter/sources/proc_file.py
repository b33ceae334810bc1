"""A small file that the system makes up anew for each reading, kept open."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
SHORT, LONG = 4096, 65536
T = TypeVar("T")


class ProcFile(Generic[T]):
    """What ``parse`` makes of a file, which it is only asked anew when the text is another: most of /proc stands still."""

    def __init__(self, path: str, parse: Callable[[bytes], T], size: int = SHORT) -> None:
        """Raises OSError. ``size``: the most that is read."""
        self._fd = os.open(path, FLAGS)
        self._parse = parse
        self._size = size
        self._text: bytes | None = None
        self._told: T

    def read(self) -> T:
        """Raises OSError, and what ``parse`` raises."""
        text = os.pread(self._fd, self._size, 0)
        if text != self._text:
            self._told = self._parse(text)
            self._text = text
        return self._told

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._fd)


def opened(path: str, parse: Callable[[bytes], T], size: int = SHORT) -> ProcFile[T] | None:
    """None if there is no such file, or none for us."""
    try:
        return ProcFile(path, parse, size)
    except OSError:
        return None
