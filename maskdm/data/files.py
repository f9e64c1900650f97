"""Files that are read by their names, whether they lie in a folder or in a zip archive.

Names are relative and have slashes. Names that start with a dot are left out, and so are folders
that systems add (``__MACOSX``: archives made on a Mac; ``@eaDir``: thumbnails of file servers; what
was thrown away). Everything else that is there and not taken is counted by kind. Nothing is ever
unpacked.
"""

import errno
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from maskdm.data.contract import SourceParams
from maskdm.data.images import endings, read_image
from maskdm.data.reading import once_per_process
from maskdm.runtime.errors import UserError

SYSTEMS = (
    *("__MACOSX", "@eaDir", "#snapshot", "System Volume Information"),
    *("#recycle", "@Recycle", "$RECYCLE.BIN", "lost+found"),
)
# What is called an ending where files are counted: not the numbers of a series or of DICOM.
ENDING = r"\.(?=.*[a-z])[a-z0-9_~+-]{1,10}"
OTHERS, MOST_KINDS = "other endings", 20  # kinds that are told apart
BROKEN = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}  # links to nothing
MOST_BYTES = 2**30  # of one file: no image is larger, and it is read into memory


@dataclass(frozen=True)
class Files:
    """Named files. ``read`` may be called in several threads and forked processes at once.

    Attributes:
        path: the folder or the archive.
        names: sorted.
        read: name → content; raises ValueError for more than ``MOST_BYTES``.
        left_out: what is there and not taken: kind (``.txt``, ``pipe``) → how many.
    """

    path: Path
    names: list[str]
    read: Callable[[str], bytes]
    left_out: Counter[str] = field(default_factory=Counter)

    def within(self, folder: str) -> "Files":
        """Return the files below a sub-folder, by their names relative to it."""
        start = f"{folder}/"
        names = [name.removeprefix(start) for name in self.names if name.startswith(start)]
        read = self.read
        return replace(
            self, path=self.path / folder, names=names, read=lambda name: read(start + name)
        )

    def folders(self) -> list[str]:
        """Return the names of the sub-folders that hold files, sorted."""
        return sorted({name.split("/")[0] for name in self.names if "/" in name})

    def images(self) -> "Files":
        """Return the files whose names end like an image's, and count the others as left out."""
        known, names, left_out = endings(), list[str](), Counter(self.left_out)
        for name in self.names:
            ending = PurePosixPath(name).suffix.lower()
            if ending in known:
                names.append(name)
            elif ending:
                left_out[ending if re.fullmatch(ENDING, ending) else OTHERS] += 1
            else:
                left_out["no ending"] += 1
        return replace(self, names=names, left_out=_few(left_out))


def _few(counts: Counter[str]) -> Counter[str]:
    """Return the counts of the most frequent kinds, and of all others together."""
    frequent = Counter(dict(counts.most_common(MOST_KINDS)))
    if others := counts.total() - frequent.total():
        frequent[OTHERS] += others
    return frequent


def image_reader(files: Files, params: SourceParams) -> Callable[[str], Image.Image]:
    """Return a function that reads the image in the file of a name."""
    return lambda name: read_image(
        files.read(name), params.resolution, params.background, params.max_pixels
    )


def open_files(path: Path) -> Files:
    """Open a folder, or else a zip archive.

    Raises:
        UserError: if ``path`` is neither.
    """
    return open_folder(path) if path.is_dir() else open_zip(path)


def open_folder(path: Path) -> Files:
    """Open a folder.

    Raises:
        UserError: if it is none, or it or a folder in it cannot be listed.
    """
    if not path.is_dir():
        raise UserError(f"data.path is '{path}', which is not a folder.")
    left_out = Counter[str]()
    names = sorted(name for name, _ in walk(path, left_out))
    return Files(path, names, lambda name: _content(path / name), left_out)


def open_zip(path: Path) -> Files:
    """Open a zip archive.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    archive = once_per_process(lambda: zipfile.ZipFile(path))
    members, left_out = dict[str, zipfile.ZipInfo](), Counter[str]()
    for name, member in members_of(path, archive, left_out):
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind in (0, stat.S_IFREG):
            members[name] = member
        else:  # what it would link to or be is not in the archive
            left_out[KINDS.get(kind, "special file")] += 1

    def read(name: str) -> bytes:
        _bounded(members[name].file_size)
        return archive().read(members[name])

    return Files(path, sorted(members), read, left_out)


def members_of(
    path: Path, archive: Callable[[], zipfile.ZipFile], left_out: Counter[str]
) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Yield the visible files in a zip archive, by the names that they have in a folder of it.

    Args:
        path: of the archive.
        archive: opens it.
        left_out: files that would lie outside such a folder are counted here.

    Raises:
        UserError: if there is no archive, or it is damaged.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"data.path is '{path}', which is no file.")
    try:
        listed = archive().infolist()
    except OSError as error:
        raise UserError(f"data.path is '{path}', which cannot be read: {error.strerror}.") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"data.path is '{path}', which is no whole zip file ({error}).") from None
    for member in listed:
        name = _plain(member.filename)
        if not name or member.filename.endswith(("/", "\\")):
            continue
        if ".." in name.split("/"):
            left_out["outside the archive"] += 1
        elif _visible(name):
            yield name, member


def walk(root: Path, left_out: Counter[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the names and properties of the visible files below ``root``, each real folder once.

    Links are followed to files and folders, never to anything else: a pipe would wait for a writer
    for ever, and a device may have no end.

    Args:
        root: the folder.
        left_out: what is no file is counted here.

    Raises:
        UserError: if a folder cannot be listed.
    """
    seen, folders = set[tuple[int, int]](), [""]
    while folders:
        below, start = list[str](), folders.pop()
        try:
            here = (root / start).stat()
            if (here.st_dev, here.st_ino) in seen:
                continue
            seen.add((here.st_dev, here.st_ino))
            with os.scandir(root / start) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in SYSTEMS:
                        continue
                    name = f"{start}/{entry.name}" if start else entry.name
                    try:
                        properties = entry.stat()
                    except OSError as error:
                        if error.errno not in BROKEN:
                            raise
                        left_out["broken link"] += 1
                        continue
                    if stat.S_ISDIR(properties.st_mode):
                        below.append(name)
                    elif stat.S_ISREG(properties.st_mode):
                        yield name, properties
                    else:
                        left_out[KINDS.get(stat.S_IFMT(properties.st_mode), "special file")] += 1
        except OSError as error:
            raise UserError(
                f"The folder '{root / start}' cannot be listed ({error.strerror}): let it be "
                "listed and opened (chmod u+rx), or take it out of data.path."
            ) from None
        folders.extend(sorted(below, reverse=True))  # the first name of a linked folder counts


KINDS = {
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _content(path: Path) -> bytes:
    """Return the content of a file."""
    with path.open("rb") as file:
        _bounded(os.fstat(file.fileno()).st_size)
        return file.read()


def _bounded(size: int) -> None:
    """Refuse a file that is larger than any image."""
    if size > MOST_BYTES:
        raise ValueError(f"{size / 2**30:.1f} GiB are more than the 1 GiB an image file may have")


def _plain(name: str) -> str:
    """Return the name of an archive's member without what stands for no folder."""
    parts = name.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _visible(name: str) -> bool:
    """Return whether no part of a name is hidden."""
    return not any(part.startswith(".") or part in SYSTEMS for part in name.split("/"))
