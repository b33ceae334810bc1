"""A GPU whose memory others hold too: what is the kernel's own is told apart, wherever memory is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import nvml_stub
import pytest
from builders import GIB, NAN, GpuWork, a_cell, a_device, a_run, hump, without
from conftest import Kernel

from cellmeter import charts, gpu_shares
from cellmeter.export import mlflow, render
from cellmeter.export.readings import Choice
from cellmeter.export.records import cell_records
from cellmeter.export.report_json import schema
from cellmeter.failures import Failure
from cellmeter.rules import Finding, judge
from cellmeter.run import Run
from cellmeter.still import Facts, summary
from cellmeter.store import EVENTS, read_events, read_header
from cellmeter.usage import GpuMemory, own_part

OURS, ALL = 6 * GIB, 66 * GIB


def shared(*, torch: int | None = None, **work: Any) -> Run:
    """A cell of 20 s that holds 6 GiB of a GPU of which 66 are in use."""
    plan = a_cell(20, gpu={"gpu0": GpuWork(90, **{"context": OURS, "memory": ALL, "foreign": 1, **work})})
    run = a_run(plan, devices=[a_device()])
    marks = {"GPU-gpu0": torch} if torch else {}
    return replace(run, cells=(replace(run.cells[0], torch_peak_bytes=marks),))


def memory(run: Run) -> GpuMemory:
    return run.usage(run.cells[0]).gpu["gpu0"].memory


def contained(run: Run) -> Run:
    """The same in a container, where the processes of others are not seen."""
    return without(run, "gpu.foreign.processes", "gpu0", "not to be seen from inside a container")


@pytest.mark.parametrize(
    ("run", "own", "others"),
    [
        pytest.param(shared(), OURS, ALL - OURS, id="seen"),
        pytest.param(shared(foreign=0), OURS, 0, id="alone, whatever the driver keeps"),
        pytest.param(contained(shared()), OURS, ALL - OURS, id="not seen, but there"),
        pytest.param(contained(shared(memory=OURS + 0.6 * GIB)), OURS, None, id="the driver's own"),
        pytest.param(contained(shared(memory=hump(OURS, 70 * GIB, 5, 8))), OURS, None, id="a peak between two lists"),
        pytest.param(shared(context=NAN), None, None, id="host's process ids"),
        pytest.param(shared(context=0.0), 0, ALL, id="another's"),
        pytest.param(shared(torch=9 * GIB), 9 * GIB, ALL - OURS, id="PyTorch knows of more"),
        pytest.param(shared(torch=5 * GIB), OURS, ALL - OURS, id="PyTorch's tensors are not all"),
        pytest.param(shared(context=NAN, torch=5 * GIB), None, None, id="and says nothing where the lists do not"),
        pytest.param(
            shared(foreign=hump(0, 1, 0, 10), memory=hump(OURS, ALL, 0, 10)), OURS, ALL - OURS, id="others went"
        ),
    ],
)
def test_whose_memory_it_is(run: Run, own: float | None, others: float | None) -> None:
    found = memory(run)
    assert (found.own, found.others, found.peak) == (own, others, found.peak)
    assert found.shared == bool(others and own is not None)


def said(run: Run) -> str:
    """What the panel says when its cell has ended."""
    frame = charts.frame_of(run, 0.0, run.duration)
    cell = run.cells[0]
    return summary(frame, Facts("In [1]", "ok", 20.0, gpu_memory={g: u.memory for g, u in run.usage(cell).gpu.items()}))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (shared(), "GPU memory peak ≥ 6.00 GiB yours, 66.0 of 80 GiB in all"),
        (shared(torch=9 * GIB), "GPU memory peak 9.00 GiB yours, 66.0 of 80 GiB in all"),
        (shared(foreign=0), "GPU memory peak 66.0 GiB"),
        (contained(shared(context=NAN)), "GPU memory peak 66.0 GiB"),
    ],
)
def test_the_panel_says_whose_it_is(run: Run, words: str) -> None:
    assert said(run).endswith(words)


def test_of_several_gpus_it_is_the_one_of_which_the_kernel_held_most() -> None:
    work = {
        "gpu0": GpuWork(90, context=OURS, memory=ALL, foreign=1),
        "gpu1": GpuWork(90, context=40 * GIB, memory=41 * GIB),
    }
    run = a_run(a_cell(20, gpu=work), devices=[a_device("gpu0"), a_device("gpu1")])
    assert said(run).endswith("GPU memory peak of one ≥ 40.0 GiB yours, 41.0 of 80 GiB in all")
    unknown = GpuMemory(ALL, None, None, None)
    assert own_part({"gpu0": memory(run), "gpu1": unknown}) is None
    assert own_part({}) is None


def test_json_and_records_have_it_with_the_reason_where_it_is_unknown() -> None:
    run = shared()
    report = json.loads(render(run, "json"))
    jsonschema.validate(report, schema())
    told = report["cells"][0]["gpu"]["gpu0"]
    assert (told["own_memory_peak_bytes"], told["others_memory_peak_bytes"]) == (OURS, ALL - OURS)
    assert cell_records(run)[0]["gpu0_own_memory_peak_bytes"] == OURS
    assert run.cells_frame()["own_memory_peak_bytes:gpu0"].tolist() == [OURS]
    why = "the driver gives process ids of another namespace"
    unknown = json.loads(render(without(shared(context=NAN), "gpu.process.memory.used", "gpu0", why), "json"))["cells"][
        0
    ]
    assert unknown["gpu"]["gpu0"]["own_memory_peak_bytes"] is None
    assert unknown["unknown"]["gpu.gpu0.own_memory_peak_bytes"] == why
    short = replace(run, cells=(replace(run.cells[0], end=run.cells[0].start + 0.05, start=run.cells[0].start + 0.02),))
    assert "every 2 s" in short.usage(short.cells[0]).unknown["gpu.gpu0.own_memory_peak_bytes"]


def test_a_real_kernel_says_it_everywhere(start_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    trace = (
        f"gpu mem=80g\nat 0 gpu 0 util=90 used=66g\nproc 0 - gpu 0 pid=@{tmp_path}/pid used=6g\n"
        "proc 0 - gpu 0 pid=1 used=60g"
    )
    kernel = start_kernel(env=nvml_stub.environment(trace, tmp_path))
    kernel.load()
    kernel.run(f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid()))")
    kernel.run("%monitor start --auto")
    words = "GPU memory peak ≥ 6.00 GiB yours, 66.0 of 80 GiB in all"
    (line,) = [d["data"]["text/plain"] for d in kernel.run("time.sleep(4.5)").displays]
    assert words in line
    assert words in kernel.run("%%monitor\ntime.sleep(4.5)").updates[-1]["data"]["text/plain"]
    assert words in kernel.run("%monitor show").displays[-1]["data"]["text/plain"]
    run = kernel.recorded_cells(5)
    folder = Path(run.path)
    edges = {(e.get("seq"), e["event"]): e["t"] for e in read_events(folder / EVENTS)[0]}
    for cell in (run.cells[2], run.cells[3]):
        start, end = edges[cell.seq, "cell_start"], edges[cell.seq, "cell_end"]
        straight = gpu_shares.of_cell(folder, read_header(folder), ["gpu0"], start, end, {})["gpu0"]
        assert straight._replace(peak=ALL) == run.usage(cell).gpu["gpu0"].memory == GpuMemory(ALL, OURS, 60 * GIB, None)


def beside() -> Run:
    """The same beside a GPU that only others use and one that nobody may see."""
    work = {
        "gpu0": GpuWork(90, context=OURS, memory=ALL, foreign=1),
        "gpu1": GpuWork(97, context=0.0, memory=40 * GIB, foreign=2),
        "gpu2": GpuWork(50, context=0.0, foreign=1),
    }
    return a_run(a_cell(20, gpu=work), devices=[a_device("gpu0"), a_device("gpu1"), a_device("gpu2", mine=False)])


def test_reports_say_whose_memory_it_is_and_which_gpus_were_not_used() -> None:
    text = render(beside(), "text")
    assert "gpu0 peak ≥ 6.00 GiB by this kernel, 66.0 of 80 GiB in all" in " ".join(text.split())
    assert "gpu1, gpu2" in text.split("GPUs not used")[1].splitlines()[0]
    page = render(beside(), "html")
    assert page.count("NVIDIA H100 80GB HBM3, not used by this kernel") == 4, "in both tables"
    assert page.count('<figure class="panel histogram unused">') == 2
    assert page.count("of it this kernel&#x27;s") == 1
    alone = a_run(a_cell(20, gpu={"gpu0": GpuWork(90)}), devices=[a_device()])
    for kind in ("text", "html"):
        assert not re.search("not used by|GPUs not used|of it this kernel|Shared GPU", render(alone, kind))


def test_mlflow_gets_only_the_gpus_that_worked_for_the_kernel() -> None:
    keys = {points.key for points in mlflow.points(beside(), Choice())}
    assert {key.split("/")[1][:5] for key in keys if "gpu_" in key} == {"gpu_0"}
    chosen = {points.key for points in mlflow.points(beside(), Choice(("gpu.*",)))}
    assert "system/gpu_0_utilization_percentage" in chosen
    assert not any("gpu_1" in key or "gpu1" in key or "gpu2" in key for key in chosen)
    unknown = without(beside(), "gpu.process.memory.used", "gpu1", "host's process ids")
    assert any("gpu_1" in points.key for points in mlflow.points(unknown, Choice())), "it may have been the kernel's"


OOM = Failure("torch.OutOfMemoryError", gpu_memory=True)


def out_of_memory(run: Run) -> Finding:
    (finding,) = (one for one in judge(run).findings if one.rule == "gpu-out-of-memory")
    assert finding.severity == "critical"
    return finding


def failing(seconds: float = 20, *, torch: int | None = None, others: tuple[str, ...] = (), **work: Any) -> Run:
    gpu = {"gpu0": GpuWork(90, **{"context": 78 * GIB, "memory": 79 * GIB, **work})}
    gpu |= {name: GpuWork(90, context=4 * GIB, memory=5 * GIB) for name in others}
    plan = a_cell(seconds, gpu=gpu, failure=OOM)
    run = a_run(plan, devices=[a_device("gpu0"), a_device("gpu1")])
    return replace(run, cells=(replace(run.cells[0], torch_peak_bytes={"GPU-gpu0": torch} if torch else {}),))


def test_out_of_gpu_memory_tells_who_held_it_and_what_to_do() -> None:
    own = out_of_memory(failing(torch=70 * GIB))
    assert (own.subject, own.cause, own.cells) == ("gpu0", None, (1,))
    assert own.fact == (
        "In [1] ran out of memory on gpu0: this kernel held 78.0 GiB of its 80 GiB; PyTorch's tensors took up to 70.0 GiB."
    )
    assert own.advice.startswith("Use a smaller batch")
    other = out_of_memory(failing(context=9 * GIB, foreign=1))
    assert other.cause == "shared GPU"
    assert "this kernel held at least 9.00 GiB and others 70.0 GiB of its 80 GiB." in other.fact
    assert "gpu1 stood nearly empty" in other.advice
    blind = without(failing(), "gpu.process.memory.used", "gpu0", "ids of another namespace")
    assert "79.0 GiB of its 80 GiB were in use; how much by this kernel is not known (ids" in out_of_memory(blind).fact
    both = out_of_memory(failing(others=("gpu1",)))
    assert (both.subject, "gpu0 most likely, the fullest of its 2 GPUs" in both.fact) == ("gpu0", True)


def test_a_cell_too_short_for_a_process_list_is_told_by_the_nearest() -> None:
    run = failing(20, context=9 * GIB, foreign=1)
    cell = run.cells[0]
    short = replace(run, cells=(replace(cell, start=cell.start + 4.3, end=cell.start + 4.7),))
    assert short.usage(short.cells[0]).gpu["gpu0"].own_memory_peak_bytes is None
    assert out_of_memory(short).cause == "shared GPU"


def test_what_is_not_on_record_is_unknown_and_what_it_explains_is_left_out() -> None:
    def outcome(run: Run) -> str:
        return next(checked.outcome for checked in judge(run).checked if checked.rule == "gpu-out-of-memory")

    gpu = {"gpu0": GpuWork(90, power=600.0, memory=lambda t: min(0.99, 0.4 + t / 20) * 80 * GIB)}
    assert outcome(a_run(a_cell(20, gpu=gpu, status="error"), devices=[a_device()])) == "unknown", "an older recording"
    assert outcome(a_run(a_cell(20, failure=Failure("KeyError")))) == "not-applicable", "no GPU"
    assert outcome(a_run(a_cell(20, failure=OOM))) == "unknown", "a GPU that cannot be read"
    rules = [one.rule for one in judge(a_run(a_cell(20, gpu=gpu, failure=OOM), devices=[a_device()])).findings]
    assert rules == ["gpu-out-of-memory"], "and not gpu-memory-near-limit"
    script = failing()
    script = replace(script, cells=(replace(script.cells[0], execution_count=None, label="train.py"),))
    finding = out_of_memory(script)
    assert not re.search(r"cell|kernel\b|traceback", f"{finding.fact} {finding.consequence}".lower())
