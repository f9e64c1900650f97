"""What the backbones are made of: embeddings of time, places and classes; attention; the MLP.

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
# Units across an image for positions that are not learned: those of DiT's 32×32 latents in patches
# of 2. A grid of another size lies in between them.
IMAGE_EXTENT = 16


def embed_time(time: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding (cos, sin) of times in [0, 1], ``(batch, dim)``."""
    half = dim // 2
    steps = torch.arange(half, device=time.device, dtype=torch.float32)
    angles = TIME_SCALE * time.float()[:, None] * torch.exp(-log(MAX_PERIOD) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def embed_places(grid: int, dim: int, extent: int | None = None) -> Tensor:
    """Return the 2-D sinusoidal embedding of a G×G grid's places, ``(G², dim)``.

    A quarter each for sine and cosine of row and column; wavelengths from 2π to 200π units.

    Args:
        grid: the side G of the grid.
        dim: a multiple of 4.
        extent: the side of the image in units; by default a patch is one. With one extent for all
            grids, a place in the image has the same embedding at every resolution.
    """
    quarter = dim // 4
    frequencies = 100.0 ** (-torch.arange(quarter) / quarter)
    middles = (torch.arange(grid) + 0.5) * ((extent or grid) / grid) - 0.5
    angles = middles[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = along.repeat_interleave(grid, dim=0), along.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)


def resample_places(places: Tensor, count: int) -> Tensor:
    """Return learned positions of one grid for another grid over the same image, bicubic.

    Args:
        places: ``(G², dim)``.
        count: how many are wanted, the square of the new grid's side.

    Returns:
        ``(count, dim)``; ``places`` itself if it is no square grid, for the caller to refuse.
    """
    old, new = isqrt(len(places)), isqrt(count)
    if old**2 != len(places):
        return places
    field = places.view(1, old, old, -1).permute(0, 3, 1, 2).float()
    # antialias also chooses the cubic that keeps linear fields exact
    resampled = functional.interpolate(field, (new, new), mode="bicubic", antialias=True)
    return resampled.permute(0, 2, 3, 1).reshape(count, -1).to(places.dtype)


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
    unit = lcm(heads, 4)  # whole heads; a sine and a cosine of both coordinates
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


def linears(network: nn.Module) -> list[nn.Linear]:
    """Return all linear layers of a network, their biases zeroed."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layers


def scale_by_inputs(layers: list[nn.Linear]) -> None:
    """Draw weights from a truncated normal of variance ½ / inputs (``model.init: spatial``)."""
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=(0.5 / layer.in_features) ** 0.5)
