"""A plain vision transformer on token sets: timm's blocks, 2-D sinusoidal positions.

Time and class are tokens like any other, and never masked; there are no long skips. It shows that
blocks from elsewhere fit the signature. timm is imported when a network is built: importing it
takes as long as importing torch.
"""

import torch
from torch import Tensor, nn

from maskdm.backbones.layers import FixedPositions, narrow
from maskdm.backbones.transformer import Init, PatchTransformer, chain
from maskdm.runtime.packages import require_package


class ViT(PatchTransformer):
    """timm's pre-norm blocks over patches, a time token and a class token."""

    def build(self) -> None:
        """Make the layers of ViT."""
        require_package("timm", "Backbone 'vit'", "pipeline")
        from timm.models.vision_transformer import Block

        dim = self.dim
        self.extras = 2 if self.classes else 1  # the time token, the class token
        self.positions = FixedPositions(self.grid, dim)
        self.kinds = nn.Parameter(torch.zeros(self.extras, dim))  # tells the extra tokens apart
        self.label_embedding = self.new_label_embedding()
        blocks = (Block(dim, self.heads, qkv_bias=True) for _ in range(self.depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, self.values)

    def initialise(self, init: Init) -> None:
        """Draw the weights, as ViT does or spatially."""
        self.initialise_linears(init, paper=narrow)
        narrow(self.kinds)
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
        x = self.embed(tokens)
        x = x + self.positions(positions).to(x.dtype)
        extra = self.extra_tokens(label, time, x.dtype) + self.kinds
        x = torch.cat([extra, x], dim=1)
        x = chain(self.blocks, x, self.seen_by_middle(middle))
        prediction = self.head(self.norm(x[:, self.extras :]))
        return self.refined(prediction, tokens, positions, time)
