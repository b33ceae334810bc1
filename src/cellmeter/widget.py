"""Widgets for the page out of a bare comm: anywidget's front end without ipywidgets in the kernel, whose import takes 50 ms.

The messages are the Jupyter widget protocol's, 2.1.0 for widgets and 1.0.0 for the control channel, which a page that was
loaded anew asks for the states of all widgets: https://github.com/jupyter-widgets/ipywidgets/blob/main/packages/schema/messages.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cellmeter.errors import MissingExtra

_CONTROL = "jupyter.widget.control"
_open: dict[str, Widget] = {}
_chained: Callable[[Any, Any], None] | None = None
"""What answered on the control channel before: ipywidgets, if the user has imported it."""


def _front_end_version() -> str:
    """The range of anywidget versions that the page may serve, as anywidget itself words it."""
    try:
        return f"~{'.'.join(version('anywidget').split('.')[:2])}.*"
    except PackageNotFoundError as error:
        raise MissingExtra("anywidget", "all", "the live panel") from error


def _enable_in_colab() -> None:
    """Colab loads widgets of third parties only where it is told to, as anywidget does at its first widget."""
    if "google.colab.output" in sys.modules:
        sys.modules["google.colab.output"].enable_custom_widget_manager()


class Widget:
    """A widget whose view is the module ``esm``, with ``state`` beside it. The page's messages go to ``on_message``.

    Raises MissingExtra where anywidget is not installed.
    """

    def __init__(self, esm: str, state: Mapping[str, Any], on_message: Callable[[Mapping[str, Any]], None]) -> None:
        from comm import create_comm

        wanted = _front_end_version()
        _enable_in_colab()
        self._on_message = on_message
        self.state: dict[str, Any] = {
            "_model_module": "anywidget",
            "_model_name": "AnyModel",
            "_model_module_version": wanted,
            "_view_module": "anywidget",
            "_view_name": "AnyView",
            "_view_module_version": wanted,
            "_view_count": None,
            "_anywidget_id": "cellmeter",
            "_esm": esm,
            **state,
        }
        data = {"state": self.state, "buffer_paths": []}
        self._comm = create_comm("jupyter.widget", data=data, metadata={"version": "2.1.0"})
        self._comm.on_msg(self._received)
        _open[self.model_id] = self

    @property
    def model_id(self) -> str:
        """What the page knows the widget by."""
        return str(self._comm.comm_id)

    def send(self, content: Mapping[str, Any], buffers: list[bytes] | None = None) -> None:
        """Sends a custom message, which no notebook saves."""
        self._comm.send({"method": "custom", "content": content}, buffers=buffers)

    def update(self, **state: Any) -> None:
        """Changes the state, which notebooks save."""
        self.state |= state
        self._comm.send({"method": "update", "state": state, "buffer_paths": []})

    def close(self) -> None:
        """Takes the widget from the page."""
        if _open.pop(self.model_id, None) is not None:
            self._comm.close()

    def _received(self, message: Mapping[str, Any]) -> None:
        data = message["content"]["data"]
        if data.get("method") == "request_state":
            self.update(**self.state)
        elif data.get("method") == "custom":
            self._on_message(data["content"])


def _states() -> dict[str, Any]:
    kept = ("_model_name", "_model_module", "_model_module_version")
    return {
        id: {**{key[1:]: widget.state[key] for key in kept}, "state": dict(widget.state)}
        for id, widget in _open.items()
    }


def answer_reloads(comm_manager: Any) -> None:
    """Answers on the control channel, for ipywidgets too; that takes the channel when the user imports it: call again then."""
    global _chained
    found = comm_manager.targets.get(_CONTROL)
    if found is not _control_opened:
        _chained = found
        comm_manager.register_target(_CONTROL, _control_opened)


def leave_reloads(comm_manager: Any) -> None:
    """Gives the control channel back."""
    if comm_manager.targets.get(_CONTROL) is _control_opened:
        comm_manager.unregister_target(_CONTROL, _control_opened)
        if _chained is not None:
            comm_manager.register_target(_CONTROL, _chained)


def _control_opened(comm: Any, message: Any) -> None:
    if _chained is None:
        comm.on_msg(lambda message: _asked(comm, message))
        return
    send = comm.send

    def send_ours_too(data: Any = None, *args: Any, **kwargs: Any) -> None:
        if data is not None and data.get("method") == "update_states":
            data = {**data, "states": {**data["states"], **_states()}}
        send(data, *args, **kwargs)

    comm.send = send_ours_too
    _chained(comm, message)


def _asked(comm: Any, message: Mapping[str, Any]) -> None:
    if message["content"]["data"].get("method") == "request_states":
        comm.send({"method": "update_states", "states": _states(), "buffer_paths": []})
