"""Parameters, small images, and the way from a source to a prepared set."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskdm.data.prepared import PreparedSet, write_prepared
from maskdm.data.registry import DataParams, open_source, read_samples
from maskdm.runtime.params import validate

DEFAULTS = {
    "source": "folder",
    "path": None,
    "resolution": 16,
    "channels": 3,
    "background": "white",
    "heldout": 0.3,
    "group": "file",
    "classes": False,
    "limit": None,
    "max_unreadable": 0.0,
}


def params(**changes: Any) -> DataParams:
    return validate(DEFAULTS | changes, "data", DataParams)


def prepare(folder: Path, asked: DataParams) -> PreparedSet:
    source = open_source(asked, folder / "downloads")
    return write_prepared(
        folder,
        read_samples(source, asked),
        size=asked.resolution,
        channels=asked.channels,
        classes=source.classes,
        source=source.name,
        licence=source.licence,
        left_out=source.left_out,
    )


def sides(asked: DataParams) -> dict[str, bool]:
    """Return which pictures are held out, by name."""
    return {p.name: p.heldout for p in open_source(asked, Path("nowhere")).pictures}


def save_images(folder: Path, names: list[str], side: int = 20) -> None:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)


def jpeg(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """Return a JPEG file of noise, (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def zip_files(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
