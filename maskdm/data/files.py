"""Files that are read by their names, whether they lie in a folder or in a zip archive.

Names are relative and have slashes. Names that start with a dot are left out, and so is the
``__MACOSX`` folder of archives made on a Mac. Nothing is ever unpacked.
"""

import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from maskdm.data.contract import SourceParams
from maskdm.data.images import read_image
from maskdm.data.reading import once_per_process
from maskdm.runtime.errors import UserError


@dataclass(frozen=True)
class Files:
    """Named files. ``read`` may be called in several threads and forked processes at once."""

    path: Path  # the folder or the archive
    names: list[str]  # sorted
    read: Callable[[str], bytes]

    def within(self, folder: str) -> "Files":
        """Return the files below a sub-folder, by their names relative to it."""
        start = f"{folder}/"
        names = [name.removeprefix(start) for name in self.names if name.startswith(start)]
        return Files(self.path / folder, names, lambda name: self.read(start + name))

    def folders(self) -> list[str]:
        """Return the names of the sub-folders that hold files, sorted."""
        return sorted({name.split("/")[0] for name in self.names if "/" in name})

    def images(self) -> "Files":
        """Return the files whose names end like an image's."""
        Image.init()
        known = Image.registered_extensions().items()
        endings = {ending for ending, kind in known if kind in Image.OPEN}
        names = [name for name in self.names if PurePosixPath(name).suffix.lower() in endings]
        return replace(self, names=names)


def image_reader(files: Files, params: SourceParams) -> Callable[[str], Image.Image]:
    """Return a function that reads the image in the file of a name."""
    return lambda name: read_image(files.read(name), params.resolution, params.background)


def open_files(path: Path) -> Files:
    """Open a folder, or else a zip archive.

    Raises:
        UserError: if ``path`` is neither.
    """
    return open_folder(path) if path.is_dir() else open_zip(path)


def open_folder(path: Path) -> Files:
    """Open a folder.

    Raises:
        UserError: if it is none.
    """
    if not path.is_dir():
        raise UserError(f"data.path is '{path}', which is not a folder.")
    return Files(path, sorted(_walk(path)), lambda name: (path / name).read_bytes())


def open_zip(path: Path) -> Files:
    """Open a zip archive.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    archive = once_per_process(lambda: zipfile.ZipFile(path))
    try:
        listed = archive().infolist()
    except OSError as error:
        raise UserError(f"data.path is '{path}', which cannot be read: {error.strerror}.") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"data.path is '{path}', which is no whole zip file ({error}).") from None
    members = {
        name: member
        for member in listed
        if _visible(name := member.filename.replace("\\", "/")) and not name.endswith("/")
    }
    return Files(path, sorted(members), lambda name: archive().read(members[name]))


def _walk(root: Path) -> Iterator[str]:
    """Yield the names of the visible files below ``root``, each real folder's once."""
    seen = set[str]()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(filter(_visible, subfolders))
        for name in filter(_visible, files):
            yield Path(folder, name).relative_to(root).as_posix()


def _visible(name: str) -> bool:
    """Return whether no part of a name is hidden."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
