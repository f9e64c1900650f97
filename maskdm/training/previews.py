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
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.predictions import to_x0
from maskdm.diffusion.randomness import stream
from maskdm.diffusion.reverse import sampling_grid, towards
from maskdm.diffusion.tokens import all_positions

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
        self.path = PATHS[params.path]
        self.grid = sampling_grid(self.path, LEVELS)
        noise = np.empty((COUNT, (size // patch) ** 2, patch**2 * channels), np.float32)
        for sample in range(COUNT):
            # The seed of a run must not change what its previews start from.
            stream(0, "previews", 0, sample).standard_normal(out=noise[sample], dtype=np.float32)
        self.noise = torch.from_numpy(noise).to(device)
        self.positions = all_positions(COUNT, self.noise.shape[1], device)
        self.labels = torch.arange(COUNT, device=device) % classes if classes else None

    @torch.no_grad()  # inference_mode would spoil the tensors that sharded weights are gathered in
    def draw(self, denoise: Callable[..., Tensor]) -> np.ndarray:
        """Return the images, uint8 ``(COUNT, H, W, C)``.

        Args:
            denoise: ``(tokens, positions, time, labels)`` → the network's output.
        """
        x = self.grid[0].sigma * self.noise
        for here, there in zip(self.grid, [*self.grid[1:], None], strict=True):
            time = x.new_full((len(x),), here.time)
            output = denoise(x, self.positions, time, self.labels).float()
            level = self.path.level(time, like=x)
            x0 = to_x0(output, x, level, self.params.prediction).clamp(-1, 1)
            x = x0 if there is None else towards(x, x0, here, there)
        return images_of(x, self.patch, self.channels, self.codec)
