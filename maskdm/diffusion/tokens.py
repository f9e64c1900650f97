"""Images as sets of patch tokens, and back.

A token is a patch of p×p pixels, flattened to p²·C numbers in [−1, 1]; its position is its index
on the G×G grid, row by row.
"""

import numpy as np
import torch
from torch import Tensor


def to_tokens(images: Tensor, patch: int) -> Tensor:
    """Return the patches of uint8 images as numbers in [−1, 1], ``(batch, N, p²·C)`` float32.

    Args:
        images: ``(batch, H, W, C)`` uint8.
        patch: the side p of a patch, a divisor of H and W.
    """
    return in_range(patches(images, patch))


def patches(images: Tensor, patch: int) -> Tensor:
    """Return the patches of images of any type, ``(batch, N, p²·C)``.

    Args:
        images: ``(batch, H, W, C)``.
        patch: the side p of a patch, a divisor of H and W.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    split = images.reshape(batch, rows, patch, columns, patch, channels).permute(0, 1, 3, 2, 4, 5)
    return split.reshape(batch, rows * columns, patch**2 * channels)


def to_images(tokens: Tensor, patch: int, channels: int) -> Tensor:
    """Return the uint8 images ``(batch, H, W, C)`` of all their patches, rounded and clipped."""
    pixels = ((tokens.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return to_values(pixels, patch, channels)


def to_values(tokens: Tensor, patch: int, channels: int) -> Tensor:
    """Return all patches where they stand in the image, ``(batch, H, W, C)``: undo ``patches``."""
    batch, count, _ = tokens.shape
    grid = round(count**0.5)
    split = tokens.reshape(batch, grid, grid, patch, patch, channels).permute(0, 1, 3, 2, 4, 5)
    return split.reshape(batch, grid * patch, grid * patch, channels)


def visible_tokens(
    images: np.ndarray, patch: int, indices: np.ndarray, positions: np.ndarray, flipped: np.ndarray
) -> Tensor:
    """Return the visible patches of some images; what is hidden is not even read.

    Args:
        images: uint8 ``(count, H, W, C)``, memory-mapped or not.
        patch: the side p of a patch, a divisor of H and W.
        indices: which images, ``(batch,)``.
        positions: which patches of each, ``(batch, S)``.
        flipped: bool ``(batch,)``, which images are mirrored (before patches are counted).

    Returns:
        ``(batch, S, p²·C)`` float32 in [−1, 1].
    """
    count, height, width, channels = images.shape
    per_row = width // patch
    # A line is a row of pixels within a patch, and one element, so that it is copied as one.
    line = np.dtype((np.void, patch * channels))
    lines = images.reshape(count * height * per_row, patch * channels).view(line)[:, 0]
    rows, columns = np.divmod(positions, per_row)
    columns = np.where(flipped[:, None], per_row - 1 - columns, columns)
    first = (indices[:, None] * height + rows * patch) * per_row + columns
    taken = lines.take(first[:, :, None] + per_row * np.arange(patch))  # (batch, S, p)
    visible = taken.view(np.uint8).reshape(*positions.shape, patch, patch, channels)
    visible[flipped] = visible[flipped, :, :, ::-1]
    return in_range(torch.from_numpy(visible).flatten(2))


def in_range(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [−1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def all_positions(batch: int, count: int, device: torch.device) -> Tensor:
    """Return the positions of whole images, ``(batch, count)`` int64."""
    return torch.arange(count, device=device).expand(batch, count)
