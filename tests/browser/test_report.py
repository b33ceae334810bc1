"""The HTML report in a real browser: nothing is fetched, nothing runs that came from the notebook."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_export import HOSTILE, busy_run

from cellmeter import export


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_runs_offline_under_its_policy(tmp_path: Path, chromium: Any, dark: bool) -> None:
    run = replace(busy_run(), notebook=f"/tmp/{HOSTILE}")
    cells = tuple(replace(cell, label=HOSTILE) if cell.seq == 2 else cell for cell in run.cells)
    path = export.write(replace(run, cells=cells), tmp_path / "report.html")
    context = chromium.new_context(viewport={"width": 1300, "height": 900}, color_scheme="dark" if dark else "light")
    view = context.new_page()
    trouble: list[str] = []
    requests: list[str] = []
    view.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: trouble.append(str(error)))
    view.on("dialog", lambda dialog: trouble.append(dialog.message))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    view.locator("canvas").first.wait_for(state="attached")
    view.get_by_role("button", name="Peak memory").click()
    peaks = view.locator("table[data-sortable] tbody td.memory").all_inner_texts()
    wide = view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    screenshots = Path(__file__).parents[2] / "build" / "screenshots"
    screenshots.mkdir(parents=True, exist_ok=True)
    view.screenshot(path=screenshots / f"report-{'dark' if dark else 'light'}.png", full_page=True)
    context.close()
    assert trouble == []
    assert requests == [path.as_uri()]
    assert peaks[0].startswith("40.0 GiB")
    assert wide
