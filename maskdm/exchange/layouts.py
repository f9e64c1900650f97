"""Published layouts of a U-ViT's weights, and what each tensor is called here.

U-ViT (Bao et al. 2023; baofff/U-ViT, ``libs/uvit.py``) and MaskDM (Lei et al. 2023;
jiachenlei/maskdm, ``models/mask_uvit.py``) are the network of ``maskdm/backbones/uvit.py`` under
other names. What differs besides: patches are embedded by a convolution, the class token stands
before the time token, and U-ViT ends in a linear convolution over the image.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Size, Tensor

from maskdm.backbones.refiner import KERNEL
from maskdm.backbones.registry import ModelParams, backbone_without_weights
from maskdm.backbones.stored import listed, misfits
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import validate

HEAD_DIM = 64  # of every published model of pixels; heads leave no trace in the weights
CHANNELS = (1, 3)
# Parts of names, here and there.
PARTS = {
    ".embed.": ".patch_embed.proj.",
    ".middle.": ".mid_block.",
    ".attention.": ".attn.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.2.": ".mlp.fc2.",
    ".merge.": ".skip_linear.",
}


@dataclass(frozen=True)
class Layout:
    """How a repository names a U-ViT's tensors.

    Attributes:
        body: what the names of all but the head begin with.
        positions: the learned positions, ``(1, extras + N, D)``.
        head: the layer from D to p²·C.
        null: the embedding of no class, ``(1, D)``; None if that is a class like others.
        final: the 3×3 convolution that may end the network; None if there is none.
    """

    body: str
    positions: str
    head: str
    null: str | None
    final: str | None

    def name(self, ours: str) -> str:
        """Return what a parameter of ours is called there."""
        if ours.startswith("head."):
            return ours.replace("head", self.head, 1)
        name = f".{ours}"  # so that its beginning is a part like others
        for here, there in PARTS.items():
            name = name.replace(here, there)
        return self.body + name[1:]

    @property
    def kernel(self) -> str:
        """The convolution that embeds patches, ``(D, C, p, p)``."""
        return f"{self.body}patch_embed.proj.weight"

    @property
    def labels(self) -> str:
        """The embeddings of the classes, ``(classes, D)``."""
        return f"{self.body}label_emb.weight"


LAYOUTS = {
    "uvit": Layout("", "pos_embed", "decoder_pred", None, "final_layer"),
    "maskdm": Layout(
        "encoder.", "encoder.encoder_pos_embed", "encoder_to_output", "encoder.uncond_embed", None
    ),
}


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the tensors say about a network.

    Attributes:
        model: the section ``model``.
        size: side of the images in pixels.
        channels: of the images.
        classes: rows of the embedding of classes; 0 without.
    """

    model: ModelParams
    size: int
    channels: int
    classes: int


def sizes(layout: Layout, shapes: Mapping[str, Size], heads: int | None, where: str) -> Sizes:
    """Return what the shapes of a file's tensors say.

    Args:
        layout: of the file.
        shapes: by the names of the layout.
        heads: of the attention; None: as many as have ``HEAD_DIM`` numbers each.
        where: the file, for messages.

    Raises:
        UserError: if they are no such network, or one that cannot be built here.
    """
    _refuse_other_networks(layout, shapes, where)
    kernel, positions = shapes.get(layout.kernel, Size()), shapes.get(layout.positions, Size())
    if len(kernel) != 4 or len(positions) != 3 or kernel[2] != kernel[3]:
        raise UserError(
            f"{where} does not have this layout: a U-ViT has a square kernel {layout.kernel} and "
            f"positions {layout.positions}; in the file are {listed(shapes) or 'no tensors'}. Give "
            f"another --layout: {', '.join(LAYOUTS)}."
        )
    dim, channels, patch, _ = kernel
    if channels not in CHANNELS:
        raise UserError(
            f"{where} is a network for images of {channels} channels: maskdm draws pixels, of 1 or "
            "3 channels, and cannot use one that was trained on an autoencoder's latents."
        )
    classes = shapes[layout.labels][0] if layout.labels in shapes else 0
    patches = positions[1] - (2 if classes else 1)
    grid = isqrt(max(0, patches))
    if grid**2 != patches or not grid:
        raise UserError(
            f"{where} has {positions[1]} positions, which are no square of patches behind "
            f"{2 if classes else 1} for time{' and class' if classes else ''}: images must be "
            "square."
        )
    numbers = {
        int(found[1])
        for name in shapes
        if (found := re.match(rf"{re.escape(layout.body)}in_blocks\.(\d{{1,6}})\.", name))
    }
    model: dict[str, Any] = {
        "backbone": "uvit",
        "patch": patch,
        "dim": dim,
        "depth": 2 * len(numbers) + 1,
        "heads": max(1, dim // HEAD_DIM) if heads is None else heads,
        "refine": 2 * channels if layout.final and f"{layout.final}.weight" in shapes else 0,
        "init": "paper",
    }
    return Sizes(validate(model, "model", ModelParams, where), grid * patch, channels, classes)


def _refuse_other_networks(layout: Layout, shapes: Mapping[str, Size], where: str) -> None:
    """Raise a UserError for what the same repositories publish and no backbone here can hold."""
    for part, what in (
        ("time_embed.", "embeds time with an MLP (mlp_time_embed)"),
        ("approx_patch_embed.", "works on wavelets (DWT)"),
        ("context_embed.", "is steered by text"),
        ("encoder_to_decoder.", "has a decoder (decoder_depth above 0)"),
    ):
        if any(name.startswith((part, layout.body + part)) for name in shapes):
            raise UserError(
                f"{where} is a network that {what}: the backbone 'uvit' has no such part, so its "
                "weights cannot be taken over."
            )


def expected_shapes(layout: Layout, found: Sizes) -> dict[str, Size]:
    """Return the shape of every tensor that a file of this layout must hold, and no others.

    Args:
        layout: of the file.
        found: what its shapes say.

    Raises:
        UserError: if patch, width and heads do not fit together.
    """
    model, channels, classes = found.model, found.channels, found.classes
    outline = backbone_without_weights(model, found.size, channels, classes)
    shapes = {}
    for name, parameter in outline.named_parameters():
        if not name.startswith(("refiner.", "label_embedding.", "positions")):
            shapes[layout.name(name)] = parameter.shape
        if name == "positions":
            shapes[layout.positions] = Size((1, *parameter.shape))
    shapes[layout.kernel] = Size((model.dim, channels, model.patch, model.patch))
    if classes:
        shapes[layout.labels] = Size((classes, model.dim))
        if layout.null:
            shapes[layout.null] = Size((1, model.dim))
    if model.refine:
        shapes[f"{layout.final}.weight"] = Size((channels, channels, KERNEL, KERNEL))
        shapes[f"{layout.final}.bias"] = Size((channels,))
    return shapes


def translated(
    layout: Layout, theirs: Mapping[str, Tensor], found: Sizes, classes: int, where: str
) -> dict[str, Tensor]:
    """Return a file's weights under the names of the backbone ``uvit``, float32.

    Without an embedding of no class, the null label gets the mean of the classes'.

    Args:
        layout: of the file.
        theirs: its tensors, by name.
        found: what their shapes say.
        classes: how many of the embeddings are classes: all, or all but the last, which is then
            that of no class.
        where: the file, for messages.

    Raises:
        UserError: naming every tensor that is missing, unexpected or of another shape.
    """
    shapes = {name: tensor.shape for name, tensor in theirs.items()}
    faults = misfits(shapes, expected_shapes(layout, found))
    if faults:
        raise UserError(
            f"The weights in {where} do not fit the layout: {faults}. Give another file, or "
            f"another --layout: {', '.join(LAYOUTS)}."
        )
    outline = backbone_without_weights(found.model, found.size, found.channels, classes)
    # Copies: both sets of weights may come from one file, and each is written.
    weights = {n: tensor.to(torch.float32, copy=True) for n, tensor in theirs.items()}
    ours = {}
    for name, _ in outline.named_parameters():
        if name == "embed.weight":
            # Patches are flattened pixel by pixel here, (p, p, C).
            ours[name] = weights[layout.kernel].permute(0, 2, 3, 1).flatten(1)
        elif name == "positions":
            ours[name] = _positions(weights[layout.positions][0], bool(classes))
        elif name == "label_embedding.weight":
            ours[name] = _labels(layout, weights, classes)
        elif not name.startswith("refiner."):
            ours[name] = weights[layout.name(name)]
    if found.model.refine:
        steer = {n: torch.zeros(p.shape) for n, p in outline.named_parameters() if "steer" in n}
        final = weights[f"{layout.final}.weight"], weights[f"{layout.final}.bias"]
        ours |= steer | as_refiner(*final)
    return {name: tensor.contiguous() for name, tensor in ours.items()}


def _positions(learned: Tensor, has_classes: bool) -> Tensor:
    """Return positions, ``(extras + N, D)``, with that of the time token first."""
    if not has_classes:
        return learned
    label, time, patches = learned[:1], learned[1:2], learned[2:]
    return torch.cat([time, label, patches])


def _labels(layout: Layout, weights: Mapping[str, Tensor], classes: int) -> Tensor:
    """Return the embeddings of the classes and, last, of the null label, ``(classes + 1, D)``."""
    rows = weights[layout.labels]
    if layout.null:
        return torch.cat([rows, weights[layout.null]])
    if len(rows) > classes:
        return rows
    return torch.cat([rows, rows.mean(dim=0, keepdim=True)])


def as_refiner(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Return weights with which a ``Refiner`` of width 2C is a linear convolution.

    Its hidden channels are the prediction x and −x. Since gelu(x) − gelu(−x) = x, the second
    convolution can add (K − 1)·x to x, whatever the kernel K is. It is exact up to rounding.

    Args:
        weight: K, ``(C, C, 3, 3)``.
        bias: ``(C,)``.
    """
    channels, centre = len(bias), KERNEL // 2
    enter = torch.zeros(2 * channels, 2 * channels, KERNEL, KERNEL)  # from prediction, noisy image
    change = weight.clone()
    for channel in range(channels):
        enter[channel, channel, centre, centre] = 1.0
        enter[channels + channel, channel, centre, centre] = -1.0
        change[channel, channel, centre, centre] -= 1.0
    return {
        "refiner.enter.weight": enter,
        "refiner.enter.bias": torch.zeros(2 * channels),
        "refiner.leave.weight": torch.cat([change, -change], dim=1),
        "refiner.leave.bias": bias,
    }
