"""What a source of images is: what it is asked for and what it offers.

A source without a split of its own holds out pictures by a hash of the *group* they belong to, so
that variants of one drawing never stand on both sides, and adding images moves none of the others.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from PIL import Image, ImageColor
from pydantic import Field, ValidationInfo, field_validator

from maskdm.data.duplicates import DuplicateRule
from maskdm.data.images import MOST_PIXELS
from maskdm.runtime.errors import UserError
from maskdm.runtime.location import fault_of_place
from maskdm.runtime.params import LONGEST_PATH, Section, fault_of_name


class SourceParams(Section):
    """What any source may be asked for; ``DataParams`` in registry.py knows which sources exist."""

    # DVC's run cache ignores keys called size: it would bring back images of another size.
    former_names: ClassVar[Mapping[str, str]] = {"size": "resolution"}

    source: str = Field(description="the name of a source")
    path: str | None = Field(description="where the files are, or null")
    resolution: int = Field(
        ge=8, le=1024, description="side of the images in pixels, a whole number from 8 to 1024"
    )
    channels: Literal[1, 3] = Field(description="1 (grey) or 3 (RGB)")
    background: str = Field(description="a colour such as white, '#ff8800' or 'hsl(30, 50%, 50%)'")
    heldout: float = Field(
        gt=0,
        lt=1,
        description="a share between 0 and 1 (a set that has a held-out part keeps to it instead)",
    )
    group: str = Field(
        description="for folder and zip: file, folder, or a regular expression that finds the "
        "group's name in the path (its first parenthesis, or else the whole match)"
    )
    duplicates: DuplicateRule = Field(
        default="keep",
        description="near (copies of one image, and images that are nearly the same, go to one "
        "side of the split), exact (only copies) or keep (each stays where its source puts it)",
    )
    classes: bool = Field(description="true or false; true needs a source with classes")
    limit: int | None = Field(ge=2, description="a whole number of images >= 2, or null for all")
    max_pixels: int = Field(
        default=MOST_PIXELS,
        ge=64,
        le=2**31,
        description="a whole number from 64 to 2147483648: images of more pixels are left out, "
        "which bounds memory",
    )
    autoencoder: str | None = Field(
        default=None,
        description="the folder of an AutoencoderKL of diffusers, whose latents networks then "
        "learn, or null: they learn the pixels",
    )
    max_unreadable: float = Field(ge=0, lt=1, description="a share of the files, 0 <= share < 1")
    window: int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="a whole number of images that training shuffles among each other, or null "
        "for all",
    )
    shards: str | None = Field(
        default=None,
        description="where the training images go instead of data/prepared, such as "
        "s3://bucket/folder or an absolute path, or null; it needs data.window",
    )

    @field_validator("channels", mode="before")
    @classmethod
    def _channels_are_counted(cls, channels: object) -> object:
        if isinstance(channels, bool):  # which equals 1, or 0
            raise ValueError("true and false are no numbers")
        return channels

    @field_validator("shards")
    @classmethod
    def _shards_are_elsewhere(cls, shards: str | None, info: ValidationInfo) -> str | None:
        if shards is None:
            return None
        if fault := fault_of_place(shards):
            raise ValueError(fault)
        if info.data.get("autoencoder") is not None:
            raise ValueError("networks learn the latents, which stay in data/prepared")
        if info.data.get("window", 0) is None:
            raise ValueError(
                "shards need data.window (such as 65536): where all images are shuffled together, "
                "every batch needs shards from everywhere"
            )
        return shards

    @field_validator("autoencoder")
    @classmethod
    def _autoencoder_is_named(cls, autoencoder: str | None) -> str | None:
        if autoencoder is not None and (not autoencoder.strip() or "\0" in autoencoder):
            raise ValueError("no folder has this name")
        # dataset.json and config.json hold it.
        if autoencoder is not None and (fault := fault_of_name(autoencoder, LONGEST_PATH)):
            raise ValueError(fault)
        return autoencoder

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
        except (re.error, OverflowError, RecursionError) as error:  # counts, depth that it lacks
            raise ValueError(f"not a regular expression ({error})") from None
        return group


class Picture(NamedTuple):
    """One image that is not read yet."""

    name: str
    heldout: bool
    label: int | None  # ignored where the source's classes are not asked for


@dataclass(frozen=True)
class Source:
    """What a source offers: its pictures in order of their names, and how one is read."""

    name: str
    licence: str
    classes: list[str] | None  # the name of every label
    pictures: list[Picture]
    read: Callable[[str], Image.Image]  # from a picture's name to mode RGB or L, any size
    left_out: Mapping[str, int] = field(default_factory=dict)  # what is there and no picture: kinds


@dataclass(frozen=True)
class Kind:
    """A kind of source: what is known about it before any file is touched."""

    listing: Callable[[SourceParams, Path], Source]  # lists the pictures in the files, unread
    path: str | None  # what data.path names; None: it must be null
    fetch: Callable[[Path], Path] | None = None  # puts the files into a folder for downloads
    origin: str | None = None  # where to get files that cannot be fetched
    classes: str | None = None  # what its classes are; None: it has none
    labelled: bool = False  # whether its images come with them, so that nobody needs to ask

    def wrong_path(self, found: str) -> UserError:
        """Return the refusal of a ``data.path``, with what was found there."""
        return UserError(f"{found}: data.path must name {self.path}.")


def folder_labels(folders: Sequence[str]) -> Callable[[str], int | None]:
    """Return the labels of files whose classes are sub-folders.

    Args:
        folders: the names of the classes.

    Returns:
        A function from a file's name to its label; None for a file in none of the folders.
    """
    labels = {folder: label for label, folder in enumerate(folders)}
    return lambda name: labels.get(name.split("/")[0])


def held_out(group: str, params: SourceParams) -> bool:
    """Return whether a group of pictures is held out."""
    return hashed(group) < params.heldout


def hashed(text: str) -> float:
    """Return a number in [0, 1) that depends only on the text."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
