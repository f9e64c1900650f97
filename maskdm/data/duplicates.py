"""Copies of one image, so that nothing is held out that is trained on.

Two images are copies if their prepared pixels are equal; labels do not count. With ``near`` those
that differ a little are copies, too. Images come one by one, and each copy follows the first of its
kind, so nothing is read twice. What is remembered of them is a table of hashes, some 120 bytes an
image, and what ``near`` needs.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

from maskdm.data.near import NearIndex
from maskdm.data.prepared import Sample, Unreadable
from maskdm.runtime.errors import UserError

DuplicateRule = Literal["near", "exact", "keep"]


class Duplicates:
    """The images so far, and on which side of the split each is.

    Args:
        near: whether images that are nearly the same are copies, too; of several, the nearest
            earlier one is followed.

    Attributes:
        copies: images that equal an earlier one.
        alike: images that are nearly the same as an earlier one, and equal none.
        moved: copies of both kinds that were put on the other side than their source's.

    Raises:
        UserError: if ``near`` and a package for it is missing.
    """

    def __init__(self, near: bool = False) -> None:
        self.copies = self.alike = self.moved = 0
        self._heldout: dict[bytes, bool] = {}
        self._index = NearIndex() if near else None
        self._sides = bytearray()  # of the images of the index

    def together(self, samples: Iterable[Sample | Unreadable]) -> Iterator[Sample | Unreadable]:
        """Yield samples with all copies of an image on the side of the first of them.

        Raises:
            UserError: if all images are on one side, and would not be without this.
        """
        sides = Counter[bool]()
        for sample in samples:
            if isinstance(sample, Unreadable):
                yield sample
                continue
            heldout = self._side(sample)
            self.moved += heldout != sample.heldout
            sides[heldout] += 1
            yield replace(sample, heldout=heldout)
        if self.moved and len(sides) == 1:
            finer = "exact or keep" if self.alike else "keep"
            raise UserError(
                f"All {sides.total()} images are on one side of the split, since copies follow "
                f"the image that they are of: {self.said()}. Set data.duplicates to {finer}, or "
                "add images that are others."
            )

    def _side(self, sample: Sample) -> bool:
        """Return whether an image is held out, and remember it."""
        key = blake2b(sample.pixels.tobytes(), digest_size=16).digest()
        if key in self._heldout:
            self.copies += 1
            return self._heldout[key]
        heldout = sample.heldout
        if self._index is not None:
            like = self._index.first_like(sample.pixels)
            if like is not None:
                self.alike += 1
                heldout = bool(self._sides[like])
            self._sides.append(heldout)
        self._heldout[key] = heldout
        return heldout

    def said(self) -> str | None:
        """Return what was found, as a sentence; None if nothing was."""
        found = [
            f"{count} {what}"
            for count, what in (
                (self.copies, "images equal an earlier one"),
                (self.alike, "are nearly the same as one"),
            )
            if count
        ]
        if not found:
            return None
        sides = f"{self.moved} of them were put on its side of the split (data.duplicates)"
        return f"{', '.join(found)}; {sides}"
