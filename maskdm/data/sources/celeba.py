"""CelebA (Liu et al., 2015): 202 599 faces, aligned by their eyes, 178 x 218 pixels."""

import re
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath

from PIL import Image

from maskdm.data.contract import Kind, Picture, Source, SourceParams
from maskdm.data.files import Files, open_files, open_zip
from maskdm.data.images import read_image
from maskdm.runtime.downloads import download
from maskdm.runtime.errors import UserError
from maskdm.runtime.packages import require_package

ALIGNED = (178, 218)  # width, height
# U-ViT (Bao et al., 2023) trains on the square of side 128 that is centred at x = 89, y = 121.
CROP = (89 - 64, 121 - 64, 89 + 64, 121 + 64)  # left, top, right, bottom
IMAGES, PARTITION = "img_align_celeba", "list_eval_partition"
TRAINING = 0  # in the partition; 1 is validation, 2 is test


def _listing(params: SourceParams, path: Path) -> Source:
    """List the training part; the official validation and test parts are held out."""
    if not path.exists():
        raise CELEBA.wrong_path(f"There is no {path}")
    given = open_files(path)
    partition = _partition(given)
    images = _aligned(given)
    full_names = {PurePosixPath(name).name: name for name in images.names}
    missing = sorted(partition.keys() - full_names.keys())
    if missing:
        raise CELEBA.wrong_path(
            f"{len(missing)} of the {len(partition)} images that CelebA's {PARTITION} names are "
            f"not in {images.path}, such as {missing[0]}"
        )

    def read(name: str) -> Image.Image:
        image = read_image(
            images.read(full_names[name]), None, params.background, params.max_pixels
        )
        if image.size != ALIGNED:
            raise ValueError(f"{image.width} x {image.height} pixels, not the aligned 178 x 218")
        return image.crop(CROP)

    return Source(
        name="CelebA",
        licence="for non-commercial research only",
        classes=None,
        pictures=[Picture(name, partition[name] != TRAINING, None) for name in sorted(partition)],
        read=read,
    )


def _aligned(given: Files) -> Files:
    """Find the aligned images: those in their folder or in their archive, or else all images."""
    images = given.images()
    aligned = [name for name in images.names if IMAGES in name.split("/")]
    archive = next((name for name in given.names if name.endswith(f"{IMAGES}.zip")), None)
    if aligned:
        return replace(images, names=aligned)
    if archive is not None and given.path.is_dir():
        return open_zip(given.path / archive).images()
    return images


def _partition(given: Files) -> dict[str, int]:
    """Find and read the partition, among the files or beside them."""
    within = (given.read(name) for name in given.names if PurePosixPath(name).stem == PARTITION)
    around = given.path.resolve().parent
    beside = (path.read_bytes() for path in sorted(around.glob(f"{PARTITION}.*")) if path.is_file())
    content = next(chain(within, beside), None)
    if content is None:
        raise UserError(
            f"There is no {PARTITION}.txt in {given.path} or beside it: it says which images are "
            "CelebA's training part, and comes with them."
        )
    return read_partition(content.decode("utf-8", "replace"))


def read_partition(text: str) -> dict[str, int]:
    """Return the part of every image, from list_eval_partition.txt or Kaggle's .csv of it.

    Raises:
        UserError: if a line other than the first is not a file name and 0, 1 or 2.
    """
    partition = dict[str, int]()
    for number, line in enumerate(text.split("\n"), start=1):
        found = re.fullmatch(r"(\S+\.(?:jpg|png))[ ,]+([012])", line.strip())
        if found:
            partition[found[1]] = int(found[2])
        elif line.strip() and number > 1:  # Kaggle's first line names the columns
            raise UserError(f"Line {number} of CelebA's {PARTITION} is '{line.strip()[:40]}'.")
    return partition


def _fetch(downloads: Path) -> Path:
    """Download the two files that are needed, from where torchvision finds them."""
    from torchvision.datasets import CelebA
    from torchvision.datasets.utils import check_integrity

    folder = downloads / "celeba"
    needed = {f"{IMAGES}.zip", f"{PARTITION}.txt"}
    missing = [
        (file, name, md5)
        for file, md5, name in CelebA.file_list
        if name in needed and not check_integrity(str(folder / name), md5)
    ]
    if missing:
        gdown = require_package("gdown", "Source 'celeba'", "sources")
        folder.mkdir(parents=True, exist_ok=True)
    for file, name, md5 in missing:
        otherwise = f"let data.path name {CELEBA.path}, from {ORIGIN}."
        with download(f"CelebA's {name}", otherwise) as timeout:
            try:
                gdown.download(id=file, output=str(folder / name), timeout=timeout)
            except gdown.exceptions.DownloadError as error:  # Google Drive's daily quota is one
                raise OSError(error) from None
            if not check_integrity(str(folder / name), md5):
                raise OSError("what came is not the file")
    return folder


ORIGIN = "mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
CELEBA = Kind(
    _listing,
    path=f"the folder that holds {IMAGES}/ or {IMAGES}.zip, and {PARTITION}.txt",
    fetch=_fetch,
)
