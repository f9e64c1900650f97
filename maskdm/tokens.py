"""Images as sets of patch tokens, and back.

A token is a patch of p×p pixels, flattened to p²·C numbers in [−1, 1]; its position is its place
on the G×G grid, row by row.
"""

import torch
from torch import Tensor


def to_tokens(images: Tensor, patch: int) -> Tensor:
    """Return the patches of uint8 images as numbers in [−1, 1].

    Args:
        images: ``(batch, H, W, C)`` uint8.
        patch: the side p of a patch, a divisor of H and W.

    Returns:
        ``(batch, N, p²·C)`` float32.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    split = images.view(batch, rows, patch, columns, patch, channels).permute(0, 1, 3, 2, 4, 5)
    return split.reshape(batch, rows * columns, patch**2 * channels).float() / 127.5 - 1


def to_images(tokens: Tensor, patch: int, channels: int) -> Tensor:
    """Return the uint8 images ``(batch, H, W, C)`` of all their patches, rounded and clipped."""
    batch, count, _ = tokens.shape
    grid = round(count**0.5)
    pixels = ((tokens.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    split = pixels.view(batch, grid, grid, patch, patch, channels).permute(0, 1, 3, 2, 4, 5)
    return split.reshape(batch, grid * patch, grid * patch, channels)


def visible_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """Return the tokens at ``positions``: ``(batch, N, c)`` and ``(batch, S)`` → ``(batch, S, c)``.

    A gather by index, since boolean masks break compiled graphs.
    """
    return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[2]))


def all_positions(batch: int, count: int, device: torch.device) -> Tensor:
    """Return the positions of whole images, ``(batch, count)`` int64."""
    return torch.arange(count, device=device).expand(batch, count)
