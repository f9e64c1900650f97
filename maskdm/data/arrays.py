"""Pictures that come as arrays: a few parts of a set, each with many images and their labels."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maskdm.data.contract import Picture


class Part(NamedTuple):
    """One part of a set."""

    images: np.ndarray  # uint8 (count, H, W) or (count, H, W, 3)
    labels: Sequence[int]


def list_parts(parts: Mapping[str, Part], heldout: str) -> list[Picture]:
    """Return the pictures of all parts, called ``PART/INDEX``.

    Args:
        parts: by name, in the order in which they are kept.
        heldout: the name of the part that is held out.
    """
    return [
        Picture(f"{part}/{index:05}", part == heldout, int(label))
        for part, (_, labels) in parts.items()
        for index, label in enumerate(labels)
    ]


def picture_in(parts: Mapping[str, Part], name: str) -> np.ndarray:
    """Return the image of the picture called ``name``."""
    part, index = name.split("/")
    image: np.ndarray = parts[part].images[int(index)]
    return image
