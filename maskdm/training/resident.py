"""Sets that fit go to the GPU once, and batches are cut from them there.

So what is sent for a batch is which patches and which noise, half of the bytes, and no thread
copies pixels. On a CPU the prepared set is memory-mapped, which is as near.
"""

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.tokens import in_range
from maskdm.runtime.sharded import Images, ShardedArray

SHARE = 1 / 16  # of a GPU's memory that a set may take
AT_ONCE = 2**26  # bytes that are copied at a time


class ResidentImages:
    """Images in the memory of a device.

    Args:
        images: uint8 ``(count, H, W, C)``, memory-mapped or not.
        device: where they go.
    """

    def __init__(self, images: np.ndarray, device: torch.device) -> None:
        self.shape: tuple[int, ...] = images.shape
        self.pixels = torch.empty(images.shape, dtype=torch.uint8, device=device)
        few = max(1, AT_ONCE // max(1, images[:1].nbytes))
        for first in range(0, len(images), few):
            # A copy, since what is mapped for reading cannot be a tensor.
            self.pixels[first : first + few].copy_(torch.from_numpy(np.array(images[first:][:few])))
        # Looked up, since a GPU multiplies by 1 / 127.5 instead of dividing, to other last bits.
        self.levels = in_range(torch.arange(256, dtype=torch.uint8)).to(device)

    def __len__(self) -> int:
        """Return how many they are."""
        return self.shape[0]

    def visible_tokens(
        self, patch: int, positions: Tensor, indices: Tensor, flipped: Tensor
    ) -> Tensor:
        """Return what ``maskdm.diffusion.tokens.visible_tokens`` returns, to the same bits.

        Args:
            patch: the side p of a patch, a divisor of H and W.
            positions: which patches, ``(batch, S)`` int64, like the rest on the images' device.
            indices: of which images, ``(batch,)`` int64.
            flipped: bool ``(batch,)``, which images are mirrored.

        Returns:
            ``(batch, S, p²·C)`` float32 in [−1, 1], on the device.
        """
        _, height, width, channels = self.shape
        per_row = width // patch
        rows, columns = positions // per_row, positions % per_row
        columns = torch.where(flipped[:, None], per_row - 1 - columns, columns)
        first = (indices[:, None] * height + rows * patch) * per_row + columns
        lines = first[:, :, None] + per_row * torch.arange(patch, device=first.device)
        taken = self.pixels.view(-1, patch, channels)[lines]  # (batch, S, p, p, C)
        taken = torch.where(flipped[:, None, None, None, None], taken.flip(3), taken)
        return self.levels[taken.flatten(2).int()]


def resident(images: Images, device: torch.device) -> Images | ResidentImages:
    """Return images in the memory of a GPU, or as they are where they do not fit or there is none.

    Args:
        images: uint8 ``(count, H, W, C)``, memory-mapped or not, or in shards.
        device: on which steps are computed.
    """
    if isinstance(images, ShardedArray) or images.nbytes > room(device):
        return images
    return ResidentImages(images, device)


def room(device: torch.device) -> int:
    """Return the bytes that a set may take of a device."""
    if device.type != "cuda":
        return 0
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return int(SHARE * memory)
