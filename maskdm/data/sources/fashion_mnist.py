"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 28 x 28 grey pictures of clothes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from maskdm.data.arrays import Part, list_parts, picture_in
from maskdm.data.contract import Kind, Source, SourceParams
from maskdm.runtime.downloads import download
from maskdm.runtime.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
CLASSES = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
MOST_BYTES = 2**28  # unpacked: five times the 60 000 images
WIDEST_FRAME = 8  # pixels of black that are added to reach the wanted size without a resize


def _listing(params: SourceParams, folder: Path) -> Source:
    """List the 60 000 training images; the official 10 000 test images are held out."""
    parts = {prefix: _images_and_labels(folder, prefix) for prefix in ("t10k", "train")}
    return Source(
        name="Fashion-MNIST",
        licence="MIT",
        classes=CLASSES,
        pictures=list_parts(parts, heldout="t10k"),
        read=lambda name: _framed(picture_in(parts, name), params.resolution),
    )


def _images_and_labels(folder: Path, prefix: str) -> Part:
    """Return the images of a part, uint8 (count, 28, 28), and their labels."""
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(f"The {prefix} images and labels in {folder} do not belong together.")
    if labels.size and labels.max() >= len(CLASSES):
        raise UserError(
            f"The {prefix} labels in {folder} go up to {labels.max()}, and Fashion-MNIST's are 0 "
            f"to {len(CLASSES) - 1}: it is another set, such as a part of EMNIST."
        )
    return Part(images, labels.tolist())


def _fetch(downloads: Path) -> Path:
    """Find Debian's copy of the four files, or download them."""
    if DEBIAN.is_dir():
        return DEBIAN
    from torchvision.datasets import FashionMNIST

    otherwise = (
        "install Debian's package dataset-fashion-mnist, or let data.path name the folder of its "
        "four .gz files."
    )
    with download("Fashion-MNIST", otherwise):
        FashionMNIST(str(downloads), download=True)
    return downloads / "FashionMNIST" / "raw"


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array in a gzipped IDX file (yann.lecun.com/exdb/mnist).

    Raises:
        UserError: if the file is missing, is not IDX, or is cut short.
    """
    if not path.is_file():
        raise FASHION_MNIST.wrong_path(f"There is no {path}")
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again.") from None
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0  # 8: uint8
    start = 4 + 4 * rank
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if rank == 0 or len(content) != start + math.prod(shape):
        raise UserError(f"{path} is not a whole IDX file of bytes: fetch it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _framed(image: np.ndarray, size: int) -> Image.Image:
    """Return a grey image, in a narrow black frame if that saves a resize."""
    wider = size - image.shape[0]
    if 0 < wider <= WIDEST_FRAME:
        image = np.pad(image, (wider // 2, wider - wider // 2))
    return Image.fromarray(image)


FASHION_MNIST = Kind(
    _listing,
    path="the folder of its four IDX .gz files",
    fetch=_fetch,
    classes="ten clothes",
    labelled=True,
)
