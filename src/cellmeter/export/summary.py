"""What all reports say, before any of them gives it a form: the headline, the rules, the facts of the run."""

from __future__ import annotations

import re
import signal
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cellmeter.export.amounts import disk, free_disk, shared_gpus
from cellmeter.gpu_shares import shares_text
from cellmeter.rules.memory import RSS, memory_under_limit
from cellmeter.rules.observed import top_cells
from cellmeter.rules.ownership import not_used
from cellmeter.rules.scripts import is_script
from cellmeter.run import known
from cellmeter.words import counted, given_text, of_text, percent_text, seconds_text

if TYPE_CHECKING:
    from cellmeter.rules import Checked, Finding, Judgement
    from cellmeter.run import Cell, Run

FINDINGS_SHOWN = 10

NOTES_TITLE = "Worth knowing"

ENUMERATED = re.compile(r"(.*\D)(\d+)")
SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")


class Fact(NamedTuple):
    """A line about the run."""

    name: str
    value: str


class Unavailable(NamedTuple):
    """What cannot be measured, of which part of the machine (``gpu0–gpu7``; empty: of all of it), and why."""

    whose: str
    metrics: list[str]
    why: str


def title_of(cell: Cell) -> str:
    """Its number and its label, as far as it has them."""
    if cell.label and cell.execution_count:
        return f"In [{cell.execution_count}] {cell.label}"
    return cell.title


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
    if (run.ending in ("killed", "crashed", "out-of-memory") or _left_midway(run)) and run.cells:
        return plain(f"The {process_of(run)} died: {ending(run)}.")
    if run.ending == "unknown" and run.cells:
        return plain(f"How the {process_of(run)} ended is not known{_died_in(run)}.")
    top = top_cells(run)
    if run.ending is not None and top and top[-1].status in ("error", "interrupted"):
        how = "failed" if top[-1].status == "error" else "was interrupted"
        how = "ran out of GPU memory" if top[-1].gpu_memory_ran_out else how
        after = "" if is_script(run) else ", and nothing ran after it"
        return plain(f"{title_of(top[-1])} {how}{after}.")
    return None


def _left_midway(run: Run) -> bool:
    """Whether it ended itself with an error code in the midst of a cell: ``os._exit(3)``, a fatal error of a library."""
    return run.ending == "exited" and bool(run.exit_code) and bool(_died_in(run))


def process_of(run: Run) -> str:
    """What was recorded: ``kernel`` or ``script``."""
    return "script" if is_script(run) else "kernel"


def contents(run: Run) -> str:
    """What a run consists of: ``12 cells``, or a script by its name."""
    return plain(run.cells[0].title) if is_script(run) else counted(len(top_cells(run)), "cell")


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
    host, script = run.host, is_script(run)
    limits = {name: f"{limit.value:g}" for name, limit in run.limits.items()}
    if "memory_bytes" in run.limits:
        limits["memory_bytes"] = given_text(run.limits["memory_bytes"].value, "By")
    names = {"memory_bytes": "memory", "cpu_cores": "cores"}
    limit = ", ".join(f"{names.get(name, name)} {limits[name]} ({run.limits[name].source})" for name in run.limits)
    found = [
        Fact("Run", run.id),
        Fact("Script" if script else "Notebook", run.notebook or (run.cells[0].title if script else "none known")),
        Fact("Recorded", f"{run.started:%Y-%m-%d %H:%M:%S %Z}, {seconds_text(run.duration)}"),
        Fact("Ending", ending(run)),
        Fact(
            "Host",
            f"{host.name}, {host.system} {host.release}, {host.cpu_count} CPUs, {given_text(host.memory_bytes, 'By')}",
        ),
        Fact("Limits", limit or "unknown"),
        Fact("GPUs", gpus(run)),
        *_whose_gpus(run),
        Fact("Samples", f"{run.sample_count:,}, {run.rate_hz:g} a second{'' if script else ' inside cells'}"),
        Fact("Disk", disk(run)),
        *([Fact("Free disk", free)] if (free := free_disk(run)) else []),
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
    return f" in {title_of(died[-1])}" if died else ""


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
        how += joined + of_text(used, run.memory_held.value, "By")
    return f"kernel died in this cell: {how if run.ending_sure else f'probably {how}; the record breaks off'}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_memory(run: Run) -> str:
    """``, with 31.8 of 32 GiB in use``: the last sample before the end, of what the limit is about."""
    used, limit = _memory_in_use(run), run.memory_held
    whose = "its control group" if memory_under_limit(run)[1] == "cgroup" else "it"
    return "" if used is None else f", with {of_text(used, limit.value, 'By')} in use by {whose}"


def _memory_in_use(run: Run) -> float | None:
    """At the last sample that saw the kernel alive: afterwards its control group has what it left free."""
    import numpy as np

    own = run.series(RSS, "process")
    alive = own.time[~np.isnan(own.values)]
    used = known(run.series(*memory_under_limit(run)).between(0, alive[-1]).values) if len(alive) else alive
    return float(used[-1]) if len(used) else None


def last_kernel(run: Run) -> str | None:
    """One line for the next kernel of the same notebook, if this one did not end as it should."""
    orderly = run.ending in (None, "stopped", "exited", "restarted") and not _left_midway(run)
    if orderly or not run.cells:
        return None
    return f"the last kernel of this notebook ended: {ending(run)}; cellmeter report {run.id} tells more"


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
    return "; ".join(f"{ranges(ids)} {name}" for name, ids in kinds.items()) or "none"


def _whose_gpus(run: Run) -> list[Fact]:
    """Which of them did nothing for the kernel, and of which others held memory too."""
    others = not_used(run, 0.0, run.duration)
    unused = [device.id for device in run.devices if device.id in others]
    sizes = {device.id: device.memory_bytes for device in run.devices}
    shared = "; ".join(
        f"{gpu} peak {shares_text(memory, memory.peak, sizes[gpu], f'by this {process_of(run)}')}"
        for gpu, memory in shared_gpus(run).items()
    )
    return [
        *([Fact("GPUs not used", ranges(unused))] if unused else []),
        *([Fact("Shared GPU memory", shared)] if shared else []),
    ]


def ranges(names: Sequence[str]) -> str:
    """``gpu0–gpu7`` for three or more that follow each other; the others one by one."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


def _follows(before: str, name: str) -> bool:
    here, there = ENUMERATED.fullmatch(before), ENUMERATED.fullmatch(name)
    return here is not None and there is not None and here[1] == there[1] and int(here[2]) + 1 == int(there[2])


def unavailable(run: Run) -> list[Unavailable]:
    """What cannot be measured: metric by metric, but that of single GPUs, cores and so on together by its reason."""
    subjects: dict[tuple[str, str], list[str]] = {}
    for key, why in run.unavailable.items():
        metric, _, subject = key.partition(":")
        subjects.setdefault((metric, why), []).append(subject)
    metrics: dict[tuple[str, str], list[str]] = {}
    for (metric, why), of in subjects.items():
        metrics.setdefault((ranges(of) or metric, why), []).append(metric)
    return [Unavailable("" if whose == names[0] else whose, names, why) for (whose, why), names in metrics.items()]


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
    return f"{seconds_text(seconds)} of CPU time, {percent_text(100 * seconds / run.duration)} of one core"


def plain(text: str) -> str:
    """Text from a notebook made safe to show: without control, direction and lone surrogate characters."""
    return "".join(" " if c in "\t\n\r" else "\ufffd" if unicodedata.category(c) in HIDDEN else c for c in text)


HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
