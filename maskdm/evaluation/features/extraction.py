"""Features of images, in which a distance between two sets of images is measured.

A distance means little without its features, so every extractor carries the names of the
distances measured in it: ``fid`` and ``kid`` belong to Inception through clean-fid alone (Parmar
et al., 2022); those of the embedded EfficientNet-lite0 are ``fd_efficientnet_lite0`` and
``kid_efficientnet_lite0``. Images are resized as clean-fid resizes them: bicubic, antialiased,
one float channel at a time. The side to which they are resized changes the distance, so it is
recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskdm.runtime.distributed import ALONE, Processes
from maskdm.runtime.sharded import Images

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Network = Callable[["Tensor"], "Tensor"]
# What to do where weights cannot be downloaded.
INSTEAD = (
    "measure in the embedded features, which need no download "
    "(-S fid.features.extractor=efficientnet-lite0)"
)


@dataclass(frozen=True)
class Extractor:
    """A kind of features: its names, its sizes, and how to get the network.

    Attributes:
        name: as in ``fid.features.extractor``.
        frechet: what a Fréchet distance in these features is called.
        kernel: what a kernel distance in these features is called.
        count: features per image.
        side: of the square that the network sees, in pixels.
        weights: returns the file of the weights, downloaded if necessary.
        build: makes of that file a network on a device, which maps float32 images in 0..255,
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


def extract(
    images: Images,
    network: FeatureNetwork,
    batch_size: int | None = None,
    label: str = "",
    processes: Processes = ALONE,
) -> NDArray[np.float32]:
    """Return the features of images, in order.

    Args:
        images: ``(N, height, width, channels)`` uint8, in memory, mapped or in shards; 1
            channel (repeated to 3) or 3.
        network: from ``load_network``.
        batch_size: images held in float at a time; by default the fastest number on the device.
            It changes the features only by rounding.
        label: the text of the progress bar; empty for none.
        processes: share the batches; all of them must call.

    Returns:
        ``(N, network.extractor.count)`` float32; meaningful in the main process alone.
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
    def features_of(part: slice) -> NDArray[np.float32]:
        batch = torch.from_numpy(np.array(images[part]))
        batch = batch.to(network.device).permute(0, 3, 1, 2).float()
        resized = resize(batch, rows, columns).expand(-1, 3, -1, -1)
        outputs = network.network(resized.contiguous(memory_format=torch.channels_last))
        return outputs.float().cpu().numpy()

    features = np.empty((len(images), network.extractor.count), np.float32)
    batches = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    silent = not label or not processes.is_main
    with tqdm(total=len(images), desc=label, unit="image", mininterval=1.0, disable=silent) as bar:
        for part, found in processes.map(batches, features_of):
            features[part] = found
            bar.update(len(found))
    return features


def bicubic(source: int, target: int) -> Tensor:
    """Return PIL's antialiased bicubic resize of a line of pixels as a matrix.

    The columns are PIL's resizes of single bright pixels, so the weights are PIL's own.

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
