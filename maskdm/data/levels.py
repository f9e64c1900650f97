"""Pixels of more than 8 bits: scaled to 8 by the range they really have, or refused.

PIL hands over numbers and rarely says what is white: 12 bits in 16, signed numbers, 32 bits and
floating point all look alike once decoded. What a file does not say is never guessed.
"""

from typing import Any

import numpy as np
from PIL import Image

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, UNSIGNED = 0, 1
SIXTEEN = 65535  # white, where a decoder scales all depths above 8 bits to 16
GREYS = {"L;2": 85, "L;4": 17}  # greys of 2 and 4 bits → what PIL multiplies them by
DEEP = "RGB;16B"  # three channels of 16 bits, which PIL cuts to 8
SCALED = ("PNG", "PPM", "JPEG2000")


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Decode an image; return it with 8 bits a channel, or itself if it has no more.

    Args:
        image: as PIL opened it, its pixels not decoded, so that it knows how they are stored.

    Raises:
        OSError, ValueError, SyntaxError: if it cannot be decoded, or does not say which number is
            white, or which pixels are transparent.
    """
    tiles = getattr(image, "tile", None)
    stored = tiles[0].args if tiles else None
    try:
        image.load()
    except TypeError as error:  # PIL counts with whatever types a damaged header gives
        raise ValueError(f"its header is damaged ({error})") from None
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, which do not say what is white")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and (stored == DEEP or max(key) > 255):
        raise ValueError("the transparent colour has 16 bits, of which only 8 are decoded")
    if stored in GREYS and isinstance(key, int):  # PIL scales the pixels, but not the key
        image.info["transparency"] = key * GREYS[stored]
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.int64)
    white, inverted = _white(image), _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO
    if levels.size and not 0 <= levels.min() <= levels.max() <= white:
        raise ValueError(f"a pixel is {levels.max()}, and {white} is white")
    scaled = ((levels * 255 + white // 2) // white).astype(np.uint8)
    grey = Image.fromarray(255 - scaled if inverted else scaled)
    if not isinstance(key, int):
        return grey
    alpha = Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _white(image: Image.Image) -> int:
    """Return the number that is white in an image of mode I.

    Raises:
        ValueError: if the file does not say.
    """
    if image.format in SCALED:
        return SIXTEEN
    tags = _tags(image)
    bits = tags.get(BITS_PER_SAMPLE, (0,))
    kinds = tags.get(SAMPLE_FORMAT, (UNSIGNED,))
    if tags and set(bits) <= {12, 16} and set(kinds) == {UNSIGNED}:
        return int(2 ** bits[0] - 1)
    depth = f"{bits[0]} bits" if tags else "more than 8 bits"
    raise ValueError(f"pixels are whole numbers of {depth}, which do not say what is white")


def _tags(image: Image.Image) -> dict[int, Any]:
    """Return the tags of a TIFF, none of other files."""
    return dict(getattr(image, "tag_v2", None) or {})
