"""Files: whole or not at all, without a further copy in memory, and onto the disk for good.

What is written goes beside its place under another name first. So a full disk or a signal leaves
the old file, no reader finds half of one, and a link into DVC's cache is replaced, not followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob
from math import isfinite
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from maskdm.runtime.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

NUMBER = re.compile(r"os error (\d+)")
BEGUN = ".begun"  # how the names of files end that are being written, behind their process's number
UNFINISHED = ".tmp*"  # what the library's file is called until it is whole


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Make a file that takes the place of another once it is whole, making its folder.

    Args:
        path: where the file is to be.

    Yields:
        Where to write it. If that fails, what was written is removed and ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _abandoned(path):
        left.unlink(missing_ok=True)
    begun = path.with_name(f".{path.name}.{os.getpid()}{BEGUN}")
    try:
        yield begun
        begun.replace(path)
    except BaseException:
        begun.unlink(missing_ok=True)
        raise


def final_name(name: str) -> str:
    """Return the name of the file that one of this name becomes when ``replacing`` has it whole.

    Args:
        name: of any file; of one that is not being written it is returned as it is.
    """
    found = re.fullmatch(rf"\.(.+)\.[0-9]+{re.escape(BEGUN)}", name, re.DOTALL)
    return found[1] if found else name


def _abandoned(path: Path) -> Iterator[Path]:
    """Yield what processes that run no longer have begun to write for a path."""
    with os.scandir(path.parent) as entries:  # one at a time: there may be many
        for entry in entries:
            if entry.name != path.name == final_name(entry.name):
                number = entry.name.removesuffix(BEGUN).rpartition(".")[2]
                with suppress(PermissionError):  # another user's process runs
                    try:
                        os.kill(int(number), 0)
                    except (ProcessLookupError, OverflowError):
                        yield Path(entry.path)


def remove_begun(folder: Path) -> None:
    """Remove what processes that were killed have begun to write in a folder that is locked."""
    for begun in listed(folder, f".*{BEGUN}"):
        begun.unlink(missing_ok=True)


def listed(folder: Path, pattern: str) -> list[Path]:
    """Return the paths in a folder that match, sorted; other processes may remove some meanwhile.

    ``Path.glob`` fails in Python 3.11 and 3.12 when a folder goes between being found and being
    read; what is gone is left out here.

    Args:
        folder: where to look; there is nothing in one that does not exist.
        pattern: as ``glob.glob`` takes it, relative to the folder; ``**`` is any folders.
    """
    found = glob(pattern, root_dir=folder, recursive=True, include_hidden=True)  # noqa: PTH207
    return sorted(folder / name for name in found)


def require_empty(folder: Path) -> None:
    """Check that what is written to a folder will not be mixed with what is there.

    Raises:
        UserError: if it is a folder with something in it, or a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a folder that is not there yet.")


def write_text(path: Path, text: str) -> None:
    """Write a text file, making its folder."""
    with replacing(path) as begun:
        begun.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, making its folder."""
    with replacing(path) as begun:
        begun.write_bytes(content)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file for people and for DVC, making its folder.

    JSON has no numbers that are not finite: they become null.
    """
    write_text(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return a value for JSON with null for every number that is not finite."""
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write a .npy file, making its folder.

    Raises:
        OSError: if it cannot be written, with the system's own number, which ``numpy.save`` loses.
    """
    with replacing(path) as begun, begun.open("wb") as file:
        np.lib.format.write_array(_Chunks(file), values)


@dataclass(frozen=True)
class _Chunks:
    """A file that numpy does not know for one, and so writes to through Python, in chunks."""

    file: IO[bytes]

    def write(self, content: bytes) -> int:
        """Write bytes; return how many."""
        return self.file.write(content)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors in the safetensors format.

    Args:
        tensors: by name, on the CPU and contiguous.
        path: the file, which is replaced.

    Raises:
        OSError: if it cannot be written, with the system's own number.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # the library's own would be for this user alone
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # its text alone holds what the system said
        found = NUMBER.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
    path.chmod(mode)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
