"""One picture of both phases' curves over one axis of compute."""

import csv
from pathlib import Path
from typing import Any

from maskdm.figures import curves
from maskdm.runtime.command import run

PHASES = {"pretrain": "masked pretraining", "finetune": "finetuning"}
TITLES = {
    "loss": "training loss",
    "averaged": "x0 error on held-out images (averaged weights)",
}


def main() -> None:
    """Draw the curves of both phases.

    Reads reports/pretrain/ and reports/finetune/. Writes reports/curves.png: training loss and
    validation error against training FLOPs.
    """
    series: list[dict[str, Any]] = []
    for phase, title in PHASES.items():
        for file, quantity in (("training", "loss"), ("validation", "averaged")):
            for row in _rows(Path("reports") / phase / f"{file}.tsv"):
                point = {"flops": float(row["flops"]), "value": float(row[quantity])}
                series.append(point | {"quantity": quantity, "curve": title})
    curves(series, TITLES, Path("reports/curves.png"))


def _rows(path: Path) -> list[dict[str, str]]:
    """Return a TSV file's rows as dicts."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    run(main)
