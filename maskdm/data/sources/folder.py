"""Any images, in a folder or in a zip archive of one; sub-folders can be classes."""

import re
from pathlib import Path, PurePosixPath

from maskdm.data.contract import Kind, Picture, Source, SourceParams, folder_labels, held_out
from maskdm.data.files import Files, image_reader, open_folder, open_zip


def _folder(params: SourceParams, path: Path) -> Source:
    return _any_images(f"folder {path.resolve().name}", params, open_folder(path))


def _zip(params: SourceParams, path: Path) -> Source:
    """List the images in an archive, by their names inside a folder that holds all of them.

    So a folder and its archive are one set, with one split, whether the folder was packed or what
    is in it (which may not be one folder alone). With classes, a folder that holds nothing but
    images stays: it is the only class.
    """
    images = open_zip(path).images()
    top, depths = images.folders(), {name.count("/") for name in images.names}
    if len(top) == 1 and 0 not in depths and not (params.classes and depths == {1}):
        images = images.within(top[0])
    return _any_images(f"zip {path.name}", params, images)


def _any_images(name: str, params: SourceParams, files: Files) -> Source:
    """List every file whose name ends like an image's."""
    images = files.images()
    classes = images.folders()
    label = folder_labels(classes)
    return Source(
        name=name,
        licence="not stated",
        classes=classes,
        pictures=[
            Picture(name, held_out(file_group(name, params.group), params), label(name))
            for name in images.names
        ],
        read=image_reader(images, params),
        left_out=images.left_out,
    )


def file_group(name: str, rule: str) -> str:
    """Return the group of a file, by the rule ``data.group``.

    Args:
        name: the path relative to ``data.path``, with slashes.
        rule: ``file``, ``folder``, or a regular expression searched for in ``name``: its first
            parenthesis, or else the whole match, is the group; a file without a match is a group
            of its own.
    """
    if rule == "file":
        return name
    if rule == "folder":
        return str(PurePosixPath(name).parent)
    match = re.search(rule, name)
    if match is None:
        return name
    return match[1] or match[0] if match.re.groups else match[0]


FOLDER = Kind(_folder, path="the folder that holds the images", classes="sub-folders")
ZIP = Kind(_zip, path="the zip archive that holds the images", classes="sub-folders")
