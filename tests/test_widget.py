"""The widget protocol, spoken to a real kernel as a page speaks it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Kernel, wait_until

MONITORED = "%%monitor\nsum(range(10**6))"


def tell(kernel: Kernel, kind: str, content: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
    kernel.client.shell_channel.send(kernel.client.session.msg(kind, content, metadata=metadata))


def answer(kernel: Kernel, comm_id: str, method: str) -> dict[str, Any]:
    """Waits for a comm's message of a kind."""

    def sought() -> dict[str, Any] | None:
        message = kernel._next(kernel.client.get_iopub_msg)
        mine = message and message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == comm_id
        return message["content"]["data"] if mine and message["content"]["data"]["method"] == method else None

    return wait_until(sought, method)


def states(kernel: Kernel) -> dict[str, Any]:
    """All widgets' states, asked for as a page does that was loaded anew."""
    comm = {"comm_id": uuid.uuid4().hex}
    opened = {**comm, "target_name": "jupyter.widget.control", "data": {}}
    tell(kernel, "comm_open", opened, {"version": "1.0.0"})
    tell(kernel, "comm_msg", {**comm, "data": {"method": "request_states"}})
    return answer(kernel, comm["comm_id"], "update_states")["states"]


def roles(kernel: Kernel) -> list[str]:
    return sorted(state["state"].get("role", state["model_name"]) for state in states(kernel).values())


@pytest.mark.parametrize("older", [False, True])
def test_a_page_loaded_anew_gets_all_states(start_kernel: Callable[..., Kernel], older: bool) -> None:
    kernel = start_kernel(older=older)
    kernel.load()
    assert kernel.run(MONITORED).status == "ok"
    assert roles(kernel) == ["panel", "runtime"]
    runtime = next(s for s in states(kernel).values() if s["state"]["role"] == "runtime")
    assert runtime["model_name"] == "AnyModel"
    assert runtime["model_module"] == "anywidget"
    assert len(runtime["state"]["_esm"]) > 100


def test_a_page_that_found_the_kernel_busy_asks_each_widget(kernel: Kernel) -> None:
    """JupyterLab gives the control channel 4 s, then asks every comm that the kernel has."""
    (comm_id,) = states(kernel)
    tell(kernel, "comm_msg", {"comm_id": comm_id, "data": {"method": "request_state"}})
    state = answer(kernel, comm_id, "update")["state"]
    while set(state) == {"sent"}:  # word of the code, which is sent in the background
        state = answer(kernel, comm_id, "update")["state"]
    assert state["_model_name"] == "AnyModel"
    assert state["role"] == "runtime"


def test_the_users_own_widgets_are_answered_for_too(kernel: Kernel) -> None:
    kernel.run("import ipywidgets\nmine = ipywidgets.IntSlider()")
    assert roles(kernel) == ["IntSliderModel", "LayoutModel", "SliderStyleModel", "runtime"]


def test_ipywidgets_of_before_answers_alone_when_we_are_gone(start_kernel: Callable[..., Kernel]) -> None:
    kernel = start_kernel()
    kernel.run("import ipywidgets\nmine = ipywidgets.IntSlider()")
    kernel.load()
    assert "runtime" in roles(kernel)
    kernel.run("%unload_ext cellmeter")
    assert roles(kernel) == ["IntSliderModel", "LayoutModel", "SliderStyleModel"]


def test_the_extension_needs_no_ipywidgets_in_the_kernel(kernel: Kernel) -> None:
    kernel.run(MONITORED)
    assert kernel.run("import sys; print(sorted({'ipywidgets', 'anywidget'} & set(sys.modules)))").stdout == "[]\n"
