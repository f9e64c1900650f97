"""U-ViT on token sets (Bao et al. 2023); its final convolution is a refiner, ``model.refine``.

Patches are gathered *before* they are embedded, and the position embedding is looked up for the
visible positions only, so a hidden patch costs nothing. Time and class are tokens like any other,
and never masked.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdm.backbones.layers import Attention, embed_positions, mlp, narrow, resample_positions
from maskdm.backbones.transformer import OUTER, Init, PatchTransformer, put_back, take
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


class UViT(PatchTransformer):
    """A transformer with long skips: depth//2 in-blocks, one middle, depth//2 out-blocks.

    Positions are learned. With ``init="spatial"`` they start as 2-D sinusoids: short runs
    otherwise spend most of their time finding out which patches are neighbours.
    """

    def build(self) -> None:
        """Make the layers of U-ViT."""
        if self.depth % 2 == 0:
            raise UserError(
                f"model.depth is {self.depth}, but a U-ViT has as many blocks before its middle "
                f"block as after it: take an odd number, {self.depth - 1} or {self.depth + 1}."
            )
        dim, heads, half = self.dim, self.heads, self.depth // 2
        self.extras = 2 if self.classes else 1  # the time token, the class token
        self.positions = nn.Parameter(torch.zeros(self.extras + self.grid**2, dim))
        self.in_blocks = nn.ModuleList(Block(dim, heads, False) for _ in range(half))
        self.middle = Block(dim, heads, False)
        self.out_blocks = nn.ModuleList(Block(dim, heads, True) for _ in range(half))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, self.values)
        self.label_embedding = self.new_label_embedding()

    def initialise(self, init: Init) -> None:
        """Draw weights and positions, as U-ViT does or spatially."""
        if init == "spatial":
            narrow(self.positions[: self.extras])
            self.positions[self.extras :] = 0.5 * embed_positions(self.grid, self.dim)
        else:
            narrow(self.positions)
        self.initialise_linears(init, paper=narrow)
        self.initialise_labels(narrow)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        middle: Tensor | None = None,
    ) -> Tensor:
        """Denoise ``(batch, visible, p²·C)``; as ``Denoiser.forward``."""
        of_extras, of_patches = self.positions[: self.extras], self.positions[self.extras :]
        x = self.embed(tokens) + functional.embedding(positions, of_patches)
        extra = self.extra_tokens(label, time, x.dtype) + of_extras
        x = torch.cat([extra, x], dim=1)
        in_blocks, out_blocks = list(self.in_blocks), list(self.out_blocks)
        skips = []
        for block in in_blocks[:OUTER]:
            x = block(x)
            skips.append(x)
        seen = self.seen_by_middle(middle)
        dense, x = x, take(x, seen)
        for block in in_blocks[OUTER:]:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in out_blocks[:-OUTER]:
            x = block(x, skips.pop())
        x = put_back(dense, x, seen)
        for block in out_blocks[-OUTER:]:
            x = block(x, skips.pop())
        prediction = self.head(self.norm(x[:, self.extras :]))
        return self.refined(prediction, tokens, positions, time)

    def further_multiplies(self, length: int, inner_length: int) -> int:
        """Return the multiply-adds of the layers that merge skips."""
        outer = min(OUTER, len(self.out_blocks))
        inner = len(self.out_blocks) - outer
        return 2 * self.dim**2 * (outer * length + inner * inner_length)

    def fit_weights(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with the learned positions resampled to this network's grid."""
        positions = stored.get("positions")
        if positions is None or positions.shape == self.positions.shape or positions.ndim != 2:
            return stored
        of_extras, of_patches = positions[: self.extras], positions[self.extras :]
        fitted = resample_positions(of_patches, self.grid**2)
        return stored | {"positions": torch.cat([of_extras, fitted])}
