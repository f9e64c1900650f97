"""CIFAR-10 (Krizhevsky, 2009): 32 x 32 colour pictures of ten kinds, in its Python version."""

import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from maskdm.data.arrays import Part, list_parts, picture_in
from maskdm.data.contract import Kind, Source, SourceParams
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
MOST_BYTES = 2**28  # of a batch, unpacked: they have 31 MB


def _listing(params: SourceParams, path: Path) -> Source:
    """List the 50 000 training images; the official 10 000 test images are held out."""
    parts = {
        batch: _images_and_labels(content, f"{batch} in {path}")
        for batch, content in _batches(path).items()
    }
    return Source(
        name="CIFAR-10",
        licence="not stated",
        classes=CLASSES,
        pictures=list_parts(parts, heldout="test_batch"),
        read=lambda name: Image.fromarray(picture_in(parts, name)),
    )


def _batches(path: Path) -> dict[str, bytes]:
    """Return the six files of pickled batches, from their folder or their archive."""
    if path.is_dir():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        found = {
            batch: (folder / batch).read_bytes() for batch in BATCHES if (folder / batch).is_file()
        }
    elif path.is_file():
        found = _batches_in_archive(path)
    else:
        raise CIFAR10.wrong_path(f"There is no {path}")
    missing = [batch for batch in BATCHES if batch not in found]
    if missing:
        raise CIFAR10.wrong_path(f"{path} holds no {', '.join(missing)}")
    return {batch: found[batch] for batch in BATCHES}


def _batches_in_archive(path: Path) -> dict[str, bytes]:
    """Return the files of pickled batches in an archive."""
    found = dict[str, bytes]()
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                batch, content = PurePosixPath(member.name).name, archive.extractfile(member)
                if batch in BATCHES and content is not None:
                    found[batch] = content.read(MOST_BYTES)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again.") from None
    return found


def _images_and_labels(content: bytes, where: str) -> Part:
    """Return the images of a batch, uint8 (count, 32, 32, 3), and their labels."""
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
    return Part(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels)


def _fetch(downloads: Path) -> Path:
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    with download("CIFAR-10", f"let data.path name {CIFAR10.path}, from {datasets.CIFAR10.url}."):
        download_url(datasets.CIFAR10.url, str(downloads), ARCHIVE, datasets.CIFAR10.tgz_md5)
    return downloads / ARCHIVE


CIFAR10 = Kind(
    _listing,
    path=f"{ARCHIVE} or the folder {FOLDER}",
    fetch=_fetch,
    classes="ten things",
    labelled=True,
)
