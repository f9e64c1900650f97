"""U-ViT on token sets (Bao et al. 2023; as MaskDM uses it: no final convolution).

Tokens are gathered *before* they are embedded, and the position embedding is looked up for the
visible places only, so a hidden patch costs nothing. Attention and MLP are written out here:
importing timm's layers would double the start-up time of every stage.
"""

from math import lcm, log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdm.backbones.denoiser import Denoiser
from maskdm.errors import UserError

MAX_PERIOD = 10_000.0
# Time in [0, 1] is spread over the range of the paper's T = 1000 steps before it is embedded.
TIME_SCALE = 1000.0


def embed_time(time: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding (cos, sin) of times in [0, 1], ``(batch, dim)``."""
    half = dim // 2
    steps = torch.arange(half, device=time.device, dtype=torch.float32)
    angles = TIME_SCALE * time.float()[:, None] * torch.exp(-log(MAX_PERIOD) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def embed_places(grid: int, dim: int) -> Tensor:
    """Return the 2-D sinusoidal embedding of a G×G grid's places, ``(G², dim)``.

    A quarter each for sine and cosine of row and column; wavelengths from 2π to 200π patches.
    """
    quarter = dim // 4
    frequencies = 100.0 ** (-torch.arange(quarter) / quarter)
    angles = torch.arange(grid)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = along.repeat_interleave(grid, dim=0), along.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)


class Attention(nn.Module):
    """Multi-head self-attention without query, key and value biases."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block; an out-block first merges its long skip, D from 2D."""

    def __init__(self, dim: int, heads: int, merges_skip: bool) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * dim, dim) if merges_skip else None
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape; ``skip`` is shaped like ``x``."""
        if self.merge is not None and skip is not None:
            x = self.merge(torch.cat([x, skip], dim=-1))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


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

    Raises:
        UserError: if patch, width, depth or heads do not fit together.
    """

    EXTRAS = 1  # the time token; never masked

    def __init__(
        self,
        size: int,
        channels: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        init: Literal["paper", "spatial"] = "paper",
    ) -> None:
        super().__init__()
        if size % patch:
            allowed = [p for p in range(1, size + 1) if size % p == 0]
            raise UserError(
                f"model.patch is {patch}, which does not divide data.size {size}. "
                f"Allowed: {', '.join(map(str, allowed))}."
            )
        unit = lcm(heads, 4)  # whole heads; a sine and a cosine of both coordinates
        if dim % unit:
            raise UserError(
                f"model.dim is {dim}, but must be a multiple of {unit} for {heads} heads. "
                f"The next that fits: {-(-dim // unit) * unit}."
            )
        if depth % 2 == 0:
            raise UserError(
                f"model.depth is {depth}, but a U-ViT has as many blocks before its middle block "
                f"as after it: take an odd number, {depth - 1} or {depth + 1}."
            )
        patches, values = (size // patch) ** 2, patch**2 * channels
        self.dim = dim
        self.embed = nn.Linear(values, dim)
        self.positions = nn.Parameter(torch.zeros(self.EXTRAS + patches, dim))
        self.in_blocks = nn.ModuleList(Block(dim, heads, False) for _ in range(depth // 2))
        self.middle = Block(dim, heads, False)
        self.out_blocks = nn.ModuleList(Block(dim, heads, True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)
        if init == "paper":
            self._initialise_as_the_paper()
        else:
            self._initialise_spatially(size // patch)

    def _initialise_as_the_paper(self) -> None:
        """Truncated normal 0.02 for weights and positions, zero biases (U-ViT)."""
        nn.init.trunc_normal_(self.positions, std=0.02)
        for layer in self._linears():
            nn.init.trunc_normal_(layer.weight, std=0.02)

    @torch.no_grad()
    def _initialise_spatially(self, grid: int) -> None:
        """Positions start as 2-D sinusoids, weights as normal with variance ½ / inputs.

        Short runs otherwise spend most of their time finding out which patches are neighbours.
        The positions are learned all the same.
        """
        nn.init.trunc_normal_(self.positions[: self.EXTRAS], std=0.02)
        self.positions[self.EXTRAS :] = 0.5 * embed_places(grid, self.dim)
        for layer in self._linears():
            nn.init.trunc_normal_(layer.weight, std=(0.5 / layer.in_features) ** 0.5)

    def _linears(self) -> list[nn.Linear]:
        """Return all linear layers, their biases zeroed."""
        layers = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for layer in layers:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        return layers

    def forward_flops(self, visible: int) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown.

        Two per multiply-add (paper.md, "Cost model"); norms and activations are left out.
        """
        length, dim = visible + self.EXTRAS, self.dim
        skips = len(self.out_blocks)
        blocks = 2 * skips + 1
        linear = (12 * blocks + 2 * skips) * dim**2 * length
        attention = 2 * blocks * dim * length**2
        ends = 2 * visible * self.embed.in_features * dim
        return 2 * (linear + attention + ends)

    def forward(
        self, tokens: Tensor, positions: Tensor, time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Denoise a set of patches.

        Args:
            tokens: the noisy patches, ``(batch, visible, p²·C)``.
            positions: their places on the grid, row by row, ``(batch, visible)`` int64.
            time: ``(batch,)`` in [0, 1], 1 being noise.
            label: must be None; class tokens are not built yet.

        Returns:
            The prediction for each patch, ``(batch, visible, p²·C)``.
        """
        if label is not None:
            raise NotImplementedError("UViT takes no labels yet.")
        places = functional.embedding(positions, self.positions[self.EXTRAS :])
        x = self.embed(tokens) + places
        extra = embed_time(time, self.dim).to(x.dtype)[:, None] + self.positions[: self.EXTRAS]
        x = torch.cat([extra, x], dim=1)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return self.head(self.norm(x[:, self.EXTRAS :]))  # type: ignore[no-any-return]
