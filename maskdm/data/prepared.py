"""The prepared set: two memory-mapped uint8 arrays, their labels, and a JSON about them.

A folder of ``train.npy`` and ``heldout.npy``, uint8 (count, size, size, channels);
``train_labels.npy`` and ``heldout_labels.npy``, int64 (count,), if the images have classes;
``train_latents.npy`` and ``heldout_latents.npy``, uint8 (count, h, w, c), if networks are to learn
the latents of an autoencoder; and ``dataset.json``. The same images in the same order give the same
bytes. The training images may be in shards elsewhere instead of ``train.npy``: ``shards.json`` then
names them.
"""

import hashlib
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from re import fullmatch
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol

import numpy as np

from maskdm.runtime.errors import UserError
from maskdm.runtime.files import remove_begun, replacing, write_array, write_json
from maskdm.runtime.locks import PATIENCE, held
from maskdm.runtime.shard_sender import sending
from maskdm.runtime.sharded import Images, ShardedArray, Shards, Window

PARTS = ("train", "heldout")
LISTED = 20  # number of skipped files that dataset.json names
BLOCK_BYTES = 2**22  # of the images that stay together, in a shard or in the order of an epoch
NONE: Mapping[str, int] = MappingProxyType({})
AGAIN = "Run the prepare stage again: dvc repro -f -s prepare."


def block_of(shape: tuple[int, ...]) -> int:
    """Return how many images of a shape (H, W, C) are a block, or a shard."""
    return max(1, BLOCK_BYTES // math.prod(shape))


@dataclass(frozen=True)
class Sample:
    """One image on its way into the prepared set."""

    pixels: np.ndarray  # uint8 (size, size, channels)
    label: int | None
    heldout: bool


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read, and why.

    Attributes:
        name: of the file.
        reason: in words.
        lasting: whether it lies in what the file holds; the same file may be read another time
            where a disk, rights to it or memory failed.
    """

    name: str
    reason: str
    lasting: bool = True


class Encoder(Protocol):
    """Makes latents: ``maskdm.backbones.autoencoder.Encoder``."""

    shape: tuple[int, int, int]  # of the latents of an image

    def measure(self, images: np.ndarray) -> dict[str, object]:
        """Look at the training images first; return what decodes, for dataset.json."""

    def encode(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the latents of images in their order, some at a time, uint8 (batch, h, w, c)."""


@dataclass(frozen=True)
class PreparedSet:
    """The images as the other stages see them."""

    train: Images  # uint8 (count, size, size, channels), memory-mapped or in shards
    heldout: np.ndarray
    train_labels: np.ndarray | None  # int64 (count,)
    heldout_labels: np.ndarray | None
    size: int
    channels: int
    classes: list[str] | None
    source: str
    licence: str
    skipped: int  # files that could not be read
    hash: str  # of all pixels, labels and latents
    window: Window | None = None  # data.window; None: all images are shuffled together
    train_latents: np.ndarray | None = None  # uint8 (count, h, w, c), memory-mapped
    heldout_latents: np.ndarray | None = None
    latents: Mapping[str, object] | None = None  # how they are decoded

    @property
    def learned(self) -> tuple[Images, np.ndarray]:
        """What networks see, for training and held out: the latents if there are any."""
        if self.train_latents is None or self.heldout_latents is None:
            return self.train, self.heldout
        return self.train_latents, self.heldout_latents

    @property
    def class_counts(self) -> dict[str, int] | None:
        """How many training images each class has, in the order of the labels; None without."""
        if self.classes is None or self.train_labels is None:
            return None
        counts = np.bincount(self.train_labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))


def open_prepared(folder: Path) -> PreparedSet:
    """Open a prepared set without reading its pixels.

    Raises:
        UserError: if the folder holds no prepared set, or its files disagree with each other.
    """
    try:
        about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        shape = (about["size"], about["size"], about["channels"])

        def labels(part: str) -> np.ndarray | None:
            if about["classes"] is None:
                return None
            return _map(folder / f"{part}_labels.npy", (about[part]["count"],), np.int64)

        window = Window(**about["window"]) if "window" in about else None
        in_all = (about["train"]["count"], *shape)
        if window and "shards" in about:
            train: Images = _in_shards(folder, about["shards"], window.block, in_all)
        else:
            train = _map(folder / "train.npy", in_all, np.uint8)

        def latents(part: str) -> np.ndarray | None:
            if (decoded := about.get("latents")) is None:
                return None
            small = (decoded["size"], decoded["size"], decoded["channels"])
            count = about[part]["count"]
            return _map(folder / f"{part}_latents.npy", (count, *small), np.uint8)

        return PreparedSet(
            train=train,
            heldout=_map(folder / "heldout.npy", (about["heldout"]["count"], *shape), np.uint8),
            train_labels=labels("train"),
            heldout_labels=labels("heldout"),
            size=about["size"],
            channels=about["channels"],
            classes=about["classes"],
            source=about["source"],
            licence=about["licence"],
            skipped=about["skipped"]["count"],
            hash=about["hash"],
            window=window,
            train_latents=latents("train"),
            heldout_latents=latents("heldout"),
            latents=about.get("latents"),
        )
    except FileNotFoundError as error:
        raise UserError(f"There is no {error.filename}. {AGAIN}") from None
    except (KeyError, TypeError, ValueError, EOFError) as error:
        raise UserError(f"The prepared set in {folder} is damaged: {error}. {AGAIN}") from None


def _in_shards(folder: Path, url: str, length: int, shape: tuple[int, ...]) -> ShardedArray:
    """Return the array whose shards shards.json names."""
    names = json.loads((folder / "shards.json").read_text(encoding="utf-8"))["sha256"]
    if len(names) != -(-shape[0] // length) or not all(fullmatch("[0-9a-f]{64}", n) for n in names):
        raise ValueError(f"shards.json does not name the shards of {shape[0]} images")
    return ShardedArray(Shards(url, length, names), shape)


def _map(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Memory-map an array and check that it is what dataset.json says it is."""
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    if mapped.shape != shape or mapped.dtype != dtype:
        raise ValueError(
            f"{path.name} holds {mapped.dtype} {mapped.shape}, "
            f"dataset.json says {np.dtype(dtype)} {shape}"
        )
    return mapped


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a prepared set while the context lasts.

    Raises:
        UserError: if another one does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(folder.with_name(f".{folder.name}.lock"), PATIENCE) as free:
        if not free:
            raise UserError(f"Another process writes {folder}: wait for its end, and try again.")
        yield


def write_prepared(
    folder: Path,
    samples: Iterable[Sample | Unreadable],
    *,
    size: int,
    channels: int,
    classes: list[str] | None,
    source: str,
    licence: str,
    left_out: Mapping[str, int] = NONE,
    window: int | None = None,
    shards: str | None = None,
    encoder: Encoder | None = None,
) -> PreparedSet:
    """Write a prepared set, one image in memory at a time; of shards, a few.

    An older set in ``folder`` is replaced once all images are written, and is untouched if
    ``samples`` raises. Two processes that may write one folder take turns by ``alone``.

    Args:
        folder: where the files go; made if it is missing.
        samples: the images in the order in which they are kept.
        size: the side of every image in pixels.
        channels: 1 or 3.
        classes: the name of every label, or None if samples carry no label.
        source: where the images come from, in words.
        licence: the images' licence, in words.
        left_out: what lies beside the images and is none: kind of file → how many.
        window: images that are shuffled together in training; None for all.
        shards: where the training images go instead; only with a window.
        encoder: makes the latents that networks are to learn; None: they learn the pixels.

    Raises:
        UserError: if no training or no held-out image is left, or shards cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_begun(folder)
    shape, skipped, skipped_count = (size, size, channels), list[str](), 0
    labels = {False: array("q"), True: array("q")}
    block = block_of(shape)
    latents, decoded = list[_Growing](), None
    with ExitStack() as arrays:
        train = arrays.enter_context(
            growing_shards(folder / "shards.json", shards, shape, block)
            if shards
            else growing_array(folder / "train.npy", shape)
        )
        heldout = arrays.enter_context(growing_array(folder / "heldout.npy", shape))
        for sample in samples:
            if isinstance(sample, Unreadable):
                skipped_count += 1
                if skipped_count <= LISTED:
                    skipped.append(f"{sample.name}: {sample.reason}")
                continue
            if (sample.label is None) != (classes is None):
                raise ValueError(f"a label is {sample.label} where the classes are {classes}")
            (heldout if sample.heldout else train).append(sample.pixels)
            if sample.label is not None:
                labels[sample.heldout].append(sample.label)
        require_both(train.count, heldout.count, left_out)
        if encoder is not None:
            decoded = encoder.measure(train.images())
            for part, images in zip(PARTS, (train, heldout), strict=True):
                path = folder / f"{part}_latents.npy"
                latents.append(arrays.enter_context(growing_array(path, encoder.shape)))
                for encoded in chain.from_iterable(encoder.encode(images.images())):
                    latents[-1].append(encoded)
        for written in (train, heldout, *latents):
            written.finish()
        # From here to the end of this function there is no set: killed between two files, it would
        # have left new pixels under the old hash.
        (folder / "dataset.json").unlink(missing_ok=True)
    _remove_older(folder, shards is not None, encoder is not None)
    if classes is not None:
        for part, values in zip(PARTS, (labels[False], labels[True]), strict=True):
            of_part = np.frombuffer(values, dtype=np.int64)  # without a copy
            write_array(folder / f"{part}_labels.npy", of_part)
    about: dict[str, Any] = {
        "source": source,
        "licence": licence,
        "size": size,
        "channels": channels,
        "classes": classes,
        "train": {"count": train.count, "sha256": train.digest.hex()},
        "heldout": {"count": heldout.count, "sha256": heldout.digest.hex()},
        "skipped": {"count": skipped_count, "files": skipped},
        "left_out": dict(sorted(left_out.items())),
        "hash": _content_hash(
            shape,
            (train.digest, heldout.digest, labels[False], labels[True]),
            decoded,
            [part.digest for part in latents],
        ),
    }
    if window:
        about["window"] = Window(window, block)._asdict()
    if shards:
        about["shards"] = shards
    if decoded is not None:
        about["latents"] = decoded
    write_json(folder / "dataset.json", about)
    return open_prepared(folder)


def _remove_older(folder: Path, shards: bool, latents: bool) -> None:
    """Remove what an older set has and this one has not: the other images, labels, latents."""
    older = ["train.npy" if shards else "shards.json"]
    for part in PARTS:
        older += [f"{part}_labels.npy", *([] if latents else [f"{part}_latents.npy"])]
    for name in older:
        (folder / name).unlink(missing_ok=True)


def _content_hash(
    shape: tuple[int, int, int],
    contents: "Iterable[bytes | array[int]]",
    decoded: Mapping[str, Any] | None,
    latents: Iterable[bytes],
) -> str:
    """Return the hash over all that networks may learn from.

    Args:
        shape: of an image, (H, W, C).
        contents: hashes of the images and the labels themselves.
        decoded: about the latents; where their autoencoder lies does not matter. None for none.
        latents: their hashes.
    """
    digest = hashlib.sha256(f"{shape}".encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    if decoded is not None:
        of_latents = {key: value for key, value in decoded.items() if key != "autoencoder"}
        digest.update(json.dumps(of_latents, sort_keys=True).encode())
        for part in latents:
            digest.update(part)
    return digest.hexdigest()


def spread(length: int, count: int) -> np.ndarray:
    """Return indices of ``count`` images, or all of fewer, evenly over a set sorted by class.

    Args:
        length: images of the set.
        count: how many are wanted.
    """
    return np.linspace(0, length - 1, min(count, length)).round().astype(int)


def require_both(train: int, heldout: int, left_out: Mapping[str, int] = NONE) -> None:
    """Check that the split left images on both sides.

    Args:
        train: images on one side.
        heldout: images on the other.
        left_out: what was there and was no image: kind of file → how many.

    Raises:
        UserError: saying which side is empty and what to change.
    """
    if train + heldout == 0:
        others = f"{sum(left_out.values())} other files are there ({kinds(left_out)}). "
        raise UserError(
            f"No image was found: see data.source and data.path. {others if left_out else ''}"
            "Images are told by the endings of their names; others, such as .heic, have to be "
            "converted first (docs/data.md)."
        )
    for name, count, change in (("training", train, "smaller"), ("held-out", heldout, "larger")):
        if count == 0:
            raise UserError(
                f"The split left no {name} image out of {train + heldout}: whole groups of "
                f"related images go to one side. Use a {change} data.heldout, a finer data.group, "
                "or more images."
            )


def kinds(left_out: Mapping[str, int]) -> str:
    """Return in words what lay beside the images."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))


@contextmanager
def growing_array(path: Path, shape: tuple[int, int, int]) -> Iterator["_Growing"]:
    """Write a .npy file of unknown length: images are appended, then the header is corrected."""
    with replacing(path) as begun, begun.open("wb") as file:

        def write_header(count: int) -> None:
            # numpy pads it so that its length does not depend on the count.
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
                "fortran_order": False,
                "shape": (count, *shape),
            }
            np.lib.format.write_array_header_1_0(file, header)

        def mapped(count: int) -> np.ndarray:
            file.flush()
            return np.memmap(begun, np.uint8, "r", offset=header, shape=(count, *shape))

        write_header(0)
        header = file.tell()
        growing = _Growing(file.write, shape, partial(_settle, file), mapped)
        yield growing
        file.seek(0)
        write_header(growing.count)


def _settle(file: BinaryIO) -> None:
    """Have on the disk what was written: a full one is to say so now."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def growing_shards(
    index: Path, url: str, shape: tuple[int, int, int], length: int
) -> Iterator["_Growing"]:
    """Write shards of ``length`` images to ``url``, and what they are called to ``index``."""
    with sending(url, length * math.prod(shape)) as sender:
        growing = _Growing(sender.append, shape, sender.finish)
        yield growing
        names = sender.finish()
        write_json(index, {"sha256": names})
    print(f"{len(names)} shards at {url}, {len(sender.sent)} of them new there")


class _Growing:
    """Images that are written one by one, somewhere.

    Args:
        write: writes the bytes of an image.
        shape: of an image, (H, W, C).
        finish: waits until all is written, so that nothing can fail any more.
        mapped: maps the images of a file so far, given how many; None where there is no file.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        shape: tuple[int, int, int],
        finish: Callable[[], object] = lambda: None,
        mapped: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.write, self.shape, self.finish, self.count = write, shape, finish, 0
        self.mapped, self.hash = mapped, hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """SHA-256 of the pixels so far."""
        return self.hash.digest()

    def append(self, pixels: np.ndarray) -> None:
        """Write one image, uint8 (H, W, C)."""
        if pixels.shape != self.shape or pixels.dtype != np.uint8:
            raise ValueError(f"an image is {pixels.dtype} {pixels.shape}, not uint8 {self.shape}")
        content = pixels.tobytes()
        self.write(content)
        self.hash.update(content)
        self.count += 1

    def images(self) -> np.ndarray:
        """Return the images so far, uint8 (count, H, W, C), memory-mapped; not those in shards."""
        assert self.mapped is not None
        return self.mapped(self.count)
