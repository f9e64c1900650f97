"""Copies of one image, so that nothing is held out that is trained on.

Two images are copies if their prepared pixels are equal; labels do not count. Images come one by
one, and each copy follows the first of its kind, so nothing is read twice. What is remembered of
them is a table of hashes, some 120 bytes an image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

from maskdm.data.prepared import Sample, Unreadable

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

    def together(self, samples: Iterable[Sample | Unreadable]) -> Iterator[Sample | Unreadable]:
        """Yield samples with all copies of an image on the side of the first of them."""
        for sample in samples:
            if isinstance(sample, Unreadable):
                yield sample
                continue
            key = blake2b(sample.pixels.tobytes(), digest_size=16).digest()
            self.copies += key in self._heldout
            heldout = self._heldout.setdefault(key, sample.heldout)
            self.moved += heldout != sample.heldout
            yield replace(sample, heldout=heldout)
