"""A plain script as one cell of a run: what ``cellmeter.start()`` begins, and the script's side of ``cellmeter record``.

``cellmeter record`` starts a Python of its own for the script, whose ``-c`` is :data:`BOOTSTRAP`: that makes its ``__main__``
what it would be under plain ``python``, and runs the script's code in it. From there on everything is the interpreter's own
doing: how it exits, what it prints of an exception, threads, ``atexit``, the workers of ``multiprocessing``.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, TracebackType
from typing import NamedTuple

from cellmeter import own
from cellmeter.alerts import Budget
from cellmeter.clock import monotonic_ns
from cellmeter.errors import CellmeterError, RecorderUnavailable
from cellmeter.failures import Failure, failure_of
from cellmeter.lookout import Lookout
from cellmeter.recording import OpenCell, Recording
from cellmeter.run import CellStatus
from cellmeter.settings import checked_rate, load_settings, missing_settings
from cellmeter.store import is_of_script, kernel_of

# No name may be left behind, as all is done in the module that the script runs in. The folder that -c puts first is not plain
# python's; the module's frame ends the traceback, so that a bare ``raise`` adds none.
BOOTSTRAP = """
try:
    __import__("sys").flags.safe_path or __import__("sys").path.pop(0)
    exec(__import__("cellmeter.script", fromlist=["begin"]).begin())
except BaseException:
    __import__("cellmeter.script", fromlist=["failed"]).failed(__import__("sys").exception())
    raise
"""


class _Recorded(NamedTuple):
    """What is being recorded of this process. ``whole``: its end is the run's end, and the recorder waits to see it."""

    recording: Recording
    cell: OpenCell
    pid: int
    whole: bool


_now: _Recorded | None = None
_status: CellStatus | None = None
_failure: Failure | None = None
lookout = Lookout(lambda line: print(f"cellmeter: {line}", file=sys.stderr))


def start(
    rate_hz: float | None, budget: Budget | None, name: str | None = None, *, whole: bool = False
) -> Recording | None:
    """Records this process as one cell, called ``name`` or by its script; gives back the recording there is, if there is one.

    That keeps its rate, and says so where another is asked for; a budget holds for either.
    A process that a recorded script has started is part of that run (``whole``: it is not), and so is a worker of
    ``multiprocessing`` that runs a recorded module again: None.
    Raises BadUsage and RecorderUnavailable.
    """
    global _now
    if rate_hz is not None:
        checked_rate(rate_hz)
    if _now is not None:
        if _now.pid == os.getpid():
            _go_on(_now, rate_hz, budget)
        return _now.recording
    if _is_worker() or (not whole and _above_is_script()):
        return None
    settings = load_settings()
    if (missing := missing_settings()) is not None:
        print(f"cellmeter: {missing}: recording with the defaults", file=sys.stderr)
    if rate_hz is not None:
        settings = replace(settings, rate_hz=rate_hz)
    script = os.path.abspath(sys.argv[0]) if name is None and sys.argv and sys.argv[0] else None
    recording = Recording.start(settings, script, script=True)
    # a script is one cell: it is sampled at the full rate, and has a row of its own in the report
    cell = recording.cell_started("", label=name or (Path(script).name if script else "script"))
    _now = _Recorded(recording, cell, os.getpid(), whole)
    lookout.budget = budget
    lookout.follow(recording)
    lookout.cell_began(cell.seq)
    atexit.register(_at_exit)
    return recording


def _go_on(now: _Recorded, rate_hz: float | None, budget: Budget | None) -> None:
    if budget is not None:
        lookout.set_budget(budget)
    if (kept := now.recording.keeps_rate(rate_hz)) is not None:
        how = f"cellmeter record --rate {rate_hz:g} sets it" if now.whole else "cellmeter.stop() first"
        print(f"cellmeter: {kept}: {how}", file=sys.stderr)


def _is_worker() -> bool:
    """Whether a process above this one is recorded, which has started this one by multiprocessing."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:
        return False
    # while a worker imports the script anew, it does not know its parent yet
    imports = getattr(multiprocessing.current_process(), "_inheriting", False)
    return (imports or multiprocessing.parent_process() is not None) and own.run_above() is not None


def _above_is_script() -> bool:
    """Whether a script above this process is recorded, as a launcher of several is."""
    above = own.run_above()
    if above is None or not is_of_script(above):
        return False
    recorded = kernel_of(above)
    return recorded is not None and recorded[0] != os.getpid()  # one of our own may be about to end


def stop(status: CellStatus = "ok", failure: Failure | None = None) -> None:
    """Stops what :func:`start` started; does nothing if nothing is recorded, or in a forked child."""
    global _now
    ended, _now = _now, None
    if ended is None or ended.pid != os.getpid():
        return
    atexit.unregister(_at_exit)
    _end_cell(ended, status, failure)
    ended.recording.stop()


def _end_cell(ended: _Recorded, status: CellStatus, failure: Failure | None) -> None:
    lookout.cell_over(ended.cell.seq, status)
    try:
        ended.recording.cell_ended(ended.cell, status, failure=failure)
    except RecorderUnavailable:
        return
    finally:
        lookout.cell_ended(ended.cell.seq)
        lookout.follow(None)


def _at_exit() -> None:
    if _now is None or not _now.whole or _now.pid != os.getpid():
        stop(
            _status or _status_of(getattr(sys, "last_type", None)),
            _failure or failure_of(getattr(sys, "last_value", None)),
        )
        return
    _end_cell(_now, _status or "ok", _failure)
    own.flush()
    try:
        _now.recording.say({"event": "goodbye", "t": monotonic_ns(), "how": "exit"})
    except RecorderUnavailable:
        return


def _status_of(uncaught: type[BaseException] | None) -> CellStatus:
    if uncaught is None:
        return "ok"
    return "interrupted" if issubclass(uncaught, KeyboardInterrupt) else "error"


# ---- under ``cellmeter record`` --------------------------------------------------------------------------------------


def begin() -> CodeType:
    """Makes ``__main__``, ``sys.argv`` and ``sys.path`` the script's, starts recording and gives back its code.

    ``sys.argv``: ``-c``, the rate or nothing, ``-m`` or nothing, the script or module, its arguments. Raises what plain
    ``python`` would raise; a failure to record is one line, and the script runs.
    """
    _, rate, module, target, *_rest = sys.argv
    del sys.argv[:3]
    try:
        start(float(rate) if rate else None, None, f"-m {target}" if module else None, whole=True)
    except CellmeterError as error:
        print(f"cellmeter: {error}", file=sys.stderr)
    return _module_code(target) if module else _script_code(target)


def _script_code(path: str) -> CodeType:
    main, file = sys.modules["__main__"], os.path.abspath(path)
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    main.__file__ = file
    main.__cached__ = None  # type: ignore[attr-defined]
    main.__loader__ = SourceFileLoader("__main__", file)
    return compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)


def _module_code(name: str) -> CodeType:
    main = sys.modules["__main__"]
    sys.argv[0] = "-m"  # as plain python has it while it looks
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    spec = _found(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    code = spec.loader.get_code(spec.name) if spec is not None and spec.loader is not None else None  # type: ignore[attr-defined]
    if spec is None or not isinstance(code, CodeType):
        raise SystemExit(f"{sys.executable}: No module named {name}")
    main.__file__ = spec.origin
    main.__cached__ = spec.cached  # type: ignore[attr-defined]
    main.__loader__, main.__spec__, main.__package__ = spec.loader, spec, spec.parent
    sys.argv[0] = spec.origin or name
    return code


def _found(name: str) -> ModuleSpec | None:
    """Raises SystemExit in the words of plain python where a package on the way to it is not there."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        why = f"{type(error).__name__}: {error}"
        raise SystemExit(f"{sys.executable}: Error while finding module specification for {name!r} ({why})") from None


def failed(error: BaseException | None) -> None:
    """Notes how the script ended, and takes our frames off its traceback."""
    global _status, _failure
    if error is None:
        return
    _status = ("error" if error.code else "ok") if isinstance(error, SystemExit) else _status_of(type(error))
    _failure = None if _status == "ok" else failure_of(error)
    error.__traceback__ = _of_the_script(error.__traceback__)


def _of_the_script(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_code.co_filename in ("<string>", __file__):
        traceback = traceback.tb_next
    return traceback
