"""What follows the blocks on whole images: a small convolution over the pixels, across all seams.

A linear head writes every patch by itself, so that flat areas show the grid of patches. U-ViT ends
in a convolution for that reason (Bao et al. 2023, section 3.1); MaskDM leaves it out, since a
subset of patches has no neighbours. Here it acts where there are all of them: in finetuning and in
sampling. It starts as the identity and stays it in masked pretraining, which does not use it: there
AdamW's decay alone shrinks what stands before its last layer, whose weights are 0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdm.backbones.layers import embed_time
from maskdm.diffusion.tokens import patches, to_values

FREQUENCIES = 64  # inputs of the layer that steers it by time
KERNEL = 3  # pixels


class Refiner(nn.Module):
    """Adds to the prediction of a whole image what two convolutions make of it.

    They see the prediction and the noisy image, and are steered by time.

    Args:
        grid: patches along a side of the image.
        patch: side of a patch in pixels.
        channels: of the image.
        width: channels between the two convolutions.
    """

    def __init__(self, grid: int, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.grid, self.patch, self.channels, self.width = grid, patch, channels, width
        self.enter = nn.Conv2d(2 * channels, width, KERNEL, padding="same")
        self.steer = nn.Linear(FREQUENCIES, 2 * width)
        self.leave = nn.Conv2d(width, channels, KERNEL, padding="same")
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, prediction: Tensor, noisy: Tensor, positions: Tensor, time: Tensor) -> Tensor:
        """Refine ``prediction``, ``(batch, N, p²·C)``, where all N patches are visible.

        Args:
            prediction: what the blocks say.
            noisy: the tokens that they saw, the same shape.
            positions: of the patches, ``(batch, N)`` int64, in any order.
            time: ``(batch,)``.
        """
        if positions.shape[1] < self.grid**2:
            # Its weights stay part of the graph: processes that average gradients expect them all.
            return prediction + 0 * torch.stack([p.sum() for p in self.parameters()]).sum()
        order = positions.argsort(dim=1)[:, :, None].expand_as(prediction)
        seen = [self.image(tokens.gather(1, order)) for tokens in (prediction, noisy)]
        steer = self.steer(embed_time(time, FREQUENCIES).to(prediction.dtype))
        scale, shift = steer[:, :, None, None].chunk(2, dim=1)
        hidden = functional.gelu(self.enter(torch.cat(seen, dim=1)) * (1 + scale) + shift)
        change = self.tokens(self.leave(hidden))
        return prediction + torch.empty_like(change).scatter(1, order, change)

    def image(self, tokens: Tensor) -> Tensor:
        """Return tokens in the order of the grid as an image, ``(batch, C, H, W)``."""
        image = to_values(tokens, self.patch, self.channels).permute(0, 3, 1, 2)
        # Channels last would be another convolution, with other last bits.
        return image.contiguous()

    def tokens(self, image: Tensor) -> Tensor:
        """Return an image as tokens in the order of the grid."""
        return patches(image.permute(0, 2, 3, 1), self.patch)

    def multiplies(self, visible: int) -> int:
        """Return the multiply-adds of one image of which ``visible`` patches are shown."""
        if visible < self.grid**2:
            return 0
        pixels = (self.grid * self.patch) ** 2
        return (pixels * KERNEL**2 * 3 * self.channels + 2 * FREQUENCIES) * self.width
