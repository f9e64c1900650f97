"""U-ViT as its paper and repositories describe it, on state dictionaries of their names.

Written from the description (Bao et al. 2023, sections 3 and 3.1; Lei et al. 2023) and the names of
the published tensors, as plain functions of images, to compare with what is imported from them.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


def state(
    layout: str,
    size: int = 8,
    patch: int = 2,
    channels: int = 3,
    dim: int = 16,
    half: int = 1,
    classes: int = 0,
    seed: int = 0,
) -> State:
    """Return random weights of a network under the names of a layout, of moderate size."""
    body = "encoder." if layout == "maskdm" else ""
    shapes: dict[str, tuple[int, ...]] = {
        f"{body}patch_embed.proj.weight": (dim, channels, patch, patch),
        f"{body}patch_embed.proj.bias": (dim,),
        f"{body}norm.weight": (dim,),
        f"{body}norm.bias": (dim,),
    }
    extras = 2 if classes else 1
    positions = f"{body}encoder_pos_embed" if body else "pos_embed"
    shapes[positions] = (1, extras + (size // patch) ** 2, dim)
    head = "encoder_to_output" if body else "decoder_pred"
    shapes |= {
        f"{head}.weight": (patch**2 * channels, dim),
        f"{head}.bias": (patch**2 * channels,),
    }
    if classes:
        shapes[f"{body}label_emb.weight"] = (classes, dim)
        if body:
            shapes["encoder.uncond_embed"] = (1, dim)
    if not body:
        shapes |= {
            "final_layer.weight": (channels, channels, 3, 3),
            "final_layer.bias": (channels,),
        }
    blocks = [f"{body}mid_block"]
    blocks += [f"{body}{kind}.{i}" for kind in ("in_blocks", "out_blocks") for i in range(half)]
    for block in blocks:
        shapes |= {
            f"{block}.norm1.weight": (dim,),
            f"{block}.norm1.bias": (dim,),
            f"{block}.attn.qkv.weight": (3 * dim, dim),
            f"{block}.attn.proj.weight": (dim, dim),
            f"{block}.attn.proj.bias": (dim,),
            f"{block}.norm2.weight": (dim,),
            f"{block}.norm2.bias": (dim,),
            f"{block}.mlp.fc1.weight": (4 * dim, dim),
            f"{block}.mlp.fc1.bias": (4 * dim,),
            f"{block}.mlp.fc2.weight": (dim, 4 * dim),
            f"{block}.mlp.fc2.bias": (dim,),
        }
        if "out_blocks" in block:
            shapes[f"{block}.skip_linear.weight"] = (dim, 2 * dim)
            shapes[f"{block}.skip_linear.bias"] = (dim,)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(max(1, math.prod(shape[1:])))
        + ("norm" in name and name.endswith("weight"))
        for name, shape in shapes.items()
    }


def predict(
    layout: str,
    weights: State,
    images: Tensor,
    steps: Tensor,
    heads: int,
    labels: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Return the network's output.

    Args:
        layout: uvit or maskdm.
        weights: by the layout's names.
        images: ``(batch, C, H, W)``.
        steps: times as the repositories count them, 0 to 1000, ``(batch,)``.
        heads: of the attention.
        labels: ``(batch,)``, or None.
        visible: bool ``(batch, N)``, maskdm: the patches that are not dropped.

    Returns:
        ``(batch, C, H, W)``, or with ``visible`` the tokens of the visible patches.
    """
    body = "encoder." if layout == "maskdm" else ""
    kernel = weights[f"{body}patch_embed.proj.weight"]
    dim, channels, patch, _ = kernel.shape
    bias = weights[f"{body}patch_embed.proj.bias"]
    x = functional.conv2d(images, kernel, bias, stride=patch).flatten(2).transpose(1, 2)
    frequencies = torch.tensor([10_000 ** (-i / (dim // 2)) for i in range(dim // 2)])
    angles = steps[:, None] * frequencies
    tokens = [torch.cat([angles.cos(), angles.sin()], dim=1)[:, None], x]
    table = f"{body}label_emb.weight"
    if table in weights:
        rows = weights["encoder.uncond_embed"] if labels is None else weights[table][labels]
        tokens.insert(0, rows.expand(len(images), -1)[:, None])
    x = torch.cat(tokens, dim=1)
    extras = len(tokens) - 1
    x = x + weights[f"{body}encoder_pos_embed" if body else "pos_embed"]
    if visible is not None:
        keep = torch.cat([torch.ones(len(x), extras, dtype=torch.bool), visible], dim=1)
        x = torch.stack([sequence[kept] for sequence, kept in zip(x, keep, strict=True)])
    half = sum(n.endswith(".skip_linear.bias") for n in weights)
    kept = []
    for i in range(half):
        x = _block(weights, f"{body}in_blocks.{i}", x, heads)
        kept.append(x)
    x = _block(weights, f"{body}mid_block", x, heads)
    for i in range(half):
        x = _block(weights, f"{body}out_blocks.{i}", torch.cat([x, kept[-1 - i]], dim=2), heads)
    x = _linear(
        weights, "encoder_to_output" if body else "decoder_pred", _norm(weights, f"{body}norm", x)
    )
    x = x[:, extras:]
    if visible is not None:
        return x
    pixels = torch.empty_like(images)
    grid = images.shape[2] // patch
    for place in range(grid**2):
        row, column = place // grid * patch, place % grid * patch
        square = x[:, place].reshape(-1, patch, patch, channels).permute(0, 3, 1, 2)
        pixels[:, :, row : row + patch, column : column + patch] = square
    if body:
        return pixels
    final = weights["final_layer.weight"], weights["final_layer.bias"]
    return functional.conv2d(pixels, *final, padding=1)


def _linear(weights: State, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))


def _norm(weights: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _block(weights: State, name: str, x: Tensor, heads: int) -> Tensor:
    if f"{name}.skip_linear.weight" in weights:
        x = _linear(weights, f"{name}.skip_linear", x)
    q, k, v = _linear(weights, f"{name}.attn.qkv", _norm(weights, f"{name}.norm1", x)).chunk(3, -1)
    mixed = []
    for part in range(heads):
        of_head = slice(part * q.shape[2] // heads, (part + 1) * q.shape[2] // heads)
        scores = q[..., of_head] @ k[..., of_head].transpose(1, 2)
        shares = (scores / math.sqrt(q.shape[2] // heads)).softmax(dim=-1)
        mixed.append(shares @ v[..., of_head])
    x = x + _linear(weights, f"{name}.attn.proj", torch.cat(mixed, dim=-1))
    hidden = _linear(weights, f"{name}.mlp.fc1", _norm(weights, f"{name}.norm2", x))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + _linear(weights, f"{name}.mlp.fc2", hidden)
