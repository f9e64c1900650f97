"""Step → batch: which images, what is visible, which times, which noise.

A batch is a function of (images, schedule, seed, phase, step) and of each sample's index in the
global batch; there is no iterator to restore. Times are spread evenly over a batch behind one
random shift (Kingma et al. 2021, appendix I.1), which makes the loss much less noisy.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.randomness import stream, streams
from maskdm.diffusion.tokens import all_positions, visible_tokens
from maskdm.runtime.sharded import Images, ShardedArray, Window
from maskdm.training.order import Order
from maskdm.training.resident import ResidentImages
from maskdm.training.schedule import Schedule

WHOLE = slice(None)
CPU = torch.device("cpu")


class Batch(NamedTuple):
    """The inputs of a training step.

    Attributes:
        tokens: the clean visible patches, ``(batch, visible, p²·C)`` in [−1, 1].
        positions: their positions on the grid, ``(batch, visible)`` int64.
        noise: standard normal, shaped like ``tokens``.
        uniform: ``(batch,)`` in [0, 1), from which training times are made.
        labels: the classes, ``(batch,)`` int64, some replaced by the null label; or None.
        middle: which of the tokens the middle blocks see, ``(batch, M)`` int64; None for all.
    """

    tokens: Tensor
    positions: Tensor
    noise: Tensor
    uniform: Tensor
    labels: Tensor | None = None
    middle: Tensor | None = None

    def part(self, samples: slice) -> "Batch":
        """Return some of its samples."""
        return Batch._make(t if t is None else t[samples] for t in self)

    def to(self, device: torch.device) -> "Batch":
        """Return it on a device."""
        return Batch._make(t if t is None else sent(t, device) for t in self)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; on a GPU perhaps before it is there, in the stream's order."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # A GPU copies pinned memory by itself. Whole images share one row of positions, and torch
    # cannot pin memory that rows share.
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Batches:
    """The batches of one phase.

    Attributes:
        images: uint8 ``(count, H, W, C)``, memory-mapped or not, in shards, or on the device that
            batches are for.
        schedule: the mask and the size of the global batch at every step.
        patch: side of a patch in pixels.
        hflip: probability of mirroring an image.
        seed: the run's seed.
        phase: ``"pretrain"`` or ``"finetune"``; the phases share no random numbers.
        labels: the images' classes, int64 ``(count,)``, or None.
        classes: their number, which is also the null label.
        label_dropout: probability of showing the null label instead of the class, which teaches
            the unconditional model for guidance (Ho & Salimans 2022, algorithm 1).
        window: of the images that are shuffled together; None for all.
    """

    images: Images | ResidentImages
    schedule: Schedule
    patch: int
    hflip: float
    seed: int
    phase: str
    labels: np.ndarray | None = None
    classes: int = 0
    label_dropout: float = 0.0
    window: Window | None = None

    @property
    def order(self) -> Order:
        """The order in which the images are seen."""
        return Order(len(self.images), self.seed, self.phase, self.window)

    def indices(self, step: int) -> np.ndarray:
        """Return the indices of the images that step ``step`` (from 0) sees, ``(batch,)``."""
        return self.order.indices(
            self.schedule.images_before(step), self.schedule.images_before(step + 1)
        )

    def at(self, step: int, part: slice = WHOLE, device: torch.device = CPU) -> Batch:
        """Return the batch of step ``step`` (from 0), the same bits on every device.

        Args:
            step: from 0.
            part: which samples of it, by their indices in the global batch.
            device: where it is wanted.
        """
        everything, mask = self.indices(step), self.schedule.mask(step)
        samples = range(len(everything))[part]
        indices, length = everything[part], len(samples)
        values = self.patch**2 * self.images.shape[3]
        labels = None if self.labels is None else np.array(self.labels[indices])
        flipped = np.empty(length, bool)
        scores = np.empty((length, mask.units), np.float32)
        noise = np.empty((length, mask.shown, values), np.float32)
        for row, random in enumerate(streams(self.seed, self.phase, step, samples)):
            flipped[row] = random.random() < self.hflip
            random.random(out=scores[row], dtype=np.float32)
            random.standard_normal(out=noise[row], dtype=np.float32)
            if labels is not None and random.random() < self.label_dropout:
                labels[row] = self.classes
        shift = stream(self.seed, f"{self.phase}/times", step).random()
        uniform = ((np.array(samples) / len(everything) + shift) % 1).astype(np.float32)
        positions, middle = mask.draw(torch.from_numpy(scores)), None
        if mask.scope == "middle":
            positions, middle = all_positions(length, mask.shown, CPU), positions
        if isinstance(self.images, ResidentImages):
            positions = sent(positions, device)
        batch = Batch(
            self._tokens(step, indices, positions, flipped),
            positions,
            torch.from_numpy(noise),
            torch.from_numpy(uniform),
            None if labels is None else torch.from_numpy(labels),
            middle,
        )
        return batch.to(device)

    def _tokens(
        self, step: int, indices: np.ndarray, positions: Tensor, flipped: np.ndarray
    ) -> Tensor:
        """Return the visible patches of the images of a step, where the images are."""
        if isinstance(self.images, ResidentImages):
            which = (sent(torch.from_numpy(each), positions.device) for each in (indices, flipped))
            return self.images.visible_tokens(self.patch, positions, *which)
        images = self.images
        if isinstance(images, ShardedArray):
            images, indices = self._fetched(images, step, indices), np.arange(len(indices))
        return visible_tokens(images, self.patch, indices, positions.numpy(), flipped)

    def _fetched(self, images: ShardedArray, step: int, indices: np.ndarray) -> np.ndarray:
        """Return images of a step from their shards; those of the steps to come are asked for."""
        if self.window:
            last = self.schedule.images_before(step + 1) - 1
            images.fetch_ahead(self.order.blocks(last))
        return images[indices]
