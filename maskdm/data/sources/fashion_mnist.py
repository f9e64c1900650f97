"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 28 x 28 grey pictures of clothes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from maskdm.data.contract import Kind, Picture, Source, SourceParams
from maskdm.runtime.downloads import download
from maskdm.runtime.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist
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
WIDEST_FRAME = 8  # pixels of black added to reach the wanted size before anything is resized


def _listing(params: SourceParams, folder: Path) -> Source:
    """60 000 training images; the official 10 000 test images are the held-out ones."""
    pictures, images = list[Picture](), dict[str, np.ndarray]()
    for prefix, heldout in (("t10k", True), ("train", False)):
        images[prefix] = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        if images[prefix].ndim != 3 or labels.shape != images[prefix].shape[:1]:
            raise UserError(f"The {prefix} images and labels in {folder} do not belong together.")
        pictures += [
            Picture(f"{prefix}/{index:05}", heldout, int(label) if params.classes else None)
            for index, label in enumerate(labels)
        ]

    def read(name: str) -> Image.Image:
        prefix, index = name.split("/")
        return _framed(images[prefix][int(index)], params.resolution)

    return Source("Fashion-MNIST", "MIT", CLASSES if params.classes else None, pictures, read)


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
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"There is no {path}: data.path must name the IDX files' folder.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again.") from None
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0  # 8: uint8
    start = 4 + 4 * rank
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if rank == 0 or len(content) != start + math.prod(shape):
        raise UserError(f"{path} is not a whole IDX file of bytes: fetch it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _framed(image: np.ndarray, size: int) -> Image.Image:
    """Return a grey image, in a narrow black frame where that spares it a resize."""
    wider = size - image.shape[0]
    if 0 < wider <= WIDEST_FRAME:
        image = np.pad(image, (wider // 2, wider - wider // 2))
    return Image.fromarray(image)


FASHION_MNIST = Kind(
    _listing, path="the folder of its four IDX .gz files", fetch=_fetch, classes="ten clothes"
)
