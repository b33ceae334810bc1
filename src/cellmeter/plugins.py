"""What other packages add: sources, rules and exports, by the entry points of their distributions.

Looking costs some milliseconds for an environment of a hundred packages, so it is done once, and never by the recorder: the
kernel tells it the names of sources. What a plugin adds is named after it, so that nothing can take the name of another.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Group = Literal["cellmeter.sources", "cellmeter.rules", "cellmeter.exports"]


@functools.cache
def found(group: Group) -> tuple[EntryPoint, ...]:
    """The entry points of a group, one a name."""
    return tuple({point.name: point for point in entry_points(group=group)}.values())


def sources_found() -> list[dict[str, str]]:
    """Name, what to call and the folder to import it from, of each source; nothing of it is imported."""
    return [
        {"name": point.name, "value": point.value, "folder": folder}
        for point in found("cellmeter.sources")
        if (folder := _folder_of(point))
    ]


def package_of(point: EntryPoint) -> str:
    """Whose it is: ``cellmeter-loadavg 1.0``."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _folder_of(point: EntryPoint) -> str | None:
    spec = find_spec(point.module.partition(".")[0])
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [spec.origin or ""])
    return str(Path(places[0]).parent)
