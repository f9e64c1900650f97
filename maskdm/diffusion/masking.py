"""Masks: which patches of an image stay visible (patch-wise, block-wise, cropping).

A mask is given by what it leaves: the positions of the visible patches on the G×G grid, row by
row (MaskDM, section 3; counts as in the authors' code). Every image of a batch shows the same
number of patches, so the visible set is a plain ``(batch, visible)`` index and hidden patches
cost nothing. Randomness is an argument: uniform numbers in, positions out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Section


class MaskParams(Section):
    """The section ``mask``: what masked pretraining hides."""

    strategy: Literal["patch", "block", "crop"] = Field(
        description="patch (single patches), block (whole blocks) or crop (one square window)"
    )
    rate: float = Field(ge=0, lt=1, description="the share of patches hidden, 0 <= rate < 1")
    block_size: int = Field(
        ge=1, description="side of a block in patches, a divisor of the grid's side (block only)"
    )
    scope: Literal["image", "middle"] = Field(
        "image",
        description="image (the network sees the visible patches alone) or middle (its first and "
        "last block see all, the blocks between them the visible ones)",
    )


def patch_wise(scores: Tensor, visible: int) -> Tensor:
    """Return the indices of the ``visible`` smallest scores: a uniform random subset.

    Args:
        scores: independent uniform numbers, ``(batch, units)``.
        visible: how many units stay.

    Returns:
        ``(batch, visible)`` int64, ascending.
    """
    largest = scores.kthvalue(visible, dim=1, keepdim=True).values
    shown = scores <= largest
    tied = shown.sum(dim=1) > visible  # by equal scores; which of them count, sorting decides
    if tied.any():
        smallest = scores[tied].argsort(dim=1)[:, :visible]
        shown[tied] = torch.zeros_like(shown[tied]).scatter(1, smallest, True)
    return shown.nonzero()[:, 1].view(len(scores), visible)


def block_wise(scores: Tensor, visible_blocks: int, grid: int, block_size: int) -> Tensor:
    """Return the patches of a uniform random subset of the aligned B×B blocks.

    Args:
        scores: independent uniform numbers, ``(batch, (grid / block_size)²)``.
        visible_blocks: how many blocks stay.
        grid: the side G of the patch grid.
        block_size: the side B of a block, a divisor of ``grid``.

    Returns:
        ``(batch, visible_blocks · B²)`` int64, ascending.
    """
    blocks = patch_wise(scores, visible_blocks)
    per_row = grid // block_size
    corner = (blocks // per_row) * block_size * grid + (blocks % per_row) * block_size
    inside = torch.arange(block_size, device=scores.device)
    offsets = (inside[:, None] * grid + inside).flatten()
    return (corner[:, :, None] + offsets).flatten(1).sort(dim=1).values


def crop(scores: Tensor, side: int, grid: int) -> Tensor:
    """Return the patches of one square window, its corner uniform over all that fit.

    Args:
        scores: one uniform number an image, ``(batch, 1)``.
        side: the side c of the window in patches.
        grid: the side G of the patch grid.

    Returns:
        ``(batch, c²)`` int64, ascending.
    """
    corners = grid - side + 1  # a row of them
    window = (scores * corners**2).long()
    corner = (window // corners) * grid + window % corners
    inside = torch.arange(side, device=scores.device)
    return corner + (inside[:, None] * grid + inside).flatten()


@dataclass(frozen=True)
class Mask:
    """A masking rule on a given grid: how many patches it shows and how it draws them.

    Attributes:
        grid: the side G of the patch grid; an image has N = G² patches.
        visible: the number S of patches shown, the same for every image.
        units: how many uniform numbers an image needs.
        draw: uniform numbers ``(batch, units)`` → positions ``(batch, visible)``, ascending.
        strategy: ``"patch"``, ``"block"``, ``"crop"``, or ``"none"`` if nothing is hidden.
        asked: the nominal mask rate.
        scope: ``"image"``, or ``"middle"`` if only the network's middle blocks are masked
            (SPRINT, Park et al. 2025, arXiv 2510.21986).
    """

    grid: int
    visible: int
    units: int
    draw: Callable[[Tensor], Tensor]
    strategy: str
    asked: float
    scope: str = "image"

    @property
    def shown(self) -> int:
        """How many patches of an image the network is given."""
        return self.grid**2 if self.scope == "middle" else self.visible

    @property
    def in_middle(self) -> int | None:
        """How many of these the middle blocks see; None for all."""
        return self.visible if self.scope == "middle" else None

    @property
    def rate(self) -> float:
        """The true mask rate, 1 − S/N, which differs from the nominal one by rounding."""
        return 1 - self.visible / self.grid**2

    @property
    def identity(self) -> list[str | int]:
        """What decides which patches it draws; nominal rates that round to one mask share it."""
        scope = [self.scope] if self.scope != "image" else []
        return [self.strategy, self.grid, self.visible, self.units, *scope]


def make_mask(params: MaskParams, grid: int) -> Mask:
    """Return the mask of ``params`` on a G×G grid.

    Patch and block masks hide ⌊m·units⌋ of their units; a crop shows the largest window of at
    most the S = N − ⌊m·N⌋ patches that a patch mask would show, c = ⌊√S⌋ (docs/method.md,
    "Masks").

    Raises:
        UserError: if the block size does not divide the grid, or nothing would stay visible.
    """
    mask = _image_mask(params, grid)
    if not mask.visible:
        raise UserError(
            f"mask.rate is {params.rate}, which leaves nothing visible on the {grid}×{grid} grid "
            "of patches: lower it."
        )
    return replace(mask, scope=params.scope) if mask.visible < grid**2 else mask


def _image_mask(params: MaskParams, grid: int) -> Mask:
    """Return the mask of ``params`` on whole networks."""
    rate = params.rate
    if rate == 0:
        return nothing_masked(grid)
    if params.strategy == "patch":
        units = grid**2
        visible = units - _hidden(rate, units)
        return Mask(grid, visible, units, partial(patch_wise, visible=visible), "patch", rate)
    if params.strategy == "block":
        size = params.block_size
        if grid % size:
            allowed = [d for d in range(1, grid + 1) if grid % d == 0]
            raise UserError(
                f"mask.block_size is {size}, which does not divide the {grid}×{grid} grid of "
                f"patches. Allowed here: {', '.join(map(str, allowed))}."
            )
        blocks = (grid // size) ** 2
        kept = blocks - _hidden(rate, blocks)
        visible = kept * size**2
        draw = partial(block_wise, visible_blocks=kept, grid=grid, block_size=size)
        return Mask(grid, visible, blocks, draw, "block", rate)
    side = isqrt(grid**2 - _hidden(rate, grid**2))
    return Mask(grid, side**2, 1, partial(crop, side=side, grid=grid), "crop", rate)


def _hidden(rate: float, units: int) -> int:
    """Return ⌊m·units⌋, with no unit lost to 0.29 · 100 being 28.999…6."""
    return int(rate * units + 1e-9)


def describe(mask: Mask) -> str:
    """Return one line on what the mask shows; it says so if the grid cannot express the rate."""
    total = mask.grid**2
    line = (
        f"mask: {mask.strategy}, {mask.visible} of {total} patches visible, "
        f"true mask rate {mask.rate:.3f} (asked for {mask.asked:g})"
    )
    if mask.scope == "middle":
        line += ", by the middle blocks alone"
    if abs(mask.rate - mask.asked) > 0.02:
        line += (
            f". The {mask.grid}×{mask.grid} grid cannot express {mask.asked:g} within 2 points: "
            "compare runs by the true rate"
        )
    return line


def nothing_masked(grid: int) -> Mask:
    """Return the mask that shows whole images and needs no random numbers."""
    total = grid**2

    def draw(scores: Tensor) -> Tensor:
        return torch.arange(total, device=scores.device).expand(len(scores), -1)

    return Mask(grid, total, 0, draw, "none", 0.0)
