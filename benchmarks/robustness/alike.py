"""Are images found that are nearly the same? ``python -m benchmarks.robustness.alike``.

Drawings of OpenMoji at 256 pixels are changed as pictures are that go round, saved again, scaled, a
little brighter; and as another picture is, moved. All are prepared at the demo's size, and
``data.duplicates: near`` must find the former to be the drawing that they come from, and the latter
to be another. Writes reports/robustness.json.
"""

import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageChops

from benchmarks.robustness.report import write_report
from maskdm.data.images import fit
from maskdm.data.near import NearIndex
from maskdm.data.prepared import Sample
from maskdm.data.registry import DataParams, open_source, read_samples
from maskdm.runtime import command
from maskdm.runtime.params import read_section

PRESET = Path("presets/laptop.yaml")
LARGE = 256  # pixels

Change = Callable[[Image.Image], Image.Image]


def moved(pixels: int) -> Change:
    """Return what moves an image by so many pixels."""
    return lambda image: ImageChops.offset(image, pixels)


def saved_again(quality: int) -> Change:
    """Return what saves an image as JPEG of a quality."""

    def change(image: Image.Image) -> Image.Image:
        buffer = BytesIO()
        image.save(buffer, "jpeg", quality=quality)
        return Image.open(buffer, formats=("JPEG",))

    return change


SAME: dict[str, Change] = {
    "saved as JPEG of quality 85": saved_again(85),
    "saved as JPEG of quality 50": saved_again(50),
    "scaled to 201 pixels": lambda image: image.resize((201, 201), Image.Resampling.LANCZOS),
    "2 levels brighter": lambda image: image.point(lambda level: min(level + 2, 255)),
}
OTHER = {f"moved by {pixels} pixels": moved(pixels) for pixels in (16, 24)}


def main(images: Annotated[int, typer.Option(help="drawings, at most")] = 1000) -> None:
    """Prepare changed drawings; count which are found to be the drawing that they come from."""
    params = read_section(PRESET, "data", DataParams)
    large = params.model_copy(update={"resolution": LARGE, "limit": images})
    samples = read_samples(open_source(large, Path("data/raw")), large)
    drawings = [Image.fromarray(one.pixels) for one in samples if isinstance(one, Sample)]

    def prepared(image: Image.Image) -> np.ndarray:
        return fit(image, params.resolution, params.channels)

    # Of drawings that are equal or near themselves, one: another would be found as well.
    index, plain = NearIndex(), list[Image.Image]()
    started = time.perf_counter()
    for image in drawings:
        if index.first_like(prepared(image)) is None:
            plain.append(image)
    seconds = time.perf_counter() - started
    figures: dict[str, Any] = {
        "drawings": len(drawings),
        "near_another": len(drawings) - len(plain),
        "milliseconds": round(1000 * seconds / len(drawings), 2),
        "found": {name: share(plain, change, prepared) for name, change in SAME.items()},
        "taken_for_it": {name: share(plain, change, prepared) for name, change in OTHER.items()},
    }
    write_report(near_duplicates=figures)
    print(figures)


def share(
    drawings: list[Image.Image], change: Change, prepared: Callable[[Image.Image], np.ndarray]
) -> float:
    """Return the share of changed drawings that are found to be the ones that they come from."""
    index = NearIndex()
    for image in drawings:
        index.first_like(prepared(image))
    found = [index.first_like(prepared(change(image))) for image in drawings]
    return round(float(np.mean([one == number for number, one in enumerate(found)])), 4)


if __name__ == "__main__":
    command.run(main)
