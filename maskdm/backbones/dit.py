"""DiT on token sets (Peebles & Xie 2023): time and class steer every block by adaLN-zero.

Positions are fixed 2-D sinusoids, looked up for the visible positions. They span the image, not
the grid, so that a model goes on at another resolution.
"""

from torch import Tensor, nn
from torch.nn import functional

from maskdm.backbones.layers import Attention, FixedPositions, embed_time
from maskdm.backbones.transformer import Init, PatchTransformer, chain

TIME_FREQUENCIES = 256  # inputs of the MLP that embeds time


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


class DiT(PatchTransformer):
    """A transformer conditioned by adaptive layer norms.

    Gates and head start at zero, so that every block starts as the identity.
    """

    def build(self) -> None:
        """Make the layers of DiT."""
        dim = self.dim
        self.positions = FixedPositions(self.grid, dim)
        self.time = nn.Sequential(nn.Linear(TIME_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label_embedding = self.new_label_embedding()
        self.blocks = nn.ModuleList(Block(dim, self.heads) for _ in range(self.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, self.values)

    def initialise(self, init: Init) -> None:
        """Draw the weights, as DiT does or spatially, and zero the modulations and the head."""
        self.initialise_linears(init, paper=nn.init.xavier_uniform_)
        if init == "paper":
            for module in self.time:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        self.initialise_labels(lambda weight: nn.init.normal_(weight, std=0.02))
        modulations = [module.modulation for module in self.modules() if isinstance(module, Block)]
        for layer in (*modulations, self.modulation, self.head):
            nn.init.zeros_(layer.weight)

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
        condition = self.time(embed_time(time, TIME_FREQUENCIES).to(x.dtype))
        if self.label_embedding is not None or label is not None:
            condition = condition + self.embed_label(label, len(tokens))
        condition = functional.silu(condition)
        x = chain(self.blocks, x, self.seen_by_middle(middle), condition)
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        prediction = self.head(modulate(self.norm(x), shift, scale))
        return self.refined(prediction, tokens, positions, time)

    def further_multiplies(self, length: int, inner_length: int) -> int:
        """Return the multiply-adds of the time embedding's MLP and of all modulations."""
        return TIME_FREQUENCIES * self.dim + self.dim**2 + (6 * self.depth + 2) * self.dim**2
