"""Sources of images by name, and how the pictures of one are read.

A new source is a file in ``sources/`` with a ``Kind``, and an entry in ``SOURCES``.
"""

import heapq
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import UnidentifiedImageError
from pydantic import Field, ValidationInfo, field_validator

from maskdm.data.contract import Kind, Picture, Source, SourceParams, hashed
from maskdm.data.images import fit
from maskdm.data.pieces import Pieces
from maskdm.data.prepared import Sample, Unreadable, require_both
from maskdm.data.reading import read_in_order
from maskdm.data.sources.celeba import CELEBA
from maskdm.data.sources.celebahq import CELEBAHQ
from maskdm.data.sources.cifar10 import CIFAR10
from maskdm.data.sources.fashion_mnist import FASHION_MNIST
from maskdm.data.sources.folder import FOLDER, ZIP
from maskdm.data.sources.imagenet import IMAGENET
from maskdm.data.sources.lsun import CHURCH
from maskdm.data.sources.openmoji import OPENMOJI
from maskdm.data.sources.vggface2 import VGGFACE2
from maskdm.runtime.errors import UserError, reason
from maskdm.runtime.params import fault_of_name

SOURCES: dict[str, Kind] = {
    "openmoji": OPENMOJI,
    "fashion-mnist": FASHION_MNIST,
    "folder": FOLDER,
    "zip": ZIP,
    "cifar10": CIFAR10,
    "celeba": CELEBA,
    "celebahq": CELEBAHQ,
    "lsun-church": CHURCH,
    "vggface2": VGGFACE2,
    "imagenet": IMAGENET,
}


class DataParams(SourceParams):
    """The section ``data`` of the params file."""

    source: str = Field(description=", ".join(SOURCES))
    path: str | None = Field(
        description="the files of the source (docs/data.md), or null for "
        + ", ".join(name for name, kind in SOURCES.items() if kind.fetch)
    )
    classes: bool = Field(
        description="true, false, or auto (true for "
        + ", ".join(name for name, kind in SOURCES.items() if kind.labelled)
        + "); true needs a source with classes: "
        + ", ".join(f"{name} ({kind.classes})" for name, kind in SOURCES.items() if kind.classes)
    )

    @field_validator("source")
    @classmethod
    def _source_exists(cls, source: str) -> str:
        if source not in SOURCES:
            raise ValueError("there is no such source")
        return source

    @field_validator("path")
    @classmethod
    def _source_takes_path(cls, path: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("source", "")
        kind = SOURCES.get(name)
        if path is not None and not path.strip():
            raise ValueError("an empty path would be the current folder")
        if path is not None and "\0" in path:
            raise ValueError("no file has this name")
        if kind and path is None and kind.fetch is None:
            origin = f", from {kind.origin}" if kind.origin else ""
            raise ValueError(f"source '{name}' needs {kind.path}{origin}")
        if kind and path is not None and kind.path is None:
            raise ValueError(f"source '{name}' comes from its package and takes no path")
        return path

    @field_validator("classes", mode="before")
    @classmethod
    def _source_knows(cls, classes: object, info: ValidationInfo) -> object:
        return with_classes(classes, info.data.get("source", ""))

    @field_validator("classes")
    @classmethod
    def _source_has_classes(cls, classes: bool, info: ValidationInfo) -> bool:
        name = info.data.get("source", "")
        if classes and name in SOURCES and SOURCES[name].classes is None:
            raise ValueError(f"source '{name}' has no classes")
        return classes


def with_classes(classes: object, source: str) -> object:
    """Return whether images come with classes, from ``data.classes`` and ``data.source``.

    A value that is none of true, false and auto is returned as it is, for whoever checks it.
    """
    kind = SOURCES.get(source)
    return bool(kind and kind.labelled) if classes == "auto" else classes


def open_source(params: DataParams, downloads: Path) -> Source:
    """List the pictures that ``params`` ask for, without reading them.

    Args:
        params: the section ``data``.
        downloads: the folder for files that have to be fetched.

    Raises:
        UserError: if the images cannot be found, the split leaves one side empty, a picture has no
            class where classes are asked for, or a class has a name that no model can have.
    """
    kind = SOURCES[params.source]
    if params.path is None and kind.fetch is not None:
        path = kind.fetch(downloads)
    else:
        path = own_path(params)
    source = kind.listing(params, path)
    # A folder's name may hold bytes that are no text, which dataset.json and cards have to be.
    source = replace(source, name=source.name.encode("utf-8", "backslashreplace").decode())
    if not params.classes:
        source = replace(source, classes=None)
    if source.classes is not None:
        stray = next((picture.name for picture in source.pictures if picture.label is None), None)
        if stray is not None:
            raise UserError(
                f"data.classes is true, but '{stray}' in data.path lies in none of its "
                f"{kind.classes}: move it into one, take it away, or set data.classes to false."
            )
    for name in source.classes or ():
        if fault := fault_of_name(name):
            raise UserError(
                f"The class {name[:100]!r} of data.path cannot be called that: {fault}. Rename it, "
                "or set data.classes to false."
            )
    if params.limit is not None:
        chosen = heapq.nsmallest(
            params.limit, source.pictures, key=lambda p: hashed(f"limit {p.name}")
        )
        source = replace(source, pictures=sorted(chosen, key=lambda picture: picture.name))
    heldout = sum(picture.heldout for picture in source.pictures)
    require_both(len(source.pictures) - heldout, heldout, source.left_out)
    return source


def own_path(params: DataParams) -> Path:
    """Return ``data.path``, in which a leading ``~`` is the user's home.

    Raises:
        UserError: if nothing is there.
    """
    path, beside = Path(params.path or ""), ""
    try:
        path = path.expanduser()
        if path.exists():
            return path
        reason = "does not exist"
    except (OSError, RuntimeError) as error:  # no rights to look, a name too long, no home
        reason = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if not path.is_absolute():
        beside = (
            " A relative path counts from the folder of params.yaml; experiments that are queued "
            "or run with --temp have folders of their own, which need an absolute path."
        )
    raise UserError(
        f"data.path is '{params.path}', which {reason}: it must name "
        f"{SOURCES[params.source].path}.{beside}"
    )


def read_samples(
    source: Source, params: DataParams, pieces: Pieces | None = None
) -> Iterator[Sample | Unreadable]:
    """Read the pictures of a source in order, on all cores, a bounded number at a time.

    Args:
        source: the pictures.
        params: the section ``data``.
        pieces: what of them was read before, and is kept of what is read now; None: nothing.

    Raises:
        UserError: as soon as more files cannot be read than ``max_unreadable`` allows.
    """
    unreadable: list[Unreadable] = []
    pictures, read = source.pictures, partial(read_in_order, partial(_read, source, params))
    allowed = params.max_unreadable * len(pictures)
    for sample in pieces.samples(pictures, read) if pieces else read(pictures):
        if isinstance(sample, Unreadable):
            unreadable.append(sample)
            if len(unreadable) > allowed:
                raise _too_many(unreadable, len(pictures), params)
        yield sample


def _read(source: Source, params: DataParams, picture: Picture) -> Sample | Unreadable:
    """Read one picture, or say why it cannot be read."""
    try:
        pixels = fit(source.read(picture.name), params.resolution, params.channels)
    except UserError:
        raise  # more is wrong than this picture
    except UnidentifiedImageError:
        return Unreadable(picture.name, "in no image format that is known here")
    except Exception as error:  # a decoder may raise anything for a damaged file
        said = getattr(error, "strerror", None)  # by the system; decoders raise OSErrors without
        lasting = not (said or isinstance(error, MemoryError))
        return Unreadable(picture.name, said or reason(error), lasting)
    label = picture.label if source.classes else None
    return Sample(pixels, label, picture.heldout)


def _too_many(unreadable: list[Unreadable], total: int, params: DataParams) -> UserError:
    listed = "; ".join(f"{file.name}: {file.reason}" for file in unreadable[-5:])
    return UserError(
        f"At least {len(unreadable)} of {total} images cannot be read, more than the share "
        f"data.max_unreadable = {params.max_unreadable} allows ({listed}). Mend or remove them, "
        "or raise data.max_unreadable."
    )
