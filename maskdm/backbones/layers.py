"""What backbones are made of: embeddings of time and positions, attention, the MLP.

Attention and MLP are written out here: importing timm's layers would double the start-up time of
every stage.
"""

from math import isqrt, lcm, log

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdm.runtime.errors import UserError

MAX_PERIOD = 10_000.0
# Time in [0, 1] is spread over the range of the paper's T = 1000 steps before it is embedded.
TIME_SCALE = 1000.0
# Fixed positions count the image's side as 16 units, the patches of DiT's 32×32 latents. A finer
# grid lies between them.
IMAGE_EXTENT = 16
MOST_PATCHES = 2**18  # of an image, 512 a side: attention to more, each to each, never ends


def embed_time(time: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding (cos, sin) of times in [0, 1], ``(batch, dim)``."""
    half = dim // 2
    steps = torch.arange(half, device=time.device, dtype=torch.float32)
    angles = TIME_SCALE * time.float()[:, None] * torch.exp(-log(MAX_PERIOD) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def embed_positions(grid: int, dim: int, extent: int | None = None) -> Tensor:
    """Return the 2-D sinusoidal embedding of a G×G grid's positions, ``(G², dim)``.

    A quarter each for sine and cosine of row and column; wavelengths from 2π to 200π units.

    Args:
        grid: the side G of the grid.
        dim: a multiple of 4.
        extent: the side of the image in units; by default a patch is one. With one extent for all
            grids, a point of the image has the same embedding at every resolution.
    """
    quarter = dim // 4
    frequencies = 100.0 ** (-torch.arange(quarter) / quarter)
    middles = (torch.arange(grid) + 0.5) * ((extent or grid) / grid) - 0.5
    angles = middles[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = along.repeat_interleave(grid, dim=0), along.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)


class FixedPositions(nn.Module):
    """2-D sinusoids that span the image, looked up by position; nothing is learned or stored."""

    table: Tensor

    def __init__(self, grid: int, dim: int) -> None:
        super().__init__()
        if torch.get_default_device().type == "meta":  # computing there loads torch's compiler
            table = torch.empty(grid**2, dim)
        else:
            table = embed_positions(grid, dim, IMAGE_EXTENT)
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the embeddings of ``(batch, visible)`` positions, ``(batch, visible, dim)``."""
        return functional.embedding(positions, self.table)


def resample_positions(learned: Tensor, count: int) -> Tensor:
    """Return learned positions of one grid for another grid over the same image, bicubic.

    Args:
        learned: ``(G², dim)``.
        count: the number of positions of the new grid, a square.

    Returns:
        ``(count, dim)``; ``learned`` itself if it is no square grid, for the caller to refuse.
    """
    old, new = isqrt(len(learned)), isqrt(count)
    if not old or old**2 != len(learned):
        return learned
    field = learned.view(1, old, old, -1).permute(0, 3, 1, 2).float()
    # Antialiasing also chooses the cubic that keeps linear fields exact.
    resampled = functional.interpolate(field, (new, new), mode="bicubic", antialias=True)
    return resampled.permute(0, 2, 3, 1).reshape(count, -1).to(learned.dtype)


def check_sizes(size: int, patch: int, dim: int, heads: int) -> None:
    """Check that patch, width and heads fit together.

    Raises:
        UserError: saying what does fit.
    """
    if size % patch:
        allowed = [p for p in range(1, size + 1) if size % p == 0]
        raise UserError(
            f"model.patch is {patch}, which does not divide data.resolution {size}. "
            f"Allowed: {', '.join(map(str, allowed))}."
        )
    if (size // patch) ** 2 > MOST_PATCHES:
        raise UserError(
            f"model.patch is {patch}, which makes {(size // patch) ** 2} patches of an image of "
            f"{size} pixels: at most {MOST_PATCHES} are allowed. Raise it, or lower "
            "data.resolution."
        )
    unit = lcm(heads, 4)  # whole heads; sine and cosine of both coordinates
    if dim % unit:
        raise UserError(
            f"model.dim is {dim}, but must be a multiple of {unit} for {heads} heads. "
            f"The next that fits: {-(-dim // unit) * unit}."
        )


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


def mlp(dim: int) -> nn.Sequential:
    """Return a transformer's MLP of ratio 4."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


def narrow(weight: Tensor) -> Tensor:
    """Fill a weight from a truncated normal of deviation 0.02, as ViT and U-ViT do."""
    return nn.init.trunc_normal_(weight, std=0.02)


def scaled_by_inputs(weight: Tensor) -> Tensor:
    """Fill a weight from a truncated normal of variance ½ / inputs (``model.init: spatial``)."""
    return nn.init.trunc_normal_(weight, std=(0.5 / weight.shape[1]) ** 0.5)
