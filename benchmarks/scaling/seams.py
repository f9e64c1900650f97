"""Do flat areas show the grid of patches? ``python -m benchmarks.scaling.seams samples.png``.

Neighbouring pixels of one flat, coloured area differ by so many grey levels within a patch, and by
so many across the seam of two. Without seams both are the same; what is left then is noise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from maskdm.figures import GAP
from maskdm.runtime import command
from maskdm.runtime.errors import UserError

COLUMNS = 16  # of the pictures of samples
FLAT = 40  # grey levels that each channel of a flat window may span
WHITE = 230  # lightest mean of a coloured window's darkest channel: backgrounds say little
# The pictures of samples in reports/, and the side of their images in pixels.
PICTURES = {
    "reports/samples.png": 32,
    "reports/long/samples.png": 32,
    "reports/hero/samples.png": 64,
}


@dataclass(frozen=True)
class Seams:
    """Mean absolute differences of neighbouring pixels of flat windows, in levels of 255.

    Attributes:
        windows: how many flat, coloured windows of two by two patches there were.
        across: differences of pixels in different patches; NaN without a window.
        within: of pixels in the same patch.
    """

    windows: int
    across: float
    within: float

    @property
    def ratio(self) -> float:
        """Of both, 1 without seams; NaN where nothing differs within patches."""
        return self.across / self.within if self.within else float("nan")


def main(
    files: Annotated[list[Path], typer.Argument(help="grids of samples as PNG, or samples.npy")],
    side: Annotated[int, typer.Option(help="of an image in pixels")] = 32,
    patch: Annotated[int, typer.Option(help="side of a patch in pixels")] = 4,
) -> None:
    """Print the differences across and within the patches of flat areas."""
    for file in files:
        found = seams(images_of(file, side), patch)
        print(
            f"{file}: {found.windows} flat windows, {found.across:.2f} levels across seams, "
            f"{found.within:.2f} within patches: {found.ratio:.2f}"
        )


def images_of(file: Path, side: int) -> np.ndarray:
    """Return the images of ``samples.npy`` or of a grid that ``maskdm.figures.grid`` drew.

    Args:
        file: uint8 ``(N, side, side, 3)``, or a picture with 16 images in a row.
        side: of an image in pixels.

    Raises:
        UserError: if a picture is no such grid.
    """
    if file.suffix == ".npy":
        return np.asarray(np.load(file))
    sheet = np.asarray(Image.open(file, formats=["PNG"]).convert("RGB"))
    step = side + GAP
    width = COLUMNS * step + GAP
    scale, left = divmod(sheet.shape[1], width)
    if not scale or left or sheet.shape[0] % scale or (sheet.shape[0] // scale - GAP) % step:
        raise UserError(
            f"{file} has {sheet.shape[1]}x{sheet.shape[0]} pixels and is no grid of {COLUMNS} "
            f"images of {side} pixels in a row: say with --side how large they are."
        )
    sheet = sheet[::scale, ::scale][GAP:, GAP:]
    rows = sheet.shape[0] // step
    cells = sheet.reshape(rows, step, COLUMNS, step, 3).swapaxes(1, 2)
    return np.asarray(cells.reshape(-1, step, step, 3)[:, :side, :side])


def seams(images: np.ndarray, patch: int) -> Seams:
    """Return how flat areas of images differ across and within patches.

    Args:
        images: uint8 ``(N, H, W, C)``.
        patch: side of a patch in pixels.
    """
    view = np.lib.stride_tricks.sliding_window_view(images, (2 * patch, 2 * patch), axis=(1, 2))
    windows = view[:, ::patch, ::patch].astype(np.int16)  # (N, rows, columns, C, 2 P, 2 P)
    windows = windows.reshape(-1, *windows.shape[-3:])
    flat = (np.ptp(windows, axis=(2, 3)) <= FLAT).all(axis=1)
    coloured = windows.mean(axis=(2, 3)).min(axis=1) < WHITE
    windows = windows[flat & coloured]
    if not len(windows):
        return Seams(0, float("nan"), float("nan"))
    steps = [np.abs(np.diff(windows, axis=axis)).mean(axis=(0, 1, 5 - axis)) for axis in (2, 3)]
    mean = np.mean(steps, axis=0)  # (2 P - 1): by place in the window; the seam is in the middle
    return Seams(len(windows), float(mean[patch - 1]), float(np.delete(mean, patch - 1).mean()))


if __name__ == "__main__":
    command.run(main)
