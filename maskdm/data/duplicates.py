"""Copies of one image, so that nothing is held out that is trained on.

Two images are copies if their prepared pixels are equal; labels do not count. Images come one by
one, and each copy follows the first of its kind, so nothing is read twice. What is remembered of
them is a table of hashes, some 120 bytes an image.
"""

from hashlib import blake2b
from typing import Literal

import numpy as np

DuplicateRule = Literal["exact", "keep"]


class Duplicates:
    """The images so far, and on which side of the split each is.

    Attributes:
        copies: images that equal an earlier one.
        moved: copies that were put on the other side than their source's.
    """

    def __init__(self) -> None:
        self.copies = self.moved = 0
        self._heldout: dict[bytes, bool] = {}

    def side(self, pixels: np.ndarray, heldout: bool) -> bool:
        """Note an image and return whether it is to be held out.

        Args:
            pixels: uint8 ``(H, W, C)``, all images of one shape.
            heldout: whether its source holds it out.
        """
        key = blake2b(pixels.tobytes(), digest_size=16).digest()
        if key not in self._heldout:
            self._heldout[key] = heldout
            return heldout
        self.copies += 1
        self.moved += self._heldout[key] != heldout
        return self._heldout[key]
