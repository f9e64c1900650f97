"""Files: tensors and JSON to disk without a further copy in memory, and onto the disk for good."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NUMBER = re.compile(r"os error (\d+)")
UNFINISHED = ".tmp*"  # what the library's file is called until it is whole


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file for people and for DVC, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
