"""The curves of both phases over one axis of compute, and what the model drew on the way."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskdm.figures import curves, rows, save
from maskdm.runtime.command import run

PHASES = {"pretrain": "masked pretraining", "finetune": "finetuning"}
BLANK = np.full((1, 32, 320, 3), 255, np.uint8)
TITLES = {
    "loss": "training loss",
    "averaged": "x0 error on held-out images (averaged weights)",
}


def main() -> None:
    """Draw the curves of both phases, and a film strip of their previews.

    Reads reports/pretrain/ and reports/finetune/. Writes reports/curves.png (training loss and
    validation error against training FLOPs) and reports/previews.png (a row a moment: what the
    averaged weights drew from the same noise; blank without previews). While they train it draws
    what is there.
    """
    series: list[dict[str, Any]] = []
    for phase, title in PHASES.items():
        for file, quantity in (("training", "loss"), ("validation", "averaged")):
            for row in _rows(Path("reports") / phase / f"{file}.tsv"):
                if row[quantity]:  # or no step of these had a finite loss
                    point = {"flops": float(row["flops"]), "value": float(row[quantity])}
                    series.append(point | {"quantity": quantity, "curve": title})
    curves(series, TITLES, Path("reports/curves.png"))
    save(
        rows(list(film_strip()) or [("no previews", BLANK)], scale=2), Path("reports/previews.png")
    )


def film_strip() -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the images of every preview, in the order of training."""
    for phase, title in PHASES.items():
        folder = Path("reports") / phase / "previews"
        for path in sorted(folder.glob("*.png"), key=lambda path: int(path.stem)):
            with Image.open(path, formats=("PNG",)) as picture:
                row = np.atleast_3d(np.asarray(picture))
            yield f"{title}, step {path.stem}", np.stack(np.split(row, row.shape[1] // len(row), 1))


def _rows(path: Path) -> list[dict[str, str]]:
    """Return a TSV file's rows as dicts; none of a file that is not there yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    run(main)
