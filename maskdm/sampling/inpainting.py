"""Inpainting: what is known of an image stays, and what is drawn around it has to fit.

At every level the known part of x_t is the image noised to that level (Song et al. 2021, appendix
I.2; Lugmayr et al. 2022, RePaint, eq. 8). Here the known part of the *estimate* of x0 is replaced
by the image. That is the same, for a solver goes to the next level as its estimate says: where that
is the image, x_t = α·x0 + σ·ε is the image with its own noise ε. So every solver can do it, and the
sample, which is the last estimate, has the known pixels exactly.

RePaint also goes back and forth between levels, at a multiple of the cost; that is left out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskdm.diffusion.paths import Level
from maskdm.diffusion.reverse import X0Denoiser
from maskdm.diffusion.tokens import patches, to_tokens
from maskdm.runtime.errors import UserError

Picture = Image.Image | np.ndarray
MODES = {1: "L", 3: "RGB"}  # channels: mode
EXACT = {"L": ("1", "L"), "RGB": ("1", "L", "P", "RGB")}  # what becomes that without loss
HALF = 128  # grey levels from here on are white


@dataclass(frozen=True)
class Known:
    """What is known of an image.

    Attributes:
        tokens: the image in [−1, 1], ``(N, p²·C)``.
        where: which of its numbers are known, bool ``(N, p²·C)``.
    """

    tokens: Tensor
    where: Tensor

    def to(self, device: torch.device) -> "Known":
        """Return it on a device."""
        return Known(self.tokens.to(device), self.where.to(device))

    def noisy(self, x: Tensor, noise: Tensor, level: Level[float]) -> Tensor:
        """Return x_t, ``(batch, N, p²·C)``, with its known part noised to its level."""
        return torch.where(self.where, level.noisy(self.tokens, noise), x)

    def kept(self, denoise: X0Denoiser) -> X0Denoiser:
        """Return the x0-denoiser whose estimate has what is known."""
        return lambda x, time: torch.where(self.where, self.tokens, denoise(x, time))


def known_part(image: Picture, mask: Picture, size: int, channels: int, patch: int) -> Known:
    """Return what is known of an image: all pixels where the mask is black.

    Args:
        image: PIL, opaque, or uint8 ``(size, size)`` or ``(size, size, channels)``.
        mask: white where new pixels are wanted: PIL, or bool or uint8 ``(size, size)``. Grey from
            128 on is white. A pixel can be known whose neighbour in the patch is not, since tokens
            are pixels.
        size: side of the model's images.
        channels: of them, 1 or 3.
        patch: side of a patch.

    Raises:
        UserError: saying what does not fit the model, or that nothing is to be drawn.
    """
    pixels, wanted = _pixels(image, size, channels), _wanted(mask, size)
    if not wanted.any():
        raise UserError(
            "The mask is black everywhere, which asks for nothing: make it white (255, or True in "
            "an array) where new pixels are wanted."
        )
    tokens = to_tokens(torch.from_numpy(pixels)[None], patch)[0]
    known = np.broadcast_to(~wanted[:, :, None], pixels.shape).copy()
    return Known(tokens, patches(torch.from_numpy(known)[None], patch)[0])


def _pixels(image: Picture, size: int, channels: int) -> np.ndarray:
    """Return an image as uint8 ``(size, size, channels)``."""
    mode = MODES[channels]
    if isinstance(image, Image.Image):
        # Others lose something on the way, and could not come back as they were.
        if image.mode not in EXACT[mode] or image.has_transparency_data:
            raise UserError(
                f"The image is of mode {image.mode}"
                f"{', transparent in part' if image.has_transparency_data else ''}, and the model "
                f"draws {mode}: convert it, image.convert('{mode}')."
            )
        image = np.asarray(image.convert(mode))
    pixels = image[:, :, None] if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, channels):
        raise UserError(
            f"The image is an array {image.shape} of {image.dtype}: give a PIL image, or uint8 "
            f"({size}, {size}, {channels})."
        )
    _check_size("image", pixels.shape, size)
    return np.broadcast_to(pixels, (size, size, channels)).copy()


def _wanted(mask: Picture, size: int) -> np.ndarray:
    """Return where a mask is white, bool ``(size, size)``."""
    grey = np.asarray(mask.convert("L")) if isinstance(mask, Image.Image) else mask
    if grey.ndim != 2 or grey.dtype not in (np.uint8, np.bool_):
        raise UserError(
            f"The mask is an array {grey.shape} of {grey.dtype}: give a PIL image, or bool or "
            f"uint8 ({size}, {size})."
        )
    _check_size("mask", grey.shape, size)
    return grey if grey.dtype == np.bool_ else grey >= HALF


def _check_size(what: str, shape: tuple[int, ...], size: int) -> None:
    height, width = shape[:2]
    if (height, width) != (size, size):
        raise UserError(
            f"The {what} has {width}x{height} pixels, and the model draws {size}x{size}: resize "
            f"it, {what}.resize(({size}, {size}))."
        )
