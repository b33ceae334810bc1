"""What all reports say, before any of them gives it a form: the headline, a row a cell, the facts of the run."""

from __future__ import annotations

import re
import signal
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.charts import format_of
from cellmeter.rules.memory import RSS, TREE, memory_under_limit
from cellmeter.rules.observed import readings_of
from cellmeter.rules.scripts import is_script
from cellmeter.rules.units import MIB, UNKNOWN, bytes_text, cores_text, joules_text, percent_text, seconds_text
from cellmeter.run import known

if TYPE_CHECKING:
    from cellmeter.costs import Costs
    from cellmeter.rules import Checked, Finding, Judgement
    from cellmeter.run import Cell, CellUsage, Device, Run
    from cellmeter.sizing import Size

FINDINGS_SHOWN = 10
CELLS_SHOWN = 40
ROUTINE_SECONDS = 1.0

NOTES_TITLE = "Worth knowing"
SIZES_TITLE = "Right size, so that the work fills 70 % of it"

NUMBERED = re.compile(r"In \[\d+\]|cell #\d+")
SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")

CELL_HEADERS = ("Cell", "Duration", "CPU", "Peak memory", "Growth", "GPU", "Energy", "Status")
WITH_WORKERS = "With workers"
NOTABLE_SHARE, NOTABLE_BYTES = 1.05, 32 * MIB  # what workers add to the kernel's own memory, to be worth a word
NOTABLE_DISK = 10 * MIB


@dataclass(frozen=True)
class CellRow:
    """One cell in numbers. None: unknown. ``gpu_percent`` is the mean over the GPUs that may be the kernel's."""

    seq: int
    title: str
    first_line: str
    status: str
    seconds: float
    cpu_seconds: float | None
    cores: float | None
    peak_bytes: int | None
    peak_exact: bool
    growth_bytes: int | None
    gpu_percent: float | None
    energy_joules: float | None
    tree_bytes: float | None = None
    """The highest sample of the kernel and its workers, and no less than the kernel's own peak."""
    read_bytes: int | None = None
    written_bytes: int | None = None

    @property
    def name(self) -> str:
        """What it is called, and what stands in it where that is only a number."""
        return f"{self.title}  {self.first_line}" if NUMBERED.fullmatch(self.title) else self.title

    def short_name(self, most: int) -> str:
        """The name in at most so many characters."""
        return self.name if len(self.name) <= most else f"{self.name[: most - 1]}…"

    def text(self, column: str) -> str:
        """One of the columns of :func:`cell_columns` in words."""
        if column == WITH_WORKERS:
            return "" if self.workers_bytes is None else bytes_text(self.workers_bytes)
        disk = {"Read": self.read_bytes, "Written": self.written_bytes}
        return bytes_text(disk[column]) if column in disk else self.texts()[CELL_HEADERS.index(column)]

    @property
    def workers_bytes(self) -> float | None:
        """The peak with workers; None where they add too little to be said, or that is unknown."""
        return self.tree_bytes if notably_more(self.tree_bytes, self.peak_bytes) else None

    def texts(self) -> tuple[str, ...]:
        """The row in words, in the order of ``CELL_HEADERS``."""
        at_least = "" if self.peak_exact or self.peak_bytes is None else "≥ "
        growth = bytes_text(self.growth_bytes)
        return (
            self.title,
            seconds_text(self.seconds),
            cores_text(self.cores),
            at_least + bytes_text(self.peak_bytes),
            f"+{growth}" if self.growth_bytes and self.growth_bytes > 0 else growth,
            percent_text(self.gpu_percent),
            joules_text(self.energy_joules),
            self.status,
        )


def cell_columns(run: Run, rows: Sequence[CellRow]) -> list[str]:
    """The columns worth showing: none about GPUs without one, about workers and disks only where they did something."""
    idle = set() if run.devices else {"GPU", "Energy"}
    columns = [name for name in CELL_HEADERS if name not in idle]
    if any(row.workers_bytes is not None for row in rows):
        columns.insert(columns.index("Peak memory") + 1, WITH_WORKERS)
    disk = {"Read": [row.read_bytes for row in rows], "Written": [row.written_bytes for row in rows]}
    done = [name for name, counts in disk.items() if any((count or 0) >= NOTABLE_DISK for count in counts)]
    return [*columns[:-1], *done, columns[-1]]


def notably_more(tree: float | None, kernel: float | None) -> bool:
    """Whether workers add so much to the kernel's own memory that it is to be said."""
    return tree is not None and kernel is not None and tree > max(NOTABLE_SHARE * kernel, kernel + NOTABLE_BYTES)


def routine(rows: Sequence[CellRow], findings: Sequence[Finding]) -> frozenset[int]:
    """Cells that nobody looks for: short ones that begin with a line magic, ended well and that no finding names.

    Only a cell's first line is known, so one that took a while may hold more than the magic.
    """
    named = {seq for finding in findings for seq in finding.cells}
    return frozenset(
        row.seq
        for row in rows
        if row.first_line.startswith("%")
        and not row.first_line.startswith("%%")
        and row.seconds < ROUTINE_SECONDS
        and row.status == "ok"
        and row.seq not in named
    )


def notable(rows: Sequence[CellRow], findings: Sequence[Finding]) -> tuple[list[CellRow], str]:
    """At most ``CELLS_SHOWN`` rows for where there is no room for all, in the order they ran, and a line on the others.

    Routine cells go first, then those that are neither named by a finding nor failed, the shortest first.
    """
    quiet = routine(rows, findings)
    named = {seq for finding in findings for seq in finding.cells}
    left = [row for row in rows if row.seq not in quiet] or list(rows)
    ranked = sorted(left, key=lambda row: (row.status == "ok", row.seq not in named, -row.seconds))
    chosen = sorted(ranked[:CELLS_SHOWN], key=lambda row: row.seq)
    parts = [f"{counted(len(left) - len(chosen), 'shorter cell')}"] if len(left) > len(chosen) else []
    parts += [f"{counted(len(quiet), 'line magic')}"] if len(left) < len(rows) else []
    return chosen, f"Left out: {' and '.join(parts)}." if parts else ""


class Fact(NamedTuple):
    """A line about the run."""

    name: str
    value: str


def cell_rows(run: Run) -> list[CellRow]:
    """A row a cell, in the order they ran."""
    return [cell_row(run, cell) for cell in run.cells]


def cell_row(run: Run, cell: Cell) -> CellRow:
    """One cell in numbers."""
    usage = run.usage(cell)
    until = run.duration if cell.end is None else cell.end
    seconds, there = until - cell.start, [device for device in run.devices if device.since < until]
    start, end = usage.rss_start_bytes, usage.rss_end_bytes
    return CellRow(
        seq=cell.seq,
        title=plain(_title(cell)),
        first_line=plain(cell.first_line),
        status=cell.status,
        seconds=seconds,
        cpu_seconds=usage.cpu_seconds,
        cores=usage.cores,
        peak_bytes=usage.peak_rss_bytes,
        peak_exact=usage.peak_exact,
        growth_bytes=None if start is None or end is None else end - start,
        gpu_percent=_gpu_percent(there, usage),
        energy_joules=_energy(there, usage),
        tree_bytes=tree_peak(run, cell),
        read_bytes=usage.read_bytes,
        written_bytes=usage.written_bytes,
    )


def tree_peak(run: Run, cell: Cell) -> float | None:
    """The peak of the kernel and its workers together as the samples saw it, and no less than the kernel's own."""
    sampled = readings_of(run, TREE, "process", cell)
    own = run.usage(cell).peak_rss_bytes
    seen = [float(sampled.max())] if len(sampled) else []
    return max([*seen, float(own)] if own is not None else seen, default=None)


def _title(cell: Cell) -> str:
    if cell.label and cell.execution_count:
        return f"In [{cell.execution_count}] {cell.label}"
    return cell.title


def maybe_mine(devices: Sequence[Device]) -> list[Device]:
    """The GPUs that are the kernel's, or may be."""
    return [device for device in devices if device.mine is not False]


def _gpu_percent(devices: Sequence[Device], usage: CellUsage) -> float | None:
    means = [usage.gpu[device.id].utilization_mean for device in maybe_mine(devices)]
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known) if known else None


def _energy(devices: Sequence[Device], usage: CellUsage) -> float | None:
    """Of all GPUs that may be the kernel's; a sum without one of them would be too small, so it is unknown."""
    parts = [usage.gpu[device.id].energy_joules for device in maybe_mine(devices)]
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def headline(run: Run, judgement: Judgement) -> str:
    """How it ended if it ended badly; else what to fix first, or that there is no warning, as far as could be seen."""
    if failure := failed(run):
        return failure
    if warned(judgement):
        return SENTENCE_END.split(plain(judgement.findings[0].fact))[0]
    if remarks := len(judgement.findings) + len(judgement.notes):
        blind = sum(checked.outcome in ("unknown", "error") for checked in judgement.checked)
        unseen = f"; {counted(blind, 'rule')} could not be judged" if blind else ""
        return f"No warnings, {counted(remarks, 'note')}{unseen}."
    verdicts = Counter(checked.outcome for checked in judgement.checked)
    blind = verdicts["unknown"] + verdicts["error"]
    if not verdicts["clear"]:
        return "Nothing could be judged." if blind else "There was nothing to judge."
    rest = mute_counts(judgement)
    return f"No warnings: {counted(verdicts['clear'], 'rule')} found nothing{', ' + rest if rest else ''}."


def mute_counts(judgement: Judgement) -> str:
    """``8 did not apply, 1 could not be judged``: the rules that :func:`unchecked` lists."""
    verdicts = Counter(checked.outcome for checked in judgement.checked)
    parts = [
        (verdicts["not-applicable"], "did not apply"),
        (verdicts["unknown"] + verdicts["error"], "could not be judged"),
    ]
    return ", ".join(f"{number} {what}" for number, what in parts if number)


def warned(judgement: Judgement) -> bool:
    """Whether anything was found that is more than a note."""
    return bool(judgement.findings) and judgement.findings[0].severity != "info"


def overline(run: Run, judgement: Judgement) -> str:
    """What the headline is: empty for an ending, and where there is no warning."""
    return "" if failed(run) or not warned(judgement) else "Fix first"


def lead(run: Run, judgement: Judgement) -> str:
    """Both in one line."""
    over = overline(run, judgement)
    return f"{over}: {headline(run, judgement)}" if over else headline(run, judgement)


def failed(run: Run) -> str | None:
    """A run that the kernel did not survive, or whose last cell failed, in one sentence."""
    if run.ending in ("killed", "crashed", "out-of-memory") and run.cells:
        return plain(f"The {process_of(run)} died: {ending(run)}.")
    if run.ending == "unknown" and run.cells:
        return plain(f"How the {process_of(run)} ended is not known{_died_in(run)}.")
    top = [cell for cell in run.cells if cell.parent is None]
    if run.ending is not None and top and top[-1].status in ("error", "interrupted"):
        how = "failed" if top[-1].status == "error" else "was interrupted"
        after = "" if is_script(run) else ", and nothing ran after it"
        return plain(f"{_title(top[-1])} {how}{after}.")
    return None


def process_of(run: Run) -> str:
    """What was recorded: ``kernel`` or ``script``."""
    return "script" if is_script(run) else "kernel"


def contents(run: Run) -> str:
    """What a run consists of: ``12 cells``, or a script by its name."""
    return plain(run.cells[0].title) if is_script(run) else counted(len(run.cells), "cell")


def counts(findings: Sequence[Finding]) -> str:
    """``1 critical, 2 warnings``."""
    words = {"critical": "critical", "warning": "warning", "info": "note"}
    numbers = {severity: sum(f.severity == severity for f in findings) for severity in words}
    parts = [
        f"{number} critical" if severity == "critical" else counted(number, words[severity])
        for severity, number in numbers.items()
        if number
    ]
    return ", ".join(parts) or "no findings"


def unchecked(judgement: Judgement) -> list[Checked]:
    """The rules that could not say anything, with their reasons; those with the same reason together."""
    mute = [checked for checked in judgement.checked if checked.outcome in ("unknown", "not-applicable", "error")]
    together: dict[tuple[str, str | None], Checked] = {}
    for checked in mute:
        before = together.get((checked.outcome, checked.reason))
        named = checked if before is None else replace(before, rule=f"{before.rule}, {checked.rule}")
        together[checked.outcome, checked.reason] = named
    return list(together.values())


def where(run: Run, finding: Finding) -> str:
    """The cells a finding is about, and what of them: ``In [7] · gpu0``."""
    titles = {cell.seq: cell.title for cell in run.cells}
    named = [plain(titles.get(seq, f"cell #{seq}")) for seq in finding.cells]
    cells = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    subject = "" if finding.subject == "process" else finding.subject
    return " · ".join(part for part in (cells, subject, finding.cause or "") if part)


def facts(run: Run) -> list[Fact]:
    """Where, when and how the run was recorded."""
    host = run.host
    limits = {name: f"{limit.value:g}" for name, limit in run.limits.items()}
    if "memory_bytes" in run.limits:
        limits["memory_bytes"] = bytes_text(run.limits["memory_bytes"].value)
    names = {"memory_bytes": "memory", "cpu_cores": "cores"}
    limit = ", ".join(f"{names.get(name, name)} {limits[name]} ({run.limits[name].source})" for name in run.limits)
    found = [
        Fact("Run", run.id),
        Fact("Script" if is_script(run) else "Notebook", run.notebook or "none known"),
        Fact("Recorded", f"{run.started:%Y-%m-%d %H:%M:%S %Z}, {seconds_text(run.duration)}"),
        Fact("Ending", ending(run)),
        Fact(
            "Host", f"{host.name}, {host.system} {host.release}, {host.cpu_count} CPUs, {bytes_text(host.memory_bytes)}"
        ),
        Fact("Limits", limit or "unknown"),
        Fact("GPUs", gpus(run)),
        Fact("Samples", f"{run.sample_count:,}, {run.rate_hz:g} a second{'' if is_script(run) else ' inside cells'}"),
        Fact("Disk", disk(run)),
        Fact("Gaps", gaps(run)),
        Fact("Recorder's own cost", recorder_cost(run)),
    ]
    found += [Fact("Notice", notice) for notice in run.notices]
    return [Fact(name, plain(value)) for name, value in found]


def ending(run: Run) -> str:
    """How the run ended, in words."""
    if run.ending is None:
        return "still running"
    how: str = "out of memory" if run.ending == "out-of-memory" else run.ending
    if not run.ending_sure:
        how = f"probably {how}: the record breaks off"
    details = [_signal_name(run.signal)] if run.signal else []
    details += [f"exit code {run.exit_code}"] if run.exit_code else []
    how = f"{how} ({', '.join(details)})" if details else how
    return f"{how}{_died_in(run)}{_last_memory(run)}" if _died_in(run) else how


def _died_in(run: Run) -> str:
    died = [cell for cell in run.cells if cell.status == "died"]
    return f" in {_title(died[-1])}" if died else ""


def death(run: Run) -> str:
    """What a panel says when the run's end cut its cell short: ``kernel died in this cell: out of memory at 7.8 of 8 GiB``."""
    if run.ending in ("stopped", "exited", "restarted"):
        how = "recording was stopped" if run.ending == "stopped" else f"kernel {run.ending}"
        return f"{how} in this cell" + (f" (exit code {run.exit_code})" if run.exit_code else "")
    if run.ending in (None, "unknown"):
        return "how the kernel ended in this cell is not known: the record breaks off"
    how = "out of memory" if run.ending == "out-of-memory" else str(run.ending)
    if run.signal and run.ending != "out-of-memory":
        how += f" ({_signal_name(run.signal)})"
    if (used := _memory_in_use(run)) is not None and run.ending != "crashed":
        joined = " at " if run.ending == "out-of-memory" else ", memory at "
        how += joined + format_of(used, run.limits["memory_bytes"].value, "By")
    return f"kernel died in this cell: {how if run.ending_sure else f'probably {how}; the record breaks off'}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_memory(run: Run) -> str:
    """``, with 31.8 GiB of 32.0 GiB in use``: the last sample before the end, of what the limit is about."""
    used, limit = _memory_in_use(run), run.limits["memory_bytes"]
    whose = "its control group" if memory_under_limit(run)[1] == "cgroup" else "it"
    return "" if used is None else f", with {bytes_text(used)} of {bytes_text(limit.value)} in use by {whose}"


def _memory_in_use(run: Run) -> float | None:
    """At the last sample that saw the kernel alive: afterwards its control group has what it left free."""
    import numpy as np

    own = run.series(RSS, "process")
    alive = own.time[~np.isnan(own.values)]
    used = known(run.series(*memory_under_limit(run)).between(0, alive[-1]).values) if len(alive) else alive
    return float(used[-1]) if len(used) else None


def last_kernel(run: Run) -> str | None:
    """One line for the next kernel of the same notebook, if this one did not end as it should."""
    if run.ending in (None, "stopped", "exited", "restarted") or not run.cells:
        return None
    return f"the last kernel of this notebook ended: {ending(run)}; cellmeter report {run.id} tells more"


class Peaks(NamedTuple):
    """The highest memory of a run: of the kernel alone, exact where its cells' marks are, and with its workers."""

    kernel: float | None
    tree: float | None

    @property
    def most(self) -> float | None:
        """The greater of both."""
        return max((peak for peak in self if peak is not None), default=None)

    @property
    def workers_tell(self) -> bool:
        """Whether workers add so much that both are to be said."""
        return notably_more(self.tree, self.kernel)


def memory_peaks(run: Run) -> Peaks:
    """Of all moments, in cells and between them."""

    def highest(metric: str) -> list[float]:
        values = known(run.series(metric, "process").values)
        return [float(values.max())] if len(values) else []

    marks = [float(cell.peak_rss_bytes) for cell in run.cells if cell.peak_rss_bytes is not None]
    kernel = max([*marks, *highest(RSS)], default=None)
    return Peaks(kernel, max([*marks, *highest(TREE), *highest(RSS)], default=None))


def disk(run: Run) -> str:
    """What the run made the disks read and write in all."""
    amounts = {name: disk_bytes(run, name) for name in ("read", "written")}
    return ", ".join(f"{bytes_text(count)} {name}" for name, count in amounts.items() if count is not None) or "unknown"


def disk_bytes(run: Run, name: str) -> float | None:
    """Bytes ``read`` or ``written`` by the kernel and its workers from the first sample to the last."""
    counted_bytes = known(run.series(f"process.disk.{name}", "process").values)
    return float(counted_bytes[-1] - counted_bytes[0]) if len(counted_bytes) > 1 else None


def gaps(run: Run) -> str:
    """Time without samples, and why."""
    if not run.gaps:
        return "none"
    total = sum(gap.end - gap.start for gap in run.gaps)
    reasons = ", ".join(dict.fromkeys(gap.reason for gap in run.gaps))
    return f"{len(run.gaps)}, together {seconds_text(total)}: {reasons}"


def gpus(run: Run) -> str:
    """Those there were, of one kind together, and from when on: ``gpu0, gpu1 NVIDIA H100 80GB HBM3``."""
    kinds: dict[str, list[str]] = {}
    for device in run.devices:
        since = f" (from {seconds_text(device.since)} on)" if device.since else ""
        kinds.setdefault(device.name, []).append(f"{device.id}{since}")
    return "; ".join(f"{', '.join(ids)} {name}" for name, ids in kinds.items()) or "none"


def plugins(run: Run) -> str:
    """Sources of other packages and how much they measure: ``loadavg (3 metrics)``."""
    numbers = Counter(metric.name.partition(".")[0] for metric in run.plugin_metrics)
    return ", ".join(f"{name} ({counted(number, 'metric')})" for name, number in numbers.items())


def recorder_cost(run: Run) -> str:
    """CPU time of the recorder, absolute and as a share of one core."""
    import numpy as np

    subjects = run.subjects("recorder.cpu.time")
    values = run.series("recorder.cpu.time", subjects[0]).values if subjects else np.empty(0)
    known = values[~np.isnan(values)]
    if len(known) < 2 or run.duration <= 0:
        return "unknown"
    seconds = float(known[-1] - known[0])
    return f"{seconds_text(seconds)} of CPU time, {100 * seconds / run.duration:.2f} % of one core"


def amount(size: Size, value: float | None) -> str:
    """So much of a resource: ``8``, ``12.0 GiB``."""
    if size.resource == "memory":
        return bytes_text(value)
    return UNKNOWN if value is None else f"{value:g}" if float(value).is_integer() else f"{value:.2f}"


SIZE_NAMES = {"cpu": "CPU cores", "memory": "Memory", "gpu": "GPUs"}


def size_use(size: Size) -> str:
    """What a run used of a resource: ``0.48 over the busiest 11 s, 1.43 at the highest moment``."""
    used = amount(size, size.peak)
    if size.resource == "memory":
        return f"{used} at its peak, with workers"
    if size.sustained_seconds is None:
        return used
    highest = "" if size.highest is None else f", {amount(size, size.highest)} at the highest moment"
    return f"{used} over the busiest {seconds_text(size.sustained_seconds)}{highest}"


def size_line(size: Size) -> str:
    """What there is, what was used and what to do about it."""
    return f"{amount(size, size.available)} there; used {size_use(size)}: {size_advice(size)}"


def size_advice(size: Size) -> str:
    """What to do about the size of a resource."""
    words = {"cpu": "core", "memory": "memory", "gpu": "GPU"}
    if size.verdict is None:
        if size.doubt and size.needed is not None and size.available is not None:
            return f"no advice, as {size.doubt}"
        return f"unknown: {size.unknown or 'how much there is is not known'}"
    if size.verdict == "right":
        return "the right size"
    target = amount(size, size.needed)
    what = target if size.resource == "memory" else counted(int(size.needed or 0), words[size.resource])
    if size.needed == 0:
        return "none was needed"
    return f"{what} would do" if size.verdict == "smaller" else f"tight: {what} would leave room"


def money(currency: str, value: float) -> str:
    """``$2.50``; small sums with the digits that matter, and ISO codes apart from the number."""
    number = f"{value:,.2f}" if value == 0 or abs(value) >= 0.095 else f"{value:.2g}" if abs(value) >= 1e-4 else "0.00"
    return f"{currency} {number}" if currency[-1:].isalpha() else f"{currency}{number}"


def costs_line(costs: Costs) -> str:
    """All costs in a line."""
    names = {"gpu": "GPUs", "cpu": "cores", "memory": "memory"}
    parts = ", ".join(f"{names[item.resource]} {money(costs.currency, item.cost)}" for item in costs.items)
    total = f"{money(costs.currency, costs.total)} ({parts}), of it {money(costs.currency, costs.unused)} unused"
    return "; ".join([*([total] if costs.items else []), *(f"not counted: {why}" for why in costs.unknown)])


def counted(number: int, noun: str) -> str:
    """``1 rule``, ``2 rules``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plain(text: str) -> str:
    """Text from a notebook made safe to show: without control, direction and lone surrogate characters."""
    return "".join(" " if c in "\t\n\r" else "\ufffd" if unicodedata.category(c) in HIDDEN else c for c in text)


HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
