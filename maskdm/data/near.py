"""Images that are nearly the same: saved again, scaled, a little brighter.

Two images are nearly the same if their prepared pixels differ by at most ``NEAR`` of 255 levels
(root mean square, over pictures of at most ``SIDE`` pixels of them). Only images that a perceptual
hash finds alike are compared: the difference hash of 64 bits by ImageHash, of which at most
``BITS`` may differ. ``python -m benchmarks.robustness.alike`` measures what is found and what is
not. The small pictures, 3 KiB each at most, lie in a temporary file (``TMPDIR``).
"""

import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from PIL import Image

from maskdm.runtime.packages import require_package

NEAR = 3.0  # levels of 255
BITS = 3  # that may differ; one of BITS + 1 bands of the hash is then the same
SIDE = 32  # pixels, of the small pictures that are compared
MOST = 32  # images that one is compared with, those whose hashes are nearest

Seen = np.ndarray  # uint8, a small picture


class NearIndex:
    """The images so far, to be searched for one that is nearly the same."""

    def __init__(self) -> None:
        self._hash = require_package("imagehash", "data.duplicates: near", "pipeline").dhash
        self._hashes = array("Q")
        self._bands: list[defaultdict[int, array[int]]] = [
            defaultdict(lambda: array("I")) for _ in range(BITS + 1)
        ]
        # Closed, and thereby removed, with this object.
        self._small = tempfile.TemporaryFile()  # noqa: SIM115

    def first_like(self, pixels: np.ndarray) -> int | None:
        """Return the number of the nearest earlier image, None if none is near; and take it in.

        Args:
            pixels: uint8 ``(H, W, C)``; all images have one shape.
        """
        image = Image.fromarray(pixels.squeeze())
        key, small = self._key(image), self._reduced(image)
        found = self._nearest(key, small)
        for band, bucket in zip(self._parts(key), self._bands, strict=True):
            bucket[band].append(len(self._hashes))
        self._hashes.append(key)
        self._small.seek(0, 2)
        self._small.write(small.tobytes())
        return found

    def _nearest(self, key: int, small: Seen) -> int | None:
        parts = zip(self._parts(key), self._bands, strict=True)
        # Where images share a margin, most share a band: what differs too much goes at once.
        alike = [self._alike(key, bucket[band]) for band, bucket in parts if band in bucket]
        if not alike:
            return None
        numbers = np.unique(np.concatenate(alike))
        order = np.argsort(self._differing(key, numbers), kind="stable")[:MOST]
        best, least = None, NEAR
        for number in numbers[order].tolist():
            distance = self._distance(number, small)
            if distance < least or (distance == least and best is None):
                best, least = number, distance
        return best

    def _alike(self, key: int, numbers: "array[int]") -> np.ndarray:
        """Return those of some images whose hashes differ in at most ``BITS``."""
        found: np.ndarray = np.frombuffer(numbers, np.uint32)
        return found[self._differing(key, found) <= BITS]

    def _differing(self, key: int, numbers: np.ndarray) -> np.ndarray:
        """Return in how many bits the hashes of some images differ from one."""
        hashes = np.frombuffer(self._hashes, np.uint64)[numbers]
        bits: np.ndarray = np.bitwise_count(hashes ^ np.uint64(key))
        return bits

    def _distance(self, number: int, small: Seen) -> float:
        self._small.seek(number * small.size)
        other = np.frombuffer(self._small.read(small.size), np.uint8)
        difference = small.ravel().astype(np.float32) - other
        return float(np.sqrt((difference**2).mean()))

    def _key(self, image: Image.Image) -> int:
        bits = self._hash(image).hash.ravel()
        return int.from_bytes(np.packbits(bits).tobytes(), "big")

    @staticmethod
    def _parts(key: int) -> Iterator[int]:
        width = 64 // (BITS + 1)
        return ((key >> (width * band)) & ((1 << width) - 1) for band in range(BITS + 1))

    @staticmethod
    def _reduced(image: Image.Image) -> Seen:
        if max(image.size) > SIDE:
            image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(image)
