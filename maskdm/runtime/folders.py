"""Folders that a user names, who may name one in several ways."""

import os


def same_folder(one: str | None, other: str) -> bool:
    """Return whether two names are of one folder, whether it is there or not.

    ``./models/pretrain``, ``models/pretrain/`` and the absolute path are the same; so is a link.

    Args:
        one: what a user wrote, or None for nothing, which is no folder.
        other: the folder that it may be.
    """
    try:
        return bool(one) and os.path.realpath(str(one)) == os.path.realpath(other)
    except ValueError:  # it has characters that no name has
        return False
