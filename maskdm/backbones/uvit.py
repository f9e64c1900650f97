"""U-ViT on token sets (Bao et al. 2023; as MaskDM uses it: no final convolution).

Tokens are gathered *before* they are embedded, and the position embedding is looked up for the
visible places only, so a hidden patch costs nothing. Time and class are tokens like any other,
and never masked.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.layers import (
    Attention,
    check_sizes,
    embed_places,
    embed_time,
    linears,
    mlp,
    resample_places,
    scale_by_inputs,
)
from maskdm.runtime.errors import UserError


class Block(nn.Module):
    """A pre-norm transformer block; an out-block first merges its long skip, D from 2D."""

    def __init__(self, dim: int, heads: int, merges_skip: bool) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * dim, dim) if merges_skip else None
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp(dim)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape; ``skip`` is shaped like ``x``."""
        if self.merge is not None and skip is not None:
            x = self.merge(torch.cat([x, skip], dim=-1))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(Denoiser):
    """A transformer with long skips: depth//2 in-blocks, one middle, depth//2 out-blocks.

    Args:
        size: side of the images in pixels.
        channels: 1 or 3.
        patch: side p of a patch.
        dim: width D.
        depth: number of blocks, odd.
        heads: attention heads.
        init: ``"paper"``, or ``"spatial"``, which learns neighbourhood much faster in short runs.
        classes: how many; 0 makes it unconditional.

    Raises:
        UserError: if patch, width, depth or heads do not fit together.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        init: Literal["paper", "spatial"] = "paper",
        classes: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(size, patch, dim, heads)
        if depth % 2 == 0:
            raise UserError(
                f"model.depth is {depth}, but a U-ViT has as many blocks before its middle block "
                f"as after it: take an odd number, {depth - 1} or {depth + 1}."
            )
        patches, values = (size // patch) ** 2, patch**2 * channels
        self.dim, self.classes = dim, classes
        self.extras = 2 if classes else 1  # the time token, the class token
        self.embed = nn.Linear(values, dim)
        self.positions = nn.Parameter(torch.zeros(self.extras + patches, dim))
        self.in_blocks = nn.ModuleList(Block(dim, heads, False) for _ in range(depth // 2))
        self.middle = Block(dim, heads, False)
        self.out_blocks = nn.ModuleList(Block(dim, heads, True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)
        # The last row is the null label.
        self.label_embedding = nn.Embedding(classes + 1, dim) if classes else None
        if init == "paper":
            self._initialise_as_the_paper()
        else:
            self._initialise_spatially(size // patch)

        if self.label_embedding is not None:
            nn.init.trunc_normal_(self.label_embedding.weight, std=0.02)

    def _initialise_as_the_paper(self) -> None:
        """Truncated normal 0.02 for weights and positions, zero biases (U-ViT)."""
        nn.init.trunc_normal_(self.positions, std=0.02)
        for layer in linears(self):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    @torch.no_grad()
    def _initialise_spatially(self, grid: int) -> None:
        """Positions start as 2-D sinusoids, weights as normal with variance ½ / inputs.

        Short runs otherwise spend most of their time finding out which patches are neighbours.
        The positions are learned all the same.
        """
        nn.init.trunc_normal_(self.positions[: self.extras], std=0.02)
        self.positions[self.extras :] = 0.5 * embed_places(grid, self.dim)
        scale_by_inputs(linears(self))

    def fit_weights(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with the learned positions resampled to this network's grid."""
        positions = stored.get("positions")
        if positions is None or positions.shape == self.positions.shape or positions.ndim != 2:
            return stored
        extras, places = positions[: self.extras], positions[self.extras :]
        fitted = resample_places(places, len(self.positions) - self.extras)
        return stored | {"positions": torch.cat([extras, fitted])}

    def forward_flops(self, visible: int) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown.

        Two per multiply-add (paper.md, "Cost model"); norms and activations are left out.
        """
        length, dim = visible + self.extras, self.dim
        skips = len(self.out_blocks)
        blocks = 2 * skips + 1
        linear = (12 * blocks + 2 * skips) * dim**2 * length
        attention = 2 * blocks * dim * length**2
        ends = 2 * visible * self.embed.in_features * dim
        return 2 * (linear + attention + ends)

    def forward(
        self, tokens: Tensor, positions: Tensor, time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Denoise ``(batch, visible, p²·C)``; as ``Denoiser.forward``."""
        places = functional.embedding(positions, self.positions[self.extras :])
        x = self.embed(tokens) + places
        extra = self.extra_tokens(label, embed_time(time, self.dim).to(x.dtype))
        x = torch.cat([extra + self.positions[: self.extras], x], dim=1)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return self.head(self.norm(x[:, self.extras :]))
