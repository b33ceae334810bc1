"""The ``cellmeter`` command.

Exit codes: 0 done, 1 the notebook failed, or a server did not do its part, 2 bad use or unreadable run, 3 a finding at or above
``--fail-on``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cellmeter import __version__, remote, sending
from cellmeter.clock import wall
from cellmeter.errors import BadUsage, CellmeterError, ExportFailed, FetchFailed, MissingExtra, RunUnreadable
from cellmeter.headless import END_SECONDS, Executed, Progress
from cellmeter.home import RunInfo, find_run, find_two, list_runs, open_runs, remove_run, run_folders, runs_home
from cellmeter.now import now_of
from cellmeter.prometheus import commands as prometheus
from cellmeter.prometheus import reading
from cellmeter.run import Run
from cellmeter.settings import load_settings, missing_settings
from cellmeter.store import kernel_of, read_run
from cellmeter.words import seconds_text

if TYPE_CHECKING:
    from cellmeter.export.selection import Part
    from cellmeter.rules import Judgement

OK, FAILED, BAD_USE, FOUND = 0, 1, 2, 3
FORMATS = ("text", "html", "json", "md")
SEVERITIES = ("info", "warning", "critical")
_RUN_HELP = "a run id, an id's unique prefix, or a path (default: the newest run)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the command; returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who calls: `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of few characters gets what it can show
    options = _parser().parse_args(arguments)
    try:
        return _run_command(options)
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        _mute(sys.stdout, sys.stderr)
        return OK


def _run_command(options: argparse.Namespace) -> int:
    try:
        if (missing := missing_settings()) is not None:
            raise BadUsage(missing)
        code: int = options.command(options)
        sys.stdout.flush()
    except CellmeterError as error:
        print(f"cellmeter: {error}", file=sys.stderr)
        return FAILED if isinstance(error, ExportFailed | FetchFailed) else BAD_USE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        raise
    except (OSError, ArithmeticError, RuntimeError, ValueError) as error:
        print(f"cellmeter: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        _mute(sys.stdout)
        return BAD_USE
    return code


def _mute(*streams: TextIO) -> None:
    """What is still to be flushed at exit would only fail again."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cellmeter",
        description="The flight recorder for Jupyter notebooks: what each cell did to CPU, memory and GPU.",
    )
    parser.add_argument("--version", action="version", version=f"cellmeter {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_runs,
        _add_report,
        _add_compare,
        _add_export,
        _add_run,
        _add_record,
        _add_watch,
        _add_serve,
        _add_prometheus_config,
        _add_fetch,
        _add_doctor,
        _add_demo,
    ):
        add(commands)
    return parser


Commands = Any  # argparse keeps the type of its subparsers to itself


def _command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=run)
    return parser


def _add_runs(commands: Commands) -> None:
    parser = _command(commands, "runs", _runs, "list the recorded runs, newest first, or remove some")
    parser.add_argument("--json", action="store_true", help="as a JSON array")
    parser.usage = "cellmeter runs [-h] [--json]\n       cellmeter runs rm [-h] [--all] [RUN ...]"
    actions = parser.add_subparsers(title="commands", metavar="", prog="cellmeter runs")
    remove = _command(actions, "rm", _runs_rm, "remove runs")
    remove.add_argument("runs", nargs="*", metavar="RUN", help="a run id, an id's unique prefix, or a path")
    remove.add_argument("--all", action="store_true", help="remove every run that is not being recorded")


def _runs(options: argparse.Namespace) -> int:
    home = runs_home()
    rows = [_run_row(info) for info in list_runs(home)]
    if options.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"There are no runs yet in {home}: `cellmeter demo` makes one.")
    else:
        from cellmeter.export import running_table, runs_table

        here = platform.node()
        print("\n\n".join(filter(None, (runs_table(rows, here), running_table(rows, here)))))
    return OK


def _run_row(info: RunInfo) -> dict[str, Any]:
    run, kernel = info.run, kernel_of(info.path)
    return {
        "id": info.id,
        "started": run.started.isoformat() if run else None,
        "seconds": run.duration if run else None,
        "notebook": run.notebook if run else None,
        "script": _script(run),
        "cells": sum(cell.parent is None for cell in run.cells) if run else None,
        "ending": run.ending if run else None,
        "size_bytes": info.size_bytes,
        "problem": info.problem,
        "host": run.host.name if run else None,
        "pid": kernel[0] if kernel else None,
        "now": now_of(run, wall()) if run else None,
    }


def _script(run: Run | None) -> str | None:
    """What a script without a file is known by, ``-m package.train``: the label of its one cell, which has no ``In [n]``."""
    if run is None or run.notebook is not None or not run.cells or run.cells[0].execution_count is not None:
        return None
    return run.cells[0].label


def _runs_rm(options: argparse.Namespace) -> int:
    home = runs_home()
    if options.json:
        raise BadUsage("runs rm: --json is for the list")
    if options.all == bool(options.runs):
        raise BadUsage("runs rm: name the runs to remove, or --all")
    folders = run_folders(home) if options.all else [find_run(run, home) for run in options.runs]
    if not folders:
        print(f"there are no runs in {home}")
    for folder in dict.fromkeys(folders):
        try:
            remove_run(folder)
        except RunUnreadable as error:
            if not options.all:
                raise
            print(f"kept: {error}")
        else:
            print(f"removed {folder.name}")
    return OK


def _add_report(commands: Commands) -> None:
    parser = _command(commands, "report", _report, "say what a run's cells used, what was wasted and what to do")
    parser.add_argument("run", nargs="?", metavar="RUN", help=_RUN_HELP)
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of -o, else text")
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="write to a file")
    parser.add_argument("--fail-on", choices=SEVERITIES, help="exit with 3 if a finding is this severe, or more")


def _report(options: argparse.Namespace) -> int:
    from cellmeter import export, judge
    from cellmeter.targets import check_file, check_report

    if options.output is not None:
        (check_report if options.format is None else check_file)(options.output)
    run = _whole(find_run(options.run, runs_home()))
    judgement = judge(run)
    if options.output is None:
        print(export.render(run, options.format or "text", judgement))
    elif options.format is None:
        _write(run, options.output, judgement)
    else:
        _write_text(options.output, export.render(run, options.format, judgement))
    if options.output is not None:
        print(f"wrote {options.output}", file=sys.stderr)
    if options.fail_on:
        least = SEVERITIES.index(options.fail_on)
        if any(SEVERITIES.index(finding.severity) >= least for finding in judgement.findings):
            return FOUND
    return OK


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadUsage(f"{path} cannot be written: {error.strerror}") from None


def _write(
    run: Run, path: Path, judgement: Judgement | None = None, *, per_cell: bool = False, part: Part | None = None
) -> None:
    from cellmeter import export

    try:
        export.write(run, path, judgement, per_cell=per_cell, part=part)
    except OSError as error:
        raise BadUsage(f"{path} cannot be written: {error.strerror}") from None


def _open(reference: str | None) -> Run:
    return read_run(find_run(reference, runs_home()))


def _whole(folder: Path) -> Run:
    """The run with what a Prometheus server still has to tell of it; where that fails, a line says so."""
    if not (folder / remote.FILE).exists():
        return read_run(folder)
    from cellmeter.prometheus.fetching import brought

    return brought(folder, None, reading.READER_SECONDS, lambda line: print(f"cellmeter: {line}", file=sys.stderr))


def _add_compare(commands: Commands) -> None:
    parser = _command(
        commands, "compare", _compare, "set two runs side by side: time, CPU, memory, GPU and energy by cell"
    )
    parser.add_argument("a", metavar="BEFORE", help="the run to compare with: an id, an id's unique prefix, or a path")
    parser.add_argument("b", metavar="AFTER", nargs="?", help=_RUN_HELP)
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of -o, else text")
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="write to a file")


def _compare(options: argparse.Namespace) -> int:
    from cellmeter import export
    from cellmeter.targets import check_file

    suffix = options.output.suffix.lower() if options.output is not None else ".txt"
    if options.output is not None:
        check_file(options.output)
    before, after = find_two(options.a, options.b, runs_home())
    text = export.render_comparison(
        read_run(before), read_run(after), options.format or export.FORMAT_OF.get(suffix, suffix)
    )
    if options.output is None:
        print(text, end="")
    else:
        _write_text(options.output, text)
        print(f"wrote {options.output}", file=sys.stderr)
    return OK


def _add_export(commands: Commands) -> None:
    parser = _command(
        commands,
        "export",
        _export,
        "write a run's samples, a table of its cells, or its report to a file, or send them to MLflow or OpenTelemetry",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help=_RUN_HELP)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="the suffix chooses: .parquet .csv .jsonl .json .html .md"
    )
    parser.add_argument(
        "--per-cell", action="store_true", help="a row a cell, and not a row a reading (.parquet, .csv)"
    )
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="one JSON document a cell and finding, for log shippers; to stdout without -o",
    )
    parser.add_argument(
        "--into", type=Path, metavar="NOTEBOOK", help="write each cell's figures into an executed notebook's metadata"
    )
    parser.add_argument("--cells", metavar="N,M-K", help="only these cells, by their In [n]")
    parser.add_argument(
        "--since",
        metavar="WHEN",
        help="only what came after: 10m (2h, 1d) before the end, or a time (UTC unless it says)",
    )
    sending.add_options(parser)


def _export(options: argparse.Namespace) -> int:
    from cellmeter import export, judge
    from cellmeter.targets import TABLES, check_file

    if sending.is_wanted(options):
        sending.send(options)
        return OK
    output: Path | None = options.output
    if options.into is not None:
        return _export_into(options)
    if output is None and not options.jsonl:
        raise BadUsage("export: name a file with -o PATH, or use --jsonl to print")
    if output is not None and output.suffix.lower() not in export.suffixes() and not options.jsonl:
        raise BadUsage(f"export writes {', '.join(export.suffixes())}; {output} is none of these")
    if options.per_cell and (output is None or options.jsonl or output.suffix.lower() not in TABLES):
        raise BadUsage(
            f"export: --per-cell goes with -o X{' or X'.join(TABLES)}; other formats have a row a cell anyway"
        )
    if output is not None:
        check_file(output)
    chosen = export.selection(options.cells, options.since)
    run = _whole(find_run(options.run, runs_home()))
    part = export.part_of(run, chosen)
    if options.jsonl:
        narrow, judgement = export.narrowed(run, judge(run), part)
        text = export.render(narrow, "jsonl", judgement)
        if output is None:
            print(text, end="")
            return OK
        _write_text(output, text)
    elif output is not None:
        _write(run, output, per_cell=options.per_cell, part=part)
    print(f"wrote {output}", file=sys.stderr)
    return OK


def _export_into(options: argparse.Namespace) -> int:
    from cellmeter import export
    from cellmeter.headless import read_notebook, write_notebook

    if options.output or options.jsonl or options.per_cell or options.cells or options.since:
        raise BadUsage("export: --into takes no other option")
    run, notebook = _open(options.run), read_notebook(options.into)
    if not export.annotate(notebook, run):
        raise BadUsage(f"no cell of {options.into} is in run {run.id}: has the notebook been executed and saved?")
    write_notebook(notebook, options.into)
    print(f"wrote {options.into}", file=sys.stderr)
    return OK


def _add_run(commands: Commands) -> None:
    parser = _command(commands, "run", _run, "run a notebook without a browser and report on it")
    parser.add_argument("notebook", type=Path, metavar="NOTEBOOK")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.ipynb", help="write the executed notebook")
    parser.add_argument(
        "--report", type=Path, metavar="PATH", help="where the report goes (default: NOTEBOOK-report.html)"
    )
    parser.add_argument(
        "--metadata", action="store_true", help="write each cell's figures into the metadata of OUT.ipynb"
    )


def _run(options: argparse.Namespace) -> int:
    report = options.report or Path(f"{options.notebook.stem}-report.html")
    if options.metadata and options.output is None:
        raise BadUsage("run: --metadata goes into the executed notebook: name it with -o OUT.ipynb")
    folder = options.notebook.resolve().parent
    return _run_notebook(options.notebook, folder, options.output, report, metadata=options.metadata)


def _run_notebook(path: Path, folder: Path, output: Path | None, report: Path, *, metadata: bool = False) -> int:
    from cellmeter import export, judge
    from cellmeter.headless import execute, read_notebook, write_notebook
    from cellmeter.targets import check_file, check_report

    load_settings()  # a mistake in them is told before anything runs
    notebook = read_notebook(path)
    check_report(report)
    if output is not None:
        check_file(output)
    with _Bar() as bar:
        executed = execute(notebook, str(path.resolve()), folder, bar.show)
    run = None if executed.folder is None else _whole(executed.folder)
    judgement = None if run is None else judge(run)
    written = True
    if output is not None:
        if metadata and run is not None:
            export.annotate(executed.notebook, run, judgement)
        written = _done(output, lambda: write_notebook(executed.notebook, output))
    if run is not None:
        kept = f"the run is kept: cellmeter report {run.id} -o PATH"
        written = _done(report, lambda: _write(run, report, judgement), kept) and written
        print(export.render(run, "text", judgement))
    else:
        why = f": {executed.unrecorded}" if executed.unrecorded else ""
        print(f"cellmeter: the notebook's kernel recorded nothing, so there is no report{why}", file=sys.stderr)
    return _outcome(executed) or (OK if written else BAD_USE)


def _done(path: Path, write: Callable[[], object], otherwise: str = "", done: str = "wrote") -> bool:
    """Writes a file and says so; where that fails, says what there is ``otherwise``."""
    try:
        write()
    except CellmeterError as error:
        print(f"cellmeter: {error}{'; ' if otherwise else ''}{otherwise}", file=sys.stderr)
        return False
    print(f"{done} {path}", file=sys.stderr)
    return True


def _outcome(executed: Executed) -> int:
    if executed.lingered:
        line = f"the kernel did not end within {END_SECONDS:g} s of its last cell, so it was made to"
        print(f"cellmeter: {line}: a thread or an exit handler of the notebook holds it up", file=sys.stderr)
    if executed.failure is None:
        return OK
    print(f"cellmeter: {executed.failure}", file=sys.stderr)
    return FAILED if executed.signal is None else 128 + executed.signal


class _Bar:
    """Progress by cell on stderr: a bar in a terminal, a line a cell elsewhere."""

    def __enter__(self) -> _Bar:
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
            except ImportError as error:
                raise MissingExtra("rich", "run", "running notebooks") from error
            columns = (BarColumn(24), TextColumn("{task.completed}/{task.total} cells"), TimeElapsedColumn())
            self._bar = Progress(
                *columns, TextColumn("{task.description}"), console=Console(stderr=True), transient=True
            )
            self._task = self._bar.add_task("starting the kernel", total=1)
            self._bar.start()
        return self

    def show(self, progress: Progress) -> None:
        """One step."""
        first = progress.first_line[:60]
        if self._bar is not None:
            from rich.markup import escape

            done = progress.number - (progress.seconds is None)
            self._bar.update(self._task, total=progress.total, completed=done, description=escape(first))
        elif progress.seconds is not None:
            outcome = "FAILED" if progress.failed else seconds_text(progress.seconds)
            with contextlib.suppress(BrokenPipeError):  # the notebook goes on when nobody looks any more
                print(f"[{progress.number:>2}/{progress.total}] {outcome:>10}  {first}", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _add_record(commands: Commands) -> None:
    text = "run a Python script, or with -m a module, as python would, and report on it"
    parser = _command(commands, "record", _record, text)
    parser.add_argument("--rate", type=float, metavar="HZ", help="samples a second (default: as in the settings)")
    parser.add_argument(
        "--report", type=Path, metavar="PATH", help="write the report too: .html, .json, .md or .txt, by the suffix"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS …", help="what the script gets")


def _record(options: argparse.Namespace) -> int:
    from cellmeter import judge
    from cellmeter.export.summary import lead
    from cellmeter.record import leave_as, record
    from cellmeter.targets import check_report

    report: Path | None = options.report
    if report is not None:
        check_report(report)
    recorded = record(options.script, options.arguments, module=options.module, rate_hz=options.rate)
    if recorded.folder is None:
        print("cellmeter: nothing was recorded, so there is no report", file=sys.stderr)
        return leave_as(recorded.code)
    try:  # the exit code is the script's
        run = _whole(recorded.folder)
        judgement = judge(run)
        how = f"cellmeter report {run.id} tells more, with -o report.html as a page"
        print(f"cellmeter: {lead(run, judgement)}", file=sys.stderr)
        if report is None:
            print(f"cellmeter: {how}", file=sys.stderr)
        else:
            _done(report, lambda: _write(run, report, judgement), f"the run is kept: {how}", "cellmeter: wrote")
    except CellmeterError as error:
        print(f"cellmeter: {error}", file=sys.stderr)
    return leave_as(recorded.code)


def _add_watch(commands: Commands) -> None:
    text = "show a run live in this terminal until it ends or q is typed; without a terminal, a line a second"
    parser = _command(commands, "watch", _watch, text)
    which = "a run id, an id's unique prefix, or a path (default: the newest run that goes on, else the newest)"
    parser.add_argument("run", nargs="?", metavar="RUN", help=which)


def _watch(options: argparse.Namespace) -> int:
    from cellmeter.watch import watch

    home = runs_home()
    running = open_runs(home) if options.run is None else []
    watch(running[0] if running else find_run(options.run, home), others=running[1:])
    return OK


def _add_serve(commands: Commands) -> None:
    text = "let a Prometheus server ask what running kernels do: on this machine alone, unless you say otherwise"
    prometheus.add_options(_command(commands, "serve", prometheus.serve, text))


def _add_prometheus_config(commands: Commands) -> None:
    text = "write what a Prometheus server needs: scraping, alert rules, an Alertmanager, a Grafana dashboard"
    prometheus.add_config_options(_command(commands, "prometheus-config", prometheus.write_config, text))


def _add_fetch(commands: Commands) -> None:
    text = (
        "fetch what a Prometheus server tells of other machines from the time of a run, as far as it is not there yet"
    )
    reading.add_fetch_options(_command(commands, "fetch", reading.fetch_run, text))


def _add_doctor(commands: Commands) -> None:
    _command(commands, "doctor", _doctor, "say what can be measured on this machine, and what to do about the rest")


def _doctor(options: argparse.Namespace) -> int:
    from cellmeter.doctor import examine, report_text

    checks = examine()
    print(report_text(checks))
    return OK if all(check.state != "broken" for check in checks) else BAD_USE


def _add_demo(commands: Commands) -> None:
    parser = _command(commands, "demo", _demo, "run the demo notebook, print its summary and write report.html")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.ipynb", help="write the executed notebook")


def _demo(options: argparse.Namespace) -> int:
    static = Path(__file__).parent / "static"
    folder = static if static.is_dir() else Path(__file__).parents[2] / "notebooks"
    return _run_notebook(folder / "demo.ipynb", Path.cwd(), options.output, Path("report.html"))


if __name__ == "__main__":
    sys.exit(main())
