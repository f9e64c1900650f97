"""CIFAR-10 (Krizhevsky, 2009): 32 x 32 colour pictures of ten kinds, in its Python version."""

import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from maskdm.data.contract import Kind, Picture, Source, SourceParams
from maskdm.data.pickled import read_pickle
from maskdm.runtime.downloads import download
from maskdm.runtime.errors import UserError

CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
SIDE = 32


def _listing(params: SourceParams, path: Path) -> Source:
    """50 000 training images; the official 10 000 test images are the held-out ones."""
    pictures, images = list[Picture](), dict[str, np.ndarray]()
    for batch, content in _batches(path).items():
        images[batch], labels = _images_and_labels(content, f"{batch} in {path}")
        pictures += [
            Picture(f"{batch}/{index:05}", batch == "test_batch", label if params.classes else None)
            for index, label in enumerate(labels)
        ]

    def read(name: str) -> Image.Image:
        batch, index = name.split("/")
        return Image.fromarray(images[batch][int(index)])

    return Source("CIFAR-10", "not stated", CLASSES if params.classes else None, pictures, read)


def _batches(path: Path) -> dict[str, bytes]:
    """Return the six files of pickled batches, from their folder or their archive."""
    if path.is_dir():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        found = {
            batch: (folder / batch).read_bytes() for batch in BATCHES if (folder / batch).is_file()
        }
    elif path.is_file():
        found = _unpacked(path)
    else:
        raise UserError(f"There is no {path}: data.path must name {CIFAR10.path}.")
    missing = [batch for batch in BATCHES if batch not in found]
    if missing:
        raise UserError(
            f"{path} holds no {', '.join(missing)}: data.path must name {CIFAR10.path}."
        )
    return {batch: found[batch] for batch in BATCHES}


def _unpacked(path: Path) -> dict[str, bytes]:
    """Return the batches in an archive."""
    found = dict[str, bytes]()
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                batch, content = PurePosixPath(member.name).name, archive.extractfile(member)
                if batch in BATCHES and content is not None:
                    found[batch] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again.") from None
    return found


def _images_and_labels(content: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    """Return the images, uint8 (count, 32, 32, 3), and their labels."""
    try:
        batch = read_pickle(content)
        planes, labels = batch["data"], [int(label) for label in batch["labels"]]
        if planes.dtype != np.uint8 or planes.shape != (len(labels), 3 * SIDE * SIDE):
            raise ValueError(f"data is {planes.dtype} {planes.shape} for {len(labels)} labels")
        if not all(0 <= label < len(CLASSES) for label in labels):
            raise ValueError("a label is not one of 0 to 9")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{where} is no batch of CIFAR-10's Python version ({error}): fetch it again."
        ) from None
    return planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _fetch(downloads: Path) -> Path:
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    with download("CIFAR-10", f"let data.path name {CIFAR10.path}, from {datasets.CIFAR10.url}."):
        download_url(datasets.CIFAR10.url, str(downloads), ARCHIVE, datasets.CIFAR10.tgz_md5)
    return downloads / ARCHIVE


CIFAR10 = Kind(
    _listing, path=f"{ARCHIVE} or the folder {FOLDER}", fetch=_fetch, classes="ten things"
)
