"""A line a cell, tab-separated: ``cellmeter export -o cells.tsv``."""

from cellmeter.rules import Judgement
from cellmeter.run import Run


def tsv(run: Run, judgement: Judgement) -> str:
    rows = [("cell", "status", "findings")]
    for cell in run.cells:
        rules = [finding.rule for finding in judgement.findings if cell.seq in finding.cells]
        rows.append((cell.title, cell.status, " ".join(rules)))
    return "".join("\t".join(row) + "\n" for row in rows)
