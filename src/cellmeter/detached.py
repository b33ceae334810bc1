"""Starts Python processes that are nobody's children: not in the kernel's tree, not in its process group.

A fork of an 8 GiB kernel takes 100 ms and is unsafe once CUDA is up, so the child is started by exec and detaches through an
intermediate that exits at once. ``python -I -S`` keeps the user's paths and site hooks out; what may be imported is handed
over.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from cellmeter.errors import RecorderUnavailable

# The first thing the child does is to detach: the kernel waits for its parent to exit, so nothing may be imported before.
_BOOTSTRAP = """
import os, sys
if os.fork():
    os._exit(0)
count = int(sys.argv[1])
sys.path[:0] = sys.argv[2 : 2 + count]
sys.argv[1:] = sys.argv[2 + count :]
from {module} import main
main()
"""


def start(
    module: str,
    arguments: Sequence[str],
    libraries: Sequence[str],
    log: Path | None,
    channel: bool,
    environ: Mapping[str, str] | None = None,
) -> int | None:
    """Runs ``main()`` of a module of this package, with ``sys.argv[1:]`` as given and these libraries importable.

    ``log``: where its stderr goes. ``channel``: returns a descriptor, non-blocking, that is its standard input.
    ``environ``: variables beside our own, for what must not stand on a command line. Returns within 20 ms. Raises OSError,
    and RecorderUnavailable where processes cannot be started at all.
    """
    if os.name != "posix":
        raise RecorderUnavailable("cannot record on Windows yet: use WSL")
    if not sys.executable:
        raise RecorderUnavailable("cannot record: this Python does not know its own executable")
    path = import_path(libraries)
    command = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP.format(module=module), str(len(path)), *path, *arguments]
    said = subprocess.DEVNULL if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if channel else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            cwd="/" if log is None else log.parent,
            env={**os.environ, **(environ or {})},
            bufsize=0,
            start_new_session=True,
        )
    finally:
        if log is not None:
            os.close(said)
    fd = None
    if child.stdin is not None:
        fd = os.dup(child.stdin.fileno())
        child.stdin.close()
        os.set_blocking(fd, False)
    child.wait()  # only the intermediate
    return fd


def import_path(libraries: Sequence[str]) -> list[str]:
    """Folders that hold this package and the libraries, as far as they are installed."""
    found = [str(Path(__file__).resolve().parent.parent)]
    for name in libraries:
        spec = find_spec(name)
        if spec is not None and spec.origin:
            origin = Path(spec.origin)
            found.append(str(origin.parent.parent if spec.submodule_search_locations else origin.parent))
    return list(dict.fromkeys(found))
