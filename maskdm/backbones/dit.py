"""DiT on token sets (Peebles & Xie 2023): time and class steer every block by adaLN-zero.

Positions are fixed 2-D sinusoids, looked up at the visible places. They span the image, not the
grid, so that a model goes on at another resolution.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.layers import (
    IMAGE_EXTENT,
    Attention,
    check_sizes,
    embed_places,
    embed_time,
    linears,
    scale_by_inputs,
)

FREQUENCIES = 256  # of the time embedding, before its MLP


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x·(1 + scale) + shift; ``x`` is ``(batch, tokens, dim)``, the others one a sample."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """A transformer block whose norms are shifted and scaled, and whose branches are gated."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(dim, heads, bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape; ``condition`` is ``(batch, dim)``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(Denoiser):
    """A transformer conditioned by adaptive layer norms.

    Args:
        size: side of the images in pixels.
        channels: 1 or 3.
        patch: side p of a patch.
        dim: width D.
        depth: number of blocks.
        heads: attention heads.
        init: ``"paper"`` (DiT's: Xavier) or ``"spatial"`` (weights scaled by their inputs); in
            both the gates and the head start at zero, so that every block starts as the identity.
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
        super().__init__()
        check_sizes(size, patch, dim, heads)
        values = patch**2 * channels
        self.dim, self.classes = dim, classes
        self.embed = nn.Linear(values, dim)
        places = embed_places(size // patch, dim, IMAGE_EXTENT)
        self.register_buffer("places", places, persistent=False)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        # The last row is the null label.
        self.label_embedding = nn.Embedding(classes + 1, dim) if classes else None
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, values)
        self._initialise(init)

    def _initialise(self, init: Literal["paper", "spatial"]) -> None:
        layers = linears(self)
        if init == "spatial":
            scale_by_inputs(layers)
        else:
            for layer in layers:
                nn.init.xavier_uniform_(layer.weight)
            for module in self.time:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.weight, std=0.02)
        modulations = [m.modulation for m in self.modules() if isinstance(m, Block)]
        for layer in (*modulations, self.modulation, self.head):
            nn.init.zeros_(layer.weight)

    def forward_flops(self, visible: int) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown.

        Two per multiply-add; norms, gates and activations are left out.
        """
        dim, blocks = self.dim, len(self.blocks)
        linear = 12 * blocks * dim**2 * visible
        attention = 2 * blocks * dim * visible**2
        condition = FREQUENCIES * dim + dim**2 + (6 * blocks + 2) * dim**2
        ends = 2 * visible * self.embed.in_features * dim
        return 2 * (linear + attention + condition + ends)

    def forward(
        self, tokens: Tensor, positions: Tensor, time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Denoise ``(batch, visible, p²·C)``; as ``Denoiser.forward``."""
        x = self.embed(tokens)
        x = x + functional.embedding(positions, self.places).to(x.dtype)
        condition = self.time(embed_time(time, FREQUENCIES).to(x.dtype))
        if self.label_embedding is not None or label is not None:
            condition = condition + self.embed_label(label, len(tokens))
        condition = functional.silu(condition)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        return self.head(modulate(self.norm(x), shift, scale))
