"""A plain vision transformer on token sets: timm's blocks, 2-D sinusoidal positions.

Time and class are tokens like any other, and never masked; there are no long skips. It shows that
blocks from elsewhere fit the signature. timm is imported when a network is built: importing it
takes as long as importing torch.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.layers import (
    IMAGE_EXTENT,
    check_sizes,
    embed_places,
    embed_time,
    linears,
    scale_by_inputs,
)


class ViT(Denoiser):
    """timm's pre-norm blocks over patches, a time token and a class token.

    Args:
        size: side of the images in pixels.
        channels: 1 or 3.
        patch: side p of a patch.
        dim: width D.
        depth: number of blocks.
        heads: attention heads.
        init: ``"paper"`` (ViT's: truncated normal 0.02) or ``"spatial"`` (weights scaled by their
            inputs).
        classes: how many; 0 makes it unconditional.

    Raises:
        UserError: if patch, width or heads do not fit together.
    """

    places: Tensor

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
        from timm.models.vision_transformer import Block

        super().__init__()
        check_sizes(size, patch, dim, heads)
        values = patch**2 * channels
        self.dim, self.classes = dim, classes
        self.extras = 2 if classes else 1  # the time token, the class token
        self.embed = nn.Linear(values, dim)
        places = embed_places(size // patch, dim, IMAGE_EXTENT)
        self.register_buffer("places", places, persistent=False)
        self.kinds = nn.Parameter(torch.zeros(self.extras, dim))  # tells the extra tokens apart
        # The last row is the null label.
        self.label_embedding = nn.Embedding(classes + 1, dim) if classes else None
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)
        layers = linears(self)
        if init == "spatial":
            scale_by_inputs(layers)
        else:
            for layer in layers:
                nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.trunc_normal_(self.kinds, std=0.02)
        if self.label_embedding is not None:
            nn.init.trunc_normal_(self.label_embedding.weight, std=0.02)

    def forward_flops(self, visible: int) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown.

        Two per multiply-add (paper.md, "Cost model", without skips).
        """
        length, dim, blocks = visible + self.extras, self.dim, len(self.blocks)
        linear = 12 * blocks * dim**2 * length
        attention = 2 * blocks * dim * length**2
        ends = 2 * visible * self.embed.in_features * dim
        return 2 * (linear + attention + ends)

    def forward(
        self, tokens: Tensor, positions: Tensor, time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Denoise ``(batch, visible, p²·C)``; as ``Denoiser.forward``."""
        x = self.embed(tokens)
        x = x + functional.embedding(positions, self.places).to(x.dtype)
        extra = self.extra_tokens(label, embed_time(time, self.dim).to(x.dtype))
        x = torch.cat([extra + self.kinds, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, self.extras :]))
