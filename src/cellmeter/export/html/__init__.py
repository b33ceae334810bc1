"""The report as a page: one file that asks the network for nothing, and a light version for a notebook's output.

Everything that comes from the notebook is escaped; the page's own scripts are allowed by their hashes and no other.
"""

from cellmeter.export.html.inline import inline_cells
from cellmeter.export.html.page import html_report, inline_html

__all__ = ["html_report", "inline_cells", "inline_html"]
