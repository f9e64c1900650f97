"""Pieces of a set that is being prepared, so that a killed ``prepare`` goes on behind the last one.

A piece is a file with the samples of consecutive pictures. It begins with a hash over all that they
follow from and over the samples. So a damaged piece, or one of other pictures, files, parameters or
code, is none: its pictures are read anew. What could not be read for a reason that may pass is in
none.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from re import fullmatch

import numpy as np

from maskdm.data.contract import Picture
from maskdm.data.prepared import Sample, Unreadable
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import final_name, listed, remove_begun, replacing
from maskdm.runtime.locks import PATIENCE, held, is_held

MOST = 1024  # pictures in a piece
MOST_BYTES = 2**24  # of their pixels, unless one picture has more
PREFIX = "prepare-"  # of the names of their folders, which lie among the checkpoints
PIECE = ".piece"
LOCK = "prepare.lock"

Outcome = Sample | Unreadable


class Pieces:
    """The pieces of one set.

    Args:
        folder: where they are; made with the first one.
        key: a hash of all that shapes a sample, but for its picture.
        shape: of an image, (H, W, C).
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int, int]) -> None:
        self.folder, self.key, self.shape = folder, key, shape
        self.length = max(1, min(MOST, MOST_BYTES // int(np.prod(shape))))  # pictures in a piece
        self.reused = 0  # pictures that needed no reading

    def samples(
        self,
        pictures: Sequence[Picture],
        read: Callable[[Sequence[Picture]], Iterator[Outcome]],
    ) -> Iterator[Outcome]:
        """Yield what becomes of each picture, in order, from pieces or else by reading.

        Memory is for a few pieces, however many there are.

        Args:
            pictures: of the whole set.
            read: reads pictures in order; called for those that are in no piece.
        """
        there, start = self._there(), 0
        while start < len(pictures):
            kept = self._load(start, self._of(pictures, start)) if start in there else None
            if kept is not None:
                self.reused += len(kept)
                yield from kept
                start += len(kept)
                continue
            end = min((s for s in there if s > start), default=len(pictures))
            fresh = list[Outcome]()
            for sample in read(pictures[start:end]):
                yield sample
                fresh.append(sample)
                of = self._of(pictures, start)
                if len(fresh) == len(of):
                    if all(isinstance(s, Sample) or s.lasting for s in fresh):
                        self._keep(start, of, fresh)
                    fresh, start = [], start + len(of)

    def _there(self) -> set[int]:
        """Return where in the set the pieces begin that seem to be there."""
        found = (fullmatch(rf"([0-9]+){PIECE}", path.name) for path in listed(self.folder, "*"))
        return {start for m in found if m and (start := int(m[1])) % self.length == 0}

    def _of(self, pictures: Sequence[Picture], start: int) -> Sequence[Picture]:
        return pictures[start : start + self.length]

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:010}{PIECE}"

    def _load(self, start: int, pictures: Sequence[Picture]) -> list[Outcome] | None:
        """Return the samples of a piece, or None if it is not what it should be."""
        path = self._path(start)
        try:
            content = memoryview(path.read_bytes())
        except OSError:
            content = memoryview(b"")
        expected, size = content[:32], int.from_bytes(content[32:40], "big")
        about, pixels = content[40 : 40 + size], content[40 + size :]
        if self._hash(pictures, about, pixels) != expected:
            print(
                f"{path} is damaged, or of other pictures: those that it is for are read anew",
                file=sys.stderr,
            )
            return None
        return list(_samples(bytes(about), pixels, self.shape))

    def _keep(self, start: int, pictures: Sequence[Picture], samples: Sequence[Outcome]) -> None:
        """Write a piece."""
        about = json.dumps([_about(sample) for sample in samples]).encode()
        pixels = b"".join(s.pixels.tobytes() for s in samples if isinstance(s, Sample))
        with replacing(self._path(start)) as begun, begun.open("wb") as file:
            file.write(self._hash(pictures, about, pixels))
            file.write(len(about).to_bytes(8, "big"))
            file.write(about)
            file.write(pixels)

    def _hash(
        self, pictures: Sequence[Picture], about: bytes | memoryview, pixels: bytes | memoryview
    ) -> bytes:
        """Return the hash of a piece: of what it follows from and of what is in it."""
        parts = (self.key.encode(), repr(pictures).encode(), about, pixels)
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _about(sample: Outcome) -> dict[str, object]:
    """Return what JSON is to hold of a sample: everything but its pixels."""
    if isinstance(sample, Unreadable):
        return {"name": sample.name, "reason": sample.reason}
    return {"label": sample.label, "heldout": sample.heldout}


def _samples(about: bytes, pixels: memoryview, shape: tuple[int, int, int]) -> Iterator[Outcome]:
    """Yield the samples of a piece that is whole."""
    images = iter(np.frombuffer(pixels, np.uint8).reshape(-1, *shape))
    for facts in json.loads(about):
        yield Unreadable(**facts) if "reason" in facts else Sample(next(images), **facts)


class ChangedError(UserError):
    """The files of a set have changed while it was prepared."""


@contextmanager
def kept_pieces(root: Path, key: str, shape: tuple[int, int, int]) -> Iterator[Pieces | None]:
    """Provide the pieces of a set; they are removed when the block ends without an error.

    They are removed as well when it ends in a ``ChangedError``: they may hold what was in a file
    for a while, and the file may be put back.

    Args:
        root: the folder of all checkpoints.
        key: a hash of all that shapes a sample, but for its picture.
        shape: of an image, (H, W, C).

    Yields:
        The pieces; None while another process prepares the same set, and so keeps them.
    """
    folder = root / f"{PREFIX}{key[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / LOCK, PATIENCE) as free:
        if not free:
            yield None
            return
        remove_begun(folder)
        done = False
        try:
            yield Pieces(folder, key, shape)
            done = True
        except ChangedError:
            done = True
            raise
        finally:
            if done or not sizes(folder):
                _remove(folder)


# All folders of a root, for listings


def folders(root: Path) -> list[Path]:
    """Return the folders of pieces under ``root``."""
    return [
        path
        for path in listed(root, f"{PREFIX}*")
        if fullmatch(rf"{PREFIX}[0-9a-f]{{16}}", path.name) and (path / LOCK).is_file()
    ]


def sizes(folder: Path) -> list[int]:
    """Return the bytes of each piece in a folder, whose set may be finished meanwhile."""
    found = list[int]()
    for path in listed(folder, f"*{PIECE}"):
        with suppress(FileNotFoundError):
            found.append(path.stat().st_size)
    return found


def in_use(folder: Path) -> bool:
    """Return whether a set is being prepared from a folder of pieces."""
    return is_held(folder / LOCK)


def clear(folder: Path) -> bool:
    """Remove the pieces of a folder; return False if they are in use.

    The folder goes too, unless there is something else in it: that is somebody's own.

    Args:
        folder: as ``folders`` lists it.
    """
    with held(folder / LOCK) as free:
        if free:
            _remove(folder)
        return free


def _remove(folder: Path) -> None:
    """Remove what ``Pieces`` puts into a folder."""
    for path in listed(folder, "*"):
        name = final_name(path.name)
        if (name == LOCK or fullmatch(rf"[0-9]+{PIECE}", name)) and not path.is_symlink():
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        folder.rmdir()
