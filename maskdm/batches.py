"""Step → batch: which images, what is visible, which times, which noise.

A batch is a function of (images, mask, seed, phase, step) and of each sample's place in the
global batch; there is no iterator to restore. Times are spread evenly over a batch behind one
random shift (Kingma et al. 2021, appendix I.1), which makes the loss much less noisy.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskdm.masking import Mask
from maskdm.randomness import stream
from maskdm.tokens import to_tokens, visible_tokens


class Batch(NamedTuple):
    """What a training step is computed from.

    Attributes:
        tokens: the clean visible patches, ``(batch, visible, p²·C)`` in [−1, 1].
        positions: their places, ``(batch, visible)`` int64.
        noise: standard normal, shaped like ``tokens``.
        uniform: ``(batch,)`` in [0, 1), from which training times are made.
    """

    tokens: Tensor
    positions: Tensor
    noise: Tensor
    uniform: Tensor


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, phase: str, epoch: int) -> np.ndarray:
    """Return the order of the images in one epoch, ``(count,)``."""
    return stream(seed, f"{phase}/order", epoch).permutation(count)


@dataclass(frozen=True)
class Batches:
    """The batches of one phase.

    Attributes:
        images: uint8 ``(count, H, W, C)``, memory-mapped or not.
        mask: what stays visible.
        patch: side of a patch in pixels.
        batch_size: images in the global batch.
        hflip: probability of mirroring an image.
        seed: the run's seed.
        phase: ``"pretrain"`` or ``"finetune"``; the phases share no random numbers.
    """

    images: np.ndarray
    mask: Mask
    patch: int
    batch_size: int
    hflip: float
    seed: int
    phase: str

    def indices(self, step: int) -> np.ndarray:
        """Return which images step ``step`` (from 0) sees, ``(batch_size,)``."""
        count = len(self.images)
        seen = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = np.unique(seen // count)
        orders = {e: _permutation(count, self.seed, self.phase, int(e)) for e in epochs}
        return np.array([orders[g // count][g % count] for g in seen])

    def at(self, step: int, device: torch.device) -> Batch:
        """Return the batch of step ``step`` (from 0) on ``device``."""
        length, visible = self.batch_size, self.mask.visible
        images = np.array(self.images[self.indices(step)])
        scores = np.empty((length, self.mask.units), np.float32)
        noise = np.empty((length, visible, self.patch**2 * images.shape[3]), np.float32)
        for place in range(length):
            random = stream(self.seed, self.phase, step, place)
            if random.random() < self.hflip:
                images[place] = images[place, :, ::-1]
            random.random(out=scores[place], dtype=np.float32)
            random.standard_normal(out=noise[place], dtype=np.float32)
        shift = stream(self.seed, f"{self.phase}/times", step).random()
        uniform = ((np.arange(length) / length + shift) % 1).astype(np.float32)
        tokens = to_tokens(torch.from_numpy(images).to(device), self.patch)
        positions = self.mask.draw(torch.from_numpy(scores).to(device))
        return Batch(
            visible_tokens(tokens, positions),
            positions,
            torch.from_numpy(noise).to(device),
            torch.from_numpy(uniform).to(device),
        )
