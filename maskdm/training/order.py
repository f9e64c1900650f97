"""The order of the images in an epoch: a function of (count, window, seed, phase, epoch).

Either a permutation of all images, or, for sets of which only a part is at hand at a time, one in
windows: the blocks of the set are permuted, and so are the images in every few blocks that follow
one another in that permutation. It does not depend on where the images are.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from maskdm.diffusion.randomness import stream
from maskdm.runtime.sharded import Window

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order of images, epoch after epoch.

    Memory is for two epochs of indices, or for a few windows and the indices of the blocks.

    Attributes:
        count: of the images.
        seed: the run's seed.
        phase: ``"pretrain"`` or ``"finetune"``.
        window: of what is permuted together; None for all images.
    """

    count: int
    seed: int
    phase: str
    window: Window | None = None

    def indices(self, first: int, end: int) -> Indices:
        """Return which images come at the places from ``first`` to before ``end``, over all epochs.

        Returns:
            ``(end - first,)``.
        """
        found = []
        while first < end:
            epoch, place = divmod(first, self.count)
            start, images = self._around(epoch, place)
            found.append(images[place - start : place - start + end - first])
            first += len(found[-1])
        return np.concatenate(found)

    def blocks(self, place: int) -> list[int]:
        """Return the blocks of the window around a place, and those of the one that follows."""
        if self.window is None:
            raise ValueError("an order without a window has no blocks")
        epoch, place = divmod(place, self.count)
        blocks, ends = _blocks(self, epoch)
        window, length = int(np.searchsorted(ends, place, "right")), self._length
        found = blocks[window * length : (window + 2) * length].tolist()
        if window + 1 == len(ends):
            found += _blocks(self, epoch + 1)[0][:length].tolist()
        return list(dict.fromkeys(found))

    @property
    def _length(self) -> int:
        """Blocks in a window."""
        return -(-self.window.images // self.window.block) if self.window else 1

    def _around(self, epoch: int, place: int) -> tuple[int, Indices]:
        """Return where the window around a place of an epoch begins, and its images in order."""
        if self.window is None:
            return 0, _permutation(self.count, self.seed, self.phase, epoch)
        _, ends = _blocks(self, epoch)
        window = int(np.searchsorted(ends, place, "right"))
        return int(ends[window - 1]) if window else 0, _images(self, epoch, window)


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, phase: str, epoch: int) -> Indices:
    """Return the order of all images in one epoch, ``(count,)``."""
    return stream(seed, f"{phase}/order", epoch).permutation(count)


@lru_cache(maxsize=2)
def _blocks(order: Order, epoch: int) -> tuple[Indices, Indices]:
    """Return the order of the blocks in one epoch, and the places at which its windows end."""
    assert order.window is not None
    block = order.window.block
    blocks = stream(order.seed, f"{order.phase}/blocks", epoch).permutation(
        -(-order.count // block)
    )
    images = np.minimum(block, order.count - block * blocks)  # the last one may have fewer
    starts = np.arange(0, len(blocks), order._length)
    return blocks, np.add.reduceat(images, starts).cumsum()


@lru_cache(maxsize=4)  # batches of several steps are made at once
def _images(order: Order, epoch: int, window: int) -> Indices:
    """Return the images of one window in their order."""
    assert order.window is not None
    blocks, block, length = _blocks(order, epoch)[0], order.window.block, order._length
    images = blocks[window * length : (window + 1) * length, None] * block + np.arange(block)
    random = stream(order.seed, f"{order.phase}/window", epoch, window)
    return random.permutation(images[images < order.count])
