"""Attention over many short sets: as the library chooses, kernel by kernel, and in one sequence.

At 90 % masked a set has 7 or 26 tokens, and kernels are made for thousands. Packed, the sets follow
one another in one long sequence, of which each token sees its own set alone.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.speed.measuring import interleaved, timer
from maskdm.runtime.errors import reason, shortened

TOKENS = 2**15  # of a batch
CHANNELS = 64  # of a head
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def attention(
    length: int, heads: int, device: torch.device, tokens: int = TOKENS
) -> dict[str, float | str]:
    """Time attention forward and backward, in bf16, way by way.

    Args:
        length: tokens of a set.
        heads: of ``CHANNELS`` channels each.
        device: where.
        tokens: of all sets, about.

    Returns:
        By way, the milliseconds that it takes, or why it does not work here.
    """
    sets = max(1, tokens // length)
    split = torch.randn(3, sets, heads, length, CHANNELS, device=device).bfloat16()
    packed = split.transpose(2, 3).reshape(3, sets * length, heads, CHANNELS)
    ends = torch.arange(sets + 1, device=device, dtype=torch.int32) * length
    ways: dict[str, Callable[[], object]] = {"as chosen": partial(both_ways, plain, split)}
    for name, kernel in KERNELS.items():
        ways[name] = partial(both_ways, partial(by_kernel, kernel), split)
    ways["packed"] = partial(both_ways, partial(in_one, ends, length), packed)
    timers, found = dict[str, Callable[[], float]](), dict[str, float | str]()
    for name, call in ways.items():
        try:
            timers[name] = timer(call, device)
        except (RuntimeError, ImportError, ValueError) as error:
            found[name] = shortened(reason(error))
    return {n: 1000 * seconds for n, seconds in interleaved(timers, 3, 5).items()} | found


def both_ways(attend: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Tensor) -> None:
    """Compute attention of queries, keys and values and the gradients of all three."""
    q, k, v = inputs.detach().requires_grad_().unbind()
    attend(q, k, v).sum().backward()


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend as ``maskdm.backbones.layers.Attention`` does."""
    return scaled_dot_product_attention(q, k, v)


def by_kernel(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by one kernel, or fail where it does not work."""
    with sdpa_kernel(kernel):
        return scaled_dot_product_attention(q, k, v)


def in_one(ends: Tensor, length: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend within the sets of one sequence, ``(tokens, heads, channels)``."""
    from torch.nn.attention.varlen import varlen_attn  # not in every torch that maskdm runs with

    out = varlen_attn(q, k, v, ends, ends, length, length)
    assert isinstance(out, Tensor)
    return out
