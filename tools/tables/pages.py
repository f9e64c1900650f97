"""The computed tables of README.md and docs/: ``python -m tools.tables.pages``, or ``make docs``.

A page holds ``<!-- table NAME -->`` and ``<!-- end -->``; the text between them is replaced.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.evidence.decision import SMALL
from maskdm.runtime.files import write_text
from tools.report import tables
from tools.tables import (
    decision,
    environment,
    gpus,
    kit,
    measured,
    needs,
    parameters,
    robustness,
    solvers,
    sources,
)

README, DOCS = Path("README.md"), Path("docs")
TABLES: dict[str, Callable[[], str]] = {
    "gpus": gpus.table,
    "gpusmeasured": gpus.measured,
    "needs": needs.table,
    "parameters": parameters.table,
    "robustness": robustness.table,
    "solvers": solvers.table,
    "grid": solvers.table_of_the_papers_grid,
    "sources": sources.table,
    "environment": environment.table,
    "speed": measured.speed,
    "shards": measured.shards,
    "growth": measured.growth,
    "evaluations": measured.evaluations,
    "guidance": measured.guidance,
    "averages": measured.averages,
    "scaling": measured.scaling,
    "sizes": measured.sizes,
    "seams": measured.of_patches,
    "gpu": kit.speed,
    "exactness": kit.exactness,
    "gpuothers": kit.others,
    "pays": decision.headline,
    "factors": decision.factors,
    "bylevel": decision.by_level,
    "decision": partial(decision.comparisons, SMALL),
    "decision8": partial(decision.comparisons, "decision-8"),
    "decision4": partial(decision.comparisons, "decision-4"),
    "cells8": partial(decision.cells, "decision-8-tuning"),
    "cells4": partial(decision.cells, "decision-4-tuning"),
    "arms8": decision.arms,
    "chosen": partial(decision.tuning, "decision-tuning"),
    "saved": decision.saved,
    "branches": decision.by_branches,
    "byimage": decision.by_image,
    "confirmation": tables.confirmation,
    "transfer": tables.transferred,
    "screening": tables.screening,
    "fine": tables.fine_screening,
}
MARKED = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return a page with its tables computed anew."""
    return MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n\n{m[4]}", page)


def main() -> None:
    """Compute the tables of every page."""
    for path in (README, *sorted(DOCS.glob("*.md"))):
        page = path.read_text(encoding="utf-8")
        if MARKED.search(page):
            write_text(path, filled(page))
            print(path)


if __name__ == "__main__":
    main()
