"""Previews: what the averaged model draws on the way, always from the same noise.

DDIM on a short grid, without guidance: one sees the primer form and then contract. The pictures are
a function of the weights alone, and part of the history: a run that goes on has those before, too.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from maskdm.backbones.autoencoder import Codec
from maskdm.backbones.decoding import images_of
from maskdm.diffusion.estimate import x0_estimate
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.randomness import normal
from maskdm.diffusion.reverse import ddim, sampling_grid

COUNT = 10  # images of a preview
LEVELS = 10  # noise levels, each an evaluation of the network


class Previewer:
    """Draws the same images with whatever network it is given.

    Args:
        size: side of what the network sees, images or latents.
        channels: of it.
        patch: side of a patch.
        params: the section ``diffusion``.
        device: where to compute.
        classes: their number; image i is of class i, over and over. 0 without classes.
        codec: what decodes latents; None if the network sees pixels.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        patch: int,
        params: DiffusionParams,
        device: torch.device,
        classes: int = 0,
        codec: Codec | None = None,
    ) -> None:
        self.params, self.patch, self.channels, self.codec = params, patch, channels, codec
        self.grid = sampling_grid(PATHS[params.path], LEVELS)
        shape = ((size // patch) ** 2, patch**2 * channels)
        # The seed of a run must not change what its previews start from.
        self.noise = normal(0, "previews", 0, range(COUNT), shape).to(device)
        self.labels = torch.arange(COUNT, device=device) % classes if classes else None

    @torch.no_grad()  # inference_mode would spoil the tensors that sharded weights are gathered in
    def draw(self, denoise: Callable[..., Tensor]) -> np.ndarray:
        """Return the images, uint8 ``(COUNT, H, W, C)``.

        Args:
            denoise: ``(tokens, positions, time, labels)`` → the network's output.
        """

        def clipped(x: Tensor, time: Tensor) -> Tensor:
            return x0_estimate(denoise, x, time, self.labels, self.params).clamp(-1, 1)

        start = self.grid[0].sigma * self.noise
        *_, x0 = ddim(clipped, start, self.grid, eta=0.0, noise=lambda step: start)
        return images_of(x0, self.patch, self.channels, self.codec)
