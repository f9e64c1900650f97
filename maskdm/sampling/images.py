"""Images as a list that a notebook shows as a grid."""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from maskdm.runtime.errors import UserError

COLUMNS = 8  # images in a row
GAP = 2  # pixels between images, which are white
SIDE = 128  # pixels of an image's side at least, as it is shown


def pictures(pixels: np.ndarray) -> Iterator[Image.Image]:
    """Yield uint8 ``(count, H, W, C)``, C = 1 or 3, as PIL images, one at a time."""
    return (Image.fromarray(image.squeeze()) for image in pixels)


class Images(list[Image.Image]):
    """PIL images of one size; as the last value of a notebook's cell they are shown as a grid."""

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Images":
        """Return uint8 ``(count, H, W, C)``, C = 1 or 3, as PIL images."""
        return cls(pictures(pixels))

    def grid(self, columns: int = COLUMNS) -> Image.Image:
        """Return the images side by side on white, row by row, small ones enlarged.

        Args:
            columns: images in a row, at least 1; fewer if there are not so many.

        Raises:
            UserError: if there are no images, or no columns.
        """
        if not self or columns < 1:
            raise UserError(
                f"A grid of {len(self)} images in {columns} columns: it takes at least one of each."
            )
        columns = min(columns, len(self))
        scale = max(1, SIDE // self[0].width)
        width, height = (side + GAP for side in self[0].size)
        rows = -(-len(self) // columns)
        sheet = Image.new(self[0].mode, (columns * width + GAP, rows * height + GAP), "white")
        for index, image in enumerate(self):
            row, column = divmod(index, columns)
            sheet.paste(image, (column * width + GAP, row * height + GAP))
        return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)

    def _repr_png_(self) -> bytes | None:
        """Return the grid as a PNG, which is what Jupyter asks for; None of no images."""
        if not self:
            return None
        buffer = BytesIO()
        self.grid().save(buffer, "png")
        return buffer.getvalue()
